//! Copying before a change.

use std::cell::RefCell;
use std::ops::Range;

use futures_util::FutureExt;
use futures_util::future::{Either, LocalBoxFuture, select};

use crate::error::{Error, Result};
use crate::fleece::granules::{Granules, Place};
use crate::fleece::{FleeceOptions, OnError};
use crate::image::change::before::{BeforeChange, OldDisk};
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::{Image, ZeroMode};
use crate::storage::Storage;
use crate::units::GuestOffset;

/// The most that is copied with one read and one write, in bytes.
const PIECE: u64 = 1 << 20;

/// The copies of a view.
pub(super) struct Copies<T> {
    pub target: Image<T>,
    pub granules: Granules,
    options: FleeceOptions,
    broken: RefCell<Option<String>>,
}

impl<T: Storage> Copies<T> {
    pub fn new(target: Image<T>, size: u64, granule: u64, options: FleeceOptions) -> Self {
        Self {
            target,
            granules: Granules::new(size, granule),
            options,
            broken: RefCell::default(),
        }
    }

    /// Why the view is broken.
    pub fn broken(&self) -> Option<String> {
        self.broken.borrow().clone()
    }

    /// Copies what of `range` has not been copied and is still needed. Only what is complete counts as
    /// copied: where this is given up half way, the next change copies again.
    async fn copy(&self, disk: &dyn OldDisk, range: &Range<u64>) -> Result<()> {
        let granules = self.granules.touching(range);
        let bytes = self.granules.bytes(&granules);
        let mut copied = Vec::new();
        let mut at = bytes.start;
        while at < bytes.end {
            let (place, length) = self.granules.run_at(at, bytes.end - at);
            if place == Place::Disk {
                self.copy_run(disk, at..at + length).await?;
                copied.push(self.granules.touching(&(at..at + length)));
            }
            at += length;
        }
        if copied.is_empty() {
            return Ok(());
        }
        if self.options.persistent && upheld(OrderingPoint::CopyDurableBeforeOverwrite) {
            self.target.flush().await?;
        }
        for granules in copied {
            self.granules.copied(granules);
        }
        Ok(())
    }

    async fn copy_run(&self, disk: &dyn OldDisk, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        let mut buf = Vec::new();
        while at < range.end {
            let (zeros, length) = disk.zeros(at, range.end - at).await?;
            if zeros {
                self.target
                    .write_zeroes(GuestOffset(at), length, ZeroMode::Unmap)
                    .await?;
                at += length;
                continue;
            }
            let piece = (range.end - at).min(PIECE);
            buf.resize(piece as usize, 0);
            disk.read(at, &mut buf).await?;
            self.target.write_at(GuestOffset(at), &buf).await?;
            at += piece;
        }
        Ok(())
    }

    /// The same, within the time that it may take.
    async fn copy_in_time(&self, disk: &dyn OldDisk, range: &Range<u64>) -> Result<()> {
        let copy = self.copy(disk, range);
        let Some(timeout) = &self.options.timeout else {
            return copy.await;
        };
        match select(copy.boxed_local(), timeout()).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(Error::Io {
                what: "Could not copy for the point-in-time view".into(),
                offset: Some(range.start),
                source: std::io::ErrorKind::TimedOut.into(),
            }),
        }
    }
}

impl<T: Storage> BeforeChange for Copies<T> {
    fn granule(&self) -> u64 {
        self.granules.granule()
    }

    fn before_change<'f>(
        &'f self,
        disk: &'f dyn OldDisk,
        range: Range<u64>,
    ) -> LocalBoxFuture<'f, Result<()>> {
        Box::pin(async move {
            if self.broken.borrow().is_some() {
                return Ok(());
            }
            let result = self.copy_in_time(disk, &range).await;
            match (result, self.options.on_error) {
                (Err(error), OnError::BreakView) => {
                    self.broken.replace(Some(error.to_string()));
                    Ok(())
                }
                (result, _) => result,
            }
        })
    }
}
