//! The header (specification, "Header"): decoded as it stands, checked into a [`Header`], and encoded again.

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be32, be64, put32, put64};
use crate::qcow2::{
    Autoclear, Compatible, Incompatible, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS,
    RefcountWidth,
};
use crate::units::{ClusterSize, HostOffset, SECTOR};

/// "QFI\xfb", the first four bytes.
pub const MAGIC: u32 = 0x5146_49fb;
/// The length of a version 2 header, in bytes.
pub const V2_LENGTH: u32 = 72;
/// The least length of a version 3 header, in bytes.
pub const V3_LENGTH: u32 = 104;
/// The length of a version 3 header with the compression type: what new images have, in bytes.
pub const FULL_LENGTH: u32 = 112;
/// A snapshot table entry without its variable parts, in bytes.
const SNAPSHOT_ENTRY_LEAST: u64 = 40;

/// The version field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Version 2 ("compat 0.10"): no feature bits, no zero clusters.
    V2,
    /// Version 3 ("compat 1.1").
    V3,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Compression {
    /// Raw deflate, which QEMU calls zlib.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl Compression {
    /// QEMU's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// The `crypt_method` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Encryption {
    /// Plain content.
    None,
    /// The old AES-CBC method.
    Aes,
    /// A LUKS header inside the image.
    Luks,
}

/// Every field as it stands in the file, nothing checked: for reports on images that do not open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // Each field is the specification's own.
pub struct RawHeader {
    pub magic: u32,
    pub version: u32,
    pub backing_file_offset: u64,
    pub backing_file_size: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt_method: u32,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible_features: u64,
    pub compatible_features: u64,
    pub autoclear_features: u64,
    pub refcount_order: u32,
    pub header_length: u32,
    pub compression_type: u8,
}

impl RawHeader {
    /// The fields of the header at the start of `bytes` (the first 112 bytes of the file or fewer: what
    /// is missing reads as zero). Version 3 fields are never read from a version 2 file.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let mut raw = Self {
            magic: be32(bytes, 0),
            version: be32(bytes, 4),
            backing_file_offset: be64(bytes, 8),
            backing_file_size: be32(bytes, 16),
            cluster_bits: be32(bytes, 20),
            size: be64(bytes, 24),
            crypt_method: be32(bytes, 32),
            l1_size: be32(bytes, 36),
            l1_table_offset: be64(bytes, 40),
            refcount_table_offset: be64(bytes, 48),
            refcount_table_clusters: be32(bytes, 56),
            nb_snapshots: be32(bytes, 60),
            snapshots_offset: be64(bytes, 64),
            refcount_order: 4,
            header_length: V2_LENGTH,
            ..Self::default()
        };
        if raw.version >= 3 {
            raw.incompatible_features = be64(bytes, 72);
            raw.compatible_features = be64(bytes, 80);
            raw.autoclear_features = be64(bytes, 88);
            raw.refcount_order = be32(bytes, 96);
            raw.header_length = be32(bytes, 100);
            if raw.header_length > V3_LENGTH {
                raw.compression_type = bytes.get(V3_LENGTH as usize).copied().unwrap_or(0);
            }
        }
        raw
    }

    /// Writes the fields over the start of `bytes`: the beginning of the file as it is now, or zeros for a
    /// new image. What is not a field of this version (header bytes past those known, padding, extensions)
    /// stays as it is (QEMU-COMPAT rule 7).
    ///
    /// # Panics
    ///
    /// When `bytes` is shorter than 512 bytes: the header is written as one sector or not at all
    /// (invariant M6).
    pub fn encode_into(&self, bytes: &mut [u8]) {
        assert!(
            bytes.len() as u64 >= SECTOR,
            "a header takes a whole sector"
        );
        put32(bytes, 0, self.magic);
        put32(bytes, 4, self.version);
        put64(bytes, 8, self.backing_file_offset);
        put32(bytes, 16, self.backing_file_size);
        put32(bytes, 20, self.cluster_bits);
        put64(bytes, 24, self.size);
        put32(bytes, 32, self.crypt_method);
        put32(bytes, 36, self.l1_size);
        put64(bytes, 40, self.l1_table_offset);
        put64(bytes, 48, self.refcount_table_offset);
        put32(bytes, 56, self.refcount_table_clusters);
        put32(bytes, 60, self.nb_snapshots);
        put64(bytes, 64, self.snapshots_offset);
        if self.version >= 3 {
            put64(bytes, 72, self.incompatible_features);
            put64(bytes, 80, self.compatible_features);
            put64(bytes, 88, self.autoclear_features);
            put32(bytes, 96, self.refcount_order);
            put32(bytes, 100, self.header_length);
            // A shorter header has an extension here.
            if self.header_length > V3_LENGTH {
                bytes[V3_LENGTH as usize] = self.compression_type;
            }
        }
    }
}

