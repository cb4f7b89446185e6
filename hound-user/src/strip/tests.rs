//! What strip leaves out, keeps, and says.

use super::*;
use crate::columns::Columns;
use crate::columns::random::{Step, What, capture, steps};
use crate::report::{Format, Options, report_of};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::{Read, Seek};

fn stripped(original: &mut Capture, threshold_ns: u64) -> (Capture, Kept) {
    let mut file = tempfile::tempfile().expect("a file");
    let kept = strip(original, file.try_clone().expect("a descriptor"), threshold_ns, &|_| ()).expect("room for it");
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("own file");
    assert_eq!(kept.file_bytes > 0, !bytes.is_empty());
    (Capture::from_bytes(bytes).expect("a capture"), kept)
}

/// All that a block is but for its number: function by function, for numbers of stacks differ.
type Told = (u64, u64, u64, Vec<u64>, u32, u8, u8, String, bool);

fn rows(capture: &mut Capture, keep: impl Fn(&Columns, usize) -> bool) -> (Vec<Told>, u64) {
    let processes = Processes::of(capture.streams(), &[]);
    let columns = Columns::of(capture, processes.as_ref(), &|_| ()).expect("few blocks");
    let view = columns.heap().view();
    let path = |stack: StackId| capture.stacks().ips(stack).collect::<Vec<_>>();
    let told = |row: usize| {
        let (block, ending) = (view.block(row), view.ending(row));
        let how = match ending {
            Ending::Freed(death) => format!("{} {} {:?} {}", death.time_ns, death.stream.0, death.stack.map(path), death.realloc),
            other => format!("{other:?}"),
        };
        let temporary = matches!(ending, Ending::Freed(death) if death.temporary);
        (block.alloc_ns, block.addr, block.size, path(block.stack), block.chain_length, block.kind as u8, block.flags, how, temporary)
    };
    let rows = (0..view.len()).filter(|&row| keep(&columns, row)).map(told).collect();
    (rows, columns.heap().outcome().totals.unknown_frees)
}

/// Lived the chain of this row shorter than that, as far as is known? Said without `strip`'s code.
fn is_short(columns: &Columns, row: usize, threshold_ns: u64) -> bool {
    let view = columns.heap().view();
    let first = view.chain[row];
    let members: BTreeSet<usize> = (0..view.len()).filter(|&other| view.chain[other] == first).collect();
    let all_freed = members.iter().all(|&member| matches!(view.ending(member), Ending::Freed(_)));
    let end = members.iter().map(|&member| view.end_ns[member]).max().unwrap_or(0);
    // Who takes the place of a block that was never released tells when that ended.
    let replaces = |member: usize| {
        let before = (0..member).rev().find(|&other| view.addr[other] == view.addr[member]);
        before.is_some_and(|other| matches!(view.ending(other), Ending::Replaced { .. }))
    };
    all_freed && !members.iter().any(|&member| replaces(member)) && end - view.alloc_ns[first as usize] < threshold_ns
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn what_lived_long_is_kept_as_it_was_and_the_rest_is_counted(steps in steps(false, 150), threshold_ns in prop_oneof![Just(0u64), 1..60_000u64, Just(u64::MAX)]) {
        // Order that was put right may be put right otherwise when half of the events are gone: far enough apart, nothing is to be put right.
        let steps: Vec<Step> = steps.into_iter().map(|(stream, gap, what)| (stream, gap / 4 + 3000, what)).collect();
        let mut original = capture(&steps, false);
        let (mut small, kept) = stripped(&mut original, threshold_ns);
        let mut original = capture(&steps, false);
        let (all, unknown) = rows(&mut original, |_, _| true);
        let (expected, _) = rows(&mut original, |columns, row| !is_short(columns, row, threshold_ns));
        let (found, still_unknown) = rows(&mut small, |_, _| true);
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(still_unknown, unknown);
        let in_pools = kept.blocks - (all.len() - expected.len()) as u64;
        prop_assert!(threshold_ns > 0 || kept.blocks == 0);
        match small.stripped() {
            None => prop_assert_eq!(kept.blocks, 0),
            Some(told) => {
                prop_assert_eq!((told.blocks, told.bytes, told.threshold_ns), (kept.blocks, kept.bytes, threshold_ns));
                let bytes: u64 = all.iter().map(|row| row.2).sum::<u64>() - expected.iter().map(|row| row.2).sum::<u64>();
                prop_assert!(in_pools > 0 || bytes == kept.bytes);
            }
        }
        prop_assert!(small.anomalies().is_empty(), "{:?}", small.anomalies());
    }

    #[test]
    fn nothing_panics_on_samples_processes_and_damage(steps in steps(true, 150), several: bool, threshold_ns in 0..60_000u64, flips in prop::collection::vec((any::<u32>(), 0..8u8), 0..3)) {
        let mut bytes = crate::columns::random::capture_bytes(&steps, several);
        for (at, bit) in flips {
            let at = at as usize % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        if let Ok(mut original) = Capture::from_bytes(bytes) {
            let counts = original.counts();
            let (small, kept) = stripped(&mut original, threshold_ns);
            prop_assert!(kept.events + 2 * kept.blocks <= counts.heap);
            prop_assert!(small.counts().heap == kept.events);
        }
    }
}

#[test]
fn reports_say_what_was_left_out_and_nothing_becomes_temporary() {
    let alloc = |slot| What::Alloc { slot, size: 100, path: 1 };
    let free = |slot| What::Free { slot, with_stack: false };
    // Block 1 lives long; between its two ends its thread allocates another one, which does not.
    let steps: Vec<Step> =
        vec![(0, 10_000, alloc(1)), (0, 10_000, alloc(2)), (0, 10_000, free(2)), (0, 50_000, free(1)), (0, 10_000, alloc(3))];
    let (mut small, kept) = stripped(&mut capture(&steps, false), 20_000);
    assert_eq!((kept.blocks, kept.bytes, kept.events), (1, 100, 3));
    let text = report_of(&mut small, &Options::default());
    assert!(text.contains("STRIPPED of 1 blocks (100 B) that lived shorter than 20"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&report_of(&mut small, &Options { format: Format::Json, ..Options::default() })).expect("JSON");
    assert_eq!((&json["session"]["stripped"]["blocks"], &json["totals"]["allocations"]), (&1.into(), &2.into()));
    let columns = Columns::of(&mut small, None, &|_| ()).expect("few blocks");
    assert_eq!(columns.heap().outcome().totals.temporary, 0);
}
