//! Looks at the growing capture while it is recorded, for `--every`.
//!
//! Each look reads the capture anew: what is alive now is known only from all that came before. So that hound does not come to read more
//! than it writes, the pause after a look is at least four times as long as the look took: reading uses a fifth of a processor at most, and
//! a capture that has grown long is looked at less often than asked for. That is said once.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::attach::Glance;
use super::recording::Recording;
use crate::symbols::Files;

/// Pause for each time unit of reading.
const PAUSE: u32 = 4;

/// The looking thread.
#[derive(Debug)]
pub struct Glances {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

impl Glances {
    /// Waits for a look under way, and ends.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join(); // a panic was printed, and the recording is whole without it
    }
}

/// Starts looking.
pub fn start(
    every: Duration,
    recording: &Recording,
    files: Files,
    mut glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
) -> io::Result<Glances> {
    let (stop, stopped) = channel::<()>();
    let flusher = recording.flusher();
    let capture = recording.path().to_owned();
    let body = move || {
        let (mut pause, mut told) = (every, false);
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let started = Instant::now();
            let flushed = flusher.flush().map_err(anyhow::Error::from);
            let shown = flushed.and_then(|bytes| glance(&Glance { capture: capture.clone(), bytes, files: files.clone() }));
            if let Err(error) = shown {
                eprintln!("hound: no look at the capture: {error:#}");
            }
            let took = started.elapsed();
            pause = every.saturating_sub(took).max(took * PAUSE);
            if !told && pause > every * 2 {
                told = true;
                eprintln!("hound: the capture has grown: reading it takes {:.1} s, so it is shown less often", took.as_secs_f64());
            }
        }
    };
    Ok(Glances { thread: std::thread::Builder::new().name("hound-glance".into()).spawn(body)?, stop })
}
