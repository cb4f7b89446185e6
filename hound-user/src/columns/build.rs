//! Writes an index while a capture is replayed, in bounded memory.
//!
//! What is known of a block when it is allocated is written in its order, segment after segment. What is known at its end is kept for the
//! last segments ([`ROOM`]), which is where nearly all blocks end; of blocks that live longer it is put aside, by segment, and set in when
//! the replay is done. Everything is written, nothing mapped: a full disk is an error, and no signal.

use super::layout::{HeapTail, OutcomeWords, SEGMENT, column_at};
use super::table::{BORN, Born, EndRow, Ends, WIDTHS};
use crate::heap::{Block, Ending, Hears, Outcome, Peak};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// What is kept in memory.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// Segments whose blocks' ends are.
    pub window: usize,
    /// Ends that are put aside, before they go to a file.
    pub aside: usize,
}

/// 2 M blocks, 64 MB; 16 MB.
pub(super) const ROOM: Room = Room { window: 32, aside: 1 << 19 };
/// Segments that wait to be written.
const QUEUE: usize = 4;

/// One segment, to be written. As rows: made columns of while they are told of, an end would touch a cache line for each of them, far from
/// the last end's (a build of 50 million events took 13 s).
struct Piece {
    heap: usize,
    segment: usize,
    content: Content,
}

enum Content {
    Born(Vec<Block>),
    Ends(Vec<EndRow>),
}

/// Checksums of what was written, by heap, segment and column.
type Checksums = BTreeMap<(usize, usize), Vec<u32>>;

/// Writes what it is sent, until there is no more.
fn write(file: &File, capacity: u64, pieces: &Receiver<Piece>) -> io::Result<Checksums> {
    let mut checksums = Checksums::new();
    let (mut born, mut ends) = (Born::default(), Ends::default());
    while let Ok(Piece { heap, segment, content }) = pieces.recv() {
        let row = checksums.entry((heap, segment)).or_insert_with(|| vec![0; WIDTHS.len()]);
        let (first, columns) = match &content {
            Content::Born(blocks) => {
                born.clear();
                blocks.iter().for_each(|block| born.push(block));
                (0, born.columns())
            }
            Content::Ends(rows) => {
                ends.resize(rows.len());
                rows.iter().enumerate().for_each(|(at, end)| ends.set(at, end));
                (BORN, ends.columns())
            }
        };
        for (column, bytes) in (first..).zip(columns) {
            row[column] = write_column(file, capacity, heap, segment, column, bytes)?;
        }
    }
    Ok(checksums)
}

/// Writes one column of one segment, and gives its checksum.
fn write_column(file: &File, capacity: u64, heap: usize, segment: usize, column: usize, bytes: &[u8]) -> io::Result<u32> {
    let at = place(capacity, heap, segment, column)?;
    // What is 0 all over stays a hole: intervals, flags, lengths of chains mostly are.
    let last = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    if last > 0 {
        file.write_all_at(bytes, at)?;
    }
    Ok(crc32fast::hash(bytes))
}

fn place(capacity: u64, heap: usize, segment: usize, column: usize) -> io::Result<u64> {
    let at = column_at(capacity, heap, column).ok_or(io::ErrorKind::FileTooLarge)?;
    Ok(at + (segment * SEGMENT * WIDTHS[column]) as u64)
}

/// All that one build shares between its heaps.
pub(super) struct Desk {
    pieces: SyncSender<Piece>,
    aside: RefCell<Aside>,
    /// Something cannot be written, or numbered: the replay may stop.
    pub failed: std::cell::Cell<bool>,
    window: usize,
}

/// Ends of blocks whose segments have been written.
struct Aside {
    waiting: BTreeMap<(usize, usize), Vec<EndRow>>,
    number: usize,
    most: usize,
    /// Where they are when they have become too many.
    file: File,
    end: u64,
    /// Of each segment: where, and how many.
    runs: BTreeMap<(usize, usize), Vec<(u64, usize)>>,
}

impl Aside {
    fn put(&mut self, heap: usize, end: EndRow) -> io::Result<()> {
        self.waiting.entry((heap, end.row as usize / SEGMENT)).or_default().push(end);
        self.number += 1;
        if self.number < self.most {
            return Ok(());
        }
        self.number = 0;
        for (segment, ends) in std::mem::take(&mut self.waiting) {
            let bytes: &[u8] = bytemuck::cast_slice(&ends);
            self.file.write_all_at(bytes, self.end)?;
            self.runs.entry(segment).or_default().push((self.end, ends.len()));
            self.end += bytes.len() as u64;
        }
        Ok(())
    }

