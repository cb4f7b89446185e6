//! What to patch in a target, found by reading only.

use crate::custom::CustomHook;
use crate::error::Error;
use crate::look::Target;

/// One allocator (or libc's mapping functions, or a custom pool) that will be patched.
#[derive(Clone, Debug)]
pub struct Covered {
    /// The module's path.
    pub module: String,
    /// For people: `glibc`, `musl`, `jemalloc (_rjem_)`, `mimalloc`, `tcmalloc`, `exported by the executable`, `pool 1`, ….
    pub family: String,
    /// The functions' symbols.
    pub functions: Vec<String>,
}

/// Something that allocates and will not be seen.
#[derive(Clone, Debug)]
pub struct NotCovered {
    /// The module's path.
    pub module: String,
    /// What is not covered: a family, or one function.
    pub what: String,
    /// Why, for people.
    pub why: String,
}

/// What to patch: made before anything is changed.
#[derive(Debug)]
pub struct Plan {
    pub(crate) covered: Vec<Covered>,
    pub(crate) not_covered: Vec<NotCovered>,
}

impl Plan {
    /// Finds the target's allocators and how each of their entries is patched. Reads only; the target runs on.
    ///
    /// # Errors
    /// A refusal when nothing at all can be hooked, or when one of `custom` is not found (then similar names are listed).
    pub fn of(target: &Target, custom: &[CustomHook]) -> Result<Self, Error> {
        let _ = (target, custom);
        Err(Error::Gone)
    }

    /// What will be seen, for the report.
    pub fn covered(&self) -> &[Covered] {
        &self.covered
    }

    /// What will not, and why.
    pub fn not_covered(&self) -> &[NotCovered] {
        &self.not_covered
    }
}
