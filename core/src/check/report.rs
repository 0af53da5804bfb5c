//! What a check says: counts in qemu-img's fields, and each problem as it is met.

use std::fmt;

use crate::error::Place;
use crate::qcow2::MAX_SNAPSHOT_EXTRA;
use crate::units::HostOffset;

/// The counts of a check, under the names of `qemu-img check --output=json`. Counts of zero are left out
/// there, except `check-errors`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct CheckReport {
    /// The end of the last host cluster that is in use, in bytes.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub image_end_offset: u64,
    /// Guest clusters of the disk.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub total_clusters: u64,
    /// What could not be checked. Where this is not 0, the other counts are a lower bound.
    pub check_errors: u64,
    /// Guest clusters of the active state that have a host cluster of their own or are compressed.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub allocated_clusters: u64,
    /// Allocated clusters that do not follow the one before them on the host, and all compressed ones.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub fragmented_clusters: u64,
    /// Compressed clusters.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub compressed_clusters: u64,
    /// Host clusters whose stored refcount is higher than it need be: wasted space, no harm.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub leaks: u64,
    /// Contradictions that can lose data when the image is written to.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub corruptions: u64,
}

#[cfg(feature = "serde")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl CheckReport {
    /// Whether nothing at all was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }
}

/// Is told what a check meets, as it goes.
pub trait Watcher {
    /// A problem; its `Display` is qemu-img's sentence. Nothing keeps problems: there can be as many as an
    /// image has entries.
    fn problem(&mut self, problem: &Problem);

    /// `done` of `total` tables are behind; `total` may grow. Called at least once per MiB of tables.
    /// Returns whether to go on: `false` ends the check with [`Error::Cancelled`](crate::Error::Cancelled).
    fn progress(&mut self, done: u64, total: u64) -> bool {
        let _ = (done, total);
        true
    }
}

/// Watches nothing: only the counts are wanted.
impl Watcher for () {
    fn problem(&mut self, _: &Problem) {}
}

/// How bad a [`Problem`] is, which is also the field of [`CheckReport`] that counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Severity {
    /// Writing to the image can lose data.
    Corruption,
    /// Space is wasted.
    Leak,
    /// Something could not be checked.
    CheckError,
    /// Explains the problems that follow; not counted.
    Note,
}

/// One problem, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// Where it is wrong.
    pub place: Place,
    /// How often it counts: a table that many snapshots share is visited once for all of them, where
    /// qemu-img reports it for each.
    pub times: u64,
    /// Whether it is being [repaired](crate::repair), so that it is not counted.
    pub repaired: bool,
}

/// What a [`Problem`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // The fields are the numbers of the message.
pub enum ProblemKind {
    /// The stored refcount is lower than the references there are.
    RefcountTooLow {
        cluster: u64,
        stored: u64,
        references: u64,
    },
    /// The stored refcount is higher than the references there are.
    Leaked {
        cluster: u64,
        stored: u64,
        references: u64,
    },
    /// The stored refcount cannot be read, because its refcount block cannot.
    RefcountUnreadable {
        cluster: u64,
    },
    /// Why the refcounts of a block cannot be read.
    RefcountBlockUnreadable {
        offset: u64,
        index: u64,
    },
    /// There are more references than a refcount of this width can count.
    RefcountOverflow {
        offset: HostOffset,
    },
    /// An L1 or L2 entry says COPIED with a refcount other than one, or the other way round (invariant M2).
    CopiedL2Table {
        l1_index: u64,
        l1_entry: u64,
        stored: u64,
    },
    /// The same for a data cluster.
    CopiedDataCluster {
        l2_entry: u64,
        stored: u64,
    },
    /// Something lies a cluster or more past the end of the file.
    PastEnd {
        offset: u64,
        length: u64,
    },
    L1ReservedBits {
        l1_entry: u64,
    },
    L2TableUnaligned {
        offset: u64,
    },
    L2ReservedBits {
        l2_entry: u64,
    },
    DataClusterUnaligned {
        offset: u64,
    },
    PreallocatedClusterUnaligned {
        offset: u64,
    },
    CompressedCopied {
        offset: u64,
    },
    CompressedWithDataFile {
        l2_index: u64,
        l2_entry: u64,
    },
    CompressedWithSubclusters {
        l2_index: u64,
        l2_entry: u64,
    },
    /// A subcluster is both allocated and zero.
    SubclustersContradict {
        offset: u64,
    },
    /// Subclusters are allocated where there is no cluster.
    SubclustersWithoutCluster,
    RefcountTableReservedBits {
        index: u64,
    },
    RefcountBlockUnaligned {
        index: u64,
    },
    RefcountBlockPastEnd {
        index: u64,
    },
    /// Something else refers to the refcount block too.
    RefcountBlockShared {
        index: u64,
        references: u64,
    },
    /// A version 3 snapshot must say its disk size.
    SnapshotIncomplete {
        index: u64,
    },
    /// A snapshot has more extra data than there may be.
    SnapshotExtraTooLong {
        index: u32,
        bytes: u32,
    },
    /// There are more snapshots than there may be, or than fit into the longest table that there may be.
    SnapshotsOverhanging {
        count: u32,
        table_is_too_big: bool,
    },
    SnapshotL1Unaligned {
        id: String,
        name: String,
        offset: HostOffset,
    },
    SnapshotL1TooLarge {
        id: String,
        name: String,
        entries: u32,
    },
    SnapshotsWithDataFile {
        count: u64,
    },
    /// Refcounts cannot be repaired one by one, and mending leaks is all that was asked for.
    RebuildNeeded,
    /// The refcounts are built anew from the references.
    Rebuilding,
    /// A refcount block is so far out that no file reaches there.
    RefcountBlockTooFarOut,
    /// The refcounts that were built anew no longer count what held the old ones.
    OldRefcounts {
        cluster: u64,
        stored: u64,
    },
}

