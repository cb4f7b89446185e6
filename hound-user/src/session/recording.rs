//! One recording: the ring is drained on a thread until the target is gone, and the capture is completed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hound_common::event::{END_DETACH, END_EXEC, METRIC_PROCESS_RSS, MODE_FULL, MODE_OFF, MODE_SAMPLED, PROCESS_EXEC, tag};
use hound_common::ring::STATE_RECORDING;
use hound_inject::moment;

use super::beside::{self, Repeated};
use super::drain::{Drain, Parcel, Places, lost_without_stream};
use super::family::Rings;
use super::live::{self, Live};
use super::output;
use super::pipeline::{OWN_STREAM, Order, Orders, Pipeline, Progress};
use super::reach::{self, Hold};
use super::ring::Ring;
use super::rotate::{self, Rotate};
use super::server::{Serve, Server};
use super::streams::Numbers;
use super::threads::Threads;
use super::{before, clock, surroundings};
use crate::capture::model::{Alloc, Event, Free, ProcessId, Stamped, StreamId};
use crate::capture::{Before, Capture, CaptureWriter, Clock, Cull, End, ModulePaths, SessionInfo, Visitor};
use crate::symbols::{Files, SymbolTable, symbolise};

/// Longest sleep between two looks at an idle ring: a thread that starts at full speed fills the ring in about 6 ms.
const IDLE: Duration = Duration::from_millis(4);
const BUSY: Duration = Duration::from_micros(500);
/// A round that found more than this is followed by the next at once.
const FLOOD_BYTES: usize = 1 << 20;
const REAP_EVERY: Duration = Duration::from_millis(50);
/// How often it is said up to when all was read: for what waits for that ([`super::cull`]).
const SAY_READ_EVERY: Duration = Duration::from_millis(20);

/// A recording under way.
#[derive(Debug)]
pub struct Recording {
    pipeline: Pipeline,
    look: Repeated,
    /// Rings that are drained into it. A session that changes to another engine has one after the other.
    drains: Vec<Draining>,
    orders: Orders,
    numbers: Numbers,
    sources: Sources,
    /// Live figures.
    pub progress: Arc<Progress>,
    /// What is alive, if that is counted.
    pub live: Arc<Live>,
    session: SessionInfo,
    path: PathBuf,
    files: Option<Files>,
    /// The capture is to be had over the network.
    server: Option<Server>,
    /// Rings of processes that the target has begun.
    others: Option<Rings>,
    /// Lost before it came to a ring: see [`Recording::count_lost`].
    lost_elsewhere: Arc<AtomicU64>,
    /// See [`Recording::read_of_others`].
    read_of_others: Arc<AtomicU64>,
    /// Waits for the target's end, if that is looked at.
    reach: Option<reach::Watch>,
    /// The look at what was there before, under way; it gives the session record as it has stored it.
    looking: Option<JoinHandle<SessionInfo>>,
}

/// A ring that is drained.
#[derive(Debug)]
struct Draining {
    ring: Arc<Ring>,
    thread: JoinHandle<()>,
    /// How it is to end, once that is known.
    leave: Arc<AtomicU32>,
    /// Lost in earlier recordings through the same ring.
    lost_before: u64,
}

/// Counters of the rounds in which events are read, one for each place where they come from: what was there when a round began is on its
/// way when it is counted.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<Mutex<Vec<Arc<AtomicU64>>>>);

impl Sources {
    /// A counter for one more. It counts as long as somebody else holds it.
    pub fn add(&self) -> Arc<AtomicU64> {
        let counter = Arc::new(AtomicU64::new(0));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counter));
        counter
    }

    /// Those that still count, with where they stand.
    fn stand(&self) -> Vec<(Arc<AtomicU64>, u64)> {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counters.retain(|counter| Arc::strong_count(counter) > 1);
        counters.iter().map(|counter| (Arc::clone(counter), counter.load(Ordering::Acquire))).collect()
    }
}

/// What [`Recording::start`] is given.
#[derive(Debug)]
pub struct Start {
    /// The capture, with its session record written.
    pub writer: CaptureWriter,
    /// The session record.
    pub session: SessionInfo,
    /// Where the capture is.
    pub path: PathBuf,
    /// The target, as hound sees it.
    pub pid: u32,
    /// Whether to count what is alive while recording.
    pub count_live: bool,
    /// Whether to measure how much of each recorded map is resident.
    pub maps: bool,
    /// What is left out.
    pub cull: Option<Cull>,
    /// It goes on in several files.
    pub rotate: Option<Rotate>,
}

