//! Where the running kernel has the fields that the programs read, from its type information (BTF).
//!
//! The format is the kernel's (Documentation/bpf/btf.rst): a header, types of 12 bytes and what belongs to their kind, strings.

use std::fs;
use std::io;

const FILE: &str = "/sys/kernel/btf/vmlinux";
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;

/// The places of `task_struct`'s fields in bytes; 0 where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFields {
    /// The thread's number.
    pub pid: u64,
    /// The process'.
    pub tgid: u64,
    /// How often page faults are switched off.
    pub pagefault_disabled: u64,
}

impl TaskFields {
    /// Of the running kernel.
    ///
    /// # Errors
    /// If it has no type information, or none that can be read.
    pub fn of_this_kernel() -> io::Result<Self> {
        let bytes = fs::read(FILE)?;
        Self::within(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} says nothing of task_struct")))
    }

    fn within(bytes: &[u8]) -> Option<Self> {
        let [pid, tgid, pagefault_disabled] = Types::of(bytes)?.fields(b"task_struct", [b"pid", b"tgid", b"pagefault_disabled"])?;
        (pid != 0 && tgid != 0).then_some(TaskFields { pid, tgid, pagefault_disabled })
    }
}

/// The places of `kmem_cache`'s fields in bytes; 0 where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFields {
    /// Bytes of an object, with what the allocator adds.
    pub size: u64,
    /// Its name.
    pub name: u64,
}

impl CacheFields {
    /// Of the running kernel.
    ///
    /// # Errors
    /// If it has no type information, or none that can be read.
    pub fn of_this_kernel() -> io::Result<Self> {
        let bytes = fs::read(FILE)?;
        let fields = Types::of(&bytes).and_then(|types| types.fields(b"kmem_cache", [b"size", b"name"]));
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} says nothing of kmem_cache"));
        let [size, name] = fields.filter(|[size, _]| *size != 0).ok_or_else(unknown)?;
        Ok(CacheFields { size, name })
    }
}

/// How many arguments a tracepoint of the running kernel has; nothing if it has no such tracepoint.
///
/// # Errors
/// If the kernel has no type information.
pub fn arguments(tracepoint: &str) -> io::Result<Option<usize>> {
    let bytes = fs::read(FILE)?;
    Ok(Types::of(&bytes).and_then(|types| types.arguments(tracepoint)))
}

/// Type information: the types and the names.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

/// One type.
struct Type {
    /// Where it is.
    at: usize,
    name: u32,
    info: u32,
    /// What it refers to, or its size.
    refers: u32,
}

impl Type {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1F
    }

    fn members(&self) -> usize {
        (self.info & 0xFFFF) as usize
    }
}

impl<'a> Types<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let header = word(bytes, 4)? as usize;
        let types = bytes.get(header + word(bytes, 8)? as usize..)?.get(..word(bytes, 12)? as usize)?;
        let strings = bytes.get(header + word(bytes, 16)? as usize..)?.get(..word(bytes, 20)? as usize)?;
        Some(Types { types, strings })
    }

    /// All of them, in the order of their numbers, which begin at 1; ends where it cannot be read.
    fn all(&self) -> impl Iterator<Item = Type> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (name, info, refers) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let this = Type { at, name, info, refers };
            at += 12 + trailing(this.kind(), this.members())?;
            Some(this)
        })
    }

    /// Where a structure has these fields, in bytes; 0 where it has not.
    fn fields<const N: usize>(&self, structure: &[u8], names: [&[u8]; N]) -> Option<[u64; N]> {
        let found = self.all().find(|this| this.kind() == KIND_STRUCT && is(self.strings, this.name, structure))?;
        let mut places = [0; N];
        for member in self.types.get(found.at + 12..)?.get(..12 * found.members())?.chunks_exact(12) {
            let (name, offset) = (word(member, 0)?, word(member, 8)?);
            // Where a structure has bit fields, the upper byte is their width.
            let bits = if found.info >> 31 != 0 { offset & 0xFF_FFFF } else { offset };
            for (called, place) in names.iter().zip(&mut places) {
                if is(self.strings, name, called) {
                    *place = u64::from(bits / 8);
                }
            }
        }
        Some(places)
    }

    /// A tracepoint has a type `btf_trace_NAME`: a pointer to a function, whose first argument is not the tracepoint's.
    fn arguments(&self, tracepoint: &str) -> Option<usize> {
        let name = format!("btf_trace_{tracepoint}");
        let pointer = self.all().find(|this| this.kind() == KIND_TYPEDEF && is(self.strings, this.name, name.as_bytes()))?.refers;
        let function = self.nth(pointer)?.refers;
        self.nth(function)?.members().checked_sub(1)
    }

    fn nth(&self, number: u32) -> Option<Type> {
        self.all().nth((number as usize).checked_sub(1)?)
    }
}

/// Bytes that follow a type of this kind; nothing for kinds that are not known.
fn trailing(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * members,
        // Enumeration, function's type.
        6 | 13 => 8 * members,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn is(strings: &[u8], name: u32, called: &[u8]) -> bool {
    strings.get(name as usize..).is_some_and(|rest| rest.starts_with(called) && rest.get(called.len()) == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_type_information_gives_nothing() {
        for bytes in [&b""[..], &[0; 24], &[0xFF; 64]] {
            assert_eq!(TaskFields::within(bytes), None);
        }
    }

    #[test]
    fn tracepoints_are_known_by_their_arguments() {
        // Since Linux 2.6 and 4.4; a kernel without type information has none to be asked for.
        let Ok(found) = arguments("sched_process_fork") else { return };
        assert_eq!((found, arguments("task_newtask").ok()), (Some(2), Some(Some(2))));
        assert_eq!(arguments("no_such_tracepoint").ok(), Some(None));
        assert!(CacheFields::of_this_kernel().is_ok_and(|fields| fields.size != 0 && fields.name != 0 && fields.size != fields.name));
    }
}
