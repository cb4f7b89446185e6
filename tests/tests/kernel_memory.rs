//! `hound attach --kernel`: what the kernel holds is counted as it is, by the system call that made it; and nothing stays in the kernel.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_common::kernel::{
    KERNEL_ALLOC, KERNEL_CACHE, KERNEL_FREE, KERNEL_KMALLOC, KERNEL_PAGES, KERNEL_PERCPU, KMEM_ALLOC_HITS, KMEM_LIVE_FULL,
    KMEM_LOST_ALLOCS, KMEM_SAMPLES,
};
use hound_tests::attach::Subject;
use hound_tests::capture::{Capture, Report, Site, hound};
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Running};
use hound_tests::{binaries, requirement};
use hound_user::session::kernel::{KernelMemory, KernelMemoryOptions};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const ALL: [u32; 4] = [KERNEL_KMALLOC, KERNEL_CACHE, KERNEL_PERCPU, KERNEL_PAGES];

fn possible() -> bool {
    let visible = std::fs::read_to_string("/proc/kallsyms")
        .is_ok_and(|text| text.lines().next().is_some_and(|line| !line.starts_with("0000000000000000")));
    requirement::root()
        && requirement::fulfilled("tracepoints and type information of the kernel", Path::new("/sys/kernel/btf/vmlinux").exists())
        && requirement::fulfilled("addresses of the kernel's functions", visible)
}

fn subject() -> Subject {
    Subject::start(&mut Command::new(Program::new("kernel_memory.c", Build::Optimised).path()))
}

/// Records, and waits until it does.
fn record(capture: &Path, more: &[&str]) -> Running {
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "--kernel", "--quiet", "-o"]).arg(capture).args(more);
    let running = process::start(&mut command);
    let begun = process::wait_until(|| running.said().contains("recording the kernel's memory") || running.has_ended());
    assert!(begun && !running.has_ended(), "hound records nothing: {}", running.said());
    running
}

/// Ends it; what it said.
fn end(running: Running, file: PathBuf) -> (Capture, String) {
    kill(running.pid, Signal::SIGINT).expect("hound runs");
    let outcome = running.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    (Capture { path: file }, outcome.err())
}

/// Live blocks of all sites that pass through a function with such a name, and whose innermost frame is this, if it says so.
fn live(report: &Report, leaf: Option<&str>, through: &[&str]) -> u64 {
    let is = |site: &&Site| {
        let innermost = site.frames.first().and_then(|frame| frame.function.as_deref());
        leaf.is_none_or(|leaf| innermost == Some(leaf))
            && through.iter().any(|function| site.stack.iter().any(|frame| frame.contains(function)))
    };
    report.sites.iter().filter(is).map(|site| site.live_blocks).sum()
}

const FILES: Option<&str> = Some("slab:filp");

fn pages(capture: &Capture) -> Report {
    let text = capture.ask("report", &["--format", "json", "--all", "--kind", "alloc_pages"]).out();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:.2000}"))
}

