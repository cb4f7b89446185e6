//! A session in the foreground of a terminal is told by keys how to go on; the terminal is left as it was, and not touched from elsewhere.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hound_tests::attach::{self, Subject};
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{EndOf, wait_until};
use hound_tests::{binaries, requirement};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

fn possible() -> bool {
    requirement::uprobes() && requirement::program("setsid")
}

fn subject() -> Subject {
    Subject::start(&mut Command::new(Program::new("mode_switching.c", Build::Optimised).with(&["-pthread"]).path()))
}

/// A terminal with a program in a session of its own.
struct Terminal {
    keyboard: File,
    shown: Arc<Mutex<String>>,
    child: Child,
    /// Ends it if a test fails.
    _end: EndOf,
}

impl Terminal {
    /// With this in its foreground.
    fn with(command: &str, arguments: &[&str]) -> Terminal {
        let pty = openpty(None, None).expect("a terminal can be made");
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor"));
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command).args(arguments);
        started.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        let child = started.spawn().expect("setsid is installed");
        drop(started); // it holds the other end
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut screen, text) = (File::from(pty.master.try_clone().expect("a descriptor")), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It fails when nobody has the other end any more.
            while let Ok(read @ 1..) = screen.read(&mut bytes) {
                text.lock().expect("nobody panics with it").push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        // The test keeps an end open: else the terminal's settings go with the last user.
        std::mem::forget(pty.slave);
        let end = EndOf(Pid::from_raw(child.id() as i32));
        Terminal { keyboard: File::from(pty.master), shown, child, _end: end }
    }

    fn attach(pid: i32, capture: &Path, more: &[&str]) -> Terminal {
        let (hound, pid, capture) = (binaries::hound(), pid.to_string(), capture.display().to_string());
        let mut arguments = vec!["attach", "-p", &pid, "-o", &capture];
        arguments.extend(more);
        let terminal = Terminal::with(&hound.display().to_string(), &arguments);
        terminal.must_show("attached to", 1);
        terminal
    }

    fn shown(&self) -> String {
        self.shown.lock().expect("nobody panics with it").clone()
    }

    fn must_show(&self, what: &str, times: usize) {
        assert!(wait_until(|| self.shown().matches(what).count() >= times), "not shown: {what} in {}", self.shown());
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    /// Lines are edited and echoed, as a shell's user has them.
    fn is_as_usual(&self) -> bool {
        tcgetattr(&self.keyboard).is_ok_and(|now| now.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO))
    }

    fn must_end(&mut self) -> i32 {
        let mut status = None;
        let ended = wait_until(|| {
            status = self.child.try_wait().expect("it is this test's child");
            status.is_some()
        });
        assert!(ended, "it has not ended: {}", self.shown());
        assert!(self.is_as_usual(), "the terminal is not as it was: {}", self.shown());
        status.and_then(|status| status.code()).unwrap_or(-1)
    }
}

fn modes(capture: &Path) -> Vec<String> {
    let dump = Capture { path: capture.to_owned() }.ask("dump", &[]).out();
    dump.lines().filter_map(|line| line.split_once(" mode mode=")).map(|(_, mode)| mode.to_owned()).collect()
}

fn changes(capture: &Path) -> String {
    // Each change goes by way of off.
    modes(capture).into_iter().filter(|mode| mode != "0").collect()
}

#[test]
fn each_key_changes_the_mode_and_q_detaches() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let file = subject.file("keys.hound");
    let mut terminal = Terminal::attach(subject.pid(), &file, &[]);
    assert!(wait_until(|| !terminal.is_as_usual()), "keys wait for Enter");
    terminal.must_show("f full · p page faults · o off · q detach", 1);
    terminal.press("f");
    terminal.must_show("in mode full now", 1);
    terminal.must_show("s sampled · p page faults", 1);
    subject.order("keep");
    for (key, mode) in [("p", "faults"), ("x", ""), ("o", "off"), ("S", "sampled")] {
        terminal.press(key);
        if !mode.is_empty() {
            terminal.must_show(&format!("in mode {mode} now"), 1);
        }
    }
    terminal.press("s");
    terminal.must_show("it is in that mode already", 1);
    terminal.press("q");
    assert_eq!(terminal.must_end(), 0, "{}", terminal.shown());
    // Sampled, full, faults (as the format numbers them), sampled.
    assert_eq!(changes(&file), "2132", "{:?}", modes(&file));
    let report = Capture { path: file }.report();
    assert!(report.sites.iter().any(|site| site.passes("keep_here") && site.allocations == 100), "the full part is not full");
    subject.end();
}

