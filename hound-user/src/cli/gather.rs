//! `hound gather`: takes a capture from another machine while it is recorded there.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use super::FAILED;
use crate::capture::Capture;
use crate::session::{BASE_PORT, Gather, gather};

const EXAMPLES: &str = "\
Examples:
  hound run --server -- ./service               on the one machine: it can be had at port 8100
  hound gather service-host:8100 -o s.hound     on the other: as it grows, to its end
  hound gather                                  whatever is announced first (`--server --announce`)
  hound report s.hound                          also while it grows";

/// Take a capture from another machine while it is recorded there.
///
/// Ends with the recording, or by Ctrl-C: what has come until then is kept, and can be read.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// Where it is to be had: HOST:PORT, as the recording hound says. Without it, the first that is announced.
    #[arg(value_name = "HOST:PORT")]
    from: Option<String>,
    /// Where the capture goes. %e is replaced by the program's name and %p by its process id, where they were announced; else by the host and
    /// the port. %t is the time, %n the first free number.
    #[arg(short, long, value_name = "FILE")]
    output: Option<OsString>,
    /// The UDP port at which announcements are listened for.
    #[arg(long, value_name = "PORT", default_value_t = BASE_PORT, conflicts_with = "from")]
    port: u16,
    /// Say nothing but what is wrong.
    #[arg(short, long)]
    quiet: bool,
}

/// Exit status 0: it is complete; 2: it is not (what there is, is kept), or none came.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let wanted = Gather { from: args.from.clone(), output: args.output.clone(), port: args.port, quiet: args.quiet };
    let Some(path) = gather(&wanted)? else { return Ok(ExitCode::from(FAILED)) };
    Ok(told(&path, args.quiet))
}

fn told(path: &Path, quiet: bool) -> ExitCode {
    let complete = match Capture::open(path) {
        Ok(capture) => capture.end().is_some(),
        Err(error) => {
            eprintln!("hound: what came is no capture: {error}; it is kept in {}", path.display());
            return ExitCode::from(FAILED);
        }
    };
    if !complete {
        eprintln!("hound: the recording had not ended when the connection did; what came until then is kept in {}", path.display());
        return ExitCode::from(FAILED);
    }
    if !quiet {
        eprintln!("hound: capture in {}", path.display());
    }
    ExitCode::SUCCESS
}
