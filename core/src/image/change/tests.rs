//! What is best seen from the inside: flushes counted, operations given up at every await, failures.
//! The proof of the ordering is in tests/src/crash.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;

use super::{NewSnapshot, ResizeOptions, ZeroMode};
use crate::create::{CreateOptions, NewEncryption, create};
use crate::crypto::Passphrase;
use crate::error::{Error, Result};
use crate::image::{Image, OpenOptions, VmStateOffset};
use crate::qcow2::{Incompatible, OFFSET_MASK};
use crate::storage::{AnyStorage, MemoryStorage, Storage, give_way};
use crate::units::GuestOffset;
use crate::{DenyAll, File};

const CLUSTER: usize = 512;
const DISK: usize = 64 * CLUSTER;

/// A storage in memory whose every operation waits once, and which can be told to fail.
#[derive(Clone, Default)]
struct Slow {
    bytes: Rc<MemoryStorage>,
    /// Writes and flushes still allowed before one fails.
    good_writes: Rc<Cell<Option<u64>>>,
    good_flushes: Rc<Cell<Option<u64>>>,
    waits: Rc<Cell<bool>>,
}

impl Slow {
    async fn wait(&self) {
        if self.waits.get() {
            give_way().await;
        }
    }

    fn spend(budget: &Cell<Option<u64>>) -> io::Result<()> {
        match budget.get() {
            None => Ok(()),
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            Some(left) => {
                budget.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

impl Storage for Slow {
    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.wait().await;
        self.bytes.read_at(offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.wait().await;
        Self::spend(&self.good_writes)?;
        self.bytes.write_at(offset, data).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.wait().await;
        self.bytes.set_len(len).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.wait().await;
        Self::spend(&self.good_flushes)
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("the future never ends");
}

/// Polls `future` so many times, then drops it. Whether it came to its end.
fn given_up_after(polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..polls).any(|_| future.as_mut().poll(&mut context).is_ready())
}

fn new_image() -> Slow {
    let storage = Slow::default();
    let options = CreateOptions {
        size: DISK as u64,
        cluster_size: CLUSTER as u64,
        ..CreateOptions::default()
    };
    now(create(&storage, None, &options)).unwrap();
    storage
}

fn open(storage: &Slow) -> Image<AnyStorage> {
    let file = File {
        storage: AnyStorage::new(storage.clone()),
        name: "image".into(),
    };
    let options = OpenOptions {
        writable: true,
        ..OpenOptions::default()
    };
    now(Image::open(file, &options, &DenyAll::default())).unwrap()
}

fn content(image: &Image<AnyStorage>) -> Vec<u8> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    now(image.read_at(GuestOffset(0), &mut bytes)).unwrap();
    bytes
}

fn assert_clean(storage: &Slow) {
    let report = check(storage);
    assert!(report.is_clean(), "{report:?}");
}

fn check(storage: &Slow) -> crate::CheckReport {
    let image = open(storage);
    now(crate::check::check(
        image.top().as_qcow2().unwrap(),
        &mut (),
    ))
    .unwrap()
}

fn flushes(image: &Image<AnyStorage>, change: impl Future<Output = Result<()>>) -> u64 {
    let before = image.io_counts().flushes;
    now(change).unwrap();
    image.io_counts().flushes - before
}

#[test]
fn two_flushes_and_one_where_no_table_changes() {
    let storage = new_image();
    let image = open(&storage);
    let write = |at: usize, length: usize| {
        let image = &image;
        async move {
            image
                .write_at(GuestOffset(at as u64), &vec![1; length])
                .await?;
            image.flush().await
        }
    };
    assert_eq!(
        flushes(&image, write(0, CLUSTER)),
        2,
        "first write of a table"
    );
    assert_eq!(flushes(&image, write(700, 4000)), 2, "more clusters of it");
    assert_eq!(flushes(&image, write(10, 100)), 1, "in place");
    assert_eq!(flushes(&image, image.flush()), 1, "nothing");
    let snapshot = NewSnapshot {
        name: "a".into(),
        ..NewSnapshot::default()
    };
    let created = async { image.create_snapshot(&snapshot).await.map(drop) };
    assert_eq!(flushes(&image, created), 2);
    assert_eq!(flushes(&image, write(0, 10)), 2, "copied from the snapshot");
    assert_eq!(flushes(&image, image.apply_snapshot("a")), 2);
    assert_eq!(flushes(&image, image.delete_snapshot("a")), 2);
    let options = ResizeOptions {
        shrink: true,
        ..ResizeOptions::default()
    };
    let size = DISK as u64;
    assert_eq!(flushes(&image, image.resize(size * 100, &options)), 2);
    assert_eq!(flushes(&image, image.resize(1024, &options)), 2);
    assert_eq!(flushes(&image, image.discard(GuestOffset(0), 1024)), 0);
    assert_eq!(flushes(&image, image.flush()), 1, "tables only let go");
    now(image.close()).unwrap();
    assert_clean(&storage);
}

/// Operations in which anything can be given up half way.
const OPERATIONS: [&str; 10] = [
    "allocate", "copy", "compress", "zero", "discard", "state", "flush", "create", "apply",
    "resize",
];

async fn operation(image: &Image<AnyStorage>, name: &str) -> Result<()> {
    let resize = ResizeOptions {
        shrink: true,
        ..ResizeOptions::default()
    };
    match name {
        "allocate" => image.write_at(GuestOffset(10_000), &[5; 3000]).await,
        "copy" => image.write_at(GuestOffset(100), &[6; 1000]).await,
        "compress" => image.write_compressed(GuestOffset(2048), &[7; 1024]).await,
        "zero" => {
            image
                .write_zeroes(GuestOffset(0), 900, ZeroMode::Unmap)
                .await
        }
        "discard" => image.discard(GuestOffset(512), 1024).await,
        "state" => image.write_vm_state(VmStateOffset(700), &[8; 900]).await,
        "flush" => image.flush().await,
        "create" => image
            .create_snapshot(&NewSnapshot::default())
            .await
            .map(drop),
        "apply" => image.apply_snapshot("1").await,
        "resize" => image.resize(40 * CLUSTER as u64, &resize).await,
        other => unreachable!("{other}"),
    }
}

#[test]
fn an_operation_given_up_at_any_await_leaves_the_image_good() {
    for name in OPERATIONS {
        for polls in 0.. {
            let storage = new_image();
            let image = open(&storage);
            now(image.write_at(GuestOffset(0), &[1; 4096])).unwrap();
            now(image.create_snapshot(&NewSnapshot::default())).unwrap();
            now(image.write_at(GuestOffset(600), &[2; 3000])).unwrap();
            let before = content(&image);
            storage.waits.set(true);
            let ended = given_up_after(polls, operation(&image, name));
            storage.waits.set(false);
            if image.engine().is_err() {
                // Given up while the roots were switched: what the file says counts. Refcounts that a commit
                // has lowered in memory are a leak there.
                drop(image);
                assert_eq!(check(&storage).corruptions, 0);
                continue;
            }
            let after = content(&image);
            // What follows works as if nothing had happened.
            now(image.write_at(GuestOffset(16_000), &[9; 2000])).unwrap();
            now(image.flush()).unwrap();
            let mut expected = after.clone();
            expected[16_000..18_000].fill(9);
            assert_eq!(content(&image), expected, "{name} after {polls} polls");
            now(image.close()).unwrap();
            assert_clean(&storage);
            assert_eq!(content(&open(&storage)), expected);
            // Outside of what it was to change, nothing has changed.
            if after.len() == before.len() && name != "apply" {
                let untouched = [4096..10_000, 13_000..16_000];
                for range in untouched {
                    assert_eq!(after[range.clone()], before[range]);
                }
            }
            if ended {
                break;
            }
        }
    }
}

#[test]
fn no_space_is_the_guests_error_and_the_image_stays_good() {
    for budget in 0..40 {
        let storage = new_image();
        let image = open(&storage);
        now(image.write_at(GuestOffset(0), &[1; 4096])).unwrap();
        now(image.flush()).unwrap();
        storage.good_writes.set(Some(budget));
        let mut failed = None;
        for name in OPERATIONS {
            if let Err(error) = now(operation(&image, name)) {
                failed = Some(error);
                break;
            }
        }
        storage.good_writes.set(None);
        let Some(error) = failed else {
            assert!(budget > 10, "something must fail");
            continue;
        };
        match error {
            Error::Io { source, .. } => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
            // There may be no snapshot to apply.
            Error::OutOfRange(_) => continue,
            other => panic!("{other:?}"),
        }
        match now(image.close()) {
            Ok(()) => assert_clean(&storage),
            Err(error) => {
                assert!(matches!(error, Error::Stopped(_)), "{error:?}");
                assert_eq!(check(&storage).corruptions, 0);
            }
        }
    }
}

#[test]
fn a_failed_flush_stops_the_image() {
    let storage = new_image();
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &[1; 600])).unwrap();
    storage.good_flushes.set(Some(1));
    assert!(matches!(now(image.flush()), Err(Error::Io { .. })));
    storage.good_flushes.set(None);
    let stopped =
        |result: Result<()>| assert!(matches!(result, Err(Error::Stopped(_))), "{result:?}");
    stopped(now(image.flush()));
    stopped(now(image.write_at(GuestOffset(0), &[1; 600])));
    stopped(now(image.read_at(GuestOffset(0), &mut [0; 512])));
    stopped(now(image.apply_snapshot("1")));
    stopped(now(image.close()));
}

#[test]
fn another_writer_is_noticed() {
    let storage = new_image();
    let (first, second) = (open(&storage), open(&storage));
    now(first.write_at(GuestOffset(0), &[1; 600])).unwrap();
    now(first.flush()).unwrap();
    let error = now(second.write_at(GuestOffset(0), &[2; 600])).unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    assert!(matches!(now(second.flush()), Err(Error::Stopped(_))));
    now(first.close()).unwrap();
    assert_clean(&storage);
}

#[test]
fn read_only_images_refuse_every_change() {
    let storage = new_image();
    let file = File {
        storage: AnyStorage::new(storage),
        name: "image".into(),
    };
    let image = Image::open(file, &OpenOptions::default(), &DenyAll::default())
        .now_or_never()
        .unwrap()
        .unwrap();
    for name in OPERATIONS {
        let refused = now(operation(&image, name));
        assert!(matches!(refused, Err(Error::Refused(_))), "{name}");
    }
}

/// What a virtual machine's state reads as, from `offset` on.
fn state(image: &Image<AnyStorage>, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    now(image.read_vm_state(VmStateOffset(offset), &mut bytes)).unwrap();
    bytes
}

#[test]
fn a_machine_state_is_written_behind_the_disk_by_a_longer_l1_table() {
    let storage = new_image();
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &[1; DISK])).unwrap();
    now(image.flush()).unwrap();
    let entries = || image.top().as_qcow2().unwrap().header().l1.entries;
    assert_eq!(entries(), 1);
    assert_eq!(state(&image, 0, 600), [0; 600]);
    // The table is grown by a transaction, two flushes; the write itself is the guest's kind.
    let write = |at: u64, byte: u8, length: usize| {
        let image = &image;
        async move {
            let data = vec![byte; length];
            image.write_vm_state(VmStateOffset(at), &data).await
        }
    };
    assert_eq!(flushes(&image, write(DISK as u64 - 100, 2, 200)), 2);
    assert_eq!(entries(), 3);
    assert_eq!(flushes(&image, write(10, 3, 100)), 0, "long enough");
    now(image.close()).unwrap();
    assert_clean(&storage);
    let image = open(&storage);
    assert_eq!(content(&image), [1; DISK]);
    let mut expected = vec![0; 2 * DISK];
    expected[DISK - 100..DISK + 100].fill(2);
    expected[10..110].fill(3);
    assert_eq!(state(&image, 0, 2 * DISK), expected);
    // A part of a cluster that a snapshot shares: the rest of it is copied.
    now(image.create_snapshot(&NewSnapshot::default())).unwrap();
    now(image.write_vm_state(VmStateOffset(60), &[4; 20])).unwrap();
    let kept = expected.clone();
    expected[60..80].fill(4);
    assert_eq!(state(&image, 0, 2 * DISK), expected);
    now(image.close()).unwrap();
    assert_clean(&storage);
    now(image.apply_snapshot("1")).unwrap();
    assert_eq!(state(&image, 0, 2 * DISK), kept);
    // A disk that needs more of the L1 table: nothing of the state shows in it.
    now(image.resize(DISK as u64 + 1024, &ResizeOptions::default())).unwrap();
    assert_eq!(content(&image)[DISK..], [0; 1024]);
    now(image.close()).unwrap();
    assert_clean(&storage);
}

