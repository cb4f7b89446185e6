//! Who holds how much and uses how little of it: a pair of bars a group.

use super::Rgb;
use super::axis::Unit;
use super::legend::{Entry, Sign, legend};
use super::page::{MARGIN, SIZE, WIDTH, document, header};
use crate::view::picture::Remark;
use crate::view::svg::{cut, escaped, number, width};
use crate::view::units::{blocks, bytes, count, share};
use serde_json::{Value, json};
use std::fmt::Write;

/// What is used, and what is held beside it: told apart by the colour-blind, too.
const USED: Rgb = Rgb(0x00, 0x72, 0xB2);
const HELD: Rgb = Rgb(0xE6, 0x9F, 0x00);
const ROW: f64 = 42.0;
const BAR: f64 = 14.0;

/// What one group holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// What it is called.
    pub name: String,
    /// Pages that it alone has blocks on.
    pub pages: u64,
    /// Their bytes.
    pub held: u64,
    /// Bytes of its blocks on them.
    pub used: u64,
    /// How many blocks begin on them.
    pub blocks: u64,
}

/// Groups, those that hold most for least first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// What it shows.
    pub title: String,
    /// Whose it is, what is missing.
    pub remarks: Vec<Remark>,
    /// Groups, and all others together.
    pub pins: Vec<Pin>,
    /// Of all groups: pages with live blocks, live bytes on them, pages of several groups.
    pub pages: u64,
    /// Live bytes in all.
    pub live: u64,
    /// Pages that several groups have blocks on.
    pub shared: u64,
}

/// The picture.
pub fn pins_svg(of: &Pins) -> String {
    let (head, mut top) = header(&of.title, &of.remarks);
    let most = of.pins.iter().map(|pin| pin.held).max().unwrap_or(0).max(1) as f64;
    let said = |pin: &Pin| {
        let pages = if pin.pages == 1 { "1 page".to_owned() } else { format!("{} pages", count(pin.pages)) };
        let begin = if pin.blocks == 1 { "begins" } else { "begin" };
        let (used, share) = (bytes(pin.used), share(pin.used, pin.held));
        format!("{} in {pages} for {used} ({share}); {} {begin} there", bytes(pin.held), blocks(pin.blocks))
    };
    let figures = of.pins.iter().map(|pin| width(&said(pin), SIZE)).fold(0.0, f64::max);
    let room = (WIDTH - 2.0 * MARGIN - figures - 12.0).max(100.0);
    let mut body = String::new();
    for pin in &of.pins {
        let long = |value: u64| value as f64 / most * room;
        let (name, text) = (cut(&pin.name, SIZE, WIDTH - 2.0 * MARGIN), said(pin));
        let (left, y) = (number(MARGIN), number(top + SIZE + 6.0));
        let _ = writeln!(body, "<text x=\"{left}\" y=\"{}\">{}</text>", number(top + SIZE), escaped(&name));
        let _ = writeln!(body, "<g><title>{}: {}</title>", escaped(&pin.name), escaped(&text));
        let (held, used) = (long(pin.held).max(1.0), long(pin.used.min(pin.held)));
        for (wide, colour) in [(held, HELD), (used, USED)].into_iter().filter(|(wide, _)| *wide > 0.0) {
            let _ = writeln!(
                body,
                "<rect x=\"{left}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>",
                number(wide),
                number(BAR),
                colour.hex()
            );
        }
        let (x, y) = (number(MARGIN + held + 8.0), number(top + SIZE + 6.0 + BAR - 3.0));
        let _ = writeln!(body, "</g>\n<text class=\"faint\" x=\"{x}\" y=\"{y}\">{}</text>", escaped(&text));
        top += ROW;
    }
    if of.pins.is_empty() {
        let _ = writeln!(
            body,
            "<text class=\"faint\" x=\"{}\" y=\"{}\">no page is held by one of them alone</text>",
            number(MARGIN),
            number(top + SIZE)
        );
        top += ROW;
    }
    let entry = |colour: Rgb, name: &str| Entry { sign: Sign::Area(colour.hex()), name: name.to_owned(), figures: None };
    let entries = [
        entry(USED, "bytes of live blocks on these pages"),
        entry(HELD, "the rest of the pages, which cannot be given back as long as these blocks live"),
    ];
    let (text, bottom) = legend(&entries, ["", ""], MARGIN, top + 4.0, WIDTH - 2.0 * MARGIN);
    document(&of.title, &head, &(body + &text[..]), bottom)
}

/// The same for programs.
pub fn pins_json(of: &Pins) -> Value {
    let pin =
        |pin: &Pin| json!({"name": pin.name, "pages": pin.pages, "pinned_bytes": pin.held, "live_bytes": pin.used, "blocks": pin.blocks});
    json!({
        "title": of.title,
        "remarks": of.remarks.iter().map(Remark::text).collect::<Vec<_>>(),
        "unit": super::json::unit(Unit::Bytes),
        "page_bytes": crate::query::PAGE,
        "pages": of.pages,
        "live_bytes": of.live,
        "shared_pages": of.shared,
        "sites": of.pins.iter().map(pin).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::svg::inspect;
    use crate::view::tests::check;

    #[test]
    fn pins_are_as_expected_and_legible() {
        let pin = |name: &str, pages, used, blocks| Pin { name: name.into(), pages, held: pages * 4096, used, blocks };
        let mut pins = Pins {
            title: "Pages held for little <a&b>".into(),
            remarks: vec![Remark::Plain("./app --fast".into())],
            pins: vec![
                pin("session_new ← accept ← main", 9000, 144_000, 9000),
                pin(&"std::vector<int>::push_back ← ".repeat(12), 1, 4096, 1),
                pin("u64 ← of ← a ← damaged ← one", u64::MAX / 4096, u64::MAX, u64::MAX),
            ],
            pages: 9100,
            live: 200_000,
            shared: 99,
        };
        inspect::must_be_legible(&pins_svg(&pins), None);
        pins.pins.truncate(2);
        let picture = pins_svg(&pins);
        check("pins.svg", &picture);
        inspect::must_be_legible(&picture, None);
        inspect::must_have_numbers(&picture);
        assert_eq!(pins_json(&pins)["sites"][0]["pinned_bytes"], 9000 * 4096);
        inspect::must_be_legible(&pins_svg(&Pins { pins: Vec::new(), ..pins }), None);
    }
}
