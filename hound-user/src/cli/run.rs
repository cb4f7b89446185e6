//! `hound run` and `hound collect`.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use hound_common::sampling::{DEFAULT_INTERVAL, MAX_INTERVAL};

use super::attach::{parse_phase, some_time};
use super::culling::{self, Culling};
use super::ending;
use super::meanwhile::{Meanwhile, Place};
use super::probing::Probing;
use super::report::parse_size;
use super::serving::{self, Serving};
use super::{setting, switch};
use crate::capture::Cull;
use crate::session::{self, Attach, Collect, Follow, Hold, Launch, Launched, Program, collect as collect_ring, launch, launch_held};

/// What to do when the program produces events faster than hound can take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Overload {
    /// The program's threads wait for hound; nothing is lost.
    Wait,
    /// Events are dropped, counted, and the count shown.
    Drop,
}

/// How a program is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// Every allocation with its whole stack.
    Full,
    /// Some allocations, the larger the likelier, from which all are estimated: costs next to nothing.
    Sampled,
    /// Page faults alone: who touches memory first, from the kernel.
    Faults,
}

/// Who records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// A library that is loaded into the program.
    Library,
    /// The kernel, by probes: nothing is brought into the program, and it may be linked statically or against musl. Samples within a
    /// budget, as `hound attach` does; --interval 0 --budget unlimited records every call.
    Kernel,
}

/// How the library comes between the program and its allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Via {
    /// Preloaded, unless the program's allocator is out of its reach then, or something is asked for that needs the other.
    Auto,
    /// Loaded by the program's loader before its own libraries. Needs glibc's loader, and sees only what goes through it.
    Preload,
    /// Mapped before the program's first instruction, and its functions patched, as `hound attach` does: static programs, musl, allocators
    /// linked into the program, --hook.
    Patch,
}

/// A mean interval between samples: some bytes, as many as the library counts.
pub(super) fn parse_interval(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        1..=MAX_INTERVAL => parse_size(text),
        _ => Err("give from 1 byte to less than 4Gi".into()),
    }
}

fn parse_hold(text: &str) -> Result<Hold, String> {
    match text {
        "auto" => Ok(Hold::Twentieth),
        "never" => Ok(Hold::Never),
        time => match some_time(time)? {
            ns if ns <= MOST_HELD_NS => Ok(Hold::UpTo(Duration::from_nanos(ns))),
            _ => Err("give an hour at most".into()),
        },
    }
}

const MOST_HELD_NS: u64 = 3_600_000_000_000;

