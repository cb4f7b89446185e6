//! From parcels to chunks in the file: `encode` and `store`, each on a thread of its own.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use hound_common::event::{METRIC_UNWINDING, THREAD_EXIT, THREAD_NAME, THREAD_START, tag};

use super::cull;
use super::drain::Parcel;
use super::live::LiveFeed;
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

enum Job {
    Section(Box<Section>),
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
    encode: JoinHandle<()>,
    store: JoinHandle<io::Result<CaptureWriter>>,
    /// Live figures.
    pub progress: Arc<Progress>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Job::Section(_) => "Section",
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
    /// `cull`: what lives shorter than that is left out.
    pub fn start(writer: CaptureWriter, session: &SessionInfo, live: Option<LiveFeed>, cull: Option<Cull>) -> io::Result<Self> {
        let (orders, mut inbox) = sync_channel(PARCELS);
        let (jobs, job_inbox) = sync_channel(SECTIONS);
        // Buffers that nobody takes back are dropped.
        let (spare_out, spare) = sync_channel(PARCELS);
        let progress = Arc::new(Progress::default());
        if let Some(cull) = cull {
            inbox = cull::start(cull, session, inbox, spare_out.clone())?;
        }
        let encoder = Encoder {
            session: session.clone(),
            live,
            paths: HashMap::new(),
            streams: HashMap::new(),
            whose: HashMap::new(),
            finished: Vec::new(),
            jobs: jobs.clone(),
            spare: spare_out,
        };
        let encode = std::thread::Builder::new().name("hound-encode".into()).spawn(move || encoder.run(&inbox))?;
        let shown = Arc::clone(&progress);
        let store = std::thread::Builder::new().name("hound-store".into()).spawn(move || store(writer, &job_inbox, &shown))?;
        Ok(Pipeline { orders: Orders { orders, others: jobs }, spare: Some(spare), encode, store, progress })
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
                    let encoder = self.stream(stream, 0, 0);
                    encoder.0.push(&bytes, encoder.1);
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
                        self.finished.extend(encoder.flush());
                    }
                }
                Order::Name(stream, name) => {
                    let mut words = vec![0, name.len() as u64];
                    words.extend(packed(name.as_bytes()));
                    self.note(stream, 0, 0, None, tag::THREAD, THREAD_NAME, &words);
                }
                Order::Note { ticks, tag, a, words } => self.note(OWN_STREAM, 0, 0, Some(ticks), tag, a, &words),
                Order::NoteIn { stream, ticks, tag, a, words } => self.note(stream, 0, 0, Some(ticks), tag, a, &words),
                Order::Whose(stream, process) => {
                    self.whose.insert(stream.0, process);
                }
                Order::Read(_) => {}
                Order::Paths(process, paths) => drop(self.paths.insert(process.0, Arc::new(paths))),
                Order::Flush => self.finished.extend(self.streams.values_mut().filter_map(StreamEncoder::flush)),
                Order::Barrier(tell) => {
                    self.finished.extend(self.streams.values_mut().filter_map(StreamEncoder::flush));
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
        self.finished.extend(self.streams.values_mut().filter_map(StreamEncoder::flush));
        self.store();
        let _ = self.jobs.send(Job::End); // it has gone only by a failure, which `finish` reports
    }

    fn stream(&mut self, id: StreamId, tid: u32, level: u32) -> (&mut StreamEncoder, &mut Vec<Section>) {
        let session = &self.session;
        let process = self.whose.get(&id.0).copied().unwrap_or_default();
        let paths = || self.paths.get(&process.0).map(Arc::clone).unwrap_or_default();
        let new = || StreamEncoder::new(StreamMeta { process, ..StreamMeta::new(id, tid, level, session) }).with_paths(paths());
        (self.streams.entry(id.0).or_insert_with(new), &mut self.finished)
    }

    /// Adds a note to a stream, at the stream's own time unless one is given.
    #[expect(clippy::too_many_arguments, reason = "the parts of a record")]
    fn note(&mut self, id: StreamId, tid: u32, level: u32, ticks: Option<u64>, tag: u8, a: u8, words: &[u64]) {
        let start = self.session.start.ticks;
        let (encoder, out) = self.stream(id, tid, level);
        let ticks = ticks.unwrap_or(encoder.clock().max(start));
        encoder.note(ticks, tag, a, words, out);
    }

    fn store(&mut self) -> bool {
        self.finished.drain(..).all(|section| self.jobs.send(Job::Section(Box::new(section))).is_ok())
    }
}

fn store(mut writer: CaptureWriter, jobs: &Receiver<Job>, progress: &Progress) -> io::Result<CaptureWriter> {
    let mut compressor = Compressor::new()?;
    for job in jobs {
        // A full disk is said once, by the end record and the report: what cannot be written is counted by the writer.
        let _ = match job {
            Job::Section(section) => {
                progress.events.fetch_add(section.events(), Ordering::Relaxed);
                writer.write(&section.compress(&mut compressor)?)
            }
            Job::Calibration(pair) => writer.write_calibration(&[pair]),
            Job::Session(session) => writer.write_session(&session),
            Job::Barrier(tell) => {
                let _ = tell.try_send(writer.bytes()); // who asked may have given up
                continue;
            }
            Job::End => break,
        };
        progress.bytes.store(writer.bytes(), Ordering::Relaxed);
        progress.lost_on_disk.store(writer.lost_events(), Ordering::Relaxed);
    }
    Ok(writer)
}
