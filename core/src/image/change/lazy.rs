//! Lazy refcounts: commits may leave them behind in the file while the header says so. Whoever finds the dirty bit
//! counts anew (M8). What entries point to is ordered as ever, by the refcounts in memory, which are always right.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::{Incompatible, Version};
use crate::storage::Storage;
use crate::units::SECTOR;

/// Refcount blocks that may be behind at once: they stay in memory until they are written.
const MOST_BEHIND: usize = 64;

impl<S: Storage> Image<S> {
    /// Has later changes leave the refcounts in the file behind, until the image is [closed](Self::close): fewer
    /// writes, and a repair of the refcounts with the first change after a crash. Nothing else is at stake. Without
    /// effect on images that have no place for the mark, those of version 2 and raw ones.
    pub fn set_lazy_refcounts(&self, lazy: bool) {
        if let (Some(state), Some(qcow2)) = (&self.changing, self.top().as_qcow2()) {
            let possible = qcow2.header().version >= Version::V3;
            state.lazy.set(lazy && possible);
        }
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Whether there are changed refcounts that need not be written yet.
    pub(super) fn puts_off_refcounts(&self) -> bool {
        let behind = || self.state.refcounts.borrow().dirty_blocks().len();
        self.state.lazy.get() && (1..=MOST_BEHIND).contains(&behind())
    }

    /// Writes the dirty bit, before the flush that everything waits for which the refcounts will not count. Those of
    /// `new_tables` are written all the same: what is left to be counted anew is data then, as with QEMU.
    pub(super) async fn mark_dirty(&self, new_tables: &[u64]) -> Result<()> {
        let dirty = Incompatible::DIRTY;
        if !self.qcow2.header().incompatible.has(dirty) && upheld(OrderingPoint::DirtyBeforePublish)
        {
            let mut header = (*self.qcow2.raw_header()).clone();
            header.incompatible_features |= dirty.0;
            let whole = self.state.stops_unless_finished();
            self.write_header(&header, None).await?;
            self.qcow2.adopt(header)?;
            whole.finished();
        }
        for (offset, clusters) in self.refcount_sectors(new_tables)? {
            let what = "Could not write refcount block";
            let mut sector = self.read_metadata(what, offset, SECTOR as usize).await?;
            {
                let refcounts = self.state.refcounts.borrow();
                let in_sector = (SECTOR * 8 / u64::from(refcounts.width.bits())) as usize;
                for cluster in clusters {
                    let (_, entry) = refcounts.place_of(cluster);
                    let count = refcounts.get(cluster);
                    refcounts.width.set(&mut sector, entry % in_sector, count);
                }
            }
            self.write_metadata(what, offset, &sector).await?;
        }
        Ok(())
    }

    /// The clusters at `offsets`, by the sector in the file that has their refcounts.
    fn refcount_sectors(&self, offsets: &[u64]) -> Result<BTreeMap<u64, Vec<u64>>> {
        let mut sectors: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for &offset in offsets {
            let cluster = self.cluster_of(offset);
            let (index, entry) = self.state.refcounts.borrow().place_of(cluster);
            if let Some(block) = self.block_offset(index)? {
                let within = self.state.refcounts.borrow().width.bytes_of(entry).start as u64;
                let sector = block + within / SECTOR * SECTOR;
                sectors.entry(sector).or_default().push(cluster);
            }
        }
        Ok(sectors)
    }

    /// Takes the dirty bit back, after the refcounts are durable. Later changes may be `lazy` again.
    pub(super) async fn clear_dirty(&self, lazy: bool) -> Result<()> {
        let _committing = match self.commits_held {
            true => None,
            false => Some(self.state.commits.lock_all().await),
        };
        if self.qcow2.header().incompatible.has(Incompatible::DIRTY) {
            let mut header = (*self.qcow2.raw_header()).clone();
            header.incompatible_features &= !Incompatible::DIRTY.0;
            let whole = self.state.stops_unless_finished();
            self.switch(header).await?;
            whole.finished();
        }
        self.state.lazy.set(lazy);
        Ok(())
    }
}
