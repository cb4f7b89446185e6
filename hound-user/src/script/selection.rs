//! Which blocks a list has: a tree of conditions and of what lists were put together, found out when somebody looks.

use super::condition::Condition;
use super::dataset::{Dataset, must_be_one};
use super::fault::Refusal;
use super::limits::Meter;
use super::rows::{RowSet, full};
use std::sync::{Arc, OnceLock};

/// Deeper trees are found out at once: nobody could climb them later.
const DEEPEST: usize = 64;
/// Rows that one piece of work has: a multiple of 64.
const PIECE: usize = 1 << 16;

/// The blocks of a list.
#[derive(Clone)]
pub struct Selection {
    data: Arc<Dataset>,
    meter: Meter,
    node: Arc<Node>,
}

struct Node {
    what: What,
    depth: usize,
    rows: OnceLock<Arc<RowSet>>,
}

enum What {
    All,
    Only(Arc<Node>, Condition),
    Both(Arc<Node>, Arc<Node>, Join),
    /// Found out already; what it was made of is gone.
    Known,
}

/// How two lists become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// What is in both.
    And,
    /// What is in one of them.
    Or,
    /// What is in the first and not in the second.
    Minus,
}

impl Node {
    fn new(what: What, depth: usize) -> Arc<Self> {
        Arc::new(Node { what, depth, rows: OnceLock::new() })
    }
}

impl Selection {
    /// Every block.
    pub fn all(data: Arc<Dataset>, meter: Meter) -> Self {
        Selection { data, meter, node: Node::new(What::All, 0) }
    }

    /// These blocks.
    pub fn known(&self, rows: RowSet) -> Self {
        let node = Node::new(What::Known, 0);
        let _ = node.rows.set(Arc::new(rows));
        Selection { node, ..self.clone() }
    }

    /// Whose blocks.
    pub fn data(&self) -> &Arc<Dataset> {
        &self.data
    }

    /// Who counts what is taken.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Of these the ones that meet a condition.
    ///
    /// # Errors
    /// If the script may not take so much.
    pub fn only(&self, condition: Condition) -> Result<Self, Refusal> {
        self.grown(What::Only(self.node.clone(), condition), self.node.depth)
    }

    /// These and those.
    ///
    /// # Errors
    /// If they are of two captures, or the script may not take so much.
    pub fn join(&self, other: &Self, join: Join) -> Result<Self, Refusal> {
        must_be_one(&self.data, &other.data)?;
        let depth = self.node.depth.max(other.node.depth);
        self.grown(What::Both(self.node.clone(), other.node.clone(), join), depth)
    }

    fn grown(&self, what: What, below: usize) -> Result<Self, Refusal> {
        let made = Selection { node: Node::new(what, below + 1), ..self.clone() };
        if below + 1 < DEEPEST {
            return Ok(made);
        }
        let rows = made.rows()?;
        let node = Node::new(What::Known, 0);
        let _ = node.rows.set(rows);
        Ok(Selection { node, ..made })
    }

    /// The rows.
    ///
    /// # Errors
    /// If the script may not take so much.
    pub fn rows(&self) -> Result<Arc<RowSet>, Refusal> {
        self.rows_of(&self.node)
    }

    fn rows_of(&self, node: &Arc<Node>) -> Result<Arc<RowSet>, Refusal> {
        if let Some(rows) = node.rows.get() {
            return Ok(rows.clone());
        }
        let words = match &node.what {
            What::All | What::Known => full(self.data.rows()),
            What::Both(one, other, join) => {
                let (one, other) = (self.rows_of(one)?, self.rows_of(other)?);
                let joined = |(a, b): (&u64, &u64)| match join {
                    Join::And => a & b,
                    Join::Or => a | b,
                    Join::Minus => a & !b,
                };
                one.words().iter().zip(other.words()).map(joined).collect()
            }
            What::Only(..) => self.narrowed(node)?,
        };
        let rows = RowSet::new(words, &self.meter)?;
        Ok(node.rows.get_or_init(|| Arc::new(rows)).clone())
    }

    /// All conditions down to what is known already, in one pass.
    fn narrowed(&self, node: &Arc<Node>) -> Result<Vec<u64>, Refusal> {
        let mut conditions = Vec::new();
        let mut at = node;
        while let What::Only(below, condition) = &at.what
            && at.rows.get().is_none()
        {
            conditions.push(condition);
            at = below;
        }
        let base = match (&at.what, at.rows.get()) {
            (What::All, None) => None,
            _ => Some(self.rows_of(at)?),
        };
        let mut words = base.map_or_else(|| full(self.data.rows()), |rows| rows.words().to_vec());
        self.meter.must_have_time()?;
        let asked: Vec<_> = conditions.iter().rev().map(|condition| condition.asked(&self.data)).collect();
        let narrow = |first: usize, words: &mut [u64]| {
            for (piece, words) in words.chunks_mut(PIECE / 64).enumerate() {
                if self.meter.is_late() {
                    return;
                }
                for asked in &asked {
                    for (at, word) in words.iter_mut().enumerate() {
                        let from = first + piece * PIECE + at * 64;
                        let mut left = *word;
                        while left != 0 {
                            let bit = left.trailing_zeros();
                            left &= left - 1;
                            if !asked(from as u32 + bit) {
                                *word &= !(1 << bit);
                            }
                        }
                    }
                }
            }
        };
        in_parallel(&mut words, narrow);
        self.meter.must_have_time()?;
        Ok(words)
    }
}

/// Does the work on all cores: each has a part of the words, and hears which row is its first.
fn in_parallel(words: &mut [u64], work: impl Fn(usize, &mut [u64]) + Sync) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let part = words.len().div_ceil(cores).next_multiple_of(PIECE / 64);
    if words.len() <= part {
        return work(0, words);
    }
    std::thread::scope(|scope| {
        for (number, words) in words.chunks_mut(part).enumerate() {
            let work = &work;
            scope.spawn(move || work(number * part * 64, words));
        }
    });
}
