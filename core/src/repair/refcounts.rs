//! The refcounts as they will be: blocks that differ from the file's in new places, and a table that leads
//! to them. Nothing that the image uses now is written to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use super::room::Room;
use crate::check::noted::{Noted, Understated};
use crate::check::stored::Stored;
use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::qcow2::bytes::be64_bytes;
use crate::qcow2::{RawHeader, RefcountWidth, check_table_entries};
use crate::storage::Storage;

/// What the blocks in memory may take up.
const CACHE_BYTES: u64 = 16 << 20;
/// How many clusters past the end of the file are left to what damaged entries may have stood for. More would
/// make the file longer than anybody needs it.
const MOST_SKIPPED: u64 = 1 << 20;
/// How many changes of references wait to be counted, at most.
const MOST_PENDING: usize = 1 << 16;

/// Refcounts that are being made right.
pub(super) struct NewRefcounts<'e, 'a, S> {
    engine: &'e Engine<'a, S>,
    stored: &'e Stored,
    noted: &'e Noted,
    /// What stays too low, as it is now.
    understated: Understated,
    width: RefcountWidth,
    cluster_bytes: u64,
    room: Room,
    /// The refcount table as it will be; its new place, once it has one.
    table: Vec<u64>,
    home: Option<Range<u64>>,
    /// Which blocks have a new place.
    fresh: Vec<bool>,
    /// Whether the table differs from the file's.
    changed: bool,
    blocks: HashMap<u64, Block>,
    /// The blocks in memory, those that were brought in first at the front.
    order: VecDeque<u64>,
    /// What no block counts yet.
    pending: Pending,
    /// Whether a cluster that lost a reference has exactly one left: its COPIED flag is to be set now.
    left_alone: bool,
}

/// Changes of references that are still to be counted. Counting may give blocks new places, which changes
/// references again.
#[derive(Default)]
struct Pending {
    /// Tables of the new state are there.
    gained: Vec<Range<u64>>,
    /// Tables of the old state are not.
    lost: Vec<Range<u64>>,
    /// Refcounts past the end of the file as it was, for nothing.
    void: Vec<Range<u64>>,
}

fn append(runs: &mut Vec<Range<u64>>, clusters: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == clusters.start => last.end = clusters.end,
        _ => runs.push(clusters),
    }
}

struct Block {
    bytes: Vec<u8>,
    /// Whether its new place does not have it yet.
    dirty: bool,
}

impl<'e, 'a, S: Storage> NewRefcounts<'e, 'a, S> {
    /// The refcounts of the file, without blocks that are of no use. `keep_all` leaves those as they are.
    pub fn new(
        engine: &'e Engine<'a, S>,
        stored: &'e Stored,
        noted: &'e Noted,
        understated: Understated,
        room: Room,
        keep_all: bool,
    ) -> Self {
        let header = engine.qcow2.header();
        let cluster_bytes = header.cluster_size.bytes();
        let mut new = Self {
            engine,
            stored,
            noted,
            understated,
            width: header.refcount_width,
            cluster_bytes,
            room,
            table: stored.table().to_vec(),
            home: None,
            fresh: vec![false; stored.table().len()],
            changed: header.refcount_table.entries == 0,
            blocks: HashMap::new(),
            order: VecDeque::new(),
            pending: Pending::default(),
            left_alone: false,
        };
        if !keep_all {
            for &index in noted.shared_blocks.union(&noted.misplaced_blocks) {
                let entry = std::mem::take(&mut new.table[index as usize]);
                new.changed = true;
                if noted.shared_blocks.contains(&index) {
                    let cluster = Stored::block_offset(entry) / cluster_bytes;
                    append(&mut new.pending.lost, cluster..cluster + 1);
                }
            }
        }
        new
    }

    fn per_block(&self) -> u64 {
        (self.cluster_bytes * 8) >> self.width.order()
    }

    fn place_of(&self, cluster: u64) -> (u64, usize) {
        let per_block = self.per_block();
        (cluster / per_block, (cluster % per_block) as usize)
    }

