//! hound's hold on a target that it attached to: how it gets in, in each mode, and from one mode to another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hound_common::event::{MODE_FAULTS, MODE_FULL, MODE_OFF, MODE_SAMPLED, tag};
use hound_common::ring::{OPTION_DROP, OPTION_FREE_STACKS, OPTION_MAPS, OPTION_SHADOW_STACK};
use hound_inject::{Beneath, Covered, Entered, NotCovered, Plan, Refusal, Staged, State, Target, moment};

use super::attach::{Attach, Engine, Mode};
use super::family::{Door, Family, Making};
use super::files::Holder;
use super::leave;
use super::members::Members;
use super::pipeline::Order;
use super::reaching;
use super::recording::Recording;
use super::ring::Ring;
use super::sampling::{Costs, Ready, Sampling};
use super::target::Prepared;
use super::{clock, files, launch};
use crate::symbols::Files;

/// Longest time to get in, and to patch. A target in which no thread can be borrowed for so long is not one to wait for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Longest a thread is made to wait for ring space in all.
const MAX_WAIT_MS: u32 = 60_000;
/// A target that was attached to gives hound up after so long without a sign of life.
const BELIEF_MS: u32 = 250;
/// One that hound has started, after so long: as one that the library was preloaded into.
const BELIEF_OF_STARTED_MS: u32 = 2000;

/// How a target is recorded: found out by reading only.
#[derive(Debug)]
pub(super) enum Way {
    /// By a library in the target.
    Library {
        /// The target.
        target: Box<Target>,
        /// What is patched.
        plan: Plan,
        /// The library's file.
        library: Vec<u8>,
    },
    /// By probes of the kernel's.
    Kernel(Box<Ready>),
    /// Not at all.
    Nothing,
}

impl Way {
    /// To targets that are not held so far: of a session that may be of several processes `pids`, which it is of; the first of them is the
    /// target else.
    pub(super) fn prepare(attach: &Attach, pids: &[u32], mode: Mode) -> anyhow::Result<Self> {
        let by_kernel = mode == Mode::Faults || attach.engine == Engine::Kernel && mode == Mode::Sampled;
        let mut found = Vec::new();
        for pid in pids {
            let may_be = || {
                let number = i32::try_from(*pid).context("that is no process id")?;
                match by_kernel {
                    true => hound_inject::must_be_readable(number)?,
                    false => drop(hound_inject::look(number)?),
                }
                refuse_the_recorded(number)
            };
            match if mode == Mode::Off { Ok(()) } else { may_be() } {
                Ok(()) => found.push(*pid),
                Err(error) => left_out(attach, *pid, error)?,
            }
        }
        Self::beside(attach, &found, mode, None, &Hold::Nothing)
    }

    /// While they are still recorded in another way. `costs`: what probes cost here, if that is known.
    fn beside(attach: &Attach, pids: &[u32], mode: Mode, costs: Option<Costs>, hold: &Hold) -> anyhow::Result<Self> {
        let pid = i32::try_from(attach.pid).context("that is no process id")?;
        match (mode, attach.engine) {
            (Mode::Off, _) => Ok(Way::Nothing),
            (Mode::Sampled, Engine::Kernel) | (Mode::Faults, _) => {
                let plan = if mode == Mode::Faults { attach.sampling.of_faults() } else { attach.sampling };
                let patched = matches!(hold, Hold::Library(_));
                let mut targets = Vec::new();
                for pid in pids {
                    match Prepared::of(*pid, &attach.hooks, &plan, patched) {
                        Ok(target) => targets.push(target),
                        Err(error) => left_out(attach, *pid, error)?,
                    }
                }
                if targets.is_empty() {
                    bail!("there is no process that can be recorded");
                }
                Ok(Way::Kernel(Box::new(Ready::of(targets, &attach.hooks, plan, costs, attach.follow.any())?)))
            }
            (Mode::Full, _) | (Mode::Sampled, Engine::Library) if attach.is_of_given() => {
                bail!(
                    "the library is brought into one process at a time: {} takes one -p PID, without --tree and --cgroup",
                    if mode == Mode::Full { "--mode full" } else { "--engine library" }
                );
            }
            (Mode::Full, _) | (Mode::Sampled, Engine::Library) => {
                let target = hound_inject::look(pid)?;
                let probes = if let Hold::Kernel(sampling) = hold { sampling.beneath() } else { Beneath::default() };
                let plan = Plan::beneath(&target, &attach.hooks, &probes, attach.children)?;
                let library = launch::library()?;
                let library = std::fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
                Ok(Way::Library { target: Box::new(target), plan, library })
            }
        }
    }

