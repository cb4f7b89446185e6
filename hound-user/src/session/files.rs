//! The target's files as the target sees them, and kept open for when it is gone.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use hound_common::ring::Control;
use procfs::process::{MMPermissions, MMapPath, Process};

use super::threads::Threads;
use crate::capture::{MAPPED_LIBRARY, ModulePaths};
use crate::symbols::{Files, HeldFiles};

/// Most files held: hound has other uses for its descriptors.
const MOST: usize = 512;

/// Where a live target's files are found: through its own root if its file system is not hound's.
pub fn of_target(pid: u32, held: HeldFiles) -> Files {
    let place = |what: &str, pid: &str| std::fs::read_link(format!("/proc/{pid}/{what}")).ok();
    let (target, own) = (pid.to_string(), "self");
    let foreign = place("ns/mnt", &target) != place("ns/mnt", own) || place("root", &target) != place("root", own);
    let root = if foreign { PathBuf::from(format!("/proc/{pid}/root")) } else { PathBuf::new() };
    let perf_map = format!("tmp/perf-{}.map", Threads::of(pid).pid_inside());
    Files {
        perf_map: Some(if foreign { root.join(perf_map) } else { PathBuf::from("/").join(perf_map) }),
        program: place("exe", &target),
        root,
        held,
        ..Files::default()
    }
}

/// What is mapped where in a target into which hound has brought its library.
pub fn module_paths(pid: u32, control: &Control) -> ModulePaths {
    let maps = Process::new(pid as i32).and_then(|process| process.maps()).map(|maps| maps.0).unwrap_or_default();
    let range = |address: (u64, u64)| address.0..address.1;
    let mut places: Vec<(Range<u64>, String)> = Vec::new();
    for map in maps {
        match map.pathname {
            MMapPath::Path(path) if map.inode != 0 => {
                let path = path.to_string_lossy();
                places.push((range(map.address), path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned()));
            }
            MMapPath::Vdso => places.push((range(map.address), "[vdso]".to_owned())),
            _ => {}
        }
    }
    let library = control.library_start.load(Ordering::Acquire)..control.library_end.load(Ordering::Acquire);
    places.push((library, MAPPED_LIBRARY.to_owned()));
    ModulePaths::new(places)
}

/// Holds the files of a target's modules.
#[derive(Debug, Default)]
pub struct Holder {
    shared: SharedFiles,
    held: HeldFiles,
    /// Address, device and inode of what is held.
    known: HashSet<(u64, (i32, i32), u64)>,
}

/// Files that several processes have mapped are held once.
#[derive(Clone, Debug, Default)]
pub struct SharedFiles(Arc<Mutex<HashMap<Inode, Arc<File>>>>);

/// Device and number.
type Inode = ((i32, i32), u64);

impl SharedFiles {
    fn of(&self, key: Inode, open: impl FnOnce() -> Option<File>) -> Option<Arc<File>> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&key) {
            return Some(Arc::clone(file));
        }
        let file = Arc::new(if files.len() < MOST { open()? } else { return None });
        files.insert(key, Arc::clone(&file));
        Some(file)
    }
}

impl Holder {
    /// One of several that hold files together.
    pub fn sharing(shared: &SharedFiles) -> Self {
        Holder { shared: shared.clone(), ..Holder::default() }
    }

    /// The files held so far, and those still to come.
    pub fn held(&self) -> HeldFiles {
        self.held.clone()
    }

    /// Opens the files of modules that are new since the last look. Whether there were any.
    pub fn look(&mut self, pid: u32) -> bool {
        let Ok(maps) = Process::new(pid as i32).and_then(|process| process.maps()) else { return false };
        let before = self.known.len();
        let code: HashSet<((i32, i32), u64)> = maps
            .iter()
            .filter(|map| map.perms.contains(MMPermissions::EXECUTE) && map.inode != 0)
            .map(|map| (map.dev, map.inode))
            .collect();
        for map in maps.iter().filter(|map| map.offset == 0 && code.contains(&(map.dev, map.inode))) {
            let MMapPath::Path(path) = &map.pathname else { continue };
            let key = (map.address.0, map.dev, map.inode);
            if self.known.contains(&key) || self.held.count() >= MOST || path.starts_with("/memfd:") {
                continue;
            }
            // The mapping itself first: it is the right file also when another has its name by now.
            let mapped = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", map.address.0, map.address.1));
            let rooted = PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path));
            let regular = |path: &PathBuf| File::open(path).ok().filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()));
            if let Some(file) = self.shared.of((map.dev, map.inode), || [mapped, rooted].iter().find_map(regular)) {
                self.held.hold(map.address.0, file);
                self.known.insert(key);
            }
        }
        self.known.len() > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_program_is_held_once() {
        let mut holder = Holder::default();
        holder.look(std::process::id());
        let first = holder.held().count();
        assert!(first >= 2, "the program and its C library: {first}");
        holder.look(std::process::id());
        assert_eq!(holder.held().count(), first);
        let files = of_target(std::process::id(), holder.held());
        assert_eq!((files.root, files.program), (PathBuf::new(), std::env::current_exe().ok()));
    }
}
