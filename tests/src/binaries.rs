//! Where the programs under test are: `hound`, `hound-death` and `libhound.so`, built by `cargo xtask test` before the tests run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map(PathBuf::from).unwrap_or(tests)
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The `hound` binary: in `HOUND_BIN_DIR`, else in the release directory.
pub fn hound() -> PathBuf {
    built("hound")
}

/// A `hound` that dies or fails at a step of the test's choice, beside [`hound`].
pub fn hound_death() -> PathBuf {
    built("hound-death")
}

/// The preloaded library, beside [`hound`].
pub fn libhound() -> PathBuf {
    built("libhound.so")
}

/// A folder with `hound` and `libhound.so` that every user may enter: the workspace may lie in somebody's own.
///
/// # Panics
/// If it cannot be made.
pub fn for_everybody() -> TempDir {
    let dir = TempDir::new().expect("a temporary directory can be made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our own folder");
    for file in [hound(), libhound()] {
        fs::copy(&file, dir.path().join(file.file_name().expect("it is a file"))).expect("room for programs");
    }
    dir
}

fn built(name: &str) -> PathBuf {
    let dir = std::env::var_os("HOUND_BIN_DIR").map_or_else(|| target_dir().join("release"), PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} does not exist: run `cargo xtask test` (or `build`), or name its directory in HOUND_BIN_DIR",
        path.display()
    );
    path
}
