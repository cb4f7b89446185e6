//! Bringing the path up to date with the stack, and telling hound what changed.

use hound_common::event::{LOST_NO_MEMORY, MAX_FRAMES, MAX_STACK_RECORD_IPS, STACK_FRAME_POINTER, STACK_MORE, StackEdit, tag};
use hound_common::ring::{Counter, OPTION_SHADOW_STACK};
use hound_unwind::{EndReason, Regs, Row, RowKind, Stepped, step};

use crate::path::{BP_KNOWN, Fresh, Meta, NEEDS_BP, Path, STOP, USES_BP, Word};
use crate::thread::Thread;
use crate::{full, lean, process, rows, stack};

/// `leaf_from` of an edit behind which nothing is kept.
const NOTHING_BEHIND: u16 = u16::MAX;
/// Of a stack deeper than can be recorded, so many frames at the leaf side are.
const CUT_FRAMES: usize = 1024;

/// Makes the thread's path the current call stack, whose youngest return address lies at `slot`, with `bp` as it is there. Writes what
/// changed. False if that could not be written: the event is lost (and counted).
#[inline(always)]
pub fn update(thread: &mut Thread, slot: u64, bp: u64) -> bool {
    if thread.unmappings != stack::unmappings() {
        thread.unmappings = stack::unmappings();
        thread.window.doubt();
    }
    let len = thread.path.len;
    // Slots descend from the root's: if that one is known to be mapped, so are all.
    if len == 0 || !thread.window.spans(slot, thread.path.ra(0).addr) {
        return elsewhere(thread, slot, bp);
    }
    let path = &mut thread.path;
    let top = len - 1;
    let word = *path.ra(top);
    // SAFETY: the slot of our own hook's return address.
    let ra = unsafe { (slot as *const u64).read_volatile() };
    let meta = *path.meta(top);
    if word.addr != slot || word.value != ra || meta.flags & STOP != 0 || (meta.flags & NEEDS_BP != 0 && meta.bp != bp) {
        return walk(thread, slot, bp, None);
    }
    let low = path.verify(top);
    if low != 0 {
        return walk(thread, slot, bp, Some(low));
    }
    thread.count(Counter::Verified, len as u64);
    true
}

/// [`update`] where nothing is recorded, or it is not known whether the recorded stack is still there: maybe it was left, and unmapped since.
#[cold]
#[inline(never)]
fn elsewhere(thread: &mut Thread, slot: u64, bp: u64) -> bool {
    thread.window.enter(slot);
    if thread.path.len != 0 && !thread.window.holds(thread.path.ra(0).addr) {
        thread.path.clear();
    }
    walk(thread, slot, bp, None)
}

/// A walk under way. The new path is, root first:
/// `path[0..root] ++ fresh[lead..] reversed ++ path[run] ++ fresh[..lead] reversed`.
pub struct Walk {
    /// Frames unwound, leaf first.
    fresh: usize,
    /// How many of them are younger than `run`.
    lead: usize,
    /// Recorded frames met in the middle (lowest and highest index).
    run: Option<(usize, usize)>,
    /// Flags of the run's oldest frame: its link to the frames before is made anew. Set in the path only when the walk is done, for until
    /// then the recorded frames around it are candidates with their old links.
    run_flags: u64,
    /// Recorded frames at or above this index are no candidates any more.
    below: usize,
    /// Most frames to unwind.
    limit: usize,
    /// Something on the way (a signal frame) makes the path unfit to be kept.
    keep: bool,
    /// A run was given up for another one: what is recorded behind the path may hang together otherwise than it says.
    spilled: bool,
    frame_pointers: bool,
    /// A frame pointer was trusted on the way to where the walk is: there may be no such frame.
    guessed: bool,
    /// Frames found by comparing and by applying a row.
    verified: usize,
    stepped: usize,
}

enum Outcome {
    /// The recorded frames `0..n` are the rest.
    Met(usize),
    Ended(EndReason),
    /// Needs all callee-saved registers.
    NeedsFull,
}

/// The walk, in one of two ways that come to the same.
#[inline(always)]
fn walk(thread: &mut Thread, slot: u64, bp: u64, matched: Option<usize>) -> bool {
    if thread.path.len != 0
        && thread.path.stop_top == 0
        && let Some(written) = lean::walk(thread, slot, bp, matched)
    {
        return written;
    }
    any_walk(thread, slot, bp, matched)
}

