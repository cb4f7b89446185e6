//! Compares a capture with what the program noted: the same blocks in each thread, none more, none fewer, and the same stacks.
//!
//! A program's own blocks are told from those that libc makes on its behalf by the caller: an event is the program's own if the
//! innermost frame, past `operator new` and its kin, lies in the program's code. So an event with a wrong stack counts as missing,
//! or as one too many. Blocks of libraries have no oracle here; the counting interposer covers them as totals.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use hound_common::event::MAX_FRAMES;

use crate::capture::Event;
use crate::oracle::{Call, Note, Oracle};

/// How a dump says that a stack was cut.
const DEPTH_LIMIT: &str = "the stack is deeper than the limit";
/// How it says that the next frame lies where nothing was copied.
const NOT_COPIED: &str = "a word of the stack could not be read";
/// Innermost frames that a stack too deep to be recorded whole must still show.
const LEAST_LEFT: usize = 1000;

/// What happened to one block, in the words that both sides share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    Alloc { kind: &'a str, addr: u64, size: u64, usable: Option<u64>, prev: u64 },
    Free { addr: u64 },
    Marker { value: u64 },
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Step::Alloc { kind, addr, size, usable, prev } => {
                write!(f, "{kind} of {size} at {addr:#x}, usable {}", usable.map_or("unknown".into(), |u| u.to_string()))?;
                if prev == 0 { Ok(()) } else { write!(f, ", continues {prev:#x}") }
            }
            Step::Free { addr } => write!(f, "free of {addr:#x}"),
            Step::Marker { value } => write!(f, "marker {value}"),
        }
    }
}

/// A step and the stack it was made from, innermost first; and why the stack ends there (captured ones only).
pub(crate) struct Made<'a> {
    /// What.
    pub(crate) step: Step<'a>,
    stack: Option<&'a [u64]>,
    end: Option<&'a str>,
}

/// How exact a comparison can be.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Starts of the executable's functions as linked, ascending: the innermost frames must lie in one function. Empty: not compared.
    pub function_starts: Vec<u64>,
    /// Events that a thread may have at its end beyond what it noted, because it was killed between doing and noting.
    pub cut_tail: usize,
    /// A captured block's usable size may be unknown: its allocator has no function that tells it.
    pub usable_unknown: bool,
    /// Stacks were copied from one place: what a signal handler on a stack of its own has interrupted is not in the copy.
    pub copied: bool,
    /// Names of functions that are one and the same code (glibc's `memalign` and `aligned_alloc`): a patch at its entry cannot tell by which
    /// of them it was called.
    pub one_function: Vec<BTreeSet<String>>,
}

/// All differences, as text that names thread, position and both sides; empty if the capture is exact.
pub fn differences(oracle: &Oracle, events: &[Event], rules: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    let mut captured = captured_steps(oracle, events);
    for (tid, notes) in oracle.by_thread() {
        let noted = noted_steps(&notes);
        let mut got = captured.remove(&tid).unwrap_or_default();
        if got.len() > noted.len() && got.len() - noted.len() <= rules.cut_tail {
            got.truncate(noted.len());
        }
        compare_thread(tid, &noted, &got, oracle, rules, &mut found);
    }
    for (tid, steps) in captured {
        if steps.len() > rules.cut_tail {
            found.push(format!("thread {tid} noted nothing, but {} events of it were captured; the first: {}", steps.len(), steps[0].step));
        }
    }
    found
}

/// How many steps the program noted: what a test requires to be above zero.
pub fn noted(oracle: &Oracle) -> usize {
    oracle.by_thread().values().map(|notes| noted_steps(notes).len()).sum()
}

/// Leaves out frees of blocks that the notes do not tell the beginning of: they were there before whoever records came.
///
/// A free is noted after it was made: by then another thread may have been given the address, and have noted that. So blocks are counted.
/// What was there before must be freed while nobody else allocates.
pub fn leave_out_what_was_there(oracle: &mut Oracle) {
    let mut alive = HashMap::<u64, u32>::new();
    let is_gone = |alive: &mut HashMap<u64, u32>, addr: u64| match alive.get_mut(&addr) {
        Some(blocks @ 1..) => {
            *blocks -= 1;
            true
        }
        _ => false,
    };
    oracle.notes.retain(|note| {
        if note.prev != 0 && (note.addr != 0 || note.size == 0) {
            is_gone(&mut alive, note.prev);
        }
        match note.call {
            Call::Free => return is_gone(&mut alive, note.addr),
            Call::Alloc(_) | Call::Realloc(_) if note.addr != 0 => *alive.entry(note.addr).or_default() += 1,
            _ => {}
        }
        true
    });
}

