//! What sampling from the kernel needs: with it an attach works, without it the refusal names what is missing, and `hound doctor` says the
//! same of the same machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use hound_tests::attach::{Subject, changed_bytes};
use hound_tests::binaries;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome, wait_until};
use hound_tests::requirement;
use serde_json::Value;
use tempfile::TempDir;

/// A user that owns nothing but the program.
const USER: &str = "47117";
/// What is mounted over the file system for a single command.
const APART: &str = "mount --make-rprivate / && ";

/// What stands before a command so that it runs in a certain situation.
struct Situation {
    name: &'static str,
    /// Words before hound's.
    before: Vec<String>,
    /// Whether hound can sample; else what it says.
    works: Result<(), &'static [&'static str]>,
    /// What the doctor says besides: check, health, words.
    notes: &'static [(&'static str, &'static str, &'static str)],
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

/// Another user with these capabilities only.
fn as_user(capabilities: &str) -> Vec<String> {
    let all = format!("--inh-caps {capabilities} --ambient-caps {capabilities} --bounding-set {capabilities}");
    words(&format!("setpriv --reuid {USER} --regid {USER} --clear-groups {all}"))
}

/// As root, after these commands in a mount namespace of its own.
fn after(commands: &str) -> Vec<String> {
    let mut words = words("unshare --mount sh -e -c");
    words.extend([format!("{APART}{commands} && exec \"$@\""), "sh".into()]);
    words
}

fn situations() -> Vec<Situation> {
    let limited = |prefix: &str, rest: Vec<String>| words(prefix).into_iter().chain(rest).collect();
    const TWO: &str = "-all,+bpf,+perfmon";
    let file = |path: &str, text: &str| after(&format!("T=$(mktemp) && echo '{text}' >$T && mount --bind $T {path}"));
    vec![
        Situation {
            name: "root",
            before: Vec::new(),
            works: Ok(()),
            notes: &[("mappings", "good", "tracepoints"), ("lockdown", "good", "")],
        },
        Situation {
            name: "no capability",
            before: as_user("-all"),
            works: Err(&["hound lacks CAP_BPF and CAP_PERFMON", "run hound as root"]),
            notes: &[("kernel memory", "note", "hound lacks CAP_BPF and CAP_PERFMON"), ("rights", "note", "no PERFMON, no BPF")],
        },
        Situation {
            name: "CAP_BPF alone",
            before: as_user("-all,+bpf"),
            works: Err(&["hound lacks CAP_PERFMON", "or with CAP_BPF and CAP_PERFMON"]),
            notes: &[("kernel memory", "note", "hound lacks CAP_PERFMON")],
        },
        Situation {
            name: "CAP_PERFMON alone",
            before: as_user("-all,+perfmon"),
            works: Err(&["hound lacks CAP_BPF", "or with CAP_BPF and CAP_PERFMON"]),
            notes: &[("bpf", "good", "unprivileged_bpf_disabled")],
        },
        Situation {
            name: "both",
            before: as_user(TWO),
            works: Ok(()),
            notes: &[("mappings", "note", "root only"), ("rights", "note", "no SYS_PTRACE"), ("perf", "good", "perf_event_paranoid")],
        },
        Situation {
            name: "both, and no memory may be locked",
            before: limited("prlimit --memlock=0", as_user(TWO)),
            works: Ok(()),
            notes: &[("locked memory", "good", "0 bytes")],
        },
        Situation {
            name: "in a user namespace",
            before: as_user("-all").into_iter().chain(words("unshare --user --map-root-user")).collect(),
            works: Err(&["are a container's own", "run hound on the machine itself"]),
            notes: &[("user namespace", "note", "container's")],
        },
        Situation {
            name: "no types",
            before: after("mount -t tmpfs none /sys/kernel/btf"),
            works: Err(&["this kernel has no type information", "CONFIG_DEBUG_INFO_BTF"]),
            notes: &[("kernel types", "note", "not there")],
        },
        Situation {
            name: "no tracefs",
            before: after(
                "mount -t tmpfs none /sys/kernel/tracing && if [ -d /sys/kernel/debug/tracing ]; then mount -t tmpfs none /sys/kernel/debug; fi",
            ),
            works: Ok(()),
            notes: &[("mappings", "note", "tracefs is not mounted")],
        },
        // The kernel is not locked down, whatever this text says: hound does not refuse what works.
        Situation {
            name: "a kernel that says it is locked down",
            before: after(
                "mount -t tmpfs none /sys/kernel/security && echo 'none integrity [confidentiality]' >/sys/kernel/security/lockdown",
            ),
            works: Ok(()),
            notes: &[("lockdown", "note", "the kernel's lockdown is confidentiality")],
        },
        Situation {
            name: "no perf events for the unprivileged",
            before: file("/proc/sys/kernel/perf_event_paranoid", "4"),
            works: Ok(()),
            notes: &[("perf", "good", "perf_event_paranoid is 4")],
        },
        Situation {
            name: "no bpf for the unprivileged",
            before: file("/proc/sys/kernel/unprivileged_bpf_disabled", "1"),
            works: Ok(()),
            notes: &[("bpf", "good", "unprivileged_bpf_disabled is 1")],
        },
    ]
}

fn check<'a>(all: &'a Value, name: &str) -> &'a Value {
    let checks = all["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check of {name}: {all}"))
}

