//! Whole checks of small images made by hand. What is expected was seen from qemu-img 10.0.2 on the same
//! bytes (set `OXCOW_KEEP_CHECKED` to a folder to have them written there).

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use futures_util::FutureExt;

use super::tiny::{CLUSTER, COPIED, Said, Tiny, cluster};
use super::*;
use crate::storage::AnyStorage;
use crate::{DenyAll, File, Format, Image, MemoryStorage, OpenOptions};

fn open(storage: impl Storage + 'static) -> Image<AnyStorage> {
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        ..OpenOptions::default()
    };
    let file = File {
        storage: AnyStorage::new(storage),
        name: "tiny.qcow2".into(),
    };
    Image::open(file, &options, &DenyAll::default())
        .now_or_never()
        .unwrap()
        .unwrap()
}

fn check_bytes(bytes: Vec<u8>, counter_bytes: usize) -> (CheckReport, Vec<String>) {
    let image = open(MemoryStorage::new(bytes));
    let mut said = Said::default();
    let options = CheckOptions { counter_bytes };
    let report = check_with(image.top().as_qcow2().unwrap(), &options, &mut said)
        .now_or_never()
        .unwrap()
        .unwrap();
    (report, said.0)
}

fn check_tiny(name: &str, tiny: Tiny) -> (CheckReport, Vec<String>) {
    if let Some(folder) = std::env::var_os("OXCOW_KEEP_CHECKED") {
        std::fs::write(std::path::Path::new(&folder).join(name), &tiny.bytes).unwrap();
    }
    check_bytes(tiny.bytes, 1 << 20)
}

#[test]
fn a_sound_image() {
    let mut tiny = Tiny::new(10);
    // Two clusters in the wrong order: a jump there, one back, and one on.
    tiny.entry(3, COPIED | cluster(9));
    tiny.entry(4, COPIED | cluster(8));
    // Whether it is known to be dirty or corrupt changes nothing.
    tiny.put64(72, 3);
    let (report, said) = check_tiny("sound", tiny);
    let expected = CheckReport {
        image_end_offset: cluster(15),
        total_clusters: 128,
        allocated_clusters: 10,
        fragmented_clusters: 3,
        ..CheckReport::default()
    };
    assert_eq!(report, expected);
    assert!(report.is_clean() && said.is_empty());
}

#[test]
fn refcounts_that_are_wrong_either_way() {
    let mut tiny = Tiny::new(4);
    tiny.refcount(5, 0);
    tiny.refcount(6, 3);
    tiny.refcount(8, 2);
    tiny.entry(3, 0);
    tiny.refcount(40, 1);
    let (report, said) = check_tiny("refcounts", tiny);
    assert_eq!(
        (report.corruptions, report.leaks, report.image_end_offset),
        (3, 2, cluster(9))
    );
    assert_eq!(
        said,
        [
            "ERROR cluster 5 refcount=0 reference=1",
            "Leaked cluster 6 refcount=3 reference=1",
            "Leaked cluster 8 refcount=2 reference=0",
            "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000000a00 refcount=0",
            "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000000c00 refcount=3",
        ]
    );
}

#[test]
fn copied_flags_alone() {
    let mut tiny = Tiny::new(2);
    tiny.entry(1, cluster(6));
    tiny.put64(Tiny::L1, Tiny::L2 as u64);
    let (report, said) = check_tiny("copied", tiny);
    assert_eq!((report.corruptions, report.leaks), (2, 0));
    assert_eq!(
        said,
        [
            "ERROR OFLAG_COPIED L2 cluster: l1_index=0 l1_entry=800 refcount=1",
            "ERROR OFLAG_COPIED data cluster: l2_entry=c00 refcount=1",
        ]
    );
}

#[test]
fn entries_that_cannot_be() {
    let mut tiny = Tiny::new(6);
    tiny.entry(0, COPIED | cluster(5) | 1 << 8);
    // An offset of 512-byte clusters is always aligned: the others leave the file, or are compressed.
    tiny.entry(2, COPIED | cluster(11));
    tiny.entry(3, COPIED | 1 << 62 | cluster(8));
    tiny.entry(4, 1 << 62 | 1 << 61 | (cluster(9) + 100));
    tiny.put64(Tiny::L1 + 8, 1 << 56 | cluster(12));
    let (report, said) = check_tiny("entries", tiny);
    assert_eq!(
        said[..6],
        [
            "ERROR found l2 entry with reserved bits set: 8000000000000b00",
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
             offset 0x1600 size 0x200",
            "ERROR: coffset=0x1000: copied flag must never be set for compressed clusters",
            "ERROR found L1 entry with reserved bits set: 100000000001800",
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
             offset 0x1800 size 0x200",
            "Leaked cluster 7 refcount=1 reference=0",
        ]
    );
    assert_eq!(
        (report.allocated_clusters, report.compressed_clusters),
        (6, 2)
    );
    assert_eq!((report.fragmented_clusters, report.leaks), (4, 1));
    assert_eq!(report.corruptions as usize, said.len() - 1);
}

