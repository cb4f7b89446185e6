//! Opens a capture: checks that it is one, finds its chunks, and gathers what is known without decoding allocations and frees.

use super::clock::TickClock;
use super::decode;
use super::error::{Anomalies, Anomaly, CaptureError};
use super::format::{ChunkKind, FILE_HEADER_BYTES, FILE_MAGIC, FORMAT_VERSION, u32_at, u64_at};
use super::index::{self, Placed, Source};
use super::merge;
use super::model::{Alloc, Event, Free, Module, ProcessEvent, ProcessId, StackId, StackTree, Stamped, StreamId, ThreadEvent};
use super::session::{Calibration, Clock, End, Loss, ModuleSpan, ProcessInfo, Reach, SessionInfo, StreamInfo, UnwindCounters};
use hound_common::event::{END_THREAD, STRIPPED_BEFORE, tag};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Takes the events of a capture in time order. Times are nanoseconds since the capture began.
///
/// Allocations and frees come as plain arguments: building [`Stamped`] for each would cost as much as decoding it.
pub trait Visitor {
    /// A block came to be.
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc);
    /// A block was released.
    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free);
    /// Anything else (never [`Event::Alloc`] or [`Event::Free`]).
    fn other(&mut self, event: &Stamped);
    /// The same, with the record that it was.
    fn record(&mut self, event: &Stamped, raw: Raw<'_>) {
        let _ = raw;
        self.other(event);
    }
    /// Stacks with ids below `stacks.len()` are known from here on. Called before the first event that uses a new one; a visitor that
    /// needs stacks while it goes copies what is new, others wait for [`Capture::stacks`].
    fn stacks(&mut self, stacks: &StackTree) {
        let _ = stacks;
    }
    /// Asked now and then: false ends the visit early.
    fn wants_more(&self) -> bool {
        true
    }
}

/// How many events of each sort the chunks' headers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EventCounts {
    /// Allocations and frees.
    pub heap: u64,
    /// All others.
    pub other: u64,
}

/// An open capture.
#[derive(Debug)]
pub struct Capture {
    pub(super) source: Source,
    pub(super) sections: Vec<Placed>,
    pub(super) clock: TickClock,
    pub(super) tree: StackTree,
    session: SessionInfo,
    counts: EventCounts,
    streams: Vec<StreamInfo>,
    processes: Vec<ProcessInfo>,
    modules: Vec<ModuleSpan>,
    losses: Vec<Loss>,
    sampling: Vec<Stamped>,
    unwinding: UnwindCounters,
    symbols: Vec<Placed>,
    reach: Vec<Placed>,
    pairs: Vec<Calibration>,
    end: Option<End>,
    stripped: Option<Stripped>,
    anomalies: Anomalies,
    growing: bool,
}

/// Blocks that were left out of a capture (`hound strip`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Stripped {
    /// How many.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// They lived shorter than this, in nanoseconds; 0 if all of them were released before the capture was begun.
    pub threshold_ns: u64,
    /// Some of them were: it goes on from where another one ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub before: bool,
    /// Left out while it was recorded: allocations and releases that came when their time was over. They were kept, and may lack their other half.
    #[serde(skip_serializing_if = "is_zero")]
    pub late: u64,
    /// How often more waited than may, and was all kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub overflows: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A record as it stands in the file. Words of stacks ([`Event::Fault`]'s fourth) are left out.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Its tag.
    pub tag: u8,
    /// Its header's `a` and `b`.
    pub ab: (u8, u8),
    /// The words after its header.
    pub words: &'a [u64],
}

