//! What an image says of itself, changed: version, lazy refcounts, the data file's name. One transaction for all of
//! it (S2), in which for version 2 everything goes that it does not know.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::image::change::tree::L2Table;
use crate::qcow2::header::{FULL_LENGTH, V2_LENGTH};
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{
    Autoclear, COPIED, Compatible, Encryption, Extensions, Incompatible, RefcountWidth, Snapshot,
    Version, extension,
};
use crate::storage::Storage;
use crate::units::HostOffset;

/// What is to be changed of an image; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// The version. For version 2 zero clusters become clusters of zeros, or nothing where there is no backing
    /// file, and bitmaps go.
    pub version: Option<Version>,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: Option<bool>,
    /// The name of the external data file, which the image must have; none for an empty name.
    pub data_file: Option<String>,
    /// Whether the data file alone holds the disk: that can only be taken back.
    pub data_file_raw: Option<bool>,
}

impl<S: Storage> Image<S> {
    /// Changes what the image says of itself. A crash leaves the old state or the new one.
    ///
    /// The image takes no more requests then. It must be opened again: its tables are read in another way.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for what the image cannot have, or version 2 not say; those of
    /// [`flush`](Image::flush).
    pub async fn amend(&self, options: &AmendOptions) -> Result<()> {
        self.amend_with(options, &mut |_, _| ()).await
    }

    /// As [`Self::amend`]; `progress` is told how many of how many L1 entries have been looked at for zero clusters.
    ///
    /// # Errors
    ///
    /// Those of [`amend`](Self::amend).
    pub async fn amend_with(
        &self,
        options: &AmendOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let Some(engine) = self.engine()? else {
            return Err(unsupported(
                "Format driver 'raw' does not support option amendment",
            ));
        };
        engine.check_amend(options)?;
        self.close().await?;
        let operation = async {
            let now = engine.qcow2.header().version;
            if options.version.is_some_and(|version| version < now) {
                engine.prepare().await?;
                engine.expand_in_place().await?;
            }
            let _held = Exclusive::new(&engine).await?;
            engine.amend(options, progress).await
        };
        self.heed(operation).await
    }
}

fn unsupported(text: impl Into<crate::error::Text>) -> Error {
    Error::Unsupported(text.into())
}

