//! Names for addresses: which functions, at which line of which file, an instruction pointer of a capture stands for.
//!
//! [`symbolise`] looks up every return address of a capture once, through blazesym, and puts the answers into a [`SymbolTable`]. The
//! table serialises, so that a capture carries its names to other machines.
//!
//! An address means different things at different times: after `dlclose`, `dlopen` may put another library there. So the key of a name is
//! (module span, ip), and whoever asks says when ([`SymbolTable::frames`]).
//!
//! A return address names the instruction *after* the call, which may be another line, or another function if the call was the last
//! thing in its own: it is looked up one byte before.

mod bytes;
mod demangle;
mod files;
mod kernel;
mod perf_map;
mod resolve;
mod split;
mod table;

pub use bytes::TableError;
pub use files::{Files, HeldFiles, OtherFiles};
pub use kernel::{KERNEL, KernelImage, KernelNames, boot};
pub use perf_map::PerfMap;
pub use resolve::{Unresolved, symbolise};
pub use table::{Frame, FrameList, Location, Span, SymbolTable};

#[cfg(test)]
mod tests;
