//! Reports of hand-made heaps, compared with what a person expects to read. `HOUND_BLESS=1 cargo test` rewrites the expected files; read
//! the difference before committing it.

use super::*;
use crate::capture::{Before, BlockClass, BlockCount, Blocks, HeapBefore, Pool};
use crate::query::tests::{Heap, example, sampled_example};
use crate::query::{Group, Measure, Query, Suppressions, ask, tree};

fn answer<'a>(heap: &'a Heap, query: &Query, suppressions: &Suppressions) -> Answer<'a> {
    let ((_, whole, outcome), sites) = (heap.entries(query), heap.sites(query));
    let scale = whole.as_ref().map(|whole| &whole.scale);
    let (branches, table) = match query.group {
        Group::Tree => tree(query, &sites, &heap.streams, suppressions, 200, scale),
        _ => (Vec::new(), ask(query, &sites, &heap.streams, suppressions, scale)),
    };
    Answer { totals: outcome.totals, peak: outcome.peak, whole, sites, table, branches }
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
        started: false,
        hound_version: "0.1.0".into(),
        machine: "test".into(),
        wall_ns: 2_310_000_000,
        end: EndKind::Exit(0),
        losses: Vec::new(),
        stripped: None,
        cut_stacks: Vec::new(),
        frame_pointer_stacks: 0,
        anomalies: Vec::new(),
        unresolved: Vec::new(),
        reordered: 0,
        before: None,
        attach_stall_ns: 0,
        detach_stall_ns: 0,
        sampled: None,
        covered: Vec::new(),
        not_covered: Vec::new(),
        processes: Vec::new(),
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

