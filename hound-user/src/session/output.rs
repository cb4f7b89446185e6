//! Where a capture goes: a path with the documented placeholders.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The default name.
pub const DEFAULT_OUTPUT: &str = "hound-%e-%t-%p.hound";

/// Now, for `%t`: seconds since 1970. Asked once a recording, so that all its names agree.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Fills in `%p` (process id), `%t` (`seconds`), `%e` (program name) and `%n` (first number from 0 for which no file exists).
pub fn expand(template: &OsStr, program: &OsStr, pid: u32, seconds: u64) -> PathBuf {
    let mut number = 0u32;
    loop {
        let path = fill(template, program, pid, seconds, number);
        if !has(template, b'n') || !path.exists() || number == u32::MAX {
            return path;
        }
        number += 1;
    }
}

/// Whether a template has this placeholder.
pub fn has(template: &OsStr, placeholder: u8) -> bool {
    template.as_bytes().windows(2).any(|pair| pair == [b'%', placeholder])
}

/// Gives a capture its final name, unless something else has it already. The name that it has then.
pub fn settle(provisional: PathBuf, wanted: PathBuf) -> PathBuf {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    let moved = match renameat2(AT_FDCWD, &provisional, AT_FDCWD, &wanted, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system can tell in one step.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => !wanted.exists() && std::fs::rename(&provisional, &wanted).is_ok(),
        result => result.is_ok(),
    };
    if moved { wanted } else { provisional }
}

/// The last part of a path, as `%e` says it.
pub fn program_name(path: &Path) -> OsString {
    path.file_name().map_or_else(|| "program".into(), OsStr::to_owned)
}

fn fill(template: &OsStr, program: &OsStr, pid: u32, seconds: u64, number: u32) -> PathBuf {
    let mut name = Vec::new();
    let mut rest = template.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let (text, used): (&[u8], usize) = match (first, behind.first()) {
            (b'%', Some(b'p')) => (&pid.to_string().into_bytes(), 2),
            (b'%', Some(b't')) => (&seconds.to_string().into_bytes(), 2),
            (b'%', Some(b'e')) => (program.as_bytes(), 2),
            (b'%', Some(b'n')) => (&number.to_string().into_bytes(), 2),
            _ => (&[*first], 1),
        };
        name.extend_from_slice(text);
        rest = &rest[used..];
    }
    PathBuf::from(OsString::from_vec(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> PathBuf {
        fill(template.as_ref(), OsStr::from_bytes(b"pr\xffog"), 7, 99, 3)
    }

    #[test]
    fn placeholders_are_filled_in_and_other_percents_kept() {
        assert_eq!(filled("a-%p-%t-%n-%x-%"), PathBuf::from("a-7-99-3-%x-%"));
        assert_eq!(filled("%e").as_os_str().as_bytes(), b"pr\xffog");
        assert!(has("a%p".as_ref(), b'p') && !has("a%t".as_ref(), b'p'));
    }

    #[test]
    fn a_counter_skips_files_that_exist() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let template = folder.path().join("c%n");
        let expand = || expand(template.as_os_str(), "p".as_ref(), 1, 0);
        std::fs::write(expand(), "").expect("room");
        assert_eq!(expand(), folder.path().join("c1"));
    }

    #[test]
    fn a_file_that_is_there_already_keeps_its_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("new"), "new").expect("room");
        std::fs::write(path("old"), "old").expect("room");
        assert_eq!(settle(path("new"), path("old")), path("new"));
        assert_eq!(std::fs::read(path("old")).expect("it is there"), b"old");
        assert_eq!(settle(path("new"), path("free")), path("free"));
        assert!(!path("new").exists());
    }
}
