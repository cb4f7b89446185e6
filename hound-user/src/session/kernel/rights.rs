//! Why the kernel has refused something, and what helps: from what can be seen of hound's own rights and of the machine's restrictions.

use std::fmt;
use std::fs;
use std::path::Path;

use procfs::process::{LimitValue, Process};

/// A capability: its number in `linux/capability.h`, and its name.
pub type Capability = (u32, &'static str);
/// Reads other users' files.
const DAC_READ_SEARCH: Capability = (2, "CAP_DAC_READ_SEARCH");
/// All of the others here, too.
pub const SYS_ADMIN: Capability = (21, "CAP_SYS_ADMIN");
/// To load programs that look at the kernel and at processes, and to set probes.
pub const PERFMON: Capability = (38, "CAP_PERFMON");
/// To make maps and load programs.
pub const BPF: Capability = (39, "CAP_BPF");
/// What loading and setting probes needs.
pub const BOTH: &[Capability] = &[BPF, PERFMON];

/// The first kernel that knows [`BPF`] and [`PERFMON`].
const CAPABILITIES: (u32, u32) = (5, 8);
/// The first kernel that charges programs and maps to the memory of the control group, and not to RLIMIT_MEMLOCK.
const CHARGED: (u32, u32) = (5, 11);

/// A refusal, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What stands in the way.
    pub cause: String,
    /// The way out.
    pub cure: String,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.cure)
    }
}

/// What hound may, and what the machine forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// hound's effective capabilities, as bits.
    pub effective: u64,
    /// Its capabilities are a container's, not the machine's.
    pub in_container: bool,
    /// The kernel.
    pub kernel: (u32, u32),
    /// How locked down the kernel is: `integrity`, `confidentiality`; nothing if it is not.
    pub lockdown: Option<String>,
    /// hound runs under a seccomp filter.
    pub filtered: bool,
    /// RLIMIT_MEMLOCK in bytes; nothing if there is none.
    pub locked_memory: Option<u64>,
}

impl Rights {
    /// As they are now.
    pub fn here() -> Self {
        let own = Process::myself().ok();
        let status = own.as_ref().and_then(|own| own.status().ok());
        let limit = own.as_ref().and_then(|own| own.limits().ok()).map(|limits| limits.max_locked_memory.soft_limit);
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Rights {
            effective: status.as_ref().map_or(0, |status| status.capeff),
            in_container: map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"],
            kernel: crate::session::doctor::version().0,
            lockdown: lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()),
            filtered: status.as_ref().and_then(|status| status.seccomp).is_some_and(|mode| mode != 0),
            locked_memory: limit.and_then(|limit| if let LimitValue::Value(bytes) = limit { Some(bytes) } else { None }),
        }
    }

    /// Whether hound has it.
    pub fn has(&self, (number, _): Capability) -> bool {
        [number, SYS_ADMIN.0].iter().any(|number| self.effective & 1 << number != 0)
    }

    /// Why something that needs these was refused.
    pub fn why(&self, needed: &[Capability]) -> Denied {
        let denied = |cause: String, cure: &str| Denied { cause, cure: cure.into() };
        let names = |list: &[Capability], between: &str| list.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(between);
        if self.kernel < CAPABILITIES && !self.has(SYS_ADMIN) {
            return denied("hound lacks CAP_SYS_ADMIN, which Linux needs for it before 5.8".into(), "run hound as root");
        }
        let missing: Vec<Capability> = needed.iter().copied().filter(|needed| !self.has(*needed)).collect();
        if !missing.is_empty() {
            let cause = format!("hound lacks {}", names(&missing, " and "));
            return Denied { cause, cure: format!("run hound as root, or with {}", names(needed, " and ")) };
        }
        if self.in_container {
            return denied(
                format!("hound's {} are a container's own, and the machine's are needed", names(needed, " and ")),
                "run hound on the machine itself, or in a container without a user namespace of its own",
            );
        }
        if let Some(level) = &self.lockdown {
            return denied(
                format!("the kernel's lockdown is {level}"),
                "boot with lockdown=integrity or none; hound attach --mode full needs nothing of it",
            );
        }
        if let Some(bytes) = self.locked_memory.filter(|_| self.kernel < CHARGED) {
            return denied(
                format!("hound may lock {bytes} bytes of memory (RLIMIT_MEMLOCK), which Linux counts its maps to before 5.11"),
                "ulimit -l unlimited",
            );
        }
        if self.filtered {
            return denied(
                "hound runs under a seccomp filter, which may forbid bpf and perf_event_open".into(),
                "allow both in the container's profile, or run hound outside",
            );
        }
        denied(
            "hound has what it needs, so a security module forbids it".into(),
            "look into the audit log; hound attach --mode full may work",
        )
    }
}

