//! Refcounts in memory: blocks of them as they will be, and which clusters are free.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::{Error, Place, Result, Structure};
use crate::image::corruption::Hex;
use crate::qcow2::{Header, OFFSET_MASK, RefcountWidth};
use crate::units::{ClusterSize, SECTOR};

/// The refcount blocks of an image, as far as they were needed.
pub(crate) struct Refcounts {
    pub width: RefcountWidth,
    pub cluster_size: ClusterSize,
    /// The refcount table; empty until it is read.
    pub table: Vec<u64>,
    blocks: HashMap<u64, Block>,
    /// Where searches start: what is free below was too small for what was asked for there.
    hint: u64,
    /// Clusters of metadata with what they are, sorted: none of them is ever handed out, whatever the refcounts
    /// say. A number each, with the kind in its lowest bits: large images have many.
    protected: Vec<u64>,
}

struct Block {
    bytes: Vec<u8>,
    /// The bytes that the file does not have yet.
    dirty: Option<Range<usize>>,
}

/// A changed part of a refcount block.
pub(crate) struct DirtyPart {
    index: u64,
    /// Where it lies in the file.
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// How many bits the kind of a protected cluster takes.
const KIND_BITS: u32 = 4;
const KIND_MASK: u64 = (1 << KIND_BITS) - 1;

/// What guest data and new tables must not be written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metadata {
    Header,
    ActiveL1,
    ActiveL2,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    InactiveL1,
    BitmapDirectory,
}

impl Metadata {
    const ALL: [Self; 8] = [
        Self::Header,
        Self::ActiveL1,
        Self::ActiveL2,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::SnapshotTable,
        Self::InactiveL1,
        Self::BitmapDirectory,
    ];

    /// QEMU's name of it.
    fn name(self) -> &'static str {
        match self {
            Self::Header => "qcow2_header",
            Self::ActiveL1 => "active L1 table",
            Self::ActiveL2 => "active L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::InactiveL1 => "inactive L1 table",
            Self::BitmapDirectory => "bitmap directory",
        }
    }

    /// Something else was about to be written to byte `offset`.
    pub fn in_the_way(self, offset: u64) -> Error {
        let name = self.name();
        let what = format!("Preventing invalid write on metadata (overlaps with {name})");
        let structure = match self {
            Self::Header => Structure::Header,
            Self::ActiveL1 | Self::InactiveL1 => Structure::L1Table,
            Self::ActiveL2 => Structure::L2Table,
            Self::RefcountTable => Structure::RefcountTable,
            Self::RefcountBlock => Structure::RefcountBlock,
            Self::SnapshotTable => Structure::SnapshotTable,
            Self::BitmapDirectory => Structure::BitmapDirectory,
        };
        Error::corrupt(what, Place::at(structure, offset))
    }
}

/// What asking for free clusters came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// These were free, and have a refcount of one now.
    Clusters(Range<u64>),
    /// The refcount block of this index must be loaded first.
    Unloaded(u64),
    /// These are free, but there is no refcount block of this index to count them.
    Uncounted(u64, Range<u64>),
}

/// What looking for free clusters came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Searched {
    Free(Range<u64>),
    /// The refcount block of this index must be loaded first; before `from` there is nothing.
    Unloaded {
        index: u64,
        from: u64,
    },
}

impl Refcounts {
    pub fn new(header: &Header) -> Self {
        Self {
            width: header.refcount_width,
            cluster_size: header.cluster_size,
            table: Vec::new(),
            blocks: HashMap::new(),
            hint: 0,
            protected: Vec::new(),
        }
    }

    /// Those of a file that has none.
    pub fn none() -> Self {
        Self {
            width: RefcountWidth::BITS_16,
            cluster_size: ClusterSize::DEFAULT,
            table: Vec::new(),
            blocks: HashMap::new(),
            hint: 0,
            protected: Vec::new(),
        }
    }

    /// How many clusters one block counts.
    pub fn per_block(&self) -> u64 {
        self.width.entries_per_block(self.cluster_size)
    }

    /// The block that counts `cluster`, and its entry there.
    pub fn place_of(&self, cluster: u64) -> (u64, usize) {
        let per_block = self.per_block();
        (cluster / per_block, (cluster % per_block) as usize)
    }

