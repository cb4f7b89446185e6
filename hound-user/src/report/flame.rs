//! A capture in, a flamegraph out; or two captures, and what has changed.

use super::material::Material;
use super::{Options, Progress};
use crate::capture::Pool;
use crate::query::{FlameShape, FlameSide, FlameWhat, Measure, Query, flame};
use crate::view::flame::{Picture, collapsed, difference, html, svg};
use crate::view::{self, Remark, duration};
use std::path::Path;

/// What a flamegraph is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlameFormat {
    /// A picture, live in browsers.
    Svg,
    /// The same in a page.
    Html,
    /// Call paths, for other tools.
    Collapsed,
}

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct FlameOptions {
    /// How call paths are merged.
    pub shape: FlameShape,
    /// As what.
    pub format: FlameFormat,
    /// What is narrower than this share of the whole is folded.
    pub smallest: f64,
    /// What is more than so many levels deep is folded.
    pub deepest: usize,
}

/// The flamegraph of a capture; with `before`, of what has changed since that one.
///
/// # Errors
/// If a capture cannot be read, or one has allocations and the other page faults only.
pub fn flamegraph(path: &Path, before_path: Option<&Path>, options: &Options, how: &FlameOptions) -> anyhow::Result<String> {
    let progress = Progress::new(options.progress);
    let now = Material::of(path, options, &progress)?;
    let before = before_path.map(|path| Material::of(path, options, &progress)).transpose()?;
    if let Some(before) = before.as_ref().filter(|before| before.faults != now.faults) {
        let of = if before.faults { "the other one" } else { "the first" };
        anyhow::bail!("{of} has page faults alone, which cannot be compared with allocations: give two captures of one kind, or --faults");
    }
    progress.done();
    if let Some(at_ns) = options.until_ns {
        let both = [Some((path, &now)), before_path.zip(before.as_ref())];
        both.into_iter().flatten().try_for_each(|(path, material)| must_reach(path, material, at_ns))?;
    }
    let query = match now.faults {
        true => Query { measure: Measure::Allocated, ..options.query.clone() },
        false => options.query.clone(),
    };
    let (sites, sites_before) = (now.sites(), before.as_ref().map(Material::sites));
    let side = |material: &'_ Material| material.capture.streams().to_vec();
    let (streams, streams_before) = (side(&now), before.as_ref().map(side).unwrap_or_default());
    let of_now = FlameSide { sites: &sites, streams: &streams, scale: now.scale.as_ref() };
    let of_before = before.as_ref().zip(sites_before.as_ref());
    let of_before = of_before.map(|(material, sites)| FlameSide { sites, streams: &streams_before, scale: material.scale.as_ref() });
    let merged = flame(&query, &options.suppressions, &of_now, of_before.as_ref(), how.shape);
    if how.format == FlameFormat::Collapsed {
        return Ok(collapsed(&merged));
    }
    let boxes = merged.boxes(how.smallest, how.deepest);
    let summary = now.summary(&sites);
    let root = &boxes[0];
    let mut title = match (now.faults, options.until_ns) {
        (true, _) => format!("Touched first: {}", view::amount(query.measure, &root.sums)),
        (false, Some(at_ns)) => format!("Live after {}: {}", duration(at_ns), view::amount(query.measure, &root.sums)),
        (false, None) => view::title(&summary, &root.sums, query.measure, now.read.heap.outcome.peak.time_ns),
    };
    let mut remarks = view::remarks(&summary);
    if let Some(before) = &root.before {
        title = format!("{title}; {}", difference(query.measure, &root.sums, before));
    }
    if let (Some(other), Some(sites)) = (&before, &sites_before) {
        let of_other = view::remarks(&other.summary(sites));
        remarks.push(Remark::Plain("compared with:".to_owned()));
        remarks.extend(of_other);
    }
    if how.shape.inverted {
        remarks.push(Remark::Plain("inverted: who allocates stands above who called it".to_owned()));
    }
    remarks.extend(view::left_out(&merged.left_out));
    let pools = pools(&now);
    if pools > 0 {
        remarks.push(Remark::Plain(format!("{pools} pools of the program's own are not in this picture: `hound report` shows them")));
    }
    debug_assert!(matches!(root.what, FlameWhat::All), "the root comes first");
    let picture = Picture { title, remarks, measure: query.measure, pages: now.faults, boxes: &boxes };
    Ok(if how.format == FlameFormat::Html { html(&picture) } else { svg(&picture) })
}

/// # Errors
/// If the capture ends before this moment, or has no blocks.
fn must_reach(path: &Path, material: &Material, at_ns: u64) -> anyhow::Result<()> {
    anyhow::ensure!(!material.faults, "{}: page faults alone do not tell what lived when", path.display());
    let end_ns = material.end_ns();
    anyhow::ensure!(at_ns <= end_ns, "{}: the capture ends after {}, before {}", path.display(), duration(end_ns), duration(at_ns));
    Ok(())
}

/// How many pools there are, which no picture of the heap counts in.
fn pools(material: &Material) -> usize {
    let named: &[Pool] = &material.capture.session().pools;
    let met = material.read.pools.iter().filter(|(number, _)| !named.iter().any(|pool| pool.number == *number));
    named.len() + met.count()
}