#[cold]
#[inline(never)]
fn any_walk(thread: &mut Thread, slot: u64, bp: u64, matched: Option<usize>) -> bool {
    thread.count(Counter::General, 1);
    if process::options() & OPTION_SHADOW_STACK == 0 {
        thread.path.clear();
    }
    let below = if matched.is_some() { thread.path.len } else { thread.path.candidates(slot) };
    let mut walk = Walk {
        fresh: 0,
        lead: 0,
        run: None,
        run_flags: 0,
        below,
        limit: MAX_FRAMES,
        keep: true,
        spilled: false,
        frame_pointers: false,
        guessed: false,
        verified: 0,
        stepped: 0,
    };
    let mut outcome = walk.climb(thread, slot, bp, matched);
    if walk.total(&outcome) > MAX_FRAMES || matches!(outcome, Outcome::Ended(EndReason::DepthLimit)) {
        thread.path.clear();
        walk = Walk {
            fresh: 0,
            lead: 0,
            run: None,
            run_flags: 0,
            below: 0,
            limit: CUT_FRAMES,
            keep: false,
            frame_pointers: false,
            guessed: false,
            ..walk
        };
        outcome = walk.climb(thread, slot, bp, None);
    }
    let (root, end) = match outcome {
        Outcome::Met(root) => (root, None),
        Outcome::Ended(reason) => (0, Some(reason)),
        Outcome::NeedsFull => {
            let (frames, reason) = full::climb(thread, slot, bp);
            walk = Walk { fresh: frames, keep: false, run: None, lead: 0, ..walk };
            (0, Some(reason))
        }
    };
    walk.finish(thread, root, end, bp)
}

impl Walk {
    /// A walk that is done, of what `lean` can do.
    pub fn simple(fresh: usize, lead: usize, run: (usize, usize), run_flags: u64, verified: usize, stepped: usize) -> Walk {
        Walk {
            fresh,
            lead,
            run: Some(run),
            run_flags,
            below: 0,
            limit: MAX_FRAMES,
            keep: true,
            spilled: false,
            frame_pointers: false,
            guessed: false,
            verified,
            stepped,
        }
    }

    /// How deep the stack is, as far as it was followed.
    fn total(&self, outcome: &Outcome) -> usize {
        let root = if let Outcome::Met(root) = outcome { *root } else { 0 };
        root + self.fresh + self.run.map_or(0, |(low, high)| high - low + 1)
    }

    fn climb(&mut self, thread: &mut Thread, slot: u64, bp: u64, mut matched: Option<usize>) -> Outcome {
        let Some(ra) = thread.window.read(slot) else { return Outcome::Ended(EndReason::BadRead) };
        let mut frame = Fresh { slot, ra, bp, bp_slot: 0, flags: 0 };
        let mut regs = Regs { ip: ra, sp: slot + 8, bp };
        let mut interrupted = false;
        loop {
            let met = if self.keep { self.meet(&mut thread.path, &frame) } else { None };
            let from_run = match met {
                Some(k) => {
                    self.guessed |= thread.path.frame_pointers;
                    let low = match matched.take() {
                        Some(low) => low,
                        None => thread.path.verify_met(k),
                    };
                    self.verified += k - low + 1;
                    if low == 0 {
                        return Outcome::Met(k + 1);
                    }
                    if !self.start_run(&mut thread.path, low, k) {
                        return Outcome::Ended(EndReason::DepthLimit);
                    }
                    let Some(bp) = bp_after(thread, low, k, frame.bp) else { return Outcome::Ended(EndReason::BadRead) };
                    if let Some(differing) = same_slots(thread, low, bp) {
                        regs = Regs { ip: differing.ra, sp: differing.slot + 8, bp: differing.bp };
                        frame = differing;
                        continue;
                    }
                    let word = *thread.path.ra(low);
                    regs = Regs { ip: word.value, sp: word.addr + 8, bp };
                    Some(low)
                }
                None => {
                    if !self.push(&mut thread.path, frame) {
                        self.keep = false;
                        return Outcome::Ended(EndReason::DepthLimit);
                    }
                    None
                }
            };
            let key = match from_run {
                Some(low) => thread.path.ra(low).value,
                None if interrupted => regs.ip | rows::EXACT,
                None => frame.ra,
            };
            interrupted = false;
            let row = rows::row(thread, key, !self.guessed);
            self.flag(&mut thread.path, from_run, row);
            let window = &mut thread.window;
            match step(row, &mut regs, |addr| window.read(addr)) {
                Stepped::Frame { ra_slot, bp_slot } => {
                    self.stepped += 1;
                    frame = Fresh { slot: ra_slot, ra: regs.ip, bp: regs.bp, bp_slot, flags: 0 };
                }
                Stepped::SignalFrame => {
                    self.stepped += 1;
                    if !self.spill(&mut thread.path) {
                        return Outcome::Ended(EndReason::DepthLimit);
                    }
                    self.keep = false;
                    interrupted = true;
                    // An interrupted ip is exact; stored plus one, all ips are looked up at minus one.
                    frame = Fresh { slot: regs.sp, ra: regs.ip + 1, bp: regs.bp, bp_slot: 0, flags: 0 };
                    thread.window.enter(regs.sp);
                }
                Stepped::NeedsFullRegs | Stepped::NeedsSections => return Outcome::NeedsFull,
                Stepped::End(reason) => return Outcome::Ended(reason),
            }
            if row.kind() == RowKind::FramePointer {
                (self.frame_pointers, self.guessed) = (true, true);
                thread.count(Counter::FramePointer, 1);
            }
        }
    }

