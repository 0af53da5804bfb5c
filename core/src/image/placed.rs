//! Reading without a buffer of the engine's: where bytes stand, for a caller that can fetch them at once.

use futures_util::FutureExt;

use crate::error::Result;
use crate::image::activity::UnderWay;
use crate::image::lock::RangeGuard;
use crate::image::{Image, Source};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// Where the bytes of a part of a disk stand. While it is there the image does not change them: it is meant to be used
/// at once and dropped.
#[derive(Debug)]
pub struct Placed<'a, S> {
    pieces: Vec<Piece<'a, S>>,
    _held: Option<RangeGuard<'a>>,
    _under_way: Option<UnderWay<'a>>,
}

/// Bytes that follow one another in one place.
#[derive(Debug)]
pub struct Piece<'a, S> {
    /// How many bytes, at least 1.
    pub length: usize,
    /// The storage that has them and where they begin in it; `None`: they are zeros. Past the end of the storage they
    /// may be missing: read those with [`Image::read_at`], which knows whether that is an error.
    pub stored: Option<(&'a S, HostOffset)>,
}

impl<'a, S> Placed<'a, S> {
    /// From the first byte to the last.
    #[must_use]
    pub fn pieces(&self) -> &[Piece<'a, S>] {
        &self.pieces
    }
}

impl<S: Storage> Image<S> {
    /// Where the `length` bytes of the disk from `offset` on stand, if that is known without waiting and they stand
    /// there as they are. It is a shorter way than [`Self::read_at`] for storages that answer at once, never another
    /// answer: `None` where a table has to be fetched or a change of the range is under way, where bytes are compressed
    /// or encrypted, where reads are kept ([`hydrate`](crate::hydrate)), and for every mistake and damage, which
    /// `read_at` tells in words.
    #[must_use]
    pub fn placed_now(&self, offset: GuestOffset, length: usize) -> Option<Placed<'_, S>> {
        if self.keeps_reads.get().is_some() {
            return None;
        }
        self.place(offset, length).now_or_never()?.ok()?
    }

    async fn place(&self, offset: GuestOffset, length: usize) -> Result<Option<Placed<'_, S>>> {
        self.check_range(offset, length as u64)?;
        let mut placed = Placed {
            pieces: Vec::new(),
            _under_way: self.begin_operation(),
            _held: self
                .hold_for_reading(offset.0..offset.0 + length as u64)
                .await?,
        };
        let mut done = 0;
        while done < length {
            let at = GuestOffset(offset.0 + done as u64);
            let (located, count) = self.locate_contiguous(0, at, length - done).await?;
            let stored = match located.source() {
                Source::Zeros => None,
                Source::Compressed(_) => return Ok(None),
                Source::Host(host) => {
                    let stored = self.stored(located.depth, at, host)?;
                    if stored.encrypted.is_some() {
                        return Ok(None);
                    }
                    Some((stored.storage, host))
                }
            };
            placed.pieces.push(Piece {
                length: count,
                stored,
            });
            done += count;
        }
        Ok(Some(placed))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::pin::pin;

    use super::*;
    use crate::DenyAll;
    use crate::chain::File;
    use crate::create::{CreateOptions, create};
    use crate::image::OpenOptions;
    use crate::storage::{AnyStorage, MemoryStorage};

    pub const CLUSTER: usize = 4096;

    async fn image() -> Image<AnyStorage> {
        new_image(AnyStorage::new(MemoryStorage::default())).await
    }

    /// An empty disk of 64 clusters, open for writing.
    pub async fn new_image(storage: AnyStorage) -> Image<AnyStorage> {
        let options = CreateOptions {
            size: 64 * CLUSTER as u64,
            cluster_size: CLUSTER as u64,
            ..CreateOptions::default()
        };
        create(&storage, None, &options).await.unwrap();
        open(storage).await
    }

    pub async fn open(storage: AnyStorage) -> Image<AnyStorage> {
        let file = File {
            storage,
            name: "disk".into(),
        };
        let options = OpenOptions {
            writable: true,
            ..OpenOptions::default()
        };
        Image::open(file, &options, &DenyAll::default())
            .await
            .unwrap()
    }

    /// The bytes that stand where they are said to.
    async fn fetched(placed: &Placed<'_, AnyStorage>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in placed.pieces() {
            let mut part = vec![0; piece.length];
            if let Some((storage, host)) = piece.stored {
                assert_eq!(
                    storage.read_at(host.0, &mut part).await.unwrap(),
                    part.len()
                );
            }
            bytes.extend(part);
        }
        bytes
    }

    #[test]
    fn what_stands_there_is_what_is_read() {
        let run = async {
            let image = image().await;
            // The second cluster lies behind the first in the file, the fourth before both, the third is a hole.
            for (cluster, value) in [(3, 4), (0, 1), (1, 2)] {
                let at = GuestOffset(cluster * CLUSTER as u64);
                image.write_at(at, &[value; CLUSTER]).await.unwrap();
            }
            for (offset, length, pieces) in [
                (0, 2 * CLUSTER, 1),
                (100, CLUSTER, 1),
                (0, 4 * CLUSTER, 3),
                (2 * CLUSTER, CLUSTER, 1),
                (5 * CLUSTER - 1, 2, 1),
                (7, 0, 0),
            ] {
                let at = GuestOffset(offset as u64);
                let placed = image.placed_now(at, length).unwrap();
                assert_eq!(placed.pieces().len(), pieces, "{length} bytes at {offset}");
                let mut read = vec![0; length];
                image.read_at(at, &mut read).await.unwrap();
                assert_eq!(fetched(&placed).await, read, "{length} bytes at {offset}");
            }
        };
        run.now_or_never().unwrap();
    }

    #[test]
    fn what_does_not_stand_there_as_it_is_has_no_place() {
        let run = async {
            let image = image().await;
            image.write_at(GuestOffset(0), &[1; CLUSTER]).await.unwrap();
            let compressed = GuestOffset(CLUSTER as u64);
            image
                .write_compressed(compressed, &[2; CLUSTER])
                .await
                .unwrap();
            assert!(image.placed_now(GuestOffset(0), CLUSTER).is_some());
            assert!(image.placed_now(compressed, 1).is_none());
            assert!(image.placed_now(GuestOffset(0), CLUSTER + 1).is_none());
            // `read_at` has the words for it.
            let end = image.virtual_size();
            assert!(image.placed_now(GuestOffset(end), 1).is_none());
            assert!(image.placed_now(GuestOffset(u64::MAX), 1).is_none());
        };
        run.now_or_never().unwrap();
    }

    #[test]
    fn a_change_waits_until_it_is_dropped_and_is_waited_for() {
        let run = async {
            let image = image().await;
            image.write_at(GuestOffset(0), &[1; CLUSTER]).await.unwrap();
            let placed = image.placed_now(GuestOffset(0), 512).unwrap();
            let mut write = pin!(image.write_at(GuestOffset(0), &[2; 512]));
            assert!(write.as_mut().now_or_never().is_none());
            // It was there first: nobody overtakes it.
            assert!(image.placed_now(GuestOffset(0), 512).is_none());
            assert_eq!(fetched(&placed).await, [1; 512]);
            drop(placed);
            write.await.unwrap();
            let placed = image.placed_now(GuestOffset(0), 512).unwrap();
            assert_eq!(fetched(&placed).await, [2; 512]);
        };
        run.now_or_never().unwrap();
    }
}
