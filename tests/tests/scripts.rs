//! `hound script` and `hound repl`, as people start them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use hound_tests::binaries;
use hound_tests::capture::hound;
use hound_tests::compile::Build;
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Recording, Target, Way};
use hound_tests::requirement;
use tempfile::TempDir;

fn recording() -> &'static Recording {
    static RECORDING: OnceLock<Recording> = OnceLock::new();
    RECORDING.get_or_init(|| Target::new("shapes.c", Build::Plain).record(Way::Run))
}

fn capture() -> &'static Path {
    &recording().capture.path
}

struct Script {
    dir: TempDir,
    file: PathBuf,
}

impl Script {
    fn new(text: &str) -> Script {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let file = dir.path().join("script.rhai");
        fs::write(&file, text).expect("it can be written");
        Script { dir, file }
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = Command::new(binaries::hound());
        process::run(command.arg("script").arg(&self.file).args(args).current_dir(self.dir.path()))
    }

    fn with_capture(&self, args: &[&str]) -> Outcome {
        self.run(&[&["-d", capture().to_str().expect("a plain name")], args].concat())
    }
}

fn must_succeed(outcome: &Outcome) -> String {
    assert!(outcome.status.success(), "{}{}", outcome.out(), outcome.err());
    outcome.out()
}

#[test]
fn a_script_has_the_capture_its_arguments_and_its_status() {
    let counted = recording().capture.report().totals.allocations;
    let script = Script::new("#!/usr/bin/hound\nprintln(allocations().len()); println(argv()); info(\"beside\"); exit(7);");
    let outcome = script.with_capture(&["one", "--two", "-d", "three"]);
    assert_eq!(outcome.shell_status(), 7, "{}", outcome.err());
    assert_eq!(outcome.out(), format!("{counted}\n[\"one\", \"--two\", \"-d\", \"three\"]\n"));
    assert_eq!(outcome.err(), "hound: beside\n");
}

#[test]
fn a_script_loads_captures_and_writes_where_it_is() {
    let path = capture().display();
    let script = Script::new(&format!(
        "let a = load(\"{path}\"); println(a.allocations().len() == load(argv()[0]).allocations().len()); mkdir_p(\"out\"); chdir(\"out\"); \
         a.allocations().save_as_flamegraph(\"f.svg\"); graph().add(a.allocations()).save(); diff(a, a).save(\"d.csv\");"
    ));
    assert_eq!(must_succeed(&script.run(&[capture().to_str().expect("a plain name")])), "true\n");
    let mut names: Vec<String> = fs::read_dir(script.dir.path().join("out"))
        .expect("it was made")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["d.csv", "f.svg", "graph-1.svg"]);
}

#[test]
fn no_script_writes_over_a_capture() {
    let copy = TempDir::new().expect("a temporary directory can be made");
    let file = copy.path().join("a.hound");
    fs::copy(capture(), &file).expect("it can be copied");
    let before = fs::read(&file).expect("it is there");
    let script = Script::new("allocations().save_as_graph(argv()[0]);");
    let outcome = script.run(&["-d", file.to_str().expect("plain"), file.to_str().expect("plain")]);
    assert_eq!(outcome.shell_status(), 2);
    assert!(outcome.err().contains("is a capture: give another name"), "{}", outcome.err());
    assert!(fs::read(&file).expect("it is there") == before);
}

#[test]
fn a_sandbox_touches_no_file_but_those_that_are_kept() {
    let outside = TempDir::new().expect("a temporary directory can be made");
    let target = outside.path().join("x.svg");
    let script =
        Script::new("mkdir_p(dirname(argv()[0])); allocations().save_as_graph(argv()[0]); allocations().save_as_graph(\"y.svg\");");
    let args = [target.to_str().expect("plain")];
    let outcome = script.with_capture(&["--sandbox", args[0]]);
    must_succeed(&outcome);
    assert!(outcome.err().contains("2 files are in memory only: --into DIR keeps them"), "{}", outcome.err());
    assert!(!target.exists() && !script.dir.path().join("y.svg").exists());
    let kept = outside.path().join("kept");
    must_succeed(&script.with_capture(&["--sandbox", "--into", kept.to_str().expect("plain"), args[0]]));
    assert!(kept.join("y.svg").exists() && kept.join(target.strip_prefix("/").expect("absolute")).exists() && !target.exists());
    let script = Script::new("loop { }");
    let outcome = script.with_capture(&["--sandbox", "--time", "200ms"]);
    assert_eq!(outcome.shell_status(), 2);
    assert!(outcome.err().contains("script.rhai:1:") && outcome.err().contains("the script takes"), "{}", outcome.err());
}

