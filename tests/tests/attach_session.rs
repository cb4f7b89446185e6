//! Sessions as people have them: impatient, under other users, two at once, without room; and each of them ends with the target as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::attach::{Footprint, maps};
use hound_tests::binaries;
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome, Running, wait_until};
use hound_tests::requirement;
use hound_tests::scene::Scene;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

fn program() -> PathBuf {
    Program::new("attached.c", Build::Optimised).path()
}

/// Nothing of hound's is mapped in the target.
fn must_be_clean(pid: i32) {
    let left: Vec<String> = maps(pid).into_iter().filter(|line| line.contains("hound")).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn must_fail(outcome: &Outcome, parts: &[&str]) {
    let said = outcome.err();
    assert_eq!(outcome.shell_status(), 2, "{said}");
    for part in parts {
        assert!(said.contains(part), "not said: {part}\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn must_end_well(hound: Running) -> String {
    let outcome = hound.finish();
    let said = outcome.err();
    assert_eq!(outcome.shell_status(), 0, "{said}");
    said
}

#[test]
fn a_second_ctrl_c_is_answered_and_breaks_nothing() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let before = Footprint::of(scene.pid());
    let hound = scene.attach(&["--quiet"]);
    // A child between vfork and exec runs in the same memory: hound cannot restore the code before it has gone.
    scene.order("v");
    let children = format!("/proc/{0}/task/{0}/children", scene.pid());
    assert!(wait_until(|| fs::read_to_string(&children).is_ok_and(|text| !text.is_empty())), "no vfork");
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    let ending = || scene.ask("status", &[]).err();
    assert!(wait_until(|| ending().contains("is ending")), "it does not say that it ends: {}", ending());
    let asked_again = scene.ask("detach", &[]);
    must_fail(&asked_again, &["is ending"]);
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    assert!(wait_until(|| hound.said().contains("still detaching")), "no answer: {}", hound.said());
    assert!(Footprint::of(scene.pid()).is_patched_beside(&before), "it was detached from at once: nothing was waited for");
    scene.order("g");
    must_end_well(hound);
    scene.must_end("detach");
    assert!(!Footprint::of(scene.pid()).is_patched_beside(&before));
    scene.must_end_by_itself();
}

#[test]
fn ctrl_z_does_not_stop_a_recording() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let hound = scene.attach(&["--quiet"]);
    kill(hound.pid, Signal::SIGTSTP).expect("hound runs");
    assert!(wait_until(|| hound.said().contains("not stopped")), "{}", hound.said());
    let events = || scene.status()["events"].as_u64().unwrap_or(0);
    let before = events();
    assert!(wait_until(|| events() > before), "nothing comes in any more");
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    must_end_well(hound);
    scene.must_end("detach");
    scene.must_end_by_itself();
}

/// Its name is cut to fifteen characters by the kernel, and whole in the executable's and the command line.
fn called(dir: &Path, name: &str) -> Scene {
    let path = dir.join(name);
    if !path.exists() {
        fs::copy(program(), &path).expect("room for a program");
    }
    Scene::of(&mut Command::new(path))
}

#[test]
fn a_name_is_one_process_or_a_list_to_choose_from() {
    if !requirement::root() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let name = format!("hound-named-{}-", std::process::id());
    let (one, two, twin) =
        (called(dir.path(), &format!("{name}one")), called(dir.path(), &format!("{name}two")), called(dir.path(), &format!("{name}two")));
    let hound = process::start(one.hound(&["attach", "--mode", "full", "--quiet", "-n", &format!("{name}one"), "-o"]).arg(one.file()));
    assert!(wait_until(|| one.status()["events"].as_u64().is_some_and(|events| events > 0)), "{}", hound.said());
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    must_end_well(hound);
    one.must_end("detach");
    let named = |name: &str| process::run(&mut one.hound(&["attach", "-o", "/dev/null", "-n", name]));
    let listed =
        |outcome: &Outcome, pid: i32| outcome.err().lines().filter(|line| line.trim_start().starts_with(&format!("{pid} "))).count();
    let several = named(&format!("{name}two"));
    must_fail(&several, &["2 processes are called", "-p PID", "started "]);
    assert_eq!([&one, &two, &twin].map(|scene| listed(&several, scene.pid())), [0, 1, 1], "{}", several.err());
    // How a name begins is not enough.
    let begins = named(&name);
    must_fail(&begins, &["no process is called", "-p PID"]);
    assert_eq!([&one, &two, &twin].map(|scene| listed(&begins, scene.pid())), [1, 1, 1], "{}", begins.err());
    for scene in [one, two, twin] {
        scene.must_end_by_itself();
    }
}

/// A user that owns nothing here.
const USER: u32 = 47_114;
const OTHER: u32 = 47_115;

/// hound where every user finds it, and a target of [`USER`].
struct Foreign {
    bin: TempDir,
    scene: Scene,
}

impl Foreign {
    fn new() -> Foreign {
        let bin = binaries::for_everybody();
        fs::copy(program(), bin.path().join("attached")).expect("room for a program");
        let scene = Scene::of(Command::new(bin.path().join("attached")).uid(USER).gid(USER));
        Foreign { bin, scene }
    }

    /// hound of this user, without a folder for sockets from the system.
    fn hound(&self, user: u32, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.path().join("hound"));
        command
            .args([name, "-p", &self.scene.pid().to_string()])
            .args(args)
            .env_remove("XDG_RUNTIME_DIR")
            .current_dir(self.scene.dir.path());
        if user != 0 {
            command.uid(user).gid(user);
        }
        command
    }

    fn ask(&self, user: u32, name: &str, args: &[&str]) -> Outcome {
        process::run(&mut self.hound(user, name, args))
    }

    fn attach(&self, user: u32) -> Running {
        let hound = process::start(self.hound(user, "attach", &["--mode", "full", "--quiet", "-o"]).arg(self.scene.file()));
        let recorded = || -> Option<u64> {
            let status: Value = serde_json::from_slice(&self.ask(user, "status", &["--format", "json"]).stdout).ok()?;
            status["sessions"].as_array()?.first()?["events"].as_u64()
        };
        assert!(wait_until(|| recorded().is_some_and(|events| events > 0)), "no events: {}", hound.said());
        hound
    }
}

