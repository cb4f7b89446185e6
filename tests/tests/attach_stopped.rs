//! Targets that full mode refuses, each with its cause and before anything has changed; and one that is stopped and stays so.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::binaries;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Running};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

fn subject() -> Subject {
    Subject::start(&mut Command::new(Program::new("attach_target.c", Build::Optimised).path()))
}

/// The letter of a process's state.
fn state(pid: i32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("State:\t")).map_or_else(String::new, |rest| rest[..1].to_owned())
}

/// Refused in one line that contains all of these words; the target is as it was.
fn refused_naming(pid: i32, words: &[&str]) {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let (text, maps) = (Footprint::of(pid), attach::maps(pid));
    let outcome = attach::refused(pid, &dir.path().join("c.hound"));
    let err = outcome.err().to_lowercase();
    for word in words {
        assert!(err.contains(word), "does not name {word:?}: {err}");
    }
    assert!(err.contains("; "), "no cure: {err}");
    assert_eq!(Footprint::of(pid), text, "a refusal changed the target");
    assert_eq!(attach::maps(pid), maps, "a refusal changed the target's mappings");
}

#[test]
fn a_stopped_target_stays_stopped_and_is_captured_when_it_goes_on() {
    if !requirement::root() {
        return;
    }
    let mut subject = subject();
    let pid = subject.pid();
    let before = Footprint::of(pid);
    kill(subject.running.pid, Signal::SIGSTOP).expect("it runs");
    assert!(process::wait_until(|| state(pid) == "T"));
    let session = attach::attach(pid, &subject.file("one.hound"), &[]);
    assert_eq!(state(pid), "T", "attaching woke it");
    assert!(Footprint::of(pid).is_patched_beside(&before), "nothing is patched");
    kill(subject.running.pid, Signal::SIGCONT).expect("it is there");
    subject.order("noted");
    kill(subject.running.pid, Signal::SIGSTOP).expect("it runs");
    assert!(process::wait_until(|| state(pid) == "T"));
    let capture = session.detach(&[]);
    assert_eq!(state(pid), "T", "detaching woke it");
    Footprint::of(pid).must_be_as(&before, "after detaching");
    kill(subject.running.pid, Signal::SIGCONT).expect("it is there");
    subject.must_be_exact(&capture, 0);
    subject.end();
}

#[test]
fn a_target_under_a_tracer_is_refused_and_the_tracer_is_named() {
    if !requirement::root() {
        return;
    }
    let subject = subject();
    let careless = Program::new("attach_careless.c", Build::Optimised).path();
    let tracer = process::start(Command::new(&careless).args([&subject.pid().to_string(), "hold"]));
    tracer.wait_for_output("holding");
    refused_naming(subject.pid(), &[&tracer.pid.to_string(), "trac"]);
    kill(tracer.pid, Signal::SIGKILL).expect("it runs");
    tracer.finish();
    subject.end();
}

#[test]
fn gdb_is_named_as_the_tracer() {
    if !requirement::root() || !requirement::program("gdb") {
        return;
    }
    let subject = subject();
    let script = "shell touch \"$SIGN\"\npython import time; time.sleep(50)\n";
    let (sign, commands) = (subject.file("sign"), subject.file("commands"));
    fs::write(&commands, script.replace("python import time; time.sleep(50)", "shell exec sleep 50")).expect("it can be written");
    let mut command = Command::new("gdb");
    command.args(["-batch", "-nx", "-p", &subject.pid().to_string(), "-x"]).arg(&commands).env("SIGN", &sign).process_group(0);
    let gdb = process::start(&mut command);
    assert!(process::wait_until(|| sign.exists()), "gdb did not attach: {}", gdb.said());
    refused_naming(subject.pid(), &["gdb"]);
    kill(nix::unistd::Pid::from_raw(-gdb.pid.as_raw()), Signal::SIGKILL).expect("its group is the test's own");
    gdb.finish();
    subject.end();
}

