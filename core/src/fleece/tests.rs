use std::io;

use futures_util::FutureExt;

use super::*;
use crate::create::{CreateOptions, create};
use crate::image::{NewSnapshot, ResizeOptions, ZeroMode};
use crate::storage::{AnyStorage, MemoryStorage, SparseMemory};
use crate::units::GuestOffset;

const SIZE: u64 = 256 << 10;
const CLUSTER: u64 = 4096;

fn run(test: impl Future<Output = ()>) {
    test.now_or_never().expect("memory is always ready");
}

fn options() -> OpenOptions {
    OpenOptions {
        writable: true,
        ..OpenOptions::default()
    }
}

async fn opened(storage: impl Storage + 'static, name: &str) -> Image<AnyStorage> {
    let file = File {
        storage: AnyStorage::new(storage),
        name: name.into(),
    };
    let options = OpenOptions {
        format: match name {
            "raw" => Some(Format::Raw),
            _ => Some(Format::Qcow2),
        },
        ..options()
    };
    Image::open(file, &options, &DenyAll::default())
        .await
        .unwrap()
}

async fn qcow2() -> Image<AnyStorage> {
    let storage = MemoryStorage::default();
    let options = CreateOptions {
        size: SIZE,
        cluster_size: CLUSTER,
        ..CreateOptions::default()
    };
    create(&storage, None, &options).await.unwrap();
    opened(storage, "disk").await
}

async fn memory() -> Image<AnyStorage> {
    opened(SparseMemory::new(SIZE), "raw").await
}

async fn content<S: Storage>(image: &Image<S>) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    image.read_at(GuestOffset(0), &mut bytes).await.unwrap();
    bytes
}

/// Every kind of change that a guest can make.
async fn change<S: Storage>(disk: &Image<S>) {
    let at = GuestOffset;
    disk.write_at(at(100), &[9; 50]).await.unwrap();
    disk.write_at(at(2 * CLUSTER), &[8; 3 * CLUSTER as usize])
        .await
        .unwrap();
    disk.write_zeroes(at(6 * CLUSTER + 7), CLUSTER, ZeroMode::Unmap)
        .await
        .unwrap();
    disk.discard(at(9 * CLUSTER), 4 * CLUSTER).await.unwrap();
    disk.write_at(at(SIZE - 1), &[7]).await.unwrap();
}

async fn fill<S: Storage>(disk: &Image<S>) {
    let bytes: Vec<u8> = (0..14 * CLUSTER).map(|at| (at / 100) as u8 | 1).collect();
    disk.write_at(GuestOffset(0), &bytes).await.unwrap();
}

#[test]
fn the_view_stays_what_it_was() {
    run(async {
        let disk = qcow2().await;
        fill(&disk).await;
        let before = content(&disk).await;
        let fleece = disk
            .fleece(memory().await, FleeceOptions::default())
            .await
            .unwrap();
        let view = fleece.image().await.unwrap();
        change(&disk).await;
        assert_ne!(content(&disk).await, before);
        assert_eq!(content(&view).await, before);
        // Clusters 0, 2 to 4, 6, 7, 9 to 12, and the last one.
        assert_eq!(fleece.progress().copied, 11 * CLUSTER);
        let zeros = view
            .extent_at(GuestOffset(14 * CLUSTER), SIZE)
            .await
            .unwrap();
        assert!(zeros.zero());

        // Nothing is copied twice.
        change(&disk).await;
        assert_eq!(fleece.progress().copied, 11 * CLUSTER);
        assert_eq!(content(&view).await, before);
        drop(view);
        drop(fleece);
        disk.write_at(GuestOffset(CLUSTER), &[1]).await.unwrap();
    });
}

#[test]
fn a_raw_disk_and_a_qcow2_target() {
    run(async {
        let disk = opened(MemoryStorage::new(vec![3; SIZE as usize]), "raw").await;
        let before = content(&disk).await;
        let fleece = disk
            .fleece(qcow2().await, FleeceOptions::default())
            .await
            .unwrap();
        change(&disk).await;
        assert_eq!(content(&fleece.image().await.unwrap()).await, before);
    });
}

#[test]
fn what_is_released_is_refused_and_not_copied() {
    run(async {
        let disk = qcow2().await;
        fill(&disk).await;
        let fleece = disk
            .fleece(memory().await, FleeceOptions::default())
            .await
            .unwrap();
        fleece.release(0..8 * CLUSTER + 1).await.unwrap();
        change(&disk).await;
        let progress = fleece.progress();
        assert_eq!(progress.released, 8 * CLUSTER);
        assert_eq!(progress.copied, 5 * CLUSTER);
        let view = fleece.image().await.unwrap();
        let mut sector = [0; 512];
        let refused = view
            .read_at(GuestOffset(8 * CLUSTER - 512), &mut sector)
            .await;
        assert!(format!("{:#}", refused.unwrap_err()).contains("has been released"));
        view.read_at(GuestOffset(8 * CLUSTER), &mut sector)
            .await
            .unwrap();
    });
}

/// A storage that takes no writes any more when it is told so.
struct Full(SparseMemory, std::cell::Cell<bool>);

impl Storage for Full {
    async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }
    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf).await
    }
    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.1.get() {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.0.write_at(offset, data).await,
        }
    }
    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len).await
    }
    async fn flush(&self) -> io::Result<()> {
        self.0.flush().await
    }
}

