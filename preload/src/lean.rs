//! The walk that most events need, with few branches and nothing else in it.
//!
//! A few frames below or in the middle of the recorded path differ, and their rules are CFA = sp or bp plus a constant. What a frame's row
//! says is taken by selecting, not by branching: which frames come in which order is the program's secret, and a wrong guess costs as much
//! as a step. All that is unusual (a rule not yet in the cache, another kind of rule, the stack's end, two runs) is left to `walk`, which
//! starts again from the leaf: nothing has been changed by then but what it would change in the same way.

use core::ops::Range;

use hound_common::event::{MAX_STACK_RECORD_IPS, STACK_FRAME_POINTER, STACK_MORE, StackEdit, tag};
use hound_common::ring::Counter;
use hound_unwind::{Regs, step_simple};

use crate::path::{BP_KNOWN, Fresh, Meta, NEEDS_BP, Path, USES_BP, Word};
use crate::rows::View;
use crate::stack::Window;
use crate::thread::Thread;
use crate::walk::{Walk, bp_after, cut_stale, same_slots};

/// A frame on the way: where its return address lies, that, and bp as it is after it.
#[derive(Clone, Copy)]
struct Frame {
    slot: u64,
    ra: u64,
    bp: u64,
    /// Where bp was read from, 0 if the step left it.
    bp_slot: u64,
}

/// What a step is taken with.
struct Ground {
    rows: View,
    window: Window,
}

impl Ground {
    /// The caller's frame, and [`USES_BP`] if bp was used to find it.
    #[inline(always)]
    fn step(&self, from: Frame) -> Option<(Frame, u64)> {
        let row = self.rows.find(from.ra)?;
        let regs = Regs { ip: from.ra, sp: from.slot + 8, bp: from.bp };
        let (to, bp_slot) = step_simple(row, &regs, |ra_slot, bp_slot| {
            if !self.window.holds(ra_slot) || !self.window.holds(bp_slot) {
                return None;
            }
            // SAFETY: on the current stack, as far as it is known to be mapped.
            let ra = unsafe { (ra_slot as *const u64).read_volatile() };
            // SAFETY: as above.
            Some((ra, unsafe { (bp_slot as *const u64).read_volatile() }))
        })?;
        Some((Frame { slot: to.sp - 8, ra: to.ip, bp: to.bp, bp_slot }, if row.is_bp() { USES_BP } else { 0 }))
    }
}

/// Steps from `frame` on until it comes to a recorded frame below index `below`: returns that index. The frames before it become fresh
/// ones.
#[inline(always)]
fn climb(ground: &Ground, path: &mut Path, frame: &mut Frame, fresh: &mut usize, below: usize) -> Option<usize> {
    let (mut at, mut count, mut below) = (*frame, *fresh, below);
    let room = path.capacity();
    loop {
        let word;
        (below, word) = path.at_or_above(below, at.slot);
        if word.addr == at.slot && word.value == at.ra {
            let meta = *path.meta(below - 1);
            if meta.flags & NEEDS_BP == 0 || meta.bp == at.bp {
                (*frame, *fresh) = (at, count);
                return Some(below - 1);
            }
        }
        let (next, uses) = ground.step(at)?;
        if count == room {
            return None;
        }
        *path.fresh(count) = Fresh { slot: at.slot, ra: at.ra, bp: at.bp, bp_slot: at.bp_slot, flags: uses | BP_KNOWN };
        count += 1;
        at = next;
    }
}

/// The walk of [`crate::walk::update`], whose parameters these are, for a path that has no stops. `None` if it is not as simple as that.
#[inline(never)]
pub fn walk(thread: &mut Thread, slot: u64, bp: u64, matched: Option<usize>) -> Option<bool> {
    let ground = Ground { rows: View::now(), window: thread.window };
    // SAFETY: the slot of our own hook's return address.
    let ra = unsafe { (slot as *const u64).read_volatile() };
    let mut frame = Frame { slot, ra, bp, bp_slot: 0 };
    let mut fresh = 0;
    let path = &mut thread.path;
    let (k, low) = match matched {
        Some(low) => (path.len - 1, low),
        None => {
            let below = path.candidates(slot);
            let k = climb(&ground, path, &mut frame, &mut fresh, below)?;
            (k, path.verify_met(k))
        }
    };
    path.meet(k, frame.bp_slot);
    if low == 0 {
        return extend(thread, k + 1, fresh, k + 1);
    }
    splice(thread, &ground, frame, fresh, (low, k), bp)
}

