//! The case study of bytehound's book, on a program that leaks in the same ways: its scripts, as they are written there, one after another in
//! a console, and what each must answer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::binaries;
use hound_tests::compile::Build;
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Recording, Target, Way};
use tempfile::TempDir;

/// The scripts of each step, in the book's order. What is defined in one is there in the next.
const GRAPH_EVERYTHING: &str = r"
graph()
    .add(allocations())
    .save();
";

const LEAKED_AND_TEMPORARY: &str = r#"
graph()
    .add("Leaked", allocations().only_leaked())
    .add("Temporary", allocations())
    .save();
"#;

const LEAKED_BY_BACKTRACE: &str = r"
let groups = allocations()
    .only_leaked()
    .group_by_backtrace()
        .sort_by_size();

graph().add(groups).save();
";

const ANALYZE_LEAKED: &str = r#"
fn analyze_group(list) {
    let list_all = allocations().only_matching_backtraces(list);

    graph()
        .add("Leaked", list_all.only_leaked())
        .add("Temporary", list_all)
        .save();

    println("Total: {}", list_all.len());
    println("Leaked: {}", list_all.only_leaked().len());
    println();
    println("Backtrace:");
    println(list_all[0].backtrace().strip());
}
"#;

const TEMPORARY: &str = r"
graph()
    .add(allocations().only_temporary())
    .save();
";

const REMAINING: &str = r"
let remaining = allocations().only_not_matching_backtraces(groups);
";

const LEAKED_UNTIL_END: &str = r"
let leaked_until_end = remaining
    .only_leaked_or_deallocated_after(data().runtime() * 0.98);

graph().add(leaked_until_end).save();
";

const WITHOUT_THE_SHORT_LIVED: &str = r"
let leaked_until_end = remaining
    .only_leaked_or_deallocated_after(data().runtime() * 0.98)
    .only_alive_for_at_least(data().runtime() * 0.02);

graph().add(leaked_until_end).save();
";

const BY_BACKTRACE: &str = r"
let groups = leaked_until_end.group_by_backtrace().sort_by_size();
graph().add(groups).save();
";

const ANALYZE_LATE: &str = r#"
fn analyze_group(list) {
    let list_all = allocations().only_matching_backtraces(list);
    let list_selected = list_all
        .only_deallocated_after_at_least(data().runtime() * 0.98);

    graph()
        .add("Deallocated after 98%", list_selected)
        .add("Deallocated before 98%", list_all)
        .save();

    println("Total: {}", list_all.len());
    println("Deallocated after 98%: {}", list_selected.len());
    println();
    println("Backtrace:");
    println(list_all[0].backtrace().strip());
}
"#;

const WITHOUT_THE_FOUND: &str = r"
let group = groups
    .ungroup()
    .only_not_matching_backtraces(groups[0])
    .group_by_backtrace();

graph().add(group).save();
";

const VECS: &str = r#"
graph()
    .add("Vecs", group.ungroup().only_passing_through_function("raw_vec::finish_grow"))
    .add("Remaining", group.ungroup())
    .save();
"#;

/// What the program says it has done.
struct Simulated {
    recording: Recording,
    counts: BTreeMap<String, Vec<u64>>,
}

impl Simulated {
    /// Shares of the whole time are what the study asks by: a recording in which the machine stood still for as long as matters is made again.
    fn new() -> Simulated {
        for _ in 0..8 {
            let recording = Target::new("simulation.cpp", Build::Optimised).record(Way::Run);
            let out = recording.outcome.out();
            let line = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {out}"));
            let words: Vec<f64> = line("began").split(' ').filter_map(|word| word.parse().ok()).collect();
            let [began, longest, ending, ended] = words[..] else { panic!("{out}") };
            // What hound's clock says of the whole is more: the start and the end of the process.
            let runtime = runtime(&recording);
            let before = runtime - (ended - began);
            let late = (before + ending - began) / runtime;
            if late < 0.985 || ended - ending > 0.01 * runtime || longest > 0.015 * runtime {
                continue;
            }
            let numbers = |line: &str| line.split(' ').skip(1).filter_map(|word| word.parse().ok()).collect();
            let counts = out.lines().filter_map(|line| Some((line.split(' ').next()?.to_owned(), numbers(line)))).collect();
            return Simulated { recording, counts };
        }
        panic!("the machine stands still too often to simulate on it");
    }

    fn count(&self, name: &str) -> u64 {
        self.counts[name][0]
    }
}

fn runtime(recording: &Recording) -> f64 {
    let outcome = console(recording, Path::new("."), "data().runtime().seconds()\n");
    outcome.out().trim().parse().unwrap_or_else(|_| panic!("{}{}", outcome.out(), outcome.err()))
}

