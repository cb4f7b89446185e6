//! The columns of a section's main part, and how they are laid out: each compressed on its own, for each has its own statistics.

use super::format::MAX_PART_BYTES;
use super::varint::{self, Cursor};
use std::io;

/// Shapes used in the section: kind, flags, end reason, tag bits, node.
pub const SHAPE_LIST: usize = 0;
/// Section-local stacks: how far back each node's parent is.
pub const NODE_PARENTS: usize = 1;
/// Section-local stacks: ip less the previous node's.
pub const NODE_IPS: usize = 2;
/// Per event: 0 = the guessed shape, else the shape's index plus 1.
pub const SHAPE: usize = 3;
/// Per event: time since the previous one.
pub const TIME: usize = 4;
/// Per allocation: size code of its shape.
pub const SIZE: usize = 5;
/// Per allocation: a byte of `predict::PLACE_…`.
pub const PLACE: usize = 6;
/// Per allocation that says so in `PLACE`: slack code.
pub const SLACK: usize = 7;
/// Per allocation that continues a block: the block's address less the one released last by a realloc.
pub const PREVIOUS: usize = 8;
/// Per free: 0 = not of this section, else 1 plus the number of younger live blocks.
pub const RANK: usize = 9;
/// Per allocation or free not where guessed: the difference.
pub const FAR: usize = 10;
/// How many columns there are.
pub const COLUMNS: usize = 11;

/// Shape of an event: everything about it that repeats, in one word.
///
/// ```text
/// bits  0..8   kind         bits  8..16  flags (ALLOC_… or FREE_…)      bits 16..24  end reason of the stack
/// bit   24     the stack has frames found through frame pointers        bit  25      allocation, not free
/// bits 32..64  node of the stack
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ShapeKey(pub u64);

impl ShapeKey {
    /// Bit of [`Self`]: frame pointers were used.
    pub const FRAME_POINTERS: u64 = 1 << 24;
    /// Bit of [`Self`]: an allocation.
    pub const ALLOC: u64 = 1 << 25;

    /// The kind's number.
    pub fn kind(self) -> u8 {
        self.0 as u8
    }

    /// Flags of the record.
    pub fn flags(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// End reason of the stack.
    pub fn reason(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Whether the stack has frames found through frame pointers.
    pub fn frame_pointers(self) -> bool {
        self.0 & Self::FRAME_POINTERS != 0
    }

    /// Whether it is an allocation.
    pub fn is_alloc(self) -> bool {
        self.0 & Self::ALLOC != 0
    }

    /// Section-local node of the stack.
    pub fn node(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Appends the shape to the list; `previous` is the shape before it.
    pub fn write(self, previous: ShapeKey, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.0 as u32).to_le_bytes());
        varint::put(out, varint::fold(i64::from(self.node()) - i64::from(previous.node())));
    }

    /// Reads a whole list. `None`: it is none.
    pub fn read_all(bytes: &[u8]) -> Option<Vec<ShapeKey>> {
        let mut cursor = Cursor::default();
        let mut shapes = Vec::new();
        let mut node = 0i64;
        while cursor.left(bytes) > 0 {
            let low: [u8; 4] = std::array::from_fn(|_| cursor.byte(bytes));
            node = node.checked_add(varint::unfold(cursor.number(bytes)))?;
            let node = u32::try_from(node).ok()?;
            shapes.push(ShapeKey(u64::from(node) << 32 | u64::from(u32::from_le_bytes(low))));
        }
        cursor.is_at_end(bytes).then_some(shapes)
    }
}

/// The bytes of all columns.
#[derive(Clone, Debug, Default)]
pub struct Columns(pub [Vec<u8>; COLUMNS]);

impl Columns {
    /// Bytes in all columns.
    pub fn raw_bytes(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Empty columns with room for about what these hold.
    pub fn like(&self) -> Self {
        Columns(std::array::from_fn(|i| Vec::with_capacity(self.0[i].len() + self.0[i].len() / 8)))
    }

    /// Appends the columns: their number, for each its length before and after compression (equal: stored as it is), then their bytes.
    pub fn write(&self, compressor: &mut zstd::bulk::Compressor<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        let mut stored = Vec::new();
        out.push(COLUMNS as u8);
        for column in &self.0 {
            let before = stored.len();
            append_compressed(column, compressor, &mut stored)?;
            varint::put(out, column.len() as u64);
            varint::put(out, (stored.len() - before) as u64);
        }
        out.extend_from_slice(&stored);
        Ok(())
    }

    /// Reads what [`Self::write`] wrote; columns of later versions are left out.
    pub fn read(bytes: &[u8], decompressor: &mut zstd::bulk::Decompressor<'_>) -> Option<Self> {
        let mut cursor = Cursor::default();
        let count = usize::from(cursor.byte(bytes));
        let mut lengths = Vec::with_capacity(count);
        for _ in 0..count {
            lengths.push((cursor.number(bytes), cursor.number(bytes)));
        }
        if cursor.overrun || count < COLUMNS {
            return None;
        }
        let mut rest = bytes.get(bytes.len() - cursor.left(bytes)..)?;
        let mut columns = Columns::default();
        for (i, (raw, stored)) in lengths.into_iter().enumerate() {
            let (these, behind) = rest.split_at_checked(usize::try_from(stored).ok()?)?;
            rest = behind;
            if i < COLUMNS {
                columns.0[i] = decompress(these, usize::try_from(raw).ok()?, decompressor)?;
            }
        }
        rest.is_empty().then_some(columns)
    }
}

/// Appends bytes compressed, or as they are where that is not longer.
pub fn append_compressed(bytes: &[u8], compressor: &mut zstd::bulk::Compressor<'_>, out: &mut Vec<u8>) -> io::Result<()> {
    if bytes.len() >= 16 {
        let packed = compressor.compress(bytes)?;
        if packed.len() < bytes.len() {
            out.extend_from_slice(&packed);
            return Ok(());
        }
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Undoes [`append_compressed`].
pub fn decompress(stored: &[u8], raw: usize, decompressor: &mut zstd::bulk::Decompressor<'_>) -> Option<Vec<u8>> {
    if stored.len() == raw {
        return Some(stored.to_vec());
    }
    if raw > MAX_PART_BYTES {
        return None;
    }
    decompressor.decompress(stored, raw).ok().filter(|bytes| bytes.len() == raw)
}
