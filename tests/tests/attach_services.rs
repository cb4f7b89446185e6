//! Real programs under load, attached to and detached from again and again: their clients compare every answer and see no error.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hound_tests::attach;
use hound_tests::compile::cargo_program;
use hound_tests::process::{self, Running};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How often each process is visited.
const VISITS: usize = 4;
/// Answers that must come in during each visit: it is under load, not idle.
const ANSWERS: u64 = 20;

/// Visits each of these processes while clients ask and compare. A client's turn is one question; what it returns is what was wrong.
fn visited_under_load<C: FnMut(u64) -> Result<(), String> + Send>(pids: &[i32], clients: Vec<C>) {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let ask = |mut client: C| {
            let (stop, answers) = (&stop, &answers);
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    client(number)?;
                    number += 1;
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), String>(())
            })
        };
        let asking: Vec<_> = clients.into_iter().map(ask).collect();
        let failed = || asking.iter().any(|client| client.is_finished());
        let more = || {
            let from = answers.load(Ordering::Relaxed);
            process::wait_until(|| answers.load(Ordering::Relaxed) >= from + ANSWERS || failed())
        };
        // A visit that goes wrong must not leave the clients asking for ever.
        let visits = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for visit in 0..VISITS {
                for pid in pids {
                    let session = attach::attach(*pid, &dir.path().join(format!("{pid}-{visit}.hound")), &[]);
                    assert!(more(), "no answers while attached");
                    let capture = session.detach(if visit % 2 == 1 { &["--unload"] } else { &[] });
                    let check = capture.check();
                    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
                    assert!(more(), "no answers after detaching");
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        // One that answers no more would keep its client waiting, and run on when the test has failed.
        let end_all = || {
            for pid in pids {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL); // it may have ended by itself
            }
        };
        if visits.is_err() {
            end_all();
        }
        let ended: Vec<_> = asking.into_iter().map(|client| client.join().expect("a client does not panic")).collect();
        if ended.iter().any(Result::is_err) {
            end_all();
        }
        if let Err(panic) = visits {
            eprintln!("the clients ended with {ended:?}");
            std::panic::resume_unwind(panic);
        }
        assert!(ended.iter().all(Result::is_ok), "a client saw an error: {ended:?}");
    });
}

/// Ends a server by SIGTERM; it must end as it does when nothing ever visited it.
fn stop(server: Running) {
    kill(server.pid, Signal::SIGTERM).expect("the server still runs");
    let outcome = server.finish();
    assert_eq!(outcome.shell_status(), 0, "{}{}", outcome.out(), outcome.err());
}

/// A connection, once the server listens.
fn connected(socket: &Path) -> UnixStream {
    let mut stream = None;
    let there = process::wait_until(|| {
        stream = UnixStream::connect(socket).ok();
        stream.is_some()
    });
    assert!(there, "nobody listens at {}", socket.display());
    stream.expect("it is connected")
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|dir| dir.join(name)).find(|file| file.is_file())
}

// ---- redis ----

/// One question in redis's protocol, and its answer's first line and body.
fn redis(stream: &mut BufReader<UnixStream>, words: &[&str]) -> Result<String, String> {
    let mut question = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| question += &format!("${}\r\n{word}\r\n", word.len()));
    let mut line = String::new();
    let told = stream.get_mut().write_all(question.as_bytes()).and_then(|()| stream.read_line(&mut line));
    told.map_err(|e| format!("{words:?}: {e}"))?;
    let Some(length) = line.trim().strip_prefix('$') else { return Ok(line.trim().to_owned()) };
    let length: usize = length.parse().map_err(|e| format!("{line:?}: {e}"))?;
    let mut body = vec![0; length + 2];
    stream.read_exact(&mut body).map_err(|e| format!("{words:?}: {e}"))?;
    body.truncate(length);
    String::from_utf8(body).map_err(|e| e.to_string())
}