/// The recorded frames `run` were met, but what is older than they are has changed.
#[inline(never)]
fn splice(thread: &mut Thread, ground: &Ground, frame: Frame, lead: usize, run: (usize, usize), entry_bp: u64) -> Option<bool> {
    let (low, high) = run;
    let mut fresh = lead;
    let mut run_flags = thread.path.meta(low).flags & USES_BP;
    let bp = bp_after(thread, low, high, frame.bp)?;
    let mut stepped = 0;
    let mut frame = match same_slots(thread, low, bp) {
        Some(Fresh { slot, ra, bp, bp_slot, .. }) => Frame { slot, ra, bp, bp_slot },
        None => {
            let word = *thread.path.ra(low);
            let (next, uses) = ground.step(Frame { slot: word.addr, ra: word.value, bp, bp_slot: 0 })?;
            (run_flags, stepped) = (uses, 1);
            next
        }
    };
    let path = &mut thread.path;
    let k = climb(ground, path, &mut frame, &mut fresh, low)?;
    let count = high - low + 1;
    if path.verify_met(k) != 0 || k + 1 + fresh + count > path.capacity() {
        return None;
    }
    path.meet(k, frame.bp_slot);
    let change = Change { root: k + 1, low, high, lead, fresh, run_flags, verified: count + k + 1, stepped: fresh + stepped };
    if let Some(written) = replace(thread, &change) {
        return Some(written);
    }
    let walk = Walk::simple(fresh, lead, run, run_flags, change.verified, change.stepped);
    Some(walk.finish(thread, k + 1, None, entry_bp))
}

/// Makes the fresh frames `from`, leaf first, the path's frames from index `at` on, and finds out which of them need bp. `needs` says
/// whether bp as it is before the first of them matters to what is older; returned is that of the last one. Raises `bp_top`.
#[inline(always)]
fn place(path: &mut Path, from: Range<usize>, at: usize, needs: bool, bp_top: &mut usize) -> bool {
    let mut needed_below = needs;
    let mut at = at;
    for i in from.rev() {
        let frame = *path.fresh(i);
        let needs = frame.flags & USES_BP != 0 || needed_below;
        *path.ra(at) = Word { addr: frame.slot, value: frame.ra };
        let flags = frame.flags & USES_BP | if needs { NEEDS_BP } else { 0 };
        *path.meta(at) = Meta { bp: frame.bp, bp_slot: frame.bp_slot, flags };
        needed_below = needs && frame.bp_slot == 0;
        path.set_compared(at, needs && frame.bp_slot != 0);
        at += 1;
        if needs && frame.bp_slot != 0 {
            *bp_top = at;
        }
    }
    needed_below
}

/// Whether bp as it is before frame `i` matters to what is older.
#[inline(always)]
fn passes_need(path: &mut Path, i: usize) -> bool {
    let meta = path.meta(i);
    meta.bp_slot == 0 && meta.flags & NEEDS_BP != 0
}

/// Writes an edit and the ips of its new frames, which are in the path. There must be room.
#[inline(always)]
fn put_edit(thread: &mut Thread, edit: StackEdit, more: u8) {
    let path = &mut thread.path;
    let flags = more | if path.frame_pointers { STACK_FRAME_POINTER } else { 0 };
    thread.producer.put_untimed(tag::STACK, 2 + edit.new as u8, path.end, flags);
    thread.producer.put(edit.to_word());
    thread.producer.put_all((0..usize::from(edit.new)).map(|i| path.ra(usize::from(edit.keep_root) + i).value));
}

