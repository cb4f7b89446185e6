//! What a report says of a program that was attached to: names of its functions, and what was there before.

use std::process::Command;

use hound_tests::attach;
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Running, wait_until};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

/// A program that goes on until it is killed.
struct Target {
    dir: TempDir,
    program: Program,
    running: Option<Running>,
}

impl Target {
    fn start(flags: &[&str]) -> Target {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let program = Program::new("attached.c", Build::Optimised).with(flags);
        let running = process::start(Command::new(program.path()).arg(dir.path().join("control")));
        running.wait_for_output("ready");
        Target { dir, program, running: Some(running) }
    }

    fn pid(&self) -> i32 {
        self.running.as_ref().expect("it runs").pid.as_raw()
    }

    /// Attached to until events come in.
    fn recorded(&self) -> Capture {
        let session = attach::attach(self.pid(), &self.dir.path().join("capture.hound"), &[]);
        let frees = || std::fs::metadata(self.dir.path().join("capture.hound")).is_ok_and(|meta| meta.len() > 4096);
        assert!(wait_until(frees), "nothing is recorded");
        session.detach(&[])
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = kill(running.pid, Signal::SIGKILL); // it may have ended
            running.finish();
        }
    }
}

fn json(capture: &Capture, command: &str) -> Value {
    let outcome = capture.ask(command, &["--format", "json"]);
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.err()))
}

#[test]
fn functions_of_dynamic_and_static_executables_have_files_and_lines() {
    if !requirement::root() {
        return;
    }
    // Without a header of its frame information (-static alone leaves it out) a function's callers may not be found.
    let whole = &["keep_here", "main"][..];
    for (flags, functions) in [(&[][..], whole), (&["-static-pie"], whole), (&["-static", "-no-pie"], &["keep_here"])] {
        let target = Target::start(flags);
        let capture = target.recorded();
        let path = target.program.path();
        let report = json(&capture, "report");
        let sites = report["sites"].as_array().expect("sites");
        let kept =
            sites.iter().find(|site| site["stack"].to_string().contains("keep_here")).unwrap_or_else(|| panic!("{flags:?}: {report}"));
        for &function in functions {
            let frames = kept["frames"].as_array().expect("frames");
            let frame = frames.iter().find(|frame| frame["function"] == function).unwrap_or_else(|| panic!("{flags:?}: {frames:?}"));
            assert!(frame["file"].as_str().is_some_and(|file| file.ends_with("attached.c")), "{flags:?}: {frame}");
            assert!(frame["line"].as_u64().is_some_and(|line| line > 0), "{flags:?}: {frame}");
            assert_eq!(frame["module"].as_str(), path.to_str(), "{flags:?}");
        }
        assert!(report["session"]["unresolved"].as_array().is_some_and(Vec::is_empty), "{flags:?}: {}", report["session"]);
        let info = json(&capture, "info");
        let modules: Vec<_> = info["modules"].as_array().expect("modules").iter().map(|m| m["path"].as_str().unwrap_or("")).collect();
        assert!(modules.iter().all(|path| !path.is_empty()), "{flags:?}: {modules:?}");
    }
}

#[test]
fn what_was_there_before_is_told_with_its_blocks_by_size() {
    if !requirement::root() {
        return;
    }
    let target = Target::start(&[]);
    let capture = target.recorded();
    let before = json(&capture, "report")["session"]["before"].clone();
    let walked = &before["heaps"][0]["walked"];
    // The program's 64 blocks of 64 KiB; how many others it has by then, the class shows in its own row.
    let class = walked["classes"].as_array().into_iter().flatten().find(|class| class["from"] == 1 << 16);
    assert_eq!(class.map(|class| &class["count"]), Some(&Value::from(64)), "{before}");
    assert!(before["resident"].as_u64().is_some_and(|bytes| bytes > 64 << 16), "{before}");
    assert!(before["heap"].as_u64().is_some_and(|bytes| bytes > 64 << 16), "{before}");
    assert!(before["looked_ns"].is_u64() && before["threads"] == 1 && before["age_ns"].as_u64() > Some(0), "{before}");
    for (command, part) in [("report", "64 blocks of 65,536 to 131,071 bytes"), ("info", "of 65,536 to 131,071 bytes")] {
        let text = capture.ask(command, &[]).out();
        for part in ["there before the attach: ", "glibc: ", part] {
            assert!(text.contains(part), "hound {command} does not say {part:?}:\n{text}");
        }
    }
    let text = capture.ask("report", &[]).out();
    for part in
        ["attached to in full mode for ", "attached after ", " at the attach, ", " at the detach", "recorded: glibc with mappings in "]
    {
        assert!(text.contains(part), "not said: {part:?}:\n{text}");
    }
    // Times count from the moment the target begins to record.
    let events = capture.events();
    let first = |what: &str| events.iter().find(|e| e.event == what).map(|e| e.t);
    assert!(first("mode") <= first("alloc") && first("alloc").is_some(), "{:?} {:?}", first("mode"), first("alloc"));
}
