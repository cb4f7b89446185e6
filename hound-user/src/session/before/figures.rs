//! What a target held before it was attached to.

use procfs::process::{MMPermissions, MMapPath, Process};

use crate::capture::Before;

/// Looks at a process's maps and status. What cannot be read counts as nothing.
pub fn before(pid: u32) -> Option<Before> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let status = process.status().ok()?;
    let mut before = Before {
        resident: status.vmrss.unwrap_or(0) * 1024,
        swapped: status.vmswap.unwrap_or(0) * 1024,
        threads: u32::try_from(status.threads).unwrap_or(u32::MAX),
        age_ns: age_ns(&process).unwrap_or(0),
        ..Before::default()
    };
    for map in process.smaps().into_iter().flatten() {
        let resident = map.extension.map.get("Rss").copied().unwrap_or(0);
        match map.pathname {
            MMapPath::Heap => before.heap += resident,
            // glibc's arenas, large blocks, and all other allocators' memory.
            MMapPath::Anonymous | MMapPath::Other(_) if map.perms.contains(MMPermissions::WRITE) => before.anonymous += resident,
            _ => {}
        }
    }
    Some(before)
}

fn age_ns(process: &Process) -> Option<u64> {
    let started = process.stat().ok()?.starttime as f64 / procfs::ticks_per_second() as f64;
    let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Some(((up - started).max(0.0) * 1e9) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_touched_is_seen() {
        let earlier = before(std::process::id()).expect("our own process");
        let block = vec![1u8; 64 << 20];
        let later = before(std::process::id()).expect("our own process");
        assert!(later.anonymous + later.heap >= earlier.anonymous + earlier.heap + (48 << 20), "{earlier:?} {later:?}");
        assert!(later.resident > 64 << 20 && later.threads > 0 && block.len() == 64 << 20);
    }
}
