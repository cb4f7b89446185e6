//! Moves records out of the ring, in each stream's order, and frees what was read.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use hound_common::event::LOST_DAMAGED;
use hound_common::ring::{
    COUNTERS, SEGMENT_BYTES, SEGMENT_FREE, SEGMENT_OWNED, SEGMENT_SEALED, STREAM_FREE, STREAM_OWNED, STREAMS, Segment, Stream,
};

use super::ring::Ring;
use super::streams::Numbers;
use crate::capture::model::StreamId;

/// What an event usually takes: the estimate for bytes that cannot be read.
const EVENT_BYTES: u64 = 24;

/// When so many streams have come since the last look at who is gone, it is time for the next: a few thousand threads a second are no trouble.
const MANY_ARRIVED: usize = STREAMS / 8;

/// What the drain hands on.
#[derive(Debug)]
pub enum Parcel {
    /// A stream was met for the first time.
    Start {
        /// Its number in the capture.
        stream: StreamId,
        /// Kernel thread id, 0 if not known.
        tid: u32,
        /// Nesting level.
        level: u32,
    },
    /// Complete records of a stream, next in its order.
    Bytes {
        /// Whose.
        stream: StreamId,
        /// The records.
        bytes: Vec<u8>,
    },
    /// The stream's thread is gone and everything was read.
    End {
        /// Whose.
        stream: StreamId,
        /// How its frames were found.
        counters: [u64; COUNTERS],
        /// Events it lost, by reason.
        lost: Vec<(u8, u64)>,
    },
}

/// A stream as the drain knows it.
#[derive(Debug)]
struct Known {
    id: StreamId,
    generation: u32,
    tid: u32,
    /// Number of the segment to read next.
    sequence: u32,
    /// The last round saw full segments of this stream, and not the one to read next, which had this number.
    missed: Option<u32>,
    /// What its counters and losses were when it was taken over from an earlier recording.
    before: (Vec<u64>, Vec<u64>),
}

impl Known {
    fn new(id: StreamId, generation: u32, head: &Stream) -> Self {
        Known { id, generation, tid: head.tid.load(Ordering::Relaxed), sequence: 0, missed: None, before: Default::default() }
    }
}

/// A count since the stream was taken over.
fn since(before: &[u64], index: usize, now: u64) -> u64 {
    now.wrapping_sub(before.get(index).copied().unwrap_or(0))
}

/// Whether the target's threads may go on in their streams when the recording ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// There are no threads any more: their places in the ring are freed.
    Free,
    /// The target runs on with the library in it: places stay with the threads that hold them, for the next recording.
    Keep,
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct Drain {
    /// By index in the ring.
    known: HashMap<u32, Known>,
    numbers: Numbers,
    /// Bytes read of each segment.
    read: Vec<usize>,
    /// Segments to look at, in order of (stream, sequence): kept to save the allocation.
    order: Vec<(u32, u32, usize)>,
    /// Buffers to reuse.
    spare: Vec<Vec<u8>>,
    /// Streams taken over without a segment: the first one met is the one to begin with.
    anew: HashSet<u32>,
    /// Streams met since the last look at who is gone.
    arrived: usize,
}

impl Drain {
    /// Reads from the beginning; its streams get these numbers.
    pub fn new(ring: &Ring, numbers: Numbers) -> Self {
        Drain {
            known: HashMap::new(),
            numbers,
            read: vec![0; ring.segments().len()],
            order: Vec::new(),
            spare: Vec::new(),
            anew: HashSet::new(),
            arrived: 0,
        }
    }

