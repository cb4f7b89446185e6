//! Loading the programs, and all that is done with them once they are.
//!
//! aya makes the maps and loads what it knows: tracepoints and perf-style probes. The programs for links of many probes are taken from the
//! same object, tied to the same maps by aya-obj, and loaded by `raw`, since aya 0.14 has no such links.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{MapData, RingBuf};
use aya::programs::{RawTracePoint, TracePoint, UProbe};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use aya_obj::Object;

use super::error::{KernelError, number};
use super::messages::Message;
use super::raw::{self, Attach};
use super::rights::{BOTH, PERFMON, Rights, tracefs};
use super::settings::Settings;
use super::tables::{Tables, descriptor};
use super::types::TaskFields;

/// The programs, built by `cargo xtask ebpf`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../hound-ebpf/hound.bpf.o");

/// Messages that one reading takes at most: a target that writes faster than hound reads must not hold hound here for ever.
pub(super) const MOST_AT_ONCE: usize = 1 << 16;

/// Program and tracepoint.
const LIFE: &[(&str, &str)] = &[
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
    ("task_rename", "task_rename"),
    ("mark_victim", "mark_victim"),
];
const FAULTS: &[(&str, &str)] = &[("fault_user", "page_fault_user"), ("fault_kernel", "page_fault_kernel")];

/// Program and tracepoint of `syscalls`.
const MAPPED: &[(&str, &str)] = &[
    ("mmap_returned", "sys_exit_mmap"),
    ("munmap_returned", "sys_exit_munmap"),
    ("mremap_returned", "sys_exit_mremap"),
    ("brk_returned", "sys_exit_brk"),
];

/// How probes are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One link for many sites; the return is probed where the program wants it (Linux 6.13).
    Sessions,
    /// A perf event for each site, and each return probed.
    PerfEvents,
}

/// Sizes, and what else is decided at loading.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Of the ring; a power of two. The default holds 200 ms of 10,000 samples a second with 16 KiB of stack each.
    pub ring_bytes: u32,
    /// Most sampled blocks that can be followed at once.
    pub live_entries: u32,
    /// How to set probes; nothing: as well as the kernel can.
    pub style: Option<Style>,
    /// Another build of the programs than the one that is part of hound.
    pub object: Option<Vec<u8>>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { ring_bytes: 32 << 20, live_entries: 1 << 18, style: None, object: None }
    }
}

/// The programs, loaded.
pub struct Programs {
    pub(super) style: Style,
    /// Of [`Style::Sessions`]: the programs for functions that allocate, and for those that release.
    pub(super) multi: Option<(OwnedFd, OwnedFd)>,
    pub(super) ebpf: Ebpf,
    pub(super) tables: Tables,
    ring: RingBuf<MapData>,
    logger: Option<EbpfLogger<Remarks>>,
    remarks: Arc<Mutex<Vec<String>>>,
    fields: TaskFields,
    ring_bytes: u32,
    settings: Settings,
    life_attached: bool,
    faults_attached: bool,
    mapped_attached: bool,
}

