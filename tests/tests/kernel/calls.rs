//! At interval 0 every call is told, exactly: both styles of probes.

use std::collections::BTreeMap;

use hound_common::kernel::{
    CALL_KNOWN, CALL_SAMPLED, COUNT_ALLOC_HITS, COUNT_FREE_HITS, COUNT_RELEASES, COUNT_SAMPLES, MESSAGE_ALLOC, MESSAGE_REALLOC,
    MESSAGE_REUSED, OUTCOME_OLD_STAYS,
};
use hound_tests::requirement;
use hound_user::session::kernel::{Programs, Settings, Style};

use crate::target::{Target, all, kind, load, open, read_all};

fn in_both_styles(test: impl Fn(Style)) {
    if requirement::root() {
        [Style::Sessions, Style::PerfEvents].into_iter().for_each(test);
    }
}

/// (address, thread, size), as the target noted them.
fn noted_blocks(target: &Target) -> Vec<(u64, u32, u64)> {
    let lines = target.lines().into_iter().filter(|line| line.get(1).is_some_and(|word| word == "M"));
    let numbers = lines.map(|line| (line[2][2..].to_owned(), line[0].clone(), line[3].clone()));
    let mut blocks: Vec<_> = numbers
        .map(|(address, thread, size)| {
            let address = u64::from_str_radix(&address, 16).expect("an address");
            (address, thread.parse().expect("a thread"), size.parse().expect("a size"))
        })
        .collect();
    blocks.sort_unstable();
    blocks
}

#[test]
fn every_call_of_every_thread_is_told() {
    in_both_styles(|style| {
        let mut target = Target::start();
        let mut programs = load(style);
        assert_eq!(programs.style(), style);
        programs.set(all()).expect("settings are taken");
        // Threads that were there before the probes, and new ones.
        let probes = open(&mut programs, &target);
        target.subject.order("threads 5 400");
        let said = read_all(&mut programs);
        probes.close().wait();

        let made = said.made();
        let told: Vec<_> = made.iter().map(|(address, thread, size, _)| (*address, *thread, *size)).collect();
        assert_eq!(told, noted_blocks(&target), "{style:?}");
        assert_eq!(told.len(), 2000);
        // Each release names the call that made the block, even where an address was used twice.
        let by_id: BTreeMap<u64, u64> = made.iter().map(|(address, _, _, id)| (*id, *address)).collect();
        assert!(said.released().iter().all(|(address, made_by)| by_id.get(made_by) == Some(address)), "{style:?}");
        let mut released: Vec<_> = said.released().iter().map(|(address, _)| *address).collect();
        let mut noted: Vec<_> = target.noted("F").iter().map(|words| words[0]).collect();
        released.sort_unstable();
        noted.sort_unstable();
        assert_eq!(released, noted, "{style:?}");
        // What is left is in the kernel's table.
        assert_eq!(programs.live(target.pid()).len(), 1000);
        programs.forget_all(target.pid());
        assert!(programs.live(target.pid()).is_empty());
        let counted = programs.counters().expect("there are counters");
        let count = [COUNT_ALLOC_HITS, COUNT_FREE_HITS, COUNT_SAMPLES, COUNT_RELEASES].map(|which| counted.get(which));
        assert_eq!(count, [2000, 1000, 2000, 1000], "{counted:?}");
        assert_eq!(counted.lost(), 0);
    });
}

#[test]
fn resizing_takes_the_old_block_out_or_leaves_it() {
    in_both_styles(|style| {
        let mut target = Target::start();
        let mut programs = load(style);
        programs.set(all()).expect("settings are taken");
        let probes = open(&mut programs, &target);
        target.subject.order("resizing");
        let said = read_all(&mut programs);
        probes.close().wait();

        let resized = target.noted("R");
        let reallocs: Vec<_> = said.calls.iter().map(|(call, _)| call).filter(|call| call.message == MESSAGE_REALLOC).collect();
        assert_eq!(reallocs.len(), 4, "three reallocs and a resizing in place: {reallocs:?}");
        let outcome = |id| said.outcomes.iter().find(|outcome| outcome.id == id).expect("every call has an outcome");
        for (call, noted) in reallocs.iter().zip(&resized) {
            assert_eq!((call.pointer, call.size), (noted[0], noted[2]));
            assert_eq!(outcome(call.id).address, noted[1]);
            assert_eq!(call.flags & (CALL_KNOWN | CALL_SAMPLED), CALL_KNOWN | CALL_SAMPLED);
        }
        // The first realloc made the block that the second failed to resize and the third released.
        assert_eq!(reallocs[1].made_by, reallocs[0].id);
        assert_eq!(outcome(reallocs[1].id).flags, OUTCOME_OLD_STAYS);
        assert_eq!(reallocs[2].made_by, reallocs[0].id);
        assert_eq!(outcome(reallocs[2].id).flags, 0, "a realloc to nothing releases");
        // A realloc of nothing is an allocation.
        let allocs: Vec<_> = said.calls.iter().map(|(call, _)| call).filter(|call| call.message == MESSAGE_ALLOC).collect();
        assert_eq!(allocs.iter().map(|call| call.size).collect::<Vec<_>>(), [100, 77]);
        // In place: the block stays, and its size is the answer.
        let in_place = outcome(reallocs[3].id);
        assert_eq!((in_place.address, in_place.result, reallocs[3].size), (reallocs[3].pointer, 4096, 9000));
        assert_eq!(reallocs[3].made_by, allocs[1].id);
        assert_eq!(said.released(), [(reallocs[3].pointer, reallocs[3].id)]);
        assert!(programs.live(target.pid()).is_empty());
    });
}

