//! `hound index`.

use super::report::print;
use crate::columns::{Columns, index};
use crate::report::{Indexing, index_of};
use crate::view;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound index app.hound                make app.hound.index, so that reports and pictures of app.hound are there at once
  hound index --remove app.hound       remove it
  XDG_CACHE_HOME=/big/disk hound index /read/only/app.hound";

/// Make the index of a capture: every block in a file that questions are answered from, instead of reading the capture each time.
///
/// It lies beside the capture, or in the cache folder (XDG_CACHE_HOME, or ~/.cache) where that cannot be written, takes some 33 bytes an event,
/// and may be removed at any time. `report`, `flame` and `graph` use an index that is up to date, and make one of a capture with more than 16
/// million allocations and frees, unless --no-index is given.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    file: PathBuf,
    /// Remove the index that there is, and make none.
    #[arg(long)]
    remove: bool,
}

/// Whether a question is answered from an index.
#[derive(clap::Args, Debug, Clone)]
pub struct Indexed {
    /// Read the capture, without using or making an index (see `hound index`).
    #[arg(long)]
    no_index: bool,
}

impl Indexed {
    pub(super) fn indexing(&self) -> Indexing {
        if self.no_index { Indexing::Never } else { Indexing::WhenLarge }
    }
}

/// Makes the index, or removes it.
///
/// # Errors
/// If the capture cannot be read, or the index cannot be written or removed.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.remove {
        let words = if index::remove(&args.file)? { "removed" } else { "there was none" };
        return print(&format!("index of {}: {words}\n", args.file.display()));
    }
    let (columns, place) = index_of(&args.file, true)?;
    let blocks = |columns: &Columns| {
        let pools: usize = columns.pools().iter().map(|(_, rows)| rows.view().len()).sum();
        columns.heap().view().len() + pools
    };
    let bytes = std::fs::metadata(&place).map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512).unwrap_or_default();
    print(&format!("{}: {} blocks in {} on disk\n", place.display(), view::count(blocks(&columns) as u64), view::bytes(bytes)))
}