/// Values of `leave`: going on, the target is gone, the target runs on.
const STAY: u32 = 0;
const GONE: u32 = 1;
const LEFT: u32 = 2;

/// Longest wait for the ring's content to reach the file.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// Besides, where a new file is begun.
const CARRY_PATIENCE: Duration = Duration::from_secs(120);

impl Recording {
    /// Starts writing the capture. Events come from rings (see [`Recording::drain`]) and from whoever has [`Recording::orders`].
    pub fn start(start: Start) -> io::Result<Self> {
        let Start { writer, session, path, pid, count_live, maps, cull, rotate } = start;
        let live = Arc::new(Live::default());
        let feed = if count_live { Some(live::start(Arc::clone(&live))?) } else { None };
        let pipeline = Pipeline::start(writer, &session, feed, cull, rotate.map(|rotate| (&*path, rotate)))?;
        let progress = Arc::clone(&pipeline.progress);
        let orders = pipeline.orders();
        let look = beside::look(pipeline.orders(), pid, session.clock, maps)?;
        Ok(Recording {
            pipeline,
            look,
            drains: Vec::new(),
            orders,
            numbers: Numbers::from(OWN_STREAM.0 + 1),
            sources: Sources::default(),
            progress,
            live,
            session,
            path,
            files: None,
            server: None,
            others: None,
            lost_elsewhere: Arc::default(),
            read_of_others: Arc::new(AtomicU64::new(u64::MAX)),
            reach: None,
            looking: None,
        })
    }

    /// What the target's modules are called, for streams of a library that does not know. Before their ring is drained.
    pub fn name_modules(&self, paths: ModulePaths) {
        self.orders.send(Order::Paths(ProcessId::FIRST, paths));
    }

    /// What is alive is counted no longer: not every allocation is recorded from here on.
    pub fn stop_counting(&self) {
        self.live.stop();
    }

    /// Stores what is recorded since a change of the mode, and what is not, beside what was before.
    pub fn covers(&mut self, covered: Vec<String>, not_covered: Vec<String>) {
        self.join_look();
        let add = |known: &mut Vec<String>, more: Vec<String>| {
            more.into_iter().for_each(|line| {
                if !known.contains(&line) {
                    known.push(line);
                }
            })
        };
        add(&mut self.session.covered, covered);
        add(&mut self.session.not_covered, not_covered);
        self.orders.session(self.session.clone());
    }

    /// The look at what was there before has its own copy of the session record: the two are one again.
    fn join_look(&mut self) {
        if let Some(Ok(session)) = self.looking.take().map(JoinHandle::join) {
            self.session = session;
        }
    }

    /// At the end of a program that was launched, which writes into this ring: looks which blocks it reaches, and holds its exit for that.
    pub fn look_at_exit(&mut self, ring: &Arc<Ring>, hold: Hold) {
        self.reach = reach::Watch::begin(ring, self.session.pid, hold);
    }

    /// Starts draining a ring into the capture, until the recording or [`Recording::undrain`] ends it. `used`: an earlier recording has used
    /// it, and threads have places in it.
    pub fn drain(&mut self, ring: Arc<Ring>, used: bool) -> io::Result<()> {
        let leave = Arc::new(AtomicU32::new(STAY));
        let lost_before = if used { lost_in(&ring) } else { 0 };
        // Here and not in the thread, which may begin late: whoever calls this switches recording on next, and what is written then is ours.
        let mut drain = Drain::new(&ring, self.numbers.clone());
        if used {
            drain.take_over(&ring, |parcel| self.orders.send(Order::Parcel(parcel)));
        }
        let watcher = Watcher {
            drain,
            beat: beside::beat(Arc::clone(&ring))?,
            ring: Arc::clone(&ring),
            orders: self.orders.clone(),
            spare: self.pipeline.take_spare(),
            rounds: self.sources.add(),
            leave: Arc::clone(&leave),
            threads: Threads::of(self.session.pid),
            clock: self.session.clock,
            others: Arc::clone(&self.read_of_others),
        };
        let thread = std::thread::Builder::new().name("hound-drain".into()).spawn(move || watcher.run())?;
        self.drains.push(Draining { ring, thread, leave, lost_before });
        Ok(())
    }

