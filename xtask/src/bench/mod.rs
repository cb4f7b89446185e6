//! `cargo xtask bench`: what hound costs, beside no profiler and beside heaptrack.
//!
//! Every figure comes from alternating runs (one of each kind, then the next round), so that a machine that gets slower
//! or busier meanwhile harms all kinds alike; medians are shown. Each section holds the bounds the project has set
//! itself, and the measurements behind them. A section that was measured whole replaces its part of `docs/overhead.md`;
//! the words around those parts are written by hand.

mod analysis;
mod attach;
mod bounds;
mod children;
mod column;
mod figures;
mod machine;
mod memleak;
mod memory;
mod pairs;
mod reading;
mod sampled;
mod startup;
mod visit;
mod whole;
mod workload;

use crate::setup::{self, Purpose};
use crate::{Verdict, compile, page, place};
use anyhow::{Result, bail};
use bounds::Bound;
use clap::Args;
use std::path::PathBuf;

/// The options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// Sections (pairs, programs, memory, reading, analysis, startup, children, attach, sampled,
    /// memleak) or single programs (redis, redis-pipelined, cc1plus,
    /// sqlite, sqlite-small, rust, cpp, python, handoff, threads) or parts (sampled:pace, sampled:redis, sampled:kernel, sampled:library, sampled:leak,
    /// sampled:switch, sampled:flood); all of them without a name
    names: Vec<String>,
    /// How many runs of each kind
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// One short run of each kind: to see that everything works. Nothing is written to docs/overhead.md
    #[arg(long)]
    quick: bool,
    /// Exit with 1 if a figure misses its bound
    #[arg(long)]
    check: bool,
}

/// How much to measure.
struct Plan {
    /// Rounds of alternating runs.
    runs: usize,
    /// What the sizes of the workloads are divided by.
    shrink: u64,
    /// Captures and outputs of the runs.
    scratch: PathBuf,
    /// The programs and parts of sections that were asked for; all of them if empty.
    programs: Vec<String>,
}

impl Plan {
    /// A workload's size under this plan.
    fn size(&self, full: u64) -> u64 {
        full / self.shrink
    }

    /// Whether a part of a section was asked for.
    fn wants(&self, part: &str) -> bool {
        self.programs.is_empty() || self.programs.iter().any(|chosen| chosen == part)
    }
}

/// One part of the page.
struct Section {
    name: &'static str,
    title: &'static str,
    bounds: Vec<Bound>,
    /// Tables behind the bounds, in Markdown.
    detail: String,
}

impl Section {
    /// Puts it on the page.
    fn write(&self, machine: &str, runs: usize) -> Result<()> {
        let Section { name, title, bounds, detail } = self;
        let told = format!("Measured by `cargo xtask bench {name}`, {runs} alternating runs of each kind: {machine}.");
        page::replace("docs/overhead.md", name, title, &format!("{}\n{detail}\n{told}\n", bounds::table(bounds)))
    }
}

type Measure = fn(&Plan) -> Result<Section>;
/// Sections by name.
type Sections = Vec<(&'static str, Measure)>;

/// The sections, in the order of the page.
const SECTIONS: &[(&str, Measure)] = &[
    ("pairs", pairs::measure),
    ("programs", whole::measure),
    ("memory", memory::measure),
    ("reading", reading::measure),
    ("analysis", analysis::measure),
    ("startup", startup::measure),
    ("children", children::measure),
    ("attach", attach::measure),
    ("sampled", sampled::measure),
    ("memleak", memleak::measure),
];

/// `cargo xtask bench`.
pub fn task(options: &Options) -> Result<Verdict> {
    let (sections, programs) = chosen(&options.names)?;
    setup::ensure(&[Purpose::Bench])?;
    compile::build()?;
    let plan = Plan {
        runs: if options.quick { 1 } else { options.runs.max(1) },
        shrink: if options.quick { 20 } else { 1 },
        scratch: place::scratch("bench")?,
        programs,
    };
    let machine = machine::description()?;
    let mut missed = false;
    for (name, measure) in sections {
        eprintln!("bench: {name}");
        let section = measure(&plan)?;
        println!("\n## {}\n\n{}\n{}", section.title, bounds::table(&section.bounds), section.detail);
        missed |= section.bounds.iter().any(|bound| !bound.holds());
        if !options.quick && plan.programs.is_empty() {
            section.write(&machine, plan.runs)?;
        }
    }
    if missed {
        println!("bench: a figure misses its bound");
    }
    Ok(if missed && options.check { Verdict::Bad } else { Verdict::Good })
}

/// The sections and the single programs that the names stand for.
fn chosen(names: &[String]) -> Result<(Sections, Vec<String>)> {
    let (sections, programs): (Vec<_>, Vec<_>) = names.iter().cloned().partition(|name| SECTIONS.iter().any(|(known, _)| known == name));
    let parts = || workload::NAMES.iter().copied().chain(sampled::PARTS.iter().map(|(name, _)| *name));
    if let Some(unknown) = programs.iter().find(|name| parts().all(|known| known != name.as_str())) {
        let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).chain(parts()).collect();
        bail!("there is no benchmark {unknown}; there are: {}", known.join(", "));
    }
    let is_part_of = |name: &str, section: &str| match name.split_once(':') {
        Some((of, _)) => of == section,
        None => section == "programs",
    };
    let wanted = |section: &str| {
        names.is_empty() || sections.iter().any(|chosen| chosen == section) || programs.iter().any(|name| is_part_of(name, section))
    };
    Ok((SECTIONS.iter().copied().filter(|(name, _)| wanted(name)).collect(), programs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_chooses_its_section_and_narrows_it() {
        let (sections, programs) = chosen(&["redis".to_owned(), "startup".to_owned()]).unwrap();
        assert_eq!(sections.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["programs", "startup"]);
        assert_eq!(programs, ["redis"]);
        let (sections, parts) = chosen(&["sampled:leak".to_owned()]).unwrap();
        assert_eq!((sections.len(), sections[0].0, parts.len()), (1, "sampled", 1));
        assert!(chosen(&["nonsense".to_owned()]).is_err());
        assert_eq!(chosen(&[]).unwrap().0.len(), SECTIONS.len());
    }
}
