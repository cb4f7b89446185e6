//! Values: what they print, what they are asked, what is said when they are used wrongly.

use super::Console;
use super::scene::{Event, Place, Told, bytes};
use crate::capture::Capture;
use crate::script::{Folder, Limits};

const MS: u64 = 1_000_000;

fn alloc(at: u64, path: &[usize], addr: u64, size: u64) -> Event {
    Event { at, path: Some(path.to_vec()), what: Told::Alloc(addr, size, 1, 0, None) }
}

fn free(at: u64, addr: u64) -> Event {
    Event { at, path: Some(vec![0, 1]), what: Told::Free(addr, false) }
}

/// A temporary block, a leaked one, three of one path of which two leak; a map that goes and one that stays.
pub fn small() -> Vec<Event> {
    let map = |at, addr| Event { at, path: Some(vec![0, 1, 2]), what: Told::Map(addr, 8192, 3) };
    vec![
        map(62_590_000, 0x1_0000),
        alloc(62_661_000, &[0, 1, 2], 0x100, 10),
        free(62_799_000, 0x100),
        alloc(100 * MS, &[0, 1], 0x200, 20),
        alloc(200 * MS, &[0, 1, 2, 3], 0x300, 30),
        alloc(300 * MS, &[0, 1, 2, 3], 0x400, 40),
        free(350 * MS, 0x400),
        alloc(400 * MS, &[0, 1, 2, 3], 0x500, 50),
        map(500 * MS, 0x8_0000),
        Event { at: 600 * MS, path: None, what: Told::Rss(0x8_0000, 8192, 4096) },
        Event { at: 10_065_367_000, path: Some(vec![0, 1]), what: Told::Unmap(0x1_0000, 8192) },
    ]
}

pub const END: u64 = 11_000 * MS;

fn console() -> Console {
    Console::new(&small(), END)
}

#[test]
fn durations_are_made_of_integers_and_floats() {
    let mut console = console();
    let made = console.prints("println(h(1)); println(m(90)); println(s(0.5)); println(ms(1.5)); println(us(7)); println(s(1)); println(h(0.25)); println(us(0.25)); println(ms(2)); println(m(0.5));");
    assert_eq!(made, "1h\n1h 30m\n500ms\n1ms 500us\n7us\n1s\n15m\n0us\n2ms\n30s\n");
    assert!(console.fault("s(9223372036854775807)").contains("too long a time span"));
    assert!(console.fault("s(1e300)").contains("no time span"));
}

#[test]
fn durations_are_added_subtracted_and_multiplied() {
    let mut console = console();
    let done = console.prints("println(s(1) + ms(2)); println(s(1) - ms(2)); println(2 * s(1)); println(s(1) * 2); println(0.5 * s(1)); println(s(1) * 0.5); println(data().runtime() * 0.98);");
    assert_eq!(done, "1s 2ms\n998ms\n2s\n2s\n500ms\n500ms\n10s 780ms\n");
    assert!(console.fault("h(1000000) * 1000000").contains("too long a time span"));
}

#[test]
fn durations_are_divided_and_compared() {
    let mut console = console();
    let done = console.prints("println(s(3) / 2); println(s(3) / 0.5); println(s(3) / s(2)); println(s(1) == ms(1000)); println(s(1) != ms(1000)); println(s(1) < s(2)); println(s(1) <= s(1)); println(s(1) > s(2)); println(s(1) >= s(2)); println(ms(1500).seconds());");
    assert_eq!(done, "1s 500ms\n6s\n1.5\ntrue\nfalse\ntrue\ntrue\nfalse\nfalse\n1.5\n");
    assert!(console.fault("s(1) / 0").contains("division by zero"));
    assert!(console.fault("s(1) / s(0)").contains("division by"));
}

#[test]
fn options_are_asked_and_unwrapped() {
    let mut console = console();
    let asked = console.prints(
        "let gone = allocations()[0].deallocated_at(); println(gone.is_some()); println(gone.is_none()); println(gone.unwrap() + us(1)); \
         let there = (allocations().only_leaked())[0].deallocated_at(); println(there.is_some()); println(there.is_none());",
    );
    assert_eq!(asked, "true\nfalse\n62ms 800us\nfalse\ntrue\n");
    assert!(console.fault("allocations()[1].deallocated_at().unwrap()").contains("nothing to unwrap"));
}

