//! What is copied: one disk, or several that follow one another.

use std::ops::Range;

use crate::error::Result;
use crate::image::{Extent, Image};
use crate::storage::Storage;
use crate::units::GuestOffset;

/// Disks one behind the other, as one.
pub(super) struct Sources<'a, S> {
    /// Each with where it starts.
    disks: Vec<(u64, &'a Image<S>)>,
    size: u64,
}

/// What becomes of a stretch of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It has to be read.
    Data,
    /// It reads as zeros.
    Zero,
    /// It is what the target's backing file says.
    Backing,
}

/// A stretch of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub range: Range<u64>,
    pub kind: Kind,
    /// Whether more of the same follows of which it is told together.
    pub goes_on: bool,
}

impl Piece {
    /// How many bytes of it have to be copied.
    pub fn copied(&self) -> u64 {
        match self.kind {
            Kind::Data => self.range.end - self.range.start,
            Kind::Zero | Kind::Backing => 0,
        }
    }
}

impl<'a, S: Storage> Sources<'a, S> {
    pub fn new(images: &[&'a Image<S>]) -> Self {
        let mut size = 0;
        let disks = images.iter().map(|&image| {
            let start = size;
            size += image.virtual_size();
            (start, image)
        });
        Self {
            disks: disks.collect(),
            size,
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many reads are worth having in flight at once.
    pub fn queue_depth(&self) -> usize {
        let depths = self.disks.iter().map(|(_, image)| image.queue_depth());
        depths.max().unwrap_or(1)
    }

    /// What the disk is at byte `at`, at most `max` bytes of it.
    pub async fn extent_at(&self, at: u64, max: u64) -> Result<Extent> {
        let (start, image) = self.disk_at(at);
        image.extent_at(GuestOffset(at - start), max).await
    }

    /// Whether nothing stands below the layer at `depth` of the disk that byte `at` is on.
    pub fn is_lowest(&self, at: u64, depth: usize) -> bool {
        let (_, image) = self.disk_at(at);
        depth + 1 == image.layers().len()
    }

    /// Fills `buf` from byte `at` on.
    pub async fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let (start, image) = self.disk_at(at);
            let left = start + image.virtual_size() - at;
            let length = left.min(rest.len() as u64);
            let (part, behind) = rest.split_at_mut(length as usize);
            image.read_at(GuestOffset(at - start), part).await?;
            at += length;
            rest = behind;
        }
        Ok(())
    }

    /// The disk that byte `at`, which is inside, is on. Disks of no size are on no byte.
    fn disk_at(&self, at: u64) -> (u64, &'a Image<S>) {
        let next = self.disks.partition_point(|(start, _)| *start <= at);
        self.disks[next - 1]
    }
}