    /// The recorded frame that equals `frame`, if there is one.
    fn meet(&mut self, path: &mut Path, frame: &Fresh) -> Option<usize> {
        while self.below > 0 && path.ra(self.below - 1).addr < frame.slot {
            self.below -= 1;
        }
        let k = self.below.checked_sub(1)?;
        let word = *path.ra(k);
        let meta = *path.meta(k);
        if word.addr != frame.slot || word.value != frame.ra || (meta.flags & NEEDS_BP != 0 && meta.bp != frame.bp) {
            return None;
        }
        path.meet(k, frame.bp_slot);
        Some(k)
    }

    fn start_run(&mut self, path: &mut Path, low: usize, high: usize) -> bool {
        if !self.spill(path) {
            return false;
        }
        self.run = Some((low, high));
        self.run_flags = path.meta(low).flags & (USES_BP | STOP);
        self.lead = self.fresh;
        self.below = low;
        true
    }

    /// Turns the frames of the run into fresh ones.
    fn spill(&mut self, path: &mut Path) -> bool {
        let Some((low, high)) = self.run.take() else { return true };
        let count = high - low + 1;
        self.spilled = true;
        while self.fresh + count > path.capacity() {
            if !path.grow() {
                // Its frames are lost to this walk: what is left would be a stack with a hole.
                self.fresh = self.lead;
                self.keep = false;
                return false;
            }
        }
        for i in (self.lead..self.fresh).rev() {
            *path.fresh(i + count) = *path.fresh(i);
        }
        for (i, recorded) in (low..=high).rev().enumerate() {
            let (word, meta) = (*path.ra(recorded), *path.meta(recorded));
            let flags = if recorded == low { meta.flags & NEEDS_BP | self.run_flags } else { meta.flags };
            *path.fresh(self.lead + i) = Fresh { slot: word.addr, ra: word.value, bp: meta.bp, bp_slot: meta.bp_slot, flags };
        }
        self.fresh += count;
        self.lead = self.fresh;
        true
    }

    fn push(&mut self, path: &mut Path, frame: Fresh) -> bool {
        if self.fresh == self.limit || (self.fresh == path.capacity() && !path.grow()) {
            return false;
        }
        *path.fresh(self.fresh) = frame;
        self.fresh += 1;
        true
    }

    /// Notes on the frame being left what its rule means for later comparisons.
    fn flag(&mut self, path: &mut Path, recorded: Option<usize>, row: Row) {
        let uses = if matches!(row.kind(), RowKind::Bp | RowKind::DerefBp | RowKind::FramePointer) { USES_BP } else { 0 };
        let stop = if row.follows_from_slots() { 0 } else { STOP };
        match recorded {
            Some(_) => self.run_flags = uses | stop,
            None => path.fresh(self.fresh - 1).flags = uses | stop | BP_KNOWN,
        }
    }