pub(super) fn check(name: &str, actual: &str) {
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
fn a_sampled_and_mixed_capture_reads_as_expected() {
    let heap = sampled_example();
    let shown = |query: &Query| {
        let answer = answer(&heap, query, &Suppressions::runtime());
        let sampling = heap.sampling.as_ref().expect("it was sampled");
        let sampled = Sampled::new(sampling, answer.whole.as_ref().expect("it was sampled"), 2_100_000_000);
        let summary = Summary { mode: "sampled".into(), end: EndKind::Detach, sampled: Some(sampled), ..summary() };
        let options = TextOptions { here: Some("/app".into()), group: query.group, measure: query.measure, ..TextOptions::default() };
        (text(&summary, &answer, &[], &options), json(&summary, &answer, &[]))
    };
    let (leaks, document) = shown(&Query::default());
    let (tree, _) = shown(&Query { group: Group::Tree, measure: Measure::Allocations, ..Query::default() });
    check("sampled.txt", &(leaks + "\n" + tree.split_once("\n\n").unwrap().1));
    let value: serde_json::Value = serde_json::from_str(&document).unwrap();
    check("sampled.json", &(serde_json::to_string_pretty(&value).unwrap() + "\n"));
    for figures in [&value["totals"], &value["sites"][0]] {
        for key in ["allocations", "allocated_bytes", "live_blocks", "live_bytes", "peak_bytes", "temporary"] {
            let interval = &figures[format!("{key}_ci95")];
            let (low, high) = (interval[0].as_u64().unwrap(), interval[1].as_u64().unwrap());
            assert!((low..=high).contains(&figures[key].as_u64().unwrap()), "{key}: {figures}");
        }
    }
    assert_eq!(value["totals"]["samples"], 91);
    assert_eq!(value["session"]["parts"].as_array().map(Vec::len), Some(3));
    assert_eq!(value["session"]["parts"][1]["figures"]["allocated_bytes"], 4146);
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

/// load touches the heap, more in the second half; parse a stack and a file, by the kernel; one huge page.
fn touched(query: &Query, interval: u64) -> (String, String) {
    use crate::capture::model::{Fault, ProcessMemory, StreamId};
    use crate::heap::FaultKind;
    use crate::query::{FaultTally, Sites, ask_faults};
    use hound_common::event::{FAULT_ANONYMOUS, FAULT_BY_KERNEL, FAULT_FILE, FAULT_HEAP, FAULT_STACK};
    let mut heap = Heap::new();
    let (load, parse) = (heap.stack(&[0x1010, 0x1020]), heap.stack(&[0x1010, 0x1020, 0x1030]));
    let mut tally = FaultTally::new(query, Vec::new(), 30_000_000_000);
    let mut touch = |second: u64, kind: u8, flags: u8, bytes: u64, stack| {
        let fault = Fault { addr: second << 12, interval, bytes, kind, flags, stack };
        tally.add(second * 1_000_000_000, StreamId((second % 2) as u32), &fault);
    };
    (0..60).for_each(|second| (0..=second / 30 * 3).for_each(|_| touch(second, FAULT_HEAP, 0, 4096, load)));
    (0..20).for_each(|second| touch(second, FAULT_STACK, 0, 4096, parse));
    (0..15).for_each(|second| touch(second, FAULT_FILE, FAULT_BY_KERNEL, 4096, parse));
    touch(59, FAULT_ANONYMOUS, 0, 2 << 20, parse);
    let faults = tally.finish();
    let sites = Sites::new(&faults.entries, &heap.stacks, &heap.names, &[]);
    let parts = |anonymous, file| ProcessMemory { virtual_size: 10 * (anonymous + file), anonymous, file, shared: 0 };
    let memory = MemoryTrack {
        resident: [3_000_000, 5_400_000],
        peak: (5_500_000, 58_000_000_000),
        between_looks: None,
        parts: Some([parts(1_000_000, 2_000_000), parts(3_300_000, 2_100_000)]),
    };
    let table = ask_faults(query, &sites, &heap.streams, faults.scale.as_ref());
    assert!(FaultKind::ALL.iter().all(|kind| table.total.kinds.iter().filter(|(known, _)| known == kind).count() <= 1));
    let halves_ns = [30_000_000_000; 2];
    let answer = FaultAnswer { sites, table, intervals: faults.intervals, recorded: faults.recorded, halves_ns, memory: Some(memory) };
    let summary = Summary { mode: "faults".into(), end: EndKind::Detach, wall_ns: 60_000_000_000, ..summary() };
    let options = TextOptions { here: Some("/app".into()), group: query.group, measure: query.measure, ..TextOptions::default() };
    (faults_text(&summary, &answer, false, &options), faults_json(&summary, &answer))
}

#[test]
fn who_touched_memory_first_reads_as_expected() {
    let of = |group| Query { group, measure: Measure::Allocated, ..Query::default() };
    let rows = |text: String| text.split_once("not known").unwrap().1.split_once("\n\n").unwrap().1.to_owned();
    let (exact, _) = touched(&of(Group::Site), 0);
    let (sampled, document) = touched(&of(Group::Site), 65_536);
    let others = [Group::Function, Group::Tree, Group::Thread].map(|group| rows(touched(&of(group), 65_536).0));
    check("faults.txt", &[vec![exact, sampled], others.to_vec()].concat().join("\n"));
    let value: serde_json::Value = serde_json::from_str(&document).unwrap();
    check("faults.json", &(serde_json::to_string_pretty(&value).unwrap() + "\n"));
    // Kinds, halves and rows are parts of one whole.
    let (_, document) = touched(&of(Group::Site), 0);
    let value: serde_json::Value = serde_json::from_str(&document).unwrap();
    let all = value["faults"]["bytes"].as_u64().unwrap();
    let kinds = value["faults"]["kinds"].as_object().unwrap().values().map(|kind| kind["bytes"].as_u64().unwrap()).sum::<u64>();
    let sites = value["sites"].as_array().unwrap().iter().map(|site| site["bytes"].as_u64().unwrap()).sum::<u64>();
    let halves = value["faults"]["bytes_per_minute"].as_array().unwrap().iter().map(|rate| rate.as_u64().unwrap() / 2).sum::<u64>();
    assert_eq!((all, kinds, sites, halves), (185 * 4096 + (2 << 20), all, all, all));
}

/// Twenty programs' worth of samples: the interval holds what was touched nearly always.
#[test]
fn intervals_of_touches_hold_the_truth() {
    use crate::capture::model::{Fault, StackId, StreamId};
    use crate::query::{FaultTally, Figure};
    use hound_common::sampling::probability;
    let (pages, interval) = (5000_u64, 100_000);
    let (mut random, mut held) = (0x9E37_79B9_7F4A_7C15_u64, 0);
    for _ in 0..400 {
        let mut tally = FaultTally::new(&Query::default(), Vec::new(), 0);
        for page in 0..pages {
            random ^= random >> 12;
            random ^= random << 25;
            random ^= random >> 27;
            let drawn = (random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64;
            if drawn < probability(4096, interval) {
                tally.add(page, StreamId(0), &Fault { addr: page << 12, interval, bytes: 4096, kind: 1, flags: 0, stack: StackId(0) });
            }
        }
        let mut faults = tally.finish();
        faults.entries.iter_mut().for_each(|entry| entry.sums.settle(faults.scale.as_ref()));
        let (low, high) = faults.entries[0].sums.interval(Figure::AllocatedBytes).unwrap();
        held += u32::from((low..=high).contains(&(pages * 4096)));
    }
    // 380 expected, with a deviation of 4.4.
    assert!(held >= 366, "{held} of 400 intervals hold the truth");
}
