//! Clusters that no refcount block counts yet: the block for them, and a longer refcount table where that has no room
//! for it. Both stand where QEMU has them: the block behind the clusters that it was made for, a table behind that,
//! with the blocks that count the table.

use std::ops::Range;

use crate::error::Result;
use crate::image::change::Engine;
use crate::image::change::allocate::NeedsBlock;
use crate::image::change::commit::NewBlock;
use crate::image::lock::RangeGuard;
use crate::qcow2::bytes::be64_bytes;
use crate::qcow2::{MAX_REFCOUNT_TABLE_BYTES, check_table_entries};
use crate::storage::Storage;

/// Where a refcount block will be.
pub(super) struct Placed {
    /// Its index in the refcount table.
    pub index: u64,
    cluster: u64,
}

impl<S: Storage> Engine<'_, S> {
    /// Finds a place for the refcount block that a step needs, or for one that is to count that place; `None` where it
    /// is there. The tables are held.
    pub(super) async fn place_block(&self, needs: NeedsBlock) -> Result<Option<Placed>> {
        let (mut index, mut from) = (needs.index, needs.run.end);
        if self.block_offset(index)?.is_some() {
            return Ok(None);
        }
        loop {
            let cluster = self.first_free(from).await?;
            let (counted_by, _) = self.state.refcounts.borrow().place_of(cluster);
            if counted_by == index || self.block_offset(counted_by)?.is_some() {
                return Ok(Some(Placed { index, cluster }));
            }
            (index, from) = (counted_by, cluster + 1);
        }
    }

    pub(super) fn is_behind_the_table(&self, index: u64) -> bool {
        index >= self.state.refcounts.borrow().table.len() as u64
    }

    /// A refcount block in a cluster that is free: counted by itself, or by another one that is loaded.
    pub(super) fn new_block(&self, placed: Placed) -> Result<NewBlock> {
        let Placed { index, cluster } = placed;
        self.check_unprotected(cluster..cluster + 1)?;
        let mut refcounts = self.state.refcounts.borrow_mut();
        let mut bytes = vec![0; self.cluster_bytes() as usize];
        match refcounts.place_of(cluster) {
            (counted_by, entry) if counted_by == index => refcounts.width.set(&mut bytes, entry, 1),
            _ => refcounts.set(cluster, 1),
        }
        let offset = cluster * self.cluster_bytes();
        self.qcow2.reaches(offset + self.cluster_bytes());
        self.no_longer_virgin(offset + self.cluster_bytes());
        Ok(NewBlock {
            index,
            offset,
            bytes,
        })
    }

    /// Makes the refcount table long enough for the block that is `placed`, and the block with it: what is new is
    /// written beside what is there, then **flush**, one write of sector 0, **flush**. The guest's writes may go on
    /// meanwhile: no block that is there changes. The old table's clusters are given back after that (M4); a cut before
    /// leaks them at most, as one within the guest's write may.
    pub(super) async fn grow_refcount_table(
        &self,
        placed: Placed,
        _tables: &RangeGuard<'_>,
    ) -> Result<()> {
        let size = self.cluster_bytes();
        let NewBlock {
            index,
            offset,
            bytes,
        } = self.new_block(placed)?;
        let area = self.area_behind(index)?;
        let clusters = area.blocks.start..area.table.end;
        self.check_unprotected(clusters.clone())?;
        self.qcow2.reaches(clusters.end * size);
        self.no_longer_virgin(clusters.end * size);
        let (mut table, width, per_block) = {
            let refcounts = self.state.refcounts.borrow();
            (
                refcounts.table.clone(),
                refcounts.width,
                refcounts.per_block(),
            )
        };
        table.resize(((area.table.end - area.table.start) * size / 8) as usize, 0);
        let mut blocks = vec![(index, offset, bytes)];
        for (index, cluster) in (index + 1..).zip(area.blocks.clone()) {
            let counted =
                clusters.start.max(index * per_block)..clusters.end.min((index + 1) * per_block);
            let mut bytes = vec![0; size as usize];
            for cluster in counted {
                width.set(&mut bytes, (cluster % per_block) as usize, 1);
            }
            blocks.push((index, cluster * size, bytes));
        }
        for (index, offset, bytes) in &blocks {
            table[*index as usize] = *offset;
            let what = "Could not write refcount block";
            self.write_unlinked(what, *offset, bytes).await?;
        }
        let mut header = (*self.qcow2.raw_header()).clone();
        let old = header.refcount_table_offset / size;
        let old = old..old + u64::from(header.refcount_table_clusters);
        header.refcount_table_offset = area.table.start * size;
        header.refcount_table_clusters = (area.table.end - area.table.start) as u32;
        let what = "Could not write refcount table";
        self.write_unlinked(what, header.refcount_table_offset, &be64_bytes(&table))
            .await?;
        let whole = self.state.stops_unless_finished();
        self.flush_and_switch(header).await?;
        {
            let mut refcounts = self.state.refcounts.borrow_mut();
            refcounts.adopt_table(table);
            for (index, _, bytes) in blocks {
                refcounts.replace(index, bytes);
            }
        }
        self.protect_metadata().await?;
        whole.finished();
        self.give_back(old.collect()).await
    }

    /// Where a longer refcount table goes when block `index` is the last that there is, and the blocks that count it.
    fn area_behind(&self, index: u64) -> Result<Area> {
        let per_block = self.state.refcounts.borrow().per_block();
        let size = self.cluster_bytes();
        let first = index + 1;
        let start = first * per_block;
        let table_clusters = |entries: u64| (entries * 8).div_ceil(size);
        // As many blocks as all before, and they and their table themselves, would need.
        let mut blocks = first;
        loop {
            let generous = table_clusters(blocks) + table_clusters(blocks).div_ceil(2);
            let needed = (start + blocks + generous).div_ceil(per_block);
            if needed <= blocks {
                break;
            }
            blocks = needed;
        }
        check_table_entries(blocks)?;
        // And half as many again fit into the table, so that it does not soon grow again.
        let entries = (blocks + blocks.div_ceil(2)).min(MAX_REFCOUNT_TABLE_BYTES / 8);
        let blocks = start..start + (blocks - first);
        let table = blocks.end..blocks.end + table_clusters(entries);
        Ok(Area { blocks, table })
    }
}

/// The clusters of new refcount blocks, and of the table behind them.
struct Area {
    blocks: Range<u64>,
    table: Range<u64>,
}
