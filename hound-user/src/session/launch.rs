//! `hound run`: a program started under hound.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hound_common::event::{END_EXIT, END_SIGNAL, MODE_OFF, tag};
use hound_common::family::{SANITIZER, VARIABLE};
use hound_common::ring::{LIBRARY_ABSENT, OPTION_DROP, OPTION_FREE_STACKS, OPTION_MAPS, OPTION_SHADOW_STACK};

use super::answers::Answers;
use super::attach::make_room_for_files;
use super::family::{Door, Family, Making};
use super::members::{Follow, Members};
use super::preload::Preload;
use super::program::Program;
use super::reach::Hold;
use super::recording::{Recording, Start, Written};
use super::relatives::{Relatives, bowed_out};
use super::ring::Ring;
use super::rotate::Rotate;
use super::server::Serve;
use super::signals::{self, Signals};
use super::status::StatusLine;
use super::{begin, clock, output, rotate};
use crate::capture::{CaptureWriter, Clock, Cull, End, SessionInfo};
use crate::symbols::{Files, OtherFiles};

/// What to run and how to record it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Where the capture goes; may hold placeholders.
    pub output: Option<OsString>,
    /// Record where blocks are freed.
    pub free_stacks: bool,
    /// Record mmap, munmap and mremap.
    pub maps: bool,
    /// Mean bytes between samples; 0: every allocation is recorded.
    pub interval: u64,
    /// Record the processes that the program begins, too.
    pub children: bool,
    /// For how long the program's exit may be held, to find which blocks it reaches then.
    pub hold: Hold,
    /// What is left out.
    pub cull: Option<Cull>,
    /// Record until the capture has so many bytes.
    pub max_capture: Option<u64>,
    /// The capture goes on in several files.
    pub rotate: Option<Rotate>,
    /// Reuse verified frames. Off only for debugging.
    pub shadow_stack: bool,
    /// Drop events instead of making the target wait when hound cannot keep up.
    pub drop_on_overload: bool,
    /// Recording begins when the program says so (`memory_profiler_start`, or a signal).
    pub begins_off: bool,
    /// The growing capture is to be had over the network.
    pub serve: Option<Serve>,
    /// No status line.
    pub quiet: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Launched {
    /// How the program ended.
    pub status: ExitStatus,
    /// The capture; nothing where the program has ended before anything could be recorded.
    pub output: Option<PathBuf>,
    /// What the user should know beside the report.
    pub warnings: Vec<String>,
}

/// Longest a thread is made to wait for ring space in all, before its events are dropped and counted.
const MAX_WAIT_MS: u32 = 60_000;
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// How often the capture's size is looked at.
pub(super) const LOOK_FOR_SIZE: Duration = Duration::from_millis(50);
/// How often it is looked whether what the program began has ended, when the program itself has.
const LOOK_FOR_ENDS: Duration = Duration::from_millis(5);

