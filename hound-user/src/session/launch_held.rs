//! `hound run --engine kernel`, and `hound run` of what no library that is loaded before others can reach: a program started under hound and
//! observed like a process that was attached to, from its beginning.
//!
//! It is held before its first instruction ([`super::hold`]) until there are probes, or the library is in it. From there on only its end is
//! another: it is recorded as long as it runs, what is sent to hound is passed on to it, and its status is hound's.

use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::process::Child;

use super::attach::{Attach, Began, Engine, Glance, Mode, make_room_for_files};
use super::hold::{self, Held, Stopped};
use super::inside;
use super::launch::Launched;
use super::program::Program;
use super::signals::{self, Signals};

/// Runs a program to its end and observes it. `attach` says how; its target is this program. `glance` as in [`super::attach()`].
///
/// # Errors
/// When the program cannot be started, or not be observed: it is ended then, and none of its code has run.
pub fn launch_held(
    command: &[OsString],
    attach: Attach,
    glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Launched> {
    let Some(name) = command.first() else { bail!("no program given; write it after '--': hound run -- PROGRAM ARGUMENTS") };
    let program = Program::find_to_hold(name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let launched = runtime.block_on(async {
        // Before it is started: none must find hound without a handler, and the program without its signal.
        let caught = Signals::catch().context("cannot catch signals")?;
        let cannot_start = || format!("cannot start '{}'", program.path.display());
        let prepare = if is_by_the_library(&attach) { hold::command_to_stop } else { hold::command };
        let mut child = prepare(&program, command).spawn().with_context(cannot_start)?;
        let pid = child.id().unwrap_or(0);
        let after_libraries = is_by_the_library(&attach) && program.is_sanitized();
        let attach = Attach { pid, started: true, ..attach };
        match run((pid, after_libraries), attach, caught, &mut child, glance).await {
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
    (pid, after_libraries): (u32, bool),
    attach: Attach,
    caught: Signals,
    child: &mut Child,
    glance: impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Launched> {
    let Some(held) = Held::at_its_beginning(pid, after_libraries)? else {
        let status = child.wait().await?;
        let warnings = vec!["nothing was recorded: the program ended before its first instruction (what its loader says is above)".into()];
        return Ok(Launched { status, output: None, warnings });
    };
    let since = Instant::now();
    let ended_early = async |child: &mut Child| {
        let warnings = vec!["nothing was recorded: the program was killed before its first instruction".into()];
        Ok(Launched { status: child.wait().await?, output: None, warnings })
    };
    let waiting = if is_by_the_library(&attach) {
        let Some(stopped) = held.stopped()? else { return ended_early(child).await };
        Waiting::Stopped(stopped)
    } else {
        Waiting::Traced(held)
    };
    // The program has its limits from hound as hound had them.
    if attach.is_of_several() {
        make_room_for_files();
    }
    let mut caught = Some(caught);
    let mut began = Began::by_attaching(&attach, || Ok(caught.take().map_or_else(Signals::catch, Ok)?))?;
    // Its time begins now: what came before was hound's.
    began.inside.recording.begin(Duration::ZERO);
    let woken = !waiting.let_go(&began.inside.hold)?;
    if !attach.quiet {
        let (members, inside, held) = (&began.inside.members, &began.inside, since.elapsed().as_millis());
        eprintln!("hound: process {members} begins after {held} ms: {inside}");
    }
    let attached = began.record(&attach, glance).await?;
    let status = wait(child).await?;
    let woken =
        woken.then(|| "somebody has woken the program before hound was in it: what it did in its first moments is not recorded".into());
    let warnings = attached.warnings.into_iter().chain(attached.not_left).chain(woken).collect();
    Ok(Launched { status, output: Some(attached.output), warnings })
}

/// Whether the library is brought into the program.
fn is_by_the_library(attach: &Attach) -> bool {
    attach.mode == Mode::Full || attach.mode == Mode::Sampled && attach.engine == Engine::Library
}

/// A program that has yet to begin.
enum Waiting {
    Traced(Held),
    Stopped(Stopped),
}

impl Waiting {
    /// It begins. False if somebody else has let it before.
    fn let_go(self, hold: &inside::Hold) -> anyhow::Result<bool> {
        match (self, hold) {
            (Waiting::Traced(held), _) => held.let_go().map(|()| true),
            (Waiting::Stopped(stopped), inside::Hold::Library(library)) => stopped.let_go(library.target()),
            (Waiting::Stopped(_), _) => bail!("the library is not in it"),
        }
    }
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
