//! How fast replay turns events into blocks. `cargo bench -p hound-user --bench replay`.

use divan::counter::ItemsCount;
use hound_common::hook::Kind;
use hound_user::capture::Visitor;
use hound_user::capture::model::{Alloc, Free, StackId, StreamId};
use hound_user::heap::{Block, Ending, Peak, Replay};

fn main() {
    divan::main();
}

const EVENTS: u64 = 2_000_000;

/// A service's heap: `live` blocks, of which a random one is replaced by a new one at each step.
#[divan::bench(args = [100, 10_000, 1_000_000], max_time = 3)]
fn churn(bencher: divan::Bencher<'_, '_>, live: usize) {
    bencher.counter(ItemsCount::new(EVENTS)).bench(|| {
        let mut sum = 0u64;
        let mut replay = Replay::new(|block: &Block, _: &Ending, _: &Peak| sum += block.size);
        let (mut random, mut addresses) = (1u64, vec![0u64; live]);
        for step in 0..EVENTS / 2 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let slot = (random >> 33) as usize % live;
            let stream = StreamId((random >> 20) as u32 % 4);
            if addresses[slot] != 0 {
                let free = Free { addr: addresses[slot], kind: Kind::Free, pool: 0, realloc: false, stack: None };
                replay.free(step * 100, stream, &free);
            }
            // Reused as an allocator would: the slot is the address.
            addresses[slot] = 0x5555_0000_0000 + slot as u64 * 48;
            let stack = StackId((random >> 40) as u32 % 5000);
            let size = 16 + random % 200;
            let alloc = Alloc { addr: addresses[slot], size, usable: None, kind: Kind::Malloc, flags: 0, pool: 0, previous: None, stack };
            replay.alloc(step * 100 + 50, stream, &alloc);
        }
        divan::black_box(replay.finish());
        sum
    });
}