fn compare_thread(tid: u32, noted: &[Made<'_>], got: &[Made<'_>], oracle: &Oracle, rules: &Rules, found: &mut Vec<String>) {
    let first_wrong = noted.iter().zip(got).position(|(n, g)| !same(n.step, g.step, rules));
    if first_wrong.is_some() || noted.len() != got.len() {
        let at = first_wrong.unwrap_or(noted.len().min(got.len()));
        found.push(format!(
            "thread {tid}: {} steps noted, {} captured; they part at step {at}:\n{}",
            noted.len(),
            got.len(),
            excerpt(noted, got, at)
        ));
        return;
    }
    for (i, (n, g)) in noted.iter().zip(got).enumerate() {
        let (Some(wanted), Some(stack)) = (n.stack, g.stack) else { continue };
        if let Some(why) = stack_difference(wanted, stack, g.end, oracle, rules) {
            let (wanted, stack) = (addresses(wanted), addresses(stack));
            found.push(format!(
                "thread {tid}, step {i}, {}: {why}\n  noted    {wanted}\n  captured {stack} ends: {}",
                n.step,
                g.end.unwrap_or("?")
            ));
            if found.len() > 5 {
                return;
            }
        }
    }
}

pub(crate) fn same(noted: Step<'_>, captured: Step<'_>, rules: &Rules) -> bool {
    let (Step::Alloc { kind, addr, size, usable, prev }, Step::Alloc { kind: its_kind, usable: its_usable, .. }) = (noted, captured) else {
        return noted == captured;
    };
    let one = |names: &BTreeSet<String>| names.contains(kind) && names.contains(its_kind);
    let kind = if rules.one_function.iter().any(one) { its_kind } else { kind };
    let usable = if rules.usable_unknown && its_usable.is_none() { None } else { usable };
    captured == Step::Alloc { kind, addr, size, usable, prev }
}

/// What is wrong with a captured stack, if anything.
fn stack_difference(noted: &[u64], captured: &[u64], end: Option<&str>, oracle: &Oracle, rules: &Rules) -> Option<String> {
    let through = captured.iter().take_while(|ip| oracle.is_through(**ip)).count();
    let captured = &captured[through..];
    let after_handler = captured.len().checked_sub(2).is_some_and(|at| captured[at] == oracle.restorer);
    if rules.copied && end == Some(NOT_COPIED) && after_handler && noted.len() >= captured.len() {
        let noted = &noted[..captured.len()];
        return stack_difference(noted, captured, Some("root"), oracle, &Rules { copied: false, ..rules.clone() });
    }
    // What is too deep is cut, says so, and what is left is no less true.
    let too_deep = through + noted.len() > MAX_FRAMES;
    if end != Some(if too_deep { DEPTH_LIMIT } else { "root" }) {
        return Some("the stack does not end where it should".into());
    }
    let noted = if too_deep && captured.len() >= LEAST_LEFT { noted.get(..captured.len()).unwrap_or(noted) } else { noted };
    if noted.len() != captured.len() {
        return Some(format!("{} frames noted, {} captured", noted.len(), captured.len()));
    }
    // Where a signal struck is no return address. Captures store it plus one, so that "one before" is the instruction for every frame.
    let expected = |i: usize| noted[i] + u64::from(noted[i - 1] == oracle.restorer);
    if let Some(i) = (1..noted.len()).find(|&i| expected(i) != captured[i]) {
        return Some(format!("frame {i} differs"));
    }
    let base = oracle.base;
    let function = |ip: u64| rules.function_starts.partition_point(|start| start + base < ip);
    let (wanted, got) = (*noted.first()?, *captured.first()?);
    (oracle.is_own(got) && function(wanted) != function(got)).then(|| "the innermost frames lie in different functions".into())
}