impl Programs {
    /// Loads them. Nothing is probed yet.
    ///
    /// # Errors
    /// [`KernelError::NotPermitted`] without the capabilities; [`KernelError::NotSupported`] if the asked style is not there.
    pub fn load(options: &LoadOptions) -> Result<Self, KernelError> {
        let object = options.object.as_deref().unwrap_or(OBJECT);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", options.ring_bytes)
            .map_max_entries("LIVE", options.live_entries)
            .load(object)
            .map_err(|error| KernelError::of("make eBPF maps", BOTH, error))?;
        let multi = if options.style == Some(Style::PerfEvents) { None } else { load_multi(&ebpf, object)? };
        let style = match (&multi, options.style) {
            (Some(_), _) => Style::Sessions,
            (None, Some(Style::Sessions)) => {
                return Err(KernelError::NotSupported { lacks: "uprobe sessions (Linux 6.13)" });
            }
            (None, _) => Style::PerfEvents,
        };
        if style == Style::PerfEvents {
            for name in ["alloc_entry", "alloc_return", "release"] {
                let program = program::<UProbe>(&mut ebpf, name)?;
                let loaded = raw::undisturbed(|| program.load(), |error| number(error));
                loaded.map_err(|error| KernelError::of("load eBPF programs", BOTH, error))?;
            }
        }
        let remarks = Arc::default();
        // Takes a map; after the programs are tied to it.
        let logger = EbpfLogger::init_with_logger(&mut ebpf, Remarks(Arc::clone(&remarks))).ok();
        let ring = ebpf.take_map("EVENTS").ok_or_else(|| missing("EVENTS"))?;
        let ring = RingBuf::try_from(ring).map_err(|error| KernelError::of("map the ring", BOTH, error))?;
        let tables = Tables::take(&mut ebpf)?;
        let mut programs = Programs {
            style,
            multi,
            ebpf,
            tables,
            ring,
            logger,
            remarks,
            fields: TaskFields::of_this_kernel().unwrap_or_default(),
            ring_bytes: options.ring_bytes,
            settings: Settings::default(),
            life_attached: false,
            faults_attached: false,
            mapped_attached: false,
        };
        programs.set(Settings::default())?;
        Ok(programs)
    }

    /// How probes are set.
    pub fn style(&self) -> Style {
        self.style
    }

    /// What is in force.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Changes how the programs work, from the next call on.
    ///
    /// # Errors
    /// If the kernel takes no new settings, or has not what faults need.
    pub fn set(&mut self, settings: Settings) -> Result<(), KernelError> {
        // A quarter of the ring: the rest is time for hound to come.
        self.tables.set(settings.for_the_programs(self.ring_bytes / 4, self.fields))?;
        if settings.faults.is_some() && !self.faults_attached {
            if self.fields.pagefault_disabled == 0 {
                return Err(KernelError::NotSupported { lacks: "type information in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)" });
            }
            self.attach(FAULTS)?;
            self.faults_attached = true;
        }
        self.settings = settings;
        Ok(())
    }

    /// Does beforehand what takes time of [`Programs::watch`], and of [`Programs::set`] for faults. Nobody is watched by it.
    ///
    /// # Errors
    /// As those.
    pub fn make_ready(&mut self, faults: bool) -> Result<(), KernelError> {
        if !self.life_attached {
            self.attach(LIFE)?;
            self.life_attached = true;
        }
        if faults && !self.faults_attached && self.fields.pagefault_disabled != 0 {
            self.attach(FAULTS)?;
            self.faults_attached = true;
        }
        Ok(())
    }

    /// Tells of this process' life, and of its faults if [`Settings::faults`] says so.
    ///
    /// # Errors
    /// If the kernel lacks its tracepoints or its type information.
    pub fn watch(&mut self, pid: u32) -> Result<(), KernelError> {
        self.watch_with(pid, false)
    }

    /// Whether the programs can tell whose life they hear of.
    ///
    /// # Errors
    /// If the kernel lacks its type information.
    pub fn must_know_tasks(&self) -> Result<(), KernelError> {
        if self.fields == TaskFields::default() {
            return Err(KernelError::NotSupported { lacks: "type information in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)" });
        }
        Ok(())
    }

    /// The same; with `children`, of those that it forks from here on, and of theirs, too. Each is to be [`Programs::unwatch`]ed when it ends.
    ///
    /// # Errors
    /// As above.
    pub fn watch_with(&mut self, pid: u32, children: bool) -> Result<(), KernelError> {
        self.must_know_tasks()?;
        self.make_ready(false)?;
        self.tables.add_target(pid, children)
    }

    /// Tells of changes of watched processes' mappings, too, as [`Settings::mapped`] says. Every system call of every process on the machine
    /// costs a little more from then on (docs/overhead.md).
    ///
    /// # Errors
    /// If the kernel has no tracepoints of system calls, or they cannot be found for want of tracefs.
    pub fn watch_mappings(&mut self) -> Result<(), KernelError> {
        if self.mapped_attached {
            return Ok(());
        }
        for (name, tracepoint) in MAPPED {
            let program = program::<TracePoint>(&mut self.ebpf, name)?;
            raw::undisturbed(|| program.load(), |error| number(error))
                .map_err(|error| KernelError::of("load eBPF programs", BOTH, error))?;
            let attached = program.attach("syscalls", tracepoint);
            attached.map_err(|error| match tracefs() {
                Err(denied) => KernelError::NotPermitted { doing: "look up tracepoints of system calls", denied },
                Ok(()) => KernelError::of("attach to a system call's tracepoint", &[PERFMON], error),
            })?;
        }
        self.mapped_attached = true;
        Ok(())
    }

