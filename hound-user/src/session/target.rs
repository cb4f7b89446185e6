//! One of the processes that are sampled from the kernel: its probes, what is known of its blocks, and how its messages become events.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use hound_common::event::{
    LIVENESS_GONE, LIVENESS_UNKNOWN, METRIC_PROCESS_MEMORY, METRIC_PROCESS_PEAK, METRIC_PROCESS_RSS, liveness_word, tag,
};
use hound_inject::{Beneath, CustomHook, ProbePlan, ProbeSite};

use super::arrivals::{Arrivals, Found, by_module};
use super::doubts::{Doubts, Which};
use super::drain::Parcel;
use super::kernel::{Closing, KernelError, Probes, Programs, Site};
use super::pipeline::{OWN_STREAM, Order, Orders, packed};
use super::sampler::{IsInner, Place, Sampler, Ticks};
use super::sampling::Plan;
use super::stacks::{Change, Stacks};
use super::streams::{Numbers, Streams};
use super::{calibrate, clock, doctor, processes, surroundings};
use crate::capture::Clock;
use crate::capture::model::{Module, ProcessId, StreamId};

/// As [`ProbeSite::family`] has it: the allocator whose own marks [`Doubts`] can read.
const GLIBC: &str = "glibc";
/// The first kernel whose return probes go with shadow stacks.
const SHADOW_STACKS: (u32, u32) = (6, 11);

/// A process that was looked at: what to probe, and what it runs code from.
pub struct Prepared {
    /// Which.
    pub pid: u32,
    /// What tells its program from the next.
    image: Option<u64>,
    filtered: bool,
    /// Nothing: its allocations are not sampled.
    pub probes: Option<ProbePlan>,
    stacks: Stacks,
}

impl Prepared {
    /// Finds what to probe, and reads the target's modules. `hooks`: functions of pools. `patched`: this hound's patches are in the target,
    /// and will be gone before it is probed.
    ///
    /// # Errors
    /// When the target does not let hound, or would not survive it.
    pub fn of(pid: u32, hooks: &[CustomHook], plan: &Plan, patched: bool) -> anyhow::Result<Self> {
        let number = i32::try_from(pid).context("that is no process id")?;
        let of = if patched { ProbePlan::of_patched } else { ProbePlan::of };
        let image = processes::image(pid);
        let probes = if plan.allocations { Some(of(number, hooks)?) } else { None };
        Self::with(pid, image, probes, plan)
    }

    /// The same for a child that was forked from this target, and runs the same program still.
    ///
    /// # Errors
    /// When the child does not let hound, or would not survive it.
    pub fn of_fork(pid: u32, from: &Target, plan: &Plan) -> anyhow::Result<Self> {
        let image = processes::image(pid);
        let probes = from.probes.lock().unwrap_or_else(PoisonError::into_inner);
        let probes = probes.as_ref().map(|probes| probes.of_fork(pid as i32)).transpose()?;
        Self::with(pid, image, probes, plan)
    }

    fn with(pid: u32, image: Option<u64>, probes: Option<ProbePlan>, plan: &Plan) -> anyhow::Result<Self> {
        // Before, a return probe changes the return address of the stack and not the shadow stack's: the target would end there.
        if probes.is_some() && doctor::version().0 < SHADOW_STACKS && hound_inject::has_shadow_stack(pid as i32) {
            bail!(
                "the target runs with a shadow stack (CET), which return probes break before Linux 6.11: use --mode faults, or start it \
                 with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"
            );
        }
        Ok(Prepared { pid, image, filtered: calibrate::is_filtered(pid), probes, stacks: Stacks::of(pid, plan.stack_bytes)? })
    }

    /// Whether a seccomp filter watches it.
    pub fn is_filtered(&self) -> bool {
        self.filtered
    }

    /// Whether it is the program still that was looked at.
    pub fn is_current(&self) -> bool {
        self.image.is_some() && self.image == processes::image(self.pid)
    }

    /// What is to be probed.
    pub fn sites(&self) -> impl Iterator<Item = &ProbeSite> {
        self.probes.iter().flat_map(ProbePlan::sites)
    }
}

/// What targets of one session have in common.
#[derive(Debug)]
pub struct Shared {
    /// Where events go.
    pub orders: Orders,
    /// Numbers of streams.
    pub numbers: Numbers,
    /// What stamps count.
    pub clock: Clock,
    /// When the kernel's moments are.
    pub ticks: Ticks,
}

/// What is probed in a process; more may come to it. Nothing: no allocations are sampled.
type SharedPlan = Arc<Mutex<Option<ProbePlan>>>;

/// What is probed in each process, by pid. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Plans(Arc<Mutex<BTreeMap<u32, SharedPlan>>>);

