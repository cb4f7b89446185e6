//! Stacks of a target that were copied while it ran: unwound here, with the call frame information of the target's own modules.
//!
//! The modules are read as the target has them mapped: through the mappings' own files, which are right in other mount namespaces and when
//! the files are deleted. Where a module has gone before its sample is unwound, what was learnt of it while it was there is used.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use hound_common::kernel::REGISTERS;
use hound_inject::modules::{Module as Image, loaded};
use hound_inject::{Frames, Memory};
use hound_unwind::{
    EndReason, FullRegs, LONGEST_CALL, Row, RowKind, Scratch, Sections, Stepped, evaluate, is_signal_return, may_end_in_call, step_full,
    step_general,
};

use crate::capture::model::Module;

/// The target's mappings are not read more often than this because of an address that is in no known module: a JIT has many such.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Rows kept. A program has some ten thousand return addresses from which allocating calls are made.
const ROWS: usize = 1 << 20;
/// Frames of one stack. What is copied of a stack holds fewer.
const DEPTH: usize = 8192;

/// A module and where its call frame information is.
struct Known {
    module: Module,
    code: Vec<(u64, u64)>,
    information: Information,
    /// libc, or the loader.
    is_libc: bool,
    /// Of a program that is linked with libc: libc's functions that make the system calls for mappings.
    wrappers: Vec<(u64, u64)>,
}

/// What was copied of a stack.
#[derive(Clone, Copy, Debug)]
pub struct Copied<'a> {
    /// From the stack pointer on.
    pub bytes: &'a [u8],
    /// Pages of which nothing was copied: bit 0 is the one in which it begins.
    pub holes: u32,
}

impl Copied<'_> {
    /// A word, where the copy begins at `base`.
    fn word(&self, base: u64, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(base)?).ok()?;
        let word = self.bytes.get(at..)?.first_chunk::<8>()?;
        (!self.is_missing(base, address) && !self.is_missing(base, address + 7)).then(|| u64::from_le_bytes(*word))
    }

    fn is_missing(&self, base: u64, address: u64) -> bool {
        u32::try_from((address >> PAGE_BITS).wrapping_sub(base >> PAGE_BITS)).is_ok_and(|page| page < 32 && self.holes >> page & 1 != 0)
    }
}

const PAGE_BITS: u32 = 12;

/// Call frame information, copied.
enum Information {
    /// A sorted table and the entries, each with its avma.
    Table { header: Vec<u8>, header_at: u64, frames: Vec<u8>, frames_at: u64 },
    /// `.debug_frame`, and what to add to its addresses.
    Debug { bytes: Vec<u8>, bias: u64 },
    /// There is none.
    None,
}

/// What unwinding a stack came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why there is no further frame.
    pub reason: EndReason,
    /// Some frame was found by the frame pointer, for want of anything better.
    pub frame_pointers: bool,
}

/// Unwinds copied stacks of one process.
pub struct Stacks {
    pid: i32,
    memory: Memory,
    /// By their start. What has gone stays until something else lies there.
    known: Vec<Known>,
    rows: HashMap<u64, Row>,
    scratch: Box<Scratch>,
    /// Addresses from which the kernel was called, or not.
    behind_calls: HashMap<u64, bool>,
    looked: Instant,
    /// What has changed and was not asked for yet.
    changes: Vec<Change>,
    /// Most bytes of a stack that are copied.
    copied: usize,
}

/// Modules come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This is there now.
    Came(Module),
    /// What lay there is gone.
    Went {
        /// First avma.
        start: u64,
        /// End avma.
        end: u64,
    },
}

impl std::fmt::Debug for Stacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stacks").field("pid", &self.pid).field("modules", &self.known.len()).field("rows", &self.rows.len()).finish()
    }
}

impl Stacks {
    /// Reads what the process runs code from. `copied`: most bytes of a stack that are copied.
    ///
    /// # Errors
    /// When the process is gone, or may not be read.
    pub fn of(pid: u32, copied: u32) -> Result<Self, hound_inject::Error> {
        let pid = pid as i32;
        let memory = Memory::open(pid)?;
        let mut stacks = Stacks {
            pid,
            memory,
            known: Vec::new(),
            rows: HashMap::new(),
            scratch: Box::default(),
            behind_calls: HashMap::new(),
            looked: Instant::now(),
            changes: Vec::new(),
            copied: copied as usize,
        };
        stacks.look()?;
        Ok(stacks)
    }

