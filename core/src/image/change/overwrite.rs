//! Overwriting without a buffer of the engine's: the bytes are the caller's, and go over data in place at once.

use std::ops::Range;

use futures_util::FutureExt;

use crate::error::Result;
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::io::GivenUp;
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, SECTOR};

/// A part of the guest's bytes and where in the image's file it stands.
struct Place {
    part: Range<usize>,
    host: HostOffset,
}

impl<S: Storage> Image<S> {
    /// Writes the `length` bytes at `offset` if that can be done at once and in place: `write` is given the image's
    /// storage, an offset in it, and which of the bytes go there; it is called for each piece in turn, and tells whether
    /// it wrote that before it returned. It is a shorter way than [`Self::write_at`] for storages that answer at once,
    /// and nothing else: durable by the same [`flush`](Self::flush).
    ///
    /// `false` where tables have to be fetched or changed, where another operation holds the range, where bytes would be
    /// encrypted, for raw images and external data files, and for every mistake and failure: then a part may have been
    /// written, or may still come, and `write_at` waits for that and does it, or tells why not.
    pub fn overwrite_now(
        &self,
        offset: GuestOffset,
        length: usize,
        write: impl FnMut(&S, HostOffset, Range<usize>) -> bool,
    ) -> bool {
        let overwritten = self.overwrite(offset, length, write).now_or_never();
        matches!(overwritten, Some(Ok(true)))
    }