    /// The refcount of `cluster`, without what is pending.
    pub async fn get(&mut self, cluster: u64) -> Result<u64> {
        let (index, entry) = self.place_of(cluster);
        let width = self.width;
        let block = self.block(index).await?;
        Ok(block.map_or(0, |block| width.get(&block.bytes, entry)))
    }

    /// The refcounts from cluster `first` on, without what is pending.
    pub async fn read(&mut self, first: u64, out: &mut [u64]) -> Result<()> {
        let mut at = 0;
        while at < out.len() {
            let (index, entry) = self.place_of(first + at as u64);
            let count = (out.len() - at).min(self.per_block() as usize - entry);
            let (stored, part) = (self.stored, &mut out[at..at + count]);
            match self.block(index).await? {
                None => part.fill(0),
                Some(block) => stored.decode(&block.bytes, entry, part),
            }
            at += count;
        }
        Ok(())
    }

    /// How many entries the table has.
    pub fn blocks(&self) -> u64 {
        self.table.len() as u64
    }

    /// Lets go of block `index`, which counts nothing that there is, unless it is empty.
    pub async fn let_go(&mut self, index: u64) -> Result<()> {
        let offset = self.entry(index);
        let is_fresh = self.fresh.get(index as usize) == Some(&true);
        if offset == 0 || is_fresh {
            return Ok(());
        }
        let is_empty = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        let length = self.cluster_bytes as usize;
        let empty = match self.blocks.get(&index) {
            Some(block) => is_empty(&block.bytes),
            None => {
                let what = "Could not read refcount block";
                is_empty(&self.engine.read_metadata(what, offset, length).await?)
            }
        };
        if !empty {
            if self.blocks.remove(&index).is_some() {
                self.order.retain(|&kept| kept != index);
            }
            self.table[index as usize] = 0;
            self.changed = true;
            self.release(offset, self.cluster_bytes);
        }
        Ok(())
    }

    /// Whether some block counts `cluster`.
    pub fn is_counted(&self, cluster: u64) -> bool {
        let (index, _) = self.place_of(cluster);
        self.entry(index) != 0
    }

    /// Makes the refcounts from cluster `first` on these.
    pub async fn assign(&mut self, first: u64, counts: &[u64]) -> Result<()> {
        for (cluster, &count) in (first..).zip(counts) {
            if self.get(cluster).await? != count {
                self.set(cluster, count).await?;
            }
        }
        Ok(())
    }

    async fn set(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (index, entry) = self.place_of(cluster);
        self.freshen(index).await?;
        let width = self.width;
        if let Some(block) = self.block(index).await? {
            width.set(&mut block.bytes, entry, count);
            block.dirty = true;
        }
        Ok(())
    }

    /// Where block `index` is; 0 where there is none, or none that says anything.
    fn entry(&self, index: u64) -> u64 {
        let known = usize::try_from(index).ok();
        let is_fresh = known.and_then(|at| self.fresh.get(at)) == Some(&true);
        if !is_fresh && self.noted.is_broken(index) {
            return 0;
        }
        let entry = known.and_then(|at| self.table.get(at));
        entry.map_or(0, |entry| Stored::block_offset(*entry))
    }

    /// Block `index`, out of the file if it must be.
    async fn block(&mut self, index: u64) -> Result<Option<&mut Block>> {
        if !self.blocks.contains_key(&index) {
            let offset = self.entry(index);
            if offset == 0 {
                return Ok(None);
            }
            let length = self.cluster_bytes as usize;
            let bytes = self
                .engine
                .read_metadata("Could not read refcount block", offset, length)
                .await?;
            let dirty = false;
            self.keep(index, Block { bytes, dirty }).await?;
        }
        Ok(self.blocks.get_mut(&index))
    }