pub(crate) fn noted_steps<'a>(notes: &[&'a Note]) -> Vec<Made<'a>> {
    let mut steps = Vec::with_capacity(notes.len());
    for note in notes {
        let stack = (!note.stack.is_empty()).then_some(note.stack.as_slice());
        let mut push = |step| steps.push(Made { step, stack, end: None });
        let made = |kind, prev| Step::Alloc { kind, addr: note.addr, size: note.size, usable: Some(note.usable), prev };
        match note.call {
            Call::Alloc(kind) if note.addr != 0 => push(made(kind, 0)),
            Call::Realloc(kind) if note.addr != 0 => {
                if note.prev != 0 {
                    push(Step::Free { addr: note.prev });
                }
                push(made(kind, note.prev));
            }
            // glibc: realloc to nothing frees. Any other failure leaves the block alone.
            Call::Realloc(_) if note.prev != 0 && note.size == 0 => push(Step::Free { addr: note.prev }),
            Call::Free => push(Step::Free { addr: note.addr }),
            Call::Marker => push(Step::Marker { value: note.size }),
            Call::Alloc(_) | Call::Realloc(_) | Call::Map(_) => {}
        }
    }
    steps
}

/// The program's own events of each thread.
pub(crate) fn captured_steps<'a>(oracle: &Oracle, events: &'a [Event]) -> BTreeMap<u32, Vec<Made<'a>>> {
    let mut threads = BTreeMap::<u32, Vec<&Event>>::new();
    let (mut own_blocks, mut foreign_blocks) = (HashSet::new(), HashSet::new());
    let mut own_frees = HashSet::new();
    for event in events {
        if matches!(event.event.as_str(), "alloc" | "free" | "marker") {
            threads.entry(event.tid).or_default().push(event);
        }
        // A free is the program's own if the block was: libraries reach free by jumps, which leave the program as its caller.
        match event.event.as_str() {
            "alloc" if called_by_program(oracle, event) => _ = own_blocks.insert(event.addr),
            "alloc" => _ = foreign_blocks.insert(event.addr),
            "free" if own_blocks.remove(&event.addr) || !foreign_blocks.remove(&event.addr) && called_by_program(oracle, event) => {
                own_frees.insert(std::ptr::from_ref(event));
            }
            _ => {}
        }
    }
    let steps = |events: Vec<&'a Event>| {
        let mut made = Vec::new();
        for (i, event) in events.iter().enumerate() {
            let continued = events.get(i + 1).filter(|next| event.realloc && next.event == "alloc" && next.prev == Some(event.addr));
            let own = match event.event.as_str() {
                "marker" => true,
                "free" => {
                    continued.map_or_else(|| own_frees.contains(&std::ptr::from_ref(*event)), |alloc| called_by_program(oracle, alloc))
                }
                _ => called_by_program(oracle, event),
            };
            if own {
                made.push(Made { step: step_of(event), stack: event.stack.as_deref().filter(|s| !s.is_empty()), end: event.end.as_str() });
            }
        }
        made
    };
    threads.into_iter().map(|(tid, events)| (tid, steps(events))).filter(|(_, steps)| !steps.is_empty()).collect()
}

fn step_of(event: &Event) -> Step<'_> {
    match event.event.as_str() {
        "alloc" => Step::Alloc {
            kind: event.kind.as_deref().unwrap_or("?"),
            addr: event.addr,
            size: event.size,
            usable: event.usable,
            prev: event.prev.unwrap_or(0),
        },
        "marker" => Step::Marker { value: event.value },
        _ => Step::Free { addr: event.addr },
    }
}

fn called_by_program(oracle: &Oracle, event: &Event) -> bool {
    let stack = event.stack.as_deref().unwrap_or(&[]);
    stack.iter().find(|ip| !oracle.is_through(**ip)).is_some_and(|ip| oracle.is_own(*ip))
}

