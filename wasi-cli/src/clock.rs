//! The time, for what the engine does in the background.

use std::time::{Duration, Instant};

use oxcow::hydrate::Clock;
use oxcow::storage::give_way;

use crate::file::block_on_between;

/// The system's clock. Waiting gives way to whatever else there is to do; there is one thread.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock that begins now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

/// As long as a wait sleeps at once, so that one for a second is not a second of full speed.
const NAP: Duration = Duration::from_millis(1);

impl Clock for &SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            give_way().await;
        }
    }
}

/// As [`block_on`](crate::file::block_on), for futures that may wait for the clock: where a turn brought
/// nothing forward, the processor rests.
pub fn block_on_clock<F: Future>(future: F, mut busy: impl FnMut() -> bool) -> F::Output {
    block_on_between(future, || {
        if !busy() {
            std::thread::sleep(NAP);
        }
    })
}
