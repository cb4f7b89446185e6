//! The live status line: one line on the terminal that tells how the recording goes.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::cost::Cost;
use super::kernel_memory::Progress as KernelProgress;
use super::recording::Recording;
use super::sampling::Progress;

/// Draws the line while the target runs, if standard error is a terminal.
#[derive(Debug)]
pub struct StatusLine {
    drawn: bool,
    enabled: bool,
    last: (Instant, u64),
    /// What can be pressed.
    hint: String,
}

impl StatusLine {
    /// A line, shown only on a terminal and unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        StatusLine { drawn: false, enabled: !quiet && std::io::stderr().is_terminal(), last: (Instant::now(), 0), hint: String::new() }
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
        self.show(&line);
    }

    /// What can be pressed, from now on.
    pub fn set_hint(&mut self, hint: String) {
        self.hint = hint;
    }

    /// Draws a line with what can be done at its end. Figures are cut where the terminal is too narrow: a line that wraps is not taken away.
    fn show_with_hint(&mut self, line: &str) {
        let hint = if self.hint.is_empty() { "Ctrl-C detaches" } else { &self.hint };
        let room = columns().saturating_sub(hint.chars().count() + 3);
        let cut: String = line.chars().take(room.max(40)).collect();
        self.show(&format!("{cut}; {hint}"));
    }

    fn show(&mut self, line: &str) {
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        self.drawn = true;
    }

    /// Draws the line of a target that is not recorded just now.
    pub fn draw_off(&mut self, recording: &Recording) {
        if self.enabled {
            let megabytes = recording.progress.bytes.load(Ordering::Relaxed) as f64 / 1e6;
            self.show_with_hint(&format!("hound: off, nothing is recorded, capture {megabytes:.1} MB"));
        }
    }

    /// Draws the line of a recording of the kernel's memory.
    pub fn draw_kernel(&mut self, progress: &KernelProgress, recording: &Recording) {
        if self.enabled {
            let megabytes = recording.progress.bytes.load(Ordering::Relaxed) as f64 / 1e6;
            self.show_with_hint(&format!("hound: {}, capture {megabytes:.1} MB", progress.short()));
        }
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
        self.show_with_hint(&format!("hound: {rate:.1} k events/s, live {live}, {loss}, {overhead}, capture {megabytes:.1} MB"));
    }

    /// Draws the line of a target that is sampled from the kernel.
    pub fn draw_sampled(&mut self, progress: &Progress, recording: &Recording) {
        if self.enabled {
            let megabytes = recording.progress.bytes.load(Ordering::Relaxed) as f64 / 1e6;
            self.show_with_hint(&format!("hound: capture {megabytes:.1} MB, {progress}"));
        }
    }

    /// Takes the line away, so that what is printed next starts clean.
    pub fn clear(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
            self.drawn = false;
        }
    }
}

/// How wide the terminal at standard error is.
#[expect(unsafe_code, reason = "TIOCGWINSZ has no safe wrapper here")]
fn columns() -> usize {
    const USUAL: usize = 80;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`, which `size` is.
    let done = unsafe { libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    if done == 0 && size.ws_col > 0 { usize::from(size.ws_col) } else { USUAL }
}
