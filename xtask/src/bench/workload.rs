//! The whole programs that are measured.

use super::Plan;
use super::column::{Column, Run, Target};
use crate::{exec, programs};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The programs' names on the command line, in the order of the table.
pub const NAMES: &[&str] =
    &["redis", "redis-pipelined", "cc1plus", "sqlite", "sqlite-small", "rust", "cpp", "python", "handoff", "threads"];

/// One program, what it is given to do, and the bounds of its wall time as a ratio.
pub struct Workload {
    /// What it is called in the table.
    pub title: &'static str,
    /// The bound that must be kept, and the aim; none for what is shown beside those that the project has set itself bounds for.
    pub bound: Option<(f64, f64)>,
    /// Threads that allocate; each may take memory of its own.
    pub threads: u64,
    /// Threads come and go with a few events each: what a capture says of a thread is most of it.
    pub is_of_short_threads: bool,
    target: Target,
    load: Load,
}

/// What makes a program work, and so what is timed.
enum Load {
    /// Its arguments; it is timed to its end.
    Own,
    /// Clients of the server on this socket; they are timed, then the server is told to end.
    Redis { socket: PathBuf, requests: u64, pipeline: u64 },
}

/// One run: what was seen, and the time that counts.
pub struct Timed {
    /// What was seen.
    pub run: Run,
    /// Seconds to the end of the target, or those that the clients took.
    pub wall_s: f64,
}

impl Workload {
    /// Prepares the program of this name: compiles it, writes its input.
    pub fn prepare(name: &str, plan: &Plan) -> Result<Self> {
        let sized = |full: u64| plan.size(full).to_string();
        let beside = |title, target| Self { title, bound: None, threads: 1, is_of_short_threads: false, target, load: Load::Own };
        let own = |title, must, aim, target| Self { bound: Some((must, aim)), ..beside(title, target) };
        Ok(match name {
            "redis" => Self { bound: Some((1.35, 1.15)), ..redis(plan, "redis under redis-benchmark", 60_000, 1)? },
            // Sixteen requests at a time: now the server's work counts, not the system calls around it.
            "redis-pipelined" => redis(plan, "redis under redis-benchmark, pipelined", 1_000_000, 16)?,
            "cc1plus" => own("g++'s cc1plus, template-heavy", 1.1, 1.03, cc1plus(&plan.scratch)?),
            "sqlite" => own("sqlite in memory", 1.4, 1.2, sqlite(plan, Statements::Mixed)?),
            // Each parsed, planned and thrown away: nearly all that it does is to allocate.
            "sqlite-small" => beside("sqlite in memory, small statements", sqlite(plan, Statements::Small)?),
            "rust" => {
                let program = programs::compiled("rustcoll.rs", "rustcoll", &[])?;
                own("Rust collections", 2.5, 1.8, Target::new(program, &[&sized(1_200_000)]))
            }
            "cpp" => {
                let program = programs::compiled("cppexc.cpp", "cppexc", &[])?;
                own("C++ containers with exceptions", 4.0, 2.3, Target::new(program, &[&sized(800_000)]))
            }
            "python" => {
                let script = programs::source("churn.py").to_string_lossy().into_owned();
                let mut target = Target::new(programs::python(), &[&script, &sized(60_000)]);
                target.environment.push(("PYTHONMALLOC", "malloc"));
                own("python, PYTHONMALLOC=malloc", 2.0, 1.4, target)
            }
            "handoff" => {
                let target = Target::new(programs::compiled("handoff.cpp", "handoff", &[])?, &[&sized(8_000_000)]);
                Self { threads: 8, ..own("4 producers + 4 consumers, cross-thread free", 6.0, 3.5, target) }
            }
            "threads" => {
                let program = programs::compiled("short_threads.cpp", "short_threads", &[])?;
                let target = Target::new(program, &[&sized(100_000)]);
                // Those that have ended since hound last looked, which it does every 50 ms, still have their places.
                Self { threads: 1500, is_of_short_threads: true, ..own("100,000 short threads", 1.5, 1.2, target) }
            }
            _ => bail!("there is no program {name}"),
        })
    }

    /// Whether two runs print the same; redis writes the time and its process number.
    pub fn prints_the_same(&self) -> bool {
        matches!(self.load, Load::Own)
    }

    /// Runs the program once.
    pub fn run(&self, column: Column, scratch: &Path) -> Result<Timed> {
        match &self.load {
            Load::Own => {
                let run = self.target.run(column, scratch)?;
                let wall_s = run.watched.to_target_end.as_secs_f64();
                Ok(Timed { run, wall_s })
            }
            Load::Redis { socket, requests, pipeline } => {
                let _ = fs::remove_file(socket); // an earlier server's; there may be none
                let (run, took) = thread::scope(|scope| {
                    let clients = scope.spawn(|| redis_clients(socket, *requests, *pipeline));
                    let run = self.target.run(column, scratch);
                    (run, clients.join())
                });
                let took = took.ok().context("the clients of redis panicked")??;
                Ok(Timed { run: run?, wall_s: took.as_secs_f64() })
            }
        }
    }
}

