//! Programs in which nothing leaks, and those whose leaks are known.

use super::ground::Ground;
use super::subject::{Begun, Mode, Running, Subject, healthy, leaking};
use crate::{exec, place, programs};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// All of them. Those of ours have caches, a set that fills and what is there from the start, too.
pub const ALL: &[Subject] = &[
    healthy("plateau", Mode::Full, "a set of 6,000 keys that fills", |ground| kinds(ground, "plateau")),
    healthy("start-up", Mode::Sampled, "what is there from the start, and small caches", |ground| kinds(ground, "start_up")),
    healthy("shutdown", Mode::Full, "all it ever made is released at its end", |ground| kinds(ground, "shutdown")),
    healthy("breathes", Mode::Full, "a queue that grows for five seconds and is emptied in five", |ground| kinds(ground, "breathes")),
    healthy("high-water", Mode::Full, "a free list as long as was ever wanted at once", |ground| kinds(ground, "high_water")),
    healthy("pool", Mode::Full, "C++: a pool of objects, of which as many are out as chance will have it", |ground| {
        kinds_cpp(ground, "pool")
    }),
    healthy("threads", Mode::Sampled, "C++: a pool of threads, some of which end and are replaced", |ground| kinds_cpp(ground, "threads")),
    healthy("sqlite", Mode::Full, "sqlite3: a table of at most 2,000 rows", |ground| sqlite(ground, None)),
    healthy("lru", Mode::Full, "python: a cache of 800 of 3,000 results", |ground| python(ground, &["lru"])),
    healthy("perl", Mode::Full, "perl: words that are counted, sorted and matched", perl),
    healthy("g++", Mode::Full, "the compiler at work on templates, to its end", compiler),
    healthy("git", Mode::Full, "git packs a repository of 30,000 objects, to its end", git),
    leaking("leak-big", Mode::Sampled, "4,000 bytes a turn", &["leaks_much"], |ground| kinds(ground, "big")),
    leaking("leak-small", Mode::Full, "one of 1.5 % beside a large one", &["leaks_most", "leaks_little"], |ground| kinds(ground, "small")),
    leaking("leak-requests", Mode::Full, "the block of one request in 64", &["handles_request"], |ground| kinds(ground, "requests")),
    leaking("leak-thread", Mode::Sampled, "what a thread has made for itself when it ends", &["begins_job"], |ground| {
        kinds(ground, "thread")
    }),
    leaking("leak-list", Mode::Sampled, "a list that is reachable and grows", &["remembers"], |ground| kinds(ground, "list")),
    leaking("leak-forgotten", Mode::Full, "blocks that realloc has grown and nobody has", &["grows_and_forgets"], |ground| {
        kinds(ground, "forgotten")
    }),
    leaking("leak-append", Mode::Full, "one block that realloc grows and grows", &["appends"], |ground| kinds(ground, "append")),
    leaking("leak-buffers", Mode::Full, "forty buffers that realloc grows now and then", &["buffers"], |ground| kinds(ground, "buffers")),
    leaking("leak-evicts", Mode::Full, "a cache that forgets one in ten of what leaves it", &["evicts_most"], |ground| {
        kinds(ground, "evicts")
    }),
    leaking("leak-batch", Mode::Full, "twenty blocks every four seconds", &["leaks_batch"], |ground| kinds(ground, "batch")),
    leaking("leak-rare", Mode::Full, "4 MiB every three seconds", &["leaks_large"], |ground| kinds(ground, "rare")),
    leaking("leak-map", Mode::Full, "C++: a std::map from which nothing is taken", &["remember_user"], |ground| kinds_cpp(ground, "map")),
    leaking("leak-table", Mode::Full, "C++: a std::unordered_map from which nothing is taken", &["remember_session"], |ground| {
        kinds_cpp(ground, "table")
    }),
    leaking("leak-vector", Mode::Full, "C++: a std::vector from which nothing is taken", &["remember_measure"], |ground| {
        kinds_cpp(ground, "vector")
    }),
    leaking("leak-ctypes", Mode::Full, "python: a C library that forgets one copy in ten", &["parse_header"], |ground| {
        python(ground, &["ctypes", &library("parse.so")?.to_string_lossy()])
    }),
    leaking("leak-sqlite", Mode::Full, "sqlite3: an extension that forgets one copy in ten", &["parse_header"], |ground| {
        sqlite(ground, Some("words"))
    }),
    leaking("leak-service", Mode::Sampled, "a service under load that forgets a record of each session", &["begin_audit_trail"], service),
];

/// Compiles what there is of ours, before anything runs.
pub fn compile() -> Result<()> {
    kinds_program()?;
    kinds_cpp_program()?;
    programs::compiled("leaky_service.cpp", "leaky_service", &[])?;
    programs::compiled("verdicts_leaking.c", "parse.so", &["-shared", "-fPIC"])?;
    programs::compiled("verdicts_leaking.c", "words.so", &["-shared", "-fPIC", "-DSQLITE"]).map(drop)
}

fn kinds_program() -> Result<PathBuf> {
    programs::compiled("verdicts_kinds.c", "verdicts_kinds", &["-pthread"])
}

fn kinds_cpp_program() -> Result<PathBuf> {
    programs::compiled("verdicts_kinds.cpp", "verdicts_kinds_cpp", &[])
}