    /// Takes over a ring that an earlier recording has used: threads keep the streams and segments they hold, and what is in those is
    /// nobody's any more. Call it while recording is off, before it is switched on: each thread then begins its stream anew, with a full
    /// time and a full stack.
    pub fn take_over(&mut self, ring: &Ring, mut hand_on: impl FnMut(Parcel)) {
        for (index, segment) in ring.segments().iter().enumerate() {
            let state = segment.state.load(Ordering::Acquire);
            let stream = segment.stream.load(Ordering::Relaxed);
            let generation = segment.generation.load(Ordering::Relaxed);
            let head = ring.streams().get(stream as usize);
            let owner = head
                .filter(|head| head.state.load(Ordering::Acquire) == STREAM_OWNED && head.generation.load(Ordering::Relaxed) == generation);
            match (state, owner) {
                (SEGMENT_OWNED, Some(head)) => {
                    let known = self.known.entry(stream).or_insert_with(|| {
                        let id = self.numbers.next();
                        let (tid, level) = (head.tid.load(Ordering::Relaxed), head.level.load(Ordering::Relaxed));
                        hand_on(Parcel::Start { stream: id, tid, level });
                        let read = |cells: &[std::sync::atomic::AtomicU64]| cells.iter().map(|c| c.load(Ordering::Relaxed)).collect();
                        Known { before: (read(&head.counters), read(&head.lost)), ..Known::new(id, generation, head) }
                    });
                    known.sequence = segment.sequence.load(Ordering::Relaxed);
                    if let Some(place) = self.read.get_mut(index) {
                        *place = (segment.committed.load(Ordering::Acquire) as usize).min(SEGMENT_BYTES) & !7;
                    }
                }
                (SEGMENT_SEALED | SEGMENT_OWNED, _) => self.release(ring, index, segment),
                _ => {}
            }
        }
        // A thread that had filled its last segment and not taken another goes on with any number: `pass_holes` would call it damage.
        for (index, head) in ring.streams().iter().enumerate() {
            if head.state.load(Ordering::Acquire) == STREAM_OWNED && !self.known.contains_key(&(index as u32)) {
                self.anew.insert(index as u32);
            }
        }
        wake(ring);
    }

    /// A buffer that was handed on comes back.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < 256 {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Reads everything that is complete. Returns the number of bytes.
    pub fn round(&mut self, ring: &Ring, mut hand_on: impl FnMut(Parcel)) -> usize {
        let control = ring.control();
        control.heartbeat.fetch_add(1, Ordering::Relaxed);
        let high = (control.segments_high.load(Ordering::Acquire) as usize).min(ring.segments().len());
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        for (index, segment) in ring.segments().iter().enumerate().take(high) {
            // Acquire pairs with the producer's release when it takes or seals a segment.
            let state = segment.state.load(Ordering::Acquire);
            if state == SEGMENT_OWNED || state == SEGMENT_SEALED {
                order.push((segment.stream.load(Ordering::Relaxed), segment.sequence.load(Ordering::Relaxed), index));
            }
        }
        order.sort_unstable();
        let mut bytes = 0;
        let mut freed = 0;
        for (stream, sequence, index) in order.iter().copied() {
            let Some(segment) = ring.segments().get(index) else { continue };
            let (read, done) = self.segment(ring, stream, sequence, index, segment, &mut hand_on);
            bytes += read;
            freed += u32::from(done);
        }
        self.pass_holes(ring, &order, &mut hand_on);
        self.order = order;
        if freed > 0 && control.waiters.load(Ordering::Acquire) > 0 {
            wake(ring);
        }
        bytes
    }

    /// Reads one segment if it is next in its stream. Returns the bytes read and whether it was freed.
    fn segment(
        &mut self,
        ring: &Ring,
        stream: u32,
        sequence: u32,
        index: usize,
        segment: &Segment,
        hand_on: &mut impl FnMut(Parcel),
    ) -> (usize, bool) {
        let generation = segment.generation.load(Ordering::Relaxed);
        let Some(head) = ring.streams().get(stream as usize) else { return (0, false) };
        let known = self.known.entry(stream).or_insert_with(|| {
            let id = self.numbers.next();
            let (tid, level) = (head.tid.load(Ordering::Relaxed), head.level.load(Ordering::Relaxed));
            hand_on(Parcel::Start { stream: id, tid, level });
            self.arrived += 1;
            // Segments are looked at in order, so this one is the stream's oldest.
            let first = if self.anew.remove(&stream) { sequence } else { 0 };
            Known { sequence: first, ..Known::new(id, generation, head) }
        });
        if known.generation != generation || known.sequence != sequence {
            return (0, false); // not its turn: an older segment of the stream is not read to its end
        }
        // State before length: a segment seen sealed has its final length.
        let sealed = segment.state.load(Ordering::Acquire) == SEGMENT_SEALED;
        let committed = (segment.committed.load(Ordering::Acquire) as usize).min(SEGMENT_BYTES) & !7;
        let from = self.read.get(index).copied().unwrap_or(0);
        if committed > from {
            let mut buffer = self.spare.pop().unwrap_or_default();
            ring.copy(index, from, committed, &mut buffer);
            hand_on(Parcel::Bytes { stream: known.id, bytes: buffer });
        }
        let read = committed.saturating_sub(from);
        if sealed {
            known.sequence = known.sequence.wrapping_add(1);
            self.release(ring, index, segment);
        } else if let Some(place) = self.read.get_mut(index) {
            *place = committed.max(from);
        }
        (read, sealed)
    }