#[test]
fn an_allocation_tells_when_and_where() {
    let mut console = console();
    assert_eq!(console.prints("println(allocations()[0].allocated_at());"), "62ms 661us\n");
    let at = "println((allocations().only_leaked())[0].deallocated_at()); println((allocations().only_temporary())[0].deallocated_at());";
    assert_eq!(console.prints(at), "None\nSome(62ms 799us)\n");
    let backtrace = console.prints("println(allocations()[2].backtrace());");
    let expected = "#00 [simulation] _start [start.S:115]\n#01 [simulation] main [main.cpp:10]\n#02 [simulation] simulation::load [load.cpp:20]\n\
                    #03 [simulation] simulation::parse [parse.cpp:30]\n#04 [simulation] simulation::token [token.hpp:7]\n";
    assert_eq!(backtrace, expected);
}

#[test]
fn an_allocation_tells_all_of_itself() {
    let mut console = console();
    let told = console.prints(
        "let a = allocations()[3]; println(a.size()); println(a.address()); println(a.kind()); println(a.tid()); println(a.lifetime()); \
         println(a.is_leaked()); println(a.weight()); println(a.position_in_chain()); println(a.deallocation_backtrace().functions()); \
         println(allocations()[1].deallocation_backtrace()); println(a);",
    );
    assert_eq!(told, "40\n1024\nmalloc\n4242\n50ms\nfalse\n1.0\n0\n[\"_start\", \"main\"]\nNone\nAllocation of 40 bytes at 0x400\n");
}

#[test]
fn lists_are_put_together_and_taken_apart() {
    let mut console = console();
    let told = console.prints(
        "let a = allocations().only_leaked(); let b = allocations().only_larger(20); println(a.len()); println((a + b).len()); println((a - b).len()); \
         println((a & b).len()); println(a[0].size()); println(allocations().group_by_backtrace().len()); println(allocations());",
    );
    assert_eq!(told, "3\n4\n1\n2\n20\n3\nAllocationList of 5\n");
    assert!(console.fault("allocations()[5]").contains("there is no [5]: the list has 5 allocations, from [0] to [4]"));
    assert!(console.fault("allocations()[-1]").contains("there is no [-1]"));
    assert!(console.fault("allocations().only_larger(99)[0]").contains("the list has no allocations"));
}

#[test]
fn lists_are_walked_and_sorted_into_kinds() {
    let mut console = console();
    let told = console.prints(
        "let a = allocations(); println(a.is_empty()); println(a.only_larger(99).is_empty()); println((!a).len()); println((a.only_larger(40) | a.only_smaller(20)).len()); \
         println(a.data().path()); println(a.only_uncertain().len());",
    );
    assert_eq!(told, "false\ntrue\n0\n2\ntold.hound\n0\n");
}

#[test]
fn groups_are_sorted_cut_and_walked() {
    let mut console = console();
    let told = console.prints(
        "let g = allocations().group_by_backtrace(); println(g.len()); for group in g.take(2) { println(\"in group: {}\", group.len()); } \
         for sorted in [g.sort_by_count(), g.sort_by_count_descending(), g.sort_by_count_ascending(), g.sort_by_size(), g.sort_by_size_descending(), g.sort_by_size_ascending()] { \
             println(\"{} {}\", sorted[0].len(), sorted[sorted.len() - 1].len()); } \
         println(g.take(100).len()); println(g.take(0).is_empty()); println(g.only_count_at_least(2).len()); println(g.only_all_leaked().len()); \
         println(g.only_count_at_least(2).ungroup().len()); println(g.sort_by_size()[0][0].size());",
    );
    let expected = "3\nin group: 1\nin group: 1\n3 1\n3 1\n1 3\n3 1\n3 1\n1 3\n3\ntrue\n1\n1\n3\n30\n";
    assert_eq!(told, expected);
    assert!(console.fault("allocations().group_by_backtrace()[3]").contains("the list has 3 groups"));
    assert!(console.fault("allocations().group_by_backtrace().take(-1)").contains("-1 groups"));
}

/// A path of a Rust program, down to `malloc` or `realloc`, and which of its frames say something.
fn rust_path(innermost: &'static str) -> Vec<Place> {
    let app = |frame: (&'static str, &'static str, u32)| Place { module: "/app/simulation", frames: vec![frame] };
    let mut places: Vec<Place> = [
        ("_start", "/build/start.S", 115),
        ("main", "", 0),
        ("std::rt::lang_start", "rt.rs", 165),
        ("std::panicking::try", "panicking.rs", 447),
        ("core::ops::function::FnOnce::call_once", "function.rs", 251),
        ("simulation::main", "/app/main.rs", 121),
        ("simulation::allocate_temporary", "/app/main.rs", 16),
        ("alloc::vec::Vec<T,A>::resize", "mod.rs", 2366),
        ("alloc::vec::Vec<T,A>::extend_with", "mod.rs", 2510),
        ("alloc::raw_vec::RawVec<T,A>::grow_amortized", "raw_vec.rs", 400),
        ("alloc::raw_vec::finish_grow", "raw_vec.rs", 469),
    ]
    .into_iter()
    .map(app)
    .collect();
    places.insert(1, Place { module: "/lib/libc.so.6", frames: vec![("libc.so.6+0x2928f", "", 0)] });
    places.push(app((if innermost == "realloc" { "alloc::alloc::realloc" } else { "alloc::alloc::alloc" }, "alloc.rs", 181)));
    places.push(Place { module: "/lib/libhound.so", frames: vec![(innermost, "hooks.rs", 0)] });
    places
}

