//! Looks at the machine, and at a process, for what hound needs. Changes nothing but in a child of its own.

mod sampled;

use std::time::{Duration, Instant};

use hound_common::ring::CLOCK_TSC;
use hound_inject::{Error, Existing, Plan, State};
use nix::unistd::geteuid;
use procfs::process::Process;
use serde::Serialize;

use super::ring::Ring;
use super::{clock, launch};

/// Whether something is as hound needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It is.
    Good,
    /// It is not, and nothing that this hound does needs it.
    Note,
    /// Something does not work for it.
    Bad,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub cure: Option<String>,
}

impl Check {
    fn new(name: &str, health: Health, found: impl Into<String>) -> Self {
        Check { name: name.into(), health, found: found.into(), cure: None }
    }

    fn cure(self, cure: impl Into<String>) -> Self {
        Check { cure: Some(cure.into()), ..self }
    }
}

/// Longest for the trial: a machine so busy that it takes longer is no place to attach in.
const TRIAL: Duration = Duration::from_secs(10);
const CAP_SYS_PTRACE: u32 = 19;
/// Capability numbers of `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 4] = [(CAP_SYS_PTRACE, "SYS_PTRACE"), (21, "SYS_ADMIN"), (38, "PERFMON"), (39, "BPF")];

/// What works on this machine. One check attaches to a program of hound's own, and leaves it.
pub fn look_at_machine() -> Vec<Check> {
    let (own, library, tracing) = (own_filter(), library(), tracing());
    let ready = library.health == Health::Good && tracing.health == Health::Good;
    let mut checks = vec![kernel(), rights(), namespace(), yama(), security_module(), proc_mount(), own, tracing, memfd(), library];
    if ready {
        checks.push(trial());
    }
    checks.extend([tsc(), group()]);
    checks.extend(sampled::of_machine());
    checks
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The kernel's version, and the words for it.
pub(super) fn version() -> ((u32, u32), String) {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse::<u32>().ok());
    ((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)), release)
}

fn kernel() -> Check {
    let (version, release) = version();
    let found = format!("Linux {release} on {}", std::env::consts::ARCH);
    // pidfd_getfd came with 5.6, the newest of the system calls that attaching needs.
    match version >= (5, 6) {
        true => Check::new("kernel", Health::Good, found),
        false => Check::new("kernel", Health::Bad, found).cure("attaching needs Linux 5.6 or later; `hound run` does not"),
    }
}

fn has_capability(number: u32) -> bool {
    let effective = Process::myself().and_then(|own| own.status()).map_or(0, |status| status.capeff);
    effective & (1 << number) != 0
}

fn rights() -> Check {
    let words = CAPABILITIES.iter().map(|(number, name)| format!("{}{name}", if has_capability(*number) { "" } else { "no " }));
    let found = format!("user {}: {}", geteuid(), words.collect::<Vec<_>>().join(", "));
    match has_capability(CAP_SYS_PTRACE) {
        true => Check::new("rights", Health::Good, found),
        false => Check::new("rights", Health::Note, found)
            .cure("programs of this user can be attached to; for others run hound as root, or with CAP_SYS_PTRACE"),
    }
}

/// Whether hound holds power over the machine's processes, or over a container's only.
fn namespace() -> Check {
    let map = read("/proc/self/uid_map").unwrap_or_default();
    match map.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["0", "0", "4294967295"] => Check::new("user namespace", Health::Good, "the machine's own"),
        _ => Check::new("user namespace", Health::Note, "a container's: its rights do not reach beyond it")
            .cure("to attach to what runs outside of it, or in another container, run hound on the machine itself"),
    }
}

fn yama() -> Check {
    yama_says(read("/proc/sys/kernel/yama/ptrace_scope").as_deref(), has_capability(CAP_SYS_PTRACE))
}

