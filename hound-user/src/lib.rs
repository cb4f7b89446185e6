//! hound's library: everything behind the `hound` command.
//!
//! `session` touches the live system; `capture` is the file; `symbols` names addresses; `heap`, `query` and `view` are pure.
#![deny(unsafe_code)]

/// As the standard library's, but that who cannot be told is not told: the terminal may be closed, a pipe be gone, a disk full. A panic there
/// would end hound in the middle of its work, and leave a target half done with.
macro_rules! eprintln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

/// Likewise.
macro_rules! eprint {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($words)*);
    }};
}

pub mod capture;
pub mod cli;
pub mod columns;
pub mod heap;
pub mod query;
pub mod report;
pub mod script;
pub mod session;
pub mod strip;
pub mod symbols;
pub mod view;
