//! From parcels to chunks in the file: `encode` and `store`, each on a thread of its own.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hound_common::event::{METRIC_UNWINDING, THREAD_EXIT, THREAD_NAME, THREAD_START, tag};

use super::cull;
use super::drain::Parcel;
use super::live::LiveFeed;
use super::rotate::{self, Cutter, Rotate, Series};
use crate::capture::model::{ProcessId, StreamId};
use crate::capture::{Calibration, CaptureWriter, Compressor, Cull, ModulePaths, Section, SessionInfo, StreamEncoder, StreamMeta};

/// Parcels under way between drain and encode: at most 32 KiB each, so a backlog stays under 128 MiB; beyond it the target waits.
const PARCELS: usize = 4096;
/// Sections under way between encode and store.
const SECTIONS: usize = 32;

/// What the encoder is told.
#[derive(Debug)]
pub enum Order {
    /// From the ring.
    Parcel(Parcel),
    /// A stream's thread has this name.
    Name(StreamId, String),
    /// Seen from outside at this time; goes into hound's own stream.
    Note {
        /// Time.
        ticks: u64,
        /// Record tag.
        tag: u8,
        /// The header's `a`.
        a: u8,
        /// The record's words behind the header.
        words: Vec<u64>,
    },
    /// The same, into this stream: seen of one process of several.
    NoteIn {
        /// Where.
        stream: StreamId,
        /// Time.
        ticks: u64,
        /// Record tag.
        tag: u8,
        /// The header's `a`.
        a: u8,
        /// The record's words behind the header.
        words: Vec<u64>,
    },
    /// Whose stream it is, unless it is the first process'. Before anything else of the stream.
    Whose(StreamId, ProcessId),
    /// What modules are called, for the streams that begin after this.
    Paths(ProcessId, ModulePaths),
    /// All that was recorded until then has been sent.
    Read(u64),
    /// Give everything encoded so far to the file.
    Flush,
    /// The same, and tell how long the file is when all that came before is in it.
    Barrier(SyncSender<u64>),
    /// Nothing follows that counts, whoever still holds an end of the pipeline.
    End,
}

/// What is to be stored.
pub(super) enum Job {
    Section(Box<Section>),
    /// One that is later than the cut between two files ([`super::rotate`]).
    Later(Box<Section>),
    /// All before the cut was sent.
    Turn,
    /// The new file has what it is to have of the one before.
    Carried,
    Calibration(Calibration),
    Session(Box<SessionInfo>),
    Barrier(SyncSender<u64>),
    End,
}

/// Figures for the status line, updated as things go.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events stored.
    pub events: AtomicU64,
    /// Bytes in the file.
    pub bytes: AtomicU64,
    /// Events lost because the disk was full.
    pub lost_on_disk: AtomicU64,
}

/// hound's own stream in a capture.
pub const OWN_STREAM: StreamId = StreamId(0);

/// The end of the pipeline that orders go in at.
#[derive(Clone, Debug)]
pub struct Orders {
    orders: SyncSender<Order>,
    others: SyncSender<Job>,
}

impl Orders {
    /// Hands an order on; waits while the backlog is full.
    pub fn send(&self, order: Order) {
        // The encoder only goes away by panicking, which `finish` reports.
        let _ = self.orders.send(order);
    }

    /// Stores the session record anew: it replaces the one before.
    pub fn session(&self, session: SessionInfo) {
        let _ = self.others.send(Job::Session(Box::new(session)));
    }

    /// Stores a calibration pair.
    pub fn calibrate(&self, pair: Calibration) {
        let _ = self.others.send(Job::Calibration(pair));
    }
}

/// The running pipeline.
#[derive(Debug)]
pub struct Pipeline {
    orders: Orders,
    spare: Option<Receiver<Vec<u8>>>,
    culling: Option<JoinHandle<()>>,
    encode: JoinHandle<()>,
    store: JoinHandle<io::Result<CaptureWriter>>,
    /// Live figures.
    pub progress: Arc<Progress>,
    /// What is known of files that are complete, where there are several.
    pub rotated: rotate::Shared,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Job::Section(_) => "Section",
            Job::Later(_) => "Later",
            Job::Turn => "Turn",
            Job::Carried => "Carried",
            Job::Calibration(_) => "Calibration",
            Job::Session(_) => "Session",
            Job::Barrier(_) => "Barrier",
            Job::End => "End",
        })
    }
}

