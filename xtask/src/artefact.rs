//! What `libhound.so` must not ask of the process it is loaded into, read from the file itself.
//!
//! The same file goes into glibc, musl and static processes, so it may need no other library and no symbol; it may not
//! be patched in its text; and since it stands first in the search order it must not export anything that would take
//! the place of a function of the target by accident, such as the `memcpy` of Rust's own runtime support.

use anyhow::{Context, Result};
use object::Endianness;
use object::elf;
use object::read::elf::{Dyn, FileHeader, Sym};

/// Every reason why this library must not be loaded; none if it is as it should be.
pub fn faults(bytes: &[u8]) -> Result<Vec<String>> {
    let header = elf::FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, bytes)?;
    let mut faults = Vec::new();

    let (entries, strings) = sections.dynamic(endian, bytes)?.context("it has no dynamic section")?;
    let strings = sections.strings(endian, bytes, strings)?;
    for entry in entries {
        match entry.tag(endian) {
            elf::DT_NEEDED => faults.push(format!("it needs {}", String::from_utf8_lossy(entry.string(endian, strings)?))),
            elf::DT_TEXTREL => faults.push("its text needs relocation (DT_TEXTREL)".to_owned()),
            elf::DT_FLAGS if entry.val(endian) & elf::DF_TEXTREL.0 != 0 => {
                faults.push("its text needs relocation (DF_TEXTREL)".to_owned());
            }
            _ => {}
        }
    }

    let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM)?;
    for (index, symbol) in symbols.enumerate() {
        let name = String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?);
        if index.0 == 0 || symbol.is_local() {
            continue;
        }
        if symbol.is_undefined(endian) {
            if !symbol.is_weak() {
                faults.push(format!("it leaves {name} undefined"));
            }
        } else if accidental(&name) {
            faults.push(format!("it exports {name}"));
        }
    }
    Ok(faults)
}

/// Whether an exported name can only have got out of Rust's runtime support: mangled names, the language's own entry
/// points, and the memory functions that `compiler_builtins` brings along. Which functions are exported *on purpose* is
/// known to the library's list of hooks alone.
fn accidental(name: &str) -> bool {
    let memory_function = matches!(name, "memcpy" | "memmove" | "memset" | "memcmp" | "bcmp" | "strlen");
    memory_function || ["_ZN", "_R", "rust_", "__rust", "__rdl_", "__rg_"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{exec, place};
    use std::fs;
    use std::process::Command;

    /// Links a library from one C source and returns what is wrong with it.
    fn faults_of(name: &str, source: &str, flags: &[&str]) -> Vec<String> {
        let at = place::kept("test-artefact").unwrap();
        let (c, so) = (at.join(format!("{name}.c")), at.join(format!("{name}.so")));
        fs::write(&c, source).unwrap();
        exec::output(Command::new("cc").args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(&so).arg(&c).args(flags)).unwrap();
        faults(&fs::read(so).unwrap()).unwrap()
    }

    #[test]
    fn a_library_that_needs_nothing_has_no_faults() {
        let source =
            "extern void maybe(void) __attribute__((weak)); void *malloc(unsigned long n) { if (maybe) maybe(); return (void *)n; }";
        assert_eq!(faults_of("good", source, &[]), [] as [&str; 0]);
    }

    #[test]
    fn a_needed_library_is_a_fault() {
        assert_eq!(
            faults_of("needs", "int abs(int); int f(void) { return abs(1); }", &["-fno-builtin", "-lc"]),
            ["it needs libc.so.6", "it leaves abs undefined"]
        );
    }

    #[test]
    fn an_undefined_symbol_and_an_accidental_export_are_faults() {
        let source = "int away(void); int memcmp(const void *a, const void *b, unsigned long n) { return away(); }";
        let mut found = faults_of("leaky", source, &["-fno-builtin"]);
        found.sort();
        assert_eq!(found, ["it exports memcmp", "it leaves away undefined"]);
    }
}
