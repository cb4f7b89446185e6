//! Which columns there are, and one row of them put together again.

use crate::capture::model::{StackId, StreamId};
use crate::heap::{Block, Death, Ending, Peak};
use hound_common::hook::Kind;

/// In columns of stacks and streams: there is none.
pub const NONE: u32 = u32::MAX;

/// How a block ended: bits of [`View::ending`] without [`TEMPORARY`].
pub mod ending {
    /// It was released.
    pub const FREED: u8 = 1;
    /// It was released by a realloc, which may have made a new block of it.
    pub const REALLOC: u8 = 2;
    /// Its address was given out again though no release was recorded.
    pub const REPLACED: u8 = 3;
    /// It ended while nobody watched.
    pub const GONE: u8 = 4;
    /// Nobody knows whether it lives.
    pub const UNCERTAIN: u8 = 5;
    /// It lives at the end.
    pub const ALIVE: u8 = 6;
    /// It lived when the recording was switched off, or to samples.
    pub const CENSORED: u8 = 7;
}

/// Set beside [`ending::FREED`] and [`ending::REALLOC`]: its thread allocated nothing between.
pub const TEMPORARY: u8 = 0x80;

macro_rules! columns {
    ($(#[$born_doc:meta])* born { $($(#[$doc:meta])* $name:ident: $type:ty,)* }
     $(#[$ends_doc:meta])* ends { $($(#[$end_doc:meta])* $end:ident: $end_type:ty,)* }) => {
        $(#[$born_doc])*
        #[derive(Debug, Default)]
        pub(super) struct Born { $(pub $name: Vec<$type>,)* }

        $(#[$ends_doc])*
        #[derive(Debug, Default)]
        pub(super) struct Ends { $(pub $end: Vec<$end_type>,)* }

        /// The columns of one heap, all of one length: row `r` is of the block with the ordinal `r + 1`.
        #[derive(Clone, Copy, Debug)]
        pub struct View<'a> {
            $($(#[$doc])* pub $name: &'a [$type],)*
            $($(#[$end_doc])* pub $end: &'a [$end_type],)*
            /// Of blocks that are [`ending::GONE`]: row, and until when it is known to have lived; by row.
            pub gone: &'a [(u32, u64)],
        }

        impl Born {
            pub(super) fn columns(&self) -> Vec<&[u8]> {
                vec![$(bytemuck::cast_slice(&self.$name),)*]
            }

            pub(super) fn clear(&mut self) {
                $(self.$name.clear();)*
            }
        }

        impl Ends {
            pub(super) fn columns(&self) -> Vec<&[u8]> {
                vec![$(bytemuck::cast_slice(&self.$end),)*]
            }

            pub(super) fn columns_mut(&mut self) -> Vec<&mut [u8]> {
                vec![$(bytemuck::cast_slice_mut(&mut self.$end),)*]
            }

            /// So many rows of blocks that have not ended.
            pub(super) fn resize(&mut self, rows: usize) {
                $(self.$end.resize(rows, 0);)*
            }
        }

        /// Bytes a value of each column.
        pub(super) const WIDTHS: &[usize] = &[$(size_of::<$type>(),)* $(size_of::<$end_type>(),)*];
        /// How many of them are known when a block is allocated.
        pub(super) const BORN: usize = [$(size_of::<$type>(),)*].len();

        impl<'a> View<'a> {
            pub(super) fn of(born: &'a Born, ends: &'a Ends, gone: &'a [(u32, u64)]) -> Self {
                View { $($name: &born.$name,)* $($end: &ends.$end,)* gone }
            }

            /// Of bytes, column by column; a column that is missing or does not fit is empty.
            pub(super) fn of_bytes(mut columns: impl Iterator<Item = &'a [u8]>, gone: &'a [(u32, u64)]) -> Self {
                View {
                    $($name: bytemuck::try_cast_slice(columns.next().unwrap_or_default()).unwrap_or_default(),)*
                    $($end: bytemuck::try_cast_slice(columns.next().unwrap_or_default()).unwrap_or_default(),)*
                    gone,
                }
            }

            /// The rows from `from` to `to` alone. Their numbers change, so [`View::ending`] of a block that is gone does too.
            pub(super) fn cut(&self, from: usize, to: usize) -> Self {
                View { $($name: &self.$name[from..to],)* $($end: &self.$end[from..to],)* gone: self.gone }
            }
        }
    };
}

columns! {
    /// What is known of blocks when they are allocated, in their order.
    born {
        /// When it came to be, in nanoseconds of the capture. Ascends but for `REORDER_NS`, by which stamps may be inverted.
        alloc_ns: u64,
        /// Its address; of several processes, told apart by upper bits (`Processes::plain`).
        addr: u64,
        /// Bytes asked for.
        size: u64,
        /// Where it was allocated: a `StackId`.
        stack: u32,
        /// By whom: a `StreamId`.
        stream: u32,
        /// Row of the first block of its chain; its own if it continues none.
        chain: u32,
        /// How many reallocs led to it.
        chain_length: u32,
        /// At which interval it was drawn: [`Block::rate`].
        rate: u16,
        /// By which function: a [`Kind`].
        kind: u8,
        /// `hound_common::event::ALLOC_…` bits.
        flags: u8,
    }
    /// What is known of blocks when they have ended.
    ends {
        /// [`Ending::time_ns`].
        end_ns: u64,
        /// How many blocks had been allocated when it ended: at equal times, says what was first.
        end_order: u32,
        /// Where it was released; [`NONE`] if stacks of frees were not recorded, or it was not released.
        free_stack: u32,
        /// Who released it; [`NONE`] if nobody did.
        free_stream: u32,
        /// How it ended: one of [`ending`], and [`TEMPORARY`].
        ending_code: u8,
        /// By which function it was released; 0 if it was not.
        free_kind: u8,
    }
}

impl Born {
    pub(super) fn push(&mut self, block: &Block) {
        self.alloc_ns.push(block.alloc_ns);
        self.addr.push(block.addr);
        self.size.push(block.size);
        self.stack.push(block.stack.0);
        self.stream.push(block.stream.0);
        self.chain.push((block.chain - 1) as u32);
        self.chain_length.push(block.chain_length);
        self.rate.push(block.rate);
        self.kind.push(block.kind as u8);
        self.flags.push(block.flags);
    }

    pub(super) fn len(&self) -> usize {
        self.alloc_ns.len()
    }
}

/// The end of a block, as columns have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct EndRow {
    pub end_ns: u64,
    pub row: u32,
    pub end_order: u32,
    pub free_stack: u32,
    pub free_stream: u32,
    pub ending_code: u8,
    pub free_kind: u8,
    pub unused: [u8; 6],
}

impl EndRow {
    pub(super) fn new(block: &Block, ending: &Ending, end_order: u32) -> Self {
        let (mut free_stack, mut free_stream, mut free_kind) = (NONE, NONE, 0);
        let code = match ending {
            Ending::Freed(death) => {
                free_stack = death.stack.map_or(NONE, |stack| stack.0);
                (free_stream, free_kind) = (death.stream.0, death.kind as u8);
                let code = if death.realloc { ending::REALLOC } else { ending::FREED };
                if death.temporary { code | TEMPORARY } else { code }
            }
            Ending::Replaced { .. } => ending::REPLACED,
            Ending::Gone { .. } => ending::GONE,
            Ending::Uncertain { .. } => ending::UNCERTAIN,
            Ending::Alive { .. } => ending::ALIVE,
            Ending::Censored { .. } => ending::CENSORED,
        };
        let row = (block.ordinal - 1) as u32;
        EndRow { end_ns: ending.time_ns(), row, end_order, free_stack, free_stream, ending_code: code, free_kind, unused: [0; 6] }
    }
}

impl Ends {
    pub(super) fn set(&mut self, at: usize, end: &EndRow) {
        self.end_ns[at] = end.end_ns;
        self.end_order[at] = end.end_order;
        self.free_stack[at] = end.free_stack;
        self.free_stream[at] = end.free_stream;
        self.ending_code[at] = end.ending_code;
        self.free_kind[at] = end.free_kind;
    }
}

impl View<'_> {
    /// How many rows there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.alloc_ns.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.alloc_ns.is_empty()
    }

    /// The block of this row. `first`: the number of the view's first row among all (0 but for parts).
    #[inline(always)]
    pub(super) fn block_from(&self, first: usize, row: usize) -> Block {
        Block {
            addr: self.addr[row],
            size: self.size[row],
            alloc_ns: self.alloc_ns[row],
            ordinal: (first + row) as u64 + 1,
            chain: u64::from(self.chain[row]) + 1,
            stack: StackId(self.stack[row]),
            stream: StreamId(self.stream[row]),
            chain_length: self.chain_length[row],
            kind: Kind::from_u8(self.kind[row]).unwrap_or(Kind::Malloc),
            flags: self.flags[row],
            rate: self.rate[row],
        }
    }

    /// The block of this row.
    pub fn block(&self, row: usize) -> Block {
        self.block_from(0, row)
    }

    /// What became of the block of this row.
    pub fn ending(&self, row: usize) -> Ending {
        self.ending_from(0, row)
    }

    #[inline(always)]
    pub(super) fn ending_from(&self, first: usize, row: usize) -> Ending {
        let time_ns = self.end_ns[row];
        let code = self.ending_code[row];
        match code & !TEMPORARY {
            ending::FREED | ending::REALLOC => Ending::Freed(Death {
                time_ns,
                stream: StreamId(self.free_stream[row]),
                kind: Kind::from_u8(self.free_kind[row]).unwrap_or(Kind::Free),
                realloc: code & !TEMPORARY == ending::REALLOC,
                stack: Some(self.free_stack[row]).filter(|&stack| stack != NONE).map(StackId),
                temporary: code & TEMPORARY != 0,
            }),
            ending::REPLACED => Ending::Replaced { time_ns },
            ending::GONE => {
                let known = self.gone.binary_search_by_key(&((first + row) as u32), |(row, _)| *row);
                Ending::Gone { time_ns, known_ns: known.map_or(time_ns, |at| self.gone[at].1) }
            }
            ending::UNCERTAIN => Ending::Uncertain { time_ns },
            ending::CENSORED => Ending::Censored { time_ns },
            _ => Ending::Alive { time_ns },
        }
    }

    /// Until when the block of this row is known to have lived: [`Ending::known_ns`].
    pub fn known_ns(&self, row: usize) -> u64 {
        self.ending(row).known_ns()
    }

    /// Whether the block of this row lived when the heap's peak was reached, for all that was recorded.
    pub fn lived_at(&self, row: usize, peak: &Peak) -> bool {
        self.lived_from(0, row, peak)
    }

    #[inline(always)]
    pub(super) fn lived_from(&self, first: usize, row: usize, peak: &Peak) -> bool {
        ((first + row) as u64) < peak.ordinal && u64::from(self.end_order[row]) >= peak.ordinal
    }
}
