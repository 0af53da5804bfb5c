//! Image fleecing: a point-in-time view that copies what is about to change.
//!
//! From the moment [`Image::fleece`] returns, the view reads as the disk did at that moment, while the guest
//! goes on writing. Before the guest's write, zeros or discard reaches a part of the disk for the first
//! time, what was there is copied into a target; everything else is read from the disk itself. Three rules
//! make that true under every interleaving:
//!
//! - A reader looks up where its bytes are and reads them there while it holds their range, as one step.
//! - A change holds its range alone: it waits for the readers in it, then for the copy, and only then
//!   replaces anything. So there is one copy, however many ask.
//! - Where the copy fails, either the change fails or the view breaks for ever; never a mix of both times.
//!
//! The target is an image of its own: a raw one in memory ([`SparseMemory`](crate::storage::SparseMemory)), or
//! a qcow2 overlay whose backing file is the disk. With [`FleeceOptions::persistent`] the copy is durable before
//! the disk changes: after a crash such an overlay shows the moment of the view still.
//!
//! ```
//! use oxcow::fleece::FleeceOptions;
//! use oxcow::storage::SparseMemory;
//! use oxcow::{DenyAll, File, Format, GuestOffset, Image, MemoryStorage, OpenOptions};
//!
//! # async fn example() -> oxcow::Result<()> {
//! let options = OpenOptions { format: Some(Format::Raw), writable: true, ..OpenOptions::default() };
//! let file = File { storage: MemoryStorage::new(vec![1; 1 << 20]), name: "disk.raw".into() };
//! let disk = Image::open(file, &options, &DenyAll::default()).await?;
//! let file = File { storage: SparseMemory::new(1 << 20), name: "copies".into() };
//! let target = Image::open(file, &options, &DenyAll::default()).await?;
//!
//! let view = disk.fleece(target, FleeceOptions::default()).await?;
//! disk.write_at(GuestOffset(0), &[2; 512]).await?;
//! let image = view.image().await?;
//! let mut sector = [0; 512];
//! image.read_at(GuestOffset(0), &mut sector).await?;
//! assert_eq!(sector, [1; 512]);
//! # Ok(())
//! # }
//! # assert!(futures_util::FutureExt::now_or_never(example()).unwrap().is_ok());
//! ```

mod copies;
mod disk;
mod granules;
#[cfg(test)]
mod tests;

pub use disk::FleecedDisk;

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

use crate::chain::{DenyAll, File};
use crate::error::{Error, Result};
use crate::image::change::before::BeforeChange;
use crate::image::{Image, Layer, OpenOptions};
use crate::probe::Format;
use crate::storage::Storage;
use copies::Copies;

/// What gives way where a copy cannot be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The guest's change fails, and the view stays good.
    #[default]
    BreakGuestWrite,
    /// The view breaks, for ever, and the guest goes on.
    BreakView,
}

/// Makes the future that ends when a copy has taken too long.
pub type Timeout = Rc<dyn Fn() -> LocalBoxFuture<'static, ()>>;

/// How a view by copying works.
#[derive(Clone, Default)]
pub struct FleeceOptions {
    /// What gives way where a copy cannot be made.
    pub on_error: OnError,
    /// After how long the copying for one change is an error. The crate has no clock: the caller's.
    pub timeout: Option<Timeout>,
    /// Whether each copy is durable before the disk changes: two storage flushes for each change that copies.
    pub persistent: bool,
}

impl fmt::Debug for FleeceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleeceOptions")
            .field("on_error", &self.on_error)
            .field("timeout", &self.timeout.is_some())
            .field("persistent", &self.persistent)
            .finish()
    }
}

/// How far a view has come, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleeceProgress {
    /// The size of the disk.
    pub size: u64,
    /// Copied because the guest changed it.
    pub copied: u64,
    /// Released: neither read nor copied any more.
    pub released: u64,
}

/// A point-in-time view of `S`'s image whose copies go into `T`'s. It ends when it is dropped.
pub type Fleece<'a, S, T> = FleeceOf<&'a Image<S>, S, T>;

/// A [`Fleece`] that holds the image as `A` does: a reference, or an [`Rc`] where the view is to live by itself.
pub struct FleeceOf<A, S, T>
where
    A: Deref<Target = Image<S>>,
    S: Storage,
    T: Storage + 'static,
{
    active: A,
    copies: Rc<Copies<T>>,
    _storage: PhantomData<fn() -> S>,
}

