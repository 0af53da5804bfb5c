//! Persistent dirty bitmaps, kept true while the image changes (specification, "Bitmaps").
//!
//! A bitmap that says that something did not change although it did is worse than none: an incremental
//! backup made by it is silently wrong. So
//!
//! 1. before guest data changes, every bitmap that writers keep up to date is marked *in use* in the
//!    directory, durably: whoever finds it after a crash does not trust it. Disabled bitmaps stay as they
//!    are, and so do those that somebody else has left in use;
//! 2. what changes is noted in memory;
//! 3. when the image is closed, what was noted is added to the bitmaps. That is a transaction (`store`): new
//!    tables, a new directory in which they are no longer in use, and the switch, which is the header
//!    extension in sector 0. A cut leaves them in use, or true.
//!
//! A transaction that changes the disk's size stores the bitmaps, which must be as long as the disk, and so
//! does one that changes what the disk holds; then they follow with the same switch (S2). Snapshots that are
//! made or deleted change nothing that a bitmap is about.
//!
//! A directory or table that contradicts itself stops whatever would have to change it, with an error that
//! says so; the image can still be read, and snapshots be made. QEMU does not open such an image at all. To
//! write to it, its bitmaps must be given up first, which no guest's write may decide.

mod add;
mod bits;
mod dirty;
mod edit;
mod extensions;
mod store;

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::ordering::OrderingPoint;
use crate::qcow2::bitmap::{Bits, Directory};
use crate::qcow2::extension::BitmapsExtension;
use crate::qcow2::{Bitmap, Extensions};
use crate::storage::Storage;
use crate::units::{HostOffset, SECTOR};
use dirty::Dirty;
pub(crate) use extensions::Patch;
pub(crate) use store::Follow;

/// What a writer keeps in memory of the bitmaps.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    /// Whether guest data may change: what the directory must say then is durable.
    marked: bool,
    /// The bitmaps that this writer has marked in use, by their place in the directory. Other bitmaps that
    /// are in use were found so.
    ours: BTreeSet<usize>,
    /// What has changed since. `None` where no bitmap asks for it.
    dirty: Option<Dirty>,
}

/// Which bitmaps a change concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// Those that writers keep up to date.
    Enabled,
    /// Disabled ones too: the disk's size changes.
    All,
}

