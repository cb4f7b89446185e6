//! Everything that bytehound's book documents is there, under its name, and every example of it runs.

use super::Console;
use super::scene::{Event, Told};
use super::values::{END, small};
use crate::script::allocations::AllocationList;
use crate::script::{Entry, Limits, Origin};
use std::collections::BTreeSet;

/// What the book documents: type, and names. Functions of no type are called alone.
const DOCUMENTED: &[(&str, &str)] = &[
    ("", "allocations maps data graph info load println h m s ms us kb mb gb argv chdir dirname exit mkdir_p"),
    ("Allocation", "allocated_at backtrace deallocated_at"),
    (
        "AllocationList",
        "- + & [] group_by_backtrace len only_address_at_least only_address_at_most only_alive_at only_alive_for_at_least only_alive_for_at_most \
         only_allocated_after_at_least only_allocated_until_at_most only_backtrace_length_at_least only_backtrace_length_at_most \
         only_chain_alive_for_at_least only_chain_alive_for_at_most only_chain_length_at_least only_chain_length_at_most \
         only_deallocated_after_at_least only_deallocated_until_at_most only_first_size_larger_or_equal only_first_size_larger \
         only_first_size_smaller_or_equal only_first_size_smaller only_from_maps only_group_allocations_at_least only_group_allocations_at_most \
         only_group_interval_at_least only_group_interval_at_most only_group_leaked_allocations_at_least only_group_leaked_allocations_at_most \
         only_group_max_total_usage_first_seen_at_least only_group_max_total_usage_first_seen_at_most only_jemalloc only_larger_or_equal only_larger \
         only_last_size_larger_or_equal only_last_size_larger only_last_size_smaller_or_equal only_last_size_smaller \
         only_leaked_or_deallocated_after only_leaked only_matching_backtraces only_not_jemalloc only_not_matching_backtraces \
         only_not_passing_through_function only_not_passing_through_source only_passing_through_function only_passing_through_source \
         only_ptmalloc_from_main_arena only_ptmalloc_mmaped only_ptmalloc_not_from_main_arena only_ptmalloc_not_mmaped only_smaller_or_equal \
         only_smaller only_temporary save_as_flamegraph save_as_graph",
    ),
    (
        "AllocationGroupList",
        "(iterator) [] len only_all_leaked only_count_at_least sort_by_count_ascending sort_by_count_descending sort_by_count \
         sort_by_size_ascending sort_by_size_descending sort_by_size take ungroup",
    ),
    ("Backtrace", "strip"),
    ("Data", "allocations runtime"),
    ("Duration", "+ - *"),
    (
        "Graph",
        "add only_non_empty_series save_each_series_as_flamegraph save_each_series_as_graph save show_address_space show_deallocations \
         show_live_allocations show_memory_usage show_new_allocations show_rss trim_left trim_right trim start_at end_at \
         with_gradient_color_scheme without_axes without_grid without_legend",
    ),
    ("Map", "allocated_at backtrace deallocated_at"),
    (
        "MapList",
        "len only_address_at_least only_address_at_most only_alive_at only_alive_for_at_least only_alive_for_at_most \
         only_allocated_after_at_least only_allocated_until_at_most only_backtrace_length_at_least only_backtrace_length_at_most only_bytehound \
         only_deallocated_after_at_least only_deallocated_until_at_most only_executable only_jemalloc only_larger only_larger_or_equal only_leaked \
         only_leaked_or_deallocated_after only_matching_backtraces only_matching_deallocation_backtraces only_not_bytehound only_not_executable \
         only_not_jemalloc only_not_matching_backtraces only_not_matching_deallocation_backtraces only_not_passing_through_function \
         only_not_passing_through_source only_not_readable only_not_writable only_passing_through_function only_passing_through_source \
         only_peak_rss_at_least only_peak_rss_at_most only_readable only_smaller only_smaller_or_equal only_temporary only_writable - + & []",
    ),
];

/// What it does not document, and bytehound has.
const UNDOCUMENTED: &str = "only_position_in_chain_at_least only_position_in_chain_at_most only_chain_leaked only_with_marker \
                            only_matching_deallocation_backtraces only_not_matching_deallocation_backtraces";

#[test]
fn all_that_the_book_documents_is_registered_and_marked_so() {
    let console = Console::empty(&Limits::default());
    let has = |owner: &str, name: &str| console.session.entries().iter().find(|entry| entry.owner == owner && entry.name == name);
    let mut documented = BTreeSet::new();
    for (owner, names) in DOCUMENTED {
        for name in names.split_whitespace() {
            let entry = has(owner, name).unwrap_or_else(|| panic!("{owner}::{name} is missing"));
            // `data().maps()` is told of beside `maps`.
            assert_eq!(entry.origin, Origin::Book, "{owner}::{name}");
            assert!(!entry.signatures.is_empty() && !entry.meaning.is_empty(), "{owner}::{name}");
            documented.insert((*owner, name));
        }
    }
    for name in UNDOCUMENTED.split_whitespace() {
        assert_eq!(has("AllocationList", name).map(|entry| entry.origin), Some(Origin::Undocumented), "{name}");
    }
    let book = console.session.entries().iter().filter(|entry| entry.origin == Origin::Book);
    for Entry { owner, name, .. } in book {
        let is_documented = documented.contains(&(*owner, name.as_str())) || (*owner, name.as_str()) == ("Data", "maps");
        assert!(is_documented, "{owner}::{name} is not documented in the book");
    }
}

