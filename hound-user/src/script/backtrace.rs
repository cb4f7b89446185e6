//! `Backtrace`: a call path, printed from the outermost function to the one that allocates.

use super::api::{Api, Origin};
use super::dataset::Dataset;
use super::fault::{Refusal, refusal};
use super::paths::{PathFrame, PathId};
use std::fmt;
use std::sync::Arc;

/// A call path of a capture.
#[derive(Clone)]
pub struct Backtrace {
    /// Whose it is.
    pub data: Arc<Dataset>,
    /// Which.
    pub path: PathId,
    /// Only what says something about the program is shown.
    pub stripped: bool,
    /// It is of a block that was made of another one, so that how it came about is told by the innermost frames.
    pub grows: bool,
}

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self.data.paths().frames(self.path);
        let shown = if self.stripped { kept(&frames, self.grows) } else { vec![true; frames.len()] };
        let mut between = "";
        // Frames keep their numbers when others are left out.
        for (number, of) in frames.iter().enumerate().filter(|(number, _)| shown[*number]) {
            write!(f, "{between}#{number:02} {}", Line(of))?;
            between = "\n";
        }
        Ok(())
    }
}

struct Line<'a, 'f>(&'a PathFrame<'f>);

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether the function has a name, and not only an address.
fn is_named(of: &PathFrame<'_>) -> bool {
    let frame = &of.frame;
    let is_offset = frame.function.strip_prefix(base(frame.module)).is_some_and(|rest| rest.starts_with("+0x"));
    !is_offset && !frame.function.starts_with("0x")
}

impl fmt::Display for Line<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PathFrame { frame, ip } = self.0;
        if !frame.module.is_empty() {
            write!(f, "[{}] ", base(frame.module))?;
        }
        match is_named(self.0) {
            true => f.write_str(frame.function)?,
            // The call, and not where it returns to.
            false => write!(f, "{:x}", ip.wrapping_sub(1))?,
        }
        match frame.location {
            Some(at) if at.line > 0 => write!(f, " [{}:{}]", base(at.file), at.line),
            Some(at) => write!(f, " [{}]", base(at.file)),
            None => Ok(()),
        }
    }
}

/// What Rust's runtime puts between `main` and the program's own function, and around closures anywhere.
const RUNTIME: &[&str] = &[
    "std::rt::",
    "std::panic::",
    "std::panicking::",
    "std::sys::backtrace::",
    "std::sys_common::backtrace::",
    "core::ops::function::",
    "<alloc::boxed::Box<F,A> as core::ops::function::FnOnce",
];

/// How Rust's collections come to a new block; what was called of them stays.
const COLLECTIONS: &[&str] = &[
    "alloc::alloc::alloc",
    "alloc::alloc::alloc_zeroed",
    "alloc::alloc::Global::alloc_impl",
    "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
    "<alloc::alloc::Global as core::alloc::Allocator>::allocate_zeroed",
    "alloc::alloc::exchange_malloc",
    "alloc::raw_vec::finish_grow",
    "alloc::raw_vec::RawVec",
    "<alloc::raw_vec::RawVec",
    "alloc::vec::Vec<T,A>::reserve",
    "alloc::vec::Vec<T,A>::extend_with",
    "__rust_alloc",
    "__rustc::__rust_alloc",
    "__rdl_alloc",
    "__rustc::__rdl_alloc",
    "std::sys::alloc::",
    "<std::alloc::System as core::alloc::global::GlobalAlloc>::alloc",
];

/// The same in C++.
const CPP: &[&str] = &[
    "operator new",
    "__gnu_cxx::new_allocator<",
    "__gnu_cxx::__alloc_traits<",
    "std::__new_allocator<",
    "std::allocator<",
    "std::allocator_traits<",
    "std::__allocate_guarded",
];

/// Which frames say something about the program.
fn kept(frames: &[PathFrame<'_>], grows: bool) -> Vec<bool> {
    let begins = |frame: &PathFrame<'_>, with: &[&str]| with.iter().any(|prefix| frame.frame.function.starts_with(prefix));
    let mut kept: Vec<bool> = frames.iter().map(|frame| !begins(frame, RUNTIME)).collect();
    let is_hook = |frame: &PathFrame<'_>| {
        let module = base(frame.frame.module);
        module.starts_with("libhound") || module.starts_with("libbytehound")
    };
    let mut end = frames.len() - frames.iter().rev().take_while(|frame| is_hook(frame)).count();
    // A block that grows is told by how it grows: only the ways to a new one are left out.
    let inner = frames[..end].iter().rev().take_while(|frame| begins(frame, COLLECTIONS) || begins(frame, CPP)).count();
    let grows = grows || frames[..end].last().is_some_and(|last| last.frame.function.contains("realloc"));
    if inner < end && !grows {
        end -= inner;
        kept[end..].fill(false);
    }
    // Nothing is worse than too much.
    if kept.iter().any(|kept| *kept) { kept } else { vec![true; frames.len()] }
}

/// What scripts do with backtraces.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<Backtrace>("Backtrace");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |backtrace: &mut Backtrace| backtrace.to_string());
    }
    api.about("Backtrace", "backtraces_print_and_strip_as_documented");
    api.function(
        "strip",
        "(self: Backtrace) -> Backtrace",
        "The same without what says nothing about the program: what a language's runtime does before the program's own functions, and how \
         collections and allocators get a new block. Frames keep their numbers.",
        |backtrace: &mut Backtrace| Backtrace { stripped: true, ..backtrace.clone() },
    );
    own(api);
}

fn own(api: &mut Api<'_>) {
    api.about("Backtrace", "backtraces_have_numbers_and_frames").of(Origin::Hound);
    api.function(
        "id",
        "(self: Backtrace) -> Integer",
        "Its number, which filters by backtraces take, too.",
        |backtrace: &mut Backtrace| i64::from(backtrace.path),
    );
    api.function("len", "(self: Backtrace) -> Integer", "How many frames it has, inlined ones included.", |backtrace: &mut Backtrace| {
        i64::from(backtrace.data.paths().depth(backtrace.path))
    });
    api.function(
        "functions",
        "(self: Backtrace) -> Array",
        "The names of its functions, the outermost first.",
        |backtrace: &mut Backtrace| {
            let frames = backtrace.data.paths().frames(backtrace.path);
            frames.iter().map(|of| of.frame.function.to_owned().into()).collect::<rhai::Array>()
        },
    );
    let same = |a: &Backtrace, b: &Backtrace| a.path == b.path && Arc::ptr_eq(&a.data, &b.data);
    api.function("==", "(lhs: Backtrace, rhs: Backtrace) -> Bool", "Whether both are one.", move |a: Backtrace, b: Backtrace| same(&a, &b));
    api.function("!=", "(lhs: Backtrace, rhs: Backtrace) -> Bool", "Whether they differ.", move |a: Backtrace, b: Backtrace| !same(&a, &b));
}

/// The path with this number.
///
/// # Errors
/// If there is none.
pub fn path_of(data: &Dataset, number: i64) -> Result<PathId, Refusal> {
    let path = PathId::try_from(number).ok().filter(|path| (*path as usize) < data.paths().len());
    path.ok_or_else(|| refusal(format!("there is no backtrace {number}: their numbers are from 0 to {}", data.paths().len() - 1)))
}
