//! `MapList`: maps of a capture, in the order in which they were mapped.

use super::allocations::{out_of_range, passing_through, spans};
use super::api::{Api, Origin};
use super::condition::Test;
use super::dataset::{Dataset, must_be_one};
use super::duration::Duration;
use super::fault::{Refusal, refused};
use super::map::Map;
use super::matching::paths_of;
use crate::heap::MapRecord;
use crate::symbols::Frame;
use rhai::{Array, Dynamic};
use std::sync::Arc;

/// Maps of a capture.
#[derive(Clone)]
pub struct MapList {
    /// Whose.
    pub data: Arc<Dataset>,
    /// Which, ascending.
    pub numbers: Arc<[u32]>,
}

/// Protection bits as mmap has them.
const READ: u32 = 1;
const WRITE: u32 = 2;
const EXECUTE: u32 = 4;

impl MapList {
    /// Every map.
    pub fn all(data: &Arc<Dataset>) -> Self {
        let numbers = (0..data.events().maps.len() as u32).collect();
        MapList { data: data.clone(), numbers }
    }

    fn with(&self, numbers: Arc<[u32]>) -> Self {
        MapList { numbers, ..self.clone() }
    }

    fn only(&self, keep: impl Fn(u32, &MapRecord) -> bool) -> Self {
        let maps = &self.data.events().maps;
        self.with(self.numbers.iter().copied().filter(|number| keep(*number, &maps[*number as usize])).collect())
    }

    fn joined(&self, other: &Self, keep: impl Fn(bool, bool) -> bool) -> Result<Self, Refusal> {
        must_be_one(&self.data, &other.data)?;
        let has = |list: &Self, number: &u32| list.numbers.binary_search(number).is_ok();
        let mut numbers: Vec<u32> = self.numbers.iter().chain(other.numbers.iter()).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.retain(|number| keep(has(self, number), has(other, number)));
        Ok(self.with(numbers.into()))
    }

    /// What another list has not.
    ///
    /// # Errors
    /// If they are of two captures.
    pub fn without(&self, other: &Self) -> Result<Self, Refusal> {
        self.joined(other, |here, there| here && !there)
    }

    /// With what another list has.
    ///
    /// # Errors
    /// If they are of two captures.
    pub fn and(&self, other: &Self) -> Result<Self, Refusal> {
        self.joined(other, |here, there| here || there)
    }

    fn get(&self, index: i64) -> Result<Map, Refusal> {
        match usize::try_from(index).ok().and_then(|index| self.numbers.get(index)) {
            Some(&number) => Ok(Map { data: self.data.clone(), number }),
            None => refused(out_of_range("maps", index, self.numbers.len())),
        }
    }

    /// Where and when these maps were: a Map, a MapList, a number, or an array of such. By start.
    ///
    /// # Errors
    /// If something is no map, or of another capture.
    pub fn places_of(data: &Arc<Dataset>, of: Dynamic) -> Result<Vec<(u64, u64, u64, u64)>, Refusal> {
        let mut numbers = Vec::new();
        collect(&MapList::all(data), of, &mut numbers)?;
        numbers.sort_unstable();
        numbers.dedup();
        let maps = &data.events().maps;
        let mut places: Vec<_> = numbers.into_iter().flat_map(|number| maps[number as usize].places.iter().copied()).collect();
        places.sort_unstable();
        Ok(places)
    }
}

fn collect(all: &MapList, of: Dynamic, numbers: &mut Vec<u32>) -> Result<(), Refusal> {
    let kind = of.type_name();
    if let Some(number) = of.clone().try_cast::<i64>() {
        let map = u32::try_from(number).ok().filter(|map| (*map as usize) < all.numbers.len());
        match map {
            Some(map) => numbers.push(map),
            None => return refused(format!("there is no map {number}: the capture has {}", all.numbers.len())),
        }
    } else if let Some(map) = of.clone().try_cast::<Map>() {
        must_be_one(&all.data, &map.data)?;
        numbers.push(map.number);
    } else if let Some(list) = of.clone().try_cast::<MapList>() {
        must_be_one(&all.data, &list.data)?;
        numbers.extend(list.numbers.iter());
    } else if let Some(array) = of.try_cast::<Array>() {
        return array.into_iter().try_for_each(|one| collect(all, one, numbers));
    } else {
        return refused(format!("{kind} is no map: give a Map, a MapList, a map's number, or an array of such"));
    }
    Ok(())
}

fn signed(ns: u64) -> i128 {
    i128::from(ns)
}

fn only(what: &str) -> String {
    format!("A new list with only the maps {what}.")
}

