//! Where everything stands in a new image.
//!
//! Header, refcount table, first refcount block and L1 table stand in QEMU's order; a LUKS header stands before
//! the L1 table. Where only tables are
//! preallocated, each L2 table follows with the clusters it maps behind it, as with QEMU; where all data is
//! written, all L2 tables and then all data in one piece. Another refcount block stands behind whatever is the
//! first not to be counted by those before it. No cluster is left out, so that every refcount up to the end
//! is one.

use crate::error::{Error, Result};
use crate::qcow2::{MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, OFFSET_MASK, RefcountWidth};
use crate::units::ClusterSize;

pub(super) fn too_large() -> Error {
    Error::OutOfRange(
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)"
            .into(),
    )
}

/// What the places depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub cluster_size: ClusterSize,
    pub refcount_width: RefcountWidth,
    pub extended_l2: bool,
    /// The disk's size in bytes, whole sectors.
    pub size: u64,
    /// Whether every cluster of the disk is allocated.
    pub preallocated: bool,
    /// Whether they are those of another file, each at the place that it has on the disk.
    pub data_file: bool,
    /// Whether they stand in one piece.
    pub contiguous: bool,
    /// How many bytes a LUKS header takes, or none.
    pub encryption_header: u64,
}

impl Geometry {
    pub fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// How many entries an L2 table has.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size.bytes() / self.l2_entry_bytes()
    }

    /// How many clusters the disk has.
    pub fn disk_clusters(&self) -> u64 {
        self.cluster_size.count_for(self.size)
    }

    fn l1_entries(&self) -> u64 {
        self.disk_clusters().div_ceil(self.l2_entries())
    }
}

/// The places of the tables; the refcount blocks' are kept, as many as a refcount table can have.
#[derive(Debug)]
pub(super) struct Layout {
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    /// The cluster of each refcount block.
    pub blocks: Vec<u64>,
    /// Where the LUKS header stands, if there is one.
    pub encryption_header_offset: u64,
    pub l1_offset: u64,
    pub l1_entries: u32,
    /// How many clusters are in use: all from the first on.
    pub clusters: u64,
    groups: Groups,
}

/// Where L2 tables and data are.
#[derive(Clone, Copy, Debug)]
enum Groups {
    /// One table after the other, then one cluster of data after the other.
    Apart { tables: u64, data: u64 },
    /// Each table with what it maps, from here on.
    Together(Walk),
}

/// An L2 table with what it maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The cluster of the L2 table.
    pub table: u64,
    /// The first cluster of data, in the file that holds the data.
    pub data: u64,
    /// How many clusters are mapped.
    pub count: u64,
}

/// Hands out clusters one after the other.
#[derive(Clone, Copy, Debug)]
struct Walk {
    next: u64,
    /// How many clusters the refcount blocks so far count.
    counted: u64,
    per_block: u64,
}

impl Walk {
    /// `count` clusters in one piece, with new refcount blocks behind them as far as they are needed.
    fn take(&mut self, count: u64, mut new_block: impl FnMut(u64)) -> u64 {
        let first = self.next;
        self.next += count;
        // A block may be the first cluster that only the next one counts.
        while self.next > self.counted {
            new_block(self.next);
            self.next += 1;
            self.counted += self.per_block;
        }
        first
    }
}

impl Layout {
    /// The layout, or why there can be none.
    pub fn of(geometry: &Geometry) -> Result<Self> {
        if geometry.l1_entries() > MAX_L1_BYTES / 8 {
            return Err(too_large());
        }
        let cluster = geometry.cluster_size;
        let mut table_clusters = 1;
        loop {
            let layout = Self::with_table(geometry, table_clusters)?;
            let needed = cluster.count_for(layout.blocks.len() as u64 * 8);
            // More table, more clusters to count: the first that suffices is the least that does.
            if needed <= table_clusters {
                return Ok(layout);
            }
            table_clusters = needed;
        }
    }

