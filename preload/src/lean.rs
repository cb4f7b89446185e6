//! The walk that most events need, with few instructions and nothing else in it.
//!
//! A few frames below or in the middle of the recorded path differ, and their rules are CFA = sp or bp plus a constant. What bp is on the
//! way is not followed, only where it was saved: it is read where a rule or a recorded frame asks for it, which few do. All that is unusual
//! (a rule not yet in the cache, another kind of rule, the stack's end, two runs) is left to `walk`, which starts again from the leaf:
//! nothing has been changed by then but what it would change in the same way.

use core::ops::Range;

use hound_common::event::{MAX_STACK_RECORD_IPS, STACK_FRAME_POINTER, STACK_MORE, StackEdit, tag};
use hound_common::ring::Counter;

use crate::path::{Fresh, Meta, NEEDS_BP, Path, STOP, USES_BP, Word};
use crate::rows::View;
use crate::stack::Window;
use crate::thread::Thread;
use crate::walk::{Walk, cut_stale, same_step, settle_bp};

/// A frame on the way.
#[derive(Clone, Copy)]
struct At {
    /// Slot of the return address.
    slot: u64,
    ra: u64,
    /// Where the step to this frame read bp, 0 if it left it.
    bp_slot: u64,
}

/// What a walk goes by.
struct Lean {
    rows: View,
    window: Window,
    /// Slot of the recorded root. All up to there is mapped.
    root_slot: u64,
    /// bp at the leaf.
    entry_bp: u64,
    /// The recorded frames that were met in the middle, and how many were unwound before.
    run: Option<(usize, usize, usize)>,
    /// Frames unwound, leaf first.
    fresh: usize,
    /// [`USES_BP`] if one of their rules has it.
    uses: u64,
}

impl Lean {
    /// bp in a frame that comes `from` there, with `fresh` frames unwound before.
    #[inline(always)]
    fn bp(&self, path: &mut Path, from: u64, fresh: usize) -> Option<u64> {
        let from = if from == 0 { self.bp_slot(path, fresh) } else { from };
        if from == 0 {
            return Some(self.entry_bp);
        }
        // SAFETY: on the current stack, as far as it is known to be mapped.
        self.window.holds(from).then(|| unsafe { (from as *const u64).read_volatile() })
    }

    /// Where the last step that read bp did, 0 if none has.
    #[cold]
    fn bp_slot(&self, path: &mut Path, fresh: usize) -> u64 {
        let last = |path: &mut Path, frames: Range<usize>| frames.rev().map(|i| path.fresh(i).bp_slot).find(|slot| *slot != 0);
        let (low, above, lead) = self.run.map_or((0, 0, 0), |(low, high, lead)| (low, high + 1, lead));
        last(path, lead..fresh)
            .or_else(|| Some(path.first_bp_slot(low, above)).filter(|slot| *slot != 0))
            .or_else(|| last(path, 0..lead))
            .unwrap_or(0)
    }

    /// Goes to the caller's frame. If bp is used to find it, [`USES_BP`] is set in `flags`. The frames unwound before end at `to`.
    #[inline(always)]
    fn step(&mut self, path: &mut Path, at: &mut At, to: *const Fresh, flags: &mut u64) -> Option<()> {
        let packed = self.rows.find(at.ra)?;
        let row = packed.rest();
        let mut base = at.slot;
        if !row.is_sp() {
            base = self.bp(path, at.bp_slot, path.fresh_until(to))?.wrapping_sub(8);
            if !row.is_bp() || base & 7 != 0 || base.wrapping_add(packed.offset()) <= at.slot {
                return None;
            }
            *flags = USES_BP;
            self.uses = USES_BP;
        }
        let slot = base.wrapping_add(packed.offset());
        if slot > self.root_slot {
            return None;
        }
        at.slot = slot;
        // SAFETY: between two frames of the current stack.
        at.ra = unsafe { (slot as *const u64).read_volatile() };
        let words = u64::from(row.bp_slot_words());
        at.bp_slot = if words == 0 { 0 } else { slot.wrapping_add(8).wrapping_sub(words * 8) };
        Some(())
    }

