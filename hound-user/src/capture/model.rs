//! What a capture contains, decoded: the words that `heap`, `query` and the dump speak.

use hound_common::hook::Kind;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A call path in the capture's prefix tree. See [`StackTree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct StackId(pub u32);

/// One recording thread (or one nesting level of its signal handlers): an index into the capture's stream table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// A process of a capture, in the order in which they came. See [`super::ProcessInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ProcessId(pub u32);

impl ProcessId {
    /// The one that the session record tells of; in most captures the only one.
    pub const FIRST: ProcessId = ProcessId(0);
}

/// Where unwinding began to end: the root a stack hangs from. `reason` is an unwind end reason's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct StackRoot {
    /// Number of the end reason; 0 = the stack reached the thread's first function.
    pub reason: u8,
    /// Some frame was found through frame pointers.
    pub frame_pointers: bool,
    /// Whose stack it is: the same address is another function elsewhere.
    pub process: ProcessId,
}

/// A node of the prefix tree. Parents always come before their children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackNode {
    /// The empty stack; it says how the stacks that hang from it ended.
    Root(StackRoot),
    /// One return address, called from `parent`.
    Frame {
        /// The caller's node.
        parent: StackId,
        /// Return address (avma).
        ip: u64,
    },
}

/// All call paths of a capture, root first.
#[derive(Clone, Debug, Default)]
pub struct StackTree {
    nodes: Vec<StackNode>,
    children: HashMap<(u32, u64), u32, BuildHasherDefault<NodeHasher>>,
    /// Whether there are roots of other processes than the first.
    several: bool,
    /// `children` is to be made yet: who only looks at a tree that was stored does without.
    stored: bool,
}

/// Hashes a (parent, ip) by two multiplications. The keys come from the target, so someone could choose them to collide; that slows the
/// reading of that capture and nothing else.
#[derive(Clone, Copy, Debug, Default)]
struct NodeHasher(u64);

impl Hasher for NodeHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl StackRoot {
    /// As one number.
    pub(crate) fn to_word(self) -> u64 {
        u64::from(self.process.0) << 9 | u64::from(self.reason) << 1 | u64::from(self.frame_pointers)
    }

    /// Back from [`Self::to_word`].
    pub(crate) fn from_word(word: u64) -> Self {
        StackRoot { reason: (word >> 1) as u8, frame_pointers: word & 1 != 0, process: ProcessId((word >> 9) as u32) }
    }
}

impl StackTree {
    /// The tree of these nodes. `None` where one is missing, or comes before its parent.
    pub(crate) fn of_nodes(nodes: impl Iterator<Item = Option<StackNode>>) -> Option<Self> {
        let mut tree = StackTree { stored: true, ..StackTree::default() };
        for node in nodes {
            match node? {
                StackNode::Root(root) => tree.several |= root.process != ProcessId::FIRST,
                StackNode::Frame { parent, .. } if parent.0 as usize >= tree.nodes.len() => return None,
                StackNode::Frame { .. } => {}
            }
            tree.nodes.push(node?);
        }
        Some(tree)
    }

    /// The root for this way of ending, made if new.
    pub fn root(&mut self, root: StackRoot) -> StackId {
        // Roots are few (reasons × 2, for each process): kept in the same map under a parent number no frame can have.
        let key = (u32::MAX, root.to_word());
        self.several |= root.process != ProcessId::FIRST;
        self.intern(key, StackNode::Root(root))
    }

    /// The node for `ip` called from `parent`, made if new.
    pub fn child(&mut self, parent: StackId, ip: u64) -> StackId {
        self.intern((parent.0, ip), StackNode::Frame { parent, ip })
    }

    #[cold]
    fn recognise(&mut self) {
        self.stored = false;
        for (number, node) in self.nodes.iter().enumerate() {
            let key = match node {
                StackNode::Root(root) => (u32::MAX, root.to_word()),
                StackNode::Frame { parent, ip } => (parent.0, *ip),
            };
            self.children.entry(key).or_insert(number as u32);
        }
    }

    fn intern(&mut self, key: (u32, u64), node: StackNode) -> StackId {
        if self.stored {
            self.recognise();
        }
        let nodes = &mut self.nodes;
        StackId(*self.children.entry(key).or_insert_with(|| {
            nodes.push(node);
            (nodes.len() - 1) as u32
        }))
    }

