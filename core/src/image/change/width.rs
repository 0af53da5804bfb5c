//! Refcounts of another width: all of them anew, beside the old ones, and the switch (S2).

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::snapshots::Exclusive;
use crate::qcow2::bytes::be64_bytes;
use crate::qcow2::{OFFSET_MASK, RefcountWidth, Version, check_table_entries};
use crate::storage::Storage;

impl<S: Storage> Image<S> {
    /// Has every refcount take so many bits: a power of two up to 64. A crash leaves the old refcounts or the
    /// new ones.
    ///
    /// The image takes no more requests then. It must be opened again.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for a width that cannot be, or in which a refcount does not fit;
    /// [`Error::Unsupported`] for a raw image and one of version 2; those of [`flush`](Image::flush).
    pub async fn set_refcount_bits(&self, bits: u64) -> Result<()> {
        let Some(engine) = self.engine()? else {
            return Err(Error::Unsupported("A raw image has no refcounts".into()));
        };
        let order = bits.checked_ilog2().filter(|_| bits.is_power_of_two());
        let Some(width) = order.and_then(RefcountWidth::from_order) else {
            return Err(Error::OutOfRange(
                "Refcount width must be a power of two and may not exceed 64 bits".into(),
            ));
        };
        let header = engine.qcow2.header();
        if width == header.refcount_width {
            return Ok(());
        }
        if header.version < Version::V3 {
            return Err(Error::Unsupported(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)"
                    .into(),
            ));
        }
        self.close().await?;
        let _held = Exclusive::new(&engine).await?;
        engine.set_refcount_width(width).await
    }
}

/// Refcounts as they will be.
struct NewWidth<'e, 'a, S> {
    engine: &'e Engine<'a, S>,
    width: RefcountWidth,
    /// The clusters of the old table and blocks, which lose a reference.
    old: BTreeSet<u64>,
    /// Those of the new ones, which were free: the blocks in order, then the table.
    new: BTreeSet<u64>,
    /// The blocks that there will be.
    blocks: BTreeSet<u64>,
}

impl<S: Storage> Engine<'_, S> {
    async fn set_refcount_width(&self, width: RefcountWidth) -> Result<()> {
        let size = self.cluster_bytes();
        let mut new = NewWidth {
            engine: self,
            width,
            old: self.refcount_clusters(),
            new: BTreeSet::new(),
            blocks: BTreeSet::new(),
        };
        let end = new.count().await?;
        let table_at = new.settle(end).await?;
        let most = new.blocks.last().copied().unwrap_or(0);
        let mut table = vec![0; (most + 1) as usize];
        let homes: Vec<u64> = new.new.range(..table_at).copied().collect();
        for (&index, &home) in new.blocks.iter().zip(&homes) {
            let bytes = new.block(index).await?;
            self.write_unlinked("Could not write refcount block", home * size, &bytes)
                .await?;
            table[index as usize] = home * size;
        }
        let clusters = (table.len() as u64 * 8).div_ceil(size);
        table.resize((clusters * size / 8) as usize, 0);
        self.write_unlinked(
            "Could not write refcount table",
            table_at * size,
            &be64_bytes(&table),
        )
        .await?;
        let mut header = (*self.qcow2.raw_header()).clone();
        header.refcount_table_offset = table_at * size;
        header.refcount_table_clusters = clusters as u32;
        header.refcount_order = width.order();
        self.flush_and_switch(header).await?;
        self.state.stop(Error::Stopped(
            "it has refcounts of another width now".into(),
        ));
        Ok(())
    }

    /// Where the refcount table and its blocks are.
    fn refcount_clusters(&self) -> BTreeSet<u64> {
        let header = self.qcow2.header();
        let refcounts = self.state.refcounts.borrow();
        let blocks = refcounts.table.iter().map(|entry| entry & OFFSET_MASK);
        let mut clusters: BTreeSet<u64> = blocks
            .filter(|&offset| offset != 0)
            .map(|offset| self.cluster_of(offset))
            .collect();
        let start = self.cluster_of(header.refcount_table.offset.0);
        let bytes = u64::from(header.refcount_table.entries) * 8;
        clusters.extend(start..start + bytes.div_ceil(self.cluster_bytes()));
        clusters
    }
}

