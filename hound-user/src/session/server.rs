//! The growing capture over TCP (`ENABLE_SERVER`, `--server`): every client gets it from its beginning, and then what is added to it, to the
//! end. In hound, never in the target.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::pipeline::Progress;

/// The documented port.
pub const BASE_PORT: u16 = 8100;
/// Ports that are tried from the given one on, as documented.
const PORTS: u16 = 100;
/// Clients at a time; more are turned away.
const CLIENTS: usize = 16;
/// A client that takes nothing for so long is left alone: hound must not hang for it.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
const PIECE: usize = 256 * 1024;
/// What an announcement begins with: the name and version of what follows, words with a blank between, the program's name last.
const GREETING: &str = "hound-capture 1 ";

/// Whether and how a capture is to be had while it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serve {
    /// The first port that is tried.
    pub port: u16,
    /// Say so on the network, to this port.
    pub announce: bool,
}

/// At work.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    progress: Arc<Progress>,
    /// The capture is complete.
    complete: AtomicBool,
    clients: AtomicUsize,
}

impl Server {
    /// Of a capture. `may_begin`: from when on it listens; `pid`, `name`: whose it is.
    pub fn start(
        serve: Serve,
        path: &Path,
        progress: Arc<Progress>,
        (pid, name): (u32, String),
        may_begin: impl Fn() -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        let shared =
            Arc::new(Shared { path: std::path::absolute(path)?, progress, complete: AtomicBool::new(false), clients: AtomicUsize::new(0) });
        let own = Arc::clone(&shared);
        let body = move || {
            while !may_begin() {
                if own.complete.load(Ordering::Acquire) {
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
            if let Err(error) = own.serve(serve, pid, &name) {
                eprintln!("hound: the capture cannot be had over the network: {error:#}");
            }
        };
        Ok(Server { shared, thread: std::thread::Builder::new().name("hound-serve".into()).spawn(body)? })
    }

    /// The capture is complete: clients get the rest of it.
    pub fn finish(self) {
        self.shared.complete.store(true, Ordering::Release);
        let _ = self.thread.join(); // a panic was printed
        while self.shared.clients.load(Ordering::Acquire) > 0 {
            std::thread::sleep(LOOK_EVERY); // each ends: it takes what there is, or is left alone
        }
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, serve: Serve, pid: u32, name: &str) -> anyhow::Result<()> {
        let (listener, port) = listen(serve.port)?;
        eprintln!("hound: the capture of process {pid} can be had at TCP port {port}: `hound gather HOST:{port}`");
        let announcer = serve.announce.then(Announcer::open).transpose().unwrap_or_else(|error| {
            eprintln!("hound: it is not announced: {error:#}");
            None
        });
        let said = format!("{GREETING}{port} {pid} {name}");
        let mut next = Instant::now();
        while !self.complete.load(Ordering::Acquire) {
            if let Some(announcer) = &announcer
                && Instant::now() >= next
            {
                announcer.say(&said, serve.port);
                next = Instant::now() + ANNOUNCE_EVERY;
            }
            match listener.accept() {
                Ok((stream, from)) => self.admit(stream, from),
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
        Ok(())
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, from: SocketAddr) {
        if self.clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
            self.clients.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let own = Arc::clone(self);
        let body = move || {
            if let Err(error) = own.send(stream) {
                eprintln!("hound: {from} has not got the whole capture: {error:#}");
            }
            own.clients.fetch_sub(1, Ordering::AcqRel);
        };
        if std::thread::Builder::new().name("hound-send".into()).spawn(body).is_err() {
            self.clients.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Only what is whole is sent while the capture grows: where the disk is full, a piece is taken back.
    fn send(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut file = File::open(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        let (mut sent, mut piece) = (0, vec![0; PIECE]);
        loop {
            let complete = self.complete.load(Ordering::Acquire);
            let whole = if complete { u64::MAX } else { self.progress.bytes.load(Ordering::Acquire) };
            let wanted = usize::try_from(whole - sent).unwrap_or(PIECE).min(PIECE);
            let read = file.read(&mut piece[..wanted])?;
            stream.write_all(&piece[..read]).context("it takes no more")?;
            sent += read as u64;
            match read {
                0 if complete => return Ok(()),
                0 => std::thread::sleep(LOOK_EVERY),
                _ => {}
            }
        }
    }
}

fn listen(first: u16) -> anyhow::Result<(TcpListener, u16)> {
    let ports = first..=first.saturating_add(PORTS - 1);
    let listener = ports.clone().find_map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok());
    let listener = listener.with_context(|| format!("no port from {} to {} is free", ports.start(), ports.end()))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

#[derive(Debug)]
struct Announcer(UdpSocket);

impl Announcer {
    fn open() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_broadcast(true)?;
        Ok(Announcer(socket))
    }

    /// Who does not hear it is none the worse.
    fn say(&self, what: &str, port: u16) {
        let _ = self.0.send_to(what.as_bytes(), (Ipv4Addr::BROADCAST, port));
    }
}

/// A capture that is to be had somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Where.
    pub address: SocketAddr,
    /// Whose it is.
    pub pid: u32,
    /// Its program.
    pub name: String,
}

/// Waits until one is announced; asks `goes_on` several times a second whether to.
///
/// # Errors
/// If the port cannot be listened at.
pub fn announced(port: u16, goes_on: impl Fn() -> bool) -> anyhow::Result<Option<Announced>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen at UDP port {port}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut bytes = [0; 512];
    while goes_on() {
        let Ok((read, from)) = socket.recv_from(&mut bytes) else { continue };
        if let Some(found) = parse(&bytes[..read], from) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn parse(said: &[u8], from: SocketAddr) -> Option<Announced> {
    let mut words = str::from_utf8(said).ok()?.strip_prefix(GREETING)?.splitn(3, ' ');
    let (port, pid, name) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?);
    // It comes from whoever likes to send it: the name is for a file's.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    Some(Announced { address: SocketAddr::new(from.ip(), port), pid, name: name.chars().take(64).map(plain).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_is_understood_and_nothing_else() {
        let from = "10.1.2.3:999".parse().unwrap();
        let found = parse(b"hound-capture 1 8101 4242 my ../server", from).unwrap();
        assert_eq!(found, Announced { address: "10.1.2.3:8101".parse().unwrap(), pid: 4242, name: "my_.._server".into() });
        for other in [&b""[..], b"hound-capture 2 8101 4242 a", b"hound-capture 1 81010 4242 a", b"hound-capture 1 8101", b"\xff\xfe"] {
            assert_eq!(parse(other, from), None);
        }
    }

    #[test]
    fn a_client_gets_what_there_is_and_what_comes_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture");
        let mut file = File::create(&path).unwrap();
        let progress = Arc::new(Progress::default());
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let add = |file: &mut File, range: std::ops::Range<usize>| {
            file.write_all(&bytes[range.clone()]).unwrap();
            progress.bytes.store(range.end as u64, Ordering::Release);
        };
        add(&mut file, 0..1_000_000);
        let shared = Arc::new(Shared {
            path: path.clone(),
            progress: Arc::clone(&progress),
            complete: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
        });
        let (listener, port) = listen(18_100).unwrap();
        let (_second, other) = listen(port).unwrap();
        assert!(other > port, "a port that is taken is passed over");
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (stream, from) = listener.accept().unwrap();
        shared.admit(stream, from);
        let mut got = vec![0; 1_000_000];
        client.read_exact(&mut got).unwrap();
        // What is not whole yet is not sent.
        file.write_all(b"torn").unwrap();
        file.set_len(1_000_000).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
        add(&mut file, 1_000_000..3_000_000);
        shared.complete.store(true, Ordering::Release);
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, bytes);
    }
}
