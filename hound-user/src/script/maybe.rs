//! `Option`: what may not be there.

use super::api::{Api, Origin};
use super::duration::Duration;
use super::fault::refused;
use std::fmt;

/// A moment, if it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaybeDuration(pub Option<Duration>);

/// What is not there, and is of no type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nothing;

impl fmt::Display for MaybeDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(span) => write!(f, "Some({span})"),
            None => f.write_str("None"),
        }
    }
}

/// What scripts do with it.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<MaybeDuration>("Option<Duration>");
    api.engine.register_type_with_name::<Nothing>("None");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |maybe: &mut MaybeDuration| maybe.to_string());
        api.engine.register_fn(name, |_: &mut Nothing| "None".to_owned());
    }
    api.about("Option", "options_are_asked_and_unwrapped").of(Origin::Hound);
    api.entry("is_some", "Whether there is one.")
        .overload("(self: Option) -> Bool", |maybe: &mut MaybeDuration| maybe.0.is_some())
        .overload("(self: None) -> Bool", |_: &mut Nothing| false);
    api.entry("is_none", "Whether there is none.")
        .overload("(self: Option) -> Bool", |maybe: &mut MaybeDuration| maybe.0.is_none())
        .overload("(self: None) -> Bool", |_: &mut Nothing| true);
    api.function(
        "unwrap",
        "(self: Option<Duration>) -> Duration",
        "What is there; an error if nothing is.",
        |maybe: &mut MaybeDuration| maybe.0.map_or_else(|| refused("there is nothing to unwrap: ask `is_some()` first"), Ok),
    );
}
