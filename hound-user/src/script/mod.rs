//! Scripts that ask captures: the scripting API of bytehound's book, under its names and with its meanings, and hound's own beside.
//!
//! A script is [Rhai](https://rhai.rs). [`Session`] runs one after another in a [`Host`], which says what they may read, where they print
//! and write, and counts what they take ([`Limits`]). Everything that can be called is registered through one table ([`Entry`]), from which
//! `docs/scripting.md`, `help` and completion are made. Lists of blocks are trees of conditions ([`selection`]) over the rows of a
//! [`Dataset`], found out when somebody looks.

mod allocation;
mod allocations;
mod api;
mod backtrace;
mod condition;
mod course;
mod data;
mod dataset;
mod drawing;
mod duration;
mod fault;
mod filters;
mod folder;
mod globals;
mod graph;
mod groups;
mod help;
mod host;
mod limits;
mod map;
mod maps;
mod matching;
mod maybe;
mod measures;
mod paths;
mod recorded;
#[cfg(test)]
mod reference;
mod rows;
mod selection;
mod session;
mod table;

pub use api::{Entry, Origin};
pub use dataset::Dataset;
pub use fault::Fault;
pub use folder::Folder;
pub use help::{about, completions, overview};
pub use host::{Host, Loader, Words};
pub use limits::{Limits, Meter};
pub use session::{Ended, Session};

#[cfg(test)]
mod tests;
