//! What it costs to record the processes that a program begins (`hound run --children`).

use super::bounds::Bound;
use super::figures::{median, shown, spread, table};
use super::{Plan, Section};
use crate::{exec, json, place, programs};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Children of the program that begins short ones.
const CHILDREN: u64 = 200;

/// Measures it.
pub fn measure(plan: &Plan) -> Result<Section> {
    let (alone, followed) = short(plan)?;
    let (by_itself, as_child) = compiler(plan)?;
    let (bare, built) = build(plan)?;
    let ratios = |these: &[f64], those: &[f64]| these.iter().zip(those).map(|(this, that)| this / that).collect::<Vec<_>>();
    let added: Vec<f64> =
        followed.iter().zip(&alone).map(|(followed, alone)| (followed - alone) * 1e3 / plan.size(CHILDREN) as f64).collect();
    let (tree, crates) = (ratios(&as_child, &by_itself), ratios(&built, &bare));
    let bounds = vec![
        Bound::new("added to fork, exec and exit of a child, by recording it (ms)", median(added.iter().copied()), 15.0, 4.0),
        Bound::new("a compiler recorded as the child of a shell, against recorded alone (ratio)", median(tree.iter().copied()), 1.05, 1.0),
        Bound::new(
            "wall ratio: cargo build of a small crate, with all it begins, the compiler's 5 million blocks included",
            median(crates.iter().copied()),
            1.3,
            1.1,
        ),
    ];
    let seconds = |these: &[f64]| shown(median(these.iter().copied()));
    let rows = [
        vec![format!("{} children, by fork and exec (s)", plan.size(CHILDREN)), seconds(&alone), seconds(&followed), spread(&added)],
        vec!["cc1plus: recorded alone (s), by a shell (s), ratio".into(), seconds(&by_itself), seconds(&as_child), spread(&tree)],
        vec!["cargo build: alone (s), recorded (s), ratio".into(), seconds(&bare), seconds(&built), spread(&crates)],
    ];
    let detail = table(&["", "without", "with", "added or ratio"], &rows);
    Ok(Section { name: "children", title: "Processes that a program begins", bounds, detail })
}

fn timed(mut command: Command) -> Result<f64> {
    let start = Instant::now();
    exec::output(&mut command)?;
    Ok(start.elapsed().as_secs_f64())
}

fn hound(scratch: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(place::hound());
    command.args(["run", "--quiet", "-o"]).arg(scratch.join("children.hound")).args(options).arg("--");
    command
}

/// Seconds, as the capture has them.
fn to_the_end_of_the_target(scratch: &Path) -> Result<f64> {
    let told = exec::output(Command::new(place::hound()).arg("info").arg(scratch.join("children.hound")).args(["--format", "json"]))?;
    Ok(json::number(&json::parse(&told)?, &["end", "target_wall_ns"])? as f64 / 1e9)
}

/// Two kinds of runs in turns; the seconds of each.
fn turns(runs: usize, mut kinds: [Box<dyn FnMut() -> Result<f64> + '_>; 2]) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..runs {
        times.0.push(kinds[0]()?);
        times.1.push(kinds[1]()?);
    }
    Ok(times)
}

/// A program that begins many short ones: recorded alone, and with them.
fn short(plan: &Plan) -> Result<(Vec<f64>, Vec<f64>)> {
    let program = programs::compiled("begins.c", "begins", &[])?;
    let number = plan.size(CHILDREN).to_string();
    let run = |options: &'static [&'static str]| {
        let (program, number) = (&program, &number);
        move || {
            let mut command = hound(&plan.scratch, options);
            command.arg(program).arg(number);
            timed(command)
        }
    };
    turns(plan.runs, [Box::new(run(&[])), Box::new(run(&["--children"]))])
}

/// The same compiler, recorded by itself, and as what a shell begins.
fn compiler(plan: &Plan) -> Result<(Vec<f64>, Vec<f64>)> {
    let (compiler, text) = (programs::cc1plus()?, plan.scratch.join("template_heavy.ii"));
    exec::output(Command::new("g++").args(["-std=c++20", "-E", "-o"]).arg(&text).arg(programs::source("template_heavy.cpp")))?;
    let words = ["-quiet", "-std=c++20", "-fpreprocessed", "-o", "/dev/null"];
    let alone = || {
        let mut command = hound(&plan.scratch, &[]);
        command.arg(&compiler).args(words).arg(&text);
        timed(command)
    };
    let by_a_shell = || {
        let mut command = hound(&plan.scratch, &["--children"]);
        command.args(["/bin/sh", "-c", "\"$@\"; exit $?", "sh"]).arg(&compiler).args(words).arg(&text);
        timed(command)
    };
    turns(plan.runs, [Box::new(alone), Box::new(by_a_shell)])
}

/// cargo, with the compiler and the linker that it begins.
fn build(plan: &Plan) -> Result<(Vec<f64>, Vec<f64>)> {
    let at = plan.scratch.join("small");
    fs::create_dir_all(at.join("src")).context("cannot make a crate")?;
    fs::write(at.join("Cargo.toml"), "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n")?;
    let functions: String = (0..plan.size(400))
        .map(|number| {
            format!("fn f{number}(of: &[u32]) -> Vec<String> {{ of.iter().map(|n| format!(\"{{}}\", n + {number})).collect() }}\n")
        })
        .collect();
    let calls: String = (0..plan.size(400)).map(|number| format!("    sum += f{number}(&[1, 2]).len();\n")).collect();
    fs::write(at.join("src/main.rs"), format!("{functions}fn main() {{\n    let mut sum = 0;\n{calls}    println!(\"{{sum}}\");\n}}\n"))?;
    let clean = || {
        let _ = fs::remove_dir_all(at.join("target")); // there is none at first
    };
    let cargo = |mut command: Command| {
        clean();
        command.args(["build", "--quiet", "--offline"]).current_dir(&at).env("CARGO_TARGET_DIR", at.join("target"));
        timed(command)
    };
    let bare = || cargo(Command::new("cargo"));
    // As the other programs: to the end of the target, without stacks of releases.
    let recorded = || {
        let mut command = hound(&plan.scratch, &["--children", "--no-free-stacks"]);
        command.arg("cargo");
        cargo(command)?;
        to_the_end_of_the_target(&plan.scratch)
    };
    turns(plan.runs, [Box::new(bare), Box::new(recorded)])
}