impl Plans {
    /// What is beneath the probes of each process.
    pub fn beneath(&self) -> BTreeMap<u32, Beneath> {
        let plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let beneath = |plan: &SharedPlan| plan.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(ProbePlan::beneath);
        plans.iter().filter_map(|(pid, plan)| Some((*pid, beneath(plan)?))).collect()
    }

    /// One more.
    pub fn add(&self, target: &Target) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(target.pid, Arc::clone(&target.probes));
    }

    /// One less.
    pub fn remove(&self, pid: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }
}

/// A process under way.
pub struct Target {
    pid: u32,
    number: ProcessId,
    notes: StreamId,
    orders: Orders,
    clock: Clock,
    probes: SharedPlan,
    open: Vec<Probes>,
    /// What becomes of its messages.
    pub sampler: Sampler,
    doubts: Doubts,
    arrivals: Arrivals,
}

impl Target {
    /// Of a process that was looked at. Nothing is probed so far.
    pub fn new(prepared: Prepared, (number, notes): (ProcessId, StreamId), shared: &Shared, plan: &Plan) -> Self {
        let Prepared { pid, probes, stacks, .. } = prepared;
        let arrivals = Arrivals::new(probes.as_ref().map_or(0, |plan| plan.not_covered().len()));
        let probes = Arc::new(Mutex::new(probes));
        let ticks = shared.ticks.clone();
        let mut sampler = Sampler::new(stacks, Streams::new(shared.numbers.clone()), ticks, is_inner(&probes));
        let (orders, clock) = (shared.orders.clone(), shared.clock);
        if plan.maps {
            sampler.record_mappings();
        }
        let (open, doubts) = (Vec::new(), Doubts::default());
        let mut target = Target { pid, number, notes, orders, clock, probes, open, sampler, doubts, arrivals };
        target.modules();
        target
    }

