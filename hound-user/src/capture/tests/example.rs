//! The examples of docs/format.md.