/// What a `ptrace_scope` means for a hound with or without CAP_SYS_PTRACE.
fn yama_says(scope: Option<&str>, capable: bool) -> Check {
    let check = |health, found: String| Check::new("yama", health, found);
    match (scope, capable) {
        (None, _) => check(Health::Good, "not there: no restriction".into()),
        (Some("0"), _) => check(Health::Good, "ptrace_scope is 0".into()),
        (Some(scope @ ("1" | "2")), true) => {
            check(Health::Good, format!("ptrace_scope is {scope}, which does not bind who has CAP_SYS_PTRACE"))
        }
        (Some("1"), false) => check(Health::Bad, "ptrace_scope is 1: only what hound has started itself can be traced".into())
            .cure("run hound as root, or `sysctl kernel.yama.ptrace_scope=0`, or start programs with `hound run`"),
        (Some("2"), false) => check(Health::Bad, "ptrace_scope is 2: only root may trace".into())
            .cure("run hound as root, or `sysctl kernel.yama.ptrace_scope=0`, or start programs with `hound run`"),
        (Some(scope), _) => check(Health::Bad, format!("ptrace_scope is {scope}: nothing can be traced until the next boot"))
            .cure("start programs with `hound run`"),
    }
}

/// Of the security modules, what is known to forbid tracing.
fn security_module() -> Check {
    let modules = read("/sys/kernel/security/lsm");
    let lockdown = read("/sys/kernel/security/lockdown")
        .and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .filter(|level| level != "none");
    if read("/sys/fs/selinux/booleans/deny_ptrace").is_some_and(|text| text.starts_with('1')) {
        return Check::new("security modules", Health::Bad, "SELinux's deny_ptrace is on: nothing can be traced")
            .cure("`setsebool deny_ptrace off`, or start programs with `hound run`");
    }
    let mut found = modules.unwrap_or_else(|| "not to be seen (no securityfs)".into());
    if let Some(level) = lockdown {
        found += &format!("; lockdown is {level}, which does not concern full mode");
    }
    Check::new("security modules", Health::Good, found)
}

/// How `/proc` is mounted: hidden processes can be neither found by name nor attached to.
fn proc_mount() -> Check {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    proc_mount_says(&mounts, has_capability(CAP_SYS_PTRACE))
}

fn proc_mount_says(mounts: &str, capable: bool) -> Check {
    let options = mounts.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words.get(1) == Some(&"/proc"));
    let Some(options) = options.as_ref().and_then(|words| words.get(3)) else {
        return Check::new("/proc", Health::Bad, "not mounted").cure("mount -t proc proc /proc");
    };
    if options.split(',').any(|option| option == "subset=pid") {
        return Check::new("/proc", Health::Note, "subset=pid: settings of the kernel cannot be seen, so some checks here know nothing");
    }
    match options.split(',').find_map(|option| option.strip_prefix("hidepid=")) {
        None | Some("0" | "off") => Check::new("/proc", Health::Good, "shows all processes"),
        Some(value) if capable => Check::new("/proc", Health::Good, format!("hidepid={value}, which does not bind who has CAP_SYS_PTRACE")),
        Some(value) => Check::new("/proc", Health::Note, format!("hidepid={value}: other users' processes are hidden"))
            .cure("those of this user can be attached to; for others run hound as root"),
    }
}

/// A sandbox around hound itself.
fn own_filter() -> Check {
    let mode =
        read("/proc/self/status").and_then(|text| Some(text.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim().to_owned()));
    match mode.as_deref() {
        Some("0") | None => Check::new("own seccomp", Health::Good, "no filter on hound"),
        Some(_) => Check::new("own seccomp", Health::Note, "hound itself runs under a seccomp filter, as in most containers")
            .cure("where `ptrace` or `attach` below fail, allow ptrace, process_vm_readv and pidfd_open, or run hound outside"),
    }
}

/// Traces a child, as an attach would.
fn tracing() -> Check {
    use nix::sys::{ptrace, signal::Signal, wait::waitpid};
    let child = std::process::Command::new("sleep").arg("60").stdin(std::process::Stdio::null()).spawn();
    let Ok(mut child) = child else { return Check::new("ptrace", Health::Note, "not tried: there is no `sleep` to try it on") };
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let tried =
        ptrace::seize(pid, ptrace::Options::empty()).and_then(|()| ptrace::interrupt(pid)).and_then(|()| waitpid(pid, None).map(|_| ()));
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = child.wait();
    match tried {
        Ok(()) => Check::new("ptrace", Health::Good, "a child could be stopped"),
        Err(error) => Check::new("ptrace", Health::Bad, format!("a child could not be stopped: {error}"))
            .cure("in a container allow SYS_PTRACE and the ptrace system call; `hound run` does without"),
    }
}