#[test]
fn a_snapshot_without_a_machine_state_brings_a_shorter_l1_table_back() {
    let storage = new_image();
    let image = open(&storage);
    now(image.create_snapshot(&NewSnapshot::default())).unwrap();
    now(image.write_vm_state(VmStateOffset(0), &[7; 4 * DISK])).unwrap();
    assert_eq!(state(&image, 3 * DISK as u64, 600), [7; 600]);
    now(image.apply_snapshot("1")).unwrap();
    assert_eq!(state(&image, 0, 4 * DISK), [0; 4 * DISK]);
    now(image.close()).unwrap();
    assert_clean(&storage);
}

#[test]
fn a_machine_state_ends_where_an_l1_table_or_a_file_does() {
    let storage = new_image();
    let image = open(&storage);
    let write = |at| now(image.write_vm_state(VmStateOffset(at), &[1; 512]));
    // An L1 table has at most 4194304 entries, of 32 KiB here.
    let too_long = write(4_194_304 * DISK as u64).unwrap_err();
    assert!(
        matches!(&too_long, Error::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge),
        "{too_long:?}"
    );
    let last = (1 << 63) - (1 << 30) - DISK as u64;
    assert!(matches!(write(last), Err(Error::OutOfRange(_))));
    assert!(matches!(write(u64::MAX), Err(Error::OutOfRange(_))));
    assert_eq!(state(&image, last - 512, 512), [0; 512]);
    let read = now(image.read_vm_state(VmStateOffset(last), &mut [0; 512]));
    assert!(matches!(read, Err(Error::OutOfRange(_))));
    now(image.write_at(GuestOffset(0), &[1; 512])).unwrap();
    now(image.close()).unwrap();
    assert_clean(&storage);
}

