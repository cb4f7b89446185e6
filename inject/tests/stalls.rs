//! How long a target stands still when hound gets in and out, as hound and as the target itself see it. A measurement: it prints a table
//! and decides nothing; run it with `--ignored --nocapture` on a quiet machine, as root.

#[expect(dead_code, reason = "the program is another one here")]
mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{library, soon};
use hound_inject::{Plan, enter, look};

const ROUNDS: usize = 12;

struct Gaps {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Gaps {
    fn start(file: &Path, threads: u32, how: &str) -> Gaps {
        let mut command = Command::new(file);
        command.args([&threads.to_string(), how]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut gaps = Gaps { child, output };
        assert_eq!(gaps.line(), "ready");
        gaps
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        line.trim().into()
    }

    /// The longest gap since the last call.
    fn longest(&mut self) -> Duration {
        self.child.stdin.as_mut().expect("piped").write_all(b"\n").expect("it listens");
        Duration::from_micros(self.line().parse().expect("microseconds"))
    }
}

impl Drop for Gaps {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/gaps.c");
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("gaps-{}", std::process::id()));
    assert!(Command::new("cc").args(["-O2", "-pthread", "-o"]).arg(&file).arg(source).status().expect("cc").success());
    file
}

/// Median and maximum, in milliseconds.
fn summary(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!("{:6.1} {:6.1}", ms(times.get(times.len() / 2)), ms(times.last()))
}

#[test]
#[ignore = "a measurement"]
fn table_of_stalls() {
    let (file, library) = (build(), library());
    println!("threads         | gap without    | into: stalls   | into: gap      | out: stalls    | out: gap       (median max, ms)");
    for (threads, how) in [(1, "busy"), (1, "idle"), (32, "busy"), (32, "idle"), (100, "busy"), (100, "idle")] {
        let mut gaps = Gaps::start(&file, threads, how);
        let pid = gaps.child.id() as i32;
        let [mut alone, mut stall_in, mut gap_in, mut stall_out, mut gap_out]: [Vec<Duration>; 5] = Default::default();
        for _ in 0..ROUNDS {
            gaps.longest();
            std::thread::sleep(Duration::from_millis(100));
            alone.push(gaps.longest());
            let target = look(pid).expect("may be traced");
            let plan = Plan::of(&target, &[]).expect("glibc's malloc");
            gaps.longest();
            let mut entered = enter(&target, &library, soon()).expect("entered");
            let patched = entered.patch(&plan, soon()).expect("patched");
            gap_in.push(gaps.longest());
            stall_in.push(entered.stalls().iter().copied().chain([patched.stall]).max().expect("some"));
            gaps.longest();
            stall_out.push(entered.unpatch(soon()).expect("restored"));
            gap_out.push(gaps.longest());
            entered.unload(soon()).expect("unloaded");
        }
        let columns = [&mut alone, &mut stall_in, &mut gap_in, &mut stall_out, &mut gap_out].map(|times| summary(times));
        println!("{threads:3} {how}        | {}", columns.join("  | "));
    }
    let _ = std::fs::remove_file(file);
}
