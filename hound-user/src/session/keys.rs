//! The keys of a session in the foreground of a terminal: one key changes the mode, without Enter.
//!
//! The terminal is the user's: it is set so only while hound is in its foreground, put back on every way out that hound can see (its end, an
//! error, a panic; signals come through the session's end), and never read from the background, which would stop hound.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use tokio::io::unix::AsyncFd;

use super::attach::Mode;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Go on in this mode.
    Mode(Mode),
    /// Detach.
    Quit,
}

/// Keys, what they ask for, and how they are told.
const KEYS: [(u8, Key, &str); 5] = [
    (b's', Key::Mode(Mode::Sampled), "s sampled"),
    (b'f', Key::Mode(Mode::Full), "f full"),
    (b'p', Key::Mode(Mode::Faults), "p page faults"),
    (b'o', Key::Mode(Mode::Off), "o off"),
    (b'q', Key::Quit, "q detach"),
];

/// How the terminal was. Here for a panic, which may come on any thread.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal's keys.
#[derive(Debug)]
pub struct Keys {
    terminal: Option<AsyncFd<File>>,
}

impl Keys {
    /// Listens, if both standard input and standard error are a terminal.
    pub fn listen(wanted: bool) -> Self {
        let there = wanted && io::stdin().is_terminal() && io::stderr().is_terminal();
        let terminal = there.then(|| open().ok()).flatten();
        if terminal.is_some() {
            restore_on_panic();
            // Where the foreground is lost between a look and a read, the read fails instead of stopping hound.
            ignore(Signal::SIGTTIN);
        }
        let keys = Keys { terminal };
        keys.look();
        keys
    }

    /// Takes the terminal's keys one by one, where hound has come to its foreground. To be called now and then: a shell that brings hound
    /// back has set the terminal as it likes it.
    pub fn look(&self) {
        if self.is_in_foreground()
            && let Ok(now) = tcgetattr(io::stdin())
            && now.local_flags.contains(LocalFlags::ICANON)
        {
            let mut single = now.clone();
            single.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            single.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            single.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &single); // refused: keys work with Enter
        }
    }

    /// What can be pressed, for the status line; empty if nothing can.
    pub fn hint(&self, mode: Mode) -> String {
        if !self.is_in_foreground() {
            return String::new();
        }
        let others = KEYS.iter().filter(|(_, key, _)| *key != Key::Mode(mode)).map(|(.., what)| *what);
        others.collect::<Vec<_>>().join(" · ")
    }

    /// The next key that means something.
    pub async fn next(&mut self) -> Key {
        loop {
            let Some(terminal) = &self.terminal else { return std::future::pending().await };
            let Ok(mut ready) = terminal.readable().await else {
                self.terminal = None;
                continue;
            };
            if !self.is_in_foreground() {
                // It stays readable, for whoever is in the foreground.
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
            let mut byte = [0];
            match ready.try_io(|terminal| terminal.get_ref().read(&mut byte)) {
                Ok(Ok(1)) => {
                    if let Some((_, key, _)) = KEYS.iter().find(|(known, ..)| *known == byte[0].to_ascii_lowercase()) {
                        return *key;
                    }
                }
                // The foreground was lost just now.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) && self.hangs_on() => {}
                // It has hung up.
                Ok(_) => self.terminal = None,
                Err(_would_block) => {}
            }
        }
    }

    fn hangs_on(&self) -> bool {
        tcgetattr(io::stdin()).is_ok()
    }

    fn is_in_foreground(&self) -> bool {
        self.terminal.is_some() && is_foreground(io::stdin().as_fd())
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        restore();
    }
}

fn is_foreground(terminal: BorrowedFd<'_>) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

/// The terminal again, not to wait for: the description that hound was started with is its shell's, too, and must not be changed so.
fn open() -> io::Result<AsyncFd<File>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/proc/self/fd/0")?;
    register(file)
}

#[expect(unsafe_code, reason = "registers the terminal's descriptor with the event loop")]
fn register(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: the descriptor belongs to `file`, which closes it only when it is dropped with the registration.
    let registered = unsafe { AsyncFd::register(file) };
    Ok(registered?)
}

/// As it was, if it is hound's to set: in the background it is as the shell has set it.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before.filter(|_| is_foreground(io::stdin().as_fd())) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before); // it may have hung up
    }
}

fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            next(info);
        }));
    });
}

#[expect(unsafe_code, reason = "sets a signal's action")]
fn ignore(which: Signal) {
    // SAFETY: installs no handler of ours.
    let _ = unsafe { signal(which, SigHandler::SigIgn) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_there_are_no_keys() {
        let keys = Keys { terminal: None };
        assert_eq!(keys.hint(Mode::Full), "");
        assert!(!keys.is_in_foreground());
    }

    #[test]
    fn every_mode_has_a_key_of_its_own() {
        let mut bytes: Vec<u8> = KEYS.iter().map(|(byte, ..)| *byte).collect();
        bytes.dedup();
        assert_eq!(bytes.len(), KEYS.len());
        for mode in [Mode::Sampled, Mode::Full, Mode::Faults, Mode::Off] {
            assert!(KEYS.iter().any(|(_, key, _)| *key == Key::Mode(mode)), "{mode:?}");
        }
    }
}
