//! What hound has beside the book.

use super::Console;
use super::scene::{Event, Told, capture};
use super::values::{END, small};
use crate::script::Limits;

const MS: u64 = 1_000_000;

/// 100 B leak each 10 ms; 50 B live for 5 ms each 10 ms.
fn growing() -> Vec<Event> {
    let mut events = Vec::new();
    for round in 0..100u64 {
        let at = (round + 1) * 10 * MS;
        let alloc = |at, path: &[usize], addr, size| Event { at, path: Some(path.to_vec()), what: Told::Alloc(addr, size, 1, 0, None) };
        events.push(alloc(at, &[0, 1, 2], 0x10_0000 + round * 0x100, 100));
        events.push(alloc(at + 1000, &[0, 1], 0x100, 50));
        events.push(Event { at: at + 5 * MS, path: None, what: Told::Free(0x100, false) });
    }
    events
}

#[test]
fn samples_weigh_what_they_stand_for() {
    let mut console = Console::new(&small(), END);
    let told = console.prints("let e = allocations().only_leaked().estimate(); println(\"{} {} {}\", e.allocations, e.bytes, e.samples); println(e.bytes_low == e.bytes_high); println(e.allocations_low); println(allocations().bytes());");
    assert_eq!(told, "3 100 0\ntrue\n3\n150\n");
    // Each block is drawn with a mean interval of 1000 bytes: a small one stands for many.
    let mut console = Console::empty(&Limits::default());
    console.open_capture(capture(&sampled(), 2_000 * MS));
    let told = console.prints(
        "let a = allocations(); let e = a.estimate(); println(e.samples); println(e.allocations > 1000); println(e.allocations_low < e.allocations && e.allocations < e.allocations_high); \
         println(a[0].weight() > 9.0 && a[0].weight() < 11.0); println(a.bytes() > 100000); println(a.only_sampled().len() == a.len()); println(a.only_exact().len()); \
         println(a.only_mode(\"sampled\").len()); println(a.group_by_backtrace()[0].len());",
    );
    assert_eq!(told, "100\ntrue\ntrue\ntrue\ntrue\ntrue\n0\n100\n100\n");
}

/// A hundred samples of 100 B.
fn sampled() -> Vec<Event> {
    let mut events =
        vec![Event { at: 8 * 1000, path: None, what: Told::Mode(2) }, Event { at: 16 * 1000, path: None, what: Told::Rate(1000) }];
    let sample = |n: u64| Event { at: (n + 1) * 10 * MS, path: Some(vec![0, 1]), what: Told::Alloc(0x1000 * n + 0x1000, 100, 1, 0, None) };
    events.extend((0..100).map(sample));
    events
}

#[test]
fn growth_generations_and_survival_are_measured() {
    let mut console = Console::new(&growing(), 1_008 * MS);
    let told = console.prints("let g = allocations().only_leaked().growth(); println(g.low <= g.bytes_per_second && g.bytes_per_second <= g.high); println(g.bytes_per_second > 9000.0 && g.bytes_per_second < 11000.0); let f = allocations().only_temporary().growth(); println(f.low <= 0.0 && f.high >= 0.0);");
    assert_eq!(told, "true\ntrue\ntrue\n");
    let table = console.prints("let t = allocations().generations(4); println(t.len()); let sum = 0; for row in t { sum += row.leaked; } println(sum); println(t[1].bytes); println(t[0].from); println(t[3].to);");
    assert_eq!(table.lines().collect::<Vec<_>>(), ["4", "100", "3750", "0us", "1s 8ms"]);
    let survival = console.prints("let t = allocations().only_smaller(60).survival(); println(t[0].share); println(t[t.len() - 1].share); let all = allocations().survival(); println(all[all.len() - 1].share > 0.45 && all[all.len() - 1].share < 0.55);");
    assert_eq!(survival, "1.0\n0.0\ntrue\n");
    assert!(console.fault("allocations().generations(0)").contains("give a number from 1 to 10000"));
}

#[test]
fn tables_are_printed_walked_and_saved() {
    let mut console = Console::new(&small(), END);
    let printed = console.prints("let t = allocations().generations(2); println(t); println(t.to_csv()); println(t.to_json()); t.save(); t.save(\"t.csv\").save(\"t.txt\"); for row in t { println(row.allocations); }");
    assert!(printed.starts_with("    from  "), "{printed}");
    assert!(printed.contains("from,to,allocations,bytes,leaked,leaked_bytes\r\n0.0,5.5,5,150,3,100\r\n"), "{printed}");
    let json = printed.split("\n[").nth(1).and_then(|rest| rest.split("]\n").next()).expect("an array");
    let rows: serde_json::Value = serde_json::from_str(&format!("[{json}]")).expect("it is JSON");
    assert_eq!((rows[0]["allocations"].as_i64(), rows[1]["allocations"].as_i64()), (Some(5), Some(0)));
    let names: Vec<String> = console.files().into_iter().map(|(path, _)| path.display().to_string()).collect();
    assert_eq!(names, ["t.csv", "t.txt", "table-1.json"]);
    assert!(console.fault("allocations().generations(2).save(\"t.xml\")").contains(".json, .csv or .txt"));
    assert!(console.fault("allocations().generations(2)[2]").contains("the list has 2 rows"));
}

#[test]
fn groups_become_tables() {
    let mut console = Console::new(&small(), END);
    let told = console.prints("let t = allocations().group_by_backtrace().sort_by_size().table(); println(t.len()); println(t[0].count); println(t[0].bytes); println(t[0].functions); println(t[1].leaked);");
    assert_eq!(told, "3\n3\n120\nsimulation::token ← simulation::parse ← simulation::load ← main ← _start\nall leaked\n");
}

#[test]
fn two_captures_are_compared() {
    let mut console = Console::new(&small(), END);
    console.prints("let old = data();");
    console.open(&growing(), 1_008 * MS);
    let told = console.prints(
        "let t = diff(old, data()); println(t.len()); println(t[0].change); println(t[0].functions); println(t[0].count_a); println(t[0].count_b); \
         println(diff(old.allocations().only_leaked(), old.allocations().only_leaked())[0].change);",
    );
    assert_eq!(told, "3\n9990\nsimulation::load ← main ← _start\n1\n100\n0\n");
    assert!(console.fault("allocations() + old.allocations()").contains("the lists are of two captures"));
}

#[test]
fn threads_processes_and_modes_are_told_apart() {
    let mut console = Console::new(&small(), END);
    let told = console.prints(
        "println(allocations().only_thread(4242).len()); println(data().threads()[0].tid); println(data().processes()[0].pid); println(data().modes()[0].mode); \
         println(allocations().only_process(4242).len()); println(allocations().only_mode(\"full\").len()); println(allocations().only_mode(\"sampled\").len()); \
         println(allocations().only_exact().len()); println(allocations().only_sampled().len());",
    );
    assert_eq!(told, "5\n4242\n4242\nfull\n5\n5\n0\n5\n0\n");
    for (script, why) in [
        ("only_thread(1)", "there is no thread 1"),
        ("only_thread(\"x\")", "whose name matches `x`"),
        ("only_process(1)", "there is no process 1"),
        ("only_mode(\"x\")", "`x` is no mode"),
    ] {
        assert!(console.fault(&format!("allocations().{script}")).contains(why), "{script}");
    }
}