#[test]
#[cfg(feature = "encryption")]
fn a_machine_state_is_encrypted_as_the_disk_is() {
    let storage = Slow::default();
    let options = CreateOptions {
        size: DISK as u64,
        cluster_size: CLUSTER as u64,
        encryption: Some(NewEncryption::Aes),
        ..CreateOptions::default()
    };
    now(create(&storage, None, &options)).unwrap();
    let open = |writable| {
        let file = File {
            storage: AnyStorage::new(storage.clone()),
            name: "image".into(),
        };
        let options = OpenOptions {
            writable,
            passphrases: vec![Some(Passphrase::new(b"secret".to_vec()))],
            ..OpenOptions::default()
        };
        now(Image::open(file, &options, &DenyAll::default())).unwrap()
    };
    let image = open(true);
    let (given, written) = ([0x5a; 1000], [0xa5; 700]);
    let snapshot = NewSnapshot {
        vm_state: given.to_vec(),
        ..NewSnapshot::default()
    };
    now(image.create_snapshot(&snapshot)).unwrap();
    now(image.write_vm_state(VmStateOffset(100), &written)).unwrap();
    assert_eq!(state(&image, 100, 700), written);
    now(image.close()).unwrap();
    let mut reader = open(false);
    assert_eq!(state(&reader, 100, 700), written);
    now(reader.use_snapshot("1")).unwrap();
    assert_eq!(state(&reader, 0, 1000), given);
    let length = now(storage.len()).unwrap();
    let mut file = vec![0; length as usize];
    now(storage.read_at(0, &mut file)).unwrap();
    for plain in [[0x5a; 16], [0xa5; 16]] {
        assert!(!file.windows(16).any(|bytes| bytes == plain), "{plain:?}");
    }
}

