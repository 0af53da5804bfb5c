//! Runs futures without a runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A flag that a waker sets.
#[derive(Debug, Default)]
pub struct Woken(AtomicBool);

impl Woken {
    /// A new flag, set, and its waker.
    #[must_use]
    pub fn new() -> (Arc<Self>, Waker) {
        let woken = Arc::new(Self(AtomicBool::new(true)));
        (woken.clone(), woken.into())
    }

    /// Whether it was set since it was last asked.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

thread_local! {
    static NOW: (Arc<Woken>, Waker) = Woken::new();
}

/// Runs a future whose requests complete at once. `None` where it waits for something that never comes: the
/// process was killed, or it waits for itself.
pub fn now<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    NOW.with(|(woken, waker)| {
        let mut context = Context::from_waker(waker);
        loop {
            woken.take();
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Some(output);
            }
            if !woken.is_set() {
                return None;
            }
        }
    })
}
