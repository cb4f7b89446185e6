//! Columns against what replay says.

use super::random::{capture, steps};
use super::*;
use crate::capture::Capture;
use crate::heap::{Block, Ending, Heaps, Peak, Processes, Sampling, Sink};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Block, end, and whether the sum over those that lived at the peak holds it; by heap.
type Told = BTreeMap<u8, Vec<(Block, Ending, u64, bool)>>;

/// What replay tells of each block, in the order of allocation, and the outcomes.
fn told(capture: &mut Capture, processes: Option<Processes>) -> (Told, BTreeMap<u8, Outcome>, Anomalies) {
    let blocks: RefCell<Told> = RefCell::default();
    let shared = &blocks;
    let sink = move |heap: u8| {
        move |block: &Block, ending: &Ending, peak: &Peak| {
            let row = (*block, *ending, peak.ordinal, block.ordinal <= peak.ordinal);
            shared.borrow_mut().entry(heap).or_default().push(row);
        }
    };
    let sampling = Sampling::of(capture.sampling()).map(Arc::new);
    let sink_of = move |pool| -> Sink<'_> { Box::new(sink(pool)) };
    let mut heaps = Heaps::new(sink(0), sink_of).of_capture(sampling, processes);
    let anomalies = capture.visit(&mut heaps);
    let (outcome, pools) = heaps.finish();
    let outcomes = std::iter::once((0, outcome)).chain(pools).collect();
    let mut told = blocks.take();
    told.values_mut().for_each(|rows| rows.sort_by_key(|(block, ..)| block.ordinal));
    (told, outcomes, anomalies)
}

/// Block by block the same.
pub(super) fn must_agree(columns: &Columns, capture: &mut Capture, processes: Option<Processes>) {
    let (told, outcomes, anomalies) = told(capture, processes);
    assert_eq!(columns.anomalies(), &anomalies);
    let heaps: Vec<(u8, &Rows)> = std::iter::once((0, columns.heap())).chain(columns.pools().iter().map(|(n, rows)| (*n, rows))).collect();
    assert_eq!(heaps.iter().map(|(number, rows)| (*number, *rows.outcome())).collect::<BTreeMap<_, _>>(), outcomes);
    for (number, rows) in heaps {
        let (view, peak) = (rows.view(), rows.outcome().peak);
        let expected = told.get(&number).map_or(&[][..], Vec::as_slice);
        assert_eq!(view.len(), expected.len());
        for (row, (block, ending, peak_then, lived)) in expected.iter().enumerate() {
            assert_eq!((view.block(row), view.ending(row)), (*block, *ending), "heap {number}, row {row}");
            assert_eq!(view.known_ns(row), ending.known_ns());
            assert_eq!(view.lived_at(row, &peak), *lived && *peak_then == peak.ordinal, "heap {number}, row {row}: {block:?} {ending:?}");
        }
    }
}

proptest! {
    #[test]
    fn columns_say_of_each_block_what_replay_says(steps in prop_oneof![steps(false, 200), steps(true, 200)], several: bool) {
        let mut capture = capture(&steps, several);
        let processes = Processes::of(capture.streams(), &[]);
        let columns = Columns::of(&mut capture, processes.as_ref(), &|_| ()).expect("few blocks");
        must_agree(&columns, &mut capture, processes);
    }
}

#[test]
fn random_captures_have_every_kind_of_end_in_every_kind_of_heap() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut ends, mut pools, mut chains, mut peaks) = ([false; 8], 0, 0, 0);
    for round in 0..60 {
        let steps = steps(round % 2 == 0, 200).new_tree(&mut runner).expect("a value").current();
        let mut capture = capture(&steps, round % 3 == 0);
        let processes = Processes::of(capture.streams(), &[]);
        let columns = Columns::of(&mut capture, processes.as_ref(), &|_| ()).expect("few blocks");
        let view = columns.heap().view();
        view.ending_code.iter().for_each(|code| ends[usize::from(code & !TEMPORARY)] = true);
        pools += columns.pools().len();
        chains += view.chain_length.iter().filter(|&&length| length > 1).count();
        let peak = columns.heap().outcome().peak;
        // Where only the order of replay tells who was there.
        peaks += (0..view.len()).filter(|&row| view.end_ns[row] == peak.time_ns).count();
    }
    assert_eq!(ends, [false, true, true, true, true, true, true, true]);
    assert!(pools > 10 && chains > 10 && peaks > 10, "{pools} {chains} {peaks}");
}

/// A folder with a capture in it.
fn stored(steps: &[random::Step], several: bool) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.hound");
    std::fs::write(&path, random::capture_bytes(steps, several)).expect("room for it");
    (folder, path)
}

fn names(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).expect("a folder");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// More blocks than the builder keeps ends of in memory: blocks of all ages, some of which live to the end.
fn long_steps(blocks: usize) -> Vec<random::Step> {
    use random::What;
    let mut random = 1u64;
    let mut step = |_| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (number, slot) = (random >> 33, (random >> 50) as u8);
        let what = match number % 5 {
            0 => What::Free { slot, with_stack: number % 2 == 0 },
            1 => What::Realloc { from: slot, to: slot, size: number as u16, path: (number >> 8) as u8 },
            _ => What::Alloc { slot, size: number as u16, path: (number >> 8) as u8 },
        };
        ((number % 4) as u8, 3000, what)
    };
    (0..blocks).map(&mut step).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn an_index_says_of_each_block_what_replay_says(steps in prop_oneof![steps(false, 200), steps(true, 200)], several: bool) {
        let (folder, path) = stored(&steps, several);
        let mut capture = Capture::open(&path).expect("a capture");
        let processes = Processes::of(capture.streams(), &[]);
        let (made, place) = index::make(&path, &mut capture, &|_| ()).expect("room for it");
        prop_assert_eq!(&place, &folder.path().join("a.hound.index"));
        prop_assert_eq!(names(&folder), ["a.hound", "a.hound.index"]);
        must_agree(&made, &mut capture, processes.clone());
        let stacks = capture.stacks().clone();
        let mut again = Capture::open(&path).expect("a capture");
        let (found, _) = index::find(&path, &mut again).expect("an index");
        prop_assert!((0..stacks.len() as u32).all(|id| again.stacks().node(crate::capture::model::StackId(id)) == stacks.node(crate::capture::model::StackId(id))));
        prop_assert_eq!(again.stacks().len(), stacks.len());
        must_agree(&found, &mut capture, processes);
        prop_assert_eq!(found.check(), Ok(()));
    }
}

