//! Between the rings and the encoder, on a thread of its own: what lives only a short time goes no further ([`Culler`]).

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hound_common::event::{MODE_FULL, PROCESS_FORKED, tag};

use super::clock;
use super::drain::Parcel;
use super::pipeline::{OWN_STREAM, Order};
use crate::capture::model::{ProcessId, StreamId};
use crate::capture::{Cull, Culler, Out, SessionInfo};

/// Orders under way from here to the encoder.
const ORDERS: usize = 256;
/// Where no ring is drained nobody says up to when all was read: what is older than this was.
const SURELY_READ: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Starts it. `orders` is what it hears, `spare` where buffers go that were used; what comes out is handed back.
pub fn start(
    cull: Cull,
    session: &SessionInfo,
    orders: Receiver<Order>,
    spare: SyncSender<Vec<u8>>,
) -> io::Result<(Receiver<Order>, JoinHandle<()>)> {
    let (on, out) = sync_channel(ORDERS);
    let (clock, rate) = (session.clock, session.ticks_per_second);
    let culling = Culling {
        culler: Culler::new(cull, rate),
        ended: HashMap::new(),
        notes: HashMap::new(),
        out: Vec::new(),
        on,
        spare,
        read: 0,
        said: Instant::now(),
        is_drained: true,
        surely_read: rate.saturating_mul(SURELY_READ.as_secs()),
    };
    let thread = std::thread::Builder::new().name("hound-cull".into()).spawn(move || culling.run(&orders, &|| clock::ticks(clock)))?;
    Ok((out, thread))
}

struct Culling {
    culler: Culler,
    /// Last words of streams of which something waits.
    ended: HashMap<u32, Parcel>,
    /// The stream with what is noted about a process: the first that is its.
    notes: HashMap<u32, StreamId>,
    out: Vec<Out>,
    on: SyncSender<Order>,
    spare: SyncSender<Vec<u8>>,
    /// All that was recorded until then was heard.
    read: u64,
    /// When it was last said up to when all was handed on.
    said: Instant,
    /// Every allocation is recorded, by a library whose ring is drained.
    is_drained: bool,
    /// In ticks.
    surely_read: u64,
}

impl Culling {
    fn run(mut self, orders: &Receiver<Order>, now: &dyn Fn() -> u64) {
        let mut looked = Instant::now();
        loop {
            match orders.recv_timeout(LOOK_EVERY) {
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return self.hear(Order::End, now),
                Ok(order) => self.hear(order, now),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !self.is_drained && looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.hear(Order::Read(now().saturating_sub(self.surely_read)), now);
            }
        }
    }

    fn hear(&mut self, order: Order, now: &dyn Fn() -> u64) {
        match order {
            Order::Parcel(Parcel::Bytes { stream, bytes }) => {
                self.culler.take(stream, &bytes);
                if let Err(TrySendError::Full(bytes) | TrySendError::Disconnected(bytes)) = self.spare.try_send(bytes) {
                    drop(bytes);
                }
            }
            Order::Parcel(Parcel::End { stream, counters, lost }) => {
                self.culler.end(stream);
                self.ended.insert(stream.0, Parcel::End { stream, counters, lost });
            }
            Order::Read(ticks) => {
                self.read = self.read.max(ticks);
                self.culler.advance(self.read, &mut self.out);
                self.hand_on(self.read);
                // Not each time: pieces would be small.
                if self.said.elapsed() >= LOOK_EVERY {
                    self.said = Instant::now();
                    self.culler.hand_on_pieces(&mut self.out);
                    self.hand_on(self.read);
                    self.send(Order::Read(self.culler.handed_on()));
                }
            }
            Order::Barrier(tell) => {
                self.culler.flush(Some(self.read), &mut self.out);
                self.hand_on(self.read);
                self.send(Order::Barrier(tell));
            }
            Order::End => {
                self.culler.flush(None, &mut self.out);
                self.hand_on(now());
                self.send(Order::End);
            }
            Order::Whose(stream, process) => {
                self.culler.belongs(stream, process);
                self.notes.entry(process.0).or_insert(stream);
                self.send(Order::Whose(stream, process));
            }
            Order::NoteIn { stream, ticks, tag: tag::PROCESS, a: a @ PROCESS_FORKED, words } => {
                // Of one that was made without the function that tells of it.
                if let Some(from) = words.get(2).and_then(|from| u32::try_from(from.checked_sub(1)?).ok()) {
                    self.culler.keep_of(ProcessId(from), ticks);
                }
                self.send(Order::NoteIn { stream, ticks, tag: tag::PROCESS, a, words });
            }
            Order::Note { ticks, tag: tag @ (tag::MODE | tag::RATE), a, words } => {
                let exact = (tag == tag::MODE).then_some(a == MODE_FULL);
                self.is_drained = exact.unwrap_or(self.is_drained);
                self.culler.keep_at(ticks, exact);
                self.send(Order::Note { ticks, tag, a, words });
            }
            other => self.send(other),
        }
    }

    fn hand_on(&mut self, ticks: u64) {
        for out in std::mem::take(&mut self.out) {
            match out {
                Out::Bytes(stream, bytes) => self.send(Order::Parcel(Parcel::Bytes { stream, bytes })),
                Out::Ended(StreamId(stream)) => {
                    if let Some(end) = self.ended.remove(&stream) {
                        self.send(Order::Parcel(end));
                    }
                }
                Out::Culled(process, words) => {
                    let stream = self.notes.get(&process.0).copied().unwrap_or(OWN_STREAM);
                    self.send(Order::NoteIn { stream, ticks, tag: tag::CULLED, a: 0, words });
                }
            }
        }
    }

    fn send(&self, order: Order) {
        // The encoder only goes away by panicking, which the pipeline reports.
        let _ = self.on.send(order);
    }
}