    /// What has changed since the last call, in order.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Reads the mappings again.
    ///
    /// # Errors
    /// When the process is gone: what was known stays known.
    pub fn look(&mut self) -> Result<(), hound_inject::Error> {
        self.looked = Instant::now();
        let now = loaded(self.pid, &self.memory)?;
        let is_same = |known: &Known, image: &Image| {
            (known.module.start, known.module.end, &known.module.path) == (image.start, image.end, &image.path)
        };
        let overlaps = |known: &Known, image: &Image| known.module.start < image.end && image.start < known.module.end;
        for image in now {
            if self.known.iter().any(|known| is_same(known, &image)) {
                continue;
            }
            let (gone, stay) = std::mem::take(&mut self.known).into_iter().partition::<Vec<_>, _>(|known| overlaps(known, &image));
            self.known = stay;
            for Known { module, .. } in gone {
                self.went(&module);
            }
            // What was no module's before is this one's now.
            self.rows.retain(|ip, _| !(image.start..image.end).contains(&(*ip & !EXACT)));
            let known = self.learn(&image);
            self.changes.push(Change::Came(known.module.clone()));
            self.known.push(known);
        }
        Ok(())
    }

    fn learn(&self, image: &Image) -> Known {
        let module = Module { bias: image.bias, start: image.start, end: image.end, build_id: image.build_id(), path: image.path.clone() };
        let is_libc = image.is_loader || ["libc.so", "libc-2.", "libc.musl"].iter().any(|start| image.name().starts_with(start));
        let mut wrappers = Vec::new();
        if image.is_executable && !image.has_interpreter {
            image.each_function(&self.memory, &mut |symbol| {
                if WRAPPERS.contains(&symbol.name) {
                    wrappers.push((symbol.address, symbol.address + symbol.size));
                }
            });
        }
        let information = self.information(image).unwrap_or(Information::None);
        Known { module, code: image.code(), information, is_libc, wrappers }
    }

    /// How many of the innermost frames of a system call are libc's function for it; nothing if libc has made the call for itself.
    pub fn frames_of_libc(&self, ips: &[u64]) -> Option<usize> {
        let Some(first) = ips.first() else { return Some(0) };
        let Some(known) = self.known.iter().find(|known| known.has(first.wrapping_sub(1))) else { return Some(0) };
        if known.is_libc {
            return (ips.iter().take_while(|ip| known.has(ip.wrapping_sub(1))).count() == 1).then_some(1);
        }
        Some(usize::from(known.wrappers.iter().any(|(start, end)| (*start..*end).contains(first))))
    }

    /// Nothing is mapped there any more.
    pub fn gone(&mut self, start: u64, end: u64) {
        let is_gone = |known: &Known| known.code.iter().any(|code| start < code.1 && code.0 < end);
        let (gone, stay) = std::mem::take(&mut self.known).into_iter().partition::<Vec<_>, _>(is_gone);
        self.known = stay;
        gone.into_iter().for_each(|known| self.went(&known.module));
    }

    fn went(&mut self, module: &Module) {
        self.rows.retain(|ip, _| !(module.start..module.end).contains(&(*ip & !EXACT)));
        self.changes.push(Change::Went { start: module.start, end: module.end });
    }

    fn information(&self, image: &Image) -> Option<Information> {
        let in_file = || {
            let (header_at, header) = image.section(".eh_frame_hdr")?;
            let (frames_at, frames) = image.section(".eh_frame")?;
            (header_at == image.eh_frame_hdr).then_some(Information::Table { header, header_at, frames, frames_at })
        };
        // A file without section headers, and the vDSO, which is no file.
        let in_memory = || {
            let end = image.code().iter().map(|(_, end)| *end).chain([image.end]).max()?;
            let mut header = vec![0; usize::try_from(end.checked_sub(image.eh_frame_hdr)?).ok()?];
            let whole = self.memory.read(image.eh_frame_hdr, &mut header).is_ok();
            let (frames, at) = (header.clone(), image.eh_frame_hdr);
            // The entries lie behind their table, as linkers lay them out: `frames` begins at the header then.
            let frames_at = at.wrapping_add_signed(i64::from(i32::from_le_bytes(header.get(4..8)?.try_into().ok()?)) + 4);
            let frames = frames.get(usize::try_from(frames_at.checked_sub(at)?).ok()?..)?.to_vec();
            whole.then_some(Information::Table { header, header_at: at, frames, frames_at })
        };
        let sorted = || {
            let (frames_at, frames) = image.section(".eh_frame")?;
            let header_at = image.start;
            let header = Frames::of(image)?.placed(header_at)?;
            Some(Information::Table { header, header_at, frames, frames_at })
        };
        let debug = || image.section(".debug_frame").map(|(_, bytes)| Information::Debug { bytes, bias: image.bias });
        match image.eh_frame_hdr {
            0 => sorted().or_else(debug),
            _ => in_file().or_else(in_memory).or_else(debug),
        }
    }

