//! Looking at a program before it is started: what hound cannot record is refused with cause and cure, and nothing has changed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hound_inject::Executable;
use object::elf::{EM_X86_64, PT_INTERP};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, elf};

/// A program that can be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// The ELF file that runs: of a script its interpreter's.
    image: PathBuf,
}

/// Why a program cannot be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such program.
    Missing(OsString),
    /// It may not be executed.
    NotExecutable(PathBuf),
    /// It is no ELF file and no script.
    Foreign(PathBuf),
    /// It is a 32-bit program or for another processor.
    OtherMachine(PathBuf),
    /// It has no dynamic loader.
    Static(PathBuf),
    /// Its loader is not glibc's.
    OtherLibc(PathBuf, String),
    /// It changes user: the loader ignores LD_PRELOAD then.
    SetId(PathBuf),
    /// It changes user, and the kernel does not let it while it is held before its first instruction.
    SetIdHeld(PathBuf),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Missing(name) => {
                write!(f, "cannot run '{}': there is no such program in PATH or at that place; check the name after '--'", name.display())
            }
            Refusal::NotExecutable(path) => write!(f, "cannot run '{}': it is not executable; try chmod +x", path.display()),
            Refusal::Foreign(path) => {
                write!(
                    f,
                    "cannot run '{}': it is neither an ELF program nor a script with a '#!' line; start it through its interpreter",
                    path.display()
                )
            }
            Refusal::OtherMachine(path) => {
                write!(
                    f,
                    "cannot record '{}': it is a 32-bit program or for another processor; hound records x86-64 programs only",
                    path.display()
                )
            }
            Refusal::Static(path) => {
                write!(
                    f,
                    "cannot record '{}': it is statically linked, so no library can be preloaded; have its functions patched (--via patch)",
                    path.display()
                )
            }
            Refusal::OtherLibc(path, loader) => {
                write!(
                    f,
                    "cannot record '{}': its loader {loader} is not glibc's, and is not asked to preload; have its functions patched (--via patch)",
                    path.display()
                )
            }
            Refusal::SetId(path) => {
                write!(
                    f,
                    "cannot record '{}': it is set-user-ID or set-group-ID, and the loader drops LD_PRELOAD for those; run it as that user from a copy without the bit",
                    path.display()
                )
            }
            Refusal::SetIdHeld(path) => {
                write!(
                    f,
                    "cannot run '{}': it is set-user-ID or set-group-ID, and would not change user under hound; run hound as root",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// What a program allocates by that comes with it.
enum Own {
    /// A sanitizer's, which bears no other.
    Sanitizer,
    /// These allocators, by name.
    Linked(Vec<String>),
}

/// A program that is linked with a sanitizer has one of these.
const SANITIZER_STARTS: [&str; 4] = ["__asan_init", "__tsan_init", "__msan_init", "__hwasan_init"];

impl Program {
    /// Finds a program as a shell would, and looks whether the library can record it.
    pub fn find(name: &OsStr) -> Result<Self, Refusal> {
        Self::found(name, Err)
    }

    /// The same for one that is held before its first instruction: however it is linked.
    pub fn find_to_hold(name: &OsStr) -> Result<Self, Refusal> {
        Self::found(name, |refusal| match refusal {
            Refusal::Static(_) | Refusal::OtherLibc(..) => Ok(None),
            Refusal::SetId(path) => Err(Refusal::SetIdHeld(path)),
            other => Err(other),
        })
    }

    /// Why a library that is loaded before the program's own would not see all that it allocates; nothing where it would, and where the
    /// program cannot be recorded at all.
    pub fn beyond_preloading(name: &OsStr) -> Option<String> {
        match Self::find(name) {
            Ok(program) => match program.own_allocators()? {
                Own::Sanitizer => Some("it is built with a sanitizer, which must come before any library".into()),
                Own::Linked(linked) => (!linked.is_empty()).then(|| format!("an allocator is linked into it: {}", linked.join(", "))),
            },
            Err(Refusal::Static(_)) => Some("it is statically linked".into()),
            Err(Refusal::OtherLibc(_, loader)) => Some(format!("its loader {loader} is not glibc's")),
            Err(_) => None,
        }
    }

    /// Whether a program that was preloaded into allocates past that: by allocators of its own, or inside musl. Not asked of those that are
    /// built with sanitizers: theirs must not be touched at their start.
    pub fn has_own_allocator(name: &OsStr) -> bool {
        match Self::find(name) {
            Ok(program) => matches!(program.own_allocators(), Some(Own::Linked(linked)) if !linked.is_empty()),
            Err(refusal) => matches!(refusal, Refusal::OtherLibc(..)),
        }
    }

    /// A library that brings an `operator new` of its own, which C++ code of the program then calls past a preloaded one; nothing if there is
    /// none among those that the program names itself and those that are preloaded.
    pub fn own_operator_new(name: &OsStr) -> Option<String> {
        const ALLOCATORS: [&str; 3] = ["jemalloc", "tcmalloc", "mimalloc"];
        let needed = needed(&Self::find(name).ok()?.image)?;
        needed.iter().find(|name| name.starts_with("libstdc++.") || name.starts_with("libc++."))?;
        let preloaded = std::env::var("LD_PRELOAD").unwrap_or_default();
        let libraries = needed.iter().map(String::as_str).chain(preloaded.split([':', ' ']));
        libraries.filter(|library| ALLOCATORS.iter().any(|name| library.contains(name))).map(str::to_owned).next()
    }

    fn found(name: &OsStr, judge: fn(Refusal) -> Result<Option<PathBuf>, Refusal>) -> Result<Self, Refusal> {
        let path = locate(name).ok_or_else(|| Refusal::Missing(name.to_owned()))?;
        // A script is recorded as its interpreter, which may be a script again; the kernel allows four levels.
        let mut image = path.clone();
        for _ in 0..5 {
            match inspect(&image).or_else(judge)? {
                None => return Ok(Program { path, image }),
                Some(interpreter) => image = interpreter,
            }
        }
        Err(Refusal::Foreign(path))
    }

    /// Whether it is built with a sanitizer: its allocator prepares itself in an initialiser, and calls of it before that must not be touched.
    /// None of them bears a library that is loaded before its own.
    pub fn is_sanitized(&self) -> bool {
        self.needs_sanitizer() || Executable::open(&self.image).is_some_and(|file| file.has_dynamic_name(&SANITIZER_STARTS))
    }

    fn needs_sanitizer(&self) -> bool {
        const LIBRARIES: [&str; 5] = ["libasan.", "libtsan.", "liblsan.", "libhwasan.", "libclang_rt."];
        let needed = needed(&self.image).unwrap_or_default();
        needed.iter().any(|name| LIBRARIES.iter().any(|library| name.starts_with(library)))
    }

    /// Nothing if its file cannot be read.
    fn own_allocators(&self) -> Option<Own> {
        if self.needs_sanitizer() {
            return Some(Own::Sanitizer);
        }
        let file = Executable::open(&self.image)?;
        Some(if file.has_dynamic_name(&SANITIZER_STARTS) { Own::Sanitizer } else { Own::Linked(file.allocators()) })
    }

    /// The name to put into output file names.
    pub fn name(&self) -> OsString {
        super::output::program_name(&self.path)
    }
}

fn locate(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Path::new(name).is_file().then(|| PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let places: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|place| place.is_file()).collect();
    places.iter().find(|place| is_executable(place)).or(places.first()).cloned()
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
}

/// `Ok(None)`: can be recorded. `Ok(Some)`: a script for this interpreter.
fn inspect(path: &Path) -> Result<Option<PathBuf>, Refusal> {
    if !is_executable(path) {
        return Err(Refusal::NotExecutable(path.to_owned()));
    }
    let mode = path.metadata().map(|meta| meta.permissions().mode()).unwrap_or(0);
    let root = nix::unistd::geteuid().is_root();
    if mode & 0o6000 != 0 && !root {
        return Err(Refusal::SetId(path.to_owned()));
    }
    let data = head(path).map_err(|_| Refusal::Foreign(path.to_owned()))?;
    if let Some(rest) = data.strip_prefix(b"#!") {
        let line = rest.split(|b| *b == b'\n').next().unwrap_or(rest);
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let interpreter = words.next().map(|word| PathBuf::from(OsStr::from_bytes(word))).filter(|path| path.is_file());
        return interpreter.map(Some).ok_or_else(|| Refusal::Foreign(path.to_owned()));
    }
    let file = std::fs::File::open(path).map_err(|_| Refusal::Foreign(path.to_owned()))?;
    let data = ReadCache::new(file);
    match FileKind::parse(&data) {
        Ok(FileKind::Elf64) => {}
        Ok(FileKind::Elf32) => return Err(Refusal::OtherMachine(path.to_owned())),
        _ => return Err(Refusal::Foreign(path.to_owned())),
    }
    let foreign = |_| Refusal::Foreign(path.to_owned());
    let header = elf::FileHeader64::<Endianness>::parse(&data).map_err(foreign)?;
    let endian = header.endian().map_err(foreign)?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err(Refusal::OtherMachine(path.to_owned()));
    }
    let segments = header.program_headers(endian, &data).map_err(foreign)?;
    let Some(interp) = segments.iter().find(|s| s.p_type(endian) == PT_INTERP) else { return Err(Refusal::Static(path.to_owned())) };
    let loader = interp.data(endian, &data).map_err(|()| Refusal::Foreign(path.to_owned()))?;
    let loader = String::from_utf8_lossy(loader).trim_end_matches('\0').to_owned();
    if loader.contains("musl") {
        return Err(Refusal::OtherLibc(path.to_owned(), loader));
    }
    Ok(None)
}

/// The libraries that an ELF file asks for.
fn needed(path: &Path) -> Option<Vec<String>> {
    let data = ReadCache::new(std::fs::File::open(path).ok()?);
    // Not all of an `ElfFile64`, which has the symbols read, too.
    let header = elf::FileHeader64::<Endianness>::parse(&data).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, &data).ok()?;
    let (dynamic, link) = sections.dynamic(endian, &data).ok()??;
    let strings = sections.strings(endian, &data, link).ok()?;
    let name = |entry: &elf::Dyn64<Endianness>| strings.get(u32::try_from(entry.d_val.get(endian)).ok()?).ok();
    let is_needed = |entry: &&elf::Dyn64<Endianness>| entry.d_tag.get(endian) == elf::DT_NEEDED;
    let names = dynamic.iter().filter(is_needed).filter_map(name);
    Some(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// The first bytes: a script's first line lies there.
fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut data = Vec::new();
    std::fs::File::open(path)?.take(4096).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8], mode: u32) -> tempfile::TempPath {
        use std::io::Write;
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(content).expect("room for it");
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).expect("permission to set permissions");
        file.into_temp_path()
    }

    fn refusal(content: &[u8], mode: u32) -> Refusal {
        let path = file(content, mode);
        Program::find(path.as_os_str()).expect_err("must be refused")
    }

    #[test]
    fn each_kind_of_file_is_refused_for_its_own_reason() {
        assert!(matches!(Program::find("no-such-program-anywhere".as_ref()), Err(Refusal::Missing(_))));
        assert!(matches!(refusal(b"text", 0o755), Refusal::Foreign(_)));
        assert!(matches!(refusal(b"#!/no/such/interpreter\n", 0o755), Refusal::Foreign(_)));
        assert!(matches!(refusal(b"anything", 0o644), Refusal::NotExecutable(_)));
        let mut elf32 = b"\x7fELF\x01\x01\x01".to_vec();
        elf32.resize(64, 0);
        assert!(matches!(refusal(&elf32, 0o755), Refusal::OtherMachine(_)));
    }

    #[test]
    fn a_script_is_taken_for_its_interpreter() {
        let path = file(b"#!/bin/sh -e\nexit 0\n", 0o755);
        assert!(Program::find(path.as_os_str()).is_ok());
        assert!(Program::find("sh".as_ref()).is_ok());
    }
}
