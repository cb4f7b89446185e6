//! Whether the target ran while it was looked at.

use procfs::process::Process;

/// More threads than this are not asked: reading the status of each costs about 20 µs.
const THREADS_ASKED: usize = 512;

/// Each thread's id and how often it was switched out, if none of them is running.
///
/// Equal answers at two moments prove that no thread ran in between: to run, a sleeping thread must be switched in, and to be found
/// asleep again it must have been switched out.
pub fn at_rest(pid: u32) -> Option<Vec<(i32, u64)>> {
    let mut threads = Vec::new();
    for task in Process::new(i32::try_from(pid).ok()?).ok()?.tasks().ok()? {
        let status = task.ok()?.status().ok()?;
        if threads.len() == THREADS_ASKED || status.state.starts_with('R') {
            return None;
        }
        threads.push((status.pid, status.voluntary_ctxt_switches? + status.nonvoluntary_ctxt_switches?));
    }
    Some(threads)
}
