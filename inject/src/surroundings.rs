//! What the library must know of its target and cannot ask a loader for.

use core::mem::offset_of;

use hound_common::attach::{Attachment, KnownModule};

use crate::error::Error;
use crate::look::Target;
use crate::memory::Memory;
use crate::modules::{Module, modules, vdso};
use crate::place::mappings;
use crate::site::Site;

/// Where libcs keep the kernel thread id, from the thread pointer: glibc, musl since 1.2, musl before.
pub const TID_OFFSETS: [u64; 3] = [720, 48, 56];
const DT_DEBUG: u64 = 21;

/// Modules that the table has room for.
pub(crate) const MAX_MODULES: u64 = 4096;

/// The target's modules, and addresses of the loader's.
#[derive(Debug)]
pub(crate) struct Surroundings {
    modules: Vec<Module>,
    symbols: Vec<(&'static str, u64)>,
    clock_gettime: u64,
    /// avma of the header that hound has made for the executable, 0 if none.
    pub made_header: u64,
}

impl Surroundings {
    pub fn of(target: &Target, memory: &Memory) -> Result<Self, Error> {
        let maps = mappings(target.pid)?;
        let modules = modules(target.pid, memory, &maps)?;
        let mut symbols: Vec<(&'static str, u64)> = ["_r_debug", "_dl_find_object", "__libc_stack_end"].map(|name| (name, 0)).into();
        // Of the loader, of glibc (which has `_dl_find_object`), or of the program where those are linked into it.
        let of_loader = modules.iter().filter(|m| m.is_loader);
        let of_libc = modules.iter().filter(|m| !m.is_loader && m.name().starts_with("libc.so"));
        for module in of_loader.chain(of_libc).chain(modules.iter().filter(|m| m.is_executable)) {
            for (name, address) in symbols.iter_mut().filter(|(_, address)| *address == 0) {
                *address = module.address_of(memory, name).unwrap_or(0);
            }
        }
        // A static program's prepares itself by calls of malloc: it cannot be asked in one of them. It has no other code to find, either.
        if modules.iter().any(|m| m.is_executable && !m.has_interpreter) {
            symbols.iter_mut().filter(|(name, _)| *name == "_dl_find_object").for_each(|(_, address)| *address = 0);
        }
        let debug = || modules.iter().find(|m| m.is_executable)?.dynamic_entry(memory, DT_DEBUG);
        if symbols[0].1 == 0 {
            symbols[0].1 = debug().unwrap_or(0); // musl's loader tells it the same way as any
        }
        let clock_gettime = vdso(memory, &maps).and_then(|m| m.address_of(memory, "__vdso_clock_gettime")).unwrap_or(0);
        Ok(Self { modules, symbols, clock_gettime, made_header: 0 })
    }

    /// The program's own file.
    pub fn executable(&self) -> Option<&Module> {
        self.modules.iter().find(|m| m.is_executable)
    }

    /// What an earlier hound has made for the executable, which stays as long as the library.
    pub fn take_over(&mut self, site: &Site, attachment: u64) -> Result<(), Error> {
        self.made_header = made_header(site, attachment)?;
        Ok(())
    }

    /// A symbol that the library refers to, 0 if the target has none.
    pub fn symbol(&self, name: &str) -> u64 {
        self.symbols.iter().find(|(known, _)| *known == name).map_or(0, |(_, address)| *address)
    }

    /// Where the borrowed thread's control block names its kernel thread id; 0 if it does not where libcs do.
    pub fn tid_offset(&self, site: &Site, tid: i32, thread_pointer: u64) -> u64 {
        let Some(tid) = tid_in_namespace(site.target.pid, tid) else { return 0 };
        let names_it = |offset: &u64| {
            let mut bytes = [0; 4];
            site.memory.read(thread_pointer + offset, &mut bytes).is_ok() && u32::from_le_bytes(bytes) == tid
        };
        TID_OFFSETS.into_iter().find(names_it).unwrap_or(0)
    }

    /// Writes all this into an attachment block. Nothing must be patched.
    pub fn write(&self, site: &Site, attachment: u64) -> Result<(), Error> {
        let set = |offset: usize, value: u64| site.memory.write(attachment + offset as u64, &value.to_le_bytes());
        let table = site.word(attachment, offset_of!(Attachment, modules))?;
        let mut bytes = Vec::new();
        for module in &self.modules {
            let made = if module.is_executable { self.made_header } else { 0 };
            let row = [module.start, module.end, module.bias, module.eh_frame_hdr, module.headers, module.header_count, made];
            const { assert!(size_of::<KnownModule>() == 56 && offset_of!(KnownModule, made_header) == 48) };
            bytes.extend(row.iter().flat_map(|word| word.to_le_bytes()));
        }
        set(offset_of!(Attachment, module_count), 0)?;
        site.memory.write(table, &bytes)?;
        set(offset_of!(Attachment, module_count), self.modules.len() as u64)?;
        set(offset_of!(Attachment, dl_find_object), self.symbol("_dl_find_object"))?;
        set(offset_of!(Attachment, r_debug), self.symbol("_r_debug"))?;
        set(offset_of!(Attachment, clock_gettime), self.clock_gettime)?;
        let loader = self.modules.iter().find(|m| m.is_loader);
        set(offset_of!(Attachment, loader_start), loader.map_or(0, |m| m.start))?;
        set(offset_of!(Attachment, loader_end), loader.map_or(0, |m| m.end))?;
        let executable = self.executable();
        set(offset_of!(Attachment, executable_headers), executable.map_or(0, |m| m.headers))?;
        set(offset_of!(Attachment, executable_header_count), executable.map_or(0, |m| m.header_count))?;
        set(offset_of!(Attachment, executable_bias), executable.map_or(0, |m| m.bias))
    }
}

/// The header that the library reads for the executable, 0 if none.
pub(crate) fn made_header(site: &Site, attachment: u64) -> Result<u64, Error> {
    let table = site.word(attachment, offset_of!(Attachment, modules))?;
    // To the first row that is empty: a hound that died while it wrote the table has left the count at 0.
    for row in 0..MAX_MODULES {
        let word = |offset: usize| site.memory.read_u64(table + row * size_of::<KnownModule>() as u64 + offset as u64);
        match (word(offset_of!(KnownModule, start))?, word(offset_of!(KnownModule, made_header))?) {
            (0, _) => break,
            (_, 0) => {}
            (_, made) => return Ok(made),
        }
    }
    Ok(0)
}

/// A thread's number as the thread sees it.
fn tid_in_namespace(pid: i32, tid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.map_or(u32::try_from(tid).ok(), |line| line.split_whitespace().last()?.parse().ok())
}
