//! Mechanism 2: shadow and switch, for everything that is not a guest write.
//!
//! The new state is built beside the old one, in clusters that the old one does not use: every table that
//! changes, the refcount blocks that change, and the refcount table that points to those. In the new
//! state's refcounts the tables that it replaces are free already. Then **flush**, one write of sector 0,
//! **flush**. A cut leaves the old state or the new one, and neither has a leak (S2).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::convert::is_zero;
use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::change::bitmaps::{Follow, Patch};
use crate::image::change::state::Changing;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::bytes::be64_bytes;
use crate::qcow2::{OFFSET_MASK, RawHeader, check_table_entries};
use crate::storage::Storage;

/// A state of the image that is being built beside the one that is.
pub(crate) struct Shadow<'e, 'a, S> {
    pub engine: &'e Engine<'a, S>,
    /// What sector 0 will say.
    pub header: RawHeader,
    /// And what its extensions will.
    pub patch: Option<Patch>,
    /// What becomes of the bitmaps.
    pub bitmaps: Follow,
    /// The refcount blocks that change, as they will be.
    blocks: BTreeMap<u64, Vec<u8>>,
    /// Where those will be.
    homes: BTreeMap<u64, u64>,
    /// Those for which no place was found yet.
    homeless: Vec<u64>,
    /// The refcount table as it will be, but for the new homes.
    table: Vec<u64>,
    table_home: Option<Range<u64>>,
    /// Free clusters that the table and the first block that changes are to have.
    pub wanted: Option<(Range<u64>, Range<u64>)>,
    /// Free clusters that are to stay free.
    reserved: Vec<Range<u64>>,
    /// Whether blocks that count nothing any more are given up.
    pub drops_empty_blocks: bool,
    hint: u64,
}

impl<'e, 'a, S: Storage> Shadow<'e, 'a, S> {
    /// A new state that is the same as the old one so far. The commits are held.
    pub fn new(engine: &'e Engine<'a, S>) -> Self {
        let refcounts = engine.state.refcounts.borrow();
        Self {
            engine,
            header: (*engine.qcow2.raw_header()).clone(),
            patch: None,
            bitmaps: Follow::default(),
            blocks: BTreeMap::new(),
            homes: BTreeMap::new(),
            homeless: Vec::new(),
            table: refcounts.table.clone(),
            table_home: None,
            wanted: None,
            reserved: Vec::new(),
            drops_empty_blocks: false,
            hint: refcounts.hint(),
        }
    }

    /// Adds `by` references to each of `clusters`, in the new state.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where a refcount would not fit its width, [`Error::Corrupt`] where one would
    /// go below zero.
    pub async fn add(&mut self, clusters: Range<u64>, by: i64) -> Result<()> {
        let mut at = clusters.start;
        while at < clusters.end {
            let (width, per_block, (index, first)) = {
                let refcounts = self.engine.state.refcounts.borrow();
                (
                    refcounts.width,
                    refcounts.per_block(),
                    refcounts.place_of(at),
                )
            };
            let end = clusters.end.min((index + 1) * per_block);
            self.edit(index).await?;
            let Some(block) = self.blocks.get_mut(&index) else {
                return Err(self.engine.state.refcounts.borrow().below_zero(at));
            };
            for entry in first..first + (end - at) as usize {
                let old = width.get(block, entry);
                let Some(new) = old.checked_add_signed(by) else {
                    let cluster = index * per_block + entry as u64;
                    return Err(self.engine.state.refcounts.borrow().below_zero(cluster));
                };
                if new > width.max() {
                    return Err(Error::Unsupported(
                        format!(
                            "A refcount of {} bits cannot count {new} references",
                            width.bits()
                        )
                        .into(),
                    ));
                }
                width.set(block, entry, new);
            }
            at = end;
        }
        Ok(())
    }

    /// The refcount of `cluster` in the new state.
    pub async fn get(&mut self, cluster: u64) -> Result<u64> {
        let (index, entry) = self.engine.state.refcounts.borrow().place_of(cluster);
        let width = self.engine.state.refcounts.borrow().width;
        if let Some(block) = self.blocks.get(&index) {
            return Ok(width.get(block, entry));
        }
        self.engine.load_block(index).await?;
        Ok(self.engine.state.refcounts.borrow().get(cluster))
    }

