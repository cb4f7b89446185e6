//! What `hound leaks` says, against what is known.

use crate::json;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// Of what leaks, a place that is more than this must be called a leak.
const SHARE: f64 = 0.01;
/// A name of more letters is cut.
const LONG: usize = 60;

/// What hound says of a place.
pub struct Place {
    /// Functions, the innermost first.
    pub stack: Vec<String>,
    /// The word.
    pub verdict: String,
    /// Bytes that live at the end.
    pub live: f64,
    /// Bytes an hour that are never released.
    pub an_hour: f64,
}

impl Place {
    fn is_of(&self, function: &str) -> bool {
        self.stack.iter().any(|name| name.contains(function))
    }

    /// The innermost functions, in one line.
    fn shown(&self) -> String {
        // Whole names of C++ fill pages.
        let short =
            |name: &String| if name.len() > LONG { format!("{}…", name.chars().take(LONG).collect::<String>()) } else { name.clone() };
        let names: Vec<String> = self.stack.iter().take(7).map(short).collect();
        format!("`{}` ({:.0} bytes live, {:.0} an hour)", names.join(" < "), self.live, self.an_hour)
    }
}

/// What hound says of a capture.
pub struct Said {
    /// All places.
    pub places: Vec<Place>,
    /// Samples that it rests on; none where every allocation was recorded.
    pub samples: Option<u64>,
}

impl Said {
    /// Reads the JSON of `hound leaks`.
    pub fn read(text: &str) -> Result<Self> {
        let value = json::parse(text)?;
        let mut places = Vec::new();
        for list in ["leaks", "others"] {
            for one in json::list(&value, &[list])? {
                places.push(place(one)?);
            }
        }
        Ok(Self { places, samples: json::number(&value, &["session", "samples"]).ok() })
    }

    /// How many places have each verdict.
    pub fn verdicts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        self.places.iter().for_each(|place| *counts.entry(place.verdict.as_str()).or_default() += 1);
        counts
    }

    /// What is wrong about it. `leaks`: functions that leak, and no other does.
    pub fn wrong(&self, leaks: &[&str]) -> Vec<String> {
        let known = |place: &&Place| leaks.iter().any(|function| place.is_of(function));
        let called = |place: &&Place| place.verdict == "leak";
        // Said to be one perhaps is said, and no more: it is not missed, and accuses nobody.
        let is_named = |place: &&Place| called(place) || place.verdict == "may_leak";
        let growth: f64 = self.places.iter().filter(known).map(|place| place.live).sum();
        let falsely = self.places.iter().filter(called).filter(|place| !known(place)).map(|place| format!("no leak: {}", place.shown()));
        let unseen = leaks.iter().filter(|function| !self.places.iter().any(|place| place.is_of(function)));
        let unseen = unseen.map(|function| format!("not there at all: {function}"));
        let missed = self.places.iter().filter(known).filter(|place| !is_named(place) && place.live > SHARE * growth).map(|place| {
            format!("a leak of {:.1} % of what leaks is called \"{}\": {}", 100.0 * place.live / growth, place.verdict, place.shown())
        });
        falsely.chain(unseen).chain(missed).collect()
    }
}

fn place(one: &Value) -> Result<Place> {
    let text = |name: &str| one.get(name).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("a place has no {name}"));
    let number = |name: &str| one.get(name).and_then(Value::as_f64).with_context(|| format!("a place has no {name}"));
    let outermost_first = json::list(one, &["stack"])?.iter().map(|name| name.as_str().unwrap_or("?").to_owned());
    let stack = outermost_first.rev().collect();
    Ok(Place { stack, verdict: text("verdict")?, live: number("live_bytes")?, an_hour: number("bytes_an_hour")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(places: &[(&str, &str, f64)]) -> Said {
        let one = |(function, verdict, live): &(&str, &str, f64)| Place {
            stack: vec!["malloc".to_owned(), (*function).to_owned(), "main".to_owned()],
            verdict: (*verdict).to_owned(),
            live: *live,
            an_hour: 0.0,
        };
        Said { places: places.iter().map(one).collect(), samples: None }
    }

    #[test]
    fn a_leak_that_is_none_and_one_that_is_missed_are_wrong() {
        let all = [("cache", "plateau", 1e6), ("forgets", "leak", 1e5), ("forgets too", "leak", 2e3)];
        assert_eq!(said(&all).wrong(&["forgets"]), [""; 0]);
        assert_eq!(said(&all).wrong(&[]).len(), 2);
        assert_eq!(said(&all).wrong(&["forgets", "cache"]).len(), 1, "it is most of what leaks");
        assert_eq!(said(&all).wrong(&["forgets", "elsewhere"]).len(), 1);
        let perhaps = [("forgets", "may_leak", 1e5), ("cache", "may_leak", 1e6)];
        assert_eq!(said(&perhaps).wrong(&["forgets"]), [""; 0], "named, and nobody accused");
        let little = [("forgets", "leak", 1e5), ("forgets too", "turns_over", 900.0)];
        assert_eq!(said(&little).wrong(&["forgets"]), [""; 0], "less than a hundredth");
    }

    #[test]
    fn stacks_are_read_with_the_innermost_first() {
        let text = r#"{"session":{"samples":7},"leaks":[],"others":[
            {"verdict":"plateau","stack":["main","f"],"live_bytes":3.0,"bytes_an_hour":0.5}]}"#;
        let said = Said::read(text).unwrap();
        assert_eq!((said.places[0].stack[0].as_str(), said.verdicts()["plateau"], said.samples), ("f", 1, Some(7)));
    }
}