    /// Reads what is left in the ring that was added last, and lets go of it. The target runs on, and records nothing there any more.
    pub fn undrain(&mut self) -> io::Result<()> {
        let Some(draining) = self.drains.pop() else { return Ok(()) };
        let lost = lost_in(&draining.ring).saturating_sub(draining.lost_before);
        draining.end(LEFT)?;
        self.lost_elsewhere.fetch_add(lost, Ordering::Relaxed);
        Ok(())
    }

    /// The end of the pipeline that orders go in at.
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Numbers for streams that do not come from a ring.
    pub fn numbers(&self) -> Numbers {
        self.numbers.clone()
    }

    /// Where events come from.
    pub fn sources(&self) -> Sources {
        self.sources.clone()
    }

    /// Where losses are counted that no ring knows of, for the status; whoever counts them notes them in the capture, too.
    pub fn count_lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost_elsewhere)
    }

    /// Up to when all was handed on (in ticks) of what is read here from other rings than those of [`Recording::drain`].
    pub fn read_of_others(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read_of_others)
    }

    /// The session record as it is written.
    pub fn session(&self) -> &SessionInfo {
        &self.session
    }

    /// Times count from now on: the moment at which the target begins to record. It has stood still for so long until then.
    pub fn begin(&mut self, stall: Duration) {
        self.session.start = clock::calibrate(self.session.clock);
        self.session.attach_stall_ns = u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX);
        self.orders.session(self.session.clone());
    }

    /// Looks at what the target holds from before, on a thread of its own, and stores it in the session record. The look has its bounds
    /// (see [`before`]); the recording's end waits for it.
    ///
    /// It comes after the recording has begun, so that nobody waits for it; what is allocated until it is done may be counted with the
    /// rest. Nothing is missed by it: a block that was there before and is freed meanwhile is a freed block from before.
    pub fn look_before(&mut self) {
        let (mut session, orders, began) = (self.session.clone(), self.orders.clone(), Instant::now());
        let body = move || {
            let looked_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let earlier = session.before.take().unwrap_or_default();
            session.before = Some(match before::look(session.pid, before::reader(session.pid)) {
                Ok(found) => {
                    Before { heap: found.heap, anonymous: found.anonymous, heaps: found.heaps, looked_ns: Some(looked_ns), ..earlier }
                }
                Err(error) => Before { not_looked: Some(format!("{error:#}")), ..earlier },
            });
            orders.session(session.clone());
            session
        };
        // Without it the report says less, and the recording is as good.
        self.looking = std::thread::Builder::new().name("hound-before".into()).spawn(body).ok();
    }

    /// Stores what else allocates in the target and is not recorded. Waits for the look at what was there before.
    pub fn missed(&mut self, what: Vec<String>) {
        if what.is_empty() {
            return;
        }
        self.join_look();
        self.session.not_covered.extend(what);
        self.orders.session(self.session.clone());
    }

    /// Where to look for the target's files when it is gone, or while it lives.
    pub fn set_files(&mut self, files: Files) {
        *self.pipeline.rotated.files.lock().unwrap_or_else(PoisonError::into_inner) = Some(files.clone());
        self.files = Some(files);
    }

    /// Events lost so far.
    pub fn lost(&self) -> u64 {
        let in_rings: u64 = self.drains.iter().map(|draining| lost_in(&draining.ring).saturating_sub(draining.lost_before)).sum();
        in_rings + self.lost_elsewhere.load(Ordering::Relaxed) + self.progress.lost_on_disk.load(Ordering::Relaxed)
    }

    /// The capture's file.
    pub fn path(&self) -> PathBuf {
        self.pipeline.rotated.path().unwrap_or_else(|| self.path.clone())
    }

    /// Notes something in hound's own stream, now.
    pub fn note(&self, tag: u8, a: u8, words: Vec<u64>) {
        self.orders.send(Order::Note { ticks: clock::ticks(self.session.clock), tag, a, words });
    }

    /// Notes in which mode recording begins, for a recording that begins with the program: it may go on in another one.
    pub fn begin_mode(&self, interval: u64, begins_off: bool) {
        // The first events may be older than this moment, and none of them is of another mode.
        let ticks = self.session.start.ticks;
        let mode = match interval {
            _ if begins_off => MODE_OFF,
            0 => MODE_FULL,
            _ => MODE_SAMPLED,
        };
        self.orders.send(Order::Note { ticks, tag: tag::MODE, a: mode, words: vec![0] });
    }

    /// Another hand on the recording, for other threads.
    pub fn flusher(&self) -> Flusher {
        let rotated = self.pipeline.rotated.clone();
        Flusher { orders: self.orders.clone(), sources: self.sources.clone(), rotated, clock: self.session.clock, pid: self.session.pid }
    }

    /// Has the capture to be had over the network, from when on recording is on. That it cannot be is no reason not to record.
    pub fn serve(&mut self, serve: Option<Serve>, begins_off: bool) {
        let Some(serve) = serve else { return };
        let ring = self.drains.last().map(|draining| Arc::clone(&draining.ring));
        let is_on =
            move || !begins_off || ring.as_ref().is_none_or(|ring| ring.control().state.load(Ordering::Relaxed) & STATE_RECORDING != 0);
        let name = self.session.command.first().map_or("program", String::as_str);
        let name = output::program_name(Path::new(name)).to_string_lossy().into_owned();
        match Server::start(serve, &self.path, Arc::clone(&self.progress), (self.session.pid, name), is_on) {
            Ok(server) => self.server = Some(server),
            Err(error) => eprintln!("hound: the capture cannot be had over the network: {error:#}"),
        }
    }

    /// What is to be switched with the target's own ring.
    pub fn switch_also(&mut self, others: Rings) {
        self.others = Some(others);
    }

    /// Switches that: see [`Rings::switch`].
    pub fn switch_others(&self, interval: Option<u64>) {
        self.others.iter().for_each(|others| others.switch(interval));
    }

    /// The shared memory that is drained, if any is.
    pub fn ring(&self) -> Option<&Ring> {
        self.drains.last().map(|draining| &*draining.ring)
    }

    /// The target is gone, or (with `END_DETACH`) recorded no longer: reads what is left, adds symbols and the end record.
    pub fn finish(mut self, mut end: End) -> io::Result<Written> {
        if let Some(looking) = self.looking.take() {
            let _ = looking.join(); // a panic was printed
        }
        let leave = if end.reason == END_DETACH { LEFT } else { GONE };
        let waited: u64 = self.drains.iter().map(|draining| draining.ring.control().waited_ticks.load(Ordering::Relaxed)).sum();
        let mut drained = Ok(());
        for draining in std::mem::take(&mut self.drains) {
            drained = draining.end(leave).and(drained); // all end, whatever one of them says
        }
        self.look.stop();
        if end.reason == END_DETACH {
            // The last look: what it has at the end is not what it had a second before.
            beside::note_memory(&self.orders, self.session.pid, self.session.clock);
        }
        let rotated = self.pipeline.rotated.clone();
        let mut writer = self.pipeline.finish()?;
        drained?;
        // First a pair: it is what the last second's ticks are worth. A full disk must not cost the end record, which says so.
        let _ = writer.write_calibration(&[clock::calibrate(self.session.clock)]);
        let complete = std::mem::take(&mut *rotated.complete.lock().unwrap_or_else(PoisonError::into_inner));
        let mut written = Written { complete, path: rotated.path(), ..Written::default() };
        let copied = self.reach.take().and_then(reach::Watch::end);
        let reach = copied.map(|copied| copied.and_then(|copy| reach::find(&writer.itself(), &copy)));
        match reach {
            Some(Ok(reach)) => drop(writer.write_reach(&reach)), // a full disk must not cost the end record, either
            Some(Err(why)) => written.not_reached = Some(format!("{why:#}")),
            None => {}
        }
        if let Ok((bytes, seen)) = symbol_bytes(&writer.itself(), self.session.pid, self.files) {
            let _ = writer.write_symbols(&bytes);
            written.allocations = Some(seen.allocations);
            if seen.last_is_exec && end.reason != END_DETACH {
                end.reason = END_EXEC;
            }
        }
        end.events = self.progress.events.load(Ordering::Relaxed);
        end.drainer_cpu_ns = surroundings::own_cpu_ns();
        end.waited_ns = u64::try_from(u128::from(waited) * 1_000_000_000 / u128::from(self.session.ticks_per_second.max(1))).unwrap_or(0);
        written.lost_on_disk = self.progress.lost_on_disk.load(Ordering::Relaxed).max(writer.lost_events());
        end.lost_on_disk = written.lost_on_disk - writer.lost_events(); // of files before this one, whose gaps it has, too
        writer.finish(end)?;
        if let Some(server) = self.server.take() {
            server.finish();
        }
        Ok(written)
    }
}

