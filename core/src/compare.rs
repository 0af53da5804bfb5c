//! Whether two disks have the same content: what `qemu-img compare` tells.

use crate::error::Result;
use crate::image::{Extent, Image};
use crate::storage::{Buffer, Storage};
use crate::units::{GuestOffset, SECTOR};

/// How much of each disk is read at once, in bytes.
const BUFFER: u64 = 2 << 20;

/// How two disks compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They have the same content; the larger one has only zeros past the end of the smaller one.
    Identical,
    /// They have different sizes, which a strict comparison does not allow.
    SizeMismatch,
    /// They differ in this sector (a byte offset): one of their bytes is not the same, or, past the end of
    /// the smaller one, not zero.
    ContentMismatch(u64),
    /// They are allocated differently at this byte, which a strict comparison does not allow.
    StatusMismatch(u64),
}

/// Which disk an error of [`compare`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first one.
    First,
    /// The second one.
    Second,
}

/// Why a comparison ended early.
#[derive(Debug)]
pub struct Failed {
    /// The disk.
    pub side: Side,
    /// The byte that was to be looked at.
    pub offset: u64,
    /// Whether its data, and not its block map, could not be read.
    pub reading: bool,
    /// Why.
    pub source: crate::error::Error,
}

struct Disk<'a, S> {
    image: &'a Image<S>,
    side: Side,
    buf: Buffer,
    /// The extent found last, and where it starts: the other disk may cut it into many pieces.
    last: Option<(u64, Extent)>,
}

impl<'a, S: Storage> Disk<'a, S> {
    fn new(image: &'a Image<S>, side: Side) -> Self {
        Self {
            image,
            side,
            buf: Buffer::default(),
            last: None,
        }
    }

    /// The extent at `offset` with all that continues it, so that only differences of the disks, and not of
    /// how their tables are cut, count.
    async fn extent(&mut self, offset: u64) -> Result<Extent, Failed> {
        if let Some((start, extent)) = self.last
            && (start..start + extent.length).contains(&offset)
        {
            let gone = offset - start;
            return Ok(Extent {
                length: extent.length - gone,
                host: extent.host.and_then(|host| host.checked_add(gone)),
                ..extent
            });
        }
        let extent = self.whole_extent(offset).await?;
        self.last = Some((offset, extent));
        Ok(extent)
    }

    async fn whole_extent(&self, offset: u64) -> Result<Extent, Failed> {
        let failed = |source| Failed {
            side: self.side,
            offset,
            reading: false,
            source,
        };
        let size = self.image.virtual_size();
        let mut extent = self
            .image
            .extent_at(GuestOffset(offset), size - offset)
            .await
            .map_err(failed)?;
        while offset + extent.length < size {
            let at = offset + extent.length;
            let Ok(next) = self.image.extent_at(GuestOffset(at), size - at).await else {
                break;
            };
            let host = extent.host.and_then(|host| host.checked_add(extent.length));
            if (next.kind, next.depth, next.host) != (extent.kind, extent.depth, host) {
                break;
            }
            extent.length += next.length;
        }
        Ok(extent)
    }

    async fn read(&mut self, offset: u64, length: u64) -> Result<&[u8], Failed> {
        self.buf.resize(length as usize);
        let result = self.image.read_at(GuestOffset(offset), &mut self.buf).await;
        result.map_err(|source| Failed {
            side: self.side,
            offset,
            reading: true,
            source,
        })?;
        Ok(&self.buf)
    }

    /// The first sector from `offset` on that is not all zeros.
    async fn first_content(&mut self, offset: u64, length: u64) -> Result<Option<u64>, Failed> {
        let mut at = offset;
        while at < offset + length {
            let count = (offset + length - at).min(BUFFER);
            let bytes = self.read(at, count).await?;
            let sector = bytes
                .chunks(SECTOR as usize)
                .position(|sector| sector.iter().any(|byte| *byte != 0));
            if let Some(sector) = sector {
                return Ok(Some(at + sector as u64 * SECTOR));
            }
            at += count;
        }
        Ok(None)
    }
}

