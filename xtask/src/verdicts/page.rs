//! The table, and its place in `docs/verdicts.md`.
//!
//! A run may be about some of the programs only: the rows of the others stay as they are.

use super::record::Outcome;
use super::subject::Kind;
use super::{is_unseen, known};
use crate::page;
use anyhow::Result;

/// Where the table is kept.
const PAGE: &str = "docs/verdicts.md";
const HEAD: &str = "| program | what it does | recorded | minutes | requests | allocations | places that leak | called a leak | said to be one perhaps | other places | right |\n\
                    |---|---|---|---:|---:|---:|---:|---:|---:|---|---|\n";

/// The parts of the page: of which kind, whether of those that were chosen after the rules were made, name and title.
const PARTS: [(Kind, bool, &str, &str); 6] = [
    (Kind::Service, true, "unseen-services", "Real services under load, chosen after the rules were made"),
    (Kind::Healthy, true, "unseen-healthy", "Other healthy programs, chosen after the rules were made"),
    (Kind::Leaking, true, "unseen-leaking", "Programs whose leaks are known, chosen after the rules were made"),
    (Kind::Service, false, "services", "Real services under load"),
    (Kind::Healthy, false, "healthy", "Other healthy programs"),
    (Kind::Leaking, false, "leaking", "Programs whose leaks are known"),
];

/// A table of all of them.
pub fn table(outcomes: &[Outcome]) -> String {
    outcomes.iter().fold(HEAD.to_owned(), |table, outcome| table + &row(outcome))
}

/// Puts them on the page.
pub fn write(outcomes: &[Outcome]) -> Result<()> {
    for (kind, unseen, name, title) in PARTS {
        let is_here = |outcome: &&Outcome| outcome.kind == kind && is_unseen(outcome.name) == unseen;
        let new: Vec<(&str, String)> = outcomes.iter().filter(is_here).map(|outcome| (outcome.name, row(outcome))).collect();
        if new.is_empty() {
            continue;
        }
        let order: Vec<&str> = known().map(|subject| subject.name).collect();
        page::replace(PAGE, name, title, &merged(&page::part(PAGE, name)?, &new, &order))?;
    }
    Ok(())
}

/// The table with these rows in the place of those of the same names.
fn merged(before: &str, new: &[(&str, String)], order: &[&str]) -> String {
    let row_of = |name: &str| {
        let begin = format!("| {name} |");
        let old = || before.lines().find(|line| line.starts_with(&begin)).map(|line| format!("{line}\n"));
        new.iter().find(|(of, _)| *of == name).map(|(_, row)| row.clone()).or_else(old)
    };
    order.iter().filter_map(|name| row_of(name)).fold(HEAD.to_owned(), |table, row| table + &row)
}

fn row(outcome: &Outcome) -> String {
    let others = outcome.verdicts.iter().filter(|(word, _)| !["leak", "may_leak"].contains(&word.as_str()));
    let others = others.map(|(word, number)| format!("{number} {}", word.replace('_', "-")));
    let cells = [
        outcome.name.to_owned(),
        outcome.what.to_owned(),
        outcome.mode.name().to_owned(),
        format!("{:.1}", outcome.minutes),
        outcome.requests.map_or_else(String::new, with_commas),
        with_commas(outcome.allocations),
        outcome.leaks.to_string(),
        outcome.number("leak").to_string(),
        outcome.number("may_leak").to_string(),
        others.collect::<Vec<_>>().join(", "),
        right(&outcome.wrong),
    ];
    format!("| {} |\n", cells.join(" | "))
}

/// In a table there is room for the first only.
fn right(wrong: &[String]) -> String {
    match wrong {
        [] => "yes".to_owned(),
        [first] => format!("**no**: {}", first.replace('|', "/")),
        [first, more @ ..] => format!("**no**: {}; and {} more", first.replace('|', "/"), more.len()),
    }
}

fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_some_leaves_the_rows_of_the_others() {
        let before = format!("{HEAD}| a | old |\n| c | old |\n");
        let new = [("b", "| b | new |\n".to_owned()), ("c", "| c | new |\n".to_owned())];
        assert_eq!(merged(&before, &new, &["a", "b", "c", "d"]), format!("{HEAD}| a | old |\n| b | new |\n| c | new |\n"));
    }

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(with_commas), ["0", "999", "1,000", "1,234,567"]);
    }
}