    /// Where block `index` lies in the file; `None` where there is none.
    pub fn block_offset(&self, index: u64) -> Result<Option<u64>> {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|at| self.table.get(at));
        let offset = entry.map_or(0, |entry| entry & OFFSET_MASK);
        if offset & (self.cluster_size.bytes() - 1) != 0 {
            return Err(Error::corrupt(
                format!(
                    "Refblock offset {offset:#x} unaligned (reftable index: {})",
                    Hex(index)
                ),
                Place::of(Structure::RefcountTable).entry(index),
            ));
        }
        Ok((offset != 0).then_some(offset))
    }

    pub fn is_loaded(&self, index: u64) -> bool {
        self.blocks.contains_key(&index)
    }

    /// Block `index` as the file has it.
    pub fn load(&mut self, index: u64, bytes: Vec<u8>) {
        self.blocks
            .entry(index)
            .or_insert(Block { bytes, dirty: None });
    }

    /// Block `index` as a transaction has just made it durable.
    pub fn replace(&mut self, index: u64, bytes: Vec<u8>) {
        self.blocks.insert(index, Block { bytes, dirty: None });
    }

    /// The table as a transaction has just made it durable.
    pub fn adopt_table(&mut self, table: Vec<u64>) {
        self.blocks
            .retain(|&index, _| table.get(index as usize).is_some_and(|&entry| entry != 0));
        self.table = table;
    }

    /// The bytes of block `index`, if it is loaded.
    pub fn block(&self, index: u64) -> Option<&[u8]> {
        self.blocks.get(&index).map(|block| &block.bytes[..])
    }

    /// The refcount of `cluster`, whose block is loaded; 0 where no block counts it.
    pub fn get(&self, cluster: u64) -> u64 {
        let (index, entry) = self.place_of(cluster);
        self.block(index)
            .map_or(0, |block| self.width.get(block, entry))
    }

    /// Sets the refcount of `cluster`, whose block is loaded.
    pub fn set(&mut self, cluster: u64, count: u64) {
        let (index, entry) = self.place_of(cluster);
        let width = self.width;
        if let Some(block) = self.blocks.get_mut(&index) {
            width.set(&mut block.bytes, entry, count);
            let bytes = width.bytes_of(entry);
            block.dirty = Some(match block.dirty.take() {
                None => bytes,
                Some(dirty) => dirty.start.min(bytes.start)..dirty.end.max(bytes.end),
            });
        }
        if count == 0 {
            self.hint = self.hint.min(cluster);
        }
    }

    /// Takes one reference from `cluster`, whose block is loaded.
    pub fn decrement(&mut self, cluster: u64) -> Result<u64> {
        let Some(count) = self.get(cluster).checked_sub(1) else {
            return Err(self.below_zero(cluster));
        };
        self.set(cluster, count);
        Ok(count)
    }

    pub fn below_zero(&self, cluster: u64) -> Error {
        let offset = cluster * self.cluster_size.bytes();
        Error::corrupt(
            format!("The refcount of the cluster at {offset:#x} is lower than its references"),
            Place::at(Structure::RefcountBlock, offset),
        )
    }

    /// Takes `wanted` free clusters that follow one another: the first run of so many, as in QEMU, so that what is
    /// written at once lies in one piece. Smaller holes before it are for who comes after the next ones are given back.
    /// Fewer if they go on at cluster `behind`, where what stands before them ended: that is as good.
    pub fn take(&mut self, wanted: u64, behind: Option<u64>) -> Result<Found> {
        if let Some(cluster) = behind {
            match self.take_at(cluster, wanted)? {
                Found::Clusters(none) if none.is_empty() => {}
                found => return Ok(found),
            }
        }
        match self.find(self.hint, wanted)? {
            Searched::Free(run) => match self.uncounted_in(&run)? {
                Some(index) => Ok(Found::Uncounted(index, run)),
                None => {
                    self.hint = run.end;
                    self.take_run(run)
                }
            },
            Searched::Unloaded { index, from } => {
                // Not once more over what was looked through: what has no block in memory any more would be loaded again.
                self.hint = from;
                Ok(Found::Unloaded(index))
            }
        }
    }

    /// Takes up to `wanted` clusters at `cluster`, maybe none.
    fn take_at(&mut self, cluster: u64, wanted: u64) -> Result<Found> {
        match self.free_run(cluster, wanted)? {
            Searched::Free(run) => match self.uncounted_in(&run)? {
                Some(index) => {
                    let counted = cluster.max(index * self.per_block());
                    Ok(Found::Uncounted(index, cluster..counted))
                }
                None => self.take_run(run),
            },
            Searched::Unloaded { index, .. } => Ok(Found::Unloaded(index)),
        }
    }

    fn take_run(&mut self, run: Range<u64>) -> Result<Found> {
        self.check_unprotected(&run)?;
        for cluster in run.clone() {
            self.set(cluster, 1);
        }
        Ok(Found::Clusters(run))
    }

    /// The first block that would count some of `run`, but is not there.
    fn uncounted_in(&self, run: &Range<u64>) -> Result<Option<u64>> {
        if run.is_empty() {
            return Ok(None);
        }
        let (first, _) = self.place_of(run.start);
        let (last, _) = self.place_of(run.end - 1);
        for index in first..=last {
            if self.block_offset(index)?.is_none() {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Looks from `from` on for `wanted` clusters, at least one, that follow one another and are free. Those that no
    /// block counts are.
    pub fn find(&self, from: u64, wanted: u64) -> Result<Searched> {
        let mut start = from;
        loop {
            let run = match self.free_run(start, wanted)? {
                Searched::Free(run) => run,
                unloaded => return Ok(unloaded),
            };
            if run.end - run.start == wanted {
                return Ok(Searched::Free(run));
            }
            // The next one after that is used, and its block is in memory.
            let (index, used) = self.place_of(run.end);
            let next = self
                .block(index)
                .and_then(|block| self.width.find_free(block, used));
            let per_block = self.per_block();
            start = next.map_or((index + 1) * per_block, |at| index * per_block + at as u64);
        }
    }

    /// The clusters from `start` on that are free, at most `wanted`.
    fn free_run(&self, start: u64, wanted: u64) -> Result<Searched> {
        let per_block = self.per_block();
        let mut run = start..start;
        while run.end - start < wanted {
            let (index, entry) = self.place_of(run.end);
            let most = (start + wanted).min((index + 1) * per_block);
            if self.block_offset(index)?.is_none() {
                run.end = most;
                continue;
            }
            let Some(block) = self.block(index) else {
                return Ok(Searched::Unloaded { index, from: start });
            };
            let free = (entry..)
                .take((most - run.end) as usize)
                .take_while(|&at| self.width.get(block, at) == 0);
            run.end += free.count() as u64;
            if run.end < most {
                break;
            }
        }
        Ok(Searched::Free(run))
    }

    /// Where a search starts.
    pub fn hint(&self) -> u64 {
        self.hint
    }

    /// Moves the start of searches to at most `cluster`.
    pub fn hint_down_to(&mut self, cluster: u64) {
        self.hint = self.hint.min(cluster);
    }

    /// What metadata there is in `clusters`, if any; `but` does not count.
    pub fn metadata_in(&self, clusters: &Range<u64>, but: Option<Metadata>) -> Option<Metadata> {
        let at = self
            .protected
            .partition_point(|&entry| entry >> KIND_BITS < clusters.start);
        self.protected[at..]
            .iter()
            .take_while(|&&entry| entry >> KIND_BITS < clusters.end)
            .map(|entry| Metadata::ALL[(entry & KIND_MASK) as usize])
            .filter(|&kind| Some(kind) != but)
            .min()
    }

    /// Refcounts of a sound image never call metadata free (QEMU-COMPAT rule 43).
    pub fn check_unprotected(&self, clusters: &Range<u64>) -> Result<()> {
        match self.metadata_in(clusters, None) {
            None => Ok(()),
            Some(kind) => Err(kind.in_the_way(clusters.start * self.cluster_size.bytes())),
        }
    }

    /// From now on none of these clusters is handed out, and nothing else is.
    pub fn protect(&mut self, clusters: impl IntoIterator<Item = (Metadata, u64)>) {
        self.protected = clusters
            .into_iter()
            .map(|(kind, cluster)| cluster << KIND_BITS | kind as u64)
            .collect();
        self.protected.sort_unstable();
        self.protected.dedup();
    }

    /// `cluster` is no longer what it was.
    pub fn unprotect(&mut self, kind: Metadata, cluster: u64) {
        let entry = cluster << KIND_BITS | kind as u64;
        if let Ok(at) = self.protected.binary_search(&entry) {
            self.protected.remove(at);
        }
    }

    /// Takes the changed parts of the blocks, to be written.
    pub fn take_dirty(&mut self) -> Result<Vec<DirtyPart>> {
        let dirty: Vec<u64> = self.dirty_blocks();
        let mut parts = Vec::with_capacity(dirty.len());
        for index in dirty {
            let offset = self.block_offset(index)?;
            let Some(block) = self.blocks.get_mut(&index) else {
                continue;
            };
            if let (Some(range), Some(offset)) = (block.dirty.take(), offset) {
                // Whole sectors: a part of one would have to be read first by whoever keeps it.
                let sector = SECTOR as usize;
                let start = range.start / sector * sector;
                let end = range.end.next_multiple_of(sector).min(block.bytes.len());
                parts.push(DirtyPart {
                    index,
                    offset: offset + start as u64,
                    bytes: block.bytes[start..end].to_vec(),
                });
            }
        }
        Ok(parts)
    }

    /// `part` was not written after all.
    pub fn dirty_again(&mut self, part: &DirtyPart) {
        if let Some(block) = self.blocks.get_mut(&part.index) {
            block.dirty = Some(0..block.bytes.len());
        }
    }

    /// The blocks that the file does not have as they are, in order.
    pub fn dirty_blocks(&self) -> Vec<u64> {
        let mut dirty: Vec<u64> = self
            .blocks
            .iter()
            .filter(|(_, block)| block.dirty.is_some())
            .map(|(index, _)| *index)
            .collect();
        dirty.sort_unstable();
        dirty
    }

    /// Drops clean blocks while there are more than `most`, but for `keep`.
    pub fn shrink_to(&mut self, most: usize, keep: u64) {
        if self.blocks.len() > most {
            self.blocks
                .retain(|index, block| block.dirty.is_some() || *index == keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 512-byte clusters, 256 of them counted by each of two blocks, with room in the table for a third.
    fn with_used(used: &[Range<u64>]) -> Refcounts {
        let mut refcounts = Refcounts::none();
        refcounts.cluster_size = ClusterSize::from_bits(9).unwrap();
        refcounts.table = vec![512, 1024, 0];
        for index in 0..2 {
            refcounts.load(index, vec![0; 512]);
        }
        for cluster in used.iter().cloned().flatten() {
            refcounts.set(cluster, 1);
        }
        refcounts
    }

    #[test]
    fn a_run_is_taken_where_all_of_it_fits() {
        let mut refcounts = with_used(&[0..10, 13..20, 40..41]);
        let mut take = |wanted| refcounts.take(wanted, None).unwrap();
        assert_eq!(take(2), Found::Clusters(10..12));
        assert_eq!(take(4), Found::Clusters(20..24));
        // What was too small is left until something is given back before it.
        assert_eq!(take(1), Found::Clusters(24..25));
        assert_eq!(take(20), Found::Clusters(41..61));
        refcounts.set(11, 0);
        assert_eq!(refcounts.take(1, None).unwrap(), Found::Clusters(11..12));
    }

    #[test]
    fn what_no_block_counts_is_free_but_needs_one() {
        let mut refcounts = with_used(&[0..250, 250..500]);
        let needs = Found::Uncounted(2, 500..520);
        assert_eq!(refcounts.take(20, None).unwrap(), needs);
        assert_eq!(refcounts.take(12, None).unwrap(), Found::Clusters(500..512));
        assert_eq!(
            refcounts.take(1, None).unwrap(),
            Found::Uncounted(2, 512..513)
        );
        assert_eq!(refcounts.find(505, 3).unwrap(), Searched::Free(512..515));
    }

    #[test]
    fn a_search_goes_on_where_it_asked_for_a_block() {
        let mut refcounts = with_used(&[0..100, 100..250]);
        refcounts.blocks.remove(&1);
        assert_eq!(refcounts.take(10, None).unwrap(), Found::Unloaded(1));
        assert_eq!(refcounts.hint(), 250);
        refcounts.load(1, vec![0; 512]);
        assert_eq!(refcounts.take(10, None).unwrap(), Found::Clusters(250..260));
    }

    #[test]
    fn what_goes_on_may_be_fewer() {
        let mut refcounts = with_used(&[0..10, 13..20]);
        let mut take = |at, wanted| refcounts.take(wanted, Some(at)).unwrap();
        assert_eq!(take(10, 5), Found::Clusters(10..13));
        assert_eq!(take(510, 5), Found::Uncounted(2, 510..512));
        assert_eq!(take(520, 5), Found::Uncounted(2, 520..520));
        assert_eq!(take(13, 5), Found::Clusters(20..25));
    }
}
