//! Bitmaps as they are stored: beside the old ones, with one switch, which also says that they are no longer in
//! use.
//!
//! Where the extension cannot be changed by the switch (`extensions`), the directory is changed in place:
//! first the new tables are counted, then the directory points to them under the flag "in use", and only when
//! that is durable the flag goes and the old tables are free. A cut in between leaves bitmaps in use, or true,
//! and at worst leaked clusters.

use std::collections::BTreeSet;
use std::ops::Range;

use super::extensions::Standing;
use super::{Which, bits};
use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::image::ordering::OrderingPoint;
use crate::qcow2::Bitmap;
use crate::qcow2::bitmap::{Bits, Directory, MAX_BITMAP_BYTES};
use crate::qcow2::extension::BitmapsExtension;
use crate::storage::Storage;
use crate::units::{HostOffset, SECTOR};

/// What a transaction means for the bitmaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Follow {
    /// They are as long as the disk afterwards.
    #[default]
    Size,
    /// They show what has changed, and are not in use afterwards.
    Stored,
    /// That, and everything may have changed.
    AllChanged,
}

/// How long the disk is before a transaction and after it, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    old: u64,
    new: u64,
}

/// The bits of one cluster that change.
struct Edit {
    /// The bits that count after it; those behind them are zero.
    length: u64,
    /// The bits that counted before it.
    kept: u64,
    /// Bits that are set.
    set: Vec<Range<u64>>,
}

/// What a transaction adds, and what it has given up.
struct Rebuilding<'r, 'e, 'a, S> {
    shadow: &'r mut Shadow<'e, 'a, S>,
    sizes: Sizes,
    all_changed: bool,
    /// Clusters that the new tables no longer use.
    freed: Vec<Range<u64>>,
}

