//! The target's threads by the ids that the target itself knows.
//!
//! The library records thread ids as they are inside the target's pid namespace. From outside, in hound's namespace, they are others:
//! the kernel tells both in the `NSpid` line of a thread's `status`.

use std::collections::{HashMap, HashSet};

use procfs::process::Process;

use super::surroundings;

/// Which of the target's threads is which, from here.
#[derive(Debug)]
pub struct Threads {
    pid: u32,
    /// None: the target sees the same ids as hound.
    inside: Option<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// Ids here by ids there.
    here: HashMap<u32, u32>,
    /// Ids there that no thread had when all were looked at.
    gone: HashSet<u32>,
}

impl Threads {
    /// Of this process, by its id here.
    pub fn of(pid: u32) -> Self {
        let own = |tid: u32| ids(pid, tid).is_some_and(|(here, there)| here != there);
        Threads { pid, inside: own(pid).then(Inside::default) }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The process's id as it knows it itself; the id here if that cannot be learnt.
    pub fn pid_inside(&self) -> u32 {
        ids(self.pid, self.pid).map_or(self.pid, |(_, there)| there)
    }

    /// Learns of threads that are asked for and not known yet. Call it before `is_alive` is asked of new ones.
    pub fn refresh(&mut self, wanted: impl Iterator<Item = u32>) {
        let Some(inside) = &mut self.inside else { return };
        let unknown: Vec<u32> = wanted.filter(|tid| *tid != 0 && !inside.here.contains_key(tid)).collect();
        if unknown.is_empty() {
            return;
        }
        let Ok(all) = Process::new(self.pid as i32).and_then(|process| process.tasks()) else { return };
        for task in all.flatten() {
            if let Some((here, there)) = ids(self.pid, task.tid as u32) {
                inside.here.insert(there, here);
            }
        }
        // All were looked at: who is not among them has ended.
        inside.gone = unknown.into_iter().filter(|tid| !inside.here.contains_key(tid)).collect();
    }

    /// A thread's id here.
    pub fn here(&self, there: u32) -> Option<u32> {
        match &self.inside {
            None => Some(there),
            Some(inside) => inside.here.get(&there).copied(),
        }
    }

    /// Whether the thread with this id there exists. In doubt it does.
    pub fn is_alive(&mut self, there: u32) -> bool {
        let Some(inside) = &mut self.inside else { return surroundings::is_alive(self.pid, there) };
        match inside.here.get(&there) {
            // Never looked for: `refresh` has not seen it yet.
            None => !inside.gone.contains(&there),
            Some(here) if surroundings::is_alive(self.pid, *here) => true,
            Some(_) => {
                // The id may be given out again, to a thread with another id here.
                inside.here.remove(&there);
                false
            }
        }
    }
}

/// A thread's id here and in its own namespace.
fn ids(pid: u32, tid: u32) -> Option<(u32, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    // The first is the id in the namespace that /proc shows, the last the one in the thread's own.
    let numbers: Vec<u32> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some((*numbers.first()?, *numbers.last()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn in_the_same_namespace_ids_are_the_same() {
        let mut threads = Threads::of(std::process::id());
        let own = nix::unistd::gettid().as_raw() as u32;
        threads.refresh([own].into_iter());
        assert!(threads.is_alive(own) && threads.here(own) == Some(own));
        assert_eq!(threads.pid_inside(), std::process::id());
    }

    #[test]
    fn ids_of_another_namespace_are_found() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root to make a pid namespace");
            return;
        }
        // `unshare` forks: its child is 1 in the new namespace, and waits for its input to end.
        let mut child =
            Command::new("unshare").args(["--pid", "--fork", "cat"]).stdin(Stdio::piped()).spawn().expect("unshare is installed");
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let pid: u32 = loop {
            let first = std::fs::read_to_string(&children).ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
            if let Some(pid) = first {
                break pid;
            }
            assert!(std::time::Instant::now() < deadline, "no child");
            std::thread::yield_now();
        };
        let mut threads = Threads::of(pid);
        assert_eq!(threads.pid_inside(), 1);
        threads.refresh([1, 77].into_iter());
        assert_eq!((threads.here(1), threads.here(77)), (Some(pid), None));
        assert!(threads.is_alive(1) && !threads.is_alive(77));
        drop(child.stdin.take());
        child.wait().expect("it ends with its input");
        assert!(!threads.is_alive(1), "it has ended");
    }
}