#[test]
fn a_user_attaches_to_an_own_program_without_any_privilege() {
    if !requirement::root() {
        return;
    }
    let foreign = Foreign::new();
    let before = Footprint::of(foreign.scene.pid());
    // Twice: what the first leaves cannot be opened without privilege, and is taken out and brought in anew.
    for _ in 0..2 {
        let hound = foreign.attach(USER);
        let capabilities = fs::read_to_string(format!("/proc/{}/status", hound.pid)).expect("it runs");
        assert!(capabilities.contains("CapEff:\t0000000000000000"), "hound has privileges: {capabilities}");
        let folder = fs::metadata(format!("/tmp/hound-{USER}")).expect("its folder for sockets");
        assert_eq!(folder.permissions().mode() & 0o777, 0o700);
        assert!(wait_until(|| foreign.ask(USER, "snapshot", &[]).out().contains("keep_here")), "nothing is kept");
        let foe = foreign.ask(OTHER, "detach", &[]);
        must_fail(&foe, &["runs as user 47114", "run hound as root"]);
        // Root sees and ends everybody's.
        assert!(foreign.ask(0, "status", &[]).out().contains("full mode"), "{}", foreign.ask(0, "status", &[]).out());
        let second = foreign.ask(0, "attach", &["-o", "/dev/null"]);
        must_fail(&second, &["being recorded"]);
        let ended = foreign.ask(0, "detach", &[]);
        assert_eq!(ended.shell_status(), 0, "{}", ended.err());
        must_end_well(hound);
        foreign.scene.must_end("detach");
        assert!(foreign.scene.report()["sites"].to_string().contains("keep_here"));
        Footprint::of(foreign.scene.pid()).must_be_as(&before, "after the detach");
    }
    let out = foreign.ask(USER, "detach", &["--unload"]);
    assert_eq!(out.shell_status(), 0, "{}", out.err());
    must_be_clean(foreign.scene.pid());
    fs::remove_dir_all(format!("/tmp/hound-{USER}")).expect("our own folder");
    foreign.scene.must_end_by_itself();
}

