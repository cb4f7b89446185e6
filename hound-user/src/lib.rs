//! hound's library: everything behind the `hound` command.
//!
//! `session` touches the live system; `capture` is the file; `symbols` names addresses; `heap`, `query` and `view` are pure.
#![deny(unsafe_code)]

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
