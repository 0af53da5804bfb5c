//! Bitmaps of another image, added with their bits: one transaction for all of them, so that a cut leaves all
//! or none (S2).

use super::extensions::Standing;
use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::image::{Image, Qcow2};
use crate::qcow2::bitmap::{Bits, MAX_BITMAP_BYTES};
use crate::qcow2::extension::BitmapsExtension;
use crate::qcow2::{Autoclear, Bitmap, BitmapFlags, MAX_BITMAPS, Version};
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
        let mut names = Vec::new();
        let mut directory = Vec::new();
        if let Some(old) = self.qcow2.bitmap_directory().await? {
            self.check_directory_owned().await?;
            names.extend(old.bitmaps().iter().map(|bitmap| bitmap.name.clone()));
            directory.extend_from_slice(old.bytes());
        }
        if names.len() + bitmaps.len() > MAX_BITMAPS as usize {
            return Err(Error::Unsupported(
                format!("Maximum number of persistent bitmaps is already reached ({MAX_BITMAPS})")
                    .into(),
            ));
        }
        let standing = self.bring_extension_into_sector_0().await?;
        if let Standing::Elsewhere = standing {
            return Err(Error::Unsupported(
                "Other header extensions leave no room for bitmaps in the first sector".into(),
            ));
        }
        // Everything new stands in clusters that are free, until the switch.
        let mut shadow = Shadow::new(self);
        for bitmap in bitmaps {
            if names.contains(&bitmap.name) {
                return Err(Error::OutOfRange(
                    format!("Bitmap already exists: {}", bitmap.name).into(),
                ));
            }
            names.push(bitmap.name.clone());
            let copy = copied(&mut shadow, from, bitmap).await?;
            directory.extend(copy.encode());
        }
        let at = shadow
            .write_new_table("Could not write bitmap directory", &directory)
            .await?;
        if let Some(old) = self.qcow2.extensions().bitmaps {
            shadow
                .free_table(old.directory.0, old.directory_bytes)
                .await?;
        }
        let extension = BitmapsExtension {
            count: names.len() as u32,
            directory: HostOffset(at),
            directory_bytes: directory.len() as u64,
        };
        shadow.patch = Some(self.patch_for(&standing, extension).await?);
        shadow.header.autoclear_features |= Autoclear::BITMAPS.0;
        shadow.finish().await?;
        self.protect_metadata().await
    }
}

/// The same bitmap in the new state of `shadow`. Clusters of the two images may differ in size: the bits are
/// one string, whatever it is cut into.
async fn copied<S: Storage, T: Storage>(
    shadow: &mut Shadow<'_, '_, S>,
    from: &Qcow2<T>,
    bitmap: &Bitmap,
) -> Result<Bitmap> {
    let table = table_of(from, bitmap).await?;
    let cluster_size = shadow.engine.qcow2.l2_format.cluster_size;
    let disk = shadow.engine.qcow2.virtual_size();
    let entries = bitmap.entries_for(disk, cluster_size);
    if entries == 0 || entries > MAX_BITMAP_BYTES / cluster_size.bytes() {
        return Err(Error::OutOfRange(
            format!(
                "Bitmap '{}' cannot be that of a disk of {disk} bytes in clusters of {} bytes",
                bitmap.name,
                cluster_size.bytes()
            )
            .into(),
        ));
    }
    let bits = bitmap.bits_for(disk);
    let mut new_table = Vec::with_capacity(entries as usize * 8);
    let mut bytes = vec![0; cluster_size.len()];
    for index in 0..entries {
        read_bits(from, &table, index * cluster_size.bytes(), &mut bytes).await?;
        // The bits behind the last one must be zero, so that a cluster which has some is never all ones.
        let left = bits - index * cluster_size.bytes() * 8;
        super::bits::clear_from(&mut bytes, left);
        let is_all = |value: u8| bytes.iter().all(|&byte| byte == value);
        let entry = if is_all(0) {
            Bits::Zeros
        } else if is_all(u8::MAX) {
            Bits::Ones
        } else {
            let at = shadow
                .write_new_table("Could not write bitmap data", &bytes)
                .await?;
            Bits::At(HostOffset(at))
        };
        new_table.extend(entry.encode().to_be_bytes());
    }
    let at = shadow
        .write_new_table("Could not write bitmap table", &new_table)
        .await?;
    Ok(Bitmap {
        flags: BitmapFlags(bitmap.flags.0 & BitmapFlags::AUTO),
        table: HostOffset(at),
        table_entries: entries as u32,
        ..bitmap.clone()
    })
}

/// The table of a bitmap of an image that need not be open for writing; every entry is possible.
async fn table_of<T: Storage>(from: &Qcow2<T>, bitmap: &Bitmap) -> Result<Vec<Bits>> {
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