    /// Which process it is.
    pub fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Unwinds a stack: `registers` by their DWARF numbers as they were at the entry of a function (rsp at the return address), `stack` is
    /// what lay from rsp on. `ips` gets the return addresses, innermost first.
    ///
    /// While the kernel waits for a call's return an address of its own stands in place of the call's: `replaced` tells what stood at a
    /// place of the stack before.
    pub fn walk(
        &mut self,
        registers: &[u64; REGISTERS],
        stack: Copied<'_>,
        replaced: impl Fn(u64) -> Option<u64>,
        ips: &mut Vec<u64>,
    ) -> Ended {
        let Some(word) = stack.word(registers[7], registers[7]) else {
            ips.clear();
            return Ended { reason: EndReason::BadRead, frame_pointers: false };
        };
        let called = FullRegs { ip: word, sp: registers[7].wrapping_add(8), ..of_numbers(registers) };
        self.follow(called, false, (registers[7], stack), replaced, ips).0
    }

    /// The same of a thread that was interrupted, or (`by_kernel`) is most likely in a system call: the first of `ips` is the instruction's
    /// own address plus one, or where the call returns to. Also gives the stack pointer of the last frame.
    pub fn walk_interrupted(
        &mut self,
        registers: &[u64; REGISTERS],
        by_kernel: bool,
        stack: Copied<'_>,
        replaced: impl Fn(u64) -> Option<u64>,
        ips: &mut Vec<u64>,
    ) -> (Ended, u64) {
        let regs = of_numbers(registers);
        let in_call = by_kernel && self.is_behind_call(regs.ip);
        self.follow(regs, !in_call, (registers[7], stack), replaced, ips)
    }

    /// Whether a system call returns to this address.
    fn is_behind_call(&mut self, ip: u64) -> bool {
        let memory = &self.memory;
        *self.behind_calls.entry(ip).or_insert_with(|| {
            let mut code = [0; 2];
            memory.read(ip.wrapping_sub(2), &mut code).is_ok() && code == SYSCALL
        })
    }

