//! What is shown of a capture while it is recorded.

use std::io::Write;
use std::time::Duration;

use super::attach::some_time;
use super::report::{parse_duration, parse_size};
use crate::query::{BlockFilter, Only, Query, Suppressions};
use crate::report::{Options, report_growing};
use crate::session::Glance;

/// More often nobody can read it.
const MIN_EVERY_NS: u64 = 100_000_000;

/// What to show.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Meanwhile {
    /// List single blocks that are alive, too, with --every and at the end: address, size, age and stack.
    #[arg(short = 'a', long)]
    pub blocks: bool,

    /// Print the sites that hold most so often: to standard output, or to standard error beside a program that hound has started. The
    /// growing capture is read each time; where that takes long, it is done less often.
    #[arg(long, value_name = "TIME", value_parser = some_time, help_heading = "While recording")]
    pub every: Option<u64>,
    /// So many sites.
    #[arg(long, value_name = "N", default_value = "10", value_parser = some_sites, requires = "every", help_heading = "While recording")]
    pub top: usize,
    /// Only blocks that have lived at least so long.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_duration, requires = "every", help_heading = "While recording")]
    pub older_than: u64,
    /// Only blocks of at least so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "every", help_heading = "While recording")]
    pub min_size: Option<u64>,
    /// Only blocks of at most so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "every", help_heading = "While recording")]
    pub max_size: Option<u64>,
}

/// Where it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On standard output.
    Output,
    /// On standard error: the other is the program's.
    Errors,
}

impl Meanwhile {
    /// How often.
    pub fn every(&self) -> Option<Duration> {
        self.every.map(|every| Duration::from_nanos(every.max(MIN_EVERY_NS)))
    }

    /// Shows a look at a capture of `whom`.
    pub fn shown(&self, whom: &str, place: Place) -> impl FnMut(&Glance) -> anyhow::Result<()> + Send + 'static {
        let (question, which, blocks) = (self.question(), self.which(whom), self.blocks);
        move |glance| show(glance, &question, &which, blocks, place)
    }

    /// What `--every` shows.
    pub fn question(&self) -> Query {
        let blocks = BlockFilter {
            min_size: self.min_size,
            max_size: self.max_size,
            min_lifetime_ns: Some(self.older_than),
            only: Only::Live,
            ..BlockFilter::default()
        };
        Query { blocks, limit: Some(self.top), ..Query::default() }
    }

    /// Which blocks of which process: whoever finds the text tomorrow must not have to guess.
    fn which(&self, whom: &str) -> String {
        let bound = |what: &str, value: Option<u64>| value.map_or_else(String::new, |value| format!(", of {what} {value} bytes"));
        let older = Duration::from_nanos(self.older_than);
        format!("{whom}, blocks older than {older:?}{}{}", bound("at least", self.min_size), bound("at most", self.max_size))
    }
}

fn some_sites(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|sites| *sites > 0).ok_or_else(|| "give a number from 1 on".into())
}

fn show(glance: &Glance, question: &Query, which: &str, blocks: bool, place: Place) -> anyhow::Result<()> {
    let options = Options {
        blocks,
        query: question.clone(),
        suppressions: Suppressions::none(),
        rows_only: true,
        files: Some(glance.files.clone()),
        ..Options::default()
    };
    let text = report_growing(&glance.capture, glance.bytes, &options)?;
    let mut out: Box<dyn Write> = match place {
        Place::Output => Box::new(std::io::stdout().lock()),
        Place::Errors => Box::new(std::io::stderr().lock()),
    };
    // Whoever reads may stop reading: the recording goes on.
    let _ = write!(out, "[{}, {which}]{text}", time_of_day()).and_then(|()| out.flush());
    Ok(())
}

/// UTC: what the machine's zone is takes a library to find out.
fn time_of_day() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{:02}:{:02}:{:02} UTC", now / 3600 % 24, now / 60 % 60, now % 60)
}
