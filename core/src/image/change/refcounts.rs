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
    /// No cluster below this one is free.
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
    /// There is no refcount block of this index: nothing counts the clusters there.
    Uncounted(u64),
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

    /// Takes up to `wanted` free clusters that follow one another, from the first free one on.
    pub fn take(&mut self, wanted: u64) -> Result<Found> {
        loop {
            let (index, entry) = self.place_of(self.hint);
            if self.block_offset(index)?.is_none() {
                return Ok(Found::Uncounted(index));
            }
            let Some(block) = self.blocks.get(&index) else {
                return Ok(Found::Unloaded(index));
            };
            let Some(first) = self.width.find_free(&block.bytes, entry) else {
                self.hint = (index + 1) * self.per_block();
                continue;
            };
            let most = wanted.min(self.per_block() - first as u64) as usize;
            let count = (first..first + most)
                .take_while(|&at| self.width.get(&block.bytes, at) == 0)
                .count() as u64;
            let start = index * self.per_block() + first as u64;
            let clusters = start..start + count.max(1);
            self.check_unprotected(&clusters)?;
            for cluster in clusters.clone() {
                self.set(cluster, 1);
            }
            self.hint = clusters.end;
            return Ok(Found::Clusters(clusters));
        }
    }

    /// The first cluster that may be free: where a search starts.
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