#[test]
fn a_machine_state_is_kept_behind_the_disk() {
    let storage = new_image();
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &[1; 600])).unwrap();
    let state: Vec<u8> = (0..40_000u32).map(|n| (n / 7) as u8).collect();
    let snapshot = NewSnapshot {
        name: "running".into(),
        vm_state: state.clone(),
        ..NewSnapshot::default()
    };
    let id = now(image.create_snapshot(&snapshot)).unwrap();
    now(image.close()).unwrap();
    assert_clean(&storage);
    let file = File {
        storage: AnyStorage::new(storage.clone()),
        name: "image".into(),
    };
    let mut reader = now(Image::open(
        file,
        &OpenOptions::default(),
        &DenyAll::default(),
    ))
    .unwrap();
    now(reader.use_snapshot(&id)).unwrap();
    let mut read = vec![0; state.len()];
    now(reader.read_vm_state(VmStateOffset(0), &mut read)).unwrap();
    assert_eq!(read, state);
    assert!(now(reader.read_vm_state(VmStateOffset(1), &mut read)).is_err());
    // Gone back to, the active state has the machine state too, and the next snapshot one of its own.
    now(image.apply_snapshot(&id)).unwrap();
    let second = now(image.create_snapshot(&snapshot)).unwrap();
    assert_clean(&storage);
    now(image.delete_snapshot(&id)).unwrap();
    now(image.delete_snapshot(&second)).unwrap();
    assert_clean(&storage);
}

