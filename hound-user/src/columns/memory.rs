//! Columns in memory: for small captures, and for tests.

use super::table::{Born, EndRow, Ends};
use super::{Columns, Rows, Storage, Watched};
use crate::capture::Capture;
use crate::heap::{Block, Ending, Heaps, Hears, Outcome, Peak, Processes, Sampling, Sink};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// A heap has more blocks than columns can number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there are more than {} blocks, which is as many as can be kept in columns", u32::MAX)
    }
}

impl std::error::Error for TooMany {}

/// Columns in the making.
#[derive(Debug, Default)]
pub(super) struct Builder {
    born: Born,
    ends: Ends,
    gone: Vec<(u32, u64)>,
    too_many: bool,
}

impl Hears for Builder {
    fn born(&mut self, block: &Block) {
        // The last number is [`super::NONE`].
        if block.ordinal >= u64::from(u32::MAX) {
            self.too_many = true;
            return;
        }
        self.born.push(block);
        // By powers of two, not block by block.
        if self.ends.end_ns.len() < self.born.len() {
            self.ends.resize((self.born.len() * 2).max(1024));
        }
    }

    fn ended(&mut self, block: &Block, ending: &Ending, _: &Peak) {
        if self.too_many {
            return;
        }
        let end = EndRow::new(block, ending, self.born.len() as u32);
        if let Ending::Gone { known_ns, .. } = ending {
            self.gone.push((end.row, *known_ns));
        }
        self.ends.set(end.row as usize, &end);
    }
}

impl Builder {
    pub(super) fn finish(mut self, outcome: Outcome) -> Result<Rows, TooMany> {
        if self.too_many {
            return Err(TooMany);
        }
        self.ends.resize(self.born.len());
        self.gone.sort_unstable();
        Ok(Rows { storage: Storage::Memory(Box::new((self.born, self.ends))), gone: self.gone, outcome })
    }
}

impl Columns {
    /// Replays a capture into memory: some 70 bytes a block. `processes`: as [`Processes::of`] gives them, for all that are wanted.
    /// `progress` hears now and then how many allocations and frees are done, of [`Capture::counts`].
    ///
    /// # Errors
    /// If there are more blocks than rows have numbers for.
    pub fn of(capture: &mut Capture, processes: Option<&Processes>, progress: &dyn Fn(u64)) -> Result<Columns, TooMany> {
        let pools: RefCell<BTreeMap<u8, Rc<RefCell<Builder>>>> = RefCell::default();
        let sink_of = |number: u8| -> Sink<'_> {
            let builder = Rc::new(RefCell::new(Builder::default()));
            pools.borrow_mut().insert(number, builder.clone());
            Box::new(Shared(builder))
        };
        let heap = Rc::new(RefCell::new(Builder::default()));
        let sampling = Sampling::of(capture.sampling()).map(Arc::new);
        let heaps = Heaps::new(Shared(heap.clone()), sink_of).of_capture(sampling, processes.cloned());
        let mut watched = Watched::new(heaps, progress);
        let anomalies = capture.visit(&mut watched);
        let (outcome, outcomes) = watched.finish();
        let rows = |builder: Rc<RefCell<Builder>>, outcome| builder.take().finish(outcome);
        let pools = std::mem::take(&mut *pools.borrow_mut()).into_iter().zip(outcomes);
        let pools = pools.map(|((number, builder), (_, outcome))| Ok((number, rows(builder, outcome)?)));
        Ok(Columns { heap: rows(heap, outcome)?, pools: pools.collect::<Result<_, _>>()?, anomalies })
    }
}

/// A sink whose result is wanted when the replay that owns it is gone.
struct Shared(Rc<RefCell<Builder>>);

impl Hears for Shared {
    fn born(&mut self, block: &Block) {
        self.0.borrow_mut().born(block);
    }

    fn ended(&mut self, block: &Block, ending: &Ending, peak: &Peak) {
        self.0.borrow_mut().ended(block, ending, peak);
    }
}
