//! Flamegraphs: one file that needs nothing else. An SVG that any program can draw, with a script for browsers beside; or the same in a page.
//!
//! The root is on top: it stays in sight when a deep tree is looked at, and figures are read from the whole down to its parts.

mod colour;
mod label;

use super::picture::Remark;
use super::sampled::{about, amount, blocks_of, bytes_of};
use super::short_function;
use super::svg::{cut, escaped, lines, number, width};
use super::units::{blocks, bytes, count, share};
use crate::query::{Flame, FlameBox, FlameFrame, FlameWhat, Measure, Sums};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write;

/// Width of the whole picture, in pixels.
const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
/// Of the boxes.
const INNER: f64 = WIDTH - 2.0 * MARGIN;
const ROW: f64 = 18.0;
/// Of a box's text, and what one of its letters takes: all fonts of equal widths have three fifths, or less.
const LETTER: f64 = 7.25;
const TITLE: f64 = 17.0;
const SMALL: f64 = 12.0;
/// What is narrower than this share of the whole is folded: 0.6 pixels.
pub const SMALLEST: f64 = 0.0005;
/// More levels than anyone scrolls through, unless told otherwise.
pub const DEEPEST: usize = 250;

/// What a picture shows beside its boxes.
pub struct Picture<'a> {
    /// What is added up, with the sum.
    pub title: String,
    /// Whose it is, what is missing.
    pub remarks: Vec<Remark>,
    /// Which figure.
    pub measure: Measure,
    /// What blocks are called, if they are no blocks: `page`.
    pub pages: bool,
    /// In the order of [`Flame::boxes`].
    pub boxes: &'a [FlameBox<'a>],
}

/// As SVG: a picture everywhere, and where scripts run, one that can be searched and zoomed.
pub fn svg(picture: &Picture<'_>) -> String {
    let (head, top) = header(picture);
    let modules = Modules::of(picture.boxes);
    let depth = picture.boxes.iter().map(|shown| shown.depth).max().unwrap_or(0);
    let bottom = top + (depth as f64 + 1.0) * ROW + 8.0;
    let (legend, height) = legend(picture, &modules, bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"hound\" width=\"{WIDTH}\" height=\"{h}\" viewBox=\"0 0 {WIDTH} {h}\" role=\"group\" \
         aria-label=\"{label}\">\n<style>{style}</style>\n<rect id=\"ground\" width=\"100%\" height=\"100%\"/>\n",
        h = number(height),
        label = escaped(&picture.title),
        style = style(),
    );
    out += &head;
    out += "<g id=\"boxes\">\n";
    let all = picture.boxes.first();
    for shown in picture.boxes {
        one(&mut out, picture, &modules, shown, all.unwrap_or(shown), top);
    }
    out += "</g>\n";
    out += &legend;
    let _ = writeln!(out, "<foreignObject id=\"live\" x=\"0\" y=\"0\" width=\"{WIDTH}\" height=\"{}\" display=\"none\"/>", number(height));
    // In a page, too, this is markup to the parser: what would end it is not in the script, and the section keeps the rest.
    out + "<script><![CDATA[\n" + include_str!("flame.js") + "]]></script>\n</svg>\n"
}

/// As a page.
pub fn html(picture: &Picture<'_>) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{}</title>\n<style>body{{margin:0;background:{}}}svg.hound{{display:block;width:100%;height:auto}}\
         @media (prefers-color-scheme:dark){{body{{background:{}}}}}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        escaped(&picture.title),
        colour::GROUND.0,
        colour::GROUND.1,
        svg(picture)
    )
}

/// Call paths as other tools read them: functions joined by semicolons, outermost first, and the figure behind; of two captures, the older one's
/// figure, then the newer one's. Inlined functions end in `_[i]`.
pub fn collapsed(flame: &Flame<'_>) -> String {
    let name = |frame: &FlameFrame<'_>| {
        let name = frame.function.replace([';', '\n', '\r'], ":");
        if frame.inlined { name + "_[i]" } else { name }
    };
    let mut lines: Vec<String> = Vec::new();
    for (path, [now, before]) in flame.stacks() {
        let path: Vec<String> = path.iter().map(name).collect();
        let path = if path.is_empty() { "(no stack)".to_owned() } else { path.join(";") };
        lines.push(if flame.is_compared() { format!("{path} {before} {now}\n") } else { format!("{path} {now}\n") });
    }
    lines.sort_unstable();
    lines.concat()
}

