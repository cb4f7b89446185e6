//! What sampling from the kernel needs, and what it would probe in a process.

use std::path::Path;

use hound_inject::{Error, How, ProbePlan, ProbeSite};

use crate::symbols::KernelImage;

use super::super::kernel::KernelError;
use super::super::kernel::MULTI;
use super::super::kernel::rights::{BOTH, Denied, Rights, tracefs};
use super::super::sampling::Ready;
use super::{Check, Health, read};

/// The first kernel in which a probe decides at a call whether it wants to see its return.
const SESSION: (u32, u32) = (6, 13);
/// The first kernel whose allocators' tracepoints are as hound's programs read them.
const TRACEPOINTS: (u32, u32) = (6, 1);

/// What the machine has of it.
pub(super) fn of_machine() -> Vec<Check> {
    let paranoid = read("/proc/sys/kernel/perf_event_paranoid");
    let unprivileged = read("/proc/sys/kernel/unprivileged_bpf_disabled");
    let said = |value: Option<String>, name: &str| value.map_or(format!("{name} is not there"), |value| format!("{name} is {value}"));
    let rights = Rights::here();
    vec![
        present("kernel types", "/sys/kernel/btf/vmlinux", "BTF", "CONFIG_DEBUG_INFO_BTF"),
        present("uprobes", "/sys/bus/event_source/devices/uprobe/type", "the kernel's uprobes", "CONFIG_UPROBE_EVENTS"),
        Check::new("perf", Health::Good, said(paranoid, "perf_event_paranoid") + " (binds who lacks CAP_PERFMON)"),
        Check::new("bpf", Health::Good, said(unprivileged, "unprivileged_bpf_disabled") + " (binds who lacks CAP_BPF)"),
        lockdown(&rights),
        locked_memory(&rights),
        mappings(),
        trial(&rights),
        kernel_memory(&rights, KernelImage::read().is_hidden),
    ]
}

fn present(name: &str, path: &str, what: &str, option: &str) -> Check {
    match Path::new(path).exists() {
        true => Check::new(name, Health::Good, format!("{what}: there")),
        false => Check::new(name, Health::Note, format!("{what}: not there, and sampled mode needs it; full mode does not"))
            .cure(format!("a kernel with {option}; or `hound attach --mode full`")),
    }
}

fn lockdown(rights: &Rights) -> Check {
    match &rights.lockdown {
        None => Check::new("lockdown", Health::Good, "does not concern hound"),
        Some(level) => {
            let Denied { cause, cure } = Rights { effective: u64::MAX, in_container: false, ..rights.clone() }.why(BOTH);
            Check::new("lockdown", Health::Note, format!("{cause} ({level}: no program in the kernel may read memory)")).cure(cure)
        }
    }
}

fn locked_memory(rights: &Rights) -> Check {
    let limit = rights.locked_memory.map_or("no limit".to_owned(), |bytes| format!("{bytes} bytes (RLIMIT_MEMLOCK)"));
    Check::new("locked memory", Health::Good, format!("{limit}; binds hound before Linux 5.11 only, if it is not root"))
}

/// Whether mappings, and what is loaded later, are told by the kernel.
fn mappings() -> Check {
    match tracefs() {
        Ok(()) => Check::new("mappings", Health::Good, "told by tracepoints of system calls"),
        Err(Denied { cause, cure }) => {
            let found = format!("{cause}: mappings cannot be recorded (--maps), and what is loaded later is noticed up to a second late");
            Check::new("mappings", Health::Note, found).cure(cure)
        }
    }
}

/// Does to a process of hound's own what attaching does first: loads the programs, sets probes, samples.
fn trial(rights: &Rights) -> Check {
    const NAME: &str = "sampled mode";
    let costs = match Ready::try_out() {
        Ok(costs) => costs,
        Err(error) => {
            let (cause, cure) = match error.downcast_ref::<KernelError>() {
                Some(error) => error.cause_and_cure(),
                None => (format!("{error:#}"), None),
            };
            let cure =
                cure.unwrap_or_else(|| "see above what is forbidden here; `hound attach --mode full` records without the kernel".into());
            return Check::new(NAME, Health::Bad, cause).cure(cure);
        }
    };
    let way = match rights.kernel {
        kernel if kernel >= SESSION => "all probes by one link; only sampled calls pay for their return",
        kernel if kernel >= MULTI => "all probes by one link; before Linux 6.13 every call pays for its return",
        _ => "one probe at a time, by perf (before Linux 6.6); every call pays for its return",
    };
    let found = format!("a process of hound's own was sampled: {:.0} ns a call; {way}", costs.hit * 1e9);
    Check::new(NAME, Health::Good, found)
}