    /// Whom it is into, the first first.
    pub(super) fn pids(&self) -> Vec<u32> {
        if let Way::Kernel(ready) = self { ready.pids() } else { Vec::new() }
    }

    /// What will be recorded, one line a module.
    pub(super) fn covered(&self) -> Vec<String> {
        match self {
            Way::Library { plan, .. } => covered(plan.covered()),
            Way::Kernel(ready) => covered(&ready.covered()),
            Way::Nothing => Vec::new(),
        }
    }

    /// What allocates and will not be seen.
    pub(super) fn not_covered(&self) -> Vec<String> {
        match self {
            Way::Library { plan, .. } => missed(plan.not_covered()),
            Way::Kernel(ready) => missed(&ready.not_covered()),
            Way::Nothing => Vec::new(),
        }
    }
}

/// This one cannot be recorded: whether the others are.
fn left_out(attach: &Attach, pid: u32, error: anyhow::Error) -> anyhow::Result<()> {
    if !attach.is_of_given() {
        return Err(error);
    }
    // Whoever names a process wants that one.
    if attach.is_named(pid) {
        return Err(error.context(format!("process {pid}")));
    }
    eprintln!("hound: process {pid} is not recorded: {error:#}");
    Ok(())
}

/// As the capture lists it.
fn missed(list: &[NotCovered]) -> Vec<String> {
    list.iter().map(|not| format!("{} in {}: {}", not.what, not.module, not.why)).collect()
}

/// What another hound records has a better reason to be refused than what comes of looking at its patched code.
fn refuse_the_recorded(pid: i32) -> anyhow::Result<()> {
    let Some(left) = hound_inject::find(pid)? else { return Ok(()) };
    match left.state() {
        State::Armed { drainer } if left.is_drained()? => Err(hound_inject::Error::from(Refusal::Occupied { by: drainer }).into()),
        _ => Ok(()),
    }
}

/// One line a module: `glibc (mappings) in /lib/libc.so.6`.
fn covered(found: &[Covered]) -> Vec<String> {
    let mut modules: Vec<(&str, Vec<String>)> = Vec::new();
    // What is watched for other reasons than memory is of no interest, and pools are told apart.
    let watched = |family: &str| family == "unwinder" || [": exec", ": fork", ": filters"].iter().any(|kind| family.ends_with(kind));
    let of_interest = |family: &str| !watched(family) && !family.starts_with("pool ");
    let allocates = |covered: &&Covered| of_interest(&covered.family);
    for Covered { module, family, .. } in found.iter().filter(allocates) {
        let at = modules.iter().position(|(known, _)| known == module).unwrap_or_else(|| {
            modules.push((module, Vec::new()));
            modules.len() - 1
        });
        let families = &mut modules[at].1;
        // "glibc: mappings" beside "glibc".
        let part = family.split_once(": ").and_then(|(of, part)| Some((families.iter().position(|have| have == of)?, part)));
        match part {
            Some((at, part)) => families[at] = format!("{} with {part}", families[at]),
            None if families.contains(family) => {}
            None => families.push(family.clone()),
        }
    }
    modules.into_iter().map(|(module, families)| format!("{} in {module}", families.join(", "))).collect()
}

fn options(attach: &Attach) -> u32 {
    let choices = [
        (attach.free_stacks, OPTION_FREE_STACKS),
        (attach.shadow_stack, OPTION_SHADOW_STACK),
        (attach.maps, OPTION_MAPS),
        (attach.drop_on_overload, OPTION_DROP),
    ];
    choices.iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit)
}