    fn with_table(geometry: &Geometry, table_clusters: u64) -> Result<Self> {
        const MOST_BLOCKS: usize = (MAX_REFCOUNT_TABLE_BYTES / 8) as usize;
        let cluster = geometry.cluster_size;
        let mut blocks = Vec::new();
        let mut walk = Walk {
            next: 0,
            counted: 0,
            per_block: geometry.refcount_width.entries_per_block(cluster),
        };
        // The header stands in the cluster before the table.
        walk.take(1 + table_clusters, |block| blocks.push(block));
        let mut take = |count: u64| match count {
            0 => 0,
            count => walk.take(count, |block| blocks.push(block)) << cluster.bits(),
        };
        let encryption_header_offset = take(cluster.count_for(geometry.encryption_header));
        let l1_entries = geometry.l1_entries();
        let l1_clusters = cluster.count_for(l1_entries * 8);
        let l1_offset = take(l1_clusters);
        let groups = if geometry.contiguous {
            let tables = walk.take(geometry.groups(), |block| blocks.push(block));
            let data = walk.take(geometry.disk_clusters(), |block| blocks.push(block));
            Groups::Apart { tables, data }
        } else {
            let start = walk;
            for index in 0..geometry.groups() {
                geometry.group(&mut walk, index, |block| blocks.push(block));
            }
            Groups::Together(start)
        };
        // The L1 table's limit keeps these numbers within reason up to here.
        if blocks.len() > MOST_BLOCKS || walk.next > OFFSET_MASK >> cluster.bits() {
            return Err(too_large());
        }
        Ok(Self {
            refcount_table_offset: cluster.bytes(),
            refcount_table_clusters: table_clusters as u32,
            blocks,
            encryption_header_offset,
            l1_offset,
            l1_entries: l1_entries as u32,
            clusters: walk.next,
            groups,
        })
    }

    /// The groups, one after the other.
    pub fn groups<'a>(&self, geometry: &'a Geometry) -> impl Iterator<Item = Group> + 'a {
        let mut groups = self.groups;
        (0..geometry.groups()).map(move |index| match &mut groups {
            Groups::Apart { tables, data } => {
                let (first, count) = geometry.mapped_by(index);
                Group {
                    table: *tables + index,
                    data: *data + first,
                    count,
                }
            }
            Groups::Together(walk) => geometry.group(walk, index, |_| ()),
        })
    }

    /// The bytes of the file that are in use.
    pub fn file_len(&self, geometry: &Geometry) -> u64 {
        let cluster = geometry.cluster_size;
        if !geometry.preallocated {
            // The end of the L1 table need not be there.
            let end = self.l1_offset + u64::from(self.l1_entries) * 8;
            let others = self.blocks.last().map_or(0, |block| block + 1);
            let luks = self.encryption_header_offset + geometry.encryption_header;
            return end.max(others << cluster.bits()).max(luks);
        }
        let end = self.clusters << cluster.bits();
        // Nor that of the last cluster, where it is allocated by subclusters and nothing is written to it.
        match geometry.extended_l2 && self.ends_with_unwritten_data(geometry) {
            true => end - geometry.unused_end(),
            false => end,
        }
    }

    /// The bytes of the data file.
    pub fn data_file_len(&self, geometry: &Geometry) -> u64 {
        if !geometry.preallocated {
            return geometry.size;
        }
        let end = geometry.disk_clusters() << geometry.cluster_size.bits();
        match geometry.extended_l2 {
            true => end - geometry.unused_end(),
            false => end,
        }
    }

    fn ends_with_unwritten_data(&self, geometry: &Geometry) -> bool {
        let together = !geometry.contiguous && !geometry.data_file;
        together && self.l1_entries > 0 && self.blocks.last() != Some(&(self.clusters - 1))
    }
}

impl Geometry {
    fn groups(&self) -> u64 {
        if self.preallocated {
            self.l1_entries()
        } else {
            0
        }
    }

    fn group(&self, walk: &mut Walk, index: u64, mut new_block: impl FnMut(u64)) -> Group {
        let (first, count) = self.mapped_by(index);
        let table = walk.take(1, &mut new_block);
        let data = if self.data_file {
            first
        } else {
            walk.take(count, new_block)
        };
        Group { table, data, count }
    }

    /// The first guest cluster that an L2 table maps, and how many.
    fn mapped_by(&self, index: u64) -> (u64, u64) {
        let first = index * self.l2_entries();
        let count = self.l2_entries().min(self.disk_clusters() - first);
        (first, count)
    }

    /// The bytes of whole subclusters behind the end of the disk, up to the end of its last cluster.
    fn unused_end(&self) -> u64 {
        let cluster = self.cluster_size;
        let subcluster = cluster.bytes() / crate::qcow2::l2::SUBCLUSTERS;
        match cluster.offset_in(self.size) {
            0 => 0,
            used => cluster.bytes() - used.next_multiple_of(subcluster),
        }
    }
}
