//! `cargo xtask demo`: from a fresh clone to a true leak report in one command.
//!
//! Two programs run under hound at the same time: redis under load, which does not leak, and a small service of ours, which does. The
//! service counts its own leak, so that the last lines can compare what hound says with what is true.

use crate::setup::{self, Purpose};
use crate::{Verdict, compile, exec, json, place, programs};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a server may take to listen, and to end once it is told to; generous, for a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// The function of `leaky_service.cpp` that leaks.
const CULPRIT: &str = "begin_audit_trail";

/// `cargo xtask demo`.
pub fn task() -> Result<Verdict> {
    setup::ensure(&[Purpose::Demo])?;
    compile::build()?;
    let service = programs::compiled("leaky_service.cpp", "leaky_service", &[])?;
    let place = Place::new()?;
    let shown = show(&place, &service);
    let _ = fs::remove_dir_all(&place.sockets); // only sockets; the captures are elsewhere and stay
    shown
}

/// Where the demonstration keeps its files. Sockets lie in the system's temporary directory, for their paths must be short.
struct Place {
    files: PathBuf,
    sockets: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let sockets = std::env::temp_dir().join(format!("hound-demo-{}", std::process::id()));
        fs::create_dir_all(&sockets).with_context(|| format!("cannot create {}", sockets.display()))?;
        Ok(Self { files: place::scratch("demo")?, sockets })
    }
}

/// A server under `hound run`.
struct Observed {
    name: &'static str,
    socket: PathBuf,
    capture: PathBuf,
    /// What the server printed.
    stdout: PathBuf,
    /// What hound printed: its report.
    stderr: PathBuf,
    child: Child,
}

impl Observed {
    /// Starts `hound run -- SERVER` and waits until it listens. `arguments` gets the path of the socket.
    fn start(place: &Place, name: &'static str, server: &Path, arguments: impl Fn(&str) -> Vec<String>) -> Result<Self> {
        let file = |kind: &str| place.files.join(format!("{name}.{kind}"));
        let (capture, stdout, stderr) = (file("hound"), file("stdout"), file("stderr"));
        let socket = place.sockets.join(name);
        let mut command = Command::new(place::hound());
        command.args(["run", "-o"]).arg(&capture).arg("--").arg(server).args(arguments(&socket.to_string_lossy()));
        println!("demo: starting {}", exec::shown(&command));
        let create = |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
        let child = command.stdin(Stdio::null()).stdout(create(&stdout)?).stderr(create(&stderr)?).spawn();
        let child = child.with_context(|| format!("cannot start {}", exec::shown(&command)))?;
        let mut observed = Self { name, socket, capture, stdout, stderr, child };
        if let Err(error) = exec::listening(&observed.socket, &mut observed.child, name, PATIENCE) {
            bail!("{error:#}; it said: {}", fs::read_to_string(&observed.stderr).unwrap_or_default().trim());
        }
        Ok(observed)
    }

    /// Waits for the end of a server that was told to stop, prints hound's report, and returns what `hound report --leaks` says as JSON.
    fn finish(&mut self) -> Result<Value> {
        let ended = exec::ended(&mut self.child, self.name, PATIENCE)?;
        let said = fs::read_to_string(&self.stderr).unwrap_or_default();
        println!("\n======== {} under hound ========\n{}", self.name, said.trim_end());
        ensure!(ended.success(), "{} ended with {ended}", self.name);
        let report = exec::output(Command::new(place::hound()).args(["report", "--leaks", "--format", "json"]).arg(&self.capture))?;
        json::parse(&report)
    }
}

fn show(place: &Place, service: &Path) -> Result<Verdict> {
    let redis = programs::redis_server()?;
    let mut redis = Observed::start(place, "redis-server", &redis, |socket| {
        ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--loglevel", "warning"].map(str::to_owned).to_vec()
    })?;
    let started = Observed::start(place, "leaky_service", service, |socket| ["serve", socket, "4"].map(str::to_owned).to_vec());
    let mut leaky = match started {
        Ok(leaky) => leaky,
        Err(error) => {
            let _ = redis.child.kill(); // the demonstration is over; nothing of it may stay
            return Err(error);
        }
    };

    println!("demo: putting both under load");
    let mut load = Command::new(service);
    let mut load =
        load.args(["load", &leaky.socket.to_string_lossy(), "4", "20000"]).stdin(Stdio::null()).spawn().context("cannot start the load")?;
    let tests = ["-n", "50000", "-c", "20", "-r", "10000", "-d", "100", "-t", "set,get,lpush,lpop,hset,zadd", "-q"];
    let mut benchmark = Command::new("redis-benchmark");
    let benchmark = exec::output(benchmark.arg("-s").arg(&redis.socket).args(tests));
    let load = exec::ended(&mut load, "the load of leaky_service", PATIENCE);
    // Told to stop without waiting for an answer: the connection breaks when the server ends.
    let _ = exec::status(Command::new("redis-cli").args(["-s", &redis.socket.to_string_lossy(), "shutdown", "nosave"]));
    let redis_report = redis.finish();
    let leaky_report = leaky.finish();
    println!("\n{}", last_states(&benchmark?));
    ensure!(load?.success(), "requests to leaky_service failed");
    judge(&redis_report?, &leaky_report?, &leaky)
}

