//! What a running session answers when it is asked through its socket, whatever mode it records in.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hound_common::event::{MARKER_TEXT, MODE_FULL, MODE_OFF, MODE_SAMPLED, tag};
use hound_common::ring::STATE_RECORDING;
use hound_common::sampling::DEFAULT_INTERVAL;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::attach::Mode;
use super::cost::Cost;
use super::processes;
use super::recording::Recording;
use super::surroundings;
use super::talk::{Answer, Asked, Request, Status, Talk, own_folder};

/// Longest text of a marker: a record is 255 words.
const MARKER_BYTES: usize = 1024;

/// Takes the answer to a request.
pub type Reply = std::sync::mpsc::Sender<Answer>;

/// The end of a recording, asked for.
#[derive(Debug)]
pub struct Leave {
    /// Take the library out, too.
    pub unload: bool,
    /// Who wants to hear when it is done.
    pub answer: Reply,
}

/// What only the session itself can do.
#[derive(Debug)]
pub enum Act {
    /// End.
    Leave(Leave),
    /// Go on in another mode.
    Switch {
        /// Which.
        to: Mode,
        /// Who wants to hear when it is done.
        answer: Reply,
    },
}

/// A session as those who ask see it.
#[derive(Debug)]
pub struct Answers {
    pid: u32,
    mode: &'static str,
    started: Instant,
    /// What recording costs.
    pub cost: Cost,
    requests: UnboundedReceiver<Asked>,
}

/// Where requests come from, until a session is there to answer them.
pub fn requests() -> (UnboundedSender<Asked>, UnboundedReceiver<Asked>) {
    unbounded_channel()
}

impl Answers {
    /// For a session on `pid` that records from now on.
    pub fn new(pid: u32, mode: &'static str, requests: UnboundedReceiver<Asked>) -> Self {
        Answers { pid, mode, started: Instant::now(), cost: Cost::new(pid), requests }
    }

    /// The same with a socket of its own, for a session that nobody else can hold. Without one it is `None`, and nobody asks.
    pub fn with_socket(pid: u32, mode: &'static str) -> (Self, Option<Talk>) {
        let (asked, requests) = requests();
        let talk = Talk::open(&own_folder(), pid, asked).ok();
        talk.iter().for_each(Talk::ready);
        (Self::new(pid, mode, requests), talk)
    }

    /// Recorded in this mode from now on.
    pub fn set_mode(&mut self, mode: &'static str) {
        self.mode = mode;
    }

    /// The target.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When recording began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The next request. Without a socket there is none, ever.
    pub async fn next(&mut self) -> Asked {
        match self.requests.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }

    /// Answers, or gives back what only the session itself can do. `longest`: that the target has stood still for hound.
    pub fn answer(&mut self, asked: Asked, recording: &Recording, longest: Duration) -> Option<Act> {
        // Who asks may be in another folder.
        let capture = std::path::absolute(recording.path()).unwrap_or_else(|_| recording.path());
        let answer = match asked.request {
            Request::Status => Answer::Status(Box::new(self.status(recording, longest, capture))),
            Request::Detach { unload } => return Some(Act::Leave(Leave { unload, answer: asked.answer })),
            Request::Mode { to } => return Some(Act::Switch { to, answer: asked.answer }),
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

    /// The same for a program that was started with the library in it, which cannot be left.
    pub fn answer_or_stay(&mut self, asked: Asked, recording: &Recording) {
        let pid = self.pid;
        let (said, answer) = match self.answer(asked, recording, Duration::ZERO) {
            Some(Act::Leave(leave)) => {
                let why = format!(
                    "process {pid} was started with libhound.so in it and is recorded to its end; `hound snapshot -p {pid}` reports on it \
                     now, `hound mode -p {pid} off` pauses it"
                );
                (Answer::Failed { why }, leave.answer)
            }
            Some(Act::Switch { to, answer }) => {
                let capture = std::path::absolute(recording.path()).unwrap_or_else(|_| recording.path());
                let switched = switch_library(pid, to, recording);
                (switched.map_or_else(|why| Answer::Failed { why }, |()| Answer::Done { capture }), answer)
            }
            None => return,
        };
        let _ = answer.send(said); // who asked may be gone
    }

    fn status(&mut self, recording: &Recording, longest: Duration, capture: PathBuf) -> Status {
        self.cost.measure(recording);
        let live = recording.live.figures();
        Status {
            pid: self.pid,
            command: processes::command_line(self.pid).iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
            hound: std::process::id(),
            user: nix::unistd::geteuid().as_raw(),
            version: env!("CARGO_PKG_VERSION").into(),
            mode: self.mode.into(),
            state: "recording".into(),
            capture,
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
            longest_stall_ms: longest.as_secs_f64() * 1e3,
        }
    }
}

/// Changes the mode of a library that is in its target for good. Each thread sees it at its next event.
fn switch_library(pid: u32, to: Mode, recording: &Recording) -> Result<(), String> {
    let Some(ring) = recording.ring() else { return Err(format!("the recording of process {pid} is ending")) };
    let control = ring.control();
    let now = match (control.state.load(Ordering::Relaxed) & STATE_RECORDING, control.interval.load(Ordering::Relaxed)) {
        (0, _) => Mode::Off,
        (_, 0) => Mode::Full,
        _ => Mode::Sampled,
    };
    let mode = match to {
        _ if to == now => return Err(format!("process {pid} cannot be recorded in mode {0}: it is in that mode already", to.name())),
        Mode::Faults => {
            return Err(format!(
                "process {pid} was started with libhound.so in it, which does not see page faults; sampled, full and off it can do"
            ));
        }
        Mode::Off => MODE_OFF,
        Mode::Full => MODE_FULL,
        Mode::Sampled => MODE_SAMPLED,
    };
    if to == Mode::Off {
        control.change(false);
        recording.switch_others(None);
        recording.note(tag::MODE, mode, vec![0]);
        return Ok(());
    }
    let option = |option: &String| option.strip_prefix("interval=")?.parse().ok();
    let asked = recording.session().options.iter().find_map(option).unwrap_or(DEFAULT_INTERVAL);
    let interval = if to == Mode::Full { 0 } else { asked };
    control.interval.store(interval, Ordering::Relaxed);
    recording.note(tag::MODE, mode, vec![0]);
    control.change(true);
    recording.switch_others(Some(interval));
    Ok(())
}
