//! Full mode from outside into containers that the test builds itself: other namespaces, a read-only root without /proc, a musl userland,
//! a user namespace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::compare::Rules;
use hound_tests::compile::{Build, Program};
use hound_tests::requirement;

/// Runs in new namespaces: makes a root of its own out of `$FILES`, read-only, without /proc, with a noexec /tmp, and enters it.
const ENTER: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs root "$ROOT"
cp -R "$FILES"/. "$ROOT"
mkdir -p "$ROOT/notes" "$ROOT/tmp"
mount --bind "$(dirname "$ORACLE_FILE")" "$ROOT/notes"
mount -t tmpfs -o noexec tmp "$ROOT/tmp"
mount -o remount,bind,ro "$ROOT"
export ORACLE_FILE=/notes/oracle
exec chroot "$ROOT" /attached
"#;

/// Copies the program and the libraries it needs, each to its place below `files`.
fn furnish(files: &Path, program: &Path, libraries: &[&str]) {
    let copy = |from: &Path, to: &str| {
        let to = files.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("it lies below the root")).expect("the test's own directory");
        fs::copy(from, &to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
    };
    copy(program, "attached");
    for library in libraries {
        copy(Path::new(library), library);
    }
}

const GLIBC: &[&str] = &["/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libgcc_s.so.1"];
const MUSL: &[&str] = &["/lib/ld-musl-x86_64.so.1"];

/// Starts the program in its container, attaches from here twice, compares.
fn contained(program: &Program, libraries: &[&str], unshare: &[&str], exact_stacks: bool) {
    if !requirement::containers() {
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let (files, root) = (place.path().join("files"), place.path().join("root"));
    for dir in [place.path(), &files, &root] {
        fs::create_dir_all(dir).expect("the test's own directory");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("the test's own directory");
    }
    furnish(&files, &program.path(), libraries);
    let (first, rest) = unshare.split_first().expect("a command");
    let mut command = Command::new(first);
    command.args(rest).args(["sh", "-c", ENTER]).env("FILES", &files).env("ROOT", &root);
    let mut subject = Subject::start_open(&mut command).below_named("attached");
    if exact_stacks {
        subject.rules = Rules { function_starts: program.function_starts(), ..subject.rules };
    }
    let pid = subject.pid();
    assert!(!Path::new(&format!("/proc/{pid}/root/proc/self")).exists(), "the container has a /proc");
    subject.order("quiet");
    let before = Footprint::of(pid);
    for round in 0..2 {
        let session = attach::attach(pid, &subject.file(&format!("{round}.hound")), &[]);
        assert!(Footprint::of(pid).is_patched_beside(&before), "nothing is patched");
        subject.order("noted");
        let capture = session.detach(&[]);
        Footprint::of(pid).must_be_as(&before, "after detaching");
        subject.must_be_exact(&capture, round);
        let report = capture.report();
        assert!(report.sites.iter().any(|s| s.passes("every_entry_point")), "the container's program is not symbolised");
    }
    subject.end();
}

const APART: &[&str] = &["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"];

fn target() -> Program {
    Program::new("attach_target.c", Build::Optimised)
}

#[test]
fn a_glibc_container_without_proc_on_a_read_only_root_is_captured_exactly() {
    contained(&target(), GLIBC, APART, true);
}

#[test]
fn a_musl_container_is_captured_exactly() {
    if requirement::program("musl-gcc") {
        contained(&target().by("musl-gcc"), MUSL, APART, false);
    }
}

#[test]
fn a_container_with_one_static_program_is_captured_exactly() {
    contained(&target().with(&["-static", "-DSTATIC"]), &[], APART, true);
}

#[test]
fn a_container_of_another_user_under_a_uid_map_is_captured_exactly() {
    let mut mapped = vec!["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    mapped.extend(APART);
    mapped.extend(["--user", "--map-root-user"]);
    contained(&target(), GLIBC, &mapped, true);
}
