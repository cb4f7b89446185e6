//! `hound attach`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;

use super::control::parse_pid;
use super::culling::Culling;
use super::ending;
use super::meanwhile::{Meanwhile, Place};
use super::probing::Probing;
use super::report::{parse_duration, parse_size};
use super::run::{Overload, parse_interval};
use super::serving::Serving;
use super::{FAILED, setting, switch};
use crate::session::kernel_memory::{self, KernelAttach, Memory};
use crate::session::{self, Attach, Attached, Follow, NotOne, attach, control_group, find_by_name};
use hound_common::sampling::DEFAULT_INTERVAL;

const EXAMPLES: &str = "\
Examples:
  hound attach -p 4242                          until Ctrl-C; ends with what it kept since
  hound attach -n redis-server --duration 30s   the one process of this name, half a minute
  hound attach -p 4242 --every 5s --top 10 --older-than 500ms
                                                meanwhile, who holds most that is not short-lived
  hound attach -p 4242 --hook 'alloc=pool_get(size=1)' --hook 'free=pool_put(ptr=0)'
                                                a pool of the program's own, too
  hound attach -p 4242 -p 4243                  two processes in one capture, under one budget
  hound attach --tree -p 4242                   it and its children, those that come later, too
  hound attach --mode full --children -p 4242   it and what it begins from now on, completely
  hound attach --cgroup system.slice/nginx.service
                                                all processes of a control group
  hound attach --kernel -p 4242 --duration 1min what the kernel holds for it (without -p: for the whole host)
  hound doctor -p 4242                          whether that would work, and what it would see
  hound status; hound snapshot -p 4242; hound mark -p 4242 'cache filled'; hound detach -p 4242";

/// How a target is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Some allocations, the larger the likelier, from which all are estimated. Nothing is brought into the target.
    Sampled,
    /// Every allocation with its whole stack, through a library inside the target.
    Full,
    /// Page faults alone: who touches memory first, from the kernel. What the target allocates is not looked at.
    Faults,
}

/// Where samples are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// In the kernel, by probes that are set now and then, as the budget allows: nothing is brought into the target.
    Kernel,
    /// In the target, by the library that records every allocation in full mode: a few nanoseconds a call, and all of the time.
    Library,
}

/// Record a running program: every allocation from now on, with the stack it was made from. The program is not restarted.
///
/// Ends by Ctrl-C, SIGTERM, --duration or `hound detach`: the program then runs on as it was found, the capture is kept, and what was
/// allocated since the attach and is alive is printed to standard error. Ends also with the program.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, group = clap::ArgGroup::new("target").args(["pid", "name", "kernel", "cgroup"]).multiple(true).required(true))]
pub struct Args {
    /// The process. May be given several times: all go into one capture, and the budget is for all of them together. Only sampled from the
    /// kernel; full mode and the library are for one process at a time.
    #[arg(short, long, value_name = "PID", value_parser = parse_pid, conflicts_with = "name")]
    pid: Vec<u32>,
    /// The process by its name: as `ps` shows it, its executable's, or the first word of its command line. It must be the only one.
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// Its children and theirs, too, also those that are forked later. What they replace themselves by is recorded as well. Blocks that a child
    /// has from before its fork are not told of, nor what it allocates in its first milliseconds.
    #[arg(long, conflicts_with = "kernel")]
    tree: bool,
    /// Record the processes that it begins from now on, too, and what they replace themselves by: each completely, by the library. Blocks that
    /// a child has from before its fork are told of as its own. With --mode full or --engine library; --tree is the kernel's way.
    #[arg(long, conflicts_with_all = ["kernel", "tree", "cgroup"])]
    children: bool,
    /// All processes of this control group (cgroup v2) and of those below it, also those that come later.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kernel", "name", "pid", "tree"])]
    cgroup: Option<PathBuf>,
    /// Record what the kernel allocates for itself, instead of a program's heap: kmalloc, slab caches, per-CPU memory and pages, or only the
    /// kinds given. Of one process' making with -p or -n, else of the whole host. --interval 0 takes every allocation, else samples are
    /// taken; --older-than and its like work as for a process.
    #[arg(
        long,
        value_name = "KINDS",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ',',
        conflicts_with_all = ["mode", "engine", "budget", "stack", "hook", "unload", "no_free_stacks", "maps", "no_maps", "on_overload"]
    )]
    kernel: Option<Vec<Memory>>,
    /// With --kernel: most sampled blocks that are followed at once. Their table takes some 60 bytes each of the kernel's memory.
    #[arg(long, value_name = "N", default_value = "262144", value_parser = some_blocks, requires = "kernel")]
    follow: u32,
    /// How to record.
    #[arg(long, value_enum, default_value = "sampled")]
    mode: Mode,
    /// With `--mode sampled`: where samples are taken.
    #[arg(long, value_enum, default_value = "kernel")]
    engine: Engine,
    /// With `--mode sampled`: allocated bytes between samples, on average. The kernel's engine chooses by itself what its budget allows,
    /// and takes 0 for every call; the library's default is 512Ki. With `--mode faults`: bytes touched between samples; 0 for every page.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    interval: Option<u64>,
    #[command(flatten)]
    probing: Probing,
    /// Go over to another mode after the first, and detach when the last of them has lasted its time: `--mode sampled --then full:30s`. The
    /// first lasts for what they leave of --duration, or half a minute. May be given several times.
    #[arg(long, value_name = "MODE:TIME", value_parser = parse_phase)]
    then: Vec<(session::Mode, Duration)>,
    /// Detach after this time (ms, s, min, h).
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    duration: Option<u64>,
    /// Where the capture goes. %p is replaced by the process id, %t by the time, %e by the program's name, %n by the first free number.
    #[arg(short, long, value_name = "FILE")]
    output: Option<OsString>,
    /// Do not record where blocks are freed: smaller captures, cheaper frees.
    #[arg(long)]
    no_free_stacks: bool,
    /// Do not record mmap, munmap, mremap and brk. Sampling within a budget does not, unless told to by --maps.
    #[arg(long)]
    no_maps: bool,
    /// What to do when the program is faster than hound.
    #[arg(long, value_enum, default_value = "wait")]
    on_overload: Overload,
    #[command(flatten)]
    culling: Culling,
    #[command(flatten)]
    serving: Serving,
    /// At the end, take the library out of the program, too. Else it stays, asleep, and the next attach is quicker.
    #[arg(long)]
    unload: bool,
    /// No status line and no report at the end.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    meanwhile: Meanwhile,
}