    /// From a frame on, of which the registers are known. The copy of the stack comes with the address that it begins at.
    fn follow(
        &mut self,
        mut regs: FullRegs,
        mut exact: bool,
        (base, stack): (u64, Copied<'_>),
        replaced: impl Fn(u64) -> Option<u64>,
        ips: &mut Vec<u64>,
    ) -> (Ended, u64) {
        ips.clear();
        let in_hole = Cell::new(false);
        let read = |address: u64| {
            in_hole.set(stack.is_missing(base, address));
            stack.word(base, address)
        };
        let mut ended = Ended { reason: EndReason::DepthLimit, frame_pointers: false };
        while ips.len() < DEPTH {
            // The kernel's place is a page's beginning, and no module's.
            if !exact
                && regs.ip & 0xfff == 0
                && !self.known.iter().any(|known| known.has(regs.ip))
                && let Some(real) = replaced(regs.sp.wrapping_sub(8))
            {
                regs.ip = real;
            }
            // An interrupted ip is exact; stored plus one, all ips are looked up at minus one.
            ips.push(regs.ip.wrapping_add(u64::from(exact)));
            let lookup = regs.ip.wrapping_sub(u64::from(!exact));
            let row = self.row(lookup, exact);
            ended.frame_pointers |= row.kind() == RowKind::FramePointer;
            let mut stepped = step_full(row, &mut regs, read);
            if stepped == Stepped::NeedsSections {
                stepped = match self.known.iter().find(|known| known.has(lookup)).map(Known::sections) {
                    Some(Ok(sections)) => step_general(&sections, lookup, &mut self.scratch, &mut regs, read),
                    Some(Err(reason)) => Stepped::End(reason),
                    None => Stepped::End(EndReason::NoModule),
                };
            }
            match stepped {
                Stepped::Frame { .. } => exact = false,
                Stepped::SignalFrame => exact = true,
                Stepped::End(reason) => {
                    // What lies behind the copy's end is not unreadable, only not copied.
                    let length = stack.bytes.len();
                    let is_within = regs.sp.checked_sub(base).is_some_and(|at| at <= length as u64);
                    let is_cut = reason == EndReason::BadRead && is_within && length >= self.copied && !in_hole.get();
                    ended.reason = if is_cut { EndReason::DepthLimit } else { reason };
                    break;
                }
                Stepped::NeedsFullRegs | Stepped::NeedsSections => {
                    ended.reason = EndReason::Unsupported;
                    break;
                }
            }
        }
        (ended, regs.sp)
    }

    fn row(&mut self, lookup: u64, exact: bool) -> Row {
        let key = lookup | if exact { EXACT } else { 0 };
        if let Some(row) = self.rows.get(&key) {
            return *row;
        }
        let mut found = self.evaluate(lookup);
        if found.kind() == RowKind::None(EndReason::NoModule) && self.looked.elapsed() >= AGAIN_AFTER {
            let _ = self.look(); // gone: nothing more can be learnt
            found = self.evaluate(lookup);
        }
        let row = match found.kind() {
            // A trampoline without call frame information (older musl) is told by its code.
            RowKind::None(EndReason::NoRow | EndReason::NoModule) if exact || self.returns_from_signal(lookup.wrapping_add(1)) => {
                if exact {
                    Row::FRAME_POINTER
                } else {
                    Row::SIGNAL
                }
            }
            _ if !exact && self.is_made_by_hand(lookup.wrapping_add(1)) => Row::ROOT,
            RowKind::None(EndReason::NoRow | EndReason::NoModule) => Row::FRAME_POINTER,
            _ => found,
        };
        if self.rows.len() >= ROWS {
            self.rows.clear();
        }
        // What a JIT makes is in no module today, and may be in one that is mapped there tomorrow: `look` forgets it then.
        self.rows.insert(key, row);
        row
    }

    /// Whether a return address was put there by no call: it is the first instruction of a function, and no call ends before it (the last
    /// one of the function before may call something that does not return). `makecontext` begins a fiber's stack so.
    fn is_made_by_hand(&self, address: u64) -> bool {
        let known = self.known.iter().find(|known| known.has(address));
        let begins = |sections: Sections<'_>| sections.fde_range(address).is_ok_and(|range| range.start == address);
        let mut before = [0; LONGEST_CALL];
        known.is_some_and(|known| known.sections().is_ok_and(begins))
            && self.memory.read(address.wrapping_sub(LONGEST_CALL as u64), &mut before).is_ok()
            && !may_end_in_call(&before)
    }

    fn returns_from_signal(&self, address: u64) -> bool {
        let mut code = [0; 9];
        self.memory.read(address, &mut code).is_ok() && is_signal_return(&code)
    }

    fn evaluate(&mut self, lookup: u64) -> Row {
        let Some(known) = self.known.iter().find(|known| known.has(lookup)) else { return Row::none(EndReason::NoModule) };
        match known.sections() {
            Ok(sections) => evaluate(&sections, lookup, &mut self.scratch),
            Err(reason) => Row::none(reason),
        }
    }
}

/// libc's functions that make the system calls for mappings, by all names that libcs have for them.
const WRAPPERS: &[&str] = &["mmap", "mmap64", "__mmap", "__mmap64", "munmap", "__munmap", "mremap", "__mremap", "brk", "__brk", "syscall"];

/// The instruction.
const SYSCALL: [u8; 2] = [0x0F, 0x05];

fn of_numbers(registers: &[u64; REGISTERS]) -> FullRegs {
    let [_, _, _, bx, _, _, bp, sp, ..] = *registers;
    let [.., r12, r13, r14, r15, ip] = *registers;
    FullRegs { ip, sp, bp, bx, r12, r13, r14, r15 }
}

/// Set in the key of a row of an address that is no return address. User space has no address with this bit.
const EXACT: u64 = 1 << 63;

impl Known {
    fn has(&self, ip: u64) -> bool {
        self.code.iter().any(|(start, end)| (*start..*end).contains(&ip))
    }

