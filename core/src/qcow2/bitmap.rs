//! The bitmap directory (specification, "Bitmaps").

use std::collections::HashSet;

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be16, be32, be64, put32, put64, text};
use crate::qcow2::extension::BitmapsExtension;
use crate::qcow2::{MAX_BITMAP_NAME, OFFSET_MASK, header::TableClaim, header::TableRules};
use crate::units::{ClusterSize, HostOffset};

/// The part of a directory entry before its extra data, in bytes.
const FIXED_BYTES: usize = 24;
/// The only bitmap type there is: dirty tracking.
const DIRTY_TRACKING: u8 = 1;
/// The largest bitmap table, in bytes: a limit of QEMU's.
const MAX_TABLE_BYTES: u64 = 0x800_0000 * 8;
/// The most bytes of bits that a bitmap may have: a limit of QEMU's.
pub(crate) const MAX_BITMAP_BYTES: u64 = 0x2000_0000;
/// Bit 0 of a bitmap table entry: all bits of the cluster are set. Only without an offset.
const ALL_ONES: u64 = 1;

/// The flags of a bitmap directory entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapFlags(pub u32);

impl BitmapFlags {
    /// The bitmap was not saved after its last change: not to be trusted.
    pub const IN_USE: u32 = 1;
    /// The bitmap is to be kept up to date by writers.
    pub const AUTO: u32 = 2;
    /// Extra data of an unknown kind may be ignored.
    pub const EXTRA_DATA_COMPATIBLE: u32 = 4;

    /// Whether the bitmap was left in use.
    #[must_use]
    pub fn in_use(self) -> bool {
        self.0 & Self::IN_USE != 0
    }

    /// Whether writers keep the bitmap up to date.
    #[must_use]
    pub fn auto(self) -> bool {
        self.0 & Self::AUTO != 0
    }
}

/// A persistent dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name, unique in the image.
    pub name: String,
    /// Its flags.
    pub flags: BitmapFlags,
    /// log2 of the guest bytes that one bit stands for.
    pub granularity_bits: u8,
    /// Where its table starts.
    pub table: HostOffset,
    /// How many clusters of bits it has: entries of the table.
    pub table_entries: u32,
}

impl Bitmap {
    /// The guest bytes that one bit stands for.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Its entry of the directory, without extra data.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        put64(&mut bytes, 0, self.table.0);
        put32(&mut bytes, 8, self.table_entries);
        put32(&mut bytes, 12, self.flags.0);
        bytes[16] = DIRTY_TRACKING;
        bytes[17] = self.granularity_bits;
        let name_bytes = self.name.len() as u16;
        bytes[18..20].copy_from_slice(&name_bytes.to_be_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    /// How many bits it has for a disk of `size` bytes.
    pub(crate) fn bits_for(&self, size: u64) -> u64 {
        size.div_ceil(self.granularity())
    }

    /// How many clusters of bits it has for a disk of `size` bytes.
    pub(crate) fn entries_for(&self, size: u64, cluster_size: ClusterSize) -> u64 {
        self.bits_for(size).div_ceil(cluster_size.bytes() * 8)
    }

    /// Whether what the directory says of it is possible for a disk of `size` bytes, where it is not in
    /// use: QEMU opens no image with a bitmap that is longer or shorter than its disk.
    pub(crate) fn fits(&self, size: u64, cluster_size: ClusterSize) -> bool {
        let entries = u64::from(self.table_entries);
        entries > 0
            && entries <= MAX_BITMAP_BYTES / cluster_size.bytes()
            && entries == self.entries_for(size, cluster_size)
    }
}

/// An entry of a bitmap table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// All bits of the cluster are clear.
    Zeros,
    /// All bits of the cluster are set.
    Ones,
    /// The bits stand in this cluster of the file.
    At(HostOffset),
}

impl Bits {
    /// What `entry` says; `None` for what no entry may be.
    pub fn decode(entry: u64, cluster_size: ClusterSize) -> Option<Self> {
        let offset = HostOffset(entry & OFFSET_MASK);
        match (offset.0, entry & !OFFSET_MASK) {
            (0, 0) => Some(Self::Zeros),
            (0, ALL_ONES) => Some(Self::Ones),
            (_, 0) if offset.is_aligned(cluster_size.bytes()) => Some(Self::At(offset)),
            _ => None,
        }
    }

    /// The entry that says so.
    pub fn encode(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Ones => ALL_ONES,
            Self::At(offset) => offset.0,
        }
    }
}

/// A directory as it stands, with what it says. What is not changed in it stays byte for byte.
pub(crate) struct Directory {
    bytes: Vec<u8>,
    /// Where the entries begin.
    starts: Vec<usize>,
    bitmaps: Vec<Bitmap>,
}

