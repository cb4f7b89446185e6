//! The fixed parts of the file: file header, chunk header, chunk kinds. `docs/format.md` says the same for people.

/// First bytes of every capture.
pub const FILE_MAGIC: [u8; 8] = *b"HOUNDCAP";
/// Changes when a reader of an older version would misread the file.
pub const FORMAT_VERSION: u32 = 2;
/// What is written where there is one process only: older readers read that as well.
pub const ONE_PROCESS_VERSION: u32 = 1;
/// Length of the file header.
pub const FILE_HEADER_BYTES: usize = 16;
/// First bytes of every chunk. None of them is ASCII or zero, so that text and holes do not look like one.
pub const CHUNK_MAGIC: [u8; 4] = [0xC4, 0xB7, 0x9E, 0x8D];
/// Length of a chunk header.
pub const CHUNK_HEADER_BYTES: usize = 72;
/// Longest part of a chunk before compression: what a reader must be ready to hold.
pub const MAX_PART_BYTES: usize = 16 << 20;
/// Longest payload of a chunk in the file.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;

/// What a chunk holds. Never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ChunkKind {
    /// JSON [`super::SessionInfo`]; the first chunk.
    Session = 1,
    /// A section: a run of one stream's events, sorted by time.
    Events = 2,
    /// One or more [`super::Calibration`], three words each.
    Calibration = 3,
    /// A part of the symbols, opaque to the format.
    Symbols = 4,
    /// JSON [`super::End`]; the last chunk.
    End = 5,
    /// A part of the JSON of [`super::Reach`].
    Reach = 6,
}

impl ChunkKind {
    /// The kind with this number.
    pub fn from_u16(number: u16) -> Option<Self> {
        use ChunkKind::*;
        [Session, Events, Calibration, Symbols, End, Reach].into_iter().find(|k| *k as u16 == number)
    }
}

/// A chunk's header. The payload follows it: the rare part, then the main part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ChunkHeader {
    /// One of [`ChunkKind`], or a number of a later version.
    pub kind: u16,
    /// Low bits dropped from the ticks in this chunk.
    pub time_shift: u8,
    /// Bytes of payload.
    pub payload: u32,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
    /// Bytes of the payload that are the rare part.
    pub rare: u32,
    /// Length of the rare part before compression.
    pub rare_raw: u32,
    /// Length of the main part before compression.
    pub main_raw: u32,
    /// The stream.
    pub stream: u32,
    /// Its thread, 0 if not known.
    pub tid: u32,
    /// Its nesting level; below 256.
    pub level: u32,
    /// Number of its process in the capture; below 2²⁴.
    pub process: u32,
    /// Allocations and frees in it.
    pub events: u32,
    /// All other events in it.
    pub rare_events: u32,
    /// Time of its first event, in ticks.
    pub first: u64,
    /// Time of its last event, in ticks.
    pub last: u64,
    /// Number of the chunk in its file, from 0.
    pub sequence: u32,
}

impl ChunkHeader {
    /// The header's bytes, checksum included.
    pub fn to_bytes(self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&CHUNK_MAGIC);
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[6] = self.time_shift;
        let words = [
            self.payload,
            self.payload_crc,
            self.rare,
            self.rare_raw,
            self.main_raw,
            self.stream,
            self.tid,
            self.level & 0xff | self.process << 8,
            self.events,
            self.rare_events,
        ];
        for (place, word) in bytes[8..48].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[48..56].copy_from_slice(&self.first.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.last.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..68]);
        bytes[68..72].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in these bytes, if magic, checksum and lengths are right.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..CHUNK_HEADER_BYTES)?;
        if bytes[..4] != CHUNK_MAGIC || crc32fast::hash(&bytes[..68]) != u32_at(bytes, 68)? {
            return None;
        }
        let header = ChunkHeader {
            kind: u16::from_le_bytes([bytes[4], bytes[5]]),
            time_shift: bytes[6],
            payload: u32_at(bytes, 8)?,
            payload_crc: u32_at(bytes, 12)?,
            rare: u32_at(bytes, 16)?,
            rare_raw: u32_at(bytes, 20)?,
            main_raw: u32_at(bytes, 24)?,
            stream: u32_at(bytes, 28)?,
            tid: u32_at(bytes, 32)?,
            level: u32_at(bytes, 36)? & 0xff,
            process: u32_at(bytes, 36)? >> 8,
            events: u32_at(bytes, 40)?,
            rare_events: u32_at(bytes, 44)?,
            first: u64_at(bytes, 48)?,
            last: u64_at(bytes, 56)?,
            sequence: u32_at(bytes, 64)?,
        };
        let sane = header.payload as usize <= MAX_PAYLOAD_BYTES
            && header.rare <= header.payload
            && header.rare_raw as usize <= MAX_PART_BYTES
            && header.main_raw as usize <= MAX_PART_BYTES
            && header.first <= header.last
            && header.time_shift < 32;
        sane.then_some(header)
    }

    /// Length of the chunk in the file.
    pub fn chunk_bytes(&self) -> u64 {
        (CHUNK_HEADER_BYTES + self.payload as usize) as u64
    }
}

/// The file header's bytes. `several`: there may be streams of more than one process.
pub fn file_header(several: bool) -> [u8; FILE_HEADER_BYTES] {
    let mut bytes = [0; FILE_HEADER_BYTES];
    bytes[..8].copy_from_slice(&FILE_MAGIC);
    let version = if several { FORMAT_VERSION } else { ONE_PROCESS_VERSION };
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// The little-endian word at this place, if it is inside.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The little-endian double word at this place, if it is inside.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
