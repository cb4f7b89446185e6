//! The ring: nothing is lost where there is room, and what is lost is counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hound_common::kernel::{
    CALL_STACK_CUT, COUNT_LIVE_FULL, COUNT_LOST_CALLS, COUNT_LOST_OUTCOMES, COUNT_LOST_RELEASES, COUNT_SAMPLES, COUNT_STACK_CUT,
    OUTCOME_NOT_FOLLOWED,
};
use hound_tests::requirement;
use hound_user::session::kernel::{LoadOptions, Settings, Style};

use crate::target::{Said, Target, all, load, load_with, open, read, read_all};

#[test]
fn what_a_full_ring_loses_is_counted() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load_with(LoadOptions { ring_bytes: 256 << 10, ..LoadOptions::default() });
    programs.set(all()).expect("settings are taken");
    let probes = open(&mut programs, &target);
    // Nobody reads meanwhile.
    target.subject.order("threads 3 2000");
    let said = read_all(&mut programs);
    probes.close().wait();
    let counted = programs.counters().expect("there are counters");
    let lost = [COUNT_LOST_CALLS, COUNT_LOST_OUTCOMES, COUNT_LOST_RELEASES].map(|which| counted.get(which));
    assert!(lost[0] > 0, "{counted:?}");
    let calls = said.calls.len() as u64 - said.released().len() as u64;
    assert_eq!(calls + lost[0], 6000, "{counted:?}");
    assert_eq!(calls, counted.get(COUNT_SAMPLES));
    // A call that could not be told is not followed; one that was has its outcome told, or that counted.
    assert_eq!(said.outcomes.len() as u64 + lost[1], calls, "{counted:?}");
    // What was told and not released is just what the kernel still follows, whatever was lost.
    let still = calls - said.released().len() as u64 - lost[2];
    assert_eq!(programs.live(target.pid()).len() as u64, still, "{counted:?}");
}

#[test]
fn blocks_that_do_not_fit_the_table_are_told_not_to_be_followed() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load_with(LoadOptions { live_entries: 64, ..LoadOptions::default() });
    programs.set(all()).expect("settings are taken");
    let probes = open(&mut programs, &target);
    target.subject.order("threads 1 1000");
    let said = read_all(&mut programs);
    probes.close().wait();
    let counted = programs.counters().expect("there are counters");
    let not_followed = said.outcomes.iter().filter(|outcome| outcome.flags & OUTCOME_NOT_FOLLOWED != 0).count() as u64;
    assert!(not_followed > 800, "{counted:?}");
    assert_eq!(counted.get(COUNT_LIVE_FULL), not_followed);
    assert_eq!(said.released().len() + programs.live(target.pid()).len() + not_followed as usize, 1000);
    let remarks = programs.remarks();
    assert!(remarks.iter().any(|remark| remark.contains("table of live sampled blocks is full")), "{remarks:?}");
    assert!(programs.remarks().is_empty(), "it is said once a CPU");
}

#[test]
fn as_much_of_the_stack_comes_as_there_is() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load(Style::Sessions);
    let probes = open(&mut programs, &target);
    for (bytes, expected) in [(0, 0), (2048, 2048), (16 << 10, 16 << 10), (20_000, 32 << 10), (64 << 10, 64 << 10)] {
        programs.set(Settings { stack_bytes: bytes, ..all() }).expect("settings are taken");
        target.subject.order("deep 200000 1 10");
        let said = read_all(&mut programs);
        let (call, stack) = &said.calls[0];
        assert_eq!((stack.len(), call.flags & CALL_STACK_CUT), (expected, 0));
        // The frames of `deep` are full of this.
        assert!(stack.iter().filter(|byte| **byte == 0x5A).count() * 10 >= stack.len() * 9);
        // And where the stack ends (or a page of it that was never touched) it comes up to there.
        target.subject.order("resizing");
        let said = read_all(&mut programs);
        let (call, stack) = &said.calls[0];
        let end = call.registers[7] + stack.len() as u64;
        if bytes > 32 << 10 {
            assert_eq!((end % 4096, call.flags & CALL_STACK_CUT), (0, CALL_STACK_CUT), "what is there ends with a page");
        }
    }
    probes.close().wait();
    assert!(programs.counters().expect("there are counters").get(COUNT_STACK_CUT) > 0);
}

#[test]
fn a_return_address_stands_first_on_the_stack_wherever_the_probe_is() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load(Style::Sessions);
    programs.set(Settings { free_stacks: true, ..all() }).expect("settings are taken");
    let probes = open(&mut programs, &target);
    target.subject.order("deep 5000 1 10");
    let said = read_all(&mut programs);
    probes.close().wait();
    let first = |stack: &[u8]| u64::from_le_bytes(stack[..8].try_into().expect("eight bytes"));
    let [(alloc, alloc_stack), (free, free_stack)] = &said.calls[..] else { panic!("{:?}", said.calls.len()) };
    // Both are called from the same loop, a few instructions apart, at the same depth.
    assert_eq!(alloc.registers[7], free.registers[7]);
    assert!(first(alloc_stack).abs_diff(first(free_stack)) < 64 && first(free_stack) != 0);
    assert_eq!(alloc_stack[8..512], free_stack[8..512]);
}

#[test]
fn ten_thousand_samples_a_second_with_their_stacks_lose_nothing() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load(Style::Sessions);
    programs.set(all()).expect("settings are taken");
    let probes = open(&mut programs, &target);
    let done = AtomicBool::new(false);
    let (mut said, mut stacks) = (Said::default(), 0u64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            target.subject.order("steady 10000 2000");
            done.store(true, Ordering::Release);
        });
        // As a session reads: woken by the ring, or every 20 ms.
        loop {
            let last = done.load(Ordering::Acquire);
            while read(&mut programs, &mut said) > 0 {
                stacks += said.calls.iter().map(|(_, stack)| stack.len() as u64).sum::<u64>();
                said.calls.clear();
            }
            if last {
                break;
            }
            let mut ring = [nix::poll::PollFd::new(programs.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut ring, Duration::from_millis(20).as_millis() as u16).expect("the ring can be polled");
        }
    });
    probes.close().wait();
    let counted = programs.counters().expect("there are counters");
    assert_eq!((counted.get(COUNT_SAMPLES), counted.lost()), (20_000, 0), "{counted:?}");
    assert_eq!((said.outcomes.len(), stacks), (20_000, 20_000 * (16 << 10)));
}
