//! What a probe costs on this machine, measured on a process made for it: the price of a trap differs by a factor of three between machines.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use hound_inject::ProbePlan;

use super::kernel::{Programs, Settings, Site};
use super::sampling::Costs;

/// Hidden command by which hound starts itself as the process to be measured.
pub const COMMAND: &str = "allocate-on-request";
/// Pairs of malloc and free in one measurement: some milliseconds with probes.
const PAIRS: u64 = 4000;
/// Pairs of which each is sampled.
const SAMPLED_PAIRS: u64 = 400;
/// Measurements of each kind; the fastest counts, as whatever else runs can only slow one down.
const TIMES: usize = 3;
/// Nothing is sampled.
const NEVER: u64 = 1 << 46;

/// What the measured process does: for each number on standard input it makes so many pairs of malloc and free, and prints how many
/// nanoseconds of processor time they took. `filtered`: under a seccomp filter that kills for the system calls of the kernel's own
/// trampolines.
///
/// # Errors
/// When its input or output fails.
pub fn allocate_on_request(filtered: bool) -> anyhow::Result<()> {
    if filtered {
        filter().context("no filter")?;
    }
    for line in std::io::stdin().lock().lines() {
        let pairs: u64 = line?.trim().parse()?;
        let before = cpu_ns();
        for _ in 0..pairs {
            pair();
        }
        println!("{}", cpu_ns() - before);
    }
    Ok(())
}

/// `uretprobe` (Linux 6.11) and `uprobe` (6.18) of x86-64: made by what the kernel puts in the place of a return address and of a probe.
const TRAMPOLINES: [u32; 2] = [335, 336];

#[expect(unsafe_code, reason = "prctl(2) has no safe wrapper for a filter")]
fn filter() -> std::io::Result<()> {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let line = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut lines = [
        line(LOAD_NUMBER, 0, 0, 0), // the number is the first field
        line(IF_EQUAL, TRAMPOLINES[0], 1, 0),
        line(IF_EQUAL, TRAMPOLINES[1], 0, 1),
        line(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        line(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
    // SAFETY: no pointer is passed.
    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the kernel reads the program, which outlives the call.
    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })?;
    Ok(())
}

/// Whether any thread of a process runs under a seccomp filter.
pub fn is_filtered(pid: u32) -> bool {
    let Ok(tasks) = procfs::process::Process::new(pid.cast_signed()).and_then(|process| process.tasks()) else { return false };
    let mut states = tasks.flatten().filter_map(|task| task.status().ok());
    states.any(|status| status.seccomp.is_some_and(|mode| mode != 0))
}

fn cpu_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(unsafe_code, reason = "calls malloc and free themselves, which the compiler would leave out in any other form")]
fn pair() {
    // SAFETY: no preconditions.
    let block = std::hint::black_box(unsafe { libc::malloc(64) });
    // SAFETY: just allocated, or null.
    unsafe { libc::free(block) };
}

struct Measured {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Measured {
    fn start(filtered: bool) -> anyhow::Result<Self> {
        let own = PathBuf::from("/proc/self/exe");
        let mut child = Command::new(own)
            .arg(COMMAND)
            .args(filtered.then_some("--filtered"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a process to measure what probes cost")?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let input = input.context("no pipe to the measured process")?;
        let output = BufReader::new(output.context("no pipe from the measured process")?);
        let mut measured = Measured { child, input, output };
        measured.pairs(1)?; // it is there and has a heap
        Ok(measured)
    }

    /// Seconds of one pair.
    fn pairs(&mut self, pairs: u64) -> anyhow::Result<f64> {
        writeln!(self.input, "{pairs}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let ns: u64 = line.trim().parse().context("the measured process has ended")?;
        Ok(ns as f64 / 1e9 / pairs as f64)
    }

    fn fastest(&mut self, pairs: u64) -> anyhow::Result<f64> {
        (0..TIMES).map(|_| self.pairs(pairs)).try_fold(f64::INFINITY, |best, took| Ok(best.min(took?)))
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended, or ends now
        let _ = self.child.wait();
    }
}

/// Measures with these programs, which must have nothing else to do yet. `filtered`: for a target with seccomp filters. `several`: for
/// targets that share an allocator's file. A trap in one passes the links of all others; to their filter by process the kernel answers as if
/// they wished to see the return (Linux 6.18, `uprobe_multi_link_handler`), so that each call pays for a return probe.
///
/// # Errors
/// When the process cannot be started or probed; and when a filter would end it, as some kernels (6.11 to 6.13) have it: such a
/// kernel shows filters the system calls that it makes a probed program do.
pub fn costs(programs: &mut Programs, stack_bytes: u32, filtered: bool, several: bool) -> anyhow::Result<Costs> {
    let mut measured = Measured::start(filtered)?;
    let other = several.then(|| Measured::start(false)).transpose()?;
    let costs = measure(programs, stack_bytes, filtered, &mut measured, other.as_ref());
    if filtered && costs.is_err() && measured.child.try_wait()?.is_some() {
        bail!(
            "the target runs under a seccomp filter, and this kernel lets such filters see, and kill for, the system calls that probes \
             make (Linux 6.11 to 6.13): hound does not set any. --mode faults and --engine library need none; Linux 6.14 has it mended"
        );
    }
    costs.context("cannot measure what a probe costs on this machine")
}

fn measure(
    programs: &mut Programs,
    stack_bytes: u32,
    filtered: bool,
    measured: &mut Measured,
    other: Option<&Measured>,
) -> anyhow::Result<Costs> {
    let pid = measured.child.id();
    let plan = ProbePlan::of(i32::try_from(pid)?, &[])?;
    let sites: Vec<Site> =
        plan.sites().iter().map(|site| Site { file: PathBuf::from(site.path()), offset: site.offset, cookie: site.cookie }).collect();
    let bare = measured.fastest(PAIRS)?;
    let was = programs.settings();
    let quiet = Settings { interval: NEVER, stack_bytes, ..was };
    programs.set(quiet)?;
    let opening = std::time::Instant::now();
    let probes = programs.open(pid, &sites)?;
    let opening = opening.elapsed().as_secs_f64();
    let others = other.map(|other| programs.open(other.child.id(), &sites)).transpose()?;
    let probed = measured.fastest(PAIRS)?;
    programs.set(Settings { interval: 0, ..quiet })?;
    let sampled = measured.fastest(SAMPLED_PAIRS)?;
    drop((probes, others));
    programs.set(was)?;
    programs.forget_all(pid);
    while programs.read(&mut |_| {}) > 0 {}
    let hit = ((probed - bare) / 2.0).max(50e-9);
    // The target's text is copied and its caches are cleaned at each opening; most of the time it takes is hound's own.
    Ok(Costs { hit, sample: (sampled - probed).max(1e-6), opening: opening / 4.0, filtered })
}
