//! What a test needs from the machine it runs on.

/// Whether the test may go on, having what it needs. If not, the test says loudly that it was skipped.
///
/// # Panics
/// Where skipping is forbidden (`CI=true` or `HOUND_NO_SKIP=1`).
pub fn fulfilled(what: &str, present: bool) -> bool {
    if present {
        return true;
    }
    let forbidden = std::env::var("CI").is_ok_and(|v| v == "true") || std::env::var("HOUND_NO_SKIP").is_ok_and(|v| v == "1");
    assert!(!forbidden, "this test needs {what}, and may not be skipped here");
    // Past the capture of test output, which hides what passing tests print.
    let line = format!("SKIPPED: {} needs {what}\n", std::thread::current().name().unwrap_or("a test"));
    let told = std::fs::OpenOptions::new()
        .append(true)
        .open("/proc/self/fd/2")
        .and_then(|mut err| std::io::Write::write_all(&mut err, line.as_bytes()));
    if told.is_err() {
        eprint!("{line}");
    }
    false
}

/// Whether the test runs as root, as it must.
pub fn root() -> bool {
    fulfilled("root", nix::unistd::geteuid().is_root())
}

/// Whether hound can probe from the kernel here, as it must: what hound itself needs for it is checked by `hound doctor`'s tests.
pub fn uprobes() -> bool {
    let there = |path: &str| std::path::Path::new(path).exists();
    root() && fulfilled("uprobes and BTF", there("/sys/bus/event_source/devices/uprobe/type") && there("/sys/kernel/btf/vmlinux"))
}

/// Whether a container can be built: in a chroot, whose root is no mount, the kernel makes no user namespaces, and mounts cannot be set apart.
pub fn containers() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Its fifth word is where a mount is.
    let is_a_mount = mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"));
    root() && fulfilled("a root that is no chroot", is_a_mount)
}

/// Whether this program is installed, as it must be.
pub fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    fulfilled(name, std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}