/// hound's hold on a target that it records.
#[derive(Debug)]
pub enum Hold {
    /// Its library is in the target, and the target's code is patched.
    Library(Box<Library>),
    /// Probes of the kernel's.
    Kernel(Sampling),
    /// None: recording is off.
    Nothing,
}

/// The library at work in a target.
#[derive(Debug)]
pub struct Library {
    /// The way out.
    pub entered: Entered,
    /// What the library writes to.
    pub ring: Arc<Ring>,
    target: Box<Target>,
    plan: Plan,
    entries: usize,
    threads: usize,
}

impl Library {
    /// The target.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }
}

/// A hold to be taken: all is ready for it, and nothing is recorded by it yet.
#[derive(Debug)]
enum Next {
    Library(Box<Brought>),
    Kernel(Box<Ready>),
    Nothing,
}

/// The library in a target, its ring drained, its patches prepared.
#[derive(Debug)]
struct Brought {
    entered: Entered,
    ring: Arc<Ring>,
    target: Box<Target>,
    plan: Plan,
    staged: Staged,
}

/// A hold that was given up, and of which something may still be on its way.
#[derive(Debug)]
enum Leaving {
    Library { entered: Box<Entered>, ring: Arc<Ring> },
    Kernel(Sampling),
    Nothing,
}

/// A recording under way.
#[derive(Debug)]
pub struct Inside {
    pid: u32,
    /// The processes of the session.
    pub members: Members,
    /// The hold on the target.
    pub hold: Hold,
    /// The recording.
    pub recording: Recording,
    /// Where the processes ask that the target begins, until [`Inside::family`] listens there.
    pub(super) door: Option<Door>,
    /// Those processes.
    pub family: Option<Family>,
    /// The longest that the target has stood still.
    pub longest: Duration,
    /// The target's files.
    pub holder: Holder,
    /// What allocates there since, and is not recorded.
    pub missed: Vec<String>,
    mode: Mode,
    /// What probes cost here, once that was measured.
    costs: Option<Costs>,
    began: bool,
    from_its_beginning: bool,
}

impl std::fmt::Display for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.hold {
            Hold::Library(library) => {
                let (longest, entries, threads) = (self.longest.as_secs_f64() * 1e3, library.entries, library.threads);
                write!(f, "{entries} functions, {threads} threads, longest stall {longest:.1} ms")?;
                let again = if library.entered.is_fresh() { "" } else { "; the library was there already" };
                f.write_str(again)
            }
            Hold::Kernel(sampling) => {
                let Some(functions) = sampling.functions() else { return f.write_str("page faults are sampled from the kernel, no stall") };
                let hit = sampling.costs().hit * 1e9;
                write!(f, "{functions} functions sampled from the kernel, {hit:.0} ns a call while they are observed, no stall")
            }
            Hold::Nothing => f.write_str("nothing is recorded"),
        }
    }
}

impl Inside {
    /// Outside, with a recording to come.
    pub(super) fn new(pid: u32, recording: Recording, members: Members) -> Self {
        let mut holder = Holder::default();
        holder.look(pid);
        let mut recording = recording;
        recording.set_files(Files { others: members.files(), ..files::of_target(pid, holder.held()) });
        let (hold, longest, missed) = (Hold::Nothing, Duration::ZERO, Vec::new());
        Inside {
            pid,
            members,
            hold,
            recording,
            door: None,
            family: None,
            longest,
            holder,
            missed,
            mode: Mode::Off,
            costs: None,
            began: false,
            from_its_beginning: false,
        }
    }

    /// It begins with the recording: there is nothing from before.
    pub(super) fn has_no_before(&mut self) {
        self.from_its_beginning = true;
    }

    /// The mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What allocates in the target and is not recorded, because it came after hound did.
    pub(super) fn appeared(&self) -> Vec<String> {
        match &self.hold {
            Hold::Library(library) => missed(&library.plan.appeared(&library.target).unwrap_or_default()),
            Hold::Kernel(_) | Hold::Nothing => Vec::new(),
        }
    }

    /// Gets in; nothing is held so far. On failure the target is as it was found.
    pub(super) fn enter(&mut self, attach: &Attach, way: Way, mode: Mode) -> anyhow::Result<()> {
        let next = self.approach(attach, way, mode)?;
        self.take_hold(next, mode)
    }