    /// Takes a block into memory; the one that is there for longest may have to leave.
    async fn keep(&mut self, index: u64, block: Block) -> Result<()> {
        let most = (CACHE_BYTES / self.cluster_bytes).max(4) as usize;
        while self.order.len() >= most
            && let Some(oldest) = self.order.pop_front()
        {
            self.write_block(oldest).await?;
            self.blocks.remove(&oldest);
        }
        self.order.push_back(index);
        self.blocks.insert(index, block);
        Ok(())
    }

    async fn write_block(&mut self, index: u64) -> Result<()> {
        let offset = self.entry(index);
        if let Some(block) = self.blocks.get_mut(&index).filter(|block| block.dirty) {
            self.engine
                .write_aside("Could not write refcount block", offset, &block.bytes)
                .await?;
            block.dirty = false;
        }
        Ok(())
    }

    /// Gives block `index` a new place, so that it can be changed.
    async fn freshen(&mut self, index: u64) -> Result<()> {
        let at = index as usize;
        if self.fresh.get(at) == Some(&true) {
            return Ok(());
        }
        check_table_entries(index + 1)?;
        let old = self.entry(index);
        let home = self.take(1).await?;
        if self.block(index).await?.is_none() {
            let bytes = vec![0; self.cluster_bytes as usize];
            let dirty = true;
            self.keep(index, Block { bytes, dirty }).await?;
        }
        if let Some(block) = self.blocks.get_mut(&index) {
            block.dirty = true;
        }
        if old != 0 {
            self.release(old, self.cluster_bytes);
        }
        if self.table.len() <= at {
            self.table.resize(at + 1, 0);
            self.fresh.resize(at + 1, false);
        }
        self.table[at] = home.start * self.cluster_bytes;
        self.fresh[at] = true;
        self.changed = true;
        Ok(())
    }

    /// `count` clusters in a row that nothing uses, with a reference each in the new state.
    pub async fn take(&mut self, count: u64) -> Result<Range<u64>> {
        let run = match self.room.inside(count) {
            Some(run) => run,
            None => self.take_at_the_end(count).await?,
        };
        append(&mut self.pending.gained, run.clone());
        self.engine.use_up_to(run.end * self.cluster_bytes);
        Ok(run)
    }

    /// Clusters past everything that there is. Those that only a refcount knows are free too: nobody missed
    /// them while the file ended before. But where an entry is damaged, they may be what it stood for.
    async fn take_at_the_end(&mut self, count: u64) -> Result<Range<u64>> {
        let mut run = 0..0;
        let mut skipped = 0;
        while run.end - run.start < count {
            let (cluster, usable) = self.room.next_past_the_end()?;
            let stored = self.get(cluster).await?;
            let known = stored != 0 && self.noted.incomplete;
            if stored != 0 && !known {
                append(&mut self.pending.void, cluster..cluster + 1);
            }
            skipped += u64::from(known);
            if skipped > MOST_SKIPPED {
                return Err(Error::Unsupported(
                    "There is no room for the repair: all that follows the end of the file has refcounts"
                        .into(),
                ));
            }
            match usable && !known {
                true if run.end == cluster => run.end += 1,
                true => run = cluster..cluster + 1,
                false => {}
            }
        }
        Ok(run)
    }

    /// The table in the cluster at byte `offset`, which is of the new state, has another reference.
    pub fn refer(&mut self, offset: u64) {
        let cluster = offset / self.cluster_bytes;
        append(&mut self.pending.gained, cluster..cluster + 1);
    }

    /// The most references that a refcount can count.
    pub fn most(&self) -> u64 {
        self.width.max()
    }

    /// Counts what is pending if that is much.
    pub async fn settle_much(&mut self) -> Result<()> {
        if self.pending.gained.len() + self.pending.lost.len() > MOST_PENDING {
            self.count_pending().await?;
        }
        Ok(())
    }

    /// A table of `bytes` bytes at `offset` has no reference in the new state.
    pub fn release(&mut self, offset: u64, bytes: u64) {
        let start = offset / self.cluster_bytes;
        let clusters = start..start + bytes.div_ceil(self.cluster_bytes);
        append(&mut self.pending.lost, clusters);
    }

