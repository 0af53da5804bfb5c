use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::join;

use super::*;
use crate::chain::{File, Resolver, Wanted};
use crate::create::{CreateOptions, create};
use crate::image::{NewSnapshot, OpenOptions, ZeroMode};
use crate::qcow2::Version;
use crate::storage::{AnyStorage, MemoryStorage, give_way};
use crate::units::GuestOffset;

const CLUSTER: u64 = 4096;
const SIZE: u64 = 64 * CLUSTER;

/// Sleeps as long as it takes others to run three times.
#[derive(Default)]
struct Turns(Cell<u64>);

impl Clock for &Turns {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.get())
    }

    async fn sleep(&self, time: Duration) {
        self.0.set(self.0.get() + time.as_millis() as u64);
        for _ in 0..3 {
            give_way().await;
        }
    }
}

/// A source of which the next so many reads fail.
struct Source {
    bytes: MemoryStorage,
    failures: Cell<u32>,
    /// How long each read was.
    reads: RefCell<Vec<u64>>,
}

impl Storage for Source {
    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        give_way().await;
        self.reads.borrow_mut().push(buf.len() as u64);
        if self.failures.get() > 0 {
            self.failures.set(self.failures.get() - 1);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.bytes.read_at(offset, buf).await
    }

    async fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Chain(Rc<Source>);

impl Resolver for Chain {
    type Storage = AnyStorage;

    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<AnyStorage>> {
        Ok(File {
            storage: AnyStorage::new(self.0.clone()),
            name: wanted.name.to_owned(),
        })
    }
}

/// The source's bytes: none of them zero, but for clusters 8 to 15.
fn content(size: u64) -> Vec<u8> {
    let byte = |at: u64| match at / CLUSTER {
        8..16 => 0,
        cluster => (at % 251) as u8 ^ cluster as u8 | 1,
    };
    (0..size).map(byte).collect()
}

struct Setup {
    source: Rc<Source>,
    clone: Rc<MemoryStorage>,
}

impl Setup {
    async fn new(options: CreateOptions, source_size: u64) -> Self {
        let source = Rc::new(Source {
            bytes: MemoryStorage::new(content(source_size)),
            failures: Cell::new(0),
            reads: RefCell::default(),
        });
        let storage = MemoryStorage::default();
        let options = CreateOptions {
            size: SIZE,
            backing_file: Some("source".into()),
            backing_format: Some("raw".into()),
            ..options
        };
        create(&storage, None, &options).await.unwrap();
        Self {
            source,
            clone: Rc::new(storage),
        }
    }

    async fn open(&self) -> Image<AnyStorage> {
        let file = File {
            storage: AnyStorage::new(self.clone.clone()),
            name: "clone".into(),
        };
        let options = OpenOptions {
            writable: true,
            ..OpenOptions::default()
        };
        Image::open(file, &options, &Chain(self.source.clone()))
            .await
            .unwrap()
    }
}

fn small_clusters() -> CreateOptions {
    CreateOptions {
        cluster_size: CLUSTER,
        ..CreateOptions::default()
    }
}

fn batches() -> HydrationOptions {
    HydrationOptions {
        batch_bytes: 4 * CLUSTER,
        ..HydrationOptions::default()
    }
}

async fn read_all(image: &Image<AnyStorage>) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    image.read_at(GuestOffset(0), &mut bytes).await.unwrap();
    bytes
}

fn run(test: impl Future<Output = ()>) {
    let mut test = Box::pin(test);
    for _ in 0..100_000 {
        if test.as_mut().now_or_never().is_some() {
            return;
        }
    }
    panic!("it does not end");
}