/// Several segments, a window that is left, ends that go through the file they are put aside in.
#[test]
fn blocks_that_outlive_the_window_are_set_in() {
    let (_folder, path) = stored(&long_steps(400_000), false);
    let mut capture = Capture::open(&path).expect("a capture");
    let (made, _) = index::make_within(&path, &mut capture, build::Room { window: 1, aside: 1000 }, &|_| ()).expect("room for it");
    assert!(made.heap().view().len() > 3 * layout::SEGMENT, "{}", made.heap().view().len());
    made.check().expect("what was written");
    must_agree(&made, &mut capture, None);
}

#[test]
fn a_changed_capture_is_not_answered_from_its_old_index() {
    let (_folder, path) = stored(&long_steps(300), false);
    let open = || Capture::open(&path).expect("a capture");
    index::make(&path, &mut open(), &|_| ()).expect("room for it");
    assert!(index::find(&path, &mut open()).is_some());
    let file = std::fs::File::options().write(true).open(&path).expect("the capture");
    let before = file.metadata().expect("a file").modified().expect("a time");
    file.set_modified(before + std::time::Duration::from_nanos(1000)).expect("own file");
    assert!(index::find(&path, &mut open()).is_none(), "another time");
    file.set_modified(before).expect("own file");
    assert!(index::find(&path, &mut open()).is_some());
    // One event less, at the same time.
    std::fs::write(&path, random::capture_bytes(&long_steps(299), false)).expect("room for it");
    std::fs::File::options().write(true).open(&path).expect("the capture").set_modified(before).expect("own file");
    assert!(index::find(&path, &mut open()).is_none(), "another length");
    index::make(&path, &mut open(), &|_| ()).expect("room for it");
    must_agree(&index::find(&path, &mut open()).expect("an index").0, &mut open(), None);
}

/// Cut anywhere, or with any byte changed, it is no index, or one that says it is damaged, or it says what it said before.
#[test]
fn a_damaged_index_is_found_out() {
    let (_folder, path) = stored(&long_steps(2000), false);
    let mut capture = Capture::open(&path).expect("a capture");
    let (_, place) = index::make(&path, &mut capture, &|_| ()).expect("room for it");
    let whole = std::fs::read(&place).expect("an index");
    let (mut refused, mut found_out, mut sound) = (0, 0, 0);
    let mut random = 7u64;
    for round in 0..300u64 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // The header, the first rows of some column, or anywhere: most of so small an index are holes.
        let at = match round % 3 {
            0 => (random >> 20) as usize % 128,
            1 => {
                layout::column_at(layout::SEGMENT as u64, 0, (random >> 40) as usize % 16).expect("a place") as usize
                    + (random >> 20) as usize % 900
            }
            _ => (random >> 20) as usize % whole.len(),
        };
        let mut bytes = whole.clone();
        match round % 4 {
            0 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << (round % 8),
        }
        // Another file in its place, as somebody may have restored it: never written to while it is mapped.
        std::fs::remove_file(&place).expect("own file");
        std::fs::write(&place, bytes).expect("room for it");
        match index::find(&path, &mut capture) {
            None => refused += 1,
            Some((columns, _)) if columns.check().is_err() => {
                found_out += 1;
                assert!(columns.heap().fold(None, || (), |(), part| part.each(|_, _, _| ())).is_err());
            }
            Some((columns, _)) => {
                sound += 1;
                must_agree(&columns, &mut capture, None);
            }
        }
    }
    // What is changed in a hole, or behind the header, does not matter.
    assert!(refused > 50 && found_out > 10 && sound > 0, "{refused} {found_out} {sound}");
}

#[test]
fn where_nothing_can_be_written_the_index_goes_to_the_cache_or_there_is_none() {
    let (_folder, path) = stored(&long_steps(300), false);
    let mut capture = Capture::open(&path).expect("a capture");
    let missing = path.with_file_name("not-there").join("a.hound");
    let [beside, cached] = &index::places(&path)[..] else { panic!("no cache folder is known") };
    assert!(beside.ends_with("a.hound.index") && cached.parent().is_some_and(|folder| folder.ends_with("hound")), "{cached:?}");
    assert!(index::find(&missing, &mut capture).is_none());
    assert!(index::make(&missing, &mut capture, &|_| ()).is_err(), "of a capture that is not there");
}

#[test]
fn many_may_make_an_index_at_once() {
    let (folder, path) = stored(&long_steps(3000), false);
    std::thread::scope(|scope| {
        let make = || {
            let mut capture = Capture::open(&path).expect("a capture");
            let (made, _) = index::make(&path, &mut capture, &|_| ()).expect("room for it");
            must_agree(&made, &mut capture, None);
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
    assert_eq!(names(&folder), ["a.hound", "a.hound.index"]);
}
