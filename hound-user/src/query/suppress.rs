//! What a leak report leaves out: blocks that a language runtime keeps by design, and what the user's suppression files name.
//!
//! A block is judged by what made it, never by its size. The built-in rules look only at the *site*: the innermost frames up to the
//! first one outside the runtime. So memory that a library's constructor allocates is not left out for being called by the loader.

use crate::symbols::Frame;

/// A pattern of LeakSanitizer's suppression files: a text to be found anywhere, in which `*` stands for any text, `^` at its start for
/// the beginning and `$` at its end for the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<String>,
    at_start: bool,
    at_end: bool,
}

impl Pattern {
    /// The pattern written so.
    pub fn new(text: &str) -> Self {
        let body = text.strip_prefix('^').unwrap_or(text);
        let inner = body.strip_suffix('$').unwrap_or(body);
        let parts = inner.split('*').map(str::to_owned).collect();
        Pattern { text: text.to_owned(), parts, at_start: body.len() != text.len(), at_end: inner.len() != body.len() }
    }

    /// Whether it is found in `text`.
    pub fn matches(&self, text: &str) -> bool {
        let mut rest = text;
        let last = self.parts.len() - 1;
        for (index, part) in self.parts.iter().enumerate() {
            let end_here = index == last && self.at_end;
            if index == 0 && self.at_start {
                let Some(after) = rest.strip_prefix(part.as_str()) else { return false };
                rest = after;
                if end_here {
                    return rest.is_empty();
                }
            } else if end_here {
                return rest.ends_with(part.as_str());
            } else {
                let Some(at) = rest.find(part.as_str()) else { return false };
                rest = &rest[at + part.len()..];
            }
        }
        true
    }
}

/// Why something was left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Suppressed {
    /// The runtime keeps it by design; in words.
    Runtime(&'static str),
    /// The user's pattern.
    User(String),
}

/// What to leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressions {
    runtime: bool,
    user: Vec<Pattern>,
}

impl Suppressions {
    /// Leaves nothing out.
    pub fn none() -> Self {
        Suppressions { runtime: false, user: Vec::new() }
    }

    /// Leaves out what runtimes keep by design.
    pub fn runtime() -> Self {
        Suppressions { runtime: true, user: Vec::new() }
    }

    /// Adds a suppression file's patterns: a line `leak:PATTERN` each; empty lines and those that start with `#` mean nothing.
    ///
    /// # Errors
    /// With the number (from 1) and text of the first line that is something else; no pattern is added then.
    pub fn add(&mut self, file: &str) -> Result<(), (usize, String)> {
        let mut patterns = Vec::new();
        for (index, line) in file.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.strip_prefix("leak:").map(str::trim) {
                Some(pattern) if !pattern.is_empty() => patterns.push(Pattern::new(pattern)),
                _ => return Err((index + 1, line.to_owned())),
            }
        }
        self.user.extend(patterns);
        Ok(())
    }

    /// Whether blocks with this call path (innermost frame first) are left out, and why. The user's patterns are looked for in the
    /// function, file and module of every frame.
    pub fn decide(&self, frames: &[Frame<'_>]) -> Option<Suppressed> {
        let found = |pattern: &&Pattern| {
            frames.iter().any(|frame| {
                let file = frame.location.map_or("", |at| at.file);
                pattern.matches(frame.function) || pattern.matches(frame.module) || !file.is_empty() && pattern.matches(file)
            })
        };
        let user = self.user.iter().find(found).map(|pattern| Suppressed::User(pattern.text.clone()));
        user.or_else(|| self.runtime.then(|| kept_by_runtime(frames)).flatten().map(Suppressed::Runtime))
    }
}

/// Functions whose blocks are kept on purpose; a name that ends in `*` is a prefix. They count wherever they are met among the innermost
/// frames that belong to a runtime.
const KEPT: &[(&str, &[&str])] = &[
    (
        "the loader's own structures and thread-local storage",
        &["_dl_*", "__dl_*", "allocate_dtv*", "tls_get_addr_tail", "__tls_get_addr*", "allocate_stack"],
    ),
    ("buffers of open stdio streams", &["_IO_file_doallocate", "_IO_wfile_doallocate", "_IO_default_doallocate"]),
    ("the exception emergency pool", &["(anonymous namespace)::pool::pool*", "_GLOBAL__sub_I_eh_alloc.cc", "__cxxabiv1::__get_freelist*"]),
    (
        "locale, character set and time zone data",
        &[
            "_nl_*",
            "setlocale",
            "new_composite_name",
            "__gconv*",
            "gconv_*",
            "find_derivation",
            "read_alias_file",
            "bindtextdomain",
            "textdomain",
            "set_binding_values",
            "__dcigettext",
            "tzset*",
            "__tz*",
            "update_vars",
        ],
    ),
    ("lists of exit handlers", &["__new_exitfn", "__cxa_atexit", "__cxa_thread_atexit_impl", "atexit", "on_exit"]),
    ("name service and resolver caches", &["__nss_*", "nss_*", "__res_*", "__resolv_*", "resolv_conf_*"]),
    ("standard streams and thread handles of Rust's runtime", &["std::io::stdio::*", "std::rt::init*", "std::rt::lang_start_internal*"]),
];

/// Modules (by file name) that are runtimes.
const RUNTIMES: &[&str] = &[
    "libc.so",
    "libc-2.",
    "ld-linux",
    "ld-2.",
    "ld-musl",
    "libpthread",
    "libdl.",
    "libm.so",
    "librt.",
    "libresolv",
    "libnss_",
    "libstdc++.so",
    "libc++.so",
    "libc++abi",
    "libgcc_s",
];

const LOADERS: &[&str] = &["ld-linux", "ld-2.", "ld-musl"];

fn kept_by_runtime(frames: &[Frame<'_>]) -> Option<&'static str> {
    let frames = &frames[super::trim::site_start(frames)..];
    let (first, callers) = frames.split_first()?;
    // Loaders come without symbols often enough: what they allocate themselves is theirs by the module alone.
    if in_module(first, LOADERS) {
        return Some(KEPT[0].0);
    }
    // So does libstdc++, whose only allocation straight from an initialiser that the loader calls is the pool.
    let nameless = first.function.starts_with("libstdc++.so");
    let from_loader = |frame: &Frame<'_>| in_module(frame, LOADERS) || ["call_init", "_dl_init"].contains(&frame.function);
    if nameless && callers.first().is_some_and(from_loader) {
        return Some(KEPT[2].0);
    }
    let run = 1 + callers.iter().take_while(|frame| in_module(frame, RUNTIMES) || is_rust_runtime(frame)).count();
    let names = frames[..run].iter().map(|frame| frame.function);
    names
        .into_iter()
        .find_map(|name| KEPT.iter().find(|(_, functions)| functions.iter().any(|function| is_called(name, function))).map(|k| k.0))
}

fn is_called(name: &str, function: &str) -> bool {
    match function.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == function,
    }
}

fn in_module(frame: &Frame<'_>, names: &[&str]) -> bool {
    let base = frame.module.rsplit('/').next().unwrap_or("");
    names.iter().any(|name| base.starts_with(name))
}

/// Rust's runtime is linked into every program: only its names tell.
fn is_rust_runtime(frame: &Frame<'_>) -> bool {
    ["std::", "core::", "alloc::", "<std::", "<core::", "<alloc::"].iter().any(|prefix| frame.function.starts_with(prefix))
}
