//! What fetches in the background.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::pin_mut;

use crate::error::{Error, Result};
use crate::hydrate::status::Numbers;
use crate::hydrate::{Clock, Hydration, HydrationState};
use crate::storage::{Storage, give_way};

/// The longest that is waited before a fetch is tried again.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A batch that is on its way: no other worker takes it.
struct Flight<'h, 'a, S: Storage, C> {
    hydration: &'h Hydration<'a, S, C>,
    range: Range<u64>,
}

impl<S: Storage, C> Drop for Flight<'_, '_, S, C> {
    fn drop(&mut self) {
        let mut flights = self.hydration.flights.borrow_mut();
        if let Some(at) = flights.iter().position(|range| *range == self.range) {
            flights.swap_remove(at);
        }
    }
}

impl<S: Storage, C: Clock> Hydration<'_, S, C> {
    /// Fetches one batch after the other until there is none; the first one of so many bytes.
    pub(super) async fn work(&self, first_batch: u64) -> Result<()> {
        let mut batch = first_batch;
        loop {
            self.wait_for_turn().await;
            if self.cancelled.get() {
                return Ok(());
            }
            let Some(flight) = self.take_batch(batch).await? else {
                return Ok(());
            };
            batch = self.options.batch_bytes;
            let range = flight.range.clone();
            let Some(data) = self.fetch(&range).await? else {
                return Ok(());
            };
            let linked = self.image.link_fetched(range.start, &data).await?;
            drop(flight);
            self.count(|numbers| {
                numbers.fetched += data.len() as u64;
                numbers.linked += linked;
                numbers.uncommitted += linked;
            });
            if self.numbers.get().uncommitted >= self.options.commit_bytes {
                self.commit().await?;
            }
            self.keep_to_the_rate(data.len() as u64).await;
            give_way().await;
        }
    }

    /// The next clusters that are not there.
    async fn take_batch(&self, bytes: u64) -> Result<Option<Flight<'_, '_, S, C>>> {
        let cluster = self.image.cluster_bytes();
        let batch = bytes.max(1).next_multiple_of(cluster);
        loop {
            let from = self.next.get();
            let found = self.image.unhydrated(from..u64::MAX).await?;
            if self.next.get() != from {
                continue; // Another worker has taken it meanwhile.
            }
            let Some(found) = found else {
                return Ok(None);
            };
            let start = found.start / cluster * cluster;
            let end = found.end.next_multiple_of(cluster);
            let end = end.min(start + batch).min(self.image.virtual_size());
            self.next.set(end);
            let range = start..end;
            self.flights.borrow_mut().push(range.clone());
            return Ok(Some(Flight {
                hydration: self,
                range,
            }));
        }
    }

    /// The source's bytes, asked for again where that may help; `None` where it was cancelled meanwhile.
    async fn fetch(&self, range: &Range<u64>) -> Result<Option<Vec<u8>>> {
        let mut backoff = self.options.backoff;
        let mut left = self.options.retries;
        loop {
            match self.unless_cancelled(self.image.fetch(range.clone())).await {
                None => return Ok(None),
                Some(Ok(data)) => return Ok(Some(data)),
                Some(Err(error)) if left == 0 || !may_pass(&error) => return Err(error),
                Some(Err(_)) => {}
            }
            left -= 1;
            self.count(|numbers| numbers.retries += 1);
            self.unless_told(self.clock.sleep(backoff)).await;
            if self.cancelled.get() {
                return Ok(None);
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// The guest goes first: waits until it has asked for nothing for a moment, but not for ever.
    async fn wait_for_turn(&self) {
        let Some(activity) = self.image.activity() else {
            return;
        };
        let mut seen = None;
        let mut waited = Duration::ZERO;
        loop {
            if self.cancelled.get() {
                return;
            }
            if self.state.get() == HydrationState::Paused {
                self.signal.next().await;
                continue;
            }
            let begun = activity.begun();
            let rests = activity.is_resting();
            // Nothing has begun since the last look, or since the last fetch in the background.
            let quiet = rests && seen.map_or(begun == self.seen.get(), |seen| seen == begun);
            if quiet || waited >= self.options.patience {
                self.seen.set(begun);
                return;
            }
            seen = Some(begun);
            self.unless_told(self.clock.sleep(self.options.quiet)).await;
            waited += self.options.quiet.max(Duration::from_millis(1));
        }
    }

    async fn keep_to_the_rate(&self, bytes: u64) {
        let Some(rate) = self.options.limit_rate else {
            return;
        };
        // So many bytes are over at this moment; the next ones may come after it.
        let time = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let now = self.clock.now();
        let until = self.free_from.get().max(now) + time;
        self.free_from.set(until);
        self.unless_told(self.clock.sleep(until.saturating_sub(now)))
            .await;
    }

    /// What `work` comes to; `None` where it is given up because the hydration is cancelled: a source that
    /// does not answer keeps nobody.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let cancelled = async {
            while !self.cancelled.get() {
                self.signal.next().await;
            }
        };
        pin_mut!(work);
        pin_mut!(cancelled);
        match select(work, cancelled).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }

    /// Waits for `sleep`, or for a word from outside.
    async fn unless_told(&self, sleep: impl Future<Output = ()>) {
        let told = self.signal.next();
        pin_mut!(sleep);
        pin_mut!(told);
        let (Either::Left(_) | Either::Right(_)) = select(sleep, told).await;
    }

    /// Makes what was linked durable.
    pub(super) async fn commit(&self) -> Result<()> {
        if self.numbers.get().uncommitted == 0 {
            return Ok(());
        }
        self.count(|numbers| numbers.uncommitted = 0);
        self.image.flush().await
    }

    fn count(&self, add: impl FnOnce(&mut Numbers)) {
        let mut numbers = self.numbers.get();
        add(&mut numbers);
        self.numbers.set(numbers);
    }
}

/// Whether the same fetch may succeed later.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() != std::io::ErrorKind::InvalidData,
        _ => false,
    }
}
