//! Hydration: an overlay over a slow source that fills itself, in the background and by what is read.
//!
//! The clone is a plain qcow2 overlay whose backing file is the source: usable at once, and by any other
//! program at any time. A cluster that is allocated is hydrated, a zero cluster is one that was discarded,
//! and there is no second table that could disagree. (dm-clone of Linux does the same for block devices;
//! its documentation's words are used here.)
//!
//! - Reads of what is not there yet fetch whole clusters (subclusters, where the clone has them) and keep them. Writes
//!   of whole clusters fetch nothing; a part of one is completed from the source first.
//! - In the background, batches of clusters that follow one another are fetched, some at once, while the
//!   guest rests. Nothing is locked while they are on their way: when they arrive, only what is still
//!   unallocated is linked, so that nothing newer is ever overwritten.
//! - Everything is committed every second or so many bytes, in the order that every guest write is: the
//!   data is durable before a table points to it. A clone that is killed goes on where it was, and fetches
//!   at most one such window again.
//! - When nothing is left, the header drops the backing file. A snapshot that still needs it prevents that.
//!
//! ```
//! use std::time::Duration;
//! use oxcow::hydrate::{Clock, End, Hydration, HydrationOptions};
//! # use oxcow::create::{self, CreateOptions};
//! # use oxcow::{File, GuestOffset, Image, MemoryStorage, OpenOptions, Resolver, Wanted};
//! # struct Source;
//! # impl Resolver for Source {
//! #     type Storage = MemoryStorage;
//! #     async fn resolve(&self, wanted: &Wanted<'_>) -> oxcow::Result<File<MemoryStorage>> {
//! #         Ok(File { storage: MemoryStorage::new(vec![7; 1 << 20]), name: wanted.name.into() })
//! #     }
//! # }
//!
//! struct NoTime;
//!
//! impl Clock for NoTime {
//!     fn now(&self) -> Duration {
//!         Duration::ZERO
//!     }
//!     async fn sleep(&self, _: Duration) {
//!         std::future::pending().await
//!     }
//! }
//!
//! # async fn example() -> oxcow::Result<()> {
//! # let storage = MemoryStorage::default();
//! # let options = CreateOptions {
//! #     size: 1 << 20,
//! #     backing_file: Some("source.raw".into()),
//! #     backing_format: Some("raw".into()),
//! #     ..CreateOptions::default()
//! # };
//! # create::create(&storage, None, &options).await?;
//! # let file = File { storage, name: "clone.qcow2".into() };
//! # let options = OpenOptions { writable: true, ..OpenOptions::default() };
//! let clone = Image::open(file, &options, &Source).await?;
//! let hydration = Hydration::new(&clone, NoTime, HydrationOptions::default()).await?;
//! assert_eq!(hydration.run().await?, End::Complete);
//! assert_eq!(clone.layers().len(), 1);
//! # Ok(())
//! # }
//! # // It gives way to others now and then.
//! # let mut example = std::pin::pin!(example());
//! # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
//! # loop {
//! #     if let std::task::Poll::Ready(result) = example.as_mut().poll(&mut context) {
//! #         break result.unwrap();
//! #     }
//! # }
//! ```

mod signal;
mod status;
#[cfg(test)]
mod tests;
mod worker;

pub use status::{HydrationState, HydrationStatus};

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_util::future::{Either, select, try_join_all};

use crate::error::{Error, Result};
use crate::image::activity::Activity;
use crate::image::change::NeededBy;
use crate::image::{Image, Layer};
use crate::storage::Storage;
use signal::Signal;

/// The time, which the caller has.
#[allow(async_fn_in_trait)] // Single-threaded by design, as Storage is.
pub trait Clock {
    /// The time since any moment that stays the same.
    fn now(&self) -> Duration;

    /// Waits.
    async fn sleep(&self, time: Duration);
}

