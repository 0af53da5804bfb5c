//! Bitmaps that are made, dropped, cleared, switched on and off, and merged. Each is one transaction (S2): new
//! tables and a new directory beside the old ones, and the switch, which is the header extension in sector 0.

use std::ops::Range;

use super::bits;
use super::extensions::{Patch, Standing};
use crate::error::{Error, Place, Result, Structure};
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::image::{Image, Qcow2};
use crate::qcow2::bitmap::{Bits, MAX_BITMAP_BYTES};
use crate::qcow2::bytes::{put32, put64};
use crate::qcow2::extension::BitmapsExtension;
use crate::qcow2::{
    Autoclear, Bitmap, BitmapFlags, Extensions, MAX_BITMAP_NAME, MAX_BITMAPS, Version,
};
use crate::storage::{Storage, read_padded};
use crate::units::HostOffset;

/// The finest granularity and the coarsest one, as log2 of bytes.
const GRANULARITIES: std::ops::RangeInclusive<u8> = 9..=31;

impl<S: Storage> Image<S> {
    /// Makes a bitmap with no bit set. `granularity` is how many bytes a bit stands for: a power of two; `None`
    /// is the cluster size, between 4 KiB and 64 KiB. It shows what is written from now on if `enabled`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for a name or a granularity that cannot be, and for a name that is taken;
    /// [`Error::Unsupported`] where the image can have no bitmaps, or no more; those of
    /// [`flush`](Image::flush).
    pub async fn add_bitmap(
        &self,
        name: &str,
        granularity: Option<u64>,
        enabled: bool,
    ) -> Result<()> {
        let wrong = |text: &'static str| Err(Error::OutOfRange(text.into()));
        if name.is_empty() {
            return wrong("Bitmap name cannot be empty");
        }
        if name.len() > MAX_BITMAP_NAME as usize {
            return wrong("Name length exceeds maximum (1023 characters)");
        }
        let Some(engine) = self.engine()? else {
            return Err(Error::Unsupported("Operation not supported".into()));
        };
        let cluster = engine.cluster_bytes();
        let granularity = granularity.unwrap_or(cluster.clamp(4 << 10, 64 << 10));
        let granularity_bits = granularity.checked_ilog2().unwrap_or(0) as u8;
        if !granularity.is_power_of_two() || !GRANULARITIES.contains(&granularity_bits) {
            return wrong("Granularity must be power of 2 and at least 512");
        }
        let flags = match enabled {
            true => BitmapFlags::AUTO,
            false => 0,
        };
        let bitmap = Bitmap {
            name: name.to_owned(),
            flags: BitmapFlags(flags),
            granularity_bits,
            table: HostOffset(0),
            table_entries: 0,
        };
        engine.store_bitmaps().await?;
        let _held = Exclusive::new(&engine).await?;
        let mut edit = Edit::begin(&engine).await?;
        edit.check_new(name)?;
        edit.renew_tables().await?;
        let bitmap = edit.empty(&bitmap).await?;
        edit.push(bitmap);
        edit.finish().await
    }

    /// Drops a bitmap, whatever state it is in.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] where there is none of the name; those of [`add_bitmap`](Self::add_bitmap).
    pub async fn remove_bitmap(&self, name: &str) -> Result<()> {
        let (engine, _held) = self.bitmap_engine(name).await?;
        let mut edit = Edit::begin(&engine).await?;
        let index = edit.find(name)?;
        let bitmap = edit.entries.remove(index).bitmap;
        edit.shadow.free_bitmap(&bitmap).await?;
        edit.finish().await
    }

    /// Clears all bits of a bitmap.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a bitmap that is in use, so that nobody knows what it should say; those of
    /// [`remove_bitmap`](Self::remove_bitmap).
    pub async fn clear_bitmap(&self, name: &str) -> Result<()> {
        let (engine, _held) = self.bitmap_engine(name).await?;
        let mut edit = Edit::begin(&engine).await?;
        let index = edit.find_consistent(name)?;
        let old = edit.entries[index].bitmap.clone();
        edit.shadow.free_bitmap(&old).await?;
        let new = edit.empty(&old).await?;
        edit.entries[index].set(new);
        edit.finish().await
    }

