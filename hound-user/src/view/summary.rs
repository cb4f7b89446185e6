//! What stands at the head of every report: what was run, what is missing, what it adds up to.

use crate::capture::Before;
use serde::Serialize;

/// How the recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "how", content = "value")]
pub enum EndKind {
    /// The program exited with this status.
    Exit(u64),
    /// This signal killed it.
    Signal(u64),
    /// It replaced itself by another program.
    Exec,
    /// hound stopped watching; it ran on.
    Detach,
    /// It has not: this is a look at a recording that goes on.
    Growing,
    /// Not known: the recording was cut.
    Cut,
}

impl EndKind {
    /// Whether what lived at the end can be called leaked: the program had its chance to release it.
    pub fn is_final(self) -> bool {
        matches!(self, EndKind::Exit(_))
    }

    /// In words, for "the program …".
    pub fn words(self) -> String {
        match self {
            EndKind::Exit(status) => format!("exited with status {status}"),
            EndKind::Signal(signal) => format!("was killed by signal {signal}"),
            EndKind::Exec => "replaced itself by another program".to_owned(),
            EndKind::Detach => "ran on when the recording ended".to_owned(),
            EndKind::Growing => "is being recorded still".to_owned(),
            EndKind::Cut => "was cut off from its recording, how is not known".to_owned(),
        }
    }
}

/// All that a report says before its tables.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The command line.
    pub command: Vec<String>,
    /// The target's process id.
    pub pid: u32,
    /// How it was recorded.
    pub mode: String,
    /// hound's version when recording.
    pub hound_version: String,
    /// Kernel and host.
    pub machine: String,
    /// From the target's start to its end, or to the last event, in nanoseconds.
    pub wall_ns: u64,
    /// How the recording ended.
    pub end: EndKind,
    /// Events lost: why, and how many.
    pub losses: Vec<(String, u64)>,
    /// Allocations whose stack does not reach the thread's first function: why, and how many.
    pub cut_stacks: Vec<(String, u64)>,
    /// Allocations whose stack needed frame pointers.
    pub frame_pointer_stacks: u64,
    /// What in the capture cannot be right, a line each.
    pub anomalies: Vec<String>,
    /// Modules without names, a line each.
    pub unresolved: Vec<String>,
    /// Events that were stamped out of order and put right.
    pub reordered: u64,
    /// What the target held before it was attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// The longest that the target stood still at the attach, and at the detach, in nanoseconds; 0 = it did not.
    #[serde(skip_serializing_if = "is_zero")]
    pub attach_stall_ns: u64,
    /// See `attach_stall_ns`.
    #[serde(skip_serializing_if = "is_zero")]
    pub detach_stall_ns: u64,
    /// What was recorded, where it was chosen by looking at the target.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub covered: Vec<String>,
    /// What allocates and was not recorded, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_covered: Vec<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Summary {
    /// Whether the program ran before it was recorded.
    pub fn is_attached(&self) -> bool {
        self.before.is_some() || !self.covered.is_empty()
    }

    /// Events known to be missing.
    pub fn lost_events(&self) -> u64 {
        self.losses.iter().map(|(_, count)| count).sum()
    }
}