    /// All that can be done while the target is recorded in another way, or not at all.
    fn approach(&mut self, attach: &Attach, way: Way, mode: Mode) -> anyhow::Result<Next> {
        match way {
            Way::Nothing => Ok(Next::Nothing),
            Way::Kernel(ready) => {
                if mode == Mode::Sampled {
                    self.costs = Some(ready.costs());
                }
                Ok(Next::Kernel(ready))
            }
            Way::Library { target, plan, library } => self.bring_library(attach, mode, target, plan, &library).map(Next::Library),
        }
    }

    /// The rest: from here on it is recorded. Nothing else holds it any more.
    fn take_hold(&mut self, next: Next, mode: Mode) -> anyhow::Result<()> {
        match next {
            Next::Nothing => self.begin(Duration::ZERO, MODE_OFF),
            Next::Kernel(ready) => {
                if !self.began {
                    self.recording.begin(Duration::ZERO);
                }
                let a = if mode == Mode::Faults { MODE_FAULTS } else { MODE_SAMPLED };
                let orders = self.recording.orders();
                let begin = move |ticks| orders.send(Order::Note { ticks, tag: tag::MODE, a, words: vec![0] });
                self.hold = Hold::Kernel(ready.start(self.members.clone(), &self.recording, begin)?);
            }
            Next::Library(brought) => self.arm(*brought, mode)?,
        }
        self.mode = mode;
        self.look_before();
        Ok(())
    }

    /// Times count from the first time on; the mode holds from now on.
    fn begin(&mut self, longest: Duration, mode: u8) {
        self.longest = self.longest.max(longest);
        if !self.began {
            self.recording.begin(longest);
        }
        self.recording.note(tag::MODE, mode, vec![0]);
    }

    fn look_before(&mut self) {
        // Of several it is not told: it is no part of what the session records.
        if !std::mem::replace(&mut self.began, true) && !self.members.are_several() && !self.from_its_beginning {
            self.recording.look_before();
        }
    }

    /// Enter, drain, make ready to patch. What stands on the target's code may stay meanwhile.
    fn bring_library(
        &mut self,
        attach: &Attach,
        mode: Mode,
        target: Box<Target>,
        plan: Plan,
        library: &[u8],
    ) -> anyhow::Result<Box<Brought>> {
        let mut entered = hound_inject::enter(&target, library, Instant::now() + PATIENCE)?;
        let ring = match self.drain(attach, mode, &entered) {
            Ok(ring) => ring,
            Err(error) => {
                back_out(self.pid, entered);
                return Err(error);
            }
        };
        if let Err(error) = self.begin_family(attach, mode, &mut entered, &ring) {
            let _ = self.recording.undrain(); // nothing was recorded there
            back_out(self.pid, entered);
            return Err(error.context("its children cannot be recorded"));
        }
        self.holder.look(self.pid);
        match entered.stage(&plan, Instant::now() + PATIENCE) {
            Ok(staged) => Ok(Box::new(Brought { entered, ring, target, plan, staged })),
            Err(error) => {
                let _ = self.recording.undrain(); // nothing was recorded there
                back_out(self.pid, entered);
                Err(error.into())
            }
        }
    }

    /// Has the target know where its children find hound, if they are to.
    fn begin_family(&mut self, attach: &Attach, mode: Mode, entered: &mut Entered, ring: &Arc<Ring>) -> anyhow::Result<()> {
        let Some(door) = self.door.take() else {
            return if entered.is_fresh() { Ok(()) } else { entered.tell_of_family(None, None).map_err(Into::into) };
        };
        ring.control().member.store(1, Ordering::Relaxed);
        let family = Family::start(door, making(attach, mode), true, self.members.clone(), Arc::clone(ring), &self.recording)?;
        self.recording.switch_also(family.rings());
        let told = family.tell_first(entered);
        self.family = Some(family);
        if !told? {
            eprintln!(
                "hound: process {} does not see hound's library: of what it begins, only processes that are forked and stay what they are can be \
                 recorded",
                self.pid
            );
        }
        Ok(())
    }

