//! Writes chunks to a capture so that what is in the file is readable at every moment.
//!
//! Every chunk goes out in one `write`, unbuffered: a killed hound leaves all chunks before the last one, and the reader passes over an
//! incomplete one. When the disk is full the incomplete chunk is taken back, later event chunks are counted instead of written, and the
//! end record that says so goes into a tail that was reserved while there was room.

use super::format::{ChunkHeader, ChunkKind, FILE_HEADER_BYTES, MAX_PART_BYTES, file_header};
use super::section::{Chunk, Compressor};
use super::session::{Calibration, End, Reach, SessionInfo};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Bytes kept reserved behind the file's end for the end record.
const TAIL_BYTES: u64 = 64 * 1024;

/// Where a capture's bytes go.
pub trait Sink: Send {
    /// Appends all of these bytes.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Sees to it that these offsets can be written later without asking for more room. May do nothing where the file system cannot
    /// reserve; an error means that there is no room.
    fn reserve(&mut self, range: Range<u64>) -> io::Result<()>;
    /// Takes back what is behind this offset.
    fn cut(&mut self, end: u64) -> io::Result<()>;
}

impl Sink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn reserve(&mut self, range: Range<u64>) -> io::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let (start, length) = (range.start as libc::off_t, (range.end - range.start) as libc::off_t);
        match fallocate(&*self, FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length) {
            Err(error @ (nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT | nix::errno::Errno::EFBIG)) => Err(error.into()),
            // Pipes, and file systems that cannot: writing itself will tell.
            _ => Ok(()),
        }
    }

    fn cut(&mut self, end: u64) -> io::Result<()> {
        use std::io::Seek;
        self.set_len(end)?;
        self.seek(io::SeekFrom::Start(end)).map(|_| ())
    }
}

/// A capture in memory, optionally with a limit that acts like a full disk.
#[derive(Debug, Default, Clone)]
pub struct MemorySink {
    /// What was written.
    pub bytes: Vec<u8>,
    /// Most bytes it takes.
    pub limit: Option<usize>,
    /// Bytes reserved so far: they are had for certain.
    reserved: usize,
}

impl MemorySink {
    /// An empty one that is full after this many bytes.
    pub fn with_limit(limit: usize) -> Self {
        MemorySink { limit: Some(limit), ..Self::default() }
    }
}

impl Sink for MemorySink {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.limit.map_or(usize::MAX, |limit| limit.max(self.reserved)).saturating_sub(self.bytes.len());
        // Like a disk: what fits is written before the error comes.
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn reserve(&mut self, range: Range<u64>) -> io::Result<()> {
        let end = range.end as usize;
        if self.limit.is_some_and(|limit| end > limit.max(self.reserved)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.reserved = self.reserved.max(end);
        Ok(())
    }

    fn cut(&mut self, end: u64) -> io::Result<()> {
        self.bytes.truncate(end as usize);
        Ok(())
    }
}

/// Writes one capture.
#[derive(Debug)]
pub struct CaptureWriter<S: Sink = File> {
    sink: S,
    /// Where the next chunk goes: everything before is whole.
    end: u64,
    sequence: u32,
    lost_events: u64,
    /// Why writing stopped.
    failure: Option<String>,
}

impl CaptureWriter<File> {
    /// Creates the file (truncates an old one) and writes its header and session record.
    pub fn create(path: &Path, session: &SessionInfo) -> io::Result<Self> {
        let file = File::options().write(true).create(true).truncate(true).open(path)?;
        CaptureWriter::over(file, session)
    }

    /// The same for a file that must not be there yet.
    pub fn create_new(path: &Path, session: &SessionInfo) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        // On a full disk: an empty file helps nobody.
        CaptureWriter::over(file, session).inspect_err(|_| drop(std::fs::remove_file(path)))
    }

    /// Leads to the file as long as this writes it, whatever it is called by now.
    pub fn itself(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.sink.as_raw_fd()).into()
    }
}

