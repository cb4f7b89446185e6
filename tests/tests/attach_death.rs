//! hound dies, or fails, at every step of an attach and a detach: the target's own checks hold, and the next hound repairs.
//!
//! A step is a ptrace call, a write into the target or the ring, or a moment of waiting (`inject/src/step.rs`). Steps are of one kind if
//! they are made from the same place for the same remote call. Here each kind is met once, or a fixed share of them; with
//! `HOUND_DEATH_ALL=1` every single step is, with `HOUND_DEATH_ALL=3/20` the third twentieth of them.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use hound_tests::process::Outcome;
use hound_tests::requirement;
use hound_tests::visited::Visited;

/// Kinds that are met where not all steps are.
const SHARE: usize = 36;

/// The steps of an attach, a recording and a detach: number and kind.
fn steps(target: &Visited) -> Vec<(u64, String)> {
    let list = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let outcome = target.visit("HOUND_STEPS", list.path().to_str().expect("its name is plain"));
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    target.must_be_as_before("after a visit without a fault");
    let text = std::fs::read_to_string(list.path()).expect("hound has written it");
    let numbered = |line: &str| line.split_once('\t').and_then(|(number, kind)| Some((number.parse().ok()?, kind.to_owned())));
    let steps: Vec<(u64, String)> = text.lines().map(|line| numbered(line).unwrap_or_else(|| panic!("{line}"))).collect();
    // The way in, the patch, the switch, the way out: each is among them.
    for place in ["enter.rs", "patch.rs", "freeze.rs", "remote.rs", "site.rs", "attach.rs", "leave.rs", "memfd_create", "munmap"] {
        assert!(steps.iter().any(|(_, kind)| kind.contains(place)), "no step of {place} among {} steps", steps.len());
    }
    steps
}

/// Which of the steps are tried: as many as were asked for, or the first of each of `SHARE` kinds, evenly spread, and of those right before and
/// after the switches: in between the target is armed, and few kinds of steps are made only there. And those in which what is to be taken out
/// is crossed out.
fn chosen(steps: &[(u64, String)], offset: usize) -> Vec<(u64, String)> {
    if let Ok(asked) = std::env::var("HOUND_DEATH_ALL") {
        let number = |text: &str| text.parse::<usize>().unwrap_or_else(|e| panic!("HOUND_DEATH_ALL={asked}: {e}"));
        let (part, parts) = asked.split_once('/').map_or_else(|| (1, 1), |(part, parts)| (number(part), number(parts)));
        return steps.iter().skip(part - 1).step_by(parts).cloned().collect();
    }
    let mut kinds = BTreeMap::new();
    for (number, kind) in steps {
        kinds.entry(kind.as_str()).or_insert(*number);
    }
    let mut first: Vec<_> = kinds.into_iter().map(|(kind, number)| (number, kind.to_owned())).collect();
    first.sort_unstable();
    let every = (first.len() / SHARE).max(1);
    let is_at_a_switch =
        |kind: &str| kind.rsplit(' ').next().is_some_and(|place| ["attach.rs", "leave.rs"].iter().any(|file| place.starts_with(file)));
    let crosses_out = |kind: &str| kind.contains("journal.rs") && kind.contains("site.rs");
    let wanted = |at: usize, kind: &str| at % every == offset % every || is_at_a_switch(kind) || crosses_out(kind);
    first.into_iter().enumerate().filter(|(at, (_, kind))| wanted(*at, kind)).map(|(_, step)| step).collect()
}

/// Ends of trials, to be told at the end.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, u32>);

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn of(&self, what: &str) -> u32 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

/// What a dead hound has left, as `hound status` tells the next.
fn left(target: &Visited) -> String {
    let told = hound_tests::capture::hound(["status", "--format", "json", "-p", &target.pid().to_string()]);
    assert!(told.status.success(), "hound status: {}", told.err());
    let told: serde_json::Value = serde_json::from_str(&told.out()).expect("hound prints JSON");
    told["library"]["state"].as_str().unwrap_or("nothing").to_owned()
}

