//! Getting into a process and out again.
//!
//! Nothing is ever called in the target: hound makes raw system calls in one borrowed thread ([`Borrowed`]), writes memory from outside
//! ([`Memory`]), and patches while all threads stand still ([`Frozen`]). All three undo themselves when dropped, and when hound dies.

mod error;
mod frame;
mod freeze;
mod look;
mod memory;
mod remote;
mod restart;
mod seccomp;
mod step;
mod tasks;
mod trace;

pub use error::{Denied, Error, Refusal};
pub use freeze::{Frozen, Stopped};
pub use look::{Target, look};
pub use memory::Memory;
pub use remote::Borrowed;