#[test]
fn a_zombie_is_refused() {
    if !requirement::root() {
        return;
    }
    // The shell's child ends at once, and the shell becomes a program that never waits.
    let running = process::start(Command::new("sh").args(["-c", "true & exec sleep 50"]));
    let mut zombie = None;
    let there = process::wait_until(|| {
        zombie = process::descendants(running.pid).into_iter().find(|pid| state(pid.as_raw()) == "Z");
        zombie.is_some()
    });
    assert!(there, "there is no zombie");
    let dir = TempDir::new().expect("a temporary directory can be made");
    let pid = zombie.expect("it was found").as_raw();
    let outcome = attach::refused(pid, &dir.path().join("c.hound"));
    assert!(outcome.err().contains("zombie") || outcome.err().contains("ended"), "{}", outcome.err());
    end(running);
}

#[test]
fn a_kernel_thread_is_refused() {
    if !requirement::root() || !requirement::fulfilled("kernel threads in sight", is_kthreadd()) {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let outcome = attach::refused(2, &dir.path().join("c.hound"));
    assert!(outcome.err().contains("kernel"), "{}", outcome.err());
}

fn is_kthreadd() -> bool {
    fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd")
}

#[test]
fn a_32_bit_process_is_refused() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("attach_bits32.s", Build::Plain).with(&["-m32", "-nostdlib", "-static"]).path();
    let running = process::start(&mut Command::new(program));
    running.wait_for_output("ready");
    refused_naming(running.pid.as_raw(), &["32-bit"]);
    end(running);
}

#[test]
fn a_filter_that_forbids_what_is_needed_is_refused() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("attach_filtered.c", Build::Optimised);
    for (what, ends) in [("errno", "an error"), ("kill", "death")] {
        let mut subject = Subject::start(Command::new(program.path()).arg(what));
        refused_naming(subject.pid(), &["seccomp"]);
        subject.order("work");
        let outcome = subject.end();
        assert!(outcome.status.success(), "a filter that answers with {ends}");
    }
}

/// A function of libc's: where it begins in the process's memory, libc's path, and its offset there.
fn in_libc(pid: i32, function: &str) -> (u64, String, u64) {
    let maps = attach::maps(pid);
    let line = maps.iter().find(|line| line.ends_with("/libc.so.6")).expect("the target has libc");
    let base = u64::from_str_radix(line.split('-').next().unwrap_or(""), 16).expect("a map's line begins with an address");
    let path = line.split(' ').next_back().expect("it ends with its path");
    let symbols = Command::new("nm").args(["-D", "--defined-only", path]).output().expect("nm is installed with the compiler");
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let named: BTreeMap<_, _> =
        symbols.lines().filter_map(|l| Some((l.split(' ').nth(2)?.split('@').next()?, l.split(' ').next()?))).collect();
    let offset = u64::from_str_radix(named[function], 16).expect("nm prints addresses");
    (base + offset, path.to_owned(), offset)
}

#[test]
fn a_foreign_breakpoint_on_an_entry_is_refused_and_left_alone() {
    if !requirement::root() {
        return;
    }
    let subject = subject();
    let pid = subject.pid();
    for function in ["malloc", "free", "calloc"] {
        let (mut address, ..) = in_libc(pid, function);
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("the test's own child");
        let mut first = [0; 4];
        memory.read_exact_at(&mut first, address).expect("libc is mapped");
        // Debuggers put theirs behind an endbr64.
        address += if first == [0xf3, 0x0f, 0x1e, 0xfa] { 4 } else { 0 };
        let mut original = [0];
        memory.read_exact_at(&mut original, address).expect("libc is mapped");
        memory.write_all_at(&[0xcc], address).expect("a parent may write");
        refused_naming(pid, &["breakpoint"]);
        memory.write_all_at(&original, address).expect("a parent may write");
    }
    subject.end();
}

