//! The rules of layout that the compiler does not check: which crate may use which, where `unsafe` may live, how long things may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::binaries::workspace;

/// Most lines a file may have, its test module aside.
const FILE_LINES: usize = 700;
/// Most lines a function may have.
const FUNCTION_LINES: usize = 100;

/// Which crate may depend on which of the workspace: the arrows of ARCHITECTURE.md.
const MAY_USE: &[(&str, &[&str])] = &[
    ("hound-common", &[]),
    ("hound-unwind", &[]),
    ("hound-inject", &["hound-common", "hound-unwind", "hound-tests"]), // of the last, what a test needs of the machine
    ("hound-ebpf", &["hound-common"]),
    ("hound-preload", &["hound-common", "hound-unwind"]),
    ("hound-api", &[]),
    ("hound-user", &["hound-common", "hound-unwind", "hound-inject", "hound-ebpf"]),
    ("hound-tests", &["hound-common", "hound-unwind", "hound-inject", "hound-user"]),
    ("xtask", &[]),
];

/// Crates whose outside dependencies are listed, because they run inside foreign processes.
const OUTSIDE: &[(&str, &[&str])] = &[("hound-common", &[]), ("hound-unwind", &["gimli"]), ("hound-preload", &[]), ("hound-api", &[])];

/// Where `unsafe` may live: a folder or a file, and why.
const UNSAFE: &[(&str, &str)] = &[
    ("preload/src", "runs inside the allocator of a foreign process: hooks, system calls, reading of stacks"),
    ("preload/api/src", "calls functions that the dynamic loader finds by name"),
    ("common/src/ring.rs", "memory shared with a process that may scribble on it"),
    ("common/src/control.rs", "memory shared with a process that may scribble on it"),
    ("hound-ebpf/src", "reads memory of kernel and targets"),
    ("inject/src", "ptrace"),
    ("inject/tests/process.rs", "signals to its own children"),
    ("inject/tests/probes.rs", "uprobes that count"),
    ("hound-user/src/session", "maps memory shared with targets"),
    ("hound-user/src/columns/mapped.rs", "maps the index of a capture"),
    ("hound-user/src/heap/fetch.rs", "a hint to the processor"),
    ("unwind/tests", "compares rows with the live stack of the test itself"),
    ("tests/programs", "programs that misbehave on purpose"),
    ("xtask/programs", "programs that are measured and judged: some leak on purpose"),
];

/// Pure parts of hound-user, and what they may not touch.
const PURE: &[&str] = &["heap", "query", "view"];
const IMPURE: &[&str] =
    &["std::fs", "std::net", "std::env", "std::process", "std::io", "std::thread", "std::time", "tokio", "nix::", "libc::"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "manager", "misc", "common_utils"];

