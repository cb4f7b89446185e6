//! Observed from the kernel all of the time, with every call recorded: what a program notes of itself is in the capture, block by block and
//! frame by frame, in every build.

use hound_tests::capture::Event;
use hound_tests::compile::Build;
use hound_tests::record::{Target, Way, exact_in_all_builds_by};
use hound_tests::requirement;

fn exact(source: &'static str) {
    if requirement::uprobes() {
        exact_in_all_builds_by(source, Way::Kernel);
    }
}

#[test]
fn every_c_entry_point_with_null_zero_overflow_and_failure() {
    exact("entry_points.c");
}

#[test]
fn operator_new_in_all_its_forms() {
    exact("cpp_new.cpp");
}

#[test]
fn frames_of_every_shape() {
    exact("shapes.c");
    exact("alloca.c");
    exact("realigned.c");
}

#[test]
fn exceptions_jumps_and_fibers() {
    exact("exceptions.cpp");
    exact("longjmp.c");
    exact("fibers.c");
}

#[test]
fn eight_hot_threads_and_two_thousand_short_ones() {
    if requirement::uprobes() {
        let recording = Target::new("threads.c", Build::Optimised).hound(&["--stack", "2Ki"]).record(Way::Kernel);
        let (oracle, _) = recording.must_be_unharmed().must_be_exact();
        assert_eq!(oracle.by_thread().len() as u64, oracle.facts[0], "every thread noted something");
    }
}

#[test]
fn blocks_that_other_threads_free_and_get_again_at_once() {
    if !requirement::uprobes() {
        return;
    }
    // One heap for all threads and no caches in between: what one thread frees is what the next malloc of another returns.
    let one_heap = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1";
    let target = Target::new("handoff.c", Build::Optimised).args(&["30000", "2"]).env("GLIBC_TUNABLES", one_heap);
    let recording = target.record(Way::Kernel);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    assert!(oracle.facts[0] > 5_000, "only {} addresses came back at once", oracle.facts[0]);
}

#[test]
fn signal_handlers_that_allocate_and_threads_destructors() {
    if requirement::uprobes() {
        Target::new("signals.c", Build::Optimised).record(Way::Kernel).must_be_unharmed().must_be_exact();
        Target::new("tls_dtor.cpp", Build::Optimised).record(Way::Kernel).must_be_unharmed().must_be_exact();
    }
}

#[test]
fn without_free_stacks_the_blocks_are_the_same() {
    if !requirement::uprobes() {
        return;
    }
    let target = Target::new("entry_points.c", Build::Optimised);
    let stacked = |events: &[Event]| events.iter().filter(|e| e.event == "free" && e.stack.as_ref().is_some_and(|s| !s.is_empty())).count();
    let (_, without) = target.clone().hound(&["--no-free-stacks"]).record(Way::Kernel).must_be_exact();
    let (_, with) = target.record(Way::Kernel).must_be_exact();
    assert_eq!(stacked(&without), 0, "free stacks were turned off");
    assert!(stacked(&with) > 50, "free stacks are on by default");
}

/// How a dump says that a stack is deeper than what is copied of it.
const CUT: &str = "the stack is deeper than the limit";

#[test]
fn stacks_deeper_than_what_is_copied_are_cut_and_counted() {
    if !requirement::uprobes() {
        return;
    }
    let recording = Target::new("deep.c", Build::Optimised).hound(&["--stack", "4Ki"]).record(Way::Kernel);
    recording.must_be_unharmed();
    let (oracle, events) = (recording.oracle(), recording.capture.events());
    let own = |event: &&Event| event.event == "alloc" && event.stack.as_ref().and_then(|s| s.first()).is_some_and(|ip| oracle.is_own(*ip));
    let (noted, captured): (Vec<_>, Vec<_>) = (oracle.notes.iter().filter(|n| n.size > 0).collect(), events.iter().filter(own).collect());
    assert_eq!(captured.len(), noted.len(), "blocks");
    let mut cut = 0;
    for (note, event) in noted.iter().zip(&captured) {
        assert_eq!((note.addr, note.size), (event.addr, event.size));
        let stack = event.stack.as_deref().unwrap_or_default();
        // The innermost frames lie in one function, at different calls.
        assert!(stack.len() > 1 && note.stack[1..].starts_with(&stack[1..]), "what is left of a stack is true: {stack:x?}");
        if stack.len() == note.stack.len() {
            assert_eq!(event.end.as_str(), Some("root"));
        } else {
            // 4 KiB hold some dozens of these frames.
            assert!(event.end.as_str() == Some(CUT) && stack.len() > 20, "{} of {}: {}", stack.len(), note.stack.len(), event.end);
            cut += 1;
        }
    }
    assert!(cut > 100 && cut < captured.len(), "{cut} of {} were cut", captured.len());
    let report = recording.capture.ask("report", &[]).out();
    assert!(report.contains(&format!("stacks cut short: those of {cut} of")), "{report}");
    assert!(report.contains(CUT), "the reason is not told: {report}");
}