    /// Patch, and switch on.
    fn arm(&mut self, brought: Brought, mode: Mode) -> anyhow::Result<()> {
        let Brought { mut entered, ring, target, plan, staged } = brought;
        let patched = match entered.patch_staged(staged, Instant::now() + PATIENCE) {
            Ok(patched) => patched,
            Err(error) => {
                let _ = self.recording.undrain(); // nothing was recorded there
                back_out(self.pid, entered);
                return Err(error.into());
            }
        };
        let longest = entered.stalls().iter().copied().max().unwrap_or_default().max(patched.stall);
        // Before the switch: no event may be older than the mode it was recorded in.
        self.begin(longest, if mode == Mode::Full { MODE_FULL } else { MODE_SAMPLED });
        moment();
        ring.control().change(true);
        moment();
        let (entries, threads) = (patched.entries, patched.threads);
        self.hold = Hold::Library(Box::new(Library { entered, ring, target, plan, entries, threads }));
        Ok(())
    }

    fn drain(&mut self, attach: &Attach, mode: Mode, entered: &Entered) -> anyhow::Result<Arc<Ring>> {
        moment();
        let ring = reaching::take_ring(entered, &making(attach, mode))?;
        moment();
        ring.prefault();
        let ring = Arc::new(ring);
        self.recording.name_modules(files::module_paths(self.pid, ring.control()));
        self.recording.drain(Arc::clone(&ring), !entered.is_fresh()).context("cannot start recording")?;
        Ok(ring)
    }

    /// Goes over to another mode. On failure recording goes on as it was, or is off: [`Inside::mode`] tells.
    pub(super) fn switch(&mut self, attach: &Attach, to: Mode) -> anyhow::Result<()> {
        if self.mode == to {
            bail!("it is in that mode already");
        }
        let by_library = to == Mode::Full || to == Mode::Sampled && attach.engine == Engine::Library;
        if attach.children && !by_library && to != Mode::Off {
            bail!(
                "it is recorded with the processes that it begins, each by a library of its own; full, sampled (with --engine library) and off they can do"
            );
        }
        if let (Hold::Library(library), true) = (&self.hold, by_library || attach.children) {
            // One word of each ring, which every thread sees at its next event.
            self.recording.stop_counting();
            let control = library.ring.control();
            if to == Mode::Off {
                // The code stays as it is, in the children, too: it passes through.
                control.change(false);
                self.recording.switch_others(None);
                self.recording.note(tag::MODE, MODE_OFF, vec![0]);
            } else {
                control.interval.store(interval(attach, to), Ordering::Relaxed);
                self.recording.note(tag::MODE, if to == Mode::Full { MODE_FULL } else { MODE_SAMPLED }, vec![0]);
                control.change(true);
                self.recording.switch_others(Some(interval(attach, to)));
            }
            self.mode = to;
            return Ok(());
        }
        // What takes time comes first, while it is still recorded: what can be refused is refused with nothing changed.
        let way = Way::beside(attach, &self.members.pids(), to, self.costs, &self.hold)?;
        let (covered, not_covered) = (way.covered(), way.not_covered());
        let next = self.approach(attach, way, to)?;
        let from = self.mode;
        let leaving = match self.let_go() {
            Ok(leaving) => leaving,
            Err(error) => {
                self.forget(next);
                return Err(error);
            }
        };
        let taken = self.take_hold(next, to);
        let left = self.complete(leaving);
        match taken {
            Ok(()) => {
                self.recording.covers(covered, not_covered);
                left
            }
            Err(error) if from == Mode::Off => Err(error),
            Err(error) => match self.go_back(attach, from) {
                Ok(()) => Err(error),
                Err(_) => {
                    self.recording.note(tag::MODE, MODE_OFF, vec![0]);
                    Err(error.context("nor in the mode before"))
                }
            },
        }
    }

    /// Records in this mode again; nothing is held so far.
    fn go_back(&mut self, attach: &Attach, mode: Mode) -> anyhow::Result<()> {
        let way = Way::beside(attach, &self.members.pids(), mode, self.costs, &Hold::Nothing)?;
        self.enter(attach, way, mode)
    }