#[test]
fn what_the_kernel_holds_for_a_process_is_exact() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let (pid, file) = (subject.pid().to_string(), subject.file("held.hound"));
    let recording = record(&file, &["-p", &pid, "--interval", "0"]);
    ["pipes 40", "eventfds 30", "epolls 20", "timers 10", "sockets 15", "memfd 25"].iter().for_each(|order| subject.order(order));
    let (capture, said) = end(recording, file);
    // What interrupts do meanwhile is not the process'.
    assert!(!said.contains("was full") && !said.contains("locked"), "{said}");
    let report = capture.report();
    let files = |call: &str| live(&report, FILES, &[call]);
    assert_eq!(files("_sys_pipe"), 80, "two files a pipe");
    assert_eq!(files("__x64_sys_eventfd2"), 30);
    assert_eq!(files("__x64_sys_epoll_create1"), 20);
    assert_eq!(files("timerfd_create"), 10);
    assert_eq!(files("sys_socketpair"), 30);
    let pages = pages(&capture);
    assert_eq!(live(&pages, None, &["ksys_write"]), 3 * 40 + 25, "pages written into pipes and a memfd");
    let written = pages.sites.iter().filter(|site| site.passes("ksys_write"));
    assert!(written.clone().all(|site| site.live_bytes == 4096 * site.live_blocks) && written.count() > 0, "pages are whole");
    // Single blocks are the same ones.
    let blocks: Value = serde_json::from_str(&capture.ask("report", &["--blocks", "--all", "--format", "json"]).out()).expect("JSON");
    let rows = blocks["blocks"].as_array().expect("blocks were asked for");
    assert_eq!(rows.len() as u64, report.totals.live_blocks);
    let sum: u64 = rows.iter().filter_map(|row| row["size"].as_u64()).sum();
    assert_eq!(sum, report.totals.live_bytes);
    let innermost = |row: &Value| row["frames"][0]["function"].as_str().map(str::to_owned);
    assert_eq!(rows.iter().filter(|row| innermost(row).as_deref() == FILES).count() as u64, live(&report, FILES, &["do_syscall_64"]));
    let text = capture.ask("report", &["-a"]).out();
    assert!(
        text.contains("Outstanding when the recording ended")
            && text.contains("Single blocks alive")
            && !text.to_lowercase().contains("leak"),
        "{text}"
    );
    assert!(text.contains("0xffff") && text.contains("kernel memory that process"), "{text}");
    subject.order("close");
    subject.end();
}

#[test]
fn what_is_closed_is_released() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let (pid, file) = (subject.pid().to_string(), subject.file("closed.hound"));
    let recording = record(&file, &["-p", &pid, "--interval", "0"]);
    ["pipes 40", "eventfds 30", "close", "pipes 7"].iter().for_each(|order| subject.order(order));
    let (capture, _) = end(recording, file);
    let report = capture.report();
    assert_eq!(live(&report, FILES, &["_sys_pipe"]), 14, "of the first forty none is left");
    assert_eq!(live(&report, FILES, &["__x64_sys_eventfd2"]), 0);
    assert_eq!(live(&pages(&capture), None, &["ksys_write"]), 21);
    let made: u64 = report.sites.iter().filter(|site| site.passes("__x64_sys_eventfd2")).map(|site| site.allocations).sum();
    assert!(made >= 30, "they were seen, and then released: {made}");
    subject.end();
}

#[test]
fn the_end_of_the_process_ends_the_recording_and_gives_all_back() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let (pid, file) = (subject.pid().to_string(), subject.file("gone.hound"));
    let recording = record(&file, &["-p", &pid, "--interval", "0"]);
    subject.order("pipes 50");
    subject.end();
    let outcome = recording.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
}

#[test]
fn sampled_figures_hold_what_is_there_and_the_table_is_shown_meanwhile() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let (pid, file) = (subject.pid().to_string(), subject.file("sampled.hound"));
    let more = ["-p", &pid, "--interval", "4096", "--every", "200ms", "--older-than", "0ms", "--top", "3", "-a", "--duration", "20s"];
    let recording = record(&file, &more);
    subject.order("pipes 300");
    recording.wait_for_output("Single blocks alive");
    let shown = process::wait_until(|| recording.printed().contains("alloc_pages") && recording.printed().contains("Outstanding now"));
    assert!(shown, "{}", recording.printed());
    let (capture, _) = end(recording, file);
    let text = capture.ask("report", &["--format", "json", "--all", "--kind", "alloc_pages", "--function", "^ksys_write$"]).out();
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let held: u64 = report["sites"].as_array().expect("sites").iter().filter_map(|site| site["live_blocks"].as_u64()).sum();
    // 900 pages of one interval each: 1 - 1/e of them are expected to be sampled, with a standard deviation of the estimate of some 23.
    assert!((760..1040).contains(&held), "900 pages are estimated to be {held}");
    subject.order("close");
    subject.end();
}

