//! Writes qcow2 images from the specification, without the engine: what the start states are made with.
//!
//! It can make images that an engine reaches only by chance, such as a refcount block without a free entry,
//! and images that no clean shutdown leaves, such as one with wrong refcounts and the dirty bit.

use std::collections::BTreeMap;

use super::contents::{Bytes, SECTOR};
use super::format::{
    BITMAPS, COMPRESSED, COPIED, LAZY_REFCOUNTS, MAGIC, SnapshotEntry, ZERO, compressed_entry,
    extension, incompatible, set_refcount,
};

/// What does not change while an image is built.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Layout {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended_l2: bool,
    /// The name of the backing file, which is raw.
    pub backing: Option<&'static str>,
    /// The name of the external data file.
    pub data_file: Option<&'static str>,
    /// Lazy refcounts.
    pub lazy: bool,
    /// The dirty bit.
    pub dirty: bool,
    /// Autoclear bits besides that of bitmaps.
    pub autoclear: u64,
    /// Adds so many bitmaps that count as consistent, of which only the last one tracks changes.
    pub bitmaps: usize,
    /// Adds an extension of this kind that fills the rest of sector 0, so that the bitmaps extension stands
    /// behind it.
    pub filling: Option<u32>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_bits: 9,
            refcount_order: 4,
            extended_l2: false,
            backing: None,
            data_file: None,
            lazy: false,
            dirty: false,
            autoclear: 0,
            bitmaps: 0,
            filling: None,
        }
    }
}

/// An L2 entry: the descriptor without COPIED, and the subcluster bitmap.
type Entry = (u64, u64);

/// The state that a guest sees.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The content, by sector.
    pub sectors: Vec<Bytes>,
    entries: BTreeMap<u64, Entry>,
}

