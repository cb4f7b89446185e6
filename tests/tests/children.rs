//! `hound run --children`: the processes that a program begins are recorded with it, each exactly, and none is harmed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::capture::{Event, hound, wait_until_finished};
use hound_tests::compile::{Build, Program};
use hound_tests::oracle::{Call, Oracle};
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Recording, Target, Way};
use hound_tests::{binaries, compare, requirement};
use serde_json::Value;
use tempfile::TempDir;

/// By a library that is preloaded, and by one that was brought into the program before its first instruction, or while it ran.
const WAYS: [Way; 3] = [Way::Run, Way::Patched, Way::Attached];

fn recorded(how: &str, build: Build, way: Way) -> Recording {
    Target::new("tree.c", build).hound(&["--children"]).args(&[how]).record(way)
}

/// The processes that have told anything.
fn told(events: &[Event]) -> usize {
    events.iter().filter(|event| event.tid != 0).map(|event| event.pid).collect::<BTreeSet<u32>>().len()
}

fn report(capture: &Path, more: &[&str]) -> Value {
    let words = ["--format", "json", "--all"].iter().chain(more);
    let outcome = hound([Path::new("report"), capture].into_iter().chain(words.map(Path::new)));
    assert!(outcome.status.success(), "{}", outcome.err());
    serde_json::from_str(&outcome.out()).expect("JSON")
}

/// All processes' events are what they noted, and each release of a block from before a fork is known to be one.
fn must_be_exact(recording: &Recording) -> (Oracle, Vec<Event>) {
    let check = recording.capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    let (oracle, events) = (recording.oracle(), recording.capture.events());
    let differences = compare::differences(&oracle, &events, &recording.rules);
    assert!(differences.is_empty(), "the capture differs from what was noted:\n{}", differences.join("\n"));
    assert!(compare::noted(&oracle) > 0, "nothing was noted");
    let report = report(&recording.capture.path, &[]);
    assert_eq!((&report["totals"]["lost_events"], &report["totals"]["unknown_frees"]), (&0.into(), &0.into()), "{}", report["totals"]);
    let inherited = inherited(&oracle, &events);
    assert_eq!(report["totals"]["inherited_frees"].as_u64().unwrap_or(0), inherited, "{}", report["totals"]);
    (oracle, events)
}

/// How many releases were of blocks that another process has made.
fn inherited(oracle: &Oracle, events: &[Event]) -> u64 {
    let process: BTreeMap<u32, u32> = events.iter().filter(|event| event.tid != 0).map(|event| (event.tid, event.pid)).collect();
    let mut own = BTreeSet::new();
    let mut inherited = 0;
    for note in &oracle.notes {
        let of = process.get(&note.tid).copied().unwrap_or_default();
        let gone = match note.call {
            Call::Free => note.addr,
            _ => note.prev,
        };
        if gone != 0 && !own.remove(&(of, gone)) {
            inherited += 1;
        }
        if note.call != Call::Free && note.addr != 0 {
            own.insert((of, note.addr));
        }
    }
    inherited
}

/// What it printed, without the variables that its children find hound by.
fn but_for_hound(outcome: &Outcome) -> Vec<String> {
    const OURS: [&str; 3] = ["env LD_PRELOAD=", "env HOUND_FAMILY=", "env ASAN_OPTIONS=verify_asan_link_order=0"];
    outcome.out().lines().filter(|line| OURS.iter().all(|ours| !line.starts_with(ours))).map(str::to_owned).collect()
}

/// As without hound, but for what its children find hound by, and what hound itself says.
fn must_be_unharmed(recording: &Recording, how: &str, build: Build) {
    let alone = Target::new("tree.c", build).args(&[how]).alone();
    assert_eq!(but_for_hound(&recording.outcome), but_for_hound(&alone), "{how}: other output");
    assert_eq!(recording.outcome.shell_status(), alone.shell_status(), "{how}: other status: {}", recording.outcome.err());
}

#[test]
fn children_and_theirs_are_exact_in_all_builds() {
    for build in Build::ALL {
        for how in ["forks", "raw", "handler", "threads"] {
            for way in WAYS.into_iter().filter(|way| *way != Way::Attached || build == Build::Optimised && requirement::root()) {
                let recording = recorded(how, build, way);
                must_be_unharmed(&recording, how, build);
                let (_, events) = must_be_exact(&recording);
                assert_eq!(told(&events), if how == "forks" { 9 } else { 2 }, "{how} {way:?}");
            }
        }
    }
}

