//! Questions to hand-made heaps.

use super::*;
use crate::capture::model::{Alloc, Event, Free, Module, ProcessId, StackId, StackRoot, StackTree, Stamped, StreamId};
use crate::capture::{MAPPED_LIBRARY, ModuleSpan, StreamInfo, Visitor};
use crate::heap::{Block, Ending, Outcome, Peak, Replay, Sampling};
use crate::symbols::{Frame, Location, SymbolTable};
use hound_common::event::{LIVENESS_UNKNOWN, MODE_FULL, MODE_SAMPLED};
use hound_common::hook::Kind;
use regex::Regex;
use std::sync::Arc;

/// A heap with named stacks: one module a library, one function an address.
pub(crate) struct Heap {
    pub stacks: StackTree,
    pub names: SymbolTable,
    pub streams: Vec<StreamInfo>,
    /// Time, stream, address; size and stack of an allocation, none for a release.
    steps: Vec<Step>,
    /// What else was recorded.
    others: Vec<Stamped>,
    /// How it was sampled, if it was.
    pub sampling: Option<Arc<Sampling>>,
}

type Step = (u64, u32, u64, Option<(u64, StackId)>);

/// ip → (function, file, line, module)
const FUNCTIONS: &[(u64, &str, &str, u32, &str)] = &[
    (0x1010, "main", "/app/src/main.c", 10, "/app/app"),
    (0x1020, "load", "/app/src/load.c", 20, "/app/app"),
    (0x1030, "parse", "/app/src/parse.c", 30, "/app/app"),
    (0x1038, "parse", "/app/src/parse.c", 30, "/app/app"),
    (0x2010, "_IO_file_doallocate", "", 0, "/lib/libc.so.6"),
    (0x2020, "puts", "", 0, "/lib/libc.so.6"),
    (0x2030, "operator new(unsigned long)", "", 0, "/lib/libstdc++.so.6"),
    (0x3010, "libhound.so+0x10", "", 0, MAPPED_LIBRARY),
];

impl Heap {
    pub(crate) fn new() -> Self {
        let span = |path: &str, start| ModuleSpan {
            process: ProcessId::FIRST,
            module: Module { start, end: start + 0x1000, path: path.to_owned(), ..Module::default() },
            from_ns: 0,
            to_ns: u64::MAX,
        };
        let mut names = SymbolTable::new(&[span("/app/app", 0x1000), span("/lib/libc.so.6", 0x2000), span(MAPPED_LIBRARY, 0x3000)]);
        for &(ip, function, file, line, module) in FUNCTIONS {
            let location = (!file.is_empty()).then_some(Location { file, line });
            names.name(ip, 0, &[Frame { function, location, module, inlined: false }]);
        }
        let stream = |id, tid, name: &str| StreamInfo {
            process: ProcessId::FIRST,
            id: StreamId(id),
            tid,
            level: 0,
            names: vec![name.to_owned()],
            from_ns: 0,
            to_ns: 0,
            events: 0,
        };
        Heap {
            stacks: StackTree::default(),
            names,
            streams: vec![stream(0, 100, "app"), stream(1, 101, "worker")],
            steps: Vec::new(),
            sampling: None,
            others: Vec::new(),
        }
    }

    /// A call path, outermost function's address first.
    pub(crate) fn stack(&mut self, path: &[u64]) -> StackId {
        let root = self.stacks.root(StackRoot::default());
        path.iter().fold(root, |parent, &ip| self.stacks.child(parent, ip))
    }

    pub(crate) fn alloc(&mut self, time_ns: u64, stream: u32, addr: u64, size: u64, path: &[u64]) -> &mut Self {
        let stack = self.stack(path);
        self.steps.push((time_ns, stream, addr, Some((size, stack))));
        self
    }

    pub(crate) fn free(&mut self, time_ns: u64, stream: u32, addr: u64) -> &mut Self {
        self.steps.push((time_ns, stream, addr, None));
        self
    }

    /// Something else that was recorded.
    fn other(&mut self, time_ns: u64, stream: u32, event: Event) -> &mut Self {
        self.others.push(Stamped { time_ns, stream: StreamId(stream), event });
        self.sampling = Sampling::of(&self.others).map(Arc::new);
        self
    }

