//! `hound doctor`.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::FAILED;
use super::control::parse_pid;
use super::info::Format;
use super::report::print;
use crate::session::{Check, Health, look_at_machine, look_at_target};

const EXAMPLES: &str = "\
Examples:
  hound doctor                          what works on this machine
  hound doctor -p 4242                  whether hound can attach to it, and what it would see
  hound doctor --format json | jq '.checks[] | select(.health == \"bad\")'";

/// Show what works here, what does not, why, and what to do about it. Changes nothing: what must be tried is tried on a child of hound's own.
///
/// Exit status: 0 if nothing stands in the way of attaching, 2 if something does.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// Look at this process, too.
    #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
    pid: Option<u32>,
    /// For people or for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Prints all checks.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut checks = look_at_machine();
    if let Some(pid) = args.pid {
        checks.extend(look_at_target(pid));
    }
    let stands = checks.iter().any(|check| check.health == Health::Bad);
    let status = if stands { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
    if args.format == Format::Json {
        return done(&format!("{}\n", json!({"hound": env!("CARGO_PKG_VERSION"), "checks": checks})), status);
    }
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, health, found, cure } in &checks {
        let sign = match health {
            Health::Good => "ok ",
            Health::Note => "-  ",
            Health::Bad => "NO ",
        };
        writeln!(text, "{sign} {name:width$}  {found}")?;
        if let Some(cure) = cure {
            writeln!(text, "    {:width$}  → {cure}", "")?;
        }
    }
    done(&text, status)
}

fn done(text: &str, status: ExitCode) -> anyhow::Result<ExitCode> {
    print(text)?;
    Ok(status)
}
