//! Resizing the disk: a transaction, in which what a longer disk would show of the past becomes zeros.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::image::change::tree::L2Table;
use crate::image::change::{Engine, Preallocation, ResizeOptions};
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::{Image, Layer};
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{Autoclear, COPIED, Encryption, MAX_L1_BYTES, Version};
use crate::storage::{Storage, in_zeros};
use crate::units::{GuestOffset, HostOffset, SECTOR};

impl<S: Storage> Image<S> {
    /// Makes the disk `size` bytes long: a multiple of 512, but for a raw image. New bytes read as zeros, but
    /// for those of a plain LUKS image, which were never encrypted. Two flushes, where nothing else waits for
    /// one and the backing file does not reach into what is added.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for a size that the format cannot have; [`Error::Refused`] for a smaller size
    /// where `options` do not allow it; those of [`flush`](Image::flush).
    pub async fn resize(&self, size: u64, options: &ResizeOptions) -> Result<()> {
        if !size.is_multiple_of(SECTOR) && matches!(self.top(), Layer::Qcow2(_)) {
            return Err(Error::OutOfRange(
                "The new size must be a multiple of 512".into(),
            ));
        }
        if size < self.virtual_size() && !options.shrink {
            return Err(Error::Refused(
                "Making the disk smaller deletes what lies past its new end, and was not asked for"
                    .into(),
            ));
        }
        match self.engine()? {
            Some(engine) => self.heed(engine.resize(size, options.preallocation)).await,
            None => self.resize_raw(size, options.preallocation).await,
        }
    }

    async fn resize_raw(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let (Layer::Raw(raw), Some(state)) = (self.top(), &self.changing) else {
            return Ok(());
        };
        if preallocation == Preallocation::Metadata {
            return Err(Error::Unsupported(
                "Unsupported preallocation mode: metadata".into(),
            ));
        }
        let _held = state.ranges.lock_all().await;
        let old = raw.file_len() - raw.start();
        if size < old {
            state.check_unwatched()?;
        }
        let failed = |error| Error::io("Could not resize file", size, error);
        raw.set_len(size).await.map_err(failed)?;
        if preallocation != Preallocation::Off {
            // The one way to have space that a storage offers.
            let write = async |at, zeros: &[u8]| raw.write(GuestOffset(at), zeros).await;
            in_zeros(old..size, write).await.map_err(failed)?;
        }
        Ok(())
    }
}

