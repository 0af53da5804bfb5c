//! Counting every reference that there is: header, active state, snapshots, tables, encryption header,
//! bitmaps, refcount blocks.

use std::ops::Range;
use std::pin::pin;

use futures_util::StreamExt;

use super::counter::Counter;
use super::coverage::{Segment, coverage};
use super::findings::Findings;
use super::page::{Addend, Claim};
use super::report::{Problem, ProblemKind};
use super::stored::Stored;
use super::tables::{Buffers, Slot, Slots, fetch, fetches, visits};
use crate::error::{Place, Result, Structure};
use crate::image::Qcow2;
use crate::qcow2::bytes::be64_table;
use crate::qcow2::{COPIED, MAX_L1_BYTES, OFFSET_MASK, Table};
use crate::storage::Storage;
use crate::units::{HostOffset, SECTOR};

/// A pass over all tables, which counts the references to a window of the host clusters.
pub(crate) struct References<'a, 'w, S> {
    pub(crate) image: &'a Qcow2<S>,
    pub(crate) findings: &'a mut Findings<'w>,
    counter: Counter,
    /// How many host clusters there are: those of the file, and one more where something lies across its end.
    clusters: u64,
    /// The most references that a refcount can count.
    limit: u64,
}

/// How many L1 slots a pass visits.
pub(crate) fn work<S: Storage>(image: &Qcow2<S>) -> u64 {
    let inactive: u64 = image
        .snapshots()
        .iter()
        .map(|snapshot| u64::from(snapshot.l1_entries))
        .sum();
    inactive + u64::from(image.header().l1.entries)
}

impl<'a, 'w, S: Storage> References<'a, 'w, S> {
    /// A pass for the clusters from `from` on, of `clusters` that there are.
    pub fn new(
        image: &'a Qcow2<S>,
        findings: &'a mut Findings<'w>,
        from: u64,
        clusters: u64,
        counter_bytes: usize,
    ) -> Self {
        let limit = image.header().refcount_width.max();
        Self {
            image,
            findings,
            counter: Counter::new(from, counter_bytes),
            clusters,
            limit,
        }
    }

    /// What was counted, and how many clusters there turned out to be.
    pub fn into_counted(self) -> (Counter, u64) {
        (self.counter, self.clusters)
    }

    /// Counts everything.
    pub async fn count(&mut self, stored: &Stored) -> Result<()> {
        let header = self.image.header();
        let cluster = header.cluster_size.bytes();
        self.refer(0..cluster, 1, Claim::None, Place::of(Structure::Header));
        let Table { offset, entries } = header.l1;
        let l1 = offset.0..offset.0 + u64::from(entries) * 8;
        self.refer(
            l1.clone(),
            1,
            Claim::None,
            Place::at(Structure::L1Table, l1.start),
        );
        self.count_l1(
            &[Segment {
                range: l1,
                weight: 1,
            }],
            true,
        )
        .await?;
        self.count_snapshots().await?;

        let table = header.snapshots.offset.0;
        let place = Place::at(Structure::SnapshotTable, table);
        let bytes = self.image.meta.borrow().snapshot_table_bytes;
        self.refer(table..table + bytes, 1, Claim::None, place);
        let table = header.refcount_table.offset.0;
        let place = Place::at(Structure::RefcountTable, table);
        let bytes = u64::from(header.refcount_table.entries) * 8;
        self.refer(table..table + bytes, 1, Claim::None, place);
        if let Some(crypto) = self.image.extensions().crypto {
            let place = Place::at(Structure::CryptoHeader, crypto.offset.0);
            let end = crypto.offset.0.saturating_add(crypto.length);
            self.refer(crypto.offset.0..end, 1, Claim::None, place);
        }
        self.count_bitmaps().await?;
        self.count_refcount_blocks(stored);
        Ok(())
    }

    /// Counts `weight` references to each cluster that `bytes` touch, unless they lie a cluster or more
    /// past the end of the file.
    pub(crate) fn refer(&mut self, bytes: Range<u64>, weight: u64, claim: Claim, place: Place) {
        if let Some(clusters) = self.clusters_of(bytes, weight, place) {
            self.add(clusters, weight, claim, place.structure);
        }
    }