fn style() -> String {
    let (light, dark) = (colour::rules(false), colour::rules(true));
    format!(
        "{}{light}@media (prefers-color-scheme:dark){{{dark}}}",
        include_str!("flame.css").lines().map(str::trim).collect::<Vec<_>>().concat()
    )
}

/// Title and remarks, and where they end.
fn header(picture: &Picture<'_>) -> (String, f64) {
    let mut out = String::new();
    let mut y = MARGIN + TITLE;
    // The field to search in is beside the title.
    let title = cut(&picture.title, TITLE, INNER - 320.0);
    let _ = writeln!(out, "<text class=\"title\" x=\"{MARGIN}\" y=\"{y}\">{}</text>", escaped(&title));
    y += 4.0;
    for remark in &picture.remarks {
        let class = if matches!(remark, Remark::Warning(_)) { "small warn" } else { "small faint" };
        // The first is the command line: whole in a terminal, here as much as two lines hold.
        for line in lines(remark.text(), SMALL, INNER - 320.0).iter().take(2) {
            y += SMALL + 4.0;
            let _ = writeln!(out, "<text class=\"{class}\" x=\"{MARGIN}\" y=\"{y}\">{}</text>", escaped(line));
        }
    }
    (out, y + 10.0)
}

/// The modules that fill most of the picture, by path: their colours' numbers.
struct Modules<'a> {
    numbers: HashMap<&'a str, usize>,
    /// Names of the colours that are used.
    names: Vec<String>,
    others: bool,
}

