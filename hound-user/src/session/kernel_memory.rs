//! `hound attach --kernel`: what the kernel has allocated and not released, of one process' making or of all.
//!
//! Nothing of any process is touched: programs of hound's at the kernel's own tracepoints say what is allocated and released. The capture
//! is as of a process, with kernel stacks.

mod engine;
mod places;
mod price;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hound_common::event::{END_DETACH, END_EXIT, END_SIGNAL, MODE_FULL, MODE_OFF, MODE_SAMPLED, tag};
use hound_common::kernel::{
    KERNEL_CACHE, KERNEL_KMALLOC, KERNEL_PAGES, KERNEL_PERCPU, KMEM_ALLOC_HITS, KMEM_BUSY, KMEM_COUNTERS, KMEM_FREE_HITS, KMEM_LIVE_FULL,
    KMEM_LOST_ALLOCS, KMEM_NO_STACK, KMEM_OTHERS,
};

use super::answers::{Act, Answers, Reply, requests};
use super::attach::{Attached, Glance};
use super::kernel::{KernelMemory, KernelMemoryOptions};
use super::processes::{self, Ended, ProcessFd};
use super::recording::{Recording, Start};
use super::sampler::Ticks;
use super::signals::{self, Signals};
use super::status::StatusLine;
use super::streams::Streams;
use super::talk::{Answer, Occupied, Talk, kernel_session, must_not_be_held, own_folder};
use super::{clock, glances, launch, output};
use crate::capture::{CaptureWriter, End, SessionInfo};
use crate::symbols::{Files, KernelImage};
use engine::{Engine, State};
use places::Places;
use price::Price;

/// As the session record calls it.
pub const MODE: &str = "kernel";

/// A kind of kernel memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Memory {
    /// Blocks of the general allocator.
    Kmalloc,
    /// Objects of slab caches of their own (inodes, sockets, tasks, …).
    Slab,
    /// Memory of which each processor has its own.
    Percpu,
    /// Whole pages, those of processes and of the page cache among them.
    Pages,
}

impl Memory {
    /// All kinds.
    pub const ALL: [Memory; 4] = [Memory::Kmalloc, Memory::Slab, Memory::Percpu, Memory::Pages];

    fn number(self) -> u32 {
        match self {
            Memory::Kmalloc => KERNEL_KMALLOC,
            Memory::Slab => KERNEL_CACHE,
            Memory::Percpu => KERNEL_PERCPU,
            Memory::Pages => KERNEL_PAGES,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Memory::Kmalloc => "kmalloc",
            Memory::Slab => "slab caches",
            Memory::Percpu => "per-CPU memory",
            Memory::Pages => "pages",
        }
    }
}

/// What to record, and how.
#[derive(Clone, Debug)]
pub struct KernelAttach {
    /// Only what this process' threads allocate; releases count whoever makes them.
    pub pid: Option<u32>,
    /// Kinds of memory.
    pub memory: Vec<Memory>,
    /// Mean bytes between samples; 0: every allocation.
    pub interval: u64,
    /// Most blocks followed at once.
    pub live_entries: u32,
    /// End after so long.
    pub duration: Option<Duration>,
    /// Where the capture goes; may hold placeholders.
    pub output: Option<OsString>,
    /// Look at the growing capture so often.
    pub every: Option<Duration>,
    /// No status line.
    pub quiet: bool,
}

/// How it goes, or went.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Time passed, in seconds.
    pub seconds: f64,
    /// `KMEM_…` of the programs.
    pub counters: [u64; KMEM_COUNTERS as usize],
    /// What the programs have cost, in seconds of a core, by what one run costs here.
    pub cost: f64,
    /// Allocations recorded.
    pub samples: u64,
    /// Releases recorded.
    pub releases: u64,
    /// Blocks that ended unseen: their addresses were handed out again.
    pub reused: u64,
    /// Samples that are pages for slabs and per-CPU memory: what is cut from them counts instead.
    pub stock: u64,
    /// Samples that an interrupt made while the process ran.
    pub interrupts: u64,
    /// Releases that a full ring has swallowed, and that were found out afterwards.
    pub releases_lost: u64,
    /// Runs of the programs that the kernel has left out.
    pub left_out: u64,
    /// Why it has ended by itself.
    pub failed: Option<String>,
}

impl Progress {
    /// Allocations and releases seen.
    pub fn hits(&self) -> u64 {
        self.count(KMEM_ALLOC_HITS) + self.count(KMEM_OTHERS) + self.count(KMEM_FREE_HITS)
    }