    /// The node behind an id.
    pub fn node(&self, id: StackId) -> Option<StackNode> {
        self.nodes.get(id.0 as usize).copied()
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no stack at all.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The return addresses of a stack, innermost first.
    pub fn ips(&self, mut id: StackId) -> impl Iterator<Item = u64> + '_ {
        std::iter::from_fn(move || match self.node(id) {
            Some(StackNode::Frame { parent, ip }) => {
                id = parent;
                Some(ip)
            }
            _ => None,
        })
    }

    /// Whose stack it is.
    pub fn process_of(&self, id: StackId) -> ProcessId {
        if self.several { self.root_of(id).map_or(ProcessId::FIRST, |root| root.process) } else { ProcessId::FIRST }
    }

    /// How a stack ended.
    pub fn root_of(&self, mut id: StackId) -> Option<StackRoot> {
        loop {
            match self.node(id)? {
                StackNode::Root(root) => return Some(root),
                StackNode::Frame { parent, .. } => id = parent,
            }
        }
    }
}

/// One event with its place in time.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamped {
    /// Nanoseconds since the capture began (its session record).
    pub time_ns: u64,
    /// Who recorded it.
    pub stream: StreamId,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A block came to be.
    Alloc(Alloc),
    /// A block was released (or, with `realloc`, is about to be continued by the stream's next `Alloc` with `previous`).
    Free(Free),
    /// Address space was mapped.
    Map {
        /// Start.
        addr: u64,
        /// Length.
        length: u64,
        /// Protection bits as given to mmap.
        prot: u32,
        /// Flags as given to mmap.
        flags: u32,
        /// File descriptor, −1 for none.
        fd: i64,
        /// Offset in the file.
        offset: u64,
        /// Where from.
        stack: StackId,
    },
    /// Address space was unmapped.
    Unmap {
        /// Start.
        addr: u64,
        /// Length.
        length: u64,
        /// Where from.
        stack: StackId,
    },
    /// A mapping was moved or resized.
    Remap {
        /// Old start.
        old_addr: u64,
        /// Old length.
        old_length: u64,
        /// New start.
        new_addr: u64,
        /// New length.
        new_length: u64,
        /// Where from.
        stack: StackId,
    },
    /// A module was met (or found mapped).
    Module(Module),
    /// The module mapped at `start..end` is gone.
    ModuleGone {
        /// Start avma.
        start: u64,
        /// End avma.
        end: u64,
    },
    /// About the stream's thread.
    Thread(ThreadEvent),
    /// The stream's process is recorded from here on.
    Process(ProcessEvent),
    /// The program set a marker.
    Marker(u32),
    /// Somebody outside the program set a marker with this text (`hound mark`).
    Mark(String),
    /// Recording was switched (`hound_common::event::MODE_…`).
    Mode {
        /// New mode.
        mode: u8,
    },
    /// Mean bytes between samples from here on, in this stream; 0 = exact.
    Rate(u64),
    /// Of a period that was sampled, one window was observed. All in nanoseconds since the capture began.
    Window {
        /// When it was opened.
        opened_ns: u64,
        /// When it was closed.
        closed_ns: u64,
        /// When the period began.
        from_ns: u64,
        /// When it ended.
        to_ns: u64,
    },
    /// What is known now of a sampled block whose release may not have been seen.
    Liveness {
        /// `hound_common::event::LIVENESS_…`
        state: u8,
        /// The block's address.
        addr: u64,
        /// The pool it is of; 0: the heap.
        pool: u8,
    },
    /// Blocks of this stream were left out since the last such event, with their releases (`hound strip`).
    Stripped {
        /// The pool they are of; 0: the heap.
        pool: u8,
        /// How many.
        blocks: u64,
        /// Their bytes.
        bytes: u64,
        /// They lived shorter than this.
        threshold_ns: u64,
    },
    /// What was left out while it was recorded (`--cull`), of all streams: [`Event::Stripped`] tells of the same in their places.
    Culled(Box<Culled>),
    /// Resident bytes of a recorded map.
    MapRss {
        /// Start of the map.
        addr: u64,
        /// Its length.
        length: u64,
        /// Resident bytes.
        resident: u64,
    },
    /// Resident, proportional (0 = unknown) and swapped bytes of the process.
    ProcessRss {
        /// Resident bytes.
        resident: u64,
        /// Proportional set size.
        proportional: u64,
        /// Swapped out.
        swapped: u64,
    },
    /// What the process' memory is, in bytes.
    ProcessMemory(ProcessMemory),
    /// The most that was resident of the process since it began, in bytes, as the kernel has kept it.
    ProcessPeak {
        /// Bytes.
        resident: u64,
    },
    /// A page that was not there was touched.
    Fault(Fault),
    /// Events known to be missing (`hound_common::event::LOST_…`).
    Lost {
        /// How many.
        count: u64,
        /// Why.
        reason: u8,
    },
    /// The stream, or with `END_EXIT`/`END_SIGNAL`/`END_EXEC`/`END_DETACH` the recording, ends (`hound_common::event::END_…`).
    End {
        /// How.
        reason: u8,
        /// Exit status or signal.
        value: u64,
    },
    /// How the stream's frames were found: totals so far.
    Unwinding(super::session::UnwindCounters),
    /// A record this version has no name for.
    Other {
        /// Its tag.
        tag: u8,
        /// Its header's `a`.
        a: u8,
        /// The words after its header.
        words: Vec<u64>,
    },
}

