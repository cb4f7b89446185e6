//! The mirror of one stream's stack array: applies `STACK` edits and knows the section-local node of the path.

use super::nodes::{NO_NODE, Nodes};
use hound_common::event::{MAX_FRAMES, StackEdit};

/// End reason of stacks whose root side was lost because ring bytes were damaged: beside the unwinder's own reasons.
pub const REASON_DAMAGED: u8 = 255;

/// The array of ips (root first), the path in it, and the nodes of the path as far as they are known in the current section.
#[derive(Debug, Default)]
pub struct StackMirror {
    ips: Vec<u64>,
    /// `nodes[i]` is the node of `ips[..=i]`, for `i < known`. As long as `ips`.
    nodes: Vec<u32>,
    known: usize,
    path: usize,
    /// Positions below this one were lost.
    lost: usize,
    scratch: Vec<u64>,
}

impl StackMirror {
    /// A new section has no nodes yet.
    pub fn forget_nodes(&mut self) {
        self.known = 0;
    }

    /// The stream's bytes were damaged: nothing is known of the array any more.
    pub fn lose(&mut self) {
        self.lost = self.ips.len().max(self.path);
        self.known = 0;
    }

    /// Whether the root side of the current path is not known.
    pub fn is_damaged(&self) -> bool {
        self.lost > 0
    }

    /// Applies an edit whose new ips are these words. False: it cannot be an edit of this array.
    #[inline]
    pub fn edit(&mut self, edit: StackEdit, words: &[[u8; 8]]) -> bool {
        let (keep_root, new) = (edit.keep_root as usize, edit.new as usize);
        let (leaf_from, keep_leaf) = (edit.leaf_from as usize, edit.keep_leaf as usize);
        let path = keep_root + new + keep_leaf;
        let needed = keep_root.max(if keep_leaf > 0 { leaf_from + keep_leaf } else { 0 });
        if path > MAX_FRAMES || needed > 2 * MAX_FRAMES || words.len() != new {
            return false;
        }
        if needed > self.ips.len() {
            // Only after damage may an edit speak of frames that are not there.
            if self.lost == 0 {
                return false;
            }
            self.ips.resize(needed, 0);
            self.nodes.resize(needed, NO_NODE);
            self.lost = needed;
        }
        let leaf_to = keep_root + new;
        if leaf_from == leaf_to {
            if new > 0 {
                self.grow_to(leaf_to);
                self.overwrite(keep_root, words);
                // Frames behind the change keep their place but not their nodes.
            }
            if self.lost > 0 {
                self.lost = if self.lost > leaf_to && keep_leaf > 0 { self.lost } else { self.lost.min(keep_root) };
            }
        } else {
            self.move_leaf(keep_root, leaf_from, leaf_to, keep_leaf, words);
        }
        self.path = path;
        true
    }

    #[inline]
    fn grow_to(&mut self, length: usize) {
        if self.ips.len() < length {
            self.ips.resize(length, 0);
            self.nodes.resize(length, NO_NODE);
        }
    }

    #[inline]
    fn overwrite(&mut self, from: usize, words: &[[u8; 8]]) {
        for (ip, word) in self.ips[from..].iter_mut().zip(words) {
            *ip = u64::from_le_bytes(*word);
        }
        self.known = self.known.min(from);
    }

    fn move_leaf(&mut self, keep_root: usize, leaf_from: usize, leaf_to: usize, keep_leaf: usize, words: &[[u8; 8]]) {
        let path = leaf_to + keep_leaf;
        self.scratch.clear();
        if keep_leaf > 0 {
            self.scratch.extend_from_slice(&self.ips[leaf_from..leaf_from + keep_leaf]);
        }
        self.grow_to(path);
        self.overwrite(keep_root, words);
        self.ips[leaf_to..path].copy_from_slice(&self.scratch);
        self.ips.truncate(path);
        self.nodes.truncate(path);
        if self.lost > 0 {
            let leaf_is_lost = keep_leaf > 0 && self.lost > leaf_from;
            self.lost = if leaf_is_lost { leaf_to + (self.lost - leaf_from).min(keep_leaf) } else { self.lost.min(keep_root) };
        }
    }

    /// The node of the current path, made if need be.
    #[inline]
    pub fn node(&mut self, nodes: &mut Nodes) -> u32 {
        if self.path <= self.lost {
            return NO_NODE;
        }
        if self.known < self.path {
            let mut at = self.known.max(self.lost);
            let mut parent = if at > self.lost { self.nodes[at - 1] } else { NO_NODE };
            while at < self.path {
                parent = nodes.child(parent, self.ips[at]);
                self.nodes[at] = parent;
                at += 1;
            }
            self.known = self.path;
            return parent;
        }
        self.nodes[self.path - 1]
    }
}
