//! What each filter means, the plainest way: a list of blocks with what happened to each, and a loop over it. Nothing here is shared with
//! what it judges.

use super::scene::{Event, FUNCTIONS, INLINED, INLINED_AT, Told};
use proptest::prelude::*;
use regex::Regex;

/// A block as it was told.
#[derive(Clone, Debug)]
pub struct Block {
    pub addr: u64,
    pub size: u64,
    pub kind: u8,
    pub flags: u8,
    pub from: u64,
    pub freed: Option<u64>,
    pub path: Vec<usize>,
    pub free_path: Option<Vec<usize>>,
    /// The block that a realloc made this of.
    pub before: Option<usize>,
    pub marker: u32,
}

/// A map as it was told.
#[derive(Clone, Debug, Default)]
pub struct Map {
    pub addr: u64,
    pub prot: u32,
    pub from: u64,
    pub gone: Option<u64>,
    pub path: Option<Vec<usize>>,
    pub gone_path: Option<Vec<usize>>,
    /// Pages that it has now, by number.
    pub pages: Vec<u64>,
    pub most_pages: usize,
    pub peak_rss: u64,
    /// Page, from when, until when.
    pub had: Vec<(u64, u64, u64)>,
}

/// All that was told.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub blocks: Vec<Block>,
    pub maps: Vec<Map>,
    pub end: u64,
}

impl World {
    pub fn of(events: &[Event], end: u64) -> World {
        let mut world = World { end, ..World::default() };
        let mut marker = 0;
        for event in events {
            match event.what {
                Told::Alloc(addr, size, kind, flags, previous) => {
                    let before =
                        previous.and_then(|addr| world.blocks.iter().rposition(|block| block.addr == addr && block.freed.is_some()));
                    let path = event.path.clone().unwrap_or_default();
                    world.blocks.push(Block {
                        addr,
                        size,
                        kind,
                        flags,
                        from: event.at,
                        freed: None,
                        path,
                        free_path: None,
                        before,
                        marker,
                    });
                }
                Told::Free(addr, _) => {
                    let block = world.blocks.iter_mut().rev().find(|block| block.addr == addr && block.freed.is_none()).expect("it lives");
                    (block.freed, block.free_path) = (Some(event.at), event.path.clone());
                }
                Told::Marker(number) => marker = number,
                _ => world.map(event),
            }
        }
        for map in &mut world.maps {
            let at = map.pages.clone();
            for page in at {
                map.close(page, u64::MAX);
            }
        }
        world
    }

    fn map(&mut self, event: &Event) {
        let pages = |addr: u64, length: u64| addr / 4096..(addr + length).div_ceil(4096);
        match event.what {
            Told::Map(addr, length, prot) => {
                self.unmap(pages(addr, length), event);
                let mut map = Map { addr, prot, from: event.at, path: event.path.clone(), ..Map::default() };
                pages(addr, length).for_each(|page| map.open(page, event.at));
                self.maps.push(map);
            }
            Told::Unmap(addr, length) => self.unmap(pages(addr, length), event),
            Told::Remap(addr, length, to, new) => {
                let owner = self.maps.iter().position(|map| map.pages.contains(&(addr / 4096))).expect("it is mapped");
                pages(addr, length).for_each(|page| self.maps[owner].close(page, event.at));
                self.unmap(pages(to, new), event);
                pages(to, new).for_each(|page| self.maps[owner].open(page, event.at));
            }
            Told::Brk(old, new) if new < old => self.unmap(pages(new, old - new), event),
            Told::Brk(old, new) => {
                let heap = self.maps.iter().position(|map| map.path.is_none() && map.pages.contains(&((old - 1) / 4096)));
                let heap = heap.unwrap_or_else(|| {
                    self.maps.push(Map { addr: old, prot: 3, from: event.at, ..Map::default() });
                    self.maps.len() - 1
                });
                pages(old, new - old).for_each(|page| self.maps[heap].open(page, event.at));
            }
            Told::Rss(addr, _, resident) => {
                if let Some(map) = self.maps.iter_mut().find(|map| map.pages.contains(&(addr / 4096))) {
                    map.peak_rss = map.peak_rss.max(resident);
                }
            }
            _ => {}
        }
    }