    /// All that was put aside, segment by segment.
    fn take(&mut self) -> Vec<(usize, usize)> {
        let mut segments: Vec<_> = self.runs.keys().chain(self.waiting.keys()).copied().collect();
        segments.sort_unstable();
        segments.dedup();
        segments
    }

    fn of(&mut self, segment: (usize, usize)) -> io::Result<Vec<EndRow>> {
        let mut ends = self.waiting.remove(&segment).unwrap_or_default();
        for (at, count) in self.runs.remove(&segment).unwrap_or_default() {
            let from = ends.len();
            ends.resize(from + count, bytemuck::Zeroable::zeroed());
            self.file.read_exact_at(bytemuck::cast_slice_mut(&mut ends[from..]), at)?;
        }
        Ok(ends)
    }
}

/// One heap in the making.
struct Growing {
    desk: Rc<Desk>,
    heap: usize,
    born: Vec<Block>,
    /// Ends of the last segments, the first of which is `base`.
    ends: VecDeque<Vec<EndRow>>,
    base: usize,
    rows: u64,
    gone: Vec<(u32, u64)>,
}

impl Growing {
    fn new(desk: Rc<Desk>, heap: usize) -> Self {
        Growing { desk, heap, born: Vec::new(), ends: VecDeque::new(), base: 0, rows: 0, gone: Vec::new() }
    }

    fn send(&self, segment: usize, content: Content) {
        if self.desk.pieces.send(Piece { heap: self.heap, segment, content }).is_err() {
            self.desk.failed.set(true);
        }
    }

    fn send_born(&mut self) {
        let segment = (self.rows as usize - 1) / SEGMENT;
        let born = std::mem::replace(&mut self.born, Vec::with_capacity(SEGMENT));
        self.send(segment, Content::Born(born));
    }

    fn send_ends(&mut self, most: usize) {
        while self.ends.len() > most {
            if let Some(ends) = self.ends.pop_front() {
                self.send(self.base, Content::Ends(ends));
            }
            self.base += 1;
        }
    }

    fn finish(&mut self) {
        if !self.born.is_empty() {
            self.send_born();
        }
        let before = (self.base + self.ends.len()).saturating_sub(1) * SEGMENT;
        if let Some(last) = self.ends.back_mut() {
            last.truncate(self.rows as usize - before);
        }
        self.send_ends(0);
    }
}

impl Hears for Growing {
    fn born(&mut self, block: &Block) {
        if block.ordinal >= u64::from(u32::MAX) {
            self.desk.failed.set(true);
        }
        if self.desk.failed.get() {
            return;
        }
        if self.born.is_empty() {
            self.ends.push_back(vec![bytemuck::Zeroable::zeroed(); SEGMENT]);
            self.send_ends(self.desk.window);
        }
        self.rows = block.ordinal;
        self.born.push(*block);
        if self.born.len() == SEGMENT {
            self.send_born();
        }
    }

    fn ended(&mut self, block: &Block, ending: &Ending, _: &Peak) {
        if self.desk.failed.get() {
            return;
        }
        let end = EndRow::new(block, ending, self.rows as u32);
        if let Ending::Gone { known_ns, .. } = ending {
            self.gone.push((end.row, *known_ns));
        }
        let (segment, at) = (end.row as usize / SEGMENT, end.row as usize % SEGMENT);
        match segment.checked_sub(self.base).and_then(|number| self.ends.get_mut(number)) {
            Some(ends) => ends[at] = end,
            None => {
                if self.desk.aside.borrow_mut().put(self.heap, end).is_err() {
                    self.desk.failed.set(true);
                }
            }
        }
    }
}

/// A heap that the replay tells of its blocks.
#[derive(Clone)]
pub(super) struct Teller(Rc<RefCell<Growing>>);

impl Hears for Teller {
    #[inline(always)]
    fn born(&mut self, block: &Block) {
        self.0.borrow_mut().born(block);
    }

    #[inline(always)]
    fn ended(&mut self, block: &Block, ending: &Ending, peak: &Peak) {
        self.0.borrow_mut().ended(block, ending, peak);
    }
}