impl<S: Storage> Engine<'_, S> {
    /// Adds what has changed to the bitmaps, and calls them no longer in use.
    pub async fn store_bitmaps(&self) -> Result<()> {
        if self.state.bitmaps.borrow().ours.is_empty() {
            return Ok(());
        }
        let _held = Exclusive::new(self).await?;
        let mut shadow = Shadow::new(self);
        self.keep_home(&mut shadow);
        shadow.bitmaps = Follow::Stored;
        let l1 = self.qcow2.root.borrow().l1.clone();
        let snapshots = self.qcow2.snapshots().to_vec();
        self.finish(shadow, l1, snapshots).await
    }

    /// Refuses a size of the disk that bitmaps cannot follow to, before anything is done for it.
    pub async fn check_bitmaps_can_be(&self, size: u64) -> Result<()> {
        if let Some(directory) = self.qcow2.bitmap_directory().await? {
            let concerned = self.candidates(&directory, Which::All);
            self.check_directory(&directory, &concerned).await?;
            self.check_size(&directory, &concerned, size)?;
        }
        Ok(())
    }

    fn check_size(
        &self,
        directory: &Directory,
        concerned: &BTreeSet<usize>,
        size: u64,
    ) -> Result<()> {
        let cluster_size = self.qcow2.l2_format.cluster_size;
        for &index in concerned {
            let bitmap = &directory.bitmaps()[index];
            let entries = bitmap.entries_for(size, cluster_size);
            if entries == 0 || entries > MAX_BITMAP_BYTES / cluster_size.bytes() {
                return Err(Error::OutOfRange(
                    format!(
                        "Bitmap '{}' cannot be that of a disk of {size} bytes",
                        bitmap.name
                    )
                    .into(),
                ));
            }
        }
        Ok(())
    }

    /// Adds the bitmaps to the new state of a transaction. Where they cannot switch with it, they are marked
    /// in use, and are to be stored in place after it: for a disk that changes as the answer says.
    pub async fn bitmaps_follow(&self, shadow: &mut Shadow<'_, '_, S>) -> Result<Option<Sizes>> {
        let whole = |size: u64| size / SECTOR * SECTOR;
        let sizes = Sizes {
            old: whole(self.qcow2.header().size),
            new: whole(shadow.header.size),
        };
        let resized = sizes.old != sizes.new;
        if shadow.bitmaps == Follow::Size && !resized {
            return Ok(None);
        }
        let (Some(mut directory), Some(old)) = (
            self.qcow2.bitmap_directory().await?,
            self.qcow2.extensions().bitmaps,
        ) else {
            self.state.bitmaps.take();
            return Ok(None);
        };
        let which = if resized { Which::All } else { Which::Enabled };
        let concerned = self.candidates(&directory, which);
        if concerned.is_empty() {
            return Ok(None);
        }
        self.check_directory(&directory, &concerned).await?;
        self.check_size(&directory, &concerned, sizes.new)?;
        let all_changed = shadow.bitmaps == Follow::AllChanged;
        let standing = self.bring_extension_into_sector_0().await?;
        if let Standing::Elsewhere = standing {
            self.mark_held(which).await?;
            if let (true, Some(dirty)) = (all_changed, &mut self.state.bitmaps.borrow_mut().dirty) {
                dirty.insert(0..sizes.old.max(sizes.new));
            }
            return Ok(Some(sizes));
        }
        let old_bytes = directory.bytes().to_vec();
        let mut rebuilding = Rebuilding {
            shadow,
            sizes,
            all_changed,
            freed: Vec::new(),
        };
        for index in concerned {
            rebuilding.bitmap(&mut directory, index).await?;
            directory.set_in_use(index, false);
        }
        if old_bytes == directory.bytes() {
            return Ok(None);
        }
        for clusters in rebuilding.freed {
            shadow.add(clusters, -1).await?;
        }
        let at = shadow
            .write_new_table("Could not write bitmap directory", directory.bytes())
            .await?;
        shadow
            .free_table(old.directory.0, old.directory_bytes)
            .await?;
        let new = BitmapsExtension {
            directory: HostOffset(at),
            ..old
        };
        shadow.patch = Some(self.patch_for(&standing, new).await?);
        Ok(None)
    }

    /// Stores in place the bitmaps that are ours. Where that fails after the disk was resized they stay in use:
    /// nobody trusts them, and the resizing is done.
    pub async fn store_in_place(&self, sizes: Sizes) -> Result<()> {
        let stored = self.try_to_store_in_place(sizes).await;
        if stored.is_err() && sizes.old != sizes.new {
            self.state.bitmaps.take();
            return self.state.check_running();
        }
        stored
    }

    async fn try_to_store_in_place(&self, sizes: Sizes) -> Result<()> {
        let (Some(mut directory), Some(extension)) = (
            self.qcow2.bitmap_directory().await?,
            self.qcow2.extensions().bitmaps,
        ) else {
            return Ok(());
        };
        let ours = self.state.bitmaps.borrow().ours.clone();
        let mut shadow = Shadow::new(self);
        let mut rebuilding = Rebuilding {
            shadow: &mut shadow,
            sizes,
            all_changed: false, // That was noted like any other change.
            freed: Vec::new(),
        };
        let mut stored = Vec::new();
        for index in ours {
            // An entry's place, length and flags must change together. Where a sector ends between them, a
            // bitmap of another length stays in use.
            let at = extension.directory.0 + directory.start_of(index) as u64;
            let splits = at / SECTOR != (at + 15) / SECTOR;
            let entries = directory.bitmaps()[index]
                .entries_for(sizes.new, self.qcow2.l2_format.cluster_size);
            if splits && entries != u64::from(directory.bitmaps()[index].table_entries) {
                continue;
            }
            rebuilding.bitmap(&mut directory, index).await?;
            stored.push(index);
        }
        let freed = rebuilding.freed;
        shadow.finish().await?;
        self.protect_metadata().await?;
        self.write_directory(&directory).await?;
        self.barrier(OrderingPoint::BitmapsInPlace).await?;
        for index in stored {
            directory.set_in_use(index, false);
        }
        self.write_directory(&directory).await?;
        // What this switches is only the refcounts; its first flush is the directory's.
        let mut shadow = Shadow::new(self);
        for clusters in freed {
            shadow.add(clusters, -1).await?;
        }
        shadow.finish().await?;
        self.state.bitmaps.take();
        self.protect_metadata().await
    }

    /// The clusters of `bitmap` that may differ after a transaction, in order.
    fn clusters_to_edit(
        &self,
        bitmap: &Bitmap,
        sizes: Sizes,
        all_changed: bool,
    ) -> Vec<Range<u64>> {
        let per_cluster = self.bits_per_cluster();
        let mut clusters: Vec<Range<u64>> = Vec::new();
        for bits in self.changed_bits(bitmap, 0..bitmap.bits_for(sizes.new), all_changed) {
            let (start, end) = (bits.start / per_cluster, bits.end.div_ceil(per_cluster));
            match clusters.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => clusters.push(start..end),
            }
        }
        let kept = bitmap.bits_for(sizes.old.min(sizes.new));
        if sizes.old != sizes.new && kept > 0 {
            // What follows the last bit of the shorter disk is zero.
            let last = (kept - 1) / per_cluster;
            let at = clusters.partition_point(|range| range.end <= last);
            if !clusters.get(at).is_some_and(|range| range.contains(&last)) {
                clusters.insert(at, last..last + 1);
            }
        }
        clusters
    }

    /// What becomes of the bits of cluster `index` of `bitmap`.
    fn edit(&self, bitmap: &Bitmap, index: u64, sizes: Sizes, all_changed: bool) -> Edit {
        let per_cluster = self.bits_per_cluster();
        let start = index * per_cluster;
        let in_cluster = |bits: u64| bits.saturating_sub(start).min(per_cluster);
        let changed = self.changed_bits(bitmap, start..start + per_cluster, all_changed);
        Edit {
            length: in_cluster(bitmap.bits_for(sizes.new)),
            kept: in_cluster(bitmap.bits_for(sizes.old)),
            set: changed
                .into_iter()
                .map(|bits| bits.start - start..bits.end - start)
                .collect(),
        }
    }

    /// Those of `bits` that stand for something that has changed, in order.
    fn changed_bits(
        &self,
        bitmap: &Bitmap,
        bits: Range<u64>,
        all_changed: bool,
    ) -> Vec<Range<u64>> {
        let tracking = self.state.bitmaps.borrow();
        match &tracking.dirty {
            _ if !bitmap.flags.auto() => Vec::new(),
            _ if all_changed => vec![bits],
            None => Vec::new(),
            Some(dirty) => {
                let (granularity, shift) = (bitmap.granularity(), bitmap.granularity_bits);
                dirty
                    .within(bits.start << shift..bits.end << shift)
                    .map(|guest| guest.start >> shift..guest.end.div_ceil(granularity))
                    .collect()
            }
        }
    }

    fn bits_per_cluster(&self) -> u64 {
        self.cluster_bytes() * 8
    }
}