    /// In a few words, while it goes on.
    pub fn short(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        let lost = self.count(KMEM_LOST_ALLOCS) + self.count(KMEM_LIVE_FULL) + self.count(KMEM_BUSY) + self.left_out;
        let lost = if lost == 0 { "nothing lost".to_owned() } else { format!("{lost} LOST") };
        let (rate, cost) = (self.hits() as f64 / seconds / 1e3, 100.0 * self.cost / seconds);
        format!("{rate:.1} k allocations and releases/s, cost {cost:.2} % of a core, {} recorded, {lost}", self.samples)
    }

    fn count(&self, which: u32) -> u64 {
        self.counters[which as usize]
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds.max(1e-9);
        let (allocations, releases) = (self.count(KMEM_ALLOC_HITS) + self.count(KMEM_OTHERS), self.count(KMEM_FREE_HITS));
        let rate = self.hits() as f64 / seconds;
        write!(f, "{allocations} allocations and {releases} releases seen, {rate:.0} a second, which has cost some ")?;
        write!(f, "{:.2} % of a core; {} recorded", 100.0 * self.cost / seconds, self.samples)?;
        let also = [
            (self.stock, "were pages that slabs and per-CPU memory are cut from, which count instead"),
            (self.interrupts, "were made by interrupts, not by the process"),
            (self.reused, "ended unseen: their addresses were handed out again"),
            (self.count(KMEM_NO_STACK), "have no stack"),
        ];
        also.iter().filter(|(number, _)| *number > 0).try_for_each(|(number, what)| write!(f, ", {number} {what}"))?;
        let lost = [
            (self.count(KMEM_LOST_ALLOCS), "the ring was full"),
            (self.count(KMEM_LIVE_FULL), "the table of live blocks was full"),
            (self.count(KMEM_BUSY), "the table was locked"),
            (self.left_out, "interrupts came while hound's own program ran there"),
        ];
        let lost: Vec<String> =
            lost.iter().filter(|(number, _)| *number > 0).map(|(number, why)| format!("{number} because {why}")).collect();
        if lost.is_empty() { write!(f, "; nothing lost") } else { write!(f, "; LOST {}", lost.join(", ")) }
    }
}

/// Records until there is a reason to end.
///
/// # Errors
/// When the kernel does not let hound, or the capture cannot be written. Nothing is left in the kernel then.
pub fn attach(attach: &KernelAttach, glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<Attached> {
    let started = Instant::now();
    must_be_in_the_first_namespace()?;
    let key = kernel_session(attach.pid);
    must_not_be_held(key)?;
    let (asked, requests) = requests();
    let talk = match Talk::open(&own_folder(), key, asked) {
        Err(error) if error.is::<Occupied>() => return Err(error),
        Err(error) => {
            eprintln!("hound: {error:#}; `hound status` and `hound detach --kernel` will not find this session");
            None
        }
        Ok(talk) => Some(talk),
    };
    let whom = attach.pid.map_or_else(|| "the whole host".to_owned(), |pid| format!("process {pid}"));
    let process = attach.pid.map(|pid| ProcessFd::open(pid).with_context(|| format!("cannot watch process {pid}"))).transpose()?;
    let options = KernelMemoryOptions {
        pid: attach.pid,
        hound: std::process::id(),
        interval: attach.interval,
        live_entries: attach.live_entries,
        processors: possible_processors(),
        ..KernelMemoryOptions::default()
    };
    let kinds: Vec<u32> = attach.memory.iter().map(|memory| memory.number()).collect();
    let mut programs = KernelMemory::load(&options)?;
    let price = price::watch_and_measure(&mut programs, &kinds, &options)?;
    let image = KernelImage::read();
    if image.is_hidden {
        eprintln!(
            "hound: the kernel hides its addresses from hound: stacks will have no names, and pages that slabs are cut from count, too; \
             run it as root or with CAP_SYSLOG, and see that kernel.kptr_restrict is not 2 (sysctl kernel.kptr_restrict=1)"
        );
    }
    let session = session(attach);
    let template = attach.output.clone().unwrap_or_else(|| output::DEFAULT_OUTPUT.into());
    let path = output::expand(&template, &OsString::from("kernel"), attach.pid.unwrap_or(0), output::now());
    let path = std::path::absolute(&path).unwrap_or(path);
    let writer = CaptureWriter::create(&path, &session)
        .with_context(|| format!("cannot write '{}'; choose another place with -o FILE", path.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let result = runtime.block_on(async {
        let signals = Signals::catch_to_leave().context("cannot catch signals")?;
        let recording = begin(attach, writer, &session, &path, &image)?;
        programs.set(&options)?;
        let running = Running::start(programs, image, price, &recording, attach.pid.is_some())?;
        let [allocation, other] = [price.allocation, price.other].map(|seconds| seconds * 1e9);
        eprintln!(
            "hound: recording the kernel's memory ({whom}) after {} ms; {allocation:.0} ns for each allocation looked at, {other:.0} ns for \
             others and releases",
            started.elapsed().as_millis()
        );
        let glances = attach.every.map(|every| glances::start(every, &recording, Files::default(), glance)).transpose()?;
        talk.iter().for_each(Talk::ready);
        let answers = Answers::new(attach.pid.unwrap_or(0), MODE, requests);
        let answer = until_the_end(process.as_ref(), signals, attach, answers, &running, &recording).await;
        if let Some(glances) = glances {
            glances.stop();
        }
        let attached = end(running, recording, process.as_ref(), &whom, started.elapsed())?;
        if let Some(answer) = answer {
            let _ = answer.send(Answer::Done { capture: attached.output.clone() }); // who asked may be gone
        }
        Ok(attached)
    });
    signals::let_go();
    drop(talk);
    result
}

/// The programs see processes by the numbers of the machine's first namespace.
fn must_be_in_the_first_namespace() -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    /// `PROC_PID_INIT_INO`
    const FIRST: u64 = 0xEFFF_FFFC;
    match std::fs::metadata("/proc/self/ns/pid") {
        Ok(meta) if meta.ino() != FIRST => {
            bail!("hound runs in a container (a PID namespace): kernel memory is recorded from the host, by the host's process numbers")
        }
        _ => Ok(()),
    }
}

/// Per-CPU memory is there once for each processor that could ever be plugged in.
fn possible_processors() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(number(last)?.checked_sub(number(first)?)? + 1),
        None => number(part).map(|_| 1),
    };
    text.split(',').filter_map(range).sum::<u32>().max(1)
}

