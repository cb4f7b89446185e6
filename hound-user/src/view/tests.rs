//! Reports of hand-made heaps, compared with what a person expects to read. `HOUND_BLESS=1 cargo test` rewrites the expected files; read
//! the difference before committing it.

use super::*;
use crate::query::tests::{Heap, example};
use crate::query::{Group, Measure, Query, Suppressions, ask, tree};

fn summary(heap: &Heap, query: &Query) -> Summary {
    let outcome = heap.entries(query).1;
    Summary {
        command: vec!["./app".into(), "--fast".into()],
        pid: 100,
        mode: "launch".into(),
        hound_version: "0.1.0".into(),
        machine: "test".into(),
        wall_ns: 2_310_000_000,
        end: EndKind::Exit(0),
        losses: Vec::new(),
        cut_stacks: Vec::new(),
        frame_pointer_stacks: 0,
        anomalies: Vec::new(),
        unresolved: Vec::new(),
        reordered: 0,
        before: None,
        covered: Vec::new(),
        not_covered: Vec::new(),
        totals: outcome.totals,
        peak: outcome.peak,
    }
}

fn shown(query: &Query, change: impl FnOnce(&mut Summary, &mut TextOptions)) -> String {
    let heap = example();
    let mut summary = summary(&heap, query);
    let sites = heap.sites(query);
    let suppressions = Suppressions::runtime();
    let (branches, table) = match query.group {
        Group::Tree => tree(query, &sites, &heap.streams, &suppressions, 200),
        _ => (Vec::new(), ask(query, &sites, &heap.streams, &suppressions)),
    };
    let (here, group, measure) = (Some("/app".to_owned()), query.group, query.measure);
    let mut options = TextOptions { here, group, measure, ..TextOptions::default() };
    change(&mut summary, &mut options);
    text(&summary, &sites, &table, &branches, &options)
}

fn check(name: &str, actual: &str) {
    let path = format!("{}/src/view/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("HOUND_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == expected, "{name} differs; expected:\n{expected}\nactual:\n{actual}");
}

#[test]
fn a_leak_report_reads_as_expected() {
    check("leaks.txt", &shown(&Query::default(), |_, _| {}));
}

#[test]
fn every_group_reads_as_expected() {
    let one = |group, measure| shown(&Query { group, measure, limit: Some(3), ..Query::default() }, |_, _| {});
    let sections = [
        one(Group::Function, Measure::Peak),
        one(Group::Tree, Measure::Allocated),
        one(Group::Thread, Measure::Allocations),
        one(Group::Size, Measure::Temporary),
        one(Group::Module, Measure::Live),
    ];
    check("groups.txt", &sections.map(|text| text.split_once("\n\n").unwrap().1.to_owned()).join("\n"));
}

#[test]
fn what_is_missing_stands_first() {
    let text = shown(&Query::default(), |summary, options| {
        summary.end = EndKind::Signal(9);
        summary.losses = vec![("the ring was full".into(), 1200), ("the disk was full".into(), 34)];
        summary.cut_stacks = vec![("a word of the stack could not be read".into(), 2)];
        summary.anomalies = (1..=7).map(|number| format!("number {number}")).collect();
        summary.unresolved = vec!["no names for /app/plugin.so: the file is not here".into()];
        options.full_stacks = true;
    });
    check("losses.txt", &text);
}

#[test]
fn colours_change_nothing_but_escape_sequences() {
    let plain = shown(&Query::default(), |_, _| {});
    let mut coloured = shown(&Query::default(), |_, options| options.style = Style::Colour);
    assert_ne!(coloured, plain);
    for code in ["\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"] {
        coloured = coloured.replace(code, "");
    }
    assert_eq!(coloured, plain);
}

#[test]
fn json_keeps_its_contract() {
    let heap = example();
    let query = Query { keep_zero: true, ..Query::default() };
    let (summary, sites) = (summary(&heap, &query), heap.sites(&query));
    let table = ask(&query, &sites, &heap.streams, &Suppressions::none());
    let text = json(&summary, &sites, &table, &[]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    check("leaks.json", &(serde_json::to_string_pretty(&value).unwrap() + "\n"));
    let sum = |key: &str| value["sites"].as_array().unwrap().iter().map(|site| site[key].as_u64().unwrap()).sum::<u64>();
    for key in ["allocations", "allocated_bytes", "live_blocks", "live_bytes", "peak_bytes"] {
        assert_eq!(value["totals"][key], sum(key), "{key}");
    }
}
