//! What a console says of functions: help, and how a word may go on.

use super::api::{Entry, Origin};
use super::fault::nearest;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Columns of text.
const WIDTH: usize = 100;

/// Types with methods, in the order of the reference; first what is called alone.
pub fn owners(entries: &[Entry]) -> Vec<&'static str> {
    let mut owners: Vec<&'static str> = Vec::new();
    for entry in entries {
        if !owners.contains(&entry.owner) {
            owners.push(entry.owner);
        }
    }
    owners
}

/// All there is, by type.
pub fn overview(entries: &[Entry]) -> String {
    let mut out = String::from("`help NAME` tells of a function or a type, `exit()` or Ctrl-D ends.\n");
    for owner in owners(entries) {
        let title = if owner.is_empty() { "Functions" } else { owner };
        let names = entries.iter().filter(|entry| entry.owner == owner).map(|entry| entry.name.as_str());
        let _ = write!(out, "\n{title}\n{}", wrapped(names));
    }
    out
}

/// Of one function, or one type.
pub fn about(topic: &str, entries: &[Entry]) -> String {
    let topic = topic.trim().trim_end_matches("()");
    let (owner, name) =
        topic.rsplit_once("::").or_else(|| topic.rsplit_once('.')).map_or((None, topic), |(owner, name)| (Some(owner), name));
    let found: Vec<&Entry> =
        entries.iter().filter(|entry| entry.name == name && owner.is_none_or(|owner| entry.owner.eq_ignore_ascii_case(owner))).collect();
    if !found.is_empty() {
        return found.into_iter().map(one).collect::<Vec<_>>().join("\n");
    }
    let of_type: Vec<&Entry> = entries.iter().filter(|entry| !entry.owner.is_empty() && entry.owner.eq_ignore_ascii_case(topic)).collect();
    if !of_type.is_empty() {
        return of_type.into_iter().map(|entry| format!("{:<48} {}\n", entry.name, first_sentence(&entry.meaning))).collect();
    }
    let near = nearest(name, entries.iter().map(|entry| entry.name.as_str()));
    let near = near.map_or_else(|| "`help` lists all there is".to_owned(), |near| format!("did you mean `{near}`?"));
    format!("there is nothing called `{topic}`; {near}\n")
}

fn one(entry: &Entry) -> String {
    let owner = if entry.owner.is_empty() { String::new() } else { format!("{}::", entry.owner) };
    let whose = match entry.origin {
        Origin::Book => "",
        Origin::Undocumented => " (bytehound's, undocumented there)",
        Origin::Hound => " (hound's own)",
    };
    let mut out = format!("{owner}{}{whose}\n", entry.name);
    for signature in &entry.signatures {
        let _ = writeln!(out, "    {}{signature}", entry.name);
    }
    for line in textwrap(&entry.meaning, WIDTH - 4) {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.')
}

fn wrapped<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut seen = BTreeSet::new();
    let names: Vec<&str> = names.filter(|name| seen.insert(*name)).collect();
    textwrap(&names.join(" "), WIDTH - 2).into_iter().map(|line| format!("  {line}\n")).collect()
}

fn textwrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// How the word that ends the line may go on: where it begins, and what it may be. `type_of`: the type of a variable.
pub fn completions(line: &str, entries: &[Entry], variables: &[String], type_of: impl Fn(&str) -> Option<String>) -> (usize, Vec<String>) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let start = line.rfind(|c| !is_word(c)).map_or(0, |at| at + line[at..].chars().next().map_or(1, char::len_utf8));
    let (before, word) = line.split_at(start);
    let mut found: BTreeSet<String> = BTreeSet::new();
    let callable = |entry: &&Entry| entry.name.starts_with(word) && entry.name.starts_with(|c: char| c.is_alphabetic());
    let help = line.trim_start().starts_with("help ");
    match before.trim_end().strip_suffix('.') {
        Some(receiver) => {
            let owner = type_before(receiver, entries, &type_of);
            let fits = |entry: &&Entry| !entry.owner.is_empty() && owner.as_deref().is_none_or(|owner| entry.owner == owner);
            found.extend(entries.iter().filter(callable).filter(fits).map(|entry| entry.name.clone() + "("));
        }
        None if help => {
            let types = owners(entries).into_iter().filter(|owner| !owner.is_empty() && owner.starts_with(word));
            found.extend(types.map(str::to_owned));
            found.extend(entries.iter().filter(callable).map(|entry| entry.name.clone()));
        }
        None => {
            found.extend(entries.iter().filter(callable).filter(|entry| entry.owner.is_empty()).map(|entry| entry.name.clone() + "("));
            found.extend(variables.iter().filter(|name| name.starts_with(word)).cloned());
        }
    }
    (start, found.into_iter().collect())
}

/// The type of what stands before a dot: what the last call of it gives, or that of a variable.
fn type_before(text: &str, entries: &[Entry], type_of: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let text = text.trim_end();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let opened = match text.chars().last()? {
        ')' => matching(text, '(', ')')?,
        ']' => {
            let list = type_before(&text[..matching(text, '[', ']')?], entries, type_of)?;
            return result(entries, |entry| entry.owner == list && entry.name == "[]");
        }
        _ => {
            let start = text.rfind(|c| !is_word(c)).map_or(0, |at| at + 1);
            return type_of(&text[start..]);
        }
    };
    let called = text[..opened].trim_end();
    let start = called.rfind(|c| !is_word(c)).map_or(0, |at| at + 1);
    let (before, name) = called.split_at(start);
    match before.trim_end().strip_suffix('.') {
        Some(receiver) => {
            let owner = type_before(receiver, entries, type_of);
            result(entries, |entry| entry.name == name && owner.as_deref().is_none_or(|owner| entry.owner == owner))
        }
        None => result(entries, |entry| entry.name == name && entry.owner.is_empty()),
    }
}

fn result(entries: &[Entry], is: impl Fn(&Entry) -> bool) -> Option<String> {
    let entry = entries.iter().find(|entry| is(entry))?;
    let (_, result) = entry.signatures.first()?.rsplit_once("-> ")?;
    Some(result.to_owned())
}

/// Where the bracket opens that the text ends with.
fn matching(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices().rev() {
        if c == close {
            depth += 1;
        } else if c == open {
            depth -= 1;
            if depth == 0 {
                return Some(at);
            }
        }
    }
    None
}