    /// Out again of what was never taken hold of.
    fn forget(&mut self, next: Next) {
        if let Next::Library(brought) = next {
            let _ = self.recording.undrain(); // nothing was recorded there
            back_out(self.pid, brought.entered);
        }
    }

    /// The target is as without hound when this returns, and another hold can be taken of it. What it told before is still on its way.
    fn let_go(&mut self) -> anyhow::Result<Leaving> {
        let leaving = match std::mem::replace(&mut self.hold, Hold::Nothing) {
            Hold::Nothing => Leaving::Nothing,
            Hold::Kernel(sampling) => {
                sampling.lift();
                self.recording.note(tag::MODE, MODE_OFF, vec![0]);
                sampling.wait_until_bare();
                Leaving::Kernel(sampling)
            }
            Hold::Library(library) => {
                library.ring.control().change(false);
                self.recording.note(tag::MODE, MODE_OFF, vec![0]);
                self.recording.stop_counting();
                let Library { entered, ring, target, plan, entries, threads } = *library;
                let (entered, restored) = leave::restore(entered);
                match restored {
                    Ok(stall) => self.longest = self.longest.max(stall),
                    Err(hound_inject::Error::Gone) => {}
                    Err(error) => {
                        self.hold = Hold::Library(Box::new(Library { entered, ring, target, plan, entries, threads }));
                        self.mode = Mode::Off;
                        return Err(anyhow::Error::from(error).context("its code could not be restored"));
                    }
                }
                Leaving::Library { entered: Box::new(entered), ring }
            }
        };
        self.mode = Mode::Off;
        Ok(leaving)
    }

    /// Records what was still on its way.
    fn complete(&mut self, leaving: Leaving) -> anyhow::Result<()> {
        match leaving {
            Leaving::Nothing => {}
            Leaving::Kernel(sampling) => {
                let progress = sampling.stop();
                eprintln!("hound: {progress}");
                self.recording.covers(progress.covered, progress.missed);
            }
            Leaving::Library { entered, ring } => {
                let (entered, lost) = leave::last_events(*entered);
                leave::count_unfinished(&ring, lost);
                drop(entered);
                self.recording.undrain().context("cannot read what was recorded last")?;
            }
        }
        Ok(())
    }
}

/// How the rings are made.
fn making(attach: &Attach, mode: Mode) -> Making {
    Making {
        options: options(attach),
        clock: clock::choose(),
        max_wait_ms: MAX_WAIT_MS,
        interval: interval(attach, mode),
        patience_ms: if attach.started { BELIEF_OF_STARTED_MS } else { BELIEF_MS },
    }
}

fn interval(attach: &Attach, mode: Mode) -> u64 {
    if mode == Mode::Sampled { attach.interval } else { 0 }
}

/// Takes out what was brought in. Where that fails, the library stays, asleep, and the next attach uses it or takes it out.
fn back_out(pid: u32, entered: Entered) {
    match entered.unload(Instant::now() + PATIENCE) {
        Ok(()) | Err(hound_inject::Error::Gone) => {}
        Err(error) => eprintln!(
            "hound: what was brought into process {pid} stays there, asleep: {error}; `hound detach -p {pid} --unload` tries again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_one_line_a_module() {
        let of = |family: &str, module: &str| Covered { module: module.into(), family: family.into(), functions: Vec::new() };
        let found = [
            of("glibc", "/lib/libc.so.6"),
            of("glibc: mappings", "/lib/libc.so.6"),
            of("glibc: exec", "/lib/libc.so.6"),
            of("unwinder", "/lib/libgcc_s.so.1"),
            of("glibc: filters", "/lib/libc.so.6"),
            of("jemalloc (_rjem_)", "/bin/app"),
            of("pool 1", "/bin/app"),
            of("musl: mappings", "/lib/ld-musl.so.1"),
        ];
        let lines = ["glibc with mappings in /lib/libc.so.6", "jemalloc (_rjem_) in /bin/app", "musl: mappings in /lib/ld-musl.so.1"];
        assert_eq!(covered(&found), lines);
    }
}
