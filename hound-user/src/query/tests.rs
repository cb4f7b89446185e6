//! Questions to hand-made heaps.
