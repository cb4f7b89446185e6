//! What an event costs where nothing disturbs: how many instructions of the library's a malloc and its free take. Other than a time, that is the
//! same on every machine and every day; so it is a test, with room for what another compiler makes of it.

use std::process::Command;

use hound_tests::compile::{Build, Program};
use hound_tests::{binaries, capture, process};
use tempfile::TempDir;

fn per_pair(mode: &str) -> u64 {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("counted.hound");
    let program = Program::new("instructions.c", Build::Optimised).path();
    let outcome = process::run(Command::new(program).arg(binaries::libhound()).arg(&file).arg(mode));
    assert_eq!(outcome.shell_status(), 0, "{mode}: {}", outcome.err());
    let counted: Vec<u64> = outcome.out().split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let [pairs, instructions] = counted[..] else { panic!("{mode}: {}", outcome.out()) };
    // All was recorded meanwhile.
    let recorded = capture::wait_until_finished(&file).report();
    let found: u64 = recorded.sites.iter().filter(|site| site.passes("pair")).map(|site| site.allocations).sum();
    assert!(found > pairs && recorded.totals.lost_events == 0, "{mode}: {found} allocations recorded");
    instructions / pairs
}

/// Measured when this was written, by rustc 1.95: 438, 956, 985 and 438.
#[test]
fn an_event_takes_so_many_instructions_and_no_more() {
    for (mode, most) in [("same", 500), ("leaves", 1_100), ("root", 1_130), ("pushed", 500)] {
        let found = per_pair(mode);
        println!("{mode}: {found} instructions a pair");
        assert!((100..=most).contains(&found), "{mode}: a malloc and its free take {found} instructions; at most {most}");
    }
}
