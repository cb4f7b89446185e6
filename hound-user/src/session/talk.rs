//! How a running session is spoken to: a socket for each target, one line of JSON asked, one line answered.
//!
//! The sockets lie in a folder that only their owner may enter, and who connects must be that owner or root besides: a folder may have
//! been made by somebody else before.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use super::attach::Mode;

/// What a session is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Request {
    /// How it goes.
    Status,
    /// Detach and complete the capture.
    Detach {
        /// Take the library out of the target, too.
        unload: bool,
    },
    /// Record in another mode.
    Mode {
        /// Which.
        to: Mode,
    },
    /// Bring what was recorded into the file.
    Flush,
    /// Put a marker into the capture.
    Mark {
        /// What it says.
        text: String,
    },
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// How it goes.
    Status(Box<Status>),
    /// So many bytes of the capture hold all that was recorded before the question.
    Flushed {
        /// The capture.
        capture: PathBuf,
        /// Bytes.
        bytes: u64,
    },
    /// It is done.
    Done {
        /// The capture.
        capture: PathBuf,
    },
    /// It could not be done.
    Failed {
        /// Why, and what to do.
        why: String,
    },
}

/// A session at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)] // another version may say less
pub struct Status {
    /// The target; 0: the whole host, whose kernel's memory is recorded.
    pub pid: u32,
    /// Its command line.
    pub command: String,
    /// The hound that records.
    pub hound: u32,
    /// Who runs it.
    pub user: u32,
    /// Its version.
    pub version: String,
    /// The mode: "full", "sampled", "faults", "off", "launch", or "kernel".
    pub mode: String,
    /// Whether it records now, or is on its way in or out.
    pub state: String,
    /// The capture.
    pub capture: PathBuf,
    /// For how long it has recorded, in seconds.
    pub seconds: f64,
    /// Events stored.
    pub events: u64,
    /// Events a second, lately.
    pub events_per_second: f64,
    /// Bytes of the capture.
    pub capture_bytes: u64,
    /// Events lost.
    pub lost_events: u64,
    /// Bytes in blocks that were allocated since the attach and are alive; none if they come too fast to be counted beside,
    /// and in launch mode.
    pub live_bytes: Option<u64>,
    /// These blocks.
    pub live_blocks: Option<u64>,
    /// Resident bytes of the target.
    pub resident: u64,
    /// What recording costs the target, as a share of the processor time it uses: an estimate from the number of events.
    pub overhead: Option<f64>,
    /// Processor time of hound itself, in seconds.
    pub hound_cpu_seconds: f64,
    /// The longest that the target has stood still for hound, in milliseconds.
    pub longest_stall_ms: f64,
}

/// Another session records the target.
#[derive(Clone, Debug, PartialEq)]
pub struct Occupied {
    /// The target.
    pub pid: u32,
    /// Who records it.
    pub hound: u32,
    /// What it says.
    pub says: Said,
}

/// What a session that holds a target says of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// How it goes.
    Recording(Box<Status>),
    /// It can do nothing for who asks now: why.
    Failed(String),
    /// Nothing.
    Nothing,
}

impl std::fmt::Display for Occupied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((whom, by), hound) = (named(self.pid), self.hound);
        match &self.says {
            Said::Failed(why) => write!(f, "hound process {hound} holds {whom}, and says: {why}; try again in a moment"),
            Said::Recording(status) => {
                let (since, capture) = (short(Duration::from_secs_f64(status.seconds.max(0.0))), status.capture.display());
                let ends = if status.mode == "launch" { "it was started so".into() } else { format!("`hound detach {by}` ends it") };
                write!(
                    f,
                    "{whom} is being recorded already, for {since} by hound process {hound} into '{capture}'; `hound snapshot {by}` reports on \
                     that, {ends}"
                )
            }
            Said::Nothing => write!(
                f,
                "{whom} is being recorded already, by hound process {hound}, which does not answer: if it was stopped, \
                 `kill -CONT {hound}` lets it go on; `kill -KILL {hound}` ends it{}",
                if self.pid & KERNEL == 0 { format!(", and `hound detach {by}` then repairs what it leaves") } else { String::new() }
            ),
        }
    }
}

/// A time as people say it.
pub fn short(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

impl std::error::Error for Occupied {}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Takes the answer; who asked may be gone.
    pub answer: std::sync::mpsc::Sender<Answer>,
}