/// A table that lies in one piece: where, and how many entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Where it starts.
    pub offset: HostOffset,
    /// How many entries it has (bytes divided by the entry's size).
    pub entries: u32,
}

/// A header whose fields are possible and whose tables lie inside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version.
    pub version: Version,
    /// The cluster size.
    pub cluster_size: ClusterSize,
    /// The guest's disk size in bytes, as stored (qemu-img counts whole sectors of it).
    pub size: u64,
    /// The encryption of guest data.
    pub encryption: Encryption,
    /// The active L1 table.
    pub l1: Table,
    /// The refcount table; entries are refcount blocks.
    pub refcount_table: Table,
    /// How wide refcounts are.
    pub refcount_width: RefcountWidth,
    /// The snapshot table; entries have variable length.
    pub snapshots: Table,
    /// Incompatible feature bits, all known.
    pub incompatible: Incompatible,
    /// Compatible feature bits.
    pub compatible: Compatible,
    /// Autoclear feature bits.
    pub autoclear: Autoclear,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The length of the header in bytes.
    pub length: u32,
    /// Where the backing file's name stands, and its length in bytes.
    pub backing_name: Option<(u64, u32)>,
}

fn wrong(what: impl Into<crate::error::Text>, field_at: u64) -> Error {
    Error::corrupt(what, Place::at(Structure::Header, field_at))
}

/// The fields whose meaning does not depend on the incompatible feature bits.
///
/// Apart from [`Header::check`] because an unknown feature is named by a table that only these can find.
pub(crate) fn check_basics(raw: &RawHeader) -> Result<ClusterSize> {
    if raw.magic != MAGIC {
        return Err(Error::NotThisFormat("Image is not in qcow2 format".into()));
    }
    if !(2..=3).contains(&raw.version) {
        return Err(Error::Unsupported(
            format!("Unsupported qcow2 version {}", raw.version).into(),
        ));
    }
    // Before any shift by it (QEMU-COMPAT rule 1).
    let cluster_size = ClusterSize::from_bits(raw.cluster_bits).ok_or_else(|| {
        Error::Unsupported(format!("Unsupported cluster size: 2^{}", raw.cluster_bits).into())
    })?;
    if raw.version >= 3 {
        if raw.header_length < V3_LENGTH {
            return Err(wrong("qcow2 header too short", 100));
        }
        if u64::from(raw.header_length) > cluster_size.bytes() {
            return Err(wrong("qcow2 header exceeds cluster size", 100));
        }
        if !raw.header_length.is_multiple_of(8) {
            let length = raw.header_length;
            return Err(wrong(
                format!("qcow2 header length {length} is not a multiple of 8"),
                100,
            ));
        }
    }
    if raw.backing_file_offset > cluster_size.bytes() {
        return Err(wrong("Invalid backing file offset", 8));
    }
    Ok(cluster_size)
}

impl Header {
    /// Checks every field of `raw` against the specification and a file of `file_len` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NotThisFormat`] for another magic, [`Error::Unsupported`] for a version or feature that is
    /// not known, [`Error::Corrupt`] for a number that cannot be. `describe_unknown` words the unknown
    /// incompatible bits (the feature name table is the caller's to read).
    pub fn check(
        raw: &RawHeader,
        file_len: u64,
        describe_unknown: impl FnOnce(u64) -> String,
    ) -> Result<Self> {
        Self::check_parts(raw, file_len, describe_unknown, true)
    }

    /// As [`Self::check`], but for the refcount table: there is none, whatever the fields say.
    pub(crate) fn check_without_refcounts(raw: &RawHeader, file_len: u64) -> Result<Self> {
        Self::check_parts(raw, file_len, |bits| format!("{bits:#x}"), false)
    }

