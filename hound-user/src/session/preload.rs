//! A name for libhound.so that the loader understands.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The library under a name without spaces and colons, at which the loader divides `LD_PRELOAD`.
#[derive(Debug)]
pub struct Preload {
    /// What to preload.
    pub path: PathBuf,
    /// Where a link was made for it; removed at the end.
    folder: Option<PathBuf>,
}

impl Preload {
    /// The library itself if its path will do, else a link to it in the folder for temporary files.
    pub fn of(library: PathBuf) -> anyhow::Result<Self> {
        if is_plain(library.as_os_str()) {
            return Ok(Preload { path: library, folder: None });
        }
        let temporary = std::env::temp_dir();
        let cause = || format!("the loader cannot be given '{}' (it divides names at spaces and colons)", library.display());
        if !is_plain(temporary.as_os_str()) {
            bail!("{}; move hound and libhound.so to a folder without them in its name", cause());
        }
        let folder = new_folder(&temporary).with_context(|| format!("{}, and no link to it can be made", cause()))?;
        let made = Preload { path: folder.join("libhound.so"), folder: Some(folder) };
        std::os::unix::fs::symlink(&library, &made.path).with_context(|| format!("{}, and no link to it can be made", cause()))?;
        Ok(made)
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            // What cannot be removed now is a link of a few bytes, where others clean up.
            let _ = std::fs::remove_file(&self.path).and_then(|()| std::fs::remove_dir(folder));
        }
    }
}

fn is_plain(path: &OsStr) -> bool {
    !path.as_bytes().iter().any(|byte| byte.is_ascii_whitespace() || *byte == b':')
}

/// A folder that was not there before: nobody else has put anything into it.
fn new_folder(place: &Path) -> io::Result<PathBuf> {
    for number in 0..1000 {
        let folder = place.join(format!("hound-{}-{number}", std::process::id()));
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_with_a_space_in_its_path_is_linked_to_for_as_long_as_needed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let library = folder.path().join("a b:c");
        std::fs::write(&library, "library").expect("room");
        let preload = Preload::of(library).expect("a link");
        let path = preload.path.clone();
        assert!(is_plain(path.as_os_str()));
        assert_eq!(std::fs::read(&path).expect("it is there"), b"library");
        drop(preload);
        assert!(!path.parent().expect("it has one").exists());
    }
}