/// Runs a program to its end and records it.
pub fn launch(launch: &Launch) -> anyhow::Result<Launched> {
    let Some(name) = launch.command.first() else { bail!("no program given; write it after '--': hound run -- PROGRAM ARGUMENTS") };
    let program = Program::find(name)?;
    let library = Preload::of(library()?)?;
    let template = launch.output.clone().unwrap_or_else(|| output::DEFAULT_OUTPUT.into());
    // The file is made before the program is started: an output that cannot be written must not cost a run. Its name may hold the
    // program's process id, which is known only later; hound's own stands in until then.
    let seconds = output::now();
    let provisional = output::expand(&template, &program.name(), std::process::id(), seconds);
    let cannot_write = || format!("cannot write '{}'; choose another place with -o FILE", provisional.display());
    std::fs::File::create(&provisional).with_context(cannot_write)?;
    let ring_clock = clock::choose();
    let session = session(launch, clock::kind(ring_clock));
    let door = if launch.children { Some(Door::open()?) } else { None };
    let ring = Arc::new(Ring::create().context("cannot make the shared memory")?);
    ring.control().interval.store(launch.interval, Ordering::Relaxed);
    ring.control().member.store(u32::from(launch.children), Ordering::Relaxed);
    let hold = if launch.interval == 0 && !launch.children { launch.hold } else { Hold::Never };
    hold.allow(&ring, Duration::ZERO); // before it starts: it may have ended before a thread of hound's runs
    ring.control().initialise(0, options(launch), ring_clock, MAX_WAIT_MS);
    if launch.begins_off {
        ring.control().change(false);
    }
    // Beside the start of the program, which takes longer: what it touches first is there in time, or else is charged to it, not lost.
    let early = Arc::clone(&ring);
    let prefault = std::thread::Builder::new().name("hound-prefault".into()).spawn(move || early.prefault());
    drop(prefault); // where no thread can be had, pages come one by one

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let result = runtime.block_on(async {
        let signals = Signals::catch().context("cannot catch signals")?;
        let started = Instant::now();
        let start = clock::calibrate(session.clock);
        let mut child = match command(launch, &program, &library.path, &ring, door.as_ref()).and_then(|mut command| command.spawn()) {
            Ok(child) => child,
            Err(error) => {
                let _ = std::fs::remove_file(&provisional);
                return Err(anyhow::Error::from(error).context(format!("cannot start '{}'", program.path.display())));
            }
        };
        ring.keep()?;
        let pid = child.id().unwrap_or(0);
        let session = SessionInfo { pid, start, ..session };
        let writer = CaptureWriter::create(&provisional, &session).with_context(cannot_write);
        let recording = writer.and_then(|writer| {
            let path = provisional.clone();
            let mut recording = Recording::start(Start {
                writer,
                session,
                path,
                pid,
                count_live: false,
                maps: launch.maps,
                cull: launch.cull,
                rotate: launch.rotate,
            })?;
            recording.drain(Arc::clone(&ring), false)?;
            recording.look_at_exit(&ring, hold);
            recording.serve(launch.serve, launch.begins_off);
            let family = door.map(|door| begin_family(door, launch, &ring, pid, &mut recording)).transpose()?;
            Ok((recording, family))
        });
        let (recording, family) = match recording {
            Ok(begun) => begun,
            Err(error) => {
                // The program runs already: it is left in peace, unrecorded.
                ring.control().change(false);
                child.wait().await?;
                return Err(error);
            }
        };
        recording.begin_mode(launch.interval, launch.begins_off);
        // A session that cannot be spoken to records all the same.
        let (answers, talk) = Answers::with_socket(pid, "launch");
        let full = Full { at: launch.max_capture, ring: &ring };
        let status = wait(&mut child, &recording, family.as_ref(), signals, answers, full, launch.quiet).await?;
        drop(talk);
        let wall = started.elapsed();
        let relatives = family.map(Family::finish).unwrap_or_default();
        let written = recording.finish(end(status, wall)).with_context(|| format!("cannot complete '{}'", provisional.display()))?;
        Ok((status, pid, written, relatives))
    });
    signals::let_go();
    let (status, pid, written, relatives) = result?;
    let output = match output::has(&template, b'p') && written.path.is_none() {
        true => {
            let wanted = output::expand(&template, &program.name(), pid, seconds);
            for complete in &written.complete {
                let number = rotate::number_of(complete).map(|number| rotate::numbered(&wanted, number));
                number.map(|wanted| output::settle(complete.clone(), wanted));
            }
            output::settle(provisional, wanted)
        }
        false => written.path.clone().unwrap_or(provisional),
    };
    Ok(Launched { status, output: Some(output), warnings: warnings(&ring, &written, relatives, launch.quiet) })
}

fn options(launch: &Launch) -> u32 {
    let choices = [
        (launch.free_stacks, OPTION_FREE_STACKS),
        (launch.shadow_stack, OPTION_SHADOW_STACK),
        (launch.maps, OPTION_MAPS),
        (launch.drop_on_overload, OPTION_DROP),
    ];
    choices.iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit)
}

fn session(launch: &Launch, clock: Clock) -> SessionInfo {
    let words = launch.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut options = Vec::new();
    for (on, name) in [(launch.shadow_stack, "no-shadow-stack"), (launch.maps, "no-maps"), (!launch.drop_on_overload, "on-overload=drop")] {
        if !on {
            options.push(name.to_owned());
        }
    }
    options.extend(sampling_option(launch.interval));
    options.extend(cull_option(launch.cull));
    let (mode, free_stacks, several) = (launch_mode(launch.interval).into(), launch.free_stacks, launch.children);
    SessionInfo { command: words, mode, options, free_stacks, several, ..here(clock) }
}