impl<S: Storage> NewWidth<'_, '_, S> {
    fn per_block(&self) -> u64 {
        let cluster_size = self.engine.qcow2.l2_format.cluster_size;
        self.width.entries_per_block(cluster_size)
    }

    /// The refcount of `cluster` as it is.
    async fn stored(&self, cluster: u64) -> Result<u64> {
        let engine = self.engine;
        let (index, _) = engine.state.refcounts.borrow().place_of(cluster);
        engine.load_block(index).await?;
        Ok(engine.state.refcounts.borrow().get(cluster))
    }

    /// The refcount of `cluster` as it will be.
    async fn get(&self, cluster: u64) -> Result<u64> {
        let lost = u64::from(self.old.contains(&cluster));
        let gained = u64::from(self.new.contains(&cluster));
        Ok(self.stored(cluster).await?.saturating_sub(lost) + gained)
    }

    /// Finds the blocks that what there is needs, and checks that all of it fits. Returns the end of everything.
    async fn count(&mut self) -> Result<u64> {
        let engine = self.engine;
        let (per_old, entries) = {
            let refcounts = engine.state.refcounts.borrow();
            (refcounts.per_block(), refcounts.table.len() as u64)
        };
        let mut end = engine.cluster_of(engine.qcow2.file_len()) + 1;
        for index in 0..entries {
            if engine.block_offset(index)?.is_none() {
                continue;
            }
            for cluster in index * per_old..(index + 1) * per_old {
                let count = self.get(cluster).await?;
                if count > self.width.max() {
                    let offset = cluster * engine.cluster_bytes();
                    return Err(Error::OutOfRange(
                        format!(
                            "Cannot decrease refcount entry width to {} bits: Cluster at offset {offset:#x} has a refcount of {count}",
                            self.width.bits()
                        )
                        .into(),
                    ));
                }
                if count > 0 {
                    self.blocks.insert(cluster / self.per_block());
                    end = end.max(cluster + 1);
                }
            }
        }
        Ok(end)
    }

    /// Finds places for all blocks, and for the table behind them and everything else; they need blocks too.
    /// Returns where the table is.
    async fn settle(&mut self, end: u64) -> Result<u64> {
        let size = self.engine.cluster_bytes();
        let mut at = 0;
        loop {
            while self.new.len() < self.blocks.len() {
                // Free as it is: what the new state gives up is still in use.
                while self.stored(at).await? != 0 {
                    at += 1;
                }
                self.new.insert(at);
                self.blocks.insert(at / self.per_block());
                at += 1;
            }
            let table_at = end.max(at);
            let mut blocks = self.blocks.clone();
            let mut clusters = 0;
            loop {
                let entries = blocks.last().map_or(0, |last| last + 1);
                check_table_entries(entries)?;
                let needed = (entries * 8).div_ceil(size);
                if needed == clusters {
                    break;
                }
                clusters = needed;
                let table = table_at..table_at + clusters;
                blocks.extend(table.map(|cluster| cluster / self.per_block()));
            }
            if blocks.len() > self.blocks.len() {
                self.blocks = blocks;
                continue;
            }
            let table = table_at..table_at + clusters;
            let end = table.end * size;
            self.new.extend(table);
            self.engine.qcow2.reaches(end);
            self.engine.no_longer_virgin(end);
            for &cluster in &self.new {
                self.engine.check_unprotected(cluster..cluster + 1)?;
            }
            return Ok(table_at);
        }
    }

    /// Block `index` as it will be.
    async fn block(&self, index: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.engine.cluster_bytes() as usize];
        let first = index * self.per_block();
        for entry in 0..self.per_block() {
            let count = self.get(first + entry).await?;
            if count > 0 {
                self.width.set(&mut bytes, entry as usize, count);
            }
        }
        Ok(bytes)
    }
}