#[test]
fn the_whole_host_is_recorded_without_a_process() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let file = subject.file("host.hound");
    let recording = record(&file, &["--interval", "65536"]);
    subject.order("pipes 400");
    let (capture, said) = end(recording, file);
    assert!(said.contains("the whole host"), "{said}");
    let text = capture.ask("report", &[]).out();
    assert!(text.contains("kernel memory of the whole host") && text.contains("ksys_write"), "{text}");
    subject.order("close");
    subject.end();
}

#[test]
fn what_the_table_has_no_room_for_is_lost_and_counted() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let (pid, file) = (subject.pid().to_string(), subject.file("full.hound"));
    let recording = record(&file, &["-p", &pid, "--interval", "0", "--follow", "4"]);
    subject.order("pipes 20");
    let (capture, said) = end(recording, file);
    assert!(said.contains("because the table of live blocks was full"), "{said}");
    assert!(capture.report().totals.lost_events > 100, "{said}");
    subject.order("close");
    subject.end();
}

#[test]
fn a_full_ring_loses_samples_and_counts_them() {
    if !possible() {
        return;
    }
    let own = KernelMemoryOptions { pid: Some(std::process::id()), interval: 0, ring_bytes: 4096, ..KernelMemoryOptions::default() };
    let mut programs = KernelMemory::load(&own).expect("root may");
    programs.watch(&ALL).expect("the tracepoints are there");
    for _ in 0..200 {
        drop(std::io::pipe().expect("a pipe can be made"));
    }
    let counters = programs.counters().expect("counters can be read");
    assert!(counters[KMEM_LOST_ALLOCS as usize] > 0 && counters[KMEM_LIVE_FULL as usize] == 0, "{counters:?}");
    assert!(counters[KMEM_SAMPLES as usize] + counters[KMEM_LOST_ALLOCS as usize] <= counters[KMEM_ALLOC_HITS as usize]);
    let (mut allocations, mut releases) = (0, 0);
    while programs.read(&mut |block, stack| match block.message {
        KERNEL_ALLOC => {
            assert!(!stack.is_empty() && block.pid == std::process::id(), "{block:?}");
            allocations += 1;
        }
        KERNEL_FREE => releases += 1,
        _ => {}
    }) > 0
    {}
    assert!(allocations > 0 && releases <= allocations, "{allocations} allocations, {releases} releases");
}

#[test]
fn nothing_stays_in_the_kernel_when_hound_is_killed() {
    if !possible() {
        return;
    }
    let subject = subject();
    let recording = record(&subject.file("killed.hound"), &["-p", &subject.pid().to_string()]);
    // The numbers of its programs, as its descriptors say.
    let folder = std::fs::read_dir(format!("/proc/{}/fdinfo", recording.pid)).expect("hound runs");
    let texts = folder.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let number = |text: String| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok());
    let own: BTreeSet<u32> = texts.filter_map(number).collect();
    let loaded = || aya::programs::loaded_programs().filter_map(Result::ok).filter(|program| own.contains(&program.id())).count();
    assert!(own.len() >= 8 && loaded() == own.len(), "its programs are there: {own:?}");
    kill(recording.pid, Signal::SIGKILL).expect("hound runs");
    let _ = recording.finish();
    assert!(process::wait_until(|| loaded() == 0), "{} programs of a dead hound are there", loaded());
    subject.end();
}