    /// Says whether a bitmap shows what is written from now on.
    ///
    /// # Errors
    ///
    /// Those of [`clear_bitmap`](Self::clear_bitmap).
    pub async fn enable_bitmap(&self, name: &str, enabled: bool) -> Result<()> {
        let (engine, _held) = self.bitmap_engine(name).await?;
        let mut edit = Edit::begin(&engine).await?;
        let index = edit.find_consistent(name)?;
        let old = edit.entries[index].bitmap.clone();
        if old.flags.auto() == enabled {
            return Ok(());
        }
        let flags = BitmapFlags(old.flags.0 ^ BitmapFlags::AUTO);
        edit.entries[index].set(Bitmap { flags, ..old });
        edit.finish().await
    }

    /// Sets in a bitmap whatever is set in another one, which is a bitmap of `source`, or of this image where
    /// that is `None`. Where the other one is coarser, all that one of its bits stands for is set. Nobody may
    /// write to `source` meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for disks of different sizes; those of [`clear_bitmap`](Self::clear_bitmap).
    pub async fn merge_bitmap<T: Storage>(
        &self,
        name: &str,
        source: Option<&Image<T>>,
        source_name: &str,
    ) -> Result<()> {
        let (engine, _held) = self.bitmap_engine(name).await?;
        let mut edit = Edit::begin(&engine).await?;
        let index = edit.find(name)?;
        let Some(source) = source else {
            let other = edit.find(source_name)?;
            let other = edit.entries[other].bitmap.clone();
            edit.merge(index, engine.qcow2, &other).await?;
            return edit.finish().await;
        };
        let Some(from) = source.top().as_qcow2() else {
            return Err(not_found(source_name));
        };
        let found = from.bitmaps().await?;
        let found = found.into_iter().find(|bitmap| bitmap.name == source_name);
        let other = found.ok_or_else(|| not_found(source_name))?;
        let (own, its) = (self.virtual_size(), from.virtual_size());
        if own != its {
            return Err(Error::OutOfRange(
                format!(
                    "Bitmaps are of different sizes (destination size is {own}, source size is {its}) and can't be merged"
                )
                .into(),
            ));
        }
        edit.merge(index, from, &other).await?;
        edit.finish().await
    }

    /// The engine for a change of the bitmap of this name, with everything stored and held.
    async fn bitmap_engine(&self, name: &str) -> Result<(Engine<'_, S>, Exclusive<'_>)> {
        let engine = self.engine()?.ok_or_else(|| not_found(name))?;
        engine.store_bitmaps().await?;
        let held = Exclusive::new(&engine).await?;
        if engine.qcow2.extensions().bitmaps.is_none() {
            return Err(not_found(name));
        }
        Ok((engine, held))
    }
}

fn not_found(name: &str) -> Error {
    Error::OutOfRange(format!("Dirty bitmap '{name}' not found").into())
}

fn check_consistent(bitmap: &Bitmap) -> Result<()> {
    match bitmap.flags.in_use() {
        false => Ok(()),
        true => Err(Error::corrupt(
            format!(
                "Bitmap '{}' is inconsistent and cannot be used",
                bitmap.name
            ),
            Place::at(Structure::BitmapTable, bitmap.table.0),
        )),
    }
}

/// An entry of the new directory. What of it is not changed stays byte for byte.
struct Entry {
    bitmap: Bitmap,
    bytes: Vec<u8>,
}

impl Entry {
    /// Another table, or other flags.
    fn set(&mut self, bitmap: Bitmap) {
        put64(&mut self.bytes, 0, bitmap.table.0);
        put32(&mut self.bytes, 8, bitmap.table_entries);
        put32(&mut self.bytes, 12, bitmap.flags.0);
        self.bitmap = bitmap;
    }
}

/// Bitmaps as they will be.
pub(super) struct Edit<'e, 'a, S> {
    pub shadow: Shadow<'e, 'a, S>,
    entries: Vec<Entry>,
    old: Option<BitmapsExtension>,
}

impl<'e, 'a, S: Storage> Edit<'e, 'a, S> {
    /// The bitmaps as they are. The image is held, and nothing is left to be stored.
    pub async fn begin(engine: &'e Engine<'a, S>) -> Result<Self> {
        if engine.qcow2.header().version < Version::V3 {
            return Err(Error::Unsupported(
                "Cannot store dirty bitmaps in qcow2 v2 files".into(),
            ));
        }
        let mut entries = Vec::new();
        if let Some(old) = engine.qcow2.bitmap_directory().await? {
            engine.check_directory_owned().await?;
            let bitmaps = old.bitmaps();
            for (index, bitmap) in bitmaps.iter().enumerate() {
                let end = match index + 1 < bitmaps.len() {
                    true => old.start_of(index + 1),
                    false => old.bytes().len(),
                };
                entries.push(Entry {
                    bitmap: bitmap.clone(),
                    bytes: old.bytes()[old.start_of(index)..end].to_vec(),
                });
            }
        }
        // Everything new stands in clusters that are free, until the switch.
        let mut shadow = Shadow::new(engine);
        engine.keep_home(&mut shadow);
        Ok(Self {
            shadow,
            entries,
            old: engine.qcow2.extensions().bitmaps,
        })
    }