/// A session's socket. Taken away when dropped.
#[derive(Debug)]
pub struct Talk {
    path: PathBuf,
    /// Held once by each conversation, by the listener, and here.
    busy: Arc<()>,
    /// There is somebody to answer.
    ready: Arc<AtomicBool>,
    door: Door,
}

/// Longest line.
const LINE_BYTES: u64 = 64 * 1024;
/// A peer that says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A detach waits for the target's threads, and completes the capture.
const ANSWER_PATIENCE: Duration = Duration::from_secs(600);

impl Talk {
    /// Opens the socket for a session on `pid`.
    ///
    /// # Errors
    /// [`Occupied`] if another session answers there; others if the socket cannot be made.
    pub fn open(folder: &Path, pid: u32, asked: UnboundedSender<Asked>) -> anyhow::Result<Self> {
        prepare(folder)?;
        let path = socket(folder, pid);
        // Two hounds at once: one looks and binds after the other. The lock goes with the descriptor.
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))
            .context("cannot lock the sockets' folder")?;
        take(&lock, Instant::now() + PATIENCE).with_context(|| format!("cannot lock '{}'", folder.join("lock").display()))?;
        must_be_free(std::slice::from_ref(&folder), pid)?;
        sweep(folder);
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot make the socket '{}'", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context("cannot protect the session's socket")?;
        let (busy, ready) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        let (conversations, answers) = (Arc::clone(&busy), Arc::clone(&ready));
        std::thread::Builder::new().name("hound-talk".into()).spawn(move || serve(&listener, &asked, &conversations, &answers))?;
        let door = Door { socket: path.clone(), others: Arc::default() };
        Ok(Talk { path, busy, ready, door })
    }

    /// For further processes of the session.
    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// From now on requests are answered; before, who asks is told to come again.
    pub fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }
}

/// Lets a session be found under further processes of its own.
#[derive(Clone, Debug)]
pub struct Door {
    socket: PathBuf,
    others: Arc<Mutex<BTreeMap<u32, PathBuf>>>,
}

impl Door {
    /// This process is of the session, too.
    ///
    /// # Errors
    /// If another session holds it.
    pub fn also_of(&self, pid: u32) -> Result<(), Occupied> {
        let Some(folder) = self.socket.parent() else { return Ok(()) };
        let path = socket(folder, pid);
        if path == self.socket {
            return Ok(());
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if others.contains_key(&pid) {
            return Ok(());
        }
        must_not_be_held(pid)?;
        // What an ended session has left, if anything.
        let _ = std::fs::remove_file(&path);
        // Without it the session is found under its first process only.
        if std::os::unix::fs::symlink(&self.socket, &path).is_ok() {
            others.insert(pid, path);
        }
        Ok(())
    }

    /// This process has ended.
    pub fn no_longer_of(&self, pid: u32) {
        if let Some(path) = self.others.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let others = std::mem::take(&mut *self.door.others.lock().unwrap_or_else(PoisonError::into_inner));
        others.values().for_each(|path| {
            let _ = std::fs::remove_file(path);
        });
        let _ = std::fs::remove_file(&self.path);
        // Who was just answered must hear it before the process ends.
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&self.busy) > 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Where a session of this user puts its socket: the folder that the system gives each user for such things, or, where there is none, one
/// of the user's own (`prepare` sees to it that it is).
pub fn own_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        return PathBuf::from(folder).join("hound");
    }
    match nix::unistd::geteuid().as_raw() {
        0 => "/run/hound".into(),
        user => [format!("/run/user/{user}/hound"), format!("{PLAIN}{user}")]
            .map(PathBuf::from)
            .into_iter()
            .find(|folder| folder.parent().is_some_and(Path::is_dir))
            .unwrap_or_default(),
    }
}

/// The folder of a user for whom the system has none, but for the user's number.
const PLAIN: &str = "/tmp/hound-";