fn redis(plan: &Plan, title: &'static str, requests: u64, pipeline: u64) -> Result<Workload> {
    let socket = std::env::temp_dir().join(format!("hound-bench-{}.sock", std::process::id()));
    let path = socket.to_string_lossy().into_owned();
    let arguments = ["--port", "0", "--unixsocket", &path, "--save", "", "--appendonly", "no", "--loglevel", "warning"];
    let target = Target::new(programs::redis_server()?, &arguments);
    let load = Load::Redis { socket, requests: plan.size(requests), pipeline };
    Ok(Workload { title, bound: None, threads: 5, is_of_short_threads: false, target, load })
}

/// Waits for the server, lets the clients work, ends the server. Returns how long the clients took.
fn redis_clients(socket: &Path, requests: u64, pipeline: u64) -> Result<Duration> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while UnixStream::connect(socket).is_err() {
        ensure!(Instant::now() < deadline, "redis did not listen on {} within 30 s", socket.display());
        thread::sleep(Duration::from_millis(5));
    }
    let mut clients = Command::new("redis-benchmark");
    clients.arg("-s").arg(socket).args(["-n", &requests.to_string(), "-P", &pipeline.to_string()]);
    clients.args(["-c", "20", "-r", "10000", "-d", "100", "-t", "set,get,lpush,lpop", "-q"]);
    let start = Instant::now();
    let worked = exec::output(&mut clients);
    let took = start.elapsed();
    // The server ends without an answer, which redis-cli may take for a failure.
    let _ = exec::output(Command::new("redis-cli").arg("-s").arg(socket).args(["shutdown", "nosave"]));
    worked.map(|_| took)
}

/// The compiler on a file that was run through the preprocessor once, so that it works alone.
fn cc1plus(scratch: &Path) -> Result<Target> {
    let preprocessed = scratch.join("template_heavy.ii");
    exec::output(Command::new("g++").args(["-std=c++20", "-E", "-o"]).arg(&preprocessed).arg(programs::source("template_heavy.cpp")))?;
    let input = preprocessed.to_string_lossy().into_owned();
    Ok(Target::new(programs::cc1plus()?, &["-quiet", "-std=c++20", "-fpreprocessed", &input, "-o", "/dev/null"]))
}

/// Of the mix, queries that read the whole table.
const SCANS: u64 = 24;

/// What sqlite3 is given to do.
#[derive(Clone, Copy)]
enum Statements {
    /// Many small ones and some large ones.
    Small,
    /// The same, and as much work again in queries that read the whole table: heaptrack comes to some 2.7 on it, as it is known to for sqlite.
    Mixed,
}

/// sqlite3's shell with a script.
fn sqlite(plan: &Plan, statements: Statements) -> Result<Target> {
    let script = plan.scratch.join("work.sql");
    write_sql(&script, plan.size(120_000), statements).with_context(|| format!("cannot write {}", script.display()))?;
    let read = format!(".read {}", script.display());
    Ok(Target::new(exec::find("sqlite3").context("there is no sqlite3")?, &[":memory:", &read]))
}

fn write_sql(path: &Path, statements: u64, mix: Statements) -> std::io::Result<()> {
    let mut sql = std::io::BufWriter::new(fs::File::create(path)?);
    writeln!(sql, "CREATE TABLE sale(id INTEGER PRIMARY KEY, article TEXT, amount INT, price REAL);\nBEGIN;")?;
    for i in 0..statements {
        writeln!(sql, "INSERT INTO sale VALUES({i}, 'article {}', {}, {}.5);", i * 7919 % 5003, i % 13, i % 997)?;
    }
    writeln!(sql, "COMMIT;\nCREATE INDEX by_article ON sale(article, amount);")?;
    if let Statements::Mixed = mix {
        for i in 0..SCANS {
            writeln!(sql, "SELECT sum(amount * price), max(id % 89) FROM sale WHERE price > {i} AND amount BETWEEN 2 AND 11;")?;
        }
    }
    for i in 0..statements / 20 {
        writeln!(sql, "UPDATE sale SET amount = amount + 1 WHERE article = 'article {}';", i % 5003)?;
    }
    writeln!(
        sql,
        "SELECT count(*), sum(length(a)) FROM (SELECT article || ':' || group_concat(amount) AS a FROM sale GROUP BY article ORDER BY sum(price));"
    )?;
    writeln!(
        sql,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {statements}) SELECT sum(length(printf('%d-%x', i, i))) FROM n;"
    )?;
    sql.flush()
}