#[test]
fn what_root_records_its_user_is_told_and_may_not_end() {
    if !requirement::root() {
        return;
    }
    let foreign = Foreign::new();
    let hound = foreign.attach(0);
    let number = hound.pid.to_string();
    let status = foreign.ask(USER, "status", &[]);
    assert!(status.out().contains(&format!("hound process {number} of user 0 records")), "{}{}", status.out(), status.err());
    for (name, args) in
        [("detach", &["--unload"][..]), ("detach", &[]), ("mark", &["text"]), ("snapshot", &[]), ("attach", &["-o", "none.hound"])]
    {
        must_fail(&foreign.ask(USER, name, args), &[&number, "record"]);
    }
    assert!(!foreign.scene.dir.path().join("none.hound").exists(), "a refusal leaves no file");
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    must_end_well(hound);
    foreign.scene.must_end("detach");
    // A program of root's is not this user's to attach to.
    let own = Scene::start();
    let mut command = Command::new(foreign.bin.path().join("hound"));
    command
        .args(["attach", "--mode", "full", "-p", &own.pid().to_string(), "-o", "none.hound"])
        .current_dir(foreign.scene.dir.path())
        .uid(USER)
        .gid(USER);
    must_fail(&process::run(&mut command), &["it runs as user 0, hound as user 47114", "run hound as root"]);
    own.must_end_by_itself();
    foreign.scene.must_end_by_itself();
}

/// The same, with address space enough to look, plan and enter; not for the ring, which hound maps when it is in the target already.
fn in_little_memory(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 112640 && exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

#[test]
fn a_failure_on_the_way_in_leaves_the_target_as_it_was() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let before = (Footprint::of(scene.pid()), maps(scene.pid()).len());
    let mut command = scene.on_target("attach", &["--mode", "full", "-o"]);
    command.arg(scene.file());
    must_fail(&process::run(&mut in_little_memory(&command)), &["cannot map the shared memory", "ulimit -v"]);
    assert!(!scene.file().exists(), "a failure leaves no file");
    Footprint::of(scene.pid()).must_be_as(&before.0, "after the failure");
    must_be_clean(scene.pid());
    assert_eq!(scene.status(), Value::Null, "no session is left");
    let full = process::run(&mut scene.on_target("attach", &["--mode", "full", "-o", "/dev/full"]));
    must_fail(&full, &["cannot write '/dev/full'", "No space left"]);
    must_be_clean(scene.pid());
    // The next is as if nothing had been.
    let hound = scene.attach(&["--quiet", "--unload"]);
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    must_end_well(hound);
    scene.must_end("detach");
    must_be_clean(scene.pid());
    Footprint::of(scene.pid()).must_be_as(&before.0, "after attach --unload");
    scene.must_end_by_itself();
}

/// Attaches with a small file system of its own for the capture, and keeps what is left of that.
const IN_LITTLE_ROOM: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs -o size=256k room "$ROOM"
status=0
"$@" -o "$ROOM/capture.hound" || status=$?
cp "$ROOM/capture.hound" "$KEPT"
exit $status
"#;

#[test]
fn a_disk_that_fills_up_costs_events_which_are_counted_and_nothing_else() {
    if !requirement::containers() {
        return;
    }
    let scene = Scene::start();
    let before = Footprint::of(scene.pid());
    let room = TempDir::new().expect("a temporary directory can be made");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", IN_LITTLE_ROOM, "sh"]).arg(binaries::hound()).args([
        "attach",
        "--mode",
        "full",
        "--quiet",
        "-p",
        &scene.pid().to_string(),
    ]);
    command.env("ROOM", room.path()).env("KEPT", scene.file()).env("XDG_RUNTIME_DIR", scene.dir.path());
    let hound = process::start(&mut command);
    assert!(wait_until(|| scene.status()["lost_events"].as_u64().is_some_and(|lost| lost > 0)), "it never fills up: {}", hound.said());
    let detached = scene.ask("detach", &["--unload"]);
    assert_eq!(detached.shell_status(), 0, "{}", detached.err());
    let said = must_end_well(hound);
    assert!(said.contains("the capture is not complete") && said.contains("make room"), "{said}");
    let report = scene.report();
    assert!(report["totals"]["lost_events"].as_u64().is_some_and(|lost| lost > 0), "{}", report["totals"]);
    assert!(report["totals"]["allocations"].as_u64().is_some_and(|all| all > 0), "{}", report["totals"]);
    Footprint::of(scene.pid()).must_be_as(&before, "after the detach");
    must_be_clean(scene.pid());
    scene.must_end_by_itself();
}

