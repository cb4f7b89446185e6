//! What ends that were seen in windows say of those that were not.
//!
//! Windows lie so in time that the pauses between them have no memory: however long a block lives, its end falls into a later window with
//! the same probability, the share of the time that is observed. So each end that is seen there stands for as many as that share says, and
//! what was allocated less what ended is what lives. Nothing has to be known of how long blocks live.
//! `docs/decisions/0012-doubt-is-counted-not-guessed.md` says why, and what was measured.

use super::sampling::Window;

/// What the end of a block that was sampled in a window says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// It was watched from its birth to its end.
    Watched,
    /// It ended in the window that it was born in: so did others, after it was closed. Each weight of it counts so often among those that
    /// outlived their windows (never above 0).
    Within {
        /// Times its weight.
        factor: f64,
    },
    /// It outlived its window, and its end was seen later.
    Later {
        /// How many ends it stands for, for each block that would be sampled if all were observed.
        factor: f64,
        /// The cluster of windows it ended in.
        cluster: u32,
    },
    /// It outlived its window, and its end, if it has ended, was seen in no window.
    Unseen,
}

/// How much was observed around a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share {
    /// From 0 to 1.
    pub share: f64,
    /// Windows without gaps between them have the same number.
    pub stretch: u32,
}

/// Windows on each side that a share is taken over: one period's own length says where a window fell, not how likely it was to fall there,
/// and of two windows that are near each other both are short.
const AROUND: usize = 8;

/// Of each window, in order.
pub(super) fn shares(windows: &[Window]) -> Vec<Share> {
    let mut stretch = 0;
    let mut shares = Vec::with_capacity(windows.len());
    for (index, window) in windows.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &windows[before]);
        if before.is_none_or(|before| !before.is_whole() || !window.is_whole() || before.to_ns != window.from_ns) {
            stretch += 1;
        }
        let share = if window.is_whole() {
            1.0
        } else {
            let around = &windows[index.saturating_sub(AROUND)..(index + AROUND + 1).min(windows.len())];
            let (open, all) = around
                .iter()
                .filter(|near| !near.is_whole())
                .fold((0, 0), |(open, all), near| (open + near.open_ns, all + (near.to_ns - near.from_ns)));
            open as f64 / all as f64
        };
        shares.push(Share { share, stretch });
    }
    shares
}

/// How likely the end of a block that was sampled in a window is seen, in the same window or a later one, for each likelihood of a moment
/// that has nothing to do with the window. `life`: how long the block lived, in lengths of the window; `share`: observed of the time.
pub(super) fn seen(life: f64, share: f64) -> f64 {
    let within = (1.0 - life).max(0.0) / share;
    // The chance that a window has opened again grows from 0 to the share in about a window's length; the birth is anywhere in its window.
    let later = match life {
        ..1.0 => life * life / 2.0,
        1.0..2.0 => 1.0 - (2.0 - life).powi(2) / 2.0,
        _ => 1.0,
    };
    within + later
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_seen_as_the_windows_let_it() {
        assert_eq!((seen(0.0, 0.1), seen(0.5, 0.1), seen(1.0, 0.1)), (10.0, 5.125, 0.5));
        assert_eq!((seen(2.0, 0.1), seen(1e9, 0.1)), (1.0, 1.0));
        assert!((seen(1.0 - 1e-9, 0.1) - seen(1.0 + 1e-9, 0.1)).abs() < 1e-6);
    }
}
