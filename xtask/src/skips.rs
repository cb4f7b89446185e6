//! The output of `cargo test`, read line by line: the totals, and what was not tested.
//!
//! A test that cannot do its work here says so on a line of its own, `SKIPPED: why`, or `NOT TESTED HERE: what` for the
//! few things that this kind of machine does not have. It writes them to standard error, past cargo's capture of what
//! passing tests print; among hundreds of lines they would still be overlooked, so they are repeated at the end.

/// What the lines so far amount to.
#[derive(Default)]
pub struct Summary {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests marked as ignored.
    pub ignored: u64,
    /// `SKIPPED: why`, each once.
    pub skipped: Vec<String>,
    /// `NOT TESTED HERE: what`, each once.
    pub absent: Vec<String>,
}

impl Summary {
    /// Takes one line.
    pub fn line(&mut self, line: &str) {
        let said = line.trim();
        if let Some(result) = said.strip_prefix("test result: ") {
            self.count(result);
        } else if begins(said, "skipped:") {
            once(&mut self.skipped, said);
        } else if begins(said, "not tested here:") {
            once(&mut self.absent, said);
        }
    }

    /// Takes what another summary has.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        other.skipped.iter().for_each(|line| once(&mut self.skipped, line));
        other.absent.iter().for_each(|line| once(&mut self.absent, line));
    }

    /// Adds `ok. 5 passed; 0 failed; 1 ignored; …`.
    fn count(&mut self, result: &str) {
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next().and_then(|word| word.parse::<u64>().ok()), words.next()) else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

fn begins(line: &str, with: &str) -> bool {
    line.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
}

fn once(lines: &mut Vec<String>, line: &str) {
    if !lines.iter().any(|known| known == line) {
        lines.push(line.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_added_up_and_skips_are_collected_once() {
        let mut summary = Summary::default();
        let lines = [
            "test counts ... ok",
            "SKIPPED: attaches needs root",
            "SKIPPED: attaches needs root",
            "not tested here: yama",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ];
        lines.iter().for_each(|line| summary.line(line));
        assert_eq!((summary.passed, summary.failed, summary.ignored), (4, 2, 1));
        assert_eq!(summary.skipped, ["SKIPPED: attaches needs root"]);
        assert_eq!(summary.absent, ["not tested here: yama"]);
    }
}