/// The level in brackets, if it forbids anything that hound does: programs that read memory are refused under `confidentiality` only.
pub fn lockdown(text: &str) -> Option<String> {
    let level = text.split_once('[')?.1.split_once(']')?.0;
    (level == "confidentiality").then(|| level.to_owned())
}

/// Where tracepoints of system calls can be looked up, and why not where they cannot.
///
/// # Errors
/// With what stands in the way.
pub fn tracefs() -> Result<(), Denied> {
    const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let number = |place: &&str| fs::read_to_string(format!("{place}/events/syscalls/sys_exit_mmap/id"));
    let tried = PLACES.map(|place| number(&place));
    if tried.iter().any(Result::is_ok) {
        return Ok(());
    }
    let denied = tried.iter().flat_map(|tried| tried.as_ref().err()).any(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    Err(tracefs_says(denied, Path::new("/sys/kernel/tracing/events").exists()))
}

fn tracefs_says(denied: bool, mounted: bool) -> Denied {
    let (cause, cure) = match (denied, mounted) {
        (true, _) => (
            "tracefs (/sys/kernel/tracing) may be read by root only".to_owned(),
            format!("run hound as root, or with {}, or mount -o remount,mode=755 /sys/kernel/tracing", DAC_READ_SEARCH.1),
        ),
        (false, false) => ("tracefs is not mounted".to_owned(), "mount -t tracefs none /sys/kernel/tracing".to_owned()),
        (false, true) => ("the kernel has no tracepoints of system calls".to_owned(), "a kernel with CONFIG_FTRACE_SYSCALLS".to_owned()),
    };
    Denied { cause, cure }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rights =
        Rights { effective: u64::MAX, in_container: false, kernel: (6, 18), lockdown: None, filtered: false, locked_memory: Some(0) };

    fn with(capabilities: &[Capability]) -> Rights {
        Rights { effective: capabilities.iter().fold(0, |bits, (number, _)| bits | 1 << number), ..ALL }
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_not_is_not() {
        let cause = |rights: &Rights| rights.why(BOTH).cause;
        assert_eq!(cause(&with(&[])), "hound lacks CAP_BPF and CAP_PERFMON");
        assert_eq!(cause(&with(&[BPF])), "hound lacks CAP_PERFMON");
        assert_eq!(cause(&with(&[PERFMON])), "hound lacks CAP_BPF");
        for enough in [with(&[BPF, PERFMON]), with(&[SYS_ADMIN])] {
            assert!(cause(&enough).contains("security module"), "{}", cause(&enough));
        }
        assert!(cause(&Rights { kernel: (5, 4), ..with(BOTH) }).contains("CAP_SYS_ADMIN"));
        assert!(cause(&Rights { in_container: true, ..with(BOTH) }).contains("container"));
        assert!(cause(&Rights { filtered: true, ..with(BOTH) }).contains("seccomp"));
        assert!(with(BOTH).has(BPF) && with(&[SYS_ADMIN]).has(PERFMON) && !with(&[BPF]).has(PERFMON));
    }

    #[test]
    fn the_limit_of_locked_memory_counts_on_old_kernels_only() {
        let old = Rights { kernel: (5, 10), ..ALL };
        assert!(old.why(BOTH).cause.contains("RLIMIT_MEMLOCK") && old.why(BOTH).cure.contains("ulimit -l"));
        assert!(!ALL.why(BOTH).cause.contains("RLIMIT_MEMLOCK"));
        assert!(!Rights { locked_memory: None, ..old }.why(BOTH).cause.contains("RLIMIT_MEMLOCK"));
    }

    #[test]
    fn lockdown_forbids_by_confidentiality_only() {
        assert_eq!(lockdown("none integrity [confidentiality]\n").as_deref(), Some("confidentiality"));
        for harmless in ["", "[none] integrity confidentiality", "none [integrity] confidentiality"] {
            assert_eq!(lockdown(harmless), None);
        }
        let locked = Rights { lockdown: Some("confidentiality".into()), ..ALL };
        assert!(locked.why(BOTH).cause.contains("lockdown is confidentiality") && locked.why(BOTH).cure.contains("integrity"));
    }

    #[test]
    fn tracefs_is_told_apart_from_what_is_not_in_it() {
        assert!(tracefs_says(true, false).cure.contains("CAP_DAC_READ_SEARCH"));
        assert!(tracefs_says(false, false).cure.contains("mount -t tracefs"));
        assert!(tracefs_says(false, true).cure.contains("CONFIG_FTRACE_SYSCALLS"));
    }
}
