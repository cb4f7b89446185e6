//! Where a module's file is on this machine, and where its debug information is.

use crate::capture::model::{Module, ProcessId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where to look for files.
#[derive(Clone, Debug)]
pub struct Files {
    /// Put before a module's path: `/proc/PID/root` while the target lives in another mount namespace, else empty.
    pub root: PathBuf,
    /// Where separate debug files are kept.
    pub debug_dirs: Vec<PathBuf>,
    /// The target's perf map, if it wrote one.
    pub perf_map: Option<PathBuf>,
    /// Files held open while the target lived, for when its own view of the file system is gone.
    pub held: HeldFiles,
    /// The program's own file, for the module without a path: loaders know the program by an empty name.
    pub program: Option<PathBuf>,
    /// Where those of other processes are, if not at the same places.
    pub others: OtherFiles,
}

/// Where to look for the files of processes other than the first. Clones share it: processes come while a capture grows.
#[derive(Clone, Debug, Default)]
pub struct OtherFiles(Arc<Mutex<BTreeMap<ProcessId, Files>>>);

impl OtherFiles {
    /// This process' files are there.
    pub fn insert(&self, process: ProcessId, files: Files) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(process, files);
    }
}

impl Default for Files {
    fn default() -> Self {
        Files {
            root: PathBuf::new(),
            debug_dirs: vec!["/usr/lib/debug".into(), "/usr/local/lib/debug".into()],
            perf_map: None,
            held: HeldFiles::default(),
            program: None,
            others: OtherFiles::default(),
        }
    }
}

/// Files of mapped modules, held open: by the address they are mapped at.
#[derive(Clone, Debug, Default)]
pub struct HeldFiles(Arc<Mutex<Vec<Held>>>);

/// Where it is mapped, and the file.
type Held = (u64, Arc<std::fs::File>);

impl HeldFiles {
    /// Holds the file that is mapped from `start` on.
    pub fn hold(&self, start: u64, file: Arc<std::fs::File>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((start, file));
    }

    /// How many are held.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Paths by which this process can open what was mapped at `start`. Different modules may have been there at different times.
    fn at(&self, start: u64) -> Vec<PathBuf> {
        use std::os::fd::AsRawFd;
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = held.iter().filter(|(at, _)| *at == start);
        here.map(|(_, file)| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))).collect()
    }
}

/// Where the names of a module come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sources {
    /// Files to ask, the best first.
    pub files: Vec<PathBuf>,
    /// The file at the module's path is not the one that was mapped.
    pub changed: bool,
}

impl Files {
    /// Where to look for one process' files.
    pub(super) fn of_process(&self, process: ProcessId) -> Files {
        self.others.0.lock().unwrap_or_else(PoisonError::into_inner).get(&process).unwrap_or(self).clone()
    }

    /// Where the files of a recorded program are to be looked for on this machine, as long as nothing else is known: the program where
    /// its command line finds it from here (its build-id is compared, so another one found is no harm).
    pub fn of_command(command: &[String]) -> Self {
        let name = command.first().map(Path::new);
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let program = name.and_then(|name| match name.components().count() {
            1 if !name.is_absolute() => std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file()),
            _ => std::path::absolute(name).ok(),
        });
        Files { program, ..Files::default() }
    }

    /// The path of a module, as far as it is known.
    pub(super) fn path_of<'a>(&'a self, module: &'a Module) -> &'a str {
        let program = || self.program.as_deref().and_then(Path::to_str).unwrap_or("");
        if module.path.is_empty() { program() } else { &module.path }
    }

    /// The files that describe a module: only such whose build-id is the one that was mapped.
    pub(super) fn of(&self, module: &Module) -> Sources {
        let mut sources = Sources { files: Vec::new(), changed: false };
        if let Some(name) = debug_name(&module.build_id) {
            let candidates = self.debug_dirs.iter().map(|dir| dir.join(".build-id").join(&name));
            sources.files.extend(candidates.filter(|path| matches(path, &module.build_id) == Some(true)).take(1));
        }
        let path = self.path_of(module);
        if !path.starts_with('/') {
            return sources; // "[vdso]" and such are no files.
        }
        let path = self.rooted(path);
        match matches(&path, &module.build_id) {
            // A file with debug information of its own is asked first: a debug file of the same build could only say the same.
            Some(true) => sources.files.push(path),
            Some(false) => sources.changed = true,
            None => {}
        }
        if sources.files.is_empty() {
            sources.files.extend(self.held.at(module.start).into_iter().find(|held| matches(held, &module.build_id) == Some(true)));
        }
        sources
    }

    fn rooted(&self, path: &str) -> PathBuf {
        if self.root.as_os_str().is_empty() { PathBuf::from(path) } else { self.root.join(path.trim_start_matches('/')) }
    }
}

/// Whether the file has this build-id; a module without one matches any file. None if there is no such file.
fn matches(path: &Path, build_id: &[u8]) -> Option<bool> {
    if !path.is_file() {
        return None;
    }
    if build_id.is_empty() {
        return Some(true);
    }
    let found = blazesym::helper::read_elf_build_id(path).ok()??;
    Some(*found == *build_id)
}

/// `ab/cdef….debug`
fn debug_name(build_id: &[u8]) -> Option<String> {
    let (first, rest) = build_id.split_first().filter(|(_, rest)| !rest.is_empty())?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{first:02x}/{rest}.debug"))
}