impl Pipeline {
    /// Starts both threads.
    ///
    /// `cull`: what lives shorter than that is left out. `series`: the capture is written at this path, and goes on in others.
    pub fn start(
        writer: CaptureWriter,
        session: &SessionInfo,
        live: Option<LiveFeed>,
        cull: Option<Cull>,
        series: Option<(&Path, Rotate)>,
    ) -> io::Result<Self> {
        let (orders, mut inbox) = sync_channel(PARCELS);
        let (jobs, job_inbox) = sync_channel(SECTIONS);
        // Buffers that nobody takes back are dropped.
        let (spare_out, spare) = sync_channel(PARCELS);
        let progress = Arc::new(Progress::default());
        let mut culling = None;
        if let Some(cull) = cull {
            let (out, thread) = cull::start(cull, session, inbox, spare_out.clone())?;
            (inbox, culling) = (out, Some(thread));
        }
        let rotated = rotate::Shared::default();
        let delay = Duration::from_nanos(cull.map_or(0, |cull| cull.threshold_ns));
        let cutter = series.map(|(_, rotate)| Cutter::new(rotate, Arc::clone(&progress), rotated.clone(), session, delay));
        let series = series.map(|(path, rotate)| Series::new(path, rotate, session.clone(), rotated.clone(), jobs.clone()));
        let encoder = Encoder {
            session: session.clone(),
            live,
            paths: HashMap::new(),
            streams: HashMap::new(),
            whose: HashMap::new(),
            finished: Vec::new(),
            later: Vec::new(),
            cutter,
            jobs: jobs.clone(),
            spare: spare_out,
        };
        let encode = std::thread::Builder::new().name("hound-encode".into()).spawn(move || encoder.run(&inbox))?;
        let shown = Arc::clone(&progress);
        let store = std::thread::Builder::new().name("hound-store".into()).spawn(move || {
            let store = Store { writer, series, progress: shown, waiting: Vec::new(), carrying: false, lost: 0 };
            store.run(&job_inbox)
        })?;
        Ok(Pipeline { orders: Orders { orders, others: jobs }, spare: Some(spare), culling, encode, store, progress, rotated })
    }

    /// Another end for orders. What is sent after `finish` was called is not stored.
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Where buffers come back that are no longer used, for the first who asks.
    pub fn take_spare(&mut self) -> Option<Receiver<Vec<u8>>> {
        self.spare.take()
    }

    /// Encodes and stores what is left, and gives the writer back.
    pub fn finish(self) -> io::Result<CaptureWriter> {
        self.orders.send(Order::End);
        if let Some(culling) = self.culling {
            culling.join().map_err(|_| io::Error::other("the culling thread panicked"))?;
        }
        self.encode.join().map_err(|_| io::Error::other("the encoding thread panicked"))?;
        self.store.join().map_err(|_| io::Error::other("the storing thread panicked"))?
    }
}

/// Bytes as words, the last padded with zeros.
pub fn packed(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    })
}

struct Encoder {
    session: SessionInfo,
    live: Option<LiveFeed>,
    paths: HashMap<u32, Arc<ModulePaths>>,
    streams: HashMap<u32, StreamEncoder>,
    /// Whose streams are, of other processes than the first.
    whose: HashMap<u32, ProcessId>,
    finished: Vec<Section>,
    /// Those that are later than a cut that is being made.
    later: Vec<Section>,
    cutter: Option<Cutter>,
    jobs: SyncSender<Job>,
    spare: SyncSender<Vec<u8>>,
}

