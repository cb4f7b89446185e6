//! What a script is told when it goes wrong: file, line, column, what is wrong, and what there is instead.

use super::api::Entry;
use rhai::{EvalAltResult, ParseError, ParseErrorType, Position};
use std::fmt;

/// An error on its way through the engine, which adds where it was.
pub type Refusal = Box<EvalAltResult>;

/// Refuses, in these words.
pub fn refused<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(refusal(why))
}

/// A refusal in these words.
pub fn refusal(why: impl Into<String>) -> Refusal {
    Box::new(EvalAltResult::ErrorRuntime(why.into().into(), Position::NONE))
}

/// Why a script ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The script.
    pub file: String,
    /// Line and column, from 1; none if it is of no place.
    pub place: Option<(usize, usize)>,
    /// What is wrong.
    pub what: String,
    /// What there is instead.
    pub instead: Option<String>,
    /// It was not finished: more lines may complete it.
    pub unfinished: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.what)?,
            None => write!(f, "{}: {}", self.file, self.what)?,
        }
        self.instead.as_ref().map_or(Ok(()), |instead| write!(f, "; {instead}"))
    }
}

impl std::error::Error for Fault {}

fn place(at: Position) -> Option<(usize, usize)> {
    at.line().map(|line| (line, at.position().unwrap_or(1)))
}

impl Fault {
    /// Of a script that is none.
    pub fn of_parsing(error: &ParseError, source: &str, file: &str) -> Self {
        let ends_early = match error.err_type() {
            ParseErrorType::UnexpectedEOF | ParseErrorType::MissingToken(..) => true,
            ParseErrorType::BadInput(error) => error.to_string().contains("not terminated"),
            _ => false,
        };
        // What is missing may follow only where nothing stands in its place.
        let written = source.trim_end();
        let end = (written.lines().count(), written.lines().last().map_or(0, |line| line.chars().count()));
        let at = place(error.position());
        let unfinished = ends_early && at.is_none_or(|at| at > end || matches!(error.err_type(), ParseErrorType::BadInput(_)));
        Fault { file: file.to_owned(), place: at, what: error.err_type().to_string(), instead: None, unfinished }
    }

    /// Of a script that ran. Where a function of the script's own failed, the place is inside of it.
    pub fn of_running(error: &EvalAltResult, file: &str, entries: &[Entry]) -> Self {
        let inner = error.unwrap_inner();
        let at = [inner.position(), error.position()].into_iter().find_map(place);
        let (what, instead) = words(inner, entries);
        Fault { file: file.to_owned(), place: at, what, instead, unfinished: false }
    }
}

fn words(error: &EvalAltResult, entries: &[Entry]) -> (String, Option<String>) {
    match error {
        EvalAltResult::ErrorFunctionNotFound(signature, _) => missing(signature, entries),
        EvalAltResult::ErrorVariableNotFound(name, _) => {
            let called = entries.iter().any(|entry| entry.owner.is_empty() && entry.name == *name);
            let instead = if called { Some(format!("call it: `{name}()`")) } else { None };
            (format!("there is no variable `{name}`"), instead)
        }
        EvalAltResult::ErrorDotExpr(text, _) | EvalAltResult::ErrorPropertyNotFound(text, _) if text.matches('\'').count() >= 4 => {
            // Of the engine's sentence: the property, and the type that lacks it.
            let quoted: Vec<&str> = text.split('\'').skip(1).step_by(2).collect();
            let (name, owner) = (quoted[0], quoted[1]);
            let of_type = || entries.iter().filter(|entry| entry.owner == owner).map(|entry| entry.name.as_str());
            let instead = match of_type().any(|method| method == name) {
                true => Some(format!("it is called with brackets: `.{name}(…)`")),
                false => nearest(name, of_type()).map(|near| format!("did you mean `.{near}(…)`?")),
            };
            (format!("{owner} has no property `{name}`"), instead)
        }
        EvalAltResult::ErrorTooManyOperations(_) => ("the script takes too many steps".into(), None),
        EvalAltResult::ErrorTooManyVariables(_) => ("the script has too many variables".into(), None),
        EvalAltResult::ErrorStackOverflow(_) => ("functions call each other too deeply".into(), None),
        EvalAltResult::ErrorDataTooLarge(what, _) => (format!("too large: {}", what.to_lowercase()), None),
        EvalAltResult::ErrorTerminated(why, _) if why.is_string() => (why.to_string(), None),
        EvalAltResult::ErrorRuntime(why, _) if !why.is_unit() => (why.to_string(), None),
        EvalAltResult::ErrorParsing(what, _) => (what.to_string(), None),
        other => {
            let text = other.to_string();
            // The place is told before.
            let end = text.rfind(" (line ").unwrap_or(text.len());
            (text[..end].to_owned(), None)
        }
    }
}

/// `only_leakd (AllocationList)`: by that name there is nothing, or nothing that takes this.
fn missing(signature: &str, entries: &[Entry]) -> (String, Option<String>) {
    let (name, arguments) = signature.split_once(" (").unwrap_or((signature, ""));
    let arguments: Vec<&str> = arguments.trim_end_matches(')').split(", ").filter(|argument| !argument.is_empty()).collect();
    let same: Vec<&Entry> = entries.iter().filter(|entry| entry.name == name).collect();
    if !same.is_empty() {
        let owned = |entry: &&&Entry| arguments.first().is_some_and(|first| *first == entry.owner);
        let own: Vec<&&Entry> = same.iter().filter(owned).collect();
        let shown: Vec<&&Entry> = if own.is_empty() { same.iter().collect() } else { own };
        let ways = shown.iter().flat_map(|entry| entry.signatures.iter().map(move |signature| format!("{name}{signature}")));
        let what = format!("`{name}` cannot be called with ({})", spoken(&arguments));
        return (what, Some(format!("there is {}", ways.take(4).collect::<Vec<_>>().join(", "))));
    }
    let receiver = arguments.first().copied().unwrap_or("");
    let has_methods = !receiver.is_empty() && entries.iter().any(|entry| entry.owner == receiver);
    let candidates = entries.iter().filter(|entry| if has_methods { entry.owner == receiver } else { entry.owner.is_empty() });
    let near = nearest(name, candidates.map(|entry| entry.name.as_str()));
    let what = match has_methods {
        true => format!("{receiver} has no `{name}`"),
        false => format!(
            "there is no function `{name}`{}",
            if arguments.is_empty() { String::new() } else { format!(" of ({})", spoken(&arguments)) }
        ),
    };
    (what, near.map(|near| format!("did you mean `{near}`?")))
}

fn spoken(arguments: &[&str]) -> String {
    let name = |argument: &&str| match *argument {
        "i64" => "Integer".to_owned(),
        "f64" => "Float".to_owned(),
        "&str | ImmutableString | String" | "string" | "ImmutableString" | "&str" => "String".to_owned(),
        "array" => "Array".to_owned(),
        other => other.to_owned(),
    };
    arguments.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The name that is fewest letters away, if it is near.
pub fn nearest<'n>(name: &str, among: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let most = (name.chars().count() / 3).clamp(1, 4);
    among.map(|other| (distance(name, other), other)).filter(|(distance, _)| *distance <= most).min().map(|(_, other)| other)
}

/// Letters to change, add or take away.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_and_no_far_one() {
        let names = ["only_leaked", "only_larger", "len"];
        assert_eq!(nearest("only_leakd", names.into_iter()), Some("only_leaked"));
        assert_eq!(nearest("lne", names.into_iter()), None);
        assert_eq!(nearest("length", names.into_iter()), None);
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("a", "")), (3, 2, 1));
    }
}
