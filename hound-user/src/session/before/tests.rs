//! Against programs that really run: what they allocated is known, and glibc's own figures are there to compare with.
//!
//! `HOUND_TEST_GLIBC=/path/to/root` runs the programs with the loader and the libc of that root instead of this machine's.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::memory::{Area, What};
use super::source::Source;
use super::{Before, Blocks, Bound, Count, Heap, Limits, glance, glibc, look, look_within, memory, reader};

const THREADS: u64 = 4;
/// No test's outcome depends on how fast the machine is.
const PATIENT: Limits = Limits { time: Duration::from_secs(60), bytes: 4 << 30 };

/// A C program; compiled without knowledge of malloc, or blocks that are never looked at would be left out.
struct Program {
    child: Child,
    output: BufReader<ChildStdout>,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start(source: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (code, program) = (folder.path().join("program.c"), folder.path().join("program"));
        std::fs::write(&code, source).expect("the source is written");
        let compiled = Command::new("cc").args(["-O1", "-fno-builtin", "-pthread", "-o"]).arg(&program).arg(&code).args(flags).status();
        assert!(compiled.expect("cc starts").success());
        let mut command = match std::env::var("HOUND_TEST_GLIBC") {
            Ok(root) if !flags.contains(&"-static") => {
                let libraries = Path::new(&root).join("lib/x86_64-linux-gnu");
                let libraries = if libraries.exists() { libraries } else { Path::new(&root).join("usr/lib/x86_64-linux-gnu") };
                let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
                command.arg("--library-path").arg(libraries).arg(program);
                command
            }
            _ => Command::new(program),
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Program { child, output, _folder: folder }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the program speaks");
        line.trim().to_owned()
    }

    fn order(&mut self) {
        self.child.stdin.as_mut().expect("it is piped").write_all(b"x").expect("the program listens");
    }

    /// Looks until the program stood still all along: its threads may be on their way to sleep yet.
    fn look_at_rest(&self) -> Blocks {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let before = look_within(self.pid(), PATIENT, reader(self.pid())).expect("it can be looked at");
            let blocks = walked(&before);
            check_sums(&blocks);
            if blocks.stood_still {
                return blocks;
            }
            assert!(Instant::now() < deadline, "it never stood still");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }
}

fn walked(before: &Before) -> Blocks {
    match &before.heaps[..] {
        [Heap::Walked(blocks)] => (**blocks).clone(),
        other => panic!("no walk of glibc alone: {other:?}"),
    }
}

fn check_sums(blocks: &Blocks) {
    assert_eq!(blocks.in_use.bytes + blocks.cached.bytes + blocks.free + blocks.overhead, blocks.covered, "{blocks:?}");
    let sum = |of: fn(&Count) -> u64| blocks.classes.iter().map(|class| of(&class.blocks)).sum::<u64>();
    assert_eq!((sum(|count| count.count), sum(|count| count.bytes)), (blocks.in_use.count, blocks.in_use.bytes));
    for class in &blocks.classes {
        let Count { count, bytes } = class.blocks;
        assert!(class.from * count <= bytes && bytes < 2 * class.from * count, "{class:?}");
    }
}

fn class(blocks: &Blocks, from: u64) -> (u64, u64) {
    blocks.classes.iter().find(|class| class.from == from).map_or((0, 0), |class| (class.blocks.count, class.blocks.bytes))
}

/// What `after` has more than `before`: from, blocks, bytes.
fn gained(before: &Blocks, after: &Blocks) -> Vec<(u64, u64, u64)> {
    let classes = (0..48).map(|bits| 1 << bits);
    let gained = classes.map(|from| (from, class(after, from).0 - class(before, from).0, class(after, from).1 - class(before, from).1));
    gained.filter(|&(_, count, bytes)| (count, bytes) != (0, 0)).collect()
}

fn compare_with_what_was_allocated(flags: &[&str]) {
    let mut program = Program::start(include_str!("tests/still.c"), flags);
    assert_eq!(program.line(), "empty");
    let empty = program.look_at_rest();
    program.order();
    let told: Vec<u64> = program.line().split(' ').map(|word| word.parse().expect("a number")).collect();
    let full = program.look_at_rest();
    // A request is rounded up to 8 more than a multiple of 16; with a mapping of its own, to pages.
    let mapping = (1 << 20) + 4096;
    let usable = full.own_mapping.bytes / 3;
    // Less a header; since 2.43 also less a word at its end.
    assert!([mapping - 16, mapping - 24].contains(&usable), "{usable}");
    let expected = [(64, THREADS * 500, 104), (1024, THREADS * 150, 2008), (16384, THREADS * 50, 20008), (1 << 20, 3, usable)];
    assert_eq!(gained(&empty, &full), expected.map(|(from, count, each)| (from, count, count * each)));
    // All that were freed; in 2.43, which has no fast bins, the 16 that a thread's cache takes.
    let cached = full.cached.count - empty.cached.count;
    assert!([THREADS * 500, THREADS * 16].contains(&cached), "{cached}");
    assert_eq!(full.cached.bytes - empty.cached.bytes, cached * 104);
    let [arena, free, fast, own, own_bytes] = told[..] else { panic!("{told:?}") };
    assert_eq!(full.covered, arena + own_bytes, "all of it is walked: {full:?}");
    assert_eq!((full.free, full.mapped), (free - fast, full.covered));
    assert_eq!(full.own_mapping.count, own);
    assert_eq!(full.own_mapping_told, Some(Count { count: own, bytes: own_bytes }));
    assert_eq!((full.arenas, full.retried, full.unread_lists, full.cut), (1 + THREADS as u32, 0, 0, None));
    assert_eq!(full.left_out, []);
}

#[test]
fn a_program_that_stands_still_is_counted_exactly() {
    compare_with_what_was_allocated(&[]);
}

#[test]
fn a_static_program_is_counted_exactly() {
    compare_with_what_was_allocated(&["-static"]);
}

#[test]
fn a_program_that_allocates_wildly_gives_no_nonsense() {
    let mut program = Program::start(include_str!("tests/wild.c"), &[]);
    assert_eq!(program.line(), "wild");
    let (mut whole, mut retried) = (0, 0);
    for _ in 0..50 {
        let before = look_within(program.pid(), PATIENT, reader(program.pid())).expect("it can be looked at");
        let blocks = walked(&before);
        check_sums(&blocks);
        assert!(!blocks.stood_still);
        // Four times 2000 blocks of 5 kB on average; the free space between them and above is not in use.
        assert!(blocks.in_use.bytes < THREADS * 2000 * 10_000, "{blocks:?}");
        retried += blocks.retried;
        if blocks.left_out.is_empty() {
            whole += 1;
            assert!(class(&blocks, 64).0 >= THREADS * 1000, "the blocks it keeps are there: {blocks:?}");
        } else {
            eprintln!("{:?}", blocks.left_out);
        }
    }
    eprintln!("{whole} of 50 whole, {retried} stretches retried");
    assert!(whole > 0);
}

/// A copy of a program's memory that can be damaged.
struct Copy {
    areas: Vec<Area>,
    bytes: Vec<Vec<u8>>,
}

impl Copy {
    fn of(pid: u32) -> Self {
        let (_, mut areas) = memory::look(pid).expect("it can be looked at");
        areas.retain(|area| matches!(area.what, What::Heap | What::Anonymous | What::Data));
        let mut read = reader(pid);
        let bytes = areas.iter().map(|area| {
            let mut bytes = vec![0; (area.end - area.start) as usize];
            for (page, into) in bytes.chunks_mut(4096).enumerate() {
                // The guard pages of stacks cannot be read, though their mapping can (2.42 and later).
                let _ = read(area.start + 4096 * page as u64, into);
            }
            bytes
        });
        Copy { bytes: bytes.collect(), areas }
    }

