//! Scales on which what is left out is added up.

/// Where a value belongs, of those that [`Culler`](super::Culler) adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// In nanoseconds: 1, 2 and 5 times each power of ten from 100 ns on, below it 0.
    Lifetimes,
    /// In bytes: powers of two, below 1 the 0.
    Sizes,
}

impl Scale {
    /// The shortest time that is told apart, and the longest, in nanoseconds: 100 ns and some 58 days.
    const SHORTEST: u64 = 100;
    const LONGEST: u64 = 5_000_000_000_000_000;

    /// Where each place begins.
    pub fn places(self) -> Vec<u64> {
        match self {
            Scale::Sizes => std::iter::once(0).chain((0..u64::BITS).map(|bit| 1 << bit)).collect(),
            Scale::Lifetimes => {
                let decades = std::iter::successors(Some(Self::SHORTEST), |decade| Some(decade * 10));
                let steps = decades.flat_map(|decade| [decade, 2 * decade, 5 * decade]);
                std::iter::once(0).chain(steps.take_while(|step| *step <= Self::LONGEST)).collect()
            }
        }
    }

    /// The number of a value's place.
    pub(super) fn place(self, value: u64) -> u8 {
        match (self, value) {
            (Scale::Sizes, value) => (u64::BITS - value.leading_zeros()) as u8,
            (Scale::Lifetimes, 0..Self::SHORTEST) => 0,
            (Scale::Lifetimes, value) => {
                let value = value.min(Self::LONGEST);
                let decade = value.ilog10();
                let first = value / 10u64.pow(decade);
                (1 + 3 * (decade - Self::SHORTEST.ilog10()) + u32::from(first >= 2) + u32::from(first >= 5)) as u8
            }
        }
    }
}
