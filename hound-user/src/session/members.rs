//! The processes of one session: which there are, which come later, and what each is called in the capture.
//!
//! A process here is a program in a process: after an exec the same pid is another one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hound_common::event::{END_EXEC, END_EXIT, END_NO_MEMORY, END_SIGNAL, END_UNKNOWN, PROCESS_JOINED, tag};

use super::files::{self, Holder, SharedFiles};
use super::pipeline::{OWN_STREAM, Order, Orders, packed};
use super::processes::{self, Ended, ProcessFd};
use super::recording::Recording;
use super::streams::Numbers;
use super::talk::Door;
use crate::capture::model::{ProcessId, StreamId};
use crate::symbols::OtherFiles;

/// Longest command line kept: a record is 255 words.
const COMMAND_BYTES: usize = 1600;

/// Which processes belong to a session, beside those that are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Follow {
    /// Children, and theirs, also those forked later.
    pub tree: bool,
    /// All of this control group and those below it: a folder of the cgroup file system.
    pub cgroup: Option<PathBuf>,
}

impl Follow {
    /// Whether processes may come later.
    pub fn any(&self) -> bool {
        self.tree || self.cgroup.is_some()
    }

    /// Processes that belong to the session now, without these that are known.
    pub fn look(&self, known: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        if let Some(group) = &self.cgroup {
            in_group(group, &mut found);
        }
        if self.tree {
            let mut open: Vec<u32> = known.iter().copied().collect();
            while let Some(parent) = open.pop() {
                open.extend(children(parent).into_iter().filter(|child| found.insert(*child)));
            }
        }
        found.remove(&std::process::id());
        found.retain(|pid| !known.contains(pid) && is_program(*pid));
        found
    }

    /// Whether a process that was just forked by one of the session belongs to it.
    fn takes(&self, pid: u32) -> bool {
        self.tree || self.cgroup.as_deref().is_some_and(|group| is_in(pid, group))
    }
}

/// The folder of a control group (cgroup v2): as given, or below where the file system is mounted.
///
/// # Errors
/// If there is none of this name.
pub fn control_group(name: &Path) -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|words| words.get(2) == Some(&"cgroup2"));
    let roots: Vec<PathBuf> = mounted.filter_map(|words| words.get(1).map(PathBuf::from)).collect();
    if roots.is_empty() {
        anyhow::bail!("cgroup v2 is not mounted here (`mount -t cgroup2 none DIR` does), so that there are no control groups to name");
    }
    let below = roots.iter().map(|root| root.join(name.strip_prefix("/").unwrap_or(name)));
    let as_it_is = roots.iter().any(|root| name.starts_with(root)).then(|| name.to_owned());
    as_it_is.into_iter().chain(below).find(|path| path.join("cgroup.procs").is_file()).ok_or_else(|| {
        let root = roots[0].display();
        anyhow::anyhow!(
            "there is no control group '{}' below {root}; `cat /proc/PID/cgroup` says which one a process is in",
            name.display()
        )
    })
}

fn in_group(group: &Path, found: &mut BTreeSet<u32>) {
    let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
    let below = std::fs::read_dir(group).into_iter().flatten().flatten();
    below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).for_each(|entry| in_group(&entry.path(), found));
}

fn is_in(pid: u32, group: &Path) -> bool {
    let mut all = BTreeSet::new();
    in_group(group, &mut all);
    all.contains(&pid)
}

/// Processes that a process has begun and that it has not waited for.
pub fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    threads.flat_map(|thread| of(thread).split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// Kernel threads and zombies run no program.
fn is_program(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// One process.
#[derive(Debug)]
pub struct Member {
    /// As the machine numbers it.
    pub pid: u32,
    /// Its number in the capture.
    pub number: ProcessId,
    /// Where hound says what it has to say of it.
    pub notes: StreamId,
    /// What tells its program from the next.
    image: Option<u64>,
    process: ProcessFd,
    holder: Holder,
}

impl Member {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.process.is_over()
    }

    fn end(&self, killed_for_memory: bool) -> (u8, u64) {
        const KILL: u64 = libc::SIGKILL as u64;
        match self.process.ended() {
            // Where the kernel lets nobody know how a process has ended, its word of the other is as good.
            Ended::Unknown if killed_for_memory => (END_NO_MEMORY, KILL),
            Ended::Signal(signal) if killed_for_memory && u64::from(signal) == KILL => (END_NO_MEMORY, KILL),
            Ended::Exit(status) => (END_EXIT, u64::from(status)),
            Ended::Signal(signal) => (END_SIGNAL, u64::from(signal)),
            Ended::Unknown => (END_UNKNOWN, 0),
        }
    }
}

/// What there is at one moment.
#[derive(Debug, Default)]
struct State {
    alive: BTreeMap<u32, Member>,
    next: u32,
    /// Ended before hound could look at them.
    missed: u64,
    /// Could not be attached to, and why; each is told once.
    refused: BTreeSet<u32>,
}

/// The processes of a session. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Members {
    state: Arc<Mutex<State>>,
    several: bool,
    /// What comes later.
    pub follow: Follow,
    files: OtherFiles,
    shared: SharedFiles,
    door: Option<Door>,
}