    /// Puts the new path together, and writes it.
    pub fn finish(self, thread: &mut Thread, root: usize, end: Option<EndReason>, entry_bp: u64) -> bool {
        let path = &mut thread.path;
        let (run_low, run_count) = self.run.map_or((0, 0), |(low, high)| (low, high - low + 1));
        let (middle, lead) = if run_count == 0 { (self.fresh, 0) } else { (self.fresh - self.lead, self.lead) };
        let len = root + middle + run_count + lead;
        while len > path.capacity() {
            if !path.grow() {
                path.clear();
                thread.producer.lose(LOST_NO_MEMORY);
                return false;
            }
        }
        if run_count > 0 {
            let meta = path.meta(run_low);
            meta.flags = meta.flags & NEEDS_BP | self.run_flags;
        }
        let run_at = root + middle;
        let in_place = run_count == 0 || run_at == run_low;
        if !in_place {
            path.shift(run_low, run_at, run_count);
        }
        for i in 0..middle {
            self.place(path, self.fresh - 1 - i, root + i);
        }
        for i in 0..lead {
            self.place(path, lead - 1 - i, run_at + run_count + i);
        }
        if let Some(reason) = end {
            path.end = reason as u8;
            path.frame_pointers = self.frame_pointers;
        } else {
            path.frame_pointers |= self.frame_pointers;
        }
        path.hi = if in_place && root + run_count > 0 && !self.spilled { path.hi.max(len) } else { len };
        cut_stale(path, len);
        // Frames that were behind the path and belong to it again: whether bp is compared there is not known.
        let reached = if self.run.is_some_and(|(_, high)| high >= path.len) { run_at + run_count } else { root };
        if reached > path.len {
            path.bp_top = path.bp_top.max(reached);
        }
        path.len = len;
        settle_bp(thread, root, run_at..run_at + run_count, !in_place, entry_bp);
        thread.count(Counter::Verified, self.verified as u64);
        thread.count(Counter::Stepped, self.stepped as u64);
        if run_count > 0 {
            thread.count(Counter::Spliced, 1);
        }
        let edit = StackEdit {
            keep_root: root as u16,
            new: middle as u16,
            leaf_from: if in_place && root + run_count > 0 { run_at as u16 } else { NOTHING_BEHIND },
            keep_leaf: 0,
        };
        let written = if run_count > 0 && !in_place && middle > MAX_STACK_RECORD_IPS {
            // Too long for one record, which would overwrite what the next ones keep.
            write(thread, StackEdit { new: (len - root) as u16, ..edit }, false)
        } else if run_count > 0 {
            let edit = StackEdit { leaf_from: run_low as u16, keep_leaf: run_count as u16, ..edit };
            let behind = StackEdit { keep_root: (run_at + run_count) as u16, new: lead as u16, leaf_from: len as u16, keep_leaf: 0 };
            write(thread, edit, lead > 0) && (lead == 0 || write(thread, behind, false))
        } else {
            write(thread, edit, false)
        };
        if !written || !self.keep || process::options() & OPTION_SHADOW_STACK == 0 {
            thread.path.clear();
        }
        written
    }

    fn place(&self, path: &mut Path, fresh: usize, index: usize) {
        let frame = *path.fresh(fresh);
        *path.ra(index) = Word { addr: frame.slot, value: frame.ra };
        *path.meta(index) = Meta { bp: frame.bp, bp_slot: frame.bp_slot, flags: frame.flags };
    }
}

/// Where the step from `low` to the next older frame reads the return address and bp (0 if it leaves that), if it is the step that led to
/// the recorded one.
#[inline(always)]
pub fn same_step(path: &mut Path, low: usize) -> Option<(u64, u64)> {
    let older = low.checked_sub(1)?;
    let slot = path.ra(older).addr;
    let is_same = slot != 0 && path.meta(low).flags & STOP == 0;
    is_same.then(|| (slot, path.meta(older).bp_slot))
}

/// The next older frame of `low`, if it lies where the recorded one does: the step to it is the same, only what it reads there differs.
/// `bp` is as it is after `low`.
fn same_slots(thread: &mut Thread, low: usize, bp: u64) -> Option<Fresh> {
    let (slot, bp_slot) = same_step(&mut thread.path, low)?;
    let ra = thread.window.read(slot).filter(|ra| *ra != 0)?;
    let bp = if bp_slot == 0 { bp } else { thread.window.read(bp_slot)? };
    Some(Fresh { slot, ra, bp, bp_slot, flags: 0 })
}

/// bp as it is after frame `low` of a run `low..=high` that was met with `entry`.
fn bp_after(thread: &mut Thread, low: usize, high: usize, entry: u64) -> Option<u64> {
    // The meeting frame's own slot has been read: its value is `entry`.
    match thread.path.first_bp_slot(low, high) {
        0 => Some(entry),
        slot => thread.window.read(slot),
    }
}

/// The frames behind the path's top hang from another parent now (or from the same one by another way of saving bp), and those that lie
/// in its part of the stack are gone.
#[inline(always)]
pub fn cut_stale(path: &mut Path, len: usize) {
    let Some(top) = len.checked_sub(1) else { return };
    let top_slot = path.ra(top).addr;
    let mut i = len;
    while i < path.hi {
        let slot = path.ra(i).addr;
        if slot == 0 {
            i = path.gap.max(i + 1);
        } else if slot < top_slot {
            path.meta(i).flags |= STOP;
            path.gap = i;
            return;
        } else {
            path.ra(i).addr = 0;
            i += 1;
        }
    }
    (path.hi, path.gap) = (len, len);
}

