//! What hound writes near a module for each patched function: the thunk that a patch jumps to, and the displaced instructions.

use core::mem::offset_of;

use hound_common::attach::{DISPLACED, Entry, INLINED_EXIT, Shape};

use crate::code::{Displaced, TRAMPOLINE, Unfit};
use crate::families::Function;

/// Bytes for one function: its thunk, its trampoline, and the way to its stub.
pub const SLOT: u64 = 256;
/// Where the trampoline is in it, if nothing is inlined.
const TRAMPOLINE_AT: usize = 32;
/// Bytes of an [`Entry`].
pub const ENTRY: usize = size_of::<Entry>();
/// `mov r11, entry`. The function's own arguments and its stack stay as they are; r11 belongs to nobody at a call.
const MOV_R11: [u8; 2] = [0x49, 0xbb];
const MOV_BYTES: usize = 10;
/// Most bytes that can be inlined.
pub const MOST_INLINED: usize = INLINED_EXIT - TRAMPOLINE;
const _: () = assert!(MOV_BYTES + INLINED_EXIT + 7 <= SLOT as usize, "the way to the stub is in the slot");

/// `mov r11, entry; jmp [rip]; stub`. A pool's function may belong to callers that know it better: its stub gets r11 pushed.
fn thunk(entry: u64, stub: u64, shape: u8) -> Vec<u8> {
    const PUSH_R11: [u8; 2] = [0x41, 0x53];
    let is_pool = [Shape::PoolAlloc, Shape::PoolFree, Shape::PoolRealloc].iter().any(|pool| *pool as u8 == shape);
    let mut code = if is_pool { PUSH_R11.to_vec() } else { Vec::new() };
    code.extend(MOV_R11);
    code.extend(entry.to_le_bytes());
    code.extend([0xff, 0x25, 0, 0, 0, 0]);
    code.extend(stub.to_le_bytes());
    code
}

/// Both, for a slot at `at`. With `inlined` code (see [`hound_common::attach::Inlined`]) the thunk is that, and comes to the trampoline by itself.
///
/// # Errors
/// As [`Displaced::relocated`].
pub fn slot(at: u64, entry: u64, stub: u64, shape: u8, inlined: &[u8], displaced: &Displaced) -> Result<Vec<u8>, Unfit> {
    let mut code = if inlined.is_empty() { thunk(entry, stub, shape) } else { [&MOV_R11[..], &entry.to_le_bytes(), inlined].concat() };
    let real = real(at, inlined.len());
    code.resize((real - at) as usize, crate::code::BREAKPOINT);
    code.extend(displaced.relocated(real)?);
    if !inlined.is_empty() {
        code.resize(MOV_BYTES + INLINED_EXIT, crate::code::BREAKPOINT);
        code.extend([0x41, 0xff, 0xa3]); // jmp [r11 + stub]
        code.extend((offset_of!(Entry, stub) as u32).to_le_bytes());
    }
    Ok(code)
}

/// Where a slot's trampoline is, the unpatched function, if so many bytes are inlined.
pub fn real(slot: u64, inlined: usize) -> u64 {
    slot + if inlined == 0 { TRAMPOLINE_AT } else { MOV_BYTES + inlined } as u64
}

/// What an [`Entry`] says, as hound handles it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// See [`Entry`] for all of these.
    pub real: u64,
    pub helper: u64,
    pub inside: (u64, u64),
    pub address: u64,
    pub thunk: u64,
    pub attachment: u64,
    pub stub: u64,
    pub kind: u8,
    pub shape: u8,
    pub flags: u8,
    pub size_argument: u8,
    pub count_argument: u8,
    pub block_argument: u8,
    pub pool: u8,
    pub original: Vec<u8>,
    pub patched: Vec<u8>,
}

const WORDS: [usize; 8] = [
    offset_of!(Entry, real),
    offset_of!(Entry, helper),
    offset_of!(Entry, inside_start),
    offset_of!(Entry, inside_end),
    offset_of!(Entry, address),
    offset_of!(Entry, thunk),
    offset_of!(Entry, attachment),
    offset_of!(Entry, stub),
];
const BYTES: [usize; 8] = [
    offset_of!(Entry, kind),
    offset_of!(Entry, shape),
    offset_of!(Entry, flags),
    offset_of!(Entry, size_argument),
    offset_of!(Entry, count_argument),
    offset_of!(Entry, block_argument),
    offset_of!(Entry, pool),
    offset_of!(Entry, length),
];

impl Row {
    /// Of a function, without pool, places yet to be filled in.
    pub fn of(function: &Function, displaced: &Displaced) -> Self {
        Self {
            real: 0,
            helper: 0,
            inside: (0, 0),
            address: displaced.address,
            thunk: 0,
            attachment: 0,
            stub: 0,
            kind: function.kind,
            shape: function.shape as u8,
            flags: 0,
            size_argument: function.places.size,
            count_argument: function.places.count,
            block_argument: function.places.block,
            pool: 0,
            original: displaced.bytes.clone(),
            patched: Vec::new(),
        }
    }