    /// Takes block `index` into the new state, if there is one.
    async fn edit(&mut self, index: u64) -> Result<()> {
        if !self.blocks.contains_key(&index) {
            self.engine.load_block(index).await?;
            let refcounts = self.engine.state.refcounts.borrow();
            if let Some(block) = refcounts.block(index) {
                self.blocks.insert(index, block.to_vec());
                self.homeless.push(index);
            }
        }
        Ok(())
    }

    /// Gives every refcount block a new place, the first that is free.
    pub async fn renew_refcounts(&mut self) -> Result<()> {
        for index in 0..self.table.len() as u64 {
            self.edit(index).await?;
        }
        Ok(())
    }

    /// `count` clusters that follow one another and that neither state uses; one reference each in the new
    /// state.
    pub async fn allocate(&mut self, count: u64) -> Result<Range<u64>> {
        let run = self.find(count).await?;
        if run.start == self.hint || count == 1 {
            self.hint = run.end;
        }
        self.claim(run).await
    }

    /// Keeps clusters from [`Self::allocate`], for who [claims](Self::claim) them later; `false` where that has been
    /// promised to another one.
    pub fn keep(&mut self, run: &Range<u64>) -> bool {
        let apart = |kept: &Range<u64>| kept.end <= run.start || run.end <= kept.start;
        let promised = !self.reserved.iter().all(apart);
        if !promised {
            self.reserved.push(run.clone());
        }
        !promised
    }

    /// Finds what [`Self::allocate`] would give, and leaves it free.
    pub async fn reserve(&mut self, count: u64) -> Result<Range<u64>> {
        let run = self.find(count).await?;
        self.reserved.push(run.clone());
        Ok(run)
    }

    async fn find(&mut self, count: u64) -> Result<Range<u64>> {
        let mut run = self.hint..self.hint;
        while run.end - run.start < count {
            let cluster = run.end;
            let free = self.next_free(cluster).await?;
            if free == cluster {
                run.end += 1;
            } else {
                run = free..free + 1;
            }
        }
        Ok(run)
    }

    /// Takes clusters that are free in both states; one reference each in the new state.
    pub async fn claim(&mut self, run: Range<u64>) -> Result<Range<u64>> {
        self.engine.check_unprotected(run.clone())?;
        // They may lie behind what has been cut off since.
        let end = run.end * self.engine.cluster_bytes();
        self.engine.qcow2.reaches(end);
        self.engine.no_longer_virgin(end);
        self.add(run.clone(), 1).await?;
        Ok(run)
    }

    /// The first cluster from `from` on that is free in both states. Where no block counts the clusters, the
    /// new state gets one.
    async fn next_free(&mut self, from: u64) -> Result<u64> {
        let mut at = from;
        loop {
            let (width, per_block, (index, entry)) = {
                let refcounts = self.engine.state.refcounts.borrow();
                (
                    refcounts.width,
                    refcounts.per_block(),
                    refcounts.place_of(at),
                )
            };
            self.engine.load_block(index).await?;
            let refcounts = self.engine.state.refcounts.borrow();
            let new = self.blocks.get(&index).map(|block| &block[..]);
            let Some(block) = new.or_else(|| refcounts.block(index)) else {
                drop(refcounts);
                self.count_more(at)?;
                continue;
            };
            match width.find_free(block, entry) {
                None => at = (index + 1) * per_block,
                Some(free) => {
                    let cluster = index * per_block + free as u64;
                    let reserved = self.reserved.iter().find(|run| run.contains(&cluster));
                    if let Some(run) = reserved {
                        at = run.end;
                        continue;
                    }
                    // What the new state has given up is still the old state's.
                    if refcounts.get(cluster) == 0 || !upheld(OrderingPoint::ShadowInFreeClusters) {
                        return Ok(cluster);
                    }
                    at = cluster + 1;
                }
            }
        }
    }