#[test]
fn an_address_that_is_written_through_a_pointer_is_read() {
    in_both_styles(|style| {
        let mut target = Target::start();
        let mut programs = load(style);
        programs.set(all()).expect("settings are taken");
        let probes = open(&mut programs, &target);
        target.subject.order("aligning");
        let said = read_all(&mut programs);
        probes.close().wait();
        let made: Vec<_> = said.calls.iter().filter(|(call, _)| call.message == MESSAGE_ALLOC).map(|(call, _)| call).collect();
        assert_eq!(made.iter().map(|call| call.size).collect::<Vec<_>>(), [333, 444]);
        let addresses: Vec<_> = said.outcomes.iter().map(|outcome| outcome.address).collect();
        assert_eq!(addresses, [target.noted("M")[0][0], 0], "the second asked for a bad alignment");
        assert_eq!(said.released(), [(addresses[0], made[0].id)]);
    });
}

#[test]
fn a_call_that_is_jumped_out_of_has_no_outcome_and_harms_nothing() {
    in_both_styles(|style| {
        let mut target = Target::start();
        let mut programs = load(style);
        programs.set(all()).expect("settings are taken");
        let probes = open(&mut programs, &target);
        for _ in 0..200 {
            target.subject.order("jump");
        }
        target.subject.order("aligning");
        let said = read_all(&mut programs);
        probes.close().wait();
        let jumps = said.calls.iter().filter(|(call, _)| call.cookie as u8 == kind("traced_jump")).count();
        assert_eq!((jumps, said.outcomes.len()), (200, 2), "{style:?}");
    });
}

#[test]
fn two_hounds_on_one_process_are_both_exact() {
    in_both_styles(|style| {
        let mut target = Target::start();
        let mut both: Vec<Programs> = vec![load(style), load(Style::Sessions)];
        let probes: Vec<_> = both
            .iter_mut()
            .map(|programs| {
                programs.set(all()).expect("settings are taken");
                open(programs, &target)
            })
            .collect();
        target.subject.order("threads 3 300");
        for programs in &mut both {
            let said = read_all(programs);
            let told: Vec<_> = said.made().iter().map(|(address, thread, size, _)| (*address, *thread, *size)).collect();
            assert_eq!(told, noted_blocks(&target), "{style:?}");
            assert_eq!(said.released().len(), 450);
        }
        probes.into_iter().map(|probes| probes.close()).for_each(|closing| closing.wait());
    });
}

#[test]
fn an_address_handed_out_again_bears_witness_to_a_release_that_was_not_seen() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load(Style::Sessions);
    programs.set(all()).expect("settings are taken");
    // Without a probe on the release.
    let sites: Vec<_> = target.sites().into_iter().filter(|site| site.cookie.kind == kind("traced_malloc")).collect();
    let probes = programs.open(target.pid(), &sites).unwrap_or_else(|e| panic!("{e}"));
    target.subject.order("pairs 1 5000");
    programs.set(Settings { interval: 1 << 50, witness: true, ..Settings::default() }).expect("settings are taken");
    target.subject.order("pairs 2 5000");
    let said = read_all(&mut programs);
    probes.close().wait();
    assert_eq!(said.calls.len(), 1, "{:?} {:?} {:?}", said.calls, said.outcomes, programs.counters());
    let [made, again] = &said.outcomes[..] else { panic!("{:?}", said.outcomes) };
    assert_eq!((again.message, again.id, again.address), (MESSAGE_REUSED, made.id, made.address));
    assert!(programs.live(target.pid()).is_empty());
}
