//! Writes ring bytes as libhound.so does, from events with whole stacks, with every way of editing a stack.

use super::Seen;
use hound_common::event::*;
use proptest::prelude::*;

/// One event to write.
#[derive(Clone, Debug)]
pub enum Do {
    /// addr, size, usable, kind number, flags without WIDE and REALLOC, previous.
    Alloc(u64, u64, Option<u64>, u8, u8, Option<u64>),
    /// addr, realloc, with stack.
    Free(u64, bool, bool),
    Map([u64; 5]),
    Unmap(u64, u64),
    Fault([u64; 3], u8),
    Marker(u32),
    Name(String),
    Unknown(u8, Vec<u64>),
}

/// An event, its place in time, its stack (root first) and how the edit is to be said.
#[derive(Clone, Debug)]
pub struct Step {
    pub dt: u64,
    pub stack: Vec<u64>,
    pub reason: u8,
    pub frame_pointers: bool,
    pub style: u8,
    pub what: Do,
}

/// A stream's ring bytes under construction.
#[derive(Default)]
pub struct Ring {
    pub bytes: Vec<u8>,
    pub clock: u64,
    array: Vec<u64>,
}

impl Ring {
    pub fn record(&mut self, tag: u8, a: u8, b: u8, dt: u32, words: &[u64]) {
        let header = Header { tag, words: words.len() as u8 + 1, a, b, dt };
        for word in std::iter::once(header.to_word()).chain(words.iter().copied()) {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub fn time(&mut self, ticks: u64) {
        self.clock = ticks;
        self.record(tag::TIME, 0, 0, 0, &[ticks]);
    }

    /// Edits the stack into this one. Style 0: common root kept; 1: also a common leaf side; 2: nothing kept.
    pub fn stack(&mut self, path: &[u64], reason: u8, frame_pointers: bool, style: u8) {
        let old = self.array.clone();
        let shorter = old.len().min(path.len());
        let keep = if style == 2 { 0 } else { (0..shorter).take_while(|i| old[*i] == path[*i]).count() };
        let left = shorter - keep;
        let leaf = if style == 1 { (1..=left).take_while(|i| old[old.len() - i] == path[path.len() - i]).count() } else { 0 };
        let new = &path[keep..path.len() - leaf];
        let mut flags = if frame_pointers { STACK_FRAME_POINTER } else { 0 };
        let parts: Vec<&[u64]> = new.chunks(MAX_STACK_RECORD_IPS).collect();
        let leaf_from = if leaf > 0 { old.len() - leaf } else { keep + new.len() };
        // A long edit is said in steps; the leaf side can only be kept by the first.
        if parts.len() > 1 {
            flags |= STACK_MORE;
            return self.stack_in_parts(path, reason, flags);
        }
        let edit = StackEdit { keep_root: keep as u16, new: new.len() as u16, leaf_from: leaf_from as u16, keep_leaf: leaf as u16 };
        self.record(tag::STACK, reason, flags, 0, &[&[edit.to_word()], new].concat());
        let in_place = leaf_from == keep + new.len();
        let mut array = [&old[..keep], new, &path[path.len() - leaf..]].concat();
        if in_place && old.len() > array.len() {
            array.extend_from_slice(&old[array.len()..]);
        }
        self.array = array;
    }

    fn stack_in_parts(&mut self, path: &[u64], reason: u8, flags: u8) {
        for (i, part) in path.chunks(MAX_STACK_RECORD_IPS).enumerate() {
            let at = i * MAX_STACK_RECORD_IPS;
            let edit = StackEdit { keep_root: at as u16, new: part.len() as u16, leaf_from: (at + part.len()) as u16, keep_leaf: 0 };
            let last = at + part.len() == path.len();
            let flags = if last { flags & !STACK_MORE } else { flags };
            self.record(tag::STACK, reason, flags, 0, &[&[edit.to_word()], part].concat());
        }
        let behind = self.array.get(path.len()..).unwrap_or(&[]).to_vec();
        self.array = [path, &behind].concat();
    }

    pub fn step(&mut self, step: &Step) {
        self.clock += step.dt;
        let mut dt = step.dt as u32;
        if step.dt > u64::from(u32::MAX) {
            self.record(tag::TIME, 0, 0, 0, &[self.clock]);
            dt = 0;
        }
        let uses_stack = matches!(step.what, Do::Alloc(..) | Do::Map(..) | Do::Unmap(..) | Do::Fault(..) | Do::Free(_, _, true));
        if uses_stack {
            self.stack(&step.stack, step.reason, step.frame_pointers, step.style);
        }
        match &step.what {
            Do::Alloc(addr, size, usable, kind, flags, previous) => {
                let slack = usable.map(|usable| usable - size);
                let wide = slack.is_some_and(|slack| slack >= u64::from(SLACK_UNKNOWN));
                let flags = flags | if wide { ALLOC_WIDE } else { 0 } | if previous.is_some() { ALLOC_REALLOC } else { 0 };
                let slack = if wide { 0 } else { slack.map_or(SLACK_UNKNOWN, |slack| slack as u16) };
                let mut words = vec![*addr, size_word(*size, slack)];
                words.extend(usable.filter(|_| wide));
                words.extend(previous);
                self.record(tag::ALLOC, *kind, flags, dt, &words);
            }
            Do::Free(addr, realloc, stack) => {
                let flags = if *realloc { FREE_REALLOC } else { 0 } | if *stack { FREE_HAS_STACK } else { 0 };
                self.record(tag::FREE, 32, flags, dt, &[*addr]);
            }
            Do::Map(words) => self.record(tag::MAP, 64, 0, dt, words),
            Do::Unmap(addr, length) => self.record(tag::UNMAP, 65, 0, dt, &[*addr, *length]),
            Do::Fault(words, kind) => self.record(tag::FAULT, *kind, FAULT_WRITE, dt, words),
            Do::Marker(value) => self.record(tag::MARKER, 0, 0, dt, &[u64::from(*value)]),
            Do::Name(name) => {
                let mut bytes = name.clone().into_bytes();
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                let words: Vec<u64> = [7, name.len() as u64].into_iter().chain(words).collect();
                self.record(tag::THREAD, THREAD_NAME, 0, dt, &words);
            }
            Do::Unknown(tag, words) => self.record(*tag, 9, 0, dt, words),
        }
    }
}

/// What a reader must see of these steps of one stream that begins at 0.
pub fn expected(stream: u32, steps: &[Step]) -> Vec<Seen> {
    let mut time_ns = 0;
    let seen = |step: &Step| {
        time_ns += step.dt;
        let stack = (step.reason, step.frame_pointers, step.stack.iter().rev().copied().collect());
        let (event, stack) = match &step.what {
            Do::Alloc(addr, size, usable, kind, flags, previous) => {
                let kind = hound_common::hook::Kind::from_u8(*kind).expect("tests use known kinds");
                let flags = flags | if previous.is_some() { ALLOC_REALLOC } else { 0 };
                (format!("alloc {addr:x} {size} {usable:?} {kind:?} {flags} {previous:?}"), Some(stack))
            }
            Do::Free(addr, realloc, with) => (format!("free {addr:x} Free {realloc}"), with.then_some(stack)),
            Do::Map([addr, length, protection, fd, offset]) => {
                let (prot, flags) = (*protection as u32, protection >> 32);
                (format!("map {addr:x} {length} {prot} {flags} {} {offset}", *fd as i64), Some(stack))
            }
            Do::Unmap(addr, length) => (format!("unmap {addr:x} {length}"), Some(stack)),
            Do::Fault([addr, interval, bytes], kind) => {
                (format!("fault {addr:x} {interval} {bytes} kind {kind} flags {FAULT_WRITE}"), Some(stack))
            }
            Do::Marker(value) => (format!("Marker({value})"), None),
            Do::Name(name) => (format!("Thread(Name({name:?}))"), None),
            Do::Unknown(tag, words) => (format!("Other {{ tag: {tag}, a: 9, words: {words:?} }}"), None),
        };
        Seen { time_ns, stream, event, stack }
    };
    steps.iter().map(seen).collect()
}

/// Small numbers often, any at times.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..200, 2 => (0u64..64).prop_map(|n| 0x7f00_0000_0000 + n * 16), 1 => any::<u64>()]
}

fn what() -> impl Strategy<Value = Do> {
    let addr = || prop_oneof![8 => (1u64..64).prop_map(|n| 0x5555_0000 + n * 16), 1 => any::<u64>()];
    let size = prop_oneof![6 => 0u64..300, 1 => 0u64..1 << 48];
    let slack = prop_oneof![4 => (0u64..64).prop_map(Some), 1 => (0u64..1 << 40).prop_map(Some), 1 => Just(None)];
    let kind = prop_oneof![Just(1u8), Just(2), Just(3), Just(9)];
    let alloc = (addr(), size, slack, kind, prop_oneof![Just(0u8), Just(ALLOC_MMAPPED)], proptest::option::weighted(0.2, addr()));
    prop_oneof![
        8 => alloc.prop_map(|(a, s, slack, k, f, p)| Do::Alloc(a, s, slack.map(|slack| s + slack), k, f, p)),
        6 => (addr(), any::<bool>(), any::<bool>()).prop_map(|(a, r, s)| Do::Free(a, r, s)),
        1 => proptest::array::uniform5(number()).prop_map(Do::Map),
        1 => (number(), number()).prop_map(|(a, l)| Do::Unmap(a, l)),
        2 => (proptest::array::uniform3(number()), 0u8..9).prop_map(|(words, kind)| Do::Fault(words, kind)),
        1 => any::<u32>().prop_map(Do::Marker),
        1 => "[a-zß]{0,40}".prop_map(Do::Name),
        1 => (100u8..120, proptest::collection::vec(number(), 0..5)).prop_map(|(t, w)| Do::Unknown(t, w)),
    ]
}

/// Any step of a stream.
pub fn step() -> impl Strategy<Value = Step> {
    let ip = (0u64..6).prop_map(|n| 0x40_0000 + n * 5);
    let stack = prop_oneof![
        12 => proptest::collection::vec(ip, 0..12),
        1 => proptest::collection::vec(any::<u64>(), 200..700),
    ];
    let dt = prop_oneof![6 => 0u64..300, 1 => 0u64..1 << 34];
    let reason = prop_oneof![6 => Just(0u8), 1 => 0u8..9];
    (dt, stack, reason, proptest::bool::weighted(0.1), 0u8..3, what()).prop_map(|(dt, stack, reason, frame_pointers, style, what)| Step {
        dt,
        stack,
        reason,
        frame_pointers,
        style,
        what,
    })
}
