//! The filters of allocation lists: what is asked of each block, and what that means.

use super::allocations::{AllocationList, passing_through, spans};
use super::api::{Api, Origin};
use super::condition::{Condition, Field, Test};
use super::duration::Duration;
use super::fault::refused;
use super::maps::MapList;
use super::matching::paths_of;
use rhai::{Array, Dynamic};

/// Filters that compare a size or an address or a number: name, what is compared, how, and what that means.
const NUMBERS: &[(&str, &str, Field, Test, &str)] = &[
    ("only_address_at_least", "address", Field::Address, Test::AtLeast, "whose address is equal to the given one or higher"),
    ("only_address_at_most", "address", Field::Address, Test::AtMost, "whose address is equal to the given one or lower"),
    ("only_backtrace_length_at_least", "threshold", Field::BacktraceLength, Test::AtLeast, "whose backtrace has at least so many frames"),
    ("only_backtrace_length_at_most", "threshold", Field::BacktraceLength, Test::AtMost, "whose backtrace has at most so many frames"),
    (
        "only_chain_length_at_least",
        "threshold",
        Field::ChainLength,
        Test::AtLeast,
        "that are part of a chain of at least so many allocations, each made of the one before by `realloc`",
    ),
    (
        "only_chain_length_at_most",
        "threshold",
        Field::ChainLength,
        Test::AtMost,
        "that are part of a chain of at most so many allocations, each made of the one before by `realloc`",
    ),
    (
        "only_first_size_larger_or_equal",
        "threshold",
        Field::FirstSize,
        Test::AtLeast,
        "whose chain begins with one of at least so many bytes",
    ),
    ("only_first_size_larger", "threshold", Field::FirstSize, Test::Above, "whose chain begins with one of more bytes"),
    (
        "only_first_size_smaller_or_equal",
        "threshold",
        Field::FirstSize,
        Test::AtMost,
        "whose chain begins with one of at most so many bytes",
    ),
    ("only_first_size_smaller", "threshold", Field::FirstSize, Test::Below, "whose chain begins with one of fewer bytes"),
    (
        "only_group_allocations_at_least",
        "threshold",
        Field::SiteAllocations,
        Test::AtLeast,
        "from backtraces that made at least so many allocations in all",
    ),
    (
        "only_group_allocations_at_most",
        "threshold",
        Field::SiteAllocations,
        Test::AtMost,
        "from backtraces that made at most so many allocations in all",
    ),
    (
        "only_group_leaked_allocations_at_least",
        "threshold",
        Field::SiteLeaked,
        Test::AtLeast,
        "from backtraces at least so many of whose allocations were never released; a Float is a share of its allocations",
    ),
    (
        "only_group_leaked_allocations_at_most",
        "threshold",
        Field::SiteLeaked,
        Test::AtMost,
        "from backtraces at most so many of whose allocations were never released; a Float is a share of its allocations",
    ),
    ("only_larger_or_equal", "threshold", Field::Size, Test::AtLeast, "of at least so many bytes"),
    ("only_larger", "threshold", Field::Size, Test::Above, "of more bytes"),
    ("only_last_size_larger_or_equal", "threshold", Field::LastSize, Test::AtLeast, "whose chain ends with one of at least so many bytes"),
    ("only_last_size_larger", "threshold", Field::LastSize, Test::Above, "whose chain ends with one of more bytes"),
    ("only_last_size_smaller_or_equal", "threshold", Field::LastSize, Test::AtMost, "whose chain ends with one of at most so many bytes"),
    ("only_last_size_smaller", "threshold", Field::LastSize, Test::Below, "whose chain ends with one of fewer bytes"),
    ("only_smaller_or_equal", "threshold", Field::Size, Test::AtMost, "of at most so many bytes"),
    ("only_smaller", "threshold", Field::Size, Test::Below, "of fewer bytes"),
];

