//! A section (a run of one stream's events, sorted by time) on its way into the file, and the chunk it becomes.

use super::columns::{Columns, append_compressed};
use super::format::{ChunkHeader, ChunkKind, MAX_PART_BYTES};
use std::io;

/// zstd level. The guesses of `predict` have done most of the work; what is left is entropy coding, which level 1 does fastest.
const LEVEL: i32 = 1;

/// Compresses sections; keep one a thread, its tables are costly to make.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor. Fails if there is no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Compressor { zstd: zstd::bulk::Compressor::new(LEVEL)? })
    }
}

/// Finished events of one stream, encoded but not compressed. Stands alone: has its own stacks and its own guesses.
#[derive(Clone, Debug)]
pub struct Section {
    pub(super) header: ChunkHeader,
    pub(super) rare: Vec<u8>,
    pub(super) columns: Columns,
}

impl Section {
    /// Events in it, of all kinds.
    pub fn events(&self) -> u64 {
        u64::from(self.header.events) + u64::from(self.header.rare_events)
    }

    /// Bytes it takes in memory.
    pub fn raw_bytes(&self) -> usize {
        self.rare.len() + self.columns.raw_bytes()
    }

    /// The chunk for the file. This is the costly part (3 to 13 ns an event in benches/capture.rs): do it off the thread that frees ring space.
    pub fn compress(&self, compressor: &mut Compressor) -> io::Result<Chunk> {
        let mut payload = Vec::with_capacity(self.raw_bytes() / 2);
        append_compressed(&self.rare, &mut compressor.zstd, &mut payload)?;
        let rare = payload.len();
        self.columns.write(&mut compressor.zstd, &mut payload)?;
        let header = ChunkHeader {
            kind: ChunkKind::Events as u16,
            rare: rare as u32,
            rare_raw: self.rare.len() as u32,
            main_raw: self.columns.raw_bytes() as u32,
            ..self.header
        };
        Ok(Chunk::seal(header, payload))
    }
}

/// A chunk ready for [`super::CaptureWriter::write`]. Its number is given there.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub(super) header: ChunkHeader,
    pub(super) payload: Vec<u8>,
}

impl Chunk {
    /// Events in it.
    pub fn events(&self) -> u64 {
        u64::from(self.header.events) + u64::from(self.header.rare_events)
    }

    /// Bytes it takes in the file.
    pub fn bytes(&self) -> u64 {
        self.header.chunk_bytes()
    }

    /// A chunk whose content is plain bytes.
    pub(super) fn of_bytes(kind: ChunkKind, bytes: &[u8], compressor: &mut Compressor) -> io::Result<Self> {
        if bytes.len() > MAX_PART_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut payload = Vec::new();
        append_compressed(bytes, &mut compressor.zstd, &mut payload)?;
        Ok(Chunk::seal(ChunkHeader { kind: kind as u16, main_raw: bytes.len() as u32, ..ChunkHeader::default() }, payload))
    }

    fn seal(header: ChunkHeader, payload: Vec<u8>) -> Self {
        let payload_crc = crc32fast::hash(&payload);
        Chunk { header: ChunkHeader { payload: payload.len() as u32, payload_crc, ..header }, payload }
    }
}
