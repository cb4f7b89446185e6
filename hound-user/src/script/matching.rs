//! What stands for backtraces in filters: backtraces, their numbers, and lists of what comes from them.

use super::allocation::Allocation;
use super::allocations::AllocationList;
use super::backtrace::{Backtrace, path_of};
use super::dataset::{Dataset, must_be_one};
use super::fault::{Refusal, refused};
use super::groups::AllocationGroupList;
use super::map::Map;
use super::maps::MapList;
use super::paths::PathId;
use rhai::{Array, Dynamic};
use std::sync::Arc;

/// By path: whether it is among these.
///
/// # Errors
/// If something is no backtrace, or of another capture.
pub fn paths_of(data: &Arc<Dataset>, of: Dynamic) -> Result<Vec<bool>, Refusal> {
    let mut set = vec![false; data.paths().len()];
    add(data, of, &mut set)?;
    Ok(set)
}

fn add(data: &Arc<Dataset>, of: Dynamic, set: &mut [bool]) -> Result<(), Refusal> {
    let mut mark = |path: PathId| set[path as usize] = true;
    if let Some(number) = of.clone().try_cast::<i64>() {
        mark(path_of(data, number)?);
    } else if let Some(backtrace) = of.clone().try_cast::<Backtrace>() {
        must_be_one(data, &backtrace.data)?;
        mark(backtrace.path);
    } else if let Some(list) = of.clone().try_cast::<AllocationList>() {
        must_be_one(data, list.0.data())?;
        list.0.rows()?.iter().for_each(|row| mark(data.path_of(row)));
    } else if let Some(groups) = of.clone().try_cast::<AllocationGroupList>() {
        must_be_one(data, groups.data())?;
        groups.paths().for_each(mark);
    } else if let Some(maps) = of.clone().try_cast::<MapList>() {
        must_be_one(data, &maps.data)?;
        maps.numbers.iter().filter_map(|map| data.map_path(*map)).for_each(mark);
    } else if let Some(block) = of.clone().try_cast::<Allocation>() {
        must_be_one(data, &block.data)?;
        mark(data.path_of(block.row));
    } else if let Some(map) = of.clone().try_cast::<Map>() {
        must_be_one(data, &map.data)?;
        data.map_path(map.number).into_iter().for_each(mark);
    } else if of.is_array() {
        let kind = of.type_name();
        let Some(all) = of.try_cast::<Array>() else { return refused(format!("{kind} is no backtrace")) };
        return all.into_iter().try_for_each(|one| add(data, one, set));
    } else {
        let kind = of.type_name();
        return refused(format!(
            "{kind} stands for no backtrace: give a Backtrace, its number, a list of allocations, groups or maps, or an array of such"
        ));
    }
    Ok(())
}
