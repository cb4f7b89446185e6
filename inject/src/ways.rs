//! Code of the target's own that remote system calls go through: nothing has to be written to begin with.

use procfs::process::{MMPermissions, MMapPath, MemoryMap};

use crate::error::{Error, Refusal};
use crate::frame::WayBack;
use crate::memory::Memory;
use crate::tasks;

/// `syscall; ret`
const GADGET: [u8; 3] = [0x0f, 0x05, 0xc3];
/// What libcs give the kernel to return from signal handlers by: `mov rax, 15; syscall`, in both its lengths.
const RESTORERS: [&[u8]; 2] = [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];
/// `pop rax; ret`, also as the end of another instruction.
const POP_RAX: [u8; 2] = [0x58, 0xc3];
/// Most code of one mapping that is searched.
const SEARCHED: u64 = 64 << 20;

/// Code of the target's own that remote calls go through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// `syscall; ret`
    pub gadget: u64,
    /// From the end of a call to `rt_sigreturn`.
    pub way_back: WayBack,
    way_back_bytes: &'static [u8],
}

impl Places {
    /// Looks for it in the target's executable mappings, the C library's first: a library that is unloaded would take it along.
    pub fn find(pid: i32, memory: &Memory) -> Result<Places, Error> {
        let mut code = tasks::mappings(pid)?;
        code.retain(|mapping| mapping.perms.contains(MMPermissions::READ | MMPermissions::EXECUTE) && mapping.address.0 < 1 << 47);
        code.sort_by_key(rank);
        let (mut gadget, mut restorer, mut pop) = (None, None, None);
        for mapping in &code {
            let (start, end) = mapping.address;
            let mut bytes = vec![0; (end - start).min(SEARCHED) as usize];
            if memory.read(start, &mut bytes).is_err() {
                continue;
            }
            let find = |wanted: &[u8]| bytes.windows(wanted.len()).position(|window| window == wanted).map(|at| start + at as u64);
            gadget = gadget.or_else(|| find(&GADGET));
            restorer = restorer.or_else(|| RESTORERS.iter().find_map(|&wanted| Some((find(wanted)?, wanted))));
            pop = pop.or_else(|| find(&POP_RAX));
            if let (Some(gadget), Some((restorer, way_back_bytes))) = (gadget, restorer) {
                return Ok(Places { gadget, way_back: WayBack::Restorer(restorer), way_back_bytes });
            }
        }
        // A static program that sets no signal handler needs no restorer, and has none.
        if let (Some(gadget), Some(pop)) = (gadget, pop) {
            return Ok(Places { gadget, way_back: WayBack::Chain { pop, syscall: gadget }, way_back_bytes: &POP_RAX });
        }
        let what = if gadget.is_none() { "`syscall; ret`" } else { "a way to return from a signal handler" };
        Err(Refusal::NoThread { why: format!("there is no {what} in its code") }.into())
    }

    /// Whether nobody has unloaded it meanwhile.
    pub fn still_there(&self, memory: &Memory) -> bool {
        let is = |address: u64, wanted: &[u8]| {
            let mut bytes = vec![0; wanted.len()];
            memory.read(address, &mut bytes).is_ok() && bytes == wanted
        };
        let (WayBack::Restorer(first) | WayBack::Chain { pop: first, .. }) = self.way_back;
        is(self.gadget, &GADGET) && is(first, self.way_back_bytes)
    }
}

fn rank(mapping: &MemoryMap) -> u8 {
    match &mapping.pathname {
        MMapPath::Path(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libc") || name.starts_with("ld-") { 0 } else { 1 }
        }
        _ => 2,
    }
}
