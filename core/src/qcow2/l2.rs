//! L2 entries: standard, compressed and extended (specification, "Cluster mapping", "Extended L2 Entries").

use crate::qcow2::OFFSET_MASK;
use crate::units::{ClusterSize, HostOffset, SECTOR};

const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor: the cluster reads as zeros. Version 3, no extended L2.
const ZERO: u64 = 1;
/// How many subclusters a cluster has with extended L2.
pub const SUBCLUSTERS: u64 = 32;

/// How the L2 entries of an image are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Format {
    /// The cluster size.
    pub cluster_size: ClusterSize,
    /// 128-bit entries with a subcluster bitmap.
    pub extended: bool,
    /// Bit 0 means "reads as zeros" (version 3 only).
    pub zero_flag: bool,
    /// Offset 0 with the COPIED bit is a cluster (QEMU-COMPAT rule 28).
    pub data_file: bool,
}

/// What a run of guest bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Not here: in the backing file, or zeros. With a host offset where a cluster is reserved for it
    /// (extended L2).
    Unallocated(Option<HostOffset>),
    /// Zeros, whatever the backing file has. With a host offset where a cluster is preallocated.
    Zero(Option<HostOffset>),
    /// Bytes of the file (or of the data file), from the offset on.
    Data(HostOffset),
    /// Part of a compressed cluster.
    Compressed(Compressed),
    /// An entry that the specification does not allow: a zero and an allocated bit for one subcluster.
    Invalid,
}

/// Guest bytes of one kind that follow one another, on the host too where they have an offset there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many bytes.
    pub length: u64,
    /// What they are.
    pub kind: RunKind,
}

/// A compressed cluster's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compressed {
    /// The first byte of the compressed data: not aligned to anything.
    pub offset: HostOffset,
    /// How many bytes may belong to it, up to the end of its last sector. What follows the end of the
    /// compressed stream is of no meaning.
    pub length: u64,
}

impl Compressed {
    /// Decodes a compressed cluster descriptor.
    fn decode(entry: u64, cluster_size: ClusterSize) -> Self {
        let offset_bits = 62 - (cluster_size.bits() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let more_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        Self {
            offset: HostOffset(offset),
            length: (more_sectors + 1) * SECTOR - (offset & (SECTOR - 1)),
        }
    }
}

/// One entry as two numbers; the second is 0 without extended L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Entry {
    /// The descriptor and its flags.
    pub descriptor: u64,
    /// The subcluster allocation bitmap.
    pub subclusters: u64,
}

impl L2Entry {
    /// Nothing here: the backing file answers, or zeros.
    pub const UNALLOCATED: Self = Self {
        descriptor: 0,
        subclusters: 0,
    };

    /// The standard host offset, with the compressed flag known to be clear.
    #[must_use]
    pub fn host_offset(self) -> HostOffset {
        HostOffset(self.descriptor & OFFSET_MASK)
    }

    /// Whether bit 63 is set.
    #[must_use]
    pub fn copied(self) -> bool {
        self.descriptor & crate::qcow2::COPIED != 0
    }

    /// Whether a standard descriptor has bits set that the specification reserves (1 to 8 and 56 to 61).
    #[must_use]
    pub fn has_reserved_bits(self) -> bool {
        const RESERVED: u64 = 0x3f00_0000_0000_01fe;
        !self.is_compressed() && self.descriptor & RESERVED != 0
    }

    /// Whether a standard descriptor has bit 0 set, which means zeros in version 3.
    #[must_use]
    pub fn has_zero_flag(self) -> bool {
        !self.is_compressed() && self.descriptor & ZERO != 0
    }

    /// Whether bit 62 is set: tested before any other bit, a compressed offset may look like anything
    /// (QEMU-COMPAT rule 21).
    #[must_use]
    pub fn is_compressed(self) -> bool {
        self.descriptor & COMPRESSED != 0
    }
}