fn stripped(innermost: &'static str) -> String {
    let places = rust_path(innermost);
    let path: Vec<usize> = (0..places.len()).collect();
    let capture = bytes(&places, &[alloc(MS, &path, 0x100, 10)], END);
    let mut console = Console::empty(&Limits::default());
    console.open_capture(Capture::from_bytes(capture).expect("a capture"));
    console.prints("println(allocations()[0].backtrace().strip());")
}

#[test]
fn backtraces_print_and_strip_as_documented() {
    let head = "#00 [simulation] _start [start.S:115]\n#01 [libc.so.6] 200f\n#02 [simulation] main\n";
    let own = "#06 [simulation] simulation::main [main.rs:121]\n#07 [simulation] simulation::allocate_temporary [main.rs:16]\n\
               #08 [simulation] alloc::vec::Vec<T,A>::resize [mod.rs:2366]\n";
    assert_eq!(stripped("malloc"), format!("{head}{own}"));
    // How something grows is told by these frames.
    let growth = "#09 [simulation] alloc::vec::Vec<T,A>::extend_with [mod.rs:2510]\n#10 [simulation] alloc::raw_vec::RawVec<T,A>::grow_amortized [raw_vec.rs:400]\n\
                  #11 [simulation] alloc::raw_vec::finish_grow [raw_vec.rs:469]\n#12 [simulation] alloc::alloc::realloc [alloc.rs:181]\n#13 [libhound.so] realloc [hooks.rs]\n";
    assert_eq!(stripped("realloc"), format!("{head}{own}{growth}"));
    let mut console = Console::new(&[alloc(MS, &[0, 1, 4, 6], 0x100, 10), alloc(2 * MS, &[6], 0x200, 10)], END);
    let cpp = console.prints("println(allocations()[0].backtrace().strip()); println(allocations()[1].backtrace().strip());");
    assert!(cpp.contains("cache::insert") && cpp.matches("operator new").count() == 1, "{cpp}");
}

#[test]
fn backtraces_have_numbers_and_frames() {
    let mut console = console();
    let told = console.prints(
        "let b = allocations()[2].backtrace(); println(b.len()); println(b.functions()); println(b == allocations()[3].backtrace()); println(b != allocations()[3].backtrace()); \
         println(b == allocations()[0].backtrace()); println(allocations().only_matching_backtraces(b.id()).len());",
    );
    let expected = "5\n[\"_start\", \"main\", \"simulation::load\", \"simulation::parse\", \"simulation::token\"]\ntrue\nfalse\nfalse\n3\n";
    assert_eq!(told, expected);
    assert!(console.fault("allocations().only_matching_backtraces(999)").contains("there is no backtrace 999"));
    assert!(console.fault("allocations().only_matching_backtraces(\"x\")").contains("stands for no backtrace"));
}

#[test]
fn data_has_allocations_maps_and_a_runtime() {
    let mut console = console();
    let told = console.prints("println(data().allocations().len()); println(data().maps().len()); println(data().runtime()); println(data().path()); println(data());");
    assert_eq!(told, "5\n2\n11s\ntold.hound\nData of told.hound\n");
}

#[test]
fn maps_tell_when_and_where() {
    let mut console = console();
    let told = console.prints(
        "println(maps()[0].allocated_at()); println((maps().only_leaked())[0].deallocated_at()); println((maps().only_temporary())[0].deallocated_at()); \
         println(maps()[0].backtrace()); println(maps()[1].id()); println(maps()[1].address()); println(maps()[1].size()); println(maps()[1].peak_rss()); \
         println(maps()[0].deallocation_backtrace().len()); println(maps()[1].deallocation_backtrace());",
    );
    let path =
        "#00 [simulation] _start [start.S:115]\n#01 [simulation] main [main.cpp:10]\n#02 [simulation] simulation::load [load.cpp:20]\n";
    assert_eq!(told, format!("62ms 590us\nNone\nSome(10s 65ms 367us)\n{path}1\n524288\n8192\n4096\n2\nNone\n"));
}