impl Directory {
    /// Parses a whole directory.
    pub fn parse(bytes: Vec<u8>, from: BitmapsExtension, rules: TableRules) -> Result<Self> {
        let bitmaps = parse_directory(&bytes, from, rules)?;
        let mut starts = Vec::with_capacity(bitmaps.len());
        let mut at = 0;
        for _ in &bitmaps {
            starts.push(at);
            at += entry_length(&bytes[at..]) as usize;
        }
        Ok(Self {
            bytes,
            starts,
            bitmaps,
        })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn bitmaps(&self) -> &[Bitmap] {
        &self.bitmaps
    }

    pub fn into_bitmaps(self) -> Vec<Bitmap> {
        self.bitmaps
    }

    /// The byte of the directory at which entry `index` begins.
    pub fn start_of(&self, index: usize) -> usize {
        self.starts[index]
    }

    /// Says of bitmap `index` that its table is this.
    pub fn set_table(&mut self, index: usize, table: HostOffset, entries: u32) {
        let at = self.starts[index];
        put64(&mut self.bytes, at, table.0);
        put32(&mut self.bytes, at + 8, entries);
        self.bitmaps[index].table = table;
        self.bitmaps[index].table_entries = entries;
    }

    /// Says of bitmap `index` whether it is in use.
    pub fn set_in_use(&mut self, index: usize, in_use: bool) {
        let flags = &mut self.bitmaps[index].flags;
        flags.0 &= !BitmapFlags::IN_USE;
        flags.0 |= BitmapFlags::IN_USE * u32::from(in_use);
        put32(&mut self.bytes, self.starts[index] + 12, flags.0);
    }
}

/// Parses a whole directory.
pub(crate) fn parse_directory(
    directory: &[u8],
    from: BitmapsExtension,
    rules: TableRules,
) -> Result<Vec<Bitmap>> {
    let mut bitmaps: Vec<Bitmap> = Vec::new();
    // A set: comparing each of 65535 names with all others would take seconds.
    let mut names = HashSet::new();
    let mut at = 0;
    while at < directory.len() {
        let index = bitmaps.len() as u64;
        let place =
            Place::at(Structure::BitmapDirectory, from.directory.0 + at as u64).entry(index);
        if index >= u64::from(from.count) {
            return Err(Error::corrupt(
                "More bitmaps found than specified in header extension",
                place,
            ));
        }
        let (bitmap, length) = parse_entry(&directory[at..], place, rules)?;
        if !names.insert(bitmap.name.clone()) {
            return Err(Error::corrupt(
                format!("Two bitmaps are named '{}'", bitmap.name),
                place,
            ));
        }
        bitmaps.push(bitmap);
        at += length;
    }
    if bitmaps.len() as u64 != u64::from(from.count) {
        let place = Place::at(Structure::BitmapDirectory, from.directory.0);
        return Err(Error::corrupt(
            "Less bitmaps found than specified in header extension",
            place,
        ));
    }
    Ok(bitmaps)
}

/// The length of the entry that `bytes` begin with, as it says itself.
fn entry_length(bytes: &[u8]) -> u64 {
    let variable = u64::from(be32(bytes, 20)) + u64::from(be16(bytes, 18));
    (FIXED_BYTES as u64 + variable).next_multiple_of(8)
}

fn parse_entry(bytes: &[u8], place: Place, rules: TableRules) -> Result<(Bitmap, usize)> {
    let broken = || Error::corrupt("Broken bitmap directory", place);
    if bytes.len() < FIXED_BYTES {
        return Err(broken());
    }
    let name_bytes = usize::from(be16(bytes, 18));
    let extra_bytes = be32(bytes, 20);
    let length = entry_length(bytes);
    if length > bytes.len() as u64 || name_bytes == 0 || name_bytes > MAX_BITMAP_NAME as usize {
        return Err(broken());
    }
    if extra_bytes != 0 {
        return Err(Error::Unsupported(
            "Bitmap extra data is not supported".into(),
        ));
    }
    let flags = BitmapFlags(be32(bytes, 12));
    let (kind, granularity_bits) = (bytes[16], bytes[17]);
    let known = BitmapFlags::IN_USE | BitmapFlags::AUTO | BitmapFlags::EXTRA_DATA_COMPATIBLE;
    if kind != DIRTY_TRACKING || flags.0 & !known != 0 || !(9..=31).contains(&granularity_bits) {
        return Err(broken());
    }
    let table = rules.check(&TableClaim {
        name: "Bitmap table",
        structure: Structure::BitmapTable,
        offset: be64(bytes, 0),
        entries: be32(bytes, 8).into(),
        entry_bytes: 8,
        limit_bytes: MAX_TABLE_BYTES,
    })?;
    let name = text(&bytes[FIXED_BYTES..FIXED_BYTES + name_bytes]);
    let bitmap = Bitmap {
        name,
        flags,
        granularity_bits,
        table: table.offset,
        table_entries: table.entries,
    };
    Ok((bitmap, length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ClusterSize;

    fn entry(name: &str) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        bytes[16] = DIRTY_TRACKING;
        bytes[17] = 16;
        bytes[19] = name.len() as u8;
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn parse(names: &[String], count: u32) -> Result<Vec<Bitmap>> {
        let directory: Vec<u8> = names.iter().flat_map(|name| entry(name)).collect();
        let from = BitmapsExtension {
            count,
            directory: HostOffset(0x1_0000),
            directory_bytes: directory.len() as u64,
        };
        let cluster_size = ClusterSize::from_bits(16).unwrap();
        parse_directory(
            &directory,
            from,
            TableRules {
                cluster_size,
                file_len: 1 << 30,
            },
        )
    }

    #[test]
    fn the_largest_directory_is_parsed_at_once() {
        let names: Vec<String> = (0..65535).map(|number| format!("{number:08}")).collect();
        let bitmaps = parse(&names, 65535).unwrap();
        assert_eq!(
            (bitmaps.len(), bitmaps[65534].name.as_str()),
            (65535, "00065534")
        );
        assert_eq!(bitmaps[0].granularity(), 65536);
    }

    #[test]
    fn a_changed_entry_keeps_everything_else() {
        let bytes: Vec<u8> = ["first", "second bitmap", "c"]
            .into_iter()
            .flat_map(entry)
            .collect();
        let from = BitmapsExtension {
            count: 3,
            directory: HostOffset(0x1_0000),
            directory_bytes: bytes.len() as u64,
        };
        let rules = TableRules {
            cluster_size: ClusterSize::from_bits(16).unwrap(),
            file_len: 1 << 30,
        };
        let mut directory = Directory::parse(bytes.clone(), from, rules).unwrap();
        assert_eq!(directory.start_of(1), 32);
        directory.set_table(1, HostOffset(0x7_0000), 3);
        directory.set_in_use(1, true);
        directory.set_in_use(2, false);
        let again = Directory::parse(directory.bytes().to_vec(), from, rules).unwrap();
        assert_eq!(again.bitmaps(), directory.bitmaps());
        let second = &again.bitmaps()[1];
        assert_eq!(
            (second.table, second.table_entries),
            (HostOffset(0x7_0000), 3)
        );
        assert!(second.flags.in_use() && second.name == "second bitmap");
        let differing = (0..bytes.len()).filter(|&at| bytes[at] != directory.bytes()[at]);
        assert!(differing.into_iter().all(|at| (32..48).contains(&at)));
    }

    #[test]
    fn table_entries_are_an_offset_or_a_flag() {
        let size = ClusterSize::from_bits(12).unwrap();
        for bits in [Bits::Zeros, Bits::Ones, Bits::At(HostOffset(0x3000))] {
            assert_eq!(Bits::decode(bits.encode(), size), Some(bits));
        }
        for wrong in [2, 0x3001, 0x3200, 1 << 63, 1 << 56 | 0x3000] {
            assert_eq!(Bits::decode(wrong, size), None);
        }
    }

    #[test]
    fn a_bitmap_is_as_long_as_its_disk() {
        let directory = Directory::parse(
            entry("b"),
            BitmapsExtension {
                count: 1,
                directory: HostOffset(0x1_0000),
                directory_bytes: 32,
            },
            TableRules {
                cluster_size: ClusterSize::from_bits(9).unwrap(),
                file_len: 1 << 30,
            },
        );
        let mut bitmap = directory.unwrap().into_bitmaps().remove(0);
        let size = ClusterSize::from_bits(9).unwrap();
        // A cluster of 512 bytes has 4096 bits, each of which stands for 64 KiB.
        let covered = 4096 << 16;
        bitmap.table_entries = 2;
        assert!(bitmap.fits(covered + 1, size) && bitmap.fits(2 * covered, size));
        assert!(!bitmap.fits(covered, size) && !bitmap.fits(2 * covered + 1, size));
        bitmap.table_entries = 0;
        assert!(!bitmap.fits(0, size));
        bitmap.table_entries = 1 << 20;
        assert!(bitmap.fits(covered << 20, size));
        bitmap.table_entries += 1;
        assert!(!bitmap.fits((covered << 20) + 1, size));
    }

    #[test]
    fn names_are_unique_and_as_many_as_the_header_says() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert!(parse(&names, 2).is_ok());
        assert!(
            parse(&names, 1)
                .unwrap_err()
                .to_string()
                .starts_with("More bitmaps")
        );
        assert!(
            parse(&names, 3)
                .unwrap_err()
                .to_string()
                .starts_with("Less bitmaps")
        );
        let twice = ["a".to_owned(), "a".to_owned()];
        assert_eq!(
            parse(&twice, 2).unwrap_err().to_string(),
            "Two bitmaps are named 'a'"
        );
    }
}