/// What `hound attach --kernel` needs.
fn kernel_memory(rights: &Rights, hides_addresses: bool) -> Check {
    let note = |found: &str, cure: &str| Check::new("kernel memory", Health::Note, found).cure(cure);
    if rights.kernel < TRACEPOINTS {
        return note("the tracepoints of the kernel's allocators have other arguments before Linux 6.1", "a kernel from 6.1 on");
    }
    if !BOTH.iter().all(|needed| rights.has(*needed)) {
        let Denied { cause, cure } = rights.why(BOTH);
        return note(&cause, &cure);
    }
    if hides_addresses {
        return note(
            "can be recorded, but the kernel hides its addresses: stacks will have no names",
            "run hound as root or with CAP_SYSLOG, and sysctl kernel.kptr_restrict=1 (or 0)",
        );
    }
    Check::new("kernel memory", Health::Good, "hound attach --kernel sees kmalloc, slab caches, per-CPU memory and pages, with names")
}

/// What would be probed in a process.
pub(super) fn of_target(pid: i32) -> Vec<Check> {
    let plan = match ProbePlan::of(pid, &[]) {
        Ok(plan) => plan,
        Err(Error::Refused(refusal)) => return vec![Check::new("sampled", Health::Note, refusal.cause()).cure(refusal.cure())],
        // There is no such process, or hound may not look at it: full mode's checks have said so.
        Err(_) => return Vec::new(),
    };
    let mut checks = Vec::new();
    let mut places: Vec<(&str, &str)> = plan.sites().iter().map(|site| (site.family.as_str(), site.module.as_str())).collect();
    places.dedup();
    for (family, module) in places {
        let sites = || plan.sites().iter().filter(|site| (site.family.as_str(), site.module.as_str()) == (family, module));
        for (how, words) in
            [(How::Emulated, "the kernel emulates the instruction"), (How::Stepped, "the kernel steps over the instruction")]
        {
            let of: Vec<&ProbeSite> = sites().filter(|site| site.how == how).collect();
            if of.is_empty() {
                continue;
            }
            let cost = how.cost_ns() as f64 / 1e3;
            let found = format!("{family} in {module}: {}: {words}, some {cost:.1} µs a call", functions(&of));
            checks.push(Check::new("sampled", if how == How::Emulated { Health::Good } else { Health::Note }, found));
        }
    }
    let through: Vec<&str> = plan.passes_on().iter().map(|passing| passing.function.as_str()).collect();
    if !through.is_empty() {
        let names = super::functions(through.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>().iter());
        checks.push(Check::new("sampled", Health::Good, format!("through the functions that they pass their calls on to: {names}")));
    }
    for not in plan.not_covered() {
        checks.push(Check::new("not sampled", Health::Note, format!("{} in {}: {}", not.what, not.module, not.why)));
    }
    checks
}

/// Names, with the distance of the probe from the function's beginning where there is one.
fn functions(sites: &[&ProbeSite]) -> String {
    let mut names: Vec<String> = Vec::new();
    for site in sites {
        let null = if site.skips_null { ", not for null" } else { "" };
        let name = super::functions(core::iter::once(&site.function));
        names.push(match site.address - site.entry {
            0 => name,
            distance => format!("{name} (at +{distance}{null})"),
        });
    }
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rights =
        Rights { effective: u64::MAX, in_container: false, kernel: (6, 18), lockdown: None, filtered: false, locked_memory: None };

    #[test]
    fn kernel_memory_names_what_it_lacks() {
        let with = |capabilities: u64, kernel| Rights { effective: capabilities, kernel, ..ALL };
        let cure = |rights: &Rights, hidden| kernel_memory(rights, hidden).cure.unwrap_or_default();
        assert_eq!(kernel_memory(&with(1 << 39 | 1 << 38, (6, 18)), false).health, Health::Good);
        assert!(cure(&with(u64::MAX, (5, 15)), false).contains("6.1"));
        let no_perfmon = kernel_memory(&with(1 << 39, (6, 18)), false);
        assert!(no_perfmon.found.contains("CAP_PERFMON") && !no_perfmon.found.contains("CAP_BPF"));
        assert!(cure(&ALL, true).contains("kptr_restrict"));
    }

    #[test]
    fn lockdown_is_named_though_hound_has_all_rights_or_none() {
        for effective in [0, u64::MAX] {
            let check = lockdown(&Rights { lockdown: Some("confidentiality".into()), effective, ..ALL });
            assert!(
                check.health == Health::Note && check.found.contains("lockdown is confidentiality") && check.cure.is_some(),
                "{check:?}"
            );
        }
        assert_eq!(lockdown(&ALL).health, Health::Good);
    }

    #[test]
    fn what_a_kernel_lacks_is_named_with_its_option() {
        let check = present("kernel types", "/nowhere/btf", "BTF", "CONFIG_DEBUG_INFO_BTF");
        assert!(check.health == Health::Note && check.cure.is_some_and(|cure| cure.contains("CONFIG_DEBUG_INFO_BTF")));
    }

    #[test]
    fn what_a_program_would_have_probed_is_told_with_its_cost() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("coreutils are installed");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            let checks = of_target(child.id() as i32);
            // Its loader must be done.
            match checks.iter().find(|check| check.name == "sampled" && check.health == Health::Good) {
                Some(check) => break check.found.clone(),
                None => assert!(std::time::Instant::now() < deadline, "{checks:?}"),
            }
        };
        let _ = child.kill();
        let _ = child.wait();
        assert!(found.contains("malloc") && found.contains("µs a call"), "{found}");
    }
}
