//! Where things are: the workspace, cargo, the built artefacts, and scratch directories below `target/`.

use anyhow::{Context, Result};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The top of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("invariant: xtask lies in the workspace").to_path_buf()
}

/// The cargo that runs this task.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(named) => workspace().join(named),
        None => workspace().join("target"),
    }
}

/// Where `build` leaves `hound` and `libhound.so` side by side.
pub fn binaries() -> PathBuf {
    target().join("release")
}

/// The release build of hound.
pub fn hound() -> PathBuf {
    binaries().join("hound")
}

/// A new, empty directory `target/xtask/NAME`; what an earlier run left there is removed.
pub fn scratch(name: &str) -> Result<PathBuf> {
    let at = kept(name)?;
    fs::remove_dir_all(&at).with_context(|| format!("cannot empty {}", at.display()))?;
    kept(name)
}

/// The directory `target/xtask/NAME` with whatever it holds.
pub fn kept(name: &str) -> Result<PathBuf> {
    let at = target().join("xtask").join(name);
    fs::create_dir_all(&at).with_context(|| format!("cannot create {}", at.display()))?;
    Ok(at)
}
