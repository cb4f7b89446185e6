//! Services of Debian's packages that were chosen later.

use crate::verdicts::subject::Subject;

/// All of them.
pub const ALL: &[Subject] = &[];
