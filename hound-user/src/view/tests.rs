//! Reports of hand-made heaps, compared with what a person expects to read.