impl Draining {
    fn end(self, leave: u32) -> io::Result<()> {
        self.leave.store(leave, Ordering::Release); // pairs with the watcher's acquire
        let drained = self.thread.join().map_err(|_| io::Error::other("the draining thread panicked"));
        moment();
        // From here on another hound may use the ring.
        self.ring.control().drainer.store(0, Ordering::Release);
        drained
    }
}

/// Events lost in a ring, with a stream to say so and without.
pub(super) fn lost_in(ring: &Ring) -> u64 {
    let sum = |cells: &[AtomicU64]| cells.iter().map(|c| c.load(Ordering::Relaxed)).sum::<u64>();
    sum(&ring.control().lost) + ring.streams().iter().map(|stream| sum(&stream.lost)).sum::<u64>()
}

/// Brings what was recorded so far into the file, from any thread.
#[derive(Clone, Debug)]
pub struct Flusher {
    orders: Orders,
    sources: Sources,
    rotated: rotate::Shared,
    clock: Clock,
    pid: u32,
}

impl Flusher {
    /// The target.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until everything recorded before the call is in the file, and says how long the file is then.
    ///
    /// # Errors
    /// If that takes too long (a stalled disk), or the recording has ended.
    pub fn flush(&self) -> io::Result<u64> {
        let (deadline, asked) = (Instant::now() + FLUSH_PATIENCE, clock::ticks(self.clock));
        let late = || io::Error::new(io::ErrorKind::TimedOut, "what was recorded does not reach the capture in time; is the disk busy?");
        // A round that began after now is certain when the second from here has ended.
        for (counter, stands) in self.sources.stand() {
            while counter.load(Ordering::Acquire) < stands + 2 && Arc::strong_count(&counter) > 2 {
                if Instant::now() > deadline {
                    return Err(late());
                }
                std::thread::sleep(BUSY);
            }
        }
        self.orders.send(Order::Read(asked));
        // Time goes on in a capture also where nothing is allocated: blocks are as old as they are now.
        if let Some(rss) = surroundings::process_rss(self.pid) {
            let words = rss.to_vec();
            self.orders.send(Order::Note { ticks: clock::ticks(self.clock), tag: tag::METRIC, a: METRIC_PROCESS_RSS, words });
        }
        let (tell, told) = sync_channel(1);
        self.orders.send(Order::Barrier(tell));
        loop {
            match told.recv_timeout(deadline.saturating_duration_since(Instant::now()).max(BUSY)) {
                Ok(bytes) => return Ok(bytes),
                // A new file that has not all of the one before is a matter of that one's size.
                Err(RecvTimeoutError::Timeout) if self.rotated.is_carrying() && Instant::now() < deadline + CARRY_PATIENCE => {}
                Err(_) => return Err(late()),
            }
        }
    }
}