    fn walk(&self, limits: Limits) -> Option<Blocks> {
        let mut read = |address: u64, into: &mut [u8]| {
            let index = self.areas.iter().position(|area| area.holds(address)).ok_or(std::io::ErrorKind::NotFound)?;
            let bytes = self.bytes[index].get((address - self.areas[index].start) as usize..);
            into.copy_from_slice(bytes.and_then(|bytes| bytes.get(..into.len())).ok_or(std::io::ErrorKind::NotFound)?);
            Ok(())
        };
        glibc::walk(&mut Source::new(&mut read, limits), &self.areas)
    }

    fn length(&self) -> u64 {
        self.bytes.iter().map(|bytes| bytes.len() as u64).sum()
    }
}

#[test]
fn damaged_metadata_end_in_a_reason_and_never_in_nonsense() {
    let mut program = Program::start(include_str!("tests/still.c"), &[]);
    program.line();
    program.order();
    program.line();
    program.look_at_rest();
    let mut copy = Copy::of(program.pid());
    let sound = copy.walk(PATIENT).expect("there is a main arena");
    assert_eq!(sound.left_out, []);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut noticed, mut lost) = (0, 0);
    for _ in 0..400 {
        let mut undo = Vec::new();
        for _ in 0..1 + next() % 20 {
            let area = (next() % copy.areas.len() as u64) as usize;
            // Half of it where words of metadata are: what looks like a size, or like a pointer to something else.
            let length = copy.bytes[area].len() / 8;
            let start = (next() as usize) % length;
            let word_at = |index: usize| u64::from_le_bytes(copy.bytes[area][index * 8..][..8].try_into().expect("8 bytes"));
            let telling = |index: &usize| matches!(word_at(*index), 1..=0x10_0000) || word_at(*index) >> 40 == copy.areas[area].start >> 40;
            let index = (start..length).find(telling).unwrap_or(start);
            let old = word_at(index);
            let new = match next() % 6 {
                0 => next(),
                1 => old ^ (1 << (next() % 64)),
                2 => old.wrapping_add(16 << (next() % 8)),
                3 => u64::MAX - next() % 64,
                4 => copy.areas[area].start + next() % 0x10_0000 / 8 * 8,
                _ => 0,
            };
            undo.push((area, index * 8, old));
            copy.bytes[area][index * 8..][..8].copy_from_slice(&new.to_le_bytes());
        }
        let started = Instant::now();
        match copy.walk(PATIENT) {
            None => lost += 1,
            Some(blocks) => {
                check_sums(&blocks);
                assert!(blocks.covered <= copy.length(), "{blocks:?}");
                noticed += usize::from(!blocks.left_out.is_empty());
                assert_eq!(blocks.cut, None, "bounded by itself: {:?}", started.elapsed());
            }
        }
        for (area, at, old) in undo.into_iter().rev() {
            copy.bytes[area][at..][..8].copy_from_slice(&old.to_le_bytes());
        }
    }
    assert!(noticed > 20, "the damage hit metadata: {noticed} noticed, {lost} without a main arena");
    assert_eq!(copy.walk(PATIENT).expect("undone").classes, sound.classes);
}

