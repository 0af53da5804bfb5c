//! How far a clone is, in dm-clone's terms.

use std::fmt;

use crate::error::Result;
use crate::image::Image;
use crate::storage::Storage;
use crate::units::SECTOR;

/// What a hydration is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HydrationState {
    /// Nothing: it has not begun, was cancelled, or waits for a snapshot to go.
    #[default]
    Idle,
    /// Fetching in the background.
    Running,
    /// Paused.
    Paused,
    /// Everything is there.
    Complete,
    /// It ended with an error.
    Failed,
}

impl HydrationState {
    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }
}

/// How far a hydration is. What the guest writes hydrates too; it is counted when the hydration begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HydrationStatus {
    /// The bytes that are there or not there together: a cluster.
    pub region_bytes: u64,
    /// Regions that are there.
    pub hydrated: u64,
    /// Regions that the source can answer for.
    pub total: u64,
    /// Regions that are being fetched in the background.
    pub hydrating: u64,
    /// Bytes fetched in the background.
    pub fetched_bytes: u64,
    /// Fetches that had to be tried again.
    pub retries: u64,
    /// What it is doing.
    pub state: HydrationState,
}

impl fmt::Display for HydrationStatus {
    /// The line, after dm-clone's: the region size in sectors, hydrated and all regions, hydrating regions, the state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}/{} {} {}",
            self.region_bytes / SECTOR,
            self.hydrated,
            self.total,
            self.hydrating,
            self.state.name()
        )
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    /// Bytes that the source can answer for.
    pub total: u64,
    /// Bytes that were not there at first.
    pub missing: u64,
    /// Bytes linked since.
    pub linked: u64,
    /// The same since the last commit.
    pub uncommitted: u64,
    pub fetched: u64,
    pub retries: u64,
}

impl Numbers {
    pub fn status(&self, region: u64, hydrating: u64, state: HydrationState) -> HydrationStatus {
        let total = self.total.div_ceil(region);
        let missing = self.missing.saturating_sub(self.linked).div_ceil(region);
        HydrationStatus {
            region_bytes: region,
            hydrated: match state {
                HydrationState::Complete => total,
                _ => total.saturating_sub(missing),
            },
            total,
            hydrating,
            fetched_bytes: self.fetched,
            retries: self.retries,
            state,
        }
    }
}

/// Looks through all tables.
pub(super) async fn count<S: Storage>(image: &Image<S>) -> Result<Numbers> {
    let total = image.backed_size();
    let mut missing = 0;
    let mut at = 0;
    while let Some(found) = image.unhydrated(at..total).await? {
        missing += found.end - found.start;
        at = found.end;
    }
    Ok(Numbers {
        total,
        missing,
        ..Numbers::default()
    })
}

impl HydrationStatus {
    /// How far an image that nobody is hydrating now is, by its tables.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::Error::Corrupt) where its tables cannot be, [`Error::Io`](crate::Error::Io) where
    /// they cannot be read.
    pub async fn of<S: Storage>(image: &Image<S>) -> Result<Self> {
        let numbers = count(image).await?;
        let state = match numbers.missing {
            0 => HydrationState::Complete,
            _ => HydrationState::Idle,
        };
        Ok(numbers.status(image.cluster_bytes(), 0, state))
    }
}