    fn unmap(&mut self, pages: std::ops::Range<u64>, event: &Event) {
        for map in &mut self.maps {
            let had = !map.pages.is_empty();
            pages.clone().for_each(|page| map.close(page, event.at));
            if had && map.pages.is_empty() {
                (map.gone, map.gone_path) = (Some(event.at), event.path.clone());
            }
        }
    }

    /// The first block of a chain, and the last.
    pub fn chain(&self, at: usize) -> Vec<usize> {
        let mut first = at;
        while let Some(before) = self.blocks[first].before {
            first = before;
        }
        let mut chain = vec![first];
        while let Some(next) = self.blocks.iter().position(|block| block.before == chain.last().copied()) {
            chain.push(next);
        }
        chain
    }

    /// Blocks from the same path.
    pub fn site(&self, at: usize) -> Vec<&Block> {
        self.blocks.iter().filter(|block| block.path == self.blocks[at].path).collect()
    }

    /// When most bytes of these lived, first.
    pub fn peak(&self, blocks: &[&Block]) -> u64 {
        let lives = |block: &Block, at: u64| block.from <= at && block.freed.is_none_or(|freed| at < freed);
        let held = |at: u64| blocks.iter().filter(|block| lives(block, at)).map(|block| block.size).sum::<u64>();
        let mut moments: Vec<u64> = blocks.iter().map(|block| block.from).collect();
        moments.sort_unstable();
        let most = moments.iter().map(|at| held(*at)).max().unwrap_or(0);
        moments.into_iter().find(|at| held(*at) == most).expect("there is one")
    }
}

impl Map {
    fn open(&mut self, page: u64, at: u64) {
        self.pages.push(page);
        self.had.push((page, at, u64::MAX));
        self.most_pages = self.most_pages.max(self.pages.len());
        (self.gone, self.gone_path) = (None, None);
    }

    fn close(&mut self, page: u64, at: u64) {
        if let Some(place) = self.pages.iter().position(|have| *have == page) {
            self.pages.remove(place);
            let had = self.had.iter_mut().rev().find(|(had, _, until)| *had == page && *until == u64::MAX).expect("it was opened");
            had.2 = at;
        }
    }
}

/// Function and file of each frame of a path, outermost first.
pub fn frames(path: &[usize]) -> Vec<(&'static str, &'static str)> {
    let of = |place: &usize| {
        let (function, file, ..) = FUNCTIONS[*place];
        let inlined = (*place == INLINED_AT).then_some((INLINED.0, INLINED.1));
        std::iter::once((function, file)).chain(inlined)
    };
    path.iter().flat_map(of).collect()
}

/// Whether a function (or a file) of the path matches.
pub fn passes(path: &[usize], pattern: &str, function: bool) -> bool {
    let pattern = Regex::new(pattern).expect("a pattern");
    frames(path).iter().any(|(name, file)| if function { pattern.is_match(name) } else { !file.is_empty() && pattern.is_match(file) })
}

/// What may happen next, in numbers that are taken for whatever is possible then.
type Draw = (u16, u8, u8, u16, u8);

/// Events that a program may have made: no address twice, nothing freed that is not there.
pub fn world(most: usize) -> impl Strategy<Value = (Vec<Event>, u64)> {
    let draw = (0..4000u16, 0..100u8, any::<u8>(), 1..5000u16, any::<u8>());
    (prop::collection::vec(draw, 1..most), 1..50_000u64).prop_map(|(draws, more)| {
        let mut events = Vec::new();
        let mut at = 16_000;
        for draw in draws {
            // Whole steps of the format: stamps are kept to 8 ns.
            at += u64::from(draw.0) * 1000 + 16_000;
            next(&mut events, at, draw);
        }
        (events, at + 16_000 + more * 1000)
    })
}