#[test]
fn redis_answers_every_question_rightly_while_it_is_visited() {
    let program = in_path("redis-server").or_else(|| in_path("redis-check-rdb"));
    if !requirement::root() || !requirement::fulfilled("redis", program.is_some()) {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let (server, socket) = (dir.path().join("redis-server"), dir.path().join("socket"));
    symlink(program.expect("it was found"), &server).expect("the test's own directory"); // its name makes it a server
    let mut command = Command::new(server);
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
    let server = process::start(&mut command);
    let clients = (0..4).map(|client| {
        let mut stream = BufReader::new(connected(&socket));
        move |number: u64| {
            let (key, value) = (format!("key-{client}-{}", number % 100), format!("{number:x}").repeat(1 + number as usize % 300));
            let mut expect = |words: &[&str], wanted: &str| match redis(&mut stream, words)? {
                got if got == wanted => Ok(()),
                got => Err(format!("{words:.60?}: {got:.60} instead of {wanted:.60}")),
            };
            expect(&["SET", &key, &value], "+OK")?;
            expect(&["GET", &key], &value)?;
            expect(&["APPEND", &key, "tail"], &format!(":{}", value.len() + 4))?;
            expect(&["INCR", &format!("count-{client}")], &format!(":{}", number + 1))?;
            expect(&["DEL", &key], ":1")
        }
    });
    visited_under_load(&[server.pid.as_raw()], clients.collect());
    stop(server);
}

// ---- nginx ----

#[test]
fn nginx_workers_answer_every_request_rightly_while_they_are_visited() {
    let program = in_path("nginx");
    if !requirement::root() || !requirement::fulfilled("nginx", program.is_some()) {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let place = dir.path().display().to_string();
    let body = "what nginx serves\n".repeat(5000);
    fs::write(dir.path().join("page.html"), &body).expect("the test's own directory");
    let configuration = format!(
        "user root; worker_processes 2; daemon off; pid {place}/pid; error_log {place}/error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; gzip on; gzip_types *; client_body_temp_path {place}/1; proxy_temp_path {place}/2; fastcgi_temp_path {place}/3;\n\
         uwsgi_temp_path {place}/4; scgi_temp_path {place}/5; server {{ listen unix:{place}/socket; root {place}; }} }}\n"
    );
    fs::write(dir.path().join("nginx.conf"), configuration).expect("the test's own directory");
    let server = process::start(Command::new(program.expect("it was found")).arg("-c").arg(dir.path().join("nginx.conf")));
    let socket = dir.path().join("socket");
    drop(connected(&socket));
    let mut workers = Vec::new();
    process::wait_until(|| {
        workers = process::descendants(server.pid).into_iter().filter(|pid| *pid != server.pid).map(Pid::as_raw).collect();
        workers.len() == 2
    });
    assert_eq!(workers.len(), 2, "nginx has two workers");
    let clients = (0..4).map(|_| {
        let (socket, body) = (socket.clone(), &body);
        move |_| {
            let mut answer = String::new();
            let mut stream = UnixStream::connect(&socket).map_err(|e| e.to_string())?;
            let asked =
                stream.write_all(b"GET /page.html HTTP/1.0\r\nHost: here\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
            asked.map_err(|e| e.to_string())?;
            let right = answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(body.as_str()) && answer.len() > body.len();
            if right { Ok(()) } else { Err(format!("{answer:.200}")) }
        }
    });
    visited_under_load(&workers, clients.collect());
    stop(server);
}

// ---- postgres ----

/// A program of the newest installed version.
fn postgres(name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.is_file()).max()
}

#[test]
fn postgres_answers_every_query_rightly_while_postmaster_and_backend_are_visited() {
    if !requirement::root() || !requirement::fulfilled("postgres", postgres("initdb").is_some() && postgres("psql").is_some()) {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("the test's own directory");
    let (data, sockets) = (dir.path().join("data"), dir.path());
    let program = |name: &str| {
        let mut command = Command::new(postgres(name).expect("it was found"));
        command.uid(65534).gid(65534).current_dir("/").env("HOME", dir.path()).env("LC_ALL", "C"); // it refuses to run as root
        command
    };
    let made = process::run(program("initdb").args(["--no-sync", "-A", "trust", "-U", "hound", "-D"]).arg(&data));
    assert!(made.status.success(), "initdb: {}", made.err());
    let server = process::start(program("postgres").arg("-D").arg(&data).args(["-c", "listen_addresses=", "-k"]).arg(sockets));
    drop(connected(&sockets.join(".s.PGSQL.5432")));
    assert!(process::wait_until(|| server.said().contains("ready to accept connections")), "{}", server.said());
    let mut client = program("psql");
    client.args(["-X", "-q", "-A", "-t", "-U", "hound", "-d", "postgres", "-h"]).arg(sockets);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql starts");
    let (mut ask, mut answers) = (client.stdin.take().expect("it is piped"), BufReader::new(client.stdout.take().expect("it is piped")));
    let mut query = move |text: &str| {
        let mut line = String::new();
        writeln!(ask, "{text}").and_then(|()| answers.read_line(&mut line)).map_err(|e| e.to_string())?;
        Ok::<String, String>(line.trim().to_owned())
    };
    let backend: i32 = query("select pg_backend_pid();").expect("it answers").parse().expect("a process id");
    let ask = move |number: u64| {
        let n = 100 + number % 1000;
        let text = format!("select sum(i) || ' ' || length(string_agg(i::text, ',' order by i desc)) from generate_series(1, {n}) i;");
        let digits: u64 = (1..=n).map(|i| i.to_string().len() as u64 + 1).sum::<u64>() - 1;
        let wanted = format!("{} {digits}", n * (n + 1) / 2);
        let got = query(&text)?;
        if got == wanted { Ok(()) } else { Err(format!("{n}: {got:?} instead of {wanted:?}")) }
    };
    visited_under_load(&[backend, server.pid.as_raw()], vec![ask]);
    assert!(client.wait().expect("its input has ended").success(), "psql failed");
    stop(server);
}

// ---- runtimes: the program itself compares, and tells a line for each question ----

const PYTHON: &str = r#"
import hashlib, sys, threading, queue
def work(inbox, outbox):
    while (n := inbox.get()) is not None:
        table = {str(i): [i] * 5 for i in range(n, n + 300)}
        assert sum(v[0] for v in table.values()) == sum(range(n, n + 300))
        outbox.put(hashlib.sha256(b"x" * (n % 5000)).hexdigest()[:8] + ":" + str(len(table)))
inbox, outbox = queue.Queue(), queue.Queue()
threads = [threading.Thread(target=work, args=(inbox, outbox)) for _ in range(4)]
for t in threads: t.start()
for line in sys.stdin:
    for k in range(4): inbox.put(int(line))
    answers = {outbox.get() for _ in range(4)}
    assert len(answers) == 1
    print(line.strip(), answers.pop().split(":")[1], flush=True)
for t in threads: inbox.put(None)
for t in threads: t.join()
"#;

const NODE: &str = r#"
const lines = require('readline').createInterface({ input: process.stdin });
lines.on('line', line => {
  const n = Number(line), table = new Map();
  for (let i = n; i < n + 300; i++) table.set(String(i), Buffer.alloc(100 + i % 3000, i & 255));
  for (const [key, value] of table) if (value.length !== 100 + Number(key) % 3000 || value[99] !== (Number(key) & 255)) process.exit(9);
  console.log(n + ' ' + table.size);
});
"#;

/// Tables on Java's heap, and memory outside of it: direct buffers and zlib's.
const JAVA: &str = r#"
import java.io.*;
import java.nio.ByteBuffer;
import java.util.*;
import java.util.concurrent.*;
import java.util.zip.*;
public class Answering {
  static int work(int n) throws Exception {
    Map<String, ByteBuffer> table = new HashMap<>();
    for (int i = n; i < n + 300; i++) {
      ByteBuffer buffer = ByteBuffer.allocateDirect(100 + i % 300);
      for (int k = 0; k < 100; k++) buffer.put(k, (byte) (i + k));
      table.put(String.valueOf(i), buffer);
    }
    byte[] text = String.join(",", table.keySet()).getBytes();
    Deflater deflater = new Deflater();
    deflater.setInput(text);
    deflater.finish();
    byte[] packed = new byte[text.length + 100], unpacked = new byte[text.length];
    int length = deflater.deflate(packed);
    deflater.end();
    Inflater inflater = new Inflater();
    inflater.setInput(packed, 0, length);
    if (inflater.inflate(unpacked) != text.length || !Arrays.equals(text, unpacked)) return -1;
    inflater.end();
    for (Map.Entry<String, ByteBuffer> e : table.entrySet())
      for (int k = 0; k < 100; k++) if (e.getValue().get(k) != (byte) (Integer.parseInt(e.getKey()) + k)) return -2;
    return table.size();
  }
  public static void main(String[] args) throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(4);
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = in.readLine()) != null; ) {
      int n = Integer.parseInt(line.trim());
      List<Callable<Integer>> same = Collections.nCopies(4, () -> work(n));
      int answer = 300;
      for (Future<Integer> f : threads.invokeAll(same)) answer = Math.min(answer, f.get());
      System.out.println(n + " " + answer);
    }
    threads.shutdown();
  }
}
"#;

