//! The target's environment: what in it is meant for hound, and making it look as if hound were not there.
//!
//! The environment is read where the kernel put it, so that it works before libc has started. Hiding shifts the pointers of the initial
//! array, which is what `environ` points to at that time: the target and its children see neither `LD_PRELOAD` (ours) nor `HOUND_…`.

use core::ffi::{CStr, c_char};

use hound_common::family::VARIABLE;
use hound_common::ring::{OPTION_FREE_STACKS, OPTION_MAPS, OPTION_SHADOW_STACK};
use hound_common::sampling::{DEFAULT_INTERVAL, MAX_INTERVAL};

use crate::elf;
use crate::signals::{SIGUSR1, SIGUSR2};

/// Where the ring comes from.
pub enum Ring {
    /// From `hound run`, as this descriptor.
    Given(i32),
    /// From nobody: plain LD_PRELOAD.
    None,
}

/// What the program's own children find hound by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// They are not recorded.
    Nothing,
    /// They ask hound for rings.
    Family,
    /// Each is recorded for itself, by what this one was given.
    All,
}

/// The initial environment array.
pub struct Environment {
    entries: *mut *mut c_char,
}

impl Environment {
    /// The process's, `None` where its place is not known.
    pub fn of_process() -> Option<Self> {
        let stack = elf::initial_stack();
        if stack.is_null() {
            // musl: what the program was given is still what `environ` points to, for nothing of it has run.
            // SAFETY: null, or the C library's variable.
            let entries = unsafe { elf::environ().as_ref() }.filter(|entries| !entries.is_null())?;
            return Some(Environment { entries: entries.cast_mut().cast() });
        }
        // SAFETY: the kernel has put argc there.
        let argc = unsafe { stack.read() } as usize;
        let entries = stack.wrapping_add(1 + argc + 1);
        Some(Environment { entries: entries.cast_mut().cast() })
    }