    /// Whether probes are there.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Sets the probes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(&mut self, programs: &mut Programs) -> Result<(), KernelError> {
        let plan = Arc::clone(&self.probes);
        let plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
        plan.as_ref().map_or(Ok(()), |plan| self.set_from(plan, 0, programs))
    }

    /// Sets the probes of the sites from this one on.
    fn set_from(&mut self, plan: &ProbePlan, first: usize, programs: &mut Programs) -> Result<(), KernelError> {
        let site = |site: &ProbeSite| Site { file: PathBuf::from(site.path()), offset: site.offset, cookie: site.cookie };
        let sites: Vec<Site> = plan.sites()[first..].iter().filter(|site| !site.throws).map(site).collect();
        self.open.push(programs.open(self.pid, &sites)?);
        Ok(())
    }

    /// Takes the probes out.
    pub fn take_out(&mut self) -> impl Iterator<Item = Closing> {
        self.open.drain(..).map(Probes::close)
    }

    /// Its probes are gone, and all that they told was read: what was sampled and lives is not watched from here on.
    pub fn unwatched(&mut self) {
        let unwatched = self.sampler.newly_unwatched();
        if unwatched.is_empty() {
            return;
        }
        let plan = Arc::clone(&self.probes);
        let plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
        let sites = plan.as_ref().map_or(&[][..], ProbePlan::sites);
        let of_glibc: HashSet<u64> = sites.iter().filter(|site| site.family == GLIBC).map(|site| site.address).collect();
        for ((address, pool), probe) in unwatched {
            // Of how others mark their blocks nothing is known: of these the doubt stays. What lies around them would be taken for glibc's marks.
            if pool == 0 && of_glibc.contains(&probe) {
                self.doubts.add(address);
            }
            self.note(tag::LIVENESS, LIVENESS_UNKNOWN, vec![liveness_word(address, pool)]);
        }
    }

    /// Hands on what was recorded since the last time.
    pub fn hand_on(&mut self, names: &[(u32, String)], gone: &[Place]) {
        for parcel in self.sampler.streams.take() {
            let began = if let Parcel::Start { stream, .. } = parcel { Some(stream) } else { None };
            if let Some(stream) = began
                && self.number != ProcessId::FIRST
            {
                self.orders.send(Order::Whose(stream, self.number));
            }
            self.orders.send(Order::Parcel(parcel));
            if let Some(stream) = began
                && let Some(tid) = self.sampler.streams.thread(stream)
                && let Ok(name) = std::fs::read_to_string(format!("/proc/{}/task/{tid}/comm", self.pid))
            {
                self.orders.send(Order::Name(stream, name.trim_end().to_owned()));
            }
        }
        for (tid, name) in names {
            if let Some(stream) = self.sampler.streams.id(*tid) {
                self.orders.send(Order::Name(stream, name.clone()));
            }
        }
        gone.iter().for_each(|(address, pool)| self.note(tag::LIVENESS, LIVENESS_GONE, vec![liveness_word(*address, *pool)]));
        self.modules();
    }

    /// It has ended, or is another program by now: nothing more is said of it. Its last messages were read.
    pub fn end(&mut self) {
        self.sampler.all_ended();
        self.hand_on(&[], &[]);
    }

    fn modules(&mut self) {
        for (ticks, change) in self.sampler.changes() {
            let (tag, words) = match change {
                Change::Came(module) => (tag::MODULE, module_words(&module)),
                Change::Went { start, end } => (tag::MODULE_GONE, vec![start, end]),
            };
            self.orders.send(Order::NoteIn { stream: self.notes, ticks, tag, a: 0, words });
        }
    }

    /// Looks at blocks that nobody has watched all the time, and says which are gone.
    pub fn resolve_doubts(&mut self, which: Which, programs: &mut Programs) {
        let Target { sampler, doubts, .. } = self;
        for address in doubts.look(self.pid, which, |address| sampler.size_of(address)) {
            self.sampler.forget_address(address);
            programs.forget(self.pid, (address, 0));
            self.note(tag::LIVENESS, LIVENESS_GONE, vec![address]);
        }
    }

    /// How long to wait at most before [`Target::look_for_arrivals`].
    pub fn pause(&self) -> Option<Duration> {
        self.arrivals.pause()
    }

    /// Looks for allocators in what was mapped just now.
    pub fn look_for_arrivals(&mut self, programs: &mut Programs) -> Found {
        if self.sampler.code_came() {
            self.arrivals.expect();
        }
        self.arrivals.is_due().map(|complete| self.adopt(complete, programs)).unwrap_or_default()
    }

    /// Probes the allocators of modules that were not there before. `complete`: only of those that are loaded and linked as a whole.
    fn adopt(&mut self, complete: bool, programs: &mut Programs) -> Found {
        let plan = Arc::clone(&self.probes);
        let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plan) = plan.as_mut() else { return Found::default() };
        let (first, missed) = self.arrivals.look(plan, complete);
        let mut found = Found { missed, ..Found::default() };
        let Some(first) = first else { return found };
        if self.is_open()
            && let Err(error) = self.set_from(plan, first, programs)
        {
            eprintln!("hound: what was loaded just now in process {} is not sampled: {error}", self.pid);
            found.missed.extend(by_module(plan, first).into_keys().map(|what| format!("{what}: {error}")));
        } else {
            self.arrivals.tell(plan, first, &mut found);
        }
        found
    }

    /// What is to be done now and then: doubts, new modules with their allocators, the clocks, its memory.
    pub fn look_after(&mut self, programs: &mut Programs) -> Found {
        self.resolve_doubts(Which::All, programs);
        self.sampler.refresh();
        self.modules();
        let found = self.adopt(false, programs);
        // The first one's is looked at for every kind of recording.
        if self.notes != OWN_STREAM
            && let Some((rss, memory, peak)) = surroundings::process_memory(self.pid)
        {
            self.note(tag::METRIC, METRIC_PROCESS_RSS, rss.to_vec());
            self.note(tag::METRIC, METRIC_PROCESS_MEMORY, memory.to_vec());
            self.note(tag::METRIC, METRIC_PROCESS_PEAK, peak.to_vec());
        }
        found
    }

    fn note(&self, tag: u8, a: u8, words: Vec<u64>) {
        self.orders.send(Order::NoteIn { stream: self.notes, ticks: clock::ticks(self.clock), tag, a, words });
    }
}

/// Tells calls from inside an allocator.
fn is_inner(probes: &SharedPlan) -> IsInner {
    let probes = Arc::clone(probes);
    let mut known: HashMap<u64, u64> = HashMap::new();
    Box::new(move |probe: Option<(u8, u64)>, callers: &[u64]| {
        let plan = probes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plan) = plan.as_ref() else { return false };
        let Some((pool, probe)) = probe else { return callers.iter().any(|caller| plan.is_inside(*caller)) };
        if !known.contains_key(&probe) {
            known.extend(plan.sites().iter().map(|site| (site.address, site.entry)));
        }
        let entry = known.get(&probe).copied().unwrap_or(probe);
        plan.is_inner(pool, entry, callers)
    })
}

/// The words of a `MODULE` record, as the library writes it.
pub(super) fn module_words(module: &Module) -> Vec<u64> {
    let (id, path) = (&module.build_id[..module.build_id.len().min(64)], module.path.as_bytes());
    let path = &path[path.len().saturating_sub(1800)..];
    let mut words = vec![module.bias, module.start, module.end, 0, id.len() as u64 | (path.len() as u64) << 32];
    words.extend(packed(id));
    words.extend(packed(path));
    words
}
