//! Long names made short for text. JSON and full stacks have them whole.

use std::borrow::Cow;

/// The name of `std::string` that its template arguments make.
const STRING: &str = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >";

/// A C++ function without its parameters: they say little and take lines. Overloads then look alike; their lines tell them apart.
pub fn short_function(name: &str) -> Cow<'_, str> {
    let name = without_parameters(name);
    if name.contains(STRING) { Cow::Owned(name.replace(STRING, "std::string")) } else { Cow::Borrowed(name) }
}

fn without_parameters(name: &str) -> &str {
    let body = name.strip_suffix(" const").unwrap_or(name);
    if !body.ends_with(')') {
        return name;
    }
    let mut depth = 0usize;
    for (at, character) in body.char_indices().rev() {
        match character {
            ')' => depth += 1,
            '(' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            let before = &body[..at];
            // "(anonymous namespace)" and "operator()" are names, not parameters.
            let is_name = before.is_empty() || before.ends_with("::") || before.ends_with("operator");
            return if is_name { name } else { before };
        }
    }
    name
}

/// A source path relative to `here` if it lies below, else its last two parts.
pub fn short_path<'a>(path: &'a str, here: Option<&str>) -> Cow<'a, str> {
    if let Some(below) = here.and_then(|here| path.strip_prefix(here)).and_then(|below| below.strip_prefix('/')) {
        return Cow::Borrowed(below);
    }
    match path.rmatch_indices('/').nth(1) {
        Some((0, _)) | None => Cow::Borrowed(path),
        Some((at, _)) => Cow::Owned(format!("…{}", &path[at..])),
    }
}

/// What a row of one mode is called.
pub fn mode(sampled: bool) -> &'static str {
    if sampled { "samples: estimated" } else { "every block recorded: exact" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_cut_and_names_are_not() {
        let check = |name: &str, short: &str| assert_eq!(short_function(name), short);
        check("session_table::insert(std::pair<int (*)(char), long> const&, int) const", "session_table::insert");
        check("main", "main");
        check("(anonymous namespace)::leak(int)", "(anonymous namespace)::leak");
        check("(anonymous namespace)", "(anonymous namespace)");
        check("ns::f::operator()(int) const", "ns::f::operator()");
        check("ns::f::operator()", "ns::f::operator()");
        check("app::main::{{closure}}", "app::main::{{closure}}");
        check(")", ")");
        check(&format!("{STRING}::_M_construct(unsigned long, char)"), "std::string::_M_construct");
    }

    #[test]
    fn paths_are_shown_from_here_or_from_their_last_folder() {
        assert_eq!(short_path("/home/me/app/src/a.c", Some("/home/me/app")), "src/a.c");
        assert_eq!(short_path("/usr/src/lib/a.c", Some("/home")), "…/lib/a.c");
        assert_eq!(short_path("/lib/a.c", None), "/lib/a.c");
        assert_eq!(short_path("a.c", None), "a.c");
    }
}