    /// Refuses a bitmap that cannot be added.
    pub fn check_new(&self, name: &str) -> Result<()> {
        if self.entries.iter().any(|entry| entry.bitmap.name == name) {
            return Err(Error::OutOfRange(
                format!("Bitmap already exists: {name}").into(),
            ));
        }
        if self.entries.len() >= MAX_BITMAPS as usize {
            return Err(Error::Unsupported(
                format!("Maximum number of persistent bitmaps is already reached ({MAX_BITMAPS})")
                    .into(),
            ));
        }
        Ok(())
    }

    /// Adds one, whose table stands in the new state.
    pub fn push(&mut self, bitmap: Bitmap) {
        let bytes = bitmap.encode();
        self.entries.push(Entry { bitmap, bytes });
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.entries.iter().position(|it| it.bitmap.name == name);
        found.ok_or_else(|| not_found(name))
    }

    fn find_consistent(&self, name: &str) -> Result<usize> {
        let index = self.find(name)?;
        check_consistent(&self.entries[index].bitmap)?;
        Ok(index)
    }

    /// Writes the tables of all bitmaps anew, and the bits of those that have few, as QEMU does whenever it stores
    /// bitmaps: what it leaves free in front of them is where everybody's next tables go.
    async fn renew_tables(&mut self) -> Result<()> {
        for index in 0..self.entries.len() {
            let old = self.entries[index].bitmap.clone();
            if old.flags.in_use() {
                continue; // Nobody knows what it should say.
            }
            let Ok(mut table) = self.shadow.engine.read_bitmap_table(&old).await else {
                continue; // Nor can this one be read; what is added does not need it.
            };
            self.renew_bits(&mut table).await?;
            let bytes = u64::from(old.table_entries) * 8;
            self.shadow.free_table(old.table.0, bytes).await?;
            let new = self.with_table(&old, &table).await?;
            self.entries[index].set(new);
        }
        Ok(())
    }

    async fn renew_bits(&mut self, table: &mut [Bits]) -> Result<()> {
        const FEW: usize = 64;
        let engine = self.shadow.engine;
        let is_stored = |bits: &&Bits| matches!(bits, Bits::At(_));
        if table.iter().filter(is_stored).count() > FEW {
            return Ok(());
        }
        for bits in table {
            let Bits::At(old) = *bits else { continue };
            let Ok(bytes) = engine.bits_of(*bits).await else {
                continue; // As above.
            };
            let what = "Could not write bitmap data";
            let new = self.shadow.write_new_table(what, &bytes).await?;
            let size = engine.cluster_bytes();
            self.shadow.free_table(old.0, size).await?;
            *bits = Bits::At(HostOffset(new));
        }
        Ok(())
    }

    /// The same bitmap with a table that says nothing.
    async fn empty(&mut self, bitmap: &Bitmap) -> Result<Bitmap> {
        let entries = self.entries_of(bitmap)?;
        let table = vec![Bits::Zeros; entries as usize];
        self.with_table(bitmap, &table).await
    }

    /// The same bitmap with this table.
    pub async fn with_table(&mut self, bitmap: &Bitmap, table: &[Bits]) -> Result<Bitmap> {
        let encoded = table.iter().flat_map(|bits| bits.encode().to_be_bytes());
        let bytes: Vec<u8> = encoded.collect();
        let at = self
            .shadow
            .write_new_table("Could not write bitmap table", &bytes)
            .await?;
        Ok(Bitmap {
            table: HostOffset(at),
            table_entries: table.len() as u32,
            ..bitmap.clone()
        })
    }

    /// How many clusters of bits a bitmap has.
    pub fn entries_of(&self, bitmap: &Bitmap) -> Result<u64> {
        let qcow2 = self.shadow.engine.qcow2;
        let cluster_size = qcow2.l2_format.cluster_size;
        let disk = qcow2.virtual_size();
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
        Ok(entries)
    }