/// Filters that compare a time.
const TIMES: &[(&str, Field, Test, &str)] = &[
    (
        "only_alive_for_at_least",
        Field::Lifetime,
        Test::AtLeast,
        "that lived at least so long: from `malloc` or `realloc` to `free` or `realloc`, or to the end of the recording. What a chain of reallocations lived is asked by `only_chain_alive_for_at_least`",
    ),
    (
        "only_alive_for_at_most",
        Field::Lifetime,
        Test::AtMost,
        "that lived at most so long: from `malloc` or `realloc` to `free` or `realloc`, or to the end of the recording. What a chain of reallocations lived is asked by `only_chain_alive_for_at_most`",
    ),
    ("only_allocated_after_at_least", Field::Allocated, Test::AtLeast, "made so long after the start or later"),
    ("only_allocated_until_at_most", Field::Allocated, Test::AtMost, "made so long after the start or earlier"),
    (
        "only_chain_alive_for_at_least",
        Field::ChainLifetime,
        Test::AtLeast,
        "whose chain lived at least so long: from its first `malloc` through all reallocations to `free`, or to the end of the recording. All allocations of the chain are matched",
    ),
    (
        "only_chain_alive_for_at_most",
        Field::ChainLifetime,
        Test::AtMost,
        "whose chain lived at most so long: from its first `malloc` through all reallocations to `free`, or to the end of the recording. All allocations of the chain are matched",
    ),
    ("only_deallocated_after_at_least", Field::Deallocated, Test::AtLeast, "released so long after the start or later"),
    ("only_deallocated_until_at_most", Field::Deallocated, Test::AtMost, "released so long after the start or earlier"),
    (
        "only_group_interval_at_least",
        Field::SiteInterval,
        Test::AtLeast,
        "from backtraces whose first and last allocation are at least so far apart",
    ),
    (
        "only_group_interval_at_most",
        Field::SiteInterval,
        Test::AtMost,
        "from backtraces whose first and last allocation are at most so far apart",
    ),
    (
        "only_group_max_total_usage_first_seen_at_least",
        Field::SitePeak,
        Test::AtLeast,
        "from backtraces whose allocations together held most memory, for the first time, so long after the start or later",
    ),
    (
        "only_group_max_total_usage_first_seen_at_most",
        Field::SitePeak,
        Test::AtMost,
        "from backtraces whose allocations together held most memory, for the first time, so long after the start or earlier",
    ),
];

/// Filters that take nothing.
const PLAIN: &[(&str, Condition, &str)] = &[
    ("only_jemalloc", Condition::Jemalloc(true), "made through one of jemalloc's interfaces"),
    (
        "only_leaked",
        Condition::Leaked,
        "that were never released. Opposite of `only_temporary`; samples of which nobody knows whether they live are in neither",
    ),
    ("only_not_jemalloc", Condition::Jemalloc(false), "not made through one of jemalloc's interfaces"),
    ("only_ptmalloc_from_main_arena", Condition::MainArena(true), "that glibc's malloc took from its main arena"),
    ("only_ptmalloc_mmaped", Condition::Mmapped(true), "that glibc's malloc took from mmap"),
    ("only_ptmalloc_not_from_main_arena", Condition::MainArena(false), "that glibc's malloc did not take from its main arena"),
    ("only_ptmalloc_not_mmaped", Condition::Mmapped(false), "that glibc's malloc did not take from mmap"),
    ("only_temporary", Condition::Temporary, "that were released. Opposite of `only_leaked`"),
];

/// What a filter's meaning begins with.
pub fn only(what: &str) -> String {
    format!("A new list with only the allocations {what}.")
}

/// All of them.
pub fn register(api: &mut Api<'_>) {
    by_number(api);
    by_backtrace(api);
}

fn by_number(api: &mut Api<'_>) {
    api.about("AllocationList", "every_filter_gives_what_a_model_gives");
    for &(name, argument, field, test, what) in NUMBERS {
        let signature = format!("(self: AllocationList, {argument}: Integer) -> AllocationList");
        api.function(name, &signature, only(what), move |list: &mut AllocationList, threshold: i64| {
            list.only(Condition::Number(field, test, threshold))
        });
        if field == Field::SiteLeaked {
            api.overload("(self: AllocationList, share: Float) -> AllocationList", move |list: &mut AllocationList, share: f64| {
                list.only(Condition::SiteLeakedShare(test, share))
            });
        }
    }
    for &(name, field, test, what) in TIMES {
        api.function(
            name,
            "(self: AllocationList, duration: Duration) -> AllocationList",
            only(what),
            move |list: &mut AllocationList, span: Duration| list.only(Condition::Number(field, test, span.0)),
        );
    }
    for (name, condition, what) in PLAIN {
        api.function(*name, "(self: AllocationList) -> AllocationList", only(what), |list: &mut AllocationList| {
            list.only(condition.clone())
        });
    }
    api.function(
        "only_leaked_or_deallocated_after",
        "(self: AllocationList, duration: Duration) -> AllocationList",
        only("that were never released, or so long after the start or later"),
        |list: &mut AllocationList, span: Duration| list.only(Condition::LeakedOrDeallocatedAfter(span.0)),
    );
    api.entry("only_alive_at", only("that lived at each of these moments, counted from the start"))
        .overload("(self: AllocationList, durations: [Duration]) -> AllocationList", |list: &mut AllocationList, moments: Array| {
            list.only(Condition::AliveAt(spans(moments)?.into()))
        })
        .overload("(self: AllocationList, duration: Duration) -> AllocationList", |list: &mut AllocationList, moment: Duration| {
            list.only(Condition::AliveAt([moment.0].into()))
        });
    api.entry("only_from_maps", only("whose memory lies in these maps, as they were when it was allocated")).overload(
        "(self: AllocationList, maps: Map|MapList|Integer|[Map|MapList|Integer]) -> AllocationList",
        |list: &mut AllocationList, maps: Dynamic| {
            let places = MapList::places_of(list.0.data(), maps)?;
            list.only(Condition::Places(places.into()))
        },
    );
    undocumented(api);
}

