//! Where a module's functions lie, and where they jump to: to tell a program's call from one that an allocator makes itself.

use std::ops::Range;

use hound_unwind::Sections;
use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};

use crate::code::{decode, near_target};
use crate::memory::Memory;
use crate::plan::Reading;

/// Largest function that may do nothing but pass its call on.
const SMALL: usize = 256;
/// Bytes of a stub in a procedure linkage table.
const STUB: u64 = 16;

/// Where a jump or a call leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// There.
    To(u64),
    /// To the function of this name, which the loader has yet to look up.
    Named(String),
}

/// What a function's code says of where it leads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exits {
    /// Jumps out of it: tail calls, and its cold part.
    pub jumps: Vec<Leads>,
    /// What it calls.
    pub calls: Vec<Leads>,
    /// It does nothing else: no call, nothing written but its own stack and an error number.
    pub only_passes_on: bool,
}

/// A module's functions.
pub(crate) struct Links<'a> {
    reading: &'a Reading<'a>,
    memory: &'a Memory,
    /// `.eh_frame` and its address, and of the header if it has one.
    frames: Option<(Vec<u8>, u64, u64)>,
}

impl<'a> Links<'a> {
    pub fn of(reading: &'a Reading<'a>, memory: &'a Memory) -> Self {
        let module = reading.module;
        let header = module.eh_frame_hdr;
        let inside = |start: u64, bytes: u64| (start..start + bytes).contains(&header);
        let segment =
            module.segments.iter().map(|s| (module.bias.wrapping_add(s.svma), s.bytes)).find(|(start, bytes)| inside(*start, *bytes));
        let frames = match segment.filter(|_| header != 0) {
            Some((start, bytes)) => {
                let mut segment = vec![0; bytes as usize];
                memory.read(start, &mut segment).ok().map(|()| (segment, start, header))
            }
            None => module.section(".eh_frame").map(|(at, bytes)| (bytes, at, 0)),
        };
        Self { reading, memory, frames }
    }

    /// The code around an address: by its unwind entry, else by the symbols.
    pub fn range(&self, address: u64) -> Option<Range<u64>> {
        let sections = self.frames.as_ref().and_then(|(bytes, at, header)| match header {
            0 => Some(Sections::from_eh_frame(bytes, *at)),
            header => Sections::from_eh_frame_hdr(bytes, *at, *header).ok(),
        });
        if let Some(range) = sections.and_then(|sections| sections.fde_range(address).ok()) {
            return Some(range);
        }
        let (code, bytes) = self.reading.module.code_around(address)?;
        let starts = &self.reading.starts;
        let next = starts.partition_point(|(start, _)| *start <= address);
        let (start, size) = *starts.get(next.checked_sub(1)?)?;
        let end = starts.get(next).map_or(code + bytes, |(next, _)| *next).min(code + bytes);
        let end = if size > 0 { (start + size).min(end) } else { end };
        (start..end).contains(&address).then_some(start..end)
    }

    /// What the code of a function says.
    pub fn exits(&self, range: &Range<u64>) -> Exits {
        let Ok(code) = self.reading.code(range.start, range.end - range.start) else { return Exits::default() };
        let mut exits = Exits { only_passes_on: code.len() <= SMALL, ..Exits::default() };
        for instruction in &mut decode(&code, range.start) {
            exits.only_passes_on &= writes_nothing(&instruction);
            let leads = near_target(&instruction).map(|target| self.behind(target)).or_else(|| self.through_slot(&instruction));
            match instruction.flow_control() {
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::IndirectBranch => match leads {
                    Some(Leads::To(target)) if range.contains(&target) => {}
                    Some(leads) => exits.jumps.push(leads),
                    None => exits.only_passes_on = false,
                },
                FlowControl::Call | FlowControl::IndirectCall => {
                    exits.only_passes_on = false;
                    exits.calls.extend(leads);
                }
                FlowControl::Next | FlowControl::Return | FlowControl::Exception => {}
                FlowControl::Interrupt | FlowControl::XbeginXabortXend => exits.only_passes_on = false,
            }
        }
        exits.only_passes_on &= !exits.jumps.is_empty();
        exits
    }

    /// Where a jump to an address ends: behind a stub of the linkage table.
    pub fn behind(&self, address: u64) -> Leads {
        let mut code = vec![0; STUB as usize];
        if self.memory.read(address, &mut code).is_err() {
            return Leads::To(address);
        }
        let first = decode(&code, address).iter().find(|i| i.code() != Code::Endbr64);
        first.and_then(|jump| self.through_slot(&jump)).unwrap_or(Leads::To(address))
    }

    /// Where a jump or call through a slot of the module's table of addresses leads.
    fn through_slot(&self, instruction: &Instruction) -> Option<Leads> {
        let indirect = matches!(instruction.code(), Code::Jmp_rm64 | Code::Call_rm64);
        if !indirect || instruction.op0_kind() != OpKind::Memory || !instruction.is_ip_rel_memory_operand() {
            return None;
        }
        let slot = instruction.ip_rel_memory_address();
        let value = self.memory.read_u64(slot).ok()?;
        // Not looked up yet: the slot leads back to the table, to what calls the loader.
        match self.reading.module.import(self.memory, slot) {
            Some(name)
                if self.reading.module.code_around(value).is_some()
                    && self.reading.starts.binary_search_by_key(&value, |s| s.0).is_err() =>
            {
                Some(Leads::Named(name))
            }
            _ => Some(Leads::To(value)),
        }
    }
}

/// Whether an instruction writes to registers only, to its own stack, or a number into thread-local storage (errno).
fn writes_nothing(instruction: &Instruction) -> bool {
    if instruction.is_invalid() {
        return false;
    }
    let mut info = iced_x86::InstructionInfoFactory::new();
    info.info(instruction).used_memory().iter().all(|used| {
        use iced_x86::OpAccess;
        let reads = matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None);
        let is_errno = instruction.code() == Code::Mov_rm32_imm32 && used.segment() == Register::FS;
        reads || used.base() == Register::RSP || is_errno
    })
}
