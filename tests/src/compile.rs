//! Compiles the programs in `programs/` with the system's compilers; results are cached by content under `target/test-programs`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binaries;

/// How a C or C++ program is compiled. Unwinders fail differently on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Build {
    /// `-O0`: every frame has a frame pointer, as most compilers do without optimisation.
    Plain,
    /// `-O2`: frames relative to the stack pointer, shrink-wrapped prologues, hot and cold parts.
    Optimised,
    /// `-O2 -fno-omit-frame-pointer`.
    FramePointers,
    /// `-O2`, then stripped of symbols and debug information.
    Stripped,
    /// The same, with a link to a file that has them, which lies beside it.
    Linked,
}

impl Build {
    /// All that unwinders fail differently on.
    pub const ALL: [Build; 4] = [Build::Plain, Build::Optimised, Build::FramePointers, Build::Stripped];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Build::Plain => &["-O0"],
            Build::Optimised | Build::Stripped | Build::Linked => &["-O2"],
            Build::FramePointers => &["-O2", "-fno-omit-frame-pointer"],
        }
    }
}

/// A program's source and how to compile it.
#[derive(Clone, Debug, Hash)]
pub struct Program {
    source: &'static str,
    build: Build,
    extra: Vec<String>,
    suffix: String,
    compiler: Option<&'static str>,
    own_section: bool,
}

impl Program {
    /// The program `programs/SOURCE` (with its extension: `.c`, `.cpp` or `.rs`).
    pub fn new(source: &'static str, build: Build) -> Self {
        Program { source, build, extra: Vec::new(), suffix: String::new(), compiler: None, own_section: false }
    }

    /// Adds compiler flags.
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.extra.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// Compiles with this compiler instead of the system's own (`musl-gcc`).
    pub fn by(mut self, compiler: &'static str) -> Self {
        self.compiler = Some(compiler);
        self
    }

    /// Links it statically in this way (`-static`, `-static-pie`). Its own code stands in a section of its own, so that what the C library
    /// calls can be told from what the program does.
    pub fn linked(self, how: &str) -> Self {
        let mut program = self.with(&[how, "-DSTATIC"]);
        program.own_section = true;
        program
    }

    /// Compiles to a shared library, to be loaded by another program.
    pub fn shared(self, name: &str) -> Self {
        let mut library = self.with(&["-fPIC", "-shared"]);
        library.suffix = format!("-{name}.so");
        library
    }

    /// The compiled program, built now unless a file of the same sources and flags is there.
    ///
    /// # Panics
    /// If the compiler refuses it, with the compiler's message.
    pub fn path(&self) -> PathBuf {
        let full = self.compiled();
        if self.build == Build::Linked {
            let debug = self.debug_file();
            return cached(&full.with_extension("linked"), |out| {
                let mut strip = Command::new("objcopy");
                strip.arg("--strip-all").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(&full).arg(out);
                strip
            });
        }
        if self.build != Build::Stripped || self.source.ends_with(".rs") {
            return full;
        }
        cached(&full.with_extension("stripped"), |out| {
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(out).arg(&full);
            strip
        })
    }

    /// Its symbols and debug information in a file of their own.
    pub fn debug_file(&self) -> PathBuf {
        let full = self.compiled();
        cached(&full.with_extension("debug"), |out| {
            let mut keep = Command::new("objcopy");
            keep.arg("--only-keep-debug").arg(&full).arg(out);
            keep
        })
    }