impl Problem {
    pub(crate) fn new(kind: ProblemKind, place: Place) -> Self {
        Self {
            kind,
            place,
            times: 1,
            repaired: false,
        }
    }

    pub(crate) fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// It is, or is not, being repaired.
    pub(crate) fn repaired(self, repaired: bool) -> Self {
        Self { repaired, ..self }
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self.kind {
            ProblemKind::Leaked { .. } => Severity::Leak,
            ProblemKind::RefcountUnreadable { .. } => Severity::CheckError,
            ProblemKind::RefcountBlockUnreadable { .. }
            | ProblemKind::RebuildNeeded
            | ProblemKind::Rebuilding
            | ProblemKind::RefcountBlockTooFarOut
            | ProblemKind::OldRefcounts { .. } => Severity::Note,
            _ => Severity::Corruption,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ProblemKind as Kind;
        let error = if self.repaired { "Repairing" } else { "ERROR" };
        match &self.kind {
            Kind::RefcountTooLow {
                cluster,
                stored,
                references,
            } => {
                write!(
                    f,
                    "{error} cluster {cluster} refcount={stored} reference={references}"
                )
            }
            Kind::Leaked {
                cluster,
                stored,
                references,
            } => {
                let leaked = if self.repaired { "Repairing" } else { "Leaked" };
                write!(
                    f,
                    "{leaked} cluster {cluster} refcount={stored} reference={references}"
                )
            }
            Kind::RefcountUnreadable { cluster } => {
                write!(
                    f,
                    "Can't get refcount for cluster {cluster}: Input/output error"
                )
            }
            Kind::RefcountBlockUnreadable { offset, index } => write!(
                f,
                "qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned (reftable index: {}); \
                 further non-fatal corruption events will be suppressed",
                Hex(*index)
            ),
            Kind::RefcountOverflow { offset } => write!(
                f,
                "ERROR: overflow cluster offset={offset:#x}\n\
                 Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy \
                 if the image cannot be opened for writing"
            ),
            Kind::CopiedL2Table {
                l1_index,
                l1_entry,
                stored,
            } => {
                write!(
                    f,
                    "{error} OFLAG_COPIED L2 cluster: l1_index={l1_index} l1_entry={l1_entry:x} refcount={stored}"
                )
            }
            Kind::CopiedDataCluster { l2_entry, stored } => {
                write!(
                    f,
                    "{error} OFLAG_COPIED data cluster: l2_entry={l2_entry:x} refcount={stored}"
                )
            }
            Kind::PastEnd { offset, length } => write!(
                f,
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                 offset {offset:#x} size {length:#x}"
            ),
            Kind::L1ReservedBits { l1_entry } => {
                write!(
                    f,
                    "ERROR found L1 entry with reserved bits set: {l1_entry:x}"
                )
            }
            Kind::L2TableUnaligned { offset } => {
                write!(
                    f,
                    "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
                )
            }
            Kind::L2ReservedBits { l2_entry } => {
                write!(
                    f,
                    "ERROR found l2 entry with reserved bits set: {l2_entry:x}"
                )
            }
            Kind::DataClusterUnaligned { offset } => {
                write!(
                    f,
                    "ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."
                )
            }
            Kind::PreallocatedClusterUnaligned { offset } => {
                write!(
                    f,
                    "{error} offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
                )
            }
            Kind::CompressedCopied { offset } => {
                write!(
                    f,
                    "ERROR: coffset={offset:#x}: copied flag must never be set for compressed clusters"
                )
            }
            Kind::CompressedWithDataFile { l2_index, l2_entry } => {
                write!(
                    f,
                    "ERROR compressed cluster {l2_index} with data file, entry={l2_entry:#x}"
                )
            }
            Kind::CompressedWithSubclusters { l2_index, l2_entry } => write!(
                f,
                "ERROR compressed cluster {l2_index} with non-zero subcluster allocation bitmap, entry={l2_entry:#x}"
            ),
            Kind::SubclustersContradict { offset } => {
                write!(
                    f,
                    "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
                )
            }
            Kind::SubclustersWithoutCluster => {
                f.write_str("ERROR: Unallocated cluster has non-zero subcluster allocation map")
            }
            Kind::RefcountTableReservedBits { index } => {
                write!(
                    f,
                    "ERROR refcount table entry {index} has reserved bits set"
                )
            }
            Kind::RefcountBlockUnaligned { index } => {
                write!(
                    f,
                    "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
                )
            }
            Kind::RefcountBlockPastEnd { index } => {
                write!(f, "{error} refcount block {index} is outside image")
            }
            Kind::RefcountBlockShared { index, references } => {
                write!(f, "ERROR refcount block {index} refcount={references}")
            }
            Kind::SnapshotIncomplete { index } => {
                write!(f, "{error} snapshot table entry {index} is incomplete")
            }
            Kind::SnapshotExtraTooLong { index, bytes } => write!(
                f,
                "Discarding too much extra metadata in snapshot table entry {index} ({bytes} > {MAX_SNAPSHOT_EXTRA})"
            ),
            Kind::SnapshotsOverhanging {
                count,
                table_is_too_big,
            } => {
                let why = match table_is_too_big {
                    true => " (snapshot table is too big)",
                    false => "",
                };
                write!(f, "Discarding {count} overhanging snapshots{why}")
            }
            Kind::SnapshotL1Unaligned { id, name, offset } => write!(
                f,
                "ERROR snapshot {id} ({name}) l1_offset={}: L1 table is not cluster aligned; \
                 snapshot table entry corrupted",
                Hex(offset.0)
            ),
            Kind::SnapshotL1TooLarge { id, name, entries } => write!(
                f,
                "ERROR snapshot {id} ({name}) l1_size={}: L1 table is too large; snapshot table entry corrupted",
                Hex((*entries).into())
            ),
            Kind::SnapshotsWithDataFile { count } => {
                write!(f, "ERROR {count} snapshots in image with data file")
            }
            Kind::RebuildNeeded => f.write_str("ERROR need to rebuild refcount structures"),
            Kind::Rebuilding => f.write_str("Rebuilding refcount structure"),
            Kind::RefcountBlockTooFarOut => {
                f.write_str("ERROR could not resize image: Invalid argument")
            }
            Kind::OldRefcounts { cluster, stored } => write!(
                f,
                "Repairing cluster {cluster} refcount={stored} reference={}",
                stored - 1
            ),
        }
    }
}

/// C's `%#x`: no prefix on zero.
struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            f.write_str("0")
        } else {
            write!(f, "{:#x}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Structure;

    #[test]
    fn messages_are_those_of_qemu_img() {
        let say = |kind| Problem::new(kind, Place::of(Structure::Header)).to_string();
        assert_eq!(
            say(ProblemKind::RefcountTooLow {
                cluster: 5,
                stored: 0,
                references: 1
            }),
            "ERROR cluster 5 refcount=0 reference=1"
        );
        assert_eq!(
            say(ProblemKind::Leaked {
                cluster: 5,
                stored: 1,
                references: 0
            }),
            "Leaked cluster 5 refcount=1 reference=0"
        );
        assert_eq!(
            say(ProblemKind::CopiedDataCluster {
                l2_entry: 0x8000_0000_0005_0000,
                stored: 2
            }),
            "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000050000 refcount=2"
        );
        let (id, name, offset) = ("1".into(), "s".into(), HostOffset(0));
        assert!(
            say(ProblemKind::SnapshotL1Unaligned { id, name, offset })
                .starts_with("ERROR snapshot 1 (s) l1_offset=0:")
        );
    }
}
