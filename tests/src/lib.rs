//! The oracle harness.