#[test]
fn a_bound_ends_the_walk_with_what_was_counted_so_far() {
    let mut program = Program::start(include_str!("tests/still.c"), &[]);
    program.line();
    program.order();
    program.line();
    let all = program.look_at_rest();
    let copy = Copy::of(program.pid());
    let mut part = 0;
    for kib in (0..10_000).step_by(128) {
        let Some(blocks) = copy.walk(Limits { bytes: kib << 10, ..PATIENT }) else { panic!("{kib} KiB") };
        check_sums(&blocks);
        if blocks.cut.is_none() {
            assert_eq!(blocks.in_use, all.in_use);
            break;
        }
        assert_eq!(blocks.cut, Some(Bound::Bytes));
        assert!(blocks.read <= kib << 10);
        part += usize::from(0 < blocks.in_use.count && blocks.in_use.count < all.in_use.count);
    }
    assert!(part > 0);
}

#[test]
fn the_result_can_be_stored_and_told_in_a_few_lines() {
    let mut program = Program::start(include_str!("tests/still.c"), &[]);
    program.line();
    program.order();
    program.line();
    program.look_at_rest();
    let before = look(program.pid(), reader(program.pid())).expect("it can be looked at");
    let stored = serde_json::to_string(&before).expect("JSON");
    assert_eq!(serde_json::from_str::<Before>(&stored).expect("the same"), before);
    let lines = crate::view::before(&before);
    eprintln!("{}\n{stored}", lines.join("\n"));
    assert!(lines.len() <= 6 && lines.iter().any(|line| line.contains("glibc: ")), "{lines:?}");
    assert!(before.resident > before.anonymous && before.heap > 0, "{before:?}");
}

#[test]
fn memory_touched_is_seen() {
    let pid = std::process::id();
    let (earlier, _) = memory::look(pid).expect("our own process");
    let block = vec![1u8; 64 << 20];
    let (later, _) = memory::look(pid).expect("our own process");
    assert!(later.anonymous + later.heap >= earlier.anonymous + earlier.heap + (48 << 20), "{earlier:?} {later:?}");
    let glance = glance(pid).expect("our own process");
    assert!(glance.resident > 64 << 20 && glance.threads > 0 && glance.age_ns > 0 && block.len() == 64 << 20, "{glance:?}");
}

#[test]
fn a_process_that_is_gone_is_an_error() {
    let mut child = Command::new("true").spawn().expect("it starts");
    let pid = child.id();
    child.wait().expect("it ends");
    assert!(look(pid, reader(pid)).is_err());
}
