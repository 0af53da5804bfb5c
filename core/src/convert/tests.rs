use std::cell::RefCell;
use std::io;

use super::*;
use crate::chain::{DenyAll, File};
use crate::create::{self, CreateOptions};
use crate::image::{Backing, OpenOptions};
use crate::probe::Format;
use crate::qcow2::Compression;
use crate::storage::{AnyStorage, MemoryStorage};
use crate::units::GuestOffset;
use futures_util::FutureExt;

/// Runs what never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("nothing waits in these tests")
}

/// A storage in memory that remembers what was written to it, and fails to read some of it.
#[derive(Default)]
struct Recorder {
    memory: MemoryStorage,
    writes: RefCell<Vec<(u64, usize)>>,
    unreadable: Vec<std::ops::Range<u64>>,
}

impl Recorder {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            memory: MemoryStorage::new(bytes),
            ..Self::default()
        }
    }
}

impl Storage for Recorder {
    async fn len(&self) -> io::Result<u64> {
        self.memory.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let end = offset + buf.len() as u64;
        let mut unreadable = self.unreadable.iter();
        match unreadable.any(|bad| bad.start < end && offset < bad.end) {
            true => Err(io::Error::other("Input/output error")),
            false => self.memory.read_at(offset, buf).await,
        }
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writes.borrow_mut().push((offset, data.len()));
        self.memory.write_at(offset, data).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len).await
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn open(storage: impl Storage + 'static, format: Format, writable: bool) -> Image<AnyStorage> {
    let file = File {
        storage: AnyStorage::new(storage),
        name: "disk".into(),
    };
    let options = OpenOptions {
        format: Some(format),
        backing: Backing::Ignore,
        writable,
        ..OpenOptions::default()
    };
    now(Image::open(file, &options, &DenyAll::default())).unwrap()
}

fn raw(bytes: &[u8]) -> Image<AnyStorage> {
    open(Recorder::new(bytes.to_vec()), Format::Raw, false)
}

/// A new image of so many bytes, open for writing.
fn qcow2(options: &CreateOptions) -> Image<AnyStorage> {
    let storage = Recorder::default();
    now(create::create(&storage, None, options)).unwrap();
    open(storage, Format::Qcow2, true)
}

fn content<S: Storage>(image: &Image<S>) -> Vec<u8> {
    let mut bytes = vec![0xee; image.virtual_size() as usize];
    now(image.read_at(GuestOffset(0), &mut bytes)).unwrap();
    bytes
}

fn quiet(_: u64, _: u64) -> bool {
    true
}

/// Text, noise, zeros and a lone byte, 64 KiB of each and then some.
fn disk(length: usize) -> Vec<u8> {
    let mut seed = 1u32;
    let noise = |_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    let mut bytes = b"copy on write ".repeat(5000);
    bytes.extend((0..70_000).map(noise));
    bytes.resize(length - 1, 0);
    bytes.push(1);
    bytes
}

mod to_raw {
    use super::*;

    fn converted(bytes: &[u8], old: Vec<u8>, options: &RawOptions) -> (Vec<u8>, Vec<(u64, usize)>) {
        let target = Recorder::new(old);
        now(super::to_raw(&raw(bytes), &target, options, quiet)).unwrap();
        (target.memory.into_bytes(), target.writes.into_inner())
    }

