//! What encoder and decoder both guess about the next event, so that only the surprise is stored.
//!
//! Every structure here is driven by decoded values only and starts empty with each section: the decoder makes the same guesses because
//! it has seen the same events. A change of any rule here is a change of the file format.

/// Most events (allocations and frees) in a section.
pub const SECTION_EVENTS: usize = 64 * 1024;
/// How deep the list of freed blocks of a class is searched for the address of an allocation.
pub const LIFO_DEPTH: u32 = 8;
/// Addresses remembered whose block is not of this section.
pub const STRAYS: usize = 8;

/// Codes of an allocation's address, in the low bits of the `place` column. Below [`PLACE_NEXT`]: depth in the class's list of freed.
pub const PLACE_NEXT: u8 = 8;
/// Not where it was guessed: the difference, in sixteens, is in the `far` column.
pub const PLACE_FAR: u8 = 9;
/// The same, in bytes.
pub const PLACE_FAR_ODD: u8 = 10;
/// And up: which of the strays it is.
pub const PLACE_STRAY: u8 = 16;
/// The usable size is not what was guessed: it is in the `slack` column.
pub const PLACE_SLACK: u8 = 32;

const NONE: u32 = u32::MAX;
const CLASSES: usize = 1024;

/// Which shape follows which, by the two before.
#[derive(Debug)]
pub struct ShapeGuess {
    table: Box<[u32; 4096]>,
    /// Shape of the event before.
    before: u32,
    slot: usize,
}

impl Default for ShapeGuess {
    fn default() -> Self {
        ShapeGuess { table: Box::new([0; 4096]), before: 0, slot: 0 }
    }
}

impl ShapeGuess {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.table.fill(0);
        (self.before, self.slot) = (0, 0);
    }

    /// The shape that followed the last time.
    #[inline(always)]
    pub fn guess(&self) -> u32 {
        self.table[self.slot & 4095]
    }

    /// What it was.
    #[inline(always)]
    pub fn learn(&mut self, shape: u32) {
        self.table[self.slot & 4095] = shape;
        let mixed = shape.wrapping_mul(0x9E37_79B1) ^ self.before.wrapping_mul(0x85EB_CA6B).rotate_left(11);
        self.slot = (mixed >> 20) as usize;
        self.before = shape;
    }
}

/// The two sizes a shape had last.
#[derive(Clone, Copy, Debug, Default)]
pub struct SizeGuess(u64, u64);

impl SizeGuess {
    /// The code of a size: 0 and 1 for the last two, else the size plus 2. Sizes are below 2^48.
    #[inline(always)]
    pub fn encode(&mut self, size: u64) -> u64 {
        if size == self.0 {
            return 0;
        }
        let code = if size == self.1 { 1 } else { size + 2 };
        self.1 = std::mem::replace(&mut self.0, size);
        code
    }

    /// The size of a code.
    #[inline(always)]
    pub fn decode(&mut self, code: u64) -> u64 {
        let size = match code {
            0 => return self.0,
            1 => self.1,
            _ => code - 2,
        };
        self.1 = std::mem::replace(&mut self.0, size);
        size
    }
}

/// Usable sizes by size. Starts from glibc's rule, learns another allocator's.
///
/// A slack code is 0 for "not known", else the slack plus 1.
#[derive(Debug)]
pub struct SlackGuess {
    /// `(size, slack code)`.
    table: Box<[(u64, u64); 256]>,
}

impl Default for SlackGuess {
    fn default() -> Self {
        SlackGuess { table: Box::new([(u64::MAX, 0); 256]) }
    }
}

impl SlackGuess {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.table.fill((u64::MAX, 0));
    }

    /// The slack code to expect for this size.
    #[inline(always)]
    pub fn guess(&self, size: u64) -> u64 {
        let (known, code) = self.table[size as usize & 255];
        if known == size { code } else { ((size + 23) & !15).max(32) - 8 - size + 1 }
    }

    /// What it was instead.
    #[inline(never)]
    pub fn learn(&mut self, size: u64, code: u64) {
        self.table[size as usize & 255] = (size, code);
    }
}

