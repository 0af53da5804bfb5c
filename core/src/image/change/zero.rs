//! Zeros and discards: entries that say so, where the format can; else zeros that are written.

use crate::error::Result;
use crate::image::change::guest::Cluster;
use crate::image::change::{Engine, ZeroMode};
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{Autoclear, Version};
use crate::storage::{Storage, in_zeros};
use crate::units::GuestOffset;

impl<S: Storage> Engine<'_, S> {
    /// Makes `start..end` of the guest's disk read as zeros; the range is locked.
    pub async fn zero_guest(&self, start: u64, end: u64, mode: ZeroMode) -> Result<()> {
        let format = self.qcow2.l2_format;
        let by_entry = self.qcow2.header().version >= Version::V3;
        if self.data_file_is_raw() {
            // The data file alone must read as the disk does.
            self.zero_data_file(start, end).await?;
        }
        let mut at = start;
        if format.extended {
            at = self.zero_by_subclusters(start, end, mode).await?;
        }
        while at < end {
            let size = format.cluster_size.bytes();
            let whole = at.is_multiple_of(size) && at + size <= end;
            if whole && by_entry && self.is_unaligned(self.entry_to_drop(at).await?) {
                let all = format.granules(0, size);
                self.link(at, format.zero_entry(L2Entry::UNALLOCATED, all))
                    .await?;
                at += size;
                continue;
            }
            let cluster = self.cluster_at(at).await?;
            let within = at - cluster.guest;
            let part_end = (end - cluster.guest).min(format.cluster_size.bytes());
            // The end of the disk ends its last granule.
            let to_the_end = cluster.guest + part_end == self.qcow2.virtual_size();
            let until = if to_the_end {
                part_end.next_multiple_of(format.granule_bytes())
            } else {
                part_end
            };
            let first = within.div_ceil(format.granule_bytes()) * format.granule_bytes();
            let last = format.granule_floor(until);
            if !by_entry {
                self.zero_v2(&cluster, within, part_end, until, mode)
                    .await?;
            } else if first < last {
                let guest = cluster.guest;
                self.zero_parts(at, guest + first, mode).await?;
                self.zero_parts(guest + last, guest + part_end, mode)
                    .await?;
                // Those may have changed the entry.
                let cluster = self.cluster_at(guest).await?;
                self.zero_granules(&cluster, format.granules(first, last), mode)
                    .await?;
            } else {
                self.zero_parts(at, cluster.guest + part_end, mode).await?;
            }
            at = cluster.guest + part_end;
            self.commit_if_full().await?;
        }
        Ok(())
    }

    /// What comes before whole subclusters. A compressed cluster has none: where one is to lose a part of them, the zeros
    /// of all whole subclusters are written, as in QEMU, if they are not too many. Returns how far everything is done.
    async fn zero_by_subclusters(&self, start: u64, end: u64, mode: ZeroMode) -> Result<u64> {
        let format = self.qcow2.l2_format;
        let granule = format.granule_bytes();
        let first = start.next_multiple_of(granule);
        let last = match end == self.qcow2.virtual_size() {
            true => end,
            false => end / granule * granule,
        };
        if first >= last {
            return Ok(start);
        }
        /// The most that QEMU writes at once where entries cannot say it.
        const MOST: u64 = 16 << 20;
        if last - first > MOST {
            return Ok(start);
        }
        self.zero_parts(start, first, mode).await?;
        let size = format.cluster_size.bytes();
        for edge in [first, last] {
            if !edge.is_multiple_of(size) && self.cluster_at(edge).await?.entry.is_compressed() {
                if start < first {
                    self.commit(None).await?; // They may go where the first of them stood compressed.
                }
                self.write_zeros(first, last).await?;
                return Ok(last);
            }
        }
        Ok(first)
    }

    /// The entry of the guest cluster that starts at `guest`, of which nothing will be left: it may point to
    /// where no cluster begins.
    async fn entry_to_drop(&self, guest: u64) -> Result<L2Entry> {
        let guest = GuestOffset(guest);
        match self.qcow2.stored_entry(guest).await? {
            None => Ok(L2Entry::UNALLOCATED),
            Some((entry, _)) if self.is_unaligned(entry) => Ok(entry),
            Some((entry, place)) => self.qcow2.check_entry(entry, guest, place),
        }
    }

    fn is_unaligned(&self, entry: L2Entry) -> bool {
        let format = self.qcow2.l2_format;
        let host = format.host_cluster(entry).filter(|_| !format.data_file);
        host.is_some_and(|host| !host.is_aligned(format.cluster_size.bytes()))
    }

    /// Whole granules: by the entry.
    async fn zero_granules(&self, cluster: &Cluster, granules: u64, mode: ZeroMode) -> Result<()> {
        let format = self.qcow2.l2_format;
        let all = format.granules(0, format.cluster_size.bytes());
        let old = cluster.entry;
        let allocated = format.host_cluster(old).is_some();
        let entry = if granules == all {
            let unmap = old.is_compressed() || (mode == ZeroMode::Unmap && allocated);
            let kept = if unmap { L2Entry::UNALLOCATED } else { old };
            format.zero_entry(kept, all)
        } else if old.is_compressed() {
            // A compressed cluster has no subclusters.
            let start = u64::from(granules.trailing_zeros()) * format.granule_bytes();
            let end = u64::from(64 - granules.leading_zeros()) * format.granule_bytes();
            return self
                .write_zeros(cluster.guest + start, cluster.guest + end)
                .await;
        } else {
            format.zero_entry(old, granules)
        };
        if entry == old {
            return Ok(());
        }
        self.link(cluster.guest, entry).await
    }

    /// Parts of granules, where entries can say that a granule is zeros. One that reads as zeros beside its part
    /// too becomes zeros as a whole, as in QEMU, so that nothing shows through later; in others zeros are written.
    async fn zero_parts(&self, start: u64, end: u64, mode: ZeroMode) -> Result<()> {
        let format = self.qcow2.l2_format;
        let mut at = start;
        while at < end {
            let cluster = self.cluster_at(at).await?;
            let first = format.granule_floor(at - cluster.guest);
            let granule = cluster.guest + first;
            let granule_end = granule + format.granule_bytes();
            let part_end = end.min(granule_end);
            let mask = format.granules(first, first + format.granule_bytes());
            let on_disk = granule_end.min(self.qcow2.virtual_size());
            let holds_data = cluster.entry.is_compressed() || cluster.data & mask != 0;
            let alone = !holds_data
                && self.image.known_zeros(granule, at).await?
                && self.image.known_zeros(part_end, on_disk).await?;
            if alone {
                self.zero_granules(&cluster, mask, mode).await?;
            } else {
                self.write_zeros(at, part_end).await?;
            }
            at = part_end;
        }
        Ok(())
    }

    /// Parts of clusters, where no entry can say that something is zeros: those are written, unless it reads as
    /// zeros anyway.
    async fn zero_by_writing(&self, start: u64, end: u64) -> Result<()> {
        if start >= end || self.image.known_zeros(start, end).await? {
            return Ok(());
        }
        self.write_zeros(start, end).await
    }

    /// Version 2 has no zero flag.
    async fn zero_v2(
        &self,
        cluster: &Cluster,
        within: u64,
        end: u64,
        until: u64,
        mode: ZeroMode,
    ) -> Result<()> {
        let whole = within == 0 && until == self.cluster_bytes();
        let alone = self.qcow2.backing().is_none();
        if whole && alone && (mode == ZeroMode::Unmap || cluster.entry.is_compressed()) {
            if cluster.entry != L2Entry::UNALLOCATED {
                self.link(cluster.guest, L2Entry::UNALLOCATED).await?;
            }
            return Ok(());
        }
        let (start, end) = (cluster.guest + within, cluster.guest + end);
        match alone {
            true => self.zero_by_writing(start, end).await,
            // Zeros over a backing file are always written, as in QEMU: what it shows there may change.
            false => self.write_zeros(start, end).await,
        }
    }

    /// Writes zeros into a data file that reads as the disk does; no entry changes by it.
    async fn zero_data_file(&self, start: u64, end: u64) -> Result<()> {
        if self.qcow2.volume()?.is_some() {
            return self.write_zeros(start, end).await; // Nobody reads an encrypted one by itself.
        }
        in_zeros(start..end, async |at, zeros: &[u8]| {
            self.write_data(at, zeros).await
        })
        .await
    }

    pub(super) async fn write_zeros(&self, start: u64, end: u64) -> Result<()> {
        in_zeros(start..end, async |at, zeros: &[u8]| {
            self.write_guest(GuestOffset(at), zeros).await
        })
        .await
    }

    /// Gives back the whole clusters in `start..end`, which read as zeros from then on; the range is
    /// locked. What lies beside whole clusters stays as it is.
    pub async fn discard_guest(&self, start: u64, end: u64) -> Result<()> {
        let format = self.qcow2.l2_format;
        let size = format.cluster_size.bytes();
        let v3 = self.qcow2.header().version >= Version::V3;
        let alone = self.qcow2.backing().is_none();
        if !v3 && !alone {
            return Ok(()); // It would let the backing file show through (QEMU-COMPAT rule 39).
        }
        let mut at = start.next_multiple_of(size);
        // The end of the disk ends its last cluster.
        let end = match end == self.qcow2.virtual_size() {
            true => end.next_multiple_of(size),
            false => end / size * size,
        };
        let coverage = self.qcow2.header().l1_coverage();
        while at < end {
            if alone && self.qcow2.l2_table(GuestOffset(at))?.is_none() {
                at = (at / coverage + 1) * coverage; // Nothing is allocated in all of it.
                continue;
            }
            let entry = self.entry_to_drop(at).await?;
            let allocated = entry.is_compressed() || format.host_cluster(entry).is_some();
            if allocated || !alone {
                if self.data_file_is_raw() {
                    self.zero_data_file(at, (at + size).min(self.qcow2.virtual_size()))
                        .await?;
                }
                let all = format.granules(0, size);
                let new = match v3 {
                    true => format.zero_entry(L2Entry::UNALLOCATED, all),
                    false => L2Entry::UNALLOCATED,
                };
                if new != entry {
                    self.link(at, new).await?;
                }
            }
            at += size;
            self.commit_if_full().await?;
        }
        Ok(())
    }

    pub(super) fn data_file_is_raw(&self) -> bool {
        let header = self.qcow2.header();
        header.has_data_file() && header.autoclear.has(Autoclear::DATA_FILE_RAW)
    }
}