    /// Adds a block that counts `cluster` and its neighbours, where there is none.
    fn count_more(&mut self, cluster: u64) -> Result<()> {
        let (index, _) = self.engine.state.refcounts.borrow().place_of(cluster);
        check_table_entries(index + 1)?;
        let bytes = self.engine.cluster_bytes() as usize;
        self.blocks.insert(index, vec![0; bytes]);
        self.homeless.push(index);
        if self.table.len() as u64 <= index {
            self.table.resize(index as usize + 1, 0);
        }
        Ok(())
    }

    /// Writes tables of the new state, which nothing points to yet: a failure leaves the old state as it
    /// was, and writing to it can go on.
    pub async fn write(&self, what: &'static str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.engine.write_unlinked(what, offset, bytes).await
    }

    /// Writes a table that is allocated for it.
    pub async fn write_new_table(&mut self, what: &'static str, bytes: &[u8]) -> Result<u64> {
        let clusters = self.allocate(self.clusters_for(bytes.len() as u64)).await?;
        self.write_table_to(what, clusters, bytes).await
    }

    /// How many clusters so many bytes fill.
    pub fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.engine.cluster_bytes())
    }

    /// Writes a table to clusters that were [claimed](Self::claim) for it; its offset.
    pub async fn write_table_to(
        &self,
        what: &'static str,
        clusters: Range<u64>,
        bytes: &[u8],
    ) -> Result<u64> {
        let size = self.engine.cluster_bytes();
        let offset = clusters.start * size;
        self.write(what, offset, bytes).await?;
        Ok(offset)
    }

    /// Gives up the clusters of a table of the old state.
    pub async fn free_table(&mut self, offset: u64, bytes: u64) -> Result<()> {
        let size = self.engine.cluster_bytes();
        let start = offset / size;
        self.add(start..start + bytes.div_ceil(size), -1).await
    }

    /// Makes the new state the image's.
    pub async fn finish(mut self) -> Result<()> {
        let engine = self.engine;
        let dirty = engine.state.refcounts.borrow().dirty_blocks();
        for index in dirty {
            self.edit(index).await?;
        }
        if upheld(OrderingPoint::RefcountsInSwitch) {
            self.settle_homes().await?;
            self.write_refcounts().await?;
        } else {
            self.write_refcounts_in_place().await?;
        }
        let whole = engine.state.stops_unless_finished();
        engine
            .flush_and_switch_with(self.header, self.patch)
            .await?;
        {
            let mut refcounts = engine.state.refcounts.borrow_mut();
            let freed = self
                .blocks
                .keys()
                .next()
                .map(|first| first * refcounts.per_block());
            refcounts.adopt_table(self.table);
            for (index, bytes) in self.blocks {
                refcounts.replace(index, bytes);
            }
            refcounts.hint_down_to(freed.unwrap_or(u64::MAX));
        }
        engine.state.packing.set(None);
        engine.qcow2.tables.clear();
        engine.qcow2.clusters.borrow_mut().clear();
        whole.finished();
        Ok(())
    }

    /// Finds a place for every block that changes, and for the table; each of those changes blocks again,
    /// until none is left without.
    async fn settle_homes(&mut self) -> Result<()> {
        if self.blocks.is_empty() && self.table.len() == self.engine.table_entries() {
            return Ok(());
        }
        let size = self.engine.cluster_bytes();
        loop {
            let needed = (self.table.len() as u64 * 8).div_ceil(size);
            let has = self
                .table_home
                .as_ref()
                .map_or(0, |home| home.end - home.start);
            if has < needed {
                match self.table_home.take() {
                    None => {
                        let entries = self.engine.table_entries() as u64;
                        let offset = self.header.refcount_table_offset;
                        self.free_table(offset, entries * 8).await?;
                    }
                    Some(too_small) => self.add(too_small, -1).await?,
                }
                self.table_home = Some(match self.wanted.clone() {
                    Some((table, _)) => self.claim(table).await?,
                    None => self.allocate(needed).await?,
                });
                continue;
            }
            let Some(index) = self.homeless.pop() else {
                break;
            };
            // Freed first, so that a home which changes this very block is counted in it.
            let old = self
                .table
                .get(index as usize)
                .map_or(0, |entry| entry & OFFSET_MASK);
            if old != 0 {
                self.add(old / size..old / size + 1, -1).await?;
            }
            let home = match self.wanted.take() {
                Some((_, block)) => self.claim(block).await?,
                None => self.allocate(1).await?,
            };
            self.homes.insert(index, home.start * size);
        }
        if self.drops_empty_blocks {
            self.drop_empty_blocks().await?;
        }
        for (index, home) in &self.homes {
            self.table[*index as usize] = *home;
        }
        let home = self.table_home.clone().unwrap_or_default();
        let clusters = home.end - home.start;
        self.table.resize((clusters * size / 8) as usize, 0);
        self.header.refcount_table_offset = home.start * size;
        self.header.refcount_table_clusters = clusters as u32;
        Ok(())
    }

    /// Gives up blocks that count nothing, or themselves alone. What counts their places has a place already.
    async fn drop_empty_blocks(&mut self) -> Result<()> {
        let size = self.engine.cluster_bytes();
        loop {
            let before = self.blocks.len();
            let homes: Vec<_> = self.homes.iter().map(|(&at, &home)| (at, home)).collect();
            for (index, home) in homes {
                let home = home / size;
                if self.counts_nothing_but(home, index) {
                    self.add(home..home + 1, -1).await?;
                    self.blocks.remove(&index);
                    self.homes.remove(&index);
                    self.table[index as usize] = 0;
                }
            }
            // One that counted another is empty by now.
            if self.blocks.len() == before {
                return Ok(());
            }
        }
    }

    fn counts_nothing_but(&self, home: u64, index: u64) -> bool {
        let refcounts = self.engine.state.refcounts.borrow();
        let Some(block) = self.blocks.get(&index) else {
            return false;
        };
        match refcounts.place_of(home) {
            (counted_by, entry) if counted_by == index => {
                let mut others = block.clone();
                refcounts.width.set(&mut others, entry, 0);
                is_zero(&others)
            }
            _ => is_zero(block),
        }
    }

    async fn write_refcounts(&self) -> Result<()> {
        for (index, home) in &self.homes {
            if let Some(block) = self.blocks.get(index) {
                self.write("Could not write refcount block", *home, block)
                    .await?;
            }
        }
        if self.table_home.is_some() {
            let offset = self.header.refcount_table_offset;
            self.write(
                "Could not write refcount table",
                offset,
                &be64_bytes(&self.table),
            )
            .await?;
        }
        Ok(())
    }

    /// What the proof must notice: the refcounts change before the tables that they count.
    async fn write_refcounts_in_place(&mut self) -> Result<()> {
        for (index, block) in &self.blocks {
            let offset = self
                .table
                .get(*index as usize)
                .map_or(0, |entry| entry & OFFSET_MASK);
            if offset == 0 {
                return Err(Error::corrupt(
                    "There is no refcount block to write in place",
                    Place::of(Structure::RefcountTable).entry(*index),
                ));
            }
            self.write("Could not write refcount block", offset, block)
                .await?;
        }
        self.table.truncate(self.engine.table_entries());
        Ok(())
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Everything that the new header leads to is made durable, then sector 0 leads there.
    pub async fn flush_and_switch(&self, header: RawHeader) -> Result<()> {
        self.flush_and_switch_with(header, None).await
    }

    /// The same, with a change of the header extensions.
    pub async fn flush_and_switch_with(
        &self,
        header: RawHeader,
        patch: Option<Patch>,
    ) -> Result<()> {
        self.barrier_if_unflushed(OrderingPoint::FlushBeforeSwitch)
            .await?;
        self.switch_with(header, patch).await
    }

    fn table_entries(&self) -> usize {
        self.state.refcounts.borrow().table.len()
    }
}

/// Between the switch on the disk and the one in memory nothing may be given up half way.
pub(crate) struct StopsUnlessFinished<'a>(Option<&'a Changing>);

impl StopsUnlessFinished<'_> {
    pub fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for StopsUnlessFinished<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.0 {
            state.stop(Error::Cancelled);
        }
    }
}

impl Changing {
    pub fn stops_unless_finished(&self) -> StopsUnlessFinished<'_> {
        StopsUnlessFinished(Some(self))
    }
}
