//! What a kernel stack says of an allocation: where the tracing itself ends, and whether it is one that counts.

use std::collections::{HashMap, HashSet};

use hound_common::kernel::{KERNEL_PAGES, KernelBlock};

use crate::capture::model::Module;
use crate::symbols::{KernelImage, KernelNames, boot};

/// What a function in a kernel stack is, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    /// Of the tracing: it stands in front of every stack.
    Tracing,
    /// Gets pages for an allocator that cuts them up: what is cut from them is counted.
    Stock,
    /// The entry of an interrupt: what it does is nobody's in particular.
    Interrupt,
    /// Any other.
    Other,
}

impl Function {
    fn of(name: &str) -> Self {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if begins(&["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_", "bpf_get_stack", "__bpf_prog_", "bpf_dispatcher_"]) {
            Function::Tracing
        } else if begins(&["new_slab", "allocate_slab", "alloc_slab_page", "___slab_alloc", "__kmalloc_large", "___kmalloc_large", "pcpu_"])
        {
            Function::Stock
        } else if begins(&["asm_sysvec_", "asm_common_interrupt", "asm_exc_nmi"]) {
            Function::Interrupt
        } else {
            Function::Other
        }
    }
}

/// What an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// One that counts; its stack begins so far in.
    At(usize),
    /// Pages for an allocator that cuts them up.
    Stock,
    /// One that an interrupt made; its stack begins so far in.
    Interrupt(usize),
}

/// Knows the kernel's functions.
#[derive(Debug)]
pub struct Places {
    names: KernelNames,
    known: HashMap<u64, Function>,
    caches: HashSet<u64>,
    boot: Vec<u8>,
    /// Addresses are hidden: nothing is told apart.
    is_hidden: bool,
}

/// Names kept: a kernel has some hundred thousand functions, of which few allocate.
const KNOWN: usize = 1 << 18;

impl Places {
    /// Of the running kernel.
    pub fn new(image: &KernelImage) -> Self {
        Places { names: KernelNames::default(), known: HashMap::new(), caches: HashSet::new(), boot: boot(), is_hidden: image.is_hidden }
    }

    /// What the allocation with this stack is.
    pub fn of(&mut self, block: &KernelBlock, ips: &[u64]) -> Place {
        if self.is_hidden {
            return Place::At(0);
        }
        self.learn(ips);
        let function = |ip: &u64| self.known.get(ip).copied().unwrap_or(Function::Other);
        if block.kind == KERNEL_PAGES && ips.iter().any(|ip| function(ip) == Function::Stock) {
            return Place::Stock;
        }
        // Programs themselves have no name where that is switched off: up to the last one of the tracing's own.
        let first = ips.iter().take(TRACING).rposition(|ip| function(ip) == Function::Tracing).map_or(0, |last| last + 1);
        // Its entry is the last frame where user code was interrupted, and one in the middle where kernel code was.
        if ips.iter().any(|ip| function(ip) == Function::Interrupt) { Place::Interrupt(first) } else { Place::At(first) }
    }

    fn learn(&mut self, ips: &[u64]) {
        let new: Vec<u64> = ips.iter().filter(|ip| !self.known.contains_key(ip)).copied().collect();
        if new.is_empty() {
            return;
        }
        if self.known.len() > KNOWN {
            self.known.clear();
            return self.learn(ips);
        }
        let calls: Vec<u64> = new.iter().map(|ip| ip.wrapping_sub(1)).collect();
        let names = self.names.of(&calls).unwrap_or_default();
        for (at, ip) in new.into_iter().enumerate() {
            let name = names.get(at).and_then(Option::as_deref);
            self.known.insert(ip, name.map_or(Function::Other, Function::of));
        }
    }

    /// The frame that says which cache a block is from, and the module that this frame is in, if it is new.
    pub fn cache(&mut self, block: &KernelBlock) -> Option<(u64, Option<Module>)> {
        let name = block.cache_name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
        let is_new = self.caches.insert(block.cache);
        let module = || Module {
            start: block.cache,
            end: block.cache + 8,
            path: format!("[slab {}]", String::from_utf8_lossy(name)),
            build_id: self.boot.clone(),
            ..Module::default()
        };
        // A return address lies behind its call.
        Some((block.cache + 1, is_new.then(module)))
    }
}

/// Frames in which the tracing's own are.
const TRACING: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_told_apart_by_their_names() {
        assert_eq!(Function::of("bpf_trace_run6"), Function::Tracing);
        assert_eq!(Function::of("__traceiter_kmalloc"), Function::Tracing);
        assert_eq!(Function::of("allocate_slab"), Function::Stock);
        assert_eq!(Function::of("asm_sysvec_apic_timer_interrupt"), Function::Interrupt);
        for other in ["__kmalloc_noprof", "do_syscall_64", "alloc_pipe_info", "bpf_map_alloc", "__x64_sys_bpf"] {
            assert_eq!(Function::of(other), Function::Other, "{other}");
        }
    }
}
