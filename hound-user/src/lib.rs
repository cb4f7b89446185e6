//! hound's library: everything behind the `hound` command.
//!
//! `session` touches the live system; `capture` is the file; `symbols` names addresses; `heap`, `query` and `view` are pure.
#![deny(unsafe_code)]

pub mod capture;
pub mod heap;
pub mod symbols;
