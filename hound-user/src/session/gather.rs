//! The other end of [`super::server`].

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::output;
use super::server::{self, Announced};
use super::signals::{self, Signals};

/// A host that is not there must not be waited for as long as the kernel would.
const TO_CONNECT: Duration = Duration::from_secs(10);
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What to take, and where to.
#[derive(Clone, Debug)]
pub struct Gather {
    /// Host and port; nothing: what is announced first.
    pub from: Option<String>,
    /// Where it goes; may hold placeholders.
    pub output: Option<OsString>,
    /// Where announcements are listened for.
    pub port: u16,
    /// Say nothing but what is wrong.
    pub quiet: bool,
}

/// Takes a capture until the connection ends, or a signal says to leave. Where it is; nothing if none came.
///
/// # Errors
/// If there is nobody, or the file cannot be written.
pub fn gather(wanted: &Gather) -> anyhow::Result<Option<PathBuf>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::catch_to_leave().context("cannot catch signals")?;
        let found = match &wanted.from {
            Some(from) => Found { address: from.clone(), ..named(from) },
            None => match first_announced(wanted, &mut signals).await? {
                Some(Announced { address, pid, name }) => Found { address: address.to_string(), name, pid },
                None => return Ok(None),
            },
        };
        receive(wanted, &found, &mut signals).await.map(Some)
    });
    signals::let_go();
    result
}

struct Found {
    address: String,
    name: String,
    pid: u32,
}

/// Without an announcement host and port stand for program and process.
fn named(from: &str) -> Found {
    let (host, port) = from.rsplit_once(':').unwrap_or((from, ""));
    Found { address: String::new(), name: host.replace('/', "_"), pid: port.parse().unwrap_or(0) }
}

async fn first_announced(wanted: &Gather, signals: &mut Signals) -> anyhow::Result<Option<Announced>> {
    if !wanted.quiet {
        eprintln!(
            "hound: waiting for a capture to be announced at UDP port {} (`hound run --server --announce`); Ctrl-C ends",
            wanted.port
        );
    }
    let goes_on = Arc::new(AtomicBool::new(true));
    let (port, own) = (wanted.port, Arc::clone(&goes_on));
    let mut found = tokio::task::spawn_blocking(move || server::announced(port, || own.load(Ordering::Relaxed)));
    loop {
        tokio::select! {
            found = &mut found => return found.context("listening failed")?,
            signal = signals.next() => if signals::is_to_leave(signal) { goes_on.store(false, Ordering::Relaxed) },
        }
    }
}

async fn receive(wanted: &Gather, found: &Found, signals: &mut Signals) -> anyhow::Result<PathBuf> {
    let address = &found.address;
    let cannot =
        || format!("cannot connect to '{address}'; give HOST:PORT as the recording hound said, and see whether a firewall is between");
    let connected = tokio::time::timeout(TO_CONNECT, TcpStream::connect(address)).await.with_context(cannot)?;
    let mut stream = connected.with_context(cannot)?;
    let template = wanted.output.clone().unwrap_or_else(|| output::DEFAULT_OUTPUT.into());
    let path = output::expand(&template, found.name.as_ref(), found.pid, output::now());
    let cannot_write = || format!("cannot write '{}'; choose another place with -o FILE", path.display());
    let mut file = std::fs::File::create(&path).with_context(cannot_write)?;
    if !wanted.quiet {
        eprintln!("hound: taking the capture from {address} into {}; Ctrl-C ends, and keeps what has come", path.display());
    }
    let (mut piece, mut bytes, mut said) = (vec![0; 256 * 1024], 0u64, Instant::now());
    loop {
        let read = tokio::select! {
            read = stream.read(&mut piece) => read,
            signal = signals.next() => if signals::is_to_leave(signal) { break } else { continue },
        };
        // A connection that breaks has brought what it has brought: the capture says by itself that it is cut off.
        let Ok(read @ 1..) = read else { break };
        file.write_all(&piece[..read]).with_context(cannot_write)?;
        bytes += read as u64;
        if !wanted.quiet && said.elapsed() > SAY_EVERY {
            said = Instant::now();
            eprintln!("hound: {:.1} MB so far", bytes as f64 / 1e6);
        }
    }
    Ok(path)
}
