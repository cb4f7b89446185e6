//! Names in the running kernel's own code.
//!
//! A capture's modules in the kernel have addresses from the upper half, and in the place of a build-id the id of the boot: their addresses
//! mean something only until the next one, even for the same kernel. `[slab NAME]` is no code but a cache: a stack's innermost frame says
//! from which cache a block is, by the address that the cache itself has.

use crate::capture::model::Module;
use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Kernel, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use std::collections::BTreeMap;

/// Path of the kernel's own module in captures.
pub const KERNEL: &str = "[kernel]";
/// The addresses that are the kernel's.
const UPPER_HALF: u64 = 1 << 63;
/// Where the kernel's text lies if it does not say so (x86-64).
const TEXT: (u64, u64) = (0xffff_ffff_8000_0000, 0xffff_ffff_c000_0000);
const PAGE: u64 = 4096;

/// Whether a module is the kernel's, or a part of it.
pub fn is_kernels(module: &Module) -> bool {
    module.start >= UPPER_HALF && module.path.starts_with('[')
}

/// The cache that a module stands for, if it is none of code.
pub fn cache_of(module: &Module) -> Option<&str> {
    module.path.strip_prefix("[slab ").and_then(|path| path.strip_suffix(']')).filter(|_| is_kernels(module))
}

/// What a module of the kernel's has in the place of a build-id: the boot.
pub fn boot() -> Vec<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    digits.chunks_exact(2).filter_map(byte).collect()
}

/// Names by address, as `/proc/kallsyms` has them.
pub struct KernelNames {
    symbolizer: Symbolizer,
}

impl std::fmt::Debug for KernelNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelNames").finish_non_exhaustive()
    }
}

impl Default for KernelNames {
    fn default() -> Self {
        KernelNames { symbolizer: Symbolizer::builder().enable_demangling(true).build() }
    }
}

impl KernelNames {
    /// The functions that these addresses lie in; nothing where there is none, or addresses are hidden.
    ///
    /// # Errors
    /// If the names cannot be read.
    pub fn of(&self, addresses: &[u64]) -> Result<Vec<Option<String>>, blazesym::Error> {
        let kernel = Kernel { vmlinux: MaybeDefault::None, debug_syms: false, ..Kernel::default() };
        let found = self.symbolizer.symbolize(&Source::Kernel(kernel), Input::AbsAddr(addresses))?;
        let name = |symbol: &Symbolized<'_>| symbol.as_sym().map(|symbol| symbol.name.clone().into_owned());
        Ok(found.iter().map(name).collect())
    }
}

/// Where code of the running kernel lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// The kernel and its modules.
    pub modules: Vec<Module>,
    /// The kernel does not tell hound addresses.
    pub is_hidden: bool,
}

impl KernelImage {
    /// Of the running kernel.
    pub fn read() -> Self {
        let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
        Self::of(&symbols, &modules, &boot())
    }

    fn of(symbols: &str, modules: &str, boot: &[u8]) -> Self {
        let mut text = (0, 0);
        let mut parts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for line in symbols.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            let Some(address) = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0) else { continue };
            match (name, words.next()) {
                ("_stext", None) => text.0 = address,
                ("_etext", None) => text.1 = address,
                // Programs are no module: each has its place for itself.
                (_, Some(part)) if part != "[bpf]" => {
                    let (start, end) = parts.entry(part).or_insert((address, address));
                    (*start, *end) = ((*start).min(address), (*end).max(address));
                }
                _ => {}
            }
        }
        let is_hidden = text.0 == 0;
        let (start, end) = if !is_hidden && text.0 < text.1 { text } else { TEXT };
        let module =
            |start: u64, end: u64, path: &str| Module { start, end, path: path.to_owned(), build_id: boot.to_vec(), ..Module::default() };
        let mut found = vec![module(start, end, KERNEL)];
        for (path, (start, end)) in parts {
            let name = path.trim_matches(['[', ']']);
            // The list of modules knows the size; where it has none, what lies behind the last symbol is on its page.
            let listed = modules.lines().filter_map(|line| {
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                let address = u64::from_str_radix(words.get(5)?.strip_prefix("0x")?, 16).ok()?;
                (words[0] == name && address != 0).then(|| (address, words[1].parse::<u64>().unwrap_or(0)))
            });
            let (start, end) = match { listed }.next_back() {
                Some((address, size)) => (address.min(start), (address + size).max(end + 1)),
                None => (start, (end / PAGE + 1) * PAGE),
            };
            found.push(module(start, end, path));
        }
        KernelImage { modules: found, is_hidden }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "\
ffffffff81000000 T _stext
ffffffff81000100 t start
ffffffff82000000 T _etext
ffffffffc0001000 t one\t[xfs]
ffffffffc0002010 t two\t[xfs]
ffffffffc0100000 t bpf_prog_6deef7357e7b4530\t[bpf]
ffffffffc0005000 t other\t[nfs]
";

    #[test]
    fn the_kernel_and_its_modules_are_found_where_they_lie() {
        let image = KernelImage::of(SYMBOLS, "xfs 20480 1 - Live 0xffffffffc0000000 (E)\nnone 1 0 - Live 0x0\n", &[7]);
        let spans: Vec<_> = image.modules.iter().map(|module| (module.path.as_str(), module.start, module.end)).collect();
        let expected = [
            ("[kernel]", 0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000),
            ("[nfs]", 0xffff_ffff_c000_5000, 0xffff_ffff_c000_6000),
            ("[xfs]", 0xffff_ffff_c000_0000, 0xffff_ffff_c000_5000),
        ];
        assert_eq!((spans, image.is_hidden), (expected.to_vec(), false));
        assert!(image.modules.iter().all(|module| is_kernels(module) && module.build_id == [7] && cache_of(module).is_none()));
    }

    #[test]
    fn hidden_addresses_are_noticed() {
        let hidden = KernelImage::of(&SYMBOLS.lines().map(|line| format!("{:016}{}\n", 0, &line[16..])).collect::<String>(), "", &[]);
        assert!(hidden.is_hidden && hidden.modules[0].start == TEXT.0, "{hidden:?}");
    }

    #[test]
    fn a_cache_is_no_code_and_the_vdso_is_not_the_kernels() {
        let at = |start: u64, path: &str| Module { start, path: path.to_owned(), ..Module::default() };
        assert_eq!(cache_of(&at(u64::MAX - 16, "[slab dentry]")), Some("dentry"));
        assert!(!is_kernels(&at(0x7fff_0000_0000, "[vdso]")) && cache_of(&at(4096, "[slab dentry]")).is_none());
    }
}
