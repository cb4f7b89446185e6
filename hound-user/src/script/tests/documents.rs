//! The reference, help and completion, from what is registered.

use super::Console;
use super::values::{END, small};
use crate::script::help::{about, completions, overview};
use crate::script::reference::markdown;
use crate::script::{Entry, Limits};
use std::path::Path;

#[test]
fn the_reference_is_what_is_registered() {
    let written = markdown(Console::empty(&Limits::default()).session.entries());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scripting.md");
    if std::env::var_os("HOUND_BLESS").is_some() {
        std::fs::write(&path, &written).expect("docs can be written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == written, "docs/scripting.md is stale: run this test with HOUND_BLESS=1");
}

/// The text of the tests of this folder, and of those beside that are named.
fn tests() -> String {
    let files = [
        include_str!("book.rs"),
        include_str!("documents.rs"),
        include_str!("filters.rs"),
        include_str!("graphs.rs"),
        include_str!("values.rs"),
        include_str!("own.rs"),
    ];
    files.concat()
}

#[test]
fn the_test_that_is_named_is_there_and_calls_what_it_is_named_for() {
    let tests = tests();
    let console = Console::empty(&Limits::default());
    for Entry { owner, name, test, .. } in console.session.entries() {
        let start = tests.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("{owner}::{name}: there is no test `{test}`"));
        let is_word = name.starts_with(|c: char| c.is_alphabetic());
        // A filter is put together of a stem and an end.
        let stems =
            ["_at_least", "_at_most", "_after_at_least", "_until_at_most", "_larger_or_equal", "_smaller_or_equal", "_larger", "_smaller"];
        let stem = stems.iter().filter_map(|end| name.strip_suffix(end)).min_by_key(|stem| stem.len()).unwrap_or(name);
        let passing = name.replace("_function", "_").replace("_source", "_").replace("only_not_passing", "only_passing");
        let is_called = [name.as_str(), stem, &passing].iter().any(|what| tests.contains(*what));
        assert!(!is_word || is_called, "{owner}::{name} is called in no test");
        assert!(start > 0);
    }
}

#[test]
fn every_name_can_be_written() {
    let console = Console::empty(&Limits::default());
    for Entry { owner, name, .. } in console.session.entries() {
        let is_word = name.starts_with(|c: char| c.is_alphabetic());
        let script = if owner.is_empty() { format!("{name}()") } else { format!("x.{name}()") };
        assert!(!is_word || !console.session.is_wrong(&script), "{owner}::{name}");
    }
}

#[test]
fn help_tells_of_every_function() {
    let console = Console::empty(&Limits::default());
    let entries = console.session.entries();
    let all = overview(entries);
    for Entry { owner, name, meaning, signatures, .. } in entries {
        assert!(all.contains(name.as_str()), "{name}");
        let told = about(&format!("{owner}::{name}"), entries);
        let told = if owner.is_empty() { about(name, entries) } else { told };
        let first: Vec<&str> = meaning.split_whitespace().take(3).collect();
        assert!(
            told.contains(&first.join(" ")) && signatures.iter().all(|signature| told.contains(signature.as_str())),
            "{owner}::{name}: {told}"
        );
    }
    assert!(
        about("only_leaked", entries).contains("AllocationList::only_leaked")
            && about("only_leaked", entries).contains("MapList::only_leaked")
    );
    assert!(about("graph", entries).contains("-> Graph"));
    assert!(about("Backtrace", entries).contains("strip "));
    assert!(about("only_leakd", entries).contains("did you mean `only_leaked`?"));
    assert!(about("qqqqq", entries).contains("`help` lists all there is"));
}

#[test]
fn words_go_on_as_their_type_has_it() {
    let mut console = Console::new(&small(), END);
    console.prints("let groups = allocations().group_by_backtrace(); let graphic = 1;");
    let entries = console.session.entries().to_vec();
    let variables = console.session.variables();
    let complete = |line: &str| completions(line, &entries, &variables, |name| console.session.type_of(name));
    let (start, all) = complete("println(allocations().only_lea");
    assert_eq!((start, all), (22, vec!["only_leaked(".to_owned(), "only_leaked_or_deallocated_after(".to_owned()]));
    assert_eq!(complete("maps()[0].back").1, ["backtrace("]);
    assert_eq!(complete("groups.sort_by_s").1, ["sort_by_size(", "sort_by_size_ascending(", "sort_by_size_descending("]);
    assert_eq!(complete("groups[0].only_first_size_l").1.len(), 2);
    assert_eq!(complete("groups[0][0].backtrace().st").1, ["strip("]);
    assert_eq!(complete("gra").1, ["graph(", "graphic"]);
    assert_eq!(complete("help only_lea").1, ["only_leaked", "only_leaked_or_deallocated_after"]);
    assert_eq!(complete("help Back").1, ["Backtrace"]);
    assert!(complete("nobody_knows.only_bytehoun").1.contains(&"only_bytehound(".to_owned()));
    assert_eq!(complete("\u{e9}.tri").0, 3);
}
