//! One recording: the ring is drained on a thread until the target is gone, and the capture is completed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hound_common::event::{END_EXEC, PROCESS_EXEC, tag};
use hound_common::hook::Kind;

use super::beside::{self, Repeated};
use super::drain::{Drain, Parcel, lost_without_stream};
use super::pipeline::{OWN_STREAM, Order, Pipeline, Progress};
use super::ring::Ring;
use super::{clock, surroundings};
use crate::capture::model::{Alloc, Event, StackId, Stamped, StreamId};
use crate::capture::{Capture, CaptureWriter, Clock, End, SessionInfo, Visitor};
use crate::symbols::{Files, SymbolTable, symbolise};

/// Longest sleep between two looks at an idle ring: a thread that starts at full speed fills the ring in about 6 ms.
const IDLE: Duration = Duration::from_millis(4);
const BUSY: Duration = Duration::from_micros(500);
/// A round that found more than this is followed by the next at once.
const FLOOD_BYTES: usize = 1 << 20;
const REAP_EVERY: Duration = Duration::from_millis(50);

/// A recording under way.
#[derive(Debug)]
pub struct Recording {
    thread: JoinHandle<io::Result<CaptureWriter>>,
    gone: Arc<AtomicBool>,
    /// Live figures.
    pub progress: Arc<Progress>,
    ring: Arc<Ring>,
    session: SessionInfo,
    path: PathBuf,
}

impl Recording {
    /// Starts draining `ring` into the capture at `path`.
    pub fn start(ring: Arc<Ring>, writer: CaptureWriter, session: SessionInfo, path: PathBuf, pid: u32) -> io::Result<Self> {
        let pipeline = Pipeline::start(writer, &session)?;
        let progress = Arc::clone(&pipeline.progress);
        let gone = Arc::new(AtomicBool::new(false));
        let look = beside::look(Arc::clone(&ring), pipeline.orders(), pid, session.clock)?;
        let beat = beside::beat(Arc::clone(&ring))?;
        let watcher = Watcher { ring: Arc::clone(&ring), pipeline, look, beat, gone: Arc::clone(&gone), pid, clock: session.clock };
        let thread = std::thread::Builder::new().name("hound-drain".into()).spawn(move || watcher.run())?;
        Ok(Recording { thread, gone, progress, ring, session, path })
    }

    /// The shared memory.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The target is gone: reads what is left, adds symbols and the end record.
    pub fn finish(self, mut end: End) -> io::Result<()> {
        self.gone.store(true, Ordering::Release); // pairs with the watcher's acquire
        let writer = self.thread.join().map_err(|_| io::Error::other("the draining thread panicked"))??;
        let mut writer = writer;
        // First a pair: it is what the last second's ticks are worth.
        writer.write_calibration(&[clock::calibrate(self.session.clock)])?;
        if let Ok((bytes, execed)) = symbol_bytes(&self.path, self.session.pid) {
            let _ = writer.write_symbols(&bytes);
            if execed {
                end.reason = END_EXEC;
            }
        }
        end.events = self.progress.events.load(Ordering::Relaxed);
        end.drainer_cpu_ns = surroundings::own_cpu_ns();
        let waited = self.ring.control().waited_ticks.load(Ordering::Relaxed);
        end.waited_ns = u64::try_from(u128::from(waited) * 1_000_000_000 / u128::from(self.session.ticks_per_second.max(1))).unwrap_or(0);
        writer.finish(end)?;
        Ok(())
    }
}

/// The symbols of everything in the capture written so far, and whether the recorded program ended by exec.
fn symbol_bytes(path: &Path, pid: u32) -> anyhow::Result<(Vec<u8>, bool)> {
    let mut capture = Capture::open(path)?;
    let mut execed = LastIsExec(false);
    capture.visit(&mut execed);
    let modules = capture.modules();
    let mut table = SymbolTable::new(modules);
    let files = Files { perf_map: Some(PathBuf::from(format!("/tmp/perf-{pid}.map"))), ..Files::of_command(&capture.session().command) };
    symbolise(&mut table, capture.stacks(), modules, &files, |_, _| {});
    Ok((table.to_bytes(), execed.0))
}

/// Reads a capture for its stacks, and for whether the last thing the program did was to replace itself.
struct LastIsExec(bool);

impl Visitor for LastIsExec {
    fn alloc(&mut self, _: u64, _: StreamId, _: &Alloc) {
        self.0 = false;
    }
    fn free(&mut self, _: u64, _: StreamId, _: u64, _: Kind, _: bool, _: Option<StackId>) {
        self.0 = false;
    }
    fn other(&mut self, event: &Stamped) {
        if let Event::Other { tag: tag::PROCESS, a: PROCESS_EXEC, .. } = event.event {
            self.0 = true;
        }
    }
}

struct Watcher {
    ring: Arc<Ring>,
    pipeline: Pipeline,
    look: Repeated,
    beat: Repeated,
    gone: Arc<AtomicBool>,
    pid: u32,
    clock: Clock,
}

impl Watcher {
    fn run(self) -> io::Result<CaptureWriter> {
        let mut drain = Drain::new(&self.ring, OWN_STREAM.0 + 1);
        let mut sleep = BUSY;
        let mut reaped = Instant::now();
        let mut names = surroundings::Names::default();
        loop {
            // Before the round: what was written before the target ended is in the ring then.
            let last = self.gone.load(Ordering::Acquire);
            let bytes = drain.round(&self.ring, |parcel| self.pipeline.send(Order::Parcel(parcel)));
            if last {
                break;
            }
            self.pipeline.spare().for_each(|buffer| drain.recycle(buffer));
            if reaped.elapsed() >= REAP_EVERY {
                reaped = Instant::now();
                let pid = self.pid;
                drain.reap(&self.ring, |tid| surroundings::is_alive(pid, tid), |parcel| self.pipeline.send(Order::Parcel(parcel)));
                names.look(self.pid, drain.streams(), |stream, name| self.pipeline.send(Order::Name(stream, name)));
            }
            if bytes < FLOOD_BYTES {
                std::thread::sleep(sleep);
            }
            sleep = if bytes > 0 { BUSY } else { (sleep * 2).min(IDLE) };
        }
        drain.finish(&self.ring, |parcel: Parcel| self.pipeline.send(Order::Parcel(parcel)));
        for (reason, count) in lost_without_stream(&self.ring) {
            self.note(tag::LOST, reason, vec![count]);
        }
        self.look.stop();
        self.beat.stop(); // nobody waits any more
        self.pipeline.finish()
    }

    fn note(&self, tag: u8, a: u8, words: Vec<u64>) {
        self.pipeline.send(Order::Note { ticks: clock::ticks(self.clock), tag, a, words });
    }
}
