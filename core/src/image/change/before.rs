//! Who is told before the guest's disk changes, so that the old content can be kept.

use std::ops::Range;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::change::state::Changing;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::storage::Storage;
use crate::units::GuestOffset;

/// Keeps what a change is about to replace.
pub(crate) trait BeforeChange {
    /// It asks for whole multiples of so many bytes, a power of two.
    fn granule(&self) -> u64;

    /// The bytes of `range` are going to change. They are held exclusively: nobody reads or changes them
    /// until this returns. An error fails the change.
    fn before_change<'f>(
        &'f self,
        disk: &'f dyn OldDisk,
        range: Range<u64>,
    ) -> LocalBoxFuture<'f, Result<()>>;
}

/// The disk as it is before a change, without its type.
pub(crate) trait OldDisk {
    /// Fills `buf` from byte `at` on.
    fn read<'f>(&'f self, at: u64, buf: &'f mut [u8]) -> LocalBoxFuture<'f, Result<()>>;

    /// Whether the bytes at `at` are known to be zeros, and for how many of at most `max` bytes.
    fn zeros(&self, at: u64, max: u64) -> LocalBoxFuture<'_, Result<(bool, u64)>>;
}

impl<S: Storage> OldDisk for Image<S> {
    fn read<'f>(&'f self, at: u64, buf: &'f mut [u8]) -> LocalBoxFuture<'f, Result<()>> {
        Box::pin(self.read_held(GuestOffset(at), buf))
    }

    fn zeros(&self, at: u64, max: u64) -> LocalBoxFuture<'_, Result<(bool, u64)>> {
        Box::pin(self.zeros_at(at, max))
    }
}

impl Changing {
    /// The multiple of bytes that a change must hold, where `own` is the image's own.
    pub fn granule(&self, own: u64) -> u64 {
        let watchers = self.watchers.borrow();
        let granules = watchers.iter().map(|watcher| watcher.granule());
        granules.fold(own, u64::max)
    }

    /// Refuses what changes more of the disk than anybody could keep.
    pub fn check_unwatched(&self) -> Result<()> {
        if self.watchers.borrow().is_empty() {
            return Ok(());
        }
        Err(Error::Refused(
            "The disk cannot be replaced while a point-in-time view copies what changes".into(),
        ))
    }
}

impl<S: Storage> Image<S> {
    /// The bytes of `range`, which are held, are going to change.
    pub(super) async fn before_change(&self, state: &Changing, range: Range<u64>) -> Result<()> {
        if state.watchers.borrow().is_empty() || !upheld(OrderingPoint::CopyBeforeWrite) {
            return Ok(());
        }
        let watchers: Vec<Rc<dyn BeforeChange>> = state.watchers.borrow().clone();
        for watcher in watchers {
            watcher.before_change(self, range.clone()).await?;
        }
        Ok(())
    }
}
