//! The states from which every script starts.
//!
//! All but a few have clusters of 512 bytes, so that each sector of metadata is an atom and a small image has
//! everything: several L2 tables, a refcount block that ends soon. The disk has 161 clusters then, that is two
//! full L2 tables and a third that begins.

use std::rc::Rc;

use super::builder::{Builder, Built, Layout, Taken};
use super::contents::{Bytes, Content, Contents, SECTOR};
use super::format::extension;
use super::machine::SimFile;
use super::model::{Frozen, World};

/// The sectors of most disks: two full L2 tables, and a little more than half of a third.
const SECTORS: usize = 161;

/// A start state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StartKind {
    /// Nothing is allocated.
    Empty,
    /// Everything is allocated and nothing written.
    Preallocated,
    /// Data, zero clusters with and without a place, holes, over all L2 tables.
    Mixed,
    /// Compressed clusters that share host clusters, among plain ones.
    Compressed,
    /// 4 KiB clusters, compressed, each alone in a cluster of the file.
    CompressedAlone,
    /// `Mixed` with a snapshot of itself.
    Snapshot,
    /// Two snapshots, each unlike the other and unlike the active state.
    TwoSnapshots,
    /// Data over a raw backing file that is shorter than the disk.
    Backing,
    /// `Backing` with a snapshot.
    BackingSnapshot,
    /// Lazy refcounts, some wrong in both directions, and the dirty bit.
    Dirty,
    /// Lazy refcounts, all right.
    Lazy,
    /// Not one free entry in the refcount block.
    BlockFull,
    /// Not one free entry in any refcount block, and none in the refcount table.
    TableFull,
    /// Subclusters: 16 KiB clusters.
    ExtendedL2,
    /// Subclusters with a backing file and a snapshot.
    ExtendedL2Snapshot,
    /// Version 2.
    Version2,
    /// Version 2 with a backing file.
    Version2Backing,
    /// An external data file.
    DataFile,
    /// Refcounts of one bit.
    OneBit,
    /// 4 KiB clusters and a disk that ends inside one, which has rubbish behind the end.
    Unaligned,
    /// 4 KiB clusters over a backing file, with compressed clusters and a snapshot.
    LargerClusters,
    /// Leaked clusters.
    Leaky,
    /// An L1 table of two sectors, and a snapshot.
    LongL1,
    /// A consistent bitmap and an unknown autoclear feature.
    Autoclear,
    /// A consistent bitmap whose header extension stands behind sector 0, because of the feature names.
    BitmapBehindNames,
    /// The same, because of an extension that nobody knows, so that it cannot be moved; of sixteen bitmaps the
    /// one that tracks changes has its directory entry in two sectors.
    BitmapBehindUnknown,
}

impl StartKind {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::Empty,
        Self::Preallocated,
        Self::Mixed,
        Self::Compressed,
        Self::CompressedAlone,
        Self::Snapshot,
        Self::TwoSnapshots,
        Self::Backing,
        Self::BackingSnapshot,
        Self::Dirty,
        Self::Lazy,
        Self::BlockFull,
        Self::TableFull,
        Self::ExtendedL2,
        Self::ExtendedL2Snapshot,
        Self::Version2,
        Self::Version2Backing,
        Self::DataFile,
        Self::OneBit,
        Self::Unaligned,
        Self::LargerClusters,
        Self::Leaky,
        Self::LongL1,
        Self::Autoclear,
        Self::BitmapBehindNames,
        Self::BitmapBehindUnknown,
    ];

    /// Its name in messages and on command lines.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// The kind with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The name of the backing file that images have at first.
pub const BACKING: &str = "below.raw";
/// The name of the one that they may be rebased to.
pub const OTHER_BACKING: &str = "other-below.raw";

/// What an operation must know to aim at something interesting.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Geometry {
    pub cluster_bytes: u64,
    /// Bytes of the disk that one L2 table maps.
    pub table_bytes: u64,
    pub version: u32,
    pub has_backing: bool,
    pub backing_bytes: u64,
    pub has_data_file: bool,
    /// Whether a cluster may have more than one reference.
    pub can_share: bool,
}

