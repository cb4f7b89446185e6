//! Where pictures are written.

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `app-leaks.svg` for `/captures/app.hound`: in the working directory, as all that commands make.
pub(super) fn beside(capture: &Path, what: &str) -> PathBuf {
    let stem = capture.file_stem().map_or_else(|| "capture".into(), |stem| stem.to_string_lossy());
    PathBuf::from(format!("{stem}-{what}.svg"))
}

pub(super) fn is_standard_output(output: &Path) -> bool {
    output.as_os_str() == "-"
}

/// Refuses to write over what is read.
pub(super) fn must_not_be<'a>(output: &Path, captures: impl Iterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    let Ok(there) = output.canonicalize() else { return Ok(()) };
    for capture in captures {
        let is_capture = capture.canonicalize().is_ok_and(|capture| capture == there);
        anyhow::ensure!(!is_capture, "{} is a capture: give another file to -o", output.display());
    }
    Ok(())
}

/// Writes the picture and says where it is.
pub(super) fn write(output: &Path, drawn: &str, what: &str) -> anyhow::Result<ExitCode> {
    std::fs::write(output, drawn).with_context(|| format!("cannot write {}", output.display()))?;
    eprintln!("hound: {what} in {}", output.display());
    Ok(ExitCode::SUCCESS)
}
