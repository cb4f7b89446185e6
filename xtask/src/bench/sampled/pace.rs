//! How much slower a program is for being sampled from the kernel within the default budget, by its own count.

use super::super::Plan;
use super::super::bounds::Bound;
use super::super::figures::{median, shown, spread, table};
use super::super::visit::{Pace, Pacing, Visit, figure};
use super::{Part, spell};
use crate::exec::Ending;
use crate::{exec, programs};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Work between malloc and free, so that there are about two million of each in a second.
const WORK_NS: &str = "470";
/// A spell with hound, and twice a spell without: windows come about once a second, each at random.
const ATTACHED_MS: u64 = 20_000;

/// The same of redis, in which hound's one per cent is to be told from what differs from one second to the next: many rounds, short ones.
const REDIS_MS: u64 = 3_000;
const REDIS_ROUNDS: usize = 8;

/// What one session cost.
struct Round {
    slowdown: f64,
    cpu_slowdown: f64,
    hound_cpu: f64,
    said_cost: f64,
    said_observed: f64,
}

/// A program of one thread with two million calls of malloc a second.
pub fn program(plan: &Plan) -> Result<Part> {
    let program = programs::compiled("steady.c", "steady", &[])?;
    let target = Pacing::start(Command::new(program), &["malloc", WORK_NS, "0"], &plan.scratch)?;
    let (alone, attached) = (spell(plan, ATTACHED_MS / 2), spell(plan, ATTACHED_MS));
    let mut rates = Vec::new();
    let mut rounds = Vec::new();
    let mut before = target.pace(alone)?;
    for _ in 0..plan.runs {
        let visit = Visit::begin(target.pid(), &[], &plan.scratch)?;
        let (began, cpu) = (Instant::now(), visit.cpu_s()?);
        let meanwhile = target.pace(attached)?;
        let hound_cpu = (visit.cpu_s()? - cpu) / began.elapsed().as_secs_f64();
        let said = visit.end()?;
        let after = target.pace(alone)?;
        rounds.push(Round {
            slowdown: (before.rate + after.rate) / 2.0 / meanwhile.rate,
            cpu_slowdown: meanwhile.cpu_ns * 2.0 / (before.cpu_ns + after.cpu_ns),
            hound_cpu,
            said_cost: figure(&said, "cost in the target ", " % of a core")?,
            said_observed: figure(&said, "samples, ", " % of the time observed")?,
        });
        rates.push(before.rate);
        before = after;
    }
    let per_cent = |figure: fn(&Round) -> f64| rounds.iter().map(|round| (figure(round) - 1.0) * 100.0).collect::<Vec<_>>();
    let of = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let slowdowns = per_cent(|round| round.slowdown);
    let row = vec![
        "steady, 1 thread".to_owned(),
        shown(median(rates) / 1e6),
        spread(&slowdowns),
        spread(&per_cent(|round| round.cpu_slowdown)),
        spread(&of(|round| round.said_cost)),
        spread(&of(|round| round.said_observed)),
        spread(&of(|round| round.hound_cpu * 100.0)),
    ];
    let headings = [
        "target, default budget",
        "million pairs a second",
        "slower, by its own count (%)",
        "more processor time a pair (%)",
        "hound's word of its cost (%)",
        "time observed (%)",
        "hound's own processor time (% of a core)",
    ];
    Ok(Part {
        title: "A program at two million calls of malloc a second, the same process alone and attached to in turns",
        bounds: vec![Bound::new("slowdown by sampling from the kernel, default budget (%)", median(slowdowns), 3.0, 1.2)],
        table: table(&headings, &[row]),
    })
}

/// redis, with its clients one request at a time and sixteen.
pub fn redis(plan: &Plan) -> Result<Part> {
    let mut bounds = Vec::new();
    let mut rows = Vec::new();
    for (name, pipeline) in [("one request at a time", 1), ("sixteen requests at a time", 16)] {
        let rounds = redis_rounds(plan, pipeline)?;
        let of = |figure: fn(&Served) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
        let slower = of(|round| round.slower);
        bounds.push(Bound::new(
            format!("redis under redis-benchmark, {name}: throughput lost, default budget (%)"),
            median(slower.clone()),
            3.0,
            1.0,
        ));
        let cells = [of(|round| round.more_cpu), of(|round| round.hound_cpu)].map(|figures| spread(&figures));
        let thousands = shown(median(of(|round| round.alone / 1e3)));
        rows.push([vec![name.to_owned(), thousands, format!("{} ± {}", spread(&slower), shown(error(&slower)))], cells.to_vec()].concat());
    }
    let headings = [
        "redis under redis-benchmark, default budget",
        "thousand requests a second alone",
        "throughput lost, ± the standard error of its mean (%)",
        "more processor time a request (%)",
        "hound's own processor time (% of a core)",
    ];
    Ok(Part { title: "redis, the same server alone and attached to in turns", bounds, table: table(&headings, &rows) })
}

