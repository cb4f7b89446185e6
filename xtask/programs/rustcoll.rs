//! rustcoll ROUNDS: the collections of Rust's standard library, used as programs use them: maps of strings to vectors, boxes, formatting.
use std::collections::{BTreeMap, HashMap, VecDeque};

struct Node {
    name: String,
    children: Vec<Box<Node>>,
}

/// A tree of `depth` levels with three children a node.
fn grow(depth: u32, seed: u64) -> Box<Node> {
    let children = if depth == 0 { Vec::new() } else { (0..3).map(|i| grow(depth - 1, seed * 3 + i)).collect() };
    Box::new(Node { name: format!("node {seed} at depth {depth}"), children })
}

fn weigh(node: &Node) -> usize {
    node.name.len() + node.children.iter().map(|child| weigh(child)).sum::<usize>()
}

fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let mut words: HashMap<String, Vec<u64>> = HashMap::new();
    let mut ordered: BTreeMap<u64, String> = BTreeMap::new();
    let mut recent: VecDeque<Box<[u8]>> = VecDeque::new();
    let (mut key, mut sum) = (88_172_645_463_325_252u64, 0);
    for round in 0..rounds {
        key ^= key << 13;
        key ^= key >> 7;
        key ^= key << 17;
        words.entry(format!("word number {}", key % 4096)).or_default().push(round);
        ordered.insert(key % 50_000, format!("{key:x} seen in round {round}"));
        recent.push_back(vec![0u8; 32 + (key % 400) as usize].into_boxed_slice());
        if recent.len() > 1000 {
            recent.pop_front();
        }
        if round % 1024 == 0 {
            sum += weigh(&grow(6, round));
            words.retain(|_, rounds| rounds.len() < 64);
        }
    }
    println!("{} words, {} ordered, {} recent, {sum}", words.len(), ordered.len(), recent.len());
}
