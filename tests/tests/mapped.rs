//! The library as hound maps it into a running target: a program that plays hound inside its own process does everything hound would.

use std::process::Command;

use hound_tests::binaries;
use hound_tests::compile::{Build, Program};

/// Runs the program in each of the ways in which modules are found, and returns what it said.
fn mapped(build: Build, modules: &str) -> String {
    let program = Program::new("mapped.c", build).with(&["-pthread"]).path();
    let output = Command::new(program).arg(binaries::libhound()).arg(modules).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{build:?}, modules by {modules}: {}\n{said}", output.status);
    said
}

/// What the program must have said at its end, so that a part left out is noticed.
const PARTS: &[&str] = &[
    "every shape, the outermost call only",
    "a block that came back by another thread",
    "stacks",
    "after longjmp out of the real function",
    "a signal handler on its own stack inside the real function",
    "fibers inside the real function",
    "operator new",
    "pools",
    "maps",
    "exec",
    "calls from the allocator itself",
    "a misaligned stack",
    "eight threads at once",
    "a hundred thousand threads",
    "a fork",
    "a second session",
    "a hound that is gone, and the next one",
    "all",
];

fn check(build: Build, modules: &str) {
    let said = mapped(build, modules);
    let passed: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("PASS ")).collect();
    assert_eq!(passed, PARTS, "{build:?}, modules by {modules}");
}

#[test]
fn a_mapped_library_records_what_happens_where_the_loader_finds_modules() {
    check(Build::Plain, "loader");
    check(Build::Optimised, "loader");
}

#[test]
fn a_mapped_library_records_what_happens_where_hound_knows_the_modules() {
    check(Build::Optimised, "known");
}

#[test]
fn a_mapped_library_learns_of_modules_from_the_loaders_list() {
    check(Build::Optimised, "listed");
}