/// A snapshot of it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Taken {
    pub id: String,
    pub name: String,
    pub disk: Disk,
}

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Builder {
    layout: Layout,
    /// The file, in whole clusters.
    bytes: Vec<u8>,
    /// The external data file.
    data: Vec<u8>,
    /// The active state.
    pub disk: Disk,
    /// The snapshots, oldest first.
    pub snapshots: Vec<Taken>,
    /// Clusters that count as used and are not.
    leaks: Vec<u64>,
    /// Clusters that are used and do not count (dirty images only).
    uncounted: Vec<u64>,
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct Built {
    /// The image file.
    pub image: Vec<u8>,
    /// The external data file.
    pub data: Vec<u8>,
    /// How many clusters are leaked.
    pub leaked: u64,
    /// The active state.
    pub disk: Disk,
    /// The snapshots.
    pub snapshots: Vec<Taken>,
}

impl Builder {
    /// An empty image of a disk of `sectors` sectors that begins with the sectors of `backing`.
    #[must_use]
    pub fn new(layout: Layout, sectors: usize, backing: &[Bytes]) -> Self {
        let mut content = backing.to_vec();
        content.resize(sectors, [0; SECTOR]);
        let mut builder = Self {
            layout,
            bytes: Vec::new(),
            data: Vec::new(),
            disk: Disk {
                sectors: content,
                entries: BTreeMap::new(),
            },
            snapshots: Vec::new(),
            leaks: Vec::new(),
            uncounted: Vec::new(),
        };
        if layout.data_file.is_some() {
            builder.data = vec![0; sectors * SECTOR];
        }
        builder.take(1); // The header's.
        builder
    }

    fn cluster_bytes(&self) -> usize {
        1 << self.layout.cluster_bits
    }

    fn cluster_sectors(&self) -> usize {
        self.cluster_bytes() / SECTOR
    }

    /// Sectors of the disk in a cluster.
    fn sectors_of(&self, cluster: u64) -> std::ops::Range<usize> {
        let first = cluster as usize * self.cluster_sectors();
        first..(first + self.cluster_sectors()).min(self.disk.sectors.len())
    }

    /// The next `count` clusters of the file.
    fn take(&mut self, count: usize) -> u64 {
        let at = self.bytes.len() as u64;
        let bytes = count * self.cluster_bytes();
        self.bytes.resize(self.bytes.len() + bytes, 0);
        at
    }

    /// Which clusters of the file are in use so far.
    #[must_use]
    pub fn clusters(&self) -> usize {
        self.bytes.len() / self.cluster_bytes()
    }

    /// Fills a cluster of the disk with what `content` makes of each sector's number. What of the cluster lies
    /// past the end of the disk is filled with rubbish.
    pub fn data(&mut self, cluster: u64, content: impl Fn(usize) -> Bytes) -> &mut Self {
        let at = if self.layout.data_file.is_some() {
            cluster * self.cluster_bytes() as u64
        } else {
            self.take(1)
        };
        let range = self.sectors_of(cluster);
        let file = if self.layout.data_file.is_some() {
            &mut self.data
        } else {
            &mut self.bytes
        };
        let at_byte = at as usize;
        for (index, sector) in range.clone().enumerate() {
            self.disk.sectors[sector] = content(sector);
            let to = at_byte + index * SECTOR;
            file[to..to + SECTOR].copy_from_slice(&self.disk.sectors[sector]);
        }
        let cluster_end = at_byte + (1 << self.layout.cluster_bits);
        if self.layout.data_file.is_none() {
            file[at_byte + range.len() * SECTOR..cluster_end].fill(0xee);
        }
        let parts = if self.layout.extended_l2 {
            u32::MAX.into()
        } else {
            0
        };
        self.disk
            .entries
            .insert(cluster, (at | self.in_data_file(), parts));
        self
    }

    /// COPIED where an entry needs it to be one at all.
    fn in_data_file(&self) -> u64 {
        if self.layout.data_file.is_some() {
            COPIED
        } else {
            0
        }
    }

    /// Fills a cluster without having its refcount counted: what a crash with lazy refcounts leaves.
    pub fn uncounted_data(&mut self, cluster: u64, content: impl Fn(usize) -> Bytes) -> &mut Self {
        let at = self.bytes.len() as u64;
        self.data(cluster, content);
        self.uncounted.push(at);
        self
    }

    /// Fills only the subclusters `parts` of a cluster (extended L2).
    pub fn parts(
        &mut self,
        cluster: u64,
        allocated: u32,
        zero: u32,
        content: impl Fn(usize) -> Bytes,
    ) -> &mut Self {
        let at = self.take(1);
        let part = self.cluster_sectors() / 32;
        for (index, sector) in self.sectors_of(cluster).enumerate() {
            if allocated >> (index / part) & 1 == 1 {
                self.disk.sectors[sector] = content(sector);
                let to = at as usize + index * SECTOR;
                self.bytes[to..to + SECTOR].copy_from_slice(&self.disk.sectors[sector]);
            } else if zero >> (index / part) & 1 == 1 {
                self.disk.sectors[sector] = [0; SECTOR];
            }
        }
        let bitmap = u64::from(zero) << 32 | u64::from(allocated);
        self.disk.entries.insert(cluster, (at, bitmap));
        self
    }

    /// Makes a cluster zeros, with a cluster of the file kept for it or without.
    pub fn zero(&mut self, cluster: u64, allocated: bool) -> &mut Self {
        let at = if allocated { self.take(1) } else { 0 };
        if allocated {
            let end = at as usize + self.cluster_bytes();
            self.bytes[at as usize..end].fill(0xdd);
        }
        for sector in self.sectors_of(cluster) {
            self.disk.sectors[sector] = [0; SECTOR];
        }
        let entry = match (self.layout.version, self.layout.extended_l2) {
            (2, _) => panic!("version 2 has no zero clusters"),
            (_, true) => (at, u64::from(u32::MAX) << 32),
            _ => (at | ZERO, 0),
        };
        self.disk.entries.insert(cluster, entry);
        self
    }

    /// Fills clusters with compressed data, packed one behind the other.
    pub fn compressed(&mut self, clusters: &[u64], content: impl Fn(usize) -> Bytes) -> &mut Self {
        let mut packed = Vec::new();
        let start = self.bytes.len() as u64;
        for &cluster in clusters {
            let mut plain = vec![0; self.cluster_bytes()];
            for (index, sector) in self.sectors_of(cluster).enumerate() {
                self.disk.sectors[sector] = content(sector);
                plain[index * SECTOR..][..SECTOR].copy_from_slice(&self.disk.sectors[sector]);
            }
            let stream = miniz_oxide::deflate::compress_to_vec(&plain, 6);
            assert!(stream.len() < plain.len(), "the content compresses");
            let at = start + packed.len() as u64;
            let entry = compressed_entry(at, stream.len() as u64, self.layout.cluster_bits);
            self.disk.entries.insert(cluster, (entry, 0));
            packed.extend(stream);
        }
        let count = packed.len().div_ceil(self.cluster_bytes());
        self.take(count);
        self.bytes[start as usize..][..packed.len()].copy_from_slice(&packed);
        self
    }

    /// Takes a snapshot.
    pub fn snapshot(&mut self, id: &str, name: &str) -> &mut Self {
        self.snapshots.push(Taken {
            id: id.into(),
            name: name.into(),
            disk: self.disk.clone(),
        });
        self
    }

    /// Leaks clusters.
    pub fn leak(&mut self, count: usize) -> &mut Self {
        let first = self.take(count) >> self.layout.cluster_bits;
        self.leaks.extend(first..first + count as u64);
        self
    }

    /// Writes the tables. `fill` leaks as many clusters more as make the file exactly so many clusters long.
    ///
    /// # Panics
    ///
    /// Where the image does not fit into so few.
    #[must_use]
    pub fn finish(mut self, fill: Option<usize>) -> Built {
        let cluster_bytes = self.cluster_bytes();
        // Tables that say the same are one table, as after a snapshot.
        let mut tables: Vec<(Vec<(u64, Entry)>, u64)> = Vec::new();
        let mut l1s = Vec::new();
        let disks: Vec<Disk> = std::iter::once(&self.disk)
            .chain(self.snapshots.iter().map(|taken| &taken.disk))
            .cloned()
            .collect();
        let entry_bytes = if self.layout.extended_l2 { 16 } else { 8 };
        let entries = (cluster_bytes / entry_bytes) as u64;
        for disk in &disks {
            let covered = disk.sectors.len().div_ceil(self.cluster_sectors()) as u64;
            let mut l1 = vec![0; covered.div_ceil(entries) as usize];
            for (index, slot) in l1.iter_mut().enumerate() {
                let range = index as u64 * entries..(index as u64 + 1) * entries;
                let used: Vec<_> = disk.entries.range(range).map(|(c, e)| (*c, *e)).collect();
                if used.is_empty() {
                    continue;
                }
                let known = tables.iter().find(|(other, _)| *other == used);
                *slot = match known.map(|(_, at)| *at) {
                    Some(at) => at,
                    None => {
                        let at = self.take(1);
                        tables.push((used, at));
                        at
                    }
                };
            }
            let at = self.take((l1.len() * 8).div_ceil(cluster_bytes));
            l1s.push((at, l1));
        }
        let snapshot_table = self.snapshot_table(&l1s[1..]);
        let snapshots_at = match snapshot_table.len() {
            0 => 0,
            length => self.take(length.div_ceil(cluster_bytes)),
        };
        self.bytes[snapshots_at as usize..][..snapshot_table.len()]
            .copy_from_slice(&snapshot_table);
        let bitmaps = (self.layout.bitmaps > 0).then(|| self.bitmaps());

        let bits = self.layout.cluster_bits;
        let mut references = vec![0_u64; self.clusters()];
        let data = disks.iter().flat_map(|disk| disk.entries.values());
        let data = data.flat_map(|(descriptor, _)| self.host_clusters(*descriptor));
        let l2s = l1s.iter().flat_map(|(_, l1)| l1).filter(|at| **at != 0);
        for cluster in data.chain(l2s.map(|at| at >> bits)) {
            references[cluster as usize] += 1;
        }
        // Everything that is no data and no L2 table counts once.
        for count in &mut references {
            *count = (*count).max(1);
        }
        self.write_tables(&tables, &l1s, &references, entry_bytes);
        for cluster in &self.uncounted {
            references[(cluster >> bits) as usize] = 0;
        }
        let (table_at, table_clusters) = self.refcounts(references, fill);
        self.header(&l1s[0], (table_at, table_clusters), snapshots_at, bitmaps);
        Built {
            image: self.bytes,
            data: self.data,
            leaked: self.leaks.len() as u64,
            disk: self.disk,
            snapshots: self.snapshots,
        }
    }

    /// The clusters of the image file that a descriptor refers to.
    fn host_clusters(&self, descriptor: u64) -> std::ops::Range<u64> {
        let bits = self.layout.cluster_bits;
        if descriptor & COMPRESSED != 0 {
            let (at, length) = super::format::compressed_at(descriptor, bits);
            let end = (at + length).min(self.bytes.len() as u64);
            return at >> bits..((end - 1) >> bits) + 1;
        }
        let at = descriptor & super::format::OFFSET;
        if at == 0 || self.layout.data_file.is_some() {
            return 0..0;
        }
        at >> bits..(at >> bits) + 1
    }

    fn snapshot_table(&self, l1s: &[(u64, Vec<u64>)]) -> Vec<u8> {
        let entries = self.snapshots.iter().zip(l1s).map(|(taken, (at, l1))| {
            SnapshotEntry {
                l1_offset: *at,
                l1_entries: l1.len() as u32,
                id: taken.id.clone(),
                name: taken.name.clone(),
                vm_state_bytes: 0,
                disk_bytes: (self.layout.version >= 3)
                    .then_some((taken.disk.sectors.len() * SECTOR) as u64),
            }
            .encode()
        });
        entries.flatten().collect()
    }

    fn write_tables(
        &mut self,
        tables: &[(Vec<(u64, Entry)>, u64)],
        l1s: &[(u64, Vec<u64>)],
        references: &[u64],
        entry_bytes: usize,
    ) {
        let bits = self.layout.cluster_bits;
        let entries = (self.cluster_bytes() / entry_bytes) as u64;
        let copied = |active: bool, at: u64| {
            let alone = at != 0 && references[(at >> bits) as usize] == 1;
            at | if active && alone { COPIED } else { 0 }
        };
        for (used, at) in tables {
            let active = l1s[0].1.contains(at);
            for (cluster, (descriptor, parts)) in used {
                let flags = descriptor & (ZERO | COPIED);
                let value = match descriptor & COMPRESSED {
                    0 if self.layout.data_file.is_none() => {
                        copied(active, descriptor & !flags) | flags
                    }
                    _ => *descriptor,
                };
                let to = *at as usize + (cluster % entries) as usize * entry_bytes;
                self.bytes[to..to + 8].copy_from_slice(&value.to_be_bytes());
                if entry_bytes == 16 {
                    self.bytes[to + 8..to + 16].copy_from_slice(&parts.to_be_bytes());
                }
            }
        }
        for (root, (at, l1)) in l1s.iter().enumerate() {
            for (index, table) in l1.iter().enumerate() {
                let to = *at as usize + index * 8;
                // A snapshot's table keeps the flags that it had when it was the active one.
                let value = match (root, table) {
                    (0, table) => copied(true, *table),
                    (_, 0) => 0,
                    (_, table) => table | COPIED,
                };
                self.bytes[to..to + 8].copy_from_slice(&value.to_be_bytes());
            }
        }
    }

    /// Writes refcount blocks and table behind everything else; where the table is, and its clusters.
    fn refcounts(&mut self, mut references: Vec<u64>, fill: Option<usize>) -> (u64, usize) {
        let cluster_bytes = self.cluster_bytes();
        let order = self.layout.refcount_order;
        let per_block = (cluster_bytes * 8) >> order;
        let entries = cluster_bytes / 8;
        let needed = |used: usize| {
            let (mut blocks, mut table) = (0, 0);
            while used + blocks + table > blocks * per_block || blocks > table * entries {
                blocks = (used + blocks + table).div_ceil(per_block);
                table = blocks.div_ceil(entries);
            }
            (blocks, table)
        };
        if let Some(fill) = fill {
            let blocks = fill / per_block;
            let tables = blocks + blocks.div_ceil(entries);
            let rest = fill.checked_sub(self.clusters() + tables);
            self.leak(rest.expect("the image fits into what is to be filled"));
            references.resize(self.clusters(), 1);
        }
        let (blocks, table_clusters) = needed(self.clusters());
        let table_at = self.take(table_clusters);
        let blocks_at = self.take(blocks);
        references.resize(self.clusters(), 1);
        if let Some(fill) = fill {
            assert_eq!((self.clusters(), fill % per_block), (fill, 0));
        }
        for block in 0..blocks {
            let at = blocks_at + (block * cluster_bytes) as u64;
            let entry = table_at as usize + block * 8;
            self.bytes[entry..entry + 8].copy_from_slice(&at.to_be_bytes());
            let counted = references
                .iter()
                .enumerate()
                .skip(block * per_block)
                .take(per_block);
            for (cluster, count) in counted {
                let bytes = &mut self.bytes[at as usize..at as usize + cluster_bytes];
                set_refcount(bytes, (cluster % per_block) as u64, order, *count);
            }
        }
        (table_at, table_clusters)
    }

    /// Bitmaps of granularity 512 with nothing set: the directory's place and length. The first ones are named
    /// so that of sixteen the last one's place and flags stand in different sectors.
    fn bitmaps(&mut self) -> (u64, u64) {
        let clusters = self.disk.sectors.len().div_ceil(8 * self.cluster_bytes());
        let mut directory = Vec::new();
        for number in 1..=self.layout.bitmaps {
            let table = self.take((clusters * 8).div_ceil(self.cluster_bytes()));
            let name = if number <= 3 {
                format!("number {number:02}")
            } else {
                format!("n{number}")
            };
            let flags = if number == self.layout.bitmaps {
                2
            } else {
                0_u32
            };
            directory.extend(table.to_be_bytes());
            directory.extend((clusters as u32).to_be_bytes());
            directory.extend(flags.to_be_bytes());
            directory.extend([1, 9]); // dirty tracking, 512 bytes
            directory.extend((name.len() as u16).to_be_bytes());
            directory.extend(0_u32.to_be_bytes());
            directory.extend(name.bytes());
            directory.resize(directory.len().next_multiple_of(8), 0);
        }
        let at = self.take(directory.len().div_ceil(self.cluster_bytes()));
        self.bytes[at as usize..][..directory.len()].copy_from_slice(&directory);
        (at, directory.len() as u64)
    }

    fn header(
        &mut self,
        (l1_at, l1): &(u64, Vec<u64>),
        (refcount_table, refcount_clusters): (u64, usize),
        snapshots_at: u64,
        bitmaps: Option<(u64, u64)>,
    ) {
        let layout = self.layout;
        let mut header = vec![0; 104];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_be_bytes());
        put(4, &layout.version.to_be_bytes());
        put(20, &layout.cluster_bits.to_be_bytes());
        put(
            24,
            &((self.disk.sectors.len() * SECTOR) as u64).to_be_bytes(),
        );
        put(36, &(l1.len() as u32).to_be_bytes());
        put(40, &l1_at.to_be_bytes());
        put(48, &refcount_table.to_be_bytes());
        put(56, &(refcount_clusters as u32).to_be_bytes());
        put(60, &(self.snapshots.len() as u32).to_be_bytes());
        put(64, &snapshots_at.to_be_bytes());
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        let incompatible = flag(layout.dirty, incompatible::DIRTY)
            | flag(layout.data_file.is_some(), incompatible::DATA_FILE)
            | flag(layout.extended_l2, incompatible::EXTENDED_L2);
        put(72, &incompatible.to_be_bytes());
        put(80, &flag(layout.lazy, LAZY_REFCOUNTS).to_be_bytes());
        let autoclear = layout.autoclear | flag(layout.bitmaps > 0, BITMAPS);
        put(88, &autoclear.to_be_bytes());
        put(96, &layout.refcount_order.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        if layout.version == 2 {
            header.truncate(72);
        }
        let mut extend = |kind: u32, bytes: &[u8]| {
            header.extend(kind.to_be_bytes());
            header.extend((bytes.len() as u32).to_be_bytes());
            header.extend(bytes);
            header.resize(header.len().next_multiple_of(8), 0);
        };
        if layout.backing.is_some() {
            extend(extension::BACKING_FORMAT, b"raw");
        }
        if let Some(name) = layout.data_file {
            extend(extension::DATA_FILE, name.as_bytes());
        }
        if let Some(kind) = layout.filling {
            extend(kind, &[0; 384]);
        }
        if let Some((at, length)) = bitmaps {
            let mut bytes = (layout.bitmaps as u32).to_be_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend(length.to_be_bytes());
            bytes.extend(at.to_be_bytes());
            extend(extension::BITMAPS, &bytes);
        }
        extend(extension::END, &[]);
        if let Some(name) = layout.backing {
            let at = header.len() as u64;
            header[8..16].copy_from_slice(&at.to_be_bytes());
            header[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            header.extend(name.as_bytes());
        }
        let room = if layout.filling.is_some() {
            self.cluster_bytes()
        } else {
            SECTOR
        };
        assert!(header.len() <= room, "everything fits");
        self.bytes[..header.len()].copy_from_slice(&header);
    }
}