#[test]
fn a_uprobe_on_an_entry_is_refused_and_left_alone() {
    if !requirement::root() {
        return;
    }
    let mut subject = subject();
    let pid = subject.pid();
    let (address, path, offset) = in_libc(pid, "malloc");
    let helper = Program::new("attach_uprobe.c", Build::Optimised).path();
    let probe = process::start(Command::new(helper).args([&pid.to_string(), &path, &offset.to_string()]));
    let holds = process::wait_until(|| probe.printed().contains("holding") || probe.has_ended());
    if !requirement::fulfilled("uprobes", holds && !probe.has_ended()) {
        return;
    }
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the test's own child");
    let mut first = [0];
    memory.read_exact_at(&mut first, address).expect("libc is mapped");
    assert_eq!(first, [0xcc], "the probe is not in memory");
    refused_naming(pid, &["uprobe", "malloc"]);
    kill(probe.pid, Signal::SIGKILL).expect("it runs");
    probe.finish();
    let session = attach::attach(pid, &subject.file("after.hound"), &[]);
    subject.order("noted");
    subject.must_be_exact(&session.detach(&[]), 0);
    subject.end();
}

#[test]
fn a_target_without_room_for_the_library_is_refused_and_runs_on() {
    if !requirement::root() {
        return;
    }
    let mut subject = subject();
    let pid = subject.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.split_whitespace().next()?.parse::<u64>().ok());
    let size = size.expect("a process has a size") * 1024;
    // Less than the ring needs, and enough for the ring alone.
    for more in [1 << 20, 100 << 20, 165 << 20] {
        let limit = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--as={}:", size + more)]).status();
        assert!(limit.expect("prlimit is installed").success());
        refused_naming(pid, &["memory"]);
    }
    let unlimited = Command::new("prlimit").args(["--pid", &pid.to_string(), "--as=unlimited:"]).status();
    assert!(unlimited.expect("prlimit is installed").success());
    let session = attach::attach(pid, &subject.file("after.hound"), &[]);
    subject.order("noted");
    subject.must_be_exact(&session.detach(&[]), 0);
    subject.end();
}

#[test]
fn a_go_program_without_c_is_refused_and_told_why() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("attach_go.c", Build::Optimised).with(&["-nostdlib", "-static", "-fno-stack-protector"]).path();
    let running = process::start(&mut Command::new(program));
    running.wait_for_output("ready");
    refused_naming(running.pid.as_raw(), &["go ", "pprof"]);
    end(running);
}

#[test]
fn a_second_hound_is_told_of_the_first() {
    if !requirement::root() {
        return;
    }
    let mut subject = subject();
    let session = attach::attach(subject.pid(), &subject.file("first.hound"), &[]);
    let outcome = attach::refused(subject.pid(), &subject.file("second.hound"));
    assert!(outcome.err().contains(&session.running.pid.to_string()), "the first is not named: {}", outcome.err());
    subject.order("noted");
    let capture = session.detach(&[]);
    subject.must_be_exact(&capture, 0);
    subject.end();
}

#[test]
fn a_process_that_is_not_there_and_one_of_another_user_are_refused() {
    if !requirement::root() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let gone = process::start(&mut Command::new("true"));
    let pid = gone.pid.as_raw();
    gone.finish();
    let outcome = attach::refused(pid, &dir.path().join("c.hound"));
    assert!(outcome.err().contains("no process") || outcome.err().contains("No such process"), "{}", outcome.err());

    let subject = subject();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(dir.path(), open).expect("the test's own directory");
    let bin = binaries::for_everybody();
    let mut command = Command::new(bin.path().join("hound"));
    command.args(["attach", "--mode", "full", "--quiet", "-p", &subject.pid().to_string(), "-o"]).arg(dir.path().join("c.hound"));
    let refused = process::run(command.uid(65534).gid(65534));
    assert_eq!(refused.status.code(), Some(2), "{}", refused.err());
    let err = refused.err().to_lowercase();
    assert!(err.contains("permission") || err.contains("may not") || err.contains("user"), "{err}");
    subject.end();
}

fn end(running: Running) {
    kill(running.pid, Signal::SIGKILL).expect("the test's own child is there");
    running.finish();
}