impl L2Format {
    /// The bytes of an entry.
    #[must_use]
    pub fn entry_bytes(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// How many entries an L2 table has.
    #[must_use]
    pub fn entries(self) -> u64 {
        self.cluster_size.bytes() / self.entry_bytes()
    }

    /// Entry `index` of a table or slice; `None` past its end.
    #[must_use]
    pub fn entry(self, table: &[u64], index: usize) -> Option<L2Entry> {
        if self.extended {
            let pair = table.get(index * 2..index * 2 + 2)?;
            Some(L2Entry {
                descriptor: pair[0],
                subclusters: pair[1],
            })
        } else {
            Some(L2Entry {
                descriptor: *table.get(index)?,
                subclusters: 0,
            })
        }
    }

    /// The compressed cluster that `entry` describes, if it does.
    #[must_use]
    pub fn compressed(self, entry: L2Entry) -> Option<Compressed> {
        entry
            .is_compressed()
            .then(|| Compressed::decode(entry.descriptor, self.cluster_size))
    }

    /// The host cluster that a standard entry holds, whatever it is used for.
    #[must_use]
    pub fn host_cluster(self, entry: L2Entry) -> Option<HostOffset> {
        let offset = entry.host_offset();
        let allocated = offset.0 != 0 || (self.data_file && entry.copied());
        (!entry.is_compressed() && allocated).then_some(offset)
    }

    /// How many bytes one granule has: what is allocated on its own. A subcluster with extended L2, else the
    /// cluster.
    #[must_use]
    pub fn granule_bytes(self) -> u64 {
        match self.extended {
            true => self.cluster_size.bytes() / SUBCLUSTERS,
            false => self.cluster_size.bytes(),
        }
    }

    /// The start of the granule that byte `within` of a cluster is in.
    #[must_use]
    pub fn granule_floor(self, within: u64) -> u64 {
        within & !(self.granule_bytes() - 1)
    }

    /// The granules that the bytes `start..end` of a cluster touch, a bit each; `start < end`.
    #[must_use]
    pub fn granules(self, start: u64, end: u64) -> u64 {
        let first = start / self.granule_bytes();
        let behind = end.div_ceil(self.granule_bytes());
        (u64::MAX >> (64 - (behind - first))) << first
    }

    /// The granules of `entry` that hold data, and those that read as zeros.
    #[must_use]
    pub fn granule_masks(self, entry: L2Entry) -> (u64, u64) {
        let all = self.granules(0, self.cluster_size.bytes());
        if entry.is_compressed() {
            (all, 0)
        } else if self.extended {
            (entry.subclusters & all, entry.subclusters >> SUBCLUSTERS)
        } else if self.zero_flag && entry.descriptor & ZERO != 0 {
            (0, all)
        } else if self.host_cluster(entry).is_some() {
            (all, 0)
        } else {
            (0, 0)
        }
    }

    /// The entry of a cluster that is the active state's own, with data and zeros in these granules.
    #[must_use]
    pub fn data_entry(self, host: HostOffset, data: u64, zeros: u64) -> L2Entry {
        L2Entry {
            descriptor: host.0 | crate::qcow2::COPIED,
            subclusters: match self.extended {
                true => data | zeros << SUBCLUSTERS,
                false => 0,
            },
        }
    }

    /// `entry`, a standard one, with `granules` reading as zeros. Needs version 3.
    #[must_use]
    pub fn zero_entry(self, entry: L2Entry, granules: u64) -> L2Entry {
        if self.extended {
            let data = entry.subclusters & !granules & (u64::MAX >> SUBCLUSTERS);
            let zeros = entry.subclusters >> SUBCLUSTERS | granules;
            L2Entry {
                descriptor: entry.descriptor,
                subclusters: data | zeros << SUBCLUSTERS,
            }
        } else {
            L2Entry {
                descriptor: entry.descriptor | ZERO,
                subclusters: 0,
            }
        }
    }

    /// The entry of a compressed cluster of `length` bytes (1 to a cluster) at `host`; `None` where that is
    /// further out than the descriptor can say.
    #[must_use]
    pub fn compressed_entry(self, host: HostOffset, length: u64) -> Option<L2Entry> {
        let offset_bits = 62 - (self.cluster_size.bits() - 8);
        let last = host.0 + length - 1;
        if last >> offset_bits != 0 {
            return None;
        }
        let more_sectors = last / SECTOR - host.0 / SECTOR;
        Some(L2Entry {
            descriptor: COMPRESSED | more_sectors << offset_bits | host.0,
            subclusters: 0,
        })
    }

    /// The host clusters that a compressed cluster touches; each counts it.
    #[must_use]
    pub fn clusters_of(self, compressed: Compressed) -> std::ops::Range<u64> {
        let first = self.cluster_size.index_of(compressed.offset.0);
        let last = compressed.offset.0 + compressed.length.saturating_sub(1);
        first..self.cluster_size.index_of(last) + 1
    }

    /// Sets entry `index` of a table or slice that has it.
    pub fn set_entry(self, table: &mut [u64], index: usize, entry: L2Entry) {
        if self.extended {
            table[index * 2] = entry.descriptor;
            table[index * 2 + 1] = entry.subclusters;
        } else {
            table[index] = entry.descriptor;
        }
    }

    /// What the bytes from `within` on are, up to the end of the cluster at most.
    #[must_use]
    pub fn run_in(self, entry: L2Entry, within: u64) -> Run {
        let size = self.cluster_size.bytes();
        if let Some(compressed) = self.compressed(entry) {
            return Run {
                length: size - within,
                kind: RunKind::Compressed(compressed),
            };
        }
        let host = self.host_cluster(entry);
        let at = |host: HostOffset| HostOffset(host.0 + within);
        if self.extended {
            let (length, kind) = self.subcluster_run(entry, host, within);
            return Run { length, kind };
        }
        let kind = if self.zero_flag && entry.descriptor & ZERO != 0 {
            RunKind::Zero(host.map(at))
        } else if let Some(host) = host {
            RunKind::Data(at(host))
        } else {
            RunKind::Unallocated(None)
        };
        Run {
            length: size - within,
            kind,
        }
    }

    fn subcluster_run(
        self,
        entry: L2Entry,
        host: Option<HostOffset>,
        within: u64,
    ) -> (u64, RunKind) {
        let bytes = self.cluster_size.bytes() / SUBCLUSTERS;
        let first = within / bytes;
        let (data, zeros) = (
            entry.subclusters as u32,
            (entry.subclusters >> SUBCLUSTERS) as u32,
        );
        // Allocated with no cluster, or allocated and zero (QEMU-COMPAT rule 27): nothing of the entry counts then.
        if data & zeros != 0 || (data != 0 && host.is_none()) {
            return (self.cluster_size.bytes() - within, RunKind::Invalid);
        }
        let bits = |index: u64| (data >> index & 1, zeros >> index & 1);
        let (allocated, zero) = bits(first);
        let count = (first + 1..SUBCLUSTERS)
            .take_while(|&i| bits(i) == (allocated, zero))
            .count() as u64
            + 1;
        let length = (first + count) * bytes - within;
        let here = host.map(|host| HostOffset(host.0 + within));
        let kind = match (allocated, zero, here) {
            (1, _, Some(here)) => RunKind::Data(here),
            (_, 1, here) => RunKind::Zero(here),
            (_, _, here) => RunKind::Unallocated(here),
        };
        (length, kind)
    }
}

impl Run {
    /// Whether `next` continues this run: the same kind, and the next byte on the host where there is one.
    #[must_use]
    pub fn continues_with(&self, next: &Run) -> bool {
        let follows = |a: HostOffset, b: HostOffset| a.checked_add(self.length) == Some(b);
        let both = |a: Option<HostOffset>, b: Option<HostOffset>| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => follows(a, b),
            _ => false,
        };
        match (self.kind, next.kind) {
            (RunKind::Unallocated(a), RunKind::Unallocated(b))
            | (RunKind::Zero(a), RunKind::Zero(b)) => both(a, b),
            (RunKind::Data(a), RunKind::Data(b)) => follows(a, b),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u32, extended: bool) -> L2Format {
        L2Format {
            cluster_size: ClusterSize::from_bits(bits).unwrap(),
            extended,
            zero_flag: true,
            data_file: false,
        }
    }

