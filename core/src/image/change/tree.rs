//! The trees of an image as a transaction walks them: an L1 table, its L2 tables, and what they refer to.
//! Read from the file: everything is committed when a transaction begins.

use std::ops::Range;

use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::corruption::{unaligned_cluster, unaligned_table};
use crate::qcow2::bytes::be64_table;
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{COPIED, L2Format, MAX_REFCOUNT_TABLE_BYTES, OFFSET_MASK};
use crate::storage::Storage;
use crate::units::HostOffset;

/// An L2 table as the file has it.
pub(crate) struct L2Table {
    pub entries: Vec<u64>,
    format: L2Format,
}

impl L2Table {
    /// A table in which nothing is allocated.
    pub fn empty(format: L2Format) -> Self {
        Self {
            entries: vec![0; format.cluster_size.len() / 8],
            format,
        }
    }

    pub fn len(&self) -> usize {
        self.format.entries() as usize
    }

    pub fn entry(&self, index: usize) -> L2Entry {
        self.format
            .entry(&self.entries, index)
            .unwrap_or(L2Entry::UNALLOCATED)
    }

    pub fn set(&mut self, index: usize, entry: L2Entry) {
        self.format.set_entry(&mut self.entries, index, entry);
    }

    /// Host clusters that the entries `from..` refer to, each as often as they do, in runs.
    pub fn references(&self, from: usize) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for clusters in (from..self.len()).filter_map(|index| self.references_of(index)) {
            match runs.last_mut() {
                Some(run) if run.end == clusters.start => run.end = clusters.end,
                _ => runs.push(clusters),
            }
        }
        runs
    }

    /// Host clusters that one entry refers to.
    pub fn references_of(&self, index: usize) -> Option<Range<u64>> {
        if self.format.data_file {
            return None; // Nothing counts the clusters of a data file.
        }
        let entry = self.entry(index);
        if let Some(compressed) = self.format.compressed(entry) {
            return Some(self.format.clusters_of(compressed));
        }
        let host = self.format.host_cluster(entry)?;
        let cluster = self.format.cluster_size.index_of(host.0);
        Some(cluster..cluster + 1)
    }

    /// The same table with COPIED as `owned` says of each standard host cluster; whether that changed it.
    pub fn set_copied(&mut self, index: usize, owned: bool) -> bool {
        let old = self.entry(index);
        if old.is_compressed() || self.format.host_cluster(old).is_none() {
            return false;
        }
        let descriptor = match owned {
            true => old.descriptor | COPIED,
            false => old.descriptor & !COPIED,
        };
        let changed = descriptor != old.descriptor;
        self.set(index, L2Entry { descriptor, ..old });
        changed
    }

    /// Clears COPIED everywhere: others refer to these clusters too. Returns whether any was set.
    pub fn clear_copied(&mut self) -> bool {
        (0..self.len()).fold(false, |any, index| self.set_copied(index, false) | any)
    }

    /// The first entry that points to where no cluster begins, and there.
    fn first_unaligned(&self) -> Option<(usize, HostOffset)> {
        if self.format.data_file {
            return None;
        }
        let size = self.format.cluster_size.bytes();
        (0..self.len()).find_map(|index| {
            let host = self.format.host_cluster(self.entry(index))?;
            (!host.is_aligned(size)).then_some((index, host))
        })
    }

    pub fn host_cluster(&self, index: usize) -> Option<u64> {
        let entry = self.entry(index);
        let host = self.format.host_cluster(entry)?;
        Some(self.format.cluster_size.index_of(host.0))
    }

    pub fn bytes(&self) -> Vec<u8> {
        crate::qcow2::bytes::be64_bytes(&self.entries)
    }
}

