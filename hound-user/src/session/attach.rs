//! `hound attach`: into a running target, and out again.
//!
//! The order is such that whatever fails, fails before the target records: look, plan, open the output, enter, drain, patch, arm. What was
//! begun is undone then.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use hound_common::event::{END_DETACH, MODE_FULL, tag};
use hound_common::ring::{OPTION_DROP, OPTION_FREE_STACKS, OPTION_MAPS, OPTION_SHADOW_STACK};
use hound_inject::{Covered, CustomHook, Entered, NotCovered, Plan, Refusal, State, Target, moment};

use super::answers::{Answers, requests};
use super::before::glance as glance_before;
use super::files::Holder;
use super::processes::{self, ProcessFd};
use super::recording::{Recording, Start};
use super::ring::Ring;
use super::signals::{self, Signals};
use super::talk::{Occupied, Talk, must_not_be_held, own_folder};
use super::watch::{Watch, Why};
use super::{clock, files, launch, leave, output, pools};
use crate::capture::{CaptureWriter, End, SessionInfo};
use crate::symbols::Files;

/// What to attach to, and how to record it.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The target.
    pub pid: u32,
    /// Detach after so long.
    pub duration: Option<Duration>,
    /// Where the capture goes; may hold placeholders.
    pub output: Option<OsString>,
    /// Functions of custom pools.
    pub hooks: Vec<CustomHook>,
    /// Record where blocks are freed.
    pub free_stacks: bool,
    /// Record mmap, munmap and mremap.
    pub maps: bool,
    /// Reuse verified frames. Off only for debugging.
    pub shadow_stack: bool,
    /// Drop events instead of making the target wait when hound cannot keep up.
    pub drop_on_overload: bool,
    /// Look at the growing capture so often.
    pub every: Option<Duration>,
    /// At the end, take the library out of the target.
    pub unload: bool,
    /// No status line.
    pub quiet: bool,
}

/// A look at a capture that is still being recorded.
#[derive(Clone, Debug)]
pub struct Glance {
    /// The capture.
    pub capture: PathBuf,
    /// So many bytes of it are whole.
    pub bytes: u64,
    /// Where the target's files are.
    pub files: Files,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The capture.
    pub output: PathBuf,
    /// What the user should know beside the report.
    pub warnings: Vec<String>,
    /// The target could not be left as it was found: why, and what to do.
    pub not_left: Option<String>,
}

/// Longest time to get in, and to patch. A target in which no thread can be borrowed for so long is not one to wait for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Then the user is told what hound waits for.
const NOTICE_AFTER: Duration = Duration::from_millis(1500);
/// Longest a thread is made to wait for ring space in all.
const MAX_WAIT_MS: u32 = 60_000;
/// A target that was attached to gives hound up after so long without a sign of life.
const BELIEF_MS: u32 = 250;