/// What scripts do with lists of maps.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<MapList>("MapList");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |list: &mut MapList| format!("MapList of {}", list.numbers.len()));
    }
    api.about("MapList", "lists_of_maps_are_put_together_and_taken_apart");
    api.function("len", "(self: MapList) -> Integer", "How many maps the list has.", |list: &mut MapList| list.numbers.len() as i64);
    type Keep = fn(bool, bool) -> bool;
    let joins: [(&str, Keep, &str); 3] = [
        ("-", |a, b| a && !b, "What is in the first list and not in the second."),
        ("+", |a, b| a || b, "What is in one of the lists, each once."),
        ("&", |a, b| a && b, "What is in both lists."),
    ];
    for (name, keep, meaning) in joins {
        api.function(name, "(lhs: MapList, rhs: MapList) -> MapList", meaning, move |a: MapList, b: MapList| a.joined(&b, keep));
    }
    api.function("[]", "(index: Integer) -> Map", "A map of the list, from 0.", |list: &mut MapList, index: i64| list.get(index));
    numbers(api);
    times(api);
    kinds(api);
    by_backtrace(api);
    api.about("MapList", "lists_of_maps_are_put_together_and_taken_apart").of(Origin::Hound);
    api.function("is_empty", "(self: MapList) -> Bool", "Whether the list has none.", |list: &mut MapList| list.numbers.is_empty());
}

fn numbers(api: &mut Api<'_>) {
    api.about("MapList", "every_filter_of_maps_gives_what_a_model_gives");
    type Number = fn(&MapList, u32, &MapRecord) -> u64;
    let (size, addr): (Number, Number) = (|_, _, map| map.size(), |_, _, map| map.addr);
    let rss: Number = |_, _, map| map.peak_resident();
    let depth: Number = |list, number, _| list.data.map_path(number).map_or(0, |path| u64::from(list.data.paths().depth(path)));
    let filters: [(&str, &str, Number, Test, &str); 10] = [
        ("only_address_at_least", "address", addr, Test::AtLeast, "whose address is equal to the given one or higher"),
        ("only_address_at_most", "address", addr, Test::AtMost, "whose address is equal to the given one or lower"),
        ("only_backtrace_length_at_least", "threshold", depth, Test::AtLeast, "whose backtrace has at least so many frames"),
        ("only_backtrace_length_at_most", "threshold", depth, Test::AtMost, "whose backtrace has at most so many frames"),
        ("only_larger", "threshold", size, Test::Above, "of more bytes of address space"),
        ("only_larger_or_equal", "threshold", size, Test::AtLeast, "of at least so many bytes of address space"),
        ("only_peak_rss_at_least", "threshold", rss, Test::AtLeast, "of which at least so many bytes were resident at some time"),
        ("only_peak_rss_at_most", "threshold", rss, Test::AtMost, "of which at most so many bytes were resident at any time"),
        ("only_smaller", "threshold", size, Test::Below, "of fewer bytes of address space"),
        ("only_smaller_or_equal", "threshold", size, Test::AtMost, "of at most so many bytes of address space"),
    ];
    for (name, argument, number, test, what) in filters {
        let signature = format!("(self: MapList, {argument}: Integer) -> MapList");
        api.function(name, &signature, only(what), move |list: &mut MapList, threshold: i64| {
            list.only(|at, map| test.holds(signed(number(list, at, map)), i128::from(threshold)))
        });
    }
}

fn times(api: &mut Api<'_>) {
    type Moment = fn(&MapRecord, u64) -> Option<u64>;
    let life: Moment = |map, end| Some(map.unmapped_ns.unwrap_or(end).saturating_sub(map.mapped_ns));
    let (mapped, unmapped): (Moment, Moment) = (|map, _| Some(map.mapped_ns), |map, _| map.unmapped_ns);
    let filters: [(&str, Moment, Test, &str); 6] = [
        (
            "only_alive_for_at_least",
            life,
            Test::AtLeast,
            "that lived at least so long; those that were not unmapped, up to the end of the recording",
        ),
        (
            "only_alive_for_at_most",
            life,
            Test::AtMost,
            "that lived at most so long; those that were not unmapped, up to the end of the recording",
        ),
        ("only_allocated_after_at_least", mapped, Test::AtLeast, "mapped so long after the start or later"),
        ("only_allocated_until_at_most", mapped, Test::AtMost, "mapped so long after the start or earlier"),
        ("only_deallocated_after_at_least", unmapped, Test::AtLeast, "unmapped so long after the start or later"),
        ("only_deallocated_until_at_most", unmapped, Test::AtMost, "unmapped so long after the start or earlier"),
    ];
    for (name, moment, test, what) in filters {
        api.function(name, "(self: MapList, duration: Duration) -> MapList", only(what), move |list: &mut MapList, span: Duration| {
            let end = list.data.end_ns();
            list.only(|_, map| moment(map, end).is_some_and(|moment| test.holds(signed(moment), i128::from(span.0))))
        });
    }
    api.function(
        "only_leaked_or_deallocated_after",
        "(self: MapList, duration: Duration) -> MapList",
        only("that were never unmapped, or so long after the start or later"),
        |list: &mut MapList, span: Duration| list.only(|_, map| map.unmapped_ns.is_none_or(|moment| signed(moment) >= i128::from(span.0))),
    );
    let alive = |list: &MapList, moments: &[i64]| {
        let lives =
            |map: &MapRecord, moment: i128| signed(map.mapped_ns) <= moment && map.unmapped_ns.is_none_or(|end| moment < signed(end));
        list.only(|_, map| moments.iter().all(|moment| lives(map, i128::from(*moment))))
    };
    api.entry("only_alive_at", only("that were there at each of these moments, counted from the start"))
        .overload("(self: MapList, durations: [Duration]) -> MapList", move |list: &mut MapList, moments: Array| {
            Ok::<_, Refusal>(alive(list, &spans(moments)?))
        })
        .overload("(self: MapList, duration: Duration) -> MapList", move |list: &mut MapList, moment: Duration| alive(list, &[moment.0]));
}

