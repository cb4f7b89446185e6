//! Colours of series.

use super::Scheme;

/// A colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rgb(pub u8, pub u8, pub u8);

/// Names that may be given instead of numbers: those that HTML has had from its beginning, and a few more that charts want.
const NAMES: [(&str, Rgb); 22] = [
    ("black", Rgb(0, 0, 0)),
    ("silver", Rgb(192, 192, 192)),
    ("gray", Rgb(128, 128, 128)),
    ("grey", Rgb(128, 128, 128)),
    ("white", Rgb(255, 255, 255)),
    ("maroon", Rgb(128, 0, 0)),
    ("red", Rgb(255, 0, 0)),
    ("purple", Rgb(128, 0, 128)),
    ("fuchsia", Rgb(255, 0, 255)),
    ("magenta", Rgb(255, 0, 255)),
    ("green", Rgb(0, 128, 0)),
    ("lime", Rgb(0, 255, 0)),
    ("olive", Rgb(128, 128, 0)),
    ("yellow", Rgb(255, 255, 0)),
    ("navy", Rgb(0, 0, 128)),
    ("blue", Rgb(0, 0, 255)),
    ("teal", Rgb(0, 128, 128)),
    ("aqua", Rgb(0, 255, 255)),
    ("cyan", Rgb(0, 255, 255)),
    ("orange", Rgb(255, 165, 0)),
    ("brown", Rgb(165, 42, 42)),
    ("pink", Rgb(255, 192, 203)),
];

/// So many series have colours that are told apart with any kind of colour vision.
pub(super) const DISTINCT: usize = PALETTE.len();
/// Those of Okabe and Ito, their yellow darker so that white shows it, and wine for their black; in an order in which neighbours differ most.
const PALETTE: [Rgb; 8] = [
    Rgb(0x00, 0x72, 0xB2),
    Rgb(0xE6, 0x9F, 0x00),
    Rgb(0x00, 0x9E, 0x73),
    Rgb(0xCC, 0x79, 0xA7),
    Rgb(0x56, 0xB4, 0xE9),
    Rgb(0xD5, 0x5E, 0x00),
    Rgb(0xE3, 0xD6, 0x3A),
    Rgb(0x88, 0x22, 0x55),
];
/// Of what is added up from many.
pub const REST: Rgb = Rgb(0x9A, 0x9A, 0x9A);

impl Rgb {
    /// `#1a2b3c`, `#abc`, `1a2b3c`, or a name.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some((_, known)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Some(*known);
        }
        let digits: Vec<u8> =
            text.trim_start_matches('#').chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
        match digits[..] {
            [r, g, b] => Some(Rgb(r * 17, g * 17, b * 17)),
            [a, b, c, d, e, f] => Some(Rgb(a << 4 | b, c << 4 | d, e << 4 | f)),
            _ => None,
        }
    }

    /// As SVG takes it.
    pub(super) fn hex(self) -> String {
        let Rgb(r, g, b) = self;
        format!("#{r:02x}{g:02x}{b:02x}")
    }

    /// This far to another colour, from 0 to 1.
    fn towards(self, other: Rgb, share: f64) -> Self {
        let part = |from: u8, to: u8| (f64::from(from) + (f64::from(to) - f64::from(from)) * share).round() as u8;
        Rgb(part(self.0, other.0), part(self.1, other.1), part(self.2, other.2))
    }
}

/// The colour of the series with this number, of so many.
pub(super) fn of(scheme: &Scheme, number: usize, count: usize) -> Rgb {
    match scheme {
        Scheme::Gradient(from, to) => from.towards(*to, if count > 1 { number as f64 / (count - 1) as f64 } else { 0.0 }),
        Scheme::Palette => {
            let colour = PALETTE[number % PALETTE.len()];
            // The same again, lighter and darker in turn: the order in the legend is that of the picture.
            match number / PALETTE.len() % 3 {
                0 => colour,
                1 => colour.towards(Rgb(255, 255, 255), 0.45),
                _ => colour.towards(Rgb(0, 0, 0), 0.4),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_read_as_people_write_them() {
        let read = ["#0072B2", "0072b2", "#fff", " Orange ", "", "#12", "#ggg", "no colour", "€"].map(Rgb::parse);
        let blue = Some(Rgb(0, 0x72, 0xB2));
        assert_eq!(read, [blue, blue, Some(Rgb(255, 255, 255)), Some(Rgb(255, 165, 0)), None, None, None, None, None]);
    }

    #[test]
    fn a_gradient_begins_and_ends_as_told() {
        let scheme = Scheme::Gradient(Rgb(255, 0, 0), Rgb(0, 0, 255));
        assert_eq!([0, 1, 2].map(|number| of(&scheme, number, 3)), [Rgb(255, 0, 0), Rgb(128, 0, 128), Rgb(0, 0, 255)]);
        assert_eq!(of(&scheme, 0, 1), Rgb(255, 0, 0));
    }

    /// What is left of a colour without one of three kinds of cones, in linear light (Viénot, Brettel, Mollon 1999; for blue, Brettel's matrix).
    fn seen(colour: Rgb, kind: usize) -> [f64; 3] {
        let linear = [colour.0, colour.1, colour.2].map(|part| (f64::from(part) / 255.0).powf(2.2));
        let matrices = [
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            [[0.112, 0.888, 0.0], [0.112, 0.888, 0.0], [0.004, -0.004, 1.0]],
            [[0.292, 0.708, 0.0], [0.292, 0.708, 0.0], [-0.022, 0.022, 1.0]],
            [[1.014, 0.109, -0.123], [0.0, 0.875, 0.125], [0.0, 0.875, 0.125]],
        ];
        // As even steps as the eye takes them, roughly.
        matrices[kind].map(|row| row.iter().zip(linear).map(|(factor, part)| factor * part).sum::<f64>().clamp(0.0, 1.0).powf(1.0 / 2.2))
    }

    #[test]
    fn colours_are_told_apart_with_any_kind_of_colour_vision() {
        for kind in 0..4 {
            let apart = |one: usize, other: usize| {
                let [a, b] = [one, other].map(|number| seen(of(&Scheme::Palette, number, 30), kind));
                a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
            };
            for number in 0..DISTINCT {
                for other in 0..number {
                    assert!(apart(number, other) > 0.14, "{number} and {other}, seen with kind {kind}: {}", apart(number, other));
                }
            }
            // Those after are the same again in another lightness: their order in the legend helps.
            for number in DISTINCT..DISTINCT * 3 {
                assert!(apart(number, number + 1) > 0.1, "{number} and the next one, seen with kind {kind}: {}", apart(number, number + 1));
            }
        }
    }
}
