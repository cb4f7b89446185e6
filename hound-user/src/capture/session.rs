//! What a capture says about the recording as a whole: the session record, calibration pairs, the end record, and what the reader sums up.
//!
//! Session and end records are JSON objects inside their chunks: they are few, people look at them with `hound info`, and a field added
//! later neither breaks an old reader (unknown fields are ignored) nor a new one (missing fields take their default).

use super::before::Before;
use super::model::{Module, ProcessId, StreamId};
use serde::{Deserialize, Serialize};

/// Among a session's options: hound has started the program, and it had done nothing before. Of a session of mode "launch" that is known.
pub const STARTED: &str = "started";

/// What the streams' stamps count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Ticks of the time-stamp counter.
    #[default]
    Tsc,
    /// Nanoseconds of CLOCK_MONOTONIC.
    Monotonic,
}

/// One moment seen on three clocks. Two or more pin the tick rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Calibration {
    /// The streams' clock.
    pub ticks: u64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub realtime_ns: u64,
}

/// Written first into a capture: what is known when recording starts.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionInfo {
    /// Version of hound that recorded.
    pub hound_version: String,
    /// The target's command line.
    pub command: Vec<String>,
    /// The target's process id.
    pub pid: u32,
    /// "launch", "full", "sampled", …
    pub mode: String,
    /// Whether streams of more than one process may follow. Then `command`, `pid` and what else is said of the target are the first one's.
    #[serde(skip_serializing_if = "is_false")]
    pub several: bool,
    /// Options as "name" or "name=value"; [`STARTED`] among them.
    pub options: Vec<String>,
    /// Whether stacks of frees were recorded.
    pub free_stacks: bool,
    /// What stamps count.
    pub clock: Clock,
    /// Nominal rate of the stamps, in ticks a second; calibration pairs refine it.
    pub ticks_per_second: u64,
    /// The moment times are counted from: event times are nanoseconds since it.
    pub start: Calibration,
    /// Architecture, for example "x86_64".
    pub architecture: String,
    /// Kernel release and host, one line for people.
    pub machine: String,
    /// Logical processors.
    pub processors: u32,
    /// Bytes in a page of the target.
    pub page_bytes: u64,
    /// What the target held before it was attached to; none if it was recorded from its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// The longest that the target's threads stood still while it was attached to, in nanoseconds; 0 = it was not attached to.
    #[serde(skip_serializing_if = "is_zero")]
    pub attach_stall_ns: u64,
    /// What is recorded, where it was chosen by looking at the target: `family in module`, one each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub covered: Vec<String>,
    /// What allocates there and is not recorded, and why, one each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_covered: Vec<String>,
    /// The program's own pools whose functions were named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Pool>,
}

/// A pool of the program's own: its blocks are cut from memory that is recorded besides.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Its number in events, from 1.
    pub number: u8,
    /// What to call it: the function that hands out its blocks.
    pub name: String,
    /// Its functions, as the user gave them.
    pub hooks: Vec<String>,
}

fn is_false(it: &bool) -> bool {
    !it
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl SessionInfo {
    /// How many low bits of a stamp sections drop: the largest shift that keeps the step at or under 8 ns. The dropped bits are noise (a
    /// stamp may be off by `hound_common::event::REORDER_NS`), a hand-over between cores takes longer, and each bit costs a bit an event.
    pub fn time_shift(&self) -> u8 {
        let ticks_per_8ns = (self.ticks_per_second / 125_000_000).max(1);
        (63 - ticks_per_8ns.leading_zeros()) as u8
    }
}

/// What a look at the program's memory found at its exit: which of the blocks that lived then it had no pointer to.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reach {
    /// For how long the exit was held, in nanoseconds.
    pub held_ns: u64,
    /// Bytes of memory that were looked at.
    pub memory_bytes: u64,
    /// Blocks that lived.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The addresses of those that nothing led to, each less the one before.
    pub unreachable: Vec<u64>,
}

impl Reach {
    /// The addresses of the blocks that nothing led to, in order.
    pub fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.unreachable.iter().scan(0_u64, |addr, more| {
            *addr = addr.wrapping_add(*more);
            Some(*addr)
        })
    }
}

