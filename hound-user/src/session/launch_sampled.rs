//! `hound run --engine kernel`: a program started under hound and observed from the kernel from its beginning.
//!
//! It is held before its first instruction ([`super::hold`]) until there are probes. Then it is like a process that was attached to, but
//! for its end: it is recorded as long as it runs, what is sent to hound is passed on to it, and its status is hound's.

use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::process::Child;

use super::attach::{Attach, Began, Glance, make_room_for_files};
use super::hold::{self, Held};
use super::launch::Launched;
use super::program::Program;
use super::signals::{self, Signals};

/// Runs a program to its end and observes it. `attach` says how; its target is this program. `glance` as in [`super::attach()`].
///
/// # Errors
/// When the program cannot be started, or not be observed: it is ended then, and none of its code has run.
pub fn launch_sampled(
    command: &[OsString],
    attach: Attach,
    glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Launched> {
    let Some(name) = command.first() else { bail!("no program given; write it after '--': hound run -- PROGRAM ARGUMENTS") };
    let program = Program::find_to_sample(name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let launched = runtime.block_on(async {
        // Before it is started: none must find hound without a handler, and the program without its signal.
        let caught = Signals::catch().context("cannot catch signals")?;
        let cannot_start = || format!("cannot start '{}'", program.path.display());
        let mut child = hold::command(&program, command).spawn().with_context(cannot_start)?;
        let pid = child.id().unwrap_or(0);
        match run(pid, Attach { pid, started: true, ..attach }, caught, &mut child, glance).await {
            Ok(launched) => Ok(launched),
            Err(error) => {
                // It was ended, or runs on unrecorded: nobody but hound waits for it.
                let _ = child.wait().await;
                Err(error.context(format!("cannot run '{}'", program.path.display())))
            }
        }
    });
    signals::let_go();
    launched
}

async fn run(
    pid: u32,
    attach: Attach,
    caught: Signals,
    child: &mut Child,
    glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Launched> {
    let Some(held) = Held::at_its_beginning(pid)? else {
        let status = child.wait().await?;
        let warnings = vec!["nothing was recorded: the program ended before its first instruction (what its loader says is above)".into()];
        return Ok(Launched { status, output: None, warnings });
    };
    let since = Instant::now();
    // The program has its limits from hound as hound had them.
    if attach.is_of_several() {
        make_room_for_files();
    }
    let mut caught = Some(caught);
    let mut began = Began::by_attaching(&attach, || Ok(caught.take().map_or_else(Signals::catch, Ok)?))?;
    // Its time begins now: what came before was hound's.
    began.inside.recording.begin(Duration::ZERO);
    held.let_go()?;
    if !attach.quiet {
        let (members, inside, held) = (&began.inside.members, &began.inside, since.elapsed().as_millis());
        eprintln!("hound: process {members} begins after {held} ms: {inside}");
    }
    let attached = began.record(&attach, glance).await?;
    let status = wait(child).await?;
    Ok(Launched { status, output: Some(attached.output), warnings: attached.warnings.into_iter().chain(attached.not_left).collect() })
}

/// The recording may be over before the program is: by `hound detach`, `--duration` or exec.
async fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let mut signals = Signals::catch()?;
    let pid = child.id().unwrap_or(0);
    loop {
        tokio::select! {
            status = child.wait() => return status,
            signal = signals.next() => signals::pass_on(pid, signal),
        }
    }
}