    /// What the query's tally adds up, and what replay says.
    pub(crate) fn entries(&self, query: &Query) -> (Vec<Entry>, Option<Whole>, Outcome) {
        let mut tally = Tally::new(query.blocks.clone(), query.split(), Vec::new());
        tally = self.sampling.iter().fold(tally, |tally, sampling| tally.sampled(sampling.clone()));
        let outcome = self.replay(|block: &Block, ending: &Ending, peak: &Peak| tally.add(block, ending, peak));
        let Tallied { entries, whole, .. } = tally.finish(&outcome.peak);
        (entries, whole, outcome)
    }

    /// Tells of every block.
    pub(crate) fn replay(&self, sink: impl FnMut(&Block, &Ending, &Peak)) -> Outcome {
        let mut replay = Replay::new(sink);
        replay = self.sampling.iter().fold(replay, |replay, sampling| replay.sampled(sampling.clone()));
        let mut others = self.others.iter().peekable();
        for &(time_ns, stream, addr, what) in &self.steps {
            while let Some(other) = others.next_if(|other| other.time_ns <= time_ns) {
                replay.other(other);
            }
            match what {
                Some((size, stack)) => {
                    let alloc = Alloc { addr, size, usable: None, kind: Kind::Malloc, flags: 0, pool: 0, previous: None, stack };
                    replay.alloc(time_ns, StreamId(stream), &alloc);
                }
                None => {
                    let free = Free { addr, kind: Kind::Free, pool: 0, realloc: false, stack: None };
                    replay.free(time_ns, StreamId(stream), &free);
                }
            }
        }
        others.for_each(|other| replay.other(other));
        replay.finish()
    }

    pub(crate) fn sites(&self, query: &Query) -> Sites<'_> {
        Sites::new(&self.entries(query).0, &self.stacks, &self.names, &[])
    }

    fn ask(&self, query: &Query) -> Table {
        let whole = self.entries(query).1;
        ask(query, &self.sites(query), &self.streams, &Suppressions::none(), whole.as_ref().map(|whole| &whole.scale))
    }

    /// Innermost function and figure of each row.
    fn figures(&self, query: &Query) -> Vec<(String, u64)> {
        let sites = self.sites(query);
        let table = ask(query, &sites, &self.streams, &Suppressions::none(), None);
        let name = |key: &RowKey| match key {
            RowKey::Site(node) => sites.frames(*node).first().map_or("", |frame| frame.function).to_owned(),
            RowKey::Function(name, _) | RowKey::Module(name) | RowKey::Thread(_, name) => name.clone(),
            RowKey::Size(bits) => bits.to_string(),
            RowKey::Mode { sampled } => sampled.to_string(),
            RowKey::Process(number) => number.to_string(),
        };
        table.rows.iter().map(|row| (name(&row.key), query.measure.of(&row.sums))).collect()
    }
}

const MAIN: u64 = 0x1010;
const LOAD: u64 = 0x1020;
const PARSE: u64 = 0x1030;
const PARSE_TOO: u64 = 0x1038;
const BUFFER: u64 = 0x2010;
const PUTS: u64 = 0x2020;
const NEW: u64 = 0x2030;
const HOOK: u64 = 0x3010;

/// 100 B by load (temporary), 1000 B and 30 B by two calls on one line of parse (live), 4096 B of a stdio buffer (live).
pub(crate) fn example() -> Heap {
    let mut heap = Heap::new();
    heap.alloc(1_000, 0, 0x100, 100, &[MAIN, LOAD])
        .free(2_000_000, 0, 0x100)
        .alloc(3_000_000, 0, 0x200, 1000, &[MAIN, LOAD, PARSE])
        .alloc(4_000_000, 1, 0x300, 30, &[MAIN, LOAD, PARSE_TOO])
        .alloc(5_000_000, 0, 0x400, 4096, &[MAIN, PUTS, BUFFER])
        .alloc(6_000_000, 1, 0x500, 5000, &[MAIN, LOAD, NEW])
        .free(9_000_000, 0, 0x500);
    heap
}

