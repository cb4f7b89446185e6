//! `hound attach`: into a running target, and out again.
//!
//! The order is such that whatever fails, fails before the target records: look, plan, open the output, enter, drain, patch, arm. What was
//! begun is undone then.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use hound_inject::CustomHook;
use serde::{Deserialize, Serialize};

use super::answers::{Answers, requests};
use super::before::glance as glance_before;
use super::family::{Door, Family};
use super::inside::{Inside, PATIENCE, Way};
use super::members::{Follow, Members};
use super::processes::{self, ProcessFd};
use super::recording::{Recording, Start};
use super::rotate::Rotate;
use super::server::Serve;
use super::signals::{self, Signals};
use super::talk::{Answer, Occupied, Talk, must_not_be_held, own_folder};
use super::watch::{Reply, Watch, Why};
use super::{clock, files, launch, leave, output, pools, sampling};
use crate::capture::{CaptureWriter, Cull, End, STARTED, SessionInfo};
use crate::symbols::{Files, OtherFiles};

/// What to attach to, and how to record it.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The target; of several, the first.
    pub pid: u32,
    /// Others, in the same session.
    pub others: Vec<u32>,
    /// Whether `pid` and `others` were asked for by their numbers or name. Else they are in the control group by chance.
    pub named: bool,
    /// Further ones.
    pub follow: Follow,
    /// The processes that the target begins, too, by the library.
    pub children: bool,
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
    /// In which mode recording begins.
    pub mode: Mode,
    /// Modes that follow, and how long each lasts; the recording ends with the last. Empty: the first mode is the only one.
    pub then: Vec<(Mode, Duration)>,
    /// Who samples.
    pub engine: Engine,
    /// How the kernel samples.
    pub sampling: sampling::Plan,
    /// How the library samples: mean bytes between samples.
    pub interval: u64,
    /// What is left out, where every allocation is recorded.
    pub cull: Option<Cull>,
    /// Record until the capture has so many bytes.
    pub max_capture: Option<u64>,
    /// The capture goes on in several files.
    pub rotate: Option<Rotate>,
    /// Reuse verified frames. Off only for debugging.
    pub shadow_stack: bool,
    /// Drop events instead of making the target wait when hound cannot keep up.
    pub drop_on_overload: bool,
    /// The growing capture is to be had over the network.
    pub serve: Option<Serve>,
    /// Look at the growing capture so often.
    pub every: Option<Duration>,
    /// At the end, take the library out of the target.
    pub unload: bool,
    /// No status line.
    pub quiet: bool,
    /// hound has started it, and it has done nothing so far: it is recorded to its end, and what is sent to hound is meant for it.
    pub started: bool,
}

impl Attach {
    /// Whether the session may be of more than one process.
    pub fn is_of_several(&self) -> bool {
        self.children || self.is_of_given()
    }

    /// Whether it is of more than one from the first.
    pub(super) fn is_of_given(&self) -> bool {
        !self.others.is_empty() || self.follow.any()
    }

    /// Whether this process was asked for by itself.
    pub fn is_named(&self, pid: u32) -> bool {
        self.named && (self.pid == pid || self.others.contains(&pid))
    }

    /// Those that there are now: the named ones, and those that follow.
    fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.pid];
        pids.extend(&self.others);
        pids.extend(self.follow.look(&pids.iter().copied().collect()));
        pids
    }
}

/// How a target is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Not at all, for a while.
    Off,
    /// Some allocations, from which all are estimated.
    Sampled,
    /// Every allocation.
    Full,
    /// Page faults alone: who touches memory first.
    Faults,
}

impl Mode {
    /// As it is typed, and as the session record calls it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Sampled => "sampled",
            Mode::Full => "full",
            Mode::Faults => "faults",
        }
    }
}

/// Who samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Probes of the kernel's: nothing is brought into the target.
    Kernel,
    /// The library in the target.
    Library,
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

/// Then the user is told what hound waits for.
const NOTICE_AFTER: Duration = Duration::from_millis(1500);

