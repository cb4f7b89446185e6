//! Where a capture goes: a path with the documented placeholders.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The default name.
pub const DEFAULT_OUTPUT: &str = "hound-%e-%t-%p.hound";

/// Fills in `%p` (process id), `%t` (seconds since 1970), `%e` (program name) and `%n` (first number from 0 for which no file exists).
pub fn expand(template: &str, program: &str, pid: u32) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut number = 0u32;
    loop {
        let path = fill(template, program, pid, seconds, number);
        if !template.contains("%n") || !path.exists() || number == u32::MAX {
            return path;
        }
        number += 1;
    }
}

fn fill(template: &str, program: &str, pid: u32, seconds: u64, number: u32) -> PathBuf {
    let mut text = String::new();
    let mut rest = template.chars();
    while let Some(c) = rest.next() {
        match (c, rest.clone().next()) {
            ('%', Some('p')) => text += &pid.to_string(),
            ('%', Some('t')) => text += &seconds.to_string(),
            ('%', Some('e')) => text += program,
            ('%', Some('n')) => text += &number.to_string(),
            _ => {
                text.push(c);
                continue;
            }
        }
        rest.next();
    }
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_and_other_percents_kept() {
        assert_eq!(fill("a-%e-%p-%t-%n-%x-%", "prog", 7, 99, 3), PathBuf::from("a-prog-7-99-3-%x-%"));
    }

    #[test]
    fn a_counter_skips_files_that_exist() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let template = folder.path().join("c%n").to_string_lossy().into_owned();
        std::fs::write(expand(&template, "p", 1), "").expect("room");
        assert_eq!(expand(&template, "p", 1), folder.path().join("c1"));
    }
}