    fn check_parts(
        raw: &RawHeader,
        file_len: u64,
        describe_unknown: impl FnOnce(u64) -> String,
        refcounts: bool,
    ) -> Result<Self> {
        let cluster_size = check_basics(raw)?;
        let incompatible = Incompatible(raw.incompatible_features);
        let compression = match raw.compression_type {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            other => {
                return Err(Error::Unsupported(
                    format!("qcow2: unknown compression type: {other}").into(),
                ));
            }
        };
        // Both ways (QEMU-COMPAT rule 8).
        match (
            compression,
            incompatible.has(Incompatible::COMPRESSION_TYPE),
        ) {
            (Compression::Zlib, true) => {
                return Err(wrong(
                    "qcow2: Compression type incompatible feature bit must not be set",
                    72,
                ));
            }
            (Compression::Zstd, false) => {
                return Err(wrong(
                    "qcow2: Compression type incompatible feature bit must be set",
                    72,
                ));
            }
            _ => {}
        }
        if incompatible.unknown() != 0 {
            let names = describe_unknown(incompatible.unknown());
            return Err(Error::Unsupported(
                format!("Unsupported qcow2 feature(s): {names}").into(),
            ));
        }
        if incompatible.has(Incompatible::EXTENDED_L2) && cluster_size.bytes() / 32 < SECTOR {
            let subcluster = cluster_size.bytes() / 32;
            return Err(wrong(
                format!("Unsupported subcluster size: {subcluster}"),
                20,
            ));
        }
        // A lone bit would make the guest's data whatever the metadata file has (QEMU-COMPAT rule 12).
        let autoclear = Autoclear(raw.autoclear_features);
        if autoclear.has(Autoclear::DATA_FILE_RAW) && !incompatible.has(Incompatible::DATA_FILE) {
            return Err(wrong("data-file-raw requires a data file", 88));
        }
        let refcount_width = RefcountWidth::from_order(raw.refcount_order).ok_or_else(|| {
            wrong(
                "Reference count entry width too large; may not exceed 64 bits",
                96,
            )
        })?;
        let encryption = match raw.crypt_method {
            0 => Encryption::None,
            1 => Encryption::Aes,
            2 => Encryption::Luks,
            other => {
                return Err(Error::Unsupported(
                    format!("Unsupported encryption method {}", other.cast_signed()).into(),
                ));
            }
        };

        let tables = TableRules {
            cluster_size,
            file_len,
        };
        let refcount_table = match refcounts {
            true => check_refcount_table(raw, tables)?,
            false => Table {
                offset: HostOffset(0),
                entries: 0,
            },
        };
        // Past the end of the file it reads as zeros, which are snapshots of nothing.
        let anywhere = TableRules {
            file_len: i64::MAX as u64,
            ..tables
        };
        let snapshots = anywhere.check(&TableClaim {
            name: "Snapshot table",
            structure: Structure::SnapshotTable,
            offset: raw.snapshots_offset,
            entries: u64::from(raw.nb_snapshots),
            entry_bytes: SNAPSHOT_ENTRY_LEAST,
            limit_bytes: u64::from(MAX_SNAPSHOTS) * SNAPSHOT_ENTRY_LEAST,
        })?;
        let l1 = tables.check(&TableClaim {
            name: "Active L1 table",
            structure: Structure::L1Table,
            offset: raw.l1_table_offset,
            entries: u64::from(raw.l1_size),
            entry_bytes: 8,
            limit_bytes: MAX_L1_BYTES,
        })?;
        let l2_entry_bytes = if incompatible.has(Incompatible::EXTENDED_L2) {
            16
        } else {
            8
        };
        let needed = l1_entries_for(raw.size, cluster_size, l2_entry_bytes);
        if needed > i32::MAX as u64 {
            return Err(wrong("Image is too big", 24));
        }
        if u64::from(raw.l1_size) < needed {
            return Err(wrong("L1 table is too small", 36));
        }

        Ok(Self {
            version: if raw.version == 2 {
                Version::V2
            } else {
                Version::V3
            },
            cluster_size,
            size: raw.size,
            encryption,
            l1,
            refcount_table,
            refcount_width,
            snapshots,
            incompatible,
            compatible: Compatible(raw.compatible_features),
            autoclear,
            compression,
            length: raw.header_length,
            backing_name: (raw.backing_file_offset != 0)
                .then_some((raw.backing_file_offset, raw.backing_file_size)),
        })
    }

