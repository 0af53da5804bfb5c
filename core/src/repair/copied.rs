//! COPIED flags of the active tables made right (invariant M2), and zero clusters freed of what cannot be
//! preallocated for them. A table that changes is copied: the old one is the old state's.

use std::collections::HashMap;

use super::refcounts::NewRefcounts;
use crate::check::entries::without_misplaced_cluster;
use crate::check::findings::Findings;
use crate::check::{Problem, ProblemKind};
use crate::error::{Place, Result, Structure};
use crate::image::Qcow2;
use crate::image::change::Engine;
use crate::qcow2::bytes::{be64_bytes, be64_table};
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{COPIED, OFFSET_MASK};
use crate::storage::Storage;
use crate::units::HostOffset;

/// Bit 0 of a standard descriptor.
const ZERO: u64 = 1;

/// What is done about flags that are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    /// They are made right, but where a refcount stays too low.
    Repair,
    /// They are told of, and left.
    Tell,
}

/// The most tables that are remembered because others lead to them too.
const MAX_SHARED: usize = 1 << 16;

/// Tables with several references, and what became of them: they are looked at and copied once, however many
/// entries of the L1 table lead to them.
#[derive(Default)]
struct Shared {
    tables: HashMap<u64, Outcome>,
    /// Which L1 entries took a copy for theirs that others have come to share.
    not_alone: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Outcome {
    /// Where it is now, if that is elsewhere.
    copy: Option<TableCopy>,
    /// How many flags were made right, and how many were not.
    repaired: u64,
    left: u64,
}

#[derive(Clone, Copy)]
struct TableCopy {
    offset: u64,
    /// How many L1 entries lead there, and which was the first.
    links: u64,
    first: u64,
}

impl Shared {
    fn remember(&mut self, offset: u64, outcome: Outcome) {
        if self.tables.len() >= MAX_SHARED {
            self.tables.clear();
        }
        self.tables.insert(offset, outcome);
    }
}

/// A walk over the active tables.
pub(super) struct ActiveTables<'e, 'a, S> {
    pub engine: &'e Engine<'a, S>,
    pub flags: Flags,
    /// Whether misplaced preallocated clusters are let go.
    pub misplaced_zeros: bool,
    /// Whether somebody is told: the first time only.
    pub tells: bool,
}

impl<S: Storage> ActiveTables<'_, '_, S> {
    /// Makes the tables of `l1` agree with the refcounts of `new`; `l1` is the one for them then. Returns
    /// whether it differs.
    pub async fn walk(
        &self,
        l1: &mut [u64],
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
    ) -> Result<bool> {
        let mut changed = false;
        let mut shared = Shared::default();
        for (index, entry) in (0u64..).zip(l1.iter_mut()) {
            let found = self
                .entry(index, *entry, &mut shared, new, findings)
                .await?;
            new.settle_much().await?;
            changed |= found != *entry;
            *entry = found;
            if index % 64 == 0 {
                findings.advance(64)?;
            }
        }
        for index in shared.not_alone {
            l1[index as usize] &= !COPIED;
        }
        Ok(changed)
    }