#[test]
fn a_killed_hound_is_repaired_by_the_next() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let before = Footprint::of(scene.pid());
    for repair in ["detach", "attach"] {
        let hound = scene.attach(&["--quiet"]);
        let snapshot = scene.ask("snapshot", &[]); // brings what was recorded so far into the file
        assert_eq!(snapshot.shell_status(), 0, "{}", snapshot.err());
        kill(hound.pid, Signal::SIGKILL).expect("hound runs");
        hound.finish();
        assert!(Footprint::of(scene.pid()).is_patched_beside(&before), "{repair}: nothing to repair");
        assert_eq!(scene.status(), Value::Null, "{repair}: nobody answers");
        let status = scene.ask("status", &[]).out();
        assert!(status.contains("the hound that did it is gone") && status.contains("hound detach -p"), "{repair}: {status}");
        assert!(Capture { path: scene.file() }.report().totals.allocations > 0, "{repair}: what was written can be read");
        if repair == "detach" {
            let outcome = scene.ask("detach", &[]);
            assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
            assert!(outcome.err().contains("what an earlier hound had left"), "{}", outcome.err());
        } else {
            let next = scene.attach(&["--quiet", "--unload"]);
            kill(next.pid, Signal::SIGINT).expect("hound runs");
            must_end_well(next);
            let report = scene.report();
            scene.must_end("detach");
            assert!(report["sites"].to_string().contains("churn_here"), "nothing is recorded after the repair");
            assert_eq!(report["session"]["anomalies"], Value::Array(Vec::new()));
            must_be_clean(scene.pid());
        }
        Footprint::of(scene.pid()).must_be_as(&before, repair);
    }
    scene.must_end_by_itself();
}

#[test]
fn a_hound_that_stands_still_keeps_its_target() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let hound = scene.attach(&["--quiet"]);
    kill(hound.pid, Signal::SIGSTOP).expect("hound runs");
    let number = hound.pid.to_string();
    let second = process::run(scene.on_target("attach", &["-o"]).arg(scene.dir.path().join("second.hound")));
    must_fail(&second, &["does not answer", &format!("kill -CONT {number}")]);
    let status = scene.ask("status", &[]);
    assert!(status.err().contains(&format!("hound process {number}, which does not answer")), "{}{}", status.out(), status.err());
    kill(hound.pid, Signal::SIGCONT).expect("hound is stopped");
    assert!(wait_until(|| scene.status() != Value::Null), "it does not answer again");
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    must_end_well(hound);
    let check = Capture { path: scene.file() }.check();
    assert!(check.status.success(), "{}", check.err());
    scene.must_end_by_itself();
}

#[test]
fn a_program_that_ends_while_attached_is_reported_on_with_its_status() {
    if !requirement::root() {
        return;
    }
    let mut scene = Scene::start();
    let hound = scene.attach(&[]);
    let socket = scene.dir.path().join(format!("hound/{}.sock", scene.pid()));
    assert!(socket.exists());
    assert!(wait_until(|| scene.ask("snapshot", &[]).out().contains("keep_here")), "nothing is kept");
    scene.order("e");
    let said = must_end_well(hound);
    assert_eq!(scene.target.take().expect("it was started").finish().shell_status(), 7);
    for part in ["has exited with status 7; recording is over", "it exited with status 7", "Leaks: ", "keep_here", "capture in "] {
        assert!(said.contains(part), "not said: {part}\n{said}");
    }
    assert_eq!(scene.must_end("exit")["end"]["value"], 7);
    assert!(!socket.exists(), "its socket stays");
}

