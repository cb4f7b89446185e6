//! Programs that a recorded one begins, and of which a preloaded library would not see what they allocate: they are patched as by attaching,
//! while the library waits in them for its ring. It gets none then.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use hound_inject::{Awaited, Beneath, Entered, Error, Plan, Refusal};

use super::family::{Door, Making};
use super::launch;
use super::program::Program;
use super::ring::Ring;

/// The library waits for its ring for two seconds; what it allocates later is seen all the same.
const PATIENCE: Duration = Duration::from_secs(2);
/// Each try to restore a program's code.
const TO_RESTORE: Duration = Duration::from_secs(10);

/// What is ours in a process' mappings.
const LIBRARY: &[u8] = b"/libhound.so";
const RINGS: &[u8] = b"/memfd:hound-";

/// Device, inode and time of a program's file.
type Identity = (u64, u64, i64, i64);

/// How they are reached.
#[derive(Debug)]
pub struct Reaching {
    library: PathBuf,
    bytes: Vec<u8>,
    /// What their own children find hound by.
    entry: String,
    /// Whether these files are to be patched: there are few programs, and many processes.
    judged: Mutex<HashMap<Identity, bool>>,
    /// Static ones in which there is nothing to be patched, such as those of Go.
    hopeless: Mutex<HashSet<Identity>>,
}

impl Reaching {
    /// By the library beside hound. `door`: where their children ask.
    pub fn by(door: &Door) -> anyhow::Result<Self> {
        let library = std::path::absolute(launch::library()?)?;
        let bytes = std::fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        let (name, value) = door.variable();
        Ok(Reaching { library, bytes, entry: format!("{name}={value}"), judged: Mutex::default(), hopeless: Mutex::default() })
    }

    /// Whether the program in a process has allocators of its own that a preloaded library does not get between.
    pub fn is_needed(&self, pid: u32) -> bool {
        let path = program_of(pid);
        let Some(identity) = identity(&path) else { return false };
        let judged = || self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let known = judged().get(&identity).copied();
        known.unwrap_or_else(|| {
            let is_needed = Program::has_own_allocator(path.as_os_str());
            judged().insert(identity, is_needed);
            is_needed
        })
    }

    /// Whether the program in a process is static.
    pub fn is_static(&self, pid: u32) -> bool {
        hound_inject::is_static(&program_of(pid))
    }

    /// Whether it is known that nothing of it can be recorded.
    pub fn is_hopeless(&self, pid: u32) -> bool {
        identity(&program_of(pid)).is_some_and(|file| self.hopeless().contains(&file))
    }

    fn hopeless(&self) -> MutexGuard<'_, HashSet<Identity>> {
        self.hopeless.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Patches a static program that stands behind its exec before its first call of an allocator, has it `join` the others, and lets it begin.
    ///
    /// # Errors
    /// As attaching. It begins, unrecorded.
    pub fn patch_held(
        &self,
        awaited: Awaited,
        pid: u32,
        making: &Making,
        join: impl FnOnce(Ring) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let parked = awaited.park(i32::try_from(pid)?);
        if matches!(parked, Err(Error::Unfit { .. })) {
            self.hopeless().extend(identity(&program_of(pid)));
        }
        let Some(parked) = parked? else { return Ok(()) };
        let patched = self.patch(pid, making).and_then(join);
        if let Err(error) = &patched
            && matches!(error.downcast_ref(), Some(Error::Refused(Refusal::NoAllocator { .. })))
        {
            self.hopeless().extend(identity(&program_of(pid)));
        }
        match parked.go() {
            Ok(true) | Err(Error::Gone) => {}
            Ok(false) => {
                eprintln!("hound: process {pid} has begun before hound was in it: what it did in its first moments is not recorded")
            }
            Err(error) => eprintln!("hound: process {pid} begins some seconds late: {error}"),
        }
        patched
    }

    /// Brings the library into a process and patches it. Recording is off in its ring.
    ///
    /// # Errors
    /// As attaching. The process is as it was then.
    pub fn patch(&self, pid: u32, making: &Making) -> anyhow::Result<Ring> {
        let until = Instant::now() + PATIENCE;
        let target = hound_inject::look(i32::try_from(pid)?)?;
        let plan = Plan::beneath(&target, &[], &Beneath::default(), true)?;
        let mut entered = hound_inject::enter(&target, &self.bytes, until)?;
        let armed = take_ring(&entered, making).and_then(|ring| {
            self.tell(pid, &mut entered)?;
            let staged = entered.stage(&plan, until)?;
            entered.patch_staged(staged, until)?;
            Ok(ring)
        });
        if armed.is_err() {
            let _ = entered.unload(Instant::now() + PATIENCE); // else it stays there, asleep
        }
        armed
    }

