//! The hazard programs by themselves: each passes its own checks in every build, without hound, and what the harness reads from its notes
//! is what the program says it did. A truth that other tests compare with has to be true first.

use std::collections::HashMap;
use std::process::Command;

use hound_tests::compile::{Build, Program};
use hound_tests::oracle::{Call, Oracle};
use hound_tests::process;

/// Runs the program and returns its notes; its status must be as given.
fn notes(program: &Program, args: &[&str], status: i32) -> Oracle {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("oracle");
    let outcome = process::run(Command::new(program.path()).args(args).env("ORACLE_FILE", &file));
    assert_eq!(outcome.shell_status(), status, "{program:?} {args:?}: {}", outcome.err());
    let oracle = Oracle::read(&file);
    assert_eq!(oracle.unfinished, 0);
    if let Some(said) = outcome.out().lines().find_map(|l| l.strip_prefix("oracle: ").map(String::from)) {
        assert_eq!(said, summary(&oracle), "{program:?}: left: the program; right: the harness");
    }
    oracle
}

/// The program's own line, worked out from its notes, up to the moment it printed it: nothing may be noted later.
fn summary(oracle: &Oracle) -> String {
    let (mut made, mut bytes, mut freed) = (0, 0, 0);
    for n in &oracle.notes {
        let alloc = matches!(n.call, Call::Alloc(_) | Call::Realloc(_));
        if alloc && n.addr != 0 {
            made += 1;
            bytes += n.size;
        }
        let moved = matches!(n.call, Call::Realloc(_)) && n.prev != 0 && (n.addr != 0 || n.size == 0);
        freed += u64::from(moved || n.call == Call::Free);
    }
    format!("{made} allocated, {bytes} bytes, {freed} freed")
}

fn in_all_builds(source: &'static str, args: &[&str], status: i32) -> Vec<Oracle> {
    Build::ALL.iter().map(|build| notes(&Program::new(source, *build), args, status)).collect()
}

#[test]
fn every_single_threaded_program_passes_its_own_checks_in_every_build() {
    for (source, status) in
        [("entry_points.c", 7), ("cpp_new.cpp", 0), ("exceptions.cpp", 0), ("longjmp.c", 0), ("fibers.c", 0), ("deep.c", 0)]
    {
        in_all_builds(source, &[], status);
    }
    for (source, status) in [("shapes.c", 0), ("alloca.c", 0), ("maps.c", 0), ("markers.c", 0), ("closefds.c", 0)] {
        in_all_builds(source, &[], status);
    }
    for source in ["deep_changed.c", "realigned.c", "pushed_again.c", "fiber_unmapped.c", "alternate_stack.c"] {
        in_all_builds(source, &[], 0);
    }
}

#[test]
fn every_threaded_program_passes_its_own_checks() {
    for (source, status) in [("threads.c", 0), ("signals.c", 0), ("fork.c", 5), ("seccomp.c", 9), ("stopped.c", 0)] {
        notes(&Program::new(source, Build::Optimised), &[], status);
    }
    notes(&Program::new("handoff.c", Build::Optimised), &["50000", "2"], 0);
}

#[test]
fn noted_blocks_are_never_alive_twice() {
    for oracle in in_all_builds("entry_points.c", &[], 7) {
        let mut live = HashMap::new();
        for n in &oracle.notes {
            if n.prev != 0 && (n.addr != 0 || n.size == 0) {
                assert!(live.remove(&n.prev).is_some(), "realloc of what is not alive: {n:?}");
            }
            match n.call {
                Call::Free => assert!(live.remove(&n.addr).is_some(), "free of what is not alive: {n:?}"),
                Call::Alloc(_) | Call::Realloc(_) if n.addr != 0 => assert!(live.insert(n.addr, n.size).is_none(), "alive twice: {n:?}"),
                _ => {}
            }
        }
        assert_eq!(live.values().sum::<u64>(), 12345 + 777, "what entry_points.c keeps");
    }
}

#[test]
fn noted_stacks_start_in_the_program_and_are_as_deep_as_the_recursion() {
    for oracle in in_all_builds("deep.c", &[], 0) {
        let deepest = oracle.notes.iter().map(|n| n.stack.len()).max().unwrap_or(0);
        assert!(deepest > 10_000, "deepest stack: {deepest}");
        assert!(oracle.notes.iter().all(|n| oracle.is_own(n.stack[0])));
    }
}

#[test]
fn notes_survive_every_kind_of_death() {
    let die = Program::new("die.c", Build::Optimised);
    for (how, status) in [("exit", 20), ("_exit", 21), ("quick_exit", 22), ("syscall", 24), ("abort", 134), ("kill", 137), ("segv", 139)] {
        assert_eq!(notes(&die, &[how], status).notes.len(), 100, "{how}");
    }
}
