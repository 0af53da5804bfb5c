//! Having written down early what a flush will wait for.

use std::cell::Cell;
use std::ops::Range;

/// What is written down together, in bytes: enough for a file system to find room in one piece for it.
const WINDOW: u64 = 8 << 20;
/// How much of a window has to be written for it to be worth a call.
const ENOUGH: u64 = WINDOW / 4;

/// Follows writes that go through a file from front to back: a copy's.
#[derive(Debug, Default)]
pub struct Behind {
    /// The window that is being written, and how many bytes of it were.
    current: Cell<(u64, u64)>,
}

impl Behind {
    /// Bytes `offset..offset + length` were written. Returns what can be written down while others follow.
    pub fn written(&self, offset: u64, length: u64) -> Option<Range<u64>> {
        let (window, bytes) = self.current.get();
        let now = offset / WINDOW;
        if now < window {
            return None; // A table.
        }
        if now == window {
            self.current.set((window, bytes + length));
            return None;
        }
        self.current.set((now, length));
        let start = window * WINDOW;
        (bytes >= ENOUGH).then_some(start..start + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_written_down_when_the_next_one_is_begun() {
        let behind = Behind::default();
        let mut begun = Vec::new();
        for piece in 0..50 {
            begun.extend(behind.written(piece << 20, 1 << 20));
            // Tables before the data change nothing.
            assert_eq!(behind.written(0, 4096), None);
        }
        let windows = (0..6).map(|window| window * WINDOW..(window + 1) * WINDOW);
        assert_eq!(begun, windows.collect::<Vec<_>>());
    }

    #[test]
    fn scattered_writes_are_left_to_the_flush() {
        let behind = Behind::default();
        for place in 0..10_000u64 {
            let offset = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (64 << 30);
            assert_eq!(behind.written(offset, 4096), None);
        }
    }
}
