//! Sampling a target from the kernel: probes are set and taken out as the budget says, what they tell is read, unwound and recorded.
//!
//! One thread does it all. While a window is open whose length is promised nothing is read, so that it closes in time; the ring holds what
//! comes meanwhile.

mod plan;
mod progress;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hound_common::event::{LOST_BUDGET, LOST_NO_MEMORY, LOST_RING_FULL, LOST_UNFINISHED, tag};
use hound_common::kernel::{
    COUNT_ALLOC_HITS, COUNT_FAULTS, COUNT_FREE_HITS, COUNT_LIVE_FULL, COUNT_LOST_CALLS, COUNT_LOST_FAULTS, COUNT_LOST_MAPPED,
    COUNT_LOST_OUTCOMES, COUNT_LOST_RELEASES, COUNT_PENDING_FULL, COUNT_SAMPLES, COUNT_TOO_MANY_MAPPED,
};
use hound_inject::{Beneath, Covered, CustomHook, NotCovered, ProbeSite};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use super::budget::Interval;
use super::budget::{Budget, Period, Planner, Seen};
use super::calibrate;
use super::crew::Crew;
use super::doubts::Which;
use super::kernel::{Closing, Counters, KernelError, LoadOptions, Programs, Settings};
use super::members::Members;
use super::pace::Pace;
use super::pipeline::{Order, Orders};
use super::recording::Recording;
use super::sampler::Ticks;
use super::target::{Plans, Prepared, Shared};
use crate::capture::Clock;
pub use plan::{Costs, Plan};
pub use progress::Progress;

/// How often what the probes tell is read while they stay.
const READ_EVERY: Duration = Duration::from_millis(10);
/// How often what else is told is read between windows. Where target and clients keep all processors busy, each time displaces one of them.
const READ_BETWEEN: Duration = Duration::from_millis(50);
/// Times a backlog is read on before anything else is looked after.
const ROUNDS: usize = 64;
/// Longest wait for breakpoints to go: in a target with many threads and mappings the kernel takes milliseconds.
const LIFTED_WITHIN: Duration = Duration::from_secs(1);
/// How often modules, clocks and losses are looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often blocks that have just come into doubt are looked at.
const DOUBT_EVERY: Duration = Duration::from_millis(100);

/// Sampling under way.
pub struct Sampling {
    plans: Plans,
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    /// Hears when the probes are being taken out for good.
    out: Receiver<()>,
    progress: Arc<Mutex<Progress>>,
    /// Nothing: no allocations are sampled.
    functions: Option<usize>,
    costs: Costs,
}

impl std::fmt::Debug for Sampling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampling").field("functions", &self.functions).field("costs", &self.costs).finish_non_exhaustive()
    }
}

/// Ready to be started: everything is loaded and nothing is probed.
pub struct Ready {
    programs: Programs,
    targets: Vec<Prepared>,
    plan: Plan,
    hooks: Vec<CustomHook>,
    costs: Costs,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("plan", &self.plan).field("costs", &self.costs).finish_non_exhaustive()
    }
}

impl Ready {
    /// Loads the programs for these processes. `hooks`: functions of pools. `more`: others may come.
    ///
    /// # Errors
    /// When the kernel does not let hound.
    pub fn of(targets: Vec<Prepared>, hooks: &[CustomHook], plan: Plan, costs: Option<Costs>, more: bool) -> anyhow::Result<Self> {
        let mut programs = Programs::load(&LoadOptions::default())?;
        programs.must_know_tasks()?;
        let several = more || targets.len() > 1;
        let costs = match costs {
            _ if !plan.allocations => Costs { hit: 0.0, sample: 0.0, opening: 0.0, filtered: false },
            Some(costs) if costs.filtered || !targets.iter().any(Prepared::is_filtered) => costs,
            _ if targets.iter().any(Prepared::is_filtered) => calibrate::costs(&mut programs, plan.stack_bytes, true, several)?,
            // Where that cannot be, those that come with a filter are refused, and not these.
            _ if more => calibrate::costs(&mut programs, plan.stack_bytes, true, several)
                .or_else(|_| calibrate::costs(&mut programs, plan.stack_bytes, false, several))?,
            _ => calibrate::costs(&mut programs, plan.stack_bytes, false, several)?,
        };
        // Where faults cannot be had, starting says so.
        if programs.make_ready(plan.faults.is_some()).is_err() {
            programs.make_ready(false)?;
        }
        Ok(Ready { programs, targets, plan, hooks: hooks.to_vec(), costs })
    }