/// A second of samples in ten windows, then a second of full recording, then half a second of samples without windows. load leaks, by blocks
/// of 400 B; parse holds one large block; the buffer is of the full part.
pub(crate) fn sampled_example() -> Heap {
    let mut heap = Heap::new();
    let (second, own) = (1_000_000_000u64, 7);
    heap.other(0, own, Event::Mode { mode: MODE_SAMPLED }).other(0, 0, Event::Rate(10_000));
    for period in 0..10u64 {
        let (from_ns, to_ns) = (period * second / 10, (period + 1) * second / 10);
        let opened_ns = from_ns + (period * 7 % 10) * 8_000_000;
        for block in 0..6 {
            let (time_ns, addr) = (opened_ns + block * 1_000_000, 0x1_0000 + (period * 10 + block) * 0x1000);
            heap.alloc(time_ns, 0, addr, 400, &[MAIN, LOAD]);
            if block % 3 == 0 {
                heap.free(time_ns + 500_000, 0, addr);
            }
        }
        heap.other(opened_ns + 20_000_000, own, Event::Window { opened_ns, closed_ns: opened_ns + 20_000_000, from_ns, to_ns });
    }
    heap.alloc(second - 1, 0, 0x10, 700_000, &[MAIN, LOAD, PARSE]);
    heap.other(second, own, Event::Mode { mode: MODE_FULL }).other(second, 0, Event::Rate(0));
    heap.other(second, own, Event::Liveness { state: LIVENESS_UNKNOWN, addr: 0x1_1000, pool: 0 });
    heap.alloc(second + 5, 0, 0x20, 4096, &[MAIN, PUTS, BUFFER]).alloc(second + 9, 0, 0x30, 50, &[MAIN, LOAD, PARSE]).free(
        second + 20,
        0,
        0x30,
    );
    heap.other(2 * second, own, Event::Mode { mode: MODE_SAMPLED }).other(2 * second, 0, Event::Rate(20_000));
    (0..30).for_each(|block| {
        heap.alloc(2 * second + block * 1_000_000, 0, 0x50_0000 + block * 0x1000, 1000, &[MAIN, LOAD]);
    });
    heap
}

#[test]
fn a_filter_is_applied_before_estimating() {
    let heap = sampled_example();
    let total = |blocks| heap.ask(&Query { blocks, measure: Measure::Allocated, ..Query::default() }).total;
    let all = total(BlockFilter::default());
    let small = total(BlockFilter { max_size: Some(400), ..BlockFilter::default() });
    let large = total(BlockFilter { min_size: Some(401), ..BlockFilter::default() });
    assert_eq!((all.recorded(), small.recorded(), large.recorded()), (93, 61, 32));
    let near = |a: u64, b: u64| a.abs_diff(b) <= 1;
    assert!(
        near(all.allocated_bytes, small.allocated_bytes + large.allocated_bytes)
            && near(all.allocations, small.allocations + large.allocations)
    );
    // 60 samples of 400 B at 10,000 B, seen a fifth of the time; and one block of the full part, which stands for itself.
    assert_eq!(small.allocated_bytes, (60.0 * 400.0 * 5.0 / hound_common::sampling::probability(400, 10_000)).round() as u64 + 50);
    let first = total(BlockFilter { to_ns: Some(1_000_000_000), ..BlockFilter::default() });
    assert!(first.is_estimate() && first.recorded() == 61);
    let full = total(BlockFilter { from_ns: Some(1_000_000_000), to_ns: Some(2_000_000_000), ..BlockFilter::default() });
    assert_eq!((full.is_estimate(), full.allocations, full.allocated_bytes, full.live_bytes), (false, 2, 4146, 4096));
}

#[test]
fn sampled_rows_are_ranked_by_what_is_surely_there() {
    let heap = sampled_example();
    let table = heap.ask(&Query::default());
    let rows: Vec<(u64, u64)> =
        table.rows.iter().map(|row| (row.sums.live_bytes, row.sums.interval(Figure::LiveBytes).unwrap().0)).collect();
    // One sample of 700,000 B in a window that shows a fifth stands for 3.5 MB, and for 700,000 B surely.
    assert!(rows[0].0 < rows[1].0 && rows[0].1 > rows[1].1, "{rows:?}");
    assert!(rows.iter().all(|(value, low)| low <= value), "{rows:?}");
}