#[test]
fn what_a_child_has_from_before_its_fork_is_neither_allocated_anew_nor_leaked_twice() {
    for way in [Way::Run, Way::Patched] {
        let recording = recorded("raw", Build::Optimised, way);
        let (oracle, _) = must_be_exact(&recording);
        let all = report(&recording.capture.path, &[]);
        let processes = all["processes"].as_array().expect("a list");
        assert_eq!(processes.len(), 2, "{processes:?}");
        let (child, pid) = (&processes[1], processes[0]["pid"].as_u64());
        assert_eq!((&child["began"], child["parent"].as_u64()), (&"fork".into(), pid), "{child}");
        assert_eq!((&child["end"]["how"], &child["end"]["value"]), (&"exit".into(), &40.into()), "{child}");
        let made = oracle.notes.iter().filter(|note| note.call != Call::Free && Some(u64::from(note.tid)) != pid).count();
        assert_eq!(child["allocations"].as_u64(), Some(made as u64), "{child}");
        let one = report(&recording.capture.path, &["--process", &child["pid"].to_string()]);
        assert_eq!(one["totals"]["allocations"].as_u64(), Some(made as u64), "{}", one["totals"]);
    }
}

/// A static one whose allocator has no name runs on unrecorded, and that is said, however it was begun.
#[test]
fn a_stripped_static_program_below_a_recorded_one_is_counted_once() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let program = Program::new("sleeps.c", Build::Optimised).with(&["-static", "-s"]).path();
    let scripts = [
        ("\"$1\" 3; exit $?", "by vfork", "1 of the processes that the program began is"),
        ("\"$1\" 3 & wait; exit $?", "by fork", "1 of the processes that the program began is"),
        ("for i in 1 2 3 4; do \"$1\" 0; done; exit $?", "one after the other", "4 of the processes that the program began are"),
    ];
    for (script, how, said) in scripts {
        let mut command = Command::new(binaries::hound());
        command.args(["run", "--children", "-o"]).arg(dir.path().join("tree.hound")).args(["--", "/bin/sh", "-c", script, "sh"]);
        let outcome = process::run(command.arg(&program));
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        assert!(outcome.err().contains(&format!("hound: {said} not recorded")), "{how}: {}", outcome.err());
        let why = outcome.err().matches("it is linked statically and stripped").count();
        assert_eq!(why, 1, "{how}: {}", outcome.err());
    }
}

/// Not only of the program's own process.
#[test]
fn the_memory_of_each_process_is_seen_over_time() {
    let program = "import time; held = b'x' * 100_000_000; time.sleep(2.5)";
    let (dir, outcome, report) = run(&[], &format!("python3 -c \"{program}\"; exit $?"));
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    let events = hound([Path::new("dump"), &dir.path().join("tree.hound"), Path::new("--format"), Path::new("json")]).out();
    let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let looks: Vec<Value> =
        events.filter(|event| event["event"] == "process_rss" && event["resident"].as_u64() > Some(100_000_000)).collect();
    let first = &report["session"]["pid"];
    assert!(looks.len() > 1 && looks.iter().all(|look| look["pid"] != *first), "{looks:?} beside {first}");
}

/// What a process holds when it forks is kept, however short it lives: its copies' releases are recorded.
#[test]
fn what_lives_short_is_left_out_of_each_process_and_all_else_is_as_without() {
    for (how, way) in
        [("raw", Way::Run), ("forks", Way::Run), ("threads", Way::Run), ("short", Way::Run), ("forks", Way::Patched), ("raw", Way::Patched)]
    {
        let whole = recorded(how, Build::Optimised, way);
        let culled = Target::new("tree.c", Build::Optimised).hound(&["--children", "--cull", "60s"]).args(&[how]).record(way);
        must_be_unharmed(&culled, how, Build::Optimised);
        let check = culled.capture.check();
        assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
        let (whole, culled) = (report(&whole.capture.path, &[]), report(&culled.capture.path, &[]));
        let left_out = &culled["session"]["stripped"];
        assert!(left_out["blocks"].as_u64() > Some(0), "{how} {way:?}: {left_out}");
        // In the others the program goes on for as long as its children do.
        for (what, out) in [("allocations", "blocks"), ("allocated_bytes", "bytes"), ("frees", "blocks")]
            .into_iter()
            .filter(|_| matches!(how, "raw" | "short"))
        {
            let (before, now) = (&whole["totals"][what], &culled["totals"][what]);
            assert_eq!(before.as_u64(), Some(now.as_u64().unwrap_or(0) + left_out[out].as_u64().unwrap_or(0)), "{how} {way:?}: {what}");
        }
        for what in ["live_blocks", "live_bytes", "unknown_frees", "inherited_frees", "lost_events"] {
            assert_eq!(whole["totals"][what], culled["totals"][what], "{how} {way:?}: {what}");
        }
        let sums = |report: &Value| -> Vec<(String, Value)> {
            let all = report["processes"].as_array().cloned().unwrap_or_default();
            all.iter().map(|one| (one["began"].to_string(), one["live_blocks"].clone())).collect()
        };
        assert_eq!(sums(&whole), sums(&culled), "{how} {way:?}");
    }
}

