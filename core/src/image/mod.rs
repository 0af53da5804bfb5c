//! An open image: the chain of files that a guest sees as one disk.

pub(crate) mod activity;
pub(crate) mod change;
mod clock;
mod corruption;
mod lock;
mod mapping;
mod open;
pub mod ordering;
mod placed;
mod qcow2;
mod read;
mod snapshot_table;
mod tables;
mod vm_state;

#[cfg(feature = "encryption")]
pub use change::KeyChange;
pub use change::{
    AmendOptions, IoCounts, NewSnapshot, OnRepair, Preallocation, ResizeOptions, ZeroMode,
};
pub use corruption::{Corruption, OnCorruption};
pub use open::{Backing, Instead, OpenOptions};
pub use placed::{Piece, Placed};
pub use qcow2::{BackingName, Qcow2};
pub use vm_state::VmStateOffset;

use std::cell::Cell;
use std::ops::Range;

use futures_util::future::LocalBoxFuture;

use crate::chain::File;
use crate::crypto::{Passphrase, Volume};
use crate::error::{Error, Result};
use crate::probe::Format;
use crate::qcow2::{Compressed, Encryption, Run, RunKind};
use crate::raw::Raw;
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// A disk as its guest sees it: an image with its backing files, at the active state or at a snapshot.
pub struct Image<S> {
    /// The image itself, then its backing file, and so on.
    layers: Vec<Layer<S>>,
    /// What changing it takes, where it was opened for that.
    changing: Option<change::state::Changing>,
    /// Keeps what is read from backing files, where that is wanted.
    keeps_reads: Cell<Option<KeepReads<S>>>,
    /// Marks the image as corrupt, where it may be written to.
    marks: Cell<Option<Mark<S>>>,
}

impl<S: std::fmt::Debug> std::fmt::Debug for Image<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("layers", &self.layers)
            .field("changing", &self.changing)
            .finish_non_exhaustive()
    }
}

/// Called through a pointer, so that a program that only reads does not contain all of writing.
type KeepReads<S> = for<'a> fn(&'a Image<S>, Range<u64>) -> LocalBoxFuture<'a, Result<()>>;
/// The same for the mark that an image is corrupt.
type Mark<S> = for<'a> fn(&'a Image<S>) -> LocalBoxFuture<'a, ()>;

/// One file of a chain.
#[derive(Debug)]
pub enum Layer<S> {
    /// A raw file.
    Raw(Raw<S>),
    /// A qcow2 file.
    Qcow2(Box<Qcow2<S>>),
}

impl<S: Storage> Layer<S> {
    /// The file: of a qcow2 image the one that holds its metadata.
    #[must_use]
    pub fn file(&self) -> &File<S> {
        match self {
            Self::Raw(raw) => raw.file(),
            Self::Qcow2(qcow2) => qcow2.file(),
        }
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.file().name
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(raw) if raw.luks_header().is_some() => Format::Luks,
            Self::Raw(_) => Format::Raw,
            Self::Qcow2(_) => Format::Qcow2,
        }
    }

    /// Its disk's size in bytes, a multiple of 512.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        match self {
            Self::Raw(raw) => raw.virtual_size(),
            Self::Qcow2(qcow2) => qcow2.virtual_size(),
        }
    }

    /// Whether its content is encrypted and it was opened without the passphrase: it cannot be read.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.volume().is_err(),
            Self::Qcow2(qcow2) => qcow2.volume().is_err(),
        }
    }

    /// Whether its content is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        match self {
            Self::Raw(raw) => raw.luks_header().is_some(),
            Self::Qcow2(qcow2) => qcow2.header().encryption != Encryption::None,
        }
    }

    /// Finds the key of encrypted content.
    async fn unlock(&mut self, passphrase: &Passphrase, max_rounds: u64) -> Result<()> {
        match self {
            Self::Raw(raw) => {
                let Some(header) = raw.luks_header() else {
                    return Ok(());
                };
                let (storage, area) = (&raw.file().storage, raw.header_area());
                let volume = Volume::luks(storage, area, header, passphrase, max_rounds).await?;
                raw.unlock(volume);
            }
            Self::Qcow2(qcow2) => qcow2.unlock(passphrase, max_rounds).await?,
        }
        Ok(())
    }

    /// It as a qcow2 file, if it is one.
    #[must_use]
    pub fn as_qcow2(&self) -> Option<&Qcow2<S>> {
        match self {
            Self::Raw(_) => None,
            Self::Qcow2(qcow2) => Some(qcow2),
        }
    }

    async fn run_at(&self, offset: GuestOffset, max: u64) -> Result<Run> {
        match self {
            Self::Raw(raw) => raw.run_at(offset, max).await,
            Self::Qcow2(qcow2) => qcow2.run_at(offset, max).await,
        }
    }
}

