//! The processes that are sampled together: messages find theirs, processes come by fork and exec and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::bail;
use hound_common::event::{PROCESS_JOINED, PROCESS_NEW_PROGRAM};
use hound_common::kernel::{MESSAGE_EXEC, MESSAGE_EXIT, MESSAGE_FORK, MESSAGE_NAME, MESSAGE_OOM};
use hound_inject::{CustomHook, Refusal};

use super::arrivals::Found;
use super::clock;
use super::doubts::Which;
use super::kernel::{Closing, KernelError, Message, Programs};
use super::members::Members;
use super::processes::{self, ProcessFd};
use super::sampler::{Figures, Place};
use super::sampling::{Costs, Plan};
use super::target::{Plans, Prepared, Shared, Target};
use crate::capture::Clock;
use crate::capture::model::ProcessId;

/// A process that has come and was not looked at so far.
#[derive(Clone, Copy, Debug)]
struct Newcomer {
    /// Which one it was before its fork or exec.
    from: Option<ProcessId>,
    /// Its parent, while it may share its memory.
    parent: Option<u32>,
    new_program: bool,
    /// When it came.
    since: Instant,
}

/// How long a program that has just begun may not be ready to be sampled.
const LOADING: Duration = Duration::from_secs(2);

/// The processes of a session that is sampled from the kernel.
pub struct Crew {
    members: Members,
    shared: Shared,
    hooks: Vec<CustomHook>,
    plan: Plan,
    targets: BTreeMap<u32, Target>,
    newcomers: BTreeMap<u32, Newcomer>,
    /// Threads that lead a process have ended there.
    leaving: BTreeSet<u32>,
    /// Have ended, and blocks of theirs may be in the kernel's table still.
    dead: BTreeSet<u32>,
    /// Of those that have gone.
    figures: Figures,
    /// The kernel has killed them for want of memory.
    killed: BTreeSet<u32>,
    /// Whether the session's first process is one of these, or was.
    first_killed: bool,
    /// A process that is sampled alone has replaced itself by another program.
    replaced: bool,
    /// What was found out since it was last asked for.
    found: Found,
    plans: Plans,
    /// Whether what probes do survives a seccomp filter, as was tried.
    filtered: bool,
    /// Nobody joins any more: another crew may have taken over.
    retired: bool,
}

impl Crew {
    /// Nobody so far.
    pub fn new(members: Members, shared: Shared, hooks: Vec<CustomHook>, plan: Plan, costs: Costs) -> Self {
        Crew {
            members,
            shared,
            hooks,
            plan,
            targets: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            leaving: BTreeSet::new(),
            dead: BTreeSet::new(),
            figures: Figures::default(),
            killed: BTreeSet::new(),
            first_killed: false,
            replaced: false,
            found: Found::default(),
            plans: Plans::default(),
            filtered: costs.filtered || !plan.allocations,
            retired: false,
        }
    }

    /// A member that was looked at. One that is another program by now is looked at again later.
    pub fn add(&mut self, prepared: Prepared) {
        let Some(known) = self.members.alive().get(&prepared.pid).copied() else { return };
        if !self.members.are_several() || prepared.is_current() {
            self.insert(prepared.pid, Target::new(prepared, known, &self.shared, &self.plan));
        }
    }

    fn insert(&mut self, pid: u32, target: Target) {
        self.plans.add(&target);
        self.targets.insert(pid, target);
    }

    /// The kernel tells of them from here on.
    ///
    /// # Errors
    /// If it does not.
    pub fn watch(&self, programs: &mut Programs) -> Result<(), KernelError> {
        self.targets.keys().try_for_each(|pid| programs.watch_with(*pid, self.members.follow.any()))
    }

    /// What is probed, in each of them.
    pub fn plans(&self) -> Plans {
        self.plans.clone()
    }

    /// Nobody joins from here on.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// Whether the kernel has killed the session's first process for want of memory.
    pub fn is_killed_for_memory(&self) -> bool {
        self.first_killed
    }

    /// Whether the session's only process is another program by now, of which nothing is recorded.
    pub fn is_replaced(&self) -> bool {
        self.replaced
    }

    /// What was found out since the last call.
    pub fn found(&mut self) -> Found {
        std::mem::take(&mut self.found)
    }

    /// How long to wait before looking again at anything, but no longer than this.
    pub fn pause(&self, longest: Duration) -> Duration {
        self.targets.values().filter_map(Target::pause).fold(longest, Duration::min)
    }