/// Run a program and record every allocation it makes, with the stack it was made from.
///
/// When the program ends, the leak report is printed to standard error. The program's output and exit status are passed through.
#[derive(clap::Args, Debug)]
#[command(before_help = RUN_EXAMPLES)]
pub struct Args {
    /// Where the capture goes. %p is replaced by the process id, %t by the time, %e by the program's name, %n by the first free number.
    #[arg(short, long, value_name = "FILE")]
    output: Option<OsString>,
    /// How to record; full if nothing is said, with --engine kernel sampled.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Who records.
    #[arg(long, value_enum, default_value = "library")]
    engine: Engine,
    /// With `--mode sampled`: allocated bytes between samples, on average. The library's default is 512Ki; the kernel chooses what its budget
    /// allows, and takes 0 for every call. With `--mode faults`: bytes touched between samples; 0 for every page.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    interval: Option<u64>,
    /// How the library comes between the program and its allocator.
    #[arg(long, value_enum, default_value = "auto")]
    via: Via,
    #[command(flatten)]
    probing: Probing,
    /// With the kernel's engine: the program's children and theirs, too, also what they replace themselves by. What a child allocates in its
    /// first milliseconds is not seen. Those that outlive the program are recorded until it ends.
    #[arg(long)]
    tree: bool,
    /// Record the processes that the program begins, too, with their children, and what they replace themselves by: one capture, `hound report
    /// --process PID` tells of one alone. Those that outlive the program are recorded until they end.
    #[arg(long)]
    children: bool,
    /// Go over to another mode after the first, as in `hound attach`; not with a preloaded library.
    #[arg(long, value_name = "MODE:TIME", value_parser = parse_phase)]
    then: Vec<(session::Mode, Duration)>,
    /// Record for this time only (ms, s, min, h). The program runs on. Not with a preloaded library.
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    duration: Option<u64>,
    /// Do not record where blocks are freed: smaller captures, cheaper frees.
    #[arg(long)]
    no_free_stacks: bool,
    /// Do not record mmap, munmap and mremap.
    #[arg(long)]
    no_maps: bool,
    /// What to do when the program is faster than hound.
    #[arg(long, value_enum, default_value = "wait")]
    on_overload: Overload,
    /// For how long the program's exit may be held, to look which blocks it still has pointers to: `auto`, `never` or a time (ms, s). What
    /// nothing leads to is lost; `hound leaks` tells it apart from what the program gathers and keeps. `auto` is a twentieth of the time that
    /// it ran, 10 s at most, and nothing in the first ten seconds.
    #[arg(long, value_name = "TIME", default_value = "auto", value_parser = parse_hold)]
    hold_exit: Hold,
    #[command(flatten)]
    culling: Culling,
    #[command(flatten)]
    serving: Serving,
    /// No status line and no report at the end.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    meanwhile: Meanwhile,
    /// The program and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const RUN_EXAMPLES: &str = "\
Examples:
  hound run -- ./server --port 8080
  hound run -o /tmp/s-%p.hound -- python3 app.py
  hound run --every 5s -- ./server                     with who holds most meanwhile
  hound run --hook 'alloc=pool_get(size=1)' --hook 'free=pool_put(ptr=0)' -- ./server
                                                       a pool of the program's own, too
  hound run --cull 10s -o day.hound -- ./server        for days: without what lives shorter than ten seconds
  hound run --engine kernel -- ./server                sampled from the kernel: costs next to nothing
  hound run --children -- make -j4                     all processes that it begins, too
  hound run --engine kernel --tree -- make             the same, sampled
  hound run --quiet --no-free-stacks -o s.hound -- ./batch && hound report s.hound";

/// The exit status of a shell for a command that a signal killed.
const KILLED: i32 = 128;

/// Runs the program.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let launched = match args.engine {
        Engine::Kernel => by_the_kernel(args, args.mode.unwrap_or(Mode::Sampled))?,
        // Nobody else can see them.
        Engine::Library if args.mode == Some(Mode::Faults) => by_the_kernel(args, Mode::Faults)?,
        Engine::Library => by_the_library(args)?,
    };
    let reported = if args.quiet { Ok(()) } else { show(args, &launched) };
    // Last, where they are seen, and also if nothing else may be said.
    for warning in &launched.warnings {
        eprintln!("hound: {warning}");
    }
    reported?;
    let status = launched.status.code().unwrap_or_else(|| KILLED + launched.status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

fn by_the_library(args: &Args) -> anyhow::Result<Launched> {
    let kernels = [(args.probing.budget.is_some(), "--budget"), (args.probing.stack.is_some(), "--stack"), (args.tree, "--tree")];
    if let Some((_, option)) = kernels.iter().find(|(given, _)| *given) {
        bail!("{option} needs --engine kernel");
    }
    if let Some(why) = why_to_patch(args)? {
        return by_patches(args, &why);
    }
    let cull = cull(args)?;
    let is_whole = args.mode != Some(Mode::Sampled) && !args.children;
    if matches!(args.hold_exit, Hold::UpTo(_)) && !is_whole {
        bail!(
            "--hold-exit finds what is unreachable only where every block of one program is recorded: not with --children or --mode sampled"
        );
    }
    let interval = args.interval.map(|bytes| parse_interval(&bytes.to_string())).transpose().map_err(anyhow::Error::msg)?;
    launch(&Launch {
        command: args.command.clone(),
        output: args.output.clone().or_else(|| setting("OUTPUT")),
        free_stacks: free_stacks(args),
        maps: !args.no_maps,
        interval: if args.mode == Some(Mode::Sampled) { interval.unwrap_or(DEFAULT_INTERVAL) } else { 0 },
        children: records_children(args),
        hold: args.hold_exit,
        cull,
        max_capture: args.culling.max_capture,
        rotate: args.culling.rotate(),
        serve: args.serving.of_program()?,
        shadow_stack: shadow_stack(),
        drop_on_overload: args.on_overload == Overload::Drop,
        begins_off: begins_off(),
        quiet: args.quiet,
    })
}

fn records_children(args: &Args) -> bool {
    args.children || switch("TRACK_CHILD_PROCESSES").unwrap_or(false)
}

/// What is left out, of every allocation only.
fn cull(args: &Args) -> anyhow::Result<Option<Cull>> {
    let cull = args.culling.of_program()?;
    if cull.is_some() && args.mode == Some(Mode::Sampled) {
        bail!("--cull leaves out what every allocation was recorded of: samples are few, and each stands for others");
    }
    if args.culling.rotate.is_some() && args.serving.of_program()?.is_some() {
        bail!("--rotate goes on in another file, and HOUND_ENABLE_SERVER sends one: leave one of them out");
    }
    if args.culling.rotate.is_some() && args.mode == Some(Mode::Sampled) {
        bail!("--rotate carries what lives from file to file, and needs every allocation: samples are few, and their capture stays small");
    }
    Ok(cull)
}

/// Nothing if the library is to be preloaded.
fn why_to_patch(args: &Args) -> anyhow::Result<Option<String>> {
    let asked = [
        (!args.probing.hook.is_empty(), "--hook"),
        (!args.then.is_empty(), "--then"),
        (args.duration.is_some(), "--duration"),
        (args.meanwhile.every.is_some(), "--every"),
    ];
    let asked = asked.into_iter().find(|(given, _)| *given).map(|(_, option)| option);
    Ok(match (args.via, asked) {
        (Via::Preload, Some(option)) => bail!("{option} needs patched functions: leave out --via preload"),
        (Via::Preload, None) => None,
        (Via::Patch, _) => Some("--via patch".into()),
        (Via::Auto, Some(option)) => Some(option.into()),
        (Via::Auto, None) => args.command.first().and_then(|name| Program::beyond_preloading(name).or_else(|| partly_beyond(args, name))),
    })
}

/// What a preloaded library would see in part only is patched where nothing needs that one.
fn partly_beyond(args: &Args, name: &OsStr) -> Option<String> {
    let library = Program::own_operator_new(name).filter(|_| needs_preloading(args).is_none())?;
    Some(format!("{library} has an operator new of its own"))
}

/// What only a preloaded library can do, if that was asked for.
fn needs_preloading(args: &Args) -> Option<&'static str> {
    let wishes =
        [(matches!(args.hold_exit, Hold::UpTo(_)), "an exit is held"), (begins_off(), "recording begins at the program's own word")];
    wishes.into_iter().find(|(wanted, _)| *wanted).map(|(_, what)| what)
}