/// What a console answers to these lines.
fn console(recording: &Recording, here: &Path, lines: &str) -> Outcome {
    let typed = TempDir::new().expect("a temporary directory can be made");
    let file = typed.path().join("lines");
    fs::write(&file, lines).expect("it can be written");
    let stdin = fs::File::open(&file).expect("it is there");
    let mut command = Command::new(binaries::hound());
    let outcome = process::start_reading(command.arg("repl").arg(&recording.capture.path).current_dir(here), stdin).finish();
    assert!(outcome.status.success(), "{}", outcome.err());
    outcome
}

/// The answers to a question, in their lines.
struct Answer<'a>(&'a str);

impl Answer<'_> {
    fn number(&self, name: &str) -> u64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {}", self.0));
        line.trim().parse().unwrap_or_else(|_| panic!("{line}"))
    }

    fn passes(&self, function: &str) -> bool {
        self.0.lines().any(|line| line.starts_with('#') && line.contains(function))
    }
}

fn pictures(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).expect("it is there").map(|entry| entry.expect("an entry").path()).collect();
    files.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    files
}

#[test]
fn every_step_of_the_case_study_finds_what_the_program_leaks() {
    let simulated = Simulated::new();
    let dir = TempDir::new().expect("a temporary directory can be made");
    let mark = |name: &str| format!("println(\"== {name}\");\n");
    let script = [
        GRAPH_EVERYTHING,
        LEAKED_AND_TEMPORARY,
        LEAKED_BY_BACKTRACE,
        ANALYZE_LEAKED,
        &mark("leaked 0"),
        "analyze_group(groups[0]);\n",
        &mark("leaked 1"),
        "analyze_group(groups[1]);\n",
        &mark("leaked 2"),
        "analyze_group(groups[2]);\n",
        &mark("end"),
        TEMPORARY,
        REMAINING,
        LEAKED_UNTIL_END,
        WITHOUT_THE_SHORT_LIVED,
        BY_BACKTRACE,
        ANALYZE_LATE,
        &mark("late 0"),
        "analyze_group(groups[0]);\n",
        &mark("late 1"),
        "analyze_group(groups[1]);\n",
        &mark("rest"),
        WITHOUT_THE_FOUND,
        VECS,
        "println(group.ungroup().len());\n",
        "println(group.ungroup().only_not_passing_through_function(\"raw_vec::finish_grow\").len());\n",
    ]
    .concat();
    let outcome = console(&simulated.recording, dir.path(), &script);
    assert!(!outcome.err().contains("console:"), "{}", outcome.err());
    let out = outcome.out();
    let answer = |name: &str| Answer(out.split("== ").find_map(|part| part.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {out}")));

    // Group #0 is a leak clear and simple, #1 a cache of bounded size, #2 leaks now and then.
    let (never, cache, both) = (answer("leaked 0"), answer("leaked 1"), answer("leaked 2"));
    let made = simulated.count("leaked");
    assert_eq!((never.number("Total:"), never.number("Leaked:")), (made, made));
    assert!(never.passes("simulation::allocate_linear_leak_never_deallocated") && never.passes("main"), "{out}");
    assert_eq!((cache.number("Total:"), cache.number("Leaked:")), (simulated.count("bounded"), 432));
    assert!(cache.passes("simulation::allocate_bounded_leak"), "{out}");
    assert_eq!((both.number("Total:"), both.number("Leaked:")), (simulated.count("both"), simulated.counts["both"][1]));
    assert!(both.passes("simulation::allocate_both_temporary_and_linear_leak"), "{out}");

    // Among the temporaries one was hidden: released, but at the very end.
    let (hidden, vec) = (answer("late 0"), answer("late 1"));
    let made = simulated.count("at_end");
    assert_eq!((hidden.number("Total:"), hidden.number("Deallocated after 98%:")), (made, made));
    assert!(hidden.passes("simulation::allocate_linear_leak_deallocated_at_the_end"), "{out}");
    // The vector that holds it has grown from 4 to 1024 pointers; only the last was there at the end.
    assert_eq!((vec.number("Total:"), vec.number("Deallocated after 98%:")), (9, 1));
    assert!(vec.passes("simulation::allocate_linear_leak_deallocated_at_the_end") && vec.passes("raw_vec::finish_grow"), "{out}");
    // What remains are vectors, and nothing else.
    let rest: Vec<u64> = answer("rest").0.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(matches!(rest[..], [some, 0] if some >= 3), "{rest:?}");

    let drawn = pictures(dir.path());
    assert_eq!(drawn.len(), 14, "{drawn:?}");
    let texts: Vec<String> = drawn.iter().map(|path| fs::read_to_string(path).expect("a picture")).collect();
    assert!(texts.iter().all(|svg| svg.starts_with("<svg") && svg.contains("Memory in allocations over time")));
    assert!(texts[1].contains(">Leaked<") && texts[1].contains(">Temporary<"));
    assert!(texts[2].contains("allocate_linear_leak_never_deallocated"), "groups are named by their paths");
    assert!(texts[13].contains(">Vecs<"));
}
