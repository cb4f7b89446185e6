//! Whatever a capture holds, and whatever has become of it: each command that reads captures answers, or says in a line why not.

use std::fs;
use std::path::Path;
use std::process::Command;

use hound_tests::attach::{Subject, begin};
use hound_tests::binaries;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Target, Way};
use hound_tests::requirement;
use tempfile::TempDir;

/// Each that reads captures, with what changes its way through them. `OUT.` stands for a file to write.
const COMMANDS: &[&str] = &[
    "info",
    "info --format json",
    "check",
    "dump",
    "dump --format json",
    "report",
    "report --format json --all",
    "report --leaks --by function",
    "report --peak --by thread --blocks",
    "report --temporary --by module",
    "report --allocated --by process",
    "report --by mode",
    "report --by size --format json",
    "report --allocations --by tree",
    "report --faults",
    "report --faults --by function --format json",
    "report --process 1",
    "report --thread 1 --min-size 100 --max-lifetime 1s --from 1ms --to 1h --only leaked",
    "leaks",
    "leaks --by process --format json --all",
    "graph -o OUT.svg",
    "graph -o OUT.svg --rates --by thread",
    "graph -o OUT.svg --by process",
    "graph -o OUT.svg --by mode",
    "graph -o OUT.svg --sizes",
    "graph -o OUT.svg --lifetimes --by function",
    "graph -o OUT.svg --fragmentation",
    "graph -o OUT.svg --address-space --at 1ms",
    "graph --format json --start 1ms --end 2h",
    "flame -o OUT.svg",
    "flame -o OUT.html --peak --inverted",
    "flame -o OUT.folded --allocated",
    "flame -o OUT.svg --temporary",
    "flame -o OUT.svg --faults",
    "flame -o OUT.svg --at 1ms",
    "flame -o OUT.svg --compare CAPTURE",
    "strip --threshold 1us -o OUT.hound",
    "index",
    "report --all",
    "leaks --all",
    "graph -o OUT.svg",
    "flame -o OUT.svg --leaks",
    "index --remove",
];

/// Asks for everything once. What cannot be answered of this capture is told, and the rest goes on.
const SCRIPT: &str = r#"
let asked = [
    || allocations().len(), || maps().len(), || data().runtime(), || data().processes(), || data().threads(), || data().modes(),
    || allocations().estimate(), || allocations().bytes(), || allocations().growth(), || allocations().survival(),
    || allocations().generations(8), || allocations().group_by_backtrace().sort_by_size().take(3).table(),
    || allocations().only_group_allocations_at_least(2).group_by_backtrace().ungroup().len(),
    || allocations().only_leaked().only_larger(10).only_alive_for_at_least(ms(1)).len(), || allocations().only_temporary().len(),
    || allocations().only_sampled().len() + allocations().only_exact().len() + allocations().only_uncertain().len(),
    || allocations().only_chain_length_at_least(2).len(), || allocations().only_thread(1).len() + allocations().only_process(1).len(),
    || allocations().only_from_maps(maps().only_readable()).len(), || allocations().only_ptmalloc_mmaped().len(),
    || allocations().only_passing_through_function("main").len(), || allocations().only_matching_deallocation_backtraces([]).len(),
    || diff(allocations(), allocations().only_leaked()).len(), || allocations()[0].backtrace().strip(), || allocations()[0].lifetime(),
    || maps()[0].peak_rss(), || graph().add(allocations()).show_memory_usage().save("a.svg"),
    || graph().add(allocations()).show_new_allocations().trim().without_axes().save("b.svg"),
    || graph().add(maps()).show_rss().save("c.svg"), || graph().add(maps()).show_address_space().save("d.svg"),
    || allocations().save_as_flamegraph("e.svg"), || allocations().save_as_graph("f.svg"),
];
let answered = 0;
for ask in asked {
    try { ask.call(); answered += 1; } catch (why) { println(`not answered: ${why}`); }
}
println(`answered ${answered}`);
"#;

/// What hound did, which may have been to refuse, in words.
fn hound(args: &[&str], folder: &Path) -> Outcome {
    let outcome = process::run(Command::new(binaries::hound()).args(args).current_dir(folder));
    let (code, err) = (outcome.status.code(), outcome.err());
    assert!(matches!(code, Some(0 | 2)), "hound {args:?}: {:?}\n{err}", outcome.status);
    assert!(!err.contains("panicked"), "hound {args:?}: {err}");
    // Of what is damaged `hound check` tells in its output.
    assert!(code == Some(0) || err.contains("hound: ") || args[0] == "check", "hound {args:?} failed without a word: {err}");
    outcome
}