#[test]
fn lists_of_maps_are_put_together_and_taken_apart() {
    let mut console = console();
    let told = console.prints(
        "let a = maps(); let b = maps().only_leaked(); println(a.len()); println((a - b).len()); println((b + a).len()); println((a & b).len()); println((a - a).is_empty()); println(a[0]); println(b);",
    );
    assert_eq!(told, "2\n1\n2\n1\ntrue\nMap of 8192 bytes at 0x10000\nMapList of 1\n");
    assert!(console.fault("maps()[2]").contains("the list has 2 maps"));
}

#[test]
fn the_capture_is_data() {
    let mut console = console();
    assert_eq!(console.prints("println(allocations().len()); println(maps().len()); println(data().allocations().len());"), "5\n2\n5\n");
    let mut empty = Console::empty(&Limits::default());
    for script in ["allocations()", "maps()", "data()"] {
        let fault = empty.fault(script);
        assert!(fault.starts_with("test.rhai:1:1: no capture is loaded: give one with `-d CAPTURE`"), "{fault}");
    }
    assert!(empty.fault("load(\"x.hound\")").contains("captures cannot be loaded here"));
}

#[test]
fn scripts_have_arguments() {
    assert_eq!(console().prints("println(argv().len()); println(argv()[1]); println(argv());"), "2\ntwo words\n[\"one\", \"two words\"]\n");
}

#[test]
fn printing_fills_in_what_it_is_given() {
    let mut console = console();
    let printed = console.prints(
        "println(); println(1); println(1.5); println(\"a {} b\"); println(\"{}\", 1); println(\"{} and {}\", s(1), \"x\"); println(\"{}{}{}\", 1, true, 'c'); \
         println(\"{{}} {}\", [1, s(2)]); println(()); println(allocations()[0]); print(\"p\"); info(\"beside\");",
    );
    assert_eq!(printed, "\n1\n1.5\na {} b\n1\n1s and x\n1truec\n{} [1, 2s]\n\nAllocation of 10 bytes at 0x100\np\n");
    assert_eq!(*console.kept.1.borrow(), ["beside"]);
    assert!(console.fault("println(\"{} {}\", 1)").contains("2 places for values, and 1 are given"));
    assert!(console.fault("println(\"{x}\", 1)").contains("only {} stands for a value"));
}

#[test]
fn sizes_are_decimal() {
    let mut console = console();
    assert_eq!(console.prints("println(kb(2)); println(mb(2)); println(gb(2));"), "2000\n2000000\n2000000000\n");
    assert!(console.fault("gb(99999999999)").contains("too much"));
}

#[test]
fn files_and_folders_are_made() {
    let mut console = console();
    assert_eq!(console.prints("println(dirname(\"a/b/c.svg\")); println(dirname(\"c.svg\")); println(dirname(\"/\"));"), "a/b\n\n/\n");
    console.prints("mkdir_p(\"out/deep\"); chdir(\"out\"); allocations().save_as_graph(\"deep/x.svg\"); chdir(\"..\"); allocations().save_as_graph(\"y.svg\");");
    let names: Vec<String> = console.files().into_iter().map(|(path, _)| path.display().to_string()).collect();
    assert_eq!(names, ["out/deep/x.svg", "y.svg"]);
    assert!(console.fault("chdir(\"nowhere\")").contains("there is no such folder; `mkdir_p` makes one"));
    assert!(console.fault("allocations().save_as_graph(\"nowhere/x.svg\")").contains("there is no such folder"));
}

#[test]
fn scripts_exit_with_a_status() {
    for (script, status) in
        [("exit()", 0), ("exit(3); println(1)", 3), ("fn f() { exit(4) } f(); println(1)", 4), ("try { exit(5) } catch { }", 5)]
    {
        let mut console = console();
        match console.session.run(script, "x") {
            Ok(crate::script::Ended::Exit(found)) => assert_eq!(found, status, "{script}"),
            other => panic!("{script}: {other:?}"),
        }
        assert_eq!(*console.kept.0.borrow(), "");
    }
}

