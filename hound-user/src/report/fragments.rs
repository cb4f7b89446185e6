//! A capture in, a picture out of the pages that each site holds alone.

use super::graph::{Drawn, GraphOptions};
use super::naming::others;
use super::second::Prepared;
use super::{Options, Progress};
use crate::query::{PAGE, Pages, Pinned};
use crate::view::chart::{Pin, Pins, pins_json, pins_svg};
use crate::view::{Remark, bytes, count, duration, share};
use std::path::Path;

/// Who holds most pages for least.
pub(super) fn drawn(path: &Path, options: &Options, how: &GraphOptions, progress: &Progress) -> anyhow::Result<Drawn> {
    let mut prepared = Prepared::of(path, options, progress)?;
    let at_ns = prepared.exact_moment(how.at_ns)?;
    let mut pages = Pages::new(prepared.grouping(), at_ns);
    prepared.pass(progress, |block, ending| pages.add(block, ending), |_| ());
    let found = pages.finish(prepared.most);
    progress.done();
    let rows: Vec<usize> = found.rows.iter().map(|(row, _)| *row).collect();
    let named = prepared.names(&rows).into_iter().zip(found.rows.iter().map(|(_, pinned)| *pinned));
    let rest = (found.others.0 > 0).then(|| (others(found.others.0), found.others.1));
    let pin = |(name, of): (String, Pinned)| Pin { name, pages: of.pages, held: of.pages * PAGE, used: of.bytes, blocks: of.blocks };
    let (held, live) = (found.pages * PAGE, found.live.0);
    let mut remarks = prepared.remarks();
    remarks.push(Remark::Plain(format!(
        "{} pages of 4 KiB have live blocks on them: {} for {} of live blocks ({}); {} of them have blocks of several",
        count(found.pages),
        bytes(held),
        bytes(live),
        share(live, held),
        count(found.shared)
    )));
    remarks.extend(prepared.not_in_pages());
    let pins = Pins {
        title: format!("Pages that one holds alone, after {}: those that hold most for least", duration(at_ns)),
        remarks,
        pins: named.chain(rest).map(pin).collect(),
        pages: found.pages,
        live,
        shared: found.shared,
    };
    Ok(Drawn { svg: pins_svg(&pins), json: pins_json(&pins), summary: prepared.summary })
}
