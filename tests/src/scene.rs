//! A program that allocates all along and takes orders through a file, and hound sessions on it with sockets in a place of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries;
use crate::capture::Capture;
use crate::compile::{Build, Program};
use crate::process::{self, Outcome, Running, wait_until};

/// A program that waits for orders, and a place for captures and sockets.
pub struct Scene {
    /// Its files.
    pub dir: TempDir,
    /// The program.
    pub target: Option<Running>,
}

impl Scene {
    /// Starts it.
    pub fn start() -> Scene {
        Scene::of(&mut Command::new(Program::new("attached.c", Build::Optimised).path()))
    }

    /// Of the program, however it is started. Every user may write into its place.
    pub fn of(command: &mut Command) -> Scene {
        let dir = TempDir::new().expect("a temporary directory can be made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("our own folder");
        let target = process::start(command.arg(dir.path().join("control")));
        target.wait_for_output("ready");
        Scene { dir, target: Some(target) }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.target.as_ref().expect("it runs").pid.as_raw()
    }

    /// Gives an order.
    pub fn order(&self, letter: &str) {
        fs::write(self.dir.path().join("control"), letter).expect("room for a letter");
    }

    /// Where the capture goes.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("capture.hound")
    }

    /// hound, with its sockets in this place.
    pub fn hound(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binaries::hound());
        command.args(args).env("XDG_RUNTIME_DIR", self.dir.path());
        command
    }

    /// hound with `-p` and the target's number behind the first argument.
    pub fn on_target(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.hound(&[name, "-p", &self.pid().to_string()]);
        command.args(args);
        command
    }

    /// Runs hound on the target to its end.
    pub fn ask(&self, name: &str, args: &[&str]) -> Outcome {
        process::run(&mut self.on_target(name, args))
    }

    /// Attaches in full mode, and waits until events come in.
    ///
    /// # Panics
    /// If none do.
    pub fn attach(&self, args: &[&str]) -> Running {
        let hound = process::start(self.on_target("attach", &["--mode", "full", "-o"]).arg(self.file()).args(args));
        assert!(
            wait_until(|| self.status()["events"].as_u64().is_some_and(|events| events > 0)),
            "no events: {}",
            self.ask("status", &[]).out()
        );
        hound
    }

    /// The session's status, null if there is none.
    pub fn status(&self) -> Value {
        let outcome = process::run(&mut self.hound(&["status", "--format", "json"]));
        let all: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
        all["sessions"].as_array().and_then(|all| all.iter().find(|one| one["pid"] == self.pid()).cloned()).unwrap_or(Value::Null)
    }

    /// The capture's report.
    pub fn report(&self) -> Value {
        let outcome = Capture { path: self.file() }.ask("report", &["--all", "--format", "json"]);
        serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {}", outcome.err()))
    }

    /// The capture is whole, and its end is this.
    pub fn must_end(&self, how: &str) -> Value {
        let capture = Capture { path: self.file() };
        let check = capture.check();
        assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
        let info: Value = serde_json::from_slice(&capture.ask("info", &["--format", "json"]).stdout).expect("JSON");
        assert_eq!(info["end"]["how"], how);
        assert_eq!(info["lost_events"], 0);
        info
    }

    /// The target works on as before, and ends as it would have.
    pub fn must_end_by_itself(mut self) {
        self.order("e");
        let outcome = self.target.take().expect("it runs").finish();
        assert_eq!(outcome.shell_status(), 7, "{}", outcome.err());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(target) = &self.target {
            let _ = kill(target.pid, Signal::SIGKILL); // it may have ended
        }
    }
}