/// Attaches, and reports at the end.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(kinds) = &args.kernel
        && args.pid.is_empty()
        && args.name.is_none()
    {
        return of_the_kernel(args, kinds, None);
    }
    let cgroup = args.cgroup.as_deref().map(control_group).transpose()?;
    let follow = Follow { tree: args.tree, cgroup };
    let pids = match (&args.pid[..], &args.name) {
        ([_, ..], _) => distinct(&args.pid),
        (_, Some(name)) => match find_by_name(name) {
            Ok(pid) => vec![pid],
            Err(NotOne { why, candidates }) => {
                eprintln!("hound: {why}");
                candidates.iter().for_each(|line| eprintln!("{line}"));
                return Ok(ExitCode::from(FAILED));
            }
        },
        _ => follow.look(&BTreeSet::new()).into_iter().collect(),
    };
    let [pid, others @ ..] = &pids[..] else {
        match &args.cgroup {
            Some(group) => anyhow::bail!("there is no process in control group '{}'", group.display()),
            None => anyhow::bail!("no process given; use -p PID or -n NAME"),
        }
    };
    if let Some(kinds) = &args.kernel {
        anyhow::ensure!(others.is_empty(), "--kernel takes one -p PID, or none for the whole host");
        return of_the_kernel(args, kinds, Some(*pid));
    }
    if (!others.is_empty() || follow.any()) && needs_the_library(args) {
        anyhow::bail!(
            "the library is brought into one process at a time: with several processes, --tree or --cgroup leave out --mode full and \
             --engine library; `hound attach --mode full -p {pid}` records one"
        );
    }
    if args.children && (!others.is_empty() || !needs_the_library(args)) {
        anyhow::bail!("--children needs one -p PID and --mode full (or --engine library); the kernel follows children by --tree");
    }
    let samples = args.then.iter().any(|(mode, _)| matches!(mode, session::Mode::Sampled | session::Mode::Faults));
    if args.children && samples && args.engine == Engine::Kernel {
        anyhow::bail!("--children with --then needs a library that samples: --engine library, or leave out sampled and faults");
    }
    let records_all = args.mode == Mode::Full || args.then.iter().any(|(mode, _)| *mode == session::Mode::Full);
    if args.culling.asked().is_some() && !records_all {
        anyhow::bail!("--cull needs --mode full: samples are few, and each stands for others");
    }
    if args.culling.rotate.is_some() && !records_all {
        anyhow::bail!("--rotate needs --mode full: samples are few, and their capture stays small");
    }
    let interval = library_interval(args)?;
    let options = Attach {
        pid: *pid,
        others: others.to_vec(),
        named: args.cgroup.is_none(),
        follow: follow.clone(),
        children: args.children,
        duration: args.duration.map(Duration::from_nanos),
        output: args.output.clone().or_else(|| setting("OUTPUT")),
        hooks: args.probing.hooks()?,
        free_stacks: !args.no_free_stacks,
        maps: !args.no_maps,
        mode: args.mode.into(),
        then: args.then.clone(),
        engine: match args.engine {
            Engine::Kernel => session::Engine::Kernel,
            Engine::Library => session::Engine::Library,
        },
        sampling: args.probing.plan(args.interval, !args.no_free_stacks, args.no_maps, args.mode == Mode::Faults),
        interval,
        cull: args.culling.asked(),
        max_capture: args.culling.max_capture,
        rotate: args.culling.rotate(),
        serve: args.serving.asked(),
        shadow_stack: switch("SHADOW_STACK").or_else(|| switch("USE_SHADOW_STACK")).unwrap_or(true),
        drop_on_overload: args.on_overload == Overload::Drop,
        every: args.meanwhile.every(),
        unload: args.unload,
        quiet: args.quiet,
        started: false,
    };
    let attached = attach(&options, args.meanwhile.shown(&whom(&pids, &follow), Place::Output))?;
    told(args, &attached)
}

