//! Finds the chunks of a file by their headers, whatever is missing or damaged between them.

use super::error::{Anomalies, Anomaly};
use super::format::{CHUNK_HEADER_BYTES, CHUNK_MAGIC, ChunkHeader, FILE_HEADER_BYTES};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a capture is read from.
#[derive(Debug)]
pub enum Source {
    /// A file. Plain reads, not a mapping: the file may be cut while it is read, and a mapping would answer with SIGBUS.
    File(File, u64),
    /// Bytes in memory.
    Memory(Vec<u8>),
}

impl Source {
    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Source::File(_, length) => *length,
            Source::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Up to `length` bytes at `at`; fewer at the end.
    pub fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let length = length.min(usize::try_from(self.length().saturating_sub(at)).unwrap_or(usize::MAX));
        match self {
            Source::File(file, _) => {
                let mut bytes = vec![0; length];
                let mut filled = 0;
                while filled < length {
                    match file.read_at(&mut bytes[filled..], at + filled as u64) {
                        Ok(0) => break,
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                bytes.truncate(filled);
                Ok(bytes)
            }
            Source::Memory(bytes) => {
                let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes[at..at + length].to_vec())
            }
        }
    }
}

/// A chunk in its place.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Where its header starts.
    pub at: u64,
    /// Its header.
    pub header: ChunkHeader,
}

/// How much is read at once where chunks are looked for in damaged bytes.
const SCAN_BYTES: usize = 1 << 20;

/// All chunks of a file in order. Their payloads are not looked at.
pub fn chunks(source: &Source, anomalies: &mut Anomalies) -> io::Result<Vec<Placed>> {
    let mut found: Vec<Placed> = Vec::new();
    let mut at = FILE_HEADER_BYTES as u64;
    let length = source.length();
    let mut expected = 0u32;
    while at < length {
        let bytes = source.read(at, CHUNK_HEADER_BYTES)?;
        let Some(header) = ChunkHeader::from_bytes(&bytes) else {
            let next = next_header(source, at + 1)?;
            match next {
                Some(next) => anomalies.push(Anomaly::Skipped { at, bytes: next - at }),
                None if bytes.len() < CHUNK_HEADER_BYTES => anomalies.push(Anomaly::Cut { at, bytes: length - at }),
                None => anomalies.push(Anomaly::Skipped { at, bytes: length - at }),
            }
            at = next.unwrap_or(length);
            continue;
        };
        if header.sequence != expected {
            let count = u64::from(header.sequence.saturating_sub(expected));
            anomalies.push(Anomaly::MissingChunks { at, count });
        }
        expected = header.sequence.wrapping_add(1);
        if at + header.chunk_bytes() > length {
            anomalies.push(Anomaly::Cut { at, bytes: length - at });
            break;
        }
        found.push(Placed { at, header });
        at += header.chunk_bytes();
    }
    Ok(found)
}

/// The first valid chunk header at or after `from`.
fn next_header(source: &Source, mut from: u64) -> io::Result<Option<u64>> {
    loop {
        let bytes = source.read(from, SCAN_BYTES + CHUNK_HEADER_BYTES)?;
        if bytes.len() < CHUNK_HEADER_BYTES {
            return Ok(None);
        }
        let candidates = bytes.windows(CHUNK_HEADER_BYTES).enumerate().filter(|(_, window)| window[..4] == CHUNK_MAGIC);
        for (i, window) in candidates {
            if ChunkHeader::from_bytes(window).is_some() {
                return Ok(Some(from + i as u64));
            }
        }
        from += (bytes.len() - CHUNK_HEADER_BYTES + 1) as u64;
    }
}
