//! `Data`: a capture.

use super::allocations::AllocationList;
use super::api::{Api, Origin};
use super::dataset::Dataset;
use super::duration::Duration;
use super::limits::Meter;
use super::maps::MapList;
use std::sync::Arc;

/// A capture that was loaded.
#[derive(Clone)]
pub struct Data {
    /// What it is.
    pub set: Arc<Dataset>,
    /// Who counts what is taken.
    pub meter: Meter,
}

/// What scripts ask of a capture.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<Data>("Data");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |data: &mut Data| format!("Data of {}", data.set.file.display()));
    }
    api.about("Data", "data_has_allocations_maps_and_a_runtime");
    api.function("allocations", "(self: Data) -> AllocationList", "All allocations of the capture.", |data: &mut Data| {
        AllocationList::all(&data.set, &data.meter)
    });
    api.function("maps", "(self: Data) -> MapList", "All maps of the capture.", |data: &mut Data| MapList::all(&data.set));
    api.function("runtime", "(self: Data) -> Duration", "How long was recorded.", |data: &mut Data| Duration::of_ns(data.set.end_ns()));
    api.of(Origin::Hound);
    api.function("path", "(self: Data) -> String", "Where it was loaded from.", |data: &mut Data| data.set.file.display().to_string());
}
