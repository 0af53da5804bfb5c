//! The qcow2 format, read a second time from its specification: nothing here is the engine's.
//!
//! The independent checker and the builder of start states stand on this module, so that an error in the
//! engine's own parser cannot hide itself.

use super::contents::{Bytes, SECTOR};

/// "QFI\xfb".
pub const MAGIC: u32 = 0x5146_49fb;
/// Bit 63 of an L1 or L2 entry: the refcount is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry: reads as zeros.
pub const ZERO: u64 = 1;
/// The host offset in an L1 or standard L2 entry.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Incompatible features.
pub mod incompatible {
    /// Refcounts may be wrong.
    pub const DIRTY: u64 = 1;
    /// Damaged: no writes.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data lies in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type is not zlib.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries of 128 bits.
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Compatible features: refcounts may be updated lazily.
pub const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear features: the bitmaps are consistent.
pub const BITMAPS: u64 = 1;

/// Header extensions.
pub mod extension {
    /// The end of the extensions.
    pub const END: u32 = 0;
    /// The name of the backing file's format.
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Persistent bitmaps.
    pub const BITMAPS: u32 = 0x2385_2875;
    /// The name of the external data file.
    pub const DATA_FILE: u32 = 0x4441_5441;
    /// The names of the feature bits.
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    /// One that nobody knows, and everybody keeps.
    pub const UNKNOWN: u32 = 0x1234_5678;
}

/// A big-endian number of 16 bits.
#[must_use]
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// A big-endian number of 32 bits.
#[must_use]
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A big-endian number of 64 bits.
#[inline]
#[must_use]
pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A header whose numbers are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each field is the specification's own.
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub header_length: u32,
    /// Where the name of the backing file stands, and how long it is.
    pub backing: Option<(u64, u32)>,
    /// Where the bitmap directory is, if there are bitmaps.
    pub bitmaps: Option<BitmapsAt>,
}

/// The bitmaps extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BitmapsAt {
    pub count: u32,
    pub directory_bytes: u64,
    pub directory_offset: u64,
}

impl Header {
    /// Reads sector 0 (invariant M6: it always decodes), but for the extensions.
    ///
    /// # Errors
    ///
    /// A sentence about the field that cannot be.
    pub fn parse(sector: &Bytes) -> Result<Self, String> {
        let version = be32(sector, 4);
        if be32(sector, 0) != MAGIC || !(2..=3).contains(&version) {
            return Err("sector 0 is no qcow2 header".into());
        }
        let v3 = version == 3;
        let number = |at| if v3 { be64(sector, at) } else { 0 };
        let header = Self {
            version,
            cluster_bits: be32(sector, 20),
            size: be64(sector, 24),
            l1_entries: be32(sector, 36),
            l1_offset: be64(sector, 40),
            refcount_table_offset: be64(sector, 48),
            refcount_table_clusters: be32(sector, 56),
            snapshots: be32(sector, 60),
            snapshots_offset: be64(sector, 64),
            incompatible: number(72),
            compatible: number(80),
            autoclear: number(88),
            refcount_order: if v3 { be32(sector, 96) } else { 4 },
            header_length: if v3 { be32(sector, 100) } else { 72 },
            backing: Some((be64(sector, 8), be32(sector, 16))).filter(|(at, _)| *at != 0),
            bitmaps: None,
        };
        if !(9..=21).contains(&header.cluster_bits) || header.refcount_order > 6 {
            return Err("cluster size or refcount width out of range".into());
        }
        if be32(sector, 32) != 0 {
            return Err("encrypted".into());
        }
        let known = 0x1f;
        if header.incompatible & !known != 0 || header.incompatible & incompatible::CORRUPT != 0 {
            return Err(format!("incompatible features {:#x}", header.incompatible));
        }
        if v3 && !(104..=SECTOR as u32).contains(&header.header_length) {
            return Err(format!("header of {} bytes", header.header_length));
        }
        let aligned = header.cluster_bytes() - 1;
        let offsets = [
            header.l1_offset,
            header.refcount_table_offset,
            header.snapshots_offset,
        ];
        if offsets.iter().any(|offset| offset & aligned != 0) {
            return Err(format!("tables at unaligned offsets {offsets:x?}"));
        }
        let coverage = header.cluster_bytes() * header.l2_entries();
        if header.size.div_ceil(coverage) > u64::from(header.l1_entries) {
            return Err(format!(
                "{} L1 entries do not cover {} bytes",
                header.l1_entries, header.size
            ));
        }
        Ok(header)
    }

