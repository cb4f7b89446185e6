//! A section's own stacks: a prefix tree of return addresses, numbered from 1 in the order of first use; 0 is the empty stack.

use super::varint::{self, Cursor};

/// The empty stack.
pub const NO_NODE: u32 = 0;

/// Tree under construction. `child` is on the hot path: a memo of each node's last child answers most calls without hashing.
#[derive(Debug)]
pub struct Nodes {
    parents: Vec<u32>,
    ips: Vec<u64>,
    /// Per node: the child found last.
    last: Vec<u32>,
    /// Open addressing over `(parent, ip)`; 0 = free. A power of two, at most half full.
    table: Vec<u32>,
}

impl Default for Nodes {
    fn default() -> Self {
        // Node 0 stands for the empty stack; no lookup can hit its ip, since `slot` compares parents too.
        Nodes { parents: vec![u32::MAX], ips: vec![0], last: vec![0], table: vec![0; 64] }
    }
}

impl Nodes {
    /// Empties the tree, keeping its memory within reason.
    pub fn clear(&mut self) {
        self.parents.truncate(1);
        self.ips.truncate(1);
        self.last.truncate(1);
        self.last[0] = 0;
        self.table.fill(0);
    }

    /// Number of nodes, the empty stack included.
    pub fn len(&self) -> usize {
        self.parents.len()
    }

    /// The node for `ip` called from `parent`, made if new.
    #[inline]
    pub fn child(&mut self, parent: u32, ip: u64) -> u32 {
        let last = self.last[parent as usize] as usize;
        if last != 0 && self.ips[last] == ip {
            return last as u32;
        }
        self.find(parent, ip)
    }

    #[inline(never)]
    fn find(&mut self, parent: u32, ip: u64) -> u32 {
        let mut slot = self.slot(parent, ip);
        if self.table[slot] == 0 {
            if self.parents.len() * 2 > self.table.len() {
                self.grow();
                slot = self.slot(parent, ip);
            }
            self.table[slot] = self.parents.len() as u32;
            self.parents.push(parent);
            self.ips.push(ip);
            self.last.push(0);
        }
        let node = self.table[slot];
        self.last[parent as usize] = node;
        node
    }

    /// Where `(parent, ip)` is in the table, or would go.
    fn slot(&self, parent: u32, ip: u64) -> usize {
        let mask = self.table.len() - 1;
        let hash = (ip ^ u64::from(parent) << 40 ^ u64::from(parent)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut slot = (hash >> 32) as usize & mask;
        loop {
            let node = self.table[slot] as usize;
            if node == 0 || (self.parents[node] == parent && self.ips[node] == ip) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        self.table = vec![0; self.table.len() * 2];
        for node in 1..self.parents.len() {
            let slot = self.slot(self.parents[node], self.ips[node]);
            self.table[slot] = node as u32;
        }
    }

    /// Writes the tree: for each node from 1 on, how far back its parent is, and its ip less the previous node's.
    pub fn write(&self, parents: &mut Vec<u8>, ips: &mut Vec<u8>) {
        let mut previous = 0u64;
        for node in 1..self.parents.len() {
            varint::put(parents, node as u64 - u64::from(self.parents[node]));
            varint::put(ips, varint::fold(self.ips[node].wrapping_sub(previous) as i64));
            previous = self.ips[node];
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