/// The new path is the recorded frames `0..root` and the fresh ones. [`Walk::finish`] of that case.
#[inline(always)]
fn extend(thread: &mut Thread, root: usize, fresh: usize, verified: usize) -> Option<bool> {
    let path = &mut thread.path;
    let len = root + fresh;
    if len > path.capacity() || fresh > MAX_STACK_RECORD_IPS {
        return None;
    }
    if !thread.producer.reserve(2 + fresh) {
        path.clear();
        return Some(false);
    }
    // Recorded frames behind the path that belong to it again: whether bp is compared there is not known.
    let mut bp_top = if root > path.len { root } else { path.bp_top.min(root) };
    let needs = passes_need(path, root - 1);
    place(path, 0..fresh, root, needs, &mut bp_top);
    settle(path, len, bp_top);
    put_edit(thread, StackEdit { keep_root: root as u16, new: fresh as u16, leaf_from: len as u16, keep_leaf: 0 }, 0);
    thread.count(Counter::Verified, verified as u64);
    thread.count(Counter::Stepped, fresh as u64);
    Some(true)
}

#[inline(always)]
fn settle(path: &mut Path, len: usize, bp_top: usize) {
    path.hi = path.hi.max(len);
    path.bp_top = bp_top;
    cut_stale(path, len);
    path.len = len;
}

/// What a splice came to: the path is the recorded frames `0..root`, the fresh ones but the first `lead`, the recorded `low..=high`, and
/// the first `lead` fresh ones.
struct Change {
    root: usize,
    low: usize,
    high: usize,
    lead: usize,
    fresh: usize,
    run_flags: u64,
    verified: usize,
    stepped: usize,
}

/// [`Walk::finish`] of a splice that leaves the run where it is, and what it needs of bp unchanged. `None` if this is none.
#[inline(always)]
fn replace(thread: &mut Thread, change: &Change) -> Option<bool> {
    let &Change { root, low, high, lead, fresh, .. } = change;
    let path = &mut thread.path;
    let middle = fresh - lead;
    let len = high + 1 + lead;
    if root + middle != low || len > path.capacity() || middle > MAX_STACK_RECORD_IPS || lead > MAX_STACK_RECORD_IPS {
        return None;
    }
    let old_bp_top = if high >= path.len { path.bp_top.max(high + 1) } else { path.bp_top };
    let mut bp_top = old_bp_top.min(root);
    let needs = passes_need(path, root - 1);
    let needs = place(path, lead..fresh, root, needs, &mut bp_top) || change.run_flags & USES_BP != 0;
    let meta = path.meta(low);
    if needs != (meta.flags & NEEDS_BP != 0) {
        return None;
    }
    let behind = if lead > 0 { 2 + lead } else { 0 };
    if !thread.producer.reserve(2 + middle + behind) {
        path.clear();
        return Some(false);
    }
    meta.flags = meta.flags & NEEDS_BP | change.run_flags;
    if needs && meta.bp_slot != 0 {
        bp_top = low + 1;
    }
    if old_bp_top > low + 1 && high > low {
        bp_top = old_bp_top.min(high + 1); // what is known of the rest of the run holds, as an upper bound
    }
    let needs = passes_need(path, high);
    place(path, 0..lead, high + 1, needs, &mut bp_top);
    settle(path, len, bp_top);
    let edit = StackEdit { keep_root: root as u16, new: middle as u16, leaf_from: low as u16, keep_leaf: (high - low + 1) as u16 };
    put_edit(thread, edit, if lead > 0 { STACK_MORE } else { 0 });
    if lead > 0 {
        put_edit(thread, StackEdit { keep_root: (high + 1) as u16, new: lead as u16, leaf_from: len as u16, keep_leaf: 0 }, 0);
    }
    thread.count(Counter::Verified, change.verified as u64);
    thread.count(Counter::Stepped, change.stepped as u64);
    thread.count(Counter::Spliced, 1);
    Some(true)
}