/// One round of redis.
struct Served {
    /// Requests a second alone.
    alone: f64,
    /// Per cent of throughput lost.
    slower: f64,
    /// Per cent of the server's processor time for a request.
    more_cpu: f64,
    /// hound's, in per cent of a core.
    hound_cpu: f64,
}

/// Of the mean.
fn error(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (square / count).sqrt()
}

/// Many short rounds: clients that never pause ask the server all the while, and it says how many requests it has answered. Whoever starts
/// anew for each spell differs from run to run by more than hound costs.
fn redis_rounds(plan: &Plan, pipeline: u64) -> Result<Vec<Served>> {
    let socket = std::env::temp_dir().join(format!("hound-bench-{}.sock", std::process::id()));
    let _ = fs::remove_file(&socket); // an earlier server's; there may be none
    let mut server = Command::new(programs::redis_server()?);
    server.args(["--port", "0", "--unixsocket"]).arg(&socket).args(["--save", "", "--appendonly", "no", "--loglevel", "warning"]);
    let server = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start redis")?;
    let mut server = Ending(server);
    exec::listening(&socket, &mut server.0, "redis", Duration::from_secs(30))?;
    let asking = ["set", "get"].into_iter().map(|kind| {
        let mut clients = Command::new("redis-benchmark");
        clients.arg("-s").arg(&socket).args(["-n", "2000000000", "-P", &pipeline.to_string()]);
        clients.args(["-c", "10", "-r", "10000", "-d", "100", "-t", kind, "-q"]);
        clients.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Ending)
    });
    let _asking = asking.collect::<Result<Vec<_>, _>>().context("cannot start redis-benchmark")?;
    let pid = server.0.id();
    let pace = |length: Duration| -> Result<Pace> {
        let (began, requests, cpu) = (Instant::now(), answered(&socket)?, thread_cpu_s(pid)?);
        thread::sleep(length);
        let (took, requests, cpu) = (began.elapsed().as_secs_f64(), answered(&socket)? - requests, thread_cpu_s(pid)? - cpu);
        Ok(Pace { rate: requests / took, cpu_ns: cpu * 1e9 / requests })
    };
    let (alone, attached) = (spell(plan, REDIS_MS / 2), spell(plan, REDIS_MS));
    thread::sleep(alone); // fills the server
    let mut rounds = Vec::new();
    let mut before = pace(alone)?;
    for _ in 0..plan.runs * REDIS_ROUNDS {
        let visit = Visit::begin(server.0.id(), &[], &plan.scratch)?;
        let (began, cpu_before) = (Instant::now(), visit.cpu_s()?);
        let meanwhile = pace(attached)?;
        let hound_cpu = (visit.cpu_s()? - cpu_before) / began.elapsed().as_secs_f64() * 100.0;
        visit.end()?;
        let after = pace(alone)?;
        // Between two spells alone: a machine that slows down harms both sides alike.
        rounds.push(Served {
            alone: before.rate,
            slower: (1.0 - meanwhile.rate * 2.0 / (before.rate + after.rate)) * 100.0,
            more_cpu: (meanwhile.cpu_ns * 2.0 / (before.cpu_ns + after.cpu_ns) - 1.0) * 100.0,
            hound_cpu,
        });
        before = after;
    }
    Ok(rounds)
}

/// Seconds of processor time that the main thread of this process has used: all that redis does here.
fn thread_cpu_s(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat")).context("cannot read the server's times")?;
    let ns: f64 = stat.split(' ').next().unwrap_or_default().parse().context("the server's times are no numbers")?;
    Ok(ns / 1e9)
}

/// Requests that the server has answered so far, by its own count.
fn answered(socket: &Path) -> Result<f64> {
    let mut stream = UnixStream::connect(socket).context("cannot connect to redis")?;
    stream.write_all(b"INFO stats\r\n").context("cannot ask redis")?;
    let mut text = String::new();
    let mut lines = BufReader::new(stream);
    while lines.read_line(&mut text).context("cannot hear redis")? > 0 {
        if let Some(count) = text.lines().last().and_then(|line| line.strip_prefix("total_commands_processed:")) {
            return count.trim().parse().context("redis counts in numbers");
        }
    }
    bail!("redis does not say how many requests it has answered")
}
