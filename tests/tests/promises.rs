//! What hound promises its target: no system call of its own, no descriptor needed, no child, no change it could see.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use hound_common::attach::{ATTACHMENT_SYMBOL, STUBS_SYMBOL};
use hound_common::hook::{BEGINNINGS, FILTERING, HOOKS, PROGRAM_API, SHELLS, WATCHED};
use hound_tests::attach;
use hound_tests::binaries;
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Target, Way};
use hound_tests::requirement;

const BOTH_WAYS: [Way; 2] = [Way::Run, Way::Preload];

#[test]
fn a_filter_on_system_calls_installed_later_does_not_kill() {
    for way in BOTH_WAYS {
        let recording = Target::new("seccomp.c", Build::Optimised).record(way);
        let (oracle, _) = recording.must_be_unharmed().must_be_exact();
        assert_eq!(oracle.facts[0], 1, "the program got past its filter");
    }
}

/// Without the time stamp counter nothing can be recorded any more, in the child of a fork neither. What came before is.
#[test]
fn a_program_that_forbids_itself_the_clock_runs_on() {
    let patched = requirement::root().then_some((Way::Run, &["--children", "--via", "patch"][..]));
    let ways = [(Way::Run, &[][..]), (Way::Preload, &[]), (Way::Run, &["--children"])].into_iter().chain(patched);
    for (way, options) in ways {
        for how in ["tsc", "syscall", "strict"] {
            let recording = Target::new("forbids_the_clock.c", Build::Optimised).args(&[how]).hound(options).record(way);
            assert_eq!((recording.outcome.shell_status(), &*recording.outcome.out()), (0, "done\n"), "{how}, {way:?}, {options:?}");
            let allocations = recording.capture.report().totals.allocations;
            assert!((2000..2100).contains(&allocations), "{how}, {way:?}, {options:?}: {allocations}");
            let said = recording.outcome.err();
            assert!(
                way == Way::Preload || said.contains("recording ended early: a thread forbade itself the time stamp counter"),
                "{how}, {way:?}, {options:?}: {said}"
            );
        }
    }
}

/// A child's prohibition is no matter of its parent's.
#[test]
fn a_child_that_forbids_itself_the_clock_ends_no_recording_but_its_own() {
    for options in [&[][..], &["--children"]] {
        for how in ["in-a-fork", "in-a-vfork"] {
            let recording = Target::new("forbids_the_clock.c", Build::Optimised).args(&[how]).hound(options).record(Way::Run);
            assert_eq!((recording.outcome.shell_status(), &*recording.outcome.out()), (0, "done\n"), "{how}, {options:?}");
            let report = recording.capture.report().totals;
            assert!((4000..4100).contains(&report.allocations), "{how}, {options:?}: {}", report.allocations);
            let of_parent =
                recording.outcome.err().lines().any(|line| line.contains("recording ended early") && !line.contains("of process"));
            assert!(!of_parent, "{how}, {options:?}: {}", recording.outcome.err());
        }
    }
}

/// Likewise of a process that the program has begun.
#[test]
fn of_a_child_that_forbids_itself_the_clock_it_is_said() {
    let target = Target::new("forbids_the_clock.c", Build::Optimised).args(&["tsc"]).hound(&["--children"]);
    let outcome = target.below(&["/bin/sh", "-c", "\"$0\" \"$@\"; exit $?"]).record(Way::Run).outcome;
    assert_eq!((outcome.shell_status(), &*outcome.out()), (0, "done\n"));
    let of_it = outcome.err().lines().any(|line| line.contains("of process ") && line.contains("forbade itself the time stamp counter"));
    assert!(of_it, "{}", outcome.err());
}

