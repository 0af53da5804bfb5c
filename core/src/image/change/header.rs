//! Sector 0: read, compared, and switched. Every root of an image stands in it, so that one sector decides
//! between the old state and the new (M6).

use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::change::bitmaps::Patch;
use crate::image::change::mend::check_writable;
use crate::image::change::refcounts::Metadata;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::{Autoclear, Incompatible, MAX_L1_BYTES, RawHeader};
use crate::storage::Storage;
use crate::units::SECTOR;

impl<S: Storage> Engine<'_, S> {
    /// The one write that decides. Everything that the new header leads to was made durable before. What is
    /// in sector 0 beside the header's known fields stays as it is.
    pub async fn switch(&self, header: RawHeader) -> Result<()> {
        self.switch_with(header, None).await
    }

    /// As [`Self::switch`], with a change of the header extensions in the same write.
    pub async fn switch_with(&self, header: RawHeader, patch: Option<Patch>) -> Result<()> {
        self.check_no_other_writer().await?;
        self.write_header(&header, patch.as_ref()).await?;
        self.barrier(OrderingPoint::FlushAfterSwitch).await?;
        self.qcow2.adopt(header)?;
        if let Some(extension) = patch.and_then(|patch| patch.bitmaps) {
            self.adopt_bitmaps(extension);
        }
        Ok(())
    }

    /// Writes sector 0 with this header, which is durable with the next flush.
    pub(super) async fn write_header(
        &self,
        header: &RawHeader,
        patch: Option<&Patch>,
    ) -> Result<()> {
        let mut sector = self.state.sector_0.borrow().clone();
        header.encode_into(&mut sector);
        if let Some(patch) = patch {
            sector[patch.at..patch.at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        self.write_metadata("Could not write qcow2 header", 0, &sector)
            .await?;
        self.state.sector_0.replace(sector);
        Ok(())
    }

    /// Two writers on one image destroy it (QEMU-COMPAT rule 45). Not every other writer can be noticed, but
    /// one that moved a root or made the file longer or shorter is, before more harm is done.
    pub async fn check_no_other_writer(&self) -> Result<()> {
        let storage = &self.qcow2.file.storage;
        let begun = self.state.writes_begun.get();
        let quiet = begun == self.state.writes_ended.get();
        let length = storage
            .len()
            .await
            .map_err(|error| Error::io("Could not get image size", 0, error))?;
        let sector = self
            .read_metadata("Could not read qcow2 header", 0, SECTOR as usize)
            .await?;
        let known = self.state.sector_0.borrow();
        // A write of our own that was under way may have changed the length, or not yet.
        let length_known = quiet && begun == self.state.writes_begun.get();
        let length_differs = length_known && length != self.state.physical_len.get();
        if length_differs || (!known.is_empty() && *known != sector) {
            drop(known);
            return Err(self.state.stop(Error::corrupt(
                "The image file was changed by another program while it was open for writing",
                Place::at(Structure::Header, 0),
            )));
        }
        Ok(())
    }

    /// Makes the image ready for its first change.
    pub async fn prepare(&self) -> Result<()> {
        if self.state.prepared.get() {
            return Ok(());
        }
        // A repair replaces tables that readers look at.
        let repairs = self.qcow2.header().incompatible.has(Incompatible::DIRTY);
        let _ranges = match repairs {
            true => Some(self.state.ranges.lock_all().await),
            false => None,
        };
        let _committing = self.state.commits.lock_all().await;
        if self.state.prepared.get() {
            return Ok(());
        }
        check_writable(&self.qcow2.header())?;
        self.check_no_other_writer().await?;
        let sector = self
            .read_metadata("Could not read qcow2 header", 0, SECTOR as usize)
            .await?;
        self.state.sector_0.replace(sector);
        if repairs && upheld(OrderingPoint::RepairBeforeWriting) {
            self.rebuild_refcounts().await?;
        }
        self.read_refcount_table().await?;
        self.note_home();
        self.protect_metadata().await?;
        // Who does not know a bit of these clears it before the first change.
        let mut known = Autoclear::DATA_FILE_RAW.0;
        if self.qcow2.extensions().bitmaps.is_some() {
            known |= Autoclear::BITMAPS.0;
        }
        let mut header = (*self.qcow2.raw_header()).clone();
        if header.autoclear_features & !known != 0 && upheld(OrderingPoint::ClearAutoclear) {
            header.autoclear_features &= known;
            self.switch(header).await?;
        }
        self.complete_data_file().await?;
        self.state.prepared.set(true);
        Ok(())
    }

    /// A data file that somebody else has left ending within a sector ends with it from now on (I4); where the image's
    /// own file ends is looked at with every write.
    async fn complete_data_file(&self) -> Result<()> {
        let Some(file) = &self.qcow2.data_file else {
            return Ok(());
        };
        let length = file.storage.len().await;
        let length = length.map_err(|error| Error::io("Could not get data file size", 0, error))?;
        match length % SECTOR {
            0 => Ok(()),
            _ if !upheld(OrderingPoint::WholeLastSector) => Ok(()),
            _ => self.complete_last_sector(file, length).await,
        }
    }

    pub(super) async fn read_refcount_table(&self) -> Result<()> {
        let header = self.qcow2.header();
        let table = crate::image::qcow2::read_table(
            &self.qcow2.file.storage,
            header.refcount_table.offset,
            header.refcount_table.entries,
            "Could not read refcount table",
        )
        .await?;
        self.state.refcounts.borrow_mut().table = table;
        Ok(())
    }

    /// Collects the clusters that hold metadata, which are never handed out for anything else.
    pub async fn protect_metadata(&self) -> Result<()> {
        let cluster_size = self.qcow2.l2_format.cluster_size;
        let mut clusters: Vec<(Metadata, u64)> = Vec::new();
        let mut add_bytes = |kind, start: u64, length: u64| {
            let end = cluster_size.count_for(start.saturating_add(length));
            let range = cluster_size.index_of(start)..end;
            clusters.extend(range.map(|cluster| (kind, cluster)));
        };
        let header = self.qcow2.header();
        {
            let meta = self.qcow2.meta.borrow();
            add_bytes(Metadata::Header, 0, cluster_size.bytes());
            let length = |entries: u32| u64::from(entries) * 8;
            let (l1, table) = (header.l1, header.refcount_table);
            add_bytes(Metadata::ActiveL1, l1.offset.0, length(l1.entries));
            add_bytes(
                Metadata::RefcountTable,
                table.offset.0,
                length(table.entries),
            );
            let snapshots = header.snapshots.offset.0;
            add_bytes(
                Metadata::SnapshotTable,
                snapshots,
                meta.snapshot_table_bytes,
            );
            for snapshot in &*meta.snapshots {
                let bytes = length(snapshot.l1_entries).min(MAX_L1_BYTES);
                add_bytes(Metadata::InactiveL1, snapshot.l1_offset.0, bytes);
            }
        }
        let directory = self.bitmap_directory_clusters();
        clusters.extend(directory.map(|cluster| (Metadata::BitmapDirectory, cluster)));
        let named_by = |kind, entries: &[u64]| -> Vec<(Metadata, u64)> {
            entries
                .iter()
                .map(|entry| entry & crate::qcow2::OFFSET_MASK)
                .filter(|&offset| offset != 0)
                .map(|offset| (kind, cluster_size.index_of(offset)))
                .collect()
        };
        let l1 = &self.qcow2.root.borrow().l1;
        clusters.extend(named_by(Metadata::ActiveL2, l1));
        let mut refcounts = self.state.refcounts.borrow_mut();
        clusters.extend(named_by(Metadata::RefcountBlock, &refcounts.table));
        refcounts.protect(clusters);
        Ok(())
    }
}
