//! Offsets and sizes as types of their own, so that a guest offset can never be used as a host one.

use std::fmt;

/// Bytes in the sector that qcow2 counts compressed data in, and the atom of a crash (ORDERING: storage contract).
pub const SECTOR: u64 = 512;

/// The end of the furthest byte that there may be in a file or on a disk: QEMU counts in signed 64-bit numbers and
/// keeps off their end.
pub(crate) const MAX_END: u64 = (1 << 63) - (1 << 30);

macro_rules! offset_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
        pub struct $name(pub u64);

        impl $name {
            /// `self + bytes`, or `None` past 2^64.
            #[must_use]
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// Whether the offset is a multiple of `bytes` (a power of two).
            #[must_use]
            pub fn is_aligned(self, bytes: u64) -> bool {
                self.0 & (bytes - 1) == 0
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

offset_type! {
    /// A byte offset in the disk as its guest sees it.
    GuestOffset
}
offset_type! {
    /// A byte offset in a file that holds an image (or in its external data file).
    HostOffset
}

/// A cluster size: 2^9 to 2^21 bytes (qcow2 specification, "Header", `cluster_bits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSize {
    bits: u8,
}

#[allow(clippy::len_without_is_empty)] // There is no empty cluster.
impl ClusterSize {
    /// The smallest `cluster_bits`: 512 bytes.
    pub const MIN_BITS: u32 = 9;
    /// The largest `cluster_bits`: 2 MiB.
    pub const MAX_BITS: u32 = 21;
    /// 512 bytes.
    pub const SMALLEST: Self = Self { bits: 9 };
    /// 64 KiB: what new images have unless asked otherwise.
    pub const DEFAULT: Self = Self { bits: 16 };

    /// The size of 2^`bits` bytes; `None` outside 9 to 21.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        let bits = u8::try_from(bits).ok()?;
        (Self::MIN_BITS..=Self::MAX_BITS)
            .contains(&u32::from(bits))
            .then_some(Self { bits })
    }

    /// log2 of the size.
    #[must_use]
    pub fn bits(self) -> u32 {
        u32::from(self.bits)
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// The size in bytes, for indexing memory.
    #[must_use]
    pub fn len(self) -> usize {
        1 << self.bits
    }

    /// The cluster that holds byte `offset`.
    #[must_use]
    pub fn index_of(self, offset: u64) -> u64 {
        offset >> self.bits
    }

    /// How far byte `offset` is into its cluster.
    #[must_use]
    pub fn offset_in(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// The start of the cluster that holds byte `offset`.
    #[must_use]
    pub fn floor(self, offset: u64) -> u64 {
        offset & !(self.bytes() - 1)
    }

    /// How many clusters `bytes` need; no overflow for any `bytes`.
    #[must_use]
    pub fn count_for(self, bytes: u64) -> u64 {
        (bytes >> self.bits) + u64::from(self.offset_in(bytes) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_sizes_outside_the_specification_do_not_exist() {
        assert!(ClusterSize::from_bits(8).is_none());
        assert!(ClusterSize::from_bits(22).is_none());
        assert!(ClusterSize::from_bits(u32::MAX).is_none());
        assert_eq!(ClusterSize::from_bits(9).unwrap().bytes(), 512);
        assert_eq!(ClusterSize::from_bits(21).unwrap().bytes(), 2 << 20);
    }

    #[test]
    fn counting_clusters_rounds_up_and_does_not_overflow() {
        let size = ClusterSize::from_bits(16).unwrap();
        assert_eq!(size.count_for(0), 0);
        assert_eq!(size.count_for(1), 1);
        assert_eq!(size.count_for(65536), 1);
        assert_eq!(size.count_for(65537), 2);
        assert_eq!(size.count_for(u64::MAX), 1 << 48);
    }
}
