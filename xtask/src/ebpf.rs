//! `cargo xtask ebpf`: the programs for the kernel, from source to the object that the plain build takes as it is.
//!
//! rustup's toolchain cannot compile for the kernel without parts that only the network has, so Debian's `rustc-web` does, which brings a
//! core library for that machine. bpf-linker links with the LLVM of rustup's toolchain. The object is committed beside a record of what
//! made it: a build needs none of this, and whoever has the same tools gets the same bytes.

use crate::setup::{self, Purpose};
use crate::{Verdict, exec, place};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What compiles for the kernel.
const COMPILER: &str = "/usr/bin/rustc";
const LINKER_VERSION: &str = "0.13.0";
/// The major version of the LLVM that both compilers bring.
const LLVM: &str = "llvm-22";
const TRIPLE: &str = "bpfel-unknown-none";
/// Names the object that tests load instead of the built-in one.
const OBJECT: &str = "HOUND_EBPF_OBJECT";

/// Of `cargo xtask ebpf`.
#[derive(Args)]
pub struct Options {
    /// Build again and compare with the committed object; change nothing
    #[arg(long)]
    check: bool,
}

/// `cargo xtask ebpf`.
pub fn task(options: &Options) -> Result<Verdict> {
    if options.check {
        return check();
    }
    let (object, record) = build()?;
    fs::write(committed(), &object).context("cannot write the object")?;
    fs::write(recorded(), &record).context("cannot write the record of the toolchain")?;
    println!("ebpf: {} ({} bytes)", committed().display(), object.len());
    Ok(Verdict::Good)
}

/// Under the recorded toolchain the bytes must be those committed. Under another one nothing can be said of bytes: what it makes is loaded
/// and tested.
pub fn check() -> Result<Verdict> {
    let (object, record) = build()?;
    let there = fs::read(committed()).context("the object is not there: run `cargo xtask ebpf`")?;
    if object == there {
        println!("ebpf: the committed object is what its source gives, byte for byte");
        return Ok(Verdict::Good);
    }
    let known = fs::read_to_string(recorded()).context("the record of the toolchain is not there: run `cargo xtask ebpf`")?;
    if record == known {
        println!("ebpf: hound-ebpf/hound.bpf.o is not what its source gives: run `cargo xtask ebpf` and commit it");
        return Ok(Verdict::Bad);
    }
    println!(
        "ebpf: another toolchain than the recorded one gives other bytes; they are loaded and tested.\nhere:\n{record}recorded:\n{known}"
    );
    let rebuilt = place::kept("ebpf")?.join("rebuilt.o");
    fs::write(&rebuilt, object).with_context(|| format!("cannot write {}", rebuilt.display()))?;
    let mut test = Command::new(place::cargo());
    test.args(["test", "--package", "hound-tests", "--test", "kernel"]).env(OBJECT, &rebuilt).current_dir(place::workspace());
    Ok(if exec::status(&mut test)?.success() { Verdict::Good } else { Verdict::Bad })
}

fn folder() -> PathBuf {
    place::workspace().join("hound-ebpf")
}

fn committed() -> PathBuf {
    folder().join("hound.bpf.o")
}

fn recorded() -> PathBuf {
    folder().join("TOOLCHAIN")
}

/// The object, and what made it.
fn build() -> Result<(Vec<u8>, String)> {
    setup::ensure(&[Purpose::Ebpf])?;
    let rustup = PathBuf::from(exec::output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(place::workspace()))?.trim());
    let linker = linker(&rustup)?;
    let target = place::kept("ebpf")?;
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from);
    // Paths out of the object; the rest as aya-build has it. The bounds of a program are those of the kernel's third instruction set.
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        format!("--remap-path-prefix={}=hound", place::workspace().display()),
        format!("--remap-path-prefix={}=cargo", cargo_home.display()),
    ];
    let mut cargo = Command::new(place::cargo());
    cargo.args(["build", "--locked", "--release", "--target", TRIPLE]).current_dir(folder());
    // RUSTC_BOOTSTRAP: aya-ebpf uses assembler for this machine, which is not stable yet.
    cargo.env("RUSTC", COMPILER).env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", &target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
    exec::run(&mut cargo)?;

    let stripped = target.join("stripped.o");
    let objcopy = find_below(&rustup.join("lib/rustlib"), "rust-objcopy")?;
    let mut strip = Command::new(objcopy);
    // The debug information has become BTF, which stays.
    strip.arg("--strip-debug").arg(target.join(TRIPLE).join("release/hound")).arg(&stripped);
    exec::output(strip.env("LD_LIBRARY_PATH", rustup.join("lib")))?;
    let object = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    Ok((object, toolchain()?))
}

/// What made the object, as it is recorded.
fn toolchain() -> Result<String> {
    let compiler = exec::output(Command::new(COMPILER).arg("--version"))?;
    let linked = exec::output(Command::new("rustc").arg("--version").current_dir(place::workspace()))?;
    Ok(format!("compiled by {compiler}linked by bpf-linker {LINKER_VERSION} with the LLVM of {linked}"))
}

/// bpf-linker, built once for each of rustup's compilers, in the user's cache: it takes a minute or two.
fn linker(rustup: &Path) -> Result<PathBuf> {
    let toolchain = rustup.file_name().context("rustup's toolchain has no name")?.to_string_lossy().into_owned();
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
    let at = cache.join("hound").join(format!("bpf-linker-{LINKER_VERSION}-{toolchain}"));
    let program = at.join("bin/bpf-linker");
    if program.is_file() {
        return Ok(program);
    }
    // It looks for LLVM under a name that rustup's copy has not.
    let llvm = find_beginning(&rustup.join("lib"), "libLLVM.so.")?;
    let lib = at.join("llvm/lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    for name in ["libLLVM.so".into(), llvm.file_name().context("a library has a name")?.to_owned()] {
        let link = lib.join(name);
        if !link.is_symlink() {
            symlink(&llvm, &link).with_context(|| format!("cannot link {}", link.display()))?;
        }
    }
    let mut install = Command::new(place::cargo());
    install.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features", "--features", LLVM, "--root"]);
    install.arg(&at).env("LLVM_PREFIX", at.join("llvm")).env("CARGO_TARGET_DIR", place::kept("bpf-linker")?);
    exec::run(&mut install)?;
    Ok(program)
}

fn home() -> PathBuf {
    env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

/// The first file in a folder whose name begins so.
fn find_beginning(folder: &Path, name: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(name));
    found.map(|entry| entry.path()).with_context(|| format!("there is no {name}* in {}", folder.display()))
}

/// A program of rustup's toolchain, which are in a folder named by the machine.
fn find_below(folder: &Path, name: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    match entries.flatten().map(|entry| entry.path().join("bin").join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("rustup's toolchain has no {name}"),
    }
}
