//! What a pair of malloc and free costs: with the kernel's probes all of the time, against probes that do nothing at the same places; and
//! under the library, by allocator and by function.

use super::super::Plan;
use super::super::bounds::Bound;
use super::super::figures::{median, shown, spread, table};
use super::super::visit::{Pacing, Visit};
use super::{Part, spell};
use crate::{place, programs};
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Without work between: the pair alone.
const NO_WORK: &str = "0";
/// A turn of sampling, of nothing or of empty probes; and turns of each in a round.
const TURN: Duration = Duration::from_millis(200);
const TURNS: usize = 8;
/// A target's notes are of its last twentieth of a second, or newer.
const NOTED: Duration = Duration::from_millis(50);
/// The kernel's engine without a budget.
///
/// What a trap costs may change by a factor of three within seconds here. So the two take short turns at one process, and what is told is the
/// median of the ratios of neighbours.
pub fn kernel(plan: &Plan) -> Result<Part> {
    let program = programs::compiled("steady.c", "steady", &[])?;
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program); // and whoever drains has the other core
    let target = Pacing::start(command, &["malloc", NO_WORK, "0"], &plan.scratch)?;
    let mut empty = EmptyProbes::start(target.pid())?;
    let visit = Visit::begin(target.pid(), &["--budget", "unlimited"], &plan.scratch)?;
    ensure!(empty.ask("find")? != "0", "hound's probes are no links of many here: there is nothing to compare them with");
    let turn = || -> Result<f64> {
        thread::sleep(NOTED);
        Ok(target.pace(TURN)?.cpu_ns)
    };
    let mut figures: [Vec<f64>; 3] = Default::default();
    let mut ratios = Vec::new();
    for _ in 0..plan.runs * TURNS {
        let sampled = turn()?;
        visit.mode("off")?;
        let bare = turn()?;
        empty.ask("set")?;
        let probed = turn()?;
        empty.ask("clear")?;
        visit.mode("sampled")?;
        ratios.push((sampled + turn()?) / 2.0 / probed);
        for (list, figure) in figures.iter_mut().zip([bare, probed, sampled]) {
            list.push(figure);
        }
    }
    visit.end()?;
    let mut row = vec!["malloc and free".to_owned()];
    row.extend(figures.iter().map(|list| spread(list)));
    row.push(spread(&ratios));
    let headings =
        ["glibc, nanoseconds of processor time", "no probes", "two empty probes", "sampled from the kernel, unlimited budget", "ratio"];
    Ok(Part {
        title: "A pair with probes all of the time, against probes that do nothing at the same places",
        bounds: vec![Bound::new(
            "a pair sampled from the kernel, unlimited budget, against two empty probes (ratio)",
            median(ratios),
            1.15,
            1.05,
        )],
        table: table(&headings, &[row]),
    })
}

