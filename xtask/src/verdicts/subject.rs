//! What is recorded, and how.

use super::ground::Ground;
use crate::exec::Ending;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// What is known of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A service of Debian's under load: nothing leaks.
    Service,
    /// Another program in which nothing leaks.
    Healthy,
    /// It leaks in places that are known.
    Leaking,
}

/// How it is recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every allocation.
    Full,
    /// Samples, from the kernel, that observe all of the time.
    Sampled,
    /// The same, of a process and all of its children.
    Tree,
}

impl Mode {
    /// For `hound attach` and `hound run`.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Mode::Full => &["--mode", "full"],
            Mode::Sampled => &["--mode", "sampled", "--engine", "kernel", "--budget", "unlimited", "--interval", "16Ki"],
            Mode::Tree => &["--mode", "sampled", "--engine", "kernel", "--budget", "unlimited", "--interval", "16Ki", "--tree"],
        }
    }

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Full => "full",
            Mode::Sampled => "sampled",
            Mode::Tree => "sampled, tree",
        }
    }
}

/// A service or a program.
pub struct Subject {
    /// Its name on the command line and in the table.
    pub name: &'static str,
    /// What is known of it.
    pub kind: Kind,
    /// How it is recorded.
    pub mode: Mode,
    /// What it does, in words.
    pub what: &'static str,
    /// The functions that leak: each is on the stack of what must be called a leak, and of nothing else that is.
    pub leaks: &'static [&'static str],
    /// Starts it, or says how hound shall.
    pub begin: fn(&Ground) -> Result<Begun>,
}

/// A service of Debian's in which nothing leaks.
pub const fn service(name: &'static str, mode: Mode, what: &'static str, begin: fn(&Ground) -> Result<Begun>) -> Subject {
    Subject { name, kind: Kind::Service, mode, what, leaks: &[], begin }
}

/// A program in which nothing leaks.
pub const fn healthy(name: &'static str, mode: Mode, what: &'static str, begin: fn(&Ground) -> Result<Begun>) -> Subject {
    Subject { name, kind: Kind::Healthy, mode, what, leaks: &[], begin }
}

/// One whose leaks are known.
pub const fn leaking(
    name: &'static str,
    mode: Mode,
    what: &'static str,
    leaks: &'static [&'static str],
    begin: fn(&Ground) -> Result<Begun>,
) -> Subject {
    Subject { name, kind: Kind::Leaking, mode, what, leaks, begin }
}

/// What hound is told to record.
pub enum Begun {
    /// `hound run` of a command that ends by itself when its time is over.
    Command(Command),
    /// A process that runs already.
    Running(Running),
}

/// A program that runs, and who puts it under load. The load ends first.
pub struct Running {
    /// Who sends requests, if that has begun.
    pub load: Option<Ending>,
    /// Else who will, as soon as hound records: what the program sets up for its first clients, and how its caches fill, is recorded, too.
    pub then: Option<Command>,
    /// What was started.
    pub server: Ending,
    /// The server that it asks itself, if there is one; it ends last.
    pub behind: Option<Ending>,
    /// What is recorded: the process that does the work.
    pub pid: u32,
    /// Where the number of requests is written; none where they are not counted.
    pub counted: Option<PathBuf>,
}
