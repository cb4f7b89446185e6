//! The `hound` command as tests want it: it dies or fails at a step on a target that the environment names (see `inject/src/step.rs`).

use std::process::ExitCode;

fn main() -> ExitCode {
    let code = hound_user::cli::main();
    match hound_inject::report_steps() {
        Ok(()) => code,
        Err(error) => {
            eprintln!("hound: the list of steps cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
