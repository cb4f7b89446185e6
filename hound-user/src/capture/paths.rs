//! Paths of modules that a library mapped by hound cannot name itself: no loader told it, and nothing may be opened inside the target.

use std::ops::Range;

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
}