impl Capture {
    /// Opens a file and reads everything but allocations and frees. What is damaged is left out and listed in [`Self::anomalies`].
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let io = |source| CaptureError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(CaptureError::Foreign { path: path.to_owned(), looks_like: "it is not a regular file" });
        }
        Self::from_source(path.to_owned(), Source::File(file, meta.len()))
    }

    /// Opens the first `bytes` of a file that is still being recorded: that it has no end yet is then nothing to remark on.
    pub fn open_growing(path: &Path, bytes: u64) -> Result<Self, CaptureError> {
        let io = |source| CaptureError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len().min(bytes);
        let mut capture = Self::from_source(path.to_owned(), Source::File(file, length))?;
        capture.anomalies.0.retain(|anomaly| *anomaly != Anomaly::NoEnd);
        capture.growing = true;
        Ok(capture)
    }

    /// Whether it is still being recorded.
    pub fn is_growing(&self) -> bool {
        self.growing
    }

    /// Opens a capture that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, CaptureError> {
        Self::from_source(PathBuf::from("(memory)"), Source::Memory(bytes))
    }

    fn from_source(path: PathBuf, source: Source) -> Result<Self, CaptureError> {
        let io = |source| CaptureError::Io { path: path.clone(), source };
        check_file_header(&path, &source.read(0, FILE_HEADER_BYTES).map_err(io)?)?;
        let mut anomalies = Anomalies::default();
        let chunks = index::chunks(&source, &mut anomalies).map_err(io)?;
        let mut gathered = Gathered::default();
        for chunk in chunks {
            gathered.take(&source, chunk, &mut anomalies);
        }
        let Some(session) = gathered.session else { return Err(CaptureError::NoSession { path }) };
        match &gathered.end {
            None => anomalies.push(Anomaly::NoEnd),
            Some(end) if end.lost_on_disk > 0 => anomalies.push(Anomaly::LostOnDisk { count: end.lost_on_disk }),
            Some(_) => {}
        }
        let clock = TickClock::new(&session, &gathered.pairs);
        let mut capture = Capture {
            counts: EventCounts {
                heap: gathered.sections.iter().map(|s| u64::from(s.header.events)).sum(),
                other: gathered.sections.iter().map(|s| u64::from(s.header.rare_events)).sum(),
            },
            streams: streams(&gathered.sections, &clock),
            source,
            sections: gathered.sections,
            clock,
            tree: StackTree::default(),
            processes: vec![first_process(&session)],
            session,
            modules: Vec::new(),
            losses: Vec::new(),
            sampling: Vec::new(),
            unwinding: UnwindCounters::default(),
            symbols: gathered.symbols,
            reach: gathered.reach,
            pairs: gathered.pairs,
            end: gathered.end,
            stripped: None,
            anomalies,
            growing: false,
        };
        capture.gather_rare();
        Ok(capture)
    }

    /// The events that are neither allocations and frees nor page faults, in time order, each with its process; without their stacks. What is
    /// damaged is left out: [`Self::visit`] tells of it.
    pub fn rare(&self) -> Vec<(ProcessId, Stamped)> {
        let mut records = Vec::new();
        for section in self.sections.iter().filter(|section| section.header.rare_events > 0) {
            let Some(rare) = decode::read_rare(&self.source, section) else { continue };
            // Faults may be many; they say nothing of the recording as a whole.
            for record in rare.into_iter().filter(|record| record.header.tag != tag::FAULT) {
                let time_ns = self.clock.ns(record.time << section.header.time_shift);
                let (stream, process) = (StreamId(section.header.stream), ProcessId(section.header.process));
                records.push((process, Stamped { time_ns, stream, event: record.event(StackId(0), &self.clock) }));
            }
        }
        records.sort_by_key(|(_, event)| event.time_ns); // stable: the file's order among equals
        records
    }

    /// Goes through the events that are no allocations and frees.
    fn gather_rare(&mut self) {
        let mut totals: BTreeMap<StreamId, UnwindCounters> = BTreeMap::new();
        for (process, Stamped { time_ns, stream, event }) in self.rare() {
            match event {
                Event::Module(module) => {
                    // Met once more: by another thread, or after a change of the mode, when other eyes see where it ends and how it is called.
                    let is_it =
                        |known: &Module| (known.start, known.bias, &known.build_id) == (module.start, module.bias, &module.build_id);
                    let is_known = |span: &ModuleSpan| {
                        span.to_ns == u64::MAX && span.process == process && !module.build_id.is_empty() && is_it(&span.module)
                    };
                    if !self.modules.iter().any(is_known) {
                        self.modules.push(ModuleSpan { process, module, from_ns: time_ns, to_ns: u64::MAX });
                    }
                }
                Event::ModuleGone { start, end } => {
                    let pages = |end: u64| end.wrapping_add(4095) & !4095;
                    let is_it = |m: &Module| m.start == start && pages(m.end) == pages(end);
                    let gone = |m: &&mut ModuleSpan| m.to_ns == u64::MAX && m.process == process && is_it(&m.module);
                    if let Some(span) = self.modules.iter_mut().rev().find(gone) {
                        span.to_ns = time_ns;
                    }
                }
                Event::Lost { count, reason } => self.losses.push(Loss { time_ns, stream, count, reason }),
                Event::Unwinding(counters) => {
                    totals.insert(stream, counters);
                }
                Event::Thread(thread) => self.note_thread(stream, thread),
                Event::Process(began) => self.note_process(process, time_ns, began),
                Event::End { reason, value } if reason != END_THREAD => {
                    if let Some(info) = self.processes.iter_mut().find(|info| info.id == process && info.to_ns == u64::MAX) {
                        (info.to_ns, info.end, info.value) = (time_ns, reason, value);
                    }
                }
                Event::Stripped { blocks, bytes, threshold_ns, .. } => {
                    let all = self.stripped.get_or_insert_default();
                    (all.blocks, all.bytes) = (all.blocks.saturating_add(blocks), all.bytes.saturating_add(bytes));
                    all.threshold_ns = all.threshold_ns.max(threshold_ns);
                    all.before |= threshold_ns == STRIPPED_BEFORE;
                }
                Event::Culled(of) => {
                    let all = self.stripped.get_or_insert_default();
                    (all.late, all.overflows) = (all.late + of.late, all.overflows + of.overflows);
                    all.threshold_ns = all.threshold_ns.max(of.threshold_ns);
                }
                Event::Mode { .. } | Event::Rate(_) | Event::Window { .. } => self.sampling.push(Stamped { time_ns, stream, event }),
                _ => {}
            }
        }
        for counters in totals.values() {
            self.unwinding.add(counters);
        }
        self.name_the_nameless();
    }

    fn note_process(&mut self, id: ProcessId, from_ns: u64, event: ProcessEvent) {
        let ProcessEvent { began, pid, parent, from, command } = event;
        let info = ProcessInfo { id, pid, parent, began, from, command, from_ns, to_ns: u64::MAX, end: 0, value: 0 };
        match self.processes.iter_mut().find(|known| known.id == id) {
            Some(known) => *known = info,
            None => self.processes.push(info),
        }
    }

    /// Streams may be of processes whose beginning is missing: those are known by their number only.
    fn name_the_nameless(&mut self) {
        let nameless = |stream: &StreamInfo| ProcessInfo { id: stream.process, from_ns: stream.from_ns, ..nobody() };
        for stream in &self.streams {
            if !self.processes.iter().any(|known| known.id == stream.process) {
                self.processes.push(nameless(stream));
            }
        }
        self.processes.sort_by_key(|info| info.id);
    }

    fn note_thread(&mut self, stream: StreamId, thread: ThreadEvent) {
        let Ok(at) = self.streams.binary_search_by_key(&stream, |info| info.id) else { return };
        match thread {
            ThreadEvent::Start { tid } => self.streams[at].tid = tid,
            ThreadEvent::Name(name) => {
                if self.streams[at].names.last() != Some(&name) {
                    self.streams[at].names.push(name);
                }
            }
            ThreadEvent::Exit => {}
        }
    }

    /// What was recorded, when and how.
    pub fn session(&self) -> &SessionInfo {
        &self.session
    }

    /// Modules and how long they were mapped, in the order in which they appeared.
    pub fn modules(&self) -> &[ModuleSpan] {
        &self.modules
    }

    /// All processes, by their number. There is always the first.
    pub fn processes(&self) -> &[ProcessInfo] {
        &self.processes
    }

    /// All streams, by id.
    pub fn streams(&self) -> &[StreamInfo] {
        &self.streams
    }

    /// Events known to be missing, in time order. What the damage of the file itself costs is in [`Self::anomalies`].
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// What says how the capture was sampled: its `MODE`, `RATE` and `WINDOW` events in time order.
    pub fn sampling(&self) -> &[Stamped] {
        &self.sampling
    }

    /// How frames were found, summed over all streams.
    pub fn unwinding(&self) -> UnwindCounters {
        self.unwinding
    }

    /// How the recording ended; `None` if the capture was cut.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// What was left out of it, if it was stripped.
    pub fn stripped(&self) -> Option<&Stripped> {
        self.stripped.as_ref()
    }

    /// How many low bits were dropped from stamps, where the fewest were.
    pub(crate) fn time_shift(&self) -> u8 {
        self.sections.iter().map(|section| section.header.time_shift).min().unwrap_or(0)
    }

    /// The calibration pairs that times were found with.
    pub(crate) fn calibration(&self) -> &[Calibration] {
        &self.pairs
    }

    /// From here on a visitor is given ticks as they are in the file, in the place of nanoseconds.
    pub(crate) fn in_ticks(&mut self) {
        self.clock = TickClock::new(&SessionInfo { clock: Clock::Monotonic, ..SessionInfo::default() }, &[]);
    }

    /// Event counts according to the chunks' headers.
    pub fn counts(&self) -> EventCounts {
        self.counts
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.source.length()
    }

    /// What is wrong with the file, as far as opening it shows. [`Self::visit`] finds what is wrong inside the chunks.
    pub fn anomalies(&self) -> &Anomalies {
        &self.anomalies
    }

    /// The call paths met so far: complete after [`Self::visit`].
    pub fn stacks(&self) -> &StackTree {
        &self.tree
    }

    /// Sets the call paths, where they are known without a visit.
    pub(crate) fn set_stacks(&mut self, stacks: StackTree) {
        self.tree = stacks;
    }

    /// Whether symbols were stored.
    pub fn has_symbols(&self) -> bool {
        !self.symbols.is_empty()
    }

    /// The symbols stored at the capture's end. `None` if there are none or they are damaged.
    pub fn symbols(&self) -> Option<Vec<u8>> {
        self.parts(&self.symbols)
    }

    /// Whether it was looked at the program's end which blocks it reached.
    pub fn has_reach(&self) -> bool {
        !self.reach.is_empty()
    }

    /// Which blocks the program reached when it ended. `None` if nobody has looked, or it is damaged.
    pub fn reach(&self) -> Option<Reach> {
        serde_json::from_slice(&self.parts(&self.reach)?).ok()
    }

    fn parts(&self, parts: &[Placed]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend(decode::read_plain(&self.source, part)?);
        }
        (!parts.is_empty()).then_some(bytes)
    }

    /// Shows every event to the visitor in time order (ties: in the file's order) and gives everything that is wrong with the capture.
    ///
    /// Memory is in proportion to the streams active at one time, not to the capture's length.
    pub fn visit(&mut self, visitor: &mut impl Visitor) -> Anomalies {
        let mut anomalies = self.anomalies.clone();
        merge::visit(self, visitor, &mut anomalies);
        anomalies
    }
}

