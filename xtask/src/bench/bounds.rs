//! The bounds that a figure must keep, and those it aims at.

use super::figures::{self, shown};

/// One measured figure and its bounds; smaller is better.
pub struct Bound {
    /// What was measured, with its unit.
    pub what: String,
    /// The figure.
    pub measured: f64,
    /// Above this it is not good enough.
    pub must: f64,
    /// Up to this there is nothing to explain.
    pub aim: f64,
}

impl Bound {
    /// A figure and its bounds.
    pub fn new(what: impl Into<String>, measured: f64, must: f64, aim: f64) -> Self {
        Self { what: what.into(), measured, must, aim }
    }

    /// Whether the figure keeps the bound it must. What could not be measured does not.
    pub fn holds(&self) -> bool {
        self.measured <= self.must
    }

    fn verdict(&self) -> &'static str {
        if self.measured <= self.aim {
            "reaches the aim"
        } else if self.holds() {
            "keeps the bound"
        } else {
            "MISSES the bound"
        }
    }
}

/// The bounds in Markdown.
pub fn table(bounds: &[Bound]) -> String {
    let row = |b: &Bound| vec![b.what.clone(), shown(b.measured), shown(b.must), shown(b.aim), b.verdict().to_owned()];
    figures::table(&["", "measured", "must", "aim", ""], &bounds.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_could_not_be_measured_misses_its_bound() {
        assert!(!Bound::new("", f64::NAN, 1.0, 1.0).holds());
        assert_eq!([0.5, 1.5, 2.5].map(|measured| Bound::new("", measured, 2.0, 1.0).holds()), [true, true, false]);
    }
}