/// Attaches, records until there is a reason to end, and detaches. `glance` is called on a thread of its own, as often as asked for.
///
/// # Errors
/// Refusals, and failures before the target recorded: nothing is left in it then.
pub fn attach(attach: &Attach, glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<Attached> {
    let started = Instant::now();
    let (asked, requests) = requests();
    // First: who records it already is the best reason not to.
    must_not_be_held(attach.pid)?;
    let talk = match Talk::open(&own_folder(), attach.pid, asked) {
        Err(error) if error.is::<Occupied>() => return Err(error),
        // A session that cannot be spoken to is better than none: signals and --duration end it, too.
        Err(error) => {
            eprintln!("hound: {error:#}; `hound status`, `snapshot`, `mark` and `detach` will not find this session");
            None
        }
        Ok(talk) => Some(talk),
    };
    let number = i32::try_from(attach.pid).context("that is no process id")?;
    let target = hound_inject::look(number).with_context(|| format!("cannot attach to process {number}"))?;
    let process = ProcessFd::open(attach.pid).context("cannot watch the process")?;
    refuse_the_recorded(number).with_context(|| format!("cannot attach to process {number}"))?;
    let plan = Plan::of(&target, &attach.hooks).with_context(|| format!("cannot attach to process {number}"))?;
    let library = launch::library()?;
    let library = std::fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
    let ring_clock = clock::choose();
    let session = session(attach, &plan, clock::kind(ring_clock));
    let path = path(attach, &session);
    let writer = CaptureWriter::create(&path, &session)
        .with_context(|| format!("cannot write '{}'; choose another place with -o FILE", path.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let result = runtime.block_on(async {
        // Before anything changes: from here on nothing that is sent to hound ends it half-way.
        let signals = Signals::catch_to_leave().context("cannot catch signals")?;
        let into = Into { attach, target: &target, plan: &plan, library: &library, session: &session, ring_clock };
        let notice = notice(attach.pid);
        let inside = into.enter(writer, &path).inspect_err(|_| {
            let _ = std::fs::remove_file(&path); // it holds nothing
        })?;
        drop(notice);
        talk.iter().for_each(Talk::ready);
        let at = started.elapsed();
        eprintln!("hound: attached to {} in {} ms: {inside}", attach.pid, at.as_millis());
        let appeared = || missed(&plan.appeared(&target).unwrap_or_default());
        record(attach, inside, process, signals, Answers::new(attach.pid, "full", requests), glance, appeared).await
    });
    signals::let_go();
    drop(talk);
    result
}

/// As the capture lists it.
fn missed(list: &[NotCovered]) -> Vec<String> {
    list.iter().map(|not| format!("{} in {}: {}", not.what, not.module, not.why)).collect()
}

/// What another hound records has a better reason to be refused than what comes of looking at its patched code.
fn refuse_the_recorded(pid: i32) -> Result<(), hound_inject::Error> {
    let Some(left) = hound_inject::find(pid)? else { return Ok(()) };
    match left.state() {
        State::Armed { drainer } if left.is_drained()? => Err(Refusal::Occupied { by: drainer }.into()),
        _ => Ok(()),
    }
}

/// Says so where getting in takes long. Until dropped.
fn notice(pid: u32) -> Sender<()> {
    let (done, told) = channel::<()>();
    let body = move || {
        if told.recv_timeout(NOTICE_AFTER) == Err(RecvTimeoutError::Timeout) {
            let limit = 2 * PATIENCE.as_secs();
            eprintln!(
                "hound: still waiting for a moment to get into process {pid}; gives up after {limit} s, Ctrl-C leaves as soon as it can"
            );
        }
    };
    // Without a thread for it nothing is said.
    let _ = std::thread::Builder::new().name("hound-notice".into()).spawn(body);
    done
}

fn session(attach: &Attach, plan: &Plan, clock: crate::capture::Clock) -> SessionInfo {
    let switches = [(!attach.shadow_stack, "no-shadow-stack"), (!attach.maps, "no-maps"), (attach.drop_on_overload, "on-overload=drop")];
    let command = processes::command_line(attach.pid);
    SessionInfo {
        command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        pid: attach.pid,
        mode: "full".into(),
        options: switches.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned()).collect(),
        free_stacks: attach.free_stacks,
        before: glance_before(attach.pid),
        covered: covered(plan.covered()),
        pools: pools::of(&attach.hooks),
        not_covered: missed(plan.not_covered()),
        ..launch::here(clock)
    }
}

/// One line a module: `glibc (mappings) in /lib/libc.so.6`.
fn covered(found: &[Covered]) -> Vec<String> {
    let mut modules: Vec<(&str, Vec<String>)> = Vec::new();
    // What is watched for other reasons than memory is of no interest, and pools are told apart.
    let of_interest = |family: &str| family != "unwinder" && !family.ends_with(": exec") && !family.starts_with("pool ");
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

fn path(attach: &Attach, session: &SessionInfo) -> PathBuf {
    let template = attach.output.clone().unwrap_or_else(|| output::DEFAULT_OUTPUT.into());
    let program = output::program_name(Path::new(session.command.first().map_or("program", String::as_str)));
    let path = output::expand(&template, &program, attach.pid, output::now());
    // Others ask for it from other folders.
    std::path::absolute(&path).unwrap_or(path)
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

/// What is needed to get in.
struct Into<'a> {
    attach: &'a Attach,
    target: &'a Target,
    plan: &'a Plan,
    library: &'a [u8],
    session: &'a SessionInfo,
    ring_clock: u32,
}

impl Into<'_> {
    /// Enter, drain, patch, arm. On failure the target is as it was found.
    fn enter(&self, writer: CaptureWriter, path: &Path) -> anyhow::Result<Inside> {
        let pid = self.attach.pid;
        let cannot = || format!("cannot attach to process {pid}");
        let entered = hound_inject::enter(self.target, self.library, Instant::now() + PATIENCE).with_context(cannot)?;
        let recording = match self.drain(&entered, writer, path) {
            Ok(recording) => recording,
            Err(error) => {
                back_out(pid, entered);
                return Err(error.context(cannot()));
            }
        };
        let mut inside =
            Inside { entered, recording, longest: Duration::ZERO, entries: 0, threads: 0, holder: Holder::default(), missed: Vec::new() };
        inside.holder.look(pid);
        inside.recording.set_files(files::of_target(pid, inside.holder.held()));
        match inside.entered.patch(self.plan, Instant::now() + PATIENCE) {
            Ok(patched) => {
                (inside.entries, inside.threads) = (patched.entries, patched.threads);
                inside.longest = inside.entered.stalls().iter().copied().max().unwrap_or_default().max(patched.stall);
            }
            Err(error) => {
                let Inside { entered, recording, .. } = inside;
                let _ = recording.finish(End { reason: END_DETACH, ..End::default() });
                back_out(pid, entered);
                return Err(anyhow::Error::from(error).context(cannot()));
            }
        }
        inside.recording.begin(inside.longest);
        // Before the switch: no event may be older than the mode it was recorded in.
        inside.recording.note(tag::MODE, MODE_FULL, vec![0]);
        moment();
        inside.recording.ring().control().change(true);
        moment();
        inside.recording.look_before();
        Ok(inside)
    }

    fn drain(&self, entered: &Entered, writer: CaptureWriter, path: &Path) -> anyhow::Result<Recording> {
        let ring = Ring::adopt(entered.ring().as_fd().try_clone_to_owned()?)
            .context("cannot map the shared memory; hound needs 161 MiB of address space for it (see `ulimit -v`)")?;
        let control = ring.control();
        moment();
        control.options.store(options(self.attach), Ordering::Relaxed);
        control.clock.store(self.ring_clock, Ordering::Relaxed);
        control.max_wait_ms.store(MAX_WAIT_MS, Ordering::Relaxed);
        control.patience_ms.store(BELIEF_MS, Ordering::Relaxed);
        control.bow_out.store(0, Ordering::Relaxed);
        control.drainer.store(std::process::id(), Ordering::Release);
        moment();
        ring.prefault();
        let (session, path) = (self.session.clone(), path.to_owned());
        let pid = self.attach.pid;
        let module_paths = files::module_paths(pid, ring.control());
        let used = !entered.is_fresh();
        let start = Start { ring: Arc::new(ring), writer, session, path, pid, used, count_live: true, module_paths };
        Recording::start(start).context("cannot start recording")
    }
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

/// hound inside a target, recording.
#[derive(Debug)]
pub struct Inside {
    /// The hold on the target.
    pub entered: Entered,
    /// The recording.
    pub recording: Recording,
    /// The longest that the target has stood still.
    pub longest: Duration,
    entries: usize,
    threads: usize,
    /// The target's files.
    pub holder: Holder,
    /// What allocates there since, and is not recorded.
    pub missed: Vec<String>,
}

impl std::fmt::Display for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let longest = self.longest.as_secs_f64() * 1e3;
        write!(f, "{} functions, {} threads, longest stall {longest:.1} ms", self.entries, self.threads)?;
        let again = if self.entered.is_fresh() { "" } else { "; the library was there already" };
        f.write_str(again)
    }
}

/// Records until there is a reason to end, and ends it.
async fn record(
    attach: &Attach,
    mut inside: Inside,
    process: ProcessFd,
    signals: Signals,
    answers: Answers,
    glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
    appeared: impl Fn() -> Vec<String>,
) -> anyhow::Result<Attached> {
    let mut watch = Watch::new(attach, process, signals, answers)?;
    let glances = attach.every.map(|every| super::glances::start(every, &inside, glance)).transpose()?;
    let why = watch.until_the_end(&mut inside, &appeared).await;
    // Nothing is printed between the lines that follow.
    if let Some(glances) = glances {
        glances.stop();
    }
    match why {
        Why::Asked { unload, answer } => {
            inside.missed = appeared();
            leave::detach(attach.pid, inside, watch, unload || attach.unload, answer).await
        }
        Why::Ended => leave::ended(attach.pid, inside, watch, false).await,
        Why::Replaced => leave::ended(attach.pid, inside, watch, true).await,
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
            of("jemalloc (_rjem_)", "/bin/app"),
            of("pool 1", "/bin/app"),
            of("musl: mappings", "/lib/ld-musl.so.1"),
        ];
        let lines = ["glibc with mappings in /lib/libc.so.6", "jemalloc (_rjem_) in /bin/app", "musl: mappings in /lib/ld-musl.so.1"];
        assert_eq!(covered(&found), lines);
    }
}