fn session(attach: &KernelAttach) -> SessionInfo {
    let command = match attach.pid {
        Some(pid) => processes::command_line(pid).iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        None => vec!["the kernel".to_owned()],
    };
    SessionInfo {
        command,
        pid: attach.pid.unwrap_or(0),
        mode: MODE.into(),
        options: launch::sampling_option(attach.interval).into_iter().collect(),
        covered: attach.memory.iter().map(|memory| memory.words().to_owned()).collect(),
        ..launch::here(clock::kind(clock::choose()))
    }
}

fn begin(
    attach: &KernelAttach,
    writer: CaptureWriter,
    session: &SessionInfo,
    path: &Path,
    image: &KernelImage,
) -> anyhow::Result<Recording> {
    let (session, path, pid) = (session.clone(), path.to_owned(), session.pid);
    let start = Start { writer, session, path, pid, count_live: false, maps: false, cull: None, rotate: None };
    let mut recording = Recording::start(start).context("cannot start recording")?;
    recording.begin(Duration::ZERO);
    recording.note(tag::MODE, if attach.interval == 0 { MODE_FULL } else { MODE_SAMPLED }, vec![0]);
    image.modules.iter().for_each(|module| recording.note(tag::MODULE, 0, super::target::module_words(module)));
    Ok(recording)
}

/// The thread that reads and records.
struct Running {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    progress: Arc<Mutex<Progress>>,
}

impl Running {
    fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn start(programs: KernelMemory, image: KernelImage, price: Price, recording: &Recording, of_a_process: bool) -> std::io::Result<Self> {
        let session = recording.session();
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Progress::default())));
        let before = programs.counters().unwrap_or_default();
        let (streams, ticks) = (Streams::new(recording.numbers()), Ticks::new(session.clock, session.ticks_per_second));
        let (orders, rounds, lost) = (recording.orders(), recording.sources().add(), recording.count_lost());
        let (clock, stopped, shown) = (session.clock, Arc::clone(&stop), Arc::clone(&progress));
        let body = move || {
            // Made here: names cannot be handed from thread to thread.
            let (places, state) = (Places::new(&image), State::from(before));
            let (stop, progress) = (stopped, shown);
            Engine { programs, streams, ticks, places, price, orders, rounds, lost, clock, of_a_process, stop, progress, state }.run();
        };
        let thread = std::thread::Builder::new().name("hound-kernel".into()).spawn(body)?;
        Ok(Running { thread, stop, progress })
    }

    fn stop(self) -> Progress {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let panicked = self.thread.join().is_err();
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if panicked {
            progress.failed = Some("the recording thread panicked".into());
        }
        progress
    }
}