fn undocumented(api: &mut Api<'_>) {
    api.of(Origin::Undocumented);
    let positions =
        [("only_position_in_chain_at_least", Test::AtLeast, "at least"), ("only_position_in_chain_at_most", Test::AtMost, "at most")];
    for (name, test, most) in positions {
        let what = only(&format!("to which {most} so many reallocations led: 0 is the first of its chain"));
        api.function(
            name,
            "(self: AllocationList, position: Integer) -> AllocationList",
            what,
            move |list: &mut AllocationList, position: i64| list.only(Condition::Number(Field::PositionInChain, test, position)),
        );
    }
    api.function(
        "only_chain_leaked",
        "(self: AllocationList) -> AllocationList",
        only("the last of whose chain was never released"),
        |list: &mut AllocationList| list.only(Condition::ChainLeaked),
    );
    api.function(
        "only_with_marker",
        "(self: AllocationList, marker: Integer) -> AllocationList",
        only("made while the program had set this marker; before it set one, that is 0"),
        |list: &mut AllocationList, marker: i64| match u32::try_from(marker) {
            Ok(marker) => list.only(Condition::Marker(marker)),
            Err(_) => refused(format!("{marker} is no marker: they are numbers of 32 bits")),
        },
    );
}

fn by_backtrace(api: &mut Api<'_>) {
    let matching: [(&str, bool, &str); 4] = [
        ("only_matching_backtraces", true, "that come from one of these backtraces. A list stands for all backtraces of what is in it"),
        (
            "only_not_matching_backtraces",
            false,
            "that come from none of these backtraces. A list stands for all backtraces of what is in it",
        ),
        ("only_matching_deallocation_backtraces", true, "that were released at one of these backtraces"),
        ("only_not_matching_deallocation_backtraces", false, "that were released at none of these backtraces, or not at all"),
    ];
    const ONE: &str = "Backtrace|AllocationList|MapList|AllocationGroupList|Integer";
    for (name, wanted, what) in matching {
        let of_release = name.contains("deallocation");
        api.about("AllocationList", "every_filter_gives_what_a_model_gives").of(if of_release {
            Origin::Undocumented
        } else {
            Origin::Book
        });
        let filter = move |list: &mut AllocationList, of: Dynamic| {
            let set = paths_of(list.0.data(), of)?.into();
            list.only(if of_release { Condition::ReleasePath(set, wanted) } else { Condition::Path(set, wanted) })
        };
        api.entry(name, only(what))
            .signature(&format!("(self: AllocationList, backtrace_ids: [{ONE}]) -> AllocationList"))
            .overload(&format!("(self: AllocationList, backtrace_ids: {ONE}) -> AllocationList"), filter);
    }
    let passing: [(&str, bool, bool, &str); 4] = [
        ("only_passing_through_function", true, true, "a function of whose backtrace matches the regular expression"),
        ("only_not_passing_through_function", true, false, "no function of whose backtrace matches the regular expression"),
        ("only_passing_through_source", false, true, "a source file of whose backtrace matches the regular expression"),
        ("only_not_passing_through_source", false, false, "no source file of whose backtrace matches the regular expression"),
    ];
    api.about("AllocationList", "every_filter_gives_what_a_model_gives");
    for (name, function, wanted, what) in passing {
        api.function(
            name,
            "(self: AllocationList, regex: String) -> AllocationList",
            only(what),
            move |list: &mut AllocationList, text: &str| {
                let set = passing_through(list.0.data(), text, function)?;
                list.only(Condition::Path(set.into(), wanted))
            },
        );
    }
}
