//! The same question, asked of the capture and of its index, has the same answer.

use super::*;
use crate::columns::index;
use crate::columns::random::{capture_bytes, steps};
use crate::query::{BlockFilter, FlameShape, FrameFilter, Measure, Only, ThreadFilter};
use crate::report::{FlameFormat, FlameOptions, GraphOf, GraphOptions};
use hound_common::hook::Kind;
use proptest::prelude::*;
use regex::Regex;

fn filters() -> impl Strategy<Value = BlockFilter> {
    let size = || prop::option::weighted(0.3, 1..5000u64);
    let time = || prop::option::weighted(0.3, 1..200_000u64);
    let kinds = prop_oneof![3 => Just(Vec::new()), 1 => Just(vec![Kind::Calloc]), 1 => Just(vec![Kind::Malloc, Kind::Realloc])];
    let only = prop_oneof![3 => Just(Only::Any), 1 => Just(Only::Live), 1 => Just(Only::Freed), 1 => Just(Only::Temporary)];
    (size(), size(), time(), time(), time(), time(), kinds, only).prop_map(
        |(min_size, max_size, min_lifetime_ns, max_lifetime_ns, from_ns, to_ns, kinds, only)| BlockFilter {
            min_size,
            max_size,
            min_lifetime_ns,
            max_lifetime_ns,
            from_ns,
            to_ns,
            kinds,
            only,
        },
    )
}

fn queries() -> impl Strategy<Value = Query> {
    let group = prop::sample::select(vec![
        Group::Site,
        Group::Function,
        Group::Tree,
        Group::Module,
        Group::Thread,
        Group::Size,
        Group::Mode,
        Group::Process,
    ]);
    let measures = vec![Measure::Live, Measure::Peak, Measure::Allocations, Measure::Allocated, Measure::Temporary];
    let function = prop_oneof![2 => Just(None), 1 => "0x100[0-3]".prop_map(Some), 1 => Just(Some("0x.*5".to_owned()))];
    let thread = prop::option::weighted(0.2, (70..74u32).prop_map(ThreadFilter::Tid));
    (filters(), group, prop::sample::select(measures), function, thread, any::<bool>(), prop::option::of(1..6usize)).prop_map(
        |(blocks, group, measure, function, thread, keep_zero, limit)| {
            let function = function.iter().map(|pattern| Regex::new(pattern).expect("a pattern")).collect();
            Query {
                blocks,
                frames: FrameFilter { function, ..FrameFilter::default() },
                thread,
                processes: Vec::new(),
                group,
                measure,
                limit,
                keep_zero,
            }
        },
    )
}

/// Equal; of samples, whose sums of fractions were made in another order, but for the last place of what is rounded.
fn must_be_alike(one: &serde_json::Value, other: &serde_json::Value, at: &str) {
    use serde_json::Value;
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().expect("a number"), b.as_f64().expect("a number"));
            assert!((a - b).abs() <= 1.0f64.max(a.abs() * 1e-12), "{at}: {a} {b}");
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).for_each(|(a, b)| must_be_alike(a, b, at));
        }
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{at}");
            a.iter().for_each(|(key, value)| must_be_alike(value, &b[key], key));
        }
        _ => assert_eq!(one, other, "{at}"),
    }
}

fn stored(steps: &[crate::columns::random::Step], several: bool) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.hound");
    std::fs::write(&path, capture_bytes(steps, several)).expect("room for it");
    (folder, path)
}

