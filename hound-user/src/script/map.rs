//! `Map`: address space that the program mapped.

use super::api::{Api, Origin};
use super::backtrace::Backtrace;
use super::dataset::Dataset;
use super::duration::Duration;
use super::maybe::{MaybeDuration, Nothing};
use super::paths::PathId;
use crate::heap::MapRecord;
use rhai::Dynamic;
use std::sync::Arc;

/// One map of a capture.
#[derive(Clone)]
pub struct Map {
    /// Whose.
    pub data: Arc<Dataset>,
    /// Which.
    pub number: u32,
}

impl Map {
    /// All that is known of it.
    pub fn record(&self) -> &MapRecord {
        &self.data.events().maps[self.number as usize]
    }

    fn backtrace(&self, path: Option<PathId>) -> Dynamic {
        match path {
            Some(path) => Dynamic::from(Backtrace { data: self.data.clone(), path, stripped: false, grows: false }),
            None => Dynamic::from(Nothing),
        }
    }
}

/// What scripts ask of a map.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<Map>("Map");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |map: &mut Map| format!("Map of {} bytes at {:#x}", map.record().size(), map.record().addr));
    }
    api.about("Map", "maps_tell_when_and_where");
    api.function("allocated_at", "(self: Map) -> Duration", "When it was mapped, from the start of the recording on.", |map: &mut Map| {
        Duration::of_ns(map.record().mapped_ns)
    });
    api.function(
        "backtrace",
        "(self: Map) -> Option<Backtrace>",
        "Where it was mapped; `None` for the heap of `brk`, which grows without a stack.",
        |map: &mut Map| map.backtrace(map.data.map_path(map.number)),
    );
    api.function(
        "deallocated_at",
        "(self: Map) -> Option<Duration>",
        "When the last of it was unmapped; prints as `None` if it was not, and as `Some(…)` if it was.",
        |map: &mut Map| MaybeDuration(map.record().unmapped_ns.map(Duration::of_ns)),
    );
    own(api);
}

fn own(api: &mut Api<'_>) {
    api.about("Map", "maps_tell_when_and_where").of(Origin::Hound);
    api.function("id", "(self: Map) -> Integer", "Its number, which `only_from_maps` takes, too.", |map: &mut Map| i64::from(map.number));
    api.function("address", "(self: Map) -> Integer", "Where it was mapped first.", |map: &mut Map| map.record().addr as i64);
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    api.function("size", "(self: Map) -> Integer", "Most bytes of address space it ever had.", move |map: &mut Map| {
        bytes(map.record().size())
    });
    api.function("peak_rss", "(self: Map) -> Integer", "Most bytes of it that were seen to be resident.", move |map: &mut Map| {
        bytes(map.record().peak_resident())
    });
    api.function(
        "deallocation_backtrace",
        "(self: Map) -> Option<Backtrace>",
        "Where the last of it was unmapped; `None` if it was not.",
        |map: &mut Map| map.backtrace(map.data.unmap_path(map.number)),
    );
}