/// Where the active tables stand: the L1 table, and the L2 tables that it leads to.
fn places(image: &Image<AnyStorage>) -> Vec<u64> {
    let qcow2 = image.top().as_qcow2().unwrap();
    let root = qcow2.root.borrow();
    let tables = root.l1.iter().map(|entry| entry & OFFSET_MASK);
    [qcow2.header().l1.offset.0]
        .into_iter()
        .chain(tables)
        .collect()
}

#[test]
fn settled_tables_stand_where_they_stood() {
    let storage = new_image();
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &[1; 3 * CLUSTER])).unwrap();
    now(image.close()).unwrap();
    let before = places(&image);
    let end = now(storage.len()).unwrap();
    let image = open(&storage);
    let snapshot = NewSnapshot {
        name: "a".into(),
        ..NewSnapshot::default()
    };
    now(image.create_snapshot(&snapshot)).unwrap();
    assert_ne!(places(&image), before, "COPIED is cleared in copies");
    now(image.settle()).unwrap();
    assert_eq!(places(&image), before);
    {
        // What is new follows what there was, in QEMU's order.
        let qcow2 = image.top().as_qcow2().unwrap();
        assert_eq!(qcow2.snapshots()[0].l1_offset.0, end);
        assert_eq!(qcow2.header().snapshots.offset.0, end + CLUSTER as u64);
    }
    now(image.close()).unwrap();
    assert_eq!(now(storage.len()).unwrap(), end + 2 * CLUSTER as u64);
    assert_clean(&storage);
    // Shared as ever: the next write takes nothing from the snapshot.
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &[2; 100])).unwrap();
    now(image.settle()).unwrap();
    now(image.close()).unwrap();
    assert_clean(&storage);
    let image = open(&storage);
    now(image.apply_snapshot("a")).unwrap();
    now(image.settle()).unwrap();
    assert_eq!(content(&image)[..3 * CLUSTER], [1; 3 * CLUSTER]);
    assert_eq!(places(&image), before);
    now(image.delete_snapshot("a")).unwrap();
    now(image.settle()).unwrap();
    assert_eq!(places(&image), before);
    now(image.close()).unwrap();
    assert_clean(&storage);
}

