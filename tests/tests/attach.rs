//! Attaching to running programs: sessions from their begin to each of their ends, what is said to them, and what is refused.

use std::path::Path;
use std::process::Command;

use hound_tests::binaries;
use hound_tests::capture::Capture;
use hound_tests::process::{self, Outcome, wait_until};
use hound_tests::requirement;
use hound_tests::scene::Scene;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn ctrl_c_detaches_keeps_the_capture_and_says_what_is_alive() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let hound = scene.attach(&[]);
    scene.order("f"); // blocks from before, one a round of 32 events and more
    let events = || scene.status()["events"].as_u64().unwrap_or(0);
    let before = events();
    assert!(wait_until(|| events() > before + 64 * 40 * 4), "only {} events", events());
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    let outcome = hound.finish();
    let said = outcome.err();
    assert_eq!(outcome.shell_status(), 0, "{said}");
    for part in ["attached to", "detached from", "Alive at the detach", "keep_here", "attached after"] {
        assert!(said.contains(part), "not said: {part}\n{said}");
    }
    scene.must_end("detach");
    let report = scene.report();
    assert_eq!(report["totals"]["unknown_frees"], 64, "blocks from before");
    let kept = report["sites"].as_array().expect("sites").iter().find(|site| site["stack"].to_string().contains("keep_here"));
    let kept = kept.expect("keep_here is named");
    assert_eq!(kept["live_bytes"].as_u64().expect("a number"), kept["live_blocks"].as_u64().expect("a number") * 4321);
    assert!(report["session"]["before"]["resident"].as_u64().is_some_and(|bytes| bytes > 64 << 16), "{}", report["session"]);
    scene.must_end_by_itself();
}

#[test]
fn a_duration_ends_the_session() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let outcome = process::run(scene.on_target("attach", &["--mode", "full", "--duration", "300ms", "--quiet", "-o"]).arg(scene.file()));
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    scene.must_end("detach");
    scene.must_end_by_itself();
}

#[test]
fn sessions_are_spoken_to_while_they_record() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let hound = scene.attach(&["--quiet"]);
    let second = process::run(scene.on_target("attach", &["-o"]).arg(scene.dir.path().join("second.hound")));
    assert_eq!(second.shell_status(), 2);
    assert!(second.err().contains("being recorded already"), "{}", second.err());
    let marked = scene.ask("mark", &["cache is \"full\""]);
    assert_eq!(marked.shell_status(), 0, "{}", marked.err());
    let events = |snapshot: &Outcome| -> u64 {
        let report: Value = serde_json::from_slice(&snapshot.stdout).unwrap_or_else(|e| panic!("{e}: {}", snapshot.err()));
        assert_eq!(report["session"]["end"]["how"], "growing");
        report["totals"]["allocations"].as_u64().expect("a number")
    };
    let first = events(&scene.ask("snapshot", &["--format", "json"]));
    assert!(wait_until(|| events(&scene.ask("snapshot", &["--format", "json"])) > first + 100), "it does not go on");
    let mut text = String::new();
    let has_kept = wait_until(|| {
        text = scene.ask("snapshot", &[]).out();
        text.contains("Alive now") && text.contains("keep_here")
    });
    assert!(has_kept, "{text}");
    let detached = scene.ask("detach", &["--unload"]);
    assert_eq!(detached.shell_status(), 0, "{}", detached.err());
    assert_eq!(hound.finish().shell_status(), 0);
    assert_eq!(scene.status(), Value::Null);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", scene.pid())).expect("it runs");
    assert!(!maps.contains("hound"), "{maps}");
    scene.must_end("detach");
    let dump = Capture { path: scene.file() }.ask("dump", &["--format", "json"]).out();
    let marks: Vec<Value> =
        dump.lines().filter(|line| line.contains("\"marker\"")).map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(marks.len(), 1);
    assert_eq!(marks[0]["text"], "cache is \"full\"");
    scene.must_end_by_itself();
}