#[test]
fn a_table_that_two_entries_share_counts_twice() {
    let mut tiny = Tiny::new(3);
    tiny.put64(Tiny::L1 + 8, COPIED | Tiny::L2 as u64);
    let (report, said) = check_tiny("twice", tiny);
    assert_eq!(
        (report.allocated_clusters, report.corruptions, report.leaks),
        (6, 4, 0)
    );
    assert_eq!(said[0], "ERROR cluster 4 refcount=1 reference=2");
    assert_eq!(said[3], "ERROR cluster 7 refcount=1 reference=2");
}

#[test]
fn references_that_a_refcount_cannot_count() {
    let mut tiny = Tiny::new(3);
    // Refcounts of one bit; the third data cluster is the second once more.
    tiny.put32(96, 0);
    tiny.bytes[Tiny::BLOCK..Tiny::BLOCK + 32].fill(0);
    tiny.bytes[Tiny::BLOCK] = 0b0111_1111;
    tiny.entry(2, COPIED | cluster(6));
    let (report, said) = check_tiny("overflow", tiny);
    assert_eq!(
        (report.corruptions, report.leaks, report.image_end_offset),
        (1, 0, cluster(7))
    );
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("ERROR: overflow cluster offset=0xc00\nUse qemu-img amend"));
}

#[test]
fn refcount_structures_that_cannot_be() {
    let mut tiny = Tiny::new(3);
    tiny.put64(CLUSTER + 8, 0x1_0000);
    tiny.put64(CLUSTER + 16, 3);
    tiny.put64(CLUSTER + 24, Tiny::L1 as u64);
    let (report, said) = check_tiny("blocks", tiny);
    assert_eq!(
        said,
        [
            "ERROR refcount block 1 is outside image",
            "ERROR refcount table entry 2 has reserved bits set",
            "ERROR refcount block 3 refcount=2",
            "ERROR cluster 3 refcount=1 reference=2",
        ]
    );
    assert_eq!((report.corruptions, report.leaks), (4, 0));
}

#[test]
fn snapshots_are_counted_by_their_own_tables() {
    let mut tiny = Tiny::new(2);
    tiny.snapshots(2, Tiny::L1, 2);
    // Two snapshots and the active state use the same tables; the snapshot table is cluster 7.
    for cluster in 3..7 {
        tiny.refcount(cluster, 3);
    }
    tiny.refcount(7, 1);
    tiny.put64(Tiny::L1, Tiny::L2 as u64);
    tiny.entry(0, cluster(5));
    tiny.entry(1, cluster(6));
    let (report, said) = check_tiny("snapshots", tiny);
    assert_eq!(said, [] as [&str; 0]);
    assert_eq!(
        (report.allocated_clusters, report.image_end_offset),
        (2, cluster(8))
    );
}

#[test]
fn a_damaged_table_of_many_snapshots_counts_for_each() {
    let mut tiny = Tiny::new(2);
    tiny.snapshots(3, Tiny::L1, 2);
    tiny.entry(0, 1 << 40 | cluster(5));
    // The last entry, without extra data.
    let extra_bytes_at = 7 * CLUSTER + 2 * 56 + 39;
    tiny.bytes[extra_bytes_at] = 0;
    let (report, said) = check_tiny("each", tiny);
    let past_end = said
        .iter()
        .filter(|line| line.contains("offset 0x10000000a00"))
        .count();
    assert_eq!(past_end, 4, "{said:#?}");
    assert_eq!(said[0], "ERROR snapshot table entry 2 is incomplete");
    assert_eq!(report.corruptions + report.leaks, said.len() as u64);
}

#[test]
fn the_last_sector_counts_as_a_whole() {
    let mut tiny = Tiny::new(2);
    tiny.snapshots(1, cluster(9) as usize, 2);
    tiny.refcount(7, 1);
    tiny.bytes.resize(cluster(8) as usize + 12, 0);
    let (report, said) = check_tiny("sector", tiny);
    assert_eq!(said, ["ERROR cluster 9 refcount=0 reference=1"]);
    assert_eq!(report.image_end_offset, cluster(10));
}

/// Counts the bytes that are read.
struct Counting {
    inner: MemoryStorage,
    read: Cell<u64>,
}

