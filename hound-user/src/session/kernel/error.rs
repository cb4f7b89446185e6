//! Why the kernel's part could not do something, and what helps.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::rights::{BOTH, Capability, Denied, Rights, SYS_ADMIN};

const WITHOUT: &str = "record without the kernel: hound attach --mode full";
const OTHER_KERNEL: &str = "a newer one may, or record without the kernel: hound attach --mode full";
/// The first kernel that sets many uprobes by one link, for which CAP_BPF and CAP_PERFMON suffice.
pub const MULTI: (u32, u32) = (6, 6);

/// What went wrong, with its cure.
#[derive(Debug)]
pub enum KernelError {
    /// The kernel does not let hound.
    NotPermitted {
        /// What hound was doing.
        doing: &'static str,
        /// Why.
        denied: Denied,
    },
    /// The kernel is too old, or was built without it.
    NotSupported {
        /// What it lacks.
        lacks: &'static str,
    },
    /// There is no such process, or it is ending.
    NoProcess(u32),
    /// The kernel refuses the places, most likely for the sake of another tracer that holds one of them.
    SiteRefused {
        /// The file.
        file: PathBuf,
        /// How the kernel put it.
        cause: io::Error,
    },
    /// A probe there would damage the target. A mistake of hound's own.
    SiteUnsafe {
        /// The file.
        file: PathBuf,
        /// The place in it.
        offset: u64,
    },
    /// The kernel's verifier has refused a program of hound's.
    Refused {
        /// The program.
        program: &'static str,
        /// How the kernel put it.
        cause: io::Error,
        /// The end of the verifier's words.
        words: String,
        /// The kernel is locked down so far that it refuses every such program.
        lockdown: Option<String>,
    },
    /// Anything else.
    Other {
        /// What hound was doing.
        doing: &'static str,
        /// What came of it.
        cause: Box<dyn Error + Send + Sync>,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted { doing, denied } => write!(f, "not permitted to {doing}: {}; {}", denied.cause, denied.cure),
            Self::NotSupported { lacks } => write!(f, "this kernel has no {lacks}; {OTHER_KERNEL}"),
            Self::NoProcess(pid) => write!(f, "there is no process {pid} any more, or it is ending"),
            Self::SiteRefused { file, cause } => write!(
                f,
                "the kernel refuses probes in {}: {cause}; most likely another tracer (bcc, bpftrace, perf, SystemTap) holds one of the \
                 places; end it and try again (the kernel's log says more: dmesg | grep -i ref_ctr)",
                file.display()
            ),
            Self::SiteUnsafe { file, offset } => write!(
                f,
                "a return probe at {}+{offset:#x} would overwrite what the function has pushed: hound does not set it (please report this)",
                file.display()
            ),
            Self::Refused { program, cause, words, lockdown } => {
                if let Some(level) = &lockdown {
                    return write!(f, "the kernel's lockdown is {level}: no program may read memory; {WITHOUT}");
                }
                write!(f, "the kernel refuses hound's program `{program}`: {cause} (please report this)")?;
                if words.is_empty() { Ok(()) } else { write!(f, "\n{words}") }
            }
            Self::Other { doing, cause } => write!(f, "cannot {doing}: {cause}"),
        }
    }
}

impl Error for KernelError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::SiteRefused { cause, .. } | Self::Refused { cause, .. } => Some(cause),
            Self::Other { cause, .. } => Some(cause.as_ref()),
            _ => None,
        }
    }
}

/// The kernel's number in an error of aya's, wherever it is inside.
pub fn number(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(this) = next {
        if let Some(number) = this.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        next = this.source();
    }
    None
}

impl KernelError {
    /// The kernel does not let hound, for lack of one of these or for another reason.
    pub fn not_permitted(doing: &'static str, needs: &[Capability]) -> Self {
        Self::NotPermitted { doing, denied: Rights::here().why(needs) }
    }

    /// What is wrong, and apart from it the way out where there is one.
    pub fn cause_and_cure(&self) -> (String, Option<String>) {
        match self {
            Self::NotPermitted { doing, denied } => (format!("not permitted to {doing}: {}", denied.cause), Some(denied.cure.clone())),
            Self::NotSupported { lacks } => (format!("this kernel has no {lacks}"), Some(OTHER_KERNEL.into())),
            Self::Refused { lockdown: Some(level), .. } => {
                (format!("the kernel's lockdown is {level}: no program may read memory"), Some(WITHOUT.into()))
            }
            other => (other.to_string(), None),
        }
    }

    /// From an error of aya's. `needs`: what it takes to be permitted to.
    pub fn of(doing: &'static str, needs: &[Capability], error: impl Error + Send + Sync + 'static) -> Self {
        match number(&error) {
            Some(libc::EPERM | libc::EACCES) => Self::not_permitted(doing, needs),
            _ => Self::Other { doing, cause: Box::new(error) },
        }
    }

    /// From the refusal of a link.
    pub fn of_link(file: PathBuf, pid: u32, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                // Before Linux 6.6 there is but perf's way of setting them.
                Self::not_permitted("set probes", if Rights::here().kernel < MULTI { &[SYS_ADMIN] } else { BOTH })
            }
            Some(libc::ESRCH) => Self::NoProcess(pid),
            _ => Self::SiteRefused { file, cause: error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_names_cause_or_cure() {
        let refused = KernelError::of_link(PathBuf::from("/lib/libc.so.6"), 1, io::Error::from_raw_os_error(libc::EINVAL));
        assert!(refused.to_string().contains("another tracer") && refused.to_string().contains("/lib/libc.so.6"), "{refused}");
        let dead = KernelError::of_link(PathBuf::new(), 4711, io::Error::from_raw_os_error(libc::ESRCH));
        assert!(dead.to_string().contains("4711"), "{dead}");
        let denied = KernelError::of_link(PathBuf::new(), 1, io::Error::from_raw_os_error(libc::EPERM));
        assert!(denied.to_string().contains("not permitted to set probes") && denied.cause_and_cure().1.is_some(), "{denied}");
    }
}