/// What a stretch of the disk is, as `qemu-img map` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes.
    pub length: u64,
    /// Which layer answers for it: 0 is the image itself.
    pub depth: usize,
    /// What it is.
    pub kind: ExtentKind,
    /// Where it lies in that layer's file (or data file), where it lies there in plain.
    pub host: Option<HostOffset>,
}

/// The kinds of [`Extent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum ExtentKind {
    /// In no file of the chain: reads as zeros.
    Unallocated,
    /// Marked as zeros in the file at that depth.
    Zero,
    /// Data.
    Data,
    /// Compressed data.
    Compressed,
}

impl Extent {
    /// Whether some file of the chain answers for it.
    #[must_use]
    pub fn present(&self) -> bool {
        self.kind != ExtentKind::Unallocated
    }

    /// Whether it is known to read as zeros.
    #[must_use]
    pub fn zero(&self) -> bool {
        matches!(self.kind, ExtentKind::Unallocated | ExtentKind::Zero)
    }

    /// Whether it must be read to know what it is.
    #[must_use]
    pub fn data(&self) -> bool {
        !self.zero()
    }

    /// Whether it is compressed.
    #[must_use]
    pub fn compressed(&self) -> bool {
        self.kind == ExtentKind::Compressed
    }
}

/// Where guest bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From nowhere: they are zeros. The run says how.
    Zeros,
    /// From the file (or data file) of the layer at the depth.
    Host(HostOffset),
    /// Out of a compressed cluster of the layer at the depth.
    Compressed(Compressed),
}

/// A run, with the layer that answers for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located {
    pub depth: usize,
    pub run: Run,
}

impl Located {
    pub fn source(&self) -> Source {
        match self.run.kind {
            RunKind::Unallocated(_) | RunKind::Zero(_) | RunKind::Invalid => Source::Zeros,
            RunKind::Data(host) => Source::Host(host),
            RunKind::Compressed(compressed) => Source::Compressed(compressed),
        }
    }
}

