//! `hound collect`: drains the ring of a target that was started with plain `LD_PRELOAD=libhound.so`. Started by the library, not by people.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use hound_common::ring::{LIBRARY_OUT, OPTION_FREE_STACKS, OPTION_MAPS, OUT_NO_HEARTBEAT};
use tokio::io::unix::AsyncFd;

use super::answers::Answers;
use super::processes::{self, ProcessFd};
use super::recording::{Recording, Start};
use super::ring::Ring;
use super::server::Serve;
use super::{clock, launch, output};
use crate::capture::{Calibration, CaptureWriter, Cull, End, SessionInfo};

/// Which ring, and whose.
#[derive(Clone, Debug)]
pub struct Collect {
    /// The inherited descriptor of the ring.
    pub ring_fd: RawFd,
    /// The target.
    pub pid: u32,
    /// The target's executable, for when the target is gone before it can be asked.
    pub program: OsString,
    /// Where the capture goes; may hold placeholders.
    pub output: Option<OsString>,
    /// Recording begins when the program says so.
    pub begins_off: bool,
    /// What is left out.
    pub cull: Option<Cull>,
    /// The growing capture is to be had over the network.
    pub serve: Option<Serve>,
}

/// Records until the target is gone.
pub fn collect(collect: &Collect) -> anyhow::Result<PathBuf> {
    let started = Instant::now();
    // None: a short program is gone already. What it did is in the ring.
    let target = ProcessFd::open(collect.pid).ok();
    let ring = Ring::adopt(inherited(collect.ring_fd)?).context("cannot use the ring that libhound.so handed over")?;
    let ring = Arc::new(ring);
    let result = record(collect, &ring, target, started);
    if result.is_err() {
        // Nobody reads the ring any more: the target must not wait for it.
        let control = ring.control();
        control.bow_out.store(OUT_NO_HEARTBEAT, Ordering::Relaxed);
        control.library.store(LIBRARY_OUT, Ordering::Release);
        control.change(false);
    }
    result
}

fn record(collect: &Collect, ring: &Arc<Ring>, target: Option<ProcessFd>, started: Instant) -> anyhow::Result<PathBuf> {
    let control = ring.control();
    let mut command = processes::command_line(collect.pid);
    if command.is_empty() {
        command.push(collect.program.clone());
    }
    let name = output::program_name(Path::new(&command[0]));
    let template = collect.output.clone().unwrap_or_else(|| output::DEFAULT_OUTPUT.into());
    let path = output::expand(&template, &name, collect.pid, output::now());
    let options = control.options.load(Ordering::Relaxed);
    let here = launch::here(clock::kind(control.clock.load(Ordering::Relaxed)));
    let start = start(control.start_ticks.load(Ordering::Relaxed), &here);
    let interval = control.interval.load(Ordering::Relaxed);
    // Samples are kept: each stands for others.
    let cull = collect.cull.filter(|_| interval == 0);
    let session = SessionInfo {
        command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        pid: collect.pid,
        mode: launch::launch_mode(interval).into(),
        options: launch::sampling_option(interval).into_iter().chain(launch::cull_option(cull)).collect(),
        free_stacks: options & OPTION_FREE_STACKS != 0,
        start,
        ..here
    };
    let writer = CaptureWriter::create(&path, &session)
        .with_context(|| format!("cannot write '{}'; choose another place with HOUND_OUTPUT", path.display()))?;
    let mut recording = Recording::start(Start {
        writer,
        session,
        path: path.clone(),
        pid: collect.pid,
        count_live: false,
        maps: options & OPTION_MAPS != 0,
        cull,
        rotate: None,
    })?;
    recording.begin_mode(interval, collect.begins_off);
    recording.drain(Arc::clone(ring), false)?;
    recording.serve(collect.serve, collect.begins_off);
    if let Some(target) = target {
        wait(target, collect.pid, &recording)?;
    }
    let wall = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // Not the target's parent: how it ended is not told to us.
    recording.finish(End { target_wall_ns: wall, ..End::default() })?;
    Ok(path)
}

/// Waits for the target's end, and answers who asks meanwhile.
#[expect(unsafe_code, reason = "registers the process's descriptor with the event loop")]
fn wait(target: ProcessFd, pid: u32, recording: &Recording) -> anyhow::Result<()> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return target.wait().context("cannot wait for the target"); // and nobody can ask
    };
    runtime.block_on(async {
        // SAFETY: the descriptor belongs to `target`, which gives out no other and closes it only when it is dropped with its registration.
        let target = unsafe { AsyncFd::register(target) }.context("cannot watch the target")?;
        // A session that cannot be spoken to records all the same.
        let (mut answers, _talk) = Answers::with_socket(pid, "launch");
        loop {
            tokio::select! {
                ended = target.readable() => return ended.map(|_| ()).context("cannot wait for the target"),
                asked = answers.next() => answers.answer_or_stay(asked, recording),
            }
        }
    })
}

/// The moment the library made the ring, on all clocks: events may be older than the collector.
fn start(ticks: u64, here: &SessionInfo) -> Calibration {
    let now = here.start;
    if ticks == 0 || ticks > now.ticks {
        return now;
    }
    let ago = u128::from(now.ticks - ticks) * 1_000_000_000 / u128::from(here.ticks_per_second.max(1));
    let ago = u64::try_from(ago).unwrap_or(0);
    let before = |time: u64| time.saturating_sub(ago);
    Calibration { ticks, monotonic_ns: before(now.monotonic_ns), realtime_ns: before(now.realtime_ns) }
}

#[expect(unsafe_code, reason = "takes a descriptor given by number")]
fn inherited(fd: RawFd) -> anyhow::Result<OwnedFd> {
    nix::fcntl::fcntl(borrow(fd), nix::fcntl::FcntlArg::F_GETFD).with_context(|| format!("descriptor {fd} is not open"))?;
    // SAFETY: open, as just seen, and inherited for this purpose alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(unsafe_code, reason = "asks whether a descriptor given by number is open")]
fn borrow(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: used for one fcntl, which answers EBADF if it is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}
