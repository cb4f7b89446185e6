//! Call paths merged by function: what a flamegraph shows, of one capture or of two.

use super::estimate::Scale;
use super::group::select;
use super::sites::Sites;
use super::sums::Sums;
use super::suppress::{Suppressed, Suppressions};
use super::trim::{site_end, site_start};
use super::{Measure, Query};
use crate::capture::StreamInfo;
use crate::symbols::Frame;
use std::cmp::Reverse;
use std::collections::HashMap;

/// How call paths are merged.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlameShape {
    /// From the allocating function to its callers.
    pub inverted: bool,
    /// With the allocator's own frames, and those below `main`.
    pub full_stacks: bool,
}

/// One heap that is asked.
pub struct FlameSide<'s, 'a> {
    /// Its call paths.
    pub sites: &'s Sites<'a>,
    /// Its threads.
    pub streams: &'s [StreamInfo],
    /// That of its [`Whole`](super::Whole), if it has samples.
    pub scale: Option<&'s Scale>,
}

/// A function of a call path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlameFrame<'a> {
    /// Its name.
    pub function: &'a str,
    /// Path of its module.
    pub module: &'a str,
    /// It is inlined into its caller, wherever it is met on this path.
    pub inlined: bool,
}

/// What a box of the picture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlameWhat<'a> {
    /// All there is: the root.
    All,
    /// A function.
    Frame(FlameFrame<'a>),
    /// Blocks of which no stack is known.
    NoStack,
    /// So many functions called from here, each too small to be shown.
    Smaller(usize),
    /// Functions so many levels deep, deeper than is shown.
    Deeper(usize),
}

/// A box of the picture.
#[derive(Clone, Debug)]
pub struct FlameBox<'a> {
    /// What it is.
    pub what: FlameWhat<'a>,
    /// How many boxes are between it and the root, plus one; 0 = the root.
    pub depth: usize,
    /// Where it begins, as a share of the root's width.
    pub from: f64,
    /// How wide it is, as a share of the root's width.
    pub width: f64,
    /// What was allocated in it and in all that it calls, with intervals.
    pub sums: Sums,
    /// The same of the capture that is compared with.
    pub before: Option<Sums>,
}

/// The figures of a node: now, and before.
type Both = [Sums; 2];

struct Node {
    parent: u32,
    /// A place in [`Flame::functions`].
    function: u32,
    inlined: bool,
    own: Both,
}

/// Merged call paths.
pub struct Flame<'a> {
    measure: Measure,
    compared: bool,
    functions: Vec<(&'a str, &'a str)>,
    /// Parents before their children; the first is the root.
    nodes: Vec<Node>,
    scales: [Option<Scale>; 2],
    /// What was suppressed, most bytes first.
    pub left_out: Vec<(Suppressed, Sums)>,
}

const ROOT: u32 = 0;
/// The function of blocks without a stack.
const NO_STACK: u32 = 0;

/// Merges the call paths that a query lets through, of `now` and, if there is one, of what it is compared with.
pub fn flame<'a>(
    query: &Query,
    suppressions: &Suppressions,
    now: &FlameSide<'_, 'a>,
    before: Option<&FlameSide<'_, 'a>>,
    shape: FlameShape,
) -> Flame<'a> {
    let root = Node { parent: ROOT, function: NO_STACK, inlined: false, own: Both::default() };
    let mut growing = Growing {
        shape,
        numbers: HashMap::new(),
        children: HashMap::new(),
        flame: Flame {
            measure: query.measure,
            compared: before.is_some(),
            functions: vec![("(no stack)", "")],
            nodes: vec![root],
            scales: [now.scale.cloned(), before.and_then(|side| side.scale.cloned())],
            left_out: Vec::new(),
        },
    };
    for (number, side) in [Some(now), before].into_iter().enumerate() {
        let Some(side) = side else { continue };
        let selected = select(query, side.sites, side.streams, suppressions);
        for (node, _, sums) in &selected.sums {
            growing.add(number, &side.sites.frames(*node), sums);
        }
        if number == 0 {
            growing.flame.left_out = selected.left_out;
        }
    }
    growing.flame
}