fn by_patches(args: &Args, why: &str) -> anyhow::Result<Launched> {
    let name = args.command.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(what) = needs_preloading(args) {
        bail!("cannot record '{name}' like that: {what} only with a preloaded library, and here functions are to be patched ({why})");
    }
    if !args.quiet && args.via == Via::Auto {
        eprintln!("hound: functions of '{name}' are patched: {why}");
    }
    let interval = args.interval.map(|bytes| parse_interval(&bytes.to_string())).transpose().map_err(anyhow::Error::msg)?;
    let mode = if args.mode == Some(Mode::Sampled) { session::Mode::Sampled } else { session::Mode::Full };
    let (interval, cull) = (interval.unwrap_or(DEFAULT_INTERVAL), cull(args)?);
    let children = records_children(args);
    let follow = Follow::default();
    let attach = Attach { interval, cull, children, follow, engine: session::Engine::Library, ..attach(args, mode)? };
    launch_held(&args.command, attach, args.meanwhile.shown(&name, Place::Errors))
}

/// Whether the documented variable says that recording begins when the program says so.
fn begins_off() -> bool {
    switch("DISABLE_BY_DEFAULT").unwrap_or(false)
}

fn by_the_kernel(args: &Args, mode: Mode) -> anyhow::Result<Launched> {
    if matches!(args.hold_exit, Hold::UpTo(_)) {
        bail!("--hold-exit needs the library: the kernel holds nobody");
    }
    if args.culling.asked().is_some() {
        bail!("--cull needs the library: the kernel samples, and samples are few");
    }
    if args.culling.rotate.is_some() {
        bail!("--rotate needs the library: the kernel samples, and the capture of samples stays small");
    }
    let mode = match mode {
        Mode::Full => {
            bail!("the kernel samples: leave out --engine kernel, or have it record every call by --interval 0 --budget unlimited")
        }
        Mode::Sampled => session::Mode::Sampled,
        Mode::Faults => session::Mode::Faults,
    };
    let full = args.then.iter().any(|(mode, _)| *mode == session::Mode::Full);
    if (args.tree || args.children) && full {
        bail!("the library is brought into one process at a time: leave out --tree, or --then full");
    }
    let name = args.command.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let whom = if args.tree || args.children { format!("{name} and its children") } else { name };
    launch_held(&args.command, attach(args, mode)?, args.meanwhile.shown(&whom, Place::Errors))
}

