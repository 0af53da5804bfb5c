//! What a repair has to know of an image beyond the counts of its problems.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::report::{Problem, ProblemKind};
use crate::error::Structure;
use crate::repair::RepairMode;
use crate::units::ClusterSize;

/// The most stretches of free clusters that are remembered: the others are not needed.
const MAX_FREE_RUNS: usize = 1 << 16;
/// The most clusters that are remembered for their refcounts, which stay too low.
const MAX_UNDERSTATED: usize = 1 << 16;

/// Notes taken while an image is checked, for its repair.
#[derive(Debug)]
pub(crate) struct Noted {
    mode: RepairMode,
    cluster_size: ClusterSize,
    /// Refcounts cannot be repaired one by one: blocks are broken, or a cluster that is in use counts as
    /// free, so that it may have been handed out again.
    pub rebuild: bool,
    /// Some entry points to nowhere, or is not one: what it once stood for now looks as if nobody needed
    /// it, so nothing is given back (QEMU-COMPAT rule 46). An L2 entry past the end of the file is none of these.
    pub incomplete: bool,
    /// The first cluster that something past the end of the file refers to. The file must not grow over
    /// it: the error would look like a hole that was always there.
    pub dangling_from: u64,
    /// How many refcounts are too low.
    pub too_low: u64,
    /// How often something is wrong with a refcount block.
    pub wrong_blocks: u64,
    /// Refcount blocks, by index, that are where none can be.
    pub misplaced_blocks: BTreeSet<u64>,
    /// Refcount blocks, by index, whose cluster something else uses too.
    pub shared_blocks: BTreeSet<u64>,
    /// Clusters whose refcount stays lower than their references.
    pub understated: Understated,
    /// Clusters that nothing refers to and whose refcount is 0.
    pub free: FreeRuns,
    /// Whether some zero cluster of the active state has a preallocated cluster at an impossible place.
    pub misplaced_zeros: bool,
    /// Whether some entry of the snapshot table lacks what its version must have, or has more than it may.
    pub rewrites_snapshots: bool,
    /// Whether there are more entries than there may be.
    pub drops_snapshots: bool,
}

impl Noted {
    /// Notes for a repair of `mode`.
    pub fn new(mode: RepairMode, cluster_size: ClusterSize) -> Self {
        Self {
            mode,
            cluster_size,
            rebuild: false,
            incomplete: false,
            dangling_from: u64::MAX,
            too_low: 0,
            wrong_blocks: 0,
            misplaced_blocks: BTreeSet::new(),
            shared_blocks: BTreeSet::new(),
            understated: Understated::default(),
            free: FreeRuns::default(),
            misplaced_zeros: false,
            rewrites_snapshots: false,
            drops_snapshots: false,
        }
    }

    /// What is repaired.
    pub fn mode(&self) -> RepairMode {
        self.mode
    }

    /// Whether a problem of a table is one that the repair makes good while the tables are walked.
    pub fn repairs(&self, kind: &ProblemKind) -> bool {
        let repairable = matches!(
            kind,
            ProblemKind::SnapshotIncomplete { .. }
                | ProblemKind::SnapshotExtraTooLong { .. }
                | ProblemKind::SnapshotsOverhanging { .. }
                | ProblemKind::RefcountBlockPastEnd { .. }
        );
        repairable && self.mode == RepairMode::All
    }

    /// Whether zero clusters lose what is preallocated for them at an impossible place.
    pub fn repairs_misplaced_zeros(&self) -> bool {
        self.mode == RepairMode::All
    }

