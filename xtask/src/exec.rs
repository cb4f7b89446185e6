//! Running other programs: standard input is always empty, so that nothing can ever wait for an answer.

use anyhow::{Context, Result, bail};
use std::env;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Runs a command in sight of the user, its command line shown first, and returns how it ended.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    eprintln!("+ {}", shown(command));
    command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {}", shown(command)))
}

/// Runs a command in sight of the user; its failure is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let ended = status(command)?;
    if !ended.success() {
        bail!("{} failed ({ended})", shown(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed; its failure is an error that quotes the last line it had to say.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("{} failed ({}): {}", shown(command), done.status, said.trim().lines().last().unwrap_or("it said nothing"));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Waits for a child that must end within `limit`; one that does not is killed, which is an error.
pub fn ended(child: &mut Child, what: &str, limit: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {what}"))? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill(); // it may have ended just now
            let _ = child.wait();
            bail!("{what} did not end within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A child that does not outlive what it is for.
pub struct Ending(pub Child);

/// How long a child may take to end.
const END_LIMIT: Duration = Duration::from_secs(60);

impl Drop for Ending {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // hound passes the signal on to what it has launched, and completes its capture.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = ended(&mut self.0, "a child", END_LIMIT);
    }
}

/// Waits until a server accepts connections on a socket; an error if the child ends before, or `limit` passes.
pub fn listening(socket: &Path, server: &mut Child, what: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while UnixStream::connect(socket).is_err() {
        if let Some(status) = server.try_wait().with_context(|| format!("cannot wait for {what}"))? {
            bail!("{what} ended before it listened ({status})");
        }
        if Instant::now() > deadline {
            let _ = server.kill();
            let _ = server.wait();
            bail!("{what} did not listen within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A program's place in `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A command line as it would be typed.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_typed_again() {
        let mut command = Command::new("g++");
        command.args(["-O2", "a file.cpp", "it's", ""]);
        assert_eq!(shown(&command), r"g++ -O2 'a file.cpp' 'it'\''s' ''");
    }
}
