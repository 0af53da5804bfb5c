//! Counting what the entries of an L2 table refer to.

use super::page::Claim;
use super::references::References;
use super::report::{Problem, ProblemKind};
use super::tables::Visit;
use crate::error::{Place, Structure};
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{COPIED, L2Format, OFFSET_MASK};
use crate::storage::Storage;
use crate::units::HostOffset;

/// Bit 0 of a standard descriptor.
const ZERO: u64 = 1;
/// The subclusters of an extended entry that are allocated.
const ALLOCATED: u64 = 0xffff_ffff;

/// How the clusters of a table lie on the host.
#[derive(Default)]
struct Layout {
    allocated: u64,
    fragmented: u64,
    compressed: u64,
    /// Where the next cluster would continue the one before; 0 before the first.
    next: u64,
}

impl Layout {
    /// `count` clusters that lie in a row from `offset` on.
    fn row(&mut self, offset: u64, count: u64, cluster: u64) {
        self.allocated += count;
        if self.next != 0 && self.next != offset {
            self.fragmented += 1;
        }
        self.next = offset + count * cluster;
    }
}

/// The two words of an entry of a table; the second is 0 without extended L2.
fn entry<const EXTENDED: bool>(table: &[u64], index: usize) -> L2Entry {
    if EXTENDED {
        L2Entry {
            descriptor: table[2 * index],
            subclusters: table[2 * index + 1],
        }
    } else {
        L2Entry {
            descriptor: table[index],
            subclusters: 0,
        }
    }
}

/// A zero cluster for which one is preallocated at a place where none can be, without that: what
/// [`crate::repair`] puts in its place.
pub(crate) fn without_misplaced_cluster(format: L2Format, entry: L2Entry) -> Option<L2Entry> {
    let offset = entry.host_offset();
    let without_data = match format.extended {
        true => entry.subclusters & ALLOCATED == 0,
        false => format.zero_flag && entry.has_zero_flag(),
    };
    let misplaced = !entry.is_compressed()
        && !entry.has_reserved_bits()
        && !offset.is_aligned(format.cluster_size.bytes());
    (misplaced && without_data).then_some(L2Entry {
        descriptor: if format.extended { 0 } else { ZERO },
        subclusters: entry.subclusters,
    })
}

/// Whether no subcluster is both allocated and zero.
fn is_consistent(subclusters: u64) -> bool {
    subclusters >> 32 & subclusters == 0
}

impl<S: Storage> References<'_, '_, S> {
    /// Counts what the entries of `table` refer to.
    pub(super) fn count_l2_table<const EXTENDED: bool>(
        &mut self,
        table: &[u64],
        visit: &Visit,
        active: bool,
    ) {
        let cluster = self.image.header().cluster_size.bytes();
        let data_file = self.image.header().has_data_file();
        // What a plain allocated entry consists of: an aligned offset in the file, and flags.
        let plain_bits = OFFSET_MASK & !(cluster - 1) | COPIED | ZERO;
        let end = if data_file { 0 } else { self.image.file_len() };
        let count = table.len() / (1 + usize::from(EXTENDED));
        let mut layout = Layout::default();
        let mut index = 0;
        while index < count {
            let first = entry::<EXTENDED>(table, index);
            let offset = first.descriptor & OFFSET_MASK;
            if first.descriptor & !plain_bits == 0
                && offset != 0
                && offset < end
                && is_consistent(first.subclusters)
            {
                let most = (count - index).min((end - offset).div_ceil(cluster) as usize);
                let mut next = first.descriptor + cluster;
                let mut length = 1;
                while length < most {
                    let following = entry::<EXTENDED>(table, index + length);
                    if following.descriptor != next || !is_consistent(following.subclusters) {
                        break;
                    }
                    next += cluster;
                    length += 1;
                }
                layout.row(offset, length as u64, cluster);
                let claim = if active {
                    Claim::of(first.descriptor)
                } else {
                    Claim::None
                };
                let start = offset / cluster;
                self.add(
                    start..start + length as u64,
                    visit.weight,
                    claim,
                    Structure::DataCluster,
                );
                index += length;
            } else {
                if first.descriptor & !ZERO != 0 || first.subclusters != 0 {
                    self.count_unusual::<EXTENDED>(first, index as u64, visit, active, &mut layout);
                }
                index += 1;
            }
        }
        if active && self.findings.first_pass {
            let report = &mut self.findings.report;
            let add = |count: &mut u64, more: u64| {
                *count = count.saturating_add(more.saturating_mul(visit.weight))
            };
            add(&mut report.allocated_clusters, layout.allocated);
            add(&mut report.fragmented_clusters, layout.fragmented);
            add(&mut report.compressed_clusters, layout.compressed);
        }
    }