impl<S: Storage> Engine<'_, S> {
    /// The L2 table that an L1 entry points to; `None` where it points nowhere.
    pub async fn read_l2(&self, l1_entry: u64) -> Result<Option<(u64, L2Table)>> {
        let offset = l1_entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        let cluster = self.cluster_bytes();
        if !HostOffset(offset).is_aligned(cluster) {
            return Err(self.qcow2.alarm.raise(self.unaligned_table(l1_entry)));
        }
        if offset >= self.qcow2.file_len() || l1_entry & !(OFFSET_MASK | COPIED) != 0 {
            return Err(Error::corrupt(
                format!("L1 entry {l1_entry:#x} points to no L2 table"),
                Place::of(Structure::L1Table),
            ));
        }
        let bytes = self
            .read_metadata("Could not read L2 table", offset, cluster as usize)
            .await?;
        let table = L2Table {
            entries: be64_table(&bytes).collect(),
            format: self.qcow2.l2_format,
        };
        if let Some((index, host)) = table.first_unaligned() {
            let what = unaligned_cluster(host, HostOffset(offset), index as u64);
            let place = Place::at(Structure::L2Table, offset).entry(index as u64);
            return Err(self.qcow2.alarm.raise(Error::corrupt(what, place)));
        }
        Ok(Some((offset, table)))
    }

    fn unaligned_table(&self, l1_entry: u64) -> Error {
        let root = self.qcow2.root.borrow();
        let index = root.l1.iter().position(|&entry| entry == l1_entry);
        let index = index.unwrap_or(0) as u64;
        let what = unaligned_table(HostOffset(l1_entry & OFFSET_MASK), index);
        Error::corrupt(what, Place::of(Structure::L1Table).entry(index))
    }

    pub fn cluster_of(&self, offset: u64) -> u64 {
        self.qcow2.l2_format.cluster_size.index_of(offset)
    }
}

impl<S: Storage> Shadow<'_, '_, S> {
    /// Adds `by` references for everything that the tree of `l1` refers to, the L2 tables included.
    pub async fn add_tree(&mut self, l1: &[u64], by: i64) -> Result<()> {
        for &entry in l1 {
            if let Some((offset, table)) = self.engine.read_l2(entry).await? {
                let cluster = self.engine.cluster_of(offset);
                self.add(cluster..cluster + 1, by).await?;
                self.add_references(&table, 0, by).await?;
            }
        }
        Ok(())
    }

    pub async fn add_references(&mut self, table: &L2Table, from: usize, by: i64) -> Result<()> {
        for run in table.references(from) {
            let per_block = self.engine.state.refcounts.borrow().per_block();
            if run.end > MAX_REFCOUNT_TABLE_BYTES / 8 * per_block {
                return Err(Error::OutOfRange(
                    format!(
                        "An L2 entry refers to cluster {:#x}, which no refcount table can count",
                        run.end - 1
                    )
                    .into(),
                ));
            }
            if run.end > self.engine.cluster_of(self.engine.qcow2.file_len()) + 1 {
                return Err(Error::corrupt(
                    format!(
                        "An L2 entry refers to cluster {:#x}, past the end of the file",
                        run.end - 1
                    ),
                    Place::of(Structure::L2Table),
                ));
            }
            self.add(run, by).await?;
        }
        Ok(())
    }

    /// A copy of `table` at a new place.
    pub async fn write_l2(&mut self, table: &L2Table) -> Result<u64> {
        self.write_new_table("Could not write L2 table", &table.bytes())
            .await
    }

    /// The active L1 table from now on, and the end of the old one.
    pub async fn replace_l1(&mut self, l1: &[u64]) -> Result<()> {
        let (old, entries) = (self.header.l1_table_offset, self.header.l1_size);
        if !l1.is_empty() {
            let bytes = crate::qcow2::bytes::be64_bytes(l1);
            self.header.l1_table_offset = self
                .write_new_table("Could not write L1 table", &bytes)
                .await?;
            self.header.l1_size = l1.len() as u32;
            self.free_table(old, u64::from(entries) * 8).await?;
        }
        Ok(())
    }
}