/// As the session record calls it.
pub(super) fn launch_mode(interval: u64) -> &'static str {
    if interval == 0 { "launch" } else { "sampled" }
}

/// What the session record says of an interval.
pub(super) fn sampling_option(interval: u64) -> Option<String> {
    (interval != 0).then(|| format!("interval={interval}"))
}

/// What the session record says of what is left out.
pub(super) fn cull_option(cull: Option<Cull>) -> Option<String> {
    cull.map(|cull| format!("cull={}ns", cull.threshold_ns))
}

/// What every session record says of this machine and moment, by a ring's clock.
pub(super) fn here(clock: Clock) -> SessionInfo {
    let start = clock::calibrate(clock);
    let system = nix::sys::utsname::uname();
    let text = |word: &OsStr| word.to_string_lossy().into_owned();
    SessionInfo {
        hound_version: env!("CARGO_PKG_VERSION").into(),
        clock,
        ticks_per_second: clock::rate(clock, &start),
        start,
        architecture: std::env::consts::ARCH.into(),
        machine: system.as_ref().map(|s| format!("Linux {} {}", text(s.release()), text(s.nodename()))).unwrap_or_default(),
        processors: std::thread::available_parallelism().map_or(0, |n| n.get() as u32),
        page_bytes: 4096,
        ..SessionInfo::default()
    }
}

/// libhound.so, which lies beside hound.
pub(super) fn library() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find out where hound lies; is /proc mounted?")?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let places = [folder.join("libhound.so"), folder.join("../lib/hound/libhound.so")];
    let found = places.iter().find(|place| place.is_file());
    found.cloned().with_context(|| format!("libhound.so is not beside {}; build both with 'cargo xtask build'", own.display()))
}

fn command(launch: &Launch, program: &Program, library: &Path, ring: &Ring, door: Option<&Door>) -> io::Result<tokio::process::Command> {
    let mut preload = library.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let ring = ring.as_fd().as_raw_fd().to_string();
    // Without a door: not that of another hound, which records this one.
    let mut changes =
        vec![("LD_PRELOAD", Some(preload)), ("HOUND_RING_FD", Some(ring.into())), (VARIABLE, door.map(|door| door.variable().1.into()))];
    if door.is_some() {
        let (name, value) = SANITIZER;
        let given = std::env::var_os(name).filter(|given| !given.is_empty());
        let mut value = OsString::from(value);
        given.iter().for_each(|given| value.extend([OsStr::new(":"), given]));
        changes.push((name, Some(value)));
    }
    Ok(begin::command(&program.path, &launch.command, &changes)?.into())
}

/// The program's children are recorded, too, from the first on.
fn begin_family(door: Door, launch: &Launch, ring: &Arc<Ring>, pid: u32, recording: &mut Recording) -> io::Result<Family> {
    let making = Making {
        options: options(launch),
        clock: ring.control().clock.load(Ordering::Relaxed),
        max_wait_ms: MAX_WAIT_MS,
        interval: launch.interval,
        patience_ms: 0, // as that of the program itself
    };
    make_room_for_files();
    let members = Members::of_own(pid, true, Follow::default(), OtherFiles::default(), None)?;
    let perf_map = Some(PathBuf::from(format!("/tmp/perf-{pid}.map")));
    recording.set_files(Files { perf_map, others: members.files(), ..Files::of_command(&recording.session().command) });
    let family = Family::start(door, making, false, members, Arc::clone(ring), recording)?;
    if launch.begins_off {
        family.rings().switch(None); // each begins at its own word
    }
    recording.switch_also(family.rings());
    Ok(family)
}

/// A capture that may have so many bytes.
struct Full<'a> {
    at: Option<u64>,
    ring: &'a Ring,
}

impl Full<'_> {
    /// Switches recording off when it has them.
    fn look(&mut self, recording: &Recording) {
        let Some(at) = self.at.filter(|at| recording.progress.bytes.load(Ordering::Relaxed) >= *at) else { return };
        self.at = None;
        self.ring.control().change(false);
        recording.switch_others(None);
        recording.note(tag::MODE, MODE_OFF, vec![0]); // behind all that was recorded
        eprintln!("hound: {}", full(at));
    }
}