impl Which {
    fn includes(self, bitmap: &Bitmap) -> bool {
        self == Self::All || bitmap.flags.auto()
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Guest data in `guest`, which is held, is about to change: the bitmaps show it from now on.
    pub async fn track(&self, guest: Range<u64>) -> Result<()> {
        if guest.is_empty() {
            return Ok(());
        }
        if !self.state.bitmaps.borrow().marked {
            let _committing = self.state.commits.lock_all().await;
            self.mark_held(Which::Enabled).await?;
        }
        if let Some(dirty) = &mut self.state.bitmaps.borrow_mut().dirty {
            dirty.insert(guest);
        }
        Ok(())
    }

    /// Marks bitmaps in use; the commits are held. Whoever is given up half way does it again: a bitmap that
    /// is noted as ours may be marked or not.
    async fn mark_held(&self, which: Which) -> Result<()> {
        if which == Which::Enabled && self.state.bitmaps.borrow().marked {
            return Ok(());
        }
        let Some(mut directory) = self.qcow2.bitmap_directory().await? else {
            self.state.bitmaps.borrow_mut().marked = true;
            return Ok(());
        };
        let old_bytes = directory.bytes().to_vec();
        let ours = self.candidates(&directory, which);
        self.check_directory(&directory, &ours).await?;
        let finest = ours
            .iter()
            .map(|&index| &directory.bitmaps()[index])
            .filter(|bitmap| bitmap.flags.auto())
            .map(|bitmap| bitmap.granularity_bits)
            .min();
        for &index in &ours {
            directory.set_in_use(index, true);
        }
        {
            let mut tracking = self.state.bitmaps.borrow_mut();
            tracking.ours.extend(ours);
            if let (None, Some(finest)) = (&tracking.dirty, finest) {
                tracking.dirty = Some(Dirty::new(finest));
            }
        }
        if old_bytes != directory.bytes() {
            self.check_no_other_writer().await?;
            self.write_directory(&directory).await?;
            self.barrier(OrderingPoint::MarkBitmapsInUse).await?;
        }
        self.state.bitmaps.borrow_mut().marked = true;
        Ok(())
    }

    /// The bitmaps that a change makes ours: those in use that are not ours already are nobody's.
    fn candidates(&self, directory: &Directory, which: Which) -> BTreeSet<usize> {
        let tracking = self.state.bitmaps.borrow();
        let bitmaps = directory.bitmaps().iter().enumerate();
        bitmaps
            .filter(|(index, bitmap)| {
                let known = tracking.ours.contains(index);
                known || (which.includes(bitmap) && !bitmap.flags.in_use())
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Refuses a directory that cannot be, as far as it is about to be changed.
    async fn check_directory(
        &self,
        directory: &Directory,
        touched: &BTreeSet<usize>,
    ) -> Result<()> {
        if touched.is_empty() {
            return Ok(());
        }
        self.check_directory_owned().await?;
        let header = self.qcow2.header();
        let mut table_bytes = 0;
        for &index in touched {
            let bitmap = &directory.bitmaps()[index];
            if !bitmap.fits(header.size / SECTOR * SECTOR, header.cluster_size) {
                return Err(Error::corrupt(
                    format!("Bitmap '{}' doesn't satisfy the constraints", bitmap.name),
                    Place::of(Structure::BitmapDirectory).entry(index as u64),
                ));
            }
            // Tables lie beside one another, so that all of them together are no longer than the file.
            table_bytes += header
                .cluster_size
                .count_for(u64::from(bitmap.table_entries) * 8)
                * header.cluster_size.bytes();
            if table_bytes
                > self
                    .qcow2
                    .file_len()
                    .next_multiple_of(header.cluster_size.bytes())
            {
                return Err(Error::corrupt(
                    "Bitmap tables overlap",
                    Place::at(Structure::BitmapTable, bitmap.table.0),
                ));
            }
        }
        for &index in touched {
            self.read_bitmap_table(&directory.bitmaps()[index]).await?;
        }
        Ok(())
    }

    /// The directory is written to in place, so its clusters must be nobody else's (M3).
    async fn check_directory_owned(&self) -> Result<()> {
        let Some(extension) = self.qcow2.extensions().bitmaps else {
            return Ok(());
        };
        let start = extension.directory.0;
        let place = Place::at(Structure::BitmapDirectory, start);
        if let Some(structure) = self
            .qcow2
            .overlaps_root_table(start, extension.directory_bytes)
        {
            return Err(Error::corrupt(
                format!("The bitmap directory at {start:#x} overlaps with the {structure}"),
                place,
            ));
        }
        for cluster in self.bitmap_directory_clusters() {
            let (index, _) = self.state.refcounts.borrow().place_of(cluster);
            self.load_block(index).await?;
            let count = self.state.refcounts.borrow().get(cluster);
            if count != 1 {
                return Err(Error::corrupt(
                    format!("The bitmap directory at {start:#x} has a refcount of {count}"),
                    place,
                ));
            }
        }
        Ok(())
    }

    /// The clusters of the directory, which nothing else is written to.
    pub fn bitmap_directory_clusters(&self) -> Range<u64> {
        let size = self.qcow2.l2_format.cluster_size;
        self.qcow2.extensions().bitmaps.map_or(0..0, |extension| {
            let end = extension
                .directory
                .0
                .saturating_add(extension.directory_bytes);
            size.index_of(extension.directory.0)..size.count_for(end)
        })
    }

    /// The bitmaps are stored where `extension` says: whoever changes guest data next marks them anew.
    pub fn adopt_bitmaps(&self, extension: BitmapsExtension) {
        let mut meta = self.qcow2.meta.borrow_mut();
        meta.extensions = Extensions {
            bitmaps: Some(extension),
            ..(*meta.extensions).clone()
        }
        .into();
        self.state.bitmaps.take();
    }

    /// The table of a bitmap, every entry of which is possible.
    pub async fn read_bitmap_table(&self, bitmap: &Bitmap) -> Result<Vec<Bits>> {
        let cluster_size = self.qcow2.l2_format.cluster_size;
        let table = crate::image::qcow2::read_table(
            &self.qcow2.file.storage,
            bitmap.table,
            bitmap.table_entries,
            "Could not read bitmap table",
        )
        .await?;
        let file_len = self.qcow2.file_len();
        let decoded = table.iter().enumerate().map(|(index, &entry)| {
            Bits::decode(entry, cluster_size)
                .filter(|bits| !matches!(bits, Bits::At(HostOffset(at)) if *at >= file_len))
                .ok_or_else(|| {
                    Error::corrupt(
                        format!(
                            "Bitmap table entry {entry:#x} of bitmap '{}' is invalid",
                            bitmap.name
                        ),
                        Place::at(Structure::BitmapTable, bitmap.table.0).entry(index as u64),
                    )
                })
        });
        decoded.collect()
    }

    /// Writes the directory over itself. Only flags (and, in place, tables of bitmaps that are in use) differ,
    /// so that any mixture of its sectors is a directory.
    async fn write_directory(&self, directory: &Directory) -> Result<()> {
        let Some(extension) = self.qcow2.extensions().bitmaps else {
            return Ok(());
        };
        // Whole sectors: the clusters are the directory's to their end.
        let mut bytes = directory.bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        self.write_metadata(
            "Could not write bitmap directory",
            extension.directory.0,
            &bytes,
        )
        .await
    }
}