#[test]
fn every_group_of_a_sampled_heap_adds_up_to_the_same_estimate() {
    let heap = sampled_example();
    let total = |group| heap.ask(&Query { group, measure: Measure::Allocated, ..Query::default() }).total;
    let expected = total(Group::Site);
    for group in [Group::Function, Group::Module, Group::Thread, Group::Size, Group::Mode, Group::Process] {
        let total = total(group);
        assert_eq!((total.allocated_bytes, total.allocations), (expected.allocated_bytes, expected.allocations), "{group:?}");
        let close = |(low, high): (u64, u64), (a, b): (u64, u64)| low.abs_diff(a) <= 1 && high.abs_diff(b) <= 1;
        let interval = |sums: &Sums| sums.interval(Figure::AllocatedBytes).unwrap();
        assert!(close(interval(&total), interval(&expected)), "{group:?}");
    }
}

#[test]
fn exact_parts_are_told_from_samples() {
    let heap = sampled_example();
    let table = heap.ask(&Query { group: Group::Mode, measure: Measure::Allocated, ..Query::default() });
    let of = |sampled| table.rows.iter().find(|row| row.key == RowKey::Mode { sampled }).unwrap().sums.clone();
    // The full second has a buffer of 4096 B and a block of 50 B; everything else is a sample.
    assert_eq!((of(false).allocations, of(false).allocated_bytes, of(false).is_estimate()), (2, 4146, false));
    assert_eq!((of(true).recorded(), of(true).is_estimate(), table.rows.len()), (91, true, 2));
    let exact = example().ask(&Query { group: Group::Mode, measure: Measure::Allocated, ..Query::default() });
    assert_eq!(exact.rows.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), [RowKey::Mode { sampled: false }]);
}

#[test]
fn what_is_uncertain_is_live_only_as_far_as_the_ends_that_were_seen_allow() {
    let query = Query { blocks: BlockFilter { only: Only::Live, ..BlockFilter::default() }, ..Query::default() };
    let heap = sampled_example();
    let (_, whole, outcome) = heap.entries(&query);
    let total = whole.unwrap().total;
    let one = (5.0 / hound_common::sampling::probability(400, 10_000)).round() as u64;
    assert_eq!(outcome.totals.uncertain_blocks, 1);
    // It lives, or is uncertain, and is counted once.
    let known = total.value(Figure::LiveBlocks) + total.value(Figure::Uncertain) - one;
    let (low, high) = total.interval(Figure::LiveBlocks).unwrap();
    assert!(low <= known && known <= high && high >= known + one, "{known} and {one}: {low} to {high}");
    // Twenty of sixty were seen to end in their windows: of what outlived its window some has ended, too.
    assert!(total.value(Figure::Uncertain) > 0, "{total:?}");
    let live = heap.ask(&query).total;
    assert!(live.allocations.abs_diff(live.live_blocks + live.value(Figure::Uncertain)) <= 1, "{live:?}");
}

fn strings(rows: &[(&str, u64)]) -> Vec<(String, u64)> {
    rows.iter().map(|(name, figure)| ((*name).to_owned(), *figure)).collect()
}

#[test]
fn each_measure_sorts_by_its_own_figure() {
    let heap = example();
    let ask = |measure| heap.figures(&Query { measure, ..Query::default() });
    assert_eq!(ask(Measure::Live), strings(&[("_IO_file_doallocate", 4096), ("parse", 1030)]));
    let new = "operator new(unsigned long)";
    assert_eq!(ask(Measure::Peak), strings(&[(new, 5000), ("_IO_file_doallocate", 4096), ("parse", 1030)]));
    assert_eq!(ask(Measure::Allocations), strings(&[("parse", 2), (new, 1), ("_IO_file_doallocate", 1), ("load", 1)]));
    assert_eq!(ask(Measure::Temporary), strings(&[("load", 1)]));
}

#[test]
fn call_paths_that_look_alike_are_one_site() {
    let heap = example();
    let sites = heap.sites(&Query::default());
    // Four distinct paths, though two addresses stand for parse at line 30.
    assert_eq!(sites.sums().len(), 4);
}

#[test]
fn hooks_of_hounds_own_are_in_no_call_path() {
    let mut heap = Heap::new();
    heap.alloc(1, 0, 0x100, 8, &[MAIN, LOAD, PARSE]).alloc(2, 0, 0x200, 8, &[MAIN, LOAD, HOOK, HOOK, PARSE]).alloc(
        3,
        0,
        0x300,
        8,
        &[MAIN, HOOK],
    );
    let sites = heap.sites(&Query::default());
    let paths: Vec<Vec<&str>> =
        sites.sums().iter().map(|(node, ..)| sites.frames(*node).iter().map(|frame| frame.function).collect()).collect();
    assert_eq!(paths, [vec!["parse", "load", "main"], vec!["main"]]);
    assert_eq!(sites.sums()[0].2.allocations, 2);
}

