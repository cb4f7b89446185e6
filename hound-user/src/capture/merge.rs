//! Merges the sections of all streams in time order. Every section is a sorted run, taken up when its first event's time has come.

use super::decode::{Loaded, SectionDecoder};
use super::error::{Anomalies, Anomaly};
use super::index::{Placed, Source};
use super::reader::{Capture, Visitor};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::mpsc::{Receiver, sync_channel};
use zstd::bulk::Decompressor;

/// Sections read ahead by the helper thread.
const AHEAD: usize = 4;

type Read = Result<Loaded, &'static str>;

/// A section that has events left, ordered so that the one with the earliest event is the greatest.
struct Active {
    /// Time of its next event in ticks, and its place in the file.
    key: (u64, u64),
    decoder: Box<SectionDecoder>,
}

impl PartialEq for Active {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Active {}

impl PartialOrd for Active {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Active {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key.cmp(&self.key)
    }
}

/// Where the next section comes from: a thread that reads ahead, or (if there can be no thread) this one.
enum Loader<'a> {
    Ahead(Receiver<Read>),
    Here(&'a Source, Option<Decompressor<'static>>),
}

impl Loader<'_> {
    fn next(&mut self, placed: &Placed) -> Read {
        match self {
            Loader::Ahead(receiver) => receiver.recv().unwrap_or(Err("it could not be decompressed")),
            Loader::Here(source, Some(decompressor)) => Loaded::read(source, placed, decompressor),
            Loader::Here(_, None) => Err("no memory to decompress it"),
        }
    }
}

/// See [`Capture::visit`].
pub fn visit(capture: &mut Capture, visitor: &mut impl Visitor, anomalies: &mut Anomalies) {
    let mut queue = capture.sections.clone();
    queue.sort_by_key(key);
    let source = &capture.source;
    let (sender, receiver) = sync_channel(AHEAD);
    let ahead = &queue;
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new().name("hound-read".into()).spawn_scoped(scope, move || {
            let Ok(mut decompressor) = Decompressor::new() else { return };
            for placed in ahead {
                if sender.send(Loaded::read(source, placed, &mut decompressor)).is_err() {
                    return;
                }
            }
        });
        let loader = match reading {
            Ok(_) => Loader::Ahead(receiver),
            Err(_) => Loader::Here(source, Decompressor::new().ok()),
        };
        let mut merge = Merge { queue: &queue, loader, active: BinaryHeap::new(), unknown: 0 };
        while visitor.wants_more() && merge.step(&mut capture.tree, &capture.clock, visitor, anomalies) {}
        if merge.unknown > 0 {
            anomalies.push(Anomaly::UnknownEvents { count: merge.unknown });
        }
    });
}

fn key(placed: &Placed) -> (u64, u64) {
    (placed.header.first, placed.at)
}

struct Merge<'a> {
    /// Sections not taken up yet, by their first event.
    queue: &'a [Placed],
    loader: Loader<'a>,
    active: BinaryHeap<Active>,
    unknown: u64,
}

impl Merge<'_> {
    /// Takes up what is due and shows the events of the earliest section until another one's turn comes. False: there is none left.
    fn step(
        &mut self,
        tree: &mut super::model::StackTree,
        clock: &super::clock::TickClock,
        visitor: &mut impl Visitor,
        anomalies: &mut Anomalies,
    ) -> bool {
        let stacks_before = tree.len();
        while let Some((placed, rest)) = self.queue.split_first() {
            if self.active.peek().is_some_and(|first| first.key < key(placed)) {
                break;
            }
            self.queue = rest;
            match self.loader.next(placed) {
                Ok(loaded) => {
                    let decoder = Box::new(SectionDecoder::new(loaded, tree, clock));
                    self.put_back(decoder, placed.at);
                }
                Err(what) => anomalies.push(damaged(placed.at, placed.header.events.into(), placed.header.rare_events.into(), what)),
            }
        }
        if tree.len() > stacks_before {
            visitor.stacks(tree);
        }
        let Some(Active { key: (_, at), mut decoder }) = self.active.pop() else { return false };
        let other = self.active.peek().map(|other| other.key);
        let queued = self.queue.first().map(key);
        let (limit, other_at) = other.into_iter().chain(queued).min().unwrap_or((u64::MAX, u64::MAX));
        match decoder.run(limit, at < other_at, clock, visitor) {
            Ok(()) => self.put_back(decoder, at),
            Err(what) => {
                self.unknown += decoder.unknown;
                anomalies.push(damaged(at, decoder.left(), 0, what));
            }
        }
        true
    }

    fn put_back(&mut self, mut decoder: Box<SectionDecoder>, at: u64) {
        match decoder.next_ticks() {
            Some(ticks) => self.active.push(Active { key: (ticks, at), decoder }),
            None => self.unknown += decoder.unknown,
        }
    }
}

fn damaged(at: u64, events: u64, others: u64, what: &'static str) -> Anomaly {
    Anomaly::Damaged { at, events: events + others, what: what.into() }
}