#[test]
fn a_session_without_a_place_for_its_socket_records_all_the_same() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let mut command = scene.on_target("attach", &["--mode", "full", "--quiet", "--duration", "300ms", "-o"]);
    let outcome = process::run(command.arg(scene.file()).env("XDG_RUNTIME_DIR", "/proc/self"));
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    assert!(outcome.err().contains("set XDG_RUNTIME_DIR") && outcome.err().contains("will not find this session"), "{}", outcome.err());
    scene.must_end("detach");
    scene.must_end_by_itself();
}

/// Whether the shared memory in a process is left out of core dumps, which would touch and hold all of it.
fn is_kept_out_of_dumps(pid: i32) -> bool {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it runs");
    let ring = smaps.find("/memfd:hound-").expect("the shared memory is mapped");
    let flags = smaps[ring..].lines().find(|line| line.starts_with("VmFlags:")).expect("each mapping has flags");
    flags.split_whitespace().any(|flag| flag == "dd")
}

#[test]
fn core_dumps_are_as_large_as_without_hound() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let hound = scene.attach(&["--quiet"]);
    assert!(is_kept_out_of_dumps(scene.pid()), "attached");
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    must_end_well(hound);
    assert!(is_kept_out_of_dumps(scene.pid()), "asleep");
    let (hound, pid) = launched(&scene);
    assert!(is_kept_out_of_dumps(pid), "launched");
    fs::write(scene.dir.path().join("launched"), "e").expect("room for a letter");
    assert_eq!(hound.finish().shell_status(), 7);
    scene.must_end_by_itself();
}

/// `hound run` on the program, and its process id.
fn launched(scene: &Scene) -> (Running, i32) {
    let mut command = scene.hound(&["run", "--quiet", "-o"]);
    command.arg(scene.file()).arg("--").arg(program()).arg(scene.dir.path().join("launched"));
    let hound = process::start(&mut command);
    hound.wait_for_output("ready");
    let mut found = None;
    assert!(wait_until(|| {
        let status: Value = serde_json::from_slice(&process::run(&mut scene.hound(&["status", "--format", "json"])).stdout).expect("JSON");
        found = status["sessions"].as_array().and_then(|all| all.iter().find(|one| one["mode"] == "launch").cloned());
        found.is_some()
    }));
    let pid = found.expect("as just seen")["pid"].as_i64().expect("a number");
    (hound, i32::try_from(pid).expect("a process id"))
}

#[test]
fn a_launched_program_is_spoken_of_and_neither_attached_to_nor_left() {
    let scene = Scene::start(); // for its place
    let (hound, pid) = launched(&scene);
    let number = pid.to_string();
    let ask = |name: &str, args: &[&str]| process::run(scene.hound(&[name, "-p", &number]).args(args));
    let status = ask("status", &[]).out();
    assert!(status.contains("launch mode for") && status.contains("hound snapshot -p"), "{status}");
    let kept = |text: &str| text.contains("keep_here") && text.contains("being recorded still");
    assert!(wait_until(|| kept(&ask("snapshot", &[]).out())), "{}", ask("snapshot", &[]).out());
    assert_eq!(ask("mark", &["half-time"]).shell_status(), 0);
    must_fail(&ask("attach", &["-o", "/dev/null"]), &["being recorded already", "it was started so"]);
    let doctor = ask("doctor", &[]);
    assert_eq!(doctor.shell_status(), 2);
    assert!(doctor.out().contains("since its start"), "{}", doctor.out());
    for args in [&[][..], &["--unload"]] {
        must_fail(&ask("detach", args), &["is recorded to its end"]);
    }
    // Without the socket, which another hound may not find, the library alone tells.
    let elsewhere = TempDir::new().expect("a temporary directory can be made");
    let ask =
        |name: &str, args: &[&str]| process::run(scene.hound(&[name, "-p", &number]).args(args).env("XDG_RUNTIME_DIR", elsewhere.path()));
    must_fail(&ask("attach", &["--mode", "full", "-o", "/dev/null"]), &["since its start"]);
    for args in [&[][..], &["--unload"]] {
        must_fail(&ask("detach", args), &["since its start"]);
    }
    fs::write(scene.dir.path().join("launched"), "e").expect("room for a letter");
    let outcome = hound.finish();
    assert_eq!(outcome.shell_status(), 7, "the program is unharmed: {}", outcome.err());
    scene.must_end("exit");
    let dump = Capture { path: scene.file() }.ask("dump", &["--format", "json"]).out();
    assert_eq!(dump.lines().filter(|line| line.contains("\"marker\"") && line.contains("half-time")).count(), 1);
    scene.must_end_by_itself();
}

