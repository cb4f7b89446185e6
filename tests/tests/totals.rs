//! Whole-program totals of real programs: hound's must equal those of an independent library that only counts.
//!
//! Both runs have the same environment and no address randomisation (`setarch -R`), since programs may decide by address (hash tables keyed by
//! pointers) or by what their environment holds. Each program is first counted twice: where the counts themselves differ, the
//! program is not deterministic and its totals prove nothing, so the test fails there instead of guessing a tolerance.

use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::binaries;
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::requirement;
use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct Counts {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
}

/// A command without randomised addresses and with a fixed environment.
fn fixed(program: &Path) -> Command {
    let mut command = Command::new("setarch");
    command.arg("-R").arg(program).env_clear().env("PATH", "/usr/bin:/bin").env("PYTHONMALLOC", "malloc").env("PYTHONHASHSEED", "0");
    command
}

fn counted(program: &Path, args: &[&str], dir: &Path) -> (Outcome, Counts) {
    let counter = Program::new("counter.c", Build::Optimised).shared("counter").path();
    let file = dir.join("counts");
    // The library is given to the program only, not to setarch, which would overwrite the counts on its way.
    let preload = [format!("LD_PRELOAD={}", counter.display()), format!("COUNTER_FILE={}", file.display())];
    let outcome = process::run(fixed(Path::new("env")).args(preload).arg(program).args(args));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{} was not counted: {e}", program.display()));
    (outcome, serde_json::from_str(&text).expect("the counter writes JSON"))
}

fn totals_must_agree(program: &Path, args: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (alone, counts) = counted(program, args, dir.path());
    let (_, again) = counted(program, args, dir.path());
    assert_eq!(counts, again, "{} allocates differently each time even under the counter", program.display());
    let file = dir.path().join("capture.hound");
    let mut hound = fixed(&binaries::hound());
    let recorded = process::run(hound.args(["run", "--quiet", "-o"]).arg(&file).arg("--").arg(program).args(args));
    assert_eq!((recorded.out(), recorded.shell_status()), (alone.out(), alone.shell_status()), "{}", recorded.err());
    let totals = Capture { path: file }.report().totals;
    assert_eq!((totals.lost_events, totals.unknown_frees), (0, 0));
    let told = Counts { allocations: totals.allocations, allocated_bytes: totals.allocated_bytes, frees: totals.frees };
    assert_eq!(told, counts, "{}: left: hound; right: the counter", program.display());
    assert!(counts.allocations > 10_000, "too little work to mean anything: {counts:?}");
}

#[test]
fn totals_of_python_equal_those_of_a_counting_interposer() {
    if !requirement::program("python3") {
        return;
    }
    let asked = process::run(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]));
    let python = PathBuf::from(asked.out().trim());
    let script = "
import json, re
rows = [{'id': i, 'name': 'row %d' % i, 'tags': list(range(i % 7))} for i in range(3000)]
text = json.dumps(rows)
back = json.loads(text)
words = {}
for w in re.findall('[a-z]+|[0-9]+', text):
    words.setdefault(w, []).append(len(w))
class Node:
    def __init__(self, n): self.next, self.n = n, [0] * 3
chain = None
for i in range(2000): chain = Node(chain)
print(len(text), len(words), sum(map(len, words.values())), back[2999]['name'])
";
    totals_must_agree(&python, &["-S", "-B", "-c", script]);
}

#[test]
fn totals_of_sqlite_equal_those_of_a_counting_interposer() {
    if !requirement::program("sqlite3") {
        return;
    }
    let script = "
create table t(id integer primary key, name text, n integer);
with recursive c(x) as (select 1 union all select x + 1 from c where x < 5000) insert into t select x, 'name ' || (x * 7919 % 5000), x % 97 from c;
create index by_name on t(name);
select n, count(*), max(name) from t group by n order by 2 desc, 1 limit 5;
update t set name = upper(name) where n % 3 = 0;
delete from t where id % 5 = 0;
select count(*), sum(length(name)) from t where name like '%9%';
select a.name from t a join t b on a.id = b.n where b.id > 4900 order by 1 limit 3;
";
    totals_must_agree(Path::new("/usr/bin/sqlite3"), &[":memory:", script]);
}
