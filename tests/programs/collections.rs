//! A Rust program: collections, threads, a panic that is caught. Its global allocator notes every block it takes.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_void;

extern "C" {
    fn oracle_malloc(n: usize) -> *mut c_void;
    fn oracle_calloc(a: usize, n: usize) -> *mut c_void;
    fn oracle_realloc(p: *mut c_void, n: usize) -> *mut c_void;
    fn oracle_aligned_alloc(a: usize, n: usize) -> *mut c_void;
    fn oracle_free(p: *mut c_void);
    fn oracle_fact(i: i32, value: u64);
    fn oracle_end(status: i32) -> i32;
}

/// What malloc aligns to by itself.
const MALLOC_ALIGN: usize = 16;

struct Noting;

// SAFETY: hands everything to the C allocator, which keeps the contract; noting allocates nothing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        if l.align() <= MALLOC_ALIGN { oracle_malloc(l.size()).cast() } else { oracle_aligned_alloc(l.align(), l.size()).cast() }
    }

    unsafe fn dealloc(&self, p: *mut u8, _: Layout) {
        oracle_free(p.cast());
    }

    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        if l.align() <= MALLOC_ALIGN {
            return oracle_calloc(1, l.size()).cast();
        }
        let p = self.alloc(l);
        p.write_bytes(0, l.size());
        p
    }

    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        if l.align() <= MALLOC_ALIGN {
            return oracle_realloc(p.cast(), n).cast();
        }
        let new = self.alloc(Layout::from_size_align_unchecked(n, l.align()));
        new.copy_from_nonoverlapping(p, n.min(l.size()));
        self.dealloc(p, l);
        new
    }
}

#[global_allocator]
static NOTING: Noting = Noting;

#[derive(Clone)]
#[repr(align(64))]
struct Aligned([u8; 64]);

struct Loud(Vec<u8>);
impl Drop for Loud {
    fn drop(&mut self) {
        self.0 = vec![1; self.0.len() + 1];
    }
}

fn collections(seed: u64) -> u64 {
    let mut map = HashMap::new();
    let mut tree = BTreeMap::new();
    let mut queue = VecDeque::new();
    for i in 0..2000u64 {
        let key = i.wrapping_mul(seed) % 777;
        map.insert(key, format!("value {i}"));
        tree.entry(key).or_insert_with(Vec::new).push(i);
        queue.push_back(Box::new(i));
        if i % 3 == 0 {
            queue.pop_front();
        }
    }
    let wide = vec![Aligned([7; 64]); 100];
    (map.len() + tree.len() + queue.len() + usize::from(wide[99].0[63])) as u64
}

fn panics(depth: u32) -> u32 {
    let held = Loud(vec![0; depth as usize + 1]);
    if depth == 20 {
        std::panic::panic_any(depth);
    }
    panics(depth + 1) + held.0.len() as u32
}

fn main() {
    std::panic::set_hook(Box::new(|_| ()));
    let caught = (0..200).filter(|_| std::panic::catch_unwind(|| panics(0)).is_err()).count();
    let threads: Vec<_> = (0..4).map(|i| std::thread::spawn(move || collections(31 + i))).collect();
    let sum: u64 = threads.into_iter().map(|t| t.join().expect("no panic in a thread")).sum();
    std::mem::forget(vec![0u8; 4321]);
    println!("caught {caught}, sum {sum}");
    // SAFETY: plain C functions without preconditions.
    let status = unsafe {
        oracle_fact(0, caught as u64);
        oracle_end(0)
    };
    std::process::exit(status);
}