/// A start state, ready to run scripts on.
pub struct Start {
    /// Which.
    pub kind: StartKind,
    /// The image, its data file and its backing file.
    pub files: [SimFile; 3],
    /// What the guest may see.
    pub world: World,
    /// The backing file's content.
    pub backing: Vec<Content>,
    /// How many clusters are leaked.
    pub leaked: u64,
    /// Whether its refcounts are right.
    pub clean: bool,
    /// Whether its bitmaps cannot be part of a transaction, because what points to them is not in sector 0 and
    /// cannot be brought there. They are stored after it, or stay marked as in use: a cut in between may leak
    /// clusters, and a failure leaves the bitmaps in use.
    pub bitmaps_apart: bool,
    /// Its geometry.
    pub geometry: Geometry,
    /// The image's bytes, for tools.
    pub image: Vec<u8>,
    /// The data file's bytes.
    pub data: Vec<u8>,
    /// The backing file's bytes.
    pub backing_bytes: Vec<u8>,
}

/// What write number `tag` puts into a sector: unlike every other sector of every other write, and easy to
/// compress.
#[must_use]
pub fn stamp(tag: u32, sector: usize) -> Bytes {
    let mut bytes = [0; SECTOR];
    for piece in bytes.as_chunks_mut::<8>().0 {
        piece[..4].copy_from_slice(&(0xd500_0000 | tag).to_be_bytes());
        piece[4..].copy_from_slice(&(sector as u32).to_be_bytes());
    }
    bytes
}

/// The tag of what a start state holds.
const AT_FIRST: u32 = 0x10_0000;
/// The tag of what an older snapshot holds.
const BEFORE: u32 = 0x20_0000;
/// The tag of what the oldest snapshot holds.
const LONG_BEFORE: u32 = 0x30_0000;
/// The tag of a backing file.
const BELOW: u32 = 0x40_0000;
/// The tag of the one that an image may be rebased to.
const OTHER_BELOW: u32 = 0x50_0000;

fn first(sector: usize) -> Bytes {
    stamp(AT_FIRST, sector)
}

/// Data, zeros and holes all over the disk.
fn mixed(builder: &mut Builder) {
    some_data(builder, AT_FIRST);
    builder.zero(8, false).zero(9, false).zero(10, true);
    builder.zero(66, true).zero(130, false);
}

fn some_data(builder: &mut Builder, tag: u32) {
    for cluster in [0, 1, 2, 3, 4, 20, 21, 62, 63, 64, 65, 128] {
        builder.data(cluster, |sector| stamp(tag, sector));
    }
}

fn below(sectors: usize) -> Vec<Bytes> {
    (0..sectors).map(|sector| stamp(BELOW, sector)).collect()
}

/// Another backing file, with the same content here and there.
fn other_below(sectors: usize) -> Vec<Bytes> {
    let mut other = below(sectors);
    for (sector, bytes) in other.iter_mut().enumerate() {
        match sector / 8 % 4 {
            1 => *bytes = stamp(OTHER_BELOW, sector),
            2 => *bytes = [0; SECTOR],
            _ => {}
        }
    }
    other
}

impl Start {
    /// Builds it.
    #[must_use]
    pub fn new(kind: StartKind, contents: &Contents) -> Self {
        let layout = layout_of(kind);
        let (built, backing) = build(kind, layout);
        let guest = |sectors: &[Bytes]| -> Vec<Content> {
            sectors.iter().map(|s| contents.intern_guest(s)).collect()
        };
        let size = |sectors: &[Bytes]| (sectors.len() * SECTOR) as u64;
        let freeze = |taken: &Taken| {
            Rc::new(Frozen {
                id: taken.id.clone(),
                name: taken.name.clone(),
                size: size(&taken.disk.sectors),
                sectors: guest(&taken.disk.sectors),
                vm_state_bytes: 0,
                vm_state: Vec::new(),
            })
        };
        let snapshots = built.snapshots.iter().map(freeze).collect();
        let sectors = &built.disk.sectors;
        let world = World::settled(size(sectors), guest(sectors), snapshots);
        let backing_bytes = backing.concat();
        // The place of the data file, which no image has that has a backing file.
        let mut data = built.data;
        if layout.backing.is_some() {
            let other = other_below(backing.len() - 7);
            guest(&other);
            data = other.concat();
        }
        let cluster_bytes = 1 << layout.cluster_bits;
        let entry_bytes = if layout.extended_l2 { 16 } else { 8 };
        Self {
            kind,
            files: [
                SimFile::new(contents, &built.image),
                SimFile::new(contents, &data),
                SimFile::new(contents, &backing_bytes),
            ],
            world,
            backing: guest(&backing),
            leaked: built.leaked,
            clean: !layout.dirty,
            bitmaps_apart: layout.filling == Some(extension::UNKNOWN),
            geometry: Geometry {
                cluster_bytes,
                table_bytes: cluster_bytes / entry_bytes * cluster_bytes,
                version: layout.version,
                has_backing: layout.backing.is_some(),
                backing_bytes: backing_bytes.len() as u64,
                has_data_file: layout.data_file.is_some(),
                can_share: layout.refcount_order > 0,
            },
            image: built.image,
            data,
            backing_bytes,
        }
    }
}

