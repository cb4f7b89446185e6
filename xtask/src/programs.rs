//! The target programs: those of `xtask/programs/`, compiled on demand, and those of Debian.

use crate::{exec, place};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `xtask/programs/SOURCE` with `flags` to `target/xtask/programs/NAME`, unless what is there is newer.
pub fn compiled(source: &str, name: &str, flags: &[&str]) -> Result<PathBuf> {
    compiled_by(None, source, name, flags)
}

/// As [`compiled`], by another compiler of C than the usual one.
pub fn compiled_by(compiler: Option<&str>, source: &str, name: &str, flags: &[&str]) -> Result<PathBuf> {
    let from = place::workspace().join("xtask/programs").join(source);
    let to = place::kept("programs")?.join(name);
    if newer(&to, &from) {
        return Ok(to);
    }
    let mut compiler = match from.extension().and_then(|kind| kind.to_str()) {
        Some("c") => with(Command::new(compiler.unwrap_or("gcc")), &["-O2", "-g"]),
        Some("cpp") => with(Command::new("g++"), &["-std=c++20", "-O2", "-g", "-pthread"]),
        Some("rs") => with(Command::new("rustc"), &["-O", "-g", "--edition", "2024"]),
        _ => bail!("no compiler for {source}"),
    };
    // Libraries are named behind what needs them.
    exec::run(compiler.arg("-o").arg(&to).arg(&from).args(flags))?;
    Ok(to)
}

fn with(mut command: Command, flags: &[&str]) -> Command {
    command.args(flags);
    command
}

fn newer(file: &Path, than: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|about| about.modified());
    matches!((modified(file), modified(than)), (Ok(built), Ok(written)) if built > written)
}

/// A program of `xtask/programs/` that is not compiled.
pub fn source(name: &str) -> PathBuf {
    place::workspace().join("xtask/programs").join(name)
}

/// The redis server. Debian's package of that name starts a system service when it is installed; `redis-tools` holds
/// the same program under another name, and it is the name it is started under that makes it a server.
pub fn redis_server() -> Result<PathBuf> {
    if let Some(server) = exec::find("redis-server") {
        return Ok(server);
    }
    let program = exec::find("redis-check-rdb").context("there is no redis-server; install redis-tools")?;
    let server = place::kept("programs")?.join("redis-server");
    if fs::read_link(&server).ok().as_ref() != Some(&program) {
        let _ = fs::remove_file(&server); // a link to somewhere else, or none
        std::os::unix::fs::symlink(&program, &server).with_context(|| format!("cannot make the link {}", server.display()))?;
    }
    Ok(server)
}

/// Debian's python3: one found in `PATH` may be a wrapper that starts another.
pub fn python() -> PathBuf {
    PathBuf::from("/usr/bin/python3")
}

/// The C++ compiler proper behind `g++`.
pub fn cc1plus() -> Result<PathBuf> {
    behind("g++", "cc1plus")
}

/// The C compiler proper behind `gcc`.
pub fn cc1() -> Result<PathBuf> {
    behind("gcc", "cc1")
}

fn behind(driver: &str, name: &str) -> Result<PathBuf> {
    let path = exec::output(Command::new(driver).arg(format!("-print-prog-name={name}")))?;
    let path = PathBuf::from(path.trim());
    if !path.is_absolute() {
        bail!("{driver} does not know where its {name} is");
    }
    Ok(path)
}
