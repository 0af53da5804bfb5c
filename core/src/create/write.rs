//! Writing a new image: everything but the first sector, a flush, the first sector, a flush.

use crate::create::layout::{Geometry, Group, Layout};
use crate::create::{NewEncryption, Plan};
use crate::crypto::NewLuksHeader;
use crate::error::{Error, Result};
use crate::image::Preallocation;
use crate::qcow2::COPIED;
use crate::storage::{Storage, in_zeros};
use crate::units::SECTOR;

/// How much is written at a time where nothing else says so.
const PIECE: usize = 1 << 20;

/// A storage on its way to becoming an image.
struct Target<'a, S> {
    storage: &'a S,
    /// Whether what was not written reads as zeros.
    zeros: bool,
}

pub(super) async fn write<S: Storage>(
    storage: &S,
    data_file: Option<&S>,
    plan: &Plan,
) -> Result<()> {
    let Plan {
        geometry, layout, ..
    } = plan;
    let image = Target::emptied(storage).await?;
    if let Some(data_file) = data_file {
        let data = Target::emptied(data_file).await?;
        let length = layout.data_file_len(geometry);
        data.grow(length).await?;
        if plan.writes_zeros(data.zeros) {
            data.zeros(0, length).await?;
        }
        // Durable before an image says that its data is there.
        data.flush().await?;
    }

    image.grow(layout.file_len(geometry)).await?;
    if let Some(NewEncryption::Luks(luks)) = &plan.encryption {
        let at = layout.encryption_header_offset;
        image.luks(at, luks.start(), luks.length()).await?;
    }
    image.refcounts(geometry, layout).await?;
    image.mappings(plan).await?;
    let (header, names) = plan.header_area.split_at(SECTOR as usize);
    if !names.is_empty() {
        image.write(SECTOR, names).await?;
    }

    // Publish (M5): everything that the header points to is durable before the header is there; until then
    // the file does not begin with the magic number.
    image.flush().await?;
    // One sector: it is there as a whole or not at all (M6).
    image.write(0, header).await?;
    image.flush().await
}

/// Writes a disk of `size` bytes behind a LUKS header, in place of everything that is there. As with qcow2, what
/// is recognised by its first sector is whole.
pub(super) async fn write_luks<S: Storage>(
    storage: &S,
    header: &NewLuksHeader,
    size: u64,
) -> Result<()> {
    let image = Target::emptied(storage).await?;
    let length = header.length().checked_add(size);
    let length = length.filter(|&length| length <= i64::MAX as u64);
    image.grow(length.ok_or_else(too_large_file)?).await?;
    // The magic number stays away until the rest of the header and the first key slot are durable.
    let (first, rest) = header.start().split_at(SECTOR as usize);
    image.luks(SECTOR, rest, header.length() - SECTOR).await?;
    image.flush().await?;
    image.write(0, first).await?;
    image.flush().await
}

fn too_large_file() -> Error {
    Error::OutOfRange("The requested file size is too large".into())
}

impl Plan {
    /// Whether every byte of data is written.
    fn writes_zeros(&self, zeros: bool) -> bool {
        match self.preallocation {
            Preallocation::Off => false,
            // What the guest would find there otherwise is somebody else's.
            Preallocation::Metadata => !zeros,
            // A storage has no other way to make sure that there is room.
            Preallocation::Falloc | Preallocation::Full => true,
        }
    }
}

impl<'a, S: Storage> Target<'a, S> {
    /// Makes durable that nothing of an older image is left: its tables must not be written over while its
    /// header is still there.
    async fn emptied(storage: &'a S) -> Result<Self> {
        let failed = |error| Error::io("Could not empty the file", 0, error);
        if storage.len().await.map_err(failed)? == 0 {
            return Ok(Self {
                storage,
                zeros: true,
            });
        }
        let zeros = storage.set_len(0).await.is_ok();
        if !zeros {
            // A device has the length it has: its beginning alone is enough to end the older image.
            let nothing = [0; SECTOR as usize];
            storage.write_at(0, &nothing).await.map_err(failed)?;
        }
        storage.flush().await.map_err(failed)?;
        Ok(Self { storage, zeros })
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.storage
            .write_at(offset, data)
            .await
            .map_err(|error| Error::io("Could not write the new image", offset, error))
    }

    async fn flush(&self) -> Result<()> {
        self.storage
            .flush()
            .await
            .map_err(|error| Error::io("Could not flush the new image", 0, error))
    }

    /// Makes the storage at least `length` bytes long.
    async fn grow(&self, length: u64) -> Result<()> {
        let failed = |error| Error::io("Could not resize the new image", length, error);
        if self.storage.len().await.map_err(failed)? >= length {
            return Ok(());
        }
        self.storage.set_len(length).await.map_err(failed)
    }

