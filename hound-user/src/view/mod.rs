//! Answers as text and JSON. Pure: values in, a string out.

mod answer;
mod before;
mod blocks;
pub mod chart;
mod faults;
pub mod flame;
mod head;
mod json;
mod leaks;
mod names;
mod picture;
mod sampled;
mod summary;
mod svg;
mod text;
mod units;

pub use answer::{Answer, PoolAnswer};
pub use before::{before, sizes as sizes_before};
pub use blocks::blocks_text;
pub use faults::{FaultAnswer, MemoryTrack, faults_json, faults_text};
pub use json::{graph_json, json, json_with_blocks};
pub use leaks::{Judged, LeaksAnswer, leaks_json, leaks_line, leaks_text};
pub use names::{mode, short_function, short_path};
pub use picture::{Remark, left_out, remarks};
pub use sampled::amount;
pub use summary::{EndKind, ProcessLine, Sampled, SampledPart, Summary};
pub use text::{Style, TextOptions, rows, text, title};
pub use units::{blocks, bytes, count, duration, share, share_of};

#[cfg(test)]
mod tests;
