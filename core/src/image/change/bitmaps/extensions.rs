//! Where the bitmaps extension stands. What a transaction changes must stand in sector 0, because one write of
//! it is the switch (M6); QEMU puts the extension behind the feature name table, where it mostly does not.

use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::open::{extension_area, read_first_cluster};
use crate::qcow2::Extensions;
use crate::qcow2::extension::BitmapsExtension;
use crate::storage::Storage;
use crate::units::SECTOR;

/// What a switch changes in sector 0 besides the header's fields.
#[derive(Debug)]
pub(crate) struct Patch {
    /// Where the bytes go.
    pub at: usize,
    pub bytes: Vec<u8>,
    /// The bitmaps extension that they say, where the bitmaps of the new state are stored with it.
    pub bitmaps: Option<BitmapsExtension>,
}

/// Whether a switch can change the bitmaps extension.
#[derive(Debug)]
pub(super) enum Standing {
    /// Its data stand at this byte of sector 0.
    InSector0(usize),
    /// It was behind sector 0 and is in it now; the feature name table has gone for that, and can come back
    /// with the switch.
    MovedToSector0,
    /// Other extensions, which must not go, fill sector 0.
    Elsewhere,
}

impl<S: Storage> Engine<'_, S> {
    /// Brings the extension into sector 0, where it is possible: with one write of that sector, which leaves
    /// out the feature name table, so that a cut leaves all extensions as they were or as they are then. The
    /// commits are held.
    pub(super) async fn bring_extension_into_sector_0(&self) -> Result<Standing> {
        let raw = self.qcow2.raw_header();
        let cluster_size = self.qcow2.l2_format.cluster_size;
        let first = read_first_cluster(&self.qcow2.file.storage, &raw, cluster_size).await?;
        let area = extension_area(&first, &raw, cluster_size);
        if let Some(at) = area.bitmaps_at()
            && at + BitmapsExtension::BYTES <= SECTOR as usize
        {
            return Ok(Standing::InSector0(at));
        }
        let without_names = Extensions {
            feature_names: Vec::new(),
            ..(*self.qcow2.extensions()).clone()
        };
        let start = raw.header_length as usize;
        let room = (SECTOR as usize)
            .saturating_sub(start)
            .min(area.bytes.len());
        let Some(bytes) = without_names.encode(room) else {
            return Ok(Standing::Elsewhere);
        };
        let patch = Patch {
            at: start,
            bytes,
            bitmaps: None,
        };
        self.switch_with((*raw).clone(), Some(patch)).await?;
        Ok(Standing::MovedToSector0)
    }

    /// What the switch has to say so that the bitmaps are where `extension` says. What goes behind sector 0
    /// is written at once: nothing there counts before the switch.
    pub(super) async fn patch_for(
        &self,
        standing: &Standing,
        extension: BitmapsExtension,
    ) -> Result<Patch> {
        let (at, bytes) = match standing {
            Standing::InSector0(at) => (*at, extension.encode().to_vec()),
            Standing::MovedToSector0 | Standing::Elsewhere => {
                self.all_extensions_with(extension).await?
            }
        };
        Ok(Patch {
            at,
            bytes,
            bitmaps: Some(extension),
        })
    }

    /// All extensions, where they are in sector 0 but for the feature name table: the part of them that goes
    /// there, and its place.
    async fn all_extensions_with(&self, bitmaps: BitmapsExtension) -> Result<(usize, Vec<u8>)> {
        let raw = self.qcow2.raw_header();
        let cluster_size = self.qcow2.l2_format.cluster_size;
        let mut first = read_first_cluster(&self.qcow2.file.storage, &raw, cluster_size).await?;
        let room = extension_area(&first, &raw, cluster_size).bytes.len();
        let extensions = Extensions {
            bitmaps: Some(bitmaps),
            ..(*self.qcow2.extensions()).clone()
        };
        let (start, sector) = (raw.header_length as usize, SECTOR as usize);
        let Some(mut bytes) = extensions.encode(room) else {
            return Err(Error::corrupt(
                "There is no room for the header extensions",
                Place::at(Structure::HeaderExtension, start as u64),
            ));
        };
        let end = start + bytes.len();
        if end > sector {
            first[start..end].copy_from_slice(&bytes);
            let end = end.next_multiple_of(sector).min(first.len());
            self.write_unlinked("Could not write qcow2 header", SECTOR, &first[sector..end])
                .await?;
            bytes.truncate(sector - start);
        }
        Ok((start, bytes))
    }
}
