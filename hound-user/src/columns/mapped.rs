//! Columns in a file that is mapped.

use super::table::WIDTHS;
use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Maps a file to read it.
///
/// An index is written under another name and renamed when it is whole, and nobody writes into it from then on. Who does it nevertheless,
/// or truncates it while a hound reads it, is found out by the checksums, or ends that hound with SIGBUS.
#[expect(unsafe_code, reason = "mapping a file is unsafe, for others may write to it")]
pub(super) fn map(file: &File) -> io::Result<Arc<Mmap>> {
    // SAFETY: the map is only ever read as plain numbers, any of which is valid; see above for what others may do to the file.
    unsafe { Mmap::map(file) }.map(Arc::new)
}

/// The columns of one heap.
#[derive(Debug)]
pub(super) struct Mapped {
    pub map: Arc<Mmap>,
    /// Where each column begins.
    pub bases: Vec<usize>,
    pub rows: usize,
    /// By segment, then by column.
    pub checksums: Vec<u32>,
    /// Segments that have been compared with their checksums.
    pub checked: Vec<AtomicBool>,
}

impl Mapped {
    pub(super) fn column(&self, column: usize) -> &[u8] {
        let from = self.bases[column];
        self.map.get(from..from + self.rows * WIDTHS[column]).unwrap_or_default()
    }
}