impl<S: Sink> CaptureWriter<S> {
    /// Starts a capture in an empty sink.
    pub fn over(mut sink: S, session: &SessionInfo) -> io::Result<Self> {
        sink.append(&file_header(session.several))?;
        let mut writer = CaptureWriter { sink, end: FILE_HEADER_BYTES as u64, sequence: 0, lost_events: 0, failure: None };
        writer.try_write(&Chunk::of_bytes(ChunkKind::Session, &json(session)?, &mut Compressor::new()?)?, TAIL_BYTES)?;
        Ok(writer)
    }

    /// Writes a chunk of events.
    ///
    /// The first failure is returned (nothing of the chunk stays in the file); after it `Ok(false)` says that the chunk's events were
    /// counted as lost. `Ok(true)`: it is in the file.
    pub fn write(&mut self, chunk: &Chunk) -> io::Result<bool> {
        if self.failure.is_some() {
            self.lost_events += chunk.events();
            return Ok(false);
        }
        match self.try_write(chunk, TAIL_BYTES) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.lost_events += chunk.events();
                self.failure = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Writes the session record anew, with what was not known when the capture was begun. Readers take the last one.
    pub fn write_session(&mut self, session: &SessionInfo) -> io::Result<bool> {
        let chunk = Chunk::of_bytes(ChunkKind::Session, &json(session)?, &mut Compressor::new()?)?;
        self.write(&chunk)
    }

    /// Writes calibration pairs. The first failure of the writer is returned, later ones are not.
    pub fn write_calibration(&mut self, pairs: &[Calibration]) -> io::Result<bool> {
        let words = pairs.iter().flat_map(|p| [p.ticks, p.monotonic_ns, p.realtime_ns]);
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let chunk = Chunk::of_bytes(ChunkKind::Calibration, &bytes, &mut Compressor::new()?)?;
        self.write(&chunk)
    }

    /// Writes the symbols, whose bytes mean nothing to the format. Call it once, before [`Self::finish`].
    pub fn write_symbols(&mut self, symbols: &[u8]) -> io::Result<bool> {
        self.write_parts(ChunkKind::Symbols, symbols)
    }

    /// Writes what was found of the blocks that the program reaches. Call it once, before [`Self::finish`].
    pub fn write_reach(&mut self, reach: &Reach) -> io::Result<bool> {
        self.write_parts(ChunkKind::Reach, &json(reach)?)
    }

    fn write_parts(&mut self, kind: ChunkKind, bytes: &[u8]) -> io::Result<bool> {
        let mut compressor = Compressor::new()?;
        for part in bytes.chunks(MAX_PART_BYTES) {
            if !self.write(&Chunk::of_bytes(kind, part, &mut compressor)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the end record, with what was lost filled in, and gives the sink back. After a failure it uses the reserved tail.
    pub fn finish(mut self, mut end: End) -> io::Result<S> {
        end.lost_on_disk += self.lost_events;
        end.write_error = self.failure.take().unwrap_or_default();
        let chunk = Chunk::of_bytes(ChunkKind::End, &json(&end)?, &mut Compressor::new()?)?;
        self.try_write(&chunk, 0)?;
        self.sink.cut(self.end)?; // gives back what was reserved
        Ok(self.sink)
    }

    /// Events that could not be written.
    pub fn lost_events(&self) -> u64 {
        self.lost_events
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Writes a chunk whole or not at all.
    fn try_write(&mut self, chunk: &Chunk, tail: u64) -> io::Result<()> {
        let header = ChunkHeader { sequence: self.sequence, ..chunk.header };
        let mut bytes = Vec::with_capacity(header.chunk_bytes() as usize);
        bytes.extend_from_slice(&header.to_bytes());
        bytes.extend_from_slice(&chunk.payload);
        let after = self.end + bytes.len() as u64;
        if tail > 0 {
            self.sink.reserve(self.end..after + tail)?;
        }
        if let Err(error) = self.sink.append(&bytes) {
            // Cutting gives the reserve back too: take it again. If either fails, the reader passes over the incomplete chunk.
            let _ = self.sink.cut(self.end).and_then(|()| self.sink.reserve(self.end..self.end + TAIL_BYTES));
            return Err(error);
        }
        self.end = after;
        self.sequence += 1;
        Ok(())
    }
}

fn json<T: serde::Serialize>(value: &T) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}
