//! A section's own stacks: a prefix tree of return addresses, numbered from 1 in the order of first use; 0 is the empty stack.

use super::varint::{self, Cursor};

/// The empty stack.
pub const NO_NODE: u32 = 0;

/// Tree under construction. `child` is on the hot path: a memo of each node's last child answers most calls without hashing.
#[derive(Debug)]
pub struct Nodes {
    /// Never empty: node 0 is the empty stack.
    nodes: Vec<Node>,
    /// Open addressing over `(parent, ip)`; 0 = free. A power of two, at most half full.
    table: Vec<u32>,
}

/// One node. Kept together: walking down a path takes one cache line a frame.
#[derive(Clone, Copy, Debug)]
struct Node {
    ip: u64,
    parent: u32,
    /// The child found last; 0 = none yet.
    last: u32,
}

impl Default for Nodes {
    fn default() -> Self {
        Nodes { nodes: vec![Node { ip: 0, parent: 0, last: 0 }], table: vec![0; 64] }
    }
}

impl Nodes {
    /// Empties the tree, keeping its memory.
    pub fn clear(&mut self) {
        self.nodes.truncate(1);
        self.nodes[0].last = 0;
        self.table.fill(0);
    }

    /// Number of nodes, the empty stack included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The node for `ip` called from `parent`, made if new.
    #[inline(always)]
    pub fn child(&mut self, parent: u32, ip: u64) -> u32 {
        let last = self.nodes[parent as usize].last;
        if last != 0 && self.nodes[last as usize].ip == ip {
            return last;
        }
        self.find(parent, ip)
    }

    #[inline(never)]
    fn find(&mut self, parent: u32, ip: u64) -> u32 {
        let mut slot = self.slot(parent, ip);
        if self.table[slot] == 0 {
            if self.nodes.len() * 2 > self.table.len() {
                self.grow();
                slot = self.slot(parent, ip);
            }
            self.table[slot] = self.nodes.len() as u32;
            self.nodes.push(Node { ip, parent, last: 0 });
        }
        let node = self.table[slot];
        self.nodes[parent as usize].last = node;
        node
    }

    /// Where `(parent, ip)` is in the table, or would go.
    fn slot(&self, parent: u32, ip: u64) -> usize {
        let mask = self.table.len() - 1;
        let hash = (ip ^ u64::from(parent) << 40 ^ u64::from(parent)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut slot = (hash >> 32) as usize & mask;
        loop {
            let node = self.table[slot];
            let there = &self.nodes[node as usize];
            if node == 0 || (there.parent == parent && there.ip == ip) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        self.table = vec![0; self.table.len() * 2];
        for node in 1..self.nodes.len() {
            let slot = self.slot(self.nodes[node].parent, self.nodes[node].ip);
            self.table[slot] = node as u32;
        }
    }

    /// The path of a node, outermost frame first.
    pub fn path(&self, node: u32, path: &mut Vec<u64>) {
        path.clear();
        let mut at = node;
        while at != NO_NODE {
            path.push(self.nodes[at as usize].ip);
            at = self.nodes[at as usize].parent;
        }
        path.reverse();
    }

    /// Writes the tree: for each node from 1 on, how far back its parent is, and its ip less the previous node's.
    pub fn write(&self, parents: &mut Vec<u8>, ips: &mut Vec<u8>) {
        let mut previous = 0u64;
        for (number, node) in self.nodes.iter().enumerate().skip(1) {
            varint::put(parents, number as u64 - u64::from(node.parent));
            varint::put(ips, varint::fold(node.ip.wrapping_sub(previous) as i64));
            previous = node.ip;
        }
    }
}

/// A tree read back: parents and ips of nodes, index 0 being the empty stack.
#[derive(Clone, Debug, Default)]
pub struct NodeList {
    /// Parent of each node; always smaller than the node.
    pub parents: Vec<u32>,
    /// Return address of each node.
    pub ips: Vec<u64>,
}

impl NodeList {
    /// Reads what [`Nodes::write`] wrote. `None`: it is not such a thing.
    pub fn read(parents: &[u8], ips: &[u8]) -> Option<Self> {
        let mut list = NodeList { parents: vec![0], ips: vec![0] };
        let (mut at_parent, mut at_ip) = (Cursor::default(), Cursor::default());
        let mut previous = 0u64;
        while at_parent.left(parents) > 0 {
            let node = list.parents.len() as u64;
            let back = at_parent.number(parents);
            if back == 0 || back > node {
                return None;
            }
            previous = previous.wrapping_add(varint::unfold(at_ip.number(ips)) as u64);
            list.parents.push((node - back) as u32);
            list.ips.push(previous);
        }
        (at_parent.is_at_end(parents) && at_ip.is_at_end(ips)).then_some(list)
    }
}