/// Once each, in their order.
fn distinct(pids: &[u32]) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    pids.iter().copied().filter(|pid| seen.insert(*pid)).collect()
}

fn needs_the_library(args: &Args) -> bool {
    args.mode == Mode::Full || args.engine == Engine::Library || args.then.iter().any(|(mode, _)| *mode == session::Mode::Full)
}

fn whom(pids: &[u32], follow: &Follow) -> String {
    match (pids, follow) {
        (_, Follow { cgroup: Some(group), .. }) => format!("control group {}", group.display()),
        ([pid], Follow { tree: true, .. }) => format!("process {pid} and its children"),
        ([pid], _) => format!("process {pid}"),
        (pids, _) => format!("{} processes", pids.len()),
    }
}

/// Kernel memory, of one process' making or of all.
fn of_the_kernel(args: &Args, kinds: &[Memory], pid: Option<u32>) -> anyhow::Result<ExitCode> {
    let options = KernelAttach {
        pid,
        memory: if kinds.is_empty() { Memory::ALL.to_vec() } else { kinds.to_vec() },
        interval: args.interval.unwrap_or(DEFAULT_INTERVAL),
        live_entries: args.follow,
        duration: args.duration.map(Duration::from_nanos),
        output: args.output.clone().or_else(|| setting("OUTPUT")),
        every: args.meanwhile.every(),
        quiet: args.quiet,
    };
    let whom = pid.map_or_else(|| "kernel memory of the whole host".into(), |pid| format!("kernel memory of process {pid}"));
    let attached = kernel_memory::attach(&options, args.meanwhile.shown(&whom, Place::Output))?;
    told(args, &attached)
}

/// The report at the end, and what else is to be said.
fn told(args: &Args, attached: &Attached) -> anyhow::Result<ExitCode> {
    let reported = if args.quiet { Ok(()) } else { ending::show(&attached.output, args.meanwhile.blocks) };
    // Last, where they are seen, and also if nothing else may be said.
    attached.warnings.iter().chain(&attached.not_left).for_each(|warning| eprintln!("hound: {warning}"));
    reported?;
    Ok(if attached.not_left.is_some() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// How the library samples, where it does.
fn library_interval(args: &Args) -> anyhow::Result<u64> {
    if args.engine == Engine::Kernel {
        return Ok(DEFAULT_INTERVAL);
    }
    if args.mode == Mode::Faults {
        anyhow::bail!("--mode faults is the kernel's: leave out --engine library");
    }
    let interval = args.interval.map(|bytes| parse_interval(&bytes.to_string())).transpose().map_err(anyhow::Error::msg)?;
    Ok(interval.unwrap_or(DEFAULT_INTERVAL))
}

/// `full:30s`.
pub(super) fn parse_phase(text: &str) -> Result<(session::Mode, Duration), String> {
    let wrong = || "give a mode and how long it lasts, for example full:30s (modes: sampled, full, faults, off)".to_owned();
    let (mode, time) = text.split_once(':').ok_or_else(wrong)?;
    let modes = [session::Mode::Off, session::Mode::Sampled, session::Mode::Full, session::Mode::Faults];
    let mode = modes.into_iter().find(|known| known.name() == mode).ok_or_else(wrong)?;
    Ok((mode, Duration::from_nanos(some_time(time)?)))
}

impl From<Mode> for session::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Sampled => session::Mode::Sampled,
            Mode::Full => session::Mode::Full,
            Mode::Faults => session::Mode::Faults,
        }
    }
}

