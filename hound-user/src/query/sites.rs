//! Stacks with names: the prefix tree of frame lists, and what was added up at each of its nodes.
//!
//! Two return addresses on one line of one function have equal frame lists, so stacks that look alike to a person are one node here.

use super::sums::Sums;
use super::tally::{Entry, Part};
use crate::capture::MAPPED_LIBRARY;
use crate::capture::model::{StackId, StackNode, StackRoot, StackTree};
use crate::symbols::{Frame, FrameList, SymbolTable};
use std::collections::{HashMap, HashSet};

/// A call path with names. Parents have smaller numbers than their children; [`NodeId::ROOT`] is the empty path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The empty path.
    pub const ROOT: NodeId = NodeId(0);
}

/// What was added up, by named call path.
pub struct Sites<'a> {
    table: &'a SymbolTable,
    /// Parent and frames of each node; the root's are never looked at.
    nodes: Vec<(u32, Option<FrameList>)>,
    /// Sums of each (path, part).
    sums: Vec<(NodeId, Part, Sums)>,
    /// How the stacks ended, with what was allocated from them.
    roots: Vec<(StackRoot, Sums)>,
    /// The path of each entry, in the entries' order.
    of_entries: Vec<NodeId>,
}

impl<'a> Sites<'a> {
    /// Names the stacks of all entries. `moments` are those the tally was made with.
    pub fn new(entries: &[Entry], stacks: &StackTree, table: &'a SymbolTable, moments: &[u64]) -> Self {
        let mut sites = Sites { table, nodes: vec![(0, None)], sums: Vec::new(), roots: Vec::new(), of_entries: Vec::new() };
        let mut naming =
            Naming { nodes: HashMap::new(), plain: vec![UNNAMED; stacks.len()], eras: HashMap::new(), path: Vec::new(), ours: ours(table) };
        let mut index: HashMap<(NodeId, Part), usize> = HashMap::new();
        let mut roots: HashMap<StackRoot, Sums> = HashMap::new();
        for entry in entries {
            let node = naming.node(&mut sites, stacks, entry.key.stack, entry.key.era, moments);
            sites.of_entries.push(node);
            let at = *index.entry((node, entry.key.part)).or_insert(sites.sums.len());
            if at == sites.sums.len() {
                sites.sums.push((node, entry.key.part, Sums::default()));
            }
            sites.sums[at].2.add(&entry.sums);
            if let Some(root) = stacks.root_of(entry.key.stack) {
                roots.entry(root).or_default().add(&entry.sums);
            }
        }
        sites.roots = roots.into_iter().collect();
        sites.roots.sort_by_key(|(root, sums)| (std::cmp::Reverse(sums.recorded()), root.reason, root.frame_pointers));
        sites
    }

    /// The names.
    pub fn table(&self) -> &'a SymbolTable {
        self.table
    }

    /// Number of nodes, the root included.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The caller's node.
    pub fn parent(&self, node: NodeId) -> Option<NodeId> {
        (node != NodeId::ROOT).then(|| NodeId(self.nodes[node.0 as usize].0))
    }

    /// What this node adds to its parent.
    pub fn list(&self, node: NodeId) -> Option<FrameList> {
        self.nodes[node.0 as usize].1
    }

    /// The frames of a call path, innermost first.
    pub fn frames(&self, node: NodeId) -> Vec<Frame<'a>> {
        let mut frames = Vec::new();
        let mut at = node;
        while let Some(parent) = self.parent(at) {
            frames.extend(self.list(at).into_iter().flat_map(|list| self.table.frames(list)));
            at = parent;
        }
        frames
    }

    /// What was added up: path, part, sums.
    pub fn sums(&self) -> &[(NodeId, Part, Sums)] {
        &self.sums
    }

    /// The call path of each of the entries these sites were made of, in their order.
    pub(super) fn of_entries(&self) -> &[NodeId] {
        &self.of_entries
    }

    /// The same call paths with these parts of the sums alone.
    pub(super) fn only(&self, keep: impl Fn(&Part) -> bool) -> Self {
        let sums = self.sums.iter().filter(|(_, part, _)| keep(part)).cloned().collect();
        Sites { table: self.table, nodes: self.nodes.clone(), sums, roots: Vec::new(), of_entries: Vec::new() }
    }

    /// How stacks ended, most allocations first.
    pub fn roots(&self) -> &[(StackRoot, Sums)] {
        &self.roots
    }

    /// Bits for each node: those of its own frames and of all its callers'. `of` is asked once a frame list.
    pub fn inherited(&self, of: impl Fn(FrameList) -> u64) -> Vec<u64> {
        let by_list: Vec<u64> = (0..self.table.lists()).map(|number| of(FrameList(number))).collect();
        let mut bits = vec![0; self.nodes.len()];
        for (node, &(parent, list)) in self.nodes.iter().enumerate().skip(1) {
            let own = list.and_then(|list| by_list.get(list.0 as usize)).copied().unwrap_or(0);
            bits[node] = bits[parent as usize] | own;
        }
        bits
    }
}

const UNNAMED: u32 = u32::MAX;

/// Finds the named node of a stack, each stack once.
struct Naming {
    nodes: HashMap<(u32, Option<FrameList>), u32>,
    /// Named nodes of the first era, by stack.
    plain: Vec<u32>,
    /// Those of later eras.
    eras: HashMap<(u32, u32), u32>,
    path: Vec<(StackId, u64)>,
    /// Frame lists that are left out of every path.
    ours: HashSet<u32>,
}

/// What hound has put between the program's functions: where a hooked function calls another one, its hook is on the stack. The path is
/// shown as it is without hound.
fn ours(table: &SymbolTable) -> HashSet<u32> {
    let is_ours = |number: &u32| {
        let mut frames = table.frames(FrameList(*number));
        frames.len() > 0 && frames.all(|frame| frame.module == MAPPED_LIBRARY)
    };
    (0..table.lists()).filter(is_ours).collect()
}

impl Naming {
    fn node(&mut self, sites: &mut Sites<'_>, stacks: &StackTree, stack: StackId, era: u32, moments: &[u64]) -> NodeId {
        // The era began at its moment; the first one at 0.
        let time_ns = era.checked_sub(1).and_then(|last| moments.get(last as usize)).copied().unwrap_or(0);
        let (mut at, mut named, process) = (stack, 0, stacks.process_of(stack));
        self.path.clear();
        while let Some(StackNode::Frame { parent, ip }) = stacks.node(at) {
            if let Some(known) = self.known(at, era) {
                named = known;
                break;
            }
            self.path.push((at, ip));
            at = parent;
        }
        while let Some((stack, ip)) = self.path.pop() {
            let key = (named, sites.table.list(process, ip, time_ns));
            if !key.1.is_some_and(|list| self.ours.contains(&list.0)) {
                named = *self.nodes.entry(key).or_insert_with(|| {
                    sites.nodes.push(key);
                    (sites.nodes.len() - 1) as u32
                });
            }
            match era {
                0 => self.plain[stack.0 as usize] = named,
                _ => {
                    self.eras.insert((era, stack.0), named);
                }
            }
        }
        NodeId(named)
    }

    fn known(&self, stack: StackId, era: u32) -> Option<u32> {
        match era {
            0 => self.plain.get(stack.0 as usize).copied().filter(|&node| node != UNNAMED),
            _ => self.eras.get(&(era, stack.0)).copied(),
        }
    }
}
