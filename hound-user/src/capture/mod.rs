//! The capture file: writer, reader, and what a reader hands out.

pub mod model;