/// Finds out for the changed frames whose saved bp matters, root to leaf: bp after a frame matters if that frame's own rule uses it, or
/// the next older frame keeps it and it matters there. `run` is the part that was met in the middle: where its first frames come out as
/// they were, the rest of it does too.
pub fn settle_bp(thread: &mut Thread, root: usize, run: core::ops::Range<usize>, moved: bool, entry_bp: u64) {
    let len = thread.path.len;
    let (old_bp_top, old_stop_top) = (thread.path.bp_top, thread.path.stop_top);
    let mut tops = (old_bp_top.min(root), old_stop_top.min(root));
    let mut i = root;
    while i < len {
        let unchanged = settle_frame(thread, i, len, entry_bp, &mut tops);
        i += 1;
        if unchanged && !moved && run.start < i && i < run.end {
            // What is known of where bp is compared and where stops are holds for the rest, as upper bounds.
            let bound = |old: usize| if old <= i { 0 } else { old.min(run.end) };
            tops = (tops.0.max(bound(old_bp_top)), tops.1.max(bound(old_stop_top)));
            i = run.end;
        }
    }
    (thread.path.bp_top, thread.path.stop_top) = tops;
}

/// One frame of [`settle_bp`]. True if nothing changed that a younger frame could depend on.
#[inline(always)]
fn settle_frame(thread: &mut Thread, i: usize, len: usize, entry_bp: u64, tops: &mut (usize, usize)) -> bool {
    let path = &mut thread.path;
    let needed_below = match i.checked_sub(1) {
        Some(older) => path.meta(older).bp_slot == 0 && path.meta(older).flags & NEEDS_BP != 0,
        None => false,
    };
    let meta = path.meta(i);
    let needed = meta.flags & USES_BP != 0 || needed_below;
    let was_needed = meta.flags & NEEDS_BP != 0;
    let fresh = meta.flags & BP_KNOWN != 0;
    meta.flags = if needed { meta.flags | NEEDS_BP } else { meta.flags & !NEEDS_BP } & !BP_KNOWN;
    if meta.flags & STOP != 0 && i > 0 {
        tops.1 = i + 1; // nothing is older than the root: its link does not matter
    }
    let slot = meta.bp_slot;
    if needed && !was_needed && !fresh {
        // Recorded when nobody asked for bp: what it is now is in memory.
        thread.path.meta(i).bp = bp_now(thread, i, len, entry_bp);
    }
    if needed && slot != 0 {
        tops.0 = i + 1;
    }
    thread.path.set_compared(i, needed && slot != 0);
    !fresh && needed == was_needed
}

fn bp_now(thread: &mut Thread, i: usize, len: usize, entry_bp: u64) -> u64 {
    for younger in i..len {
        let slot = thread.path.meta(younger).bp_slot;
        if slot != 0 {
            return thread.window.read(slot).unwrap_or(0);
        }
    }
    entry_bp
}

/// Writes one edit, in as many records as its ips need.
fn write(thread: &mut Thread, edit: StackEdit, more_edits: bool) -> bool {
    let mut at = edit.keep_root as usize;
    let mut left = edit.new as usize;
    let fallback = if thread.path.frame_pointers { STACK_FRAME_POINTER } else { 0 };
    loop {
        let now = left.min(MAX_STACK_RECORD_IPS);
        let more = left > now || more_edits;
        if !thread.producer.reserve(2 + now) {
            return false;
        }
        // An edit that does not fit one record: each part appends its ips and leaves what is behind; the last one says what is kept.
        let part = StackEdit { keep_root: at as u16, new: now as u16, ..edit };
        let part = if left > now { StackEdit { leaf_from: (at + now) as u16, keep_leaf: 0, ..part } } else { part };
        let flags = fallback | if more { STACK_MORE } else { 0 };
        thread.producer.put_untimed(tag::STACK, (2 + now) as u8, thread.path.end, flags);
        thread.producer.put(part.to_word());
        for i in at..at + now {
            let ip = thread.path.ra(i).value;
            thread.producer.put(ip);
        }
        at += now;
        left -= now;
        if left == 0 {
            return true;
        }
    }
}

const _: () = assert!(MAX_FRAMES < NOTHING_BEHIND as usize);
