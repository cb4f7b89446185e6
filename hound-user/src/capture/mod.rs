//! The capture file: encoder, writer, reader, and what a reader hands out.
//!
//! Data flow while recording: raw ring bytes of one thread → [`StreamEncoder`] → [`Section`] (columns) → [`Section::compress`] → [`Chunk`]
//! → [`CaptureWriter`]. The first step is on the path that frees ring space and does no I/O; compressing and writing may run elsewhere.
//! While reading: [`Capture::open`] indexes the chunks' headers, [`Capture::visit`] decodes and merges the sections of all streams in time
//! order. `docs/format.md` specifies the bytes.

mod addrmap;
mod before;
mod clock;
mod columns;
mod cull;
mod decode;
mod encode;
mod error;
mod exercise;
mod format;
mod index;
mod merge;
pub mod model;
mod nodes;
mod paths;
mod predict;
mod rare;
mod reader;
mod rewrite;
mod section;
mod session;
mod stack;
mod varint;
mod writer;

pub use before::{Before, BlockClass, BlockCount, Blocks, Bound, HeapBefore, LeftOut};
pub use cull::{AddressHasher, Cull, Culler, Out, Scale};
pub use encode::{StreamEncoder, StreamMeta};
pub use error::{Anomalies, Anomaly, CaptureError};
pub use exercise::exercise;
pub use format::{ChunkKind, FORMAT_VERSION};
pub use paths::{MAPPED_LIBRARY, ModulePaths};
pub use reader::{Capture, EventCounts, Raw, Stripped, Visitor};
pub use rewrite::Rewriter;
pub use section::{Chunk, Compressor, Section};
pub use session::{Calibration, Clock, End, Loss, ModuleSpan, Pool, ProcessInfo, Reach, STARTED, SessionInfo, StreamInfo, UnwindCounters};
pub use stack::REASON_DAMAGED;
pub use writer::{CaptureWriter, MemorySink, Sink};

#[cfg(test)]
mod tests;