/// `xtask/programs/empty_probes.c` under way.
struct EmptyProbes {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl EmptyProbes {
    fn start(pid: u32) -> Result<Self> {
        let program = programs::compiled("empty_probes.c", "empty_probes", &[])?;
        let mut command = Command::new(program);
        let mut child =
            command.arg(pid.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start empty_probes")?;
        let input = child.stdin.take().context("empty_probes has no input")?;
        let output = BufReader::new(child.stdout.take().context("empty_probes has no output")?);
        Ok(Self { child, input, output })
    }

    fn ask(&mut self, what: &str) -> Result<String> {
        writeln!(self.input, "{what}").context("empty_probes has ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("empty_probes has ended")?;
        let line = line.trim();
        if line.is_empty() || line.starts_with("cannot") {
            bail!("empty_probes: {line}");
        }
        Ok(line.to_owned())
    }
}

impl Drop for EmptyProbes {
    fn drop(&mut self) {
        let _ = self.child.kill(); // and its links go with it
        let _ = self.child.wait();
    }
}

/// A build of `steady`: what it is called, its compiler if not the usual one, flags, and whether hound launches it: not
/// with another loader than glibc's, nor with none.
struct Build {
    name: &'static str,
    file: &'static str,
    compiler: Option<&'static str>,
    flags: &'static [&'static str],
    is_launched: bool,
}

const GLIBC: Build = Build { name: "glibc", file: "steady", compiler: None, flags: &[], is_launched: true };
const OTHERS: [Build; 4] = [
    Build { name: "jemalloc", file: "steady-jemalloc", compiler: None, flags: &["-l:libjemalloc.so.2"], is_launched: true },
    Build { name: "tcmalloc", file: "steady-tcmalloc", compiler: None, flags: &["-l:libtcmalloc_minimal.so.4"], is_launched: true },
    Build { name: "musl", file: "steady-musl", compiler: Some("musl-gcc"), flags: &[], is_launched: false },
    Build { name: "musl, static", file: "steady-musl-static", compiler: Some("musl-gcc"), flags: &["-static"], is_launched: false },
];
/// Functions of which only glibc's are measured.
const FUNCTIONS: [&str; 4] = ["calloc", "realloc", "aligned_alloc", "posix_memalign"];

/// The library's engine at its default interval of 512 KiB.
pub fn library(plan: &Plan) -> Result<Part> {
    let mut cases = vec![(&GLIBC, "malloc")];
    cases.extend(OTHERS.iter().map(|build| (build, "malloc")));
    cases.extend(FUNCTIONS.iter().map(|function| (&GLIBC, *function)));
    let mut bounds = Vec::new();
    let mut rows = Vec::new();
    for (build, function) in cases {
        let program = programs::compiled_by(build.compiler, "steady.c", build.file, build.flags)?;
        let (alone, ways) = added(plan, &program, function, build.is_launched)?;
        for (way, added) in ["launched", "attached"].into_iter().zip(&ways).filter(|(_, added)| !added.is_empty()) {
            let what = format!("added by sampling in the library, {way}: {}, {function} and free (ns)", build.name);
            bounds.push(Bound::new(what, median(added.clone()), 6.0, 2.0));
        }
        let cells = ways.iter().map(|added| if added.is_empty() { "–".to_owned() } else { spread(added) });
        rows.push([format!("{}, {function} and free", build.name), shown(alone)].into_iter().chain(cells).collect());
    }
    let headings = ["allocator and pair (nanoseconds of processor time)", "no profiler", "added, launched", "added, attached"];
    Ok(Part { title: "A pair under the library, a sample each 512 KiB", bounds, table: table(&headings, &rows) })
}

/// Nanoseconds a pair alone, and what is added to it launched and attached, by round.
fn added(plan: &Plan, program: &Path, function: &str, is_launched: bool) -> Result<(f64, [Vec<f64>; 2])> {
    let window = spell(plan, 1000);
    let arguments = [function, NO_WORK, "0"];
    let (mut alone_ns, mut launched_ns, mut attached_ns) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let target = Pacing::start(Command::new(program), &arguments, &plan.scratch)?;
        let before = target.pace(window)?.cpu_ns;
        let visit = Visit::begin(target.pid(), &["--engine", "library"], &plan.scratch)?;
        let meanwhile = target.pace(window)?.cpu_ns;
        visit.end()?;
        let alone = (before + target.pace(window)?.cpu_ns) / 2.0;
        drop(target);
        alone_ns.push(alone);
        attached_ns.push(meanwhile - alone);
        if is_launched {
            let mut command = Command::new(place::hound());
            command.args(["run", "--quiet", "--mode", "sampled", "-o"]).arg(plan.scratch.join("launched.hound")).arg("--").arg(program);
            let target = Pacing::start(command, &arguments, &plan.scratch)?;
            launched_ns.push(target.pace(window)?.cpu_ns - alone);
        }
    }
    Ok((median(alone_ns), [launched_ns, attached_ns]))
}
