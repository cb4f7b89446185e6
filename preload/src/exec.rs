//! Noticing that the process replaces itself by another program, or begins one: what that one does is not recorded, and the capture must say so;
//! or it is recorded, too (`family`), and must find hound in the environment that it is given.
//!
//! The hooks note the attempt and jump on with every argument where it was, so one body serves all of the family, variadic ones too. A
//! child of vfork runs in this memory but is another process: its exec is none of ours.

use core::arch::naked_asm;
use core::ffi::c_char;

use hound_common::event::{PROCESS_EXEC, tag};
use hound_common::hook::Kind;

use crate::image::File;
use crate::{clock, elf, family, process, real, record, sys};

/// The registers that arguments come in, as the hooks put them on the stack.
#[repr(C)]
struct Saved {
    r9: u64,
    r8: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rax: u64,
}

/// Where a function has the environment of the program that it begins: it is the process' own.
const OWN: u32 = 0;
const THIRD: u32 = 1;
const FOURTH: u32 = 2;
/// Behind the null that ends the program's arguments.
const LAST: u32 = 3;
/// The sixth argument, and the process goes on.
const SPAWNS: u32 = 4;

/// Where it has the program from: the first argument, a path.
const PATH: u32 = 0;
/// The first argument, a name to be looked for.
const NAME: u32 = 1;
/// The first argument, a descriptor.
const DESCRIPTOR: u32 = 2;
/// A descriptor, and a path.
const AT: u32 = 3;
/// The second argument, a path.
const SECOND: u32 = 4;
/// The second argument, a name to be looked for.
const SECOND_NAME: u32 = 5;

macro_rules! exec_hooks {
    ($($(#[$doc:meta])* $name:ident: $environment:expr, $file:expr;)*) => {
        $(
            $(#[$doc])*
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name() {
                naked_asm!(
                    "mov r11, rsp",
                    "push rax", "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9",
                    "mov rdi, r11", "mov rsi, rbp", "mov rdx, rsp", "mov ecx, {environment}", "mov r8d, {file}",
                    "call {note}",
                    "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi", "pop rax",
                    "mov r11, qword ptr [rip + {real}]",
                    "test r11, r11",
                    "jz 2f",
                    "jmp r11",
                    "2:",
                    "mov eax, -1", // a libc without the function: only a program that asks for it by name gets here
                    "ret",
                    note = sym note,
                    real = sym real::$name::ADDRESS,
                    environment = const $environment,
                    file = const $file,
                )
            }
        )*
    };
}

exec_hooks! {
    /// Hook of `execve`.
    execve: THIRD, PATH;
    /// Hook of `execv`.
    execv: OWN, PATH;
    /// Hook of `execvp`.
    execvp: OWN, NAME;
    /// Hook of `execvpe`.
    execvpe: THIRD, NAME;
    /// Hook of `execl`.
    execl: OWN, PATH;
    /// Hook of `execlp`.
    execlp: OWN, NAME;
    /// Hook of `execle`.
    execle: LAST, PATH;
    /// Hook of `fexecve`.
    fexecve: THIRD, DESCRIPTOR;
    /// Hook of `execveat`.
    execveat: FOURTH, AT;
    /// Hook of `posix_spawn`.
    posix_spawn: SPAWNS, SECOND;
    /// Hook of `posix_spawnp`.
    posix_spawnp: SPAWNS, SECOND_NAME;
}

extern "C" fn note(slot: u64, bp: u64, saved: &mut Saved, environment: u32, file: u32) {
    if environment != SPAWNS
        && process::ready()
        && process::control().target_pid.load(core::sync::atomic::Ordering::Relaxed) == sys::getpid()
    {
        record::process(record::Caller { slot, bp }, Kind::Malloc, tag::PROCESS, PROCESS_EXEC, clock::now());
    }
    if !family::is_known() {
        return;
    }
    let second = saved.rsi as *const c_char;
    let file = match file {
        NAME => File::Searched(saved.rdi as *const c_char),
        DESCRIPTOR => File::Descriptor(saved.rdi as i32),
        AT => File::At(saved.rdi as i32, second),
        SECOND => File::Path(second),
        SECOND_NAME => File::Searched(second),
        _ => File::Path(saved.rdi as *const c_char),
    };
    family::begins(file, environment == SPAWNS);
    if let Some(place) = place(slot, saved, environment) {
        // SAFETY: a register's place in `saved`, an argument's on the stack, which is the called function's, or libc's variable.
        let given = unsafe { place.read() } as *const *const c_char;
        if let Some(other) = family::environment_with_us(given, environment == OWN) {
            // SAFETY: as above.
            unsafe { place.write(other as u64) };
        }
    }
}

/// Where the environment's address is.
fn place(slot: u64, saved: &mut Saved, environment: u32) -> Option<*mut u64> {
    match environment {
        THIRD => Some(&raw mut saved.rdx),
        FOURTH => Some(&raw mut saved.rcx),
        SPAWNS => Some(&raw mut saved.r9),
        LAST => {
            let in_registers = [&raw mut saved.rsi, &raw mut saved.rdx, &raw mut saved.rcx, &raw mut saved.r8, &raw mut saved.r9];
            let on_stack = (1..).map(|number| (slot as *mut u64).wrapping_add(number));
            let mut arguments = in_registers.into_iter().chain(on_stack);
            // SAFETY: the caller has ended its list of arguments by a null, as the function demands.
            arguments.find(|place| unsafe { place.read() } == 0)?;
            arguments.next()
        }
        // What a program puts into its environment last: a shell does so in the child of a fork.
        _ => Some(elf::environ().cast::<u64>()).filter(|place| !place.is_null()),
    }
}