    /// Takes note of a problem.
    pub fn take(&mut self, problem: &Problem) {
        match problem.kind {
            ProblemKind::RefcountTooLow {
                cluster,
                stored,
                references,
            } => {
                self.too_low += 1;
                self.rebuild |= stored == 0;
                if self.mode == RepairMode::Leaks {
                    self.understated.add(cluster, references - stored);
                }
            }
            ProblemKind::RefcountOverflow { offset } => {
                let cluster = self.cluster_size.index_of(offset.0);
                self.understated.add(cluster, problem.times);
            }
            ProblemKind::RefcountTableReservedBits { index }
            | ProblemKind::RefcountBlockUnaligned { index } => {
                self.rebuild = true;
                self.wrong_blocks += 1;
                self.misplaced_blocks.insert(index);
            }
            ProblemKind::RefcountBlockShared { index, .. } => {
                self.rebuild = true;
                self.wrong_blocks += 1;
                self.shared_blocks.insert(index);
            }
            ProblemKind::RefcountBlockPastEnd { index } => {
                self.misplaced_blocks.insert(index);
            }
            ProblemKind::RefcountUnreadable { .. } => self.rebuild = true,
            ProblemKind::SnapshotIncomplete { .. } | ProblemKind::SnapshotExtraTooLong { .. } => {
                self.rewrites_snapshots = true
            }
            ProblemKind::SnapshotsOverhanging { .. } => self.drops_snapshots = true,
            ProblemKind::PastEnd { offset, length } => {
                // What ends less than a cluster past the end of the file would count as there.
                let end = offset.saturating_add(length);
                let last = end.saturating_sub(self.cluster_size.bytes());
                let cluster = self.cluster_size.index_of(offset.min(last));
                self.dangling_from = self.dangling_from.min(cluster);
                // What an L2 entry once stood for is one cluster, which nobody can tell from others that are leaked.
                // QEMU gives those back; an L1 entry may have stood for a table full of them.
                let of_data = matches!(
                    problem.place.structure,
                    Structure::L2Table | Structure::DataCluster
                );
                self.incomplete |= !of_data;
            }
            ProblemKind::PreallocatedClusterUnaligned { .. } => {
                self.misplaced_zeros |= problem.repaired;
                self.incomplete |= !problem.repaired;
            }
            ProblemKind::L1ReservedBits { .. }
            | ProblemKind::L2TableUnaligned { .. }
            | ProblemKind::L2ReservedBits { .. }
            | ProblemKind::DataClusterUnaligned { .. }
            | ProblemKind::CompressedWithDataFile { .. }
            | ProblemKind::CompressedWithSubclusters { .. }
            | ProblemKind::SubclustersWithoutCluster
            | ProblemKind::SnapshotL1Unaligned { .. }
            | ProblemKind::SnapshotL1TooLarge { .. } => self.incomplete = true,
            // Nothing that is referred to is overlooked for these.
            ProblemKind::Leaked { .. }
            | ProblemKind::RefcountBlockUnreadable { .. }
            | ProblemKind::CopiedL2Table { .. }
            | ProblemKind::CopiedDataCluster { .. }
            | ProblemKind::CompressedCopied { .. }
            | ProblemKind::SubclustersContradict { .. }
            | ProblemKind::SnapshotsWithDataFile { .. }
            | ProblemKind::RebuildNeeded
            | ProblemKind::Rebuilding
            | ProblemKind::RefcountBlockTooFarOut
            | ProblemKind::OldRefcounts { .. } => {}
        }
    }

    /// Something else uses the cluster of block `index` too, which no problem says: there is one already for
    /// the reference that is too many to be counted.
    pub fn block_is_shared_unseen(&mut self, index: u64) {
        if self.mode == RepairMode::All {
            self.rebuild = true;
            self.shared_blocks.insert(index);
        }
    }

    /// Whether block `index` says nothing about refcounts.
    pub fn is_broken(&self, index: u64) -> bool {
        self.misplaced_blocks.contains(&index) || self.shared_blocks.contains(&index)
    }
}

/// Clusters whose refcount is lower than their references, and stays so unless those become fewer.
#[derive(Debug, Default)]
pub(crate) struct Understated {
    /// How many references of a cluster its refcount does not count.
    uncounted: BTreeMap<u64, u64>,
    too_many: bool,
}

impl Understated {
    fn add(&mut self, cluster: u64, references: u64) {
        let room = self.uncounted.len() < MAX_UNDERSTATED;
        match self.uncounted.get_mut(&cluster) {
            Some(uncounted) => *uncounted = uncounted.saturating_add(references),
            None if room => drop(self.uncounted.insert(cluster, references)),
            None => self.too_many = true,
        }
    }

    /// A reference to `cluster` is gone. Returns whether it was one that the refcount may not count, so that
    /// this stays as it is.
    pub fn lose(&mut self, cluster: u64) -> bool {
        let Some(uncounted) = self.uncounted.get_mut(&cluster) else {
            return self.too_many;
        };
        *uncounted -= 1;
        if *uncounted == 0 {
            self.uncounted.remove(&cluster);
        }
        true
    }

    /// Whether the refcount of `cluster` may be too low.
    pub fn may_contain(&self, cluster: u64) -> bool {
        self.too_many || self.uncounted.contains_key(&cluster)
    }

    /// How many references are not counted, as far as that is known.
    pub fn uncounted(&self) -> u64 {
        let all = self.uncounted.values();
        all.fold(0, |sum, &references| sum.saturating_add(references))
    }

    pub fn is_empty(&self) -> bool {
        self.uncounted.is_empty() && !self.too_many
    }
}

/// Free clusters in ascending order.
#[derive(Debug, Default)]
pub(crate) struct FreeRuns(Vec<Range<u64>>);

impl FreeRuns {
    /// Adds `clusters`, which come after those added before.
    pub fn push(&mut self, clusters: Range<u64>) {
        let room = self.0.len() < MAX_FREE_RUNS;
        match self.0.last_mut() {
            Some(last) if last.end == clusters.start => last.end = clusters.end,
            _ if room && !clusters.is_empty() => self.0.push(clusters),
            _ => {}
        }
    }

    pub fn into_runs(self) -> Vec<Range<u64>> {
        self.0
    }
}