struct Growing<'a> {
    shape: FlameShape,
    /// Functions by name and the file name of their module: that of another build may lie elsewhere.
    numbers: HashMap<(&'a str, &'a str), u32>,
    children: HashMap<(u32, u32), u32>,
    flame: Flame<'a>,
}

impl<'a> Growing<'a> {
    /// A call path, innermost frame first.
    fn add(&mut self, side: usize, frames: &[Frame<'a>], sums: &Sums) {
        let shown = if self.shape.full_stacks { frames } else { &frames[site_start(frames)..site_end(frames)] };
        let mut at = ROOT;
        if shown.is_empty() {
            at = self.child(at, NO_STACK, false);
        }
        for index in 0..shown.len() {
            let frame = &shown[if self.shape.inverted { index } else { shown.len() - 1 - index }];
            let function = self.function(frame);
            at = self.child(at, function, frame.inlined);
        }
        self.flame.nodes[at as usize].own[side].add(sums);
    }

    fn function(&mut self, frame: &Frame<'a>) -> u32 {
        let functions = &mut self.flame.functions;
        let base = frame.module.rsplit('/').next().unwrap_or(frame.module);
        *self.numbers.entry((frame.function, base)).or_insert_with(|| {
            functions.push((frame.function, frame.module));
            (functions.len() - 1) as u32
        })
    }

    fn child(&mut self, parent: u32, function: u32, inlined: bool) -> u32 {
        let nodes = &mut self.flame.nodes;
        let at = *self.children.entry((parent, function)).or_insert_with(|| {
            nodes.push(Node { parent, function, inlined, own: Both::default() });
            (nodes.len() - 1) as u32
        });
        // One call that is none is enough to be called a function of its own.
        nodes[at as usize].inlined &= inlined;
        at
    }
}

impl<'a> Flame<'a> {
    /// The figure of a node's own blocks, now and before.
    fn own(&self, node: usize) -> [u64; 2] {
        self.nodes[node].own.each_ref().map(|sums| {
            let mut sums = sums.clone();
            sums.round();
            self.measure.of(&sums)
        })
    }

    fn frame(&self, node: usize) -> FlameFrame<'a> {
        let Node { function, inlined, .. } = self.nodes[node];
        let (name, module) = self.functions[function as usize];
        FlameFrame { function: name, module, inlined }
    }

    /// Whether two captures are compared.
    pub fn is_compared(&self) -> bool {
        self.compared
    }

    /// Every call path that has a figure, outermost frame first (innermost, if inverted), and its figure now and before.
    pub fn stacks(&self) -> Vec<(Vec<FlameFrame<'a>>, [u64; 2])> {
        let mut stacks = Vec::new();
        for node in 0..self.nodes.len() {
            let own = self.own(node);
            if own == [0, 0] {
                continue;
            }
            let (mut path, mut at) = (Vec::new(), node);
            while at != ROOT as usize {
                path.push(self.frame(at));
                at = self.nodes[at].parent as usize;
            }
            path.reverse();
            stacks.push((path, own));
        }
        stacks
    }

