//! What goes on while a target is recorded: waits for whatever ends it, and answers who asks.

use std::time::{Duration, Instant};

use anyhow::Context;
use hound_common::event::{MARKER_TEXT, tag};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedReceiver;

use super::attach::{Attach, Inside};
use super::cost::Cost;
use super::processes::{self, ProcessFd};
use super::signals::{self, Signals};
use super::status::StatusLine;
use super::surroundings;
use super::talk::{Answer, Asked, Request, Status};

/// How often a target is looked at for having replaced itself by exec: nothing tells of that by itself.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const STATUS_EVERY: Duration = Duration::from_millis(500);
const FILES_EVERY: Duration = Duration::from_secs(1);
/// Longest text of a marker: a record is 255 words.
const MARKER_BYTES: usize = 1024;

/// Takes the answer to a request.
pub type Reply = std::sync::mpsc::Sender<Answer>;

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
    requests: UnboundedReceiver<Asked>,
    line: StatusLine,
    started: Instant,
    end: Option<Duration>,
    image: Option<u64>,
    cost: Cost,
    /// Out-of-memory kills in the target's control group when it was attached to.
    pub kills_before: Option<u64>,
}

impl Watch {
    /// Starts watching.
    #[expect(unsafe_code, reason = "registers the process's descriptor with the event loop")]
    pub fn new(attach: &Attach, process: ProcessFd, signals: Signals, requests: UnboundedReceiver<Asked>) -> anyhow::Result<Self> {
        // SAFETY: the descriptor belongs to `process`, which gives out no other and closes it only when it is dropped with the watch.
        let process = unsafe { AsyncFd::register(process) };
        Ok(Watch {
            pid: attach.pid,
            process: process.context("cannot watch the process")?,
            signals,
            requests,
            line: StatusLine::new(attach.quiet),
            started: Instant::now(),
            end: attach.duration,
            image: processes::image(attach.pid),
            cost: Cost::new(attach.pid),
            kills_before: super::cost::memory_kills(attach.pid),
        })
    }

    /// When recording began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The target.
    pub fn process(&self) -> &ProcessFd {
        self.process.get_ref()
    }

    /// Waits for a reason to end.
    pub async fn until_the_end(&mut self, inside: &mut Inside) -> Why {
        let end = self.end.map(|duration| tokio::time::Instant::from_std(self.started + duration));
        let far = tokio::time::Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let (mut looks, mut draws, mut files) = (every(LOOK_EVERY), every(STATUS_EVERY), every(FILES_EVERY));
        let why = loop {
            tokio::select! {
                _ = self.process.readable() => break Why::Ended,
                signal = self.signals.next() => if signals::is_to_leave(signal) {
                    break Why::Asked { unload: false, answer: None };
                },
                () = tokio::time::sleep_until(end.unwrap_or(far)), if end.is_some() => break Why::Asked { unload: false, answer: None },
                asked = self.requests.recv() => if let Some(why) = asked.and_then(|asked| self.answer(asked, inside)) {
                    break why;
                },
                _ = looks.tick() => if self.is_replaced() {
                    break Why::Replaced;
                },
                _ = files.tick() => inside.holder.look(self.pid),
                _ = draws.tick() => {
                    self.cost.measure(&inside.recording);
                    self.line.draw_attached(&inside.recording, &self.cost);
                },
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

    fn answer(&mut self, asked: Asked, inside: &Inside) -> Option<Why> {
        let recording = &inside.recording;
        let capture = recording.path().to_owned();
        let answer = match asked.request {
            Request::Status => Answer::Status(Box::new(self.status(inside))),
            Request::Detach { unload } => return Some(Why::Asked { unload, answer: Some(asked.answer) }),
            Request::Mark { text } => {
                let text = &text[..text.floor_char_boundary(MARKER_BYTES)];
                let mut words = vec![0, text.len() as u64];
                words.extend(super::pipeline::packed(text.as_bytes()));
                recording.note(tag::MARKER, MARKER_TEXT, words);
                Answer::Done { capture }
            }
            Request::Flush => {
                // On a thread of its own: it waits for the disk.
                let flusher = recording.flusher();
                tokio::task::spawn_blocking(move || {
                    let flushed = flusher.flush().map(|bytes| Answer::Flushed { capture, bytes });
                    let _ = asked.answer.send(flushed.unwrap_or_else(|error| Answer::Failed { why: error.to_string() }));
                });
                return None;
            }
        };
        let _ = asked.answer.send(answer); // who asked may be gone
        None
    }

    fn status(&mut self, inside: &Inside) -> Status {
        use std::sync::atomic::Ordering;
        let recording = &inside.recording;
        self.cost.measure(recording);
        let live = recording.live.figures();
        Status {
            pid: self.pid,
            command: processes::command_line(self.pid).iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
            hound: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            mode: "full".into(),
            state: "recording".into(),
            capture: recording.path().to_owned(),
            seconds: self.started.elapsed().as_secs_f64(),
            events: recording.progress.events.load(Ordering::Relaxed),
            events_per_second: self.cost.events_per_second(),
            capture_bytes: recording.progress.bytes.load(Ordering::Relaxed),
            lost_events: recording.lost(),
            live_bytes: live.map(|(bytes, _)| bytes),
            live_blocks: live.map(|(_, blocks)| blocks),
            resident: surroundings::process_rss(self.pid).map_or(0, |[resident, ..]| resident),
            overhead: self.cost.overhead(),
            hound_cpu_seconds: surroundings::own_cpu_ns() as f64 / 1e9,
            longest_stall_ms: inside.longest.as_secs_f64() * 1e3,
        }
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
            }
        }
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
