//! Observing a live target: starting it, draining its rings into a capture, noting what can be seen from outside.
//!
//! The only part of hound that touches a running system. Three threads in a row: `drain` moves bytes out of the ring (and so frees its space),
//! `encode` turns them into sections, `store` compresses and writes. Bounded queues between them: a backlog pushes back on the target
//! instead of growing without limit. `beside` are two more, that look at the target and give hound's sign of life.

mod answers;
mod areas;
mod arrivals;
mod attach;
pub mod before;
mod begin;
mod beside;
mod budget;
pub mod calibrate;
mod clock;
mod collect;
mod cost;
mod crew;
mod cull;
mod doctor;
mod doubts;
mod drain;
mod family;
mod files;
mod gather;
mod glances;
mod hold;
mod inside;
pub mod kernel;
pub mod kernel_memory;
mod keys;
mod launch;
mod launch_held;
mod leave;
mod live;
mod mapped;
mod members;
mod output;
mod pace;
mod pipeline;
mod pools;
mod preload;
mod processes;
mod program;
mod reach;
mod reaching;
mod recording;
mod relatives;
mod ring;
mod rotate;
mod sampler;
pub mod sampling;
mod server;
mod signals;
mod stacks;
mod status;
mod streams;
mod surroundings;
mod talk;
mod target;
mod threads;
mod watch;

pub use attach::{Attach, Attached, Engine, Glance, Mode, attach};
pub use collect::{Collect, collect};
pub use doctor::{Check, Health, look_at_machine, look_at_target};
pub use files::of_target as files_of_target;
pub use gather::{Gather, gather};
pub use launch::{Launch, Launched, launch};
pub use launch_held::launch_held;
pub use members::{Follow, control_group};
pub use processes::{NotOne, find_by_name};
pub use program::{Program, Refusal};
pub use reach::Hold;
pub use rotate::{Rotate, When};
pub use server::{BASE_PORT, Serve};
pub use talk::{Answer, Request, Status, ask_session, kernel_session, sessions, short};
