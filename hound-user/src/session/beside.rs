//! What goes on beside the draining: looks at the target from outside, and the sign of life that its waiting threads go by.
//!
//! Each on a thread of its own. Reading `/proc` can take as long as the target holds its memory map locked, and handing on takes as long
//! as the disk is stalled: the ring must be drained meanwhile, and a slow disk must not be taken for a dead hound.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hound_common::event::{METRIC_MAP_RSS, METRIC_PROCESS_MEMORY, METRIC_PROCESS_PEAK, METRIC_PROCESS_RSS, tag};

use super::pipeline::{OWN_STREAM, Order, Orders};
use super::ring::Ring;
use super::{clock, surroundings};
use crate::capture::Clock;
use crate::capture::model::StreamId;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of hundreds of processes these are looked at in turns: reading what is resident walks page tables.
const MOST_AT_ONCE: usize = 64;
/// A waiting thread gives hound up after two seconds without a beat.
const BEAT_EVERY: Duration = Duration::from_millis(100);

/// A thread that does something again and again until it is stopped.
#[derive(Debug)]
pub struct Repeated {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

impl Repeated {
    fn start(name: &str, every: Duration, mut what: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let (stop, stopped): (_, Receiver<()>) = channel();
        let body = move || {
            loop {
                what();
                if stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        Ok(Repeated { thread: std::thread::Builder::new().name(name.into()).spawn(body)?, stop })
    }

    /// Waits for the last repetition to end.
    pub fn stop(self) {
        drop(self.stop);
        // It fails only if the thread panicked: the panic was printed, and what it did beside is no part of the capture's integrity.
        let _ = self.thread.join();
    }
}

/// Starts the sign of life.
pub fn beat(ring: Arc<Ring>) -> io::Result<Repeated> {
    Repeated::start("hound-beat", BEAT_EVERY, move || {
        ring.control().heartbeat.fetch_add(1, Ordering::Relaxed);
    })
}

/// The same for several rings, which are asked for each time.
pub fn beat_all(rings: impl Fn() -> Vec<Arc<Ring>> + Send + 'static) -> io::Result<Repeated> {
    Repeated::start("hound-beat", BEAT_EVERY, move || {
        for ring in rings() {
            ring.control().heartbeat.fetch_add(1, Ordering::Relaxed);
        }
    })
}

/// Starts the looks at the target, at its maps too if so wished. Stop them before the pipeline is finished: they hold an end of it.
/// What the target has now is noted before this returns: it is what all that comes later is compared with.
pub fn look(orders: Orders, pid: u32, clock: Clock, maps: bool) -> io::Result<Repeated> {
    orders.calibrate(clock::calibrate(clock));
    note_memory(&orders, pid, clock);
    Repeated::start("hound-look", LOOK_EVERY, move || {
        orders.calibrate(clock::calibrate(clock));
        note_memory(&orders, pid, clock);
        if maps {
            for map in surroundings::map_rss(pid) {
                note(&orders, OWN_STREAM, clock, METRIC_MAP_RSS, map.to_vec());
            }
        }
        orders.send(Order::Flush);
    })
}

/// Looks at the memory of those among several processes that are there: their ids, and the streams for what is noted about them.
pub fn look_at_all(orders: Orders, clock: Clock, all: impl Fn() -> Vec<(u32, StreamId)> + Send + 'static) -> io::Result<Repeated> {
    let mut turn = 0;
    Repeated::start("hound-look", LOOK_EVERY, move || {
        let all = all();
        let first = if all.len() > MOST_AT_ONCE { turn % all.len() } else { 0 };
        for (pid, stream) in all.iter().cycle().skip(first).take(all.len().min(MOST_AT_ONCE)) {
            note_memory_in(*stream, &orders, *pid, clock);
        }
        turn = first + MOST_AT_ONCE;
    })
}

/// Notes how much memory the target has, if it is there.
pub fn note_memory(orders: &Orders, pid: u32, clock: Clock) {
    note_memory_in(OWN_STREAM, orders, pid, clock);
}

fn note_memory_in(stream: StreamId, orders: &Orders, pid: u32, clock: Clock) {
    if let Some((rss, memory, peak)) = surroundings::process_memory(pid) {
        note(orders, stream, clock, METRIC_PROCESS_RSS, rss.to_vec());
        note(orders, stream, clock, METRIC_PROCESS_MEMORY, memory.to_vec());
        note(orders, stream, clock, METRIC_PROCESS_PEAK, peak.to_vec());
    }
}

fn note(orders: &Orders, stream: StreamId, clock: Clock, a: u8, words: Vec<u64>) {
    orders.send(Order::NoteIn { stream, ticks: clock::ticks(clock), tag: tag::METRIC, a, words });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn what_is_repeated_happens_at_once_and_never_after_it_was_stopped() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let (told, first) = channel();
        let repeated = Repeated::start("test", Duration::from_secs(3600), move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = told.send(());
        });
        let repeated = repeated.expect("a thread");
        first.recv().expect("it is done at once");
        repeated.stop(); // does not wait for the hour to pass
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
