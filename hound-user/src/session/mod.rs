//! Observing a live target: starting it, draining its rings into a capture, noting what can be seen from outside.
//!
//! The only part of hound that touches a running system. Three threads in a row: `drain` moves bytes out of the ring (and so frees its space),
//! `encode` turns them into sections, `store` compresses and writes. Bounded queues between them: a backlog pushes back on the target
//! instead of growing without limit. `beside` are two more, that look at the target and give hound's sign of life.

pub mod before;
mod beside;
mod clock;
mod collect;
mod drain;
mod launch;
mod output;
mod pipeline;
mod preload;
mod program;
mod recording;
mod ring;
mod signals;
mod status;
mod surroundings;

pub use collect::{Collect, collect};
pub use launch::{Launch, Launched, launch};
pub use program::{Program, Refusal};