#[test]
fn a_clone_fills_and_drops_its_source() {
    for version in [Version::V2, Version::V3] {
        for extended_l2 in [false, version == Version::V3] {
            for source_size in [SIZE, SIZE + CLUSTER, SIZE / 2 + 512] {
                run(async {
                    let options = CreateOptions {
                        version,
                        extended_l2,
                        cluster_size: if extended_l2 { 4 * CLUSTER } else { CLUSTER },
                        ..CreateOptions::default()
                    };
                    let setup = Setup::new(options, source_size).await;
                    let image = setup.open().await;
                    let mut expected = content(source_size);
                    expected.resize(SIZE as usize, 0);
                    image.write_at(GuestOffset(700), &[77; 100]).await.unwrap();
                    expected[700..800].fill(77);

                    let clock = Turns::default();
                    let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
                    assert!(hydration.status().hydrated < hydration.status().total);
                    assert_eq!(hydration.run().await.unwrap(), End::Complete);
                    let status = hydration.status();
                    assert_eq!(status.hydrated, status.total);
                    assert!(read_all(&image).await == expected);
                    image.close().await.unwrap();

                    let again = setup.open().await;
                    assert_eq!(again.layers().len(), 1);
                    assert!(read_all(&again).await == expected);
                    let qcow2 = again.top().as_qcow2().unwrap();
                    let report = crate::check::check(qcow2, &mut ()).await.unwrap();
                    assert!(report.is_clean(), "{report:?}");
                });
            }
        }
    }
}

#[test]
fn zeros_take_no_room() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let clock = Turns::default();
        let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
        hydration.run().await.unwrap();
        let extent = image
            .extent_at(GuestOffset(8 * CLUSTER), SIZE)
            .await
            .unwrap();
        assert!(extent.zero() && extent.host.is_none());
        assert_eq!(extent.length, 8 * CLUSTER);
    });
}

#[test]
fn the_first_fetches_are_of_different_lengths_so_that_they_take_turns_on_a_link() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let clock = Turns::default();
        let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
        hydration.run().await.unwrap();
        let reads = setup.source.reads.borrow();
        let lengths: Vec<u64> = reads.iter().map(|length| length / CLUSTER).collect();
        assert_eq!(lengths[..4], [1, 2, 3, 4]);
        assert!(
            lengths[4..13].iter().all(|&length| length == 4),
            "{lengths:?}"
        );
    });
}

#[test]
fn what_is_read_is_kept() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let clock = Turns::default();
        let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
        let mut sector = [0; 512];
        let at = GuestOffset(5 * CLUSTER + 512);
        image.read_at(at, &mut sector).await.unwrap();
        assert_eq!(sector, content(SIZE)[at.0 as usize..][..512]);
        let reads = setup.source.reads.borrow().len();
        image
            .read_at(GuestOffset(5 * CLUSTER), &mut sector)
            .await
            .unwrap();
        assert_eq!(setup.source.reads.borrow().len(), reads);
        drop(hydration);
        image
            .read_at(GuestOffset(6 * CLUSTER), &mut sector)
            .await
            .unwrap();
        image
            .read_at(GuestOffset(6 * CLUSTER), &mut sector)
            .await
            .unwrap();
        assert_eq!(setup.source.reads.borrow().len(), reads + 2);
    });
}

#[test]
fn the_guest_goes_on_and_wins() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let clock = Turns::default();
        let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
        let mut expected = content(SIZE);
        let guest = async {
            for cluster in 0..64 {
                let at = cluster * CLUSTER;
                match cluster % 4 {
                    0 => image
                        .write_at(GuestOffset(at), &[5; CLUSTER as usize])
                        .await
                        .unwrap(),
                    1 => image.write_at(GuestOffset(at + 9), &[6; 9]).await.unwrap(),
                    2 => image
                        .write_zeroes(GuestOffset(at), CLUSTER, ZeroMode::Unmap)
                        .await
                        .unwrap(),
                    _ => {}
                }
                give_way().await;
            }
        };
        for cluster in 0..64 {
            let at = (cluster * CLUSTER) as usize;
            match cluster % 4 {
                0 => expected[at..at + CLUSTER as usize].fill(5),
                1 => expected[at + 9..at + 18].fill(6),
                2 => expected[at..at + CLUSTER as usize].fill(0),
                _ => {}
            }
        }
        let (end, ()) = join(hydration.run(), guest).await;
        assert_eq!(end.unwrap(), End::Complete);
        assert!(read_all(&image).await == expected);
    });
}

