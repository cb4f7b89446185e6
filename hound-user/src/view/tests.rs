//! Reports of hand-made heaps, compared with what a person expects to read. `HOUND_BLESS=1 cargo test` rewrites the expected files; read
//! the difference before committing it.

use super::*;
use crate::capture::{Before, BlockClass, BlockCount, Blocks, HeapBefore, Pool};
use crate::query::tests::{Heap, example};
use crate::query::{Group, Measure, Query, Suppressions, ask, tree};

fn answer<'a>(heap: &'a Heap, query: &Query, suppressions: &Suppressions) -> Answer<'a> {
    let (outcome, sites) = (heap.entries(query).1, heap.sites(query));
    let (branches, table) = match query.group {
        Group::Tree => tree(query, &sites, &heap.streams, suppressions, 200),
        _ => (Vec::new(), ask(query, &sites, &heap.streams, suppressions)),
    };
    Answer { totals: outcome.totals, peak: outcome.peak, sites, table, branches }
}

/// A pool in which the example's heap is a second time.
fn pool<'a>(heap: &'a Heap, query: &Query) -> PoolAnswer<'a> {
    let hooks = vec!["alloc=arena_get(size=1)".to_owned(), "free=arena_put(ptr=0)".to_owned()];
    PoolAnswer { pool: Pool { number: 1, name: "arena_get".into(), hooks }, answer: answer(heap, query, &Suppressions::none()) }
}

fn summary() -> Summary {
    Summary {
        command: vec!["./app".into(), "--fast".into()],
        pid: 100,
        mode: "launch".into(),
        hound_version: "0.1.0".into(),
        machine: "test".into(),
        wall_ns: 2_310_000_000,
        end: EndKind::Exit(0),
        losses: Vec::new(),
        cut_stacks: Vec::new(),
        frame_pointer_stacks: 0,
        anomalies: Vec::new(),
        unresolved: Vec::new(),
        reordered: 0,
        before: None,
        attach_stall_ns: 0,
        detach_stall_ns: 0,
        covered: Vec::new(),
        not_covered: Vec::new(),
    }
}

fn shown(query: &Query, change: impl FnOnce(&mut Summary, &mut TextOptions)) -> String {
    let heap = example();
    let mut summary = summary();
    let answer = answer(&heap, query, &Suppressions::runtime());
    let (here, group, measure) = (Some("/app".to_owned()), query.group, query.measure);
    let mut options = TextOptions { here, group, measure, ..TextOptions::default() };
    change(&mut summary, &mut options);
    text(&summary, &answer, &[], &options)
}

fn check(name: &str, actual: &str) {
    let path = format!("{}/src/view/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("HOUND_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == expected, "{name} differs; expected:\n{expected}\nactual:\n{actual}");
}

#[test]
fn a_leak_report_reads_as_expected() {
    check("leaks.txt", &shown(&Query::default(), |_, _| {}));
}

#[test]
fn every_group_reads_as_expected() {
    let one = |group, measure| shown(&Query { group, measure, limit: Some(3), ..Query::default() }, |_, _| {});
    let sections = [
        one(Group::Function, Measure::Peak),
        one(Group::Tree, Measure::Allocated),
        one(Group::Thread, Measure::Allocations),
        one(Group::Size, Measure::Temporary),
        one(Group::Module, Measure::Live),
    ];
    check("groups.txt", &sections.map(|text| text.split_once("\n\n").unwrap().1.to_owned()).join("\n"));
}

#[test]
fn what_is_missing_stands_first() {
    let text = shown(&Query::default(), |summary, options| {
        summary.end = EndKind::Signal(9);
        summary.losses = vec![("the ring was full".into(), 1200), ("the disk was full".into(), 34)];
        summary.cut_stacks = vec![("a word of the stack could not be read".into(), 2)];
        summary.anomalies = (1..=7).map(|number| format!("number {number}")).collect();
        summary.unresolved = vec!["no names for /app/plugin.so: the file is not here".into()];
        options.full_stacks = true;
    });
    check("losses.txt", &text);
}

#[test]
fn an_attached_program_with_a_pool_reads_as_expected() {
    let (heap, query) = (example(), Query::default());
    let class = |from: u64, count: u64| BlockClass { from, blocks: BlockCount { count, bytes: from * count } };
    let blocks = Blocks {
        classes: vec![class(16, 2), class(64, 3000), class(1024, 70), class(4096, 9), class(1 << 20, 1)],
        in_use: BlockCount { count: 3082, bytes: 1_349_152 },
        cached: BlockCount { count: 12, bytes: 768 },
        free: 123_456,
        arenas: 3,
        ..Blocks::default()
    };
    let unsound = HeapBefore::NotSound { allocator: "jemalloc".into(), why: "its layout is private".into() };
    let summary = Summary {
        mode: "full".into(),
        end: EndKind::Detach,
        before: Some(Before {
            resident: 20_000_000,
            swapped: 4096,
            threads: 5,
            age_ns: 7_500_000_000_000,
            heap: 2_000_000,
            anonymous: 9_000_000,
            heaps: vec![HeapBefore::Walked(Box::new(blocks)), unsound],
            looked_ns: Some(3_000_000),
            not_looked: None,
        }),
        attach_stall_ns: 1_340_000,
        detach_stall_ns: 870_000,
        covered: vec!["glibc in /lib/libc.so.6".into()],
        not_covered: vec!["jemalloc in /app/app: it is stripped".into()],
        ..summary()
    };
    let mut heap_answer = answer(&heap, &query, &Suppressions::runtime());
    heap_answer.totals.unknown_frees = 64;
    let mut of = pool(&heap, &query);
    of.answer.totals.replaced = 2;
    check("attached.txt", &text(&summary, &heap_answer, &[of], &TextOptions { here: Some("/app".into()), ..TextOptions::default() }));
    let value: serde_json::Value = serde_json::from_str(&json(&summary, &heap_answer, &[pool(&heap, &query)])).unwrap();
    assert_eq!(value["pools"].as_array().map(Vec::len), Some(1));
    let pool = &value["pools"][0];
    assert_eq!((&pool["pool"], &pool["name"], &pool["hooks"][1]), (&1.into(), &"arena_get".into(), &"free=arena_put(ptr=0)".into()));
    assert_eq!(pool["totals"]["allocations"], value["totals"]["allocations"]);
    assert_eq!(pool["sites"].as_array().map(Vec::len), Some(2));
    assert_eq!(value["session"]["before"]["heaps"][0]["walked"]["classes"][1]["count"], 3000);
    assert_eq!(value["session"]["attach_stall_ns"], 1_340_000);
}

#[test]
fn colours_change_nothing_but_escape_sequences() {
    let plain = shown(&Query::default(), |_, _| {});
    let mut coloured = shown(&Query::default(), |_, options| options.style = Style::Colour);
    assert_ne!(coloured, plain);
    for code in ["\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"] {
        coloured = coloured.replace(code, "");
    }
    assert_eq!(coloured, plain);
}

#[test]
fn json_keeps_its_contract() {
    let heap = example();
    let query = Query { keep_zero: true, ..Query::default() };
    let answer = answer(&heap, &query, &Suppressions::none());
    let text = json(&summary(), &answer, &[]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    check("leaks.json", &(serde_json::to_string_pretty(&value).unwrap() + "\n"));
    let sum = |key: &str| value["sites"].as_array().unwrap().iter().map(|site| site[key].as_u64().unwrap()).sum::<u64>();
    for key in ["allocations", "allocated_bytes", "live_blocks", "live_bytes", "peak_bytes"] {
        assert_eq!(value["totals"][key], sum(key), "{key}");
    }
}