async fn full() -> (Rc<Full>, Image<AnyStorage>) {
    let full = Rc::new(Full(SparseMemory::new(SIZE), true.into()));
    (full.clone(), opened(full, "raw").await)
}

#[test]
fn a_copy_that_fails_fails_the_guest() {
    run(async {
        let disk = qcow2().await;
        fill(&disk).await;
        let before = content(&disk).await;
        let (storage, target) = full().await;
        let fleece = disk.fleece(target, FleeceOptions::default()).await.unwrap();
        let refused = disk.write_at(GuestOffset(0), &[1]).await;
        assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
        assert_eq!(content(&disk).await, before);
        storage.1.set(false);
        disk.write_at(GuestOffset(0), &[2]).await.unwrap();
        assert_eq!(content(&fleece.image().await.unwrap()).await, before);
    });
}

#[test]
fn a_copy_that_fails_breaks_the_view_for_ever() {
    run(async {
        let disk = qcow2().await;
        fill(&disk).await;
        let (storage, target) = full().await;
        let options = FleeceOptions {
            on_error: OnError::BreakView,
            ..FleeceOptions::default()
        };
        let fleece = disk.fleece(target, options).await.unwrap();
        disk.write_at(GuestOffset(0), &[1]).await.unwrap();
        storage.1.set(false);
        assert!(fleece.broken().is_some());
        let view = fleece.image().await.unwrap();
        let mut byte = [0];
        // Nowhere, not even where nothing was changed.
        let read = view.read_at(GuestOffset(SIZE / 2), &mut byte).await;
        assert!(format!("{:#}", read.unwrap_err()).contains("is broken"));
    });
}

#[test]
fn a_copy_that_takes_too_long_is_an_error() {
    run(async {
        let disk = qcow2().await;
        fill(&disk).await;
        let options = FleeceOptions {
            timeout: Some(Rc::new(|| Box::pin(std::future::ready(())))),
            ..FleeceOptions::default()
        };
        // The copy itself never ends.
        struct Never;
        impl Storage for Never {
            async fn len(&self) -> io::Result<u64> {
                Ok(SIZE)
            }
            async fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<usize> {
                Ok(buf.len())
            }
            async fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
                std::future::pending().await
            }
            async fn set_len(&self, _: u64) -> io::Result<()> {
                Ok(())
            }
            async fn flush(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let target = opened(Never, "raw").await;
        let _fleece = disk.fleece(target, options).await.unwrap();
        let refused = disk.write_at(GuestOffset(0), &[1]).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut),
            "{refused:?}"
        );
    });
}

#[test]
fn a_persistent_copy_is_flushed_before_the_disk_changes() {
    run(async {
        let disk = qcow2().await;
        fill(&disk).await;
        let options = FleeceOptions {
            persistent: true,
            ..FleeceOptions::default()
        };
        let fleece = disk.fleece(qcow2().await, options).await.unwrap();
        let flushes = || fleece.copies.target.io_counts().flushes;
        let before = flushes();
        disk.write_at(GuestOffset(0), &[1; 3 * CLUSTER as usize])
            .await
            .unwrap();
        assert_eq!(flushes() - before, 2);
        disk.write_at(GuestOffset(0), &[1; CLUSTER as usize])
            .await
            .unwrap();
        assert_eq!(flushes() - before, 2);
    });
}

#[test]
fn the_disk_is_not_replaced_under_a_view() {
    run(async {
        let disk = qcow2().await;
        let id = disk.create_snapshot(&NewSnapshot::default()).await.unwrap();
        let fleece = disk
            .fleece(memory().await, FleeceOptions::default())
            .await
            .unwrap();
        let shrink = ResizeOptions {
            shrink: true,
            ..ResizeOptions::default()
        };
        assert!(matches!(
            disk.apply_snapshot(&id).await,
            Err(Error::Refused(_))
        ));
        assert!(matches!(
            disk.resize(CLUSTER, &shrink).await,
            Err(Error::Refused(_))
        ));
        disk.resize(2 * SIZE, &shrink).await.unwrap();
        disk.write_at(GuestOffset(SIZE + 5), &[1]).await.unwrap();
        disk.delete_snapshot(&id).await.unwrap();
        assert_eq!(fleece.image().await.unwrap().virtual_size(), SIZE);
        drop(fleece);
        disk.resize(CLUSTER, &shrink).await.unwrap();
    });
}

#[test]
fn images_that_cannot_be_written_are_refused() {
    run(async {
        let disk = qcow2().await;
        let small = opened(SparseMemory::new(SIZE - 512), "raw").await;
        let refused = disk.fleece(small, FleeceOptions::default()).await;
        assert!(matches!(refused, Err(Error::OutOfRange(_))));
        let file = File {
            storage: SparseMemory::new(SIZE),
            name: "target".into(),
        };
        let options = OpenOptions {
            writable: false,
            format: Some(Format::Raw),
            ..options()
        };
        let target = Image::open(file, &options, &DenyAll::default())
            .await
            .unwrap();
        let refused = disk.fleece(target, FleeceOptions::default()).await;
        assert!(matches!(refused, Err(Error::Refused(_))));
    });
}