    /// Reads the extensions in `area`, which is the beginning of the file. False where it goes on behind that.
    ///
    /// # Errors
    ///
    /// Where an extension cannot be.
    pub fn read_extensions(&mut self, area: &[u8]) -> Result<bool, String> {
        let mut at = self.header_length as usize;
        while at + 8 <= area.len() {
            let (kind, length) = (be32(area, at), be32(area, at + 4) as usize);
            at += 8;
            if kind == extension::END {
                return Ok(true);
            }
            if at + length > self.cluster_bytes() as usize {
                return Err("a header extension reaches out of the first cluster".into());
            }
            if at + length > area.len() {
                return Ok(false);
            }
            if kind == extension::BITMAPS {
                self.bitmaps = Some(BitmapsAt {
                    count: be32(area, at),
                    directory_bytes: be64(area, at + 8),
                    directory_offset: be64(area, at + 16),
                });
            }
            at += length.next_multiple_of(8);
        }
        // What fills the first cluster needs no end mark.
        Ok(area.len() as u64 >= self.cluster_bytes())
    }

    /// Bytes in a cluster.
    #[must_use]
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Sectors in a cluster.
    #[must_use]
    pub fn cluster_sectors(&self) -> usize {
        1 << (self.cluster_bits - 9)
    }

    /// Bytes in an L2 entry.
    #[must_use]
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.has(incompatible::EXTENDED_L2) {
            16
        } else {
            8
        }
    }

    /// Entries in an L2 table.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / self.l2_entry_bytes()
    }

    /// Whether an incompatible feature is set.
    #[must_use]
    pub fn has(&self, feature: u64) -> bool {
        self.incompatible & feature != 0
    }

    /// Clusters that one refcount block counts.
    #[must_use]
    pub fn clusters_per_block(&self) -> u64 {
        (self.cluster_bytes() * 8) >> self.refcount_order
    }
}

/// Entry `index` of a refcount block of which `sector` is the sector that holds it.
#[must_use]
pub fn refcount(sector: &Bytes, index: u64, order: u32) -> u64 {
    let bit = (index << order) as usize % (SECTOR * 8);
    let byte = bit / 8;
    match order {
        0..=2 => {
            let width = 1 << order;
            u64::from(sector[byte]) >> (bit % 8) & ((1 << width) - 1)
        }
        3 => sector[byte].into(),
        4 => be16(sector, byte).into(),
        5 => be32(sector, byte).into(),
        _ => be64(sector, byte),
    }
}

/// Sets what [`refcount`] reads.
pub fn set_refcount(block: &mut [u8], index: u64, order: u32, value: u64) {
    let bit = (index << order) as usize;
    let byte = bit / 8;
    match order {
        0..=2 => {
            let mask = ((1_u32 << (1 << order)) - 1) as u8;
            let shift = bit % 8;
            block[byte] = block[byte] & !(mask << shift) | ((value as u8 & mask) << shift);
        }
        3 => block[byte] = value as u8,
        4 => block[byte..byte + 2].copy_from_slice(&(value as u16).to_be_bytes()),
        5 => block[byte..byte + 4].copy_from_slice(&(value as u32).to_be_bytes()),
        _ => block[byte..byte + 8].copy_from_slice(&value.to_be_bytes()),
    }
}

/// Where a compressed cluster is: its first byte, and how many bytes may belong to it.
#[must_use]
pub fn compressed_at(entry: u64, cluster_bits: u32) -> (u64, u64) {
    let offset_bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let more_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
    (offset, (more_sectors + 1) * 512 - offset % 512)
}

