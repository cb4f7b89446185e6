//! The output of `cargo test`, read line by line: what to show, the totals, and what was not tested.
//!
//! A test that cannot do its work here says so on a line of its own, `skipped: why`, or `not tested here: what` for the few things that this kind of
//! machine does not have. Cargo hides what passing tests print; it is asked for it (`--show-output`) and kept off the screen here, and the two kinds
//! of lines are repeated at the end, where they are seen.

/// What the lines so far amount to.
#[derive(Default)]
pub struct Summary {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests marked as ignored.
    pub ignored: u64,
    /// `test: skipped: why`, in order.
    pub skipped: Vec<String>,
    /// `not tested here: what`, each once.
    pub absent: Vec<String>,
    /// Whether the lines now are the hidden output of passing tests.
    hidden: bool,
    /// The test whose output this is.
    test: String,
}

impl Summary {
    /// Takes one line; says whether it should be shown.
    pub fn line(&mut self, line: &str) -> bool {
        match line.trim_end() {
            "successes:" => self.hidden = true,
            "failures:" => self.hidden = false,
            _ => {}
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.hidden = false;
            self.count(result);
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.split(" stdout").next()) {
            self.test = name.to_owned();
        }
        let said = line.trim_start();
        if begins(said, "skipped:") {
            self.skipped.push(format!("{}: {said}", self.test));
        } else if begins(said, "not tested here:") && !self.absent.iter().any(|known| known == said) {
            self.absent.push(said.to_owned());
        }
        !self.hidden
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

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 3 tests
test counts ... ok
test needs_yama ... ok

successes:

---- needs_yama stdout ----
not tested here: yama

---- needs_root stdout ----
some noise
SKIPPED: not root

successes:
    counts
    needs_yama

test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s
";

    #[test]
    fn skips_are_collected_and_the_noise_of_passing_tests_is_not_shown() {
        let mut summary = Summary::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| summary.line(line)).collect();
        assert_eq!((summary.passed, summary.failed, summary.ignored), (3, 0, 1));
        assert_eq!(summary.skipped, ["needs_root: SKIPPED: not root"]);
        assert_eq!(summary.absent, ["not tested here: yama"]);
        assert_eq!(shown.len(), 5);
        assert!(shown.last().is_some_and(|line| line.starts_with("test result")));
    }

    #[test]
    fn the_output_of_failing_tests_is_shown() {
        let mut summary = Summary::default();
        let output = "successes:\nnoise\nfailures:\n\n---- broken stdout ----\nassertion failed\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored";
        let shown: Vec<&str> = output.lines().filter(|line| summary.line(line)).collect();
        assert!(shown.contains(&"assertion failed") && !shown.contains(&"noise"));
        assert_eq!(summary.failed, 1);
    }
}
