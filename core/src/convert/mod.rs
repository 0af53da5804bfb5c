//! Copying a disk into another file, as `qemu-img convert` does.

mod copy;
mod source;
mod target;
#[cfg(test)]
mod tests;
mod zeros;

use std::fmt;

use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::storage::Storage;
use copy::Copy;
use source::Sources;
use target::RawFile;
pub use zeros::is_zero;

/// How a disk is copied. The default is for a target that was just created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Zeros inside of data that fill at least so many bytes are not written: a multiple of 512. What is left
    /// out begins and ends at multiples of the largest power of two in it. With 0 everything is written, what
    /// is known to be zeros too. Of compressed clusters those are left out that are all zeros.
    pub sparse: usize,
    /// Whether nothing was written to the target yet, so that it reads as its backing file, and as zeros where
    /// it has none. Without it, zeros are written everywhere.
    pub target_is_new: bool,
    /// Whether every cluster is compressed, by the target's own method; those that do not get smaller are
    /// written as they are. The target must be qcow2, without a data file.
    pub compress: bool,
    /// What the source does not hold itself, but one of its backing files, is left out: the target has a
    /// backing file that says the same.
    pub over_backing: bool,
    /// What no file of the source's chain holds is left out: the target has it, as where the source is the part
    /// of the target's overlays that is to be committed to it.
    pub allocated_only: bool,
    /// Whether the copy goes on where the source cannot be read, with zeros in place of every such sector of
    /// 512 bytes. [`Watch::lost`] is told of each.
    pub salvage: bool,
    /// How many reads may be in flight at once, 1 to 16, where the source's storage gains by more than one.
    pub parallel: usize,
    /// Whether writes begin in the order of the disk, so that clusters follow one another in the file as they
    /// do on the disk.
    pub in_order: bool,
    /// How much is read and written at once, in bytes: large where every call is dear, small enough for the
    /// processor's cache where calls are cheap. `parallel` + 2 buffers are the most there are.
    pub buffer: usize,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            sparse: 4096,
            target_is_new: true,
            compress: false,
            over_backing: false,
            allocated_only: false,
            salvage: false,
            parallel: 8,
            in_order: true,
            buffer: 512 << 10,
        }
    }
}

/// Who is told how a copy goes on. A closure of two numbers is one that hears of progress only.
pub trait Watch {
    /// So many of so many bytes are copied, of those that have to be: what is known to be zeros does not count,
    /// so that there may be none at all. Says whether to go on.
    fn progress(&mut self, done: u64, total: u64) -> bool;

    /// With [`ConvertOptions::salvage`]: what could not be read, and reads as zeros in the copy.
    fn lost(&mut self, what: &Failed) {
        let _ = what;
    }
}

impl<F: FnMut(u64, u64) -> bool> Watch for F {
    fn progress(&mut self, done: u64, total: u64) -> bool {
        self(done, total)
    }
}

/// What was being done when a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Looking up what the source has there.
    Mapping,
    /// Reading the source.
    Reading,
    /// Writing the target.
    Writing,
    /// Flushing the target.
    Flushing,
}

/// Why a copy failed. Displayed, it is qemu-img's sentence.
#[derive(Debug)]
pub struct Failed {
    /// What was being done.
    pub step: Step,
    /// At which byte of the disk, counted over all sources.
    pub offset: u64,
    /// Why.
    pub source: Error,
}