#[test]
fn a_disk_that_shrinks_gives_up_the_refcount_blocks_that_count_nothing() {
    let storage = Slow::default();
    let options = CreateOptions {
        size: 1 << 20,
        cluster_size: 512,
        refcount_bits: 64,
        ..CreateOptions::default()
    };
    now(create(&storage, None, &options)).unwrap();
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &[7; 1 << 20])).unwrap();
    now(image.close()).unwrap();
    let blocks = |image: &Image<AnyStorage>| -> Vec<u64> {
        let table = image.top().as_qcow2().unwrap().header().refcount_table;
        let mut bytes = vec![0; table.entries as usize * 8];
        now(storage.read_at(table.offset.0, &mut bytes)).unwrap();
        let entries = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&entry| u64::from_be_bytes(entry));
        entries.filter(|&entry| entry != 0).collect()
    };
    let image = open(&storage);
    let before = blocks(&image).len();
    let shrink = ResizeOptions {
        shrink: true,
        ..ResizeOptions::default()
    };
    now(image.resize(64 << 10, &shrink)).unwrap();
    now(image.close()).unwrap();
    assert!(blocks(&image).len() < before / 4);
    for offset in blocks(&image) {
        let mut block = [0; 512];
        now(storage.read_at(offset, &mut block)).unwrap();
        assert_ne!(block, [0; 512], "{offset:#x}");
    }
    assert_clean(&storage);
    // What has no block any more gets one again.
    let grown = ResizeOptions::default();
    now(image.resize(1 << 20, &grown)).unwrap();
    now(image.write_at(GuestOffset(0), &[8; 1 << 20])).unwrap();
    now(image.close()).unwrap();
    assert_clean(&storage);
    assert_eq!(content(&open(&storage)), [8; 1 << 20]);
}

#[test]
fn lazy_refcounts_are_counted_anew_after_a_crash() {
    let storage = new_image();
    // The L2 table follows what there is, and the data the table.
    let table = now(storage.len()).unwrap().div_ceil(CLUSTER as u64);
    let stored = |cluster: u64| {
        let image = open(&storage);
        let qcow2 = image.top().as_qcow2().unwrap();
        let dirty = qcow2.header().incompatible.has(Incompatible::DIRTY);
        let mut entry = [0; 8];
        now(storage.read_at(qcow2.header().refcount_table.offset.0, &mut entry)).unwrap();
        let mut count = [0; 2];
        let at = u64::from_be_bytes(entry) + cluster * 2;
        now(storage.read_at(at, &mut count)).unwrap();
        (dirty, u16::from_be_bytes(count))
    };
    let image = open(&storage);
    image.set_lazy_refcounts(true);
    let write = async {
        image.write_at(GuestOffset(0), &[7; 2 * CLUSTER]).await?;
        image.flush().await
    };
    assert_eq!(
        flushes(&image, write),
        2,
        "the mark waits for no flush of its own"
    );
    drop(image);
    assert_eq!(stored(table), (true, 1));
    assert_eq!(stored(table + 1), (true, 0));
    // Whoever writes next repairs it, and ends with everything counted.
    let image = open(&storage);
    image.set_lazy_refcounts(true);
    assert_eq!(content(&image)[..2 * CLUSTER], [7; 2 * CLUSTER]);
    now(image.write_at(GuestOffset(5000), &[8; 600])).unwrap();
    now(image.flush()).unwrap();
    assert!(stored(0).0);
    now(image.close()).unwrap();
    assert!(!stored(0).0);
    assert_clean(&storage);
    assert_eq!(content(&image)[..2 * CLUSTER], [7; 2 * CLUSTER]);
    assert_eq!(content(&image)[5000..5600], [8; 600]);
    // A transaction in between, and more afterwards.
    now(image.write_at(GuestOffset(9000), &[9; 600])).unwrap();
    now(image.create_snapshot(&NewSnapshot::default())).unwrap();
    now(image.write_at(GuestOffset(0), &[10; 600])).unwrap();
    now(image.close()).unwrap();
    assert!(!stored(0).0);
    assert_clean(&storage);
}

#[test]
fn what_a_crash_counted_past_the_end_is_counted_anew_too() {
    let storage = new_image();
    let clusters = now(storage.len()).unwrap().div_ceil(CLUSTER as u64);
    let mut entry = [0; 8];
    now(storage.read_at(48, &mut entry)).unwrap();
    now(storage.read_at(u64::from_be_bytes(entry), &mut entry)).unwrap();
    // The refcount of a table was durable before the file became as long as that, and the mark too.
    let count_at = u64::from_be_bytes(entry) + clusters * 2;
    now(storage.write_at(count_at, &[0, 1])).unwrap();
    now(storage.write_at(79, &[1])).unwrap();
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &[1; 3000])).unwrap();
    now(image.close()).unwrap();
    assert_clean(&storage);
    assert_eq!(content(&image)[..3000], [1; 3000]);
}

