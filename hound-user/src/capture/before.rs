//! What a target held before it was attached to.

use serde::{Deserialize, Serialize};

/// A target's memory from before the attach: of what was allocated then, nothing else is known.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// Resident bytes of the process just before the attach.
    pub resident: u64,
    /// Swapped out bytes of the process just before the attach.
    pub swapped: u64,
    /// Threads.
    pub threads: u32,
    /// How long the target had run, in nanoseconds.
    pub age_ns: u64,
    /// Resident bytes of the break segment (`[heap]`), when it was looked at.
    pub heap: u64,
    /// Resident bytes of other anonymous writable maps, stacks left out, when they were looked at.
    pub anonymous: u64,
    /// What the allocators' metadata told, when they were looked at: one entry for each allocator found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heaps: Vec<HeapBefore>,
    /// When maps and metadata were looked at: so many nanoseconds after recording began. Blocks allocated in between may be counted too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked_ns: Option<u64>,
    /// Why they were not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_looked: Option<String>,
}

/// What is known of one allocator's blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeapBefore {
    /// Its metadata were read.
    Walked(Box<Blocks>),
    /// They cannot be read so that the result could be trusted.
    NotSound {
        /// Its name.
        allocator: String,
        /// Why not.
        why: String,
    },
}

/// A number of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCount {
    /// How many.
    pub count: u64,
    /// Their bytes, as the allocator rounded them: up to 15 more than were asked for (up to a page more in a mapping of their own).
    pub bytes: u64,
}

/// Blocks of `from` to `2 * from - 1` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockClass {
    /// The class's smallest size, a power of two.
    pub from: u64,
    /// The blocks in it.
    #[serde(flatten)]
    pub blocks: BlockCount,
}

/// What a walk along glibc's metadata found. `in_use` + `cached` + `free` + `overhead` = `covered`, all in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blocks {
    /// The blocks in use, by size: the classes that have any, smallest first.
    pub classes: Vec<BlockClass>,
    /// All of them. A few are libc's own: buffers of streams, tables of threads.
    pub in_use: BlockCount,
    /// Of these, the ones with a mapping of their own.
    pub own_mapping: BlockCount,
    /// How many of those libc says there are, and the bytes of their mappings; none if its count was not found.
    pub own_mapping_told: Option<BlockCount>,
    /// Freed, but kept in a thread's cache or a fast bin for the next request of that size. Not in `in_use`.
    pub cached: BlockCount,
    /// Bytes free for any request.
    pub free: u64,
    /// Bytes for the allocator's own purposes: headers, arenas.
    pub overhead: u64,
    /// Bytes walked over.
    pub covered: u64,
    /// Bytes the allocator has from the kernel, by its own count.
    pub mapped: u64,
    /// Arenas found.
    pub arenas: u32,
    /// How often a stretch did not hold together and was read again.
    pub retried: u32,
    /// Lists of cached blocks that never held together: so some more of the small blocks may be cached ones.
    pub unread_lists: u32,
    /// What was not walked.
    pub left_out: Vec<LeftOut>,
    /// The bound at which the walk was ended before it was complete.
    pub cut: Option<Bound>,
    /// No thread ran from the first look to the last: the figures are exact. Otherwise they are a snapshot of a moving target, in which
    /// blocks allocated or freed meanwhile may be counted or not.
    pub stood_still: bool,
    /// Bytes read.
    pub read: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// A stretch of memory that was not walked, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its address.
    pub start: u64,
    /// Its length in bytes, as far as known.
    pub bytes: u64,
    /// Why.
    pub why: String,
}

/// What a look may cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Time.
    Time,
    /// Bytes read.
    Bytes,
}
