//! Signals sent to hound that are meant for the program it runs.
//!
//! Whoever stops, reloads or resizes "the program" sends its signal to the process started, which is hound: a signal that killed hound
//! would leave the program running and unrecorded, and nobody would know.

use std::io;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::Poll;

use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Passed on always. SIGXCPU and SIGXFSZ are not here: hound's own use of time and disk raises those.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];
/// A terminal sends them to all processes in its foreground: the program has them already then.
const FROM_KEYS: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];
/// They would end hound before the capture is complete. Without the default action, the write that raised SIGXFSZ fails as on a full disk.
const SWALLOWED: [Signal; 2] = [Signal::SIGXFSZ, Signal::SIGXCPU];

/// Ask hound to leave its target.
const TO_LEAVE: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Whether this signal asks hound to leave its target.
pub fn is_to_leave(signal: Signal) -> bool {
    TO_LEAVE.contains(&signal)
}

/// The signals to hound, caught from `catch` on.
#[derive(Debug)]
pub struct Signals(Vec<(Signal, Stream)>);

impl Signals {
    /// Catches them. Call it before the program is started, so that none finds hound without a handler; what comes before the program
    /// is there is kept for it. Signals that are ignored (`nohup`) stay so, for hound and for the program, which inherits that.
    pub fn catch() -> io::Result<Self> {
        let ignored = ignored();
        let all = PASSED_ON.into_iter().chain(FROM_KEYS).chain(SWALLOWED);
        let wanted = all.filter(|wanted| ignored & (1 << (*wanted as u32 - 1)) == 0);
        let streams = wanted.map(|wanted| Ok((wanted, signal(SignalKind::from_raw(wanted as i32))?)));
        Ok(Signals(streams.collect::<io::Result<_>>()?))
    }

    /// Those that end an attach. Terminals, service managers and people send them; the recording is completed on all. Only a hang-up
    /// may have been ignored on purpose (`nohup`): a shell that starts hound in the background ignores SIGINT for it unasked, and a
    /// script that sends one means it. Ctrl-Z is among what is caught: the target would wait for a hound that stands still.
    pub fn catch_to_leave() -> io::Result<Self> {
        let stays_ignored = |wanted: &Signal| *wanted == Signal::SIGHUP && ignored() & (1 << (Signal::SIGHUP as u32 - 1)) != 0;
        let all = TO_LEAVE.into_iter().chain(SWALLOWED).chain([Signal::SIGTSTP]);
        let wanted = all.filter(|wanted| !stays_ignored(wanted));
        let streams = wanted.map(|wanted| Ok((wanted, signal(SignalKind::from_raw(wanted as i32))?)));
        Ok(Signals(streams.collect::<io::Result<_>>()?))
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            let mut ready = self.0.iter_mut().filter_map(|(signal, stream)| stream.poll_recv(context).is_ready().then_some(*signal));
            ready.next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// Gives a signal to the program, if it is meant for it and has not reached it by itself.
pub fn pass_on(pid: u32, signal: Signal) {
    let meant = PASSED_ON.contains(&signal) || FROM_KEYS.contains(&signal) && !in_foreground();
    if let (true, Ok(pid)) = (meant && pid != 0, i32::try_from(pid)) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Whether the terminal's keys reach hound's process group.
fn in_foreground() -> bool {
    let (input, errors) = (io::stdin(), io::stderr());
    let ours = |terminal: BorrowedFd<'_>| terminal.is_terminal() && tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp());
    ours(input.as_fd()) || ours(errors.as_fd())
}

/// The recording is complete: from now on signals do to hound what they do to any program. The event loop's handlers would stay for good,
/// and nobody could end a report that takes long.
#[expect(unsafe_code, reason = "sets signals to their default action")]
pub fn let_go() {
    let caught = procfs::process::Process::myself().and_then(|own| own.status()).map_or(0, |status| status.sigcgt);
    for signal in TO_LEAVE.into_iter().chain([Signal::SIGTSTP]).filter(|signal| caught & (1 << (*signal as u32 - 1)) != 0) {
        // SAFETY: installs no handler; the default action runs no code of ours.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    }
}

/// The signals that hound was started with ignored, as bits.
fn ignored() -> u64 {
    procfs::process::Process::myself().and_then(|own| own.status()).map_or(0, |status| status.sigign)
}
