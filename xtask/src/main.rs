//! `cargo xtask`: everything that is done with this repository besides editing it.
//!
//! On a fresh Debian machine with a C compiler, git and Rust, `cargo xtask demo` and `cargo xtask test` need nothing
//! done by hand before them: each installs what it lacks (as root; else it prints the command), builds, and runs. xtask
//! depends on no crate of the workspace, so it compiles in seconds and still works when the workspace does not.
//!
//! Exit status: 0 done, 1 something that was examined is not as it must be (a test failed, a figure missed its bound), 2 xtask could not
//! do its job.

mod artefact;
mod bench;
mod ci;
mod compile;
mod coverage;
mod demo;
mod ebpf;
mod exec;
mod fuzz;
mod json;
mod page;
mod place;
mod programs;
mod setup;
mod skips;
mod test;
mod torture;
mod verdicts;
mod watch;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What a task found. Errors are kept for tasks that could not be carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Everything examined is as it must be.
    Good,
    /// Something examined is not; the task has said what.
    Bad,
}

const EXAMPLES: &str = "Examples:
  cargo xtask demo
  cargo xtask test
  cargo xtask test -- --test blocks
  cargo xtask bench redis sqlite --runs 5
  cargo xtask bench --check";

/// Set up, build, test, show and measure hound.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = EXAMPLES
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the Debian packages that testing, the demonstration and the benchmarks need (all of them without a name)
    Setup {
        /// What to set up for
        purposes: Vec<setup::Purpose>,
    },
    /// Build the hound binary and libhound.so for release, side by side in target/release
    Build,
    /// Set up, build, and run every test; print totals and what was skipped
    Test {
        /// Passed on to `cargo test`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Set up, build, and show hound on redis under load and on a small leaking service
    Demo,
    /// Measure what hound costs, beside no profiler and heaptrack; keep the tables of docs/overhead.md
    Bench(bench::Options),
    /// Build hound's programs for the kernel, and keep the object that the plain build takes
    Ebpf(ebpf::Options),
    /// What .ci/run does: format, lints, the programs for the kernel, and all tests with skips turned into failures
    Ci,
    /// Report the share of program counters that unwind rows cover, over ELF files (a standard set without any)
    Coverage {
        /// ELF files
        files: Vec<std::path::PathBuf>,
    },
    /// Run the fuzz targets for a bounded time each
    Fuzz(fuzz::Options),
    /// Attach to and detach from a program that tortures itself, at random moments, and kill hound now and then
    Torture(torture::Options),
    /// Record real services under load, healthy programs and known leaks, and compare `hound leaks` with what is known of them
    Verdicts(verdicts::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup { purposes } => setup::task(&purposes),
        Task::Build => compile::task(),
        Task::Test { args } => test::task(&args),
        Task::Demo => demo::task(),
        Task::Bench(options) => bench::task(&options),
        Task::Ebpf(options) => ebpf::task(&options),
        Task::Ci => ci::task(),
        Task::Coverage { files } => coverage::task(&files),
        Task::Fuzz(options) => fuzz::task(&options),
        Task::Torture(options) => torture::task(&options),
        Task::Verdicts(options) => verdicts::task(&options),
    };
    match done {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}