    fn sections(&self) -> Result<Sections<'_>, EndReason> {
        match &self.information {
            Information::Table { header, header_at, frames, frames_at } => {
                Sections::from_header_apart(header, *header_at, frames, *frames_at)
            }
            Information::Debug { bytes, bias } => Ok(Sections::from_debug_frame(bytes, *bias)),
            Information::None => Err(EndReason::NoRow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registers here and a copy of the stack from rsp on, as a probe at the entry of a function would send them.
    #[inline(never)]
    #[expect(unsafe_code, reason = "looks at its own stack")]
    fn sample() -> ([u64; REGISTERS], Vec<u8>) {
        let mut registers = [0_u64; REGISTERS];
        // SAFETY: stores registers into the array and calls the next instruction, whose return address is popped: the stack is as before.
        unsafe {
            std::arch::asm!(
                "mov [rax + 24], rbx", "mov [rax + 48], rbp", "mov [rax + 96], r12", "mov [rax + 104], r13",
                "mov [rax + 112], r14", "mov [rax + 120], r15", "mov [rax + 56], rsp",
                in("rax") registers.as_mut_ptr(),
            );
        }
        let here: u64;
        // SAFETY: reads the instruction pointer.
        unsafe { std::arch::asm!("lea {}, [rip]", out(reg) here) };
        // As if this place had been called: its return address lies below the stack.
        let (start, length) = (registers[7], 64 * 1024);
        let mut stack = here.to_le_bytes().to_vec();
        // The thread's stack ends somewhere above: what is there is read as far as it goes, through the kernel.
        let memory = Memory::open(std::process::id() as i32).unwrap();
        for page in 0..length / 512 {
            let mut bytes = [0; 512];
            if memory.read(start + page * 512, &mut bytes).is_err() {
                break;
            }
            stack.extend(bytes);
        }
        registers[7] = start - 8;
        (registers, stack)
    }

    fn whole(bytes: &[u8]) -> Copied<'_> {
        Copied { bytes, holes: 0 }
    }

    #[test]
    fn what_was_not_copied_is_not_read() {
        let bytes: Vec<u8> = (0..0x3000_u32).map(|n| (n / 8) as u8).collect();
        // It begins 16 bytes before the end of a page; the second page is missing.
        let (copied, base) = (Copied { bytes: &bytes, holes: 0b10 }, 0x7ff0);
        assert_eq!(copied.word(base, 0x7ff8), Some(0x0101_0101_0101_0101));
        assert_eq!([0x7ff9, 0x8000, 0x8ff8, 0x8fff].map(|address| copied.word(base, address)), [None; 4]);
        assert!(copied.word(base, 0x9000).is_some() && copied.word(base, 0x7fe8).is_none() && copied.word(base, 0x7ff0 + 0x3000).is_none());
    }

    #[test]
    fn a_copied_stack_is_the_one_that_the_thread_sees_itself() {
        let (registers, mut stack) = sample();
        let own = std::backtrace::Backtrace::force_capture().to_string();
        let mut stacks = Stacks::of(std::process::id(), 64 * 1024).unwrap();
        let mut ips = Vec::new();
        let ended = stacks.walk(&registers, whole(&stack), |_| None, &mut ips);
        assert_eq!(ended, Ended { reason: EndReason::Root, frame_pointers: false }, "{ips:x?}");
        // Both go through this function to the thread's start; the other has some frames of its own below.
        let frames = own.lines().filter(|line| line.trim_start().split_once(": ").is_some_and(|(n, _)| n.parse::<u32>().is_ok())).count();
        assert!(ips.len() >= 10 && ips.len() <= frames + 10, "{} frames, the other saw {frames}", ips.len());
        assert!(matches!(stacks.changes().first(), Some(Change::Came(_))));
        // A copy that ends early ends the walk, and says so.
        let ended = stacks.walk(&registers, whole(&stack[..stack.len().min(64)]), |_| None, &mut ips);
        assert_eq!(ended.reason, EndReason::BadRead);
        // Where as much was copied as was to be, the stack is only deeper.
        let mut stacks = Stacks::of(std::process::id(), 64).unwrap();
        let ended = stacks.walk(&registers, whole(&stack[..stack.len().min(64)]), |_| None, &mut ips);
        assert_eq!(ended.reason, EndReason::DepthLimit);
        // A return address that the kernel has put aside.
        let real = u64::from_le_bytes(stack[..8].try_into().unwrap());
        stack[..8].copy_from_slice(&0x7fff_ffff_e000_u64.to_le_bytes());
        stacks.walk(&registers, whole(&stack), |place| (place == registers[7]).then_some(real), &mut ips);
        assert!(ips[0] == real && ips.len() > 5, "{ips:x?}");
    }
}