/// Makes the shared memory as a recording would, and lets it go.
fn memfd() -> Check {
    let scope = match read("/proc/sys/vm/memfd_noexec") {
        // hound's ring is never executed, and the library's code goes into anonymous memory.
        Some(scope) if scope != "0" => format!("; memfd_noexec is {scope}, hound makes none that is executed"),
        _ => String::new(),
    };
    match Ring::create() {
        Ok(ring) => {
            ring.control().initialise(0, 0, 0, 0);
            Check::new("memfd", Health::Good, format!("shared memory was made, sealed and mapped{scope}"))
        }
        Err(error) => Check::new("memfd", Health::Bad, format!("shared memory cannot be made: {error}{scope}")).cure(
            "hound maps 161 MiB of address space (`ulimit -v`, RLIMIT_AS) and touches some 7 MB; where memfd_create is forbidden, allow it",
        ),
    }
}

/// Attaches to a program of hound's own, from the first look to the last byte taken out again.
fn trial() -> Check {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Check::new("attach", Health::Bad, format!("{what} a program of hound's own failed: {error}"))
            .cure("the checks above tell what is forbidden here; start programs with `hound run`")
    };
    let child =
        std::process::Command::new("sleep").arg("60").stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn();
    let Ok(mut child) = child else { return Check::new("attach", Health::Note, "not tried: there is no `sleep` to try it on") };
    let tried = attach_and_leave(child.id() as i32);
    let alive = child.try_wait().is_ok_and(|ended| ended.is_none());
    let _ = child.kill(); // it may have ended
    let _ = child.wait();
    match tried {
        Ok(stall) if alive => {
            let stall = stall.as_secs_f64() * 1e3;
            Check::new("attach", Health::Good, format!("a program of hound's own was attached to and left (longest stall {stall:.1} ms)"))
        }
        Ok(_) => failed("attaching to", &"it ended"),
        Err(error) => failed("attaching to", &format!("{error:#}")),
    }
}

/// Returns the longest that it stood still.
fn attach_and_leave(pid: i32) -> anyhow::Result<Duration> {
    let deadline = Instant::now() + TRIAL;
    // Its loader must be done: before, there is no libc to patch.
    let (target, plan) = loop {
        let tried = hound_inject::look(pid).and_then(|target| Ok((Plan::of(&target, &[])?, target)));
        match tried {
            Ok((plan, target)) => break (target, plan),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.into()),
        }
    };
    let library = std::fs::read(launch::library()?)?;
    let mut entered = hound_inject::enter(&target, &library, deadline)?;
    let patched = entered.patch(&plan, deadline).map(|patched| patched.stall);
    let restored = entered.unpatch(deadline)?;
    let stall = entered.stalls().iter().copied().chain([restored, patched?]).max().unwrap_or_default();
    entered.unload(deadline)?;
    Ok(stall)
}

fn tsc() -> Check {
    match clock::choose() {
        CLOCK_TSC => Check::new("clock", Health::Good, "time-stamp counter: one rate in all states"),
        _ => Check::new("clock", Health::Note, "the time-stamp counter cannot be trusted here: each event costs some 20 ns more")
            .cure("see the kernel's log for why it was given up (dmesg | grep -i tsc)"),
    }
}

fn library() -> Check {
    match launch::library() {
        Ok(path) => Check::new("libhound.so", Health::Good, path.display().to_string()),
        Err(error) => Check::new("libhound.so", Health::Bad, format!("{error:#}")),
    }
}

