//! Bitmaps of another image, added with their bits: one transaction for all of them, so that a cut leaves all
//! or none (S2).

use super::edit::Edit;
use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::change::snapshots::Exclusive;
use crate::image::{Image, Qcow2};
use crate::qcow2::bitmap::Bits;
use crate::qcow2::{Bitmap, BitmapFlags, Version};
use crate::storage::{Storage, read_padded};
use crate::units::HostOffset;

impl<S: Storage> Image<S> {
    /// Adds `bitmaps`, which are persistent bitmaps of `source`, with their bits: all of them or, where it
    /// fails, none. The two disks must be of one size; nobody may write to `source` meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where one of the images can have no bitmaps, or this one no more;
    /// [`Error::OutOfRange`] for a name that is taken and for disks of different sizes; [`Error::Corrupt`]
    /// where a bitmap is in use, so that nobody knows what it should say, or its table cannot be;
    /// [`Error::Io`] where a storage fails.
    pub async fn copy_bitmaps<T: Storage>(
        &self,
        source: &Image<T>,
        bitmaps: &[Bitmap],
    ) -> Result<()> {
        let (Some(engine), Some(from)) = (self.engine()?, source.top().as_qcow2()) else {
            return Err(Error::Unsupported("A raw image has no bitmaps".into()));
        };
        if from.virtual_size() != self.virtual_size() {
            return Err(Error::OutOfRange(
                format!(
                    "Bitmaps are of different sizes (destination size is {}, source size is {}) and can't be merged",
                    self.virtual_size(),
                    from.virtual_size()
                )
                .into(),
            ));
        }
        engine.add_bitmaps(from, bitmaps).await
    }
}

impl<S: Storage> Engine<'_, S> {
    async fn add_bitmaps<T: Storage>(&self, from: &Qcow2<T>, bitmaps: &[Bitmap]) -> Result<()> {
        if bitmaps.is_empty() {
            return Ok(());
        }
        if self.qcow2.header().version < Version::V3 {
            return Err(Error::Unsupported(
                "Cannot store dirty bitmaps in qcow2 v2 files".into(),
            ));
        }
        self.store_bitmaps().await?;
        let _held = Exclusive::new(self).await?;
        let mut edit = Edit::begin(self).await?;
        for bitmap in bitmaps {
            edit.check_new(&bitmap.name)?;
            let copy = copied(&mut edit, from, bitmap).await?;
            edit.push(copy);
        }
        edit.finish().await
    }
}

/// The same bitmap in the new state. Clusters of the two images may differ in size: the bits are one string,
/// whatever it is cut into.
async fn copied<S: Storage, T: Storage>(
    edit: &mut Edit<'_, '_, S>,
    from: &Qcow2<T>,
    bitmap: &Bitmap,
) -> Result<Bitmap> {
    let table = table_of(from, bitmap).await?;
    let entries = edit.entries_of(bitmap)?;
    let engine = edit.shadow.engine;
    let cluster_bytes = engine.cluster_bytes();
    let bits = bitmap.bits_for(engine.qcow2.virtual_size());
    let mut new_table = Vec::with_capacity(entries as usize);
    let mut bytes = vec![0; cluster_bytes as usize];
    for index in 0..entries {
        read_bits(from, &table, index * cluster_bytes, &mut bytes).await?;
        // The bits behind the last one must be zero, so that a cluster which has some is never all ones.
        let left = bits - index * cluster_bytes * 8;
        super::bits::clear_from(&mut bytes, left);
        new_table.push(edit.bits(&bytes).await?);
    }
    let flags = BitmapFlags(bitmap.flags.0 & BitmapFlags::AUTO);
    let copy = Bitmap {
        flags,
        ..bitmap.clone()
    };
    edit.with_table(&copy, &new_table).await
}

/// The table of a bitmap of an image that need not be open for writing; every entry is possible.
pub(super) async fn table_of<T: Storage>(from: &Qcow2<T>, bitmap: &Bitmap) -> Result<Vec<Bits>> {
    let header = from.header();
    let place = Place::at(Structure::BitmapTable, bitmap.table.0);
    if bitmap.flags.in_use() {
        return Err(Error::corrupt(
            format!("Bitmap '{}' is inconsistent", bitmap.name),
            place,
        ));
    }
    if !bitmap.fits(header.size, header.cluster_size) {
        return Err(Error::corrupt(
            format!("Bitmap '{}' doesn't satisfy the constraints", bitmap.name),
            place,
        ));
    }
    let table = crate::image::qcow2::read_table(
        &from.file.storage,
        bitmap.table,
        bitmap.table_entries,
        "Could not read bitmap table",
    )
    .await?;
    let decoded = table.iter().enumerate().map(|(index, &entry)| {
        Bits::decode(entry, header.cluster_size)
            .filter(|bits| !matches!(bits, Bits::At(HostOffset(at)) if *at >= from.file_len()))
            .ok_or_else(|| {
                let text = format!(
                    "Bitmap table entry {entry:#x} of bitmap '{}' is invalid",
                    bitmap.name
                );
                Error::corrupt(text, place.entry(index as u64))
            })
    });
    decoded.collect()
}

/// Fills `buf` with the bytes of a bitmap from byte `start` on, and with zeros behind it.
async fn read_bits<T: Storage>(
    from: &Qcow2<T>,
    table: &[Bits],
    start: u64,
    buf: &mut [u8],
) -> Result<()> {
    let size = from.header().cluster_size.bytes();
    let mut done = 0;
    while done < buf.len() {
        let at = start + done as u64;
        let within = at % size;
        let length = (size - within).min((buf.len() - done) as u64) as usize;
        let part = &mut buf[done..done + length];
        match table.get((at / size) as usize) {
            None | Some(Bits::Zeros) => part.fill(0),
            Some(Bits::Ones) => part.fill(u8::MAX),
            Some(Bits::At(HostOffset(cluster))) => {
                let at = cluster + within;
                let read = read_padded(&from.file.storage, at, part).await;
                read.map_err(|error| Error::io("Could not read bitmap data", at, error))?;
            }
        }
        done += length;
    }
    Ok(())
}
