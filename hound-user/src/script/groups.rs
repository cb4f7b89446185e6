//! `AllocationGroupList`: blocks by backtrace.

use super::allocations::{AllocationList, out_of_range};
use super::api::{Api, Origin};
use super::condition::Condition;
use super::dataset::Dataset;
use super::fault::{Refusal, refused};
use super::paths::PathId;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// The blocks of a list that come from one backtrace.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Which.
    pub path: PathId,
    /// How many.
    pub count: u64,
    /// How many bytes they have together; samples, what they stand for.
    pub bytes: f64,
    /// None of them was released.
    pub all_leaked: bool,
}

/// Groups of blocks.
#[derive(Clone)]
pub struct AllocationGroupList {
    list: AllocationList,
    groups: Arc<[Group]>,
}

impl AllocationGroupList {
    /// A group for each backtrace of the list.
    ///
    /// # Errors
    /// If the script may not take so much.
    pub fn of(list: &AllocationList) -> Result<Self, Refusal> {
        let data = list.0.data();
        let rows = list.0.rows()?;
        let mut numbers: HashMap<PathId, usize> = HashMap::new();
        let mut groups: Vec<Group> = Vec::new();
        for row in rows.iter() {
            let path = data.path_of(row);
            let at = *numbers.entry(path).or_insert(groups.len());
            if at == groups.len() {
                groups.push(Group { path, count: 0, bytes: 0.0, all_leaked: true });
            }
            let group = &mut groups[at];
            group.count += 1;
            group.bytes += data.view().size[row as usize] as f64 * data.weight(row);
            group.all_leaked &= data.is_leaked(row);
        }
        Ok(AllocationGroupList { list: list.clone(), groups: groups.into() })
    }

    /// Whose blocks.
    pub fn data(&self) -> &Arc<Dataset> {
        self.list.0.data()
    }

    /// The groups.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// What they were made of, and more.
    pub fn list(&self) -> &AllocationList {
        &self.list
    }

    /// The backtraces, in order.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + '_ {
        self.groups.iter().map(|group| group.path)
    }

    fn with(&self, groups: Vec<Group>) -> Self {
        AllocationGroupList { list: self.list.clone(), groups: groups.into() }
    }

    fn only(&self, keep: impl Fn(&Group) -> bool) -> Self {
        self.with(self.groups.iter().filter(|group| keep(group)).copied().collect())
    }

    fn sorted<K: Ord>(&self, key: impl Fn(&Group) -> K) -> Self {
        let mut groups = self.groups.to_vec();
        groups.sort_by_key(|group| key(group));
        self.with(groups)
    }

    fn member(&self, group: &Group) -> Result<AllocationList, Refusal> {
        self.list.only(Condition::AtPath(group.path))
    }

    fn get(&self, index: i64) -> Result<AllocationList, Refusal> {
        match usize::try_from(index).ok().and_then(|index| self.groups.get(index)) {
            Some(group) => self.member(group),
            None => refused(out_of_range("groups", index, self.groups.len())),
        }
    }

    /// All their blocks.
    ///
    /// # Errors
    /// If the script may not take so much.
    pub fn ungroup(&self) -> Result<AllocationList, Refusal> {
        let mut set = vec![false; self.data().paths().len()];
        self.paths().for_each(|path| set[path as usize] = true);
        self.list.only(Condition::Path(set.into(), true))
    }
}

impl IntoIterator for AllocationGroupList {
    type Item = Result<AllocationList, Refusal>;
    type IntoIter = Box<dyn Iterator<Item = Self::Item>>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new((0..self.groups.len()).map(move |at| self.member(&self.groups[at])))
    }
}

/// Bytes in an order that all numbers have.
fn bytes(group: &Group) -> u64 {
    group.bytes.round() as u64
}

/// What scripts do with groups.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<AllocationGroupList>("AllocationGroupList");
    api.engine.register_iterator_result::<AllocationGroupList, AllocationList>();
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |groups: &mut AllocationGroupList| format!("AllocationGroupList of {}", groups.groups.len()));
    }
    api.about("AllocationGroupList", "groups_are_sorted_cut_and_walked");
    api.entry("(iterator)", "Groups can be walked: `for group in groups { … }`.").signature("-> AllocationList");
    api.function(
        "[]",
        "(index: Integer) -> AllocationList",
        "The allocations of a group, from 0.",
        |groups: &mut AllocationGroupList, index: i64| groups.get(index),
    );
    api.function("len", "(self: AllocationGroupList) -> Integer", "How many groups there are.", |groups: &mut AllocationGroupList| {
        groups.groups.len() as i64
    });
    api.function(
        "only_all_leaked",
        "(self: AllocationGroupList) -> AllocationGroupList",
        "A new list with only the groups of which no allocation was released.",
        |groups: &mut AllocationGroupList| groups.only(|group| group.all_leaked),
    );
    api.function(
        "only_count_at_least",
        "(self: AllocationGroupList, threshold: Integer) -> AllocationGroupList",
        "A new list with only the groups of at least so many allocations.",
        |groups: &mut AllocationGroupList, threshold: i64| groups.only(|group| i128::from(group.count) >= i128::from(threshold)),
    );
    sorting(api);
    api.function(
        "take",
        "(self: AllocationGroupList, count: Integer) -> AllocationGroupList",
        "A new list with at most so many groups, the first ones.",
        |groups: &mut AllocationGroupList, count: i64| match usize::try_from(count) {
            Ok(count) => Ok(groups.with(groups.groups.iter().take(count).copied().collect())),
            Err(_) => refused(format!("{count} groups cannot be taken")),
        },
    );
    api.function(
        "ungroup",
        "(self: AllocationGroupList) -> AllocationList",
        "All their allocations in one list again.",
        |groups: &mut AllocationGroupList| groups.ungroup(),
    );
    own(api);
}

fn sorting(api: &mut Api<'_>) {
    const SIGNATURE: &str = "(self: AllocationGroupList) -> AllocationGroupList";
    api.function(
        "sort_by_count_ascending",
        SIGNATURE,
        "The same, those with the fewest allocations first.",
        |groups: &mut AllocationGroupList| groups.sorted(|group| group.count),
    );
    for (name, meaning) in [
        ("sort_by_count_descending", "The same, those with the most allocations first."),
        ("sort_by_count", "As `sort_by_count_descending`."),
    ] {
        api.function(name, SIGNATURE, meaning, |groups: &mut AllocationGroupList| groups.sorted(|group| Reverse(group.count)));
    }
    api.function(
        "sort_by_size_ascending",
        SIGNATURE,
        "The same, those with the fewest bytes first.",
        |groups: &mut AllocationGroupList| groups.sorted(bytes),
    );
    for (name, meaning) in
        [("sort_by_size_descending", "The same, those with the most bytes first."), ("sort_by_size", "As `sort_by_size_descending`.")]
    {
        api.function(name, SIGNATURE, meaning, |groups: &mut AllocationGroupList| groups.sorted(|group| Reverse(bytes(group))));
    }
}

fn own(api: &mut Api<'_>) {
    api.about("AllocationGroupList", "groups_are_sorted_cut_and_walked").of(Origin::Hound);
    api.function("is_empty", "(self: AllocationGroupList) -> Bool", "Whether there are none.", |groups: &mut AllocationGroupList| {
        groups.groups.is_empty()
    });
}