fn text(check: &Value, field: &str) -> String {
    check[field].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_doctor_and_an_attach_say_the_same_in_every_situation() {
    let tools = ["setpriv", "unshare", "prlimit"].into_iter().all(requirement::program);
    if !requirement::uprobes() || !requirement::containers() || !tools {
        return;
    }
    let bin = binaries::for_everybody();
    let copy = bin.path().join("target");
    fs::copy(Program::new("attach_target.c", Build::Optimised).path(), &copy).expect("room for a program");
    let mut user = as_user("-all");
    let program = user.remove(0);
    let subject = Subject::start_open(Command::new(program).args(user).arg(&copy));
    let pid = subject.pid();
    for situation in situations() {
        let Situation { name, before, works, notes } = situation;
        let run = |arguments: &[&str]| in_situation(&before, bin.path(), subject.file("").as_path(), arguments);
        let doctor = run(&["doctor", "--format", "json"]);
        let all: Value = serde_json::from_slice(&doctor.stdout).unwrap_or_else(|e| panic!("{name}: {e}: {}", doctor.err()));
        let verdict = check(&all, "sampled mode");
        let file = subject.file("capture.hound");
        let file_text = file.display().to_string();
        // A container's user may not look at what is outside of it: it has a program of its own.
        let attached = match before.iter().any(|word| word == "--user") {
            true => run(&["run", "--engine", "kernel", "--maps", "--quiet", "-o", &file_text, "--", "true"]),
            false => run(&["attach", "-p", &pid.to_string(), "--duration", "200ms", "--maps", "--quiet", "-o", &file_text]),
        };
        let said = attached.err();
        assert_eq!(verdict["health"] == "good", attached.status.success(), "{name}: the doctor says {verdict}, the attach {said}");
        assert_eq!(attached.status.success(), works.is_ok(), "{name}: {said}");
        match works {
            Ok(()) => assert!(file.exists(), "{name}: no capture"),
            Err(words) => {
                let (cause, cure) = (text(verdict, "found"), text(verdict, "cure"));
                assert!(said.contains(&cause) && said.contains(&cure), "{name}: the doctor says {verdict}, the attach {said}");
                words.iter().for_each(|word| assert!(said.contains(word), "{name}: {word:?} is not in {said}"));
                assert_eq!((attached.status.code(), doctor.status.code()), (Some(2), Some(2)), "{name}");
                assert!(!file.exists(), "{name}: a refusal leaves a capture");
            }
        }
        let as_text = run(&["doctor"]).out();
        for (what, health, words) in notes {
            let found = check(&all, what);
            assert!(found["health"] == *health && text(found, "found").contains(words), "{name}: {found}");
            assert!(found["health"] == "good" || found["cure"].is_string(), "{name}: {found}");
            assert!(as_text.lines().any(|line| line.contains(what) && line.contains(words)), "{name}: {what} is not in {as_text}");
        }
        if notes.iter().any(|(what, health, _)| (*what, *health) == ("mappings", "note")) {
            let cure = text(check(&all, "mappings"), "cure");
            assert!(said.contains("mappings are not recorded") && said.contains(&cure), "{name}: {said}");
        }
        let _ = fs::remove_file(&file);
        assert!(wait_until(|| changed_bytes(pid) == 0), "{name}: breakpoints are left");
    }
    subject.end();
}

fn in_situation(before: &[String], bin: &Path, dir: &Path, arguments: &[&str]) -> Outcome {
    let hound = bin.join("hound").display().to_string();
    let all: Vec<&str> = before.iter().map(String::as_str).chain([hound.as_str()]).chain(arguments.iter().copied()).collect();
    process::run(Command::new(all[0]).args(&all[1..]).env("XDG_RUNTIME_DIR", dir))
}

#[test]
fn what_more_than_two_capabilities_is_needed_for_is_named() {
    if !requirement::uprobes() || !requirement::program("setpriv") {
        return;
    }
    let bin = binaries::for_everybody();
    let dir = TempDir::new_in(bin.path()).expect("a temporary directory can be made");
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("our own");
    let run = |arguments: &[&str]| in_situation(&as_user("-all,+bpf,+perfmon"), bin.path(), dir.path(), arguments);
    let file = dir.path().join("kernel.hound").display().to_string();
    // Names of the kernel's functions.
    let kernel = run(&["attach", "--kernel", "--duration", "200ms", "-o", &file]);
    assert!(kernel.status.success() && kernel.err().contains("CAP_SYSLOG"), "{}", kernel.err());
    let all: Value = serde_json::from_slice(&run(&["doctor", "--format", "json"]).stdout).expect("JSON");
    assert!(text(check(&all, "kernel memory"), "cure").contains("CAP_SYSLOG"), "{all}");
    // Another user's program.
    let others = run(&["attach", "-p", "1"]);
    assert!(others.status.code() == Some(2) && others.err().contains("run hound as root"), "{}", others.err());
    let doctor = run(&["doctor", "-p", "1"]);
    assert!(doctor.status.code() == Some(2) && doctor.out().contains("CAP_SYS_PTRACE"), "{}", doctor.out());
    // A program of its own, from its beginning: nothing more.
    let own = run(&["run", "--engine", "kernel", "--quiet", "-o", &file, "--budget", "unlimited", "--interval", "0", "--", "ls", "/"]);
    assert!(own.status.success() && own.out().contains("proc"), "{}", own.err());
}
