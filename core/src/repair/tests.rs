//! Repairs of small images made by hand. How many problems are repaired was seen from qemu-img 10.0.2 on the
//! same bytes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

use futures_util::FutureExt;

use super::*;
use crate::check::tiny::{CLUSTER, COPIED, Said, Tiny, cluster};
use crate::storage::AnyStorage;
use crate::{DenyAll, File, Format, GuestOffset, MemoryStorage, OpenOptions};

/// A storage that keeps what was asked of it.
#[derive(Clone, Default)]
struct Recorded(Rc<Record>);

#[derive(Default)]
struct Record {
    bytes: MemoryStorage,
    requests: RefCell<Vec<Request>>,
    flushes: Cell<u64>,
}

#[derive(Clone)]
enum Request {
    Write(u64, Vec<u8>),
    Flush,
}

impl Recorded {
    fn new(bytes: Vec<u8>) -> Self {
        let bytes = MemoryStorage::new(bytes);
        Self(Rc::new(Record {
            bytes,
            ..Record::default()
        }))
    }

    fn bytes(&self) -> Vec<u8> {
        let length = now(self.0.bytes.len()).unwrap();
        let mut bytes = vec![0; length as usize];
        now(self.0.bytes.read_at(0, &mut bytes)).unwrap();
        bytes
    }
}

impl Storage for Recorded {
    async fn len(&self) -> io::Result<u64> {
        self.0.bytes.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.bytes.read_at(offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let request = Request::Write(offset, data.to_vec());
        self.0.requests.borrow_mut().push(request);
        self.0.bytes.write_at(offset, data).await
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a repair never changes the length by itself")
    }

    async fn flush(&self) -> io::Result<()> {
        self.0.requests.borrow_mut().push(Request::Flush);
        self.0.flushes.set(self.0.flushes.get() + 1);
        Ok(())
    }
}

fn now<F: Future>(future: F) -> F::Output {
    future.now_or_never().expect("memory is always ready")
}

fn try_open(storage: Recorded, writable: bool, repair: bool) -> Result<Image<AnyStorage>> {
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        writable,
        repair,
        ..OpenOptions::default()
    };
    let file = File {
        storage: AnyStorage::new(storage),
        name: "tiny.qcow2".into(),
    };
    now(Image::open(file, &options, &DenyAll::default()))
}

fn open(bytes: &[u8]) -> Image<AnyStorage> {
    try_open(Recorded::new(bytes.to_vec()), true, true).unwrap()
}

struct Done {
    bytes: Vec<u8>,
    report: RepairReport,
    said: Vec<String>,
    requests: Vec<Request>,
}

impl Done {
    fn fixed(&self) -> (u64, u64) {
        (self.report.leaks_fixed, self.report.corruptions_fixed)
    }

    fn writes(&self) -> usize {
        let writes = |request: &&Request| matches!(request, Request::Write(..));
        self.requests.iter().filter(writes).count()
    }
}

fn try_repair(bytes: &[u8], mode: RepairMode, counter_bytes: usize) -> Result<Done> {
    let storage = Recorded::new(bytes.to_vec());
    let image = try_open(storage.clone(), true, true)?;
    let mut said = Said::default();
    let options = CheckOptions { counter_bytes };
    let report = now(repair_with(&image, mode, &options, &mut said))?;
    let done = Done {
        bytes: storage.bytes(),
        report,
        said: said.0,
        requests: storage.0.requests.take(),
    };
    // What the image is now is also what it thinks that it is.
    let again = now(repair(&image, mode, &mut ())).unwrap();
    assert!(!again.has_repaired());
    assert_eq!(storage.0.requests.borrow().len(), 0);
    Ok(done)
}

fn repaired(bytes: &[u8], mode: RepairMode) -> Done {
    if let Some(folder) = std::env::var_os("OXCOW_KEEP_CHECKED") {
        let name = std::thread::current()
            .name()
            .unwrap_or("x")
            .replace(':', "_");
        std::fs::write(std::path::Path::new(&folder).join(name), bytes).unwrap();
    }
    let done = try_repair(bytes, mode, 1 << 20).unwrap();
    let windows = try_repair(bytes, mode, 0).unwrap();
    assert_eq!(windows.bytes, done.bytes, "in windows of one page");
    done
}