impl Encoder {
    fn run(mut self, inbox: &Receiver<Order>) {
        for order in inbox {
            match order {
                Order::Parcel(Parcel::Bytes { stream, bytes }) => {
                    if let Some(live) = &mut self.live {
                        live.take(stream, &bytes);
                    }
                    self.push(stream, &bytes);
                    let _ = self.spare.try_send(bytes);
                }
                Order::Parcel(Parcel::Start { stream, tid, level }) => {
                    self.note(stream, tid, level, None, tag::THREAD, THREAD_START, &[u64::from(tid), 0]);
                }
                Order::Parcel(Parcel::End { stream, counters, lost }) => {
                    self.note(stream, 0, 0, None, tag::METRIC, METRIC_UNWINDING, &counters);
                    for (reason, count) in lost {
                        self.note(stream, 0, 0, None, tag::LOST, reason, &[count]);
                    }
                    self.note(stream, 0, 0, None, tag::THREAD, THREAD_EXIT, &[0, 0]);
                    self.whose.remove(&stream.0);
                    if let Some(mut encoder) = self.streams.remove(&stream.0) {
                        let section = encoder.flush();
                        self.out_of(stream.0).extend(section);
                    }
                }
                Order::Name(stream, name) => {
                    let mut words = vec![0, name.len() as u64];
                    words.extend(packed(name.as_bytes()));
                    self.note(stream, 0, 0, None, tag::THREAD, THREAD_NAME, &words);
                }
                Order::Note { ticks, tag, a, words } => {
                    self.note(OWN_STREAM, 0, 0, Some(ticks), tag, a, &words);
                    self.rotate(None);
                }
                Order::NoteIn { stream, ticks, tag, a, words } => {
                    self.note(stream, 0, 0, Some(ticks), tag, a, &words);
                    self.rotate(None);
                }
                Order::Whose(stream, process) => {
                    self.whose.insert(stream.0, process);
                }
                Order::Read(ticks) => self.rotate(Some(ticks)),
                Order::Paths(process, paths) => drop(self.paths.insert(process.0, Arc::new(paths))),
                Order::Flush => self.flush(),
                Order::Barrier(tell) => {
                    // Who asks wants all of it in one file.
                    self.turn();
                    self.flush();
                    if !self.store() || self.jobs.send(Job::Barrier(tell)).is_err() {
                        return;
                    }
                }
                Order::End => break,
            }
            if !self.store() {
                return;
            }
        }
        self.turn();
        self.flush();
        self.store();
        let _ = self.jobs.send(Job::End); // it has gone only by a failure, which `finish` reports
    }

    fn stream(&mut self, id: StreamId, tid: u32, level: u32) -> (&mut StreamEncoder, &mut Vec<Section>) {
        let session = &self.session;
        let process = self.whose.get(&id.0).copied().unwrap_or_default();
        let paths = || self.paths.get(&process.0).map(Arc::clone).unwrap_or_default();
        let new = || StreamEncoder::new(StreamMeta { process, ..StreamMeta::new(id, tid, level, session) }).with_paths(paths());
        let is_later = self.cutter.as_ref().is_some_and(|cutter| cutter.has_passed(id.0));
        (self.streams.entry(id.0).or_insert_with(new), if is_later { &mut self.later } else { &mut self.finished })
    }

    /// Where a stream's sections go.
    fn out_of(&mut self, stream: u32) -> &mut Vec<Section> {
        let is_later = self.cutter.as_ref().is_some_and(|cutter| cutter.has_passed(stream));
        if is_later { &mut self.later } else { &mut self.finished }
    }

    fn push(&mut self, stream: StreamId, mut bytes: &[u8]) {
        if let Some(cut) = self.cutter.as_ref().and_then(|cutter| cutter.of(stream.0)) {
            let (encoder, out) = self.stream(stream, 0, 0);
            let (before, behind) = bytes.split_at(encoder.until(bytes, cut));
            encoder.push(before, out);
            if behind.is_empty() {
                return;
            }
            self.pass(stream);
            bytes = behind;
        }
        let (encoder, out) = self.stream(stream, 0, 0);
        encoder.push(bytes, out);
    }

    /// A stream has come to the cut.
    fn pass(&mut self, stream: StreamId) {
        let (encoder, out) = self.stream(stream, 0, 0);
        out.extend(encoder.flush());
        self.cutter.iter_mut().for_each(|cutter| cutter.pass(stream.0));
    }

    /// Goes over to a new file, if it is time and all is here that belongs into this one.
    fn rotate(&mut self, read: Option<u64>) {
        if self.cutter.as_mut().is_some_and(|cutter| cutter.look(read)) {
            self.turn();
        }
    }

    /// Goes over to a new file if a cut is being made.
    fn turn(&mut self) {
        let Some(cutter) = &mut self.cutter else { return };
        let passed = |stream: u32| cutter.has_passed(stream);
        self.finished.extend(self.streams.iter_mut().filter(|(stream, _)| !passed(**stream)).filter_map(|(_, encoder)| encoder.flush()));
        if cutter.made() {
            self.store();
            let _ = self.jobs.send(Job::Turn); // as in `run`
        }
    }