    /// A cluster of bits of the new state.
    pub async fn bits(&mut self, bytes: &[u8]) -> Result<Bits> {
        let is_all = |value: u8| bytes.iter().all(|&byte| byte == value);
        if is_all(0) {
            return Ok(Bits::Zeros);
        }
        if is_all(u8::MAX) {
            return Ok(Bits::Ones);
        }
        let at = self
            .shadow
            .write_new_table("Could not write bitmap data", bytes)
            .await?;
        Ok(Bits::At(HostOffset(at)))
    }

    /// Sets in bitmap `index` what is set in `other`, which is a bitmap of `from`.
    async fn merge<T: Storage>(
        &mut self,
        index: usize,
        from: &Qcow2<T>,
        other: &Bitmap,
    ) -> Result<()> {
        let bitmap = self.entries[index].bitmap.clone();
        check_consistent(&bitmap)?;
        check_consistent(other)?;
        let engine = self.shadow.engine;
        let other_table = super::add::table_of(from, other).await?;
        let old_table = engine.read_bitmap_table(&bitmap).await?;
        let mut table = old_table.clone();
        for (cluster, entry) in (0..).zip(&mut table) {
            let Some(bytes) = self
                .merged(&bitmap, cluster, *entry, from, other, &other_table)
                .await?
            else {
                continue;
            };
            if let Bits::At(HostOffset(at)) = *entry {
                self.shadow.free_table(at, engine.cluster_bytes()).await?;
            }
            *entry = self.bits(&bytes).await?;
        }
        if table == old_table {
            return Ok(());
        }
        let bytes = u64::from(bitmap.table_entries) * 8;
        self.shadow.free_table(bitmap.table.0, bytes).await?;
        let new = self.with_table(&bitmap, &table).await?;
        self.entries[index].set(new);
        Ok(())
    }

    /// Cluster number `cluster` of the bits of `bitmap`, which `old` leads to, with what is set in `other`; `None`
    /// where that changes nothing.
    async fn merged<T: Storage>(
        &self,
        bitmap: &Bitmap,
        cluster: u64,
        old: Bits,
        from: &Qcow2<T>,
        other: &Bitmap,
        other_table: &[Bits],
    ) -> Result<Option<Vec<u8>>> {
        let engine = self.shadow.engine;
        let disk = engine.qcow2.virtual_size();
        let (shift, other_shift) = (bitmap.granularity_bits, other.granularity_bits);
        let per_cluster = engine.cluster_bytes() * 8;
        let first = cluster * per_cluster;
        let end = (first + per_cluster).min(bitmap.bits_for(disk));
        let wanted_end = (end << shift).div_ceil(1 << other_shift);
        let wanted = (first << shift) >> other_shift..wanted_end.min(other.bits_for(disk));
        let mut runs = Runs::new(from, other_table, wanted);
        let mut merged: Option<(Vec<u8>, Vec<u8>)> = None;
        while let Some(run) = runs.next().await? {
            let start = ((run.start << other_shift) >> shift).max(first);
            let stop = (run.end << other_shift).div_ceil(1 << shift).min(end);
            if start >= stop {
                continue;
            }
            if merged.is_none() {
                let bytes = engine.bits_of(old).await?;
                merged = Some((bytes.clone(), bytes));
            }
            if let Some((_, bytes)) = &mut merged {
                bits::set(bytes, start - first..stop - first);
            }
        }
        Ok(merged
            .filter(|(before, after)| before != after)
            .map(|(_, after)| after))
    }

    /// Switches to the new directory; to none where no bitmap is left.
    pub async fn finish(mut self) -> Result<()> {
        let engine = self.shadow.engine;
        if let Some(old) = self.old {
            self.shadow
                .free_table(old.directory.0, old.directory_bytes)
                .await?;
        }
        if self.entries.is_empty() {
            return self.finish_without().await;
        }
        let directory: Vec<u8> = self
            .entries
            .iter()
            .flat_map(|entry| entry.bytes.clone())
            .collect();
        let at = self
            .shadow
            .write_new_table("Could not write bitmap directory", &directory)
            .await?;
        let extension = BitmapsExtension {
            count: self.entries.len() as u32,
            directory: HostOffset(at),
            directory_bytes: directory.len() as u64,
        };
        self.shadow.header.autoclear_features |= Autoclear::BITMAPS.0;
        let patch = match self.old {
            // In its place, where that is in sector 0 or can be brought there.
            Some(_) => match engine.bring_extension_into_sector_0().await? {
                Standing::Elsewhere => None,
                standing => Some(engine.patch_for(&standing, extension).await?),
            },
            None => None,
        };
        self.shadow.patch = Some(match patch {
            Some(patch) => patch,
            None => self.new_patch(extension).await?,
        });
        self.shadow.finish().await?;
        engine.protect_metadata().await
    }

