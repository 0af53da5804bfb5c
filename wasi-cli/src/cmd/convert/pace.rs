//! How a copy goes on: the progress line, the rate limit, and what is lost on the way.

use std::time::{Duration, Instant};

use oxcow::convert::{Failed, Step, Watch};

use crate::console;
use crate::failure::words;
use crate::progress::Progress;

/// Watches a copy.
pub struct Pace<'a, B> {
    pub line: &'a mut Progress,
    /// The most bytes that are written in a second; 0 for any number.
    pub rate: u64,
    /// How many bytes were written.
    pub written: B,
    pub began: Instant,
    pub quiet: bool,
}

impl<B: Fn() -> u64> Pace<'_, B> {
    /// Waits until as much time has gone by as what was written takes.
    fn wait(&self) {
        let nanos = u128::from((self.written)()) * 1_000_000_000 / u128::from(self.rate);
        let due = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        if let Some(early) = due.checked_sub(self.began.elapsed()) {
            std::thread::sleep(early);
        }
    }
}

impl<B: Fn() -> u64> Watch for Pace<'_, B> {
    fn progress(&mut self, done: u64, total: u64) -> bool {
        if self.rate > 0 {
            self.wait();
        }
        // Where nothing has to be copied, qemu-img tells only of the end.
        if total > 0 {
            self.line.at(done, total);
        }
        true
    }

    fn lost(&mut self, what: &Failed) {
        if self.quiet {
            return;
        }
        let Failed { offset, source, .. } = what;
        let source = words(source);
        console::warning(&match what.step {
            Step::Mapping => {
                format!("error while reading block status at offset {offset}: {source}")
            }
            _ => format!("error while reading offset {offset}: {source}"),
        });
    }
}