#[test]
fn the_terminal_is_put_back_however_hound_is_ended() {
    if !possible() {
        return;
    }
    let subject = subject();
    for way in ["Ctrl-C", "SIGTERM", "SIGHUP", "duration", "Ctrl-Z"] {
        let file = subject.file(&format!("{way}.hound"));
        let more: &[&str] = if way == "duration" { &["--duration", "2s"] } else { &[] };
        let mut terminal = Terminal::attach(subject.pid(), &file, more);
        assert!(wait_until(|| !terminal.is_as_usual()), "{way}: keys wait for Enter");
        let hound = Pid::from_raw(terminal.child.id() as i32);
        match way {
            "Ctrl-C" => terminal.press("\x03"),
            "SIGTERM" => kill(hound, Signal::SIGTERM).expect("hound runs"),
            "SIGHUP" => kill(hound, Signal::SIGHUP).expect("hound runs"),
            "Ctrl-Z" => {
                terminal.press("\x1a");
                terminal.must_show("not stopped", 1);
                terminal.press("q");
            }
            _ => {}
        }
        assert_eq!(terminal.must_end(), 0, "{way}: {}", terminal.shown());
    }
    subject.end();
}

#[test]
fn after_a_stop_keys_work_again() {
    if !possible() {
        return;
    }
    let subject = subject();
    let mut terminal = Terminal::attach(subject.pid(), &subject.file("stop.hound"), &[]);
    assert!(wait_until(|| !terminal.is_as_usual()));
    let hound = Pid::from_raw(terminal.child.id() as i32);
    kill(hound, Signal::SIGSTOP).expect("hound runs");
    // As a shell does it for its own use.
    let mut usual = tcgetattr(&terminal.keyboard).expect("a terminal");
    usual.local_flags.insert(LocalFlags::ICANON | LocalFlags::ECHO);
    nix::sys::termios::tcsetattr(&terminal.keyboard, nix::sys::termios::SetArg::TCSANOW, &usual).expect("a terminal");
    kill(hound, Signal::SIGCONT).expect("hound is stopped");
    assert!(wait_until(|| !terminal.is_as_usual()), "keys wait for Enter");
    terminal.press("q");
    assert_eq!(terminal.must_end(), 0);
    subject.end();
}

/// Starts hound in the background, says so, and waits for it.
const IN_BACKGROUND: &str = r#"set -m; "$0" "$@" & echo "number $!."; wait"#;

#[test]
fn in_the_background_the_terminal_is_not_touched() {
    if !possible() {
        return;
    }
    let subject = subject();
    let (file, hound, pid) = (subject.file("back.hound"), binaries::hound().display().to_string(), subject.pid().to_string());
    let path = file.display().to_string();
    let mut terminal = Terminal::with("bash", &["-c", IN_BACKGROUND, &hound, "attach", "-p", &pid, "-o", &path]);
    terminal.must_show("attached to", 1);
    terminal.press("fo\n");
    // Some rounds of the status line, in which it could have listened.
    terminal.must_show("Ctrl-C detaches", 4);
    assert!(terminal.is_as_usual(), "the terminal was set from the background");
    let number = terminal.shown().split("number ").nth(1).and_then(|rest| rest.split('.').next()?.trim().parse().ok());
    let hound = Pid::from_raw(number.expect("the shell says it"));
    let state = std::fs::read_to_string(format!("/proc/{hound}/stat")).expect("hound runs");
    assert!(!state.contains(") T "), "hound was stopped: {state}");
    kill(hound, Signal::SIGINT).expect("hound runs");
    terminal.must_end();
    assert_eq!(changes(&file), "2", "it has listened");
    subject.end();
}

#[test]
fn what_comes_from_a_pipe_is_no_key() {
    if !possible() {
        return;
    }
    let subject = subject();
    let file: PathBuf = subject.file("pipe.hound");
    let script = r#"printf 'fffooo' | "$0" attach -p "$1" --duration 1500ms -o "$2""#;
    let (hound, pid, path) = (binaries::hound().display().to_string(), subject.pid().to_string(), file.display().to_string());
    let mut terminal = Terminal::with("bash", &["-c", script, &hound, &pid, &path]);
    assert_eq!(terminal.must_end(), 0, "{}", terminal.shown());
    assert_eq!(changes(&file), "2", "it has read the pipe");
    assert_eq!(attach::changed_bytes(subject.pid()), 0);
    subject.end();
}