/// A program that answers line for line.
fn answering(program: &Path, args: &[&str]) {
    let mut command = Command::new(program);
    let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let (mut ask, mut answers) = (child.stdin.take().expect("it is piped"), BufReader::new(child.stdout.take().expect("it is piped")));
    let mut question = move |number: u64| {
        let mut line = String::new();
        writeln!(ask, "{number}").and_then(|()| answers.read_line(&mut line)).map_err(|e| e.to_string())?;
        if line.trim() == format!("{number} 300") { Ok(()) } else { Err(format!("{number}: {line:?}")) }
    };
    assert_eq!(question(0), Ok(()), "it does not answer before the first visit");
    visited_under_load(&[child.id().cast_signed()], vec![question]);
    let ended = child.wait().expect("its input has ended");
    assert!(ended.success(), "{} ended with {ended}", program.display());
}

#[test]
fn python_with_threads_computes_rightly_while_it_is_visited() {
    let python = PathBuf::from("/usr/bin/python3"); // one found in PATH may be a wrapper
    if requirement::root() && requirement::fulfilled("/usr/bin/python3", python.is_file()) {
        answering(&python, &["-c", PYTHON]);
    }
}

#[test]
fn node_computes_rightly_while_it_is_visited() {
    let node = in_path("node");
    if requirement::root() && requirement::fulfilled("node", node.is_some()) {
        answering(&node.expect("it was found"), &["-e", NODE]);
    }
}

#[test]
fn java_computes_rightly_while_it_is_visited() {
    let java = in_path("java");
    // Running a source file needs the compiler.
    if !requirement::root() || !requirement::fulfilled("java with its compiler", java.is_some() && in_path("javac").is_some()) {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let source = dir.path().join("Answering.java");
    fs::write(&source, JAVA).expect("the test's own directory");
    answering(&java.expect("it was found"), &["-Xmx96m", "-XX:+UseSerialGC", &source.display().to_string()]);
}

#[test]
fn a_rust_program_with_static_jemalloc_computes_rightly_while_it_is_visited() {
    if requirement::root() {
        answering(&cargo_program("allocators", "tikv-jemallocator", "answering_with_jemalloc"), &[]);
    }
}
