//! One fair lock for ranges of a disk: who came first is served first, so nobody starves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Whether others may hold the range too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Shared,
    Exclusive,
}

/// Locks ranges of numbers, shared or exclusively.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    queue: RefCell<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    claims: BTreeMap<u64, Claim>,
}

#[derive(Debug)]
struct Claim {
    range: Range<u64>,
    access: Access,
    granted: bool,
    waker: Option<Waker>,
}

impl Claim {
    fn conflicts_with(&self, other: &Self) -> bool {
        let overlap = self.range.start < other.range.end && other.range.start < self.range.end;
        overlap && (self.access == Access::Exclusive || other.access == Access::Exclusive)
    }
}

impl Queue {
    /// Grants whatever no earlier claim stands against, granted or waiting: first come, first served.
    fn settle(&mut self) {
        let waiting: Vec<u64> = self
            .claims
            .iter()
            .filter(|(_, claim)| !claim.granted)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in waiting {
            let claim = &self.claims[&ticket];
            let blocked = self
                .claims
                .range(..ticket)
                .any(|(_, earlier)| earlier.conflicts_with(claim));
            if !blocked && let Some(claim) = self.claims.get_mut(&ticket) {
                claim.granted = true;
                if let Some(waker) = claim.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl RangeLock {
    /// Waits for `range`. An empty range waits for nobody.
    pub fn lock(&self, range: Range<u64>, access: Access) -> Locking<'_> {
        let mut queue = self.queue.borrow_mut();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        let claim = Claim {
            range,
            access,
            granted: false,
            waker: None,
        };
        let blocked = queue.claims.values().any(|c| c.conflicts_with(&claim));
        let claim = Claim {
            granted: !blocked,
            ..claim
        };
        queue.claims.insert(ticket, claim);
        Locking {
            guard: Some(RangeGuard { lock: self, ticket }),
        }
    }

    /// Waits until nobody else holds anything.
    pub fn lock_all(&self) -> Locking<'_> {
        self.lock(0..u64::MAX, Access::Exclusive)
    }
}

/// Waits for its turn; gives it up when dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Locking<'a> {
    guard: Option<RangeGuard<'a>>,
}

impl<'a> Future for Locking<'a> {
    type Output = RangeGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<RangeGuard<'a>> {
        if let Some(guard) = &self.guard {
            let mut queue = guard.lock.queue.borrow_mut();
            if let Some(claim) = queue.claims.get_mut(&guard.ticket)
                && !claim.granted
            {
                claim.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        match self.guard.take() {
            Some(guard) => Poll::Ready(guard),
            None => Poll::Pending, // Polled again after it was ready: never ready a second time.
        }
    }
}

/// Holds a range until dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = self.lock.queue.borrow_mut();
        queue.claims.remove(&self.ticket);
        queue.settle();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn readers_share_and_a_writer_waits_its_turn() {
        let lock = RangeLock::default();
        let first = lock.lock(0..10, Access::Shared).now_or_never().unwrap();
        let second = lock.lock(5..15, Access::Shared).now_or_never().unwrap();
        let mut writer = Box::pin(lock.lock(0..10, Access::Exclusive));
        assert!(writer.as_mut().now_or_never().is_none());
        let mut behind = Box::pin(lock.lock(3..4, Access::Shared));
        assert!(
            behind.as_mut().now_or_never().is_none(),
            "nobody overtakes a waiting writer"
        );
        let elsewhere = lock.lock(20..30, Access::Exclusive).now_or_never();
        assert!(elsewhere.is_some());
        drop(first);
        assert!(writer.as_mut().now_or_never().is_none());
        drop(second);
        let held = writer.as_mut().now_or_never().unwrap();
        assert!(behind.as_mut().now_or_never().is_none());
        drop(held);
        assert!(behind.as_mut().now_or_never().is_some());
    }

    #[test]
    fn giving_up_the_wait_lets_the_next_pass() {
        let lock = RangeLock::default();
        let held = lock.lock(0..4, Access::Shared).now_or_never().unwrap();
        let mut writer = Box::pin(lock.lock_all());
        assert!(writer.as_mut().now_or_never().is_none());
        let mut reader = Box::pin(lock.lock(2..3, Access::Shared));
        assert!(reader.as_mut().now_or_never().is_none());
        drop(writer);
        assert!(reader.as_mut().now_or_never().is_some());
        drop(held);
        assert!(lock.queue.borrow().claims.is_empty());
    }
}