/// All heaps of one capture, being written.
pub(super) struct Heaps {
    pub desk: Rc<Desk>,
    /// By number, in the order in which they were met.
    met: Vec<(u8, Teller)>,
}

impl Heaps {
    /// The heap of this number. A pool may be met once.
    pub(super) fn meet(&mut self, number: u8) -> Teller {
        let teller = Teller(Rc::new(RefCell::new(Growing::new(self.desk.clone(), self.met.len()))));
        self.met.push((number, teller.clone()));
        teller
    }
}

/// Writes the columns of all heaps into `file`, as `replay` tells of them; `aside` is a file to put things into meanwhile. `replay` gives the
/// outcome of each heap by its number.
///
/// # Errors
/// If something cannot be written, or there are more blocks than rows have numbers for.
pub(super) fn write_columns<T>(
    file: &File,
    aside: File,
    room: Room,
    capacity: u64,
    replay: impl FnOnce(&RefCell<Heaps>) -> (Vec<(u8, Outcome)>, T),
) -> io::Result<(Vec<HeapTail>, T)> {
    std::thread::scope(|scope| {
        let (pieces, received) = sync_channel(QUEUE);
        let writing =
            std::thread::Builder::new().name("hound-index".into()).spawn_scoped(scope, move || write(file, capacity, &received))?;
        let aside = Aside { waiting: BTreeMap::new(), number: 0, most: room.aside, file: aside, end: 0, runs: BTreeMap::new() };
        let desk = Rc::new(Desk { pieces, aside: RefCell::new(aside), failed: std::cell::Cell::new(false), window: room.window });
        let heaps = RefCell::new(Heaps { desk: desk.clone(), met: Vec::new() });
        let (outcomes, told) = replay(&heaps);
        let Heaps { desk: other, met } = heaps.into_inner();
        drop(other);
        met.iter().for_each(|(_, Teller(growing))| growing.borrow_mut().finish());
        let grown = |(number, Teller(growing)): (u8, Teller)| {
            let mut growing = growing.borrow_mut();
            (number, growing.rows, std::mem::take(&mut growing.gone))
        };
        let grown: Vec<_> = met.into_iter().map(grown).collect();
        let failed = desk.failed.get();
        let Some(Desk { pieces, aside, .. }) = Rc::into_inner(desk) else {
            return Err(io::Error::other("the replay still holds on to the index"));
        };
        drop(pieces);
        let mut checksums = writing.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes it ended")))?;
        if failed {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let rows: Vec<u64> = grown.iter().map(|(_, rows, _)| *rows).collect();
        set_in(file, capacity, &rows, &mut aside.into_inner(), &mut checksums)?;
        let mut tails = Vec::new();
        for (heap, (number, rows, mut gone)) in grown.into_iter().enumerate() {
            gone.sort_unstable();
            let outcome = outcomes.iter().find(|(of, _)| *of == number).map(|(_, outcome)| *outcome).unwrap_or_default();
            let of_heap = checksums.range((heap, 0)..(heap + 1, 0));
            let checksums = of_heap.flat_map(|(_, row)| row.iter().copied()).collect();
            tails.push(HeapTail { number, rows, outcome: OutcomeWords::of(&outcome), checksums, gone });
        }
        Ok((tails, told))
    })
}

/// Sets in what was put aside.
fn set_in(file: &File, capacity: u64, rows: &[u64], aside: &mut Aside, checksums: &mut Checksums) -> io::Result<()> {
    for (heap, segment) in aside.take() {
        let mut ends = Ends::default();
        ends.resize((rows[heap] as usize - segment * SEGMENT).min(SEGMENT));
        for (column, bytes) in (BORN..).zip(ends.columns_mut()) {
            // What was all 0 at the end of the file was not written.
            read_all_at(file, bytes, place(capacity, heap, segment, column)?)?;
        }
        for end in aside.of((heap, segment))? {
            ends.set(end.row as usize % SEGMENT, &end);
        }
        let row = checksums.entry((heap, segment)).or_insert_with(|| vec![0; WIDTHS.len()]);
        for (column, bytes) in (BORN..).zip(ends.columns()) {
            row[column] = write_column(file, capacity, heap, segment, column, bytes)?;
        }
    }
    Ok(())
}

fn read_all_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => return Ok(()),
            Ok(count) => (bytes, at) = (&mut bytes[count..], at + count as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
