//! The live status line: one line on the terminal that tells how the recording goes.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::cost::Cost;
use super::recording::Recording;

/// Draws the line while the target runs, if standard error is a terminal.
#[derive(Debug)]
pub struct StatusLine {
    drawn: bool,
    enabled: bool,
    last: (Instant, u64),
}

impl StatusLine {
    /// A line, shown only on a terminal and unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        StatusLine { drawn: false, enabled: !quiet && std::io::stderr().is_terminal(), last: (Instant::now(), 0) }
    }

    /// Whether it is worth calling `draw`.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Draws the line anew.
    pub fn draw(&mut self, recording: &Recording) {
        let events = recording.progress.events.load(Ordering::Relaxed);
        let bytes = recording.progress.bytes.load(Ordering::Relaxed);
        let now = Instant::now();
        let seconds = now.duration_since(self.last.0).as_secs_f64().max(0.001);
        let rate = events.saturating_sub(self.last.1) as f64 / seconds;
        self.last = (now, events);
        let lost = recording.lost();
        let loss = if lost == 0 { "nothing lost".to_owned() } else { format!("{lost} LOST") };
        let line = format!("hound: {:.1} M events, {:.0} k/s, {:.1} MB, {loss}", events as f64 / 1e6, rate / 1e3, bytes as f64 / 1e6);
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        self.drawn = true;
    }

    /// Draws the line of an attached target, if it is shown at all.
    pub fn draw_attached(&mut self, recording: &Recording, cost: &Cost) {
        if !self.enabled {
            return;
        }
        let megabytes = recording.progress.bytes.load(Ordering::Relaxed) as f64 / 1e6;
        let live = recording
            .live
            .figures()
            .map_or_else(|| "not counted (too busy)".to_owned(), |(bytes, _)| format!("{:.1} MB", bytes as f64 / 1e6));
        let loss = match recording.lost() {
            0 => "nothing lost".to_owned(),
            lost => format!("{lost} LOST"),
        };
        let overhead = cost.overhead().map_or_else(|| "idle".to_owned(), |share| format!("overhead {:.0} % (estimate)", share * 100.0));
        let rate = cost.events_per_second() / 1e3;
        let line = format!("hound: {rate:.1} k events/s, live {live}, {loss}, {overhead}, capture {megabytes:.1} MB; Ctrl-C detaches");
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        self.drawn = true;
    }

    /// Takes the line away, so that what is printed next starts clean.
    pub fn clear(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
            self.drawn = false;
        }
    }
}