fn path_of(number: u8) -> Vec<usize> {
    const PATHS: [&[usize]; 10] = [
        &[0, 1],
        &[0, 1, 2],
        &[0, 1, 2, 3],
        &[0, 1, 3],
        &[0, 5, 1, 4],
        &[0, 1, 4, 6],
        &[1, 2, 4],
        &[0, 1, 2, 6],
        &[0, 1, 7],
        &[0, 1, 2, 8],
    ];
    PATHS[usize::from(number) % PATHS.len()].to_vec()
}

/// Addresses of 24 blocks, in the middle of what may be mapped.
const BLOCKS: u64 = 0x7000_0000_0000;
const MAPS: u64 = 0x7000_0000_0000;

fn next(events: &mut Vec<Event>, at: u64, (_, what, which, size, path): Draw) {
    let world = World::of(events, at);
    let live: Vec<u64> = world.blocks.iter().filter(|block| block.freed.is_none()).map(|block| block.addr).collect();
    let vacant: Vec<u64> = (0..24u64).map(|slot| BLOCKS + slot * 0x1000).filter(|addr| !live.contains(addr)).collect();
    let pick = |from: &[u64]| from.get(usize::from(which) % from.len().max(1)).copied();
    let mut tell = |path: Option<Vec<usize>>, what| events.push(Event { at, path, what });
    // malloc, calloc, memalign and mallocx.
    let kind = [1, 2, 6, 12][usize::from(path) % 4];
    let flags = [0, 4, 8, 12][usize::from(which) % 4];
    let length = u64::from(size) % 5 * 4096 + 1;
    let place = MAPS + u64::from(which) % 24 * 4096;
    let path_here = path_of(path);
    match what {
        0..32 => {
            if let Some(addr) = pick(&vacant) {
                tell(Some(path_here), Told::Alloc(addr, u64::from(size), kind, flags, None));
            }
        }
        32..55 => {
            if let Some(addr) = pick(&live) {
                let with_stack = size % 3 != 0;
                tell(with_stack.then_some(path_here), Told::Free(addr, false));
            }
        }
        55..68 => {
            if let (Some(from), Some(to)) = (pick(&live), pick(&vacant)) {
                let to = if size % 2 == 0 { from } else { to };
                events.push(Event { at, path: Some(path_here.clone()), what: Told::Free(from, true) });
                events.push(Event { at: at + 8000, path: Some(path_here), what: Told::Alloc(to, u64::from(size), 3, flags, Some(from)) });
            }
        }
        68..78 => tell(Some(path_here), Told::Map(place, length, u32::from(which) % 8)),
        78..83 => tell(Some(path_here), Told::Unmap(place, length)),
        83..91 => {
            let mapped = world.maps.iter().find_map(|map| map.pages.first().copied());
            if let Some(page) = mapped {
                let to = MAPS + 0x10_0000 + u64::from(which) * 4096;
                tell(Some(path_here), Told::Remap(page * 4096, 4096, to, length));
            }
        }
        91..94 => {
            let end = events
                .iter()
                .rev()
                .find_map(|event| if let Told::Brk(_, new) = event.what { Some(new) } else { None })
                .unwrap_or(0x5555_0000_0000);
            let least = 0x5555_0000_0000u64;
            let new =
                if which % 3 == 0 { (end.saturating_sub(length)).max(least) / 4096 * 4096 } else { (end + length).div_ceil(4096) * 4096 };
            if new != end {
                events.push(Event { at, path: None, what: Told::Brk(end, new) });
            }
        }
        94..98 => tell(None, Told::Rss(place, 4096, u64::from(size) * 16)),
        _ => tell(None, Told::Marker(u32::from(which) % 3)),
    }
}
