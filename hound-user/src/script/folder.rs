//! Where a script reads and writes: the file system, or a folder that is in memory only.

use super::fault::{Refusal, refused};
use super::limits::{Meter, Share};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// A folder and what is below it.
#[derive(Debug)]
pub enum Folder {
    /// The file system, from the folder in which the script is now.
    Real(PathBuf),
    /// What is kept in memory.
    Virtual(Virtual),
}

/// Files in memory.
#[derive(Debug)]
pub struct Virtual {
    here: PathBuf,
    folders: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, (Vec<u8>, Share)>,
}

impl Folder {
    /// The file system, from here on.
    pub fn real() -> Self {
        Folder::Real(PathBuf::new())
    }

    /// A folder in memory, with nothing in it.
    pub fn in_memory() -> Self {
        let root = PathBuf::from("/");
        Folder::Virtual(Virtual { here: root.clone(), folders: BTreeSet::from([root]), files: BTreeMap::new() })
    }

    /// Where this is in the file system.
    ///
    /// # Errors
    /// If it is not.
    pub fn in_file_system(&self, path: &str) -> Result<PathBuf, Refusal> {
        match self {
            Folder::Real(here) => Ok(here.join(path)),
            Folder::Virtual(_) => refused("scripts in a sandbox read no files"),
        }
    }

    /// Goes there.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn enter(&mut self, path: &str) -> Result<(), Refusal> {
        match self {
            Folder::Real(here) => {
                let there = here.join(path);
                match there.is_dir() {
                    true => *here = there,
                    false => return refused(format!("{}: there is no such folder; `mkdir_p` makes one", there.display())),
                }
            }
            Folder::Virtual(folder) => {
                let there = folder.plain(path);
                match folder.folders.contains(&there) {
                    true => folder.here = there,
                    false => return refused(format!("{}: there is no such folder; `mkdir_p` makes one", there.display())),
                }
            }
        }
        Ok(())
    }

    /// Makes a folder and those that it is in.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make(&mut self, path: &str, meter: &Meter) -> Result<(), Refusal> {
        match self {
            Folder::Real(here) => {
                let there = here.join(path);
                std::fs::create_dir_all(&there).or_else(|error| refused(format!("cannot make the folder {}: {error}", there.display())))
            }
            Folder::Virtual(folder) => {
                let there = folder.plain(path);
                if let Some(file) = there.ancestors().find(|path| folder.files.contains_key(*path)) {
                    return refused(format!("{}: it is a file", file.display()));
                }
                for above in there.ancestors().filter(|above| !folder.folders.contains(*above)).map(Path::to_owned).collect::<Vec<_>>() {
                    // Names are kept, and never given back.
                    std::mem::forget(meter.take(above.as_os_str().len() + 64)?);
                    folder.folders.insert(above);
                }
                Ok(())
            }
        }
    }

    /// Writes a file, and gives the path as the script would name it. `refuse`: files that must not be written over.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, path: &str, content: String, meter: &Meter, refuse: &[PathBuf]) -> Result<PathBuf, Refusal> {
        match self {
            Folder::Real(here) => {
                let there = here.join(path);
                let is = |other: &PathBuf| there.canonicalize().is_ok_and(|there| other.canonicalize().is_ok_and(|other| there == other));
                if refuse.iter().any(is) {
                    return refused(format!("{} is a capture: give another name", there.display()));
                }
                match std::fs::write(&there, content) {
                    Ok(()) => Ok(there),
                    Err(error) => refused(format!("cannot write {}: {error}", there.display())),
                }
            }
            Folder::Virtual(folder) => {
                let there = folder.plain(path);
                if folder.folders.contains(&there) {
                    return refused(format!("{}: it is a folder", there.display()));
                }
                let parent = there.parent().unwrap_or(Path::new("/"));
                if !folder.folders.contains(parent) {
                    return refused(format!("{}: there is no such folder; `mkdir_p` makes one", parent.display()));
                }
                let share = meter.take(content.len() + there.as_os_str().len() + 64)?;
                folder.files.insert(there.clone(), (content.into_bytes(), share));
                Ok(there)
            }
        }
    }

    /// The files that were written into memory: path from its root, and content.
    pub fn files(&self) -> Vec<(PathBuf, &[u8])> {
        match self {
            Folder::Real(_) => Vec::new(),
            Folder::Virtual(folder) => {
                let relative = |path: &PathBuf| path.strip_prefix("/").unwrap_or(path).to_owned();
                folder.files.iter().map(|(path, (content, _))| (relative(path), content.as_slice())).collect()
            }
        }
    }
}

impl Virtual {
    /// From the root on, without `.` and `..`: nothing lies above the root.
    fn plain(&self, path: &str) -> PathBuf {
        let mut plain = if Path::new(path).is_absolute() { PathBuf::from("/") } else { self.here.clone() };
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => plain.push(name),
                Component::ParentDir => {
                    plain.pop();
                }
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::*;

    #[test]
    fn nothing_leaves_a_folder_in_memory() {
        let (mut folder, meter) = (Folder::in_memory(), Meter::unlimited());
        folder.make("a/b", &meter).unwrap();
        folder.enter("a/b").unwrap();
        folder.write("../../../../etc/../x.svg", "1".into(), &meter, &[]).unwrap();
        folder.write("y.svg", "22".into(), &meter, &[]).unwrap();
        let files: Vec<(String, usize)> =
            folder.files().into_iter().map(|(path, content)| (path.display().to_string(), content.len())).collect();
        assert_eq!(files, [("a/b/y.svg".to_owned(), 2), ("x.svg".to_owned(), 1)]);
        for (what, why) in [("nowhere/x", "no such folder"), ("/a", "it is a folder")] {
            assert!(folder.write(what, String::new(), &meter, &[]).unwrap_err().to_string().contains(why), "{what}");
        }
        assert!(folder.enter("c").unwrap_err().to_string().contains("no such folder"));
        assert!(folder.make("/x.svg/z", &meter).unwrap_err().to_string().contains("it is a file"));
        assert!(folder.in_file_system("/etc/passwd").is_err());
    }

    #[test]
    fn a_file_that_is_written_over_gives_its_room_back() {
        let (mut folder, meter) = (Folder::in_memory(), Meter::new(Limits { memory: Some(1000), ..Limits::default() }));
        for _ in 0..100 {
            folder.write("x", "1".repeat(400), &meter, &[]).unwrap();
        }
        assert!(folder.write("y", "1".repeat(900), &meter, &[]).unwrap_err().to_string().contains("memory"));
    }
}
