//! The processes of a capture: which are asked for, and what is said of each.

use super::head::end_kind;
use crate::capture::model::{ProcessId, StreamId};
use crate::capture::{Capture, ProcessInfo, StreamInfo};
use crate::query::Sums;
use crate::view::{EndKind, ProcessLine};
use hound_common::event;

/// The processes with these pids; nothing is asked for: none, which means all. A pid may be several programs', by exec.
pub(super) fn asked_for(capture: &Capture, pids: &[u32]) -> Vec<ProcessId> {
    let found: Vec<ProcessId> = capture.processes().iter().filter(|info| pids.contains(&info.pid)).map(|info| info.id).collect();
    // Asked for and not there is not the same as not asked for.
    if found.is_empty() && !pids.is_empty() { vec![ProcessId(u32::MAX)] } else { found }
}

/// # Errors
/// If one of these is not in the capture.
pub(super) fn must_be_there(capture: &Capture, pids: &[u32]) -> anyhow::Result<()> {
    let known: Vec<u32> = capture.processes().iter().map(|info| info.pid).collect();
    match pids.iter().find(|pid| !known.contains(pid)) {
        None => Ok(()),
        Some(pid) => {
            let mut there: Vec<String> = known.iter().map(u32::to_string).collect();
            there.dedup();
            anyhow::bail!("process {pid} is not in the capture; there are: {}", there.join(", "))
        }
    }
}

/// Streams whose process ended while others went on, and when. Where there is one alone, its end is that of the capture.
pub(super) fn ends(capture: &Capture) -> Vec<(StreamId, u64)> {
    let all = capture.processes();
    if all.len() < 2 {
        return Vec::new();
    }
    let end =
        |stream: &StreamInfo| all.iter().find(|info| info.id == stream.process).map(|info| info.to_ns).filter(|&to_ns| to_ns != u64::MAX);
    capture.streams().iter().filter_map(|stream| Some((stream.id, end(stream)?))).collect()
}

/// Of a question about a moment: the streams whose process was over by then.
pub(super) fn over_by(capture: &Capture, moment_ns: Option<u64>) -> Vec<StreamId> {
    let Some(moment_ns) = moment_ns else { return Vec::new() };
    ends(capture).into_iter().filter(|(_, end_ns)| *end_ns <= moment_ns).map(|(stream, _)| stream).collect()
}

/// What is said of each process that is asked for; nothing where the capture is of one.
pub(super) fn lines(capture: &Capture, pids: &[u32], sums: &[(ProcessId, Sums)]) -> Vec<ProcessLine> {
    let all = capture.processes();
    if all.len() < 2 {
        return Vec::new();
    }
    let figures = |id| sums.iter().find(|(of, _)| *of == id).map(|(_, sums)| sums.clone()).unwrap_or_default();
    let line = |info: &ProcessInfo| ProcessLine {
        number: info.id.0,
        pid: info.pid,
        parent: info.parent,
        command: info.command.clone(),
        began: match info.began {
            event::PROCESS_FORKED => "fork",
            event::PROCESS_NEW_PROGRAM => "exec",
            _ => "attach",
        },
        from_ns: info.from_ns,
        to_ns: (info.to_ns != u64::MAX).then_some(info.to_ns),
        end: end_of(capture, info),
        figures: figures(info.id),
    };
    all.iter().filter(|info| pids.is_empty() || pids.contains(&info.pid)).map(line).collect()
}

