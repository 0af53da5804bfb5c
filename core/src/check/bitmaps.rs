//! What the persistent bitmaps refer to.

use super::coverage::{Segment, coverage};
use super::page::Claim;
use super::references::References;
use super::tables::REQUEST_BYTES;
use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::OFFSET_MASK;
use crate::qcow2::bitmap::{Bitmap, parse_directory};
use crate::qcow2::bytes::be64_table;
use crate::qcow2::header::TableRules;
use crate::storage::{Storage, read_padded};
use crate::units::HostOffset;

/// Bit 0 of a bitmap table entry: all bits of the cluster are set. Only without an offset.
const ALL_ONES: u64 = 1;
/// The most bytes of bits that a bitmap may have: a limit of QEMU's.
const MAX_BITMAP_BYTES: u64 = 0x2000_0000;

impl<S: Storage> References<'_, '_, S> {
    /// Counts the bitmap directory, tables and bits. A directory or table that contradicts itself is an
    /// error: QEMU does not open such an image.
    pub(super) async fn count_bitmaps(&mut self) -> Result<()> {
        let Some(extension) = self.image.extensions().bitmaps else {
            return Ok(());
        };
        let header = self.image.header();
        let cluster = header.cluster_size.bytes();
        let storage = &self.image.file().storage;
        let start = extension.directory.0;
        let place = Place::at(Structure::BitmapDirectory, start);
        let end = start.saturating_add(extension.directory_bytes);
        self.refer(start..end, 1, Claim::None, place);
        if end > self.image.file_len().next_multiple_of(cluster) {
            return Err(Error::corrupt(
                "Bitmap directory reaches past the end of the file",
                place,
            ));
        }
        let mut directory = vec![0; extension.directory_bytes as usize];
        read_padded(storage, start, &mut directory)
            .await
            .map_err(|error| Error::io("Failed to read bitmap directory", start, error))?;
        // Tables past the end of the file are counted as what they are.
        let rules = TableRules {
            cluster_size: header.cluster_size,
            file_len: i64::MAX as u64 - cluster,
        };
        let bitmaps = parse_directory(&directory, extension, rules)?;
        drop(directory);
        for bitmap in &bitmaps {
            if !self.fits(bitmap) {
                let what = format!("Bitmap '{}' doesn't satisfy the constraints", bitmap.name);
                return Err(Error::corrupt(
                    what,
                    Place::at(Structure::BitmapTable, bitmap.table.0),
                ));
            }
        }

        let tables: Vec<_> = bitmaps
            .iter()
            .map(|bitmap| bitmap.table.0..bitmap.table.0 + u64::from(bitmap.table_entries) * 8)
            .collect();
        self.refer_all(&tables, Structure::BitmapTable);
        let file_end = self.image.file_len().next_multiple_of(8);
        let mut bytes = Vec::new();
        for Segment { range, weight } in
            coverage(tables.into_iter().map(|t| t.start..t.end.min(file_end)))
        {
            let mut at = range.start;
            while at < range.end {
                bytes.resize((range.end - at).min(REQUEST_BYTES) as usize, 0);
                read_padded(storage, at, &mut bytes)
                    .await
                    .map_err(|error| Error::io("Could not read bitmap table", at, error))?;
                for (entry_at, entry) in (at..).step_by(8).zip(be64_table(&bytes)) {
                    let place = Place::at(Structure::BitmapTable, entry_at);
                    let offset = entry & OFFSET_MASK;
                    let aligned = HostOffset(offset).is_aligned(cluster);
                    if entry & !(OFFSET_MASK | ALL_ONES) != 0
                        || offset != 0 && (entry & ALL_ONES != 0 || !aligned)
                    {
                        return Err(Error::corrupt(
                            format!("Bitmap table entry {entry:#x} is invalid"),
                            place,
                        ));
                    }
                    if offset != 0 {
                        self.refer(offset..offset + cluster, weight, Claim::None, place);
                    }
                }
                at += bytes.len() as u64;
                self.findings.advance(0)?;
            }
        }
        Ok(())
    }

    /// Whether the bitmap has a table, a size that QEMU takes, and bits for the whole disk (which those of
    /// a bitmap that was left in use need not have).
    fn fits(&self, bitmap: &Bitmap) -> bool {
        let bytes = u64::from(bitmap.table_entries) * self.image.header().cluster_size.bytes();
        let covered = (u128::from(bytes) * 8) << bitmap.granularity_bits;
        bitmap.table_entries > 0
            && bytes <= MAX_BITMAP_BYTES
            && (bitmap.flags.in_use() || covered >= u128::from(self.image.header().size))
    }
}