    /// A stream whose next segment is nowhere (the target has scribbled on a segment's head) goes on with the nearest one there is.
    ///
    /// One round without it proves nothing: a segment may be taken at a place already passed while another is looked at. But it was taken
    /// before the full one behind it, so that the next round finds it, whatever else is being taken.
    fn pass_holes(&mut self, ring: &Ring, order: &[(u32, u32, usize)], hand_on: &mut impl FnMut(Parcel)) {
        for present in order.chunk_by(|a, b| a.0 == b.0) {
            let Some(known) = present.first().and_then(|(stream, ..)| self.known.get_mut(stream)) else { continue };
            let theirs = present.iter().filter_map(|(_, sequence, index)| Some((*sequence, ring.segments().get(*index)?)));
            let theirs = theirs.filter(|(_, segment)| segment.generation.load(Ordering::Relaxed) == known.generation);
            let (mut full, mut nearest) = (false, None);
            for (sequence, segment) in theirs {
                let state = segment.state.load(Ordering::Acquire);
                // What was freed in this round is not there any more.
                if state == SEGMENT_OWNED || state == SEGMENT_SEALED {
                    let distance = sequence.wrapping_sub(known.sequence);
                    full |= state == SEGMENT_SEALED;
                    nearest = Some(nearest.map_or(distance, |least: u32| least.min(distance)));
                }
            }
            let hole = nearest.filter(|distance| full && *distance > 0);
            // The same one in two rounds: a fast producer lets each round miss another.
            if let (Some(distance), true) = (hole, known.missed == Some(known.sequence)) {
                known.sequence = known.sequence.wrapping_add(distance);
                known.missed = None;
                // No record has zero words: the encoder counts these as lost, and knows that the stack it follows is lost too.
                hand_on(Parcel::Bytes { stream: known.id, bytes: vec![0; SEGMENT_BYTES] });
            } else {
                known.missed = hole.map(|_| known.sequence);
            }
        }
    }

