//! `AllocationList`: blocks of a capture, in the order in which they were allocated.

use super::allocation::Allocation;
use super::api::{Api, Origin};
use super::condition::Condition;
use super::dataset::Dataset;
use super::duration::Duration;
use super::fault::{Refusal, refused};
use super::filters::{self, only};
use super::groups::AllocationGroupList;
use super::limits::Meter;
use super::selection::{Join, Selection};
use regex::Regex;
use rhai::{Array, Dynamic};
use std::sync::Arc;

/// Blocks of a capture.
#[derive(Clone)]
pub struct AllocationList(pub Selection);

impl AllocationList {
    /// Every block of the program's heap.
    pub fn all(data: &Arc<Dataset>, meter: &Meter) -> Self {
        AllocationList(Selection::all(data.clone(), meter.clone()))
    }

    /// # Errors
    /// If the script may not take so much.
    pub fn len(&self) -> Result<i64, Refusal> {
        Ok(self.0.rows()?.len() as i64)
    }

    /// Whether there are none.
    ///
    /// # Errors
    /// If the script may not take so much.
    pub fn is_empty(&self) -> Result<bool, Refusal> {
        Ok(self.0.rows()?.is_empty())
    }

    /// # Errors
    /// If the script may not take so much.
    pub fn only(&self, condition: Condition) -> Result<Self, Refusal> {
        self.0.only(condition).map(AllocationList)
    }

    fn get(&self, index: i64) -> Result<Allocation, Refusal> {
        let rows = self.0.rows()?;
        match usize::try_from(index).ok().and_then(|index| rows.nth(index)) {
            Some(row) => Ok(Allocation { data: self.0.data().clone(), row }),
            None => refused(out_of_range("allocations", index, rows.len())),
        }
    }
}

/// What is said of an index behind the end.
pub fn out_of_range(what: &str, index: i64, len: usize) -> String {
    match len {
        0 => format!("there is no [{index}]: the list has no {what}"),
        1 => format!("there is no [{index}]: the list has one of {what}, [0]"),
        len => format!("there is no [{index}]: the list has {len} {what}, from [0] to [{}]", len - 1),
    }
}

/// A pattern of the `regex` crate.
///
/// # Errors
/// If it is none.
pub fn pattern(text: &str) -> Result<Regex, Refusal> {
    let told = |error: regex::Error| {
        let error = error.to_string();
        // The last line says what is wrong; those before show where.
        let why = error.lines().last().unwrap_or("").trim().trim_start_matches("error: ").to_owned();
        super::fault::refusal(format!("`{text}` is no regular expression: {why}"))
    };
    Regex::new(text).map_err(told)
}

/// What scripts do with lists of blocks.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<AllocationList>("AllocationList");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |list: &mut AllocationList| list.len().map(|len| format!("AllocationList of {len}")));
    }
    api.about("AllocationList", "lists_are_put_together_and_taken_apart");
    let joins: [(&str, Join, &str); 3] = [
        ("-", Join::Minus, "What is in the first list and not in the second."),
        ("+", Join::Or, "What is in one of the lists, each once."),
        ("&", Join::And, "What is in both lists."),
    ];
    for (name, join, meaning) in joins {
        api.function(
            name,
            "(lhs: AllocationList, rhs: AllocationList) -> AllocationList",
            meaning,
            move |a: AllocationList, b: AllocationList| a.0.join(&b.0, join).map(AllocationList),
        );
    }
    api.function("[]", "(index: Integer) -> Allocation", "An allocation of the list, from 0.", |list: &mut AllocationList, index: i64| {
        list.get(index)
    });
    api.function(
        "group_by_backtrace",
        "(self: AllocationList) -> AllocationGroupList",
        "A group for each backtrace, in the order in which they are first met.",
        |list: &mut AllocationList| AllocationGroupList::of(list),
    );
    api.function(
        "len",
        "(self: AllocationList) -> Integer",
        "How many allocations the list has; samples count one each.",
        |list: &mut AllocationList| list.len(),
    );
    filters::register(api);
    own(api);
}

/// # Errors
/// If one is no duration.
pub fn spans(moments: Array) -> Result<Vec<i64>, Refusal> {
    let of = |moment: Dynamic| {
        let kind = moment.type_name();
        moment
            .try_cast::<Duration>()
            .map_or_else(|| refused(format!("an array of durations is asked for, and there is a {kind} in it")), |span| Ok(span.0))
    };
    moments.into_iter().map(of).collect()
}

/// Which paths have a function, or a source file, that matches.
///
/// # Errors
/// If it is no regular expression.
pub fn passing_through(data: &Dataset, text: &str, function: bool) -> Result<Vec<bool>, Refusal> {
    let pattern = pattern(text)?;
    Ok(data.paths().passing(|frame| match function {
        true => pattern.is_match(frame.function),
        false => frame.location.is_some_and(|at| pattern.is_match(at.file)),
    }))
}

fn own(api: &mut Api<'_>) {
    api.about("AllocationList", "lists_are_walked_and_sorted_into_kinds").of(Origin::Hound);
    api.function("is_empty", "(self: AllocationList) -> Bool", "Whether the list has none.", |list: &mut AllocationList| list.is_empty());
    api.function(
        "only_uncertain",
        "(self: AllocationList) -> AllocationList",
        only("that are samples of which nobody knows whether they live"),
        |list: &mut AllocationList| list.only(Condition::Uncertain),
    );
    api.function(
        "|",
        "(lhs: AllocationList, rhs: AllocationList) -> AllocationList",
        "What is in one of the lists, as `+`.",
        |a: AllocationList, b: AllocationList| a.0.join(&b.0, Join::Or).map(AllocationList),
    );
    api.function("!", "(list: AllocationList) -> AllocationList", "What the capture has and the list has not.", |list: AllocationList| {
        Selection::all(list.0.data().clone(), list.0.meter().clone()).join(&list.0, Join::Minus).map(AllocationList)
    });
    api.function("data", "(self: AllocationList) -> Data", "The capture that the list is of.", |list: &mut AllocationList| {
        super::data::Data { set: list.0.data().clone(), meter: list.0.meter().clone() }
    });
}