    /// The boxes of the picture, each before what it calls, larger ones first. A box is as wide as the larger of its two figures: what has
    /// gone is to be seen as well as what has come. What is narrower than `smallest` (a share of the whole) is put together in one box beside its
    /// siblings, as is what is more than `deepest` levels deep; so the root's sums are those of everything.
    pub fn boxes(&self, smallest: f64, deepest: usize) -> Vec<FlameBox<'a>> {
        let (widths, children) = self.measured();
        let all = widths[ROOT as usize].max(f64::MIN_POSITIVE);
        let levels = self.levels();
        let sums = self.summed();
        let mut boxes = Vec::new();
        // A stack of its own: call paths are deeper than ours may be. Last in, first out: children are pushed in reverse.
        let mut open = vec![(Shown::Node(ROOT), 0, 0.0)];
        while let Some((shown, depth, from)) = open.pop() {
            let members: &[u32] = match &shown {
                Shown::Node(node) => std::slice::from_ref(node),
                Shown::Smaller(members) | Shown::Deeper(members) => members,
            };
            let width: f64 = members.iter().map(|&node| widths[node as usize]).sum();
            let what = match shown {
                Shown::Node(ROOT) => FlameWhat::All,
                Shown::Node(node) if self.nodes[node as usize].function == NO_STACK => FlameWhat::NoStack,
                Shown::Node(node) => FlameWhat::Frame(self.frame(node as usize)),
                Shown::Smaller(ref members) => FlameWhat::Smaller(members.len()),
                Shown::Deeper(ref members) => FlameWhat::Deeper(members.iter().map(|&node| levels[node as usize]).max().unwrap_or(0)),
            };
            let [now, before] = [0, 1].map(|side| {
                let mut sum = Sums::default();
                members.iter().for_each(|&node| sum.add(&sums[node as usize][side]));
                sum.settle(self.scales[side].as_ref());
                sum
            });
            let before = self.compared.then_some(before);
            boxes.push(FlameBox { what, depth, from: from / all, width: width / all, sums: now, before });
            let Shown::Node(node) = shown else { continue };
            let below = &children[node as usize];
            let mut at = from;
            let mut next = Vec::new();
            if depth >= deepest {
                if !below.is_empty() {
                    next.push((Shown::Deeper(below.clone()), depth + 1, at));
                }
            } else {
                let (large, small): (Vec<u32>, Vec<u32>) = below.iter().partition(|&&child| widths[child as usize] >= smallest * all);
                for child in large {
                    next.push((Shown::Node(child), depth + 1, at));
                    at += widths[child as usize];
                }
                if !small.is_empty() {
                    next.push((Shown::Smaller(small), depth + 1, at));
                }
            }
            open.extend(next.into_iter().rev());
        }
        boxes
    }

    /// How wide each node is, and its children that have a width, the widest first.
    fn measured(&self) -> (Vec<f64>, Vec<Vec<u32>>) {
        let mut widths: Vec<f64> = (0..self.nodes.len()).map(|node| self.own(node).into_iter().max().unwrap_or(0) as f64).collect();
        for node in (1..self.nodes.len()).rev() {
            widths[self.nodes[node].parent as usize] += widths[node];
        }
        let mut children: Vec<Vec<u32>> = vec![Vec::new(); self.nodes.len()];
        for node in (1..self.nodes.len()).filter(|&node| widths[node] > 0.0) {
            children[self.nodes[node].parent as usize].push(node as u32);
        }
        for below in &mut children {
            let name = |node: u32| self.functions[self.nodes[node as usize].function as usize];
            below.sort_by(|&a, &b| {
                let (wide, other) = (Reverse(widths[a as usize].to_bits()), Reverse(widths[b as usize].to_bits()));
                wide.cmp(&other).then_with(|| name(a).cmp(&name(b)))
            });
        }
        (widths, children)
    }

    /// How many levels there are at each node and below.
    fn levels(&self) -> Vec<usize> {
        let mut levels = vec![1; self.nodes.len()];
        for node in (1..self.nodes.len()).rev() {
            let parent = self.nodes[node].parent as usize;
            levels[parent] = levels[parent].max(levels[node] + 1);
        }
        levels
    }

    /// What was allocated at each node and below.
    fn summed(&self) -> Vec<Both> {
        let mut sums: Vec<Both> = self.nodes.iter().map(|node| node.own.clone()).collect();
        for node in (1..self.nodes.len()).rev() {
            let (above, at) = sums.split_at_mut(node);
            let parent = &mut above[self.nodes[node].parent as usize];
            parent.iter_mut().zip(&at[0]).for_each(|(sum, more)| sum.add(more));
        }
        sums
    }
}

/// What becomes a box.
enum Shown {
    Node(u32),
    Smaller(Vec<u32>),
    Deeper(Vec<u32>),
}
