//! What goes on while a target is recorded: waits for whatever ends it, and answers who asks.

use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;

use super::answers::Answers;
pub use super::answers::Reply;
use super::attach::{Attach, Inside};
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
    end: Option<Duration>,
    image: Option<u64>,
    /// Out-of-memory kills in the target's control group when it was attached to.
    pub kills_before: Option<u64>,
}

impl Watch {
    /// Starts watching.
    #[expect(unsafe_code, reason = "registers the process's descriptor with the event loop")]
    pub fn new(attach: &Attach, process: ProcessFd, signals: Signals, answers: Answers) -> anyhow::Result<Self> {
        // SAFETY: the descriptor belongs to `process`, which gives out no other and closes it only when it is dropped with the watch.
        let process = unsafe { AsyncFd::register(process) };
        Ok(Watch {
            pid: attach.pid,
            process: process.context("cannot watch the process")?,
            signals,
            answers,
            line: StatusLine::new(attach.quiet),
            end: attach.duration,
            image: processes::image(attach.pid),
            kills_before: super::cost::memory_kills(attach.pid),
        })
    }

    /// When recording began.
    pub fn started(&self) -> Instant {
        self.answers.started()
    }

    /// The target.
    pub fn process(&self) -> &ProcessFd {
        self.process.get_ref()
    }

    /// Waits for a reason to end. `missed` looks for allocators that have come since and are not recorded.
    pub async fn until_the_end(&mut self, inside: &mut Inside, missed: impl Fn() -> Vec<String>) -> Why {
        let end = self.end.map(|duration| tokio::time::Instant::from_std(self.started() + duration));
        let far = tokio::time::Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let (mut looks, mut draws, mut files, mut rates) = (every(LOOK_EVERY), every(STATUS_EVERY), every(FILES_EVERY), every(RATES_EVERY));
        let why = loop {
            tokio::select! {
                _ = self.process.readable() => break Why::Ended,
                signal = self.signals.next() => match signal {
                    Signal::SIGTSTP => {
                        self.line.clear();
                        eprintln!("hound: not stopped: a hound that stands still ends the recording; Ctrl-C detaches");
                    }
                    signal if signals::is_to_leave(signal) => break Why::Asked { unload: false, answer: None },
                    _ => {}
                },
                () = tokio::time::sleep_until(end.unwrap_or(far)), if end.is_some() => break Why::Asked { unload: false, answer: None },
                asked = self.answers.next() => if let Some(leave) = self.answers.answer(asked, &inside.recording, inside.longest) {
                    break Why::Asked { unload: leave.unload, answer: Some(leave.answer) };
                },
                _ = looks.tick() => if self.is_replaced() {
                    break Why::Replaced;
                },
                _ = files.tick() => if inside.holder.look(self.pid) {
                    // Now: the target may end by itself, and cannot be looked at then.
                    inside.missed = missed();
                },
                _ = rates.tick() => self.answers.cost.measure(&inside.recording),
                _ = draws.tick() => self.line.draw_attached(&inside.recording, &self.answers.cost),
            }
        };
        self.line.clear();
        why
    }

    /// Whether there is another program in the process by now. A process that ends has no image any more, and is no replaced one.
    fn is_replaced(&self) -> bool {
        let now = processes::image(self.pid);
        self.image.is_some() && now.is_some() && now != self.image
    }

    /// Waits for work on another thread, and meanwhile tells the impatient that it will be done.
    pub async fn patiently<T: Send + 'static>(&mut self, what: &str, work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let mut done = tokio::task::spawn_blocking(work);
        loop {
            tokio::select! {
                result = &mut done => return result.with_context(|| format!("{what} failed")),
                signal = self.signals.next() => if matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGQUIT) {
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

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