impl Storage for Counting {
    async fn len(&self) -> io::Result<u64> {
        self.inner.len().await
    }
    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read.set(self.read.get() + buf.len() as u64);
        self.inner.read_at(offset, buf).await
    }
    async fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        unreachable!("a check does not write")
    }
    async fn set_len(&self, _: u64) -> io::Result<()> {
        unreachable!("a check does not write")
    }
    async fn flush(&self) -> io::Result<()> {
        unreachable!("a check does not write")
    }
    fn queue_depth(&self) -> usize {
        4
    }
}

#[test]
fn the_work_is_bounded_by_the_file_and_not_by_what_it_claims() {
    // 65,536 snapshots with 4,096 L1 entries each, all at the same place, all to the same table: read
    // one by one these would be 17 billion table entries.
    let mut tiny = Tiny::new(2);
    let l1 = tiny.bytes.len();
    let slots: Vec<u8> = (0..4096)
        .flat_map(|_| (Tiny::L2 as u64).to_be_bytes())
        .collect();
    tiny.bytes.extend(slots);
    tiny.snapshots(65536, l1, 4096);
    let file_bytes = tiny.bytes.len() as u64;
    let storage = Rc::new(Counting {
        inner: MemoryStorage::new(tiny.bytes),
        read: Cell::new(0),
    });
    let image = open(storage.clone());
    let qcow2 = image.top().as_qcow2().unwrap();
    storage.read.set(0);
    let report = check(qcow2, &mut ()).now_or_never().unwrap().unwrap();
    // The table's cluster, the two data clusters, the L1 clusters, and what has no refcount at all.
    assert!(report.corruptions > 3);
    let read = storage.read.get();
    assert!(
        read < 3 * file_bytes,
        "{read} bytes read of a file of {file_bytes}"
    );
}

/// An image of more clusters than three pages of the counter, with tables of random entries.
fn crowded() -> Tiny {
    const CLUSTERS: u64 = 60_000;
    const L1: u64 = 1000;
    const REFCOUNT_TABLE: u64 = 2000;
    const BLOCKS: u64 = 3000;
    const L2: u64 = 4000;
    const TABLES: u64 = 600;
    let mut state = 99u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut tiny = Tiny::new(0);
    tiny.bytes.resize(cluster(CLUSTERS) as usize, 0);
    tiny.put64(24, TABLES * cluster(64));
    tiny.put32(36, TABLES as u32);
    tiny.put64(40, cluster(L1));
    tiny.put32(56, 10);
    tiny.put64(48, cluster(REFCOUNT_TABLE));
    for block in 0..CLUSTERS / 256 {
        let entry_at = (cluster(REFCOUNT_TABLE) + block * 8) as usize;
        tiny.put64(entry_at, cluster(BLOCKS + block));
        tiny.put64(cluster(BLOCKS + block) as usize + 64, random(1 << 18));
    }
    for table in 0..TABLES {
        let entry_at = (cluster(L1) + table * 8) as usize;
        let flag = random(2) << 63;
        tiny.put64(entry_at, cluster(L2 + table) | flag);
        for index in 0..64 {
            let entry_at = (cluster(L2 + table) + index * 8) as usize;
            let flags = random(2) << 63 | (random(8) / 7) << 62;
            tiny.put64(entry_at, cluster(random(CLUSTERS + 10)) | flags);
        }
    }
    tiny
}

#[test]
fn a_tiny_budget_finds_the_same() {
    let bytes = crowded().bytes;
    let (wide, mut wide_said) = check_tiny("crowded", crowded());
    assert!(wide.corruptions > 30_000 && wide.leaks > 300 && wide.allocated_clusters > 30_000);
    wide_said.sort_unstable();
    for counter_bytes in [0, 10_000] {
        let (narrow, mut narrow_said) = check_bytes(bytes.clone(), counter_bytes);
        narrow_said.sort_unstable();
        assert_eq!(narrow, wide);
        assert!(narrow_said == wide_said, "the same problems");
    }
}

#[test]
fn who_watches_can_stop_it() {
    struct Stop(u64);
    impl Watcher for Stop {
        fn problem(&mut self, _: &Problem) {}
        fn progress(&mut self, done: u64, total: u64) -> bool {
            assert!(done <= total);
            self.0 -= 1;
            self.0 > 0
        }
    }
    let image = open(MemoryStorage::new(Tiny::new(3).bytes));
    for steps in 1..=2 {
        let result = check(image.top().as_qcow2().unwrap(), &mut Stop(steps))
            .now_or_never()
            .unwrap();
        assert!(matches!(result, Err(Error::Cancelled)));
    }
    check(image.top().as_qcow2().unwrap(), &mut Stop(1000))
        .now_or_never()
        .unwrap()
        .unwrap();
}
