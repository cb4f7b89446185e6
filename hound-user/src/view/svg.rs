//! Text in pictures: what must be escaped, how wide it is, how it is cut and broken into lines.

use std::fmt::Write;

/// What no text may hold, or what would turn the text around that follows.
fn is_shown_as_another(character: char) -> bool {
    matches!(
        character,
        '\u{FFFE}' | '\u{FFFF}' | '\0'..='\u{1F}' | '\u{7F}'..='\u{9F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
    )
}

/// As text or an attribute's value in SVG and HTML. What XML has no place for (control characters, as names in a damaged capture may have
/// them) is shown as a replacement character.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push(' '),
            _ if is_shown_as_another(character) => out.push('\u{FFFD}'),
            _ => out.push(character),
        }
    }
    out
}

/// The space that a character takes in a picture's text, in units of the letters' size. An upper bound: those of the widest usual font
/// without serifs.
fn advance(character: char) -> f64 {
    match character {
        'i' | 'j' | 'l' | '\'' | '|' => 0.29,
        '.' | ',' | ':' | ';' | ' ' | '(' | ')' | '[' | ']' | 'f' | 't' | 'r' | '/' | '!' | '-' => 0.42,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '—' | '…' => 1.0,
        '0'..='9' | 'a'..='z' | '_' | '–' => 0.64,
        'A'..='Z' | '<' | '>' | '+' | '=' | '≈' | '−' | '×' | '#' | '&' | '~' => 0.84,
        // Scripts with wide characters begin about here.
        '\u{1100}'.. => 1.1,
        _ if is_shown_as_another(character) => 1.1,
        _ => 0.7,
    }
}

/// How wide text is at most, in letters of `size`.
pub(super) fn width(text: &str, size: f64) -> f64 {
    text.chars().map(advance).sum::<f64>() * size
}

/// The text, or as much of it as fits with an ellipsis.
pub(super) fn cut(text: &str, size: f64, most: f64) -> String {
    if width(text, size) <= most {
        return text.to_owned();
    }
    let mut room = most - width("…", size);
    let kept = text.chars().take_while(|&character| {
        room -= advance(character) * size;
        room >= 0.0
    });
    kept.collect::<String>().trim_end().to_owned() + "…"
}

/// Lines of at most this width; a word that is wider is cut.
pub(super) fn lines(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}")).filter(|line| width(line, size) <= most);
        match (longer, lines.last_mut()) {
            (Some(longer), Some(line)) => *line = longer,
            _ => lines.push(cut(word, size, most)),
        }
    }
    lines
}

/// A coordinate: three decimals are less than anyone sees, and no more digits than needed.
pub(super) fn number(value: f64) -> String {
    let mut text = String::new();
    // What is no number would make the picture unreadable.
    let _ = write!(text, "{:.3}", if value.is_finite() { value } else { 0.0 });
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0".to_owned() } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_name_holds_ends_the_text() {
        assert_eq!(escaped("a<b>&\"c\"\n\u{1b}[1m\0é"), "a&lt;b&gt;&amp;&quot;c&quot;&#10;\u{FFFD}[1m\u{FFFD}é");
    }

    #[test]
    fn lines_and_cuts_keep_to_their_width() {
        let text = "process 100, recorded in launch mode for 2.31 s; it exited with status 0 averyveryverylongwordthatfitsnowhere";
        for most in [30.0, 80.0, 200.0, 2000.0] {
            assert!(lines(text, 12.0, most).iter().all(|line| width(line, 12.0) <= most), "{most}");
            assert!(width(&cut(text, 12.0, most), 12.0) <= most, "{most}");
        }
        assert_eq!((lines(text, 12.0, 2000.0).len(), lines("", 12.0, 10.0).len()), (1, 0));
    }

    #[test]
    fn coordinates_are_short_and_always_numbers() {
        assert_eq!([1.0, 0.5, 1.23456, -0.0001, f64::NAN, f64::INFINITY, 100.0].map(number), ["1", "0.5", "1.235", "0", "0", "0", "100"]);
    }
}

/// What tests read out of pictures.
#[cfg(test)]
pub(super) mod inspect {
    use super::width;
    use regex::Regex;

    /// A text, and the space that it takes at most.
    #[derive(Clone, Debug)]
    pub struct Text {
        pub content: String,
        pub x: (f64, f64),
        pub y: (f64, f64),
    }

    /// All attributes that are numbers are numbers, and no number is written that is none.
    pub fn must_have_numbers(svg: &str) {
        for word in ["NaN", "inf", "nan"] {
            assert!(!svg.contains(&format!("\"{word}")) && !svg.contains(&format!(" {word}")), "{word} in {svg}");
        }
        let attribute = Regex::new(r#" (?:x|y|width|height)="([^"]*)""#).unwrap();
        for found in attribute.captures_iter(svg) {
            assert!(found[1].ends_with('%') || found[1].parse::<f64>().is_ok_and(f64::is_finite), "{}", &found[0]);
        }
        let path = Regex::new(r#" d="([^"]*)""#).unwrap();
        let coordinates = Regex::new(r"^[MLVHhvz0-9. -]*$").unwrap();
        for found in path.captures_iter(svg) {
            assert!(coordinates.is_match(&found[1]), "{}", &found[1]);
        }
    }

    pub fn size(svg: &str) -> (f64, f64) {
        let found = Regex::new(r#"viewBox="0 0 ([0-9.]+) ([0-9.]+)""#).unwrap().captures(svg).expect("a picture has a size");
        (found[1].parse().unwrap(), found[2].parse().unwrap())
    }

    /// `letter`: what one takes in a font of equal widths; none: as [`width`] says.
    pub fn texts(svg: &str, letter: Option<f64>) -> Vec<Text> {
        let element = Regex::new(r#"<text( class="([^"]*)")? x="([^"]*)" y="([^"]*)"[^>]*>([^<]*)</text>"#).unwrap();
        let all = svg.matches("<text").count();
        let texts: Vec<Text> = element
            .captures_iter(svg)
            .map(|found| {
                let class = found.get(2).map_or("", |class| class.as_str());
                let content = found[5].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
                let size = if class == "title" { 17.0 } else { 12.0 };
                let takes = match letter.filter(|_| class.is_empty()) {
                    Some(letter) => content.chars().count() as f64 * letter,
                    None => width(&content, size),
                };
                let (x, y): (f64, f64) = (found[3].parse().unwrap(), found[4].parse().unwrap());
                let of = |name: &str| class.split(' ').any(|word| word == name);
                let left = if of("end") {
                    x - takes
                } else if of("middle") {
                    x - takes / 2.0
                } else {
                    x
                };
                Text { content, x: (left, left + takes), y: (y - size * 0.75, y + size * 0.2) }
            })
            .collect();
        assert_eq!(texts.len(), all, "every text is found");
        texts
    }

    /// Every text lies inside the picture, and none on another.
    pub fn must_be_legible(svg: &str, letter: Option<f64>) {
        let (wide, high) = size(svg);
        let texts = texts(svg, letter);
        for (index, text) in texts.iter().enumerate() {
            assert!(text.x.0 >= 0.0 && text.x.1 <= wide + 0.5 && text.y.0 >= 0.0 && text.y.1 <= high, "outside: {text:?} of {wide}×{high}");
            for other in &texts[index + 1..] {
                let apart = text.x.1 <= other.x.0 || other.x.1 <= text.x.0 || text.y.1 <= other.y.0 || other.y.1 <= text.y.0;
                assert!(apart, "{text:?} on {other:?}");
            }
        }
    }
}