impl<S: Storage> Image<S> {
    /// The disk's size in bytes, a multiple of 512.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.top().virtual_size()
    }

    /// The files of the chain: the image itself, then its backing file, and so on.
    #[must_use]
    pub fn layers(&self) -> &[Layer<S>] {
        match self.is_detached() {
            true => &self.layers[..1],
            false => &self.layers,
        }
    }

    /// The image itself.
    #[must_use]
    pub fn top(&self) -> &Layer<S> {
        &self.layers[0]
    }

    /// From now on reads the internal snapshot with this id, or else this name, at its own size. Reads
    /// that it has not allocated go to the backing file, as those of the active state do.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] where there is no such snapshot, [`Error::Corrupt`] where its table cannot be,
    /// [`Error::Refused`] on an image that is open for writing: snapshots do not change.
    pub async fn use_snapshot(&mut self, id_or_name: &str) -> Result<()> {
        if self.changing.is_some() {
            return Err(Error::Refused(
                "A snapshot can only be read from an image that is not open for writing".into(),
            ));
        }
        let Layer::Qcow2(qcow2) = &mut self.layers[0] else {
            return Err(Error::Unsupported(
                "This image format has no internal snapshots".into(),
            ));
        };
        let Some(snapshot) = qcow2.find_snapshot(id_or_name) else {
            return Err(Error::OutOfRange(
                format!("Can't find the snapshot '{id_or_name}'").into(),
            ));
        };
        qcow2.use_snapshot(&snapshot).await
    }

    /// What the bytes from `offset` on are: one run of at most `max` bytes, at least 1. Neighbouring
    /// extents may be alike: a run ends where a part of a table does.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] outside the disk, [`Error::Corrupt`] where a table contradicts itself.
    pub async fn extent_at(&self, offset: GuestOffset, max: u64) -> Result<Extent> {
        self.check_range(offset, 1)?;
        let max = max.clamp(1, self.virtual_size() - offset.0);
        let located = self.heed(async {
            let _held = self.hold_for_reading(offset.0..offset.0 + 1).await?;
            self.locate(offset, max).await
        });
        let located = located.await?;
        let (kind, host) = match located.run.kind {
            RunKind::Unallocated(host) => (ExtentKind::Unallocated, host),
            RunKind::Zero(host) => (ExtentKind::Zero, host),
            RunKind::Data(host) => (ExtentKind::Data, Some(host)),
            RunKind::Compressed(_) | RunKind::Invalid => (ExtentKind::Compressed, None),
        };
        // What lies there is not what the guest sees.
        let host = host.filter(|_| !self.layers[located.depth].is_encrypted());
        Ok(Extent {
            length: located.run.length,
            depth: located.depth,
            kind,
            host,
        })
    }

    /// Carries out an operation; one that meets tables which must not be followed has the image marked. It holds no
    /// lock of this image when it ends.
    pub(crate) async fn heed<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let result = operation.await;
        if result.is_err()
            && let Some(mark) = self.marks.get()
            && self.marked_corrupt().is_some()
        {
            mark(self).await;
        }
        result
    }

    /// Why the image was marked as corrupt since it was opened, if it was: it takes no more reads or writes.
    #[must_use]
    pub fn marked_corrupt(&self) -> Option<String> {
        self.top().as_qcow2()?.alarm.fatal()
    }

    /// Whether the image has dropped its backing file since it was opened.
    fn is_detached(&self) -> bool {
        self.changing
            .as_ref()
            .is_some_and(|state| state.detached.get())
    }

    /// Whether the bytes at `at` are known to be zeros without reading them, and for how many bytes that is
    /// the answer: at least 1, at most `max`.
    pub(crate) async fn zeros_at(&self, at: u64, max: u64) -> Result<(bool, u64)> {
        let located = self.locate(GuestOffset(at), max).await?;
        Ok((located.source() == Source::Zeros, located.run.length))
    }

    /// Whether all of `start..end` is known to read as zeros.
    pub(crate) async fn known_zeros(&self, start: u64, end: u64) -> Result<bool> {
        let mut at = start;
        while at < end {
            let (zeros, length) = self.zeros_at(at, end - at).await?;
            if !zeros {
                return Ok(false);
            }
            at += length;
        }
        Ok(true)
    }

    /// Whether `length` bytes at `offset` lie inside the disk.
    pub(crate) fn check_range(&self, offset: GuestOffset, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end.0 <= self.virtual_size() => Ok(()),
            _ => Err(Error::OutOfRange(
                format!(
                    "{length} bytes at {:#x} lie outside the disk of {} bytes",
                    offset.0,
                    self.virtual_size()
                )
                .into(),
            )),
        }
    }

    /// Follows the chain down to the layer that answers for the bytes at `offset` (inside the disk).
    pub(crate) async fn locate(&self, offset: GuestOffset, max: u64) -> Result<Located> {
        self.locate_from(0, offset, max).await
    }

    /// As [`Self::locate`], from the layer at `depth` downwards.
    pub(crate) async fn locate_from(
        &self,
        depth: usize,
        offset: GuestOffset,
        max: u64,
    ) -> Result<Located> {
        let mut max = max;
        let mut depth = depth;
        loop {
            let run = self.layers[depth].run_at(offset, max).await?;
            let below = match depth {
                0 => self.layers().get(1),
                _ => self.layers.get(depth + 1),
            };
            match (run.kind, below) {
                (RunKind::Unallocated(_), Some(below)) => {
                    // A shorter backing file reads as zeros past its end (QEMU-COMPAT rule 29).
                    let left = below.virtual_size().saturating_sub(offset.0);
                    if left == 0 {
                        return Ok(Located { depth, run });
                    }
                    max = run.length.min(left);
                    depth += 1;
                }
                _ => return Ok(Located { depth, run }),
            }
        }
    }
}
