//! What damaged tables do to an image that is open for writing: it is marked, and nothing else is changed. The
//! words are those of qemu-io 10.0.2 for the same damage.

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::FutureExt;

use crate::error::{Error, Result};
use crate::image::{Image, OpenOptions, ZeroMode};
use crate::qcow2::{COPIED, Incompatible};
use crate::storage::{AnyStorage, MemoryStorage, Storage};
use crate::units::GuestOffset;
use crate::{DenyAll, File, NewSnapshot};

/// Larger than a sector: an offset inside a cluster need not have reserved bits set.
const CLUSTER: usize = 1024;
const SIZE: u64 = CLUSTER as u64;

const fn cluster(index: u64) -> u64 {
    index * SIZE
}

/// A version 3 image made by hand: the header, the refcount table (cluster 1), a refcount block (2), the L1 table
/// (3), an L2 table (4) and data from cluster 5 on. The disk has 256 clusters, for which two L2 tables are needed.
struct Tiny {
    bytes: Vec<u8>,
}

impl Tiny {
    const L1: usize = 3 * CLUSTER;
    const L2: usize = 4 * CLUSTER;

    fn new(data: usize) -> Self {
        let mut tiny = Self {
            bytes: vec![0; (5 + data) * CLUSTER],
        };
        tiny.put32(0, 0x5146_49fb);
        tiny.put32(4, 3);
        tiny.put32(20, CLUSTER.ilog2());
        tiny.put64(24, 256 * SIZE);
        tiny.put32(36, 2);
        tiny.put64(40, Self::L1 as u64);
        tiny.put64(48, SIZE);
        tiny.put32(56, 1);
        tiny.put32(96, 4);
        tiny.put32(100, 104);
        tiny.put64(CLUSTER, cluster(2));
        tiny.put64(Self::L1, COPIED | Self::L2 as u64);
        (0..5 + data).for_each(|cluster| tiny.refcount(cluster, 1));
        (0..data).for_each(|index| tiny.entry(index, COPIED | cluster(5 + index as u64)));
        tiny
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn refcount(&mut self, cluster: usize, count: u16) {
        let at = 2 * CLUSTER + cluster * 2;
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn entry(&mut self, index: usize, value: u64) {
        self.put64(Self::L2 + index * 8, value);
    }

    /// Adds a snapshot whose L1 table is the two entries at cluster `l1`.
    fn snapshot(&mut self, l1: u64) {
        let table = self.bytes.len();
        self.bytes.resize(table + CLUSTER, 0);
        self.put64(table, cluster(l1));
        self.put32(table + 8, 2);
        self.put32(table + 36, 16);
        self.put64(table + 48, 256 * SIZE);
        self.put32(60, 1);
        self.put64(64, table as u64);
    }
}

fn now<F: Future>(future: F) -> F::Output {
    future.now_or_never().expect("memory is always ready")
}

fn bytes(storage: &MemoryStorage) -> Vec<u8> {
    let mut bytes = vec![0; now(storage.len()).unwrap() as usize];
    now(storage.read_at(0, &mut bytes)).unwrap();
    bytes
}

struct Opened {
    storage: Rc<MemoryStorage>,
    image: Image<AnyStorage>,
    told: Rc<RefCell<Vec<String>>>,
}

fn open(tiny: &Tiny, writable: bool) -> Opened {
    let storage = Rc::new(MemoryStorage::new(tiny.bytes.clone()));
    let file = File {
        storage: AnyStorage::new(storage.clone()),
        name: "tiny.qcow2".into(),
    };
    let options = OpenOptions {
        writable,
        ..OpenOptions::default()
    };
    let image = now(Image::open(file, &options, &DenyAll::default())).unwrap();
    let told = Rc::new(RefCell::new(Vec::new()));
    let list = told.clone();
    image.on_corruption(
        &(Rc::new(move |corruption: &crate::Corruption| {
            list.borrow_mut().push(corruption.to_string());
        }) as crate::OnCorruption),
    );
    Opened {
        storage,
        image,
        told,
    }
}

type Operation = fn(&Image<AnyStorage>) -> Result<()>;

fn write(image: &Image<AnyStorage>) -> Result<()> {
    now(image.write_at(GuestOffset(0), &[7; 10]))
}

fn write_new(image: &Image<AnyStorage>) -> Result<()> {
    now(image.write_at(GuestOffset(100 * SIZE), &[7; CLUSTER]))?;
    now(image.flush())
}

fn write_far(image: &Image<AnyStorage>) -> Result<()> {
    now(image.write_at(GuestOffset(200 * SIZE), &[7; CLUSTER]))?;
    now(image.flush())
}

fn read(image: &Image<AnyStorage>) -> Result<()> {
    now(image.read_at(GuestOffset(0), &mut [0; 10]))
}

fn map(image: &Image<AnyStorage>) -> Result<()> {
    now(image.extent_at(GuestOffset(0), SIZE)).map(drop)
}

fn compressed(image: &Image<AnyStorage>) -> Result<()> {
    now(image.write_compressed(GuestOffset(100 * SIZE), &[0; CLUSTER]))
}

fn snapshot(image: &Image<AnyStorage>) -> Result<()> {
    now(image.create_snapshot(&NewSnapshot::default())).map(drop)
}

/// Name, damage, what is done, what is said.
type Case = (&'static str, fn(&mut Tiny), Operation, &'static str);

const CASES: &[Case] = &[
    (
        "an L2 table between clusters, written",
        |tiny| tiny.put64(Tiny::L1, COPIED | (cluster(4) + 0x200)),
        write,
        "L2 table offset 0x1200 unaligned (L1 index: 0)",
    ),
    (
        "an L2 table between clusters, read",
        |tiny| tiny.put64(Tiny::L1, COPIED | (cluster(4) + 0x200)),
        read,
        "L2 table offset 0x1200 unaligned (L1 index: 0)",
    ),
    (
        "an L2 table between clusters, in a transaction",
        |tiny| tiny.put64(Tiny::L1, COPIED | (cluster(4) + 0x200)),
        snapshot,
        "L2 table offset 0x1200 unaligned (L1 index: 0)",
    ),
    (
        "the L1 table as an L2 table",
        |tiny| tiny.put64(Tiny::L1, COPIED | cluster(3)),
        write,
        "Preventing invalid write on metadata (overlaps with active L1 table)",
    ),
    (
        "data between clusters, read",
        |tiny| tiny.entry(0, COPIED | (cluster(5) + 0x200)),
        read,
        "Cluster allocation offset 0x1600 unaligned (L2 offset: 0x1000, L2 index: 0)",
    ),
    (
        "data between clusters, looked at",
        |tiny| tiny.entry(0, COPIED | (cluster(5) + 0x200)),
        map,
        "Cluster allocation offset 0x1600 unaligned (L2 offset: 0x1000, L2 index: 0)",
    ),
    (
        "data between clusters, written",
        |tiny| tiny.entry(0, COPIED | (cluster(5) + 0x200)),
        write,
        "Data cluster offset 0x1600 unaligned (guest offset: 0)",
    ),
    (
        "zeros between clusters, written",
        |tiny| tiny.entry(0, COPIED | (cluster(5) + 0x201)),
        write,
        "Preallocated zero cluster offset 0x1600 unaligned (guest offset: 0)",
    ),
    (
        "data in a refcount block",
        |tiny| tiny.entry(0, COPIED | cluster(2)),
        write,
        "Preventing invalid write on metadata (overlaps with refcount block)",
    ),
    (
        "data in an L2 table",
        |tiny| tiny.entry(0, COPIED | cluster(4)),
        write,
        "Preventing invalid write on metadata (overlaps with active L2 table)",
    ),
    (
        "a free header, for data",
        |tiny| tiny.refcount(0, 0),
        write_new,
        "Preventing invalid write on metadata (overlaps with qcow2_header)",
    ),
    (
        "a free header, for a table",
        |tiny| tiny.refcount(0, 0),
        write_far,
        "Preventing invalid allocation of L2 table at offset 0",
    ),
    (
        "a free header, for compressed data",
        |tiny| tiny.refcount(0, 0),
        compressed,
        "Preventing invalid allocation of compressed cluster at offset 0",
    ),
    (
        "a free refcount table",
        |tiny| tiny.refcount(1, 0),
        write_new,
        "Preventing invalid write on metadata (overlaps with refcount table)",
    ),
    (
        "a refcount block between clusters",
        |tiny| tiny.put64(CLUSTER, cluster(2) + 0x200),
        write_new,
        "Refblock offset 0xa00 unaligned (reftable index: 0)",
    ),
];

#[test]
fn damage_marks_the_image_and_changes_nothing_else() {
    for (name, damage, operation, what) in CASES {
        let mut tiny = Tiny::new(4);
        damage(&mut tiny);
        let Opened {
            storage,
            image,
            told,
        } = open(&tiny, true);
        let error = operation(&image).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{name}: {error:?}");
        assert_eq!(error.to_string(), *what, "{name}");
        let said = format!(
            "Marking image as corrupt: {what}; further corruption events will be suppressed"
        );
        assert_eq!(*told.borrow(), [said], "{name}");
        let mut expected = tiny.bytes.clone();
        expected[79] |= Incompatible::CORRUPT.0 as u8;
        let before = bytes(&storage);
        assert!(before[..expected.len()] == expected, "{name}");

        // Nothing more is read or written.
        for refused in [read(&image), write_new(&image), now(image.flush())] {
            assert!(matches!(refused, Err(Error::Stopped(_))), "{name}");
        }
        assert_eq!(image.marked_corrupt().as_deref(), Some(*what), "{name}");
        assert_eq!(told.borrow().len(), 1, "{name}");
        assert!(bytes(&storage) == before, "{name}");

        // And whoever comes next is refused, unless he repairs.
        let file = File {
            storage: storage.clone(),
            name: "tiny.qcow2".into(),
        };
        let options = OpenOptions {
            writable: true,
            ..OpenOptions::default()
        };
        let refused = now(Image::open(file, &options, &DenyAll::default())).map(drop);
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "{name}");
    }
}

#[test]
fn what_was_written_before_and_not_flushed_is_not_published() {
    let mut tiny = Tiny::new(4);
    tiny.entry(1, COPIED | (cluster(6) + 0x200));
    let Opened { storage, image, .. } = open(&tiny, true);
    now(image.write_at(GuestOffset(100 * SIZE), &[7; CLUSTER])).unwrap();
    now(image.read_at(GuestOffset(SIZE), &mut [0; 10])).unwrap_err();
    let after = bytes(&storage);
    assert_eq!(after[79], 2);
    // The tables are as they were.
    assert!(after[80..Tiny::L2 + CLUSTER] == tiny.bytes[80..Tiny::L2 + CLUSTER]);
}

#[test]
fn readers_are_told_and_mark_nothing() {
    let mut tiny = Tiny::new(4);
    tiny.entry(0, COPIED | (cluster(5) + 0x200));
    let Opened {
        storage,
        image,
        told,
    } = open(&tiny, false);
    read(&image).unwrap_err();
    map(&image).unwrap_err();
    now(image.read_at(GuestOffset(SIZE), &mut [0; 10])).unwrap();
    assert_eq!(
        *told.borrow(),
        [
            "Image is corrupt: Cluster allocation offset 0x1600 unaligned (L2 offset: 0x1000, L2 index: 0); \
             further non-fatal corruption events will be suppressed"
        ]
    );
    assert_eq!(image.marked_corrupt(), None);
    assert!(bytes(&storage) == tiny.bytes);
}

#[test]
fn version_2_has_no_place_for_the_mark_and_stops_all_the_same() {
    let mut tiny = Tiny::new(4);
    tiny.put32(4, 2);
    tiny.put64(96, 0);
    tiny.entry(0, COPIED | (cluster(5) + 0x200));
    let Opened { storage, image, .. } = open(&tiny, true);
    write(&image).unwrap_err();
    assert!(matches!(write_new(&image), Err(Error::Stopped(_))));
    assert!(bytes(&storage) == tiny.bytes);
}

#[test]
fn what_is_given_up_as_a_whole_may_lie_between_clusters() {
    let operations: [(Operation, &str); 2] = [
        (
            |image| now(image.discard(GuestOffset(0), SIZE)),
            "discarded",
        ),
        (
            |image| now(image.write_zeroes(GuestOffset(0), SIZE, ZeroMode::Unmap)),
            "zeroed",
        ),
    ];
    for (operation, name) in operations {
        let mut tiny = Tiny::new(4);
        tiny.entry(0, COPIED | (cluster(5) + 0x200));
        let Opened {
            storage,
            image,
            told,
        } = open(&tiny, true);
        operation(&image).unwrap();
        now(image.close()).unwrap();
        assert_eq!(
            *told.borrow(),
            [
                "Image is corrupt: Cannot free unaligned cluster 0x1600; further non-fatal corruption events will \
                 be suppressed"
            ],
            "{name}"
        );
        let mut disk = [1; 10];
        now(image.read_at(GuestOffset(0), &mut disk)).unwrap();
        assert_eq!(disk, [0; 10], "{name}");
        assert_eq!(bytes(&storage)[79], 0, "{name}");
    }
}

#[test]
fn the_l1_table_of_a_snapshot_is_not_written_over() {
    let mut tiny = Tiny::new(4);
    tiny.bytes.resize(10 * CLUSTER, 0);
    tiny.refcount(9, 1);
    tiny.snapshot(9);
    tiny.refcount(10, 1);
    tiny.entry(0, COPIED | cluster(9));
    let Opened { image, told, .. } = open(&tiny, true);
    write(&image).unwrap_err();
    assert!(
        told.borrow()[0].contains("(overlaps with inactive L1 table)"),
        "{told:?}"
    );
}
