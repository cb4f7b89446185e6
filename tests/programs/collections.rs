//! A Rust program: collections, threads, a panic that is caught. Its global allocator notes every block it takes.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_void;

extern "C" {
    fn malloc(n: usize) -> *mut c_void;
    fn calloc(a: usize, b: usize) -> *mut c_void;
    fn realloc(p: *mut c_void, n: usize) -> *mut c_void;
    fn aligned_alloc(a: usize, n: usize) -> *mut c_void;
    fn free(p: *mut c_void);
    fn oracle_note(op: u32, addr: *const c_void, size: u64, prev: *const c_void);
    fn oracle_fact(i: i32, value: u64);
    fn oracle_end(status: i32) -> i32;
}

const MALLOC: u32 = 1;
const CALLOC: u32 = 2;
const REALLOC: u32 = 3;
const ALIGNED_ALLOC: u32 = 7;
const FREE: u32 = 10;

struct Noting;

// SAFETY: hands everything to the C allocator, which keeps the contract; noting allocates nothing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        let (p, op) = if l.align() <= 16 {
            (malloc(l.size()), MALLOC)
        } else {
            (aligned_alloc(l.align(), l.size()), ALIGNED_ALLOC)
        };
        oracle_note(op, p, l.size() as u64, std::ptr::null());
        p.cast()
    }
    unsafe fn dealloc(&self, p: *mut u8, _: Layout) {
        free(p.cast());
        oracle_note(FREE, p.cast(), 0, std::ptr::null());
    }
    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        if l.align() > 16 {
            let p = self.alloc(l);
            p.write_bytes(0, l.size());
            return p;
        }
        let p = calloc(1, l.size());
        oracle_note(CALLOC, p, l.size() as u64, std::ptr::null());
        p.cast()
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        if l.align() > 16 {
            let new = self.alloc(Layout::from_size_align_unchecked(n, l.align()));
            new.copy_from_nonoverlapping(p, n.min(l.size()));
            self.dealloc(p, l);
            return new;
        }
        let q = realloc(p.cast(), n);
        oracle_note(REALLOC, q, n as u64, p.cast());
        q.cast()
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