struct Source {
    /// Relative to the workspace.
    path: String,
    /// As written.
    text: String,
    /// Comments and the insides of literals blanked, line for line; the test module cut off.
    code: String,
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    for crate_dir in ["common", "unwind", "preload", "inject", "hound-ebpf", "hound-user", "xtask", "tests"] {
        rust_files(&workspace().join(crate_dir), &mut files);
    }
    assert!(files.len() > 10, "the sources were not found: {files:?}");
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let code = without_tests(&blanked(&text));
            let path = path.strip_prefix(workspace()).unwrap_or(&path).display().to_string();
            Source { path, text, code }
        })
        .collect()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Blanks comments, strings and character literals, keeping every line break: what is left can be searched for words and braces.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let end = match &bytes[i..] {
            [b'/', b'/', ..] => i + bytes[i..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - i),
            [b'/', b'*', ..] => block_comment_end(bytes, i),
            [b'r', b'"' | b'#', ..] if !preceded_by_word(bytes, i) => raw_string_end(bytes, i).unwrap_or(i),
            [b'"', ..] => quoted_end(bytes, i, b'"'),
            [b'\'', b'\\', ..] => quoted_end(bytes, i, b'\''),
            [b'\'', rest @ ..] => character_end(rest).map_or(i, |n| i + 1 + n),
            _ => i,
        };
        if end == i {
            out.push(bytes[i]);
            i += 1;
        } else {
            out.extend(bytes[i..end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
            i = end;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn preceded_by_word(bytes: &[u8], i: usize) -> bool {
    i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_') && bytes[i - 1] != b'b' && bytes[i - 1] != b'c'
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0);
    while i < bytes.len() {
        match &bytes[i..] {
            [b'/', b'*', ..] => (i, depth) = (i + 2, depth + 1),
            [b'*', b'/', ..] => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// The end of `r"…"` or `r#"…"#`; nothing if it is no raw string (`r#type`).
fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|b| **b == b'#').count();
    let open = start + 1 + hashes;
    (bytes.get(open) == Some(&b'"')).then_some(())?;
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let at = bytes[open + 1..].windows(close.len()).position(|w| w == close)?;
    Some(open + 1 + at + close.len())
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut i = start + 1;
    while i < bytes.len() && bytes[i] != quote {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(bytes.len())
}

/// How long a character literal's inside and closing quote are; nothing if the quote begins a lifetime.
fn character_end(rest: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(&rest[..rest.len().min(5)]).or_else(|e| std::str::from_utf8(&rest[..e.valid_up_to()])).ok()?;
    let width = text.chars().next()?.len_utf8();
    (rest.get(width) == Some(&b'\'')).then_some(width + 1)
}

/// Cuts a trailing `#[cfg(test)] mod …`.
fn without_tests(code: &str) -> String {
    let start = code.find("#[cfg(test)]\nmod ").or_else(|| code.find("#[cfg(all(test")).unwrap_or(code.len());
    code[..start].to_owned()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Name and length in lines of every function that has a body.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let named = code[at + 3..].starts_with(|c: char| c.is_alphabetic() || c == '_');
        let whole_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if !named || !whole_word {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let mut depth = 0usize;
        for (i, c) in code[at..].char_indices() {
            match c {
                // Arrays in a signature hold semicolons too, but inside brackets.
                '(' | '[' => depth += 1,
                ')' | ']' => depth = depth.saturating_sub(1),
                ';' if depth == 0 => break,
                '{' if depth == 0 => {
                    found.push((name, code[at..at + i + body_length(&code[at + i..])].lines().count()));
                    break;
                }
                _ => {}
            }
        }
    }
    found
}

fn body_length(from_brace: &str) -> usize {
    let mut depth = 0;
    for (i, c) in from_brace.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 {
            return i + 1;
        }
    }
    from_brace.len()
}

/// All offences, or nothing.
fn none(offences: Vec<String>) {
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let output =
        Command::new(env!("CARGO")).args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(workspace()).output();
    let metadata: serde_json::Value = serde_json::from_slice(&output.expect("cargo runs").stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    let used: BTreeMap<&str, BTreeSet<&str>> = packages
        .iter()
        .map(|p| {
            let dependencies = p["dependencies"].as_array().into_iter().flatten();
            // What only tests and build scripts use does not ship.
            let shipped = dependencies.filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str());
            (p["name"].as_str().unwrap_or(""), shipped.collect())
        })
        .collect();
    let mut offences = Vec::new();
    for (name, dependencies) in &used {
        let Some((_, allowed)) = MAY_USE.iter().find(|(n, _)| n == name) else {
            offences.push(format!("{name} is not in the list of crates"));
            continue;
        };
        let inside = dependencies.iter().filter(|d| used.contains_key(*d));
        offences.extend(inside.filter(|d| !allowed.contains(d)).map(|d| format!("{name} must not use {d}")));
    }
    for (name, allowed) in OUTSIDE {
        let outside = used.get(name).into_iter().flatten().filter(|d| !used.contains_key(*d));
        offences
            .extend(outside.filter(|d| !allowed.contains(d)).map(|d| format!("{name} must not use {d}: it runs inside foreign processes")));
    }
    none(offences);
}

#[test]
fn unsafe_lives_in_listed_places_only() {
    let mut offences = Vec::new();
    for source in sources() {
        let listed = UNSAFE.iter().any(|(place, _)| source.path == *place || source.path.starts_with(&format!("{place}/")));
        let line = source.code.lines().position(|l| words(l).any(|w| w == "unsafe"));
        if let (false, Some(line)) = (listed, line) {
            offences.push(format!("{}:{}: unsafe outside the listed places", source.path, line + 1));
        }
    }
    none(offences);
}

#[test]
fn every_module_begins_by_saying_what_it_is() {
    let begins = |s: &Source| s.text.lines().find(|l| !l.is_empty()).is_some_and(|l| l.starts_with("//! ") || l.starts_with("#!"));
    none(sources().iter().filter(|s| !begins(s)).map(|s| format!("{}: does not begin with //!", s.path)).collect());
}

#[test]
fn no_file_and_no_function_is_too_long() {
    let mut offences = Vec::new();
    for source in sources() {
        let lines = source.code.lines().count();
        if lines > FILE_LINES {
            offences.push(format!("{}: {lines} lines without tests, {FILE_LINES} are allowed", source.path));
        }
        let long = functions(&source.code).into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES);
        offences.extend(long.map(|(name, lines)| format!("{}: fn {name} has {lines} lines, {FUNCTION_LINES} are allowed", source.path)));
    }
    none(offences);
}

#[test]
fn no_module_has_an_empty_name() {
    let stem = |s: &Source| Path::new(&s.path).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    none(sources().iter().filter(|s| EMPTY_NAMES.contains(&stem(s).as_str())).map(|s| format!("{}: says nothing", s.path)).collect());
}

#[test]
fn the_analysis_does_no_input_and_no_output() {
    let mut offences = Vec::new();
    for source in sources() {
        let pure = PURE
            .iter()
            .any(|p| source.path.starts_with(&format!("hound-user/src/{p}/")) || source.path == format!("hound-user/src/{p}.rs"));
        let tests = source.path.ends_with("/tests.rs");
        let impure = IMPURE.iter().filter(|i| pure && !tests && source.code.contains(**i));
        offences.extend(impure.map(|i| format!("{}: uses {i}", source.path)));
    }
    none(offences);
}

#[test]
fn processes_end_in_main_only() {
    let main = |s: &Source| s.path.ends_with("main.rs") || s.path.starts_with("tests/programs/") || s.path.starts_with("xtask/programs/");
    let ends = |s: &Source| s.code.contains("process::exit(") && !main(s);
    none(sources().iter().filter(|s| ends(s)).map(|s| format!("{}: std::process::exit outside main.rs", s.path)).collect());
}

#[test]
fn the_reader_of_sources_sees_through_comments_strings_and_lifetimes() {
    let text = "fn a<'x>(s: &'x str) -> char {\n // unsafe }\n let _ = (r#\"unsafe \" }\"#, \"}\\\"unsafe\", b'}', '\\'');\n '{'\n}\n/* unsafe /* } */ unsafe */ fn b();\n";
    let code = blanked(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert!(!code.contains("unsafe"), "{code}");
    assert_eq!(functions(&code), [("a".to_owned(), 5)]);
}