/// What is said when a capture has all the bytes that it may have.
pub(super) fn full(at: u64) -> String {
    format!("the capture has {at} bytes, and --max-capture: recording ends here, and the program runs on")
}

/// Waits for the program's end. The terminal's Ctrl-C reaches the program by itself; hound stays to complete the capture. What is sent to
/// hound alone is passed on.
async fn wait(
    child: &mut tokio::process::Child,
    recording: &Recording,
    family: Option<&Family>,
    mut signals: Signals,
    mut answers: Answers,
    mut full: Full<'_>,
    quiet: bool,
) -> io::Result<ExitStatus> {
    let mut status_line = StatusLine::new(quiet);
    let (mut ticks, mut sizes) = (tokio::time::interval(STATUS_EVERY), tokio::time::interval(LOOK_FOR_SIZE));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            signal = signals.next() => signals::pass_on(answers.pid(), signal),
            asked = answers.next() => answers.answer_or_stay(asked, recording),
            _ = ticks.tick(), if status_line.is_enabled() => status_line.draw(recording),
            _ = sizes.tick(), if full.at.is_some() => full.look(recording),
        }
    };
    status_line.clear();
    if let Some(family) = family {
        family.first_ended(answers.pid());
        let mut looks = tokio::time::interval(LOOK_FOR_ENDS);
        let mut told = quiet;
        let since = Instant::now();
        while family.alive() > 0 {
            if !told && since.elapsed() > STATUS_EVERY {
                told = true;
                let alive = family.alive();
                let they = if alive == 1 { "1 process that it began is".into() } else { format!("{alive} processes that it began are") };
                eprintln!("hound: the program has ended; {they} still recorded, to the end or Ctrl-C");
            }
            tokio::select! {
                signal = signals.next() => if signals::is_to_leave(signal) { break },
                asked = answers.next() => answers.answer_or_stay(asked, recording),
                _ = looks.tick() => {}
            }
        }
    }
    Ok(status)
}

fn end(status: ExitStatus, wall: Duration) -> End {
    let (reason, value) = match (status.code(), status.signal()) {
        (Some(code), _) => (END_EXIT, code as u64),
        (None, Some(signal)) => (END_SIGNAL, signal as u64),
        (None, None) => (0, 0),
    };
    End { reason, value, target_wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX), ..End::default() }
}

/// What went otherwise than asked for; that nothing was recorded comes last.
fn warnings(ring: &Ring, written: &Written, relatives: Relatives, quiet: bool) -> Vec<String> {
    let control = ring.control();
    let mut warnings = Vec::new();
    warnings.extend(relatives.warnings(control.unrecorded.load(Ordering::Relaxed)));
    warnings.extend(relatives.not_left());
    if written.lost_on_disk > 0 {
        let lost = written.lost_on_disk;
        warnings.push(format!(
            "the capture is not complete: {lost} events could not be written; make room on the disk, or choose another place with -o FILE"
        ));
    }
    if let Some(why) = written.not_reached.as_ref().filter(|_| !quiet) {
        warnings.push(format!("which blocks the program still reached when it ended is not known: {why} (see --hold-exit)"));
    }
    let nothing = match bowed_out(control) {
        Some(why) => why,
        None if control.library.load(Ordering::Acquire) == LIBRARY_ABSENT => {
            "nothing was recorded: libhound.so was not loaded into the program (it may have been started with a cleared environment, or \
             be a wrapper that drops LD_PRELOAD); run the program itself under hound"
        }
        // Most often a program that allocates nothing, which is no trouble: not said to those who want to hear of trouble only.
        _ if quiet => return warnings,
        _ if control.streams_high.load(Ordering::Relaxed) == 0 || written.allocations == Some(0) && written.lost_on_disk == 0 => {
            "nothing was recorded: the program allocated nothing, or uses an allocator of its own (its executable exports malloc, or it is \
             linked with one), which hound run does not reach yet"
        }
        _ => return warnings,
    };
    warnings.push(nothing.into());
    warnings
}