/// All commands, of a capture that they can read something of, or of anything. Returns how many answered.
fn goes_through(capture: &Path, is_capture: bool) -> usize {
    let folder = TempDir::new().expect("a temporary directory can be made");
    // A copy: indexes and stripped captures come to lie beside.
    let path = folder.path().join("any.hound");
    fs::copy(capture, &path).expect("room for it");
    let name = "any.hound";
    let mut answered = 0;
    for command in COMMANDS {
        let mut words: Vec<&str> = command.split(' ').map(|word| if word == "CAPTURE" { name } else { word }).collect();
        words.insert(1, name);
        let outcome = hound(&words, folder.path());
        answered += usize::from(outcome.status.success());
        if is_capture && matches!(words[0], "info" | "dump" | "strip" | "index") {
            assert!(outcome.status.success(), "hound {command} of {}: {}", capture.display(), outcome.err());
        }
    }
    fs::write(folder.path().join("all.rhai"), SCRIPT).expect("room for it");
    for options in [&[][..], &["--sandbox"]] {
        let outcome = hound(&[&["script", "all.rhai", "-d", name], options].concat(), folder.path());
        assert_eq!(outcome.status.success(), is_capture, "{}{}", outcome.out(), outcome.err());
        if is_capture {
            let answered = outcome.out().lines().last().and_then(|line| line.strip_prefix("answered ")?.parse::<usize>().ok());
            assert!(answered.is_some_and(|answered| answered >= 24), "{}", outcome.out());
        }
    }
    answered
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

#[test]
fn whole_cut_and_damaged_captures() {
    for name in ["whole.hound", "cut.hound", "flipped.hound", "sampled.hound", "faults.hound"] {
        let answered = goes_through(&golden(name), true);
        assert!(answered > COMMANDS.len() / 3, "{name}: {answered} commands answered");
    }
}

#[test]
fn what_is_no_capture() {
    let folder = TempDir::new().expect("a temporary directory can be made");
    let whole = fs::read(golden("whole.hound")).expect("it is there");
    let long = vec![0x55; 1 << 20];
    for (name, bytes) in [("empty", &[][..]), ("header", &whole[..16]), ("zeros", &[0; 4096]), ("text", b"hound\n"), ("long", &long)] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("room for it");
        assert_eq!(goes_through(&path, false), 1, "{name}: `index --remove` asks nothing of it, all others cannot answer");
    }
}

#[test]
fn a_program_without_an_allocation() {
    let folder = TempDir::new().expect("a temporary directory can be made");
    let path = folder.path().join("nothing.hound");
    let recorded = hound(&["run", "--quiet", "-o", "nothing.hound", "--", "true"], folder.path());
    assert!(recorded.status.success(), "{}", recorded.err());
    goes_through(&path, true);
}

#[test]
fn sampled_inside() {
    let recording = Target::new("shapes.c", Build::Optimised).sampled(64).record(Way::Run);
    goes_through(&recording.capture.path, true);
}

#[test]
fn several_modes() {
    if !requirement::root() {
        return;
    }
    let subject = Subject::start(&mut Command::new(Program::new("attach_target.c", Build::Optimised).path()));
    let (pid, file) = (subject.pid(), subject.file("modes.hound"));
    let mut attach = Command::new(binaries::hound());
    attach.args(["attach", "-p", &pid.to_string(), "--maps", "--interval", "64", "--mode", "sampled", "--quiet"]);
    attach.args(["--then", "full:300ms", "--then", "faults:200ms", "--then", "off:100ms", "--duration", "900ms", "-o"]).arg(&file);
    let (capture, outcome) = begin(pid, &file, &mut attach).unwrap_or_else(|said| panic!("hound did not attach: {said}")).finish();
    assert!(outcome.status.success(), "{}", outcome.err());
    goes_through(&capture.path, true);
    subject.end();
}

#[test]
fn several_processes() {
    if !requirement::uprobes() {
        return;
    }
    let start = || Subject::start(&mut Command::new(Program::new("attach_target.c", Build::Optimised).path()));
    let (one, other) = (start(), start());
    let file = one.file("several.hound");
    let pids = [one.pid(), other.pid()].map(|pid| pid.to_string());
    let mut attach = Command::new(binaries::hound());
    attach.args(["attach", "-p", &pids[0], "-p", &pids[1], "--budget", "unlimited", "--interval", "0", "--quiet", "--duration", "500ms"]);
    let (capture, outcome) =
        begin(one.pid(), &file, attach.arg("-o").arg(&file)).unwrap_or_else(|said| panic!("hound did not attach: {said}")).finish();
    assert!(outcome.status.success(), "{}", outcome.err());
    goes_through(&capture.path, true);
    one.end();
    other.end();
}

#[test]
fn the_kernels_memory() {
    if !requirement::uprobes() {
        return;
    }
    let folder = TempDir::new().expect("a temporary directory can be made");
    let recorded = hound(&["attach", "--kernel", "--duration", "300ms", "--quiet", "-o", "kernel.hound"], folder.path());
    assert!(recorded.status.success(), "{}", recorded.err());
    goes_through(&folder.path().join("kernel.hound"), true);
}