    /// Does all of it that needs rights, and no target. Returns what probes cost here.
    ///
    /// # Errors
    /// As [`Ready::of`].
    pub fn try_out() -> anyhow::Result<Costs> {
        let mut programs = Programs::load(&LoadOptions::default())?;
        let stack_bytes = programs.settings().stack_bytes;
        let costs = calibrate::costs(&mut programs, stack_bytes, false, false)?;
        programs.must_know_tasks()?;
        programs.make_ready(false)?;
        Ok(costs)
    }

    /// What probes cost here.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// Whom of.
    pub fn pids(&self) -> Vec<u32> {
        self.targets.iter().map(|target| target.pid).collect()
    }

    /// What will be sampled.
    pub fn covered(&self) -> Vec<Covered> {
        let of = |site: &ProbeSite| Covered { module: site.module.clone(), family: site.family.clone(), functions: Vec::new() };
        let mut covered: Vec<Covered> = self.sites().filter(|site| !site.throws).map(of).collect();
        covered.dedup_by(|a, b| (&a.module, &a.family) == (&b.module, &b.family));
        covered
    }

    fn sites(&self) -> impl Iterator<Item = &ProbeSite> {
        self.targets.iter().flat_map(Prepared::sites)
    }

    /// What allocates and will not be seen.
    pub fn not_covered(&self) -> Vec<NotCovered> {
        // While a return probe waits for a call the kernel stands in its return address' place: an exception that passes there ends the
        // program. Calls that fail for their size are nearly always sampled, so that would happen.
        let throws = |site: &ProbeSite| NotCovered {
            module: site.module.clone(),
            what: site.function.clone(),
            why: "it may throw, which no probe of its return would survive; --engine library samples it".into(),
        };
        let throwing = self.sites().filter(|site| site.throws).map(throws);
        let plans = self.targets.iter().filter_map(|target| target.probes.as_ref());
        plans.flat_map(|plan| plan.not_covered().iter().cloned()).chain(throwing).collect()
    }