    /// The fields that say this: what [`RawHeader::encode_into`] writes.
    #[must_use]
    pub fn to_raw(&self) -> RawHeader {
        let (backing_file_offset, backing_file_size) = self.backing_name.unwrap_or_default();
        let refcount_table_bytes = u64::from(self.refcount_table.entries) * 8;
        RawHeader {
            magic: MAGIC,
            version: match self.version {
                Version::V2 => 2,
                Version::V3 => 3,
            },
            backing_file_offset,
            backing_file_size,
            cluster_bits: self.cluster_size.bits(),
            size: self.size,
            crypt_method: match self.encryption {
                Encryption::None => 0,
                Encryption::Aes => 1,
                Encryption::Luks => 2,
            },
            l1_size: self.l1.entries,
            l1_table_offset: self.l1.offset.0,
            refcount_table_offset: self.refcount_table.offset.0,
            refcount_table_clusters: self.cluster_size.count_for(refcount_table_bytes) as u32,
            nb_snapshots: self.snapshots.entries,
            snapshots_offset: self.snapshots.offset.0,
            incompatible_features: self.incompatible.0,
            compatible_features: self.compatible.0,
            autoclear_features: self.autoclear.0,
            refcount_order: self.refcount_width.order(),
            header_length: self.length,
            compression_type: match self.compression {
                Compression::Zlib => 0,
                Compression::Zstd => 1,
            },
        }
    }

    /// Whether L2 entries are 128 bits.
    #[must_use]
    pub fn extended_l2(&self) -> bool {
        self.incompatible.has(Incompatible::EXTENDED_L2)
    }

    /// Whether guest data lies in another file.
    #[must_use]
    pub fn has_data_file(&self) -> bool {
        self.incompatible.has(Incompatible::DATA_FILE)
    }

    /// The bytes of an L2 entry: 8, or 16 with extended L2.
    #[must_use]
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// How many bytes of the guest one L1 entry covers.
    #[must_use]
    pub fn l1_coverage(&self) -> u64 {
        (self.cluster_size.bytes() / self.l2_entry_bytes()) << self.cluster_size.bits()
    }

    /// How many L1 entries a disk of `size` bytes needs.
    #[must_use]
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        l1_entries_for(size, self.cluster_size, self.l2_entry_bytes())
    }
}

fn check_refcount_table(raw: &RawHeader, rules: TableRules) -> Result<Table> {
    if raw.refcount_table_clusters == 0 {
        return Err(wrong("Image does not contain a reference count table", 56));
    }
    rules.check(&TableClaim {
        name: "Reference count table",
        structure: Structure::RefcountTable,
        offset: raw.refcount_table_offset,
        entries: u64::from(raw.refcount_table_clusters) * (rules.cluster_size.bytes() / 8),
        entry_bytes: 8,
        limit_bytes: MAX_REFCOUNT_TABLE_BYTES,
    })
}

fn l1_entries_for(size: u64, cluster_size: ClusterSize, l2_entry_bytes: u64) -> u64 {
    let l2_entries = cluster_size.bytes() / l2_entry_bytes;
    cluster_size.count_for(size).div_ceil(l2_entries)
}

/// What a table must satisfy, wherever its numbers come from.
#[derive(Clone, Copy)]
pub(crate) struct TableRules {
    pub cluster_size: ClusterSize,
    pub file_len: u64,
}

/// What an image says of a table.
pub(crate) struct TableClaim {
    /// As QEMU's messages name it.
    pub name: &'static str,
    pub structure: Structure,
    pub offset: u64,
    pub entries: u64,
    pub entry_bytes: u64,
    pub limit_bytes: u64,
}