    #[test]
    fn blocks_of_zeros_are_left_out_unless_they_have_to_be_written() {
        let mut disk = vec![0; 3 << 20];
        disk[4096..12288].fill(1);
        disk[(2 << 20) + 100] = 2;
        let sparse = RawOptions::default();
        let (copy, writes) = converted(&disk, vec![0; disk.len()], &sparse);
        assert_eq!(
            (copy, writes),
            (disk.clone(), vec![(4096, 8192), (2 << 20, 4096)])
        );

        let over_old_content = RawOptions {
            target_is_zero: false,
            ..sparse
        };
        let (copy, _) = converted(&disk, vec![9; disk.len()], &over_old_content);
        assert_eq!(copy, disk);

        let everything = RawOptions {
            sparse: 0,
            ..sparse
        };
        let (_, writes) = converted(&disk, vec![0; disk.len()], &everything);
        assert_eq!(writes, [(0, 2 << 20), (2 << 20, 1 << 20)]);
    }
}

#[test]
fn what_was_copied_reads_back_whatever_the_geometry() {
    for cluster_bits in [9, 12, 14, 16, 21] {
        for (compress, compression) in [
            (false, Compression::Zlib),
            (true, Compression::Zlib),
            (true, Compression::Zstd),
        ] {
            let disk = disk(700 << 10);
            let target = qcow2(&CreateOptions {
                size: disk.len() as u64,
                cluster_size: 1 << cluster_bits,
                extended_l2: cluster_bits == 14,
                compression,
                ..CreateOptions::default()
            });
            let options = ConvertOptions {
                compress,
                buffer: 100_000,
                ..ConvertOptions::default()
            };
            now(to_image(&[&raw(&disk)], &target, &options, quiet)).unwrap();
            assert!(content(&target) == disk, "2^{cluster_bits} {compress}");
            now(target.close()).unwrap();
        }
    }
}

#[test]
fn zeros_take_no_clusters_in_a_new_image() {
    let mut bytes = vec![0; 1 << 20];
    bytes[300_000] = 1;
    for compress in [false, true] {
        let target = qcow2(&CreateOptions {
            size: 1 << 20,
            ..CreateOptions::default()
        });
        let options = ConvertOptions {
            compress,
            ..ConvertOptions::default()
        };
        now(to_image(&[&raw(&bytes)], &target, &options, quiet)).unwrap();
        let data = (0..16).filter(|index| {
            let extent = now(target.extent_at(GuestOffset(index << 16), 1 << 16));
            extent.unwrap().data()
        });
        assert_eq!(data.collect::<Vec<_>>(), [300_000 >> 16]);
    }
}

#[test]
fn what_was_there_is_overwritten() {
    let disk = disk(400 << 10);
    let target = qcow2(&CreateOptions {
        size: 1 << 20,
        extended_l2: true,
        ..CreateOptions::default()
    });
    now(target.write_at(GuestOffset(0), &vec![9; 1 << 20])).unwrap();
    let options = ConvertOptions {
        target_is_new: false,
        ..ConvertOptions::default()
    };
    now(to_image(&[&raw(&disk)], &target, &options, quiet)).unwrap();
    let copy = content(&target);
    assert!(copy[..disk.len()] == disk);
    assert!(copy[disk.len()..].iter().all(|byte| *byte == 9));
}

#[test]
fn disks_follow_one_another_inside_of_clusters() {
    let disk = disk(300 << 10);
    for compress in [false, true] {
        let (first, rest) = disk.split_at(100_352);
        let (second, third) = rest.split_at(512);
        let nothing = raw(&[]);
        let sources = [&raw(first), &nothing, &raw(second), &raw(third)];
        let target = qcow2(&CreateOptions {
            size: disk.len() as u64,
            ..CreateOptions::default()
        });
        let options = ConvertOptions {
            compress,
            ..ConvertOptions::default()
        };
        let mut progress = Vec::new();
        let watch = |done, total| {
            progress.push((done, total));
            true
        };
        now(to_image(&sources, &target, &options, watch)).unwrap();
        assert!(content(&target) == disk);
        let size = disk.len() as u64;
        assert_eq!(progress.last(), Some(&(size, size)));
        assert!(progress.is_sorted());
    }
}

/// Counts what is lost.
#[derive(Default)]
struct Losses(Vec<(Step, u64)>);

impl Watch for &mut Losses {
    fn progress(&mut self, _done: u64, _total: u64) -> bool {
        true
    }

    fn lost(&mut self, what: &Failed) {
        self.0.push((what.step, what.offset));
    }
}

#[test]
fn what_cannot_be_read_is_told_or_salvaged() {
    let disk = vec![7; 64 << 10];
    let damaged = || {
        let storage = Recorder {
            unreadable: vec![5000..5001, 9000..9500],
            ..Recorder::new(disk.clone())
        };
        open(storage, Format::Raw, false)
    };
    let target = || {
        qcow2(&CreateOptions {
            size: 64 << 10,
            ..CreateOptions::default()
        })
    };
    let options = ConvertOptions::default();
    let failed = now(to_image(&[&damaged()], &target(), &options, quiet)).unwrap_err();
    assert_eq!((failed.step, failed.offset), (Step::Reading, 0));

    let options = ConvertOptions {
        salvage: true,
        ..options
    };
    let (target, mut losses) = (target(), Losses::default());
    now(to_image(&[&damaged()], &target, &options, &mut losses)).unwrap();
    let lost = [4608, 8704, 9216];
    assert_eq!(losses.0, lost.map(|at| (Step::Reading, at)));
    let mut expected = disk.clone();
    for at in lost {
        expected[at as usize..][..512].fill(0);
    }
    assert!(content(&target) == expected);
}

#[test]
fn a_copy_that_is_no_longer_wanted_ends() {
    let target = qcow2(&CreateOptions {
        size: 8 << 20,
        ..CreateOptions::default()
    });
    let source = raw(&vec![1; 8 << 20]);
    let mut left = 3;
    let watch = |_, _| {
        left -= 1;
        left > 0
    };
    let failed = now(to_image(
        &[&source],
        &target,
        &ConvertOptions::default(),
        watch,
    ));
    assert!(matches!(failed.unwrap_err().source, Error::Cancelled));
    assert_eq!(left, 0);
}

#[test]
fn a_target_must_be_large_enough_and_able_to_compress() {
    let small = qcow2(&CreateOptions {
        size: 512,
        ..CreateOptions::default()
    });
    let failed = now(to_image(
        &[&raw(&[1; 1024])],
        &small,
        &ConvertOptions::default(),
        quiet,
    ));
    assert!(matches!(failed.unwrap_err().source, Error::OutOfRange(_)));
    let plain = open(Recorder::new(vec![0; 1024]), Format::Raw, true);
    let options = ConvertOptions {
        compress: true,
        ..ConvertOptions::default()
    };
    let failed = now(to_image(&[&raw(&[1; 1024])], &plain, &options, quiet));
    assert!(matches!(failed.unwrap_err().source, Error::Unsupported(_)));
}
