//! Getting into a process and out again.

pub mod code;
mod custom;
mod enter;
mod error;
mod existing;
mod families;
mod image;
mod look;
mod modules;
mod patch;
mod place;
mod plan;
mod thunk;

pub use custom::{CustomHook, HookSyntax, PoolRole};
pub use enter::{Entered, enter};
pub use error::{Error, Refusal};
pub use existing::{Existing, State, find};
pub use look::{Target, look};
pub use patch::Patched;
pub use plan::{Covered, NotCovered, Plan};

// enter.rs
//   pub fn enter(target: &Target, library: &[u8], deadline: Instant) -> Result<Entered, Error>
//   impl Entered {
//       pub fn ring(&self) -> BorrowedFd<'_>                 // sized, sealed, Control initialised: recording off, target_pid set
//       pub fn is_fresh(&self) -> bool                       // false: a dormant library was reused
//       pub fn stalls(&self) -> &[Duration]                  // each time the target (or one thread of it) stood still
//       pub fn patch(&mut self, plan: &Plan, deadline: Instant) -> Result<Patched, Error>
//       pub fn unpatch(&mut self, deadline: Instant) -> Result<Duration, Error>
//       pub fn unload(self, deadline: Instant) -> Result<(), Error>
//   }
// patch.rs
//   pub struct Patched { pub stall: Duration, pub threads: usize, pub entries: usize }
// existing.rs
//   pub fn find(pid: i32) -> Result<Option<Existing>, Error>
//   pub enum State { Dormant, Armed { drainer: u32 /* 0 or dead: nobody's */ }, HalfBuilt, OtherVersion }
//   impl Existing {
//       pub fn state(&self) -> State; pub fn version(&self) -> (u32 /* ring */, u32 /* attachment */); pub fn ring(&self) -> BorrowedFd<'_>;
//       pub fn unpatch(&mut self, deadline) -> Result<Duration, Error>     // `hound detach` without the session that attached
//       pub fn unload(self, deadline) -> Result<(), Error>
//   }