/// What became of a recording.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Allocations in the capture; `None` if it could not be read back.
    pub allocations: Option<u64>,
    /// Events that could not be written.
    pub lost_on_disk: u64,
    /// The last one, where it could not be given the name that was asked for.
    pub path: Option<PathBuf>,
    /// The captures before the last one, if there were several and they were not deleted.
    pub complete: Vec<PathBuf>,
    /// Why it is not known which blocks the program reached when it ended, if that was to be found.
    pub not_reached: Option<String>,
}

/// The symbols of everything in the capture written so far, and what else was seen on the way.
pub(super) fn symbol_bytes(path: &Path, pid: u32, files: Option<Files>) -> anyhow::Result<(Vec<u8>, Seen)> {
    let mut capture = Capture::open(path)?;
    let mut seen = Seen::default();
    capture.visit(&mut seen);
    let modules = capture.modules();
    let mut table = SymbolTable::new(modules);
    let here = || Files { perf_map: Some(PathBuf::from(format!("/tmp/perf-{pid}.map"))), ..Files::of_command(&capture.session().command) };
    let files = files.unwrap_or_else(here);
    symbolise(&mut table, capture.stacks(), modules, &files, |_, _| {});
    Ok((table.to_bytes(), seen))
}

/// Reads a capture for its stacks.
#[derive(Default)]
pub(super) struct Seen {
    /// Page faults count, too: something was recorded.
    allocations: u64,
    /// Whether the last thing the program did was to replace itself.
    last_is_exec: bool,
}