fn check_file_header(path: &Path, bytes: &[u8]) -> Result<(), CaptureError> {
    let foreign = |looks_like| CaptureError::Foreign { path: path.to_owned(), looks_like };
    if bytes.is_empty() {
        return Err(foreign("it is empty"));
    }
    if !bytes.starts_with(&FILE_MAGIC) {
        let known: [(&[u8], &'static str); 4] = [
            (&[0x1F, 0x8B], "it looks like gzip data"),
            (&[0x28, 0xB5, 0x2F, 0xFD], "it looks like zstd data"),
            (b"\x7FELF", "it looks like a program"),
            (b"{", "it looks like JSON"),
        ];
        let found = known.iter().find(|(magic, _)| bytes.starts_with(magic));
        return Err(foreign(found.map_or("it does not begin with HOUNDCAP", |(_, looks_like)| looks_like)));
    }
    match u32_at(bytes, 8) {
        Some(version) if version <= FORMAT_VERSION => Ok(()),
        Some(version) => Err(CaptureError::Newer { path: path.to_owned(), version }),
        None => Err(CaptureError::NoSession { path: path.to_owned() }),
    }
}

fn nobody() -> ProcessInfo {
    ProcessInfo {
        id: ProcessId::FIRST,
        pid: 0,
        parent: 0,
        began: 0,
        from: None,
        command: Vec::new(),
        from_ns: 0,
        to_ns: u64::MAX,
        end: 0,
        value: 0,
    }
}

fn first_process(session: &SessionInfo) -> ProcessInfo {
    ProcessInfo { pid: session.pid, command: session.command.clone(), ..nobody() }
}

fn streams(sections: &[Placed], clock: &TickClock) -> Vec<StreamInfo> {
    let mut streams: BTreeMap<u32, StreamInfo> = BTreeMap::new();
    for Placed { header, .. } in sections {
        let (from_ns, to_ns) = (clock.ns(header.first), clock.ns(header.last));
        let info = streams.entry(header.stream).or_insert_with(|| StreamInfo {
            id: StreamId(header.stream),
            tid: header.tid,
            process: ProcessId(header.process),
            level: header.level,
            names: Vec::new(),
            from_ns,
            to_ns,
            events: 0,
        });
        if header.tid != 0 {
            info.tid = header.tid;
        }
        info.from_ns = info.from_ns.min(from_ns);
        info.to_ns = info.to_ns.max(to_ns);
        info.events += u64::from(header.events) + u64::from(header.rare_events);
    }
    streams.into_values().collect()
}

/// What the chunks hold, sorted by kind.
#[derive(Default)]
struct Gathered {
    session: Option<SessionInfo>,
    pairs: Vec<Calibration>,
    sections: Vec<Placed>,
    symbols: Vec<Placed>,
    reach: Vec<Placed>,
    end: Option<End>,
}

impl Gathered {
    fn take(&mut self, source: &Source, chunk: Placed, anomalies: &mut Anomalies) {
        let Placed { at, header } = chunk;
        let plain = |anomalies: &mut Anomalies| {
            let bytes = decode::read_plain(source, &chunk);
            if bytes.is_none() {
                anomalies.push(Anomaly::Damaged { at, events: 0, what: "checksum".into() });
            }
            bytes.unwrap_or_default()
        };
        match ChunkKind::from_u16(header.kind) {
            Some(ChunkKind::Events) => self.sections.push(chunk),
            Some(ChunkKind::Symbols) => self.symbols.push(chunk),
            Some(ChunkKind::Reach) => self.reach.push(chunk),
            Some(ChunkKind::Session) => self.session = serde_json::from_slice(&plain(anomalies)).ok().or(self.session.take()),
            Some(ChunkKind::End) => self.end = serde_json::from_slice(&plain(anomalies)).ok().or(self.end.take()),
            Some(ChunkKind::Calibration) => {
                let bytes = plain(anomalies);
                let word = |pair: &[u8], i: usize| u64_at(pair, i * 8).unwrap_or(0);
                let pairs = bytes.chunks_exact(24).map(|pair| Calibration {
                    ticks: word(pair, 0),
                    monotonic_ns: word(pair, 1),
                    realtime_ns: word(pair, 2),
                });
                self.pairs.extend(pairs);
            }
            None => anomalies.push(Anomaly::UnknownChunk { at, kind: header.kind }),
        }
    }
}
