//! The bitmap directory (specification, "Bitmaps").

use std::collections::HashSet;

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be16, be32, be64, text};
use crate::qcow2::extension::BitmapsExtension;
use crate::qcow2::{MAX_BITMAP_NAME, header::TableClaim, header::TableRules};
use crate::units::HostOffset;

/// The part of a directory entry before its extra data, in bytes.
const FIXED_BYTES: usize = 24;
/// The only bitmap type there is: dirty tracking.
const DIRTY_TRACKING: u8 = 1;
/// The largest bitmap table, in bytes: a limit of QEMU's.
const MAX_TABLE_BYTES: u64 = 0x800_0000 * 8;

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

fn parse_entry(bytes: &[u8], place: Place, rules: TableRules) -> Result<(Bitmap, usize)> {
    let broken = || Error::corrupt("Broken bitmap directory", place);
    if bytes.len() < FIXED_BYTES {
        return Err(broken());
    }
    let name_bytes = usize::from(be16(bytes, 18));
    let extra_bytes = be32(bytes, 20);
    let end = FIXED_BYTES as u64 + u64::from(extra_bytes) + name_bytes as u64;
    let length = end.next_multiple_of(8);
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
