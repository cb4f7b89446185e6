//! Where the services live: directories that are removed afterwards, ports that nobody else has, and processes that end with this one.

use super::subject::Running;
use crate::exec::{self, Ending};
use crate::programs;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Debian's user `nobody`.
pub const NOBODY: u32 = 65534;

/// How long a service may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The directory of all services, below the system's temporary one, for its users must get there.
pub struct Site {
    at: PathBuf,
    sweeper: Child,
    ports: Mutex<BTreeSet<u16>>,
}

impl Site {
    /// Makes it, and starts who removes it. That one waits for the end of its input, which comes with the end of this program, whatever ends it.
    pub fn new() -> Result<Self> {
        let at = std::env::temp_dir().join(format!("hound-verdicts-{}", std::process::id()));
        fs::create_dir(&at).with_context(|| format!("cannot create {}", at.display()))?;
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).with_context(|| format!("cannot open {} to others", at.display()))?;
        // Services that are told to end write a little longer.
        let script = "trap '' INT TERM HUP; read -r line; for time in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- \"$1\" && exit; sleep 1; done";
        let sweeper = Command::new("/bin/sh").args(["-c", script, "sweeper"]).arg(&at).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
        let sweeper = sweeper.context("cannot start who cleans up")?;
        Ok(Self { at, sweeper, ports: Mutex::default() })
    }

    /// Removes it.
    pub fn leave(mut self) -> Result<()> {
        drop(self.sweeper.stdin.take());
        exec::ended(&mut self.sweeper, "who cleans up", PATIENCE)?;
        anyhow::ensure!(!self.at.exists(), "{} could not be removed", self.at.display());
        Ok(())
    }

    /// A place for one service.
    pub fn ground(&self, name: &str, files: &Path, time: Duration) -> Result<Ground<'_>> {
        let at = self.at.join(name);
        fs::create_dir(&at).with_context(|| format!("cannot create {}", at.display()))?;
        Ok(Ground { site: self, at, files: files.to_path_buf(), time })
    }
}

/// The place of one service.
pub struct Ground<'a> {
    site: &'a Site,
    /// A directory of its own.
    pub at: PathBuf,
    /// What it says, and what is kept.
    pub files: PathBuf,
    /// For how long it is recorded.
    pub time: Duration,
}