impl<'a> Modules<'a> {
    fn of(boxes: &[FlameBox<'a>]) -> Self {
        let mut widths: HashMap<&str, f64> = HashMap::new();
        for shown in boxes {
            if let FlameWhat::Frame(frame) = shown.what {
                *widths.entry(frame.module).or_default() += shown.width;
            }
        }
        let mut widths: Vec<(&str, f64)> = widths.into_iter().collect();
        widths.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
        let own = colour::MODULES.len() - 1;
        let others = widths.len() > own;
        widths.truncate(own);
        let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let alike = |path: &str| widths.iter().filter(|(other, _)| base(other) == base(path)).count() > 1;
        let name = |path: &str| match path {
            "" => "in no module".to_owned(),
            path if alike(path) => path.to_owned(),
            path => base(path),
        };
        Modules {
            names: widths.iter().map(|(path, _)| name(path)).collect(),
            numbers: widths.iter().enumerate().map(|(number, (path, _))| (*path, number)).collect(),
            others,
        }
    }

    fn class(&self, module: &str) -> String {
        format!("m{}", self.numbers.get(module).copied().unwrap_or(colour::MODULES.len() - 1))
    }
}

/// What a comparison says of a box.
struct Change {
    /// `+1.20 MB`.
    text: String,
    class: &'static str,
}

/// How a box has changed. What samples cannot tell from chance has no colour.
fn change(picture: &Picture<'_>, shown: &FlameBox<'_>, all: &FlameBox<'_>) -> Option<Change> {
    let before = shown.before.as_ref()?;
    let measure = picture.measure;
    let [now, then] = [measure.of(&shown.sums), measure.of(before)];
    let apart = now.abs_diff(then);
    let about = if shown.sums.is_estimate() || before.is_estimate() { "≈ " } else { "" };
    let sign = if now > then {
        "+"
    } else if now < then {
        "−"
    } else {
        "±"
    };
    let size = if is_bytes(measure) { bytes(apart) } else { count(apart) };
    let chance = may_be_chance(measure, &shown.sums, before);
    // Against the whole: a change is as loud as it matters, and against the box, so that its place can be found on the way down.
    let whole = all.before.as_ref().map_or(0, |before| measure.of(before)).max(measure.of(&all.sums)).max(1) as f64;
    let (of_whole, of_box) = (apart as f64 / whole, apart as f64 / now.max(then).max(1) as f64);
    let strength = match () {
        () if chance || of_box < 0.005 => None,
        () if of_whole >= 0.1 => Some(2),
        () if of_whole >= 0.01 || of_box >= 0.5 => Some(1),
        () => Some(0),
    };
    let class = match (strength, now > then) {
        (None, _) => "same",
        (Some(0), true) => "g0",
        (Some(1), true) => "g1",
        (Some(_), true) => "g2",
        (Some(0), false) => "s0",
        (Some(1), false) => "s1",
        (Some(_), false) => "s2",
    };
    let doubt = if chance { " (may be chance: the estimates' ranges overlap)" } else { "" };
    Some(Change { text: format!("{about}{sign}{size}{doubt}"), class })
}

/// Whether two figures, of which at least one is an estimate, may be one and the same.
fn may_be_chance(measure: Measure, now: &Sums, before: &Sums) -> bool {
    let exactly = |sums: &Sums| (measure.of(sums), measure.of(sums));
    let range = |sums: &Sums| sums.interval(measure.figure()).filter(|_| sums.is_estimate()).unwrap_or_else(|| exactly(sums));
    let (now_in, before_in) = (range(now), range(before));
    (now.is_estimate() || before.is_estimate()) && now_in.0 <= before_in.1 && before_in.0 <= now_in.1
}

fn is_bytes(measure: Measure) -> bool {
    matches!(measure, Measure::Live | Measure::Peak | Measure::Allocated)
}

/// What a box says when it is pointed at: name, module, figures.
fn tooltip(picture: &Picture<'_>, shown: &FlameBox<'_>, all: &FlameBox<'_>, change: Option<&Change>) -> String {
    let name = match shown.what {
        FlameWhat::All => picture.title.clone(),
        FlameWhat::Frame(frame) => frame.function.to_owned(),
        FlameWhat::NoStack => "(no stack)".to_owned(),
        FlameWhat::Smaller(1) => "1 function, too small to be shown".to_owned(),
        FlameWhat::Smaller(number) => format!("{} functions, each too small to be shown", count(number as u64)),
        FlameWhat::Deeper(levels) => format!("up to {} more levels of calls, deeper than is shown", count(levels as u64)),
    };
    let mut text = name;
    if let FlameWhat::Frame(frame) = shown.what {
        let inlined = if frame.inlined { "inlined into its caller" } else { "" };
        let between = if frame.inlined && !frame.module.is_empty() { ", " } else { "" };
        if !inlined.is_empty() || !frame.module.is_empty() {
            let _ = write!(text, "\n{}{between}{inlined}", frame.module);
        }
    }
    let _ = write!(text, "\n{}", figures(picture, &shown.sums));
    let part = share(picture.measure.of(&shown.sums), picture.measure.of(&all.sums));
    match (&shown.before, change) {
        (Some(before), Some(change)) => {
            let _ = write!(text, " now\n{} before\n{}", figures(picture, before), change.text);
        }
        _ => {
            let _ = write!(text, ", {part} of all");
        }
    }
    if shown.sums.is_estimate() || shown.before.as_ref().is_some_and(Sums::is_estimate) {
        text += "\n≈ estimated from samples; in brackets the range that holds the truth with 95 %";
    }
    text
}

fn figures(picture: &Picture<'_>, sums: &Sums) -> String {
    let (number, size) = picture.measure.figures();
    if picture.pages {
        return format!("{} in {}{} page faults", bytes_of(sums, size), about(sums), count(sums.value(number)));
    }
    match picture.measure {
        Measure::Allocations | Measure::Temporary => format!("{}, {}", blocks_of(sums, number), bytes_of(sums, size)),
        _ => format!("{} in {}", bytes_of(sums, size), blocks_of(sums, number)),
    }
}

fn one(out: &mut String, picture: &Picture<'_>, modules: &Modules<'_>, shown: &FlameBox<'_>, all: &FlameBox<'_>, top: f64) {
    let change = change(picture, shown, all);
    let mut class = match (&change, shown.what) {
        (_, FlameWhat::Smaller(_) | FlameWhat::Deeper(_)) => "fold".to_owned(),
        (Some(change), _) => change.class.to_owned(),
        (None, FlameWhat::Frame(frame)) => modules.class(frame.module) + colour::shade(frame.function),
        (None, FlameWhat::All | FlameWhat::NoStack) => "same".to_owned(),
    };
    if matches!(shown.what, FlameWhat::Frame(frame) if frame.inlined) {
        class += " i";
    }
    let name = match shown.what {
        FlameWhat::All => format!("all: {}", amount(picture.measure, &shown.sums)),
        FlameWhat::Frame(frame) => short_function(frame.function).into_owned(),
        FlameWhat::NoStack => "(no stack)".to_owned(),
        FlameWhat::Smaller(number) => format!("{} smaller", count(number as u64)),
        FlameWhat::Deeper(levels) => format!("{} levels deeper", count(levels as u64)),
    };
    let mut forms = label::forms(&name);
    if let Some(change) = change.as_ref().filter(|change| change.class != "same" && !matches!(shown.what, FlameWhat::All)) {
        // The number says what the colour says; where there is room for one of them only, it is the name.
        let signed: Vec<_> = forms.iter().map(|form| format!("{} {form}", change.text).into()).collect();
        forms.splice(0..0, signed);
    }
    let (x, wide) = (MARGIN + shown.from * INNER, shown.width * INNER);
    let y = top + shown.depth as f64 * ROW;
    let label = label::fitted(&forms, ((wide - 6.0) / LETTER).max(0.0) as usize);
    let tip = tooltip(picture, shown, all, change.as_ref());
    // Only what the first line of the tooltip does not say already.
    let names = match &forms[..] {
        [only] if tip.lines().next() == Some(only) => String::new(),
        _ => format!(" data-n=\"{}\"", escaped(&forms.join("\n"))),
    };
    let _ = write!(
        out,
        "<g class=\"f {class}\"{names} data-v=\"{}\"><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
        picture.measure.of(&shown.sums),
        escaped(&tip),
        number(x),
        number(y),
        number(wide),
        number(ROW - 1.0)
    );
    if !label.is_empty() {
        let _ = write!(out, "<text x=\"{}\" y=\"{}\">{}</text>", number(x + 3.0), number(y + ROW - 5.5), escaped(&label));
    }
    out.push_str("</g>\n");
}

/// What colours and letters mean, and where that ends.
fn legend(picture: &Picture<'_>, modules: &Modules<'_>, top: f64) -> (String, f64) {
    let mut entries: Vec<(String, String)> = Vec::new();
    if picture.boxes.iter().any(|shown| shown.before.is_some()) {
        entries.push(("g2".into(), "grown".into()));
        entries.push(("g0".into(), "grown a little".into()));
        entries.push(("s2".into(), "shrunk".into()));
        entries.push(("s0".into(), "shrunk a little".into()));
        entries.push(("same".into(), "as before, or not to be told from chance; widths: the larger of both".into()));
    } else {
        entries.extend(modules.names.iter().enumerate().map(|(number, name)| (format!("m{number}"), name.clone())));
        if modules.others {
            entries.push((format!("m{}", colour::MODULES.len() - 1), "other modules".into()));
        }
    }
    let what = |test: fn(&FlameWhat<'_>) -> bool| picture.boxes.iter().any(|shown| test(&shown.what));
    if what(|what| matches!(what, FlameWhat::Smaller(_) | FlameWhat::Deeper(_))) {
        entries.push(("fold".into(), "several small or deep ones".into()));
    }
    let mut out = String::from("<g id=\"legend\">\n");
    let (mut x, mut y) = (MARGIN, top);
    let mut place = |wide: f64, y: &mut f64| {
        if x + wide > WIDTH - MARGIN && x > MARGIN {
            (x, *y) = (MARGIN, *y + ROW);
        }
        let at = x;
        x += wide + 18.0;
        at
    };
    for (class, name) in &entries {
        let name = cut(name, SMALL, INNER / 2.0);
        let at = place(16.0 + width(&name, SMALL), &mut y);
        let _ = writeln!(
            out,
            "<g class=\"f key {class}\"><rect x=\"{}\" y=\"{}\" width=\"11\" height=\"11\"/><text class=\"small\" x=\"{}\" y=\"{}\">{}</text></g>",
            number(at),
            number(y + 1.0),
            number(at + 16.0),
            number(y + 11.0),
            escaped(&name)
        );
    }
    if what(|what| matches!(what, FlameWhat::Frame(frame) if frame.inlined)) {
        let name = "slanted: inlined into the caller";
        let at = place(width(name, SMALL), &mut y);
        let _ = writeln!(out, "<text class=\"small slanted\" x=\"{}\" y=\"{}\">{name}</text>", number(at), number(y + 11.0));
    }
    out += "</g>\n";
    (out, y + ROW + MARGIN)
}

/// `1.20 MB more than before`, for a title.
pub fn difference(measure: Measure, now: &Sums, before: &Sums) -> String {
    let [a, b] = [measure.of(now), measure.of(before)];
    let about = if now.is_estimate() || before.is_estimate() { "≈ " } else { "" };
    let size = if is_bytes(measure) { bytes(a.abs_diff(b)) } else { blocks(a.abs_diff(b)) };
    let doubt = if may_be_chance(measure, now, before) { ", which may be chance" } else { "" };
    match a.cmp(&b) {
        Ordering::Equal => "as before".to_owned(),
        Ordering::Greater => format!("{about}{size} more than before{doubt}"),
        Ordering::Less => format!("{about}{size} less than before{doubt}"),
    }
}

#[cfg(test)]
mod tests;