    /// Its bytes in the target.
    pub fn to_bytes(&self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        let words = [self.real, self.helper, self.inside.0, self.inside.1, self.address, self.thunk, self.attachment, self.stub];
        for (at, word) in WORDS.into_iter().zip(words) {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let length = self.original.len() as u8; // at most DISPLACED
        let single = [self.kind, self.shape, self.flags, self.size_argument, self.count_argument, self.block_argument, self.pool, length];
        for (at, byte) in BYTES.into_iter().zip(single) {
            bytes[at] = byte;
        }
        let original = offset_of!(Entry, original);
        bytes[original..original + self.original.len()].copy_from_slice(&self.original);
        let patched = offset_of!(Entry, patched);
        bytes[patched..patched + self.patched.len()].copy_from_slice(&self.patched);
        bytes
    }

    /// Reads one; `None` if it is no entry that hound can have written.
    pub fn from_bytes(bytes: &[u8; ENTRY]) -> Option<Self> {
        let word = |n: usize| bytes[WORDS[n]..WORDS[n] + 8].try_into().map_or(0, u64::from_le_bytes);
        let [kind, shape, flags, size_argument, count_argument, block_argument, pool, length] = BYTES.map(|at| bytes[at]);
        let length = usize::from(length);
        if !(crate::code::JUMP..=DISPLACED).contains(&length) || word(4) == 0 {
            return None;
        }
        let part = |at: usize| bytes[at..at + length].to_vec();
        Some(Self {
            real: word(0),
            helper: word(1),
            inside: (word(2), word(3)),
            address: word(4),
            thunk: word(5),
            attachment: word(6),
            stub: word(7),
            kind,
            shape,
            flags,
            size_argument,
            count_argument,
            block_argument,
            pool,
            original: part(offset_of!(Entry, original)),
            patched: part(offset_of!(Entry, patched)),
        })
    }

    /// Whether a function planned anew can use this entry, patched before: it says the same, places aside.
    pub fn serves(&self, planned: &Self) -> bool {
        let places = |row: &Self| Self { real: 0, helper: 0, thunk: 0, attachment: 0, stub: 0, patched: Vec::new(), ..row.clone() };
        places(self) == places(planned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_back() {
        let function = Function::new("f", (0x1000, 9), 3, Shape::Realloc);
        let displaced = Displaced::of(0x1000, &[0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3]).unwrap();
        let row = Row {
            real: 1,
            helper: 2,
            inside: (3, 4),
            thunk: 5,
            attachment: 6,
            stub: 7,
            patched: vec![9; 6],
            pool: 7,
            ..Row::of(&function, &displaced)
        };
        assert_eq!(Row::from_bytes(&row.to_bytes()), Some(row.clone()));
        assert!(row.serves(&Row { real: 9, patched: vec![], ..row.clone() }));
        assert!(!row.serves(&Row { pool: 8, ..row.clone() }));
        assert_eq!(Row::from_bytes(&[0; ENTRY]), None);
    }

    #[test]
    fn a_thunk_loads_the_entry_and_jumps() {
        let displaced = Displaced::of(0x1000, &[0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3]).unwrap();
        let code = slot(0x2000, 0x1122, 0x3344, Shape::Alloc as u8, &[], &displaced).unwrap();
        assert_eq!(code[..10], [0x49, 0xbb, 0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        assert_eq!(code[16..24], 0x3344_u64.to_le_bytes());
        assert_eq!((&code[32..36], real(0x2000, 0)), (crate::code::ENDBR64.as_slice(), 0x2020));
        assert!(code.len() as u64 <= SLOT);
        let pool = slot(0x2000, 0x1122, 0x3344, Shape::PoolFree as u8, &[], &displaced).unwrap();
        assert_eq!((&pool[..2], &pool[2..26]), ([0x41, 0x53].as_slice(), &code[..24]));
    }

    #[test]
    fn inlined_code_comes_to_the_trampoline_and_leaves_to_the_stub() {
        let displaced = Displaced::of(0x1000, &[0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0xc3]).unwrap();
        for bytes in [1, MOST_INLINED] {
            let inlined = vec![0x90; bytes];
            let code = slot(0x2000, 0x1122, 0x3344, Shape::Free as u8, &inlined, &displaced).unwrap();
            assert_eq!(code[..10], [0x49, 0xbb, 0x22, 0x11, 0, 0, 0, 0, 0, 0]);
            assert_eq!(code[10..10 + bytes], inlined);
            let trampoline = displaced.relocated(real(0x2000, bytes)).unwrap();
            assert_eq!(code[10 + bytes..][..trampoline.len()], trampoline);
            let exit = &code[10 + INLINED_EXIT..];
            assert_eq!((&exit[..3], exit.len()), ([0x41, 0xff, 0xa3].as_slice(), 7));
            assert_eq!(exit[3..], (offset_of!(Entry, stub) as u32).to_le_bytes());
            assert!(code.len() as u64 <= SLOT);
        }
    }
}