#[test]
fn single_blocks_of_a_program_are_listed_as_they_are() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let capture = Capture { path: dir.path().join("run.hound") };
    let words = ["run".as_ref(), "--quiet".as_ref(), "-o".as_ref(), capture.path.as_os_str()];
    let outcome = hound(words.into_iter().chain(["--", "sh", "-c", "a=1; b=2; set -- x y z"].map(AsRef::as_ref)));
    assert!(outcome.status.success(), "{}", outcome.err());
    let ask = |more: &[&str]| capture.ask("report", &[&["--blocks", "--format", "json"], more].concat()).out();
    let all: Value = serde_json::from_str(&ask(&["--all"])).expect("JSON");
    let rows = all["blocks"].as_array().expect("blocks were asked for");
    assert_eq!(Some(rows.len() as u64), all["totals"]["live_blocks"].as_u64());
    assert!(rows.iter().all(|row| row["stack"].as_array().is_some_and(|stack| !stack.is_empty())), "{all}");
    let sizes: Vec<u64> = rows.iter().filter_map(|row| row["size"].as_u64()).collect();
    assert!(!sizes.is_empty() && sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    let one: Value = serde_json::from_str(&ask(&["--limit", "1"])).expect("JSON");
    assert_eq!(one["blocks"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["blocks"][0]["size"].as_u64(), sizes.first().copied());
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (line, about) in [
        ("--kernel --mode full", "--mode"),
        ("--kernel --engine library", "--engine"),
        ("--kernel -p 1 -n init", "--name"),
        ("--kernel=heap", "possible values"),
        ("--follow 7 -p 1", "--kernel"),
    ] {
        let outcome = hound(std::iter::once("attach").chain(line.split(' ')));
        assert_eq!(outcome.status.code(), Some(2), "{line}");
        assert!(outcome.err().contains(about), "{line}: {}", outcome.err());
    }
    let outcome = hound(["attach", "--kernel", "-p", "4194303"]);
    assert_eq!(outcome.status.code(), Some(2));
    assert!(outcome.err().contains("process 4194303") && outcome.err().trim_end().lines().count() == 1, "{}", outcome.err());
}

#[test]
fn a_session_is_asked_marked_looked_at_and_ended_as_any_other() {
    if !possible() {
        return;
    }
    let mut subject = subject();
    let (pid, file) = (subject.pid().to_string(), subject.file("asked.hound"));
    let recording = record(&file, &["-p", &pid, "--interval", "0"]);
    let number = recording.pid.to_string();
    let status = hound(["status", "-p", &pid]).out();
    assert!(status.contains(&format!("the kernel's memory of process {pid}")) && status.contains(&number), "{status}");
    let json: Value = serde_json::from_str(&hound(["status", "-p", &pid, "--format", "json"]).out()).expect("JSON");
    assert_eq!((&json["sessions"][0]["mode"], json["sessions"][0]["hound"].as_u64()), (&Value::from("kernel"), number.parse().ok()));
    let second = subject.file("second.hound");
    let refused = hound(["attach", "--kernel", "-p", &pid, "-o", &second.display().to_string()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.err().contains("being recorded already") && refused.err().contains(&number), "{}", refused.err());
    assert!(refused.err().contains(&format!("hound detach --kernel -p {pid}")) && !second.exists(), "{}", refused.err());
    subject.order("pipes 10");
    assert!(hound(["mark", "--kernel", "-p", &pid, "ten pipes"]).status.success());
    let snapshot = hound(["snapshot", "--kernel", "-p", &pid]);
    assert!(snapshot.status.success() && snapshot.out().contains("pipe"), "{}{}", snapshot.out(), snapshot.err());
    let mode = hound(["mode", "-p", &pid, "full"]);
    assert!(mode.status.code() == Some(2) && mode.err().contains("is not being recorded"), "{}", mode.err());
    let elsewhere = hound(["detach", "--kernel", "-p", "1"]);
    assert!(elsewhere.status.code() == Some(2) && elsewhere.err().contains("hound attach --kernel"), "{}", elsewhere.err());
    let detached = hound(["detach", "--kernel", "-p", &pid]);
    assert!(detached.status.success() && detached.err().contains("asked.hound"), "{}", detached.err());
    assert_eq!(recording.finish().shell_status(), 0);
    let capture = Capture { path: file };
    assert!(capture.ask("dump", &[]).out().contains("ten pipes"), "no marker");
    assert!(live(&capture.report(), None, &["pipe"]) >= 10, "the pipes are not there");
    subject.end();
}
