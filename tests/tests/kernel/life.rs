//! Forks, execs, ends, names; page faults; of watched processes only.

use hound_common::kernel::{CALL_BY_KERNEL, COUNT_FAULTS, MESSAGE_EXEC, MESSAGE_EXIT, MESSAGE_FAULT, MESSAGE_FORK, MESSAGE_NAME};
use hound_tests::requirement;
use hound_user::session::kernel::{Settings, Style};

use crate::target::{Target, all, load, open, read_all};

#[test]
fn the_life_of_a_watched_process_is_told() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut other = Target::start();
    let mut programs = load(Style::Sessions);
    programs.set(all()).expect("settings are taken");
    programs.watch(target.pid()).unwrap_or_else(|e| panic!("{e}"));
    let probes = open(&mut programs, &target);
    let pid = target.pid();
    for one in [&mut target, &mut other] {
        one.subject.order("threads 2 3");
        one.subject.order("fork");
        one.subject.order("rename");
    }
    let said = read_all(&mut programs);
    assert!(said.life.iter().all(|event| event.pid == pid), "{:?}", said.life);
    let of = |message| said.life.iter().filter(move |event| event.message == message).collect::<Vec<_>>();
    assert_eq!(of(MESSAGE_EXIT).iter().filter(|event| event.tid != pid).count(), 2, "two threads ended: {:?}", said.life);
    let [fork] = of(MESSAGE_FORK)[..] else { panic!("{:?}", said.life) };
    let child = target.lines().into_iter().find(|line| line[0] == "child").expect("it has told of its child");
    assert_eq!((fork.other.to_string(), child[2].as_str()), (child[1].clone(), "7"), "the child got through its own calls");
    let [name] = of(MESSAGE_NAME)[..] else { panic!("{:?}", said.life) };
    assert_eq!((name.tid, &name.name[..8]), (pid, &b"renamed\0"[..]));
    // The child inherits breakpoints, but what it does is not told.
    assert!(said.calls.iter().all(|(call, _)| call.pid == pid) && said.made().len() == 6);
    probes.close().wait();

    programs.unwatch(pid);
    target.subject.order("fork");
    assert!(read_all(&mut programs).life.is_empty());
    programs.watch(pid).unwrap_or_else(|e| panic!("{e}"));
    target.exec();
    let said = read_all(&mut programs);
    assert!(said.life.iter().any(|event| event.message == MESSAGE_EXEC && event.pid == pid), "{:?}", said.life);
}

#[test]
fn every_page_that_is_touched_is_told_with_its_stack() {
    if !requirement::root() {
        return;
    }
    const PAGES: u64 = 2000;
    let mut target = Target::start();
    let mut programs = load(Style::Sessions);
    programs.set(Settings { faults: Some(0), ..all() }).expect("settings are taken");
    programs.watch(target.pid()).unwrap_or_else(|e| panic!("{e}"));
    target.subject.order(&format!("touch {}", PAGES * 4096));
    let said = read_all(&mut programs);
    let mapped = target.lines().into_iter().find(|line| line[0] == "mapped").expect("it has told where");
    let start = u64::from_str_radix(&mapped[1][2..], 16).expect("an address");
    let inside = |by_kernel: u32| {
        let of = said.calls.iter().filter(|(call, _)| call.message == MESSAGE_FAULT && call.flags & CALL_BY_KERNEL == by_kernel);
        let mut pages: Vec<_> = of.filter_map(|(call, _)| call.pointer.checked_sub(start)).map(|at| at / 4096).collect();
        pages.retain(|page| *page < PAGES);
        pages.sort_unstable();
        pages
    };
    assert_eq!(inside(0), (0..PAGES / 2).collect::<Vec<_>>(), "touched by the program");
    assert_eq!(inside(CALL_BY_KERNEL), (PAGES / 2..PAGES).collect::<Vec<_>>(), "touched by the kernel, which wrote what was read");
    assert!(said.calls.iter().all(|(call, stack)| call.pid == target.pid() && call.size == 4096 && !stack.is_empty()));

    // Sampled: 4096 bytes of 40,960 are 1 − e^(−0.1).
    programs.set(Settings { faults: Some(40_960), ..all() }).expect("settings are taken");
    let before = programs.counters().expect("there are counters").get(COUNT_FAULTS);
    target.subject.order("touch 81920000");
    let told = read_all(&mut programs).calls.len() as f64;
    let counted = programs.counters().expect("there are counters");
    let (faults, p) = ((counted.get(COUNT_FAULTS) - before) as f64, 1.0 - (-0.1f64).exp());
    assert!(faults >= 20_000.0, "{counted:?}");
    assert!((told - faults * p).abs() < 6.0 * (faults * p * (1.0 - p)).sqrt(), "{told} of {faults}");
    assert_eq!(counted.lost(), 0);
}