/// How a clone fills itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HydrationOptions {
    /// How much is fetched at once, in bytes: rounded up to whole clusters.
    pub batch_bytes: u64,
    /// How many fetches are under way at once, at least 1: dm-clone's `hydration_threshold`.
    pub threshold: usize,
    /// After how many bytes everything is committed.
    pub commit_bytes: u64,
    /// After which time everything is committed.
    pub commit_every: Duration,
    /// How many bytes a second are fetched in the background, at most; `None` for as many as there are.
    pub limit_rate: Option<u64>,
    /// How long the guest must have asked for nothing before a fetch begins in the background.
    pub quiet: Duration,
    /// How long a fetch in the background waits for that, at most.
    pub patience: Duration,
    /// How often a fetch that failed is tried again.
    pub retries: u32,
    /// How long it is waited before the first time; twice as long before each further one, but not over a minute.
    pub backoff: Duration,
    /// Whether the backing file is dropped once nothing needs it.
    pub detach: bool,
}

impl Default for HydrationOptions {
    fn default() -> Self {
        Self {
            batch_bytes: 1 << 20,
            threshold: 4,
            commit_bytes: 64 << 20,
            commit_every: Duration::from_secs(1),
            limit_rate: None,
            quiet: Duration::from_millis(20),
            patience: Duration::from_secs(1),
            retries: 5,
            backoff: Duration::from_millis(500),
            detach: true,
        }
    }
}

/// How a hydration ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything is there, and the image names no backing file any more, unless it was to keep it.
    Complete,
    /// Everything of the disk is there. The snapshot of this id still needs the backing file.
    NeededBySnapshot(String),
    /// It was asked to stop. Everything fetched so far is durable.
    Cancelled,
}

/// A clone that fills itself. While this exists, what is read from the source is kept.
pub struct Hydration<'a, S: Storage, C> {
    image: &'a Image<S>,
    clock: C,
    options: HydrationOptions,
    signal: Signal,
    state: Cell<HydrationState>,
    cancelled: Cell<bool>,
    /// Where the background looks for the next batch.
    next: Cell<u64>,
    /// What the background is fetching.
    flights: RefCell<Vec<std::ops::Range<u64>>>,
    numbers: Cell<status::Numbers>,
    /// How many operations of the guest had begun when the background last had its turn.
    seen: Cell<u64>,
    /// When the next fetch is due, where the rate is limited.
    free_from: Cell<Duration>,
}

impl<S: Storage, C> std::fmt::Debug for Hydration<'_, S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hydration")
            .field("options", &self.options)
            .field("state", &self.state.get())
            .finish_non_exhaustive()
    }
}

impl<'a, S: Storage, C: Clock> Hydration<'a, S, C> {
    /// Gets ready, and counts what is there already. From now on what is read from the source is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where the image was not opened for writing or its backing file is not open;
    /// [`Error::Unsupported`] where it is no qcow2 image; [`Error::Corrupt`] where its tables cannot be.
    pub async fn new(image: &'a Image<S>, clock: C, options: HydrationOptions) -> Result<Self> {
        image.check_writable()?;
        let Layer::Qcow2(qcow2) = image.top() else {
            return Err(Error::Unsupported(
                "A raw image has no backing file that it could be filled from".into(),
            ));
        };
        if qcow2.backing().is_some() && image.layers().len() == 1 {
            return Err(Error::Refused(
                "The image's backing file was not opened".into(),
            ));
        }
        let numbers = status::count(image).await?;
        image.set_copy_on_read(true);
        Ok(Self {
            image,
            clock,
            options,
            signal: Signal::default(),
            state: Cell::new(HydrationState::Idle),
            cancelled: Cell::new(false),
            next: Cell::new(0),
            flights: RefCell::default(),
            numbers: Cell::new(numbers),
            seen: Cell::new(image.activity().map_or(0, Activity::begun)),
            free_from: Cell::new(Duration::ZERO),
        })
    }