fn must_have_index(path: &Path) {
    let mut capture = Capture::open(path).expect("a capture");
    index::make(path, &mut capture, &|_| ()).expect("room for it");
    assert!(index::find(path, &mut capture).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]
    #[test]
    fn every_query_is_answered_the_same(
        steps in prop_oneof![3 => steps(false, 250), 1 => steps(true, 250)],
        several: bool,
        blocks: bool,
        queries in prop::collection::vec(queries(), 4),
    ) {
        let (_folder, path) = stored(&steps, several);
        must_have_index(&path);
        let is_sampled = Sampling::of(Capture::open(&path).expect("a capture").sampling()).is_some();
        for query in queries {
            let options = Options { format: Format::Json, index: Indexing::Never, blocks, query, ..Options::default() };
            let streamed = report(&path, &options).expect("a report");
            let indexed = report(&path, &Options { index: Indexing::IfThere, ..options }).expect("a report");
            if is_sampled {
                let parse = |text: &str| serde_json::from_str(text).expect("JSON");
                let (streamed, indexed): (serde_json::Value, serde_json::Value) = (parse(&streamed), parse(&indexed));
                // Rows that are equal but for the last place may change their order: what they add up to is compared.
                must_be_alike(&streamed["totals"], &indexed["totals"], "totals");
            } else {
                prop_assert_eq!(streamed, indexed);
            }
        }
    }

    #[test]
    fn pictures_are_the_same(steps in steps(false, 200), several: bool, query in queries()) {
        let (_folder, path) = stored(&steps, several);
        must_have_index(&path);
        let query = Query { group: if query.group == Group::Tree { Group::Site } else { query.group }, ..query };
        let of = |index| Options { index, query: query.clone(), ..Options::default() };
        let how = FlameOptions { shape: FlameShape { inverted: false, full_stacks: true }, format: FlameFormat::Collapsed, smallest: 0.0, deepest: 99 };
        let flame = |index| flamegraph(&path, None, &of(index), &how).expect("a picture");
        prop_assert_eq!(flame(Indexing::Never), flame(Indexing::IfThere));
        let drawn = |index, of_what| {
            let how = GraphOptions { of: of_what, json: true, ..GraphOptions::default() };
            graph(&path, &of(index), &how).expect("a picture")
        };
        for what in [GraphOf::Live, GraphOf::Rates, GraphOf::Sizes, GraphOf::Lifetimes] {
            prop_assert_eq!(drawn(Indexing::Never, what), drawn(Indexing::IfThere, what));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// A capture with bits flipped, or cut: whatever can be read of it, its index says the same.
    #[test]
    fn of_a_damaged_capture_too(
        steps in prop_oneof![steps(false, 100), steps(true, 100)],
        several: bool,
        flips in prop::collection::vec((any::<u32>(), 0..8u8), 1..4),
        cut in prop::option::weighted(0.3, any::<u32>()),
        query in queries(),
    ) {
        let mut bytes = capture_bytes(&steps, several);
        for (at, bit) in flips {
            let at = at as usize % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize % bytes.len());
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.hound");
        std::fs::write(&path, bytes).expect("room for it");
        let options = Options { format: Format::Json, index: Indexing::Never, query, ..Options::default() };
        let Ok(mut capture) = Capture::open(&path) else { return Ok(()) };
        let streamed = report(&path, &options).expect("it could be opened");
        if index::make(&path, &mut capture, &|_| ()).is_ok() && Sampling::of(capture.sampling()).is_none() {
            prop_assert_eq!(streamed, report(&path, &Options { index: Indexing::IfThere, ..options }).expect("it could be opened"));
        }
    }
}

#[test]
fn an_empty_capture_has_an_empty_index() {
    let (_folder, path) = stored(&[], false);
    must_have_index(&path);
    let options = |index| Options { index, format: Format::Json, ..Options::default() };
    let of = |index| report(&path, &options(index)).expect("a report");
    assert_eq!(of(Indexing::Never), of(Indexing::IfThere));
    graph(&path, &options(Indexing::IfThere), &GraphOptions::default()).expect("a picture");
    assert_eq!(
        crate::strip::strip(&mut Capture::open(&path).expect("a capture"), tempfile::tempfile().expect("a file"), 1, &|_| ())
            .expect("room")
            .events,
        0
    );
}

#[test]
fn a_damaged_index_is_removed_and_the_capture_read() {
    let steps: Vec<_> =
        (0..200u16).map(|n| (0, 10, crate::columns::random::What::Alloc { slot: n as u8, size: n + 1, path: n as u8 })).collect();
    let (_folder, path) = stored(&steps, false);
    let options = Options { format: Format::Json, ..Options::default() };
    let expected = report(&path, &options).expect("a report");
    must_have_index(&path);
    let place = index::places(&path).remove(0);
    let mut bytes = std::fs::read(&place).expect("an index");
    bytes[4096 + 8 * 7] ^= 4;
    std::fs::remove_file(&place).and_then(|()| std::fs::write(&place, bytes)).expect("own file");
    assert_eq!(report(&path, &options).expect("a report"), expected);
    assert!(!place.exists());
}

#[test]
fn small_captures_get_no_index_unasked() {
    let (folder, path) = stored(&[(0, 1, crate::columns::random::What::Alloc { slot: 1, size: 1, path: 1 })], false);
    report(&path, &Options { index: Indexing::WhenLarge, ..Options::default() }).expect("a report");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    let (columns, place) = index_of(&path, false).expect("an index");
    assert!(place.exists() && columns.heap().view().len() == 1);
}