impl Failed {
    pub(crate) fn at(step: Step, offset: u64) -> impl FnOnce(Error) -> Self {
        move |source| Self {
            step,
            offset,
            source,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, source, .. } = self;
        match self.step {
            Step::Mapping => {
                write!(
                    f,
                    "error while reading block status at offset {offset}: {source}"
                )
            }
            Step::Reading => write!(f, "error while reading at byte {offset}: {source}"),
            Step::Writing => write!(f, "error while writing at byte {offset}: {source}"),
            Step::Flushing => write!(f, "error while flushing: {source}"),
        }
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes the content of `sources`, one behind the other, to `target`, an image that is open for writing and
/// at least as large, and flushes it. What of a larger target lies behind stays as it is.
///
/// The target is written to as its guest would write: a crash on the way leaves an image that is consistent,
/// and holds a part of the disk.
///
/// # Errors
///
/// Where a source cannot be read or the target not be written; [`Error::OutOfRange`] for a target that is too
/// small, [`Error::Unsupported`] for one that has no compressed clusters, [`Error::Cancelled`] where `watch`
/// said no.
///
/// # Examples
///
/// ```
/// use oxcow::convert::{self, ConvertOptions};
/// use oxcow::create::{self, CreateOptions};
/// use oxcow::{DenyAll, File, Image, MemoryStorage, OpenOptions};
///
/// # async fn example() -> oxcow::Result<()> {
/// let deny = DenyAll::default();
/// let file = File { storage: MemoryStorage::new(vec![7; 1 << 20]), name: "disk.raw".into() };
/// let source = Image::open(file, &OpenOptions::default(), &deny).await?;
///
/// let storage = MemoryStorage::default();
/// let size = source.virtual_size();
/// create::create(&storage, None, &CreateOptions { size, ..CreateOptions::default() }).await?;
/// let file = File { storage, name: "disk.qcow2".into() };
/// let options = OpenOptions { writable: true, ..OpenOptions::default() };
/// let target = Image::open(file, &options, &deny).await?;
///
/// let options = ConvertOptions { compress: true, ..ConvertOptions::default() };
/// let copied = convert::to_image(&[&source], &target, &options, |_, _| true).await;
/// copied.map_err(|failed| failed.source)?;
/// target.close().await
/// # }
/// # assert!(futures_util::FutureExt::now_or_never(example()).unwrap().is_ok());
/// ```
pub async fn to_image<S: Storage, T: Storage>(
    sources: &[&Image<S>],
    target: &Image<T>,
    options: &ConvertOptions,
    watch: impl Watch,
) -> Result<(), Failed> {
    write_to_image(sources, target, options, watch).await?;
    let flushed = target.flush().await;
    flushed.map_err(Failed::at(Step::Flushing, target.virtual_size()))
}

/// The same without the flush at the end.
pub(crate) async fn write_to_image<S: Storage, T: Storage>(
    sources: &[&Image<S>],
    target: &Image<T>,
    options: &ConvertOptions,
    mut watch: impl Watch,
) -> Result<(), Failed> {
    let sources = Sources::new(sources);
    let wrong = |error| Failed::at(Step::Writing, 0)(error);
    if target.virtual_size() < sources.size() {
        let words = "output file is smaller than input file";
        return Err(wrong(Error::OutOfRange(words.into())));
    }
    if options.compress && target.top().as_qcow2().is_none() {
        let words = "Compression not supported for this file format";
        return Err(wrong(Error::Unsupported(words.into())));
    }
    let backing = target.layers().get(1).map(Layer::virtual_size);
    let backing_end = backing.unwrap_or(0);
    Copy::new(&sources, target, options, backing_end, &mut watch)
        .run()
        .await
}

/// How a disk is written to a raw file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawOptions {
    /// Zeros that fill a whole aligned block of so many bytes are not written: a multiple of 512, or 0 to
    /// write everything.
    pub sparse: usize,
    /// Whether the target already reads as zeros wherever nothing is written. Without it, zeros are written.
    pub target_is_zero: bool,
    /// How much is read and written at once, in bytes: large where every call is dear, small enough for the
    /// processor's cache where calls are cheap.
    pub buffer: usize,
}

impl Default for RawOptions {
    fn default() -> Self {
        Self {
            sparse: 4096,
            target_is_zero: true,
            buffer: 2 << 20,
        }
    }
}

/// Writes the content of `image` to `target`, which must already have its size; the caller flushes it.
/// `progress` is told what [`Watch::progress`] is.
///
/// # Errors
///
/// Whatever reading the image or writing the target ran into; [`Error::Cancelled`] where `progress` said no.
pub async fn to_raw<S: Storage, T: Storage>(
    image: &Image<S>,
    target: &T,
    options: &RawOptions,
    progress: impl FnMut(u64, u64) -> bool,
) -> Result<()> {
    let options = ConvertOptions {
        sparse: options.sparse,
        target_is_new: options.target_is_zero,
        buffer: options.buffer,
        ..ConvertOptions::default()
    };
    let mut progress = progress;
    let (sources, target) = (Sources::new(&[image]), RawFile(target));
    let copy = Copy::new(&sources, &target, &options, 0, &mut progress);
    copy.run().await.map_err(|failed| failed.source)
}
