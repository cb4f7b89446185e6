//! The hound library.
