//! Compressed clusters: packed one behind the other into host clusters, each of which counts them all.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::change::allocate::{For, NeedsBlock};
use crate::image::change::state::Reservation;
use crate::image::lock::RangeGuard;
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

const COMPRESSED: For = For::Table("compressed cluster");

impl<S: Storage> Engine<'_, S> {
    /// Writes whole clusters compressed, each where that makes it smaller; the range is locked. The last
    /// may be cut off by the end of the disk.
    pub async fn write_compressed_guest(&self, guest: GuestOffset, data: &[u8]) -> Result<()> {
        if self.qcow2.l2_format.data_file {
            return Err(Error::Unsupported(
                "Compressed clusters cannot be written to an image with an external data file"
                    .into(),
            ));
        }
        let size = self.cluster_bytes() as usize;
        for (index, chunk) in data.chunks(size).enumerate() {
            let at = guest.0 + (index * size) as u64;
            let mut padded;
            let cluster = if chunk.len() == size {
                chunk
            } else {
                padded = chunk.to_vec();
                padded.resize(size, 0);
                &padded
            };
            let method = self.qcow2.header().compression;
            let compressed = self.qcow2.compressor.borrow_mut().compress(method, cluster);
            match compressed {
                Some(bytes) => self.write_compressed_cluster(at, &bytes).await?,
                None => self.write_guest(GuestOffset(at), chunk).await?,
            }
            self.commit_if_full().await?;
        }
        Ok(())
    }

    async fn write_compressed_cluster(&self, guest: u64, bytes: &[u8]) -> Result<()> {
        let (host, mut reservation) = self.allocate_bytes(guest, bytes.len() as u64).await?;
        let format = self.qcow2.l2_format;
        let Some(entry) = format.compressed_entry(host, bytes.len() as u64) else {
            return Err(Error::OutOfRange(
                format!("Byte {host:#x} is too far out for compressed data").into(),
            ));
        };
        // Another stream may have been at this place once.
        self.qcow2.clusters.borrow_mut().clear();
        self.write_packed(host.0, bytes).await?;
        self.link(guest, entry).await?;
        reservation.linked_all();
        Ok(())
    }

    /// Room for `length` bytes, at most a cluster: behind the last compressed cluster where there is some.
    async fn allocate_bytes(
        &self,
        guest: u64,
        length: u64,
    ) -> Result<(HostOffset, Reservation<'_>)> {
        loop {
            let tables = self.state.tables.lock_all().await;
            if let Err(needs) = self.writable_table(guest, &tables).await? {
                drop(tables);
                self.count_more(needs).await?;
                continue;
            }
            match self.take_bytes(length, &tables).await? {
                Ok((host, clusters)) => {
                    return Ok((host, Reservation::new(self.state, clusters)));
                }
                Err(needs) => {
                    drop(tables);
                    self.count_more(needs).await?;
                }
            }
        }
    }

    async fn take_bytes(
        &self,
        length: u64,
        tables: &RangeGuard<'_>,
    ) -> Result<Result<(HostOffset, Range<u64>), NeedsBlock>> {
        let cluster_size = self.qcow2.l2_format.cluster_size;
        if let Some(host) = self.state.packing.get() {
            let cluster = cluster_size.index_of(host.0);
            let room = cluster_size.bytes() - cluster_size.offset_in(host.0);
            let (index, _) = self.state.refcounts.borrow().place_of(cluster);
            self.load_block(index).await?;
            let count = self.state.refcounts.borrow().get(cluster);
            let countable = count > 0 && count < self.qcow2.header().refcount_width.max();
            if countable && length <= room {
                self.state.refcounts.borrow_mut().set(cluster, count + 1);
                self.pack_behind(host, length);
                return Ok(Ok((host, cluster..cluster + 1)));
            }
            let next = match self.take(COMPRESSED, 1, None, tables).await? {
                Ok(next) => next.start,
                Err(needs) => return Ok(Err(needs)),
            };
            self.no_longer_virgin((next + 1) * cluster_size.bytes());
            // Taking may have dropped the block again.
            if countable && next == cluster + 1 {
                let reservation = Reservation::new(self.state, next..next + 1);
                self.load_block(index).await?;
                self.state.refcounts.borrow_mut().set(cluster, count + 1);
                reservation.keep();
                self.pack_behind(host, length);
                return Ok(Ok((host, cluster..cluster + 2)));
            }
            return Ok(Ok(self.pack_into(next, length)));
        }
        match self.take(COMPRESSED, 1, None, tables).await? {
            Ok(clusters) => {
                self.no_longer_virgin(clusters.end * cluster_size.bytes());
                Ok(Ok(self.pack_into(clusters.start, length)))
            }
            Err(needs) => Ok(Err(needs)),
        }
    }

    fn pack_into(&self, cluster: u64, length: u64) -> (HostOffset, Range<u64>) {
        let host = HostOffset(cluster * self.cluster_bytes());
        self.pack_behind(host, length);
        (host, cluster..cluster + 1)
    }

    /// The next compressed cluster may begin where this one ends, unless that is where a host cluster ends.
    fn pack_behind(&self, host: HostOffset, length: u64) {
        let next = HostOffset(host.0 + length);
        let inside = !next.is_aligned(self.cluster_bytes());
        self.state.packing.set(inside.then_some(next));
    }
}
