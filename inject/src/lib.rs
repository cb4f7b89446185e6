//! Getting into a process and out again.