    /// Steps from `at` on until it comes to a recorded frame below index `below`: returns that index. The frames before it become fresh
    /// ones.
    #[inline(always)]
    fn climb(&mut self, path: &mut Path, from: &mut At, below: usize) -> Option<usize> {
        let mut search = path.search(below);
        let (mut at, mut to, end) = (*from, path.fresh_from(self.fresh), path.fresh_from(path.capacity()));
        loop {
            let word = search.up_to(at.slot);
            if word.addr == at.slot && word.value == at.ra {
                let k = path.found(search);
                let Meta { flags, bp, .. } = *path.meta(k);
                // From a stop the way leads on by its rule, as if it had not been met.
                if flags & (NEEDS_BP | STOP) == 0 || flags & STOP == 0 && self.bp(path, at.bp_slot, path.fresh_until(to))? == bp {
                    (*from, self.fresh) = (at, path.fresh_until(to));
                    return Some(k);
                }
            }
            if to == end {
                return None;
            }
            // SAFETY: one of the path's fresh frames.
            let fresh = unsafe { &mut *to };
            (fresh.slot, fresh.ra, fresh.bp_slot, fresh.flags) = (at.slot, at.ra, at.bp_slot, 0);
            self.step(path, &mut at, to, &mut fresh.flags)?;
            to = to.wrapping_add(1);
        }
    }
}

/// The walk of [`crate::walk::update`], whose parameters these are, for a path that has no stops. `None` if it is not as simple as that.
#[inline(never)]
pub fn walk(thread: &mut Thread, slot: u64, bp: u64, matched: Option<usize>) -> Option<bool> {
    let path = &mut thread.path;
    let root_slot = path.ra(0).addr;
    if slot > root_slot || slot & 7 != 0 {
        return None;
    }
    let mut lean = Lean { rows: View::now(), window: thread.window, root_slot, entry_bp: bp, run: None, fresh: 0, uses: 0 };
    // SAFETY: the slot of our own hook's return address.
    let ra = unsafe { (slot as *const u64).read_volatile() };
    let mut at = At { slot, ra, bp_slot: 0 };
    let (k, low) = match matched {
        Some(low) => (path.len - 1, low),
        None => {
            let below = path.candidates(slot);
            let k = lean.climb(path, &mut at, below)?;
            (k, path.verify_met(k))
        }
    };
    path.meet(k, at.bp_slot);
    if low == 0 {
        return extend(thread, &lean, k + 1);
    }
    lean.run = Some((low, k, lean.fresh));
    splice(thread, lean)
}

/// The recorded frames of the run were met, but what is older than they are has changed.
#[inline(never)]
fn splice(thread: &mut Thread, mut lean: Lean) -> Option<bool> {
    let (low, high, lead) = lean.run?;
    let path = &mut thread.path;
    let word = *path.ra(low);
    let mut stepped = 0;
    let mut run_flags = path.meta(low).flags & USES_BP;
    let same = same_step(path, low);
    let mut at = match same {
        // SAFETY: the slot of a recorded frame, above one that has been compared.
        Some((slot, bp_slot)) => At { slot, ra: unsafe { (slot as *const u64).read_volatile() }, bp_slot },
        None => {
            let mut at = At { slot: word.addr, ra: word.value, bp_slot: 0 };
            (run_flags, stepped) = (0, 1);
            lean.step(path, &mut at, path.fresh_from(lead), &mut run_flags)?;
            at
        }
    };
    let k = lean.climb(path, &mut at, low)?;
    let count = high - low + 1;
    if path.verify_met(k) != 0 || k + 1 + lean.fresh + count > path.capacity() {
        return None;
    }
    path.meet(k, at.bp_slot);
    let change = Change { root: k + 1, low, high, lead, run_flags, verified: count + k + 1, stepped: lean.fresh + stepped };
    if let Some(written) = replace(thread, &lean, &change) {
        return Some(written);
    }
    let walk = Walk::simple(lean.fresh, lead, (low, high), run_flags, change.verified, change.stepped);
    Some(walk.finish(thread, k + 1, None, lean.entry_bp))
}

/// Writes an edit, and makes the fresh frames that end before `end`, as many as it has new ones, frames of the path. There must be room.
#[inline(always)]
fn put_edit(thread: &mut Thread, edit: StackEdit, end: usize, more: u8) {
    let path = &mut thread.path;
    let flags = more | if path.frame_pointers { STACK_FRAME_POINTER } else { 0 };
    thread.producer.put_untimed(tag::STACK, 2 + edit.new as u8, path.end, flags);
    thread.producer.put(edit.to_word());
    let mut at = usize::from(edit.keep_root);
    thread.producer.put_all((end - usize::from(edit.new)..end).rev().map(|i| {
        let frame = *path.fresh(i);
        *path.ra(at) = Word { addr: frame.slot, value: frame.ra };
        // What bp was is found out for those that turn out to need it.
        *path.meta(at) = Meta { bp: 0, bp_slot: frame.bp_slot, flags: frame.flags };
        at += 1;
        frame.ra
    }));
}