#[test]
fn errors_name_the_place_what_is_wrong_and_what_there_is() {
    let mut console = console();
    let checks = [
        ("let x = 1;\nallocations().only_leakd()", "test.rhai:2:15: AllocationList has no `only_leakd`; did you mean `only_leaked`?"),
        ("alocations()", "test.rhai:1:1: there is no function `alocations`; did you mean `allocations`?"),
        (
            "allocations().only_larger(\"x\")",
            "`only_larger` cannot be called with (AllocationList, String); there is only_larger(self: AllocationList, threshold: Integer) -> AllocationList",
        ),
        ("allocations().len", "it is called with brackets: `.len(…)`"),
        ("println(nothing)", "there is no variable `nothing`"),
        ("println(allocations)", "there is no variable `allocations`; call it: `allocations()`"),
        ("let x = ;", "test.rhai:1:9: "),
        ("fn f(x) {\n  x.only_leakd()\n}\nf(allocations())", "test.rhai:2:5: AllocationList has no `only_leakd`"),
        ("allocations().only_passing_through_function(\"(\")", "`(` is no regular expression: unclosed group"),
        ("allocations().only_alive_at([1])", "an array of durations is asked for, and there is a i64 in it"),
        ("graph().save()", "the graph is empty: add something"),
        ("graph().add(allocations()).add(maps())", "a graph shows either allocations or maps"),
        ("graph().add(allocations()).with_gradient_color_scheme(\"red\", \"nored\")", "`nored` is no colour"),
    ];
    for (script, expected) in checks {
        let fault = console.fault(script);
        assert!(fault.contains(expected), "{script}\n{fault}\n{expected}");
        assert!(fault.starts_with("test.rhai:"), "{script}: {fault}");
    }
}

#[test]
fn a_sandbox_is_bounded_in_steps_time_memory_and_files() {
    let limits = Limits { operations: Some(100_000), time: Some(std::time::Duration::from_secs(5)), memory: Some(1 << 20) };
    let fresh = || {
        let mut console = Console::empty(&limits);
        console.open(&small(), END);
        console
    };
    let checks = [
        ("loop { }", "too many steps"),
        ("let x = \"a\"; loop { x += x; }", "too large"),
        ("let x = []; loop { x.push(\"abc\"); }", "too"),
        ("fn f(x) { f(x + 1) } f(0)", "call each other too deeply"),
        ("load(\"/etc/passwd\")", "captures cannot be loaded here"),
        ("import \"x\" as x;", "import"),
        ("eval(\"1\")", "eval"),
        ("sleep(1000000)", "do not sleep"),
        ("let i = 0; loop { mkdir_p(\"some/folder/of/a/longer/name/\" + i); i += 1; }", "memory"),
        ("let i = 0; loop { allocations().save_as_graph(\"x\" + i); i += 1; }", "memory"),
    ];
    for (script, expected) in checks {
        let mut console = fresh();
        let fault = console.fault(script);
        assert!(fault.contains(expected), "{script}: {fault}");
        assert!(console.host.folder().borrow().files().iter().map(|(_, content)| content.len()).sum::<usize>() <= 1 << 20);
    }
    let slow = Limits { operations: Some(u64::MAX), time: Some(std::time::Duration::from_millis(50)), ..limits };
    let mut console = Console::empty(&slow);
    assert!(console.fault("loop { }").contains("takes longer than"));
    // The real file system is another matter.
    assert!(Folder::real().in_file_system("/etc/passwd").is_ok());
}

#[test]
fn a_console_keeps_variables_and_functions() {
    let mut console = console();
    console.prints("let groups = allocations().group_by_backtrace(); fn twice(x) { x * 2 }");
    assert_eq!(console.prints("println(twice(groups.len()));"), "6\n");
    console.prints("fn twice(x) { x * 20 }");
    assert_eq!(console.prints("println(twice(groups.len()));"), "60\n");
    console.fault("let broken = 1; nothing()");
    assert_eq!(console.session.variables(), ["groups"]);
    let value = |console: &mut Console, script: &str| match console.session.run(script, "x") {
        Ok(crate::script::Ended::Value(value)) => value,
        other => panic!("{other:?}"),
    };
    assert_eq!(value(&mut console, "1 + 1").as_deref(), Some("2"));
    assert_eq!(value(&mut console, "groups").as_deref(), Some("AllocationGroupList of 3"));
    assert_eq!(value(&mut console, "let x = 1;"), None);
    let unfinished = console.session.run("fn f(x) {", "x").expect_err("it has no end");
    assert!(unfinished.unfinished, "{unfinished:?}");
    for whole in ["let = 1;", "help only_leaked", "x y", "f(1 2)", "1 +* 2"] {
        assert!(!console.session.is_unfinished(whole), "{whole}");
    }
    for part in ["f(1,", "let x =", "if x {", "\"abc", "[1, 2", "fn f(x) {\n  x", "graph()\n  .add("] {
        assert!(console.session.is_unfinished(part), "{part}");
    }
}
