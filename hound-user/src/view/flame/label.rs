//! What a box is called in the room it has.

use std::borrow::Cow;

/// Boxes narrower than this many characters have no text.
pub(super) const FEWEST: usize = 4;

/// The name in forms that say less and less: whole, without template arguments, without the outer namespaces one by one.
pub(super) fn forms(name: &str) -> Vec<Cow<'_, str>> {
    let mut forms = vec![Cow::Borrowed(name)];
    let bare = without_arguments(name);
    let mut starts: Vec<usize> = Vec::new();
    let mut depth = 0usize;
    let bytes = bare.as_bytes();
    for at in 0..bytes.len() {
        match bytes[at] {
            b'<' | b'(' => depth += 1,
            b'>' | b')' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && at > 0 && bytes[at - 1] == b':' => starts.push(at + 1),
            _ => {}
        }
    }
    let tails: Vec<String> = starts.iter().filter(|start| **start < bare.len()).map(|&start| format!("…{}", &bare[start..])).collect();
    if bare != name {
        forms.push(Cow::Owned(bare));
    }
    forms.extend(tails.into_iter().map(Cow::Owned));
    // `libcrypto.so.3+0x1b5e40`: what tells two of them apart is at the end, and the module has a colour.
    if let Some(at) = name.rfind("+0x").filter(|&at| at > 0 && name[at + 3..].bytes().all(|byte| byte.is_ascii_hexdigit())) {
        forms.push(Cow::Owned(name[at..].to_owned()));
    }
    forms
}

/// `map<int, vector<char> >::insert` as `map<…>::insert`. Operators that contain such characters stay.
fn without_arguments(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut depth = 0usize;
    let characters: Vec<char> = name.chars().collect();
    for (at, &character) in characters.iter().enumerate() {
        let before = at.checked_sub(1).map_or(' ', |before| characters[before]);
        let opens = character == '<' && (before.is_alphanumeric() || before == '_' || before == ':') && !out.ends_with("operator");
        if opens {
            if depth == 0 {
                out.push_str("<…>");
            }
            depth += 1;
        } else if character == '>' && depth > 0 && before != '-' {
            depth -= 1;
        } else if depth == 0 {
            out.push(character);
        }
    }
    // What does not close is no template.
    if depth == 0 { out } else { name.to_owned() }
}

/// The first form that fits into so many characters, else the last one cut; empty if there is no room.
pub(super) fn fitted(forms: &[Cow<'_, str>], characters: usize) -> String {
    if characters < FEWEST {
        return String::new();
    }
    if let Some(form) = forms.iter().find(|form| form.chars().count() <= characters) {
        return form.to_string();
    }
    let last = forms.last().map_or("", |form| form);
    last.chars().take(characters - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, characters: usize, label: &str) {
        assert_eq!(fitted(&forms(name), characters), label, "{name} in {characters}");
    }

    #[test]
    fn names_say_as_much_as_there_is_room_for() {
        let name = "std::map<int, std::vector<char> >::insert";
        check(name, 41, name);
        check(name, 40, "std::map<…>::insert");
        check(name, 18, "…map<…>::insert");
        check(name, 10, "…insert");
        check(name, 5, "…ins…");
        check(name, 2, "");
        check("main", 4, "main");
        check("main", 3, "");
        check("mains", 4, "mai…");
        check("libcrypto.so.3+0x1b5e40", 12, "+0x1b5e40");
        check("operator<<", 8, "operato…");
        check("ns::operator->", 12, "…operator->");
        check("a<b", 10, "a<b");
        check("<T as alloc::Trait>::call", 8, "…call");
        check("", 9, "");
        check("é::ü::", 5, "…ü::");
    }
}