#[test]
fn a_second_attach_uses_what_the_first_has_left() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    for round in 0..3 {
        let hound = scene.attach(&["--quiet"]);
        kill(hound.pid, Signal::SIGTERM).expect("hound runs");
        let outcome = hound.finish();
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        assert_eq!(outcome.err().contains("was there already"), round > 0, "{}", outcome.err());
        scene.must_end("detach");
        let report = scene.report();
        assert!(report["sites"].to_string().contains("churn_here"), "round {round}: no names");
        assert_eq!(report["session"]["anomalies"], Value::Array(Vec::new()), "round {round}");
    }
    scene.must_end_by_itself();
}

#[test]
fn every_end_of_the_target_leaves_a_complete_capture() {
    if !requirement::root() {
        return;
    }
    for (order, how, value) in [("e", "exit", 7), ("s", "signal", 11), ("x", "exec", 0), ("kill", "signal", 9)] {
        let mut scene = Scene::start();
        let hound = scene.attach(&["--quiet"]);
        match order {
            "kill" => kill(scene.target.as_ref().expect("it runs").pid, Signal::SIGKILL).expect("it runs"),
            letter => scene.order(letter),
        }
        let outcome = hound.finish();
        assert_eq!(outcome.shell_status(), 0, "{order}: {}", outcome.err());
        scene.target.take().expect("it was started").finish();
        let info = scene.must_end(how);
        assert_eq!(info["end"]["value"], value, "{order}");
        assert!(scene.report()["sites"].to_string().contains("churn_here"), "{order}: no names");
    }
}

#[test]
fn while_recording_the_largest_sites_are_printed() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let hound = scene.attach(&["--quiet", "--every", "200ms", "--top", "3", "--older-than", "100ms", "--min-size", "4000"]);
    hound.wait_for_output("keep_here");
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    let outcome = hound.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    assert!(outcome.out().contains("Alive now") && !outcome.out().contains("churn_here"), "{}", outcome.out());
    scene.must_end_by_itself();
}

#[test]
fn wrong_targets_are_refused_with_a_reason_and_nothing_is_left() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("none.hound");
    let hound = |args: &[&str]| process::run(Command::new(binaries::hound()).args(args).env("XDG_RUNTIME_DIR", dir.path()));
    let output = file.display().to_string();
    for (args, part) in [
        (&["attach", "-o", &output, "-p", "2147483647"][..], "there is no process"),
        (&["attach", "-o", &output, "-n", "no process is called so"], "no process is called"),
        (&["attach", "-o", &output, "-p", "2"], "attach"),
        (&["detach", "-p", "2147483647"], "detach"),
        (&["snapshot", "-p", "1"], "not being recorded"),
        (&["mark", "-p", "1", "text"], "not being recorded"),
    ] {
        let outcome = hound(args);
        assert_eq!(outcome.shell_status(), 2, "{args:?}: {}", outcome.err());
        assert!(outcome.err().contains(part), "{args:?}: {}", outcome.err());
        assert!(outcome.err().lines().filter(|line| line.starts_with("hound: ")).count() == 1, "{args:?}: {}", outcome.err());
    }
    assert!(!file.exists(), "a refusal leaves no file");
    let sockets =
        |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().filter(|e| e.path().extension().is_some()).count();
    assert_eq!(sockets(&dir.path().join("hound")), 0, "a refusal leaves no socket");
}

#[test]
fn the_doctor_says_what_works_and_what_to_do() {
    let scene = Scene::start();
    let outcome = scene.ask("doctor", &["--format", "json"]);
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    let all: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    let checks = all["checks"].as_array().expect("checks");
    let named = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check of {name}: {all}"));
    for name in ["kernel", "rights", "yama", "ptrace", "memfd", "clock", "libhound.so", "cgroup", "target"] {
        named(name);
    }
    for check in checks.iter().filter(|check| check["health"] == "bad") {
        assert!(check["cure"].is_string() || check["name"] == "not recorded", "{check}");
    }
    if requirement::root() {
        assert_eq!(named("target")["health"], "good");
        assert!(named("recorded")["found"].as_str().is_some_and(|found| found.contains("malloc")), "{all}");
    }
}
