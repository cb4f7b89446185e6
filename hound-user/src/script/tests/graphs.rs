//! Pictures: each option is seen in what is drawn.

use super::Console;
use super::values::{END, small};
use crate::view::chart::inspect_texts;

/// The texts of the only picture that a script saves.
fn texts(script: &str) -> Vec<String> {
    let mut console = Console::new(&small(), END);
    console.prints(script);
    let files = console.files();
    assert_eq!(files.len(), 1, "{script}");
    inspect_texts(&files[0].1)
}

fn says(texts: &[String], what: &str) -> bool {
    texts.iter().any(|text| text == what)
}

fn svg(script: &str) -> String {
    let mut console = Console::new(&small(), END);
    console.prints(script);
    console.files().remove(0).1
}

#[test]
fn graphs_add_only_what_is_not_there_yet() {
    // 10 B come and go; 20, 30, 50 leak; 40 come and go: at most 90 B of temporaries and leaks together after 400 ms it is 100.
    let both = texts("graph().add(\"Leaked\", allocations().only_leaked()).add(\"Rest\", allocations()).save();");
    assert!(says(&both, "Leaked") && says(&both, "Rest") && says(&both, "100 B"), "{both:?}");
    // The rest is what the first has not: 40 B at most.
    assert!(says(&both, "40 B"), "{both:?}");
    let groups = texts("graph().add(allocations().group_by_backtrace().sort_by_size()).save();");
    assert!(says(&groups, "simulation::token ← simulation::parse ← simulation::load ← main"), "{groups:?}");
    assert!(says(&groups, "main ← _start") && says(&groups, "simulation::load ← main ← _start"), "{groups:?}");
}

#[test]
fn graphs_show_each_figure() {
    let of = |show: &str, list: &str| texts(&format!("graph().add({list}).{show}().save();"));
    assert!(says(&of("show_memory_usage", "allocations()"), "Memory in allocations over time"));
    let live = of("show_live_allocations", "allocations()");
    assert!(says(&live, "Allocations that live, over time") && says(&live, "3"), "{live:?}");
    assert!(says(&of("show_new_allocations", "allocations()"), "Allocations made a second, over time"));
    assert!(says(&of("show_deallocations", "allocations()"), "Allocations released a second, over time"));
    let space = of("show_address_space", "maps()");
    assert!(says(&space, "Address space of maps over time") && says(&space, "16.4 kB"), "{space:?}");
    let rss = of("show_rss", "maps()");
    assert!(says(&rss, "Resident memory of maps over time") && says(&rss, "4,096 B") || says(&rss, "4.10 kB"), "{rss:?}");
    assert!(says(&of("show_memory_usage", "maps()"), "Resident memory of maps over time"));
    let mut console = Console::new(&small(), END);
    assert!(console.fault("graph().add(maps()).show_live_allocations().save()").contains("`show_live_allocations` is about allocations"));
    assert!(console.fault("graph().add(allocations()).show_rss().save()").contains("`show_rss` is about maps"));
}

#[test]
fn graphs_have_every_option() {
    let with = |options: &str| format!("graph().add(\"Allocations\", allocations()).add(\"Empty\", allocations()){options}.save();");
    let plain = texts(&with(""));
    assert!(says(&plain, "Allocations") && says(&plain, "Empty") && says(&plain, "2 s"), "{plain:?}");
    assert!(!says(&texts(&with(".only_non_empty_series()")), "Empty"));
    let bare = texts(&with(".without_legend()"));
    assert!(!says(&bare, "Allocations") && says(&bare, "2 s"));
    assert!(!says(&texts(&with(".without_axes()")), "2 s"));
    assert!(svg(&with("")).contains("class=\"grid\"") && !svg(&with(".without_grid()")).contains("class=\"grid\""));
    let coloured =
        svg("graph().add(allocations().only_leaked()).add(allocations()).with_gradient_color_scheme(\"red\", \"#0000ff\").save();");
    assert!(coloured.contains("#ff0000") && coloured.contains("#0000ff"));
}

#[test]
fn graphs_are_trimmed_cut_and_extended() {
    let of = |options: &str| texts(&format!("graph().add(allocations().only_alive_for_at_least(s(1))){options}.save();"));
    let has = |options: &str, label: &str| says(&of(options), label);
    assert!(has("", "0") && has("", "2 s") && has("", "10 s"));
    // The first is at 100 ms; what leaks is there to the end.
    assert!(!has(".trim_left()", "0 s") && has(".trim()", "10 s"));
    assert!(has(".start_at(s(2))", "2 s") && !has(".start_at(s(2.5))", "2 s"));
    assert!(!has(".end_at(data().runtime() - s(2))", "10 s") && has(".end_at(data().runtime() + s(9))", "20 s"));
    let temporary = |options: &str| texts(&format!("graph().add(allocations().only_temporary()){options}.save();"));
    assert!(says(&temporary(".trim()"), "200 ms") && !says(&temporary(".trim_left()"), "200 ms"), "{:?}", temporary(".trim()"));
    assert!(says(&temporary(".trim_right()"), "200 ms"), "{:?}", temporary(".trim_right()"));
    let mut console = Console::new(&small(), END);
    assert!(console.fault("graph().add(allocations()).start_at(s(3)).end_at(s(2)).save()").contains("which is before"));
}

#[test]
fn graphs_and_flamegraphs_are_saved_under_their_names() {
    let names = |script: &str| {
        let mut console = Console::new(&small(), END);
        console.prints(script);
        console.files().into_iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names("let g = graph().add(allocations()); g.save(); g.save().save(\"x.svg\");"), ["graph-1.svg", "graph-2.svg", "x.svg"]);
    let each = "graph().add(\"A/b\", allocations().only_temporary()).add(allocations())";
    assert_eq!(names(&format!("{each}.save_each_series_as_graph();")), ["A_b.svg", "series 2.svg"]);
    assert_eq!(
        names(&format!("mkdir_p(\"d\"); {each}.save_each_series_as_flamegraph(\"d\");")),
        ["d/A_b-flamegraph.svg", "d/series 2-flamegraph.svg"]
    );
    assert_eq!(
        names("allocations().save_as_graph().save_as_flamegraph().save_as_flamegraph(\"f.svg\");"),
        ["f.svg", "flamegraph-1.svg", "graph-1.svg"]
    );
    let flame = svg("allocations().only_leaked().save_as_flamegraph();");
    assert!(flame.contains("Allocated: 100 B") && flame.contains("simulation::token"), "{}", &flame[..2000.min(flame.len())]);
    let change = svg("allocations().only_leaked().save_change_as_flamegraph(allocations());");
    assert!(change.contains("Allocated: 100 B; ") && change.contains("simulation::token"), "{}", &change[..2000.min(change.len())]);
    let mut console = Console::new(&small(), END);
    assert!(console.fault("graph().add(maps()).save_each_series_as_flamegraph()").contains("a flamegraph shows allocations"));
}
