//! A capture after its replay, as columns: one row a block, one array a property.
//!
//! Replay tells of blocks as they end, once; whoever asks many questions, or looks at single blocks in any order, asks the columns. They
//! are in memory ([`Columns::of`]) or in a file that is mapped ([`index`]); a [`View`] is the same for both. Rows are in the order of allocation.
//!
//! The heap and each pool have columns of their own, as they have a replay of their own ([`crate::heap::Heaps`]).

mod build;
pub mod index;
mod layout;
mod mapped;
mod memory;
mod scan;
mod table;
mod watched;

pub use memory::TooMany;
pub use scan::Part;
pub use table::{NONE, TEMPORARY, View, ending};
pub(crate) use watched::Watched;

use crate::capture::Anomalies;
use crate::heap::Outcome;
use mapped::Mapped;
use std::fmt;
use table::{Born, Ends};

/// What a replayed capture has.
#[derive(Debug)]
pub struct Columns {
    heap: Rows,
    pools: Vec<(u8, Rows)>,
    anomalies: Anomalies,
}

/// The blocks of one heap.
#[derive(Debug)]
pub struct Rows {
    storage: Storage,
    /// Of blocks that are gone: row, and until when each is known to have lived.
    gone: Vec<(u32, u64)>,
    outcome: Outcome,
}

#[derive(Debug)]
enum Storage {
    Memory(Box<(Born, Ends)>),
    Mapped(Mapped),
}

/// An index does not hold what was written into it: it is to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the index is damaged: `hound index` makes it anew")
    }
}

impl std::error::Error for Damaged {}

impl Columns {
    /// The program's heap.
    pub fn heap(&self) -> &Rows {
        &self.heap
    }

    /// The pools that were met, by number.
    pub fn pools(&self) -> &[(u8, Rows)] {
        &self.pools
    }

    /// What is wrong with the capture: as [`crate::capture::Capture::visit`] gives it.
    pub fn anomalies(&self) -> &Anomalies {
        &self.anomalies
    }
}

impl Columns {
    /// Compares all of an index with its checksums; whoever goes through rows by [`Rows::fold`] or [`Rows::each`] need not.
    ///
    /// # Errors
    /// If it does not hold what was written into it.
    pub fn check(&self) -> Result<(), Damaged> {
        std::iter::once(&self.heap).chain(self.pools.iter().map(|(_, rows)| rows)).try_for_each(Rows::check)
    }
}

impl Rows {
    /// The columns. Those of an index are what the file holds: see [`Rows::check`].
    pub fn view(&self) -> View<'_> {
        match &self.storage {
            Storage::Memory(both) => View::of(&both.0, &both.1, &self.gone),
            Storage::Mapped(mapped) => View::of_bytes((0..table::WIDTHS.len()).map(|column| mapped.column(column)), &self.gone),
        }
    }

    /// Sums over all of them, and the peak.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }
}

#[cfg(test)]
pub(crate) mod random;
#[cfg(test)]
mod tests;