    fn flush(&mut self) {
        for (stream, encoder) in &mut self.streams {
            let is_later = self.cutter.as_ref().is_some_and(|cutter| cutter.has_passed(*stream));
            if is_later { &mut self.later } else { &mut self.finished }.extend(encoder.flush());
        }
    }

    /// Adds a note to a stream, at the stream's own time unless one is given.
    #[expect(clippy::too_many_arguments, reason = "the parts of a record")]
    fn note(&mut self, id: StreamId, tid: u32, level: u32, ticks: Option<u64>, tag: u8, a: u8, words: &[u64]) {
        let start = self.session.start.ticks;
        let cut = self.cutter.as_ref().and_then(|cutter| cutter.of(id.0));
        if cut.zip(ticks).is_some_and(|(cut, ticks)| ticks > cut) {
            self.pass(id);
        }
        let (encoder, out) = self.stream(id, tid, level);
        let ticks = ticks.unwrap_or(encoder.clock().max(start));
        encoder.note(ticks, tag, a, words, out);
    }

    fn store(&mut self) -> bool {
        self.finished.drain(..).all(|section| self.jobs.send(Job::Section(Box::new(section))).is_ok())
            && self.later.drain(..).all(|section| self.jobs.send(Job::Later(Box::new(section))).is_ok())
    }
}

/// Writes what is encoded.
struct Store {
    writer: CaptureWriter,
    series: Option<Series>,
    progress: Arc<Progress>,
    /// Who asked how long the file is while it had not all of the one before.
    waiting: Vec<SyncSender<u64>>,
    carrying: bool,
    /// Events that earlier files had no room for.
    lost: u64,
}

impl Store {
    fn run(mut self, jobs: &Receiver<Job>) -> io::Result<CaptureWriter> {
        let mut compressor = Compressor::new()?;
        let mut ends = false;
        for job in jobs {
            ends |= matches!(job, Job::End);
            self.hear(job, &mut compressor)?;
            if ends && !self.carrying {
                break;
            }
        }
        if let Some(series) = self.series {
            series.finish();
        }
        Ok(self.writer)
    }

    fn hear(&mut self, job: Job, compressor: &mut Compressor) -> io::Result<()> {
        // A full disk is said once, by the end record and the report: what cannot be written is counted by the writer.
        let _ = match job {
            Job::Section(section) => {
                self.progress.events.fetch_add(section.events(), Ordering::Relaxed);
                self.writer.write(&section.compress(compressor)?)
            }
            Job::Later(section) => {
                self.progress.events.fetch_add(section.events(), Ordering::Relaxed);
                let chunk = section.compress(compressor)?;
                match &mut self.series {
                    Some(series) => series.later(&mut self.writer).write(&chunk),
                    None => self.writer.write(&chunk),
                }
            }
            Job::Calibration(pair) => self.writer.write_calibration(&[pair]),
            Job::Session(session) => {
                if let Some(series) = &mut self.series {
                    series.set_session(&session);
                }
                self.writer.write_session(&session)
            }
            Job::Turn => {
                let lost = self.writer.lost_events();
                let before = self.lost;
                self.carrying = self.series.as_mut().is_some_and(|series| series.turn(&mut self.writer, before));
                if self.carrying {
                    self.lost += lost;
                } else if let Some(series) = &self.series {
                    // Tried again when there is as much more, or as much later.
                    series.carried(self.writer.bytes());
                    series.is_carried();
                }
                Ok(true)
            }
            Job::Carried => {
                self.carrying = false;
                if let Some(series) = &self.series {
                    series.carried(self.writer.bytes());
                    series.is_carried();
                }
                for tell in self.waiting.drain(..) {
                    let _ = tell.try_send(self.writer.bytes()); // who asked may have given up
                }
                Ok(true)
            }
            Job::Barrier(tell) if self.carrying => {
                self.waiting.push(tell);
                Ok(true)
            }
            Job::Barrier(tell) => {
                let _ = tell.try_send(self.writer.bytes()); // as above
                Ok(true)
            }
            Job::End => Ok(true),
        };
        self.progress.bytes.store(self.writer.bytes(), Ordering::Relaxed);
        self.progress.lost_on_disk.store(self.lost + self.writer.lost_events(), Ordering::Relaxed);
        Ok(())
    }
}