    fn standard(descriptor: u64) -> L2Entry {
        L2Entry {
            descriptor,
            subclusters: 0,
        }
    }

    #[test]
    fn standard_entries() {
        let f = format(16, false);
        let host = HostOffset(0x5_0000);
        assert_eq!(
            f.run_in(standard(0), 0),
            Run {
                length: 65536,
                kind: RunKind::Unallocated(None)
            }
        );
        assert_eq!(
            f.run_in(standard(1), 512),
            Run {
                length: 65024,
                kind: RunKind::Zero(None)
            }
        );
        assert_eq!(
            f.run_in(standard(0x5_0001), 0).kind,
            RunKind::Zero(Some(host))
        );
        assert_eq!(
            f.run_in(standard(0x8000_0000_0005_0000), 0x1234).kind,
            RunKind::Data(HostOffset(0x5_1234))
        );
    }

    #[test]
    fn version_2_has_no_zero_flag() {
        let f = L2Format {
            zero_flag: false,
            ..format(16, false)
        };
        assert_eq!(
            f.run_in(standard(0x5_0001), 0).kind,
            RunKind::Data(HostOffset(0x5_0000))
        );
    }

    #[test]
    fn compressed_is_tested_before_zero() {
        // 64 KiB clusters: 54 bits of offset. An odd offset with two more sectors.
        let f = format(16, false);
        let entry = standard(1 << 62 | 2 << 54 | 0x5_0001);
        let compressed = Compressed {
            offset: HostOffset(0x5_0001),
            length: 3 * 512 - 1,
        };
        assert_eq!(f.run_in(entry, 0).kind, RunKind::Compressed(compressed));
    }

