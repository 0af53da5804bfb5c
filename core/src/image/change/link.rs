//! L2 entries as they change in memory, and the tables that they are in.

use std::rc::Rc;

use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::change::allocate::{For, NeedsBlock};
use crate::image::change::refcounts::Metadata;
use crate::image::change::state::Reservation;
use crate::image::lock::RangeGuard;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{COPIED, OFFSET_MASK};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, SECTOR};

impl<S: Storage> Engine<'_, S> {
    /// From now on guest cluster `guest` is host cluster `host`, whose granules in `data` hold data and
    /// those in `zeros` read as zeros.
    pub async fn link_data(
        &self,
        guest: u64,
        host: HostOffset,
        data: u64,
        zeros: u64,
    ) -> Result<()> {
        let entry = self.qcow2.l2_format.data_entry(host, data, zeros);
        self.link(guest, entry).await
    }

    /// Sets the entry of guest cluster `guest`. What the old entry held and the new one does not goes into
    /// quarantine.
    pub async fn link(&self, guest: u64, entry: L2Entry) -> Result<()> {
        loop {
            let tables = self.state.tables.lock_all().await;
            match self.writable_table(guest, &tables).await? {
                Ok(table) => {
                    let old = self.set_entry(table, guest, entry).await?;
                    self.unlink_entry(old, entry);
                    return Ok(());
                }
                Err(needs) => {
                    drop(tables);
                    self.count_more(needs).await?;
                }
            }
        }
    }

    /// Quarantine (M4): the clusters of `old` keep their refcounts until losing them is durable.
    fn unlink_entry(&self, old: L2Entry, new: L2Entry) {
        let format = self.qcow2.l2_format;
        if format.data_file {
            return; // Nothing counts the clusters of a data file.
        }
        if let Some(compressed) = format.compressed(old) {
            for cluster in format.clusters_of(compressed) {
                self.state.unlink(cluster);
            }
        } else if let Some(host) = format.host_cluster(old)
            && format.host_cluster(new) != Some(host)
        {
            if !host.is_aligned(format.cluster_size.bytes()) {
                // Whose it is nobody can say.
                let what = format!("Cannot free unaligned cluster {host:#x}");
                let place = Place::of(Structure::L2Table);
                return self.qcow2.alarm.note(what, place);
            }
            self.state.unlink(format.cluster_size.index_of(host.0));
        }
    }

    async fn set_entry(&self, table: HostOffset, guest: u64, entry: L2Entry) -> Result<L2Entry> {
        let format = self.qcow2.l2_format;
        let tables = &self.qcow2.tables;
        let coverage = self.qcow2.header().l1_coverage();
        let in_table = format.cluster_size.index_of(guest % coverage) * format.entry_bytes();
        let in_slice = in_table % tables.slice_bytes();
        let slice_at = HostOffset(table.0 + in_table - in_slice);
        let mut slice = tables
            .slice(
                &self.qcow2.file.storage,
                slice_at,
                "Could not read L2 table",
            )
            .await?;
        let index = (in_slice / format.entry_bytes()) as usize;
        let old = format.entry(&slice, index).unwrap_or(L2Entry::UNALLOCATED);
        if old != entry {
            // A copy where a commit holds the slice as it was.
            format.set_entry(Rc::make_mut(&mut slice), index, entry);
            tables.change(slice_at, slice);
        }
        Ok(old)
    }

    /// Whatever the L1 table says, no other metadata is written over as an L2 table (QEMU-COMPAT rule 43).
    pub fn check_table(&self, guest: u64) -> Result<()> {
        let index = (guest / self.qcow2.header().l1_coverage()) as usize;
        let entry = self.qcow2.root.borrow().l1.get(index).copied();
        let entry = entry.unwrap_or(0);
        let offset = entry & OFFSET_MASK;
        if entry & COPIED == 0 || offset == 0 {
            return Ok(());
        }
        let cluster = self.qcow2.l2_format.cluster_size.index_of(offset);
        let refcounts = self.state.refcounts.borrow();
        match refcounts.metadata_in(&(cluster..cluster + 1), Some(Metadata::ActiveL2)) {
            Some(kind) if HostOffset(offset).is_aligned(self.cluster_bytes()) => {
                Err(self.qcow2.alarm.raise(kind.in_the_way(offset)))
            }
            _ => Ok(()),
        }
    }

    /// The L2 table that covers `guest`, in a cluster that is the active state's own.
    pub async fn writable_table(
        &self,
        guest: u64,
        held: &RangeGuard<'_>,
    ) -> Result<Result<HostOffset, NeedsBlock>> {
        let index = (guest / self.qcow2.header().l1_coverage()) as usize;
        self.check_table(guest)?;
        let old = self.qcow2.l2_table(GuestOffset(guest))?;
        let entry = self.qcow2.root.borrow().l1.get(index).copied();
        let Some(entry) = entry else {
            return Err(Error::OutOfRange(
                format!("Byte {guest:#x} lies outside of the L1 table").into(),
            ));
        };
        if let Some(table) = old
            && (entry & COPIED != 0 || !upheld(OrderingPoint::CopyShared))
        {
            return Ok(Ok(table));
        }
        let clusters = match self.take(For::Table("L2 table"), 1, None, held).await? {
            Ok(clusters) => clusters,
            Err(needs) => return Ok(Err(needs)),
        };
        let mut reservation = Reservation::new(self.state, clusters.clone());
        let table = HostOffset(clusters.start * self.cluster_bytes());
        self.no_longer_virgin(table.0 + self.cluster_bytes());
        self.fill_table(table, old).await?;
        self.qcow2.root.borrow_mut().l1[index] = table.0 | COPIED;
        {
            let mut epoch = self.state.epoch.borrow_mut();
            epoch.l1_sectors.insert(index / (SECTOR as usize / 8));
            epoch.new_tables.insert(table.0);
        }
        reservation.linked_all();
        if entry & OFFSET_MASK != 0 {
            let cluster = self
                .qcow2
                .l2_format
                .cluster_size
                .index_of(entry & OFFSET_MASK);
            self.state.unlink(cluster);
            // Where it was nobody else's after all, it becomes free.
            let mut refcounts = self.state.refcounts.borrow_mut();
            refcounts.unprotect(Metadata::ActiveL2, cluster);
        }
        Ok(Ok(table))
    }

    /// Makes `table` a copy of `old`, or empty.
    async fn fill_table(&self, table: HostOffset, old: Option<HostOffset>) -> Result<()> {
        let tables = &self.qcow2.tables;
        let empty: Rc<[u64]> = vec![0; (tables.slice_bytes() / 8) as usize].into();
        for at in (0..self.cluster_bytes()).step_by(tables.slice_bytes() as usize) {
            let slice = match old {
                None => empty.clone(),
                Some(old) => {
                    let from = HostOffset(old.0 + at);
                    tables
                        .slice(&self.qcow2.file.storage, from, "Could not read L2 table")
                        .await?
                }
            };
            tables.change(HostOffset(table.0 + at), slice);
        }
        Ok(())
    }
}
