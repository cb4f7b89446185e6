//! What goes on while a target is recorded: waits for whatever ends it, and answers who asks.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;

pub use super::answers::Reply;
use super::answers::{Act, Answers};
use super::attach::{Attach, Mode};
use super::inside::{Hold, Inside};
use super::keys::{Key, Keys};
use super::launch;
use super::members::Members;
use super::processes::{self, ProcessFd};
use super::signals::{self, Signals};
use super::status::StatusLine;
use super::talk::Answer;

/// How often a target is looked at for having replaced itself by exec: nothing tells of that by itself.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const STATUS_EVERY: Duration = Duration::from_millis(500);
/// Events are counted as they are stored, which happens about once a second: shorter stretches would show all of them, or none.
const RATES_EVERY: Duration = Duration::from_secs(2);
const FILES_EVERY: Duration = Duration::from_secs(1);
/// How long the first mode lasts where others follow and the whole is not given.
pub const FIRST_LASTS: Duration = Duration::from_secs(30);
/// Why a recording ends.
#[derive(Debug)]
pub enum Why {
    /// It was asked to: by a signal, the time set, or `hound detach`.
    Asked {
        /// Take the library out, too.
        unload: bool,
        /// Who wants to hear when it is done.
        answer: Option<Reply>,
    },
    /// It is to go on in another mode: somebody has asked, or it was planned.
    Switch {
        /// Which.
        to: Mode,
        /// Who wants to hear when it is done.
        answer: Option<Reply>,
    },
    /// The target has ended.
    Ended,
    /// It has replaced itself by another program.
    Replaced,
}

/// Watches a session.
#[derive(Debug)]
pub struct Watch {
    pid: u32,
    process: AsyncFd<ProcessFd>,
    signals: Signals,
    answers: Answers,
    line: StatusLine,
    keys: Keys,
    end: Option<Duration>,
    /// Modes to come, and when each begins.
    plan: VecDeque<(Duration, Mode)>,
    image: Option<u64>,
    /// May be several.
    members: Members,
    /// See [`Attach::started`].
    started: bool,
    quiet: bool,
    max_capture: Option<u64>,
    /// Out-of-memory kills in the target's control group when it was attached to.
    pub kills_before: Option<u64>,
}

impl Watch {
    /// Starts watching.
    #[expect(unsafe_code, reason = "registers the process's descriptor with the event loop")]
    pub fn new(attach: &Attach, process: ProcessFd, signals: Signals, answers: Answers, members: Members) -> anyhow::Result<Self> {
        // SAFETY: the descriptor belongs to `process`, which gives out no other and closes it only when it is dropped with the watch.
        let process = unsafe { AsyncFd::register(process) };
        Ok(Watch {
            pid: attach.pid,
            process: process.context("cannot watch the process")?,
            signals,
            answers,
            line: StatusLine::new(attach.quiet),
            // What is typed is a started program's.
            keys: Keys::listen(!attach.quiet && !attach.started),
            end: plan_end(attach),
            plan: plan_of(attach),
            image: processes::image(attach.pid),
            members,
            started: attach.started,
            quiet: attach.quiet && attach.started,
            max_capture: attach.max_capture,
            kills_before: super::cost::memory_kills(attach.pid),
        })
    }

    /// When recording began.
    pub fn started(&self) -> Instant {
        self.answers.started()
    }

    /// Whether nothing is to be said but what is wrong.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether hound has started the target: how it ended is then told by hound's own status.
    pub fn is_of_started(&self) -> bool {
        self.started
    }

    /// The target.
    pub fn process(&self) -> &ProcessFd {
        self.process.get_ref()
    }

