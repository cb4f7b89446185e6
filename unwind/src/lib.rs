//! Stack unwinding from call frame information, for x86-64.
//!
//! Three parts: [`Sections`] finds the call frame information of a code address in bytes that the caller has mapped;
//! [`evaluate`] runs it through gimli and compresses the result into a 16-byte [`Row`]; [`step`] applies a row to
//! registers, reading stack words through a closure. What the caller does: know the modules, keep rows in a cache (a row
//! holds for every visit of its address), judge which stack addresses may be read, and stop at its own depth limit.
//!
//! ```text
//! lookup_ip = ip of a leaf or interrupted frame; return address - 1 otherwise
//! row = cache[lookup_ip] or evaluate(sections of its module, lookup_ip, scratch)
//! step(row, regs, read) -> Frame | SignalFrame | NeedsFullRegs | NeedsSections | End(reason)
//! ```
//!
//! The same code runs inside a process on its live stack, in signal-safe context, and in a tool on copies of stacks. So:
//! no allocation, no locks, no `unsafe`, no I/O; and no input, however damaged, may panic or fail to terminate.
#![no_std]
#![forbid(unsafe_code)]

mod end;
mod evaluate;
mod exercise;
mod expression;
mod general;
mod row;
mod sections;
mod step;

pub use end::EndReason;
pub use evaluate::{Scratch, evaluate, visit_rows};
pub use exercise::exercise;
pub use general::step_general;
pub use row::{LONGEST_CALL, Row, RowKind, Saved, SavedSlots, is_signal_return, may_end_in_call};
pub use sections::Sections;
pub use step::{FullRegs, Regs, Stepped, frame_pointer_step, step, step_full};
