//! What can be seen of the target from outside, in `/proc`.

use std::collections::HashMap;

use nix::sys::resource::{UsageWho, getrusage};
use procfs::process::{MMapPath, Process};

use crate::capture::model::StreamId;

/// Threads whose names are looked at in one go: a glance must not cost what recording does.
const NAMES_AT_ONCE: usize = 128;

/// Whether a thread of the process exists.
pub fn is_alive(pid: u32, tid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// Thread names, and which of them are known already.
#[derive(Debug, Default)]
pub struct Names {
    known: HashMap<u32, String>,
    next: usize,
}

impl Names {
    /// Looks at some of the threads and tells of new or changed names.
    pub fn look(&mut self, pid: u32, streams: impl ExactSizeIterator<Item = (StreamId, u32)>, mut tell: impl FnMut(StreamId, String)) {
        let count = streams.len();
        let skip = if self.next >= count { 0 } else { self.next };
        self.next = skip + NAMES_AT_ONCE;
        for (stream, tid) in streams.skip(skip).take(NAMES_AT_ONCE) {
            let Ok(name) = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")) else { continue };
            let name = name.trim_end().to_owned();
            if self.known.get(&stream.0) != Some(&name) {
                self.known.insert(stream.0, name.clone());
                tell(stream, name);
            }
        }
    }
}

/// Resident, proportional (0: costs a walk over all maps, not taken) and swapped bytes.
pub fn process_rss(pid: u32) -> Option<[u64; 3]> {
    let status = Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()?;
    Some([status.vmrss? * 1024, 0, status.vmswap.unwrap_or(0) * 1024])
}

/// Start, length and resident bytes of the target's anonymous maps that have any.
pub fn map_rss(pid: u32) -> Vec<[u64; 3]> {
    let maps = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()).and_then(|process| process.smaps().ok());
    let anonymous = |path: &MMapPath| matches!(path, MMapPath::Anonymous | MMapPath::Heap | MMapPath::Other(_));
    let maps = maps.into_iter().flatten().filter(|map| anonymous(&map.pathname));
    maps.filter_map(|map| {
        let resident = map.extension.map.get("Rss").copied().unwrap_or(0);
        (resident > 0).then_some([map.address.0, map.address.1 - map.address.0, resident])
    })
    .collect()
}

/// Processor time hound itself has used, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0 };
    let ns = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000_000 + time.tv_usec() as u64 * 1_000;
    ns(usage.user_time()) + ns(usage.system_time())
}
