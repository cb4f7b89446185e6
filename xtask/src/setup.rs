//! The Debian packages that testing, the demonstration and the benchmarks need.
//!
//! `dpkg-query` is asked first and costs milliseconds; the network is touched only when something is missing. Nothing here ever asks a
//! question: as root the packages are installed, otherwise the exact command is printed.

use crate::{Verdict, exec};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::path::Path;
use std::process::{Command, Stdio};

/// What packages are needed for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// `cargo xtask test`
    Test,
    /// `cargo xtask demo`
    Demo,
    /// `cargo xtask bench`
    Bench,
    /// `cargo xtask ebpf`
    Ebpf,
    /// `cargo xtask bench memleak`
    Memleak,
    /// `cargo xtask verdicts`
    Verdicts,
}

use Purpose::{Bench, Demo, Ebpf, Memleak, Test, Verdicts};

/// The packages and what each is for. `redis-tools` holds the server too, as a program of two names (see `programs::redis_server`);
/// `redis-server` would add nothing but a system service that starts at once.
const PACKAGES: &[(&str, &[Purpose])] = &[
    ("g++", &[Test, Demo, Bench, Verdicts]),
    ("python3", &[Test, Bench, Verdicts]),
    ("sqlite3", &[Test, Bench, Verdicts]),
    ("redis-tools", &[Test, Demo, Bench, Verdicts]),
    // What full mode is attached to: other C libraries, other allocators, real servers; and the tracers that it must notice.
    ("musl-tools", &[Test, Bench]),
    // Frames as another compiler makes them.
    ("clang", &[Test]),
    ("iproute2", &[Test]),
    ("libtcmalloc-minimal4", &[Test, Bench]),
    ("libgoogle-perftools-dev", &[Test]),
    ("libjemalloc2", &[Test, Bench]),
    ("libmimalloc2.0", &[Test]),
    ("gdb", &[Test, Verdicts]),
    ("linux-perf", &[Test]),
    ("nginx-light", &[Test, Verdicts]),
    ("postgresql-15", &[Test, Verdicts]),
    ("nodejs", &[Test, Verdicts]),
    // The C library's functions by their names: what memset is called that a program has filled a page with.
    ("libc6-dbg", &[Test]),
    // Draws what hound drew.
    ("librsvg2-bin", &[Test]),
    ("openjdk-17-jdk-headless", &[Test]),
    // Services. Debian starts some of them with the machine when they are installed; those are not the ones that are recorded.
    ("apache2-bin", &[Verdicts]),
    ("beanstalkd", &[Verdicts]),
    ("bind9", &[Verdicts]),
    ("haproxy", &[Verdicts]),
    ("lighttpd", &[Verdicts]),
    ("memcached", &[Verdicts]),
    ("mosquitto", &[Verdicts]),
    ("ngircd", &[Verdicts]),
    ("nutcracker", &[Verdicts]),
    ("pdns-recursor", &[Verdicts]),
    ("pgbouncer", &[Verdicts]),
    ("php8.2-fpm", &[Verdicts]),
    ("proftpd-core", &[Verdicts]),
    ("rsyslog", &[Verdicts]),
    ("ruby", &[Verdicts]),
    ("ruby-webrick", &[Verdicts]),
    ("slapd", &[Verdicts]),
    ("squid", &[Verdicts]),
    ("stunnel4", &[Verdicts]),
    ("tinyproxy-bin", &[Verdicts]),
    ("unbound", &[Verdicts]),
    ("uwsgi-core", &[Verdicts]),
    ("uwsgi-plugin-python3", &[Verdicts]),
    ("varnish", &[Verdicts]),
    // Makes the key of the one that encrypts.
    ("openssl", &[Verdicts]),
    // docs/coverage.md is made with these, beside programs that are there for other reasons.
    ("perl", &[Test, Verdicts]),
    ("git", &[Test, Verdicts]),
    ("make", &[Test]),
    ("curl", &[Test]),
    // An extension of sqlite3 is compiled that leaks.
    ("libsqlite3-dev", &[Verdicts]),
    // Libraries that programs of ours forget something of, and a module for python.
    ("libglib2.0-dev", &[Verdicts]),
    ("libxml2-dev", &[Verdicts]),
    ("zlib1g-dev", &[Verdicts]),
    ("pkg-config", &[Verdicts]),
    ("python3-dev", &[Verdicts]),
    // Programs that were chosen later.
    ("php-cli", &[Verdicts]),
    ("lua5.4", &[Verdicts]),
    ("gawk", &[Verdicts]),
    ("tcl8.6", &[Verdicts]),
    ("r-base-core", &[Verdicts]),
    ("jq", &[Verdicts]),
    ("xsltproc", &[Verdicts]),
    ("graphviz", &[Verdicts]),
    ("ghostscript", &[Verdicts]),
    ("imagemagick-6.q16", &[Verdicts]),
    ("ffmpeg", &[Verdicts]),
    ("heaptrack", &[Test, Bench]),
    ("bpfcc-tools", &[Memleak]),
    ("linux-headers-amd64", &[Memleak]),
    // A compiler with a core library for the kernel's machine.
    ("rustc-web", &[Ebpf]),
    ("libstd-rust-web-dev-bpf", &[Ebpf]),
];

/// `cargo xtask setup`: all purposes when none is named.
pub fn task(purposes: &[Purpose]) -> Result<Verdict> {
    ensure(if purposes.is_empty() { &[Test, Demo, Bench, Ebpf, Memleak, Verdicts] } else { purposes })?;
    println!("setup: every package is there");
    Ok(Verdict::Good)
}

/// Sees to it that the packages for these purposes are installed, or says what to type; and that the kernel's tracepoints can be looked up.
pub fn ensure(purposes: &[Purpose]) -> Result<()> {
    show_tracepoints();
    let missing = missing(purposes)?;
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("these packages are missing; install them with: sudo apt-get install -y --no-install-recommends {}", missing.join(" "));
    }
    apt_get(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(&missing);
    apt_get(&install)
}

/// Mounts tracefs, as systemd does where it is: in it stand the numbers of the tracepoints that mappings are seen by. Without rights, or in a
/// kernel without it, hound does with less and says so, and a test that needs it fails.
fn show_tracepoints() {
    let at = Path::new("/sys/kernel/tracing");
    if rustix::process::geteuid().is_root() && at.exists() && !at.join("events").exists() {
        let mounted = Command::new("mount").args(["-t", "tracefs", "none"]).arg(at).stdin(Stdio::null()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("setup: tracefs cannot be mounted: mappings are not seen from the kernel");
        }
    }
}

fn missing(purposes: &[Purpose]) -> Result<Vec<&'static str>> {
    let wanted = PACKAGES.iter().filter(|(_, used_for)| used_for.iter().any(|purpose| purposes.contains(purpose)));
    let mut missing = Vec::new();
    for (package, _) in wanted {
        if !installed(package)? {
            missing.push(*package);
        }
    }
    Ok(missing)
}

fn installed(package: &str) -> Result<bool> {
    let asked =
        Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).stdin(Stdio::null()).output().context(
            "cannot ask dpkg-query what is installed; elsewhere than on Debian, install g++, python3, sqlite3, redis, heaptrack",
        )?;
    Ok(asked.status.success() && asked.stdout == b"installed")
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    exec::run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
        .context("apt-get could not do it; see its messages above")
}
