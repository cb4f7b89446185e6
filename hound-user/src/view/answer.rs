//! What a report shows of one heap.

use crate::capture::Pool;
use crate::heap::{Peak, Totals};
use crate::query::{Branch, Sites, Table, Whole};

/// The answer to a question about one heap: the program's, or a pool's.
pub struct Answer<'a> {
    /// Sums over all of it.
    pub totals: Totals,
    /// When it was largest.
    pub peak: Peak,
    /// What it adds up to, if there are samples: then `totals` only count what was recorded.
    pub whole: Option<Whole>,
    /// Its call paths.
    pub sites: Sites<'a>,
    /// The rows asked for.
    pub table: Table,
    /// The branches, if a tree was asked for.
    pub branches: Vec<Branch>,
}

/// The answer about a pool.
pub struct PoolAnswer<'a> {
    /// Which.
    pub pool: Pool,
    /// The answer.
    pub answer: Answer<'a>,
}

impl PoolAnswer<'_> {
    /// What to call it: `pool 1 (arena_get)`.
    pub fn name(&self) -> String {
        let Pool { number, name, .. } = &self.pool;
        if name.is_empty() { format!("pool {number}") } else { format!("pool {number} ({name})") }
    }
}