/// Where sessions may be: this user's own folder first. Root sees everybody's.
fn folders() -> Vec<PathBuf> {
    let mut folders = vec![own_folder(), "/run/hound".into()];
    let users = std::fs::read_dir("/run/user").into_iter().flatten().flatten();
    folders.extend(users.map(|user| user.path().join("hound")));
    // Only what belongs to the user it is called after: in /tmp anybody can make a folder.
    let plain = std::fs::read_dir("/tmp").into_iter().flatten().flatten().filter(|entry| {
        let path = entry.path();
        let user = path.to_str().and_then(|path| path.strip_prefix(PLAIN)).and_then(|user| user.parse().ok());
        user.is_some() && entry.metadata().is_ok_and(|meta| meta.is_dir() && Some(meta.uid()) == user)
    });
    folders.extend(plain.map(|entry| entry.path()));
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Beyond all process ids: a session on the kernel's memory, of the process in the other bits, or of the whole host.
const KERNEL: u32 = 1 << 31;

/// What stands for the process id where a session records the kernel's memory, of this process' making or of all.
pub fn kernel_session(pid: Option<u32>) -> u32 {
    KERNEL | pid.unwrap_or(0)
}

/// What a session records, for people; and what names it to `hound detach` and its like.
fn named(target: u32) -> (String, String) {
    match (target & KERNEL, target & !KERNEL) {
        (0, pid) => (format!("process {pid}"), format!("-p {pid}")),
        (_, 0) => ("the kernel's memory".into(), "--kernel".into()),
        (_, pid) => (format!("the kernel's memory of process {pid}"), format!("--kernel -p {pid}")),
    }
}

fn socket(folder: &Path, target: u32) -> PathBuf {
    folder.join(match (target & KERNEL, target & !KERNEL) {
        (0, pid) => format!("{pid}.sock"),
        (_, pid) => format!("kernel-{pid}.sock"),
    })
}

/// The other way round.
fn target_of(socket: &Path) -> Option<u32> {
    let name = socket.file_stem()?.to_str()?;
    match name.strip_prefix("kernel-") {
        Some(pid) => Some(KERNEL | pid.parse::<u32>().ok()?),
        None => name.parse().ok(),
    }
}

/// Whoever has the lock only looks and binds: one that has it for long stands still, and must not hold others up for ever.
fn take(lock: &File, deadline: Instant) -> io::Result<()> {
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.into()),
            Ok(()) => return Ok(()),
        }
    }
}

/// Whoever listens holds the target, also one that stands still or is on its way in or out.
fn must_be_free(folders: &[impl AsRef<Path>], pid: u32) -> Result<(), Occupied> {
    folders.iter().find_map(|folder| held(&socket(folder.as_ref(), pid), pid)).map_or(Ok(()), Err)
}

/// Who listens at a socket, and what it says.
fn held(socket: &Path, pid: u32) -> Option<Occupied> {
    let hound = listener(socket)?;
    let says = match ask(socket, &Request::Status) {
        Ok(Answer::Status(status)) => Said::Recording(status),
        Ok(Answer::Failed { why }) => Said::Failed(why),
        _ => Said::Nothing,
    };
    Some(Occupied { pid, hound, says })
}

/// Whether a session holds the target, of whichever user as far as they can be seen.
///
/// # Errors
/// [`Occupied`] if one does.
pub fn must_not_be_held(pid: u32) -> Result<(), Occupied> {
    must_be_free(&folders(), pid)
}

/// Takes the sockets of killed sessions away. Under the folder's lock: a socket that is just being made is not listened at yet.
fn sweep(folder: &Path) {
    let sockets = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for socket in sockets.filter(|path| path.extension().is_some_and(|extension| extension == "sock")) {
        // A link to a socket that is gone is refused so, too, or is not found.
        let is_over = |kind| matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        if UnixStream::connect(&socket).is_err_and(|error| is_over(error.kind())) {
            let _ = std::fs::remove_file(&socket);
        }
    }
}

fn prepare(folder: &Path) -> anyhow::Result<()> {
    let cannot =
        || format!("cannot make the folder '{}' for the session's socket; set XDG_RUNTIME_DIR to a folder of yours", folder.display());
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).with_context(cannot),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(folder).with_context(cannot)?;
    let own = nix::unistd::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
        bail!("'{}' is not a folder that user {own} alone may enter; remove it, or set XDG_RUNTIME_DIR", folder.display());
    }
    Ok(())
}

/// Takes connections until the session is over: the process ends then.
fn serve(listener: &UnixListener, asked: &UnboundedSender<Asked>, busy: &Arc<()>, ready: &Arc<AtomicBool>) {
    for stream in listener.incoming().flatten() {
        let (asked, busy, ready) = (asked.clone(), Arc::clone(busy), Arc::clone(ready));
        // A thread each: a detach takes its time, and a status must not wait for it.
        let _ = std::thread::Builder::new().name("hound-talk".into()).spawn(move || {
            let answer = converse(&stream, &asked, &ready).unwrap_or_else(|error| Answer::Failed { why: error.to_string() });
            let _ = say(&stream, &answer);
            drop(busy);
        });
    }
}