/// How what was started is attached to.
fn attach(args: &Args, mode: session::Mode) -> anyhow::Result<Attach> {
    Ok(Attach {
        pid: 0, // known when it was started
        others: Vec::new(),
        named: true,
        follow: Follow { tree: args.tree || args.children, cgroup: None },
        children: false,
        duration: args.duration.map(Duration::from_nanos),
        output: args.output.clone().or_else(|| setting("OUTPUT")),
        hooks: args.probing.hooks()?,
        free_stacks: free_stacks(args),
        maps: !args.no_maps,
        mode,
        then: args.then.clone(),
        engine: session::Engine::Kernel,
        sampling: args.probing.plan(args.interval, free_stacks(args), args.no_maps, args.mode == Some(Mode::Faults)),
        interval: DEFAULT_INTERVAL,
        cull: None,
        max_capture: args.culling.max_capture,
        rotate: args.culling.rotate(),
        serve: args.serving.of_program()?,
        shadow_stack: shadow_stack(),
        drop_on_overload: args.on_overload == Overload::Drop,
        every: args.meanwhile.every(),
        unload: false,
        quiet: args.quiet,
        started: true,
    })
}

fn free_stacks(args: &Args) -> bool {
    !args.no_free_stacks && switch("GRAB_BACKTRACES_ON_FREE").unwrap_or(true)
}

fn shadow_stack() -> bool {
    switch("SHADOW_STACK").or_else(|| switch("USE_SHADOW_STACK")).unwrap_or(true)
}

fn show(args: &Args, launched: &Launched) -> anyhow::Result<()> {
    let Some(output) = &launched.output else { return Ok(()) };
    ending::show(output, args.meanwhile.blocks)
}

/// Record a program that libhound.so was preloaded into. Started by the library.
#[derive(clap::Args, Debug)]
pub struct CollectArgs {
    /// The inherited descriptor of the ring.
    #[arg(long)]
    ring_fd: i32,
    /// The program's process id.
    #[arg(long)]
    pid: u32,
    /// Its executable.
    #[arg(long, default_value = "program")]
    program: OsString,
}

/// Records until the program has ended.
pub fn collect(args: &CollectArgs) -> anyhow::Result<ExitCode> {
    let output = setting("OUTPUT");
    let cull = culling::of_environment()?;
    let (program, begins_off) = (args.program.clone(), begins_off());
    let serve = serving::of_environment()?;
    collect_ring(&Collect { ring_fd: args.ring_fd, pid: args.pid, program, output, begins_off, cull, serve })?;
    Ok(ExitCode::SUCCESS)
}
