//! Pools named with `--hook`, and several allocators in one program, seen by the kernel's probes: each for itself, as the program counts.

use std::collections::BTreeMap;
use std::process::Command;

use hound_tests::attach::{self, Subject};
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program, cargo_program};
use hound_tests::requirement;
use serde_json::Value;

const HOOKS: [&str; 12] = [
    "--hook",
    "alloc=arena_get(size=1)",
    "--hook",
    "alloc=arena_zeroed(count=1,size=2)",
    "--hook",
    "realloc=arena_grow(ptr=1,size=2)",
    "--hook",
    "free=arena_put(ptr=1)",
    "--hook",
    "alloc=slot_get(size=0)",
    "--hook",
    "free=slot_put(ptr=0)",
];
/// As the program tells them, but for releases of what was there before: of these the kernel's probes tell nothing.
const FIGURES: [(&str, usize); 6] =
    [("allocations", 0), ("allocated_bytes", 1), ("frees", 2), ("live_blocks", 4), ("live_bytes", 5), ("peak_bytes", 6)];

/// What the program counted: name, and the numbers.
fn counted(subject: &Subject) -> BTreeMap<String, Vec<u64>> {
    let printed = subject.running.printed();
    let lines = printed.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|words| words.len() == 8);
    lines.map(|words| (words[0].to_owned(), words[1..].iter().map(|word| word.parse().expect("a number")).collect())).collect()
}

fn report(capture: &Capture) -> Value {
    let outcome = capture.ask("report", &["--all", "--format", "json"]);
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.err()))
}

#[test]
fn pools_are_counted_exactly_beside_the_heap_they_are_cut_from() {
    if !requirement::uprobes() {
        return;
    }
    for build in [Build::Plain, Build::Optimised] {
        let mut subject = Subject::start(&mut Command::new(Program::new("attach_pool.c", build).path()));
        let session = attach::attach_kernel(subject.pid(), &subject.file("capture.hound"), &HOOKS);
        subject.order("work");
        let capture = session.detach(&[]);
        subject.order("count");
        let check = capture.check();
        assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
        let (truth, report) = (counted(&subject), report(&capture));
        assert_eq!(truth.len(), 3, "{truth:?}");
        let of = |totals: &Value| FIGURES.map(|(name, _)| totals[name].as_u64().unwrap_or_else(|| panic!("no {name}: {totals}")));
        let wanted = |name: &str| FIGURES.map(|(_, at)| truth[name][at]);
        assert_eq!(of(&report["totals"]), wanted("heap"), "{build:?}: the heap, to which nothing is added");
        let pools = report["pools"].as_array().expect("pools");
        assert_eq!(pools.iter().map(|pool| pool["name"].as_str()).collect::<Vec<_>>(), [Some("arena_get"), Some("slot_get")]);
        for (pool, name) in pools.iter().zip(["arena", "slots"]) {
            assert_eq!(of(&pool["totals"]), wanted(name), "{build:?}: {name}");
            let sites = pool["sites"].as_array().expect("sites");
            assert!(sites.iter().all(|site| site["stack"].to_string().contains("work")), "{name}: {sites:?}");
        }
        // The same addresses are in use by the heap, the arena and the slots.
        let events = capture.events();
        let at = |kind: &str| -> Vec<u64> {
            events.iter().filter(|e| e.event == "alloc" && e.kind.as_deref() == Some(kind)).map(|e| e.addr).collect()
        };
        let (heap, pool) = (at("malloc"), at("pool alloc"));
        assert!(heap.iter().any(|addr| pool.contains(addr)), "no pool's block at the address of its chunk");
        subject.end();
    }
}

#[test]
fn two_allocators_at_once_are_recorded_each_with_its_blocks() {
    if !requirement::uprobes() {
        return;
    }
    for (feature, name) in [("tikv-jemallocator", "with_jemalloc"), ("mimalloc", "with_mimalloc")] {
        let mut subject = Subject::start(&mut Command::new(cargo_program("allocators", feature, name))).observed_from_the_kernel();
        let session = attach::attach_kernel(subject.pid(), &subject.file("capture.hound"), &["--stack", "8Ki"]);
        subject.order("beside");
        let capture = session.detach(&[]);
        let (oracle, events) = subject.must_be_exact(&capture, 0);
        // Both allocators had blocks: libc's lie on the heap that the kernel names, or in a mapping of its own.
        let noted = |call: hound_tests::oracle::Call| oracle.notes.iter().filter(|note| note.call == call).count();
        assert!(noted(hound_tests::oracle::Call::Alloc("valloc")) > 100, "libc's blocks");
        assert!(noted(hound_tests::oracle::Call::Alloc("calloc")) > 100, "the other allocator's blocks");
        assert!(events.iter().filter(|e| e.event == "alloc" && e.kind.as_deref() == Some("valloc")).count() > 100);
        subject.end();
    }
}