    #[test]
    fn an_external_data_file_may_use_offset_zero() {
        let f = L2Format {
            data_file: true,
            ..format(16, false)
        };
        assert_eq!(
            f.run_in(standard(1 << 63), 0).kind,
            RunKind::Data(HostOffset(0))
        );
        assert_eq!(f.run_in(standard(0), 0).kind, RunKind::Unallocated(None));
    }

    #[test]
    fn subclusters() {
        let f = format(16, true); // 2 KiB each
        let entry = |subclusters| L2Entry {
            descriptor: 0x5_0000,
            subclusters,
        };
        let mixed = entry(0b0110 | 0b1000 << 32);
        assert_eq!(
            f.run_in(mixed, 0),
            Run {
                length: 2048,
                kind: RunKind::Unallocated(Some(HostOffset(0x5_0000)))
            }
        );
        assert_eq!(
            f.run_in(mixed, 2048 + 512),
            Run {
                length: 3584,
                kind: RunKind::Data(HostOffset(0x5_0a00))
            }
        );
        assert_eq!(
            f.run_in(mixed, 6144),
            Run {
                length: 2048,
                kind: RunKind::Zero(Some(HostOffset(0x5_1800)))
            }
        );
        assert_eq!(f.run_in(mixed, 8192).length, 65536 - 8192);
        assert_eq!(f.run_in(entry(1 | 1 << 32), 0).kind, RunKind::Invalid);
        assert_eq!(
            f.run_in(
                L2Entry {
                    descriptor: 0,
                    subclusters: 1
                },
                0
            )
            .kind,
            RunKind::Invalid
        );
    }
}