impl<S: Storage> Engine<'_, S> {
    fn check_amend(&self, options: &AmendOptions) -> Result<()> {
        let header = self.qcow2.header();
        let version = options.version.unwrap_or(header.version);
        if options.data_file.is_some() && !header.has_data_file() {
            return Err(unsupported(
                "data-file can only be set for images that use an external data file",
            ));
        }
        let is_raw = header.autoclear.has(Autoclear::DATA_FILE_RAW);
        if options.data_file_raw == Some(true) && !is_raw {
            return Err(unsupported(
                "data-file-raw cannot be set on existing images",
            ));
        }
        let lazy = header.compatible.has(Compatible::LAZY_REFCOUNTS);
        if options.lazy_refcounts == Some(true) && !lazy && version < Version::V3 {
            return Err(unsupported(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        if version < header.version {
            self.check_downgrade()?;
        }
        Ok(())
    }

    fn check_downgrade(&self) -> Result<()> {
        let header = self.qcow2.header();
        if header.refcount_width != RefcountWidth::BITS_16 {
            return Err(unsupported("compat=0.10 requires refcount_bits=16"));
        }
        if header.has_data_file() {
            return Err(unsupported("Cannot downgrade an image with a data file"));
        }
        let other = |snapshot: &Snapshot| {
            snapshot.vm_state_size > u64::from(u32::MAX)
                || snapshot.disk_size.is_some_and(|size| size != header.size)
        };
        if self.qcow2.snapshots().iter().any(other) {
            return Err(unsupported("Internal snapshots prevent downgrade of image"));
        }
        let incompatible = header.incompatible.0 & !Incompatible::DIRTY.0;
        if incompatible != 0 {
            return Err(unsupported(format!(
                "Cannot downgrade an image with incompatible features {incompatible:#x} set"
            )));
        }
        if header.encryption != Encryption::None && self.qcow2.backing().is_some() {
            return Err(unsupported(
                "Cannot downgrade an encrypted image with a backing file",
            ));
        }
        Ok(())
    }

    async fn amend(
        &self,
        options: &AmendOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let old = self.qcow2.header().version;
        let version = options.version.unwrap_or(old);
        let mut shadow = Shadow::new(self);
        let mut extensions = (*self.qcow2.extensions()).clone();
        if let Some(name) = &options.data_file {
            extensions.data_file = Some(name.clone()).filter(|name| !name.is_empty());
        }
        let header = &mut shadow.header;
        set(
            &mut header.compatible_features,
            Compatible::LAZY_REFCOUNTS.0,
            options.lazy_refcounts,
        );
        set(
            &mut header.autoclear_features,
            Autoclear::DATA_FILE_RAW.0,
            options.data_file_raw,
        );
        if version > old {
            header.version = 3;
            header.header_length = FULL_LENGTH;
            extensions.feature_names = extension::specified_names();
            self.rewrite_snapshots(&mut shadow).await?;
        } else if version < old {
            self.downgrade(&mut shadow, &mut extensions, progress)
                .await?;
        }
        let raw = self.qcow2.raw_header();
        // What extensions stand where is another program's choice, as long as they say the same.
        if extensions != *self.qcow2.extensions()
            || shadow.header.header_length != raw.header_length
        {
            let mut header = shadow.header.clone();
            let patch = self.new_area(&mut header, &extensions, None).await?;
            shadow.header = header;
            shadow.patch = Some(patch);
        }
        shadow.finish().await?;
        self.protect_metadata().await?;
        self.settle(false).await?;
        self.state
            .stop(Error::Stopped("it has been amended".into()));
        Ok(())
    }

    /// Snapshots say how large the disk was, in version 3.
    async fn rewrite_snapshots(&self, shadow: &mut Shadow<'_, '_, S>) -> Result<()> {
        let mut snapshots = self.qcow2.snapshots().to_vec();
        match snapshots
            .iter()
            .any(|snapshot| snapshot.disk_size.is_none())
        {
            false => Ok(()),
            true => self.write_snapshots(shadow, &mut snapshots).await,
        }
    }

    /// Takes everything out that version 2 does not know.
    async fn downgrade(
        &self,
        shadow: &mut Shadow<'_, '_, S>,
        extensions: &mut Extensions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.drop_bitmaps(shadow, extensions).await?;
        extensions.feature_names = Vec::new();
        let inactive = self
            .qcow2
            .snapshots()
            .iter()
            .map(|s| s.l1_entries)
            .sum::<u32>();
        let total = u64::from(inactive) + u64::from(shadow.header.l1_size);
        let mut expansion = Expansion {
            shadow,
            new_tables: HashMap::new(),
            done: 0,
            total,
            progress,
        };
        let old = self.qcow2.root.borrow().l1.clone();
        let l1 = expansion.tree(&old).await?;
        let mut snapshots = self.qcow2.snapshots().to_vec();
        let mut changed = false;
        for snapshot in &mut snapshots {
            let old = self.qcow2.read_snapshot_l1(snapshot).await?;
            let l1 = expansion.tree(&old).await?;
            if l1 == old {
                continue;
            }
            let shadow = &mut *expansion.shadow;
            let bytes = crate::qcow2::bytes::be64_bytes(&l1);
            let at = shadow
                .write_new_table("Could not write L1 table", &bytes)
                .await?;
            shadow
                .free_table(snapshot.l1_offset.0, bytes.len() as u64)
                .await?;
            snapshot.l1_offset = HostOffset(at);
            changed = true;
        }
        if changed {
            self.write_snapshots(shadow, &mut snapshots).await?;
        }
        if l1 != old {
            shadow.replace_l1(&l1).await?;
        }
        let header = &mut shadow.header;
        header.version = 2;
        header.header_length = V2_LENGTH;
        header.incompatible_features = 0;
        header.compatible_features = 0;
        header.autoclear_features = 0;
        header.compression_type = 0;
        Ok(())
    }

    /// Zero clusters in tables that are the active state's alone become what version 2 can say, as the guest would do
    /// it: the disk reads the same all the while. What is left then is what snapshots have, too.
    async fn expand_in_place(&self) -> Result<()> {
        let _ranges = self.state.ranges.lock_all().await;
        let format = self.qcow2.l2_format;
        let size = format.cluster_size.bytes();
        let all = format.granules(0, size);
        let coverage = self.qcow2.header().l1_coverage();
        let l1 = self.qcow2.root.borrow().l1.clone();
        for (index, &entry) in (0..).zip(&l1) {
            if entry & COPIED == 0 {
                continue;
            }
            let Some((_, table)) = self.read_l2(entry).await? else {
                continue;
            };
            for at in 0..table.len() {
                let entry = table.entry(at);
                let guest = index * coverage + at as u64 * size;
                // What lies past the end of the disk shows when the disk grows, which the transaction sees to.
                let end = (guest + size).min(self.qcow2.virtual_size());
                if entry.is_compressed() || format.granule_masks(entry).1 != all || end <= guest {
                    continue;
                }
                match self.shows_backing(guest) {
                    true => self.write_zeros(guest, end).await?,
                    false => self.link(guest, L2Entry::UNALLOCATED).await?,
                }
                self.commit_if_full().await?;
            }
        }
        Ok(())
    }

    /// Whether a hole at `guest` would show something.
    fn shows_backing(&self, guest: u64) -> bool {
        match self.image.layers().get(1) {
            Some(below) => guest < below.virtual_size(),
            None => self.qcow2.backing().is_some(),
        }
    }

    async fn drop_bitmaps(
        &self,
        shadow: &mut Shadow<'_, '_, S>,
        extensions: &mut Extensions,
    ) -> Result<()> {
        let (Some(directory), Some(old)) = (
            self.qcow2.bitmap_directory().await?,
            extensions.bitmaps.take(),
        ) else {
            return Ok(());
        };
        for bitmap in directory.bitmaps() {
            shadow.free_bitmap(bitmap).await?;
        }
        shadow
            .free_table(old.directory.0, old.directory_bytes)
            .await
    }
}

fn set(features: &mut u64, bit: u64, on: Option<bool>) {
    match on {
        Some(true) => *features |= bit,
        Some(false) => *features &= !bit,
        None => {}
    }
}

/// Zero clusters become what version 2 can say.
struct Expansion<'r, 'e, 'a, S> {
    shadow: &'r mut Shadow<'e, 'a, S>,
    /// The places of L2 tables by those that they had: several L1 tables may refer to one.
    new_tables: HashMap<u64, u64>,
    /// How many L1 entries have been looked at, and how many there are.
    done: u64,
    total: u64,
    progress: &'r mut dyn FnMut(u64, u64),
}

impl<S: Storage> Expansion<'_, '_, '_, S> {
    /// An L1 table whose tables have no zero clusters.
    async fn tree(&mut self, l1: &[u64]) -> Result<Vec<u64>> {
        let mut new = Vec::with_capacity(l1.len());
        let coverage = self.shadow.engine.qcow2.header().l1_coverage();
        for (index, &entry) in (0..).zip(l1) {
            self.done += 1;
            (self.progress)(self.done, self.total);
            let Some((offset, table)) = self.shadow.engine.read_l2(entry).await? else {
                new.push(entry);
                continue;
            };
            let place = match self.new_tables.get(&offset) {
                Some(&place) => place,
                None => {
                    let place = self.table(offset, table, index * coverage).await?;
                    self.new_tables.insert(offset, place);
                    place
                }
            };
            new.push(place | entry & COPIED);
        }
        Ok(new)
    }

    /// The place of the table at `offset`, which maps the disk from byte `guest` on, without zero clusters.
    async fn table(&mut self, offset: u64, mut table: L2Table, guest: u64) -> Result<u64> {
        let engine = self.shadow.engine;
        let format = engine.qcow2.l2_format;
        let size = format.cluster_size.bytes();
        let cluster = engine.cluster_of(offset);
        // As often as the table everything in it is referred to.
        let references = self.shadow.get(cluster).await? as i64;
        let all = format.granules(0, size);
        let mut changed = false;
        for index in 0..table.len() {
            let entry = table.entry(index);
            if entry.is_compressed() || format.granule_masks(entry).1 != all {
                continue;
            }
            changed = true;
            if let Some(run) = table.references_of(index) {
                self.shadow.add(run, -references).await?;
            }
            let new = match engine.shows_backing(guest + index as u64 * size) {
                false => L2Entry::UNALLOCATED,
                true => {
                    let run = self.shadow.allocate(1).await?;
                    let host = HostOffset(run.start * size);
                    engine.write_data(host.0, &vec![0; size as usize]).await?;
                    self.shadow.add(run, references - 1).await?;
                    format.data_entry(host, all, 0)
                }
            };
            table.set(index, new);
            if references != 1 {
                table.set_copied(index, false);
            }
        }
        if !changed {
            return Ok(offset);
        }
        let copy = self.shadow.write_l2(&table).await?;
        let new = engine.cluster_of(copy);
        self.shadow.add(new..new + 1, references - 1).await?;
        self.shadow.add(cluster..cluster + 1, -references).await?;
        Ok(copy)
    }
}