impl Ground<'_> {
    /// A port of this machine alone that is free, and was not given out before.
    pub fn port(&self) -> Result<u16> {
        let mut given = self.site.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..1000 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("there is no port")?;
            let port = listener.local_addr().context("a port has no number")?.port();
            if given.insert(port) {
                return Ok(port);
            }
        }
        bail!("all ports are taken")
    }

    /// For how long it is recorded, as programs of ours are told.
    pub fn seconds(&self) -> String {
        format!("{:.1}", self.time.as_secs_f64())
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let at = self.at.join(name);
        fs::write(&at, text).with_context(|| format!("cannot write {}", at.display()))?;
        Ok(at)
    }

    /// Gives the directory to another user than root.
    pub fn give(&self, name: &str, user: u32) -> Result<PathBuf> {
        let at = self.at.join(name);
        fs::create_dir_all(&at).with_context(|| format!("cannot create {}", at.display()))?;
        std::os::unix::fs::chown(&at, Some(user), None).with_context(|| format!("cannot give {} away", at.display()))?;
        Ok(at)
    }

    /// Starts a process that ends with this one, or with the thread that asks for it. What it says goes to `NAME.out` and `NAME.err`.
    pub fn start(&self, name: &str, command: &Command) -> Result<Ending> {
        self.start_with(name, command, Stdio::null(), None)
    }

    /// The same, with an input and perhaps an output.
    pub fn start_with(&self, name: &str, command: &Command, stdin: Stdio, stdout: Option<Stdio>) -> Result<Ending> {
        let create = |kind: &str| {
            let at = self.files.join(format!("{name}.{kind}"));
            File::create(&at).with_context(|| format!("cannot create {}", at.display()))
        };
        let stdout = match stdout {
            Some(stdout) => stdout,
            None => create("out")?.into(),
        };
        let child = ends_with_this(command).stdin(stdin).stdout(stdout).stderr(create("err")?).spawn();
        Ok(Ending(child.with_context(|| format!("cannot start {}", exec::shown(command)))?))
    }

    /// What a process said on standard error, its last lines.
    pub fn said(&self, name: &str) -> String {
        let said = fs::read(self.files.join(format!("{name}.err"))).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = said.trim().lines().collect();
        lines[lines.len().saturating_sub(5)..].join("; ")
    }

    /// A service on a port: starts it, waits until it listens, and says what shall be its load.
    pub fn serve(&self, command: &Command, port: u16, load: &str, rate: u32, beside: Option<u16>) -> Result<Running> {
        let mut server = self.start("server", command)?;
        self.listens(port, &mut server.0)?;
        Ok(self.running(server, load, &port.to_string(), rate, beside))
    }

    /// Waits until a port is answered.
    pub fn listens(&self, port: u16, server: &mut Child) -> Result<()> {
        self.awaited("the service listens", server, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
    }

    /// Waits until something is so; it is an error if the server ends before.
    pub fn awaited(&self, what: &str, server: &mut Child, mut so: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !so() {
            if let Some(status) = server.try_wait().context("cannot wait for the service")? {
                bail!("the service ended ({status}): {}", self.said("server"));
            }
            if Instant::now() > deadline {
                bail!("waited {} s until {what}: {}", PATIENCE.as_secs(), self.said("server"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Files of different sizes, for the servers of files.
    pub fn pages(&self) -> Result<String> {
        let folder = self.at.join("pages");
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for number in 0..40 {
            let text = format!("<p>line {number}</p>\n").repeat(10 + 20 * number);
            fs::write(folder.join(format!("page{number}.html")), text).context("cannot write a page")?;
        }
        Ok(folder.display().to_string())
    }

    /// A postgres that has the tables of the load, and its port. It refuses to run as root.
    pub fn postgres(&self, name: &str) -> Result<(Ending, u16)> {
        let (port, data) = (self.port()?, self.give("data", NOBODY)?);
        let folder = newest_postgres()?;
        let as_nobody = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--pdeathsig", "TERM", "--"]);
            command.arg(folder.join(program)).current_dir(&self.at);
            command
        };
        let mut init = as_nobody("initdb");
        init.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "--no-sync", "--locale", "C", "--encoding", "UTF8"]);
        exec::output(&mut init)?;
        let mut command = as_nobody("postgres");
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "autovacuum_naptime=5s"]);
        let mut server = self.start(name, &command)?;
        self.listens(port, &mut server.0)?;
        let mut tables = Command::new(programs::python());
        tables.arg(programs::source("verdicts_load.py")).args(["tables", &port.to_string()]);
        // It listens a moment before it lets anybody in.
        self.awaited("postgres lets clients in", &mut server.0, || exec::output(&mut tables).is_ok())?;
        Ok((server, port))
    }

    /// A service that listens, and its load: a kind that `verdicts_more_load.py` knows, and requests a second.
    pub fn running(&self, server: Ending, kind: &str, port: &str, rate: u32, beside: Option<u16>) -> Running {
        let counted = self.files.join("counted");
        let mut command = Command::new(programs::python());
        command.arg(programs::source("verdicts_more_load.py")).args([kind, port, &rate.to_string()]).arg(&counted);
        command.args(beside.map(|port| port.to_string()));
        let pid = server.0.id();
        Running { load: None, then: Some(command), server, behind: None, pid, counted: Some(counted) }
    }
}

/// The same command, whose process the kernel ends when the thread that starts it has ended. In the place of `setpriv` comes the command itself.
fn ends_with_this(command: &Command) -> Command {
    let mut ending = Command::new("setpriv");
    ending.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => ending.env(name, value),
            None => ending.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        ending.current_dir(folder);
    }
    ending
}

/// Debian has its programs in a folder of each version.
fn newest_postgres() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("there is no postgres")?.flatten();
    let number = |path: &Path| path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| number(path)).context("there is no postgres")?;
    Ok(newest.join("bin"))
}

/// The only child of a process that does the work for it, once it is there.
pub fn child_of(pid: u32) -> Option<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    list.split_whitespace().next()?.parse().ok()
}