#[test]
fn groups_add_up_to_the_same_total() {
    let heap = example();
    let figures = |group| heap.figures(&Query { group, ..Query::default() });
    assert_eq!(figures(Group::Function), strings(&[("_IO_file_doallocate", 4096), ("parse", 1030)]));
    assert_eq!(figures(Group::Module), strings(&[("/lib/libc.so.6", 4096), ("/app/app", 1030)]));
    assert_eq!(figures(Group::Thread), strings(&[("app", 5096), ("worker", 30)]));
    assert_eq!(figures(Group::Size), strings(&[("13", 4096), ("10", 1000), ("5", 30)]));
    let by_function = heap.ask(&Query { group: Group::Function, measure: Measure::Peak, ..Query::default() });
    // operator new is no function of its own: its caller is.
    let load = by_function.rows.iter().find(|row| row.key == RowKey::Function("load".into(), "/app/app".into())).unwrap();
    assert_eq!((load.sums.peak_bytes, load.with_callees.as_ref().unwrap().peak_bytes), (5000, 6030));
}

#[test]
fn a_filter_lets_through_what_it_says_and_totals_follow() {
    let heap = example();
    let regex = |text| vec![Regex::new(text).unwrap()];
    let total = |query: &Query| {
        let total = heap.ask(query).total;
        (total.allocations, total.allocated_bytes)
    };
    let blocks = |blocks| Query { blocks, measure: Measure::Allocated, ..Query::default() };
    let frames = |frames| Query { frames, measure: Measure::Allocated, ..Query::default() };
    assert_eq!(total(&blocks(BlockFilter::default())), (5, 10226));
    assert_eq!(total(&blocks(BlockFilter { min_size: Some(1000), max_size: Some(4096), ..BlockFilter::default() })), (2, 5096));
    assert_eq!(total(&blocks(BlockFilter { min_lifetime_ns: Some(4_000_000), ..BlockFilter::default() })), (3, 5126));
    assert_eq!(total(&blocks(BlockFilter { max_lifetime_ns: Some(2_500_000), ..BlockFilter::default() })), (1, 100));
    assert_eq!(total(&blocks(BlockFilter { from_ns: Some(3_000_000), to_ns: Some(5_000_000), ..BlockFilter::default() })), (2, 1030));
    assert_eq!(total(&blocks(BlockFilter { only: Only::Temporary, ..BlockFilter::default() })), (1, 100));
    assert_eq!(total(&blocks(BlockFilter { kinds: vec![Kind::Calloc], ..BlockFilter::default() })), (0, 0));
    assert_eq!(total(&frames(FrameFilter { function: regex("^load$"), ..FrameFilter::default() })), (4, 6130));
    let without = FrameFilter { function: regex("^load$"), exclude_function: regex("operator new"), ..FrameFilter::default() };
    assert_eq!(total(&frames(without)), (3, 1130));
    assert_eq!(total(&frames(FrameFilter { source: regex("parse.c"), ..FrameFilter::default() })), (2, 1030));
    assert_eq!(total(&frames(FrameFilter { exclude_module: regex("libc"), ..FrameFilter::default() })), (4, 6130));
    for thread in [ThreadFilter::Tid(101), ThreadFilter::Name(Regex::new("work").unwrap())] {
        assert_eq!(total(&Query { thread: Some(thread), measure: Measure::Allocated, ..Query::default() }), (2, 5030));
    }
}

#[test]
fn a_filtered_peak_is_the_share_of_the_whole_heaps_peak() {
    let heap = example();
    let blocks = BlockFilter { max_lifetime_ns: Some(u64::MAX), ..BlockFilter::default() };
    // Of the blocks that were released, only the 5000 B one lived at the peak.
    assert_eq!(heap.ask(&Query { blocks, measure: Measure::Peak, ..Query::default() }).total.peak_bytes, 5000);
}

#[test]
fn what_the_limit_cuts_off_is_counted() {
    let table = example().ask(&Query { limit: Some(1), ..Query::default() });
    assert_eq!((table.rows.len(), table.omitted_rows, table.omitted.live_bytes, table.total.live_bytes), (1, 1, 1030, 5126));
}