/// The memory that hound's shared pages are charged to.
fn group() -> Check {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let unified = own.lines().find_map(|line| line.strip_prefix("0::"));
    let limit = unified.and_then(|group| read(&format!("/sys/fs/cgroup{group}/memory.max")));
    match (unified, limit.as_deref()) {
        (Some(group), Some("max") | None) => Check::new("cgroup", Health::Good, format!("{group}, no memory limit of its own")),
        (Some(group), Some(limit)) => Check::new(
            "cgroup",
            Health::Note,
            format!("{group}, memory limit {limit} bytes; recording needs some 50 MB and more for reports"),
        ),
        (None, _) => Check::new("cgroup", Health::Good, "version 1, or none"),
    }
}

/// Whether hound can attach to a process, and what it would see.
pub fn look_at_target(pid: u32) -> Vec<Check> {
    let Ok(number) = i32::try_from(pid) else { return vec![Check::new("target", Health::Bad, format!("{pid} is no process id"))] };
    let mut checks = full_mode(pid, number);
    checks.extend(sampled::of_target(number));
    checks
}

fn full_mode(pid: u32, number: i32) -> Vec<Check> {
    let mut checks = Vec::new();
    let refused = |name: &str, error: Error| match error {
        Error::Refused(refusal) => Check::new(name, Health::Bad, refusal.cause()).cure(refusal.cure()),
        other => Check::new(name, Health::Bad, other.to_string()),
    };
    let target = match hound_inject::look(number) {
        Ok(target) => target,
        Err(error) => return vec![refused("target", error)],
    };
    let inside = target.pid_in_namespace;
    let elsewhere = if inside == pid { String::new() } else { format!(", {inside} in its own namespace") };
    checks.push(Check::new("target", Health::Good, format!("{} (process {pid}{elsewhere}) can be attached to", target.name)));
    let left = match hound_inject::find(number) {
        Ok(left) => left,
        Err(error) => return checks.into_iter().chain([refused("left behind", error)]).collect(),
    };
    let left = left_behind(pid, left.as_ref());
    if left.health == Health::Bad {
        checks.remove(0);
        return vec![left];
    }
    checks.push(threads(number));
    match Plan::of(&target, &[]) {
        Err(error) => checks.push(refused("allocators", error)),
        Ok(plan) => {
            for covered in plan.covered() {
                let (family, module) = (&covered.family, &covered.module);
                checks.push(Check::new("recorded", Health::Good, format!("{family} in {module}: {}", functions(covered.functions.iter()))));
            }
            for not in plan.not_covered() {
                checks.push(Check::new("not recorded", Health::Note, format!("{} in {}: {}", not.what, not.module, not.why)));
            }
        }
    }
    checks.push(left);
    checks
}

/// What an earlier hound left in a process, or one that records it has in it.
fn left_behind(pid: u32, left: Option<&Existing>) -> Check {
    let check = |health, found: String| Check::new("left behind", health, found);
    let Some(left) = left else { return check(Health::Good, "nothing of hound is in it".into()) };
    match left.state() {
        State::Dormant => check(Health::Good, "libhound.so, asleep: the next attach uses it".into()),
        State::Armed { drainer } if left.is_drained().unwrap_or(true) => {
            check(Health::Bad, format!("libhound.so, at work: hound process {drainer} records it"))
                .cure(format!("`hound snapshot -p {pid}` reports on that recording, `hound detach -p {pid}` ends it"))
        }
        State::Armed { .. } => check(Health::Note, "libhound.so, hooked in by a hound that is gone".into())
            .cure(format!("the next attach repairs that, and `hound detach -p {pid}` does")),
        State::HalfBuilt => check(Health::Note, "pieces of libhound.so, from a hound that died on its way in".into())
            .cure(format!("the next attach takes them out, and `hound detach -p {pid}` does")),
        State::OtherVersion => check(Health::Bad, "libhound.so of another version of hound".into())
            .cure("only that version can take it out: `hound detach --unload`"),
    }
}

