//! A capture over the network while it is recorded: what arrives is the capture, byte by byte, however it was asked for.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use hound_tests::capture::{Capture, hound, wait_until_finished};
use hound_tests::process::{self, Running, wait_until};
use hound_tests::{binaries, requirement};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

/// Allocates until its input ends.
const PROGRAM: &str = "import sys, threading, time\n\
                       kept, over = [], threading.Event()\n\
                       threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()\n\
                       while not over.is_set():\n  kept.append(str(len(kept)) * 1000)\n  time.sleep(0.001)\n";

/// Starts it with an input that lasts as long as what is returned.
fn fed(command: &mut Command) -> (Running, OwnedFd) {
    let (input, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    (process::start_reading(command, Stdio::from(input)), end)
}

fn recorded(dir: &Path, options: &[&str]) -> (Running, OwnedFd) {
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "-o"]).arg(dir.join("sent.hound")).args(options);
    command.args(["--", "/usr/bin/python3", "-c", PROGRAM]).env("PYTHONMALLOC", "malloc");
    fed(&mut command)
}

/// Where hound says that the capture is to be had.
fn address(running: &Running) -> String {
    let port = || running.said().split("TCP port ").nth(1)?.split(':').next()?.parse::<u16>().ok();
    assert!(wait_until(|| port().is_some()), "{}", running.said());
    format!("127.0.0.1:{}", port().expect("as seen"))
}

fn gathers(from: &str, to: &Path) -> Running {
    process::start(Command::new(binaries::hound()).args(["gather", from, "-o"]).arg(to))
}

fn must_grow(file: &Path, beyond: u64) {
    let size = || file.metadata().map_or(0, |file| file.len());
    assert!(wait_until(|| size() > beyond), "{} has {} bytes", file.display(), size());
}

#[test]
fn every_client_gets_the_whole_capture_and_one_that_leaves_keeps_what_came() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let (running, input) = recorded(dir.path(), &["--server=18200"]);
    let from = address(&running);
    let [first, second, left] = ["first", "second", "left"].map(|name| dir.path().join(name));
    let clients = [gathers(&from, &first), gathers(&from, &left)];
    must_grow(&first, 100);
    must_grow(&left, 100);
    // It can be read while it grows.
    let report = hound([Path::new("report"), &first]);
    assert!(report.status.success(), "{}", report.err());
    let [client, leaves] = clients;
    kill(leaves.pid, Signal::SIGINT).expect("it runs");
    let outcome = leaves.finish();
    assert!(outcome.status.code() == Some(2) && outcome.err().contains("what came until then is kept"), "{}", outcome.err());
    let late = gathers(&from, &second);
    must_grow(&second, first.metadata().expect("it is there").len());
    drop(input);
    for client in [client, late] {
        let outcome = client.finish();
        assert!(outcome.status.success() && outcome.err().contains("capture in"), "{}", outcome.err());
    }
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.err());
    let sent = fs::read(dir.path().join("sent.hound")).expect("the capture");
    for file in [&first, &second] {
        assert!(fs::read(file).expect("what was gathered") == sent, "{} differs", file.display());
        assert!(Capture { path: file.clone() }.check().status.success());
    }
    let left = fs::read(&left).expect("what was gathered");
    assert!(sent.starts_with(&left) && left.len() < sent.len());
}

#[test]
fn the_documented_variables_serve_a_preloaded_program() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("sent.hound");
    // Taken: the next one is.
    let taken = std::net::TcpListener::bind(("0.0.0.0", 18_300)).expect("a free port");
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", PROGRAM]).env("PYTHONMALLOC", "malloc").env("LD_PRELOAD", binaries::libhound()).env("HOUND_OUTPUT", &file);
    command.env("MEMORY_PROFILER_ENABLE_SERVER", "1").env("MEMORY_PROFILER_BASE_SERVER_PORT", "18300");
    let (running, input) = fed(&mut command);
    let mut stream = None;
    wait_until(|| {
        stream = TcpStream::connect(("127.0.0.1", 18_301)).ok();
        stream.is_some()
    });
    let mut got = vec![0; 64];
    let mut stream = stream.expect("it listens at the next free port");
    stream.read_exact(&mut got).expect("a capture");
    drop(input);
    stream.read_to_end(&mut got).expect("the rest");
    running.finish();
    drop(taken);
    let sent = wait_until_finished(&file);
    assert!(fs::read(&sent.path).expect("the capture") == got);
}

#[test]
fn who_waits_finds_what_is_announced() {
    if !requirement::root() || !requirement::program("unshare") || !requirement::program("ip") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    // In a network of its own, where broadcasts come back.
    let script = "ip link set lo up; ip route add default dev lo\n\
                  \"$1\" gather -o got.hound 2>gather.log & gather=$!\n\
                  while ! grep -q waiting gather.log; do :; done\n\
                  \"$1\" run --quiet --server --announce -o sent.hound -- /bin/sh -c 'while ! [ -s got.hound ]; do sleep 0.05; done'\n\
                  wait $gather";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", script, "sh"]).arg(binaries::hound()).current_dir(dir.path());
    let outcome = process::run(&mut command);
    let said = fs::read_to_string(dir.path().join("gather.log")).unwrap_or_default();
    assert!(outcome.status.success(), "{}{said}", outcome.err());
    let read = |name: &str| fs::read(dir.path().join(name)).expect("it was written");
    assert!(read("sent.hound") == read("got.hound"), "{said}");
}

#[test]
fn nobody_there_is_told_with_its_cure() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("none.hound");
    for (from, why) in [("127.0.0.1:1", "cannot connect to '127.0.0.1:1'"), ("nonsense", "give HOST:PORT")] {
        let outcome = hound([Path::new("gather"), Path::new(from), Path::new("-o"), &file]);
        assert_eq!(outcome.status.code(), Some(2), "{}", outcome.err());
        assert!(outcome.err().contains(why) && outcome.err().trim_end().lines().count() == 1, "{}", outcome.err());
        assert!(!file.exists());
    }
}