#[test]
fn a_tree_grows_where_paths_part_and_each_branch_holds_what_is_below() {
    let heap = example();
    let query = Query { group: Group::Tree, measure: Measure::Allocated, ..Query::default() };
    let sites = heap.sites(&query);
    let (branches, table) = tree(&query, &sites, &heap.streams, &Suppressions::none(), u64::MAX, None);
    let shown: Vec<_> = branches.iter().map(|b| (sites.frames(b.node)[0].function, b.depth, b.sums.allocated_bytes)).collect();
    let new = "operator new(unsigned long)";
    let expected =
        [("main", 0, 10226), ("load", 1, 6130), (new, 2, 5000), ("parse", 2, 1030), ("puts", 1, 4096), ("_IO_file_doallocate", 1, 4096)];
    assert_eq!((shown, table.total.allocated_bytes), (expected.to_vec(), 10226));
    assert_eq!(tree(&query, &sites, &heap.streams, &Suppressions::none(), 2, None).0.len(), 2);
}

#[test]
fn what_the_runtime_keeps_is_left_out_of_leaks_only_and_counted() {
    let heap = example();
    let ask = |measure, suppressions: &Suppressions| {
        let query = Query { measure, ..Query::default() };
        ask(&query, &heap.sites(&query), &heap.streams, suppressions, None)
    };
    let leaks = ask(Measure::Live, &Suppressions::runtime());
    assert_eq!((leaks.total.live_bytes, leaks.left_out.len(), leaks.left_out[0].1.live_bytes), (1030, 1, 4096));
    assert!(ask(Measure::Peak, &Suppressions::runtime()).left_out.is_empty());
    let mut suppressions = Suppressions::none();
    suppressions.add("# ours\n\nleak:^pars*\n").unwrap();
    let leaks = ask(Measure::Live, &suppressions);
    assert_eq!((leaks.total.live_bytes, leaks.left_out[0].0.clone()), (4096, Suppressed::User("^pars*".into())));
}

#[test]
fn a_library_that_the_loader_initialises_is_not_the_loader() {
    let frame = |function, module| Frame { function, location: None, module, inlined: false };
    let (loader, libc) = ("/lib64/ld-linux-x86-64.so.2", "/lib/libc.so.6");
    let kept = |frames: &[Frame<'_>]| Suppressions::runtime().decide(frames).is_some();
    assert!(!kept(&[frame("plugin_init", "/app/plugin.so"), frame("_dl_init", loader), frame("dlopen", libc)]));
    assert!(kept(&[frame("_dl_new_object", loader), frame("_dl_open", loader), frame("main", "/app/app")]));
    assert!(kept(&[frame("ld-linux-x86-64.so.2+0x1234", loader), frame("main", "/app/app")]));
    assert!(kept(&[frame("libstdc++.so.6+0xa8cff", "/lib/libstdc++.so.6"), frame("call_init", loader)]));
    assert!(!kept(&[frame("libstdc++.so.6+0xa8cff", "/lib/libstdc++.so.6"), frame("main", "/app/app")]));
    assert!(kept(&[frame("libc.so.6+0x3", libc), frame("setlocale", libc), frame("main", "/app/app")]));
    assert!(!kept(&[frame("strdup", libc), frame("my_setlocale", "/app/app"), frame("setlocale", libc)]));
}

#[test]
fn suppression_patterns_mean_what_leak_sanitizer_says() {
    let check = |pattern: &str, text: &str, found: bool| assert_eq!(Pattern::new(pattern).matches(text), found, "{pattern} in {text}");
    check("foo", "xfoobar", true);
    check("^foo", "xfoobar", false);
    check("^foo", "foobar", true);
    check("bar$", "foobar", true);
    check("foo$", "foobar", false);
    check("f*r", "foobar", true);
    check("^f*b*r$", "foobar", true);
    check("^f*z*r$", "foobar", false);
    check("^foobar$", "foobar", true);
    check("^foo$", "foofoo", false);
    check("*", "", true);
    check("o*o", "o", false);
    let mut suppressions = Suppressions::none();
    assert_eq!(suppressions.add("leak:a\nrace:b"), Err((2, "race:b".to_owned())));
    assert_eq!(suppressions.add("leak:"), Err((1, "leak:".to_owned())));
    assert_eq!(suppressions, Suppressions::none());
}