#[test]
fn children_without_descriptors_root_or_rights_are_recorded_and_one_that_cannot_ask_is_counted() {
    if !requirement::root() {
        return;
    }
    for way in WAYS {
        let recording = recorded("closes", Build::Optimised, way);
        must_be_unharmed(&recording, "closes", Build::Optimised);
        must_be_exact(&recording);
        let said = format!("{}{}", recording.outcome.err(), recording.said);
        assert!(said.contains("1 of the processes that the program began is not recorded"), "{way:?}: {said}");
    }
}

#[test]
fn none_of_two_hundred_short_children_is_missed() {
    for way in WAYS.into_iter().filter(|way| *way != Way::Attached || requirement::root()) {
        let recording = recorded("short", Build::Optimised, way);
        must_be_unharmed(&recording, "short", Build::Optimised);
        let (_, events) = must_be_exact(&recording);
        assert_eq!(told(&events), 201, "{way:?}");
    }
}

#[test]
fn what_outlives_the_program_is_recorded_to_its_end() {
    for way in WAYS.into_iter().filter(|way| *way != Way::Attached || requirement::root()) {
        let recording = recorded("daemon", Build::Optimised, way);
        let (_, events) = must_be_exact(&recording);
        assert_eq!((told(&events), recording.outcome.shell_status()), (2, 5), "{way:?}: {}", recording.outcome.err());
    }
}

/// Four images, one process: each is recorded as it was noted, the one behind the other.
#[test]
fn a_program_that_replaces_itself_by_itself_is_exact_in_each_image() {
    for build in Build::ALL {
        let target = Target::new("replaces_itself.c", build).args(&["3"]);
        let started = target.clone().hound(&["--children"]).start(Way::Run);
        let notes = started.oracle_file();
        let recording = started.finish();
        let alone = target.alone();
        assert_eq!(
            (but_for_hound(&recording.outcome), recording.outcome.shell_status()),
            (but_for_hound(&alone), 7),
            "{}",
            recording.outcome.err()
        );
        let mut images = (0..4).map(|number| match number {
            0 => Oracle::read(&notes),
            _ => Oracle::read(&notes.with_extension(number.to_string())),
        });
        let mut oracle = images.next().expect("four of them");
        for image in images {
            assert_eq!(image.pid, oracle.pid, "an exec keeps the process");
            oracle.notes.extend(image.notes);
            oracle.own.extend(image.own);
        }
        let events = recording.capture.events();
        // Each image lies elsewhere: one list of functions does not fit them all.
        let differences = compare::differences(&oracle, &events, &compare::Rules::default());
        assert!(differences.is_empty(), "{build:?}: the capture differs from what was noted:\n{}", differences.join("\n"));
        assert_eq!(compare::noted(&oracle), 4 * 201, "each image notes the same");
        let report = report(&recording.capture.path, &[]);
        assert_eq!((&report["totals"]["lost_events"], &report["totals"]["unknown_frees"]), (&0.into(), &0.into()));
        let ends: Vec<String> = processes(&report).into_iter().map(|(.., end)| end).collect();
        assert_eq!(ends, ["exec", "exec", "exec", "exit"]);
    }
}

fn run(options: &[&str], script: &str) -> (TempDir, Outcome, Value) {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = dir.path().join("tree.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--children", "--quiet"]).args(options).arg("-o").arg(&path).args(["--", "/bin/sh", "-c", script]);
    let outcome = process::run(command.current_dir(dir.path()));
    let report = report(&path, &[]);
    (dir, outcome, report)
}

/// What each process was called, how it began and ended.
fn processes(report: &Value) -> Vec<(String, String, String)> {
    let list = report["processes"].as_array().expect("a list").iter();
    let word = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    list.map(|of| {
        let first = of["command"].as_array().and_then(|words| words.first()).map(word).unwrap_or_else(|| word(&of["command"]));
        (first.rsplit('/').next().unwrap_or_default().to_owned(), word(&of["began"]), word(&of["end"]["how"]))
    })
    .collect()
}