/// At its exit nothing is asked of the kernel that its filter does not know, either.
#[test]
fn a_held_exit_is_no_harm_under_a_filter_or_elsewhere() {
    for source in ["seccomp.c", "entry_points.c"] {
        let recording = Target::new(source, Build::Optimised).hound(&["--hold-exit", "20s"]).record(Way::Run);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn a_program_that_closes_every_descriptor_is_recorded_on() {
    for way in BOTH_WAYS {
        let recording = Target::new("closefds.c", Build::Optimised).record(way);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn a_program_that_waits_for_any_child_has_none() {
    for way in BOTH_WAYS {
        let recording = Target::new("children.c", Build::Optimised).args(&["wait"]).record(way);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn a_subreaper_reaps_only_its_own_orphans() {
    for way in BOTH_WAYS {
        let recording = Target::new("children.c", Build::Optimised).args(&["reaper"]).record(way);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn a_library_starting_inside_a_subreaper_leaves_it_no_orphan() {
    let program = Program::new("children.c", Build::Optimised).path();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("capture.hound");
    let mut command = Command::new(program);
    command.arg("exec").env("PRELOAD_LATER", binaries::libhound()).env("HOUND_OUTPUT", &file).env("ORACLE_FILE", dir.path().join("oracle"));
    let outcome = process::run(&mut command);
    assert_eq!(outcome.shell_status(), 11, "{}", outcome.err());
}

#[test]
fn pid_1_of_a_namespace_is_unharmed() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("children.c", Build::Optimised).path();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("capture.hound");
    let in_namespace = |preload: &str| {
        let script = format!("exec env ORACLE_FILE={}/oracle {preload} {} init", dir.path().display(), program.display());
        process::run(Command::new("unshare").args(["--pid", "--fork", "sh", "-c", &script]))
    };
    let alone = in_namespace("");
    assert_eq!(alone.shell_status(), 11, "{}", alone.err());
    let preload = format!("LD_PRELOAD={} HOUND_OUTPUT={}", binaries::libhound().display(), file.display());
    let recorded = in_namespace(&preload);
    assert_eq!(recorded.shell_status(), 11, "{}", recorded.err());
    // The kernel ends the namespace, and with it a collector inside, when PID 1 ends: what was written until then must still be readable.
    let report = Capture { path: file.clone() }.ask("report", &[]);
    assert!(!file.exists() || report.status.success(), "{}", report.err());
}

#[test]
fn a_program_in_an_empty_root_without_rights_is_recorded_on() {
    if !requirement::root() {
        return;
    }
    let root = tempfile::tempdir().expect("a temporary directory can be made");
    for way in BOTH_WAYS {
        let recording = Target::new("chroot.c", Build::Optimised).args(&[root.path()]).record(way);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn the_address_space_may_be_rearranged_under_the_recording() {
    for build in Build::ALL {
        let recording = Target::new("maps.c", build).record(Way::Run);
        recording.must_be_unharmed();
        let (oracle, events) = (recording.oracle(), recording.capture.events());
        recording.report_must_agree(&events);
        for note in &oracle.notes {
            let recorded =
                events.iter().any(|e| e.tid == note.tid && e.addr == note.addr && matches!(e.event.as_str(), "map" | "unmap" | "remap"));
            assert!(recorded, "not in the capture: {note:?}");
        }
        assert!(oracle.notes.len() >= 8);
    }
}

#[test]
fn exceptions_pass_through_code_registered_with_a_libgcc_opened_late() {
    let library = Program::new("made_code.cpp", Build::Optimised).shared("library").path();
    for way in BOTH_WAYS {
        let recording = Target::new("made_code.c", Build::Optimised).args(&[&library]).record(way);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn what_is_called_before_the_library_has_started_does_what_it_does() {
    for way in BOTH_WAYS {
        Target::new("early_calls.c", Build::Optimised).record(way).must_be_unharmed().must_be_exact();
    }
}

#[test]
fn libhound_exports_exactly_what_is_listed() {
    let listing = process::run(Command::new("nm").args(["-D", "--defined-only"]).arg(binaries::libhound())).out();
    let exported: BTreeSet<&str> = listing.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let for_attaching = [ATTACHMENT_SYMBOL, STUBS_SYMBOL];
    let hooks = HOOKS.iter().map(|h| h.symbol);
    let watched = WATCHED.iter().chain(BEGINNINGS).chain(FILTERING).chain(SHELLS).copied();
    let listed: BTreeSet<&str> = hooks.chain(PROGRAM_API.iter().copied()).chain(watched).chain(for_attaching).collect();
    assert_eq!(exported, listed);
}

#[test]
fn a_thread_inside_the_real_allocator_keeps_nobody_waiting() {
    let library = Program::new("stuck_allocator.c", Build::Optimised).with(&["-DALLOCATOR"]).shared("allocator").path();
    let runpath = format!("-Wl,-rpath,{}", library.parent().expect("it lies in a directory").display());
    let file = library.display().to_string();
    for way in BOTH_WAYS {
        let target = Target::new("stuck_allocator.c", Build::Optimised).with(&["-Wl,--no-as-needed", &runpath, &file]);
        let (oracle, events) = target.record(way).must_be_unharmed().must_be_exact();
        assert_eq!(oracle.facts[0], 2, "two threads stood still inside malloc and free");
        assert!(events.len() > 30_000);
    }
}

#[test]
fn damaged_unwind_tables_of_a_loaded_library_end_stacks_and_harm_nobody() {
    let library = Program::new("lib_damaged.c", Build::Optimised).shared("damaged").path();
    let recording = Target::new("damaged.c", Build::Optimised).args(&[library]).record(Way::Run);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    let [calls, damaged, ..] = oracle.facts[..] else { panic!("two facts") };
    assert!(damaged >= 64, "bytes of the table were changed");
    let found = recording.capture.report().sites.iter().filter(|s| s.passes("damaged_call")).map(|s| s.allocations).sum::<u64>();
    assert_eq!(found, calls, "the library's own frames are the youngest: they are there, whatever its table says of the rest");
}

#[test]
fn programs_of_the_system_do_the_same_as_without_hound() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let work: [(&str, &[&str]); 5] = [
        ("sh", &["-c", "echo out; echo err >&2; exit 3"]),
        ("sort", &["-r", "/etc/passwd"]),
        ("find", &["/etc", "-maxdepth", "1", "-name", "p*"]),
        ("sed", &["-n", "s/root/&&/p", "/etc/passwd"]),
        ("false", &[]),
    ];
    for (program, args) in work {
        let alone = process::run(Command::new(program).args(args));
        let file = dir.path().join(format!("{program}.hound"));
        let mut hound = Command::new(binaries::hound());
        let recorded = process::run(hound.args(["run", "--quiet", "-o"]).arg(&file).arg("--").arg(program).args(args));
        let told = |o: &Outcome| (o.out(), o.err(), o.shell_status());
        assert_eq!(told(&recorded), told(&alone), "{program} {args:?}");
        assert_sound(&file);
    }
}

fn assert_sound(file: &Path) {
    let check = Capture { path: file.to_owned() }.check();
    assert!(check.status.success(), "{}: {}{}", file.display(), check.out(), check.err());
}

/// Where a program is attached to, the real `free` is jumped to, as if nothing had been: no frame of the library is on the stack meanwhile.
/// In the source it is a call, the last thing the hook's body does: it is the compiler that makes it a jump.
#[test]
fn the_real_free_is_jumped_to() {
    let library = binaries::libhound();
    let (_, body) = attach::nm(&library.display().to_string(), "-a")
        .into_iter()
        .find(|(_, name)| name.contains("6bodies13free_recorded"))
        .expect("the library still has its symbols, and a body for free");
    let listing = Command::new("objdump").args(["-d", "--no-show-raw-insn", &format!("--disassemble={body}")]).arg(&library).output();
    let listing = String::from_utf8_lossy(&listing.expect("objdump is installed with the compiler").stdout).into_owned();
    assert!(listing.contains("<hound_attachment"), "this is not the body: {listing}");
    let through_register = |line: &&str| line.contains("*%r");
    let (jumps, calls): (Vec<&str>, Vec<&str>) = listing.lines().filter(through_register).partition(|line| line.contains("jmp "));
    // The one call is for a block that is a mapping of its own: what it unmaps is told others when it is gone.
    assert_eq!((jumps.len(), calls.len()), (1, 1), "{jumps:?} {calls:?}");
}

fn bash(script: &str, dir: &Path) -> Outcome {
    let mut command = Command::new("/bin/bash");
    command.args(["-c", script]).env("HOUND", binaries::hound()).env("LIBRARY", binaries::libhound()).current_dir(dir);
    process::run(&mut command)
}

/// A closed terminal, a pipe that nobody reads, a full disk: what cannot be said is not said, and all else is done.
#[test]
fn whom_nothing_can_be_told_is_served_all_the_same() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let shell = |script: &str| bash(script, dir.path());
    let outcome = shell("\"$HOUND\" run -o run.hound -- sh -c 'exit 3' 2>/dev/full");
    assert_eq!(outcome.shell_status(), 3);
    assert_eq!(shell("\"$HOUND\" check run.hound").shell_status(), 0, "the capture is whole");
    assert_eq!(shell("\"$HOUND\" run -- ./there-is-no-such-program 2>/dev/full").shell_status(), 2);
    if requirement::root() {
        let attached = "sleep 30 & \"$HOUND\" attach --mode full --duration 300ms -o attached.hound -p $! 2>/dev/full
            said=$?; \"$HOUND\" status -p $! 2>&1; kill $!; exit $said";
        let outcome = shell(attached);
        assert_eq!((outcome.shell_status(), outcome.out().contains("is gone")), (0, false), "{}", outcome.out());
    }
}

/// The ring is a file, too; growing it beyond what is allowed would end the program.
#[test]
fn a_limit_on_the_size_of_files_ends_nobody() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let shell = |script: &str| bash(script, dir.path());
    let outcome = shell("ulimit -f 1000; LD_PRELOAD=\"$LIBRARY\" /bin/echo hello");
    assert_eq!((outcome.shell_status(), &*outcome.out()), (0, "hello\n"), "{}", outcome.err());
    let outcome = shell("ulimit -f 1000; \"$HOUND\" run -- /bin/echo hello");
    assert_eq!((outcome.shell_status(), outcome.err().contains("raise `ulimit -f`")), (2, true), "{}", outcome.err());
    let own = "\"$HOUND\" run --quiet -o own.hound -- bash -c 'ulimit -f 1; head -c 100000 /dev/zero > grows; echo $?'";
    assert_eq!(shell(own).out(), "153\n", "the program's own limit holds for it as ever");
}

/// Beside a thread that changes it, and whatever is begun with it or with another one.
#[test]
fn a_programs_environment_stays_its_own() {
    for how in ["forbids", "begins"] {
        for options in [&[][..], &["--children"]] {
            let recording = Target::new("keeps_its_environment.c", Build::Optimised).args(&[how]).hound(options).record(Way::Run);
            assert_eq!((recording.outcome.shell_status(), &*recording.outcome.out()), (0, "kept\n"), "{how}, {options:?}");
        }
    }
}