/// What redis-benchmark's lines showed last: it draws each line again and again.
fn last_states(output: &str) -> String {
    let last = |line: &str| line.rsplit('\r').find(|state| !state.trim().is_empty()).map(|state| state.trim().to_owned());
    output.lines().filter_map(last).map(|line| format!("redis-benchmark: {line}\n")).collect()
}

/// Compares hound's figures with the service's own, and prints the closing lines.
fn judge(redis: &Value, leaky: &Value, service: &Observed) -> Result<Verdict> {
    let counted = fs::read_to_string(&service.stdout).context("cannot read what leaky_service printed")?;
    let true_blocks = counted_as(&counted, "audit trails leaked ")?;
    let true_bytes = counted_as(&counted, "bytes leaked ")?;
    let found = leaked_below(leaky, CULPRIT)?;
    let lost = json::number(redis, &["totals", "lost_events"])? + json::number(leaky, &["totals", "lost_events"])?;
    let allocations = json::number(redis, &["totals", "allocations"])?;

    println!("\n======== in short ========");
    println!("redis-server under load: {allocations} allocations captured, each with its stack");
    println!("leaky_service counted:   {true_blocks} audit trails leaked, {true_bytes} bytes");
    println!("hound found:             {} blocks leaked, {} bytes, by {} ({})", found.blocks, found.bytes, found.function, found.place);
    println!("events lost:             {lost}");
    let good = lost == 0 && allocations > 0 && (found.blocks, found.bytes) == (true_blocks, true_bytes);
    println!(
        "demo: {}",
        if good { "passed: hound's answer is the truth, and nothing was lost" } else { "FAILED: hound's answer is not the truth" }
    );
    Ok(if good { Verdict::Good } else { Verdict::Bad })
}

fn counted_as(output: &str, label: &str) -> Result<u64> {
    let line = output.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|number| number.parse().ok()).with_context(|| format!("leaky_service printed no line \"{label}…\""))
}

/// What the sites below one function leak.
struct Leak {
    blocks: u64,
    bytes: u64,
    function: String,
    /// `file:line`, as hound gives it.
    place: String,
}

fn leaked_below(report: &Value, function: &str) -> Result<Leak> {
    let mut leak = Leak { blocks: 0, bytes: 0, function: String::new(), place: String::new() };
    for site in json::list(report, &["sites"])? {
        let text = |frame: &Value, name: &str| frame.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let frames = json::list(site, &["frames"])?;
        let Some(frame) = frames.iter().find(|frame| text(frame, "function").contains(function)) else { continue };
        leak.blocks += json::number(site, &["live_blocks"])?;
        leak.bytes += json::number(site, &["live_bytes"])?;
        leak.function = text(frame, "function");
        let file = text(frame, "file");
        let file = file.rsplit('/').next().unwrap_or_default();
        leak.place = format!("{file}:{}", frame.get("line").and_then(Value::as_u64).unwrap_or(0));
    }
    Ok(leak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaks_of_one_function_are_added_over_its_sites() {
        let report = json::parse(
            r#"{"sites":[
                {"live_blocks":3,"live_bytes":30,
                 "frames":[{"function":"main","file":null,"line":null},{"function":"T::open(int)","file":"/a/b.cpp","line":7}]},
                {"live_blocks":4,"live_bytes":40,"frames":[{"function":"T::open(int)","file":"/a/b.cpp","line":9}]},
                {"live_blocks":5,"live_bytes":50,"frames":[{"function":"other"}]}]}"#,
        );
        let leak = leaked_below(&report.unwrap(), "open").unwrap();
        assert_eq!((leak.blocks, leak.bytes, leak.place.as_str()), (7, 70, "b.cpp:9"));
    }
}
