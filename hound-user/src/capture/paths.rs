//! Paths of modules that a library mapped by hound cannot name itself: no loader told it, and nothing may be opened inside the target.

use std::ops::Range;

/// What a libhound.so is called that hound has mapped into the target: no file stands behind it.
pub const MAPPED_LIBRARY: &str = "libhound.so";

/// Which file is mapped where, as seen from outside.
#[derive(Clone, Debug, Default)]
pub struct ModulePaths(Vec<(Range<u64>, String)>);

impl ModulePaths {
    /// From ranges of addresses with the path of what is mapped there.
    pub fn new(places: Vec<(Range<u64>, String)>) -> Self {
        ModulePaths(places)
    }

    /// What lies at an address.
    pub fn at(&self, addr: u64) -> Option<&str> {
        self.0.iter().find(|(range, _)| range.contains(&addr)).map(|(_, path)| path.as_str())
    }

    /// The words behind the header of a `MODULE` record with its path, if it has none and that is known.
    pub fn named(&self, record: &[[u8; 8]]) -> Option<Vec<[u8; 8]>> {
        let [_, _, start, _, _, lengths, build_id @ ..] = record else { return None };
        let lengths = u64::from_le_bytes(*lengths);
        let path = if lengths >> 32 == 0 { self.at(u64::from_le_bytes(*start))? } else { return None };
        let build_id = build_id.get(..(lengths as u32).div_ceil(8) as usize)?;
        let mut words = record[1..5].to_vec();
        words.push((lengths | (path.len() as u64) << 32).to_le_bytes());
        words.extend(build_id);
        let (whole, rest) = path.as_bytes().as_chunks::<8>();
        words.extend(whole);
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            words.push(last);
        }
        Some(words)
    }
}