/// A block came to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alloc {
    /// Its address.
    pub addr: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Bytes usable, if known.
    pub usable: Option<u64>,
    /// By which function.
    pub kind: Kind,
    /// `hound_common::event::ALLOC_…` bits.
    pub flags: u8,
    /// Which pool it was cut from, from 1; 0: it is the heap's own.
    pub pool: u8,
    /// The block it continues, for a realloc.
    pub previous: Option<u64>,
    /// Where from.
    pub stack: StackId,
}

/// A block was released.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Free {
    /// Its address.
    pub addr: u64,
    /// By which function.
    pub kind: Kind,
    /// Which pool it goes back to, from 1; 0: the heap.
    pub pool: u8,
    /// The release half of a realloc.
    pub realloc: bool,
    /// Where from, if stacks of frees were recorded.
    pub stack: Option<StackId>,
}

/// What was left out while it was recorded, of a second or so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Culled {
    /// They were allocated from this time on.
    pub from_ns: u64,
    /// And before that one.
    pub to_ns: u64,
    /// How many.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// They lived shorter than this.
    pub threshold_ns: u64,
    /// Allocations and releases that came when their time was over, since the last such event: they were kept, and may lack their other half.
    pub late: u64,
    /// How often, since the last such event, too much waited, and was all kept.
    pub overflows: u64,
    /// By place on the scale of lifetimes: blocks, bytes.
    pub lifetimes: Vec<(u8, u64, u64)>,
    /// By place on the scale of sizes: blocks, bytes.
    pub sizes: Vec<(u8, u64, u64)>,
}

/// A page that was not there was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which byte.
    pub addr: u64,
    /// Mean bytes between samples when this one was drawn, each touch counting for 4096; 0: every one was recorded.
    pub interval: u64,
    /// Bytes that were mapped by it: a page, or a huge page.
    pub bytes: u64,
    /// What lies there (`hound_common::event::FAULT_…`).
    pub kind: u8,
    /// `FAULT_BY_KERNEL`, `FAULT_WRITE`.
    pub flags: u8,
    /// Where from. The first ip is that of the instruction, plus one: as in a return address, what is meant lies before it.
    pub stack: StackId,
}

/// What a process' memory is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Address space (VmSize).
    pub virtual_size: u64,
    /// Resident, of no file (RssAnon).
    pub anonymous: u64,
    /// Resident pages of files (RssFile).
    pub file: u64,
    /// Resident shared memory (RssShmem).
    pub shared: u64,
}

impl ProcessMemory {
    /// Both together: what processes share counts for each.
    pub fn and(self, other: &Self) -> Self {
        ProcessMemory {
            virtual_size: self.virtual_size.saturating_add(other.virtual_size),
            anonymous: self.anonymous.saturating_add(other.anonymous),
            file: self.file.saturating_add(other.file),
            shared: self.shared.saturating_add(other.shared),
        }
    }
}

/// A mapped ELF image.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Module {
    /// What to add to an svma to get the avma.
    pub bias: u64,
    /// First mapped avma.
    pub start: u64,
    /// End avma.
    pub end: u64,
    /// GNU build-id, empty if it has none.
    pub build_id: Vec<u8>,
    /// Path as the target sees it; "[vdso]" and such for what is no file.
    pub path: String,
}

/// A process is recorded from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessEvent {
    /// How it came to be (`hound_common::event::PROCESS_…`).
    pub began: u8,
    /// As the machine numbers it.
    pub pid: u32,
    /// Its parent, as the machine numbers it.
    pub parent: u32,
    /// Which one of the capture it was before.
    pub from: Option<ProcessId>,
    /// Its command line.
    pub command: Vec<String>,
}

/// About a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ThreadEvent {
    /// The stream belongs to this thread.
    Start {
        /// Kernel thread id.
        tid: u32,
    },
    /// The thread's name.
    Name(String),
    /// The thread is gone.
    Exit,
}
