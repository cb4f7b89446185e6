//! Looking at, freezing and borrowing real processes. Runs as root.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use hound_inject::{Borrowed, Error, Frozen, Memory, Refusal, look};

const PAGE: u64 = 4096;
const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const PRIVATE: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Compiles one of the programs beside this file.
fn build(name: &str) -> PathBuf {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/process").join(format!("{name}.c"));
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{:?}", std::process::id(), std::thread::current().id()));
    let done = Command::new("cc").args(["-O2", "-w", "-mavx2", "-pthread", "-o"]).arg(&out).arg(source).status().expect("cc");
    assert!(done.success());
    out
}

/// A target that answers lines; killed when dropped.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    file: PathBuf,
}

impl Program {
    fn start(name: &str, arguments: &[&str]) -> Program {
        let file = build(name);
        let mut child = Command::new(&file).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("piped")));
        let mut program = Program { child, input, output, file };
        assert_eq!(program.line(), "ready");
        program
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        line.trim().into()
    }

    /// Asks `steady` whether all is well; it answers only when all its threads have moved on and a signal has arrived.
    fn well(&mut self) -> String {
        self.input.as_mut().expect("open").write_all(b"?\n").expect("write");
        self.line()
    }

    /// State letters of all threads.
    fn states(&self) -> Vec<char> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("alive");
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
    }

    fn mappings(&self) -> usize {
        std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("alive").lines().count()
    }

    /// Waits until all threads are in this state.
    fn wait_for(&self, state: char) {
        let deadline = soon();
        while !self.states().iter().all(|&seen| seen == state) {
            assert!(Instant::now() < deadline, "{:?} never became {state}", self.states());
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes no pointers; the process is our child, not yet waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The calls and what each returned, after `disturb` has run all the while.
fn sleepers(mut disturb: impl FnMut(&Program)) {
    let mut program = Program::start("sleepers", &[]);
    disturb(&program);
    let mut wrong = Vec::new();
    for _ in 0..32 {
        let line = program.line();
        println!("{line}");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<i64>().expect("a number");
        let (elapsed, meant) = (number(3), number(6));
        // Begun anew at the last stop it would end another quarter later.
        let latest = meant + meant / 8;
        // The main thread wakes the others after the time meant from its own begin: a thread may have begun a little later.
        let earliest = if words[7] == "w" { meant - 200 } else { meant };
        if (number(1), number(2)) != (number(4), number(5)) || elapsed < earliest || elapsed > latest {
            wrong.push(line.clone());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Calls `act` every 150 ms for the first 1.2 s.
fn now_and_then(mut act: impl FnMut()) {
    let begin = Instant::now();
    for round in 1..=8u32 {
        act();
        std::thread::sleep((begin + Duration::from_millis(150) * round).saturating_duration_since(Instant::now()));
    }
}

#[test]
fn every_blocking_call_returns_what_and_when_it_would_have_through_freezes() {
    sleepers(|program| {
        let target = look(program.pid()).expect("may be traced");
        now_and_then(|| {
            let frozen = Frozen::all(&target, soon()).expect("frozen");
            assert_eq!(frozen.threads().len(), 33);
            assert!(program.states().iter().all(|&state| state == 't'));
            println!("stood still for {:?}", frozen.release());
        });
    });
}

#[test]
fn every_blocking_call_returns_what_and_when_it_would_have_through_borrows() {
    let mut borrowed_threads = std::collections::BTreeSet::new();
    sleepers(|program| {
        let target = look(program.pid()).expect("may be traced");
        let memory = Memory::open(program.pid()).expect("open");
        let tids: Vec<i32> = {
            let frozen = Frozen::all(&target, soon()).expect("frozen");
            frozen.threads().iter().map(|thread| thread.tid).collect()
        };
        now_and_then(|| {
            for &tid in &tids {
                let mut borrowed = match Borrowed::thread(&target, tid, &memory, soon()) {
                    // On a busy machine this may take until the call has ended.
                    Err(Error::Gone) if !PathBuf::from(format!("/proc/{}/task/{tid}", program.pid())).exists() => continue,
                    borrowed => borrowed.expect("borrowed"),
                };
                assert_eq!(borrowed.syscall(libc::SYS_getpid, [0; 6]), Ok(program.pid() as u64));
                borrowed.release();
                borrowed_threads.insert(tid);
            }
        });
    });
    assert_eq!(borrowed_threads.len(), 33);
}

#[test]
fn remote_calls_work_and_fail_as_in_the_target_and_leave_nothing() {
    let mut program = Program::start("steady", &["4"]);
    let target = look(program.pid()).expect("may be traced");
    let memory = Memory::open(program.pid()).expect("open");
    program.well();
    let before = program.mappings();
    for round in 0..50 {
        let mut borrowed = Borrowed::any(&target, &memory, soon()).expect("borrowed");
        let at = borrowed.syscall(libc::SYS_mmap, [0, 8 * PAGE, READ_WRITE, PRIVATE, u64::MAX, 0]).expect("mmap");
        memory.write(at, b"hound").expect("write");
        if round % 2 == 1 {
            borrowed.use_scratch(at, 8 * PAGE).expect("scratch");
            let other = borrowed.syscall(libc::SYS_mmap, [0, PAGE, READ_WRITE, PRIVATE, u64::MAX, 0]).expect("mmap");
            borrowed.syscall(libc::SYS_munmap, [other, PAGE, 0, 0, 0, 0]).expect("munmap");
        }
        let failed = borrowed.syscall(libc::SYS_close, [9999, 0, 0, 0, 0, 0]);
        assert_eq!(failed, Err(Error::Os { what: "close in the target".into(), errno: libc::EBADF }));
        assert_eq!(borrowed.syscall(libc::SYS_munmap, [at, 8 * PAGE, 0, 0, 0, 0]), Ok(0));
        borrowed.release();
        let answer = program.well();
        assert!(answer.starts_with("ok"), "{answer}");
    }
    assert_eq!(program.mappings(), before);
}

#[test]
fn a_busy_target_with_signals_bears_hundreds_of_freezes_and_borrows() {
    let mut program = Program::start("steady", &["32"]);
    let target = look(program.pid()).expect("may be traced");
    let memory = Memory::open(program.pid()).expect("open");
    let mut stalls = Vec::new();
    for round in 0..300 {
        let frozen = Frozen::all(&target, soon()).expect("frozen");
        assert_eq!(frozen.threads().len(), 35);
        stalls.push(frozen.release());
        let mut borrowed = Borrowed::any(&target, &memory, soon()).expect("borrowed");
        assert_eq!(borrowed.syscall(libc::SYS_getpid, [0; 6]), Ok(program.pid() as u64));
        stalls.push(borrowed.release());
        if round % 50 == 0 {
            let answer = program.well();
            assert!(answer.starts_with("ok"), "{answer}");
        }
    }
    let answer = program.well();
    assert!(answer.starts_with("ok"), "{answer}");
    let (mut frozen, mut borrowed): (Vec<_>, Vec<_>) = (stalls.iter().step_by(2).collect(), stalls.iter().skip(1).step_by(2).collect());
    frozen.sort();
    borrowed.sort();
    println!("35 threads stood still for {:?} (median), {:?} at most", frozen[150], frozen[299]);
    println!("a borrowed thread stood still for {:?} (median), {:?} at most", borrowed[150], borrowed[299]);
}

#[test]
fn a_thread_that_is_slow_to_stop_keeps_its_system_call() {
    let mut program = Program::start("patient", &[]);
    let target = look(program.pid()).expect("may be traced");
    let memory = Memory::open(program.pid()).expect("open");
    let mut late = 0;
    // It gets its turn now and then: once it comes too late, whatever the machine does besides.
    let until = soon();
    while late < 5 && Instant::now() < until {
        let frozen = Frozen::all(&target, Instant::now() + Duration::from_millis(3));
        late += u32::from(matches!(frozen, Err(Error::Deadline { .. })));
        drop(frozen);
        let borrowed = Borrowed::any(&target, &memory, Instant::now() + Duration::from_millis(15));
        if let Ok(mut borrowed) = borrowed {
            assert_eq!(borrowed.syscall(libc::SYS_getpid, [0; 6]), Ok(program.pid() as u64));
        }
    }
    assert!(late > 0, "it always stopped in time: the test has not come to its point");
    drop(program.input.take());
    let status = program.child.wait().expect("ended");
    let mut wrong = String::new();
    std::io::Read::read_to_string(&mut program.output, &mut wrong).expect("read");
    assert!(status.success(), "epoll_wait returned: {wrong}");
}

#[test]
fn a_call_that_begins_while_its_thread_is_stopped_keeps_its_whole_time() {
    let mut program = Program::start("again", &[]);
    let target = look(program.pid()).expect("may be traced");
    let memory = Memory::open(program.pid()).expect("open");
    // A thread is met in one microsecond in a thousand between the end of one call and its sleep in the next. On a busy machine this takes
    // long: it is a matter of chance then.
    let until = soon();
    for _ in (0..10_000).take_while(|_| Instant::now() < until) {
        Borrowed::thread(&target, program.pid(), &memory, soon()).expect("borrowed").release();
    }
    drop(program.input.take());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut program.output, &mut said).expect("read");
    println!("{said}");
    assert!(said.starts_with("calls "), "{said}");
}

/// A seccomp filter sees whole registers, and may kill for one it does not know.
#[test]
fn a_call_on_a_socket_is_marked_only_where_no_filter_sees_it() {
    for (filtered, marked) in [("0", true), ("1", false)] {
        let program = Program::start("odd", &["receives", filtered]);
        let target = look(program.pid()).expect("may be traced");
        // Its descriptor, as the kernel shows it while it sleeps in the call.
        let descriptor = || {
            let text = std::fs::read_to_string(format!("/proc/{}/syscall", program.pid())).expect("alive");
            let given = text.strip_prefix("45 0x")?.split(' ').next()?.to_owned();
            u64::from_str_radix(&given, 16).ok()
        };
        let asleep = || {
            let deadline = soon();
            loop {
                if let Some(descriptor) = descriptor() {
                    return descriptor;
                }
                assert!(Instant::now() < deadline, "it does not sleep in recv");
                std::thread::yield_now();
            }
        };
        let before = asleep();
        Frozen::all(&target, soon()).expect("frozen").release();
        let after = asleep();
        assert_eq!(after & 0xffff_ffff, before);
        assert_eq!(after != before, marked, "filtered: {filtered}");
    }
}

#[test]
fn a_stopped_target_stays_stopped() {
    let mut program = Program::start("steady", &["4"]);
    let target = look(program.pid()).expect("may be traced");
    let memory = Memory::open(program.pid()).expect("open");
    program.signal(libc::SIGSTOP);
    program.wait_for('T');
    Frozen::all(&target, soon()).expect("frozen").release();
    program.wait_for('T');
    let mut borrowed = Borrowed::any(&target, &memory, soon()).expect("borrowed");
    assert_eq!(borrowed.syscall(libc::SYS_getpid, [0; 6]), Ok(program.pid() as u64));
    borrowed.release();
    program.wait_for('T');
    program.signal(libc::SIGCONT);
    let answer = program.well();
    assert!(answer.starts_with("ok"), "{answer}");
}

#[test]
fn a_hundred_threads_stand_still_and_run_on() {
    let program = Program::start("threads", &["100"]);
    let target = look(program.pid()).expect("may be traced");
    let mut stalls = Vec::new();
    for _ in 0..20 {
        let frozen = Frozen::all(&target, soon()).expect("frozen");
        assert_eq!(frozen.threads().len(), 100);
        stalls.push(frozen.release());
        assert!(!program.states().contains(&'t'));
    }
    stalls.sort();
    println!("100 threads stood still for {:?} (median), {:?} at most", stalls[10], stalls[19]);
}

#[test]
fn refusals_name_the_cause() {
    let refusal = |pid: i32| match look(pid) {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(std::process::id() as i32), Refusal::Itself);
    assert_eq!(refusal(2), Refusal::KernelThread);
    assert_eq!(refusal(i32::MAX), Refusal::NoProcess { pid: i32::MAX });
    let program = Program::start("threads", &["4"]);
    let pid = program.pid();
    let thread = std::fs::read_dir(format!("/proc/{pid}/task")).expect("alive");
    let thread = thread.filter_map(|task| task.ok()?.file_name().to_str()?.parse::<i32>().ok()).find(|&tid| tid != pid).expect("threads");
    assert_eq!(refusal(thread), Refusal::ThreadOnly { pid: thread, process: pid });
    let target = look(pid).expect("fine");
    let frozen = Frozen::all(&target, soon()).expect("frozen");
    assert!(matches!(refusal(pid), Refusal::Traced { name, .. } if name == "hound-trace"));
    frozen.release();
    program.signal(libc::SIGKILL);
    program.wait_for('Z');
    assert_eq!(refusal(pid), Refusal::Zombie { parent: std::process::id() as i32 });
}

/// What a look at `odd` says.
fn look_at_filtered(call: i64, action: u32) -> Result<Option<i32>, Error> {
    let program = Program::start("odd", &["seccomp", &call.to_string(), &action.to_string()]);
    program.wait_for('S');
    look(program.pid()).map(|target| target.seccomp_checked)
}

#[test]
fn a_filter_is_refused_only_if_it_forbids_what_an_attach_needs() {
    const ERRNO: u32 = 0x0005_0001;
    const LOG: u32 = 0x7ffc_0000;
    const NOTIFY: u32 = 0x7fc0_0000;
    for (call, name) in [(libc::SYS_munmap, "munmap"), (libc::SYS_memfd_create, "memfd_create"), (libc::SYS_rt_sigreturn, "rt_sigreturn")] {
        for action in [0, ERRNO, NOTIFY] {
            match look_at_filtered(call, action) {
                Err(Error::Refused(Refusal::SeccompForbids { call, .. })) => assert_eq!(call, name),
                other => panic!("{name} with action {action:#x}: {other:?}"),
            }
        }
        assert!(look_at_filtered(call, LOG).expect("logged is allowed").is_some());
    }
    assert!(look_at_filtered(libc::SYS_ptrace, ERRNO).expect("hound calls no ptrace in there").is_some());
}

#[test]
fn a_target_in_other_namespaces_without_proc_can_be_borrowed() {
    let mut program = Program::start("odd", &["namespaces"]);
    let pid: i32 = program.line().parse().expect("a number");
    // The child is on its way into its read: the look does not mind where it is.
    let target = look(pid).expect("may be traced");
    assert_eq!(target.pid_in_namespace, 1);
    let memory = Memory::open(pid).expect("open");
    let mut borrowed = Borrowed::any(&target, &memory, soon()).expect("borrowed");
    assert_eq!(borrowed.syscall(libc::SYS_getpid, [0; 6]), Ok(1));
    borrowed.release();
    assert_eq!(Frozen::all(&target, soon()).expect("frozen").threads().len(), 1);
}

#[test]
fn a_freeze_waits_for_a_vfork_and_gives_up_at_the_deadline() {
    let mut program = Program::start("odd", &["vfork"]);
    program.wait_for('D');
    let target = look(program.pid()).expect("may be traced");
    let late = Frozen::all(&target, Instant::now() + Duration::from_millis(100));
    assert!(matches!(late, Err(Error::Deadline { .. })), "{late:?}");
    // The child ends with its input, the parent with it: nobody was left stopped.
    drop(program.input.take());
    assert!(program.child.wait().expect("ended").success());
}

#[test]
fn a_target_that_another_process_shares_memory_with_is_not_frozen() {
    let mut program = Program::start("odd", &["shares"]);
    let target = look(program.pid()).expect("may be traced");
    let refused = Frozen::all(&target, Instant::now() + Duration::from_secs(1));
    assert!(matches!(refused, Err(Error::Refused(Refusal::SharedMemory { .. }))), "{refused:?}");
    drop(program.input.take());
    assert!(program.child.wait().expect("ended").success());
}

/// What [`another_users_process_is_refused_with_the_users`] runs as another user.
#[test]
#[ignore = "run by another test, as another user"]
fn looks() {
    let pid = std::env::var("HOUND_TEST_PID").expect("set").parse().expect("a number");
    println!("{:?}", look(pid).map(|target| target.pid));
}

#[test]
fn another_users_process_is_refused_with_the_users() {
    use std::os::unix::process::CommandExt;

    let program = Program::start("threads", &["2"]);
    // The test's own file need not be where that user can read it.
    let copy = std::env::temp_dir().join(format!("hound-looks-{}", std::process::id()));
    std::fs::copy(std::env::current_exe().expect("known"), &copy).expect("copied");
    let mut hound = Command::new(&copy);
    hound.args(["--exact", "looks", "--ignored", "--nocapture"]).env("HOUND_TEST_PID", program.pid().to_string());
    let output = hound.uid(65534).gid(65534).current_dir("/").output().expect("started");
    std::fs::remove_file(&copy).expect("removed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("NoPermission(User { own: 65534, target: 0 })"), "{text}");
}

/// What the death tests have a second hound do to the target.
#[cfg(feature = "death")]
#[test]
#[ignore = "run by the death tests, in a process of its own"]
fn dies() {
    let number = |name: &str| std::env::var(name).expect("set by the death tests").parse::<i32>().expect("a number");
    let target = look(number("HOUND_TEST_PID")).expect("may be traced");
    let memory = Memory::open(target.pid).expect("open");
    match std::env::var("HOUND_TEST_DEED").as_deref() {
        Ok("freeze") => drop(Frozen::all(&target, soon()).expect("frozen")),
        _ => {
            let thread = number("HOUND_TEST_THREAD");
            let mut borrowed = Borrowed::thread(&target, thread, &memory, soon()).expect("borrowed");
            let at = borrowed.syscall(libc::SYS_mmap, [0, PAGE, READ_WRITE, PRIVATE, u64::MAX, 0]).expect("mmap");
            borrowed.syscall(libc::SYS_munmap, [at, PAGE, 0, 0, 0, 0]).expect("munmap");
        }
    }
}

/// Has a second hound die before each of its steps, until it comes through; returns how many steps that were.
#[cfg(feature = "death")]
fn die_at_every_step(program: &mut Program, deed: &str, thread: i32) -> u32 {
    use std::os::unix::process::ExitStatusExt;

    for step in 1..2000 {
        let mut hound = Command::new(std::env::current_exe().expect("known"));
        hound.args(["--exact", "dies", "--ignored"]).stdout(Stdio::null());
        hound.env("HOUND_DIE_AFTER", step.to_string()).env("HOUND_TEST_DEED", deed);
        hound.env("HOUND_TEST_PID", program.pid().to_string()).env("HOUND_TEST_THREAD", thread.to_string());
        let status = hound.status().expect("start");
        let answer = program.well();
        assert!(answer.starts_with("ok"), "after a death at step {step} of {deed} (thread {thread}): {answer}");
        assert!(!program.states().iter().any(|state| matches!(state, 't' | 'T')), "a thread is left stopped at step {step} of {deed}");
        if status.success() {
            return step - 1;
        }
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
    panic!("{deed} does not come to an end");
}

#[cfg(feature = "death")]
#[test]
fn a_target_survives_death_at_every_step_of_a_freeze() {
    let mut program = Program::start("steady", &["4"]);
    let steps = die_at_every_step(&mut program, "freeze", 0);
    assert!(steps >= 4 * 7, "only {steps} steps for seven threads");
    println!("{steps} deaths");
}

#[cfg(feature = "death")]
#[test]
fn a_target_survives_death_at_every_step_of_a_borrow_of_each_thread() {
    let mut program = Program::start("steady", &["4"]);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", program.pid())).expect("alive");
    let tids: Vec<i32> = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).collect();
    assert_eq!(tids.len(), 7);
    for tid in tids {
        let steps = die_at_every_step(&mut program, "borrow", tid);
        assert!(steps >= 20, "only {steps} steps");
        println!("thread {tid}: {steps} deaths");
    }
}