    /// Starts of the program's functions as linked, ascending, from its symbol table (of the unstripped twin where it is stripped).
    pub fn function_starts(&self) -> Vec<u64> {
        let listing =
            Command::new("nm").args(["-n", "--defined-only"]).arg(self.compiled()).output().expect("nm is installed with the compiler");
        String::from_utf8_lossy(&listing.stdout)
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let (start, kind, name) = (words.next()?, words.next()?, words.next()?);
                // gcc's whole-program optimisation marks where a source file's debug information was, with a label in the middle of code.
                let is_label = name.starts_with(self.source);
                (matches!(kind, "t" | "T" | "w" | "W") && !is_label).then(|| u64::from_str_radix(start, 16).ok())?
            })
            .collect()
    }

    fn compiled(&self) -> PathBuf {
        let stem = self.source.split('.').next().unwrap_or(self.source);
        let name = format!("{stem}-{:016x}{}", self.content_hash(), self.suffix);
        cached(&directory().join(name), |out| self.command(out))
    }

    fn command(&self, out: &Path) -> Command {
        let source = sources().join(self.source);
        let mut command;
        if self.source.ends_with(".rs") {
            let oracle = Program::new("oracle_for_rust.c", Build::Optimised).with(&["-c"]).compiled();
            command = Command::new("rustc");
            command.args(["--edition", "2021", "-O", "-g", "-A", "warnings", "-C"]).arg(format!("link-arg={}", oracle.display()));
        } else {
            command = Command::new(self.compiler.unwrap_or(if self.source.ends_with(".cpp") { "c++" } else { "cc" }));
            // -fno-builtin: a compiler may remove a malloc whose block is freed unused.
            command.args(["-g", "-pthread", "-fno-builtin"]).args(self.build.flags());
            if self.source.ends_with(".cpp") {
                command.arg("-std=c++17");
            }
        }
        command.args(&self.extra);
        if self.extra.iter().any(|flag| flag == "-gsplit-dwarf") {
            // What is split off stays where the program is looked for, not where it is made.
            command.arg("-dumpdir").arg(directory().join(format!("{:016x}-", self.content_hash())));
        }
        if !self.own_section {
            command.arg("-o").arg(out).arg(source);
            return command;
        }
        let words: Vec<String> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(|word| format!("'{}'", word.display())).collect();
        let (compile, object) = (words.join(" "), out.with_extension("o"));
        let (out, object, source) = (out.display(), object.display(), source.display());
        let mut all = Command::new("sh");
        all.arg("-ec").arg(format!(
            "{compile} -DO_OWN_SECTION -fno-reorder-functions -c -o '{object}' '{source}'
             objcopy --rename-section .text=oracle_text '{object}'
             {compile} -o '{out}' '{object}'"
        ));
        all
    }

    /// Of everything the result depends on: sources, flags, and the compiler's version.
    fn content_hash(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        (&self.extra, self.build.flags(), self.source, self.compiler, self.own_section).hash(&mut hash);
        let read = |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        read(&sources().join(self.source)).hash(&mut hash);
        for header in headers() {
            read(&header).hash(&mut hash);
        }
        if self.source.ends_with(".rs") {
            read(&sources().join("oracle_for_rust.c")).hash(&mut hash);
        }
        let version = Command::new(if self.source.ends_with(".rs") { "rustc" } else { "cc" }).arg("--version").output();
        version.expect("a C and a Rust compiler are installed").stdout.hash(&mut hash);
        hash.finish()
    }
}

/// Where the sources are.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// All headers, of which a program may include any.
fn headers() -> Vec<PathBuf> {
    let all = std::fs::read_dir(sources()).unwrap_or_else(|e| panic!("{}: {e}", sources().display())).flatten();
    let mut headers: Vec<_> = all.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "h")).collect();
    headers.sort();
    headers
}

fn directory() -> PathBuf {
    let dir = binaries::target_dir().join("test-programs");
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// Runs the command that makes a private file and links the result into place, so that tests running at once never see half a file, and
/// that one which runs already is never replaced by another's: its probes would be in a file that nobody runs.
fn cached(path: &Path, command_for: impl FnOnce(&Path) -> Command) -> PathBuf {
    if !path.exists() {
        let private = tempfile::Builder::new().prefix("making-").tempdir_in(directory()).expect("the cache directory is writable");
        let out = private.path().join("out");
        let mut command = command_for(&out);
        let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        assert!(done.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&done.stderr));
        match std::fs::hard_link(&out, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => panic!("{}: {error}", path.display()),
            _ => {}
        }
    }
    path.to_owned()
}

/// Builds a program of a Cargo project of its own in `programs/`, for what needs crates that nothing else here does.
///
/// # Panics
/// If it cannot be built, with cargo's message.
pub fn cargo_program(project: &str, feature: &str, name: &str) -> PathBuf {
    let made = binaries::target_dir().join(project);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--quiet", "--locked", "--features", feature, "--bin", name, "--manifest-path"]);
    cargo.arg(sources().join(project).join("Cargo.toml"));
    // The workspace's own settings of the build are not meant for this one.
    cargo.arg("--target-dir").arg(&made).env_remove("RUSTFLAGS");
    let built = cargo.output().expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    made.join("release").join(name)
}