impl<S: Storage> Engine<'_, S> {
    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let header = self.qcow2.header();
        if header.version == Version::V2 && header.snapshots.entries > 0 {
            return Err(Error::Unsupported(
                "Can't resize a v2 image which has snapshots".into(),
            ));
        }
        let l1_entries = header.l1_entries_for(size);
        if l1_entries > MAX_L1_BYTES / 8 {
            return Err(Error::OutOfRange(
                "Failed to grow the L1 table: File too large".into(),
            ));
        }
        let _held = Exclusive::new(self).await?;
        self.check_bitmaps_can_be(size).await?;
        let old = self.qcow2.header().size;
        if size < old {
            self.state.check_unwatched()?;
            self.shrink(size).await
        } else {
            self.grow(old, size, preallocation).await
        }
    }

    async fn grow(&self, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
        self.check_guest_data()?; // Or the backing file could show through.
        let preallocation = match preallocation {
            // Every cluster of the disk is in the data file.
            Preallocation::Off if self.data_file_is_raw() => Preallocation::Metadata,
            other => other,
        };
        let mut l1 = self.qcow2.root.borrow().l1.clone();
        let entries = self.qcow2.header().l1_entries_for(size) as usize;
        l1.resize(entries.max(l1.len()), 0);
        let mut shadow = Shadow::new(self);
        self.keep_home(&mut shadow);
        let coverage = self.qcow2.header().l1_coverage();
        let prepared = match preallocation {
            _ if !upheld(OrderingPoint::ZeroBeforeGrow) => old,
            Preallocation::Off => self.hidden_past(old, size).await?.end,
            _ => size,
        };
        let mut at = old;
        while at < prepared {
            let index = at / coverage;
            let end = prepared.min((index + 1) * coverage);
            let entry = &mut l1[index as usize];
            *entry = prepare_table(&mut shadow, *entry, at..end, preallocation).await?;
            at = end;
        }
        if l1 != self.qcow2.root.borrow().l1 {
            shadow.replace_l1(&l1).await?;
        }
        // No entry points past the end of the file.
        let end = self.state.virgin_from.get();
        if preallocation != Preallocation::Off && self.state.physical_len.get() < end {
            self.set_len(end).await?;
        }
        self.grow_data_file(old, size, preallocation).await?;
        shadow.header.size = size;
        let snapshots = self.qcow2.snapshots().to_vec();
        self.finish(shadow, l1, snapshots).await
    }

    async fn grow_data_file(
        &self,
        old: u64,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let raw = self.qcow2.header().autoclear.has(Autoclear::DATA_FILE_RAW);
        let Some(file) = &self.qcow2.data_file else {
            return Ok(());
        };
        let failed = |error| Error::io("Failed to resize the data file", size, error);
        if !raw && preallocation == Preallocation::Off {
            return Ok(());
        }
        let length = file.storage.len().await.map_err(failed)?;
        let end = match raw {
            // As in QEMU, what somebody has put there for the disk to grow into is the disk's.
            true => length.max(old),
            // What it held past the disk's end is not the disk's.
            false => old,
        };
        if end < length {
            file.storage.set_len(end).await.map_err(failed)?;
        }
        if end < size {
            file.storage.set_len(size).await.map_err(failed)?;
        }
        self.state.data_unflushed.set(true);
        // Encrypted zeros are written cluster by cluster.
        let encrypted = self.qcow2.header().encryption != Encryption::None;
        if preallocation.reserves() && !encrypted {
            let write = async |at, zeros: &[u8]| file.storage.write_at(at, zeros).await;
            in_zeros(end..size, write).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the backing file goes on behind byte `end`.
    fn shows_longer_backing(&self, end: u64) -> bool {
        let backing = self.image.layers().get(1);
        backing.is_some_and(|backing| backing.virtual_size() > end)
    }

    /// What would be seen of the past if the disk only said that it is longer: the rest of its last cluster,
    /// a longer backing file, what was prepared or left behind past its end.
    async fn hidden_past(&self, old: u64, size: u64) -> Result<Range<u64>> {
        let mut hidden = old..old;
        let mut at = old;
        while at < size {
            let (zeros, length) = self.image.zeros_at(at, size - at).await?;
            at += length;
            if !zeros {
                hidden.end = at;
            }
        }
        Ok(hidden)
    }

    async fn shrink(&self, size: u64) -> Result<()> {
        let coverage = self.qcow2.header().l1_coverage();
        let mut shadow = Shadow::new(self);
        shadow.drops_empty_blocks = true;
        self.keep_home(&mut shadow);
        let old_l1 = self.qcow2.root.borrow().l1.clone();
        let mut l1 = old_l1.clone();
        for (index, entry) in l1.iter_mut().enumerate() {
            let start = index as u64 * coverage;
            if start + coverage <= size {
                continue;
            }
            let Some((offset, mut table)) = self.read_l2(*entry).await? else {
                continue;
            };
            let cluster = self.cluster_of(offset);
            let kept = size.saturating_sub(start).div_ceil(self.cluster_bytes()) as usize;
            shadow.add_references(&table, kept, -1).await?;
            let cut = cut_off(&mut table, kept);
            if kept == 0 {
                shadow.add(cluster..cluster + 1, -1).await?;
                *entry = 0;
            } else if cut {
                // A copy: the old table is the old state's, or a snapshot's.
                let copy = shadow.write_l2(&table).await?;
                self.note_aside(copy, offset);
                shadow.add(cluster..cluster + 1, -1).await?;
                *entry = copy | COPIED;
            }
        }
        if l1 != old_l1 {
            shadow.replace_l1(&l1).await?;
        }
        shadow.header.size = size;
        let snapshots = self.qcow2.snapshots().to_vec();
        if !upheld(OrderingPoint::TruncateAfterSwitch) {
            self.set_len(self.cluster_bytes()).await?;
        }
        self.finish(shadow, l1, snapshots).await?;
        self.cut_file().await?;
        if let Some(file) = &self.qcow2.data_file
            && self.qcow2.header().autoclear.has(Autoclear::DATA_FILE_RAW)
        {
            let resized = file.storage.set_len(size).await;
            resized.map_err(|error| Error::io("Failed to resize the data file", size, error))?;
        }
        Ok(())
    }

    /// Cuts off the free clusters at the end of the file. The header no longer needs them, durably.
    pub(super) async fn cut_file(&self) -> Result<()> {
        self.cut_file_to(0).await
    }

    /// The same of what lies behind byte `length`.
    pub(super) async fn cut_file_to(&self, length: u64) -> Result<()> {
        let blocks = self.state.refcounts.borrow().table.len() as u64;
        for index in (0..blocks).rev() {
            self.load_block(index).await?;
            if let Some(last) = self.last_used_in(index) {
                let end = self.end_of_cluster(last).max(length);
                if end < self.state.physical_len.get() {
                    self.set_len(end).await?;
                    self.qcow2.file_len.set(end);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// The byte behind what is in `cluster`, in whole sectors: the bitmap directory ends the file where it ends.
    fn end_of_cluster(&self, cluster: u64) -> u64 {
        let end = (cluster + 1) * self.cluster_bytes();
        let bitmaps = self.qcow2.extensions().bitmaps;
        let directory = bitmaps.map_or(end, |it| it.directory.0 + it.directory_bytes);
        match end - self.cluster_bytes() < directory && directory < end {
            true => directory.next_multiple_of(SECTOR),
            false => end,
        }
    }

    /// The last cluster in use of those that a refcount block counts, which is loaded.
    fn last_used_in(&self, index: u64) -> Option<u64> {
        let refcounts = self.state.refcounts.borrow();
        let block = refcounts.block(index)?;
        let used = |entry: &usize| refcounts.width.get(block, *entry) != 0;
        let last = (0..refcounts.per_block() as usize).rev().find(used)?;
        Some(index * refcounts.per_block() + last as u64)
    }
}

/// Unlinks the entries `from..` of a table; whether there were any.
fn cut_off(table: &mut L2Table, from: usize) -> bool {
    let mut any = false;
    for index in from..table.len() {
        any |= table.entry(index) != L2Entry::UNALLOCATED;
        table.set(index, L2Entry::UNALLOCATED);
    }
    any
}

/// The entry of an L2 table that is made ready for what a longer disk will show of it: the guest bytes in
/// `guest`, which all lie past the end of the disk as it is.
async fn prepare_table<S: Storage>(
    shadow: &mut Shadow<'_, '_, S>,
    entry: u64,
    guest: Range<u64>,
    preallocation: Preallocation,
) -> Result<u64> {
    let engine = shadow.engine;
    let size = engine.cluster_bytes();
    let coverage = engine.qcow2.header().l1_coverage();
    let (old, mut table) = match engine.read_l2(entry).await? {
        Some((offset, table)) => (Some(offset), table),
        None => (None, L2Table::empty(engine.qcow2.l2_format)),
    };
    let mut places = Places::default();
    // As QEMU: where the backing file reaches there, new clusters are zeros by their entries too.
    let shows_backing = engine.shows_longer_backing(engine.qcow2.virtual_size());
    let mut changed = false;
    let mut cluster = guest.start / size * size;
    while cluster < guest.end {
        let index = (cluster % coverage / size) as usize;
        let before = table.entry(index);
        // Where the disk ended within a cluster that nothing is in, this is preallocated too.
        let whole = cluster >= guest.start
            || preallocation != Preallocation::Off
                && before == L2Entry::UNALLOCATED
                && engine.image.known_zeros(cluster, guest.start).await?;
        let after = if !whole {
            zero_tail(shadow, cluster, guest.start, before).await?
        } else if preallocation == Preallocation::Off {
            zero_cluster(shadow, cluster).await?
        } else {
            let wanted = (guest.end - cluster).div_ceil(size);
            let host = places.next(shadow, cluster, wanted, preallocation).await?;
            let all = engine.qcow2.l2_format.granules(0, size);
            let entry = engine.qcow2.l2_format.data_entry(host, all, 0);
            let by_entry = engine.qcow2.header().version >= Version::V3;
            match shows_backing && by_entry && !preallocation.reserves() {
                true => engine.qcow2.l2_format.zero_entry(entry, all),
                false => entry,
            }
        };
        if after != before {
            changed = true;
            if table.host_cluster(index) != host_of(engine, after)
                && let Some(run) = table.references_of(index)
            {
                shadow.add(run, -1).await?;
            }
            table.set(index, after);
        }
        cluster += size;
    }
    if !changed {
        return Ok(entry);
    }
    let copy = shadow.write_l2(&table).await?;
    if let Some(offset) = old {
        engine.note_aside(copy, offset);
        let cluster = engine.cluster_of(offset);
        shadow.add(cluster..cluster + 1, -1).await?;
    }
    Ok(copy | COPIED)
}

fn host_of<S: Storage>(engine: &Engine<'_, S>, entry: L2Entry) -> Option<u64> {
    let host = engine.qcow2.l2_format.host_cluster(entry)?;
    Some(engine.cluster_of(host.0))
}

/// The disk ended at byte `end` of this cluster, of which the rest will read as zeros.
async fn zero_tail<S: Storage>(
    shadow: &mut Shadow<'_, '_, S>,
    cluster: u64,
    end: u64,
    entry: L2Entry,
) -> Result<L2Entry> {
    let engine = shadow.engine;
    let format = engine.qcow2.l2_format;
    let size = format.cluster_size.bytes();
    if engine.image.known_zeros(end, cluster + size).await? {
        return Ok(entry);
    }
    let found = engine.cluster_at(cluster).await?;
    let within = end - cluster;
    let all = format.granules(0, size);
    if let Some(own) = found.own
        && found.data & format.granules(within, within + 1) != 0
    {
        // In place: nobody sees what lies past the end of the disk.
        let granule_end = format.granule_floor(within) + format.granule_bytes();
        // Encrypted sectors go as a whole, and the guest sees none of this one.
        let from = within / SECTOR * SECTOR;
        let zeros = vec![0; (granule_end - from) as usize];
        let place = HostOffset(own.0 + from);
        engine.write_content(cluster + from, place, &zeros).await?;
        return Ok(match granule_end < size {
            true => format.zero_entry(entry, format.granules(granule_end, size)),
            false => entry,
        });
    }
    let mut bytes = vec![0; size as usize];
    let seen = &mut bytes[..within as usize];
    engine.image.read_held(GuestOffset(cluster), seen).await?;
    let host = match format.data_file {
        true => HostOffset(cluster),
        false => HostOffset(shadow.allocate(1).await?.start * size),
    };
    engine.write_content(cluster, host, &bytes).await?;
    Ok(format.data_entry(host, all, 0))
}

/// An entry that reads as zeros whatever the backing file has.
async fn zero_cluster<S: Storage>(shadow: &mut Shadow<'_, '_, S>, cluster: u64) -> Result<L2Entry> {
    let engine = shadow.engine;
    let format = engine.qcow2.l2_format;
    let size = format.cluster_size.bytes();
    let all = format.granules(0, size);
    if engine.qcow2.header().version >= Version::V3 {
        return Ok(format.zero_entry(L2Entry::UNALLOCATED, all));
    }
    let backing = engine.image.layers().get(1);
    if backing.is_none_or(|backing| backing.virtual_size() <= cluster) {
        return Ok(L2Entry::UNALLOCATED);
    }
    let host = HostOffset(shadow.allocate(1).await?.start * size);
    let zeros = vec![0; size as usize];
    engine.write_content(cluster, host, &zeros).await?;
    Ok(format.data_entry(host, all, 0))
}

/// Host clusters that read as zeros, for guest clusters one after the other.
#[derive(Default)]
struct Places {
    free: Range<u64>,
}

impl Places {
    /// As many clusters as are looked for in one piece.
    const MOST: u64 = 64;

    async fn next<S: Storage>(
        &mut self,
        shadow: &mut Shadow<'_, '_, S>,
        cluster: u64,
        wanted: u64,
        preallocation: Preallocation,
    ) -> Result<HostOffset> {
        let engine = shadow.engine;
        let size = engine.cluster_bytes();
        // No other bytes than those that were encrypted are decrypted to zeros.
        let encrypted = engine.qcow2.header().encryption != Encryption::None;
        if engine.qcow2.l2_format.data_file {
            let host = HostOffset(cluster);
            if encrypted {
                let zeros = vec![0; size as usize];
                engine.write_content(cluster, host, &zeros).await?;
            }
            return Ok(host);
        }
        if self.free.is_empty() {
            let virgin_from = engine.state.virgin_from.get();
            self.free = shadow.allocate(wanted.min(Self::MOST)).await?;
            let start = self.free.start * size;
            if preallocation.reserves() || start < virgin_from || encrypted {
                let zeros = vec![0; size as usize];
                for (index, place) in self.free.clone().enumerate() {
                    let host = HostOffset(place * size);
                    let guest = cluster + index as u64 * size;
                    engine.write_content(guest, host, &zeros).await?;
                }
            }
        }
        let cluster = self.free.start;
        self.free.start += 1;
        Ok(HostOffset(cluster * size))
    }
}