#[test]
fn hound_dies_at_a_step_and_the_next_one_repairs() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    let steps = steps(&target);
    let (mut tally, mut found) = (Tally::default(), BTreeMap::<String, u32>::new());
    let mut trials = chosen(&steps, 0);
    // How many steps it takes to stop all threads differs from visit to visit: the few at which the target is armed are aimed at more than once.
    let off = steps.iter().find(|(_, kind)| kind.contains("leave.rs")).expect("there is a way out");
    let around = (0..8).flat_map(|away| [off.0 - away, off.0 + away]);
    trials.extend(around.map(|number| (number, format!("{} or near it", off.1))));
    let least = trials.len() - 16;
    for (n, (number, kind)) in trials.into_iter().enumerate() {
        if n >= least && found.contains_key("armed") {
            break;
        }
        let when = format!("death at step {number} of {} ({kind})", steps.len());
        let outcome = target.visit("HOUND_DIE_AFTER", &number.to_string());
        match outcome.status.signal() {
            Some(9) => tally.count("died"),
            // There are fewer steps when no thread has to be asked twice.
            _ => {
                assert_eq!(outcome.shell_status(), 0, "{when}: {}", outcome.err());
                tally.count("ended before");
            }
        }
        target.progresses(&when);
        *found.entry(left(&target)).or_default() += 1;
        target.must_be_repaired(&when);
    }
    println!("{} steps; {:?}; left: {found:?}; {} calls interrupted", steps.len(), tally.0, target.interrupted());
    assert!(tally.of("died") >= 20, "{:?}", tally.0);
    for state in ["nothing", "half-built", "dormant", "armed"] {
        assert!(found.get(state).is_some_and(|n| *n > 0), "no death left the target {state}: {found:?}");
    }
    target.end();
}

#[test]
fn a_step_fails_and_hound_takes_everything_back() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    let steps = steps(&target);
    let mut tally = Tally::default();
    for (number, kind) in chosen(&steps, 1) {
        let when = format!("failure of step {number} of {} ({kind})", steps.len());
        let outcome = target.visit("HOUND_FAIL_AT", &number.to_string());
        let err = outcome.err();
        assert!(!err.contains("panicked"), "{when}: {err}");
        tally.count(how_it_ended(&outcome, &when));
        target.progresses(&when);
        // What cannot be taken back is said, with what to do about it.
        if err.contains("--unload` tries again") || err.contains("could not be undone") {
            tally.count("left something and said so");
            let repaired = hound_tests::capture::hound(["detach", "--unload", "-p", &target.pid().to_string()]);
            // A call that hound has lost sight of is completed by the thread itself: it may have been the last that was needed.
            let gone = repaired.err().contains("nothing of hound is in it");
            assert!(repaired.status.success() || gone, "{when}: {err}\nhound detach --unload: {}", repaired.err());
        }
        target.must_be_as_before(&format!("{when}: {err}"));
        let _ = std::fs::remove_file(target.capture()); // there is none if hound did not get in
    }
    println!("{} steps; {:?}", steps.len(), tally.0);
    assert!(tally.of("refused") >= 5 && tally.of("mended") >= 1, "{:?}", tally.0);
    target.must_be_repaired("after all failures");
    target.end();
}

/// Either hound got over it, or it says in one line why not and leaves with status 2.
fn how_it_ended(outcome: &Outcome, when: &str) -> &'static str {
    let err = outcome.err();
    match outcome.status.code() {
        Some(0) => "mended",
        Some(2) => {
            let last = err.lines().last().unwrap_or("");
            assert!(last.starts_with("hound: ") && last.len() > 20, "{when}: no clear error: {err}");
            "refused"
        }
        _ => panic!("{when}: {:?}: {err}", outcome.status),
    }
}

#[test]
fn hounds_die_while_they_repair_and_the_last_one_repairs_all() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    let steps = steps(&target);
    let chosen = chosen(&steps, 2);
    // Each repairs what those before it have left, and dies on the way: late ones and early ones in turn.
    let mut died = 0;
    for (n, (number, kind)) in chosen.iter().enumerate() {
        let number = if n % 2 == 0 { *number } else { chosen[chosen.len() - 1 - n / 2].0 };
        let outcome = target.visit("HOUND_DIE_AFTER", &number.to_string());
        died += u32::from(outcome.status.signal() == Some(9));
        assert!(matches!(outcome.shell_status(), 0 | 137), "step {number} ({kind}): {}", outcome.err());
        target.progresses(&format!("{n} deaths, the last at step {number} ({kind})"));
    }
    println!("{died} deaths, {} calls interrupted", target.interrupted());
    assert!(died >= 10, "{died} deaths only");
    target.must_be_repaired("after many deaths");
    target.end();
}
