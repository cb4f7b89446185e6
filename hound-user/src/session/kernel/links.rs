//! Probes in the text of one process.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
#[cfg(doc)]
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{ProgramError, UProbe};
use hound_common::kernel::{Cookie, DOES_FREE};

use super::error::{KernelError, number};
use super::load::{Programs, missing, program};
use super::raw::{self, Attach};

/// A place for a probe: the first byte of an instruction, found by disassembly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The file that is mapped there; `/proc/self/fd/N` will do.
    pub file: PathBuf,
    /// Offset in the file.
    pub offset: u64,
    /// Which function it is and what it does.
    pub cookie: Cookie,
}

/// Probes that are set. They go when this is closed or dropped, and when hound dies.
pub struct Probes {
    links: Vec<Link>,
}

/// A descriptor, or several, whose closing takes probes out: [`OwnedFd`] or [`UProbeLink`].
type Link = Box<dyn Send>;

impl Programs {
    /// Sets probes in a process, in all its threads and no other process. A forked child inherits the breakpoints with the text, until it
    /// execs or the probes are closed: they cost it time and tell nothing.
    ///
    /// # Errors
    /// [`KernelError::NoProcess`], [`KernelError::SiteRefused`], [`KernelError::SiteUnsafe`], [`KernelError::NotPermitted`]. No probe is
    /// left behind.
    pub fn open(&mut self, pid: u32, sites: &[Site]) -> Result<Probes, KernelError> {
        let mut by_file: BTreeMap<&Path, [Vec<&Site>; 2]> = BTreeMap::new();
        for site in sites {
            let releases = site.cookie.does == DOES_FREE;
            if !releases && site.cookie.pushes != 0 {
                return Err(KernelError::SiteUnsafe { file: site.file.clone(), offset: site.offset });
            }
            by_file.entry(&site.file).or_default()[usize::from(releases)].push(site);
        }
        let mut links = Vec::new();
        for (file, [allocs, releases]) in by_file {
            // Releases first: a block that is sampled has its release seen.
            self.open_in(pid, file, &releases, true, &mut links)?;
            self.open_in(pid, file, &allocs, false, &mut links)?;
        }
        Ok(Probes { links })
    }

    fn open_in(&mut self, pid: u32, file: &Path, sites: &[&Site], release: bool, links: &mut Vec<Link>) -> Result<(), KernelError> {
        if sites.is_empty() {
            return Ok(());
        }
        if let Some((alloc_program, release_program)) = &self.multi {
            let (program, attach) = if release { (release_program, Attach::Multi) } else { (alloc_program, Attach::Session) };
            let path = CString::new(file.as_os_str().as_bytes()).map_err(|_| missing("a path without zeroes"))?;
            let offsets: Vec<u64> = sites.iter().map(|site| site.offset).collect();
            let cookies: Vec<u64> = sites.iter().map(|site| site.cookie.to_bits()).collect();
            let made = raw::link(program.as_fd(), attach, &path, &offsets, &cookies, pid);
            links.push(Box::new(made.map_err(|error| KernelError::of_link(file.to_owned(), pid, error))?));
            return Ok(());
        }
        for site in sites {
            // The return first: an entry without its return would be a call that never ends.
            for name in if release { &["release"][..] } else { &["alloc_return", "alloc_entry"] } {
                links.push(Box::new(self.perf(name, pid, site)?));
            }
        }
        Ok(())
    }

    fn perf(&mut self, name: &'static str, pid: u32, site: &Site) -> Result<UProbeLink, KernelError> {
        let uprobe = program::<UProbe>(&mut self.ebpf, name)?;
        let failed = |error: ProgramError| match number(&error) {
            Some(number) => KernelError::of_link(site.file.clone(), pid, std::io::Error::from_raw_os_error(number)),
            None => KernelError::Other { doing: "set a probe", cause: Box::new(error) },
        };
        let point = UProbeAttachPoint { location: UProbeAttachLocation::AbsoluteOffset(site.offset), cookie: Some(site.cookie.to_bits()) };
        let pid = NonZeroU32::new(pid).ok_or(KernelError::NoProcess(pid))?;
        let id = uprobe.attach(point, &site.file, UProbeScope::OneProcess(pid)).map_err(failed)?;
        uprobe.take_link(id).map_err(failed)
    }
}

impl Probes {
    /// Takes the probes out. The breakpoints are gone from the text at once; that nothing of the kernel's uses them any more takes it a
    /// while (30 to 100 ms a link), which other threads wait for.
    pub fn close(self) -> Closing {
        // One thread each: the second link's breakpoints must not wait for the end of the first.
        let close = |link: Link| thread::Builder::new().name("close-probes".into()).spawn(move || drop(link));
        // Without a thread the link has been dropped, and so closed, here.
        Closing { threads: self.links.into_iter().filter_map(|link| close(link).ok()).collect() }
    }
}

/// Probes that are being taken out.
pub struct Closing {
    threads: Vec<JoinHandle<()>>,
}

impl Closing {
    /// Whether the kernel is done with them.
    pub fn is_done(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits until the kernel is done with them. Returns of calls that were under way are not seen any more.
    pub fn wait(self) {
        for thread in self.threads {
            // It only drops.
            let _ = thread.join();
        }
    }
}
