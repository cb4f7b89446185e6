//! Programs to get into, and what is compared of them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn target_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp is inside target").to_owned()
}

/// libhound.so's bytes, built now if it is not up to date.
pub fn library() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace");
    let built = Command::new(env!("CARGO")).current_dir(root).args(["build", "-q", "--profile", "preload", "-p", "hound-preload"]).status();
    assert!(built.expect("cargo runs").success());
    std::fs::read(target_directory().join("preload/libhound.so")).expect("libhound.so was built")
}

/// Compiles a program of `tests/programs`.
pub fn compile(name: &str, compiler: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    let unique = format!("{}-{compiler}{}", name.replace('.', "_"), flags.concat().replace(['/', '-', ',', '='], "_"));
    let output = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{unique}-{}", std::process::id()));
    let mut command = Command::new(compiler);
    command.args(["-O2", "-g", "-pthread"]).arg(&source).arg("-o").arg(&output).args(flags);
    assert!(command.status().expect("the compiler runs").success(), "{command:?}");
    output
}

/// A running program that says `r` when it is ready, answers each byte with `y`, and ends when its input does.
pub struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Program {
    pub fn start(path: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(path);
        command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let mut program = Self { child, input, output };
        assert_eq!(program.byte(), b'r');
        program
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.output.read_exact(&mut byte).expect("the program answers");
        byte[0]
    }

    /// Waits until the program's threads have worked on.
    pub fn works(&mut self) {
        self.input.as_mut().expect("it runs").write_all(b"?").expect("the program listens");
        assert_eq!(self.byte(), b'y');
    }

    /// Ends it, and expects that all its own checks were fine.
    pub fn ends_well(mut self) {
        drop(self.input.take());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("it ends");
        let status = self.child.wait().expect("it is ours");
        assert!(status.success(), "{status}: {rest}");
        assert!(rest.contains("wrong=0"), "{rest}");
    }

    /// Its executable memory from files.
    pub fn text(&self) -> Vec<(u64, Vec<u8>)> {
        let memory = hound_inject::Memory::open(self.pid()).expect("its memory opens");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("it runs");
        let mut text = Vec::new();
        for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains('/')) {
            let (start, rest) = line.split_once('-').expect("a range");
            let end = rest.split(' ').next().expect("an end");
            let hex = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
            let mut bytes = vec![0; (hex(end) - hex(start)) as usize];
            memory.read(hex(start), &mut bytes).expect("code is readable");
            text.push((hex(start), bytes));
        }
        text
    }

    /// Its mappings, without what grows by itself: heaps and arenas.
    pub fn file_mappings(&self) -> Vec<String> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("it runs");
        maps.lines().filter(|line| line.contains('/')).map(str::to_owned).collect()
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
