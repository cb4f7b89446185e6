//! What `hound run` and `hound attach` say at their end.

use crate::report::{Options, report, verdict};
use crate::view::Style;
use std::io::IsTerminal;
use std::path::Path;

/// Prints what lives, where the capture is, and what of it leaks if that can be told. `blocks`: single allocations, too.
///
/// # Errors
/// If the capture cannot be read.
pub fn show(capture: &Path, blocks: bool) -> anyhow::Result<()> {
    let style = if std::io::stderr().is_terminal() { Style::Colour } else { Style::Plain };
    let options = Options { progress: true, style, blocks, ..Options::default() };
    eprint!("{}", report(capture, &options)?);
    eprintln!("hound: capture in {}", capture.display());
    if let Some(verdict) = verdict(capture, &options)? {
        eprintln!("hound: {verdict}; `hound leaks {}` tells of each place", capture.display());
    }
    Ok(())
}
