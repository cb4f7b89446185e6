//! The library as hound maps it into a running target: the block that hound fills in, and the table of stubs that patched functions jump to.
//!
//! In that mode nothing here was loaded by a loader: no constructor ran, there is no thread-local storage, and the target's symbols are not
//! looked up. What the library has to know stands in [`hound_attachment`].

use core::arch::naked_asm;
use core::mem::offset_of;

use hound_common::attach::{Attachment, Entry, SHAPES};

/// The block that hound fills in.
#[used]
#[unsafe(no_mangle)]
pub static hound_attachment: Attachment = Attachment::new();

/// A hook's entry point: takes its own function's arguments, whatever they are.
type Stub = unsafe extern "C" fn();

/// The stubs, by `Shape`.
#[used]
#[unsafe(no_mangle)]
pub static hound_stubs: [Stub; SHAPES] = [pass; SHAPES];

/// Passes a call on unseen.
#[unsafe(naked)]
unsafe extern "C" fn pass() {
    naked_asm!("jmp qword ptr [r11 + {real}]", real = const offset_of!(Entry, real))
}