fn excerpt(noted: &[Made<'_>], got: &[Made<'_>], at: usize) -> String {
    let mut text = String::new();
    for i in at.saturating_sub(2)..at + 3 {
        let side = |made: &[Made<'_>]| made.get(i).map_or("(nothing)".into(), |m| m.step.to_string());
        text += &format!("  {} {i}: noted {} | captured {}\n", if i == at { ">" } else { " " }, side(noted), side(got));
    }
    let stack = |made: &[Made<'_>]| made.get(at).and_then(|m| m.stack).map_or("none".into(), addresses);
    text + &format!("  stacks at {at}: noted {} | captured {}", stack(noted), stack(got))
}

/// The innermost frames of a stack, and how many there are.
fn addresses(stack: &[u64]) -> String {
    let shown: Vec<String> = stack.iter().take(40).map(|ip| format!("{ip:x}")).collect();
    format!("[{}] ({} frames)", shown.join(" "), stack.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Vec<std::ops::Range<u64>> {
        std::iter::once(start..end).collect()
    }

    fn oracle(notes: Vec<Note>) -> Oracle {
        Oracle {
            notes,
            own: range(0x1000, 0x2000),
            through: range(0x9000, 0x9100),
            facts: Vec::new(),
            pid: 1,
            base: 0,
            restorer: 0,
            unfinished: 0,
        }
    }

    fn note(call: Call, addr: u64, size: u64, prev: u64) -> Note {
        Note { call, tid: 7, addr, size, usable: size, prev, stack: vec![0x1010, 0x1100] }
    }

    fn events(lines: &[&str]) -> Vec<Event> {
        lines.iter().map(|l| serde_json::from_str(l).expect("a valid line")).collect()
    }

    const RIGHT: [&str; 3] = [
        r#"{"tid":7,"event":"alloc","kind":"malloc","addr":64,"size":8,"usable":8,"stack":[4104,4352],"end":"root"}"#,
        r#"{"tid":7,"event":"alloc","kind":"malloc","addr":96,"size":9,"usable":9,"stack":[36880,32768,4352],"end":"root"}"#,
        r#"{"tid":7,"event":"free","kind":"free","addr":64,"stack":[4104,4352],"end":"root"}"#,
    ];

    fn truth() -> Oracle {
        oracle(vec![note(Call::Alloc("malloc"), 64, 8, 0), note(Call::Free, 64, 0, 0)])
    }

    #[test]
    fn equal_records_have_no_differences_and_foreign_blocks_do_not_count() {
        assert_eq!(differences(&truth(), &events(&RIGHT), &Rules::default()), Vec::<String>::new());
    }

    #[test]
    fn a_block_missing_or_too_many_or_of_other_size_is_a_difference() {
        assert_eq!(differences(&truth(), &events(&RIGHT[..2]), &Rules::default()).len(), 1);
        assert_eq!(differences(&truth(), &events(&[RIGHT[0], RIGHT[2], RIGHT[0]]), &Rules::default()).len(), 1);
        let other_size = RIGHT[0].replace("\"size\":8", "\"size\":16");
        assert_eq!(differences(&truth(), &events(&[&other_size, RIGHT[2]]), &Rules::default()).len(), 1);
    }

    #[test]
    fn names_of_one_function_are_the_same_and_no_others() {
        let other = RIGHT[0].replace("\"malloc\"", "\"valloc\"");
        let one_function = vec![["malloc", "valloc"].into_iter().map(String::from).collect()];
        let rules = Rules { one_function, ..Rules::default() };
        assert_eq!(differences(&truth(), &events(&[&other, RIGHT[2]]), &rules), Vec::<String>::new());
        let third = RIGHT[0].replace("\"malloc\"", "\"calloc\"");
        assert_eq!(differences(&truth(), &events(&[&third, RIGHT[2]]), &rules).len(), 1);
    }

    #[test]
    fn a_free_that_is_noted_late_is_not_taken_for_one_of_what_was_there() {
        let by = |tid: u32, note: Note| Note { tid, ..note };
        // Thread 8 is given the block's address before thread 7 has noted that it freed it.
        let (made, freed) = (|| note(Call::Alloc("malloc"), 64, 8, 0), || note(Call::Free, 64, 0, 0));
        let mut oracle = oracle(vec![made(), by(8, made()), freed(), by(8, freed()), freed()]);
        leave_out_what_was_there(&mut oracle);
        let left: Vec<(u32, Call)> = oracle.notes.iter().map(|note| (note.tid, note.call)).collect();
        let malloc = Call::Alloc("malloc");
        assert_eq!(left, [(7, malloc), (8, malloc), (7, Call::Free), (8, Call::Free)], "only the last is of an older block");
    }

    #[test]
    fn a_wrong_frame_a_short_stack_and_an_early_end_are_differences() {
        for wrong in [("4352]", "4353]"), (",4352]", "]"), ("\"root\"", "\"no rule\"")] {
            let line = RIGHT[0].replace(wrong.0, wrong.1);
            assert_eq!(differences(&truth(), &events(&[&line, RIGHT[2]]), &Rules::default()).len(), 1, "{wrong:?}");
        }
    }

    #[test]
    fn a_failed_realloc_is_no_step_and_one_that_moves_is_two() {
        let failed = note(Call::Realloc("realloc"), 0, 1 << 62, 64);
        let moved = note(Call::Realloc("realloc"), 96, 20, 64);
        let freed = note(Call::Realloc("realloc"), 0, 0, 96);
        assert_eq!(noted_steps(&[&failed]).len(), 0);
        assert_eq!(noted_steps(&[&moved]).len(), 2);
        assert!(noted_steps(&[&freed])[0].step == Step::Free { addr: 96 });
    }
}
