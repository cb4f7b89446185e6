//! `docs/scripting.md`: written from what is registered, so that it cannot be out of date.

use super::api::{Entry, Origin};
use super::help::owners;
use std::fmt::Write;

const HEAD: &str = "\
# Scripting

<!-- Generated from what is registered (hound-user/src/script/). A test compares; HOUND_BLESS=1 writes it anew. -->

`hound script FILE -d CAPTURE ARGS…` runs a script over a capture, `hound repl CAPTURE` asks for one line after another (with history,
completion and `help`). Scripts are [Rhai](https://rhai.rs/book). What bytehound's book documents is here under its names and with its
meanings, so scripts written for bytehound run unchanged. The last column says which test covers an entry.

```rhai
let groups = allocations()
    .only_leaked()
    .group_by_backtrace()
        .sort_by_size();

graph().add(groups).save(\"leaked.svg\");
println(groups[0][0].backtrace().strip());
```

In what may differ from one's expectations:

- A list is found out when it is looked at; until then `only_…` cost nothing. Lists are in the order of allocation.
- *Leaked* means: not released for all that was recorded. *Temporary* means: released. Of samples that nobody has watched to their end it is
  not known which they are: `only_uncertain()` has them, and the two others have not.
- A moment is counted from the start of the recording. A block lives from its allocation on, and no longer at the moment of its release.
- A *backtrace* is what it prints: two call paths that print alike are one.
- `group` in the name of a filter means all allocations from one backtrace, in the whole capture and not only in the list.
- A *chain* is what `realloc` made of one block after another; each of its blocks is an allocation of its own.
- A map that is unmapped in parts ends with its last part. Its size is the most it ever had.
- Durations print without what is below a microsecond.

`--sandbox` is for scripts of people whom nobody knows: files are written into a folder in memory (`--into DIR` keeps them at the end), no
other captures are loaded, nothing is imported, and steps (20 million), time (30 s) and memory (256 MB) are bounded.

A mistake is told with file, line and column, and with what there is instead:

```text
hound: leaks.rhai:2:15: AllocationList has no `only_leakd`; did you mean `only_leaked`?
```
";

/// The whole page.
pub fn markdown(entries: &[Entry]) -> String {
    let mut out = HEAD.to_owned();
    for owner in owners(entries) {
        let title = if owner.is_empty() { "Functions" } else { owner };
        let _ = write!(out, "\n## {title}\n\n| name | called as | meaning | whose | test |\n|---|---|---|---|---|\n");
        for entry in entries.iter().filter(|entry| entry.owner == owner) {
            let _ = writeln!(out, "{}", row(entry));
        }
    }
    out
}

fn row(entry: &Entry) -> String {
    let escaped = |text: &str| text.replace('|', "\\|");
    let signatures: Vec<String> = entry.signatures.iter().map(|signature| format!("`{}`", escaped(signature))).collect();
    let whose = match entry.origin {
        Origin::Book => "book",
        Origin::Undocumented => "bytehound",
        Origin::Hound => "hound",
    };
    let (name, meaning, test) = (escaped(&entry.name), escaped(&entry.meaning), entry.test);
    format!("| `{name}` | {} | {meaning} | {whose} | `{test}` |", signatures.join("<br>"))
}