/// Written last into a capture. A capture without it was cut off: hound or the machine died.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// How the recording ended (`hound_common::event::END_…`); 0 = not known.
    pub reason: u8,
    /// Exit status or signal.
    pub value: u64,
    /// Nanoseconds from the target's start to its end.
    pub target_wall_ns: u64,
    /// Processor time hound used to drain, encode and write, in nanoseconds.
    pub drainer_cpu_ns: u64,
    /// Time the target's threads waited for ring space, in nanoseconds.
    pub waited_ns: u64,
    /// The longest that the target's threads stood still while it was detached from, in nanoseconds; 0 = it was not detached from.
    #[serde(skip_serializing_if = "is_zero")]
    pub detach_stall_ns: u64,
    /// Events hound wrote or tried to write.
    pub events: u64,
    /// Events that could not be written (disk full): filled in by the writer.
    pub lost_on_disk: u64,
    /// The system's words for why writing failed, empty if it did not.
    pub write_error: String,
}

/// A module and how long it was mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSpan {
    /// Where.
    pub process: ProcessId,
    /// The module.
    pub module: Module,
    /// First moment it is known to be mapped, in nanoseconds since the capture began.
    pub from_ns: u64,
    /// The moment it was gone; `u64::MAX` if it never was.
    pub to_ns: u64,
}

/// One stream of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its id: what [`super::model::Stamped::stream`] says.
    pub id: StreamId,
    /// Kernel thread id, 0 where not known.
    pub tid: u32,
    /// Whose it is.
    pub process: ProcessId,
    /// 0: the thread itself; n: its n-th level of nested signal handlers.
    pub level: u32,
    /// Names it had, in time order.
    pub names: Vec<String>,
    /// Its first event, in nanoseconds since the capture began.
    pub from_ns: u64,
    /// Its last event, in nanoseconds since the capture began.
    pub to_ns: u64,
    /// Events it recorded.
    pub events: u64,
}

/// A process of a capture: a program in a process, since exec begins another one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its number in the capture: what [`StreamInfo::process`] says.
    pub id: ProcessId,
    /// As the machine numbers it.
    pub pid: u32,
    /// Its parent, as the machine numbers it; 0 = not known.
    pub parent: u32,
    /// How its recording began (`hound_common::event::PROCESS_…`); 0 = with the capture.
    pub began: u8,
    /// Which one it was before its fork or exec, if that is in the capture, too.
    pub from: Option<ProcessId>,
    /// Its command line.
    pub command: Vec<String>,
    /// Since when it is recorded, in nanoseconds since the capture began.
    pub from_ns: u64,
    /// When it ended, or was recorded no longer; `u64::MAX`: at the end of the capture.
    pub to_ns: u64,
    /// How (`hound_common::event::END_…`); 0 = the capture's end says it.
    pub end: u8,
    /// Exit status or signal.
    pub value: u64,
}

/// Events known to be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// When it was noticed, in nanoseconds since the capture began.
    pub time_ns: u64,
    /// Whose they are.
    pub stream: StreamId,
    /// How many. For [`hound_common::event::LOST_DAMAGED`] an estimate: three words an event.
    pub count: u64,
    /// Why (`hound_common::event::LOST_…`).
    pub reason: u8,
}

/// How the frames of all streams were found. See `hound_common::ring::Counter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnwindCounters {
    /// Frames found equal by comparing memory.
    pub verified: u64,
    /// Frames found by applying a row.
    pub stepped: u64,
    /// Rows computed from call frame information.
    pub evaluated: u64,
    /// Stacks unwound with all callee-saved registers.
    pub full: u64,
    /// Stacks in which a new middle part was put between kept frames.
    pub spliced: u64,
    /// Frames found through frame pointers for want of a row.
    pub frame_pointer: u64,
    /// Stacks that the walk for the usual case left to the one for all cases.
    #[serde(default)]
    pub general: u64,
}

impl UnwindCounters {
    /// The counters of a `METRIC_UNWINDING` record's words (missing ones are 0).
    pub(super) fn from_words(words: &[u64]) -> Self {
        let at = |i: usize| words.get(i).copied().unwrap_or(0);
        let [verified, stepped, evaluated, full, spliced, frame_pointer, general] = std::array::from_fn(at);
        UnwindCounters { verified, stepped, evaluated, full, spliced, frame_pointer, general }
    }

    /// Adds another stream's. Saturates: the numbers come from the target.
    pub(super) fn add(&mut self, other: &Self) {
        self.verified = self.verified.saturating_add(other.verified);
        self.stepped = self.stepped.saturating_add(other.stepped);
        self.evaluated = self.evaluated.saturating_add(other.evaluated);
        self.full = self.full.saturating_add(other.full);
        self.spliced = self.spliced.saturating_add(other.spliced);
        self.frame_pointer = self.frame_pointer.saturating_add(other.frame_pointer);
        self.general = self.general.saturating_add(other.general);
    }
}