fn problems(bytes: &[u8]) -> (CheckReport, Vec<String>) {
    let image = try_open(Recorded::new(bytes.to_vec()), false, false).unwrap();
    let mut said = Said::default();
    let report = now(check::check(image.top().as_qcow2().unwrap(), &mut said)).unwrap();
    (report, said.0)
}

fn assert_clean(bytes: &[u8]) {
    let (report, said) = problems(bytes);
    assert!(report.is_clean(), "{said:?}");
}

fn disk(bytes: &[u8]) -> Vec<u8> {
    let image = try_open(Recorded::new(bytes.to_vec()), false, false).unwrap();
    let mut disk = vec![0; image.virtual_size() as usize];
    now(image.read_at(GuestOffset(0), &mut disk)).unwrap();
    disk
}

/// An image whose data clusters can be told apart.
fn tiny(data: usize) -> Tiny {
    let mut tiny = Tiny::new(data);
    for index in 0..data {
        tiny.bytes[(5 + index) * CLUSTER..][..CLUSTER].fill(index as u8 + 1);
    }
    tiny
}

#[test]
fn a_sound_image_is_left_alone() {
    let tiny = tiny(4);
    for mode in [RepairMode::Leaks, RepairMode::All] {
        let done = repaired(&tiny.bytes, mode);
        assert_eq!(done.fixed(), (0, 0));
        assert_eq!(done.writes(), 0);
        assert_eq!(done.report.found.image_end_offset, cluster(9));
    }
}

#[test]
fn leaks_are_given_back_aside() {
    let mut tiny = tiny(6);
    tiny.refcount(6, 3);
    tiny.refcount(10, 1);
    tiny.entry(5, 0);
    let done = repaired(&tiny.bytes, RepairMode::Leaks);
    assert_eq!(done.fixed(), (2, 0));
    assert_eq!(
        done.said,
        [
            "Leaked cluster 6 refcount=3 reference=1",
            "Leaked cluster 10 refcount=1 reference=0",
            "Repairing cluster 6 refcount=3 reference=1",
            "Repairing cluster 10 refcount=1 reference=0",
        ]
    );
    assert_clean(&done.bytes);
    assert_eq!(disk(&done.bytes), disk(&tiny.bytes));
    // A block and a table, in clusters that were free, and the switch.
    let places: Vec<u64> = done
        .requests
        .iter()
        .filter_map(|request| match request {
            Request::Write(offset, _) => Some(*offset),
            Request::Flush => None,
        })
        .collect();
    assert_eq!(places.len(), 3);
    assert_eq!(places[2], 0);
    assert!(
        places[..2].iter().all(|place| *place >= cluster(11)),
        "{places:?}"
    );
    let order = |request: &Request| match request {
        Request::Write(..) => 'w',
        Request::Flush => 'f',
    };
    let order: String = done.requests.iter().map(order).collect();
    assert_eq!(order, "fwwfwf", "the first one is that of opening");
}

#[test]
fn free_clusters_in_the_file_are_used_first() {
    let mut tiny = tiny(8);
    for free in [7, 9] {
        tiny.entry(free - 5, 0);
        tiny.refcount(free, 0);
    }
    tiny.refcount(12, 2);
    let done = repaired(&tiny.bytes, RepairMode::All);
    assert_clean(&done.bytes);
    assert_eq!(done.bytes.len(), tiny.bytes.len());
}

#[test]
fn refcounts_that_are_too_low_are_raised() {
    let mut tiny = tiny(4);
    // The last data cluster is the first one too.
    tiny.entry(3, COPIED | cluster(5));
    tiny.refcount(8, 0);
    let leaks = repaired(&tiny.bytes, RepairMode::Leaks);
    assert_eq!((leaks.fixed(), leaks.writes()), ((0, 0), 0));
    assert_eq!(leaks.report.found.corruptions, 1);
    assert_eq!(
        leaks.said, ["ERROR cluster 5 refcount=1 reference=2"; 2],
        "COPIED is judged by the refcount that is stored"
    );
    let done = repaired(&tiny.bytes, RepairMode::All);
    assert_eq!(done.fixed(), (0, 3));
    assert_eq!(
        done.said,
        [
            "ERROR cluster 5 refcount=1 reference=2",
            "Repairing cluster 5 refcount=1 reference=2",
            "Repairing OFLAG_COPIED data cluster: l2_entry=8000000000000a00 refcount=2",
            "Repairing OFLAG_COPIED data cluster: l2_entry=8000000000000a00 refcount=2",
        ]
    );
    assert_clean(&done.bytes);
    assert_eq!(disk(&done.bytes), disk(&tiny.bytes));
}