    /// Says where the processes find hound that this one begins. Whether the programs among them can load the library.
    pub fn tell(&self, pid: u32, entered: &mut Entered) -> Result<bool, Error> {
        let root = Path::new("/proc").join(pid.to_string()).join("root");
        let there = self.library.strip_prefix("/").is_ok_and(|path| is_same_file(&self.library, &root.join(path)));
        entered.tell_of_family(Some(&self.entry), there.then_some(self.library.as_path()))?;
        Ok(there)
    }
}

fn program_of(pid: u32) -> PathBuf {
    format!("/proc/{pid}/exe").into()
}

fn identity(path: &Path) -> Option<Identity> {
    let file = path.metadata().ok()?;
    Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    file(one).is_some() && file(one) == file(other)
}

/// The ring of a library that was just brought into a process, as it is to be made.
pub fn take_ring(entered: &Entered, making: &Making) -> anyhow::Result<Ring> {
    let ring = Ring::adopt(entered.ring().as_fd().try_clone_to_owned()?)
        .context("cannot map the shared memory; hound needs 161 MiB of address space for it (see `ulimit -v`)")?;
    let control = ring.control();
    control.options.store(making.options, Ordering::Relaxed);
    control.interval.store(making.interval, Ordering::Relaxed);
    control.clock.store(making.clock, Ordering::Relaxed);
    control.max_wait_ms.store(making.max_wait_ms, Ordering::Relaxed);
    control.patience_ms.store(making.patience_ms, Ordering::Relaxed);
    control.bow_out.store(0, Ordering::Relaxed);
    control.forks.store(0, Ordering::Relaxed);
    control.unrecorded.store(0, Ordering::Relaxed);
    control.drainer.store(std::process::id(), Ordering::Release);
    Ok(ring)
}

/// Traces a thread until it, or a process that it begins, has executed a program.
///
/// # Errors
/// When another traces it.
pub fn watch(pid: u32, tid: u32, spawns: bool) -> anyhow::Result<Awaited> {
    Ok(Awaited::thread(i32::try_from(pid)?, i32::try_from(tid)?, spawns)?)
}

/// A number that a process' status has, 0 if it has none.
fn of_status(pid: u32, name: &str) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// How many seccomp filters a process is behind (kernels before 5.9 do not say).
pub fn filters(pid: u32) -> u32 {
    of_status(pid, "Seccomp_filters:")
}

/// Whether a thread is traced by one of hound's.
pub fn is_traced_by_us(tid: u32) -> bool {
    Path::new("/proc/self/task").join(of_status(tid, "TracerPid:").to_string()).exists()
}

/// Whether a program runs in a process into which neither the library nor a ring of hound's was brought.
pub fn has_nothing_of_ours(pid: u32) -> bool {
    let runs = std::fs::read_link(format!("/proc/{pid}/exe")).is_ok(); // not so of one that has ended
    let maps = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let of_ours =
        |line: &[u8]| line.windows(LIBRARY.len()).any(|part| part == LIBRARY) || line.windows(RINGS.len()).any(|part| part == RINGS);
    runs && !maps.is_empty() && !maps.split(|byte| *byte == b'\n').any(of_ours)
}

/// Restores the code of a process that was patched, or forked from one that was, and waits for the events that it is writing. What it is by now
/// needs not be. Returns how many of these are lost.
pub fn restore(pid: u32) -> Result<u64, Error> {
    let pid = i32::try_from(pid).map_err(|_| Error::Gone)?;
    let restored = hound_inject::find(pid).and_then(|found| match found {
        Some(mut existing) => existing.settle(Instant::now() + TO_RESTORE),
        None => Ok(0), // another program by now
    });
    match restored {
        // Gone, or a program that the library was preloaded into: it has no patches.
        Err(Error::Gone | Error::Refused(Refusal::NoProcess { .. } | Refusal::Launched)) => Ok(0),
        restored => restored,
    }
}
