//! Colours of boxes: by module, or by what has grown and shrunk; in a light and in a dark scheme, with text that can be read on all of them, and
//! told apart by those who see no red or no green. Never the colour alone says something.

use std::fmt::Write;

/// Fill in the light scheme and in the dark one.
type Pair = (&'static str, &'static str);

/// Of the modules that fill most of the picture, the last one of all others.
pub(super) const MODULES: [Pair; 7] = [
    ("#f6cb87", "#7a4f00"),
    ("#a9d8f5", "#1d5a80"),
    ("#8fd6b9", "#00604a"),
    ("#f2eb96", "#5c5600"),
    ("#e9b8d4", "#783a5e"),
    ("#b3bdf2", "#39417f"),
    ("#d4d4d4", "#4c4c4c"),
];

/// What has grown: a little, more, much.
pub(super) const GROWN: [Pair; 3] = [("#fbe0cc", "#59391f"), ("#f6b78a", "#7d4315"), ("#ee8f4f", "#9c4a08")];
/// What has shrunk: a little, more, much.
pub(super) const SHRUNK: [Pair; 3] = [("#d6e8f7", "#23405a"), ("#9dcbef", "#1c557f"), ("#63aee6", "#1267a5")];
/// What is as it was, or of which nothing is known.
pub(super) const SAME: Pair = ("#e2e2e2", "#4a4a4a");
/// What stands for several boxes.
pub(super) const FOLDED: Pair = ("#efefef", "#383838");
/// Text, in both schemes, on every fill.
pub(super) const TEXT: Pair = ("#101010", "#f4f4f4");
/// What is behind everything.
pub(super) const GROUND: Pair = ("#ffffff", "#16191d");

/// Neighbours of one module differ a little in shade: by their names, so that a function looks the same wherever it is met.
pub(super) fn shade(function: &str) -> &'static str {
    let sum = function.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    ["", " a", " b"][(sum >> 3) as usize % 3]
}

/// The rules of one scheme. Variables are not used: not all that draws SVG knows them.
pub(super) fn rules(dark: bool) -> String {
    let of = |pair: Pair| if dark { pair.1 } else { pair.0 };
    let mut css = String::new();
    let mut fill = |class: &str, pair: Pair| {
        let _ = write!(css, ".{class} rect{{fill:{}}}", of(pair));
    };
    MODULES.iter().enumerate().for_each(|(number, pair)| fill(&format!("m{number}"), *pair));
    GROWN.iter().enumerate().for_each(|(number, pair)| fill(&format!("g{number}"), *pair));
    SHRUNK.iter().enumerate().for_each(|(number, pair)| fill(&format!("s{number}"), *pair));
    fill("same", SAME);
    fill("fold", FOLDED);
    let (text, ground) = (of(TEXT), of(GROUND));
    let faint = if dark { "#a9b0b8" } else { "#555555" };
    let _ = write!(
        css,
        "text{{fill:{text}}}.faint{{fill:{faint}}}.warn{{fill:{}}}#ground{{fill:{ground}}}.f rect{{stroke:{ground}}}.fold rect{{stroke:{faint}}}",
        if dark { "#ffb074" } else { "#a33c00" }
    );
    css
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luminance(colour: &str) -> f64 {
        let part = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn text_can_be_read_on_every_box_in_both_schemes() {
        let all = MODULES.iter().chain(&GROWN).chain(&SHRUNK).chain([&SAME, &FOLDED, &GROUND]);
        for (light, dark) in all {
            assert!(contrast(light, TEXT.0) >= 7.0, "{light}: {}", contrast(light, TEXT.0));
            assert!(contrast(dark, TEXT.1) >= 4.5, "{dark}: {}", contrast(dark, TEXT.1));
        }
    }

    #[test]
    fn growth_and_shrinkage_differ_where_red_and_green_do_not() {
        // What tells them apart is blue against yellow, which nearly everybody sees.
        let blueness = |colour: &str| {
            let part = |at: usize| f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap());
            part(5) - (part(1) + part(3)) / 2.0
        };
        for (grown, shrunk) in GROWN.iter().zip(&SHRUNK) {
            assert!(blueness(shrunk.0) - blueness(grown.0) > 40.0, "{grown:?} {shrunk:?}");
            assert!(blueness(shrunk.1) - blueness(grown.1) > 40.0, "{grown:?} {shrunk:?}");
        }
    }
}