/// The threads that an attach stops, and those that it would have to wait for.
fn threads(pid: i32) -> Check {
    let states = Process::new(pid)
        .and_then(|process| process.tasks())
        .map(|tasks| tasks.flatten().filter_map(|task| Some(task.stat().ok()?.state)).collect::<Vec<_>>());
    let states = states.unwrap_or_default();
    let asleep = states.iter().filter(|state| **state == 'D').count();
    let found = format!("{}, all of them stopped for a moment at the attach and at the detach", states.len());
    match asleep {
        0 => Check::new("threads", Health::Good, found),
        _ => Check::new("threads", Health::Note, format!("{found}; {asleep} in uninterruptible sleep just now"))
            .cure("hound waits for those, and gives up after 10 s: nothing has changed then"),
    }
}

/// Function names for people: the operators' mangled ones say nothing.
fn functions<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let operator = |name: &str| match name.get(..4) {
        Some("_Znw" | "_Zna") => Some("operator new"),
        Some("_Zdl" | "_Zda") => Some("operator delete"),
        _ => None,
    };
    let mut shown: Vec<String> = Vec::new();
    let mut operators: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match operator(name) {
            None => shown.push(name.clone()),
            Some(word) => match operators.iter_mut().find(|(known, _)| *known == word) {
                Some((_, times)) => *times += 1,
                None => operators.push((word, 1)),
            },
        }
    }
    shown.extend(operators.iter().map(|(word, times)| if *times == 1 { (*word).to_owned() } else { format!("{times} of {word}") }));
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_that_is_bad_says_what_to_do() {
        let checks = look_at_machine();
        assert!(checks.len() >= 10);
        for check in checks.iter().filter(|check| check.health == Health::Bad && check.name != "libhound.so") {
            assert!(check.cure.is_some(), "{check:?}");
        }
        // hound's library need not be built for unit tests; where it is, the trial is real.
        let ready = checks.iter().all(|check| !matches!(check.name.as_str(), "libhound.so" | "ptrace") || check.health == Health::Good);
        assert_eq!(checks.iter().any(|check| check.name == "attach"), ready);
        let tracing = checks.iter().find(|check| check.name == "ptrace");
        assert!(tracing.is_some_and(|check| !check.found.is_empty()));
    }

    #[test]
    fn yama_is_understood() {
        let health = |scope, capable| yama_says(scope, capable).health;
        for capable in [false, true] {
            assert_eq!((health(None, capable), health(Some("0"), capable)), (Health::Good, Health::Good));
            assert_eq!(health(Some("3"), capable), Health::Bad);
        }
        assert_eq!(["1", "2"].map(|scope| health(Some(scope), true)), [Health::Good; 2]);
        assert_eq!(["1", "2"].map(|scope| health(Some(scope), false)), [Health::Bad; 2]);
        for scope in ["1", "2", "3"] {
            assert!(yama_says(Some(scope), false).cure.is_some());
        }
    }

    #[test]
    fn a_proc_that_hides_processes_is_noticed() {
        let mounts = |options: &str| format!("sys /sys sysfs rw 0 0\nproc /proc proc {options} 0 0\ntmp /tmp tmpfs rw,hidepid=2 0 0\n");
        let health = |options: &str, capable| proc_mount_says(&mounts(options), capable).health;
        assert_eq!((health("rw,nosuid", false), health("rw,hidepid=0", false)), (Health::Good, Health::Good));
        for value in ["1", "2", "4", "invisible", "ptraceable", "noaccess"] {
            let options = format!("rw,hidepid={value}");
            assert_eq!((health(&options, false), health(&options, true)), (Health::Note, Health::Good), "{value}");
        }
        assert_eq!(health("rw,subset=pid", true), Health::Note);
        assert_eq!(proc_mount_says("", true).health, Health::Bad);
    }

    #[test]
    fn operators_are_called_by_their_names() {
        let names = ["malloc", "_Znwm", "_Znam", "_ZdlPv", "free"].map(String::from);
        assert_eq!(functions(names.iter()), "malloc, free, 2 of operator new, operator delete");
    }

    #[test]
    fn a_process_that_is_not_there_is_refused_with_a_cure() {
        let checks = look_at_target(i32::MAX as u32);
        assert!(matches!(checks.as_slice(), [check] if check.health == Health::Bad && check.cure.is_some()), "{checks:?}");
    }
}