#[test]
fn what_is_wrong_is_told_in_a_line_with_its_place() {
    let refused = |text: &str, args: &[&str], says: &str| {
        let outcome = Script::new(text).run(args);
        assert_eq!(outcome.shell_status(), 2, "{text}");
        let told = outcome.err();
        assert!(told.starts_with("hound: ") && told.lines().count() == 1 && told.contains(says), "{text}: {told}");
    };
    refused("allocations()", &[], "script.rhai:1:1: no capture is loaded: give one with `-d CAPTURE`");
    refused("let a = 1;\n  a.only_leaked()", &[], "script.rhai:2:5: `only_leaked` cannot be called with (Integer)");
    refused("load(\"nowhere.hound\")", &[], "nowhere.hound");
    refused("load(\"script.rhai\")", &[], "script.rhai is not a hound capture");
    refused("1", &["-d", "nowhere.hound"], "nowhere.hound");
    refused("argv()[0]", &[], "script.rhai:1:");
    let outcome = hound(["script", "nowhere.rhai"]);
    assert!(outcome.shell_status() == 2 && outcome.err().contains("cannot read the script nowhere.rhai"), "{}", outcome.err());
    let outcome = hound(["script"]);
    assert_eq!(outcome.shell_status(), 2);
    let outcome = hound(["repl", "nowhere.hound"]);
    assert!(outcome.shell_status() == 2 && outcome.err().contains("nowhere.hound"), "{}", outcome.err());
}

/// What is answered to lines that do not come from a terminal.
fn repl(lines: &str) -> Outcome {
    let mut command = Command::new(binaries::hound());
    let mut child = command
        .arg("repl")
        .arg(capture())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hound starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(lines.as_bytes()).expect("hound reads");
    drop(stdin);
    let output = child.wait_with_output().expect("hound ends");
    Outcome { status: output.status, stdout: output.stdout, stderr: output.stderr }
}

#[test]
fn a_console_goes_on_after_mistakes_and_keeps_what_was_said() {
    let counted = recording().capture.report().totals.allocations;
    let outcome = repl(
        "let a = allocations()\n    .only_larger(0)\n    .len();\na\nalocations()\nfn f(x) {\n  x + 1\n}\nf(a)\nhelp only_leaked\nprintln(\"{}\",\n  2)\nexit(3)\nprintln(9)\n",
    );
    assert_eq!(outcome.shell_status(), 3, "{}", outcome.err());
    let out = outcome.out();
    assert!(
        out.starts_with(&format!("{counted}\n{}\n", counted + 1)) && out.contains("AllocationList::only_leaked") && out.ends_with("2\n"),
        "{out}"
    );
    assert_eq!(outcome.err(), "console:1:1: there is no function `alocations`; did you mean `allocations`?\n");
}

#[test]
fn a_terminal_completes_words_and_remembers_lines() {
    if !requirement::program("script") {
        return;
    }
    let state = TempDir::new().expect("a temporary directory can be made");
    let command = format!("{} repl {}", binaries::hound().display(), capture().display());
    let typed = state.path().join("typed");
    // `l`, Tab: there is one method of a list that begins so.
    fs::write(&typed, "println(allocations().l\t) + 1000000)\r\u{4}").expect("it can be written");
    let stdin = fs::File::open(&typed).expect("it is there");
    let mut on_terminal = Command::new("script");
    on_terminal.args(["-qec", &command, "/dev/null"]).env("XDG_STATE_HOME", state.path()).env("TERM", "xterm");
    let outcome = process::start_reading(&mut on_terminal, stdin).finish();
    let counted = recording().capture.report().totals.allocations;
    assert!(outcome.out().contains(&(counted + 1_000_000).to_string()), "{}", outcome.out());
    assert!(outcome.out().contains("`help` lists what can be asked"), "{}", outcome.out());
    let history = fs::read_to_string(state.path().join("hound/history")).expect("lines are kept");
    assert!(history.contains("println(allocations().len() + 1000000)"), "{history}");
}