/// The allocations of a section in their order, and which of them are alive as far as the section says.
#[derive(Debug)]
pub struct Blocks {
    addrs: Vec<u64>,
    /// Class of each block, by its size.
    classes: Vec<u16>,
    /// Per freed block: the one of its class freed before it.
    older: Vec<u32>,
    /// Per class: the block freed last.
    newest: Box<[u32; CLASSES]>,
    /// One bit a block.
    live: Vec<u64>,
    /// Live blocks in each word of `live`, and in each 16 words.
    per_word: Vec<u8>,
    per_16_words: Vec<u16>,
    /// Where the next new block is guessed.
    next: u64,
    strays: [u64; STRAYS],
    stray_at: usize,
    /// Address freed last that is not of this section.
    last_stray: u64,
}

impl Default for Blocks {
    fn default() -> Self {
        Blocks {
            addrs: Vec::new(),
            classes: Vec::new(),
            older: Vec::new(),
            newest: Box::new([NONE; CLASSES]),
            live: Vec::new(),
            per_word: Vec::new(),
            per_16_words: Vec::new(),
            next: 0,
            strays: [0; STRAYS],
            stray_at: 0,
            last_stray: 0,
        }
    }
}

/// Where an allocation was placed, in terms of the guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// One of `PLACE_…` or a depth.
    pub code: u8,
    /// The difference, for the far codes.
    pub far: i64,
}