    async fn zeros(&self, offset: u64, length: u64) -> Result<()> {
        in_zeros(offset..offset + length, async |at, zeros: &[u8]| {
            self.write(at, zeros).await
        })
        .await
    }

    /// The beginning of a LUKS header with its key slots, which take `length` bytes.
    async fn luks(&self, offset: u64, start: &[u8], length: u64) -> Result<()> {
        let used = start.len() as u64;
        self.write(offset, start).await?;
        match self.zeros {
            true => Ok(()),
            // No key slot keeps what another image left there.
            false => self.zeros(offset + used, length - used).await,
        }
    }

    /// The refcount table and its blocks.
    async fn refcounts(&self, geometry: &Geometry, layout: &Layout) -> Result<()> {
        let cluster = geometry.cluster_size;
        let per_block = geometry.refcount_width.entries_per_block(cluster);
        let ones = |count: u64| {
            let mut block = vec![0; cluster.len()];
            for index in 0..count as usize {
                geometry.refcount_width.set(&mut block, index, 1);
            }
            block
        };
        let mut table = Stream::new(self, layout.refcount_table_offset);
        let full = ones(per_block.min(layout.clusters));
        for (index, &block) in layout.blocks.iter().enumerate() {
            let at = block << cluster.bits();
            // Every cluster up to the end of the file is in use, once.
            let counts = layout.clusters.saturating_sub(index as u64 * per_block);
            if counts >= per_block || index == 0 {
                self.write(at, &full).await?;
            } else {
                self.write(at, &ones(counts)).await?;
            }
            table.entry(at).await?;
        }
        let bytes = u64::from(layout.refcount_table_clusters) << cluster.bits();
        table.fill(bytes).await
    }

    /// The L1 table, and where clusters are preallocated the L2 tables and the data.
    async fn mappings(&self, plan: &Plan) -> Result<()> {
        let Plan {
            geometry, layout, ..
        } = plan;
        let cluster = geometry.cluster_size;
        let data_is_here = !geometry.data_file && plan.writes_zeros(self.zeros);
        let end = layout.file_len(geometry);
        let mut l1 = Stream::new(self, layout.l1_offset);
        // Data that is to be written, in one piece.
        let mut run = 0..0;
        for group in layout.groups(geometry) {
            let at = group.table << cluster.bits();
            self.write(at, &l2_table(geometry, group)).await?;
            l1.entry(at | COPIED).await?;
            let from = group.data << cluster.bits();
            let to = ((group.data + group.count) << cluster.bits()).min(end);
            if data_is_here && from == run.end {
                run.end = to;
            } else if data_is_here {
                self.zeros(run.start, run.end - run.start).await?;
                run = from..to;
            }
        }
        self.zeros(run.start, run.end - run.start).await?;
        l1.fill(u64::from(layout.l1_entries) * 8).await
    }
}

/// The table maps one cluster after the other, each owned by nobody else (M2).
fn l2_table(geometry: &Geometry, group: Group) -> Vec<u8> {
    let cluster = geometry.cluster_size;
    let mut table = vec![0; cluster.len()];
    let entries = table.chunks_exact_mut(geometry.l2_entry_bytes() as usize);
    for (entry, data) in entries.zip(group.data..group.data + group.count) {
        // The bitmap of an extended entry stays empty: a place, but no data yet.
        entry[..8].copy_from_slice(&(data << cluster.bits() | COPIED).to_be_bytes());
    }
    table
}

/// A table that is written from its beginning on, some entries at a time.
struct Stream<'a, S> {
    target: &'a Target<'a, S>,
    start: u64,
    written: u64,
    waiting: Vec<u8>,
}

impl<'a, S: Storage> Stream<'a, S> {
    fn new(target: &'a Target<'a, S>, start: u64) -> Self {
        Self {
            target,
            start,
            written: 0,
            waiting: Vec::new(),
        }
    }

    async fn entry(&mut self, entry: u64) -> Result<()> {
        self.waiting.extend_from_slice(&entry.to_be_bytes());
        if self.waiting.len() >= PIECE {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<()> {
        let at = self.start + self.written;
        self.target.write(at, &self.waiting).await?;
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Writes what waits, and zeros up to `bytes` where they are not there anyway.
    async fn fill(mut self, bytes: u64) -> Result<()> {
        if !self.waiting.is_empty() {
            self.write().await?;
        }
        if self.target.zeros {
            return Ok(());
        }
        let at = self.start + self.written;
        self.target.zeros(at, bytes - self.written).await
    }
}