    /// Begins to sample into a recording. `members`: the processes of the session, these among them. `begin` is told since when, in the
    /// recording's ticks: nothing was recorded before.
    ///
    /// # Errors
    /// When the first probes cannot be set.
    pub fn start(self, members: Members, recording: &Recording, begin: impl FnOnce(u64)) -> anyhow::Result<Sampling> {
        let Ready { mut programs, targets, plan, hooks, costs } = self;
        let session = recording.session();
        let probed = |target: &Prepared| target.sites().filter(|site| !site.throws).count();
        let functions = plan.allocations.then(|| targets.iter().map(probed).sum());
        let counted = programs.counters()?.get(COUNT_FAULTS);
        let pace = plan.faults.map(|interval| Pace::new(interval, Instant::now(), counted));
        let settings = Settings { stack_bytes: plan.stack_bytes, faults: pace.as_ref().map(Pace::interval), ..programs.settings() };
        let pace = match programs.set(settings) {
            Err(error) if plan.allocations => {
                eprintln!("hound: page faults are not sampled: {error}");
                programs.set(Settings { faults: None, ..settings })?;
                None
            }
            set => set.map(|()| pace)?,
        };
        programs.set(Settings { mapped: plan.mapped(), ..programs.settings() })?;
        // Without this, modules are looked for once a second. It costs other processes, too: not where nobody wants to know.
        if plan.maps
            && let Err(error) = programs.watch_mappings()
        {
            eprintln!("hound: mappings are not recorded, and what is loaded later is noticed late: {error}");
        }
        let clock = session.clock;
        let ticks = Ticks::new(clock, session.ticks_per_second);
        let shared = Shared { orders: recording.orders(), numbers: recording.numbers(), clock, ticks };
        let budget = Budget { share: plan.budget, hit: costs.hit, sample: costs.sample, opening: costs.opening };
        // The seed: windows must not fall in step with anything of the target's.
        let seed = now_ns() ^ u64::from(std::process::id()) << 32;
        let progress = Arc::new(Mutex::new(Progress::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (lifted, out) = sync_channel(1);
        let follows = members.follow.any();
        let mut crew = Crew::new(members, shared, hooks, plan, costs);
        targets.into_iter().for_each(|prepared| crew.add(prepared));
        let plans = crew.plans();
        let mut engine = Engine {
            programs,
            plan,
            crew,
            observed: None,
            closing: Vec::new(),
            planner: Planner::new(budget, plan.interval, seed),
            pace,
            orders: recording.orders(),
            rounds: recording.sources().add(),
            lost: recording.count_lost(),
            lost_before: [0; LOSSES.len()],
            clock,
            looked: Instant::now(),
            doubted: Instant::now(),
            stop: Arc::clone(&stop),
            lifted,
            progress: Arc::clone(&progress),
            totals: Progress::default(),
        };
        // Without a limit all is observed from here on, and whoever is told so may rely on it.
        if plan.budget.is_infinite() && plan.allocations {
            let period = engine.planner.next();
            engine.observe(&period)?;
        }
        let since = engine.observed.unwrap_or_else(|| engine.now()).ticks;
        engine.crew.watch(&mut engine.programs)?;
        begin(since);
        engine.show();
        // What was forked before the kernel told of forks is looked for at once.
        engine.looked = engine.looked.checked_sub(LOOK_EVERY).filter(|_| follows).unwrap_or(engine.looked);
        let thread = std::thread::Builder::new().name("hound-sample".into()).spawn(move || engine.run())?;
        Ok(Sampling { plans, thread, stop, out, progress, functions, costs })
    }
}

impl Sampling {
    /// How it goes.
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Functions probed; nothing if only page faults are sampled.
    pub fn functions(&self) -> Option<usize> {
        self.functions
    }

    /// What probes cost here.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// What is beneath the probes: for plans that are made while they may be there.
    pub fn beneath(&self) -> Beneath {
        // One process only is patched.
        self.plans.beneath().into_values().next().unwrap_or_default()
    }

    /// Begins to take the probes out for good: what happens from here on is not recorded. What did before is, until [`Sampling::stop`].
    pub fn lift(&self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // An engine that has ended has lifted its probes.
        let _ = self.out.recv();
    }

    /// Waits, after [`Sampling::lift`], until no breakpoint is in the text: the kernel is there long before it lets hound know that it is
    /// done. Whoever patches looks again.
    pub fn wait_until_bare(&self) {
        let deadline = Instant::now() + LIFTED_WITHIN;
        for (pid, beneath) in self.plans.beneath() {
            while Instant::now() < deadline && matches!(beneath.is_bare(number(pid)), Ok(false)) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Takes the probes out, records what is still to be read, and ends.
    pub fn stop(self) -> Progress {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            self.progress.lock().unwrap_or_else(PoisonError::into_inner).failed = Some("the sampling thread panicked".into());
        }
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.clone()
    }
}

/// What can be lost on the way, and how a capture says it.
const LOSSES: [(u32, u8); 8] = [
    (COUNT_LOST_FAULTS, LOST_RING_FULL),
    (COUNT_LOST_CALLS, LOST_RING_FULL),
    (COUNT_LOST_OUTCOMES, LOST_RING_FULL),
    (COUNT_LOST_RELEASES, LOST_RING_FULL),
    (COUNT_LOST_MAPPED, LOST_RING_FULL),
    (COUNT_TOO_MANY_MAPPED, LOST_BUDGET),
    (COUNT_LIVE_FULL, LOST_NO_MEMORY),
    (COUNT_PENDING_FULL, LOST_NO_MEMORY),
];

struct Engine {
    programs: Programs,
    plan: Plan,
    crew: Crew,
    /// While probes are there: until when a window is noted, or since when there is none yet.
    observed: Option<Moment>,
    closing: Vec<Closing>,
    planner: Planner,
    pace: Option<Pace>,
    orders: Orders,
    rounds: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    lost_before: [u64; LOSSES.len()],
    clock: Clock,
    looked: Instant,
    doubted: Instant,
    stop: Arc<AtomicBool>,
    lifted: SyncSender<()>,
    progress: Arc<Mutex<Progress>>,
    totals: Progress,
}

/// A moment as the kernel has it, and in the capture's ticks. It is turned into those once: the clocks are compared now and then, and what
/// comes of it later may be another tick, which would lie before the mode began or the last window closed.
#[derive(Clone, Copy, Debug)]
struct Moment {
    ns: u64,
    ticks: u64,
}

/// CLOCK_MONOTONIC.
fn now_ns() -> u64 {
    super::clock::ticks(Clock::Monotonic)
}

impl Engine {
    fn run(mut self) {
        // What was observed before this thread ran is noted, though the target may have ended meanwhile.
        while !self.is_over() || self.observed.is_some() && self.totals.windows == 0 {
            let done = if self.plan.allocations { self.period() } else { self.faults_only() };
            if let Err(error) = done {
                if !matches!(error, KernelError::NoProcess(_)) {
                    self.close();
                    self.totals.failed = Some(error.to_string());
                }
                break;
            }
        }
        // What lives now lives at the end of the recording, as far as anybody knows.
        self.lift();
        self.crew.retire();
        let _ = self.lifted.send(()); // nobody may wait
        while self.read() > 0 {}
        for closing in self.closing.drain(..) {
            closing.wait();
        }
        // Else a target that touches memory faster than hound reads would keep it here.
        self.crew.unwatch(&mut self.programs);
        while self.read() > 0 {}
        self.look_after();
        let unfinished = self.crew.figures().unfinished;
        if unfinished > 0 {
            self.note(tag::LOST, LOST_UNFINISHED, vec![unfinished]);
        }
        self.show();
    }

    fn now(&self) -> Moment {
        let ns = now_ns();
        Moment { ns, ticks: self.crew.ticks_at(ns) }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sets the probes for this period's window, if they are not there.
    fn observe(&mut self, period: &Period) -> Result<(), KernelError> {
        self.totals.interval = period.interval;
        self.programs.set(Settings {
            interval: period.interval,
            stack_bytes: self.plan.stack_bytes,
            free_stacks: self.plan.free_stacks,
            ..self.programs.settings()
        })?;
        if self.observed.is_none() {
            self.planner.opens_in(self.crew.len());
            self.crew.open(&mut self.programs)?;
            let opened = self.now();
            self.crew.opened(opened.ns);
            self.observed = Some(opened);
        }
        Ok(())
    }

    /// One period with its window.
    fn period(&mut self) -> Result<(), KernelError> {
        let period = self.planner.next();
        let mut began = self.now();
        if !period.is_whole() {
            self.close();
            self.pass_until(began.ns + nanoseconds(period.opens));
            if self.is_over() {
                return Ok(());
            }
        }
        self.observe(&period)?;
        // Windows that follow each other have no gap between them.
        let opened = self.observed.unwrap_or_else(|| self.now());
        if period.is_whole() {
            began = opened;
        }
        let before = self.counters()?;
        let seen = self.window(&period, opened.ns, &before)?;
        let closed = self.now();
        self.observed = Some(closed);
        if !period.is_whole() {
            self.close();
            self.pass_until(began.ns + nanoseconds(period.length));
        }
        let ended = if period.is_whole() { closed } else { self.now() };
        let words = [opened, closed, began, ended].map(|moment| moment.ticks).to_vec();
        self.note(tag::WINDOW, 0, words);
        let lasted = ended.ns.saturating_sub(began.ns) as f64 / 1e9;
        self.planner.learn(&period, lasted, &seen);
        self.totals.windows += 1;
        self.totals.observed += seen.seconds;
        self.totals.passed += lasted;
        self.totals.cost += self.planner.cost(&seen);
        self.totals.hits += seen.hits;
        self.show();
        Ok(())
    }

    /// Waits so long, or until the ring has filled by a quarter: a target that is watched at every call fills it in milliseconds.
    fn wait_for_more(&self, longest: Duration) {
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::ZERO);
        // Where it fails the ring is read at once.
        let _ = poll(&mut [PollFd::new(self.programs.as_fd(), PollFlags::POLLIN)], timeout);
    }

    /// Some time in which only page faults are looked at.
    fn faults_only(&mut self) -> Result<(), KernelError> {
        self.round();
        self.wait_for_more(self.crew.pause(READ_EVERY));
        Ok(())
    }

    /// Looks at page faults as closely as their number allows.
    fn keep_pace(&mut self) {
        let (Some(pace), Ok(counters)) = (&mut self.pace, self.programs.counters()) else { return };
        let faults = counters.get(COUNT_FAULTS);
        self.totals.faults.1 = faults;
        if let Some(interval) = pace.counted(Instant::now(), faults) {
            // Refused: it stays as it was, and each sample says by which it was drawn.
            let _ = self.programs.set(Settings { faults: Some(interval), ..self.programs.settings() });
        }
    }

    /// Waits for the window's end.
    fn window(&mut self, period: &Period, opened: u64, before: &Counters) -> Result<Seen, KernelError> {
        let end = opened + nanoseconds(period.window);
        loop {
            let now = now_ns();
            let seen = seen(before, &self.counters()?, now.saturating_sub(opened));
            if now >= end || self.is_over() || self.planner.is_too_much(period, &seen) {
                return Ok(seen);
            }
            if period.is_whole() {
                self.round();
            }
            let left = Duration::from_nanos(end - now);
            if period.is_whole() {
                self.wait_for_more(left.min(self.crew.pause(READ_EVERY)));
            } else {
                std::thread::park_timeout(left);
            }
        }
    }

    /// Reads and records until then.
    fn pass_until(&mut self, then: u64) {
        loop {
            self.round();
            let now = now_ns();
            if now >= then || self.is_over() {
                return;
            }
            self.wait_for_more(Duration::from_nanos(then - now).min(self.crew.pause(READ_BETWEEN)));
        }
    }

    fn round(&mut self) {
        // As long as there is a backlog, for a while.
        for _ in 0..ROUNDS {
            if self.read() == 0 || self.is_over() {
                break;
            }
        }
        self.keep_pace();
        self.crew.look_for_arrivals(&mut self.programs);
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            self.look_after();
        } else if self.doubted.elapsed() >= DOUBT_EVERY {
            self.doubted = Instant::now();
            self.crew.resolve_doubts(Which::Young, &mut self.programs);
        }
        // Release: the round's parcels are on their way. Pairs with a flusher's acquire.
        self.rounds.fetch_add(1, Ordering::Release);
    }

    /// Takes the probes out. What was sampled and lives is not watched from here on.
    fn close(&mut self) {
        self.take_out();
        self.crew.unwatched();
    }

    fn take_out(&mut self) {
        if self.lift() {
            while self.read() > 0 {}
        }
    }

    /// Whether there were probes.
    fn lift(&mut self) -> bool {
        let Some(observed) = self.observed.take() else { return false };
        self.crew.closed(observed.ns);
        self.closing.retain(|closing| !closing.is_done());
        self.closing.extend(self.crew.take_out());
        true
    }

    /// Reads what has come, and sees to processes that come and go.
    fn read(&mut self) -> usize {
        let read = self.crew.read(&mut self.programs);
        let is_open = self.observed.is_some();
        self.closing.extend(self.crew.come_and_go(&mut self.programs, is_open));
        read
    }

    /// What is to be done now and then: new modules with their allocators, the clocks, losses.
    fn look_after(&mut self) {
        self.doubted = Instant::now();
        self.crew.look_after(&mut self.programs);
        if let Ok(counters) = self.counters() {
            if self.pace.is_some() {
                self.totals.faults.1 = counters.get(COUNT_FAULTS);
            }
            for (at, (which, reason)) in LOSSES.iter().enumerate() {
                let now = counters.get(*which);
                let fresh = now.saturating_sub(self.lost_before[at]);
                self.lost_before[at] = now;
                if fresh > 0 {
                    self.lost.fetch_add(fresh, Ordering::Relaxed);
                    self.totals.lost += fresh;
                    self.note(tag::LOST, *reason, vec![fresh]);
                }
            }
        }
        for remark in self.programs.remarks() {
            eprintln!("hound: {remark}");
        }
        self.show();
    }

    fn counters(&self) -> Result<Counters, KernelError> {
        self.programs.counters()
    }

    fn note(&self, tag: u8, a: u8, words: Vec<u64>) {
        self.orders.send(Order::Note { ticks: super::clock::ticks(self.clock), tag, a, words });
    }

    fn show(&mut self) {
        let figures = self.crew.figures();
        self.totals.processes = self.crew.processes();
        self.totals.killed_for_memory |= self.crew.is_killed_for_memory();
        self.totals.replaced |= self.crew.is_replaced();
        let found = self.crew.found();
        self.totals.covered.extend(found.covered);
        self.totals.missed.extend(found.missed);
        (self.totals.samples, self.totals.faults.0) = (figures.samples, figures.faults);
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = self.totals.clone();
    }
}

fn seen(before: &Counters, now: &Counters, ns: u64) -> Seen {
    let since = |which: u32| now.get(which).saturating_sub(before.get(which));
    Seen { seconds: ns as f64 / 1e9, hits: since(COUNT_ALLOC_HITS) + since(COUNT_FREE_HITS), samples: since(COUNT_SAMPLES) }
}

/// The same as `hound_inject` has it; it came from there.
fn number(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(i32::MAX)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
