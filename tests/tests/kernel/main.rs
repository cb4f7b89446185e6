//! The programs in the kernel and their loader, on real processes: `tests/programs/probed.c`, whose own functions are probed.

mod calls;
mod life;
mod probes;
mod ring;
mod sampling;
mod target;
