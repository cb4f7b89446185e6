//! Probes come out of the text: when they are closed, and when hound is killed. What cannot be probed is refused.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use hound_common::kernel::DOES_ALLOC;
use hound_tests::requirement;
use hound_user::session::kernel::{KernelError, Style};

use crate::target::{Target, all, load, open, read_all, wait};

/// `int3`
const BREAKPOINT: u8 = 0xCC;
const PROBED: &str = "HOUND_TESTS_PROBED";

#[test]
fn closing_takes_the_breakpoints_out() {
    if !requirement::root() {
        return;
    }
    for style in [Style::Sessions, Style::PerfEvents] {
        let mut target = Target::start();
        let mut programs = load(style);
        programs.set(all()).expect("settings are taken");
        let sites = target.sites();
        let before = target.text(&sites);
        for _ in 0..5 {
            let probes = open(&mut programs, &target);
            assert!(target.text(&sites).iter().all(|byte| *byte == BREAKPOINT), "{style:?}: {:x?}", target.text(&sites));
            target.subject.order("pairs 10 100");
            assert_eq!(read_all(&mut programs).made().len(), 10);
            let closing = probes.close();
            wait("the breakpoints go", || target.text(&sites) == before);
            closing.wait();
            target.subject.order("pairs 10 100");
            assert!(read_all(&mut programs).calls.is_empty());
        }
    }
}

#[test]
fn a_hound_that_is_killed_leaves_no_breakpoint() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let sites = target.sites();
    let before = target.text(&sites);
    // This program again, as a hound of its own.
    let mut hound = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "probes::a_hound_to_be_killed", "--ignored", "--nocapture"])
        .env(PROBED, target.pid().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let lines = BufReader::new(hound.stdout.take().expect("it is piped")).lines();
    let set = lines.map_while(Result::ok).any(|line| line.ends_with("probes are set"));
    assert!(set && target.text(&sites).iter().all(|byte| *byte == BREAKPOINT));
    target.subject.order("pairs 100 100");
    hound.kill().expect("it lives");
    hound.wait().expect("it is our child");
    wait("the breakpoints go", || target.text(&sites) == before);
    target.subject.order("pairs 100 100");
}

#[test]
#[ignore = "is what the test above kills"]
fn a_hound_to_be_killed() {
    let pid: u32 = std::env::var(PROBED).expect("the test above says which").parse().expect("a number");
    let mut programs = load(Style::Sessions);
    programs.set(all()).expect("settings are taken");
    let _probes = programs.open(pid, &Target::sites_of_program()).unwrap_or_else(|e| panic!("{e}"));
    println!("probes are set");
    // Until it is killed, or the other end of standard input is.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("standard input can be read");
    panic!("it was to be killed");
}

#[test]
fn what_cannot_be_probed_is_refused_with_its_cause() {
    if !requirement::root() {
        return;
    }
    let target = Target::start();
    let sites = target.sites();
    for style in [Style::Sessions, Style::PerfEvents] {
        let mut programs = load(style);
        let mut gone = Command::new("true").spawn().expect("true can be started");
        gone.wait().expect("it is our child");
        assert!(matches!(programs.open(gone.id(), &sites), Err(KernelError::NoProcess(pid)) if pid == gone.id()), "{style:?}");

        // The return address is not where the kernel would look for it.
        let mut pushed = sites[0].clone();
        assert_eq!(pushed.cookie.does, DOES_ALLOC);
        pushed.cookie.pushes = 1;
        assert!(matches!(programs.open(target.pid(), &[pushed]), Err(KernelError::SiteUnsafe { .. })), "{style:?}");

        let mut elsewhere = sites.clone();
        elsewhere[1].file = "/nowhere/at/all".into();
        assert!(matches!(programs.open(target.pid(), &elsewhere), Err(KernelError::SiteRefused { .. })), "{style:?}");
        assert!(!target.text(&sites).contains(&BREAKPOINT), "{style:?}: no probe is left behind");
    }
}
