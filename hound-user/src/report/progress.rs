//! A progress bar for what takes over a second; on stderr, and only on a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Below this nothing is shown: most reports are done before anyone wonders.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows how far something is.
pub struct Progress {
    wanted: bool,
    shown: bool,
    started: Instant,
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    /// Shows nothing unless `wanted` and stderr is a terminal.
    pub fn new(wanted: bool) -> Self {
        Progress { wanted, shown: wanted && std::io::stderr().is_terminal(), started: Instant::now(), bar: RefCell::new(None) }
    }

    /// `what` is at `done` of `all`.
    pub fn at(&self, what: &'static str, done: u64, all: u64) {
        if !self.shown || self.started.elapsed() < PATIENCE {
            return;
        }
        let mut bar = self.bar.borrow_mut();
        let bar = bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg} {bar:30} {percent} %");
            ProgressBar::new(all).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_message(what);
        bar.set_length(all);
        bar.set_position(done);
    }

    /// Says something that is to stay, on stderr, where progress is wanted, terminal or not.
    pub fn note(&self, text: &str) {
        self.done();
        if self.wanted {
            eprintln!("hound: {text}");
        }
    }

    /// Takes the bar away.
    pub fn done(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}