fn converse(stream: &UnixStream, asked: &UnboundedSender<Asked>, ready: &AtomicBool) -> anyhow::Result<Answer> {
    let (peer, own) = (peer(stream)?.uid, nix::unistd::geteuid().as_raw());
    if peer != own && peer != 0 {
        bail!("the session belongs to user {own}; only that user and root may talk to it");
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let request: Request = hear(stream)?;
    if !ready.load(Ordering::Relaxed) {
        bail!("it is on its way into the program");
    }
    let (answer, answered) = std::sync::mpsc::channel();
    asked.send(Asked { request, answer }).map_err(|_| anyhow::anyhow!("the session is over"))?;
    answered.recv().context("the session ended before it could answer")
}

/// Who is at the other end.
#[expect(unsafe_code, reason = "SO_PEERCRED has no safe wrapper here")]
fn peer(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `peer`.
    let done =
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut length) };
    if done == 0 { Ok(peer) } else { Err(io::Error::last_os_error()) }
}

/// The process that listens at a socket, if one does: it need not run at the moment.
fn listener(socket: &Path) -> Option<u32> {
    let peer = peer(&UnixStream::connect(socket).ok()?).ok()?;
    Some(peer.pid as u32)
}

fn say<T: Serialize>(mut stream: &UnixStream, what: &T) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

fn hear<T: for<'a> Deserialize<'a>>(stream: &UnixStream) -> anyhow::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES)).read_line(&mut line).context("nothing was said in time")?;
    serde_json::from_str(&line).context("that was not understood; is it another version of hound?")
}

fn ask(socket: &Path, request: &Request) -> anyhow::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    say(&stream, request)?;
    let patience = if *request == Request::Status { PATIENCE } else { ANSWER_PATIENCE };
    stream.set_read_timeout(Some(patience))?;
    hear(&stream)
}

/// Asks the session that records `pid`; `None` if there is none.
///
/// # Errors
/// If there is one, and it does not answer or cannot do it.
pub fn ask_session(pid: u32, request: &Request) -> anyhow::Result<Option<Answer>> {
    ask_in(&folders(), pid, request)
}

fn ask_in(folders: &[PathBuf], pid: u32, request: &Request) -> anyhow::Result<Option<Answer>> {
    for folder in folders {
        match ask(&socket(folder, pid), request) {
            Ok(Answer::Failed { why }) => bail!(why),
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => match error.downcast_ref::<io::Error>().map(io::Error::kind) {
                // Nobody there, or the socket of a session that was killed.
                Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
                Some(io::ErrorKind::PermissionDenied) if folder != &own_folder() => {}
                _ => {
                    let says = Said::Nothing;
                    let silent = listener(&socket(folder, pid)).map(|hound| anyhow::Error::from(Occupied { pid, hound, says }));
                    return Err(silent.unwrap_or(error));
                }
            },
        }
    }
    Ok(None)
}