impl Members {
    /// The first process of a session. `several`: others may come; then all are told of in the capture.
    ///
    /// # Errors
    /// If it has ended.
    pub fn of_first(pid: u32, several: bool, follow: Follow, files: OtherFiles, door: Option<Door>) -> io::Result<Self> {
        let members = Members::of_own(pid, several, follow, files, door)?;
        if members.state().alive.values().all(Member::is_over) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(members)
    }

    /// The same of a child of hound's, which may have ended.
    ///
    /// # Errors
    /// If it was waited for.
    pub fn of_own(pid: u32, several: bool, follow: Follow, files: OtherFiles, door: Option<Door>) -> io::Result<Self> {
        let shared = SharedFiles::default();
        let member = member(pid, ProcessId::FIRST, OWN_STREAM, Holder::sharing(&shared))?;
        let state = State { alive: BTreeMap::from([(pid, member)]), next: 1, ..State::default() };
        Ok(Members { state: Arc::new(Mutex::new(state)), several, follow, files, shared, door })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the session may be of more than one process.
    pub fn are_several(&self) -> bool {
        self.several
    }

    /// Those that live, by pid: number, and the stream of what is said of it.
    pub fn alive(&self) -> BTreeMap<u32, (ProcessId, StreamId)> {
        self.state().alive.values().map(|member| (member.pid, (member.number, member.notes))).collect()
    }

    /// Those that live; the one that was first comes first, if it does. If it is alone, it is told of even where it has ended.
    pub fn pids(&self) -> Vec<u32> {
        let state = self.state();
        let there = state.alive.values().filter(|member| !self.several || !member.is_over());
        let mut all: Vec<(ProcessId, u32)> = there.map(|member| (member.number, member.pid)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, pid)| pid).collect()
    }

    /// Where their files are.
    pub fn files(&self) -> OtherFiles {
        self.files.clone()
    }

    /// Whether all have ended, and none can come.
    pub fn are_over(&self) -> bool {
        let group_lives = self.follow.cgroup.as_deref().is_some_and(|group| group.join("cgroup.procs").exists());
        !group_lives && self.state().alive.values().all(Member::is_over)
    }

    /// How many there have been; how many of them, or besides them, ended before they could be looked at.
    pub fn counted(&self) -> (u32, u64) {
        let state = self.state();
        (state.next, state.missed)
    }

    /// One ended before hound could look at it.
    pub fn missed(&self) {
        self.state().missed += 1;
    }

    /// It cannot be recorded. Whether that is new.
    pub fn refuse(&self, pid: u32) -> bool {
        self.state().refused.insert(pid)
    }

    /// Those that cannot be recorded.
    pub fn refused(&self) -> BTreeSet<u32> {
        self.state().refused.clone()
    }

    /// Pids that are known, whatever became of them.
    pub fn known(&self) -> BTreeSet<u32> {
        let state = self.state();
        state.alive.keys().chain(&state.refused).copied().collect()
    }

    /// Whether a process that was forked by one of them is one of them.
    pub fn take(&self, pid: u32) -> bool {
        self.follow.takes(pid)
    }

