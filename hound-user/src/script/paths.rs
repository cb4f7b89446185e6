//! Call paths by number: what a backtrace is to a script. Two that print alike are one.

use crate::capture::MAPPED_LIBRARY;
use crate::capture::model::{StackId, StackNode, StackTree};
use crate::symbols::{Frame, FrameList, SymbolTable};
use std::collections::{HashMap, HashSet};

/// The number of a call path.
pub type PathId = u32;

/// The path of nothing: no stack was recorded.
pub const EMPTY: PathId = 0;
const UNNAMED: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Step {
    caller: PathId,
    list: Option<FrameList>,
    /// A return address that stands for it, for functions that have no name.
    ip: u64,
    /// Frames from the root to here.
    depth: u32,
}

/// All call paths of a capture, with names.
#[derive(Debug)]
pub struct Paths {
    names: SymbolTable,
    /// Callers before those they call.
    steps: Vec<Step>,
    /// By stack, as addresses are at first.
    plain: Vec<PathId>,
    /// By era and stack, where something else was mapped later.
    later: HashMap<(u32, u32), PathId>,
    moments: Vec<u64>,
}

/// A frame of a path, and an address of it.
#[derive(Clone, Copy, Debug)]
pub struct PathFrame<'a> {
    /// Its names.
    pub frame: Frame<'a>,
    /// A return address of it.
    pub ip: u64,
}

impl Paths {
    /// Names every stack as it is at first, and those of `later` as they are at that time.
    pub fn new(stacks: &StackTree, names: SymbolTable, later: impl Iterator<Item = (StackId, u64)>) -> Self {
        let root = Step { caller: EMPTY, list: None, ip: 0, depth: 0 };
        let moments = names.remappings();
        let mut paths = Paths { names, steps: vec![root], plain: vec![UNNAMED; stacks.len()], later: HashMap::new(), moments };
        let mut naming = Naming { stacks, known: HashMap::new(), ours: ours(&paths.names), above: Vec::new() };
        for stack in 0..stacks.len() as u32 {
            naming.name(&mut paths, StackId(stack), 0);
        }
        if !paths.moments.is_empty() {
            for (stack, time_ns) in later {
                let era = paths.era(time_ns);
                if era > 0 && (stack.0 as usize) < stacks.len() {
                    naming.name(&mut paths, stack, era);
                }
            }
        }
        paths
    }

    fn era(&self, time_ns: u64) -> u32 {
        self.moments.partition_point(|moment| *moment <= time_ns) as u32
    }

    /// Whether a stack is another path at another time.
    pub fn change(&self) -> bool {
        !self.moments.is_empty()
    }

    /// What addresses are called.
    pub fn names(&self) -> &SymbolTable {
        &self.names
    }

    /// Moments from which addresses may mean something else.
    pub fn moments(&self) -> &[u64] {
        &self.moments
    }

    /// The path of a stack at a time.
    pub fn of(&self, stack: u32, time_ns: u64) -> PathId {
        if self.change()
            && let Some(&path) = self.later.get(&(self.era(time_ns), stack))
        {
            return path;
        }
        self.plain.get(stack as usize).copied().unwrap_or(EMPTY)
    }

    /// How many there are: their numbers are smaller.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// How many frames a path has.
    pub fn depth(&self, path: PathId) -> u32 {
        self.steps.get(path as usize).map_or(0, |step| step.depth)
    }

    /// The frames of a path, the outermost first.
    pub fn frames(&self, path: PathId) -> Vec<PathFrame<'_>> {
        let mut frames = Vec::with_capacity(self.depth(path) as usize);
        let mut at = path;
        while at != EMPTY
            && let Some(step) = self.steps.get(at as usize)
        {
            frames.extend(step.list.into_iter().flat_map(|list| self.names.frames(list)).map(|frame| PathFrame { frame, ip: step.ip }));
            at = step.caller;
        }
        frames.reverse();
        frames
    }

    /// The same without addresses, the innermost first.
    pub fn inner_first(&self, path: PathId) -> Vec<Frame<'_>> {
        self.frames(path).into_iter().rev().map(|of| of.frame).collect()
    }

    /// Which paths have a frame of which this holds. It is asked once for each place in the program.
    pub fn passing(&self, holds: impl Fn(&Frame<'_>) -> bool) -> Vec<bool> {
        let lists: Vec<bool> = (0..self.names.lists()).map(|list| self.names.frames(FrameList(list)).any(|frame| holds(&frame))).collect();
        let mut passing = vec![false; self.steps.len()];
        for (path, step) in self.steps.iter().enumerate().skip(1) {
            passing[path] = passing[step.caller as usize] || step.list.is_some_and(|list| lists[list.0 as usize]);
        }
        passing
    }
}

/// hound's own between the program's functions: left out, as in reports.
fn ours(names: &SymbolTable) -> HashSet<FrameList> {
    let is_ours = |list: &FrameList| {
        let mut frames = names.frames(*list);
        frames.len() > 0 && frames.all(|frame| frame.module == MAPPED_LIBRARY)
    };
    (0..names.lists()).map(FrameList).filter(is_ours).collect()
}

struct Naming<'s> {
    stacks: &'s StackTree,
    /// By caller, and frames, or address where there are none.
    known: HashMap<(PathId, Result<FrameList, u64>), PathId>,
    ours: HashSet<FrameList>,
    above: Vec<(u32, u64)>,
}

impl Naming<'_> {
    fn name(&mut self, paths: &mut Paths, stack: StackId, era: u32) {
        let time_ns = era.checked_sub(1).and_then(|last| paths.moments.get(last as usize)).copied().unwrap_or(0);
        let (mut at, mut path) = (stack, EMPTY);
        self.above.clear();
        while let Some(StackNode::Frame { parent, ip }) = self.stacks.node(at) {
            let known = match era {
                0 => Some(paths.plain[at.0 as usize]).filter(|path| *path != UNNAMED),
                _ => paths.later.get(&(era, at.0)).copied(),
            };
            if let Some(known) = known {
                path = known;
                break;
            }
            self.above.push((at.0, ip));
            at = parent;
        }
        let process = self.stacks.process_of(stack);
        while let Some((stack, ip)) = self.above.pop() {
            let list = paths.names.list(process, ip, time_ns);
            if !list.is_some_and(|list| self.ours.contains(&list)) {
                let (steps, names) = (&mut paths.steps, &paths.names);
                path = *self.known.entry((path, list.ok_or(ip))).or_insert_with(|| {
                    let depth = steps[path as usize].depth + list.map_or(0, |list| names.frames(list).len() as u32);
                    steps.push(Step { caller: path, list, ip, depth });
                    (steps.len() - 1) as PathId
                });
            }
            match era {
                0 => paths.plain[stack as usize] = path,
                _ => {
                    paths.later.insert((era, stack), path);
                }
            }
        }
        // A stack of no frames.
        if era == 0 && paths.plain[stack.0 as usize] == UNNAMED {
            paths.plain[stack.0 as usize] = EMPTY;
        }
    }
}
