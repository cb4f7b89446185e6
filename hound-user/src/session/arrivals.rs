//! What a target loads while it is sampled: looked for at once when the kernel tells that code was mapped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hound_inject::ProbePlan;

/// The first look after code was mapped; each further one waits twice as long. A loader maps the rest of a module and links it in a
/// millisecond or a few.
const FIRST: Duration = Duration::from_millis(1);
/// The last one, which takes the module as it is.
const LAST: Duration = Duration::from_millis(128);

/// What was found out meanwhile of what is recorded, for the capture: one line each.
#[derive(Debug, Default)]
pub struct Found {
    /// What is.
    pub covered: Vec<String>,
    /// What is not.
    pub missed: Vec<String>,
}

impl Found {
    /// Takes the other's lines, too; those that are there stay once.
    pub fn add(&mut self, other: Found) {
        let both = [(&mut self.covered, other.covered), (&mut self.missed, other.missed)];
        for (lines, more) in both {
            for line in more {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
    }
}

/// Modules that are expected.
#[derive(Debug)]
pub struct Arrivals {
    began: Instant,
    /// When to look next, and how long to wait after that.
    next: Option<(Instant, Duration)>,
    /// How much of the plan's list of what is not recorded was told.
    told: usize,
}

impl Arrivals {
    /// None so far. `told`: so much of what the plan does not record is in the capture.
    pub fn new(told: usize) -> Self {
        Arrivals { began: Instant::now(), next: None, told }
    }

    /// How long to wait before looking again; nothing if nothing is expected.
    pub fn pause(&self) -> Option<Duration> {
        self.next.map(|(at, _)| at.saturating_duration_since(Instant::now()).max(FIRST))
    }

    /// Code was mapped just now.
    pub fn expect(&mut self) {
        self.next = Some((Instant::now(), FIRST));
    }

    /// Whether it is time to look; and then, whether modules are to be `complete`: loaded and linked as a whole.
    pub fn is_due(&mut self) -> Option<bool> {
        let (_, wait) = self.next.filter(|(at, _)| *at <= Instant::now())?;
        let is_last = wait > LAST;
        self.next = (!is_last).then(|| (Instant::now() + wait, 2 * wait));
        Some(!is_last)
    }

    /// Looks for allocators in modules that were not there before. Gives the first new site, if there is any, and what is not recorded.
    pub fn look(&mut self, plan: &mut ProbePlan, complete: bool) -> (Option<usize>, Vec<String>) {
        // Gone: it has nothing new.
        let new = plan.appeared(complete).unwrap_or(0);
        let missed = plan.not_covered()[self.told..].iter().map(|not| format!("{} in {}: {}", not.what, not.module, not.why)).collect();
        self.told = plan.not_covered().len();
        ((new > 0).then(|| plan.sites().len() - new), missed)
    }

    /// Tells of the sites from this one on, which are probed from now on.
    pub fn tell(&self, plan: &ProbePlan, first: usize, found: &mut Found) {
        let after = self.began.elapsed().as_secs_f64();
        for (what, functions) in by_module(plan, first) {
            eprintln!("hound: {what} was loaded meanwhile: {functions} of its functions are sampled from now on");
            found.missed.push(format!("{what}, before {after:.3} s had passed: it was loaded meanwhile, and is recorded since then"));
            found.covered.push(what);
        }
    }
}

/// Allocators with their modules, and how many functions of theirs are probed.
pub fn by_module(plan: &ProbePlan, first: usize) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for site in plan.sites()[first..].iter().filter(|site| !site.throws) {
        *found.entry(format!("{} in {}", site.family, site.module)).or_default() += 1;
    }
    found
}