#[test]
fn a_shell_its_pipelines_and_what_it_replaces_itself_by_are_all_there() {
    let (_dir, outcome, report) = run(&[], "ls / | cat | wc -l >/dev/null; (exec cat </dev/null); exec python3 -c 'print(6 * 7)'");
    assert_eq!((outcome.out().trim(), outcome.shell_status()), ("42", 0), "{}", outcome.err());
    let all = processes(&report);
    for (name, began) in [("ls", "exec"), ("cat", "exec"), ("wc", "exec"), ("python3", "exec")] {
        let one = all.iter().find(|(is, how, _)| is == name && how == began);
        assert!(one.is_some_and(|(.., end)| end == "exit"), "{name}: {all:?}");
    }
    assert_eq!(all[0].2, "exec", "the shell itself: {all:?}");
    assert_eq!(report["totals"]["lost_events"], 0);
    let totals = |of: &Value| of["allocations"].as_u64().unwrap_or_default();
    let sum: u64 = report["processes"].as_array().expect("a list").iter().map(totals).sum();
    assert_eq!(sum, totals(&report["totals"]), "all processes together");
}

#[test]
fn programs_are_found_however_they_are_begun() {
    // posix_spawn, vfork and exec, system and popen; with environments of their own, or none.
    let script = "import os, subprocess\nos.system('true; cat /dev/null')\nos.popen('wc -l </dev/null').read()\n\
                  os.waitpid(os.posix_spawn('/bin/ls', ['ls', '/'], {}), 0)\nsubprocess.run(['head', '-1', '/dev/null'])\n\
                  subprocess.run(['/bin/tail', '-1', '/dev/null'], env={'A': 'b'})\n\
                  subprocess.run(['env', '-i', '/bin/sort', '/dev/null'], env={'LD_PRELOAD': '', 'PATH': '/bin:/usr/bin'})\n\
                  if os.fork() == 0: os.execve('/bin/tac', ['tac', '/dev/null'], {})\n\
                  os.wait()\n";
    let (dir, ..) = run(&[], "true");
    std::fs::write(dir.path().join("begin.py"), script).expect("room for it");
    let (_dir, outcome, report) = run(&[], &format!("python3 {}/begin.py >/dev/null", dir.path().display()));
    assert!(outcome.status.success(), "{}", outcome.err());
    let all: Vec<String> = processes(&report).into_iter().map(|(name, ..)| name).collect();
    for name in ["python3", "cat", "wc", "ls", "head", "tail", "env", "sort", "tac"] {
        assert!(all.iter().any(|is| is == name), "{name}: {all:?}");
    }
}

#[test]
fn programs_built_with_sanitizers_run_as_ever_below_one_that_is_recorded_and_are_counted() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    for sanitizer in ["address", "thread", "leak"] {
        let flag = format!("-fsanitize={sanitizer}");
        let program = Program::new("threads.c", Build::Optimised).with(&[&flag, "-DO_NO_STACKS"]).path();
        let options = "detect_leaks=0:report_signal_unsafe=0:report_bugs=0";
        let of = |name: &str| format!("{name}_OPTIONS={options}");
        let script = format!(
            "{} {} {} ORACLE_FILE={}/oracle {}; echo $?",
            of("ASAN"),
            of("TSAN"),
            of("LSAN"),
            dir.path().display(),
            program.display()
        );
        let alone = process::run(Command::new("/bin/sh").args(["-c", &script]));
        let (_dir, outcome, report) = run(&[], &script);
        let shown =
            |outcome: &Outcome| outcome.out().lines().filter(|line| !line.starts_with("env ")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(shown(&outcome), shown(&alone), "{sanitizer}: {}", outcome.err());
        assert!(outcome.err().contains("1 of the processes that the program began is not recorded"), "{sanitizer}: {}", outcome.err());
        assert!(report["totals"]["allocations"].as_u64() > Some(0), "{sanitizer}: {}", report["totals"]);
        assert!(report["processes"].as_array().is_none_or(Vec::is_empty), "{sanitizer}: more than the shell: {}", report["processes"]);
    }
}

#[test]
fn samples_of_a_tree_are_of_all_its_processes() {
    let (_dir, outcome, report) =
        run(&["--mode", "sampled", "--interval", "4Ki"], "ls -lR /usr/lib/python3 >/dev/null; python3 -c 'import json'; true");
    assert!(outcome.status.success(), "{}", outcome.err());
    let sampled = report["processes"].as_array().expect("a list").iter().filter(|of| of["allocations"].as_f64() > Some(0.0));
    assert!(sampled.count() >= 2, "{}", report["processes"]);
}

