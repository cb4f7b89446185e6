//! What the blocks, or maps, of each series held at many moments.

use super::dataset::Dataset;
use super::fault::Refusal;
use super::limits::Meter;
use crate::columns::ending;
use crate::heap::MapRecord;

/// Added up by series and moment.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// Nanoseconds of the capture, ascending.
    pub moments: Vec<u64>,
    /// By series.
    pub lines: Vec<Line>,
}

/// Of one series, by moment.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Bytes that lived.
    pub bytes: Vec<f64>,
    /// Blocks that lived.
    pub blocks: Vec<f64>,
    /// Blocks that were allocated from the moment on to the next.
    pub allocated: Vec<f64>,
    /// Blocks that ended from the moment on to the next.
    pub ended: Vec<f64>,
    /// Whether there is anything in it at all.
    pub is_empty: bool,
}

/// So many moments, evenly from one to another.
pub fn moments(from: u64, to: u64, count: u64) -> Vec<u64> {
    let span = to.saturating_sub(from);
    let mut moments: Vec<u64> =
        (0..=count).map(|number| from + (u128::from(span) * u128::from(number) / u128::from(count)) as u64).collect();
    moments.dedup();
    moments
}

impl Course {
    /// For so many series.
    pub fn new(moments: Vec<u64>, series: usize) -> Self {
        let none = || vec![0.0; moments.len() + 1];
        let line = || Line { bytes: none(), blocks: none(), allocated: none(), ended: none(), is_empty: true };
        Course { lines: (0..series).map(|_| line()).collect(), moments }
    }

    /// Adds blocks: row, and which series it is of.
    ///
    /// # Errors
    /// If there is no time left.
    pub fn add(&mut self, data: &Dataset, rows: impl Iterator<Item = (u32, usize)>, meter: &Meter) -> Result<(), Refusal> {
        let view = data.view();
        for (count, (row, series)) in rows.enumerate() {
            if count % (1 << 16) == 0 {
                meter.must_have_time()?;
            }
            let (born, weight) = (view.alloc_ns[row as usize], data.weight(row));
            let bytes = view.size[row as usize] as f64 * weight;
            let line = &mut self.lines[series];
            line.is_empty = false;
            let from = self.moments.partition_point(|moment| *moment < born);
            // What was not known to live is not said to.
            let until = match data.ending(row) {
                ending::ALIVE | ending::CENSORED => self.moments.len(),
                ending::GONE => self.moments.partition_point(|moment| *moment < view.known_ns(row as usize)),
                _ => self.moments.partition_point(|moment| *moment < view.end_ns[row as usize]),
            };
            if from < until {
                line.bytes[from] += bytes;
                line.bytes[until] -= bytes;
                line.blocks[from] += weight;
                line.blocks[until] -= weight;
            }
            if let Some(period) = period(&self.moments, born) {
                line.allocated[period] += weight;
            }
            if data.has_ended(row)
                && let Some(period) = period(&self.moments, view.end_ns[row as usize])
            {
                line.ended[period] += weight;
            }
        }
        Ok(())
    }

    /// From changes to what there is.
    pub fn finish(mut self) -> Self {
        for line in &mut self.lines {
            for changes in [&mut line.bytes, &mut line.blocks] {
                let mut sum = 0.0;
                for value in changes.iter_mut() {
                    sum += *value;
                    // Fractions do not cancel to the last digit.
                    *value = if sum < 0.5 { 0.0 } else { sum };
                }
                changes.pop();
            }
            line.allocated.truncate(self.moments.len());
            line.ended.truncate(self.moments.len());
        }
        self
    }
}

/// The moment after which, and before the next, this is.
fn period(moments: &[u64], at: u64) -> Option<usize> {
    let after = moments.partition_point(|moment| *moment <= at);
    let inside = after < moments.len() || moments.last() == Some(&at);
    after.checked_sub(1).filter(|_| inside)
}

/// What a number that holds until it changes is at each moment.
pub fn held(changes: &[(u64, u64)], moments: &[u64]) -> Vec<f64> {
    let at = |moment: &u64| {
        let after = changes.partition_point(|(time_ns, _)| time_ns <= moment);
        after.checked_sub(1).map_or(0.0, |last| changes[last].1 as f64)
    };
    moments.iter().map(at).collect()
}

/// What a map had resident: what was seen last, and nothing once it is unmapped.
pub fn resident(map: &MapRecord, moments: &[u64]) -> Vec<f64> {
    let mut seen = map.resident.clone();
    seen.extend(map.unmapped_ns.map(|end| (end, 0)));
    seen.retain(|(at, _)| map.unmapped_ns.is_none_or(|end| *at <= end));
    held(&seen, moments)
}
