//! Each filter against the model, on captures made by chance.

use super::Console;
use super::model::{Block, Map, World, frames, passes, world};
use super::scene::Told;
use crate::script::allocations::AllocationList;
use crate::script::maps::MapList;
use proptest::prelude::*;

/// The blocks that a script gives.
fn rows(console: &mut Console, script: &str) -> Vec<usize> {
    let value = console.session.value(script).unwrap_or_else(|fault| panic!("{script}: {fault}"));
    let list = value.try_cast::<AllocationList>().unwrap_or_else(|| panic!("{script} is no list"));
    list.0.rows().expect("no limits").iter().map(|row| row as usize).collect()
}

fn maps(console: &mut Console, script: &str) -> Vec<usize> {
    let value = console.session.value(script).unwrap_or_else(|fault| panic!("{script}: {fault}"));
    let list = value.try_cast::<MapList>().unwrap_or_else(|| panic!("{script} is no list"));
    list.numbers.iter().map(|map| *map as usize).collect()
}

/// What is compared: name without its end, and its value of a block; none: no threshold lets it pass.
type Number = (&'static str, fn(&World, usize) -> Option<u64>);

fn life(block: &Block, end: u64) -> u64 {
    block.freed.unwrap_or(end) - block.from
}

/// `NAME_at_least(n)` and `NAME_at_most(n)`.
const NUMBERS: &[Number] = &[
    ("only_address", |world, at| Some(world.blocks[at].addr)),
    ("only_backtrace_length", |world, at| Some(frames(&world.blocks[at].path).len() as u64)),
    ("only_chain_length", |world, at| Some(world.chain(at).len() as u64)),
    ("only_position_in_chain", |world, at| world.chain(at).iter().position(|of| *of == at).map(|position| position as u64)),
    ("only_group_allocations", |world, at| Some(world.site(at).len() as u64)),
    ("only_group_leaked_allocations", |world, at| Some(world.site(at).iter().filter(|block| block.freed.is_none()).count() as u64)),
];

/// `NAME_at_least(us(n))` and `NAME_at_most(us(n))`.
const TIMES: &[Number] = &[
    ("only_alive_for", |world, at| Some(life(&world.blocks[at], world.end))),
    ("only_chain_alive_for", |world, at| {
        let chain = world.chain(at);
        let last = &world.blocks[*chain.last()?];
        Some(last.freed.unwrap_or(world.end) - world.blocks[chain[0]].from)
    }),
    ("only_group_interval", |world, at| {
        let site = world.site(at);
        Some(site.iter().map(|block| block.from).max()? - site.iter().map(|block| block.from).min()?)
    }),
    ("only_group_max_total_usage_first_seen", |world, at| Some(world.peak(&world.site(at)))),
];

/// `NAME_after_at_least(us(n))` and `NAME_until_at_most(us(n))`.
const MOMENTS: &[Number] =
    &[("only_allocated", |world, at| Some(world.blocks[at].from)), ("only_deallocated", |world, at| world.blocks[at].freed)];

/// `NAME_larger(n)`, `NAME_larger_or_equal(n)`, `NAME_smaller(n)`, `NAME_smaller_or_equal(n)`.
const SIZES: &[Number] = &[
    ("only", |world, at| Some(world.blocks[at].size)),
    ("only_first_size", |world, at| Some(world.blocks[world.chain(at)[0]].size)),
    ("only_last_size", |world, at| Some(world.blocks[*world.chain(at).last()?].size)),
];

type Is = (&'static str, fn(&World, usize) -> bool);

fn by_glibc(block: &Block) -> bool {
    block.kind < 10
}

/// What takes nothing.
const PLAIN: &[Is] = &[
    ("only_leaked", |world, at| world.blocks[at].freed.is_none()),
    ("only_temporary", |world, at| world.blocks[at].freed.is_some()),
    ("only_chain_leaked", |world, at| world.chain(at).last().is_some_and(|last| world.blocks[*last].freed.is_none())),
    ("only_jemalloc", |world, at| world.blocks[at].kind == 12),
    ("only_not_jemalloc", |world, at| world.blocks[at].kind != 12),
    ("only_ptmalloc_mmaped", |world, at| by_glibc(&world.blocks[at]) && world.blocks[at].flags & 4 != 0),
    ("only_ptmalloc_not_mmaped", |world, at| by_glibc(&world.blocks[at]) && world.blocks[at].flags & 4 == 0),
    ("only_ptmalloc_from_main_arena", |world, at| by_glibc(&world.blocks[at]) && world.blocks[at].flags & 8 == 0),
    ("only_ptmalloc_not_from_main_arena", |world, at| by_glibc(&world.blocks[at]) && world.blocks[at].flags & 8 != 0),
    ("only_uncertain", |_, _| false),
];

const PATTERNS: &[&str] = &["main", "^simulation::", "parse|insert", "\\.hpp$", "/src/", "nothing", "^$"];

/// The end of a filter's name, and how it compares.
type Test = (&'static str, fn(u64, u64) -> bool);

struct Checked<'w> {
    console: Console,
    world: &'w World,
    count: usize,
}

impl Checked<'_> {
    fn blocks(&mut self, script: &str, holds: impl Fn(usize) -> bool) {
        self.count += 1;
        let expected: Vec<usize> = (0..self.world.blocks.len()).filter(|at| holds(*at)).collect();
        assert_eq!(rows(&mut self.console, script), expected, "{script}");
    }

    fn maps(&mut self, script: &str, holds: impl Fn(&Map) -> bool) {
        self.count += 1;
        let expected: Vec<usize> = (0..self.world.maps.len()).filter(|at| holds(&self.world.maps[*at])).collect();
        assert_eq!(maps(&mut self.console, script), expected, "{script}");
    }

    fn compared(&mut self, number: &Number, names: [Test; 2], thresholds: &[u64], unit: &dyn Fn(u64) -> String) {
        for (end, holds) in names {
            for &threshold in thresholds {
                let script = format!("allocations().{}{end}({})", number.0, unit(threshold));
                let world = self.world;
                self.blocks(&script, |at| number.1(world, at).is_some_and(|value| holds(value, threshold)));
            }
        }
    }
}

/// Values that blocks have, and those beside.
fn thresholds(world: &World, number: &Number, round: u64) -> Vec<u64> {
    let mut values: Vec<u64> = (0..world.blocks.len()).filter_map(|at| number.1(world, at)).map(|value| value / round * round).collect();
    values.sort_unstable();
    values.dedup();
    let middle = values.get(values.len() / 2).copied();
    let mut thresholds = vec![0];
    thresholds.extend(middle.into_iter().flat_map(|middle| [middle.saturating_sub(round), middle, middle + round]));
    thresholds.extend(values.last());
    thresholds
}

const LEAST: (&str, fn(u64, u64) -> bool) = ("_at_least", |value, threshold| value >= threshold);
const MOST: (&str, fn(u64, u64) -> bool) = ("_at_most", |value, threshold| value <= threshold);

fn numbers(checked: &mut Checked<'_>) {
    let world = checked.world;
    // All times of the model are whole microseconds.
    let us = |ns: u64| format!("us({})", ns / 1000);
    for number in NUMBERS {
        checked.compared(number, [LEAST, MOST], &thresholds(world, number, 1), &|value| value.to_string());
    }
    for number in TIMES {
        checked.compared(number, [LEAST, MOST], &thresholds(world, number, 1000), &us);
    }
    for number in MOMENTS {
        checked.compared(number, [("_after_at_least", LEAST.1), ("_until_at_most", MOST.1)], &thresholds(world, number, 1000), &us);
    }
    for number in SIZES {
        let given = thresholds(world, number, 1);
        checked.compared(number, [("_larger", |a, b| a > b), ("_larger_or_equal", |a, b| a >= b)], &given, &|value| value.to_string());
        checked.compared(number, [("_smaller", |a, b| a < b), ("_smaller_or_equal", |a, b| a <= b)], &given, &|value| value.to_string());
    }
    for at in thresholds(world, &MOMENTS[1], 1000) {
        let freed = |block: usize| world.blocks[block].freed.is_none_or(|freed| freed >= at);
        checked.blocks(&format!("allocations().only_leaked_or_deallocated_after({})", us(at)), freed);
    }
    let share = |at: usize| {
        let site = world.site(at);
        site.iter().filter(|block| block.freed.is_none()).count() as f64 / site.len() as f64
    };
    checked.blocks("allocations().only_group_leaked_allocations_at_least(1.0)", |at| share(at) >= 1.0);
    checked.blocks("allocations().only_group_leaked_allocations_at_most(0.5)", |at| share(at) <= 0.5);
}

fn plain(checked: &mut Checked<'_>) {
    let world = checked.world;
    for (name, is) in PLAIN {
        checked.blocks(&format!("allocations().{name}()"), |at| is(world, at));
    }
    for marker in 0..3u32 {
        checked.blocks(&format!("allocations().only_with_marker({marker})"), |at| world.blocks[at].marker == marker);
    }
    let lives = |at: usize, moment: u64| world.blocks[at].from <= moment && world.blocks[at].freed.is_none_or(|freed| moment < freed);
    let moments: Vec<u64> =
        world.blocks.iter().map(|block| block.from / 1000 * 1000).chain(world.blocks.iter().filter_map(|block| block.freed)).collect();
    for pair in moments.windows(2).step_by(7) {
        let script = format!("allocations().only_alive_at([us({}), us({})])", pair[0] / 1000, pair[1] / 1000);
        checked.blocks(&script, |at| pair.iter().all(|moment| lives(at, *moment)));
        checked.blocks(&format!("allocations().only_alive_at(us({}))", pair[0] / 1000), |at| lives(at, pair[0]));
    }
    checked.blocks("allocations().only_alive_at([])", |_| true);
    for pattern in PATTERNS {
        for (name, function) in [("function", true), ("source", false)] {
            let quoted = format!("{pattern:?}");
            checked.blocks(&format!("allocations().only_passing_through_{name}({quoted})"), |at| {
                passes(&world.blocks[at].path, pattern, function)
            });
            checked.blocks(&format!("allocations().only_not_passing_through_{name}({quoted})"), |at| {
                !passes(&world.blocks[at].path, pattern, function)
            });
        }
    }
}

fn by_backtrace(checked: &mut Checked<'_>) {
    let world = checked.world;
    let of = |list: &[usize]| list.iter().map(|at| world.blocks[*at].path.clone()).collect::<Vec<_>>();
    let leaked: Vec<usize> = (0..world.blocks.len()).filter(|at| world.blocks[*at].freed.is_none()).collect();
    let (paths, all) = (of(&leaked), world.blocks.len());
    for stands in ["allocations().only_leaked()", "[allocations().only_leaked()]", "allocations().only_leaked().group_by_backtrace()"] {
        checked.blocks(&format!("allocations().only_matching_backtraces({stands})"), |at| paths.contains(&world.blocks[at].path));
        checked.blocks(&format!("allocations().only_not_matching_backtraces({stands})"), |at| !paths.contains(&world.blocks[at].path));
        let released = |at: usize| world.blocks[at].free_path.as_ref().is_some_and(|path| paths.contains(path));
        checked.blocks(&format!("allocations().only_matching_deallocation_backtraces({stands})"), released);
        checked.blocks(&format!("allocations().only_not_matching_deallocation_backtraces({stands})"), |at| !released(at));
    }
    checked.blocks("allocations().only_matching_backtraces([])", |_| false);
    if all > 1 {
        let both = [0, all - 1].map(|at| world.blocks[at].path.clone());
        let script =
            format!("allocations().only_matching_backtraces([allocations()[0].backtrace(), allocations()[{}].backtrace().id()])", all - 1);
        checked.blocks(&script, |at| both.contains(&world.blocks[at].path));
        checked.blocks("allocations().only_matching_backtraces(allocations()[0])", |at| world.blocks[at].path == both[0]);
    }
    let mapped: Vec<Vec<usize>> = world.maps.iter().filter_map(|map| map.path.clone()).collect();
    checked.blocks("allocations().only_matching_backtraces(maps())", |at| mapped.contains(&world.blocks[at].path));
    checked.maps("maps().only_matching_backtraces(allocations())", |map| {
        map.path.as_ref().is_some_and(|path| world.blocks.iter().any(|block| block.path == *path))
    });
}

fn joined(checked: &mut Checked<'_>) {
    let world = checked.world;
    let (large, leaked) = (|at: usize| world.blocks[at].size > 2000, |at: usize| world.blocks[at].freed.is_none());
    let (a, b) = ("allocations().only_larger(2000)", "allocations().only_leaked()");
    checked.blocks(&format!("{a} + {b}"), |at| large(at) || leaked(at));
    checked.blocks(&format!("{a} | {b}"), |at| large(at) || leaked(at));
    checked.blocks(&format!("{a} & {b}"), |at| large(at) && leaked(at));
    checked.blocks(&format!("{a} - {b}"), |at| large(at) && !leaked(at));
    checked.blocks(&format!("!({a}) & {b}"), |at| !large(at) && leaked(at));
    checked.blocks(
        "let l = allocations(); for i in 0..200 { l = l - allocations().only_larger(5000 - i * 10) + allocations().only_smaller(3); } l",
        |at| world.blocks[at].size <= 5000 - 1990,
    );
    checked.blocks(&format!("{a}.group_by_backtrace().sort_by_size().ungroup()"), large);
}

fn of_maps(checked: &mut Checked<'_>) {
    let (world, end) = (checked.world, checked.world.end);
    let bytes = |map: &Map| map.most_pages as u64 * 4096;
    let sizes: Vec<u64> = world.maps.iter().map(bytes).chain([0, 4096]).collect();
    for size in sizes.into_iter().take(6) {
        checked.maps(&format!("maps().only_larger({size})"), |map| bytes(map) > size);
        checked.maps(&format!("maps().only_larger_or_equal({size})"), |map| bytes(map) >= size);
        checked.maps(&format!("maps().only_smaller({size})"), |map| bytes(map) < size);
        checked.maps(&format!("maps().only_smaller_or_equal({size})"), |map| bytes(map) <= size);
        checked.maps(&format!("maps().only_peak_rss_at_least({size})"), |map| map.peak_rss >= size);
        checked.maps(&format!("maps().only_peak_rss_at_most({size})"), |map| map.peak_rss <= size);
    }
    for addr in [0u64, 0x5555_0000_0000, 0x7000_0000_8000] {
        checked.maps(&format!("maps().only_address_at_least({addr})"), |map| map.addr >= addr);
        checked.maps(&format!("maps().only_address_at_most({addr})"), |map| map.addr <= addr);
    }
    let depth = |map: &Map| map.path.as_ref().map_or(0, |path| frames(path).len());
    for length in [0, 2, 3, 9] {
        checked.maps(&format!("maps().only_backtrace_length_at_least({length})"), |map| depth(map) >= length);
        checked.maps(&format!("maps().only_backtrace_length_at_most({length})"), |map| depth(map) <= length);
    }
    let moments: Vec<u64> = world.maps.iter().flat_map(|map| [Some(map.from), map.gone]).flatten().chain([0, end]).collect();
    for at in moments.into_iter().take(8) {
        let us = format!("us({})", at / 1000);
        let life = |map: &Map| map.gone.unwrap_or(end) - map.from;
        checked.maps(&format!("maps().only_alive_for_at_least({us})"), |map| life(map) >= at);
        checked.maps(&format!("maps().only_alive_for_at_most({us})"), |map| life(map) <= at);
        checked.maps(&format!("maps().only_allocated_after_at_least({us})"), |map| map.from >= at);
        checked.maps(&format!("maps().only_allocated_until_at_most({us})"), |map| map.from <= at);
        checked.maps(&format!("maps().only_deallocated_after_at_least({us})"), |map| map.gone.is_some_and(|gone| gone >= at));
        checked.maps(&format!("maps().only_deallocated_until_at_most({us})"), |map| map.gone.is_some_and(|gone| gone <= at));
        checked.maps(&format!("maps().only_leaked_or_deallocated_after({us})"), |map| map.gone.is_none_or(|gone| gone >= at));
        checked.maps(&format!("maps().only_alive_at([{us}])"), |map| map.from <= at && map.gone.is_none_or(|gone| at < gone));
    }
    kinds_of_maps(checked);
}

fn kinds_of_maps(checked: &mut Checked<'_>) {
    let world = checked.world;
    let through = |map: &Map, place: usize| map.path.as_ref().is_some_and(|path| path.contains(&place));
    type Kind<'k> = (&'k str, &'k dyn Fn(&Map) -> bool);
    let kinds: [Kind<'_>; 12] = [
        ("only_leaked", &|map| map.gone.is_none()),
        ("only_temporary", &|map| map.gone.is_some()),
        ("only_readable", &|map| map.prot & 1 != 0),
        ("only_not_readable", &|map| map.prot & 1 == 0),
        ("only_writable", &|map| map.prot & 2 != 0),
        ("only_not_writable", &|map| map.prot & 2 == 0),
        ("only_executable", &|map| map.prot & 4 != 0),
        ("only_not_executable", &|map| map.prot & 4 == 0),
        ("only_jemalloc", &|map| through(map, 7)),
        ("only_not_jemalloc", &|map| !through(map, 7)),
        ("only_bytehound", &|map| through(map, 8)),
        ("only_not_bytehound", &|map| !through(map, 8)),
    ];
    for (name, is) in kinds {
        checked.maps(&format!("maps().{name}()"), is);
    }
    for pattern in PATTERNS {
        for (name, function) in [("function", true), ("source", false)] {
            let holds = |map: &Map| map.path.as_ref().is_some_and(|path| passes(path, pattern, function));
            checked.maps(&format!("maps().only_passing_through_{name}({pattern:?})"), holds);
            checked.maps(&format!("maps().only_not_passing_through_{name}({pattern:?})"), |map| !holds(map));
        }
    }
    let leaked: Vec<_> = world.maps.iter().filter(|map| map.gone.is_none()).filter_map(|map| map.path.clone()).collect();
    let (from, gone) = (
        |map: &Map| map.path.as_ref().is_some_and(|path| leaked.contains(path)),
        |map: &Map| map.gone_path.as_ref().is_some_and(|path| leaked.contains(path)),
    );
    checked.maps("maps().only_matching_backtraces(maps().only_leaked())", from);
    checked.maps("maps().only_not_matching_backtraces([maps().only_leaked()])", |map| !from(map));
    checked.maps("maps().only_matching_deallocation_backtraces(maps().only_leaked())", gone);
    checked.maps("maps().only_not_matching_deallocation_backtraces(maps().only_leaked())", |map| !gone(map));
    let (writable, old) = (|map: &Map| map.prot & 2 != 0, |map: &Map| map.gone.is_some());
    checked.maps("maps().only_writable() - maps().only_temporary()", |map| writable(map) && !old(map));
    checked.maps("maps().only_writable() + maps().only_temporary()", |map| writable(map) || old(map));
    checked.maps("maps().only_writable() & maps().only_temporary()", |map| writable(map) && old(map));
    let inside = |block: &Block, map: &Map| {
        map.had.iter().any(|(page, from, until)| *page == block.addr / 4096 && *from <= block.from && block.from < *until)
    };
    checked.blocks("allocations().only_from_maps(maps())", |at| world.maps.iter().any(|map| inside(&world.blocks[at], map)));
    checked.blocks("allocations().only_from_maps([maps().only_writable()])", |at| {
        world.maps.iter().any(|map| writable(map) && inside(&world.blocks[at], map))
    });
    if !world.maps.is_empty() {
        checked.blocks("allocations().only_from_maps(maps()[0])", |at| inside(&world.blocks[at], &world.maps[0]));
        checked.blocks("allocations().only_from_maps(0)", |at| inside(&world.blocks[at], &world.maps[0]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_filter_gives_what_a_model_gives((events, end) in world(120)) {
        let told = World::of(&events, end);
        let mut checked = Checked { console: Console::new(&events, end), world: &told, count: 0 };
        numbers(&mut checked);
        plain(&mut checked);
        by_backtrace(&mut checked);
        joined(&mut checked);
        prop_assert!(checked.count > 100);
    }

    #[test]
    fn every_filter_of_maps_gives_what_a_model_gives((events, end) in world(120)) {
        let told = World::of(&events, end);
        let mut checked = Checked { console: Console::new(&events, end), world: &told, count: 0 };
        of_maps(&mut checked);
        prop_assert!(checked.count > 50);
    }
}

#[test]
fn worlds_have_all_that_filters_tell_apart() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut chains, mut released, mut moved, mut markers, mut jemalloc, mut rss, mut in_maps) = (0, 0, 0, 0, 0, 0, 0);
    for _ in 0..20 {
        let (events, end) = world(120).new_tree(&mut runner).expect("a value").current();
        let world = World::of(&events, end);
        chains += (0..world.blocks.len()).filter(|at| world.chain(*at).len() > 2).count();
        released += world.blocks.iter().filter(|block| block.free_path.is_some()).count();
        markers += world.blocks.iter().filter(|block| block.marker > 0).count();
        jemalloc += world.blocks.iter().filter(|block| block.kind == 12).count();
        moved += events.iter().filter(|event| matches!(event.what, Told::Remap(..) | Told::Brk(..))).count();
        rss += world.maps.iter().filter(|map| map.peak_rss > 0).count();
        let holds = |block: &Block, map: &Map| {
            map.had.iter().any(|(page, from, until)| *page == block.addr / 4096 && (*from..*until).contains(&block.from))
        };
        in_maps += world.blocks.iter().filter(|block| world.maps.iter().any(|map| holds(block, map))).count();
    }
    for (what, count) in [
        ("chains", chains),
        ("released", released),
        ("markers", markers),
        ("jemalloc", jemalloc),
        ("moved", moved),
        ("rss", rss),
        ("in maps", in_maps),
    ] {
        assert!(count > 5, "{what}: {count}");
    }
}