/// A copy of what `storage` holds.
fn copy_of(storage: &Slow) -> Slow {
    let mut bytes = vec![0; now(storage.len()).unwrap() as usize];
    now(storage.read_at(0, &mut bytes)).unwrap();
    Slow {
        bytes: Rc::new(MemoryStorage::new(bytes)),
        ..Slow::default()
    }
}

/// An image whose refcount blocks count 64 clusters each and whose refcount table has 64 of them, with so many clusters
/// of data.
fn filled(clusters: usize) -> Slow {
    let storage = Slow::default();
    let options = CreateOptions {
        size: 8 << 20,
        cluster_size: CLUSTER as u64,
        refcount_bits: 64,
        ..CreateOptions::default()
    };
    now(create(&storage, None, &options)).unwrap();
    let image = open(&storage);
    now(image.write_at(GuestOffset(0), &vec![1; clusters * CLUSTER])).unwrap();
    now(image.close()).unwrap();
    storage
}

/// What an image as [`filled`] makes them counts for each of its refcount blocks: numbers of 64 bits.
fn counts_of_blocks(storage: &Slow) -> Vec<u64> {
    let number = |at: u64| {
        let mut bytes = [0; 8];
        now(storage.read_at(at, &mut bytes)).unwrap();
        u64::from_be_bytes(bytes)
    };
    let table = number(48);
    let length = (number(52) & u64::from(u32::MAX)) * 64;
    let entries: Vec<u64> = (0..length).map(|index| number(table + index * 8)).collect();
    let clusters = entries.iter().map(|entry| entry / CLUSTER as u64);
    let counted = |cluster: u64| number(entries[cluster as usize / 64] + cluster % 64 * 8);
    clusters
        .filter(|&cluster| cluster != 0)
        .map(counted)
        .collect()
}

/// Gives a write of one cluster up at every await; a transaction after it, which is cut off after each flush, must find
/// what the write has left behind, in memory and in the file.
fn give_up_and_cut(filled: &Slow, clusters: usize) {
    let place = GuestOffset((clusters * CLUSTER) as u64);
    for polls in 0.. {
        let mut ended = false;
        for flushes in 0..6 {
            let storage = copy_of(filled);
            let image = open(&storage);
            storage.waits.set(true);
            ended = given_up_after(polls, image.write_at(place, &[2; CLUSTER]));
            storage.waits.set(false);
            storage.good_flushes.set(Some(flushes));
            let _cut = now(image.create_snapshot(&NewSnapshot::default()));
            drop(image);
            storage.good_flushes.set(None);
            let when = format!("given up after {polls} polls, cut after {flushes} flushes");
            assert_eq!(check(&storage).corruptions, 0, "{clusters}: {when}");
            let counts = counts_of_blocks(&storage);
            assert!(
                counts.iter().all(|&count| count == 1),
                "{clusters}: {when}: {counts:?}"
            );
        }
        // And without a cut nothing is lost.
        let storage = copy_of(filled);
        let image = open(&storage);
        storage.waits.set(true);
        given_up_after(polls, image.write_at(place, &[2; CLUSTER]));
        storage.waits.set(false);
        if image.engine().is_ok() {
            now(image.write_at(place, &[3; 3 * CLUSTER])).unwrap();
            now(image.create_snapshot(&NewSnapshot::default())).unwrap();
            now(image.close()).unwrap();
            drop(image);
            assert_clean(&storage);
        }
        if ended {
            return;
        }
    }
}

#[test]
fn a_new_refcount_block_that_is_given_up_is_nobody_elses_place() {
    // The second block is full: of images with only one, transactions leave the first free clusters alone.
    for clusters in 110..122 {
        give_up_and_cut(&filled(clusters), clusters);
    }
}

#[test]
fn a_longer_refcount_table_that_is_given_up_leaves_the_image_good() {
    let table = |storage: &Slow| {
        let mut entries = [0; 12];
        now(storage.read_at(48, &mut entries)).unwrap();
        entries[11]
    };
    // Where one cluster more has the table grow.
    let most = (3800..4096).find(|&clusters| table(&filled(clusters + 1)) > 1);
    let clusters = most.unwrap();
    give_up_and_cut(&filled(clusters), clusters);
}