    /// The mode from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.answers.set_mode(mode.name());
    }

    /// Waits for a reason to end, or to go on in another way.
    pub async fn until_the_end(&mut self, inside: &mut Inside) -> Why {
        let end = self.end.map(|duration| tokio::time::Instant::from_std(self.started() + duration));
        let next = self.plan.front().map(|(at, to)| (tokio::time::Instant::from_std(self.started() + *at), *to));
        let far = tokio::time::Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let mut sizes = every(launch::LOOK_FOR_SIZE);
        let (mut looks, mut draws, mut files, mut rates) = (every(LOOK_EVERY), every(STATUS_EVERY), every(FILES_EVERY), every(RATES_EVERY));
        let mut first_has_ended = false;
        let why = loop {
            tokio::select! {
                _ = self.process.readable(), if !first_has_ended && (self.started || !self.members.are_several() || inside.family.is_some()) => {
                    let Some(family) = &inside.family else { break Why::Ended };
                    // What it began goes on.
                    first_has_ended = true;
                    family.first_ended(self.pid);
                    let alive = family.alive();
                    if alive > 0 && !self.quiet {
                        self.line.clear();
                        let they = if alive == 1 { "1 process that it began is".into() } else { format!("{alive} processes that it began are") };
                        eprintln!("hound: process {} has ended; {they} still recorded, to the end or Ctrl-C", self.pid);
                    }
                }
                signal = self.signals.next() => match signal {
                    signal if self.started && !first_has_ended => signals::pass_on(self.pid, signal),
                    Signal::SIGTSTP => {
                        self.line.clear();
                        eprintln!("hound: not stopped: a hound that stands still ends the recording; Ctrl-C detaches");
                    }
                    signal if signals::is_to_leave(signal) => break Why::Asked { unload: false, answer: None },
                    _ => {}
                },
                () = tokio::time::sleep_until(end.unwrap_or(far)), if end.is_some() => break Why::Asked { unload: false, answer: None },
                () = tokio::time::sleep_until(next.map_or(far, |(at, _)| at)), if next.is_some() => {
                    self.plan.pop_front();
                    break Why::Switch { to: next.map_or(Mode::Off, |(_, to)| to), answer: None };
                }
                asked = self.answers.next() => match self.answers.answer(asked, &inside.recording, inside.longest) {
                    Some(Act::Leave(leave)) => break Why::Asked { unload: leave.unload, answer: Some(leave.answer) },
                    // Who changes the mode by hand has another plan.
                    Some(Act::Switch { to, answer }) => {
                        self.plan.clear();
                        break Why::Switch { to, answer: Some(answer) };
                    }
                    None => {}
                },
                key = self.keys.next() => {
                    // Who changes the mode by hand has another plan.
                    self.plan.clear();
                    break match key {
                        Key::Quit => Why::Asked { unload: false, answer: None },
                        Key::Mode(to) => Why::Switch { to, answer: None },
                    };
                },
                _ = looks.tick() => match self.members.are_several() {
                    true if self.members.are_over() && inside.family.as_ref().is_none_or(|family| family.alive() == 0) => break Why::Ended,
                    false if self.is_replaced(&inside.hold) => break Why::Replaced,
                    _ => {}
                },
                _ = files.tick() => if inside.holder.look(self.pid) {
                    // Now: the target may end by itself, and cannot be looked at then.
                    inside.missed = inside.appeared();
                },
                _ = sizes.tick(), if self.max_capture.is_some() => {
                    if let Some(at) = self.max_capture.filter(|at| inside.recording.progress.bytes.load(Ordering::Relaxed) >= *at) {
                        self.line.clear();
                        eprintln!("hound: {}", launch::full(at));
                        break Why::Asked { unload: false, answer: None };
                    }
                },
                _ = rates.tick() => self.answers.cost.measure(&inside.recording),
                _ = draws.tick() => {
                    self.keys.look();
                    let hint = if self.started { "ends with the program".into() } else { self.keys.hint(inside.mode()) };
                    self.line.set_hint(hint);
                    match &inside.hold {
                        Hold::Kernel(sampling) => self.line.draw_sampled(&sampling.progress(), &inside.recording),
                        Hold::Library(_) => self.line.draw_attached(&inside.recording, &self.answers.cost),
                        Hold::Nothing => self.line.draw_off(&inside.recording),
                    }
                },
            }
        };
        self.line.clear();
        why
    }

    /// Whether the process has ended, or is another program by now.
    pub fn is_first_gone(&self) -> bool {
        self.process().is_over() || processes::image(self.pid) != self.image
    }

    /// Whether there is another program in the process by now. A process that ends has no image any more, and is no replaced one.
    fn is_replaced(&self, hold: &Hold) -> bool {
        if matches!(hold, Hold::Kernel(sampling) if sampling.progress().replaced) {
            return true;
        }
        let now = processes::image(self.pid);
        self.image.is_some() && now.is_some() && now != self.image
    }

    /// Waits for work on another thread, and meanwhile tells the impatient that it will be done.
    pub async fn patiently<T: Send + 'static>(&mut self, what: &str, work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let mut done = tokio::task::spawn_blocking(work);
        loop {
            tokio::select! {
                result = &mut done => return result.with_context(|| format!("{what} failed")),
                signal = self.signals.next() => if self.started {
                    signals::pass_on(self.pid, signal);
                } else if matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGQUIT) {
                    eprintln!("hound: still {what}; it ends by itself in a moment, and the target is safe");
                },
                asked = self.answers.next() => {
                    let why = format!("the recording of process {} is ending: {what}", self.pid);
                    let _ = asked.answer.send(Answer::Failed { why }); // who asked may be gone
                },
            }
        }
    }
}

/// When the recording ends: when its last mode does.
fn plan_end(attach: &Attach) -> Option<Duration> {
    if attach.then.is_empty() { attach.duration } else { Some(first_lasts(attach) + after_first(attach)) }
}

fn after_first(attach: &Attach) -> Duration {
    attach.then.iter().map(|(_, lasts)| *lasts).sum()
}

/// How long the first mode lasts, where others follow: what they leave of the whole, if that is given.
fn first_lasts(attach: &Attach) -> Duration {
    attach.duration.map_or(FIRST_LASTS, |whole| whole.saturating_sub(after_first(attach)))
}

/// When each of the modes that follow begins.
fn plan_of(attach: &Attach) -> VecDeque<(Duration, Mode)> {
    let mut at = first_lasts(attach);
    let begins = |(mode, lasts): &(Mode, Duration)| {
        let begins = at;
        at += *lasts;
        (begins, *mode)
    };
    attach.then.iter().map(begins).collect()
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