/// Attaches, records until there is a reason to end, and detaches. `glance` is called on a thread of its own, as often as asked for.
///
/// # Errors
/// Refusals, and failures before the target recorded: nothing is left in it then.
pub fn attach(attach: &Attach, glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<Attached> {
    let started = Instant::now();
    if attach.is_of_several() {
        make_room_for_files();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let result = runtime.block_on(async {
        let began = Began::by_attaching(attach, || Signals::catch_to_leave().context("cannot catch signals"))?;
        let at = started.elapsed();
        eprintln!("hound: attached to {} in {} ms: {}", began.inside.members, at.as_millis(), began.inside);
        began.record(attach, glance).await
    });
    signals::let_go();
    result
}

/// A session that records.
pub(super) struct Began {
    /// The hold on the target.
    pub inside: Inside,
    process: ProcessFd,
    signals: Signals,
    answers: Answers,
    /// Others can speak to the session as long as it is there.
    talk: Option<Talk>,
}

impl Began {
    /// Gets in. `catch` catches signals, before anything changes.
    ///
    /// # Errors
    /// As [`attach`]. The target is as it was found.
    pub fn by_attaching(attach: &Attach, catch: impl FnOnce() -> anyhow::Result<Signals>) -> anyhow::Result<Self> {
        let (asked, requests) = requests();
        // First: who records it already is the best reason not to.
        for pid in std::iter::once(&attach.pid).chain(&attach.others) {
            must_not_be_held(*pid)?;
        }
        let talk = match Talk::open(&own_folder(), attach.pid, asked) {
            Err(error) if error.is::<Occupied>() => return Err(error),
            // A session that cannot be spoken to is better than none: signals and --duration end it, too.
            Err(error) => {
                eprintln!("hound: {error:#}; `hound status`, `snapshot`, `mark` and `detach` will not find this session");
                None
            }
            Ok(talk) => Some(talk),
        };
        let cannot = || match (attach.started, attach.is_of_given()) {
            (true, _) => format!("cannot record it in {} mode", attach.mode.name()),
            (false, true) => "cannot attach to all of these processes".to_owned(),
            (false, false) => format!("cannot attach to process {}", attach.pid),
        };
        let pids = attach.pids();
        let way = Way::prepare(attach, &pids, attach.mode).with_context(cannot)?;
        let door = talk.as_ref().map(Talk::door);
        let members = Members::of_first(attach.pid, attach.is_of_several(), attach.follow.clone(), OtherFiles::default(), door);
        let members = members.context("cannot watch the process")?;
        let process = ProcessFd::open(attach.pid).context("cannot watch the process")?;
        let session = session(attach, &way, clock::kind(clock::choose()));
        let path = path(attach, &session);
        let writer = CaptureWriter::create(&path, &session)
            .with_context(|| format!("cannot write '{}'; choose another place with -o FILE", path.display()))?;
        // Before anything changes: from here on nothing that is sent to hound ends it half-way.
        let signals = catch()?;
        // One that was started waits for hound, and not the other way round.
        let notice = (!attach.started).then(|| notice(attach.pid));
        let inside = begin(attach, way, writer, session, &path, members).with_context(cannot).inspect_err(|_| {
            let _ = std::fs::remove_file(&path); // it holds nothing
        })?;
        drop(notice);
        talk.iter().for_each(Talk::ready);
        let answers = Answers::new(attach.pid, attach.mode.name(), requests);
        Ok(Began { inside, process, signals, answers, talk })
    }

    /// Records until there is a reason to end, and ends it.
    pub async fn record(
        self,
        attach: &Attach,
        glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Attached> {
        let Began { inside, process, signals, answers, talk } = self;
        let attached = record(attach, inside, process, signals, answers, glance).await;
        drop(talk);
        attached
    }
}

/// Starts the recording and gets in. On failure the target is as it was found.
fn begin(attach: &Attach, way: Way, writer: CaptureWriter, session: SessionInfo, path: &Path, members: Members) -> anyhow::Result<Inside> {
    let pid = attach.pid;
    // What the kernel samples is no whole, and not to be counted as one; what waits to be left out comes too late to be.
    let count_live = attach.mode == Mode::Full && attach.cull.is_none();
    // Reading what is resident of each mapping takes time, and the target's page tables: not where hound is to cost next to nothing.
    let maps = attach.maps && (!matches!(way, Way::Kernel(_)) || attach.sampling.maps);
    let start = Start { writer, session, path: path.to_owned(), pid, count_live, maps, cull: attach.cull, rotate: attach.rotate };
    let recording = Recording::start(start).context("cannot start recording")?;
    let mut inside = Inside::new(pid, recording, members);
    if attach.started {
        inside.has_no_before();
    }
    if attach.children {
        inside.door = Some(Door::open()?);
    }
    let joined = way.pids().into_iter().filter(|other| *other != pid).try_for_each(|other| {
        match inside.members.join_at_start(other, &inside.recording) {
            Err(error) if attach.is_named(other) => Err(error.context(format!("process {other}"))),
            // It was there a moment ago, and nobody has asked for it by itself.
            Err(_) => {
                inside.members.missed();
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    });
    match joined.and_then(|()| inside.enter(attach, way, attach.mode)) {
        Ok(()) => {
            inside.recording.serve(attach.serve, false);
            Ok(inside)
        }
        Err(error) => {
            inside.family.take().map(Family::finish);
            let _ = inside.recording.finish(End { reason: hound_common::event::END_DETACH, ..End::default() });
            Err(error)
        }
    }
}

/// Files, probes and sockets of many processes are many descriptors.
pub(super) fn make_room_for_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard); // what there is may be enough
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

fn session(attach: &Attach, way: &Way, clock: crate::capture::Clock) -> SessionInfo {
    let switches = [
        (attach.started, STARTED),
        (!attach.shadow_stack, "no-shadow-stack"),
        (!attach.maps, "no-maps"),
        (attach.drop_on_overload, "on-overload=drop"),
    ];
    let command = processes::command_line(attach.pid);
    SessionInfo {
        command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        pid: attach.pid,
        mode: attach.mode.name().into(),
        options: switches
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| (*name).to_owned())
            .chain(library_interval(attach).and_then(launch::sampling_option))
            .chain(launch::cull_option(attach.cull))
            .collect(),
        free_stacks: attach.free_stacks,
        several: attach.is_of_several(),
        before: if attach.is_of_several() || attach.started { None } else { glance_before(attach.pid) },
        covered: way.covered(),
        pools: pools::of(&attach.hooks),
        not_covered: way.not_covered(),
        ..launch::here(clock)
    }
}

/// The interval of the library, where it samples.
fn library_interval(attach: &Attach) -> Option<u64> {
    (attach.mode == Mode::Sampled && attach.engine == Engine::Library).then_some(attach.interval)
}

fn path(attach: &Attach, session: &SessionInfo) -> PathBuf {
    let template = attach.output.clone().unwrap_or_else(|| output::DEFAULT_OUTPUT.into());
    let program = output::program_name(Path::new(session.command.first().map_or("program", String::as_str)));
    let path = output::expand(&template, &program, attach.pid, output::now());
    // Others ask for it from other folders.
    std::path::absolute(&path).unwrap_or(path)
}

/// Records until there is a reason to end, and ends it.
async fn record(
    attach: &Attach,
    mut inside: Inside,
    process: ProcessFd,
    signals: Signals,
    answers: Answers,
    glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Attached> {
    let mut watch = Watch::new(attach, process, signals, answers, inside.members.clone())?;
    let glances = attach.every.map(|every| {
        let files = Files { others: inside.members.files(), ..files::of_target(attach.pid, inside.holder.held()) };
        super::glances::start(every, &inside.recording, files, glance)
    });
    let glances = glances.transpose()?;
    let why = loop {
        let (to, answer) = match watch.until_the_end(&mut inside).await {
            Why::Switch { to, answer } => (to, answer),
            why => break why,
        };
        inside = switch(attach, inside, &mut watch, to, answer).await?;
    };
    // Nothing is printed between the lines that follow.
    if let Some(glances) = glances {
        glances.stop();
    }
    match why {
        // It is another program by now, or has ended: only what it began is still recorded.
        Why::Asked { answer, .. } if inside.family.is_some() && watch.is_first_gone() => {
            let attached = leave::ended(attach.pid, inside, watch, false).await?;
            leave::tell(answer, &attached);
            Ok(attached)
        }
        Why::Asked { unload, answer } => {
            inside.missed = inside.appeared();
            leave::detach(attach.pid, inside, watch, unload || attach.unload, answer).await
        }
        Why::Replaced => leave::ended(attach.pid, inside, watch, true).await,
        Why::Ended | Why::Switch { .. } => leave::ended(attach.pid, inside, watch, false).await,
    }
}

fn recorded(attach: &Attach, inside: &Inside) -> String {
    if attach.is_of_several() { format!("{} are recorded", inside.members) } else { format!("process {} is recorded", attach.pid) }
}

/// Goes on in another mode, or in the one before if that cannot be.
async fn switch(attach: &Attach, inside: Inside, watch: &mut Watch, to: Mode, answer: Option<Reply>) -> anyhow::Result<Inside> {
    let asked = attach.clone();
    let began = Instant::now();
    let work = move || {
        let mut inside = inside;
        let result = inside.switch(&asked, to);
        (inside, result)
    };
    let (inside, result) = watch.patiently("changing the mode", work).await?;
    watch.set_mode(inside.mode());
    let capture = inside.recording.path();
    let said = match result {
        Ok(()) => {
            eprintln!("hound: {} in mode {} now, after {} ms: {inside}", recorded(attach, &inside), to.name(), began.elapsed().as_millis());
            Answer::Done { capture }
        }
        Err(error) => {
            let why = format!(
                "process {} cannot be recorded in mode {}: {error:#}; it is {} now",
                inside.members,
                to.name(),
                inside.mode().name()
            );
            eprintln!("hound: {why}");
            Answer::Failed { why }
        }
    };
    if let Some(answer) = answer {
        let _ = answer.send(said); // who asked may be gone
    }
    Ok(inside)
}
