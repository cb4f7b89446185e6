//! `docs/overhead.md`: the measured parts lie between markers and are replaced, the words around them stay.

use super::{Section, bounds};
use crate::place;
use anyhow::{Context, Result};
use std::fs;

/// Puts a section's tables between its markers on the page; a section the page does not have yet is added at its end.
pub fn replace(section: &Section, machine: &str, runs: usize) -> Result<()> {
    let page = place::workspace().join("docs/overhead.md");
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let measured = format!(
        "{}\n{}\nMeasured by `cargo xtask bench {}`, {runs} alternating runs of each kind: {machine}.\n",
        bounds::table(&section.bounds),
        section.detail,
        section.name
    );
    fs::write(&page, with_section(&text, section.name, section.title, &measured))
        .with_context(|| format!("cannot write {}", page.display()))
}

fn with_section(page: &str, name: &str, title: &str, measured: &str) -> String {
    let (begin, end) = (format!("<!-- measured: {name} -->\n"), format!("<!-- end: {name} -->"));
    let place = page.find(&begin).map(|at| at + begin.len()).and_then(|start| Some((start, start + page[start..].find(&end)?)));
    match place {
        Some((start, stop)) => format!("{}{measured}{}", &page[..start], &page[stop..]),
        None => format!("{}\n\n## {title}\n\n{begin}{measured}{end}\n", page.trim_end()),
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
