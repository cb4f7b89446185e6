//! Reading figures out of the JSON that hound prints.
//!
//! A field that is missing is an error that names it: a figure that silently became zero would look like a good one.

use anyhow::{Context, Result};
use serde_json::Value;

/// What a program printed, as JSON.
pub fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("what was printed is not JSON")
}

/// The number at a path of field names.
pub fn number(value: &Value, path: &[&str]) -> Result<u64> {
    field(value, path)?.as_u64().with_context(|| format!("{} is not a whole number", path.join(".")))
}

/// The list at a path of field names.
pub fn list<'a>(value: &'a Value, path: &[&str]) -> Result<&'a [Value]> {
    Ok(field(value, path)?.as_array().with_context(|| format!("{} is not a list", path.join(".")))?)
}

fn field<'a>(value: &'a Value, path: &[&str]) -> Result<&'a Value> {
    let missing = || format!("there is no {} in the JSON", path.join("."));
    path.iter().try_fold(value, |inner, name| inner.get(name)).with_context(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_is_named() {
        let value = parse(r#"{"totals":{"frees":3}}"#).unwrap();
        assert_eq!(number(&value, &["totals", "frees"]).unwrap(), 3);
        assert_eq!(number(&value, &["totals", "lost_events"]).unwrap_err().to_string(), "there is no totals.lost_events in the JSON");
    }
}