#[test]
fn a_preloaded_program_is_spoken_of_as_one_that_hound_runs() {
    let scene = Scene::start(); // for its place
    let (file, orders) = (scene.dir.path().join("preloaded.hound"), scene.dir.path().join("preloaded"));
    let mut command = Command::new(program());
    command.arg(&orders).env("LD_PRELOAD", binaries::libhound()).env("HOUND_OUTPUT", &file).env("XDG_RUNTIME_DIR", scene.dir.path());
    let target = process::start(&mut command);
    let number = target.pid.to_string();
    let ask = |name: &str, args: &[&str]| process::run(scene.hound(&[name, "-p", &number]).args(args));
    assert!(wait_until(|| ask("status", &[]).out().contains("launch mode for")), "{}", ask("status", &[]).out());
    assert!(wait_until(|| ask("snapshot", &[]).out().contains("keep_here")), "{}", ask("snapshot", &[]).err());
    assert_eq!(ask("mark", &["half-time"]).shell_status(), 0);
    must_fail(&ask("detach", &["--unload"]), &["is recorded to its end"]);
    must_fail(&ask("attach", &["-o", "/dev/null"]), &["being recorded already"]);
    fs::write(&orders, "e").expect("room for a letter");
    assert_eq!(target.finish().shell_status(), 7);
    let capture = Capture { path: file };
    assert!(wait_until(|| capture.check().status.success()), "it is not completed: {}", capture.check().err());
    let dump = capture.ask("dump", &["--format", "json"]).out();
    assert_eq!(dump.lines().filter(|line| line.contains("\"marker\"") && line.contains("half-time")).count(), 1);
    scene.must_end_by_itself();
}

#[test]
fn the_doctor_looks_without_touching_and_says_by_its_status_whether_an_attach_would_go() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let (before, lines) = (Footprint::of(scene.pid()), maps(scene.pid()));
    let good = scene.ask("doctor", &["--format", "json"]);
    assert_eq!(good.shell_status(), 0, "{}", good.out());
    let all: Value = serde_json::from_slice(&good.stdout).expect("JSON");
    let found = |name: &str| {
        let check = all["checks"].as_array().and_then(|all| all.iter().find(|check| check["name"] == name));
        check.unwrap_or_else(|| panic!("no {name}: {all}"))["found"].as_str().unwrap_or_default().to_owned()
    };
    assert!(found("attach").contains("was attached to and left"), "{}", found("attach"));
    assert!(found("memfd").contains("made, sealed and mapped"), "{}", found("memfd"));
    assert!(found("recorded").contains("malloc, calloc"), "{}", found("recorded"));
    assert!(found("left behind").contains("nothing of hound"), "{}", found("left behind"));
    Footprint::of(scene.pid()).must_be_as(&before, "after the look");
    // Its heap grows by itself.
    let but_heap = |lines: Vec<String>| lines.into_iter().filter(|line| !line.ends_with("[heap]")).collect::<Vec<_>>();
    assert_eq!(but_heap(maps(scene.pid())), but_heap(lines), "after the look: mappings");
    // One that cannot be: hound's shared memory does not fit.
    let bad = process::run(&mut in_little_memory(&scene.on_target("doctor", &[])));
    assert_eq!(bad.shell_status(), 2, "{}{}", bad.out(), bad.err());
    assert!(bad.out().contains("NO  memfd") && bad.out().contains("ulimit -v"), "{}", bad.out());
    // And one that is taken.
    let hound = scene.attach(&["--quiet"]);
    let taken = scene.ask("doctor", &[]);
    assert_eq!(taken.shell_status(), 2, "{}", taken.out());
    assert!(taken.out().contains(&format!("hound process {} records it", hound.pid)), "{}", taken.out());
    kill(hound.pid, Signal::SIGINT).expect("hound runs");
    must_end_well(hound);
    scene.must_end_by_itself();
}
