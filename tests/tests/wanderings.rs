//! Stacks of a program that wanders at random from function to function, fiber to fiber and handler to handler are, call by call, what the
//! program has written down of itself.

use std::collections::HashSet;
use std::path::Path;

use hound_tests::compile::{Build, Program};
use hound_tests::record::{Target, Way};
use hound_tests::requirement;

/// What the program has written: the functions of each block's path, leaf last, by where they begin.
fn written(file: &Path) -> Vec<Vec<u64>> {
    let bytes = std::fs::read(file).expect("the program has written it");
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight")));
    let mut paths = Vec::new();
    while let Some(depth) = words.next() {
        paths.push(words.by_ref().take(depth as usize).collect());
    }
    paths
}

fn must_be_as_written(build: Build, seed: &str, alternate: &[&str], options: &'static [&'static str]) {
    const BLOCKS: &str = "6000";
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("paths");
    let path = file.to_str().expect("a path of ours");
    let args: Vec<&str> = [seed, BLOCKS, path].into_iter().chain(alternate.iter().copied()).collect();
    let recording = Target::new("wanderings.c", build).args(&args).hound(options).record(Way::Run);
    let case = format!("{build:?}, {seed}, {alternate:?}, {options:?}");
    assert_eq!(recording.outcome.shell_status(), 0, "{case}: {}", recording.outcome.err());
    let written = written(&file);
    let known: HashSet<u64> = written.iter().flatten().copied().collect();
    let events = recording.capture.events();
    let program = Program::new("wanderings.c", build);
    let of_program = |name: &str| name.ends_with(program.path().file_name().and_then(|name| name.to_str()).expect("its name"));
    let module = events.iter().find(|event| event.event == "module" && event.path.as_deref().is_some_and(of_program)).expect("its module");
    let starts: Vec<u64> = program.function_starts().iter().map(|start| start + module.start).collect();
    let function = |ra: u64| starts[..starts.partition_point(|start| *start < ra)].last().copied();
    let mut recorded =
        events.iter().filter(|event| event.event == "alloc" && event.kind.as_deref() == Some("malloc")).filter_map(|event| {
            let stack = event.stack.as_deref()?.iter().rev();
            let path: Vec<u64> = stack.filter_map(|ra| function(*ra).filter(|start| known.contains(start))).collect();
            (!path.is_empty()).then_some(path)
        });
    for (number, path) in written.iter().enumerate() {
        assert_eq!(recorded.next().as_ref(), Some(path), "{case}: block {number} of {}", written.len());
    }
    assert_eq!(recorded.next(), None, "{case}");
}

#[test]
fn every_stack_is_what_the_program_says_it_is() {
    let patched = requirement::root().then_some(&["--via", "patch", "--no-free-stacks"][..]);
    for build in Build::ALL {
        for options in [&[][..], &["--no-free-stacks"]].into_iter().chain(patched) {
            for (seed, alternate) in [("1", &[][..]), ("2", &["alternate"])] {
                must_be_as_written(build, seed, alternate, options);
            }
        }
    }
}
