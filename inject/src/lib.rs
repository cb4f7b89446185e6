//! Getting into a process and out again.
//!
//! Nothing is ever called in the target: hound makes raw system calls in one borrowed thread ([`Borrowed`]), writes memory from outside
//! ([`Memory`]), and patches while all threads stand still ([`Frozen`]). All three undo themselves when dropped, and when hound dies.
//!
//! [`look`] whether it is possible, make a [`Plan`] of what to patch, [`enter`] with libhound.so, patch, unpatch. [`find`] tells what an
//! earlier hound left behind.

mod appointments;
mod awaited;
mod begin;
mod clocks;
pub mod code;
mod custom;
mod enter;
mod error;
mod existing;
mod families;
mod frame;
mod frames;
mod freeze;
mod image;
mod journal;
mod look;
mod memory;
pub mod modules;
mod patch;
mod place;
mod plan;
pub mod probes;
mod remote;
mod restart;
mod scan;
mod seccomp;
mod site;
mod sockets;
mod step;
mod surroundings;
mod tasks;
mod thunk;
mod trace;
mod ways;

pub use appointments::{hand_over_appointments, keep_appointments};
pub use awaited::{Awaited, Parked, is_static};
pub use begin::begin;
pub use custom::{CustomHook, HookSyntax, PoolRole};
pub use enter::{Entered, enter};
pub use error::{Denied, Error, Refusal};
pub use existing::{Beneath, Existing, State, find};
pub use families::Executable;
pub use frames::Frames;
pub use freeze::{Frozen, Stopped};
pub use look::{Target, look, must_be_readable};
pub use memory::Memory;
pub use patch::{Patched, Staged};
pub use plan::{Covered, NotCovered, Plan, has_shadow_stack};
pub use probes::place::How;
pub use probes::{PassesOn, ProbePlan, ProbeSite};
pub use remote::Borrowed;
pub use step::moment;
#[cfg(feature = "death")]
pub use step::report_steps;
pub use surroundings::TID_OFFSETS;
pub use tasks::same_memory as is_same_memory;
pub use trace::Haste;