    fn release(&mut self, ring: &Ring, index: usize, segment: &Segment) {
        if let Some(place) = self.read.get_mut(index) {
            *place = 0;
        }
        segment.committed.store(0, Ordering::Relaxed);
        segment.state.store(SEGMENT_FREE, Ordering::Release); // pairs with the producer's acquire when it takes the segment
        let _ = ring.control().segments_in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(1)));
    }

    /// Ends the streams whose thread is gone (`alive` says no) after a last look, and frees their places. Call it after a `round` that
    /// began after the thread was found dead: so the check comes first here, and the reading after it.
    pub fn reap(&mut self, ring: &Ring, mut alive: impl FnMut(u32) -> bool, mut hand_on: impl FnMut(Parcel)) {
        // Who is dead is found out before the last look: whatever a thread wrote before its death is in the ring then.
        let gone = self.known.iter().filter(|(_, known)| known.tid != 0 && !alive(known.tid));
        let mut dead: Vec<(u32, u32)> = gone.map(|(index, known)| (*index, known.tid)).collect();
        dead.extend(self.silent(ring, &mut alive));
        // Not afterwards: what is freed may be taken again long before the last of it is.
        let (control, mut streams) = (ring.control(), ring.streams().iter());
        let crowded = dead.is_empty() && streams.all(|head| head.state.load(Ordering::Relaxed) == STREAM_OWNED);
        self.end(ring, &dead, Places::Free, &mut hand_on);
        self.arrived = 0;
        control.crowded.store(u32::from(crowded), Ordering::Relaxed);
        control.looks.fetch_add(1, Ordering::Release); // pairs with the acquire of who waits for a stream
    }

    /// Whether to look who is gone now, and not when it is time: somebody waits for a stream, or soon will.
    pub fn is_pressed(&self, ring: &Ring) -> bool {
        self.arrived >= MANY_ARRIVED || ring.control().seekers.load(Ordering::Acquire) > 0
    }

    /// Streams, with their thread ids, whose thread is gone and which were never read from.
    fn silent(&self, ring: &Ring, alive: &mut impl FnMut(u32) -> bool) -> Vec<(u32, u32)> {
        let high = ring.control().streams_high.load(Ordering::Relaxed) as usize;
        let taken = ring
            .streams()
            .iter()
            .enumerate()
            .take(high)
            .filter(|(index, head)| head.state.load(Ordering::Acquire) == STREAM_OWNED && !self.known.contains_key(&(*index as u32)));
        let tids = taken.map(|(index, head)| (index as u32, head.tid.load(Ordering::Relaxed)));
        tids.filter(|(_, tid)| *tid != 0 && !alive(*tid)).collect()
    }

    /// Ends all streams: the target is gone, or recorded no longer.
    pub fn finish(&mut self, ring: &Ring, places: Places, mut hand_on: impl FnMut(Parcel)) {
        // Until nothing comes any more: behind a hole may be whole segments. Each round frees one at least.
        for _ in 0..ring.segments().len() {
            if self.round(ring, &mut hand_on) == 0 && self.known.values().all(|known| known.missed.is_none()) {
                break;
            }
        }
        let all: Vec<(u32, u32)> = self.known.iter().map(|(index, known)| (*index, known.tid)).collect();
        self.end(ring, &all, places, &mut hand_on);
    }

    /// Ends streams, given with the ids of their threads, after a last look.
    fn end(&mut self, ring: &Ring, streams: &[(u32, u32)], places: Places, hand_on: &mut impl FnMut(Parcel)) {
        if streams.is_empty() {
            return;
        }
        self.round(ring, &mut *hand_on);
        // Once for all of them: thousands may have ended since the last look.
        let mut held = HashMap::<u32, Vec<usize>>::new();
        for (index, segment) in ring.segments().iter().enumerate() {
            let state = segment.state.load(Ordering::Acquire);
            if state == SEGMENT_OWNED || state == SEGMENT_SEALED {
                held.entry(segment.stream.load(Ordering::Relaxed)).or_default().push(index);
            }
        }
        for (stream, tid) in streams {
            let Some(head) = ring.streams().get(*stream as usize) else { continue };
            let Some(known) = self.known.remove(stream) else {
                // It took a stream and ended without an event, unless somebody else has come since. Whoever comes next begins at 0.
                self.anew.remove(stream);
                if places == Places::Free && head.tid.load(Ordering::Relaxed) == *tid {
                    free(head);
                }
                continue;
            };
            let (counted, lost) = &known.before;
            let counters = std::array::from_fn(|i| head.counters.get(i).map_or(0, |c| since(counted, i, c.load(Ordering::Relaxed))));
            let lost = head.lost.iter().enumerate().map(|(reason, c)| (reason as u8, since(lost, reason, c.load(Ordering::Relaxed))));
            let mut lost: Vec<(u8, u64)> = lost.filter(|(_, count)| *count > 0).collect();
            for index in held.remove(stream).unwrap_or_default() {
                let Some(segment) = ring.segments().get(index) else { continue };
                // State first: the other fields of a segment that is being taken are not valid.
                let state = segment.state.load(Ordering::Acquire);
                let theirs =
                    segment.stream.load(Ordering::Relaxed) == *stream && segment.generation.load(Ordering::Relaxed) == known.generation;
                if theirs && (state == SEGMENT_OWNED || state == SEGMENT_SEALED) {
                    let committed = (segment.committed.load(Ordering::Acquire) as usize).min(SEGMENT_BYTES);
                    let unread = committed.saturating_sub(self.read.get(index).copied().unwrap_or(0)) as u64;
                    if unread >= 8 {
                        lost.push((LOST_DAMAGED, (unread / EVENT_BYTES).max(1))); // its turn never came
                    }
                    if places == Places::Free || state == SEGMENT_SEALED {
                        self.release(ring, index, segment);
                    }
                }
            }
            hand_on(Parcel::End { stream: known.id, counters, lost });
            if places == Places::Free {
                free(head);
            }
        }
        wake(ring);
    }

    /// Streams of threads that are alive, with their thread ids.
    pub fn streams(&self) -> impl ExactSizeIterator<Item = (StreamId, u32)> + '_ {
        self.known.values().map(|known| (known.id, known.tid))
    }
}

/// Gives a stream's place to whoever comes next.
fn free(head: &Stream) {
    // Nobody's: whoever claims it is not taken for the dead thread in the moment before it has stored its own id.
    head.tid.store(0, Ordering::Relaxed);
    // Release: its segments were freed before. Pairs with the claim's acquire.
    let _ = head.state.compare_exchange(STREAM_OWNED, STREAM_FREE, Ordering::Release, Ordering::Relaxed);
}