#[test]
fn a_process_that_outlives_the_program_can_be_left() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = dir.path().join("left.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--children", "-o"]).arg(&path);
    let script = "import os, time\npid = os.fork()\nif pid == 0:\n  kept = [str(i) * 50 for i in range(1000)]\n  time.sleep(600)\nprint(pid, flush=True)\nos._exit(0)";
    let running = process::start(command.args(["--", "/usr/bin/python3", "-c", script]).env("PYTHONMALLOC", "malloc"));
    let child = || running.printed().trim().parse::<i32>().ok();
    assert!(
        process::wait_until(|| child().is_some() && running.said().contains("1 process that it began is still recorded")),
        "{}",
        running.said()
    );
    let child = nix::unistd::Pid::from_raw(child().expect("as seen"));
    nix::sys::signal::kill(running.pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    let outcome = running.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("it runs on");
    let report = report(&path, &[]);
    let last = report["processes"].as_array().and_then(|all| all.last()).expect("a child");
    assert!(last["allocations"].as_u64() > Some(100) && last["end"]["how"] == "detach", "{last}");
}

#[test]
fn preloaded_programs_have_a_capture_each_if_children_are_tracked() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ls / >/dev/null; sort /dev/null; true"]).current_dir(dir.path());
    command.env("LD_PRELOAD", binaries::libhound()).env("MEMORY_PROFILER_TRACK_CHILD_PROCESSES", "1").env_remove("HOUND_OUTPUT");
    let outcome = process::run(&mut command);
    assert!(outcome.status.success(), "{}", outcome.err());
    let captures = || -> Vec<PathBuf> {
        let files = std::fs::read_dir(dir.path()).expect("the test's own folder").flatten().map(|entry| entry.path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "hound")).collect()
    };
    assert!(process::wait_until(|| captures().len() == 3), "{:?}", captures());
    // Of one that has ended before it could be asked, the executable is known: `sh` may be another name of that.
    let name = |path: PathBuf| {
        let command = report(&wait_until_finished(&path).path, &[])["session"]["command"][0].clone();
        command.as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default().to_owned()
    };
    let names: BTreeSet<String> = captures().into_iter().map(name).collect();
    assert!(names.len() == 3 && ["ls", "sort"].iter().all(|name| names.contains(*name)), "{names:?}");
}

#[test]
fn strangers_who_say_nothing_or_the_wrong_word_keep_nobody_waiting() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let (path, go) = (dir.path().join("strangers.hound"), dir.path().join("go"));
    let script = "import os, sys, time\nprint('ready', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\n\
                  for i in range(5):\n  if os.fork() == 0:\n    kept = [bytes(5000) for i in range(100)]\n    os._exit(0)\n  os.wait()\n";
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--children", "--quiet", "-o"]).arg(&path).args(["--", "/usr/bin/python3", "-c", script]).arg(&go);
    let running = process::start(&mut command);
    running.wait_for_output("ready");
    let begin = format!("@hound-{}-", running.pid);
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("a list of sockets");
    let name = sockets.split_whitespace().find(|word| word.starts_with(&begin)).expect("hound listens").trim_start_matches('@').to_owned();
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let connect = || UnixStream::connect_addr(&address).expect("anybody may connect");
    let silent: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    let wrong: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    wrong.iter().for_each(|mut stream| stream.write_all(&[1; 256]).expect("it listens"));
    std::fs::write(&go, "").expect("room for it");
    let outcome = running.finish();
    assert_eq!((outcome.shell_status(), outcome.err()), (0, String::new()));
    drop((silent, wrong));
    let report = report(&path, &[]);
    let forked = report["processes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|of| of["began"] == "fork" && of["allocations"].as_u64() >= Some(100));
    assert_eq!(forked.count(), 5, "{}", report["processes"]);
}

#[test]
fn without_the_option_children_run_on_unrecorded_and_see_nothing_of_hound() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = dir.path().join("one.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "-o"]).arg(&path).args(["--", "/bin/sh", "-c", "env; ls / >/dev/null; true"]);
    let outcome = process::run(command.env_remove("LD_PRELOAD"));
    assert!(!outcome.out().contains("HOUND_") && !outcome.out().contains("LD_PRELOAD"), "{}", outcome.out());
    assert!(report(&path, &[])["processes"].as_array().is_none_or(Vec::is_empty));
}