impl<S: Storage> Rebuilding<'_, '_, '_, S> {
    /// Gives bitmap `index` of `directory` the table that it has in the new state.
    async fn bitmap(&mut self, directory: &mut Directory, index: usize) -> Result<()> {
        let bitmap = directory.bitmaps()[index].clone();
        let engine = self.shadow.engine;
        let cluster_size = engine.qcow2.l2_format.cluster_size;
        let old_table = engine.read_bitmap_table(&bitmap).await?;
        let entries = bitmap.entries_for(self.sizes.new, cluster_size) as usize;
        let mut table = old_table.clone();
        for bits in table.drain(entries.min(old_table.len())..) {
            self.give_up(bits);
        }
        table.resize(entries, Bits::Zeros);
        for clusters in engine.clusters_to_edit(&bitmap, self.sizes, self.all_changed) {
            for cluster in clusters {
                let edit = engine.edit(&bitmap, cluster, self.sizes, self.all_changed);
                let entry = &mut table[cluster as usize];
                let old = std::mem::replace(entry, self.cluster(*entry, edit).await?);
                if old != *entry {
                    self.give_up(old);
                }
            }
        }
        if table == old_table {
            return Ok(());
        }
        let bytes: Vec<u8> = table
            .iter()
            .flat_map(|bits| bits.encode().to_be_bytes())
            .collect();
        let at = self
            .shadow
            .write_new_table("Could not write bitmap table", &bytes)
            .await?;
        let start = cluster_size.index_of(bitmap.table.0);
        let clusters = cluster_size.count_for(old_table.len() as u64 * 8);
        self.freed.push(start..start + clusters);
        directory.set_table(index, HostOffset(at), entries as u32);
        Ok(())
    }

    /// One cluster of bits as it is in the new state: the old one where nothing changes.
    async fn cluster(&mut self, old: Bits, edit: Edit) -> Result<Bits> {
        let engine = self.shadow.engine;
        let full = edit.length == engine.bits_per_cluster();
        if full && edit.set.first() == Some(&(0..edit.length)) {
            return Ok(Bits::Ones);
        }
        let old_bytes = engine.bits_of(old).await?;
        let mut bytes = old_bytes.clone();
        bits::clear_from(&mut bytes, edit.kept);
        for range in edit.set {
            bits::set(&mut bytes, range);
        }
        bits::clear_from(&mut bytes, edit.length);
        if bytes == old_bytes {
            return Ok(old);
        }
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(Bits::Zeros);
        }
        // The bits behind the last one must be zero, so that a cluster which has some is never all ones.
        if full && bytes.iter().all(|&byte| byte == u8::MAX) {
            return Ok(Bits::Ones);
        }
        let at = self
            .shadow
            .write_new_table("Could not write bitmap data", &bytes)
            .await?;
        Ok(Bits::At(HostOffset(at)))
    }

    fn give_up(&mut self, bits: Bits) {
        if let Bits::At(HostOffset(at)) = bits {
            let cluster = self.shadow.engine.cluster_of(at);
            self.freed.push(cluster..cluster + 1);
        }
    }
}
