//! Remembered stacks are the same as stacks unwound anew: each program is recorded with and without the shadow stack, and the two
//! captures agree event by event, address by address, with full stacks.
//!
//! Without address randomisation and with environments of the same size, two runs of these programs differ in nothing but what hound
//! does. A program that is not so deterministic shows as a difference, never as an agreement.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hound_tests::{binaries, process, requirement};

/// Records `program`; `shadow` is "1" or "0".
fn recorded(program: &Path, args: &[&str], shadow: &str, free_stacks: bool, dir: &Path) -> PathBuf {
    let file = dir.join(format!("{shadow}.hound"));
    let mut command = Command::new("setarch");
    command.arg("-R").arg(binaries::hound()).args(["run", "--quiet"]);
    if !free_stacks {
        command.arg("--no-free-stacks");
    }
    command.arg("-o").arg(&file).arg("--").arg(program).args(args).current_dir("/");
    let environment = [("PATH", "/usr/bin:/bin"), ("PYTHONMALLOC", "malloc"), ("PYTHONHASHSEED", "0"), ("HOUND_SHADOW_STACK", shadow)];
    let outcome = process::run(command.env_clear().envs(environment));
    assert!(outcome.status.success(), "{}: {}", program.display(), outcome.err());
    file
}

/// The heap events of a capture as `hound dump` prints them, from the thread on: all but the time. They pass by one at a time, since
/// with their stacks they would fill hundreds of megabytes.
struct Dump {
    lines: Lines<BufReader<std::process::ChildStdout>>,
    dump: std::process::Child,
}

impl Dump {
    fn of(file: &Path) -> Dump {
        let mut command = Command::new(binaries::hound());
        let mut dump = command.args(["dump", "--format", "json"]).arg(file).stdout(Stdio::piped()).spawn().expect("hound starts");
        let lines = BufReader::new(dump.stdout.take().expect("invariant: it is piped")).lines();
        Dump { lines, dump }
    }

    /// The next event; `None` at the end of a dump that succeeded.
    fn next(&mut self) -> Option<String> {
        for line in self.lines.by_ref() {
            let mut line = line.expect("the dump can be read");
            let start = line.find(r#","event":"#).unwrap_or_else(|| panic!("hound dump printed what is no event: {line}"));
            if line[start..].starts_with(r#","event":"alloc""#) || line[start..].starts_with(r#","event":"free""#) {
                line.drain(..start);
                return Some(line);
            }
        }
        assert!(self.dump.wait().is_ok_and(|status| status.success()), "hound dump failed");
        None
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        // Of use only where a comparison has failed; a dump that has ended is no concern.
        let _ = self.dump.kill();
        let _ = self.dump.wait();
    }
}

fn twins_agree(program: &Path, args: &[&str]) {
    // The first to read a file after it was installed changes its time of access, and python makes numbers of that.
    process::run(Command::new(program).args(args).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin"));
    for free_stacks in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let files = ["1", "0"].map(|shadow| recorded(program, args, shadow, free_stacks, dir.path()));
        let [mut with, mut without] = files.each_ref().map(|f| Dump::of(f));
        let mut events = 0;
        loop {
            let (a, b) = (with.next(), without.next());
            assert_eq!(a, b, "{}, free stacks {free_stacks}, event {events}: left: with the shadow stack", program.display());
            if a.is_none() {
                break;
            }
            events += 1;
        }
        assert!(events > 20_000, "{}: too little work to mean anything: {events} events", program.display());
    }
}

#[test]
fn python_has_the_same_stacks_with_and_without_the_shadow_stack() {
    if !requirement::program("python3") {
        return;
    }
    let asked = process::run(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]));
    let python = PathBuf::from(asked.out().trim());
    let script = "
import json, re
def deep(n): return [n] + (deep(n - 1) if n else [])
def numbers(n):
    for i in range(n): yield str(i) * 3
class Fails:
    def __del__(self): self.gone = [1, 2, 3]
rows = [{'id': i, 'name': 'row %d' % i, 'tags': list(range(i % 7))} for i in range(300)]
back = json.loads(json.dumps(rows, indent=1))
words = {}
for w in re.findall('[a-z]+|[0-9]+', str(back)): words.setdefault(w, []).append(len(w))
for i in range(200):
    try:
        if i % 3 == 0: raise ValueError('x' * i)
        Fails(), deep(i % 90)
    except ValueError as e: words[str(e)] = sorted(numbers(i), key=lambda s: s[::-1])
print(len(words), sum(map(len, words)))
";
    twins_agree(&python, &["-S", "-B", "-c", script]);
}

#[test]
fn sqlite_has_the_same_stacks_with_and_without_the_shadow_stack() {
    if !requirement::program("sqlite3") {
        return;
    }
    let script = "
create table t(id integer primary key, name text, n integer);
with recursive c(x) as (select 1 union all select x + 1 from c where x < 5000) insert into t select x, 'name ' || (x * 7919 % 5000), x % 97 from c;
create index by_name on t(name);
select n, count(*), max(name), group_concat(id) from t group by n order by 2 desc, 1 limit 5;
update t set name = upper(name) where n % 3 = 0;
delete from t where id % 5 = 0;
select count(*), sum(length(name)) from t where name like '%9%';
select a.name from t a join t b on a.id = b.n where b.id > 4900 order by 1 limit 3;
";
    twins_agree(Path::new("/usr/bin/sqlite3"), &[":memory:", script]);
}

#[test]
fn a_cpp_compiler_has_the_same_stacks_with_and_without_the_shadow_stack() {
    let asked = process::run(Command::new("g++").arg("-print-prog-name=cc1plus"));
    let compiler = PathBuf::from(asked.out().trim());
    if !requirement::fulfilled("g++'s cc1plus", compiler.is_absolute()) {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (source, whole) = (dir.path().join("small.cpp"), dir.path().join("small.ii"));
    let text = "#include <map>\n#include <vector>\nstd::map<int, std::vector<int>> m;\n\
                int main() { for (int i = 0; i < 9; i++) m[i].push_back(i); return (int)m.size(); }\n";
    std::fs::write(&source, text).expect("the source can be written");
    let preprocessed = process::run(Command::new("g++").arg("-E").arg(&source).arg("-o").arg(&whole));
    assert!(preprocessed.status.success(), "{}", preprocessed.err());
    let whole = whole.display().to_string();
    twins_agree(&compiler, &["-quiet", "-fpreprocessed", "-O1", &whole, "-o", "/dev/null"]);
}