    fn entry(&self, index: usize) -> Option<&'static CStr> {
        // SAFETY: indexes below the terminating null are asked for in order.
        let pointer = unsafe { self.entries.wrapping_add(index).read() };
        if pointer.is_null() {
            return None;
        }
        // SAFETY: the kernel has put terminated strings there; nobody frees them.
        Some(unsafe { CStr::from_ptr(pointer) })
    }

    /// The value of a variable.
    fn value(&self, name: &[u8]) -> Option<&'static [u8]> {
        let mut index = 0;
        while let Some(entry) = self.entry(index) {
            if let Some(rest) = entry.to_bytes().strip_prefix(name)
                && let Some(value) = rest.strip_prefix(b"=")
            {
                return Some(value);
            }
            index += 1;
        }
        None
    }

    /// Value of a documented setting, under its own name or hound's.
    fn setting(&self, hound: &[u8], documented: &[u8]) -> Option<bool> {
        let value = self.value(hound).or_else(|| self.value(documented))?;
        Some(value == b"1" || value == b"true")
    }

    /// Whether a ring was passed.
    pub fn ring(&self) -> Ring {
        let Some(digits) = self.value(b"HOUND_RING_FD") else { return Ring::None };
        let number = digits.iter().try_fold(0i32, |n, d| {
            let digit = d.is_ascii_digit().then_some(i32::from(*d) - 48)?;
            n.checked_mul(10)?.checked_add(digit)
        });
        number.map_or(Ring::None, Ring::Given)
    }

    /// Where hound is, for a process that another one has begun which hound records.
    pub fn family(&self) -> Option<&'static [u8]> {
        self.value(VARIABLE.as_bytes())
    }

    /// Its whole entry for the loader, with us in it.
    pub fn preload(&self) -> Option<&'static [u8]> {
        self.value(b"LD_PRELOAD")
    }

    /// The options for a ring made here: the documented variables with their documented defaults.
    pub fn options(&self) -> u32 {
        let mut options = 0;
        let choices = [
            (OPTION_FREE_STACKS, true, self.setting(b"HOUND_GRAB_BACKTRACES_ON_FREE", b"MEMORY_PROFILER_GRAB_BACKTRACES_ON_FREE")),
            (OPTION_SHADOW_STACK, true, self.setting(b"HOUND_SHADOW_STACK", b"MEMORY_PROFILER_USE_SHADOW_STACK")),
            (OPTION_MAPS, false, self.setting(b"HOUND_GATHER_MMAP_CALLS", b"MEMORY_PROFILER_GATHER_MMAP_CALLS")),
        ];
        for (option, default, given) in choices {
            if given.unwrap_or(default) {
                options |= option;
            }
        }
        options
    }

    /// Whether recording begins switched off, in a ring made here.
    pub fn begins_off(&self) -> bool {
        self.setting(b"HOUND_DISABLE_BY_DEFAULT", b"MEMORY_PROFILER_DISABLE_BY_DEFAULT") == Some(true)
    }

    /// Whether malloc is to return zeros.
    pub fn zeroes(&self) -> bool {
        self.setting(b"HOUND_ZERO_MEMORY", b"MEMORY_PROFILER_ZERO_MEMORY") == Some(true)
    }

    /// Whether SIGUSR1 and SIGUSR2 are to switch the recording; `default`: where nothing is said.
    pub fn signals(&self, default: bool) -> [(i32, bool); 2] {
        let first = self.setting(b"HOUND_REGISTER_SIGUSR1", b"MEMORY_PROFILER_REGISTER_SIGUSR1");
        let second = self.setting(b"HOUND_REGISTER_SIGUSR2", b"MEMORY_PROFILER_REGISTER_SIGUSR2");
        [(SIGUSR1, first.unwrap_or(default)), (SIGUSR2, second.unwrap_or(default))]
    }

    /// The mean interval between samples for a ring made here; 0: everything is recorded.
    pub fn interval(&self) -> u64 {
        if self.value(b"HOUND_MODE") != Some(b"sampled") {
            return 0;
        }
        let number = |digits: &[u8]| {
            let number =
                digits.iter().try_fold(0u64, |n, d| n.checked_mul(10)?.checked_add(u64::from(d.is_ascii_digit().then_some(d - b'0')?)));
            number.filter(|n| (1..=MAX_INTERVAL).contains(n))
        };
        self.value(b"HOUND_INTERVAL").and_then(number).unwrap_or(DEFAULT_INTERVAL)
    }

    /// The array for an exec.
    pub fn pointer(&self) -> *const *const c_char {
        self.entries.cast_const().cast()
    }

    /// Takes libhound.so out of LD_PRELOAD, and LD_PRELOAD out of the environment if nothing else is in it.
    pub fn hide_preload(&mut self) {
        let mut index = 0;
        while let Some(entry) = self.entry(index) {
            if entry.to_bytes().starts_with(b"LD_PRELOAD=") && self.strip_own(index) {
                self.remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Whether programs that this one begins are to be recorded, each into a capture of its own, where nobody else has said that they are.
    pub fn tracks_children(&self) -> bool {
        self.setting(b"HOUND_TRACK_CHILD_PROCESSES", b"MEMORY_PROFILER_TRACK_CHILD_PROCESSES") == Some(true)
    }

    /// Takes out everything meant for hound, but for these.
    pub fn hide(&mut self, but: Stays) {
        match but {
            Stays::All => return,
            Stays::Nothing => self.hide_preload(),
            Stays::Family => {}
        }
        let mut index = 0;
        while let Some(entry) = self.entry(index) {
            let entry = entry.to_bytes();
            let stays = but == Stays::Family && entry.starts_with(VARIABLE.as_bytes());
            if entry.starts_with(b"HOUND_") && !stays { self.remove(index) } else { index += 1 }
        }
    }

    /// Rewrites an LD_PRELOAD entry in place without libhound.so. True if nothing is left of it.
    fn strip_own(&mut self, index: usize) -> bool {
        const NAME: &[u8] = b"LD_PRELOAD=";
        // SAFETY: below the terminating null, as the caller has seen.
        let start = unsafe { self.entries.wrapping_add(index).read() }.cast::<u8>();
        let Some(length) = self.entry(index).map(|entry| entry.to_bytes().len()) else { return false };
        // SAFETY: the string with its terminator; the program has not started to use it.
        let text = unsafe { core::slice::from_raw_parts_mut(start, length + 1) };
        let Some(list) = text.get_mut(NAME.len()..) else { return false };
        let (mut read, mut write) = (0, 0);
        let is_own = |path: &[u8]| path.ends_with(b"libhound.so");
        if list.split(|b| matches!(b, b':' | b' ' | 0)).all(|path| path.is_empty() || is_own(path)) {
            return true; // the string is left as it is: `/proc/self/environ` goes on showing what the kernel was given
        }
        while let Some(rest) = list.get(read..).filter(|rest| rest.first().is_some_and(|b| *b != 0)) {
            let end = rest.iter().position(|b| matches!(b, b':' | b' ' | 0)).unwrap_or(rest.len());
            let own = rest.get(..end).is_some_and(is_own);
            // The separator belongs to the entry before it.
            let upto = end + usize::from(rest.get(end).is_some_and(|b| *b != 0));
            if !own {
                list.copy_within(read..read + upto, write);
                write += upto;
            }
            read += upto;
        }
        while write > 0 && list.get(write - 1).is_some_and(|b| matches!(b, b':' | b' ')) {
            write -= 1;
        }
        // All of the rest: whoever reads `/proc/self/environ` finds no piece of a path there.
        if let Some(rest) = list.get_mut(write..) {
            rest.fill(0);
        }
        false
    }

    fn remove(&mut self, index: usize) {
        let mut at = index;
        loop {
            // SAFETY: the terminating null has not been passed.
            let next = unsafe { self.entries.wrapping_add(at + 1).read() };
            // SAFETY: as above.
            unsafe { self.entries.wrapping_add(at).write(next) };
            if next.is_null() {
                return;
            }
            at += 1;
        }
    }
}