impl<A, S, T> fmt::Debug for FleeceOf<A, S, T>
where
    A: Deref<Target = Image<S>>,
    S: Storage,
    T: Storage,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleece")
            .field("progress", &self.copies.granules.progress())
            .finish_non_exhaustive()
    }
}

impl<S: Storage> Image<S> {
    /// The disk as it is now, to be read while this image is changed; what changes is copied into `target`
    /// first. `target` is a writable image of at least this size, opened without its backing files; what it
    /// holds already is of no meaning.
    ///
    /// While the view lives, [`apply_snapshot`](Image::apply_snapshot) and making the disk smaller are
    /// refused.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where one of the images was not opened for writing, [`Error::OutOfRange`] where the
    /// target is too small.
    pub async fn fleece<T: Storage + 'static>(
        &self,
        target: Image<T>,
        options: FleeceOptions,
    ) -> Result<Fleece<'_, S, T>> {
        FleeceOf::begin(self, target, options).await
    }
}

/// The bytes that are allocated together.
fn granule<S: Storage>(image: &Image<S>) -> u64 {
    /// As small as a copy is worth its bookkeeping, where an image has no clusters.
    const LEAST: u64 = 4096;
    match image.top() {
        Layer::Raw(_) => LEAST,
        Layer::Qcow2(qcow2) => qcow2.header().cluster_size.bytes(),
    }
}

impl<A, S, T> FleeceOf<A, S, T>
where
    A: Deref<Target = Image<S>> + Clone,
    S: Storage,
    T: Storage + 'static,
{
    /// What [`Image::fleece`] does, for an image that is held in another way.
    ///
    /// # Errors
    ///
    /// Those of [`Image::fleece`].
    pub async fn begin(active: A, target: Image<T>, options: FleeceOptions) -> Result<Self> {
        target.check_writable()?;
        let own = granule(&*active).max(granule(&target));
        // Every change that has begun is over: this is the moment.
        let Some(held) = active.hold_all().await? else {
            return Err(Error::Refused("Image is read-only".into()));
        };
        let size = active.virtual_size();
        if target.virtual_size() < size {
            let what = format!(
                "The target of {} bytes is smaller than the disk of {size} bytes",
                target.virtual_size()
            );
            return Err(Error::OutOfRange(what.into()));
        }
        let copies = Rc::new(Copies::new(target, size, own, options));
        active.add_watcher(copies.clone());
        drop(held);
        Ok(Self {
            active,
            copies,
            _storage: PhantomData,
        })
    }

    /// The view as a disk of its own.
    #[must_use]
    pub fn disk(&self) -> FleecedDisk<A, T> {
        FleecedDisk::new(self.active.clone(), self.copies.clone())
    }

    /// The view as an image: raw, and read-only.
    ///
    /// # Errors
    ///
    /// None that a view could run into.
    pub async fn image(&self) -> Result<Image<FleecedDisk<A, T>>> {
        let file = File {
            storage: self.disk(),
            name: "view".into(),
        };
        let options = OpenOptions {
            format: Some(Format::Raw),
            ..OpenOptions::default()
        };
        Image::open(file, &options, &DenyAll::default()).await
    }

    /// The bytes of `range` are not needed any more: they cannot be read from the view afterwards, and cost
    /// no copies. What lies in a cluster with others stays.
    ///
    /// # Errors
    ///
    /// [`Error::Stopped`] where the disk takes no more changes.
    pub async fn release(&self, range: Range<u64>) -> Result<()> {
        let granules = self.copies.granules.inside(&range);
        // A reader may be in it.
        let _held = self
            .active
            .hold_to_change(self.copies.granules.bytes(&granules))
            .await?;
        self.copies.granules.release(granules);
        Ok(())
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> FleeceProgress {
        self.copies.granules.progress()
    }

    /// Why the view is broken, if it is.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        self.copies.broken()
    }

    /// Whether byte `at` has been copied.
    #[must_use]
    pub fn is_copied(&self, at: u64) -> bool {
        self.copies.granules.is_copied(at)
    }
}

impl<A, S, T> Drop for FleeceOf<A, S, T>
where
    A: Deref<Target = Image<S>>,
    S: Storage,
    T: Storage + 'static,
{
    fn drop(&mut self) {
        let copies: Rc<dyn BeforeChange> = self.copies.clone();
        self.active.remove_watcher(&copies);
    }
}
