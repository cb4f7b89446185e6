//! The programs in the kernel (`hound-ebpf/`): loading them, setting probes with them, and reading what they say.
//!
//! What is unsafe towards the kernel is in `raw`; aya does the rest. Nothing of the target is touched but the bytes at the probes' sites,
//! and those by the kernel, which takes them out when the links are closed or hound dies.

mod error;
mod links;
mod load;
mod memory;
mod messages;
mod raw;
pub mod rights;
mod settings;
mod tables;
#[cfg(test)]
mod tests;
mod types;

pub use error::{KernelError, MULTI};
pub use links::{Closing, Probes, Site};
pub use load::{LoadOptions, Programs, Style};
pub use memory::{KernelMemory, KernelMemoryOptions};
pub use messages::Message;
pub use settings::{Mapped, Settings};
pub use tables::Counters;
