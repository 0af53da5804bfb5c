//! The progress line of `-p`.

use crate::console;

/// Prints how far the work is, not more often than its steps are worth.
pub struct Progress {
    enabled: bool,
    step: f64,
    printed: Option<f64>,
}

impl Progress {
    /// Prints after every `step` per cent.
    pub fn new(enabled: bool, step: f64) -> Self {
        Self {
            enabled,
            step,
            printed: None,
        }
    }

    /// `done` of `total` is done.
    pub fn at(&mut self, done: u64, total: u64) {
        let percent = if total == 0 {
            100.0
        } else {
            done as f64 * 100.0 / total as f64
        };
        self.percent(percent);
    }

    fn percent(&mut self, percent: f64) {
        let due = match self.printed {
            None => true,
            Some(printed) => percent > printed + self.step || (percent >= 100.0 && printed < 100.0),
        };
        if self.enabled && due {
            self.printed = Some(percent);
            crate::out!("    ({percent:.2}/100%)\r");
            console::flush();
        }
    }

    /// Everything is done, whether or not that was printed already.
    pub fn finish(&mut self) {
        self.printed = None;
        self.at(1, 1);
    }

    /// Ends the line. Not on drop: an error's words come first.
    pub fn end(self) {
        if self.enabled {
            crate::outln!();
        }
    }
}