impl Blocks {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.addrs.clear();
        self.classes.clear();
        self.older.clear();
        self.newest.fill(NONE);
        self.live.clear();
        self.per_word.clear();
        self.per_16_words.clear();
        self.next = 0;
        self.strays = [0; STRAYS];
        self.stray_at = 0;
        self.last_stray = 0;
    }

    /// Number of allocations so far: the index of the next.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.addrs.len()
    }

    #[inline(always)]
    fn class(extent: u64) -> u16 {
        // Chunks of one size share a free list; they differ in sixteens. Large sizes share classes, which costs a guess at worst.
        ((extent >> 4) as usize & (CLASSES - 1)) as u16
    }

    /// Notes an allocation of `extent` usable (or requested) bytes and says how its address follows from the guesses.
    #[inline]
    pub fn place(&mut self, addr: u64, extent: u64) -> Place {
        let class = Self::class(extent);
        let first = self.newest[class as usize];
        if first != NONE {
            if self.addrs[first as usize] == addr {
                self.newest[class as usize] = self.older[first as usize];
                self.push(addr, class);
                return Place { code: 0, far: 0 };
            }
            let mut before = first;
            for code in 1..LIFO_DEPTH as u8 {
                let candidate = self.older[before as usize];
                if candidate == NONE {
                    break;
                }
                if self.addrs[candidate as usize] == addr {
                    self.older[before as usize] = self.older[candidate as usize];
                    self.push(addr, class);
                    return Place { code, far: 0 };
                }
                before = candidate;
            }
        }
        let place = self.place_new(addr);
        self.next = addr.wrapping_add(extent);
        self.push(addr, class);
        place
    }

    fn place_new(&mut self, addr: u64) -> Place {
        if let Some(at) = self.strays.iter().position(|stray| *stray == addr && addr != 0) {
            self.strays[at] = 0;
            return Place { code: PLACE_STRAY + at as u8, far: 0 };
        }
        // glibc: one word of header between two blocks.
        let far = addr.wrapping_sub(self.next.wrapping_add(8)) as i64;
        match far {
            0 => Place { code: PLACE_NEXT, far },
            _ if far & 15 == 0 => Place { code: PLACE_FAR, far: far >> 4 },
            _ => Place { code: PLACE_FAR_ODD, far },
        }
    }

    /// Undoes [`Self::place`]: the address at a place. `None`: no encoder wrote such a code.
    #[inline]
    pub fn find(&mut self, place: Place, extent: u64) -> Option<u64> {
        let class = Self::class(extent);
        if place.code < PLACE_NEXT {
            let first = self.newest[class as usize];
            let mut found = first;
            let mut before = NONE;
            for _ in 0..place.code {
                before = found;
                found = *self.older.get(found as usize)?;
            }
            let addr = *self.addrs.get(found as usize)?;
            let rest = self.older[found as usize];
            match before {
                NONE => self.newest[class as usize] = rest,
                _ => self.older[before as usize] = rest,
            }
            self.push(addr, class);
            return Some(addr);
        }
        let expected = self.next.wrapping_add(8);
        let addr = match place.code {
            PLACE_NEXT => expected,
            PLACE_FAR => expected.wrapping_add((place.far as u64) << 4),
            PLACE_FAR_ODD => expected.wrapping_add(place.far as u64),
            code => std::mem::take(self.strays.get_mut(code.checked_sub(PLACE_STRAY)? as usize)?),
        };
        self.next = addr.wrapping_add(extent);
        self.push(addr, class);
        Some(addr)
    }

    #[inline(always)]
    fn push(&mut self, addr: u64, class: u16) {
        let index = self.addrs.len();
        self.addrs.push(addr);
        self.classes.push(class);
        self.older.push(NONE);
        if index.is_multiple_of(64) {
            self.live.push(0);
            self.per_word.push(0);
            if index.is_multiple_of(1024) {
                self.per_16_words.push(0);
            }
        }
        self.live[index / 64] |= 1 << (index % 64);
        self.per_word[index / 64] += 1;
        self.per_16_words[index / 1024] += 1;
    }

    /// Notes that a block of this section was freed, and says how many younger ones are alive.
    #[inline]
    pub fn free(&mut self, index: u32) -> u32 {
        let index = index as usize;
        let word = index / 64;
        let mut younger = (self.live[word] >> (index % 64) >> 1).count_ones();
        if word + 1 < self.per_word.len() {
            younger += self.live_after_word(word);
        }
        self.bury(index);
        younger
    }

    fn live_after_word(&self, word: usize) -> u32 {
        let group_end = ((word / 16 + 1) * 16).min(self.per_word.len());
        let in_group: u32 = self.per_word[word + 1..group_end].iter().map(|n| u32::from(*n)).sum();
        let behind: u32 = self.per_16_words[word / 16 + 1..].iter().map(|n| u32::from(*n)).sum();
        in_group + behind
    }

    #[inline(always)]
    fn bury(&mut self, index: usize) {
        self.live[index / 64] &= !(1 << (index % 64));
        self.per_word[index / 64] -= 1;
        self.per_16_words[index / 1024] -= 1;
        let class = self.classes[index] as usize;
        self.older[index] = self.newest[class];
        self.newest[class] = index as u32;
    }

    /// Undoes [`Self::free`]: frees the block with this many younger live ones and gives its address. `None`: there is no such block.
    #[inline]
    pub fn free_by_rank(&mut self, rank: u64) -> Option<u64> {
        let mut left = rank;
        let mut group = self.per_16_words.len().checked_sub(1)?;
        while left >= u64::from(self.per_16_words[group]) {
            left -= u64::from(self.per_16_words[group]);
            group = group.checked_sub(1)?;
        }
        let mut word = (group * 16 + 15).min(self.per_word.len() - 1);
        while left >= u64::from(self.per_word[word]) {
            left -= u64::from(self.per_word[word]);
            word = word.checked_sub(1)?;
        }
        let mut bits = self.live[word];
        for _ in 0..left {
            bits &= !(1 << (63 - bits.leading_zeros()));
        }
        let index = word * 64 + 63 - bits.leading_zeros() as usize;
        let addr = self.addrs[index];
        self.bury(index);
        Some(addr)
    }

    /// Notes that a block of elsewhere was freed; the difference to the one before it.
    #[inline]
    pub fn free_stray(&mut self, addr: u64) -> i64 {
        let difference = addr.wrapping_sub(self.last_stray) as i64;
        self.last_stray = addr;
        self.strays[self.stray_at % STRAYS] = addr;
        self.stray_at += 1;
        difference
    }

    /// Undoes [`Self::free_stray`].
    #[inline]
    pub fn find_stray(&mut self, difference: i64) -> u64 {
        let addr = self.last_stray.wrapping_add(difference as u64);
        self.free_stray(addr);
        addr
    }
}