    /// The beginning of the file with the extension, in front of what may stand behind sector 0.
    async fn new_patch(&mut self, extension: BitmapsExtension) -> Result<Patch> {
        let engine = self.shadow.engine;
        let extensions = Extensions {
            bitmaps: Some(extension),
            stale_bitmaps: false,
            ..(*engine.qcow2.extensions()).clone()
        };
        let patch = engine
            .new_area(&mut self.shadow.header, &extensions, None)
            .await?;
        Ok(Patch {
            bitmaps: Some(extension),
            ..patch
        })
    }

    async fn finish_without(mut self) -> Result<()> {
        let engine = self.shadow.engine;
        let extensions = Extensions {
            bitmaps: None,
            stale_bitmaps: false,
            ..(*engine.qcow2.extensions()).clone()
        };
        self.shadow.header.autoclear_features &= !Autoclear::BITMAPS.0;
        let patch = engine
            .new_area(&mut self.shadow.header, &extensions, None)
            .await?;
        self.shadow.patch = Some(patch);
        self.shadow.finish().await?;
        engine.qcow2.meta.borrow_mut().extensions = extensions.into();
        engine.state.bitmaps.take();
        engine.protect_metadata().await
    }
}

impl<S: Storage> Shadow<'_, '_, S> {
    /// The clusters of a bitmap's table and bits are free in the new state.
    pub async fn free_bitmap(&mut self, bitmap: &Bitmap) -> Result<()> {
        let engine = self.engine;
        for bits in engine.read_bitmap_table(bitmap).await? {
            if let Bits::At(HostOffset(at)) = bits {
                self.free_table(at, engine.cluster_bytes()).await?;
            }
        }
        let bytes = u64::from(bitmap.table_entries) * 8;
        self.free_table(bitmap.table.0, bytes).await
    }
}

impl<S: Storage> Engine<'_, S> {
    /// The bytes of a cluster of bits.
    pub(super) async fn bits_of(&self, bits: Bits) -> Result<Vec<u8>> {
        let size = self.cluster_bytes() as usize;
        match bits {
            Bits::Zeros => Ok(vec![0; size]),
            Bits::Ones => Ok(vec![u8::MAX; size]),
            Bits::At(HostOffset(at)) => {
                self.read_metadata("Could not read bitmap data", at, size)
                    .await
            }
        }
    }
}

/// Runs of set bits, in order. A run ends at least where a cluster of bits does.
struct Runs<'q, T> {
    from: &'q Qcow2<T>,
    table: &'q [Bits],
    left: Range<u64>,
    /// Which cluster of bits `bytes` is.
    read: Option<u64>,
    bytes: Vec<u8>,
}

impl<'q, T: Storage> Runs<'q, T> {
    fn new(from: &'q Qcow2<T>, table: &'q [Bits], bits: Range<u64>) -> Self {
        Self {
            from,
            table,
            left: bits,
            read: None,
            bytes: Vec::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<Range<u64>>> {
        let size = self.from.header().cluster_size.bytes();
        let per_cluster = size * 8;
        while self.left.start < self.left.end {
            let start = self.left.start;
            let cluster = start / per_cluster;
            let first = cluster * per_cluster;
            let end = self.left.end.min(first + per_cluster);
            match self.table.get(cluster as usize) {
                None | Some(Bits::Zeros) => self.left.start = end,
                Some(Bits::Ones) => {
                    self.left.start = end;
                    return Ok(Some(start..end));
                }
                Some(Bits::At(HostOffset(at))) => {
                    if self.read != Some(cluster) {
                        self.bytes.resize(size as usize, 0);
                        let read = read_padded(&self.from.file.storage, *at, &mut self.bytes).await;
                        read.map_err(|error| Error::io("Could not read bitmap data", *at, error))?;
                        self.read = Some(cluster);
                    }
                    let begin = bits::next_with(&self.bytes, start - first..end - first, true);
                    let stop = bits::next_with(&self.bytes, begin..end - first, false);
                    self.left.start = first + stop;
                    if begin < stop {
                        return Ok(Some(first + begin..first + stop));
                    }
                }
            }
        }
        Ok(None)
    }
}
