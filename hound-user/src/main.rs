//! The `hound` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    hound_user::cli::main()
}