    /// Fills the clone in the background of whatever else is done with it, to its end.
    ///
    /// # Errors
    ///
    /// Where the source fails more often than it is tried again, or is not what it was when it was opened:
    /// nothing of it is kept then, what is there stays good, and a later run goes on. Those of
    /// [`flush`](Image::flush).
    pub async fn run(&self) -> Result<End> {
        self.cancelled.set(false);
        self.state.set(HydrationState::Running);
        let end = self.run_to_end().await;
        self.flights.borrow_mut().clear();
        self.state.set(match &end {
            Ok(End::Complete) => HydrationState::Complete,
            Ok(_) => HydrationState::Idle,
            Err(_) => HydrationState::Failed,
        });
        end
    }

    async fn run_to_end(&self) -> Result<End> {
        loop {
            let before = self.numbers.get().linked;
            self.next.set(0);
            self.pass().await?;
            if self.cancelled.get() {
                self.image.flush().await?;
                return Ok(End::Cancelled);
            }
            if self.image.unhydrated(0..u64::MAX).await?.is_none() {
                break;
            }
            if self.numbers.get().linked == before {
                // Nobody can want that for ever.
                return Err(Error::Io {
                    what: "The clone does not fill".into(),
                    offset: None,
                    source: std::io::ErrorKind::Other.into(),
                });
            }
        }
        if !self.options.detach {
            self.image.flush().await?;
            return Ok(End::Complete);
        }
        // This commits first, whatever comes of it.
        match self.image.detach().await? {
            None => {
                self.image.set_copy_on_read(false);
                Ok(End::Complete)
            }
            Some(NeededBy::Snapshot(id)) => Ok(End::NeededBySnapshot(id)),
            // The guest has dropped something in between: version 2 can.
            Some(NeededBy::Disk) => Box::pin(self.run_to_end()).await,
        }
    }

    /// Once over the disk.
    async fn pass(&self) -> Result<()> {
        // Fetches that begin together and share a link end together, and then the link is idle for as long as a request
        // takes to be answered. The first ones are of different lengths, so that they take turns from then on.
        let count = self.options.threshold.max(1) as u64;
        let workers = (1..=count).map(|each| self.work(self.options.batch_bytes / count * each));
        let all = try_join_all(workers);
        let commits = self.commit_by_the_clock();
        futures_util::pin_mut!(all);
        futures_util::pin_mut!(commits);
        match select(all, commits).await {
            Either::Left((result, _)) => result.map(drop),
            Either::Right((error, _)) => Err(error),
        }
    }

    /// Commits every so often; ends only by an error.
    async fn commit_by_the_clock(&self) -> Error {
        loop {
            self.clock.sleep(self.options.commit_every).await;
            if let Err(error) = self.commit().await {
                return error;
            }
        }
    }

    /// Starts no further fetch until it is [resumed](Self::resume).
    pub fn pause(&self) {
        if self.state.get() == HydrationState::Running {
            self.state.set(HydrationState::Paused);
        }
    }

    /// Goes on.
    pub fn resume(&self) {
        if self.state.get() == HydrationState::Paused {
            self.state.set(HydrationState::Running);
            self.signal.raise();
        }
    }

    /// Ends [`run`](Self::run) at the next opportunity.
    pub fn cancel(&self) {
        self.cancelled.set(true);
        self.signal.raise();
    }

    /// How far it is.
    #[must_use]
    pub fn status(&self) -> HydrationStatus {
        let cluster = self.image.cluster_bytes();
        let flights = self.flights.borrow();
        let bytes: u64 = flights.iter().map(|range| range.end - range.start).sum();
        self.numbers
            .get()
            .status(cluster, bytes.div_ceil(cluster), self.state.get())
    }
}

impl<S: Storage, C> Drop for Hydration<'_, S, C> {
    fn drop(&mut self) {
        self.image.set_copy_on_read(false);
    }
}