/// All sessions (or those on `pid`), and what is the matter with those that do not say how it goes.
pub fn sessions(pid: Option<u32>) -> (Vec<Status>, Vec<String>) {
    let all = folders().into_iter().flat_map(std::fs::read_dir).flatten().flatten().map(|entry| entry.path()).filter_map(|path| {
        let target = target_of(&path)?;
        pid.is_none_or(|pid| pid == target & !KERNEL).then_some((target, path))
    });
    let all: Vec<(u32, PathBuf)> = all.collect();
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    // At once: who stands still must not keep who asks waiting for each.
    std::thread::scope(|scope| {
        let asked: Vec<_> = all.iter().map(|(pid, path)| scope.spawn(|| held(path, *pid))).collect();
        for session in asked.into_iter().filter_map(|thread| thread.join().ok()?) {
            match session {
                Occupied { says: Said::Recording(status), .. } => found.push(*status),
                other => silent.push(other.to_string()),
            }
        }
    });
    found.sort_by_key(|status: &Status| status.pid);
    found.dedup_by_key(|status| (status.pid, status.hound));
    (found, silent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    /// A session that answers everything with its own number.
    fn session(folder: &Path, pid: u32) -> anyhow::Result<Talk> {
        let (asked, mut requests) = unbounded_channel::<Asked>();
        let talk = Talk::open(folder, pid, asked)?;
        talk.ready();
        std::thread::spawn(move || {
            while let Some(Asked { request, answer }) = requests.blocking_recv() {
                let _ = answer.send(match request {
                    Request::Status => Answer::Status(Box::new(Status { pid, hound: std::process::id(), ..Status::default() })),
                    Request::Mark { text } => Answer::Done { capture: text.into() },
                    Request::Mode { to } => Answer::Failed { why: to.name().into() },
                    Request::Flush => Answer::Flushed { capture: "c".into(), bytes: 12 },
                    Request::Detach { .. } => Answer::Failed { why: "it will not".into() },
                });
            }
        });
        Ok(talk)
    }

    #[test]
    fn requests_are_answered_and_refusals_are_errors() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("hound");
        let _talk = session(&folder, 4242).expect("a free socket");
        let folders = [PathBuf::from("/nowhere"), folder.clone()];
        let ask = |request: &Request| ask_in(&folders, 4242, request);
        assert!(matches!(ask(&Request::Status), Ok(Some(Answer::Status(status))) if status.pid == 4242));
        let mark = Request::Mark { text: "läuft \"so\"\n".into() };
        assert_eq!(ask(&mark).ok().flatten(), Some(Answer::Done { capture: "läuft \"so\"\n".into() }));
        assert_eq!(ask(&Request::Flush).ok().flatten(), Some(Answer::Flushed { capture: "c".into(), bytes: 12 }));
        assert_eq!(ask(&Request::Detach { unload: true }).expect_err("refused").to_string(), "it will not");
        assert!(matches!(ask_in(&folders, 4243, &Request::Status), Ok(None)));
        let modes = [folder.clone(), socket(&folder, 4242)].map(|path| path.metadata().expect("it is there").mode() & 0o777);
        assert_eq!(modes, [0o700, 0o600]);
    }

    #[test]
    fn a_second_session_on_one_target_is_told_and_a_dead_ones_socket_is_taken() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("hound");
        let first = session(&folder, 7).expect("a free socket");
        let text = session(&folder, 7).expect_err("taken").to_string();
        assert!(text.contains("being recorded already") && text.contains(&std::process::id().to_string()), "{text}");
        assert!(session(&folder, 8).is_ok(), "another target is free");
        drop(first);
        // A socket that nobody listens at, as a killed session leaves it.
        drop(UnixListener::bind(socket(&folder, 9)).expect("a free name"));
        drop(UnixListener::bind(socket(&folder, 10)).expect("a free name"));
        assert!(session(&folder, 9).is_ok());
        assert!(!socket(&folder, 10).exists(), "what killed sessions leave is swept up");
    }

    #[test]
    fn a_session_that_stands_still_keeps_its_target() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("hound");
        prepare(&folder).expect("a new folder");
        let held = UnixListener::bind(socket(&folder, 7)).expect("a free name");
        // It hangs up instead of answering.
        let silent = std::thread::spawn(move || drop((held.accept(), held.accept())));
        let text = session(&folder, 7).expect_err("taken").to_string();
        assert!(text.contains("does not answer") && text.contains(&format!("kill -CONT {}", std::process::id())), "{text}");
        silent.join().expect("it hangs up twice");
    }

    #[test]
    fn who_asks_too_early_is_told_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("hound");
        let (asked, _nobody_hears) = unbounded_channel::<Asked>();
        let _talk = Talk::open(&folder, 7, asked).expect("a free socket");
        let text = session(&folder, 7).expect_err("taken").to_string();
        assert!(text.contains("on its way into the program") && text.contains("try again"), "{text}");
    }

    #[test]
    fn times_are_said_short() {
        assert_eq!([3, 119, 120, 7199, 7200].map(|s| short(Duration::from_secs(s))), ["3 s", "119 s", "2 min", "119 min", "2 h"]);
    }

    #[test]
    fn what_is_no_request_is_answered_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().join("hound");
        let _talk = session(&folder, 7).expect("a free socket");
        let mut stream = UnixStream::connect(socket(&folder, 7)).expect("it listens");
        stream.write_all(b"GET / HTTP/1.0\r\n").expect("it reads");
        assert!(matches!(hear(&stream), Ok(Answer::Failed { why }) if why.contains("not understood")));
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("our own folder");
        assert!(session(folder.path(), 7).is_err());
    }
}
