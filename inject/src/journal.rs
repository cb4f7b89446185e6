//! The ring's control page in the target: where hound writes down what it has mapped.
//!
//! A piece is one mapping. It is written down before it is mapped and confirmed when it is; it is doubted before it is unmapped and crossed
//! out when it is. Whoever reads the journal after hound's death takes away what is confirmed, and of the rest what is mapped exactly as
//! it is written: at the place and of the length that hound chose. Memory of the target's own is not taken for a piece.

use core::mem::offset_of;

use hound_common::attach::{PIECES, Piece};
use hound_common::ring::Control;

use crate::error::Error;
use crate::memory::Memory;

/// In a piece's length (whole pages otherwise): it is mapped.
const CONFIRMED: u64 = 1;

/// A control page in the target.
#[derive(Debug)]
pub(crate) struct Journal<'a> {
    memory: &'a Memory,
    ring: u64,
}

/// A piece as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub slot: usize,
    pub start: u64,
    pub bytes: u64,
    pub confirmed: bool,
}

impl<'a> Journal<'a> {
    pub fn at(memory: &'a Memory, ring: u64) -> Self {
        Self { memory, ring }
    }

    pub fn word(&self, offset: usize) -> Result<u64, Error> {
        self.memory.read_u64(self.ring + offset as u64)
    }

    pub fn half(&self, offset: usize) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.memory.read(self.ring + offset as u64, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub fn set_word(&self, offset: usize, value: u64) -> Result<(), Error> {
        self.memory.write(self.ring + offset as u64, &value.to_le_bytes())
    }

    pub fn set_half(&self, offset: usize, value: u32) -> Result<(), Error> {
        self.memory.write(self.ring + offset as u64, &value.to_le_bytes())
    }

    fn piece(slot: usize) -> usize {
        offset_of!(Control, pieces) + slot * size_of::<Piece>()
    }

    pub fn pieces(&self) -> Result<Vec<Written>, Error> {
        let mut list = Vec::new();
        for slot in 0..PIECES {
            let start = self.word(Self::piece(slot) + offset_of!(Piece, start))?;
            let bytes = self.word(Self::piece(slot) + offset_of!(Piece, bytes))?;
            if start != 0 {
                list.push(Written { slot, start, bytes: bytes & !CONFIRMED, confirmed: bytes & CONFIRMED != 0 });
            }
        }
        Ok(list)
    }

    /// Writes a piece down that is about to be mapped.
    pub fn announce(&self, start: u64, bytes: u64) -> Result<Written, Error> {
        let taken = self.pieces()?;
        let Some(slot) = (0..PIECES).find(|slot| taken.iter().all(|w| w.slot != *slot)) else {
            return Err(Error::Unfit { what: "hound has mapped too many pieces into the target: detach with --unload first".into() });
        };
        // Length first: a start alone makes it a piece.
        self.set_word(Self::piece(slot) + offset_of!(Piece, bytes), bytes)?;
        self.set_word(Self::piece(slot) + offset_of!(Piece, start), start)?;
        Ok(Written { slot, start, bytes, confirmed: false })
    }

    pub fn confirm(&self, written: Written) -> Result<(), Error> {
        self.set_word(Self::piece(written.slot) + offset_of!(Piece, bytes), written.bytes | CONFIRMED)
    }

    /// The opposite of [`Journal::confirm`].
    pub fn doubt(&self, written: Written) -> Result<(), Error> {
        self.set_word(Self::piece(written.slot) + offset_of!(Piece, bytes), written.bytes)
    }

    pub fn cross_out(&self, written: Written) -> Result<(), Error> {
        self.set_word(Self::piece(written.slot) + offset_of!(Piece, start), 0)
    }
}