    /// Writes a table of the new state.
    pub async fn write_table(&mut self, what: &'static str, bytes: &[u8]) -> Result<u64> {
        let clusters = (bytes.len() as u64).div_ceil(self.cluster_bytes);
        let home = self.take(clusters).await?;
        let offset = home.start * self.cluster_bytes;
        self.engine.write_aside(what, offset, bytes).await?;
        Ok(offset)
    }

    /// Counts what is pending, which may give further blocks new places, until nothing is. Returns whether
    /// some cluster has exactly one reference left by it.
    pub async fn settle(&mut self) -> Result<bool> {
        loop {
            self.count_pending().await?;
            if !self.changed {
                break;
            }
            let needed = (self.table.len() as u64 * 8).div_ceil(self.cluster_bytes);
            let has = self.home.as_ref().map_or(0, |home| home.end - home.start);
            if has >= needed {
                break;
            }
            match self.home.take() {
                Some(home) => append(&mut self.pending.lost, home),
                None => {
                    let old = self.engine.qcow2.header().refcount_table;
                    self.release(old.offset.0, u64::from(old.entries) * 8);
                }
            }
            self.home = Some(self.take(needed).await?);
        }
        Ok(std::mem::take(&mut self.left_alone))
    }

    async fn count_pending(&mut self) -> Result<()> {
        loop {
            if let Some(void) = self.pending.void.pop() {
                for cluster in void {
                    if self.get(cluster).await? != 0 {
                        self.set(cluster, 0).await?;
                    }
                }
                continue;
            }
            // Gains first: what was taken and is not needed after all is never counted below zero.
            let (clusters, by) = if let Some(gained) = self.pending.gained.pop() {
                (gained, 1)
            } else if let Some(lost) = self.pending.lost.pop() {
                (lost, -1)
            } else {
                return Ok(());
            };
            for cluster in clusters {
                self.add(cluster, by).await?;
            }
        }
    }

    async fn add(&mut self, cluster: u64, by: i64) -> Result<()> {
        if by < 0 && self.understated.lose(cluster) {
            return Ok(());
        }
        let old = self.get(cluster).await?;
        let new = old
            .checked_add_signed(by)
            .filter(|&new| new <= self.width.max());
        let Some(new) = new else {
            return Err(Error::corrupt(
                format!("The references to cluster {cluster:#x} do not add up"),
                Place::of(Structure::RefcountBlock),
            ));
        };
        self.left_alone |= by < 0 && new == 1;
        self.set(cluster, new).await
    }

    /// Writes what is not written yet; `header` leads to it then. Nothing is pending.
    pub async fn finish(mut self, header: &mut RawHeader) -> Result<()> {
        let Some(home) = self.home.clone() else {
            return Ok(());
        };
        let dirty: BTreeMap<u64, u64> = self
            .blocks
            .iter()
            .filter(|(_, block)| block.dirty)
            .map(|(&index, _)| (self.entry(index), index))
            .collect();
        for index in dirty.into_values() {
            self.write_block(index).await?;
        }
        let clusters = home.end - home.start;
        let entries = clusters * self.cluster_bytes / 8;
        self.table.resize(entries as usize, 0);
        let offset = home.start * self.cluster_bytes;
        self.engine
            .write_aside(
                "Could not write refcount table",
                offset,
                &be64_bytes(&self.table),
            )
            .await?;
        header.refcount_table_offset = offset;
        header.refcount_table_clusters = clusters as u32;
        Ok(())
    }

    /// Whether the refcount of the cluster at byte `offset` may be too low, so that nothing follows from it.
    pub fn understates(&self, offset: u64) -> bool {
        self.understated.may_contain(offset / self.cluster_bytes)
    }

    /// Which refcounts are too low, as far as everything is settled.
    pub fn understated(&self) -> &Understated {
        &self.understated
    }

    /// Whether the new state's refcounts are not the file's.
    pub fn is_changed(&self) -> bool {
        self.changed
    }
}