    /// Looks for allocators in what was mapped just now.
    pub fn look_for_arrivals(&mut self, programs: &mut Programs) {
        for target in self.targets.values_mut() {
            self.found.add(target.look_for_arrivals(programs));
        }
    }

    /// Looks at blocks that nobody has watched all the time, and says which are gone.
    pub fn resolve_doubts(&mut self, which: Which, programs: &mut Programs) {
        self.targets.values_mut().for_each(|target| target.resolve_doubts(which, programs));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// For the status: how many there are, have been, and were missed; nothing if there is one only.
    pub fn processes(&self) -> Option<(usize, u32, u64)> {
        let (been, missed) = self.members.counted();
        self.members.are_several().then_some((self.targets.len(), been, missed))
    }

    /// What all have come to.
    pub fn figures(&self) -> Figures {
        self.targets.values().fold(self.figures, |sum, target| sum.and(target.sampler.figures()))
    }

    /// The capture's time of a moment.
    pub fn ticks_at(&self, ns: u64) -> u64 {
        self.shared.ticks.at(ns)
    }

    /// Sets the probes in all of them. One that is gone is passed over.
    ///
    /// # Errors
    /// If there is one process only and it is gone, or the kernel refuses.
    pub fn open(&mut self, programs: &mut Programs) -> Result<(), KernelError> {
        let alone = !self.members.are_several();
        let mut refused = Vec::new();
        for (pid, target) in self.targets.iter_mut().filter(|(_, target)| !target.is_open()) {
            match target.open(programs) {
                Ok(()) => {}
                Err(error) if alone => return Err(error),
                // Its end is told by another message.
                Err(KernelError::NoProcess(_)) => {}
                Err(error) => refused.push((*pid, error)),
            }
        }
        for (pid, error) in refused {
            self.give_up(pid, &error.to_string(), programs);
        }
        Ok(())
    }

    /// One cannot be sampled; the others go on.
    fn give_up(&mut self, pid: u32, why: &str, programs: &mut Programs) {
        if self.members.refuse(pid) {
            eprintln!("hound: process {pid} is not recorded: {why}");
        }
        programs.unwatch(pid);
        if let Some(mut target) = self.targets.remove(&pid) {
            self.plans.remove(pid);
            target.end();
            self.figures = self.figures.and(target.sampler.figures());
        }
    }

    /// The probes are in place since then.
    pub fn opened(&mut self, ns: u64) {
        self.targets.values_mut().for_each(|target| target.sampler.open(ns));
    }

    /// They began to go then.
    pub fn closed(&mut self, ns: u64) {
        self.targets.values_mut().for_each(|target| target.sampler.close(ns));
    }

    /// Takes the probes out.
    pub fn take_out(&mut self) -> Vec<Closing> {
        self.targets.values_mut().flat_map(Target::take_out).collect()
    }

    /// The probes are gone, and what they told was read.
    pub fn unwatched(&mut self) {
        self.targets.values_mut().for_each(Target::unwatched);
    }

    /// The kernel tells of none of them any more.
    pub fn unwatch(&mut self, programs: &mut Programs) {
        for pid in self.targets.keys().chain(self.newcomers.keys()) {
            programs.unwatch(*pid);
        }
    }

    /// Reads what has come; how many messages.
    pub fn read(&mut self, programs: &mut Programs) -> usize {
        let Crew { members, targets, newcomers, leaving, killed, first_killed, replaced, .. } = self;
        let mut gone: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
        let mut names: BTreeMap<u32, Vec<(u32, String)>> = BTreeMap::new();
        let follows = members.follow.any();
        let read = programs.read(&mut |message| match message {
            // What comes after an exec is another program's, which was not looked at so far.
            Message::Call(call, stack) => {
                if let Some(target) = targets.get_mut(&call.pid).filter(|_| !newcomers.contains_key(&call.pid)) {
                    target.sampler.call(&call, stack);
                }
            }
            Message::Outcome(outcome) => {
                if let Some(target) = targets.get_mut(&outcome.pid).filter(|_| !newcomers.contains_key(&outcome.pid))
                    && let Some(block) = target.sampler.outcome(&outcome)
                {
                    gone.entry(outcome.pid).or_default().push(block);
                }
            }
            Message::Lifecycle(life) => match life.message {
                MESSAGE_EXIT => {
                    if let Some(target) = targets.get_mut(&life.pid) {
                        target.sampler.ended(life.tid);
                    }
                    if life.pid == life.tid {
                        leaving.insert(life.pid);
                    }
                }
                MESSAGE_OOM => {
                    killed.insert(life.pid);
                    *first_killed |= members.alive().get(&life.pid).is_some_and(|(number, _)| *number == ProcessId::FIRST);
                }
                MESSAGE_NAME if targets.contains_key(&life.pid) => {
                    let name = life.name.split(|byte| *byte == 0).next().unwrap_or_default();
                    names.entry(life.pid).or_default().push((life.tid, String::from_utf8_lossy(name).into_owned()));
                }
                MESSAGE_FORK if follows => {
                    let from = members.alive().get(&life.pid).map(|(number, _)| *number);
                    newcomers.insert(life.other, Newcomer { from, parent: Some(life.pid), new_program: false, since: Instant::now() });
                }
                MESSAGE_EXEC if members.are_several() || targets.contains_key(&life.pid) => {
                    *replaced |= !members.are_several();
                    let known = newcomers.get(&life.pid).copied();
                    let from = known.and_then(|known| known.from);
                    newcomers.insert(life.pid, Newcomer { from, parent: None, new_program: true, since: Instant::now() });
                }
                _ => {}
            },
        });
        for (pid, target) in targets {
            target.hand_on(names.get(pid).map_or(&[], Vec::as_slice), gone.get(pid).map_or(&[], Vec::as_slice));
        }
        read
    }

    /// Those that have ended are told of, newcomers are looked at; with `is_open`, their probes are set. Gives what is being taken out.
    pub fn come_and_go(&mut self, programs: &mut Programs, is_open: bool) -> Vec<Closing> {
        let mut closing = Vec::new();
        if !self.members.are_several() {
            return closing;
        }
        // Later they are only told from those they were.
        let newcomers = if self.retired { BTreeMap::new() } else { std::mem::take(&mut self.newcomers) };
        for (pid, newcomer) in newcomers {
            let mut newcomer = newcomer;
            if newcomer.new_program && self.targets.contains_key(&pid) {
                closing.extend(self.remove(pid));
                programs.forget_all(pid);
                newcomer.from = self.members.leave_by_exec(pid, &self.shared.orders, self.now());
            }
            // Between vfork and exec it is its parent's memory: what it allocates is the parent's, and so are the probes.
            if newcomer.parent.is_some_and(|parent| hound_inject::is_same_memory(parent as i32, pid as i32)) {
                self.newcomers.insert(pid, newcomer);
                continue;
            }
            self.join(pid, newcomer, programs, is_open);
        }
        let over: Vec<u32> = self.leaving.iter().copied().filter(|pid| !is_alive(*pid)).collect();
        for pid in over {
            closing.extend(self.gone(pid, programs));
        }
        closing
    }

    /// One has ended, whoever it was.
    fn gone(&mut self, pid: u32, programs: &mut Programs) -> Vec<Closing> {
        self.leaving.remove(&pid);
        if self.newcomers.remove(&pid).is_some() && !self.retired {
            self.members.missed();
        }
        let closing = self.remove(pid);
        let killed = self.killed.remove(&pid);
        self.members.leave(pid, killed, &self.shared.orders, self.now());
        programs.unwatch(pid);
        self.dead.insert(pid);
        closing
    }

    fn remove(&mut self, pid: u32) -> Vec<Closing> {
        let Some(mut target) = self.targets.remove(&pid) else { return Vec::new() };
        self.plans.remove(pid);
        let closing = target.take_out().collect();
        target.end();
        self.figures = self.figures.and(target.sampler.figures());
        closing
    }

    fn join(&mut self, pid: u32, newcomer: Newcomer, programs: &mut Programs, is_open: bool) {
        let Newcomer { from, new_program, since, .. } = newcomer;
        if self.targets.contains_key(&pid) {
            return;
        }
        // One that was named and is another program now stays; others must still belong.
        let was_one = new_program && from.is_some();
        // One that is in the session already, and that this crew does not sample so far.
        let there = self.members.alive().get(&pid).copied();
        if !was_one && there.is_none() && !self.members.take(pid) {
            return programs.unwatch(pid);
        }
        let joined = (|| {
            hound_inject::must_be_readable(pid as i32)?;
            let prepared = match self.forked_from(pid) {
                Some(parent) => Prepared::of_fork(pid, parent, &self.plan)?,
                None => Prepared::of(pid, &self.hooks, &self.plan, false)?,
            };
            if prepared.is_filtered() && !self.filtered {
                bail!("it runs under a seccomp filter, which on this kernel may end it for the system calls that probes make");
            }
            let known = match there {
                Some(known) => known,
                None => self.members.join(
                    pid,
                    from,
                    if new_program { PROCESS_NEW_PROGRAM } else { PROCESS_JOINED },
                    &self.shared.numbers,
                    &self.shared.orders,
                    self.now(),
                )?,
            };
            programs.watch_with(pid, self.members.follow.any())?;
            let mut target = Target::new(prepared, known, &self.shared, &self.plan);
            if is_open {
                target.open(programs)?;
                target.sampler.open(clock::ticks(Clock::Monotonic));
            }
            anyhow::Ok(target)
        })();
        match joined {
            Ok(target) => self.insert(pid, target),
            Err(_) if !is_alive(pid) => {
                if there.is_none() {
                    self.members.missed();
                }
                let killed = self.killed.remove(&pid);
                self.members.leave(pid, killed, &self.shared.orders, self.now());
                programs.unwatch(pid);
            }
            Err(error) if since.elapsed() < LOADING && may_pass(&error) => {
                self.newcomers.insert(pid, newcomer);
            }
            Err(error) => {
                if there.is_none() {
                    self.members.leave(pid, false, &self.shared.orders, self.now());
                }
                self.give_up(pid, &format!("{error:#}"), programs);
            }
        }
    }

    /// The target that this process is a copy of: its parent, as long as both run the same program.
    fn forked_from(&self, pid: u32) -> Option<&Target> {
        let parent = procfs::process::Process::new(pid as i32).and_then(|process| process.stat()).ok()?.ppid as u32;
        let is_copy = processes::image(pid).is_some_and(|image| processes::image(parent) == Some(image));
        self.targets.get(&parent).filter(|_| is_copy)
    }

    fn now(&self) -> u64 {
        clock::ticks(self.shared.clock)
    }

    /// What is to be done now and then.
    pub fn look_after(&mut self, programs: &mut Programs) {
        self.shared.ticks.refresh();
        for target in self.targets.values_mut() {
            self.found.add(target.look_after(programs));
        }
        if !self.members.are_several() || self.retired {
            return;
        }
        self.members.hold_files();
        let dead = std::mem::take(&mut self.dead);
        if !dead.is_empty() {
            programs.forget_those(|pid| dead.contains(&pid) && !self.targets.contains_key(&pid));
        }
        self.leaving.extend(self.members.ended());
        let (alive, refused) = (self.members.alive(), self.members.refused());
        // Another crew, which was there before this one, may have seen to what happened in between.
        self.leaving.extend(self.targets.keys().filter(|pid| !alive.contains_key(pid)));
        for pid in alive.keys().filter(|pid| !self.targets.contains_key(pid) && !refused.contains(pid) && !self.leaving.contains(pid)) {
            self.newcomers.entry(*pid).or_insert(Newcomer { from: None, parent: None, new_program: false, since: Instant::now() });
        }
        // What no message has told of, for the ring was full or it came otherwise.
        for pid in self.members.replaced() {
            self.newcomers.entry(pid).or_insert(Newcomer { from: None, parent: None, new_program: true, since: Instant::now() });
        }
        for pid in self.members.follow.look(&self.members.known()) {
            self.newcomers.entry(pid).or_insert(Newcomer { from: None, parent: None, new_program: false, since: Instant::now() });
        }
    }
}

/// Whether a program that has just begun may be otherwise in a moment: its loader may have mapped no allocator yet; the kernel sets
/// probes of the program that was there before in this one, too, until they are closed, which takes it a while; and what was looked at is
/// gone where another program takes its place meanwhile.
fn may_pass(error: &anyhow::Error) -> bool {
    use hound_inject::Error;
    matches!(error.downcast_ref(), Some(Error::Gone | Error::Refused(Refusal::NoAllocator { .. } | Refusal::Breakpoint { .. })))
}

/// A zombie is over, too.
fn is_alive(pid: u32) -> bool {
    ProcessFd::open(pid).is_ok_and(|process| !process.is_over())
}