    /// Tells no more of this process.
    pub fn unwatch(&mut self, pid: u32) {
        self.tables.remove_target(pid);
    }

    fn attach(&mut self, programs: &[(&'static str, &'static str)]) -> Result<(), KernelError> {
        for (name, tracepoint) in programs {
            let program = program::<RawTracePoint>(&mut self.ebpf, name)?;
            raw::undisturbed(|| program.load(), |error| number(error))
                .map_err(|error| KernelError::of("load eBPF programs", BOTH, error))?;
            program.attach(tracepoint).map_err(|error| KernelError::of("attach to a tracepoint", BOTH, error))?;
        }
        Ok(())
    }

    /// Takes what is in the ring, and returns how many messages it was. Messages of one thread come in their order; those of different
    /// threads nearly so.
    pub fn read(&mut self, take: &mut impl FnMut(Message<'_>)) -> usize {
        let mut taken = 0;
        while taken < MOST_AT_ONCE
            && let Some(item) = self.ring.next()
        {
            taken += 1;
            if let Some(message) = Message::of(&item) {
                take(message);
            }
        }
        taken
    }

    /// Becomes readable when the ring has filled by a quarter. Less than that wakes nobody: read every 50 ms or so, too.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// What the programs had to remark since the last time; each says a thing once a CPU.
    pub fn remarks(&mut self) -> Vec<String> {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        std::mem::take(&mut self.remarks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A program of aya's, by name.
pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, KernelError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| missing(name))
}

/// The object has not what this code was written for: they are not of one build.
pub(super) fn missing(name: &'static str) -> KernelError {
    KernelError::Other { doing: "find a part of hound's eBPF object", cause: name.into() }
}

/// Loads the programs for links of many probes; nothing if the kernel has no such links.
fn load_multi(ebpf: &Ebpf, bytes: &[u8]) -> Result<Option<(OwnedFd, OwnedFd)>, KernelError> {
    let broken = |cause: Box<dyn std::error::Error + Send + Sync>| KernelError::Other { doing: "read hound's eBPF object", cause };
    let mut object = Object::parse(bytes).map_err(|error| broken(error.into()))?;
    let maps = std::mem::take(&mut object.maps);
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let with_descriptors = maps.iter().filter_map(|(name, map)| Some((name.as_str(), descriptor(ebpf.map(name)?)?.as_raw_fd(), map)));
    object.relocate_maps(with_descriptors, &text).map_err(|error| broken(error.into()))?;
    object.relocate_calls(&text).map_err(|error| broken(error.into()))?;
    let alloc = load_one(&object, "alloc", Attach::Session)?;
    let release = load_one(&object, "release", Attach::Multi)?;
    let has_both = raw::has(alloc.as_fd(), Attach::Session) && raw::has(release.as_fd(), Attach::Multi);
    Ok(has_both.then_some((alloc, release)))
}

fn load_one(object: &Object, name: &'static str, attach: Attach) -> Result<OwnedFd, KernelError> {
    let program = object.programs.get(name).ok_or_else(|| missing(name))?;
    let function = object.functions.get(&program.function_key()).ok_or_else(|| missing(name))?;
    let license = CString::from(program.license.as_c_str());
    raw::load(name, &function.instructions, &license, attach).map_err(|(cause, words)| match cause.raw_os_error() {
        Some(libc::EPERM) => KernelError::not_permitted("load eBPF programs", BOTH),
        _ => KernelError::Refused { program: name, cause, words, lockdown: Rights::here().lockdown },
    })
}

/// Collects what the programs log.
struct Remarks(Arc<Mutex<Vec<String>>>);

impl log::Log for Remarks {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
    }

    fn flush(&self) {}
}
