//! A set of rows: a bit each, and counts to find the n-th of them by.

use super::fault::Refusal;
use super::limits::{Meter, Share};

/// Words between two counts.
const STEP: usize = 64;

/// Which rows of a table.
#[derive(Debug)]
pub struct RowSet {
    words: Vec<u64>,
    /// How many rows there are before each [`STEP`] of words.
    before: Vec<u32>,
    count: usize,
    /// Its part of what the script may hold.
    _share: Share,
}

impl RowSet {
    /// The rows whose bits are set.
    ///
    /// # Errors
    /// If the script may not hold so much.
    pub fn new(words: Vec<u64>, meter: &Meter) -> Result<Self, Refusal> {
        let share = meter.take(words.len() * 8 + words.len() / STEP * 4)?;
        let mut before = Vec::with_capacity(words.len() / STEP + 1);
        let mut count = 0;
        for step in words.chunks(STEP) {
            before.push(count as u32);
            count += step.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        }
        Ok(RowSet { words, before, count, _share: share })
    }

    /// The bits.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the row is among them.
    pub fn contains(&self, row: u32) -> bool {
        self.words.get(row as usize / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// The row that has so many before it.
    pub fn nth(&self, index: usize) -> Option<u32> {
        if index >= self.count {
            return None;
        }
        let step = self.before.partition_point(|&before| before as usize <= index) - 1;
        let mut left = index - self.before[step] as usize;
        for (at, &word) in self.words.iter().enumerate().skip(step * STEP) {
            let ones = word.count_ones() as usize;
            if left < ones {
                let rest = (0..left).fold(word, |word, _| word & (word - 1));
                return Some(at as u32 * 64 + rest.trailing_zeros());
            }
            left -= ones;
        }
        None
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        ones(&self.words, 0)
    }
}

/// The bits that are set, with `from` added.
pub fn ones(words: &[u64], from: u32) -> impl Iterator<Item = u32> + '_ {
    words.iter().enumerate().flat_map(move |(at, &word)| {
        let mut left = word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(from + at as u32 * 64 + bit)
        })
    })
}

/// All of so many rows.
pub fn full(rows: usize) -> Vec<u64> {
    let mut words = vec![u64::MAX; rows.div_ceil(64)];
    if let (Some(last), true) = (words.last_mut(), !rows.is_multiple_of(64)) {
        *last = (1 << (rows % 64)) - 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_set_has_every_row_and_no_other() {
        for rows in [0usize, 1, 63, 64, 65, 5000] {
            let set = RowSet::new(full(rows), &Meter::unlimited()).unwrap();
            assert_eq!((set.len(), set.iter().count(), set.is_empty()), (rows, rows, rows == 0));
            assert_eq!(set.nth(rows), None);
            assert!(rows == 0 || set.nth(rows - 1) == Some(rows as u32 - 1));
        }
    }

    proptest! {
        #[test]
        fn the_nth_row_is_the_nth(words in prop::collection::vec(prop_oneof![Just(0u64), any::<u64>()], 0..300)) {
            let set = RowSet::new(words, &Meter::unlimited()).unwrap();
            let all: Vec<u32> = set.iter().collect();
            prop_assert_eq!(all.len(), set.len());
            for (index, row) in all.iter().enumerate() {
                prop_assert_eq!(set.nth(index), Some(*row));
                prop_assert!(set.contains(*row));
            }
        }
    }
}
