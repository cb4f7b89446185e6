//! What a hound that ends leaves to another: calls of a program's that must end at their time (`inject/src/appointments.rs`).

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// End calls on sockets at the time at which their own timeouts would have. Started by hound itself.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The calls.
    #[arg(required = true)]
    calls: Vec<String>,
}

/// Ends them, then itself.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    hound_inject::keep_appointments(&args.calls)?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a process for what this one has promised. It holds nothing of the user's: no terminal, no file, no folder. Where it cannot be
/// started the calls end later.
pub fn hand_over() {
    let calls = hound_inject::hand_over_appointments();
    if calls.is_empty() {
        return;
    }
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg0("hound").arg("on-time").args(calls).env_clear().current_dir("/").process_group(0);
    keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = keeper.spawn();
}