/// Name and script of each example.
fn examples() -> Vec<(&'static str, &'static str)> {
    let all: Vec<_> = include_str!("examples.rhai").split("//# ").skip(1).filter_map(|part| part.split_once('\n')).collect();
    assert!(all.len() > 40);
    all
}

#[test]
fn every_example_of_the_book_runs() {
    for (name, script) in examples() {
        let mut console = Console::new(&small(), END);
        let printed = console.prints(script);
        let files = console.files();
        if script.contains("save") {
            assert!(
                !files.is_empty()
                    && files.iter().all(|(path, svg)| svg.starts_with("<svg") && path.extension().is_some_and(|e| e == "svg")),
                "{name}: {files:?}"
            );
        }
        if script.contains("println") {
            assert!(printed.ends_with('\n') && printed.len() > 1, "{name}: {printed}");
        }
    }
}

#[test]
fn what_the_examples_print_is_what_the_book_shows() {
    let printed = |name: &str| {
        let (_, script) = examples().into_iter().find(|(of, _)| *of == name).expect("there is such an example");
        Console::new(&small(), END).prints(script)
    };
    assert_eq!(printed("Allocation::allocated_at"), "62ms 661us\n");
    assert_eq!(printed("Allocation::deallocated_at"), "None\nSome(62ms 799us)\n");
    assert_eq!(printed("Map::allocated_at"), "62ms 590us\n");
    assert_eq!(printed("Map::deallocated_at"), "None\nSome(10s 65ms 367us)\n");
    assert_eq!(printed("AllocationGroupList::(iterator)"), "Allocations in group: 1\nAllocations in group: 1\n");
    assert_eq!(printed("AllocationGroupList::sort_by_count_ascending"), "1\n1\n3\n");
    assert!(printed("Backtrace::strip").starts_with("Before:\n#00 [simulation] _start [start.S:115]\n"));
    assert!(printed("Backtrace::strip").contains("\n\nAfter:\n#00 "));
}

/// `a0 = malloc(100); sleep(1); a1 = realloc(a0, 101); a2 = realloc(a1, 102); free(a2)`, and beside it `b0 = malloc; b1 = realloc`, and `c0`.
fn chains() -> Vec<Event> {
    const S: u64 = 1_000_000_000;
    let alloc = |at, addr, size, previous| Event {
        at,
        path: Some(vec![0, 1]),
        what: Told::Alloc(addr, size, if previous == 0 { 1 } else { 3 }, 0, Some(previous).filter(|addr| *addr > 0)),
    };
    let free = |at, addr, realloc| Event { at, path: None, what: Told::Free(addr, realloc) };
    vec![
        alloc(S, 0x100, 100, 0),
        free(2 * S + 80_000, 0x100, true),
        alloc(2 * S + 160_000, 0x200, 101, 0x100),
        free(2 * S + 240_000, 0x200, true),
        alloc(2 * S + 320_000, 0x300, 102, 0x200),
        free(2 * S + 400_000, 0x300, false),
        alloc(3 * S, 0x400, 200, 0),
        free(3 * S + 80_000, 0x400, true),
        alloc(3 * S + 160_000, 0x500, 201, 0x400),
        alloc(4 * S, 0x600, 300, 0),
    ]
}

/// Sizes of what a script gives.
fn sizes(script: &str) -> Vec<u64> {
    let mut console = Console::new(&chains(), 10_000_000_000);
    let list = console.session.value(script).expect("it runs").cast::<AllocationList>();
    list.0.rows().expect("no limits").iter().map(|row| list.0.data().view().size[row as usize]).collect()
}

#[test]
fn chains_of_reallocations_are_as_the_book_tells_of_them() {
    assert_eq!(sizes("allocations().only_smaller(150).only_alive_for_at_least(s(1))"), [100]);
    assert_eq!(sizes("allocations().only_smaller(150).only_alive_for_at_most(s(0.5))"), [101, 102]);
    assert_eq!(sizes("allocations().only_smaller(150).only_chain_alive_for_at_least(s(1))"), [100, 101, 102]);
    assert_eq!(sizes("allocations().only_smaller(150).only_chain_alive_for_at_most(s(2))"), [100, 101, 102]);
    assert_eq!(sizes("allocations().only_chain_length_at_least(2)"), [100, 101, 102, 200, 201]);
    assert_eq!(sizes("allocations().only_chain_length_at_most(2)"), [200, 201, 300]);
    assert_eq!(sizes("allocations().only_position_in_chain_at_least(1)"), [101, 102, 201]);
    assert_eq!(sizes("allocations().only_position_in_chain_at_most(0)"), [100, 200, 300]);
    assert_eq!(sizes("allocations().only_chain_leaked()"), [200, 201, 300]);
    assert_eq!(sizes("allocations().only_first_size_larger(150)"), [200, 201, 300]);
    assert_eq!(sizes("allocations().only_last_size_smaller(150)"), [100, 101, 102]);
}
