//! The capture file: writer, reader, and what a reader hands out.

mod error;
pub mod model;
mod session;

pub use error::{Anomalies, Anomaly, CaptureError};
pub use session::{Calibration, Clock, End, Loss, ModuleSpan, SessionInfo, StreamInfo, UnwindCounters};

use hound_common::hook::Kind;
use model::{Alloc, StackId, Stamped, StreamId};

/// Hears of every event of a capture in merged order.
pub trait Visitor {
    /// A block came to be.
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc);
    /// A block was released.
    fn free(&mut self, time_ns: u64, stream: StreamId, addr: u64, kind: Kind, realloc: bool, stack: Option<StackId>);
    /// Anything else.
    fn other(&mut self, event: &Stamped);
}