    /// An entry that is neither plain nor empty: compressed, in a data file, damaged.
    fn count_unusual<const EXTENDED: bool>(
        &mut self,
        entry: L2Entry,
        index: u64,
        visit: &Visit,
        active: bool,
        layout: &mut Layout,
    ) {
        let cluster = self.image.header().cluster_size.bytes();
        let data_file = self.image.header().has_data_file();
        let format = self.image.l2_format();
        let place = Place::at(
            Structure::L2Table,
            visit.offset + index * format.entry_bytes(),
        )
        .entry(index);
        let mut wrong = |kind| {
            self.findings
                .in_table(Problem::new(kind, place).times(visit.weight))
        };

        if entry.has_reserved_bits() {
            wrong(ProblemKind::L2ReservedBits {
                l2_entry: entry.descriptor,
            });
        }
        if let Some(compressed) = format.compressed(entry) {
            let l2_entry = entry.descriptor & !COPIED;
            if entry.copied() {
                wrong(ProblemKind::CompressedCopied {
                    offset: compressed.offset.0,
                });
            }
            if data_file {
                wrong(ProblemKind::CompressedWithDataFile {
                    l2_index: index,
                    l2_entry,
                });
            } else if entry.subclusters != 0 {
                wrong(ProblemKind::CompressedWithSubclusters {
                    l2_index: index,
                    l2_entry,
                });
            } else {
                let start = compressed.offset.0;
                self.refer(
                    start..start + compressed.length,
                    visit.weight,
                    Claim::None,
                    place,
                );
                // They share sectors with their neighbours: never one request for several.
                layout.allocated += 1;
                layout.compressed += 1;
                layout.fragmented += 1;
            }
            return;
        }

        let offset = entry.descriptor & OFFSET_MASK;
        let zero = !EXTENDED && entry.descriptor & ZERO != 0;
        let allocated = offset != 0 || data_file && entry.copied() && !zero;
        if !allocated {
            if entry.subclusters & ALLOCATED != 0 {
                wrong(ProblemKind::SubclustersWithoutCluster);
            }
            return;
        }
        if !is_consistent(entry.subclusters) {
            wrong(ProblemKind::SubclustersContradict { offset });
        }
        // The header is no table, and one that begins inside a cluster is none that could be copied.
        let is_table = visit.offset != 0 && HostOffset(visit.offset).is_aligned(cluster);
        let repairs = active
            && is_table
            && self
                .findings
                .noted
                .as_ref()
                .is_some_and(|noted| noted.repairs_misplaced_zeros());
        if repairs && without_misplaced_cluster(format, entry).is_some() {
            let kind = ProblemKind::PreallocatedClusterUnaligned { offset };
            let problem = Problem::new(kind, place).times(visit.weight);
            // It is as good as not there: what it refers to is counted for others only.
            self.findings.in_table(problem.repaired(true));
            return;
        }
        let mut wrong = |kind| {
            self.findings
                .in_table(Problem::new(kind, place).times(visit.weight))
        };
        if !HostOffset(offset).is_aligned(cluster) {
            let has_data = if EXTENDED {
                entry.subclusters & ALLOCATED != 0
            } else {
                !zero
            };
            wrong(match has_data {
                true => ProblemKind::DataClusterUnaligned { offset },
                false => ProblemKind::PreallocatedClusterUnaligned { offset },
            });
        }
        layout.row(offset, 1, cluster);
        if !data_file {
            let claim = if active {
                Claim::of(entry.descriptor)
            } else {
                Claim::None
            };
            self.refer(offset..offset + cluster, visit.weight, claim, place);
        } else if active && !entry.copied() {
            // Clusters of a data file belong to one entry, always.
            self.findings.suspect = true;
        }
    }
}
