//! Reads what a program noted about itself (`programs/oracle.h` defines the layout and writes it).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const HEAD_BYTES: usize = 4096;
const RECORD_BYTES: usize = 56;

/// What was called. The numbers are those of `enum o_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A function that returns a new block; its name.
    Alloc(&'static str),
    /// A function that may move a block; its name.
    Realloc(&'static str),
    /// `free` of a block.
    Free,
    /// A marker was set.
    Marker,
    /// A call that changes the address space; its name.
    Map(&'static str),
}

impl Call {
    fn from_number(op: u32) -> Option<Call> {
        Some(match op {
            1 => Call::Alloc("malloc"),
            2 => Call::Alloc("calloc"),
            3 => Call::Realloc("realloc"),
            4 => Call::Realloc("reallocarray"),
            5 => Call::Alloc("posix_memalign"),
            6 => Call::Alloc("memalign"),
            7 => Call::Alloc("aligned_alloc"),
            8 => Call::Alloc("valloc"),
            9 => Call::Alloc("pvalloc"),
            10 => Call::Free,
            11 => Call::Marker,
            12 => Call::Map("mmap"),
            13 => Call::Map("munmap"),
            14 => Call::Map("mremap"),
            15 => Call::Alloc("mallocx"),
            16 => Call::Realloc("rallocx"),
            17 => Call::Alloc("operator new"),
            18 => Call::Alloc("operator new[]"),
            19 => Call::Realloc("xallocx"),
            _ => return None,
        })
    }
}

/// One note.
#[derive(Clone, Debug)]
pub struct Note {
    /// What was called.
    pub call: Call,
    /// By which thread.
    pub tid: u32,
    /// The address that came back (for `free`: that went in); 0 if the call failed.
    pub addr: u64,
    /// Requested bytes, or a marker's value.
    pub size: u64,
    /// `malloc_usable_size` of the block.
    pub usable: u64,
    /// The address given to realloc or mremap, else 0.
    pub prev: u64,
    /// Return addresses, innermost first; the first lies in the allocating function, behind the call. Empty: not noted.
    pub stack: Vec<u64>,
}

/// All that a program noted.
#[derive(Debug)]
pub struct Oracle {
    /// In the order the slots were claimed: true within each thread.
    pub notes: Vec<Note>,
    /// Code of the program itself.
    pub own: Vec<Range<u64>>,
    /// Code that stands between the program and the allocator (`operator new`).
    pub through: Vec<Range<u64>>,
    /// Numbers the program left for its test.
    pub facts: Vec<u64>,
    /// The program's process id, as it sees it.
    pub pid: u64,
    /// Where the executable was loaded.
    pub base: u64,
    /// The return address of signal handlers; 0 if the program has none that allocate.
    pub restorer: u64,
    /// Slots claimed but never filled: where a kill struck.
    pub unfinished: usize,
}

impl Oracle {
    /// Where in the file a fact is, for who looks while the program runs.
    pub fn fact_offset(number: usize) -> u64 {
        64 + 2 * (8 + 256) + 8 * number as u64
    }

    /// Reads the file a program left.
    ///
    /// # Panics
    /// If there is none, if it is not an oracle, or if the program made more notes than there was room for.
    pub fn read(path: &Path) -> Oracle {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("no oracle at {}: {e}", path.display()));
        assert!(bytes.len() > HEAD_BYTES && bytes.starts_with(b"ORACLE1\n"), "{} is no oracle", path.display());
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("invariant: eight bytes"));
        let (cap, room, used, used_words) = (word(8), word(16), word(24), word(32));
        assert!(used <= cap && used_words <= room, "the program noted more ({used}, {used_words} words) than fits ({cap}, {room} words)");
        let ranges = |at: usize| (0..word(at) as usize).map(|i| word(at + 8 + i * 16)..word(at + 16 + i * 16)).collect();
        let mut oracle = Oracle {
            notes: Vec::with_capacity(used as usize),
            own: ranges(64),
            through: ranges(64 + 8 + 256),
            facts: (0..64).map(|i| word(Oracle::fact_offset(i) as usize)).collect(),
            pid: word(40),
            base: word(48),
            restorer: word(56),
            unfinished: 0,
        };
        let words = HEAD_BYTES + cap as usize * RECORD_BYTES;
        for i in 0..used as usize {
            let at = HEAD_BYTES + i * RECORD_BYTES;
            let (op, tid) = (word(at) as u32, (word(at) >> 32) as u32);
            let Some(call) = Call::from_number(op) else {
                oracle.unfinished += 1;
                continue;
            };
            let (first, depth) = (word(at + 40) as usize, word(at + 48) as usize);
            let stack = (first..first + depth).map(|k| word(words + k * 8)).collect();
            oracle.notes.push(Note {
                call,
                tid,
                addr: word(at + 8),
                size: word(at + 16),
                usable: word(at + 24),
                prev: word(at + 32),
                stack,
            });
        }
        oracle
    }

    /// The record of one phase, of a program that tells in its facts where each begins and ends (`programs/attach_target.c`).
    ///
    /// # Panics
    /// If there is no such phase, or the program was killed while it noted.
    pub fn phase(mut self, number: usize) -> Oracle {
        assert!((number as u64) < self.facts[0], "the program noted {} phases", self.facts[0]);
        assert_eq!(self.unfinished, 0, "notes begun and never finished");
        let (first, end) = (self.facts[2 + 2 * number] as usize, self.facts[3 + 2 * number] as usize);
        self.notes = self.notes.drain(first..end).collect();
        self
    }

    /// Whether the return address `ip` follows a call in the program's own code.
    pub fn is_own(&self, ip: u64) -> bool {
        self.own.iter().any(|r| r.contains(&(ip - 1)))
    }

    /// Whether it follows a call in code standing between the program and the allocator.
    pub fn is_through(&self, ip: u64) -> bool {
        self.through.iter().any(|r| r.contains(&(ip - 1)))
    }

    /// The notes of each thread, in its order.
    pub fn by_thread(&self) -> BTreeMap<u32, Vec<&Note>> {
        let mut threads = BTreeMap::<u32, Vec<&Note>>::new();
        for note in &self.notes {
            threads.entry(note.tid).or_default().push(note);
        }
        threads
    }
}
