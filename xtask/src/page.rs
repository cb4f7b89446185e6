//! Pages of `docs/` of which parts are written here: they lie between markers and are replaced, the words around them stay.

use crate::place;
use anyhow::{Context, Result};
use std::fs;

/// Puts a text between the markers of this name on a page; a part that the page does not have yet is added at its end, with its title.
pub fn replace(page: &str, name: &str, title: &str, text: &str) -> Result<()> {
    let page = place::workspace().join(page);
    let before = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    fs::write(&page, with_section(&before, name, title, text)).with_context(|| format!("cannot write {}", page.display()))
}

/// What is between the markers of this name on a page; nothing if they are not there.
pub fn part(page: &str, name: &str) -> Result<String> {
    let page = place::workspace().join(page);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    Ok(between(&text, name).map(|(start, stop)| text[start..stop].to_owned()).unwrap_or_default())
}

/// Where the text between the markers begins and ends.
fn between(page: &str, name: &str) -> Option<(usize, usize)> {
    let begin = format!("<!-- measured: {name} -->\n");
    let start = page.find(&begin)? + begin.len();
    Some((start, start + page[start..].find(&format!("<!-- end: {name} -->"))?))
}

fn with_section(page: &str, name: &str, title: &str, measured: &str) -> String {
    match between(page, name) {
        Some((start, stop)) => format!("{}{measured}{}", &page[..start], &page[stop..]),
        None => format!("{}\n\n## {title}\n\n<!-- measured: {name} -->\n{measured}<!-- end: {name} -->\n", page.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = "# Page\n\nwords\n<!-- measured: a -->\nold\n<!-- end: a -->\nmore words\n";
        assert_eq!(with_section(page, "a", "A", "new\n"), "# Page\n\nwords\n<!-- measured: a -->\nnew\n<!-- end: a -->\nmore words\n");
    }

    #[test]
    fn a_new_section_is_added_and_then_replaced_in_place() {
        let once = with_section("# Page\n", "b", "B", "one\n");
        assert_eq!(once, "# Page\n\n## B\n\n<!-- measured: b -->\none\n<!-- end: b -->\n");
        assert_eq!(with_section(&once, "b", "B", "two\n"), once.replace("one", "two"));
    }
}