fn kinds(api: &mut Api<'_>) {
    type Is = fn(&MapList, u32, &MapRecord) -> bool;
    let hounds: Is = |list, number, _| passes(list, number, |frame| is_hounds(frame.module));
    let jemallocs: Is = |list, number, _| passes(list, number, is_jemallocs);
    let leaked: Is = |_, _, map| map.unmapped_ns.is_none();
    let (read, write, execute): (Is, Is, Is) =
        (|_, _, map| map.prot & READ != 0, |_, _, map| map.prot & WRITE != 0, |_, _, map| map.prot & EXECUTE != 0);
    let filters: [(&str, Is, bool, &str); 12] = [
        ("only_bytehound", hounds, true, "that the profiler itself made"),
        ("only_executable", execute, true, "that were mapped to be executed"),
        ("only_jemalloc", jemallocs, true, "that jemalloc made"),
        ("only_leaked", leaked, true, "that were never unmapped. Opposite of `only_temporary`"),
        ("only_not_bytehound", hounds, false, "that the profiler did not make itself"),
        ("only_not_executable", execute, false, "that were not mapped to be executed"),
        ("only_not_jemalloc", jemallocs, false, "that jemalloc did not make"),
        ("only_not_readable", read, false, "that were not mapped to be read"),
        ("only_not_writable", write, false, "that were not mapped to be written"),
        ("only_readable", read, true, "that were mapped to be read"),
        ("only_temporary", leaked, false, "that were unmapped. Opposite of `only_leaked`"),
        ("only_writable", write, true, "that were mapped to be written"),
    ];
    for (name, is, wanted, what) in filters {
        api.function(name, "(self: MapList) -> MapList", only(what), move |list: &mut MapList| {
            list.only(|number, map| is(list, number, map) == wanted)
        });
    }
}

fn is_hounds(module: &str) -> bool {
    let base = module.rsplit('/').next().unwrap_or(module);
    module == crate::capture::MAPPED_LIBRARY || base.starts_with("libhound")
}

fn is_jemallocs(frame: &Frame<'_>) -> bool {
    let base = frame.module.rsplit('/').next().unwrap_or(frame.module);
    base.contains("jemalloc")
        || frame.function.contains("jemalloc")
        || ["je_", "_rjem_"].iter().any(|prefix| frame.function.starts_with(prefix))
}

/// Whether a frame of the map's backtrace is such.
fn passes(list: &MapList, number: u32, is: impl Fn(&Frame<'_>) -> bool) -> bool {
    list.data.map_path(number).is_some_and(|path| list.data.paths().frames(path).iter().any(|of| is(&of.frame)))
}

fn by_backtrace(api: &mut Api<'_>) {
    const ONE: &str = "Backtrace|AllocationList|MapList|AllocationGroupList|Integer";
    let matching: [(&str, bool, bool, &str); 4] = [
        ("only_matching_backtraces", false, true, "that come from one of these backtraces"),
        ("only_matching_deallocation_backtraces", true, true, "that were unmapped at one of these backtraces"),
        ("only_not_matching_backtraces", false, false, "that come from none of these backtraces"),
        ("only_not_matching_deallocation_backtraces", true, false, "that were unmapped at none of these backtraces, or not at all"),
    ];
    for (name, of_release, wanted, what) in matching {
        let filter = move |list: &mut MapList, of: Dynamic| {
            let set = paths_of(&list.data, of)?;
            let path = |number| if of_release { list.data.unmap_path(number) } else { list.data.map_path(number) };
            Ok::<_, Refusal>(list.only(|number, _| path(number).is_some_and(|path| set[path as usize]) == wanted))
        };
        api.entry(name, only(what))
            .signature(&format!("(self: MapList, backtrace_ids: [{ONE}]) -> MapList"))
            .overload(&format!("(self: MapList, backtrace_ids: {ONE}) -> MapList"), filter);
    }
    let passing: [(&str, bool, bool, &str); 4] = [
        ("only_not_passing_through_function", true, false, "no function of whose backtrace matches the regular expression"),
        ("only_not_passing_through_source", false, false, "no source file of whose backtrace matches the regular expression"),
        ("only_passing_through_function", true, true, "a function of whose backtrace matches the regular expression"),
        ("only_passing_through_source", false, true, "a source file of whose backtrace matches the regular expression"),
    ];
    for (name, function, wanted, what) in passing {
        api.function(name, "(self: MapList, regex: String) -> MapList", only(what), move |list: &mut MapList, text: &str| {
            let set = passing_through(&list.data, text, function)?;
            Ok::<_, Refusal>(list.only(|number, _| list.data.map_path(number).is_some_and(|path| set[path as usize]) == wanted))
        });
    }
}