fn layout_of(kind: StartKind) -> Layout {
    let plain = Layout::default();
    let backing = Some(BACKING);
    match kind {
        StartKind::Empty
        | StartKind::Preallocated
        | StartKind::Mixed
        | StartKind::Compressed
        | StartKind::Snapshot
        | StartKind::TwoSnapshots
        | StartKind::Leaky
        | StartKind::LongL1 => plain,
        StartKind::Backing | StartKind::BackingSnapshot => Layout { backing, ..plain },
        StartKind::Dirty => Layout {
            lazy: true,
            dirty: true,
            ..plain
        },
        StartKind::Lazy => Layout {
            lazy: true,
            ..plain
        },
        StartKind::BlockFull | StartKind::TableFull => Layout {
            refcount_order: 6,
            ..plain
        },
        StartKind::ExtendedL2 => Layout {
            cluster_bits: 14,
            extended_l2: true,
            ..plain
        },
        StartKind::ExtendedL2Snapshot => Layout {
            cluster_bits: 14,
            extended_l2: true,
            backing,
            ..plain
        },
        StartKind::Version2 => Layout {
            version: 2,
            ..plain
        },
        StartKind::Version2Backing => Layout {
            version: 2,
            backing,
            ..plain
        },
        StartKind::DataFile => Layout {
            data_file: Some("guest.data"),
            ..plain
        },
        StartKind::OneBit => Layout {
            refcount_order: 0,
            ..plain
        },
        StartKind::Unaligned | StartKind::CompressedAlone => Layout {
            cluster_bits: 12,
            ..plain
        },
        StartKind::LargerClusters => Layout {
            cluster_bits: 12,
            refcount_order: 3,
            backing,
            ..plain
        },
        StartKind::BitmapBehindNames => Layout {
            cluster_bits: 12,
            bitmaps: 1,
            filling: Some(extension::FEATURE_NAMES),
            ..plain
        },
        StartKind::BitmapBehindUnknown => Layout {
            cluster_bits: 12,
            bitmaps: 16,
            filling: Some(extension::UNKNOWN),
            ..plain
        },
        StartKind::Autoclear => Layout {
            autoclear: 1 << 7,
            bitmaps: 1,
            ..plain
        },
    }
}