/// Events lost without a stream to count them, by reason.
pub fn lost_without_stream(ring: &Ring) -> Vec<(u8, u64)> {
    let lost = ring.control().lost.iter().enumerate().map(|(reason, cell)| (reason as u8, cell.load(Ordering::Relaxed)));
    lost.filter(|(_, count)| *count > 0).collect()
}

/// Wakes the target's threads that wait for ring space.
fn wake(ring: &Ring) {
    let control = ring.control();
    control.freed.fetch_add(1, Ordering::Release); // pairs with the producer's acquire load before it waits
    futex_wake(&control.freed);
}

#[expect(unsafe_code, reason = "futex(2) has no safe wrapper")]
fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    // SAFETY: wakes waiters on a word that lives in the mapped ring; reads and writes nothing.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use hound_common::ring::CLOCK_MONOTONIC;

    /// A ring in which stream 0 belongs to a thread.
    fn ring() -> Ring {
        let ring = Ring::create().expect("shared memory");
        ring.control().initialise(0, 0, CLOCK_MONOTONIC, 0);
        ring.control().streams_high.store(1, Ordering::Relaxed);
        ring.streams()[0].tid.store(7, Ordering::Relaxed);
        ring.streams()[0].state.store(STREAM_OWNED, Ordering::Release);
        ring
    }

    fn fill(ring: &Ring, index: usize, sequence: u32, committed: u32, state: u32) {
        let segment = &ring.segments()[index];
        segment.sequence.store(sequence, Ordering::Relaxed);
        segment.committed.store(committed, Ordering::Relaxed);
        segment.state.store(state, Ordering::Release);
        ring.control().segments_high.fetch_max(index as u32 + 1, Ordering::Relaxed);
    }

    fn bytes(drain: &mut Drain, ring: &Ring) -> Vec<usize> {
        let mut lengths = Vec::new();
        drain.round(ring, |parcel| {
            if let Parcel::Bytes { bytes, .. } = parcel {
                lengths.push(bytes.len());
            }
        });
        lengths
    }

    #[test]
    fn a_scribbled_sequence_costs_its_segment_and_not_the_stream() {
        let ring = ring();
        let mut drain = Drain::new(&ring, Numbers::from(1));
        fill(&ring, 0, 0, 80, SEGMENT_SEALED);
        assert_eq!(bytes(&mut drain, &ring), [80]);
        fill(&ring, 0, 0xdead_beef, 240, SEGMENT_SEALED); // was 1
        fill(&ring, 1, 2, 160, SEGMENT_SEALED);
        fill(&ring, 2, 3, 8, SEGMENT_OWNED);
        assert_eq!(bytes(&mut drain, &ring), [0; 0], "it may still come");
        assert_eq!(bytes(&mut drain, &ring), [SEGMENT_BYTES], "the hole");
        assert_eq!(bytes(&mut drain, &ring), [160, 8]);
        let mut ended = Vec::new();
        drain.finish(&ring, Places::Free, |parcel| {
            if let Parcel::End { lost, .. } = parcel {
                ended.push(lost);
            }
        });
        assert_eq!(ended, [vec![(LOST_DAMAGED, 10)]]);
        assert!(ring.segments().iter().all(|segment| segment.state.load(Ordering::Relaxed) == SEGMENT_FREE));
    }

    #[test]
    fn a_segment_that_comes_late_is_waited_for() {
        let ring = ring();
        let mut drain = Drain::new(&ring, Numbers::from(1));
        fill(&ring, 1, 1, 16, SEGMENT_SEALED);
        assert_eq!(bytes(&mut drain, &ring), [0; 0]);
        fill(&ring, 0, 0, 8, SEGMENT_SEALED);
        assert_eq!(bytes(&mut drain, &ring), [8, 16]);
    }

    #[test]
    fn a_thread_that_keeps_its_place_is_read_on_from_where_it_stands_by_the_next_recording() {
        let ring = ring();
        let mut first = Drain::new(&ring, Numbers::from(1));
        fill(&ring, 0, 0, 80, SEGMENT_SEALED);
        fill(&ring, 1, 1, 40, SEGMENT_OWNED);
        ring.streams()[0].lost[1].store(5, Ordering::Relaxed);
        first.finish(&ring, Places::Keep, |_| {});
        let states = [0, 1].map(|index| ring.segments()[index].state.load(Ordering::Relaxed));
        assert_eq!(states, [SEGMENT_FREE, SEGMENT_OWNED], "what is full is freed, what is held stays");
        assert_eq!(ring.streams()[0].state.load(Ordering::Relaxed), STREAM_OWNED);
        let (mut second, mut started) = (Drain::new(&ring, Numbers::from(1)), 0);
        second.take_over(&ring, |parcel| started += u32::from(matches!(parcel, Parcel::Start { tid: 7, .. })));
        assert_eq!((started, bytes(&mut second, &ring)), (1, vec![]), "what was there before is not this recording's");
        fill(&ring, 1, 1, 64, SEGMENT_SEALED);
        fill(&ring, 0, 2, 8, SEGMENT_OWNED);
        ring.streams()[0].lost[1].store(7, Ordering::Relaxed);
        assert_eq!(bytes(&mut second, &ring), [24, 8]);
        let mut ended = Vec::new();
        second.finish(&ring, Places::Free, |parcel| {
            if let Parcel::End { lost, .. } = parcel {
                ended.push(lost);
            }
        });
        assert_eq!(ended, [vec![(1, 2)]], "only what was lost since");
    }

    #[test]
    fn a_thread_that_held_no_segment_begins_with_whichever_it_takes() {
        let ring = ring();
        let mut drain = Drain::new(&ring, Numbers::from(1));
        drain.take_over(&ring, |_| {});
        fill(&ring, 0, 9, 16, SEGMENT_SEALED);
        fill(&ring, 1, 10, 8, SEGMENT_OWNED);
        assert_eq!(bytes(&mut drain, &ring), [16, 8]);
    }

    #[test]
    fn who_waits_for_a_stream_is_told_whether_one_came_free() {
        let ring = ring();
        let mut drain = Drain::new(&ring, Numbers::from(1));
        assert!(!drain.is_pressed(&ring));
        ring.streams().iter().for_each(|head| head.state.store(STREAM_OWNED, Ordering::Relaxed));
        ring.control().seekers.store(1, Ordering::Relaxed);
        assert!(drain.is_pressed(&ring));
        let said = |drain: &mut Drain, alive: bool| {
            drain.reap(&ring, |_| alive, |_| {});
            (ring.control().looks.load(Ordering::Relaxed), ring.control().crowded.load(Ordering::Relaxed))
        };
        assert_eq!((said(&mut drain, true), said(&mut drain, false)), ((1, 1), (2, 0)));
        assert_eq!(ring.streams()[0].state.load(Ordering::Relaxed), STREAM_FREE);
    }

    #[test]
    fn many_streams_at_a_time_are_a_reason_to_look_who_is_gone() {
        let ring = ring();
        let mut drain = Drain::new(&ring, Numbers::from(1));
        for index in 0..MANY_ARRIVED {
            let (segment, head) = (&ring.segments()[index], &ring.streams()[index]);
            segment.stream.store(index as u32, Ordering::Relaxed);
            head.tid.store(7 + index as u32, Ordering::Relaxed);
            head.state.store(STREAM_OWNED, Ordering::Relaxed);
            fill(&ring, index, 0, 8, SEGMENT_OWNED);
        }
        assert_eq!(bytes(&mut drain, &ring).len(), MANY_ARRIVED);
        assert!(drain.is_pressed(&ring));
        let mut ended = 0;
        drain.reap(&ring, |_| false, |parcel| ended += usize::from(matches!(parcel, Parcel::End { lost, .. } if lost.is_empty())));
        assert_eq!((ended, drain.is_pressed(&ring)), (MANY_ARRIVED, false));
        assert!(ring.segments().iter().all(|segment| segment.state.load(Ordering::Relaxed) == SEGMENT_FREE));
    }

    #[test]
    fn a_stream_claimed_anew_is_not_freed_for_its_last_owner() {
        let ring = ring();
        let mut drain = Drain::new(&ring, Numbers::from(1));
        let head = &ring.streams()[0];
        // The new owner stores its id between the question and the answer.
        drain.reap(
            &ring,
            |_| {
                head.tid.store(8, Ordering::Relaxed);
                false
            },
            |_| {},
        );
        assert_eq!(head.state.load(Ordering::Relaxed), STREAM_OWNED);
        drain.reap(&ring, |_| false, |_| {});
        assert_eq!((head.state.load(Ordering::Relaxed), head.tid.load(Ordering::Relaxed)), (STREAM_FREE, 0));
    }
}
