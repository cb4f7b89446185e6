//! `Allocation`: one block.

use super::api::{Api, Origin};
use super::backtrace::Backtrace;
use super::dataset::Dataset;
use super::duration::Duration;
use super::maybe::{MaybeDuration, Nothing};
use hound_common::hook::{Kind, Role};
use rhai::Dynamic;
use std::sync::Arc;

/// One block of a capture.
#[derive(Clone)]
pub struct Allocation {
    /// Whose.
    pub data: Arc<Dataset>,
    /// Which row.
    pub row: u32,
}

impl Allocation {
    fn at(&self) -> usize {
        self.row as usize
    }

    fn ended(&self) -> Option<Duration> {
        self.data.has_ended(self.row).then(|| Duration::of_ns(self.data.view().end_ns[self.at()]))
    }

    /// Whether a reallocating function made it.
    fn grows(&self) -> bool {
        Kind::from_u8(self.data.view().kind[self.at()]).is_some_and(|kind| kind.role() == Role::Realloc)
    }

    fn printed(&self) -> String {
        let view = self.data.view();
        format!("Allocation of {} bytes at {:#x}", view.size[self.at()], self.data.addr(self.row))
    }
}

/// What scripts ask of a block.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<Allocation>("Allocation");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |block: &mut Allocation| block.printed());
    }
    api.about("Allocation", "an_allocation_tells_when_and_where");
    api.function(
        "allocated_at",
        "(self: Allocation) -> Duration",
        "When it was allocated, from the start of the recording on.",
        |block: &mut Allocation| Duration::of_ns(block.data.view().alloc_ns[block.at()]),
    );
    api.function("backtrace", "(self: Allocation) -> Backtrace", "Where it was allocated.", |block: &mut Allocation| Backtrace {
        path: block.data.path_of(block.row),
        data: block.data.clone(),
        stripped: false,
        grows: block.grows(),
    });
    api.function(
        "deallocated_at",
        "(self: Allocation) -> Option<Duration>",
        "When it was released, from the start of the recording on; prints as `None` if it was not, and as `Some(…)` if it was.",
        |block: &mut Allocation| MaybeDuration(block.ended()),
    );
    own(api);
}

fn own(api: &mut Api<'_>) {
    api.about("Allocation", "an_allocation_tells_all_of_itself").of(Origin::Hound);
    api.function("size", "(self: Allocation) -> Integer", "Bytes asked for.", |block: &mut Allocation| {
        i64::try_from(block.data.view().size[block.at()]).unwrap_or(i64::MAX)
    });
    api.function("address", "(self: Allocation) -> Integer", "Where it lay.", |block: &mut Allocation| block.data.addr(block.row) as i64);
    api.function("kind", "(self: Allocation) -> String", "By which function: `malloc`, `realloc`, …", |block: &mut Allocation| {
        Kind::from_u8(block.data.view().kind[block.at()]).map_or("unknown", Kind::name).to_owned()
    });
    api.function(
        "tid",
        "(self: Allocation) -> Integer",
        "Which thread allocated it, as the kernel numbers it.",
        |block: &mut Allocation| {
            let stream = block.data.view().stream[block.at()];
            i64::from(block.data.streams().iter().find(|info| info.id.0 == stream).map_or(0, |info| info.tid))
        },
    );
    api.function(
        "lifetime",
        "(self: Allocation) -> Duration",
        "How long it lived; if it was not released, up to the end of the recording.",
        |block: &mut Allocation| {
            let view = block.data.view();
            Duration::of_ns(view.end_ns[block.at()].saturating_sub(view.alloc_ns[block.at()]))
        },
    );
    api.function("is_leaked", "(self: Allocation) -> Bool", "Whether it was never released.", |block: &mut Allocation| {
        block.data.is_leaked(block.row)
    });
    api.function(
        "weight",
        "(self: Allocation) -> Float",
        "How many allocations it stands for: 1, or more if it is a sample.",
        |block: &mut Allocation| block.data.weight(block.row),
    );
    api.function("position_in_chain", "(self: Allocation) -> Integer", "How many reallocations led to it.", |block: &mut Allocation| {
        i64::from(block.data.view().chain_length[block.at()])
    });
    api.function(
        "deallocation_backtrace",
        "(self: Allocation) -> Option<Backtrace>",
        "Where it was released; `None` if it was not, or stacks of releases were not recorded.",
        |block: &mut Allocation| match block.data.release_path_of(block.row) {
            Some(path) => Dynamic::from(Backtrace { data: block.data.clone(), path, stripped: false, grows: false }),
            None => Dynamic::from(Nothing),
        },
    );
}
