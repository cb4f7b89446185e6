//! Pools named with `--hook`: counted beside the heap they are cut from, exactly as the program itself counts.

use std::collections::BTreeMap;
use std::process::Command;

use hound_tests::attach::{self, Subject};
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
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
/// As the program tells them.
const FIGURES: [&str; 7] = ["allocations", "allocated_bytes", "frees", "unknown_frees", "live_blocks", "live_bytes", "peak_bytes"];

fn json(capture: &Capture, args: &[&str]) -> Value {
    let outcome = capture.ask("report", args);
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.err()))
}

fn figures(totals: &Value) -> Vec<u64> {
    FIGURES.iter().map(|name| totals[name].as_u64().unwrap_or_else(|| panic!("no {name}: {totals}"))).collect()
}

/// What the program counted: name, and the [`FIGURES`].
fn counted(subject: &Subject) -> BTreeMap<String, Vec<u64>> {
    let printed = subject.running.printed();
    let lines = printed.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|words| words.len() == 1 + FIGURES.len());
    lines.map(|words| (words[0].to_owned(), words[1..].iter().map(|word| word.parse().expect("a number")).collect())).collect()
}

/// Attached with these hooks while the program works.
fn recorded(build: Build, hooks: &[&str]) -> (Subject, Capture) {
    let mut subject = Subject::start(&mut Command::new(Program::new("attach_pool.c", build).path()));
    let session = attach::attach(subject.pid(), &subject.file("capture.hound"), hooks);
    subject.order("work");
    let capture = session.detach(&[]);
    subject.order("count");
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    (subject, capture)
}

#[test]
fn pools_are_counted_exactly_beside_the_heap_they_are_cut_from() {
    if !requirement::root() {
        return;
    }
    for build in [Build::Plain, Build::Optimised] {
        let (subject, capture) = recorded(build, &HOOKS);
        let truth = counted(&subject);
        assert_eq!(truth.len(), 3, "{truth:?}");
        assert!(truth["arena"].iter().all(|figure| *figure > 0), "each figure is put to the test: {truth:?}");
        let report = json(&capture, &["--all", "--format", "json"]);
        assert_eq!(figures(&report["totals"]), truth["heap"], "{build:?}: the heap, to which nothing is added");
        let pools = report["pools"].as_array().expect("pools");
        let names: Vec<_> = pools.iter().map(|pool| (pool["pool"].as_u64(), pool["name"].as_str())).collect();
        assert_eq!(names, [(Some(1), Some("arena_get")), (Some(2), Some("slot_get"))]);
        assert_eq!(
            pools[0]["hooks"],
            Value::from_iter([
                "alloc=arena_get(size=1)",
                "alloc=arena_zeroed(size=2,count=1)",
                "realloc=arena_grow(ptr=1,size=2)",
                "free=arena_put(ptr=1)"
            ])
        );
        for (pool, name) in pools.iter().zip(["arena", "slots"]) {
            assert_eq!(figures(&pool["totals"]), truth[name], "{build:?}: {name}");
            let sites = pool["sites"].as_array().expect("sites");
            for figure in ["allocations", "allocated_bytes", "live_blocks", "live_bytes", "peak_bytes"] {
                let sum: u64 = sites.iter().map(|site| site[figure].as_u64().expect("a number")).sum();
                assert_eq!(sum, pool["totals"][figure], "{name}: {figure} of all sites");
            }
            assert!(sites.iter().all(|site| site["stack"].to_string().contains("work")), "{name}: {sites:?}");
        }
        assert_eq!(report["session"]["anomalies"], Value::Array(Vec::new()), "{build:?}");
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
fn the_heap_is_what_it_is_without_the_pools() {
    if !requirement::root() {
        return;
    }
    let of_heap = |hooks: &[&str]| {
        let (subject, capture) = recorded(Build::Optimised, hooks);
        let report = json(&capture, &["--all", "--format", "json"]);
        subject.end();
        let sites = report["sites"].as_array().expect("sites").iter().map(|site| (site["stack"].clone(), figures_of_site(site)));
        let mut sites: Vec<_> = sites.map(|(stack, figures)| (stack.to_string(), figures)).collect();
        sites.sort();
        (report["totals"].clone(), sites)
    };
    assert_eq!(of_heap(&HOOKS), of_heap(&[]));
}

fn figures_of_site(site: &Value) -> Vec<u64> {
    let names = ["allocations", "allocated_bytes", "live_blocks", "live_bytes", "peak_bytes", "temporary"];
    names.iter().map(|name| site[name].as_u64().expect("a number")).collect()
}

#[test]
fn a_pools_leaks_are_shown_under_the_pool() {
    if !requirement::root() {
        return;
    }
    let (subject, capture) = recorded(Build::Optimised, &HOOKS);
    let truth = counted(&subject);
    let text = capture.ask("report", &[]).out();
    let (heap, rest) = text.split_once("\nPool 1 (arena_get): ").unwrap_or_else(|| panic!("no first pool:\n{text}"));
    let (arena, slots) = rest.split_once("\nPool 2 (slot_get): ").unwrap_or_else(|| panic!("no second pool:\n{text}"));
    for (section, name, hook) in
        [(heap, "heap", "malloc"), (arena, "arena", "realloc=arena_grow"), (slots, "slots", "free=slot_put(ptr=0)")]
    {
        let blocks = format!("in {} blocks", truth[name][4]);
        let leaks = section.lines().find(|line| line.contains("live at the detach (not leaks")).unwrap_or_else(|| panic!("{section}"));
        assert!(leaks.contains(&blocks), "{name}: {blocks}: {leaks}");
        assert!(name == "heap" || section.contains(hook), "{name} does not name {hook}: {section}");
        assert!(section.contains("attach_pool.c:"), "{name} has no sites with lines: {section}");
    }
    assert!(arena.contains("10 blocks that were allocated before the attach"), "{arena}");
    let dump = capture.ask("dump", &[]).out();
    for part in [" pool alloc(24) = ", " of pool 1 at ", " of pool 2 at ", "pool realloc(", "pool free("] {
        assert!(dump.contains(part), "no {part:?} in the dump");
    }
    assert!(dump.lines().filter(|line| line.contains(" pool ")).all(|line| !line.contains("mmapped") && !line.contains("zeroed")));
    subject.end();
}