#[test]
fn flags_alone_are_made_right_in_copies() {
    let mut tiny = tiny(3);
    tiny.entry(1, cluster(6));
    tiny.put64(Tiny::L1, Tiny::L2 as u64);
    for mode in [RepairMode::Leaks, RepairMode::All] {
        let done = repaired(&tiny.bytes, mode);
        assert_eq!(done.fixed(), (0, 2));
        assert_clean(&done.bytes);
        assert_eq!(disk(&done.bytes), disk(&tiny.bytes));
        let old = Tiny::L1..Tiny::L2 + CLUSTER;
        assert_eq!(
            done.bytes[old.clone()],
            tiny.bytes[old],
            "the old tables are as they were"
        );
    }
}

#[test]
fn broken_refcount_structures_are_built_anew() {
    type Break = (&'static str, fn(&mut Tiny), u64);
    // How many corruptions each one is.
    let breaks: &[Break] = &[
        ("a cluster in use counts as free", |t| t.refcount(5, 0), 1),
        (
            "reserved bits",
            |t| t.put64(CLUSTER, Tiny::BLOCK as u64 | 3),
            1,
        ),
        ("on the L1 table", |t| t.put64(CLUSTER, Tiny::L1 as u64), 0),
        ("on guest data", |t| t.put64(CLUSTER, cluster(6)), 0),
        ("past the end", |t| t.put64(CLUSTER, cluster(40)), 0),
        ("lost", |t| t.put64(CLUSTER, 0), 0),
        ("twice", |t| t.put64(CLUSTER + 8, Tiny::BLOCK as u64), 2),
        ("an entry that is none", |t| t.put64(CLUSTER + 16, 0x155), 1),
    ];
    for (name, change, corruptions) in breaks {
        let mut tiny = tiny(4);
        change(&mut tiny);
        let found = problems(&tiny.bytes).0;
        let done = repaired(&tiny.bytes, RepairMode::All);
        assert_clean(&done.bytes);
        assert_eq!(disk(&done.bytes), disk(&tiny.bytes), "{name}");
        assert!(done.report.found.is_clean(), "{name}");
        if *corruptions > 0 {
            assert_eq!(done.report.corruptions_fixed, *corruptions, "{name}");
        }
        assert!(
            done.report.corruptions_fixed > 0 && found.corruptions > 0,
            "{name}"
        );
        if *name != "past the end" {
            assert!(
                done.said
                    .contains(&"Rebuilding refcount structure".to_owned()),
                "{name}"
            );
        }
        let storage = Recorded::new(tiny.bytes.clone());
        let image = try_open(storage.clone(), true, true).unwrap();
        let mut said = Said::default();
        let refused = now(repair(&image, RepairMode::Leaks, &mut said)).unwrap_err();
        assert_eq!(refused.to_string(), "Input/output error", "{name}");
        assert_eq!(
            said.0.last().unwrap(),
            "ERROR need to rebuild refcount structures"
        );
        assert_eq!(storage.bytes(), tiny.bytes);
    }
}

#[test]
fn an_image_without_its_refcount_table_opens_for_repair_only() {
    type Break = (&'static str, fn(&mut Tiny));
    let breaks: &[Break] = &[
        ("of no clusters", |t| t.put32(56, 0)),
        ("unaligned", |t| t.put64(48, 600)),
        ("past the end", |t| t.put64(48, cluster(1000))),
        ("on the L1 table", |t| t.put64(48, cluster(3))),
        ("far away", |t| t.put64(48, 1 << 63)),
        ("too large", |t| t.put32(56, u32::MAX)),
    ];
    for (name, change) in breaks {
        let sound = tiny(4);
        let mut tiny = tiny(4);
        change(&mut tiny);
        assert!(
            try_open(Recorded::new(tiny.bytes.clone()), true, false).is_err(),
            "{name}"
        );
        let image = open(&tiny.bytes);
        let refused = now(image.write_at(GuestOffset(0), &[1])).unwrap_err();
        assert!(
            matches!(refused, Error::Corrupt { .. }),
            "{name}: {refused}"
        );
        let done = repaired(&tiny.bytes, RepairMode::All);
        assert!(done.report.found.is_clean(), "{name}");
        assert_clean(&done.bytes);
        assert_eq!(disk(&done.bytes), disk(&sound.bytes), "{name}");
    }
    // Two tables in one place that are both needed are more than this repairs.
    let mut tiny = tiny(4);
    tiny.put64(40, 0);
    assert!(try_open(Recorded::new(tiny.bytes), true, true).is_err());
}

#[test]
fn what_points_past_the_end_is_told_of_and_stays() {
    let mut tiny = tiny(4);
    tiny.entry(3, COPIED | cluster(60));
    tiny.refcount(6, 2);
    let before = tiny.bytes.clone();
    // Native qemu-img 10.0.2 gives the two leaks back, too, and takes the flag from the entry with `-r all`.
    for (mode, flags) in [(RepairMode::Leaks, 0), (RepairMode::All, 1)] {
        let done = repaired(&before, mode);
        assert_eq!(done.fixed(), (2, flags));
        let (found, said) = problems(&done.bytes);
        assert_eq!((found.leaks, found.corruptions), (0, 2 - flags));
        assert!(
            said[0].contains("exceeding the end of the file"),
            "{said:?}"
        );
    }
}

#[test]
fn nothing_is_given_back_where_a_table_is_missing() {
    let mut tiny = tiny(4);
    tiny.put64(Tiny::L1, COPIED | cluster(60));
    let before = tiny.bytes.clone();
    let leaks = repaired(&before, RepairMode::Leaks);
    assert_eq!((leaks.fixed(), leaks.writes()), ((0, 0), 0));
    let done = repaired(&before, RepairMode::All);
    // The clusters may be what the entry stood for.
    assert_eq!(done.report.leaks_fixed, 0);
    assert!(done.report.found.leaks > 0 && done.report.found.corruptions > 0);
}

#[test]
fn the_file_does_not_grow_over_what_is_missing() {
    let mut tiny = tiny(4);
    // Cut off behind the third data cluster; the first one is there twice.
    tiny.entry(3, COPIED | cluster(11));
    tiny.entry(2, COPIED | cluster(5));
    tiny.bytes.truncate(7 * CLUSTER);
    tiny.refcount(7, 0);
    tiny.refcount(8, 0);
    let storage = Recorded::new(tiny.bytes.clone());
    let image = try_open(storage.clone(), true, true).unwrap();
    let done = now(repair(&image, RepairMode::All, &mut ())).unwrap();
    assert_eq!(
        done.found.corruptions, 1,
        "what is missing is still told of"
    );
    assert!(storage.bytes().len() <= 11 * CLUSTER);

    tiny.entry(3, COPIED | cluster(8));
    let storage = Recorded::new(tiny.bytes.clone());
    let image = try_open(storage.clone(), true, true).unwrap();
    let refused = now(repair(&image, RepairMode::All, &mut ())).unwrap_err();
    assert!(matches!(refused, Error::Unsupported(_)), "{refused}");
    assert_eq!(storage.bytes()[..tiny.bytes.len()], tiny.bytes);
}

#[test]
fn marks_go_where_nothing_is_wrong_any_more() {
    for (marks, mode) in [
        (1, RepairMode::Leaks),
        (2, RepairMode::Leaks),
        (3, RepairMode::All),
    ] {
        let mut tiny = tiny(4);
        tiny.put64(72, marks);
        let done = repaired(&tiny.bytes, mode);
        assert_eq!(done.writes(), 1, "the header");
        assert_eq!(done.bytes[72..80], [0; 8]);
        tiny.entry(3, COPIED | cluster(60));
        let done = repaired(&tiny.bytes, mode);
        assert_eq!(u64::from(done.bytes[79]), marks, "something is still wrong");
    }
}

#[test]
fn a_corrupt_image_is_written_to_only_after_its_repair() {
    let mut tiny = tiny(4);
    tiny.put64(72, 2);
    tiny.refcount(6, 2);
    assert!(matches!(
        try_open(Recorded::new(tiny.bytes.clone()), true, false),
        Err(Error::Corrupt { .. })
    ));
    let image = open(&tiny.bytes);
    let refused = now(image.write_at(GuestOffset(0), &[1])).unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
    let report = now(repair(&image, RepairMode::All, &mut ())).unwrap();
    assert_eq!((report.leaks_fixed, report.corruptions_fixed), (1, 0));
    now(image.write_at(GuestOffset(0), &[1; 4000])).unwrap();
    now(image.close()).unwrap();
    let mut disk = vec![0; 4000];
    now(image.read_at(GuestOffset(0), &mut disk)).unwrap();
    assert_eq!(disk, [1; 4000]);
}

#[test]
fn a_dirty_image_is_repaired_before_it_changes() {
    let mut tiny = tiny(4);
    tiny.put64(72, 1);
    for low in [0, 4, 7] {
        tiny.refcount(low, 0);
    }
    tiny.refcount(8, 2);
    let storage = Recorded::new(tiny.bytes.clone());
    let image = try_open(storage.clone(), true, false).unwrap();
    now(image.write_at(GuestOffset(5 * CLUSTER as u64), &[9; CLUSTER])).unwrap();
    now(image.close()).unwrap();
    let bytes = storage.bytes();
    assert_clean(&bytes);
    assert_eq!(bytes[72..80], [0; 8]);
    let mut expected = disk(&tiny.bytes);
    expected[5 * CLUSTER..6 * CLUSTER].fill(9);
    assert_eq!(disk(&bytes), expected);
}

#[test]
fn a_dirty_image_that_cannot_be_repaired_is_not_written_to() {
    let mut tiny = one_bit();
    tiny.put64(72, 1);
    let image = try_open(Recorded::new(tiny.bytes), true, false).unwrap();
    let refused = now(image.write_at(GuestOffset(0), &[9])).unwrap_err();
    assert_eq!(refused.to_string(), "Could not repair dirty image");
}

/// Refcounts of one bit, and a data cluster that two entries refer to.
fn one_bit() -> Tiny {
    let mut tiny = tiny(3);
    tiny.put32(96, 0);
    tiny.bytes[Tiny::BLOCK..Tiny::BLOCK + 32].fill(0);
    tiny.bytes[Tiny::BLOCK] = 0b0111_1111;
    tiny.entry(2, COPIED | cluster(6));
    tiny
}

#[test]
fn a_refcount_that_does_not_fit_is_told() {
    let tiny = one_bit();
    let done = repaired(&tiny.bytes, RepairMode::All);
    assert_eq!((done.fixed(), done.writes()), ((0, 0), 0));
    assert_eq!(done.report.found.corruptions, 1);
    assert!(
        done.said[0].starts_with("ERROR: overflow cluster offset=0xc00"),
        "{:?}",
        done.said
    );
}

#[test]
fn refcounts_past_the_end_of_the_file_do_not_become_leaks() {
    let mut tiny = tiny(4);
    // Nobody counts these while the file ends before, and nobody uses them.
    tiny.refcount(9, 1);
    tiny.refcount(11, 5);
    assert_clean(&tiny.bytes);
    tiny.refcount(6, 2);
    let done = repaired(&tiny.bytes, RepairMode::Leaks);
    assert_eq!(done.fixed(), (1, 0));
    assert_clean(&done.bytes);
    assert!(
        done.bytes.len() > 9 * CLUSTER,
        "the file has grown over them"
    );
}

/// All clusters that a block could count have refcounts, and the table has blocks for many more.
#[test]
fn refcounts_past_the_end_of_the_file_make_it_no_longer() {
    for mode in [RepairMode::Leaks, RepairMode::All] {
        let mut tiny = tiny(5);
        (10..256).for_each(|cluster| tiny.refcount(cluster, 1));
        // The data clusters 8 and 9 are other blocks from now on.
        for (entry, block) in [(1, 8), (5, 9)] {
            tiny.entry(block - 5, 0);
            tiny.put64(CLUSTER + 8 * entry, cluster(block as u64));
            tiny.bytes[block * CLUSTER..][..CLUSTER].fill(1);
        }
        assert_clean(&tiny.bytes);
        tiny.refcount(6, 2);
        let done = repaired(&tiny.bytes, mode);
        assert_eq!(done.fixed(), (1, 0));
        assert_clean(&done.bytes);
        // A block and a table.
        assert_eq!(done.bytes.len(), 12 * CLUSTER);
        let table = u64::from_be_bytes(done.bytes[48..56].try_into().unwrap()) as usize;
        let others = &done.bytes[table + 8..table + CLUSTER];
        assert!(
            others.iter().all(|&byte| byte == 0),
            "no block is left for what is not there"
        );
        assert_eq!(disk(&done.bytes), disk(&tiny.bytes));
    }
}

/// Thousands of L1 entries may lead to one table: it is copied once, not for each of them.
#[test]
fn a_table_of_many_entries_is_copied_once() {
    for width in [3, 4] {
        let mut tiny = tiny(3);
        tiny.put32(36, 64);
        for entry in 1..64 {
            tiny.put64(Tiny::L1 + 8 * entry, Tiny::L2 as u64);
        }
        (4..8).for_each(|cluster| tiny.refcount(cluster, 64));
        if width == 3 {
            // As bytes.
            tiny.put32(96, 3);
            tiny.bytes[Tiny::BLOCK..Tiny::BLOCK + CLUSTER].fill(0);
            tiny.bytes[Tiny::BLOCK..Tiny::BLOCK + 8].copy_from_slice(&[1, 1, 1, 1, 64, 64, 64, 64]);
        }
        let before = problems(&tiny.bytes);
        let done = repaired(&tiny.bytes, RepairMode::All);
        // The flags of three data clusters for each entry, and that of the table.
        assert_eq!(before.0.corruptions, 3 * 64 + 1);
        assert_eq!(done.fixed(), (0, 3 * 64 + 1));
        assert_clean(&done.bytes);
        assert_eq!(disk(&done.bytes), disk(&tiny.bytes));
        assert!(
            done.bytes.len() <= tiny.bytes.len() + 4 * CLUSTER,
            "{} clusters more",
            (done.bytes.len() - tiny.bytes.len()) / CLUSTER
        );
    }
}

#[test]
fn snapshots_get_what_their_version_must_have() {
    let mut tiny = tiny(3);
    let table = tiny.bytes.len();
    tiny.snapshots(1, Tiny::L1, 0);
    // An entry as version 2 has it: no extra data.
    tiny.put32(table + 36, 0);
    tiny.refcount(table / CLUSTER, 1);
    let leaks = repaired(&tiny.bytes, RepairMode::Leaks);
    assert_eq!((leaks.fixed(), leaks.writes()), ((0, 0), 0));
    let done = repaired(&tiny.bytes, RepairMode::All);
    assert_eq!(done.fixed(), (0, 1));
    assert_eq!(
        done.said[0],
        "Repairing snapshot table entry 0 is incomplete"
    );
    assert_clean(&done.bytes);
    assert_eq!(snapshot_size(&done.bytes), Some(0));
}

/// More than there may be: as `check -r all` of native qemu-img 10.0.2, which says so in these words, with these
/// counts.
#[test]
fn snapshots_beyond_the_limits_go() {
    let too_long = |tiny: &mut Tiny, table: usize| tiny.put32(table + 36, 1025);
    let too_many = |tiny: &mut Tiny, _: usize| tiny.put32(60, 65_536 + 3);
    type Damage<'a> = &'a dyn Fn(&mut Tiny, usize);
    let damages: [(Damage<'_>, &str, u64, usize); 2] = [
        (
            &too_long,
            "Discarding too much extra metadata in snapshot table entry 0 (1025 > 1024)",
            1,
            1,
        ),
        (&too_many, "Discarding 3 overhanging snapshots", 3, 65_536),
    ];
    for (damage, words, corruptions, left) in damages {
        let mut tiny = tiny(3);
        let expected = disk(&tiny.bytes);
        let table = tiny.bytes.len();
        tiny.snapshots(1, Tiny::L1, 0);
        tiny.refcount(table / CLUSTER, 1);
        // Version 2 takes entries of zeros.
        let entries = table + 70_000 * 40;
        tiny.bytes.resize(entries.next_multiple_of(CLUSTER), 0);
        tiny.put32(4, 2);
        damage(&mut tiny, table);
        let before = tiny.bytes.clone();
        assert!(try_open(Recorded::new(before.clone()), false, false).is_err());

        let storage = Recorded::new(before.clone());
        let image = try_open(storage.clone(), true, true).unwrap();
        let refused = now(repair(&image, RepairMode::Leaks, &mut ())).unwrap_err();
        assert_eq!(refused.place().unwrap().structure, Structure::SnapshotTable);
        assert_eq!(storage.bytes(), before);

        let done = repaired(&before, RepairMode::All);
        assert!(
            done.said.iter().any(|said| said == words),
            "{:?}",
            done.said
        );
        assert!(done.report.corruptions_fixed >= corruptions);
        assert_clean(&done.bytes);
        let image = try_open(Recorded::new(done.bytes.clone()), false, false).unwrap();
        let snapshots = image.top().as_qcow2().unwrap().snapshots();
        assert_eq!(snapshots.len(), left);
        assert!(snapshots[0].unknown_extra.len() <= 1024 - 24);
        assert_eq!(disk(&done.bytes), expected);
    }
}

fn snapshot_size(bytes: &[u8]) -> Option<u64> {
    let image = try_open(Recorded::new(bytes.to_vec()), false, false).unwrap();
    let snapshots = image.top().as_qcow2().unwrap().snapshots();
    snapshots[0].disk_size
}

/// A larger disk than its table covers would make a snapshot unreadable that was not.
#[test]
fn a_snapshot_of_unknown_size_gets_what_its_table_covers() {
    for (entries, clusters) in [(1, 64), (2, 128)] {
        let mut tiny = tiny(3);
        let table = tiny.bytes.len();
        tiny.snapshots(1, Tiny::L1, entries);
        tiny.put32(table + 36, 0);
        tiny.refcount(table / CLUSTER, 1);
        let expected = disk(&tiny.bytes);
        let done = repaired(&tiny.bytes, RepairMode::All);
        assert_clean(&done.bytes);
        assert_eq!(snapshot_size(&done.bytes), Some(cluster(clusters)));
        let mut image = try_open(Recorded::new(done.bytes), false, false).unwrap();
        now(image.use_snapshot("")).unwrap();
        let mut disk = vec![0; image.virtual_size() as usize];
        now(image.read_at(GuestOffset(0), &mut disk)).unwrap();
        assert_eq!(disk, expected[..disk.len()]);
    }
}

/// Blocks of one bit that two entries share: their references are too many for their own refcount, until
/// the repair has given both entries blocks of their own.
#[test]
fn a_shared_block_of_narrow_refcounts_is_repaired_at_once() {
    for blocks in [2, 3] {
        let mut tiny = tiny(3);
        tiny.put32(96, 0);
        tiny.bytes[Tiny::BLOCK..Tiny::BLOCK + 32].fill(0);
        tiny.bytes[Tiny::BLOCK] = 0b1111_1111;
        for index in 1..blocks {
            tiny.put64(CLUSTER + 8 * index, Tiny::BLOCK as u64);
        }
        // A flag that is wrong, which is not told from refcounts that are too low.
        tiny.entry(1, cluster(6));
        let done = repaired(&tiny.bytes, RepairMode::All);
        assert!(done.report.found.is_clean(), "{:?}", done.said);
        assert_clean(&done.bytes);
        assert_eq!(disk(&done.bytes), disk(&tiny.bytes));
    }
}

#[test]
fn a_zero_cluster_loses_what_cannot_be_preallocated_for_it() {
    // Clusters of 4 KiB, so that a cluster can be misplaced.
    let size = 4096;
    let mut tiny = Tiny {
        bytes: vec![0; 7 * size],
    };
    tiny.put32(0, 0x5146_49fb);
    tiny.put32(4, 3);
    tiny.put32(20, 12);
    tiny.put64(24, 1 << 20);
    tiny.put32(36, 1);
    for (at, value) in [(40, 3 * size), (48, size), (size, 2 * size)] {
        tiny.put64(at, value as u64);
    }
    tiny.put32(56, 1);
    tiny.put32(96, 4);
    tiny.put32(100, 104);
    tiny.put64(3 * size, COPIED | (4 * size as u64));
    tiny.put64(4 * size, COPIED | (5 * size as u64));
    tiny.put64(4 * size + 8, COPIED | (6 * size + 512) as u64 | 1);
    tiny.bytes[5 * size..6 * size].fill(7);
    for at in 0..7 {
        tiny.bytes[2 * size + 2 * at + 1] = 1;
    }
    let done = repaired(&tiny.bytes, RepairMode::All);
    assert_eq!(done.fixed(), (1, 1));
    assert_eq!(
        done.said,
        [
            "Repairing offset=6200: Preallocated cluster is not properly aligned; L2 entry corrupted.",
            "Leaked cluster 6 refcount=1 reference=0",
            "Repairing cluster 6 refcount=1 reference=0",
        ]
    );
    assert_clean(&done.bytes);
    let mut expected = vec![0; 1 << 20];
    expected[..size].fill(7);
    assert_eq!(disk(&done.bytes), expected);
}

#[test]
fn an_unknown_autoclear_bit_goes_and_known_ones_stay() {
    let mut tiny = tiny(4);
    tiny.put64(88, 1 << 40);
    assert_eq!(repaired(&tiny.bytes, RepairMode::All).writes(), 0);
    tiny.refcount(6, 2);
    let done = repaired(&tiny.bytes, RepairMode::All);
    assert_eq!(done.bytes[88..96], [0; 8]);
}

#[test]
fn who_may_repair() {
    let tiny = tiny(1);
    let image = try_open(Recorded::new(tiny.bytes), false, false).unwrap();
    let refused = now(repair(&image, RepairMode::All, &mut ())).unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
}

#[test]
fn an_image_in_use_is_repaired_with_what_was_written() {
    let mut tiny = tiny(4);
    tiny.refcount(6, 2);
    let storage = Recorded::new(tiny.bytes.clone());
    let image = try_open(storage.clone(), true, false).unwrap();
    now(image.write_at(GuestOffset(20 * CLUSTER as u64), &[8; 3 * CLUSTER])).unwrap();
    let report = now(repair(&image, RepairMode::Leaks, &mut ())).unwrap();
    assert_eq!(report.leaks_fixed, 1);
    now(image.write_at(GuestOffset(30 * CLUSTER as u64), &[9; 3 * CLUSTER])).unwrap();
    now(image.close()).unwrap();
    assert_clean(&storage.bytes());
    let mut expected = disk(&tiny.bytes);
    expected[20 * CLUSTER..23 * CLUSTER].fill(8);
    expected[30 * CLUSTER..33 * CLUSTER].fill(9);
    assert_eq!(disk(&storage.bytes()), expected);
}

/// Every sector-wise prefix of the writes between two flushes, and random subsets of their sectors: the disk
/// reads as before in each of them, and each of them is repaired to a clean image.
#[test]
fn a_cut_at_any_moment_leaves_what_can_be_repaired() {
    type Break = fn(&mut Tiny);
    let breaks: &[Break] = &[
        |t| {
            t.refcount(6, 3);
            t.refcount(10, 2);
        },
        |t| t.entry(3, COPIED | cluster(5)),
        |t| {
            t.entry(1, cluster(6));
            t.put64(Tiny::L1, Tiny::L2 as u64);
        },
        |t| t.refcount(0, 0),
        |t| t.put64(CLUSTER, 0),
        |t| t.put64(CLUSTER, cluster(6)),
        |t| t.put64(CLUSTER, cluster(40)),
        |t| t.put32(56, 0),
        |t| {
            t.put64(72, 1);
            (4..9).for_each(|at| t.refcount(at, 0));
        },
    ];
    let mut states = BTreeSet::new();
    for change in breaks {
        let mut tiny = tiny(6);
        change(&mut tiny);
        let done = repaired(&tiny.bytes, RepairMode::All);
        let expected = disk(&done.bytes);
        let mut durable = tiny.bytes.clone();
        let mut epoch: Vec<(usize, Vec<u8>)> = Vec::new();
        for request in &done.requests {
            match request {
                Request::Write(offset, bytes) => {
                    let sectors = bytes.chunks(512).zip((*offset as usize..).step_by(512));
                    epoch.extend(sectors.map(|(bytes, at)| (at, bytes.to_vec())));
                }
                Request::Flush => {
                    let prefixes = (0..=epoch.len()).map(|n| (0..n).collect::<Vec<_>>());
                    let mut state = 1u64;
                    let subsets = (0..200).map(|_| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(99);
                        (0..epoch.len())
                            .filter(|at| state >> (17 + at) & 1 == 1)
                            .collect()
                    });
                    for chosen in prefixes.chain(subsets) {
                        let mut cut = durable.clone();
                        chosen.iter().for_each(|&at| write(&mut cut, &epoch[at]));
                        assert_eq!(disk_for_repair(&cut), expected);
                        let again = try_repair(&cut, RepairMode::All, 1 << 20).unwrap();
                        assert_clean(&again.bytes);
                        assert_eq!(disk(&again.bytes), expected);
                        states.insert(cut);
                    }
                    epoch.iter().for_each(|sector| write(&mut durable, sector));
                    epoch.clear();
                }
            }
        }
        assert_eq!(durable, done.bytes);
    }
    assert!(states.len() > 60, "{} different states", states.len());
}

fn write(bytes: &mut Vec<u8>, (at, sector): &(usize, Vec<u8>)) {
    let end = at + sector.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[*at..end].copy_from_slice(sector);
}

fn disk_for_repair(bytes: &[u8]) -> Vec<u8> {
    let image = open(bytes);
    let mut disk = vec![0; image.virtual_size() as usize];
    now(image.read_at(GuestOffset(0), &mut disk)).unwrap();
    disk
}