/// Compares `first` with `second`. `progress` is told how many of how many bytes are done.
///
/// # Errors
///
/// [`Failed`], which says what could not be read of which disk.
pub async fn compare<A: Storage, B: Storage>(
    first: &Image<A>,
    second: &Image<B>,
    strict: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<Comparison, Failed> {
    let (size_1, size_2) = (first.virtual_size(), second.virtual_size());
    if strict && size_1 != size_2 {
        return Ok(Comparison::SizeMismatch);
    }
    let (common, total) = (size_1.min(size_2), size_1.max(size_2));
    let mut first = Disk::new(first, Side::First);
    let mut second = Disk::new(second, Side::Second);
    let mut at = 0;
    while at < common {
        let (one, two) = (first.extent(at).await?, second.extent(at).await?);
        // That an extent is the disk's last one is a part of its status too.
        let status = |extent: &Extent| {
            (
                extent.kind,
                extent.host.is_some(),
                at + extent.length == common,
            )
        };
        if strict && status(&one) != status(&two) {
            return Ok(Comparison::StatusMismatch(at));
        }
        let length = one.length.min(two.length).min(common - at);
        let end = at + length;
        while at < end {
            let count = (end - at).min(BUFFER);
            let mismatch = match (one.zero(), two.zero()) {
                (true, true) => {
                    at = end;
                    progress(at, total);
                    break;
                }
                (false, false) => {
                    let one = first.read(at, count).await?;
                    let two = second.read(at, count).await?;
                    first_difference(one, two).map(|sector| at + sector)
                }
                (false, true) => first.first_content(at, count).await?,
                (true, false) => second.first_content(at, count).await?,
            };
            if let Some(sector) = mismatch {
                return Ok(Comparison::ContentMismatch(sector));
            }
            at += count;
            progress(at, total);
        }
    }
    let rest = if size_1 > size_2 {
        tail(&mut first, common, total, progress).await?
    } else {
        tail(&mut second, common, total, progress).await?
    };
    Ok(rest.map_or(Comparison::Identical, Comparison::ContentMismatch))
}

/// The first sector of the larger disk, past the end of the smaller one, that is not all zeros.
async fn tail<S: Storage>(
    disk: &mut Disk<'_, S>,
    from: u64,
    to: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<Option<u64>, Failed> {
    let mut at = from;
    while at < to {
        let extent = disk.extent(at).await?;
        let length = extent.length.min(to - at);
        if extent.data()
            && let Some(sector) = disk.first_content(at, length).await?
        {
            return Ok(Some(sector));
        }
        at += length;
        progress(at, to);
    }
    Ok(None)
}

/// The byte offset of the first sector that differs.
fn first_difference(one: &[u8], two: &[u8]) -> Option<u64> {
    if one == two {
        return None;
    }
    let sector = SECTOR as usize;
    let index = one
        .chunks(sector)
        .zip(two.chunks(sector))
        .position(|(one, two)| one != two)?;
    Some(index as u64 * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{DenyAll, File};
    use crate::image::OpenOptions;
    use crate::probe::Format;
    use crate::storage::{AnyStorage, MemoryStorage};
    use futures_util::FutureExt;

    fn raw(bytes: Vec<u8>) -> Image<AnyStorage> {
        let file = File {
            storage: AnyStorage::new(MemoryStorage::new(bytes)),
            name: "disk".into(),
        };
        let options = OpenOptions {
            format: Some(Format::Raw),
            ..OpenOptions::default()
        };
        Image::open(file, &options, &DenyAll::default())
            .now_or_never()
            .unwrap()
            .unwrap()
    }

    fn compared(one: Vec<u8>, two: Vec<u8>, strict: bool) -> Comparison {
        let (one, two) = (raw(one), raw(two));
        let mut last = 0;
        let result = compare(&one, &two, strict, |done, total| {
            assert!(last <= done && done <= total);
            last = done;
        });
        result.now_or_never().unwrap().unwrap()
    }

    fn with_byte(length: usize, at: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[at] = 1;
        bytes
    }

    // As `qemu-img compare` tells it: a mismatch is named by its sector.
    #[test]
    fn differences_are_named_by_their_sector() {
        let length = 5 << 20;
        let at = (4 << 20) + 700;
        assert_eq!(
            compared(with_byte(length, at), with_byte(length, at), true),
            Comparison::Identical
        );
        assert_eq!(
            compared(with_byte(length, at), vec![0; length], false),
            Comparison::ContentMismatch((4 << 20) + 512)
        );
    }

    #[test]
    fn what_the_larger_disk_has_more_must_be_zeros() {
        let zeros = vec![0; 4096];
        assert_eq!(
            compared(zeros.clone(), vec![0; 8192], false),
            Comparison::Identical
        );
        assert_eq!(
            compared(zeros.clone(), vec![0; 8192], true),
            Comparison::SizeMismatch
        );
        assert_eq!(
            compared(with_byte(8192, 8191), zeros, false),
            Comparison::ContentMismatch(7680)
        );
    }

    #[test]
    fn the_rest_of_a_known_extent_is_what_would_be_found_there() {
        let image = raw(vec![7; 8192]);
        let mut walking = Disk::new(&image, Side::First);
        for offset in [0, 512, 4096, 8191, 1024] {
            let known = walking.extent(offset).now_or_never().unwrap().unwrap();
            let mut fresh = Disk::new(&image, Side::First);
            let fresh = fresh.extent(offset).now_or_never().unwrap().unwrap();
            assert_eq!(known, fresh);
            assert_eq!(known.length, 8192 - offset);
        }
    }
}