#[test]
fn a_source_that_fails_is_asked_again_but_not_for_ever() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let clock = Turns::default();
        let options = HydrationOptions {
            threshold: 1,
            retries: 3,
            ..batches()
        };
        let hydration = Hydration::new(&image, &clock, options).await.unwrap();
        setup.source.failures.set(4);
        let failed = hydration.run().await;
        assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
        assert_eq!(hydration.status().state, HydrationState::Failed);
        setup.source.failures.set(3);
        assert_eq!(hydration.run().await.unwrap(), End::Complete);
        assert_eq!(hydration.status().retries, 6);
        assert!(read_all(&image).await == content(SIZE));
    });
}

#[test]
fn another_source_is_noticed_and_nothing_of_it_kept() {
    for length in [SIZE / 2, SIZE + 512] {
        run(async {
            let setup = Setup::new(small_clusters(), SIZE).await;
            let image = setup.open().await;
            let clock = Turns::default();
            let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
            let mut sector = [0; 512];
            image.read_at(GuestOffset(0), &mut sector).await.unwrap();
            setup.source.bytes.set_len(length).await.unwrap();
            let options = hydration.options.clone();
            let failed = hydration.run().await;
            assert!(
                matches!(failed, Err(Error::Refused(_) | Error::Io { .. })),
                "{options:?}: {failed:?}"
            );
            let read = image.read_at(GuestOffset(SIZE - 512), &mut sector).await;
            assert!(read.is_err(), "never zeros");
            // What is there keeps working.
            image.read_at(GuestOffset(0), &mut sector).await.unwrap();
            assert_eq!(sector, content(SIZE)[..512]);
            assert_eq!(HydrationStatus::of(&image).await.unwrap().hydrated, 1);
        });
    }
}

#[test]
fn a_snapshot_keeps_the_source() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let id = image
            .create_snapshot(&NewSnapshot::default())
            .await
            .unwrap();
        let clock = Turns::default();
        let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
        let end = hydration.run().await.unwrap();
        assert_eq!(end, End::NeededBySnapshot(id.clone()));
        assert_eq!(image.layers().len(), 2);
        image.delete_snapshot(&id).await.unwrap();
        // One that was taken when everything was there needs nothing.
        image
            .create_snapshot(&NewSnapshot::default())
            .await
            .unwrap();
        assert_eq!(hydration.run().await.unwrap(), End::Complete);
    });
}

#[test]
fn it_stops_and_goes_on_where_it_was() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let clock = Turns::default();
        let options = HydrationOptions {
            threshold: 1,
            ..batches()
        };
        let hydration = Hydration::new(&image, &clock, options).await.unwrap();
        let stop = async {
            while hydration.status().hydrated < 20 {
                give_way().await;
            }
            hydration.pause();
            for _ in 0..50 {
                give_way().await;
            }
            let paused = hydration.status().hydrated;
            assert_eq!(hydration.status().state, HydrationState::Paused);
            for _ in 0..50 {
                give_way().await;
            }
            assert_eq!(hydration.status().hydrated, paused);
            hydration.resume();
            while hydration.status().hydrated < 40 {
                give_way().await;
            }
            hydration.cancel();
        };
        let (end, ()) = join(hydration.run(), stop).await;
        assert_eq!(end.unwrap(), End::Cancelled);
        drop(hydration);
        drop(image);

        let image = setup.open().await;
        let hydration = Hydration::new(&image, &clock, batches()).await.unwrap();
        let there = hydration.status().hydrated;
        assert!((40..64).contains(&there), "{there}");
        assert_eq!(hydration.run().await.unwrap(), End::Complete);
        let fetched = hydration.status().fetched_bytes;
        assert_eq!(fetched, (64 - there) * CLUSTER);
    });
}

#[test]
fn the_rate_is_kept() {
    run(async {
        let setup = Setup::new(small_clusters(), SIZE).await;
        let image = setup.open().await;
        let clock = Turns::default();
        let options = HydrationOptions {
            limit_rate: Some(SIZE / 10),
            commit_every: Duration::ZERO,
            quiet: Duration::ZERO,
            ..batches()
        };
        let hydration = Hydration::new(&image, &clock, options).await.unwrap();
        hydration.run().await.unwrap();
        // Four workers sleep at the same time: each for its own batches at least.
        let seconds = (&clock).now().as_secs();
        assert!(seconds >= 9, "{seconds}");
    });
}