fn end_of(capture: &Capture, info: &ProcessInfo) -> EndKind {
    match info.end {
        event::END_EXIT => EndKind::Exit(info.value),
        event::END_SIGNAL => EndKind::Signal(info.value),
        event::END_NO_MEMORY => EndKind::NoMemory,
        event::END_EXEC => EndKind::Exec,
        event::END_DETACH => EndKind::Detach,
        // It has ended, and nobody knows how.
        _ if info.to_ns != u64::MAX => EndKind::Cut,
        _ => end_kind(capture),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Options, report_of};
    use crate::capture::model::{ProcessId, StreamId};
    use crate::capture::{Capture, CaptureWriter, Clock, Compressor, End, MemorySink, SessionInfo, StreamEncoder, StreamMeta};
    use crate::query::Query;
    use hound_common::event::*;

    /// A capture of streams: process, and records (ticks, tag, a, words).
    type Records = Vec<(u64, u8, u8, Vec<u64>)>;

    fn capture(streams: &[(u32, Records)]) -> Capture {
        let session = SessionInfo {
            clock: Clock::Monotonic,
            ticks_per_second: 1_000_000_000,
            pid: 100,
            command: vec!["/bin/server".into()],
            several: true,
            ..SessionInfo::default()
        };
        let mut writer = CaptureWriter::over(MemorySink::default(), &session).expect("memory");
        let mut compressor = Compressor::new().expect("memory");
        for (number, (process, records)) in streams.iter().enumerate() {
            let meta =
                StreamMeta { time_shift: 0, process: ProcessId(*process), ..StreamMeta::new(StreamId(number as u32), 7, 0, &session) };
            let mut encoder = StreamEncoder::new(meta);
            let (mut sections, mut clock) = (Vec::new(), 0);
            for (ticks, tag, a, words) in records {
                let header = Header { tag: *tag, words: words.len() as u8 + 1, a: *a, b: 0, dt: (ticks - clock) as u32 };
                clock = *ticks;
                let record = std::iter::once(header.to_word()).chain(words.iter().copied());
                encoder.push(&record.flat_map(u64::to_le_bytes).collect::<Vec<u8>>(), &mut sections);
            }
            sections.extend(encoder.flush());
            for section in sections {
                writer.write(&section.compress(&mut compressor).expect("memory")).expect("memory");
            }
        }
        Capture::from_bytes(writer.finish(End { reason: END_DETACH, ..End::default() }).expect("memory").bytes).expect("a capture")
    }

    fn alloc(ticks: u64, addr: u64, size: u64) -> (u64, u8, u8, Vec<u64>) {
        (ticks, tag::ALLOC, 1, vec![addr, size_word(size, 0)])
    }

    fn free(ticks: u64, addr: u64) -> (u64, u8, u8, Vec<u64>) {
        (ticks, tag::FREE, 32, vec![addr])
    }

    fn stack(ip: u64) -> (u64, u8, u8, Vec<u64>) {
        let edit = StackEdit { keep_root: 0, new: 1, leaf_from: 1, keep_leaf: 0 };
        (0, tag::STACK, 0, vec![edit.to_word(), ip])
    }

    fn module(start: u64) -> (u64, u8, u8, Vec<u64>) {
        let path = u64::from_le_bytes(*b"/x/lib.a");
        (0, tag::MODULE, 0, vec![start, start, start + 0x1000, 0, 8 << 32, path])
    }

    fn begins(ticks: u64, a: u8, pid: u64, parent: u64, from: u64, word: &[u8; 8]) -> (u64, u8, u8, Vec<u64>) {
        (ticks, tag::PROCESS, a, vec![pid, parent, from, 8, u64::from_le_bytes(*word)])
    }

    fn json(capture: &mut Capture, processes: &[u32]) -> serde_json::Value {
        let query = Query { processes: processes.to_vec(), ..Query::default() };
        let options = Options { format: Format::Json, query, ..Options::default() };
        serde_json::from_str(&report_of(capture, &options)).expect("JSON")
    }

    /// Two servers with the same library at different places, both with a block at one address.
    fn two() -> Capture {
        capture(&[
            (0, vec![module(0x10_0000)]),
            (0, vec![stack(0x10_0021), alloc(10_000, 0x5000, 100), free(30_000, 0x5000), alloc(90_000, 0x6000, 7)]),
            (1, vec![module(0x20_0000), begins(5000, PROCESS_JOINED, 200, 1, 0, b"other\0-x")]),
            (1, vec![stack(0x20_0021), alloc(20_000, 0x5000, 50), free(60_000, 0x7777)]),
        ])
    }

    #[test]
    fn an_address_is_another_block_in_another_process() {
        let report = json(&mut two(), &[]);
        let totals = &report["totals"];
        assert_eq!((&totals["allocations"], &totals["frees"], &totals["unknown_frees"]), (&3.into(), &1.into(), &1.into()));
        assert_eq!((&totals["live_bytes"], &totals["peak_bytes"]), (&57.into(), &150.into()));
        assert_eq!(report["session"]["anomalies"].as_array().map(Vec::len), Some(0));
        let [first, second] = &report["processes"].as_array().expect("a list")[..] else { panic!("{report}") };
        assert_eq!((&first["pid"], &first["live_bytes"], &first["allocated_bytes"]), (&100.into(), &7.into(), &107.into()));
        assert_eq!((&second["pid"], &second["live_bytes"], &second["command"][1]), (&200.into(), &50.into(), &"-x".into()));
    }

    #[test]
    fn one_function_of_one_file_is_one_site_in_all_processes() {
        let report = json(&mut two(), &[]);
        let [site] = &report["sites"].as_array().expect("a list")[..] else { panic!("{report}") };
        assert_eq!((&site["frames"][0]["function"], &site["live_bytes"]), (&"lib.a+0x21".into(), &57.into()));
    }

    #[test]
    fn one_process_alone_is_as_if_there_were_no_other() {
        let report = json(&mut two(), &[200]);
        let totals = &report["totals"];
        assert_eq!((&totals["allocations"], &totals["live_bytes"], &totals["peak_bytes"]), (&1.into(), &50.into(), &50.into()));
        assert_eq!((&report["session"]["pid"], &report["processes"].as_array().map(Vec::len)), (&200.into(), &Some(1)));
        let report = json(&mut two(), &[100]);
        assert_eq!((&report["totals"]["peak_bytes"], &report["totals"]["unknown_frees"]), (&100.into(), &0.into()));
        assert_eq!(json(&mut two(), &[100, 200])["totals"]["live_bytes"], 57);
        let refused = super::must_be_there(&two(), &[300]).unwrap_err().to_string();
        assert_eq!(refused, "process 300 is not in the capture; there are: 100, 200");
    }

    /// A server forks: the child frees what it has inherited, makes a block of its own where the server has one, and becomes another program.
    fn tree() -> Capture {
        capture(&[
            (0, vec![]),
            (0, vec![alloc(10_000, 0x5000, 100), alloc(11_000, 0x5100, 30), free(50_000, 0x5000), alloc(60_000, 0x5200, 1000)]),
            (1, vec![begins(20_000, PROCESS_FORKED, 101, 100, 1, b"server\0\0"), (40_000, tag::END, END_EXEC, vec![0])]),
            (1, vec![free(21_000, 0x5000), alloc(22_000, 0x5000, 60), free(23_000, 0x9000)]),
            (2, vec![begins(40_000, PROCESS_NEW_PROGRAM, 101, 100, 2, b"worker\0\0"), (80_000, tag::END, END_EXIT, vec![3])]),
            (2, vec![alloc(41_000, 0x5000, 8), free(70_000, 0x5000), alloc(71_000, 0x5000, 9)]),
        ])
    }

    #[test]
    fn what_a_fork_inherits_is_neither_allocated_twice_nor_unknown() {
        let report = json(&mut tree(), &[]);
        let totals = &report["totals"];
        assert_eq!((&totals["inherited_frees"], &totals["unknown_frees"]), (&1.into(), &1.into()));
        assert_eq!((&totals["allocations"], &totals["frees"], &totals["live_bytes"]), (&6.into(), &2.into(), &(30 + 1000 + 60 + 9).into()));
        // What lived in a program that is over does not count for the peak of those that go on.
        assert_eq!(totals["peak_bytes"], 30 + 1000 + 9);
    }

    #[test]
    fn exec_begins_another_program_of_the_same_pid() {
        let report = json(&mut tree(), &[101]);
        let [server, worker] = &report["processes"].as_array().expect("a list")[..] else { panic!("{report}") };
        assert_eq!((&server["began"], &server["end"]["how"], &server["live_bytes"]), (&"fork".into(), &"exec".into(), &60.into()));
        assert_eq!((&worker["began"], &worker["end"]["value"], &worker["live_bytes"]), (&"exec".into(), &3.into(), &9.into()));
        let text = report_of(&mut tree(), &Options::default());
        assert!(text.contains("3 processes: server") && text.contains("exited with status 3"), "{text}");
    }
}