/// A time that is not none.
pub(super) fn some_time(text: &str) -> Result<u64, String> {
    match parse_duration(text)? {
        0 => Err("that is no time at all; give some, for example 30s".into()),
        time => Ok(time),
    }
}

fn some_blocks(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|blocks| (1..=1 << 24).contains(blocks));
    number.ok_or_else(|| "give a number from 1 to 16777216".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Only;
    use crate::session::sampling::{Interval, Plan};
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("attach").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn every_option_is_understood() {
        let args = parse(
            "-p 7 --mode full --duration 1.5s --every 5s --top 3 --older-than 1ms --min-size 4k --max-size 1Mi --unload -q \
             --hook alloc=get(size=1) --hook free=put(ptr=0) --no-free-stacks --no-maps --on-overload drop -o x",
        );
        let args = args.unwrap();
        let question = args.meanwhile.question();
        let hooks = args.probing.hook.len();
        assert_eq!((args.pid, args.duration, args.meanwhile.every, hooks), (vec![7], Some(1_500_000_000), Some(5_000_000_000), 2));
        assert_eq!(args.mode, Mode::Full);
        assert_eq!((question.limit, question.blocks.only), (Some(3), Only::Live));
        let blocks = question.blocks;
        assert_eq!((blocks.min_lifetime_ns, blocks.min_size, blocks.max_size), (Some(1_000_000), Some(4000), Some(1 << 20)));
    }

    #[test]
    fn sampling_from_the_kernel_is_the_default() {
        let args = parse("-p 7").unwrap();
        assert_eq!((args.mode, args.engine), (Mode::Sampled, Engine::Kernel));
        let plan = |args: &Args| args.probing.plan(args.interval, !args.no_free_stacks, args.no_maps, args.mode == Mode::Faults);
        let (interval, faults) = (Interval::Adapted, Some(Interval::Adapted));
        let default = Plan { budget: 0.01, interval, stack_bytes: 16 << 10, free_stacks: true, allocations: true, faults, maps: false };
        assert_eq!(plan(&args), default);
        assert!(plan(&parse("-p 7 --maps").unwrap()).maps && plan(&parse("-p 7 --mode faults").unwrap()).maps);
        let unlimited = Plan { budget: f64::INFINITY, interval: Interval::Fixed(0), maps: true, ..default };
        assert_eq!(plan(&parse("-p 7 --budget unlimited --interval 0").unwrap()), unlimited);
        let interval = |line: &str| library_interval(&parse(line).unwrap()).ok();
        assert_eq!(interval("-p 7 --engine library"), Some(512 << 10));
        assert_eq!(interval("-p 7 --engine library --interval 0"), None);
        assert_eq!(interval("-p 7 --engine library --mode faults"), None);
        let then = parse("-p 7 --then full:30s --then off:1min").unwrap().then;
        assert_eq!(then, [(session::Mode::Full, Duration::from_secs(30)), (session::Mode::Off, Duration::from_secs(60))]);
    }

    #[test]
    fn one_target_must_be_named_and_only_one() {
        for wrong in [
            "",
            "-p 0",
            "-p x",
            "-p 7 -n name",
            "-p 7 --then full",
            "-p 7 --then fast:3s",
            "-p 7 --budget 0%",
            "-p 7 --budget 1",
            "-p 7 --stack 1Mi",
            "-p 7 --mode sampled --engine none",
            "-p 7 --hook alloc=f",
            "-p 7 --duration soon",
            "-p 7 --duration 0",
            "-p 7 --every 1s --top 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse("-n nginx").unwrap().name.as_deref(), Some("nginx"));
        for wrong in [
            "--kernel -p 7 -n x",
            "--kernel --engine library",
            "--kernel --hook alloc=f(size=0)",
            "--kernel=heap",
            "--follow 3 -p 7",
            "--kernel --unload",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        let kernel = parse("--kernel=slab,pages -p 7 --follow 10").unwrap();
        assert_eq!((kernel.kernel, kernel.follow, kernel.pid), (Some(vec![Memory::Slab, Memory::Pages]), 10, vec![7]));
        let several = parse("-p 7 -p 8 --tree").unwrap();
        assert_eq!((several.pid, several.tree), (vec![7, 8], true));
        assert!(parse("--cgroup a/b").is_ok() && parse("--cgroup a -p 7").is_err() && parse("--tree").is_err());
        assert_eq!(parse("--kernel").unwrap().kernel, Some(vec![]));
        let said = parse("").unwrap_err().to_string();
        assert!(said.contains("--pid") && said.contains("--name"), "{said}");
        let said = parse("-p nginx").unwrap_err().to_string();
        assert!(said.contains("-n"), "{said}");
    }
}