impl TableRules {
    /// The table, if it is small enough, aligned, and inside the file (rounded up to a whole cluster: the
    /// last one need not be written to its end).
    pub fn check(self, claim: &TableClaim) -> Result<Table> {
        let place = Place::at(claim.structure, claim.offset);
        let name = claim.name;
        if claim.entries > claim.limit_bytes / claim.entry_bytes {
            return Err(Error::corrupt(format!("{name} too large"), place));
        }
        let bytes = claim.entries * claim.entry_bytes;
        let end = claim
            .offset
            .checked_add(bytes)
            .filter(|&end| end <= i64::MAX as u64);
        let (Some(end), true) = (
            end,
            HostOffset(claim.offset).is_aligned(self.cluster_size.bytes()),
        ) else {
            return Err(Error::corrupt(format!("{name} offset invalid"), place));
        };
        if bytes > 0 {
            if claim.offset == 0 {
                return Err(Error::corrupt(
                    format!("{name} overlaps with the image header"),
                    place,
                ));
            }
            let file_end = self
                .cluster_size
                .count_for(self.file_len)
                .saturating_mul(self.cluster_size.bytes());
            if end > file_end {
                return Err(Error::corrupt(
                    format!(
                        "{name} reaches past the end of the file ({end:#x} > {:#x})",
                        self.file_len
                    ),
                    place,
                ));
            }
        }
        Ok(Table {
            offset: HostOffset(claim.offset),
            entries: claim.entries as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> RawHeader {
        RawHeader {
            magic: MAGIC,
            version: 3,
            cluster_bits: 16,
            size: 1 << 30,
            l1_size: 2,
            l1_table_offset: 0x3_0000,
            refcount_table_offset: 0x1_0000,
            refcount_table_clusters: 1,
            refcount_order: 4,
            header_length: 112,
            ..RawHeader::default()
        }
    }

    fn check(raw: &RawHeader) -> Result<Header> {
        Header::check(raw, 0x4_0000, |bits| format!("bits {bits:#x}"))
    }

    fn refused(change: impl FnOnce(&mut RawHeader), words: &str) {
        let mut raw = sound();
        change(&mut raw);
        let error = check(&raw).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }

    #[test]
    fn a_sound_header_passes() {
        let header = check(&sound()).unwrap();
        assert_eq!(header.version, Version::V3);
        assert_eq!(header.l1_coverage(), 512 << 20);
        assert_eq!(
            header.l1,
            Table {
                offset: HostOffset(0x3_0000),
                entries: 2
            }
        );
    }

    #[test]
    fn impossible_numbers_are_named() {
        refused(|h| h.magic = 1, "not in qcow2 format");
        refused(|h| h.version = 4, "Unsupported qcow2 version 4");
        refused(|h| h.cluster_bits = 64, "Unsupported cluster size: 2^64");
        refused(|h| h.header_length = 103, "header too short");
        refused(|h| h.header_length = 105, "not a multiple of 8");
        refused(|h| h.autoclear_features = 2, "requires a data file");
        refused(|h| h.header_length = 65544, "exceeds cluster size");
        refused(|h| h.header_length = u32::MAX, "exceeds cluster size");
        refused(|h| h.backing_file_offset = 65537, "backing file offset");
        refused(
            |h| h.incompatible_features = 1 << 63,
            "bits 0x8000000000000000",
        );
        refused(|h| h.compression_type = 1, "must be set");
        refused(|h| h.incompatible_features = 8, "must not be set");
        refused(
            |h| (h.incompatible_features, h.cluster_bits) = (16, 13),
            "Unsupported subcluster size: 256",
        );
        refused(|h| h.refcount_order = 7, "may not exceed 64 bits");
        refused(|h| h.crypt_method = 3, "Unsupported encryption method 3");
        refused(
            |h| h.refcount_table_clusters = 0,
            "does not contain a reference count table",
        );
        refused(
            |h| h.refcount_table_clusters = u32::MAX,
            "Reference count table too large",
        );
        refused(|h| h.l1_size = u32::MAX, "Active L1 table too large");
        refused(
            |h| h.l1_table_offset = 0x3_0200,
            "Active L1 table offset invalid",
        );
        refused(
            |h| h.l1_table_offset = !0xffff,
            "Active L1 table offset invalid",
        );
        refused(|h| h.l1_table_offset = 0x4_0000, "past the end of the file");
        refused(|h| h.l1_table_offset = 0, "overlaps with the image header");
        refused(|h| h.size = (1 << 30) + 1, "L1 table is too small");
        refused(|h| h.size = u64::MAX, "Image is too big");
        refused(|h| h.nb_snapshots = 65537, "Snapshot table too large");
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let full = RawHeader {
            backing_file_offset: 600,
            backing_file_size: 9,
            crypt_method: 1,
            nb_snapshots: 3,
            snapshots_offset: 0x2_0000,
            incompatible_features: 0b1000,
            compatible_features: 1 << 40 | 1,
            autoclear_features: 1,
            refcount_order: 6,
            compression_type: 1,
            ..sound()
        };
        let short = RawHeader {
            header_length: 104,
            ..sound()
        };
        let old = RawHeader {
            version: 2,
            header_length: 72,
            ..sound()
        };
        for raw in [full, short, old] {
            let header = check(&raw).unwrap();
            assert_eq!(header.to_raw(), raw);
            // What is not the header's own survives.
            let mut bytes = [0xee; 512];
            raw.encode_into(&mut bytes);
            assert_eq!(RawHeader::decode(&bytes), raw);
            let known = raw.header_length.min(105) as usize;
            assert!(bytes[known..].iter().all(|&byte| byte == 0xee));
        }
    }

    #[test]
    fn version_2_has_no_feature_bits_whatever_follows_the_header() {
        let mut bytes = vec![0xff; 112];
        bytes[..8].copy_from_slice(&[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 2]);
        let raw = RawHeader::decode(&bytes);
        assert_eq!(
            (
                raw.incompatible_features,
                raw.refcount_order,
                raw.header_length
            ),
            (0, 4, 72)
        );
    }
}
