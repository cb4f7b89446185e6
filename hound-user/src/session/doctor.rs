//! Looks at the machine, and at a process, for what hound needs. Changes nothing.

use std::path::Path;

use hound_common::ring::CLOCK_TSC;
use hound_inject::{Error, Plan, State};
use nix::unistd::geteuid;
use procfs::process::Process;
use serde::Serialize;

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

/// Capability numbers of `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 4] = [(19, "SYS_PTRACE"), (21, "SYS_ADMIN"), (38, "PERFMON"), (39, "BPF")];

/// What works on this machine.
pub fn look_at_machine() -> Vec<Check> {
    let mut checks = vec![kernel(), rights(), yama(), tracing(), memfd(), tsc(), library(), group()];
    checks.extend(kernel_side());
    checks
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Check {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release} on {}", std::env::consts::ARCH);
    // pidfd_getfd came with 5.6, the newest of the system calls that attaching needs.
    match version >= (5, 6) {
        true => Check::new("kernel", Health::Good, found),
        false => Check::new("kernel", Health::Bad, found).cure("attaching needs Linux 5.6 or later; `hound run` does not"),
    }
}

fn rights() -> Check {
    let status = Process::myself().and_then(|own| own.status());
    let effective = status.map_or(0, |status| status.capeff);
    let held = |number: u32| effective & (1 << number) != 0;
    let words = CAPABILITIES.iter().map(|(number, name)| format!("{}{name}", if held(*number) { "" } else { "no " }));
    let user = geteuid();
    let found = format!("user {user}: {}", words.collect::<Vec<_>>().join(", "));
    match held(19) {
        true => Check::new("rights", Health::Good, found),
        false => Check::new("rights", Health::Note, found)
            .cure("programs of this user can be attached to; for others run hound as root, or with CAP_SYS_PTRACE"),
    }
}

fn yama() -> Check {
    let Some(scope) = read("/proc/sys/kernel/yama/ptrace_scope") else {
        return Check::new("yama", Health::Good, "not there: no restriction");
    };
    let root = geteuid().is_root();
    match (scope.as_str(), root) {
        ("0", _) => Check::new("yama", Health::Good, "ptrace_scope is 0"),
        ("1" | "2", true) => Check::new("yama", Health::Good, format!("ptrace_scope is {scope}, which does not bind root")),
        ("1" | "2", false) => Check::new("yama", Health::Bad, format!("ptrace_scope is {scope}: only children can be traced"))
            .cure("run hound as root, or sysctl kernel.yama.ptrace_scope=0"),
        _ => Check::new("yama", Health::Bad, format!("ptrace_scope is {scope}: nothing can be traced until the next boot"))
            .cure("start programs with `hound run`"),
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

fn memfd() -> Check {
    match read("/proc/sys/vm/memfd_noexec").as_deref() {
        // hound's ring is never executed, and the library's code goes into anonymous memory.
        Some("2") => Check::new("memfd", Health::Good, "memfd_noexec is 2: hound makes none that is executed"),
        Some(scope) => Check::new("memfd", Health::Good, format!("memfd_noexec is {scope}")),
        None => Check::new("memfd", Health::Good, "no restriction"),
    }
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

/// What modes that look from the kernel would need. This hound has none yet.
fn kernel_side() -> Vec<Check> {
    let types = Path::new("/sys/kernel/btf/vmlinux").exists();
    let paranoid = read("/proc/sys/kernel/perf_event_paranoid");
    let unprivileged = read("/proc/sys/kernel/unprivileged_bpf_disabled");
    let uprobes = Path::new("/sys/bus/event_source/devices/uprobe/type").exists();
    let said = |value: Option<String>, name: &str| value.map_or(format!("{name} is not there"), |value| format!("{name} is {value}"));
    let good = |good: bool| if good { Health::Good } else { Health::Note };
    vec![
        Check::new("kernel types", good(types), if types { "BTF is there" } else { "no BTF (not needed by attach --mode full)" }),
        Check::new("uprobes", good(uprobes), if uprobes { "there" } else { "not there (not needed by attach --mode full)" }),
        Check::new("perf", good(paranoid.is_some()), said(paranoid, "perf_event_paranoid")),
        Check::new("bpf", good(unprivileged.is_some()), said(unprivileged, "unprivileged_bpf_disabled")),
    ]
}

/// Whether hound can attach to a process, and what it would see.
pub fn look_at_target(pid: u32) -> Vec<Check> {
    let Ok(number) = i32::try_from(pid) else { return vec![Check::new("target", Health::Bad, format!("{pid} is no process id"))] };
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
    match Plan::of(&target, &[]) {
        Err(error) => checks.push(refused("allocators", error)),
        Ok(plan) => {
            for covered in plan.covered() {
                let (family, module) = (&covered.family, &covered.module);
                checks.push(Check::new("recorded", Health::Good, format!("{family} in {module}: {}", covered.functions.join(", "))));
            }
            for not in plan.not_covered() {
                checks.push(Check::new("not recorded", Health::Bad, format!("{} in {}: {}", not.what, not.module, not.why)));
            }
        }
    }
    checks.push(match hound_inject::find(number) {
        Err(error) => refused("left behind", error),
        Ok(None) => Check::new("left behind", Health::Good, "nothing of hound is in it"),
        Ok(Some(left)) => match left.state() {
            State::Dormant => Check::new("left behind", Health::Good, "libhound.so, asleep: the next attach uses it"),
            State::Armed { drainer } => {
                Check::new("left behind", Health::Note, format!("libhound.so at work; hound process {drainer} attached it"))
                    .cure("`hound status` shows a recording that runs; `hound detach` ends it, or repairs what it left")
            }
            State::HalfBuilt | State::OtherVersion => {
                Check::new("left behind", Health::Note, "libhound.so, half built or of another version")
                    .cure("`hound detach --unload` takes it out")
            }
        },
    });
    checks
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
        let tracing = checks.iter().find(|check| check.name == "ptrace");
        assert!(tracing.is_some_and(|check| !check.found.is_empty()));
    }

    #[test]
    fn a_process_that_is_not_there_is_refused_with_a_cure() {
        let checks = look_at_target(i32::MAX as u32);
        assert!(matches!(checks.as_slice(), [check] if check.health == Health::Bad && check.cure.is_some()), "{checks:?}");
    }
}