/// Builds the image; also the backing file's sectors.
fn build(kind: StartKind, layout: Layout) -> (Built, Vec<Bytes>) {
    let backing = match (layout.backing, layout.extended_l2) {
        (None, _) => Vec::new(),
        (Some(_), false) => below(140),
        // The backing file ends inside a subcluster.
        (Some(_), true) => below(101),
    };
    let sectors = match kind {
        StartKind::ExtendedL2 | StartKind::ExtendedL2Snapshot => 6 * 32,
        StartKind::Unaligned => 10 * 8 + 3,
        StartKind::CompressedAlone => 16 * 8,
        StartKind::BitmapBehindNames | StartKind::BitmapBehindUnknown => 12 * 8,
        StartKind::LongL1 => 64 * 66 + 33,
        StartKind::BlockFull => 64 + 8,
        _ => SECTORS,
    };
    let mut builder = Builder::new(layout, sectors, &backing);
    let mut fill = None;
    match kind {
        StartKind::Empty => {}
        StartKind::Preallocated => {
            for cluster in 0..sectors as u64 {
                builder.data(cluster, |_| [0; SECTOR]);
            }
        }
        StartKind::Mixed | StartKind::Lazy | StartKind::OneBit | StartKind::Autoclear => {
            mixed(&mut builder);
        }
        StartKind::Compressed => {
            builder.compressed(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], first);
            builder.compressed(&[61, 62, 63, 64, 65, 66], first);
            builder.data(10, first).data(70, first).zero(12, false);
            builder.compressed(&[20, 21, 128, 129], first);
        }
        StartKind::CompressedAlone => {
            for cluster in [0, 1, 2, 3, 4, 8, 9] {
                builder.compressed(&[cluster], first);
            }
            builder.data(5, first).zero(10, true);
        }
        StartKind::Snapshot => {
            mixed(&mut builder);
            builder.snapshot("1", "first");
        }
        StartKind::TwoSnapshots => {
            some_data(&mut builder, LONG_BEFORE);
            builder.zero(8, true);
            builder.snapshot("1", "first");
            for cluster in [1, 2, 5, 63, 64] {
                builder.data(cluster, |sector| stamp(BEFORE, sector));
            }
            builder.compressed(&[20, 21, 22], |sector| stamp(BEFORE, sector));
            builder.snapshot("2", "second");
            for cluster in [2, 3, 64, 129] {
                builder.data(cluster, first);
            }
            builder.zero(4, false);
        }
        StartKind::Backing => {
            mixed(&mut builder);
        }
        StartKind::BackingSnapshot => {
            some_data(&mut builder, BEFORE);
            builder.snapshot("1", "first");
            for cluster in [1, 2, 5, 63] {
                builder.data(cluster, first);
            }
            builder.zero(3, false).zero(20, true);
        }
        StartKind::Dirty => {
            mixed(&mut builder);
            for cluster in [5, 6, 67, 131] {
                builder.uncounted_data(cluster, first);
            }
            builder.leak(3);
        }
        StartKind::BlockFull => {
            for cluster in (0..20).chain(62..70) {
                builder.data(cluster, first);
            }
            builder.zero(30, false);
            fill = Some(64);
        }
        StartKind::TableFull => {
            mixed(&mut builder);
            fill = Some(64 * 64);
        }
        StartKind::ExtendedL2 => {
            builder.data(0, first).parts(1, 0xff, 0xff00, first);
            builder
                .zero(2, true)
                .parts(3, 0xf0f0, 0, first)
                .zero(4, false);
        }
        StartKind::ExtendedL2Snapshot => {
            builder.data(0, |sector| stamp(BEFORE, sector));
            builder.parts(1, 0xff, 0xff00, |sector| stamp(BEFORE, sector));
            builder.parts(3, 0xf00, 0xf, first);
            builder.snapshot("1", "first");
            builder.parts(2, 0xf0f0, 0xff0000, first).data(0, first);
        }
        StartKind::Version2 => {
            some_data(&mut builder, AT_FIRST);
            builder.compressed(&[6, 7, 8, 9], first);
            builder.snapshot("1", "first");
            builder.data(1, |sector| stamp(BEFORE, sector));
        }
        StartKind::Version2Backing | StartKind::DataFile => {
            some_data(&mut builder, AT_FIRST);
            if layout.version == 3 {
                builder.zero(8, false).zero(9, false);
            }
        }
        StartKind::Unaligned => {
            builder.data(0, first).data(1, first).data(2, first);
            builder.zero(5, false).zero(6, true).data(10, first);
        }
        StartKind::LargerClusters => {
            builder.data(0, first).data(1, first).zero(5, true);
            builder.compressed(&[2, 3, 6, 7], first);
            builder.snapshot("1", "first");
            builder.data(1, |sector| stamp(BEFORE, sector));
        }
        StartKind::BitmapBehindNames | StartKind::BitmapBehindUnknown => {
            builder
                .data(0, first)
                .data(1, first)
                .data(2, first)
                .zero(5, false);
        }
        StartKind::Leaky => {
            builder.leak(2);
            mixed(&mut builder);
            builder.leak(5);
        }
        StartKind::LongL1 => {
            for cluster in [0, 1, 2, 63, 64, 4160, 4161, 4223] {
                builder.data(cluster, |sector| stamp(BEFORE, sector));
            }
            builder.snapshot("1", "first");
            for cluster in [1, 64, 4161] {
                builder.data(cluster, first);
            }
        }
    }
    (builder.finish(fill), backing)
}