    /// An L1 entry as it should be, with its table.
    async fn entry(
        &self,
        l1_index: u64,
        l1_entry: u64,
        shared: &mut Shared,
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
    ) -> Result<u64> {
        let image = self.engine.qcow2;
        let offset = l1_entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(l1_entry);
        }
        let cluster_size = image.header().cluster_size;
        let stored = new.get(cluster_size.index_of(offset)).await?;
        let mut right = l1_entry;
        if (stored == 1) != (l1_entry & COPIED != 0) {
            let at = image.header().l1.offset.0 + l1_index * 8;
            let kind = ProblemKind::CopiedL2Table {
                l1_index,
                l1_entry,
                stored,
            };
            let place = Place::at(Structure::L1Table, at).entry(l1_index);
            let repaired = self.flags == Flags::Repair && !new.understates(offset);
            self.found(Problem::new(kind, place).repaired(repaired), findings);
            if repaired {
                right ^= COPIED;
            }
        }
        if offset >= image.file_len() {
            return Ok(right);
        }
        let elsewhere = |copy: u64| l1_entry & !(OFFSET_MASK | COPIED) | copy;
        if let Some(outcome) = shared.tables.get_mut(&offset) {
            let has_room = |copy: TableCopy| copy.links < new.most();
            if outcome.copy.is_none_or(has_room) {
                if self.tells {
                    findings.same_again(outcome.repaired, outcome.left);
                }
                let Some(copy) = &mut outcome.copy else {
                    return Ok(right);
                };
                if copy.links == 1 {
                    shared.not_alone.push(copy.first);
                }
                copy.links += 1;
                new.refer(copy.offset);
                new.release(offset, cluster_size.bytes());
                return Ok(elsewhere(copy.offset));
            }
        }
        let before = (findings.fixed.corruptions, findings.report.corruptions);
        let bytes = self
            .engine
            .read_metadata("Could not read L2 table", offset, cluster_size.len())
            .await?;
        let mut table: Vec<u64> = be64_table(&bytes).collect();
        // A table that begins in the middle of a cluster is no table that could be copied.
        let whole = HostOffset(offset).is_aligned(cluster_size.bytes());
        let changed = self.table(offset, &mut table, whole, new, findings).await?;
        let mut outcome = Outcome {
            copy: None,
            repaired: findings.fixed.corruptions - before.0,
            left: findings.report.corruptions - before.1,
        };
        if changed {
            let copy = new
                .write_table("Could not write L2 table", &be64_bytes(&table))
                .await?;
            new.release(offset, cluster_size.bytes());
            outcome.copy = Some(TableCopy {
                offset: copy,
                links: 1,
                first: l1_index,
            });
            right = elsewhere(copy) | COPIED;
        }
        if stored > 1 {
            shared.remember(offset, outcome);
        }
        Ok(right)
    }

    /// Makes the entries of `table` right; returns whether any is another now.
    async fn table(
        &self,
        offset: u64,
        table: &mut [u64],
        whole: bool,
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
    ) -> Result<bool> {
        let image: &Qcow2<S> = self.engine.qcow2;
        let format = image.l2_format();
        let mut changed = false;
        for index in 0..format.entries() as usize {
            let Some(entry) = format.entry(table, index).filter(|e| e.descriptor != 0) else {
                continue;
            };
            if self.misplaced_zeros
                && whole
                && let Some(freed) = without_misplaced_cluster(format, entry)
            {
                format.set_entry(table, index, freed);
                changed = true;
                continue;
            }
            let host = entry.host_offset().0;
            let zero = !format.extended && entry.descriptor & ZERO != 0;
            let in_data_file = format.data_file && entry.copied() && !zero;
            if entry.is_compressed() || host == 0 && !in_data_file {
                continue;
            }
            let stored = match format.data_file {
                true => 1, // Clusters of a data file belong to one entry, always.
                false => new.get(format.cluster_size.index_of(host)).await?,
            };
            if (stored == 1) == entry.copied() {
                continue;
            }
            let at = offset + index as u64 * format.entry_bytes();
            let kind = ProblemKind::CopiedDataCluster {
                l2_entry: entry.descriptor,
                stored,
            };
            let place = Place::at(Structure::L2Table, at).entry(index as u64);
            let trusted = format.data_file || !new.understates(host);
            let repaired = self.flags == Flags::Repair && whole && trusted;
            self.found(Problem::new(kind, place).repaired(repaired), findings);
            if repaired {
                let descriptor = entry.descriptor ^ COPIED;
                format.set_entry(
                    table,
                    index,
                    L2Entry {
                        descriptor,
                        ..entry
                    },
                );
                changed = true;
            }
        }
        Ok(changed)
    }

    fn found(&self, problem: Problem, findings: &mut Findings<'_>) {
        if self.tells {
            findings.of_cluster(problem);
        }
    }
}