/// Whether bp as it is before frame `i` matters to what is older.
#[inline(always)]
fn passes_need(path: &mut Path, i: usize) -> bool {
    let meta = path.meta(i);
    meta.bp_slot == 0 && meta.flags & NEEDS_BP != 0
}

/// The new path is the recorded frames `0..root` and the fresh ones. [`Walk::finish`] of that case.
#[inline(always)]
fn extend(thread: &mut Thread, lean: &Lean, root: usize) -> Option<bool> {
    let fresh = lean.fresh;
    let len = root + fresh;
    if len > thread.path.capacity() || fresh > MAX_STACK_RECORD_IPS {
        return None;
    }
    if !thread.producer.reserve(2 + fresh) {
        thread.path.clear();
        return Some(false);
    }
    put_edit(thread, StackEdit { keep_root: root as u16, new: fresh as u16, leaf_from: len as u16, keep_leaf: 0 }, fresh, 0);
    let path = &mut thread.path;
    let needs = lean.uses != 0 || passes_need(path, root - 1);
    settle(thread, lean, root, len, root..root, needs);
    thread.count(Counter::Verified, root as u64);
    thread.count(Counter::Stepped, fresh as u64);
    Some(true)
}

/// The path's frames are `0..len` now, of which those from `root` on are others than before, but for `run`. `needs`: bp matters to one of
/// them, or did.
#[inline(always)]
fn settle(thread: &mut Thread, lean: &Lean, root: usize, len: usize, run: Range<usize>, needs: bool) {
    let path = &mut thread.path;
    path.hi = path.hi.max(len);
    cut_stale(path, len);
    let reached = run.end.max(root);
    if reached > path.len {
        path.bp_top = path.bp_top.max(reached); // frames that belong to the path again: whether bp is compared there is not known
    }
    path.len = len;
    if needs {
        settle_bp(thread, root, run, false, lean.entry_bp);
        return;
    }
    path.compare_none(root, run.start);
    path.compare_none(reached, len);
    path.bp_top = path.bp_top.min(reached);
}

/// What a splice came to: the path is the recorded frames `0..root`, the fresh ones but the first `lead`, the recorded `low..=high`, and
/// the first `lead` fresh ones.
struct Change {
    root: usize,
    low: usize,
    high: usize,
    lead: usize,
    run_flags: u64,
    verified: usize,
    stepped: usize,
}

/// [`Walk::finish`] of a splice that leaves the run where it is. `None` if this is none.
#[inline(always)]
fn replace(thread: &mut Thread, lean: &Lean, change: &Change) -> Option<bool> {
    let &Change { root, low, high, lead, run_flags, .. } = change;
    let middle = lean.fresh - lead;
    let len = high + 1 + lead;
    if root + middle != low || len > thread.path.capacity() || middle > MAX_STACK_RECORD_IPS || lead > MAX_STACK_RECORD_IPS {
        return None;
    }
    let behind = if lead > 0 { 2 + lead } else { 0 };
    if !thread.producer.reserve(2 + middle + behind) {
        thread.path.clear();
        return Some(false);
    }
    let edit = StackEdit { keep_root: root as u16, new: middle as u16, leaf_from: low as u16, keep_leaf: (high - low + 1) as u16 };
    put_edit(thread, edit, lean.fresh, if lead > 0 { STACK_MORE } else { 0 });
    if lead > 0 {
        let edit = StackEdit { keep_root: (high + 1) as u16, new: lead as u16, leaf_from: len as u16, keep_leaf: 0 };
        put_edit(thread, edit, lead, 0);
    }
    let path = &mut thread.path;
    let meta = path.meta(low);
    let before = meta.flags & NEEDS_BP;
    meta.flags = before | run_flags;
    let needs = (before | run_flags | lean.uses) != 0 || passes_need(path, root - 1) || passes_need(path, high);
    settle(thread, lean, root, len, low..high + 1, needs);
    thread.count(Counter::Verified, change.verified as u64);
    thread.count(Counter::Stepped, change.stepped as u64);
    thread.count(Counter::Spliced, 1);
    Some(true)
}