    async fn overwrite(
        &self,
        offset: GuestOffset,
        length: usize,
        write: impl FnMut(&S, HostOffset, Range<usize>) -> bool,
    ) -> Result<bool> {
        match &self.changing {
            // What a view keeps of the old content is copied first, and that takes its time.
            Some(state) if state.watchers.borrow().is_empty() => {}
            _ => return Ok(false),
        }
        let Some((engine, _held)) = self.change(offset, length as u64).await? else {
            return Ok(false);
        };
        Ok(match engine.places(offset.0, length).await? {
            Some(places) => engine.fill_places(&places, write),
            None => false,
        })
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Where all of the range is plain data of this state's alone, to be written over (I2).
    async fn places(&self, guest: u64, length: usize) -> Result<Option<Vec<Place>>> {
        let given_up = self.state.given_up.get() > self.state.waited_for.get();
        if given_up || self.qcow2.data_file.is_some() || self.qcow2.volume()?.is_some() {
            return Ok(None);
        }
        let mut places: Vec<Place> = Vec::new();
        let mut done = 0;
        while done < length {
            let at = guest + done as u64;
            let cluster = self.cluster_at(at).await?;
            let within = at - cluster.guest;
            let end = (within + (length - done) as u64).min(self.cluster_bytes());
            let part = done..done + (end - within) as usize;
            let Some(own) = cluster.own.filter(|_| self.is_plain(&cluster, within, end)) else {
                return Ok(None);
            };
            done = part.end;
            let host = HostOffset(own.0 + within);
            match places.last_mut() {
                Some(last) if last.host.0 + last.part.len() as u64 == host.0 => {
                    last.part.end = part.end;
                }
                _ => places.push(Place { part, host }),
            }
        }
        // Where the file ends before the data or within a sector of it, `in_whole_sectors` has more to do (I4).
        let length = self.state.physical_len.get();
        let inside = |place: &Place| {
            let end = place.host.0 + place.part.len() as u64;
            end.next_multiple_of(SECTOR) <= length
        };
        Ok(places.iter().all(inside).then_some(places))
    }

    /// Nobody else has a turn meanwhile. A failure leaves the file as long as it was, and each sector old or new; what
    /// is still under way counts as given up, so that the next write waits for it.
    fn fill_places(
        &self,
        places: &[Place],
        mut write: impl FnMut(&S, HostOffset, Range<usize>) -> bool,
    ) -> bool {
        places.iter().all(|Place { part, host }| {
            self.state.count_write(part.len());
            self.state.unflushed.set(true);
            let given_up = GivenUp(&self.state.given_up);
            let written = write(&self.qcow2.file.storage, *host, part.clone());
            if written {
                std::mem::forget(given_up);
            }
            written
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::image::NewSnapshot;
    use crate::image::placed::tests::{CLUSTER, new_image, open};
    use crate::storage::{AnyStorage, MemoryStorage};

    fn memory() -> AnyStorage {
        AnyStorage::new(MemoryStorage::default())
    }

    /// With data in clusters 0, 1 and 3, of which the last lies before the others in the file.
    async fn filled(storage: AnyStorage) -> Image<AnyStorage> {
        let image = new_image(storage).await;
        for cluster in [3, 0, 1] {
            let at = GuestOffset(cluster * CLUSTER as u64);
            image.write_at(at, &[1; CLUSTER]).await.unwrap();
        }
        image
    }

    /// Overwrites by the short way, and tells how many pieces were written.
    fn overwritten(image: &Image<AnyStorage>, offset: u64, data: &[u8]) -> Option<usize> {
        let pieces = RefCell::new(0);
        let write = |storage: &AnyStorage, host: HostOffset, part: Range<usize>| {
            *pieces.borrow_mut() += 1;
            let written = storage.write_at(host.0, &data[part]).now_or_never();
            matches!(written, Some(Ok(())))
        };
        image
            .overwrite_now(GuestOffset(offset), data.len(), write)
            .then(|| pieces.take())
    }

    async fn read(image: &Image<AnyStorage>, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        image
            .read_at(GuestOffset(offset), &mut bytes)
            .await
            .unwrap();
        bytes
    }

    #[test]
    fn data_is_overwritten_where_it_stands() {
        let run = async {
            let image = filled(memory()).await;
            let before = image.io_counts();
            let data: Vec<u8> = (0..2 * CLUSTER).map(|at| at as u8 | 2).collect();
            assert_eq!(overwritten(&image, 0, &data), Some(1));
            assert_eq!(read(&image, 0, 2 * CLUSTER).await, data);
            // Not from the first byte of a sector to the last of one.
            assert_eq!(overwritten(&image, 100, &[9; 900]), Some(1));
            assert_eq!(read(&image, 99, 902).await[..2], [data[99], 9]);
            assert_eq!(read(&image, 99, 902).await[900..], [9, data[1000]]);
            let counts = image.io_counts();
            assert_eq!(counts.writes - before.writes, 2);
            let bytes = 2 * CLUSTER as u64 + 900;
            assert_eq!(counts.written_bytes - before.written_bytes, bytes);
            // It waits for the same flush as every write.
            let flushed = image.io_counts().flushes;
            image.flush().await.unwrap();
            assert!(image.io_counts().flushes > flushed);
        };
        run.now_or_never().unwrap();
    }

    #[test]
    fn what_is_not_data_of_its_own_is_left_to_others() {
        let run = async {
            let image = filled(memory()).await;
            let cluster = CLUSTER as u64;
            let compressed = GuestOffset(5 * cluster);
            image
                .write_compressed(compressed, &[2; CLUSTER])
                .await
                .unwrap();
            for (offset, length) in [
                (2 * cluster, 1),       // A hole.
                (cluster, 2 * CLUSTER), // Data and a hole.
                (compressed.0, 1),      // Compressed.
                (64 * cluster - 1, 2),  // Past the end of the disk.
                (u64::MAX, 1),          // Nowhere.
            ] {
                assert_eq!(overwritten(&image, offset, &vec![7; length]), None);
            }
            assert_eq!(read(&image, cluster, CLUSTER).await, [1; CLUSTER]);
            // After a snapshot nothing is the active state's alone (I2).
            image
                .create_snapshot(&NewSnapshot::default())
                .await
                .unwrap();
            assert_eq!(overwritten(&image, 0, &[7; CLUSTER]), None);
            image.write_at(GuestOffset(0), &[8; CLUSTER]).await.unwrap();
            assert_eq!(overwritten(&image, 0, &[7; CLUSTER]), Some(1));
            assert_eq!(read(&image, 0, CLUSTER).await, [7; CLUSTER]);
        };
        run.now_or_never().unwrap();
    }

    #[test]
    fn who_holds_the_range_is_not_overtaken() {
        let run = async {
            let image = filled(memory()).await;
            let reading = image.placed_now(GuestOffset(0), CLUSTER).unwrap();
            assert_eq!(overwritten(&image, 0, &[7; 512]), None);
            assert_eq!(overwritten(&image, CLUSTER as u64, &[7; 512]), Some(1));
            drop(reading);
            assert_eq!(overwritten(&image, 0, &[7; 512]), Some(1));
        };
        run.now_or_never().unwrap();
    }

    #[test]
    fn what_failed_is_waited_for_before_the_next_write() {
        let run = async {
            let image = filled(memory()).await;
            image.flush().await.unwrap();
            let fails = |_: &AnyStorage, _: HostOffset, _: Range<usize>| false;
            assert!(!image.overwrite_now(GuestOffset(0), 512, fails));
            assert_eq!(overwritten(&image, 0, &[7; 512]), None);
            let flushed = image.io_counts().flushes;
            image.write_at(GuestOffset(0), &[8; 512]).await.unwrap();
            assert_eq!(image.io_counts().flushes, flushed + 1);
            assert_eq!(overwritten(&image, 0, &[7; 512]), Some(1));
        };
        run.now_or_never().unwrap();
    }

    #[test]
    fn a_file_that_ends_before_the_data_does_is_left_to_others() {
        let run = async {
            let storage = memory();
            let image = filled(storage.clone()).await;
            image.close().await.unwrap();
            drop(image);
            // The last cluster of the file ends within a sector.
            let length = storage.len().await.unwrap();
            storage.set_len(length - 100).await.unwrap();
            let image = open(storage).await;
            assert_eq!(overwritten(&image, CLUSTER as u64, &[7; CLUSTER]), None);
            assert_eq!(overwritten(&image, 0, &[7; CLUSTER]), Some(1));
        };
        run.now_or_never().unwrap();
    }
}