fn library(name: &str) -> Result<PathBuf> {
    Ok(place::kept("programs")?.join(name))
}

fn kinds(ground: &Ground, kind: &str) -> Result<Begun> {
    let mut command = Command::new(kinds_program()?);
    command.args([kind, &ground.seconds()]);
    Ok(Begun::Command(command))
}

fn kinds_cpp(ground: &Ground, kind: &str) -> Result<Begun> {
    let mut command = Command::new(kinds_cpp_program()?);
    command.args([kind, &ground.seconds()]);
    Ok(Begun::Command(command))
}

/// Each object of python's is a block, not only what it cuts them from.
fn python(ground: &Ground, words: &[&str]) -> Result<Begun> {
    let mut command = Command::new(programs::python());
    command.arg(programs::source("verdicts_server.py")).arg(words[0]).arg(ground.seconds()).args(&words[1..]);
    command.env("PYTHONMALLOC", "malloc");
    Ok(Begun::Command(command))
}

fn perl(ground: &Ground) -> Result<Begun> {
    let mut command = Command::new("/usr/bin/perl");
    command.arg(programs::source("verdicts_bounded.pl")).arg(ground.seconds());
    Ok(Begun::Command(command))
}

/// sqlite3 with somebody who sends it statements. `leak`: with the extension that leaks, and statements that use it.
fn sqlite(ground: &Ground, leak: Option<&str>) -> Result<Begun> {
    let mut load = Command::new(programs::python());
    load.arg(programs::source("verdicts_load.py")).args(["sql", "500"]).args(leak);
    let mut load = ground.start_with("load", &load, Stdio::null(), Some(Stdio::piped()))?;
    let statements = load.0.stdout.take().context("invariant: its output is piped")?;
    let mut command = Command::new("/usr/bin/sqlite3");
    command.arg("-batch").current_dir(&ground.at);
    if leak.is_some() {
        command.args(["-cmd", &format!(".load {}", library("words.so")?.display())]);
    }
    command.arg("items.db");
    let mut server = ground.start_with("server", &command, statements.into(), None)?;
    let made = ground.at.join("items.db");
    ground.awaited("sqlite3 has begun", &mut server.0, || made.exists())?;
    let pid = server.0.id();
    Ok(Begun::Running(Running { load: Some(load), then: None, server, behind: None, pid, counted: None }))
}

fn compiler(ground: &Ground) -> Result<Begun> {
    let source = programs::source("template_heavy.cpp");
    let (text, result) = (ground.at.join("template_heavy.ii"), ground.at.join("template_heavy.s"));
    exec::output(Command::new("g++").args(["-std=c++20", "-E", "-o"]).arg(&text).arg(source))?;
    let mut command = Command::new(programs::cc1plus()?);
    command.args(["-fpreprocessed", "-std=c++20", "-O2", "-quiet", "-o"]).arg(result).arg(text);
    Ok(Begun::Command(command))
}

/// A repository is made first: 10,000 commits, each with one of 40 files changed.
fn git(ground: &Ground) -> Result<Begun> {
    let repository = ground.at.join("repository.git");
    exec::output(Command::new("git").args(["init", "--quiet", "--bare"]).arg(&repository))?;
    let git = |words: &[&str]| {
        let mut command = Command::new(git_program());
        command.arg("--git-dir").arg(&repository).args(words);
        command
    };
    let mut import = git(&["fast-import", "--quiet", "--depth=0"]);
    let mut import = import.stdin(Stdio::piped()).spawn().context("cannot start git")?;
    let mut commits = std::io::BufWriter::new(import.stdin.take().context("invariant: its input is piped")?);
    let mut text: u64 = 1;
    for number in 0..10_000_u32 {
        let lines = (0..200).map(|line| {
            text = text.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            format!("line {line} of {}, {:x}\n", number % 40, if line % 8 == 0 { text >> 20 } else { 0 })
        });
        let file: String = lines.collect();
        let (name, time) = (number % 40, 1_700_000_000 + number);
        write!(commits, "commit refs/heads/main\ncommitter a <a@b> {time} +0000\ndata 1\nx\n").context("git took no more commits")?;
        write!(commits, "M 644 inline {}/file{name}\ndata {}\n{file}\n", name % 7, file.len()).context("git took no more commits")?;
    }
    drop(commits.into_inner().map_err(|error| error.into_error()).context("git took no more commits")?);
    exec::ended(&mut import, "git fast-import", std::time::Duration::from_secs(120))?;
    Ok(Begun::Command(git(&["pack-objects", "--all", "--no-reuse-delta", "--no-reuse-object", "--threads=1", "-q", &{
        ground.at.join("packed").display().to_string()
    }])))
}

/// The program itself: one found in `PATH` may be a script around it.
fn git_program() -> &'static str {
    "/usr/bin/git"
}

fn service(ground: &Ground) -> Result<Begun> {
    let socket = ground.at.join("socket").display().to_string();
    let mut command = Command::new(programs::compiled("leaky_service.cpp", "leaky_service", &[])?);
    command.args(["serve", &socket, "4"]);
    let mut server = ground.start("server", &command)?;
    ground.awaited("the service listens", &mut server.0, || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
    Ok(Begun::Running(ground.running(server, "pages", &socket, 1000, None)))
}