/// How often a process is looked at for having ended, beside the kernel's telling.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const STATUS_EVERY: Duration = Duration::from_millis(500);

/// Waits for a signal, the time set, the process' end, or `hound detach`: who asked for that.
async fn until_the_end(
    process: Option<&ProcessFd>,
    mut signals: Signals,
    attach: &KernelAttach,
    mut answers: Answers,
    running: &Running,
    recording: &Recording,
) -> Option<Reply> {
    let far = Duration::from_secs(365 * 24 * 3600);
    let end = tokio::time::sleep(attach.duration.unwrap_or(far));
    let (mut looks, mut draws) = (tokio::time::interval(LOOK_EVERY), tokio::time::interval(STATUS_EVERY));
    let mut line = StatusLine::new(attach.quiet);
    tokio::pin!(end);
    let answer = loop {
        tokio::select! {
            signal = signals.next() => if signals::is_to_leave(signal) {
                break None;
            },
            () = &mut end => break None,
            _ = looks.tick() => if process.is_some_and(ProcessFd::is_over) {
                break None;
            },
            asked = answers.next() => match answers.answer(asked, recording, Duration::ZERO) {
                Some(Act::Leave(leave)) => break Some(leave.answer),
                Some(Act::Switch { answer, .. }) => {
                    let why = "a recording of the kernel's memory has no modes: end it by `hound detach --kernel`, and begin another".into();
                    let _ = answer.send(Answer::Failed { why }); // who asked may be gone
                }
                None => {}
            },
            _ = draws.tick(), if line.is_enabled() => line.draw_kernel(&running.progress(), recording),
        }
    };
    line.clear();
    answer
}

/// After its end the kernel still gives back what it held for a process.
const AFTERMATH: Duration = Duration::from_millis(300);

fn end(running: Running, recording: Recording, process: Option<&ProcessFd>, whom: &str, wall: Duration) -> anyhow::Result<Attached> {
    let target_wall_ns = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
    let mut end = End { reason: END_DETACH, target_wall_ns, ..End::default() };
    if let Some(process) = process.filter(|process| process.is_over()) {
        std::thread::sleep(AFTERMATH);
        (end.reason, end.value) = match process.ended() {
            Ended::Exit(status) => (END_EXIT, u64::from(status)),
            Ended::Signal(signal) => (END_SIGNAL, u64::from(signal)),
            Ended::Unknown => (0, 0),
        };
    }
    let progress = running.stop();
    recording.note(tag::MODE, MODE_OFF, vec![0]);
    eprintln!("hound: recorded the kernel's memory ({whom}): {progress}");
    let mut warnings: Vec<String> = progress.failed.iter().map(|why| format!("recording has ended early: {why}")).collect();
    let output: PathBuf = recording.path().to_owned();
    let written = recording.finish(end).with_context(|| format!("cannot complete '{}'", output.display()))?;
    if written.lost_on_disk > 0 {
        warnings.push(format!("the capture is not complete: {} events could not be written; make room on the disk", written.lost_on_disk));
    } else if written.allocations == Some(0) {
        warnings.push("nothing was recorded: no allocation was sampled; --interval 0 takes every one".to_owned());
    }
    Ok(Attached { output, warnings, not_left: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_and_left_out_is_told_with_its_reason() {
        let mut progress = Progress { seconds: 2.0, cost: 0.1, samples: 3, ..Progress::default() };
        (progress.counters[KMEM_ALLOC_HITS as usize], progress.counters[KMEM_FREE_HITS as usize]) = (30, 10);
        let said = progress.to_string();
        assert!(said.contains("30 allocations and 10 releases seen, 20 a second") && said.contains("5.00 % of a core"), "{said}");
        assert!(said.ends_with("3 recorded; nothing lost"), "{said}");
        progress.counters[KMEM_LOST_ALLOCS as usize] = 7;
        (progress.left_out, progress.stock) = (2, 4);
        let said = progress.to_string();
        assert!(said.contains("LOST 7 because the ring was full, 2 because interrupts came"), "{said}");
        assert!(said.contains("4 were pages that slabs"), "{said}");
    }

    #[test]
    fn there_is_a_processor() {
        assert!(possible_processors() >= 1);
    }
}
