//! Committing an overlay: what it holds goes down into the image that it stands on, as `qemu-img commit` does.
//!
//! The disk's content is the same at every moment: until the base has everything durably, the overlay keeps it,
//! and what the overlay holds hides what changes below it. Only then the overlay is emptied, by one transaction
//! (S2).

use std::fmt;

use crate::convert::{self, ConvertOptions, Failed, Step, Watch};
use crate::error::Error;
use crate::image::change::bitmaps::Follow;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::{Image, ResizeOptions};
use crate::storage::Storage;

/// How an overlay is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOptions {
    /// Whether the overlay is emptied at the end. That needs the base to be the very image it stands on: where
    /// others are in between, they would hide what was committed.
    pub empty: bool,
    /// How much is read and written at once, in bytes.
    pub buffer: usize,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self {
            empty: true,
            buffer: 512 << 10,
        }
    }
}

/// Why an overlay could not be committed. Whatever it is, the disk's content is what it was.
#[derive(Debug)]
pub enum CommitError {
    /// The base could not be made as large as the overlay.
    Growing(Error),
    /// The overlay's content could not be copied.
    Copying(Failed),
    /// The overlay could not be emptied; the base has everything.
    Emptying(Error),
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Growing(error) => write!(f, "{error}"),
            Self::Copying(failed) => write!(f, "{failed}"),
            Self::Emptying(error) => write!(f, "Could not empty image: {error}"),
        }
    }
}

impl std::error::Error for CommitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Growing(error) | Self::Emptying(error) => Some(error),
            Self::Copying(failed) => Some(failed),
        }
    }
}

/// Writes what `overlay` holds to `base`, which grows to the overlay's size where it is smaller, and flushes it.
///
/// `base` is a file of the overlay's backing chain, open for writing by itself. `overlay` is open as far down as
/// the file above it ([`Backing::First`](crate::Backing::First)), and for writing where it is to be emptied.
///
/// # Errors
///
/// [`CommitError`] says which part failed. [`Error::Cancelled`] where `watch` said no.
///
/// # Examples
///
/// ```
/// use oxcow::commit::{CommitOptions, commit};
/// use oxcow::{Image, MemoryStorage};
///
/// # async fn example(overlay: &Image<MemoryStorage>, base: &Image<MemoryStorage>) {
/// // Both are open for writing, the overlay with `Backing::First(1)`.
/// match commit(overlay, base, &CommitOptions::default(), |_, _| true).await {
///     Ok(()) => println!("the overlay is empty, its base has everything"),
///     Err(error) => println!("{error}"),
/// }
/// # }
/// ```
pub async fn commit<S: Storage, T: Storage>(
    overlay: &Image<S>,
    base: &Image<T>,
    options: &CommitOptions,
    watch: impl Watch,
) -> Result<(), CommitError> {
    if base.virtual_size() < overlay.virtual_size() {
        let grown = base
            .resize(overlay.virtual_size(), &ResizeOptions::default())
            .await;
        grown.map_err(CommitError::Growing)?;
    }
    let copy = ConvertOptions {
        target_is_new: false,
        allocated_only: true,
        buffer: options.buffer,
        ..ConvertOptions::default()
    };
    convert::write_to_image(&[overlay], base, &copy, watch)
        .await
        .map_err(CommitError::Copying)?;
    if upheld(OrderingPoint::CommitBeforeEmpty) {
        let failed = Failed::at(Step::Flushing, overlay.virtual_size());
        let flushed = base.flush().await.map_err(failed);
        flushed.map_err(CommitError::Copying)?;
    }
    if options.empty {
        // The disk reads the same before and after, so no bitmap has anything to show.
        let emptied = overlay.empty(Follow::Size).await;
        emptied.map_err(CommitError::Emptying)?;
    }
    Ok(())
}