    /// As [`Self::refer`] for many ranges that may lie over one another.
    pub(crate) fn refer_all(&mut self, ranges: &[Range<u64>], structure: Structure) {
        let clusters: Vec<_> = ranges
            .iter()
            .filter_map(|bytes| {
                self.clusters_of(bytes.clone(), 1, Place::at(structure, bytes.start))
            })
            .collect();
        for Segment { range, weight } in coverage(clusters) {
            self.add(range, weight, Claim::None, structure);
        }
    }

    /// The clusters that `bytes` touch, if they are there.
    fn clusters_of(&mut self, bytes: Range<u64>, weight: u64, place: Place) -> Option<Range<u64>> {
        if bytes.is_empty() {
            return None;
        }
        let cluster = self.image.header().cluster_size;
        // The last cluster of a file need not be there to its end; QEMU counts the file in sectors.
        let file_end = self.image.file_len().next_multiple_of(SECTOR);
        if bytes.end >= file_end + cluster.bytes() {
            let kind = ProblemKind::PastEnd {
                offset: bytes.start,
                length: bytes.end - bytes.start,
            };
            self.findings
                .in_table(Problem::new(kind, place).times(weight));
            return None;
        }
        let clusters = cluster.index_of(bytes.start)..cluster.index_of(bytes.end - 1) + 1;
        self.clusters = self.clusters.max(clusters.end);
        Some(clusters)
    }

    /// Counts `weight` references to each of `clusters`, which are there.
    pub(crate) fn add(
        &mut self,
        clusters: Range<u64>,
        weight: u64,
        claim: Claim,
        structure: Structure,
    ) {
        let addend = Addend::new(weight, claim, self.limit);
        let cluster_bytes = self.image.header().cluster_size.bytes();
        let findings = &mut *self.findings;
        self.counter.add(
            clusters.start,
            clusters.end - clusters.start,
            addend,
            &mut |cluster, lost| {
                let offset = HostOffset(cluster * cluster_bytes);
                let place = Place::at(structure, offset.0);
                findings.of_cluster(
                    Problem::new(ProblemKind::RefcountOverflow { offset }, place).times(lost),
                );
            },
        );
    }

    /// Counts what the L1 tables in `segments` refer to.
    async fn count_l1(&mut self, segments: &[Segment], active: bool) -> Result<()> {
        let image = self.image;
        let storage = &image.file().storage;
        let cluster_size = image.header().cluster_size;
        let entry_words = image.l2_format().entry_bytes() as usize / 8;
        let buffers = Buffers::default();
        let mut table = Vec::with_capacity(cluster_size.len() / 8);
        let mut slots = Slots::new(storage, segments);
        let mut batch = Vec::new();
        loop {
            let mut passed = slots.next(&mut batch).await?;
            if passed == 0 {
                return Ok(());
            }
            let file_len = image.file_len();
            let visits = visits(&batch, |slot| slot.table_inside(file_len));
            let fetches = fetches(&visits, cluster_size);
            let mut fetched = pin!(fetch(storage, fetches, cluster_size, &buffers));
            let mut slots_done = 0;
            while let Some(result) = fetched.next().await {
                let (fetch, bytes) = result?;
                for (visit, table_bytes) in visits[fetch.visits.clone()]
                    .iter()
                    .zip(bytes.chunks(cluster_size.len()))
                {
                    for slot in &batch[slots_done..=visit.slot] {
                        self.count_l1_entry(slot, active);
                    }
                    slots_done = visit.slot + 1;
                    table.clear();
                    table.extend(be64_table(table_bytes));
                    if entry_words == 1 {
                        self.count_l2_table::<false>(&table, visit, active);
                    } else {
                        self.count_l2_table::<true>(&table, visit, active);
                    }
                }
                buffers.give(bytes);
                let tables = (fetch.visits.len() as u64).min(passed);
                passed -= tables;
                self.findings.advance(tables)?;
            }
            for slot in &batch[slots_done..] {
                self.count_l1_entry(slot, active);
            }
            self.findings.advance(passed)?;
        }
    }