impl Visitor for Seen {
    fn alloc(&mut self, _: u64, _: StreamId, _: &Alloc) {
        self.allocations += 1;
        self.last_is_exec = false;
    }
    fn free(&mut self, _: u64, _: StreamId, _: &Free) {
        self.last_is_exec = false;
    }
    fn other(&mut self, event: &Stamped) {
        match event.event {
            Event::Other { tag: tag::PROCESS, a: PROCESS_EXEC, .. } => self.last_is_exec = true,
            Event::Fault(_) => self.allocations += 1,
            Event::Culled(ref of) => self.allocations += of.blocks,
            _ => {}
        }
    }
}

struct Watcher {
    drain: Drain,
    ring: Arc<Ring>,
    orders: Orders,
    /// Buffers that were used, for the first ring.
    spare: Option<Receiver<Vec<u8>>>,
    rounds: Arc<AtomicU64>,
    beat: Repeated,
    leave: Arc<AtomicU32>,
    threads: Threads,
    clock: Clock,
    /// As [`Recording::read_of_others`].
    others: Arc<AtomicU64>,
}

impl Watcher {
    fn run(self) {
        let Watcher { mut drain, ring, orders, spare, rounds, beat, leave: told, mut threads, clock, others } = self;
        let mut sleep = BUSY;
        let (mut reaped, mut read) = (Instant::now(), Instant::now());
        let mut names = surroundings::Names::default();
        let places = loop {
            // Before the round: what was written before the target ended is in the ring then.
            let leave = told.load(Ordering::Acquire);
            let began = clock::ticks(clock);
            let bytes = drain.round(&ring, |parcel| orders.send(Order::Parcel(parcel)));
            if read.elapsed() >= SAY_READ_EVERY {
                read = Instant::now();
                // Acquire: what others have handed on until then was sent before this is.
                orders.send(Order::Read(began.min(others.load(Ordering::Acquire))));
            }
            // Release: the round's parcels are on their way. Pairs with a flusher's acquire.
            rounds.fetch_add(1, Ordering::Release);
            match leave {
                STAY => {}
                LEFT => break Places::Keep,
                _ => break Places::Free,
            }
            spare.iter().flat_map(Receiver::try_iter).for_each(|buffer| drain.recycle(buffer));
            let is_time = reaped.elapsed() >= REAP_EVERY;
            if is_time || drain.is_pressed(&ring) {
                threads.refresh(drain.streams().map(|(_, tid)| tid));
                drain.reap(&ring, |tid| threads.is_alive(tid), |parcel| orders.send(Order::Parcel(parcel)));
            }
            if is_time {
                reaped = Instant::now();
                names.look(&threads, drain.streams(), |stream, name| orders.send(Order::Name(stream, name)));
            }
            if bytes < FLOOD_BYTES {
                std::thread::sleep(sleep);
            }
            sleep = if bytes > 0 { BUSY } else { (sleep * 2).min(IDLE) };
        };
        drain.finish(&ring, places, |parcel: Parcel| orders.send(Order::Parcel(parcel)));
        for (reason, count) in lost_without_stream(&ring) {
            orders.send(Order::Note { ticks: clock::ticks(clock), tag: tag::LOST, a: reason, words: vec![count] });
        }
        beat.stop(); // nobody waits any more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hound_common::ring::{CLOCK_MONOTONIC, SEGMENT_FREE, SEGMENT_SEALED};

    #[test]
    fn a_ring_used_before_is_taken_over_when_draining_has_begun_and_not_some_time_later() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, pid) = (dir.path().join("x.hound"), std::process::id());
        let session = SessionInfo { pid, clock: Clock::Monotonic, start: clock::calibrate(Clock::Monotonic), ..SessionInfo::default() };
        let writer = CaptureWriter::create(&path, &session).expect("room for it");
        let mut recording =
            Recording::start(Start { writer, session, path, pid, count_live: false, maps: false, cull: None, rotate: None })
                .expect("threads");
        for _ in 0..50 {
            let ring = Arc::new(Ring::create().expect("shared memory"));
            ring.control().initialise(0, 0, CLOCK_MONOTONIC, 0);
            // Of a stream that nobody has: left by an earlier recording.
            let left = &ring.segments()[0];
            left.committed.store(64, Ordering::Relaxed);
            left.state.store(SEGMENT_SEALED, Ordering::Release);
            ring.control().segments_high.store(1, Ordering::Relaxed);
            recording.drain(Arc::clone(&ring), true).expect("a thread");
            assert_eq!(left.state.load(Ordering::Acquire), SEGMENT_FREE);
            recording.undrain().expect("it is drained");
        }
        recording.finish(End { reason: END_DETACH, ..End::default() }).expect("room for it");
    }
}
