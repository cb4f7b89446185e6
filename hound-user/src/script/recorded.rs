//! By whom and how blocks were recorded: threads, processes, modes.

use super::allocations::{AllocationList, pattern};
use super::api::{Api, Origin};
use super::condition::Condition;
use super::data::Data;
use super::dataset::Dataset;
use super::duration::Duration;
use super::fault::{Refusal, refused};
use super::table::{Cell, Table};
use crate::capture::StreamInfo;
use std::collections::BTreeMap;

/// What scripts ask.
pub fn register(api: &mut Api<'_>) {
    api.about("AllocationList", "threads_processes_and_modes_are_told_apart").of(Origin::Hound);
    const SAME: &str = "-> AllocationList";
    api.entry("only_thread", "A new list with only the allocations of a thread: by its number as the kernel has it, or by a regular expression that its name matches.")
        .overload(&format!("(self: AllocationList, tid: Integer) {SAME}"), |list: &mut AllocationList, tid: i64| {
            streams(list, |info| i64::from(info.tid) == tid, || format!("there is no thread {tid}"))
        })
        .overload(&format!("(self: AllocationList, name: String) {SAME}"), |list: &mut AllocationList, name: &str| {
            let pattern = pattern(name)?;
            streams(list, |info| info.names.iter().any(|name| pattern.is_match(name)), || format!("there is no thread whose name matches `{name}`"))
        });
    api.function(
        "only_process",
        &format!("(self: AllocationList, pid: Integer) {SAME}"),
        "A new list with only the allocations of a process.",
        |list: &mut AllocationList, pid: i64| {
            let of: Vec<_> = list.0.data().process_list().iter().filter(|info| i64::from(info.pid) == pid).map(|info| info.id).collect();
            streams(list, |info| of.contains(&info.process), || format!("there is no process {pid}"))
        },
    );
    api.function(
        "only_mode",
        &format!("(self: AllocationList, mode: String) {SAME}"),
        "A new list with only the allocations made while the recording was in this mode: `full` or `sampled`.",
        |list: &mut AllocationList, mode: &str| {
            let spans: Vec<(u64, u64)> =
                parts(list.0.data()).into_iter().filter(|(name, ..)| *name == mode).map(|(_, from, to)| (from, to)).collect();
            let is_known = ["full", "sampled", "off", "faults"].contains(&mode);
            if is_known {
                list.only(Condition::Spans(spans.into()))
            } else {
                refused(format!("`{mode}` is no mode: there are full, sampled, off and faults"))
            }
        },
    );
    for (name, exact, what) in [("only_exact", true, "that were recorded because all were"), ("only_sampled", false, "that are samples")] {
        api.function(
            name,
            &format!("(self: AllocationList) {SAME}"),
            format!("A new list with only the allocations {what}."),
            move |list: &mut AllocationList| list.only(Condition::Exact(exact)),
        );
    }
    api.about("Data", "threads_processes_and_modes_are_told_apart").of(Origin::Hound);
    api.function("threads", "(self: Data) -> Table", "The threads that were recorded.", |data: &mut Data| threads(&data.set));
    api.function("processes", "(self: Data) -> Table", "The processes that were recorded.", |data: &mut Data| processes(&data.set));
    api.function("modes", "(self: Data) -> Table", "In which mode was recorded, from when to when.", |data: &mut Data| {
        let row = |(mode, from, to): (&str, u64, u64)| {
            vec![Cell::Text(mode.to_owned()), Cell::Time(Duration::of_ns(from)), Cell::Time(Duration::of_ns(to))]
        };
        Table::new(&["mode", "from", "to"], parts(&data.set).into_iter().map(row).collect())
    });
}

fn streams(list: &AllocationList, is: impl Fn(&StreamInfo) -> bool, why: impl Fn() -> String) -> Result<AllocationList, Refusal> {
    let mut set = Vec::new();
    for info in list.0.data().streams().iter().filter(|info| is(info)) {
        let at = info.id.0 as usize;
        set.resize(set.len().max(at + 1), false);
        set[at] = true;
    }
    if set.is_empty() { refused(why()) } else { list.only(Condition::Streams(set.into())) }
}

/// Mode, from, to. Where nothing was sampled, all is one.
fn parts(data: &Dataset) -> Vec<(&'static str, u64, u64)> {
    match data.sampling() {
        Some(sampling) => sampling.parts().iter().map(|part| (part.name(), part.from_ns, part.to_ns.min(data.end_ns()))).collect(),
        None => vec![("full", 0, data.end_ns())],
    }
}

fn threads(data: &Dataset) -> Table {
    let mut threads: BTreeMap<u32, (String, u64, u64)> = BTreeMap::new();
    for info in data.streams() {
        let thread = threads.entry(info.tid).or_insert_with(|| (String::new(), info.from_ns, info.to_ns));
        thread.0 = info.names.last().cloned().unwrap_or_else(|| thread.0.clone());
        (thread.1, thread.2) = (thread.1.min(info.from_ns), thread.2.max(info.to_ns));
    }
    let row = |(tid, (name, from, to)): (u32, (String, u64, u64))| {
        vec![Cell::Whole(i64::from(tid)), Cell::Text(name), Cell::Time(Duration::of_ns(from)), Cell::Time(Duration::of_ns(to))]
    };
    Table::new(&["tid", "name", "from", "to"], threads.into_iter().map(row).collect())
}

fn processes(data: &Dataset) -> Table {
    let row = |info: &crate::capture::ProcessInfo| {
        vec![
            Cell::Whole(i64::from(info.pid)),
            Cell::Whole(i64::from(info.parent)),
            Cell::Text(info.command.join(" ")),
            Cell::Time(Duration::of_ns(info.from_ns)),
            Cell::Time(Duration::of_ns(info.to_ns.min(data.end_ns()))),
        ]
    };
    Table::new(&["pid", "parent", "command", "from", "to"], data.process_list().iter().map(row).collect())
}