    fn count_l1_entry(&mut self, slot: &Slot, active: bool) {
        let place = Place::at(Structure::L1Table, slot.at);
        if slot.entry & !(OFFSET_MASK | COPIED) != 0 {
            let kind = ProblemKind::L1ReservedBits {
                l1_entry: slot.entry,
            };
            self.findings
                .in_table(Problem::new(kind, place).times(slot.weight));
        }
        let offset = slot.entry & OFFSET_MASK;
        let cluster = self.image.header().cluster_size.bytes();
        let claim = if active && offset != 0 {
            Claim::of(slot.entry)
        } else {
            Claim::None
        };
        self.refer(offset..offset + cluster, slot.weight, claim, place);
        if !HostOffset(offset).is_aligned(cluster) {
            let kind = ProblemKind::L2TableUnaligned { offset };
            self.findings
                .in_table(Problem::new(kind, place).times(slot.weight));
        }
    }

    async fn count_snapshots(&mut self) -> Result<()> {
        let image = self.image;
        let snapshots = image.snapshots();
        let place = |index: usize| {
            Place::at(Structure::SnapshotTable, image.header().snapshots.offset.0)
                .entry(index as u64)
        };
        if image.header().has_data_file() && !snapshots.is_empty() {
            let kind = ProblemKind::SnapshotsWithDataFile {
                count: snapshots.len() as u64,
            };
            self.findings.in_table(Problem::new(kind, place(0)));
        }
        let mut tables = Vec::new();
        for (index, snapshot) in snapshots.iter().enumerate() {
            let (id, name) = (snapshot.id.clone(), snapshot.name.clone());
            let bytes = u64::from(snapshot.l1_entries) * 8;
            let offset = snapshot.l1_offset;
            if !offset.is_aligned(image.header().cluster_size.bytes()) {
                let kind = ProblemKind::SnapshotL1Unaligned { id, name, offset };
                self.findings.in_table(Problem::new(kind, place(index)));
            } else if bytes > MAX_L1_BYTES {
                let kind = ProblemKind::SnapshotL1TooLarge {
                    id,
                    name,
                    entries: snapshot.l1_entries,
                };
                self.findings.in_table(Problem::new(kind, place(index)));
            } else {
                tables.push(offset.0..offset.0.saturating_add(bytes));
            }
        }
        self.refer_all(&tables, Structure::L1Table);
        // Past the end of the file there are only zeros.
        let file_end = image.file_len().next_multiple_of(8);
        let inside = tables
            .into_iter()
            .map(|table| table.start..table.end.min(file_end));
        self.count_l1(&coverage(inside), false).await
    }

    fn count_refcount_blocks(&mut self, stored: &Stored) {
        let header = self.image.header();
        let cluster = header.cluster_size;
        for (index, entry) in (0u64..).zip(stored.table()) {
            let place = Place::at(
                Structure::RefcountTable,
                header.refcount_table.offset.0 + index * 8,
            )
            .entry(index);
            let offset = Stored::block_offset(*entry);
            let wrong = if *entry != offset {
                ProblemKind::RefcountTableReservedBits { index }
            } else if !HostOffset(offset).is_aligned(cluster.bytes()) {
                ProblemKind::RefcountBlockUnaligned { index }
            } else if cluster.index_of(offset) >= self.clusters {
                ProblemKind::RefcountBlockPastEnd { index }
            } else {
                if offset != 0 {
                    let block = cluster.index_of(offset);
                    let before = self.counted(block);
                    self.refer(offset..offset + cluster.bytes(), 1, Claim::None, place);
                    self.check_block_is_alone(index, block, before, place);
                }
                continue;
            };
            self.findings.in_table(Problem::new(wrong, place));
        }
    }

    /// How often `cluster` is referred to so far, if it is in the window.
    fn counted(&self, cluster: u64) -> Option<u64> {
        let inside = self.counter.window().contains(&cluster);
        inside.then(|| self.counter.get(cluster).references())
    }

    /// Writing to a refcount block that something else uses too destroys the one or the other. `before` is
    /// how often `cluster` was referred to without this block.
    fn check_block_is_alone(
        &mut self,
        index: u64,
        cluster: u64,
        before: Option<u64>,
        place: Place,
    ) {
        let Some(references) = self.counted(cluster) else {
            return;
        };
        if references != 1 {
            let kind = ProblemKind::RefcountBlockShared { index, references };
            self.findings.of_cluster(Problem::new(kind, place));
        } else if before == Some(1) {
            // One is as far as one bit counts: QEMU takes it for the only reference.
            if let Some(noted) = &mut self.findings.noted {
                noted.block_is_shared_unseen(index);
            }
        }
    }
}