/// The entry of a compressed cluster of `length` bytes at `offset`.
#[must_use]
pub fn compressed_entry(offset: u64, length: u64, cluster_bits: u32) -> u64 {
    let more_sectors = (offset + length - 1) / 512 - offset / 512;
    COMPRESSED | more_sectors << (62 - (cluster_bits - 8)) | offset
}

/// An entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SnapshotEntry {
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub id: String,
    pub name: String,
    pub vm_state_bytes: u64,
    /// The disk's size, where the entry says so.
    pub disk_bytes: Option<u64>,
}

impl SnapshotEntry {
    /// Reads the entry at the beginning of `bytes`, and says how long it is; `None` where bytes are missing.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let fixed = bytes.get(..40)?;
        let id_bytes = be16(fixed, 12) as usize;
        let name_bytes = be16(fixed, 14) as usize;
        let extra = be32(fixed, 36) as usize;
        let extra_bytes = bytes.get(40..40 + extra)?;
        let id_at = 40 + extra;
        let name_at = id_at + id_bytes;
        let text = |from: usize, length: usize| {
            Some(String::from_utf8_lossy(bytes.get(from..from + length)?).into_owned())
        };
        let large_vm_state = (extra >= 8).then(|| be64(extra_bytes, 0));
        let entry = Self {
            l1_offset: be64(fixed, 0),
            l1_entries: be32(fixed, 8),
            id: text(id_at, id_bytes)?,
            name: text(name_at, name_bytes)?,
            vm_state_bytes: large_vm_state.unwrap_or_else(|| be32(fixed, 32).into()),
            disk_bytes: (extra >= 16).then(|| be64(extra_bytes, 8)),
        };
        Some((entry, (name_at + name_bytes).next_multiple_of(8)))
    }

    /// Its bytes, with the extra data of version 3.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend((self.id.len() as u16).to_be_bytes());
        bytes.extend((self.name.len() as u16).to_be_bytes());
        bytes.extend([0; 16]);
        bytes.extend((self.vm_state_bytes as u32).to_be_bytes());
        match self.disk_bytes {
            None => bytes.extend(0_u32.to_be_bytes()),
            Some(size) => {
                bytes.extend(16_u32.to_be_bytes());
                bytes.extend(self.vm_state_bytes.to_be_bytes());
                bytes.extend(size.to_be_bytes());
            }
        }
        bytes.extend(self.id.bytes());
        bytes.extend(self.name.bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_stand_where_the_specification_says() {
        for order in 0..=6 {
            let mut block = [0; SECTOR];
            let largest = if order == 6 {
                u64::MAX
            } else {
                (1 << (1 << order)) - 1
            };
            set_refcount(&mut block, 9, order, largest);
            assert_eq!(refcount(&block, 9, order), largest);
            assert_eq!(refcount(&block, 8, order), 0);
            assert_eq!(refcount(&block, 10, order), 0);
            set_refcount(&mut block, 9, order, 0);
            assert_eq!(block, [0; SECTOR]);
        }
        // One bit: the least significant bit of the first byte is cluster 0.
        let mut block = [0; SECTOR];
        set_refcount(&mut block, 1, 0, 1);
        assert_eq!(block[0], 2);
    }

    #[test]
    fn compressed_entries_tell_what_they_were_made_of() {
        for bits in [9, 12, 16, 21] {
            for (offset, length) in [(0x1234, 100), (0x1fff, 2), (0x2000, 512), (0x21ff, 512)] {
                let (at, most) = compressed_at(compressed_entry(offset, length, bits), bits);
                assert_eq!(at, offset);
                assert!((length..length + 512).contains(&most));
                assert_eq!((at + most) % 512, 0);
            }
        }
    }

    #[test]
    fn snapshot_entries_come_back() {
        let entry = SnapshotEntry {
            l1_offset: 0x5000,
            l1_entries: 3,
            id: "12".into(),
            name: "before".into(),
            vm_state_bytes: 700,
            disk_bytes: Some(1 << 20),
        };
        let bytes = entry.encode();
        assert_eq!(SnapshotEntry::parse(&bytes), Some((entry, bytes.len())));
        assert_eq!(SnapshotEntry::parse(&bytes[..40]), None);
    }
}
