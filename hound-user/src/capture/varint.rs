//! Variable-length integers: seven bits a byte, lowest first; the top bit says that more follow. Signed numbers are zigzag-folded.

/// Appends a number.
#[inline(always)]
pub fn put(out: &mut Vec<u8>, value: u64) {
    // Nearly all numbers are surprises of one byte.
    if value < 0x80 { out.push(value as u8) } else { put_long(out, value) }
}

#[inline(never)]
fn put_long(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small magnitudes of either sign become small numbers.
#[inline(always)]
pub fn fold(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Undoes [`fold`].
#[inline(always)]
pub fn unfold(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads numbers off the front of a slice. Reading past the end gives zeros and is remembered, so that hot loops check once.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    at: usize,
    /// Something was read that is not there.
    pub overrun: bool,
}

impl Cursor {
    /// The next byte.
    #[inline(always)]
    pub fn byte(&mut self, bytes: &[u8]) -> u8 {
        match bytes.get(self.at) {
            Some(byte) => {
                self.at += 1;
                *byte
            }
            None => {
                self.overrun = true;
                0
            }
        }
    }

    /// The next number. More than ten bytes of it are cut off (bits beyond 64 are dropped).
    #[inline(always)]
    pub fn number(&mut self, bytes: &[u8]) -> u64 {
        let first = self.byte(bytes);
        if first < 0x80 { u64::from(first) } else { self.rest(bytes, first) }
    }

    #[inline(never)]
    fn rest(&mut self, bytes: &[u8], first: u8) -> u64 {
        let mut value = u64::from(first & 0x7F);
        for shift in (7..70).step_by(7) {
            let byte = self.byte(bytes);
            value |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return value;
            }
        }
        self.overrun = true;
        value
    }

    /// The next eight bytes as a word.
    pub fn word(&mut self, bytes: &[u8]) -> u64 {
        match super::format::u64_at(bytes, self.at) {
            Some(word) => {
                self.at += 8;
                word
            }
            None => {
                self.overrun = true;
                0
            }
        }
    }

    /// Whether all was read, and nothing more.
    pub fn is_at_end(&self, bytes: &[u8]) -> bool {
        !self.overrun && self.at == bytes.len()
    }

    /// Bytes left.
    pub fn left(&self, bytes: &[u8]) -> usize {
        bytes.len().saturating_sub(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_survives(values in proptest::collection::vec(any::<u64>(), 0..50), shift in 0u32..64) {
            let mut bytes = Vec::new();
            for value in &values {
                put(&mut bytes, value >> shift);
                put(&mut bytes, fold(*value as i64));
            }
            let mut cursor = Cursor::default();
            for value in &values {
                prop_assert_eq!(cursor.number(&bytes), value >> shift);
                prop_assert_eq!(unfold(cursor.number(&bytes)), *value as i64);
            }
            prop_assert!(cursor.is_at_end(&bytes));
        }
    }
}