    /// One more, that began so (`event::PROCESS_…`). `from`: which one it was before its fork or its exec.
    ///
    /// # Errors
    /// If it has ended meanwhile, or another session holds it.
    pub fn join(
        &self,
        pid: u32,
        from: Option<ProcessId>,
        began: u8,
        numbers: &Numbers,
        orders: &Orders,
        ticks: u64,
    ) -> anyhow::Result<(ProcessId, StreamId)> {
        if let Some(door) = &self.door {
            door.also_of(pid)?;
        }
        let mut state = self.state();
        let (number, notes) = (ProcessId(state.next), numbers.next());
        let mut member = member(pid, number, notes, Holder::sharing(&self.shared))?;
        if member.is_over() {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        state.next += 1;
        member.holder.look(pid);
        self.files.insert(number, files::of_target(pid, member.holder.held()));
        orders.send(Order::Whose(notes, number));
        let command = processes::command_line(pid);
        let words: Vec<Vec<u8>> = command.into_iter().map(std::os::unix::ffi::OsStringExt::into_vec).collect();
        let mut line = words.join(&0);
        line.truncate(COMMAND_BYTES);
        let parent = procfs::process::Process::new(pid as i32).and_then(|process| process.stat()).map_or(0, |stat| stat.ppid);
        let mut said = vec![u64::from(pid), parent as u64, from.map_or(0, |from| u64::from(from.0) + 1), line.len() as u64];
        said.extend(packed(&line));
        let a = began;
        orders.send(Order::NoteIn { stream: notes, ticks, tag: tag::PROCESS, a, words: said });
        state.alive.insert(pid, member);
        Ok((number, notes))
    }

    /// One that is there when the session begins.
    ///
    /// # Errors
    /// As [`Members::join`].
    pub fn join_at_start(&self, pid: u32, recording: &Recording) -> anyhow::Result<()> {
        let ticks = super::clock::ticks(recording.session().clock);
        self.join(pid, None, PROCESS_JOINED, &recording.numbers(), &recording.orders(), ticks).map(|_| ())
    }

    /// It has replaced itself by another program. Its number until then.
    pub fn leave_by_exec(&self, pid: u32, orders: &Orders, ticks: u64) -> Option<ProcessId> {
        let member = self.state().alive.remove(&pid)?;
        orders.send(Order::NoteIn { stream: member.notes, ticks, tag: tag::END, a: END_EXEC, words: vec![0] });
        Some(member.number)
    }

    /// It has ended; `killed_for_memory`: the kernel has chosen it for that. Whether it was one of them.
    pub fn leave(&self, pid: u32, killed_for_memory: bool, orders: &Orders, ticks: u64) -> bool {
        let Some(member) = self.state().alive.remove(&pid) else { return false };
        let (a, value) = member.end(killed_for_memory);
        orders.send(Order::NoteIn { stream: member.notes, ticks, tag: tag::END, a, words: vec![value] });
        if let Some(door) = &self.door {
            door.no_longer_of(pid);
        }
        true
    }

    /// Those that have ended.
    pub fn ended(&self) -> Vec<u32> {
        self.state().alive.values().filter(|member| member.is_over()).map(|member| member.pid).collect()
    }

    /// The program that a process is now is the one that is meant.
    pub fn look_again(&self, pid: u32) {
        if let Some(member) = self.state().alive.get_mut(&pid) {
            member.image = processes::image(pid);
        }
    }

    /// Those that are another program by now.
    pub fn replaced(&self) -> Vec<u32> {
        let is_other = |member: &&Member| processes::image(member.pid).is_some_and(|now| member.image.is_some_and(|image| image != now));
        self.state().alive.values().filter(is_other).map(|member| member.pid).collect()
    }

    /// Holds the files that they have mapped by now. Nobody waits for it who joins meanwhile: a process' map may be long in coming.
    pub fn hold_files(&self) {
        let all: Vec<(u32, ProcessId)> = self.state().alive.values().map(|member| (member.pid, member.number)).collect();
        for (pid, number) in all {
            let mut holder = Holder::default();
            let change_places = |holder: &mut Holder| {
                let mut state = self.state();
                let same = state.alive.get_mut(&pid).filter(|member| member.number == number);
                same.map(|member| std::mem::swap(&mut member.holder, holder)).is_some()
            };
            if change_places(&mut holder) {
                holder.look(pid);
                change_places(&mut holder);
            }
        }
    }
}

fn member(pid: u32, number: ProcessId, notes: StreamId, holder: Holder) -> io::Result<Member> {
    let process = ProcessFd::open(pid)?;
    Ok(Member { pid, number, notes, image: processes::image(pid), process, holder })
}

impl std::fmt::Display for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        /// More are counted only.
        const SHOWN: usize = 5;
        let state = self.state();
        let pids: Vec<String> = state.alive.keys().take(SHOWN).map(u32::to_string).collect();
        match (self.several, state.alive.len()) {
            (false, _) => f.write_str(&pids.join(", ")),
            (true, 1) => write!(f, "1 process ({})", pids.join(", ")),
            (true, number) => write!(f, "{number} processes ({}{})", pids.join(", "), if number > SHOWN { ", …" } else { "" }),
        }
    }
}
