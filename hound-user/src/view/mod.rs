//! Answers as text and JSON. Pure: values in, a string out.

mod answer;
mod before;
mod head;
mod json;
mod names;
mod summary;
mod text;
mod units;

pub use answer::{Answer, PoolAnswer};
pub use before::{before, sizes as sizes_before};
pub use json::json;
pub use names::{short_function, short_path};
pub use summary::{EndKind, Summary};
pub use text::{Style, TextOptions, rows, text};
pub use units::{blocks, bytes, count, duration, share};

#[cfg(test)]
mod tests;
