//! The block map of a disk: what `qemu-img map` prints, entry by entry.

use std::ops::Range;

use crate::error::Result;
use crate::image::{Extent, Image};
use crate::storage::Storage;
use crate::units::{ClusterSize, GuestOffset, HostOffset};

/// A stretch of the disk that is all alike. Field names are those of `qemu-img map --output=json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct MapEntry {
    /// Where it starts, in bytes of the guest's disk.
    pub start: u64,
    /// How many bytes it has.
    pub length: u64,
    /// Which image of the chain answers for it: 0 is the one that was opened.
    pub depth: usize,
    /// Whether some image of the chain answers for it.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether it must be read to know what it is.
    pub data: bool,
    /// Whether it is compressed.
    pub compressed: bool,
    /// Where it lies in that image's file or data file, where it lies there in one piece.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub offset: Option<HostOffset>,
}

impl MapEntry {
    fn new(start: u64, extent: &Extent) -> Self {
        Self {
            start,
            length: extent.length,
            depth: extent.depth,
            present: extent.present(),
            zero: extent.zero(),
            data: extent.data(),
            compressed: extent.compressed(),
            offset: extent.host,
        }
    }

    /// Whether `next`, which starts where this ends, is more of the same.
    fn goes_on_with(&self, next: &Self) -> bool {
        let offset = self
            .offset
            .and_then(|offset| offset.checked_add(self.length));
        (
            self.depth,
            self.present,
            self.zero,
            self.data,
            self.compressed,
            offset,
        ) == (
            next.depth,
            next.present,
            next.zero,
            next.data,
            next.compressed,
            next.offset,
        )
    }
}

/// Walks over a part of a disk; neighbouring entries always differ.
#[derive(Debug)]
pub struct Mapper<'a, S> {
    image: &'a Image<S>,
    /// The first entry after the one given last, of unknown full length.
    ahead: Option<MapEntry>,
    at: u64,
    end: u64,
}

impl<'a, S: Storage> Mapper<'a, S> {
    /// The bytes from `start` on, at most `length` of them; what lies past the disk's end is left out.
    pub fn new(image: &'a Image<S>, start: u64, length: u64) -> Self {
        let size = image.virtual_size();
        Self {
            image,
            ahead: None,
            at: start,
            end: start.saturating_add(length).min(size),
        }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// As for [`Image::extent_at`].
    pub async fn next(&mut self) -> Result<Option<MapEntry>> {
        let Some(mut entry) = self.piece().await? else {
            return Ok(None);
        };
        while let Some(next) = self.piece().await? {
            if !entry.goes_on_with(&next) {
                self.ahead = Some(next);
                break;
            }
            entry.length += next.length;
        }
        Ok(Some(entry))
    }

    /// Whether the entry given last was the last one of all.
    #[must_use]
    pub fn at_end(&self) -> bool {
        self.ahead.is_none() && self.at >= self.end
    }

    async fn piece(&mut self) -> Result<Option<MapEntry>> {
        if let Some(entry) = self.ahead.take() {
            return Ok(Some(entry));
        }
        if self.at >= self.end {
            return Ok(None);
        }
        let extent = self
            .image
            .extent_at(GuestOffset(self.at), self.end - self.at)
            .await?;
        let entry = MapEntry::new(self.at, &extent);
        self.at += extent.length;
        Ok(Some(entry))
    }
}

/// The clusters of a new image, with clusters of `cluster`, that `image`'s data falls into: `add` gets them in runs from
/// the first index up to the one behind the last, in order and none twice.
pub(crate) async fn data_clusters<S: Storage>(
    image: &Image<S>,
    cluster: ClusterSize,
    mut add: impl FnMut(Range<u64>),
) -> Result<()> {
    // Extents need not end where clusters do.
    let mut behind = 0;
    let mut mapper = Mapper::new(image, 0, u64::MAX);
    while let Some(entry) = mapper.next().await? {
        let first = cluster.index_of(entry.start).max(behind);
        let end = cluster.count_for(entry.start + entry.length);
        if entry.data && first < end {
            add(first..end);
            behind = end;
        }
    }
    Ok(())
}
