use std::cell::RefCell;
use std::io;

use futures_util::FutureExt;

use super::*;
use crate::check::check;
use crate::storage::{AnyStorage, MemoryStorage, read_padded};
use crate::{DenyAll, File, GuestOffset, Image, OpenOptions};

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory is always ready")
}

fn created(options: &CreateOptions) -> Vec<u8> {
    let (storage, data) = (MemoryStorage::default(), MemoryStorage::default());
    let data = options.data_file.is_some().then_some(&data);
    now(create(&storage, data, options)).unwrap();
    storage.into_bytes()
}

fn alone() -> OpenOptions {
    OpenOptions {
        backing: crate::Backing::Ignore,
        data_file: false,
        ..OpenOptions::default()
    }
}

fn open(bytes: Vec<u8>) -> Result<Image<AnyStorage>> {
    let file = File {
        storage: AnyStorage::new(MemoryStorage::new(bytes)),
        name: "new.qcow2".into(),
    };
    let options = OpenOptions {
        format: Some(crate::Format::Qcow2),
        ..alone()
    };
    now(Image::open(file, &options, &DenyAll::default()))
}

/// Every geometry there is a rule about, preallocated and not.
fn geometries() -> impl Iterator<Item = CreateOptions> {
    let sizes = [0u64, 1, 512, 1_000_000, 3 << 20, (5 << 20) + 512];
    let combinations = (9..=21u32).flat_map(move |bits| {
        (0..=6u32).flat_map(move |order| sizes.map(move |size| (bits, order, size)))
    });
    combinations.flat_map(|(bits, order, size)| {
        let plain = CreateOptions {
            size,
            cluster_size: 1 << bits,
            refcount_bits: 1 << order,
            ..CreateOptions::default()
        };
        let metadata = CreateOptions {
            preallocation: Preallocation::Metadata,
            ..plain.clone()
        };
        let full = CreateOptions {
            preallocation: Preallocation::Full,
            ..plain.clone()
        };
        let extended = CreateOptions {
            extended_l2: true,
            ..metadata.clone()
        };
        let data_file = CreateOptions {
            data_file: Some("data.raw".into()),
            ..metadata.clone()
        };
        [plain, metadata, full, data_file]
            .into_iter()
            .chain((bits >= 14).then_some(extended))
    })
}

#[test]
fn every_new_image_is_clean() {
    for options in geometries() {
        let image = open(created(&options)).unwrap();
        assert_eq!(
            image.virtual_size(),
            options.size.next_multiple_of(SECTOR),
            "{options:?}"
        );
        let qcow2 = image.top().as_qcow2().unwrap();
        let report = now(check(qcow2, &mut ())).unwrap();
        assert!(report.is_clean(), "{options:?}: {report:?}");
    }
}

#[test]
fn every_preallocated_cluster_has_its_place() {
    for options in geometries() {
        let standard = options.preallocation != Preallocation::Off
            && options.data_file.is_none()
            && !options.extended_l2;
        if !standard {
            continue;
        }
        let bytes = created(&options);
        let length = bytes.len() as u64;
        let image = open(bytes).unwrap();
        let mut places = std::collections::HashSet::new();
        let mut at = 0;
        while at < image.virtual_size() {
            let extent = now(image.extent_at(GuestOffset(at), options.cluster_size)).unwrap();
            assert_eq!(extent.kind, crate::ExtentKind::Data);
            let host = extent.host.unwrap().0;
            assert!(host + extent.length <= length && places.insert(host));
            at += extent.length;
        }
    }
}

/// Keeps a list of what it is asked to do.
#[derive(Default)]
struct Recorder {
    bytes: MemoryStorage,
    steps: RefCell<Vec<Step>>,
    /// As a device is: its length cannot be changed.
    fixed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Write(u64, Vec<u8>),
    Length(u64),
    Flush,
}

impl Storage for Recorder {
    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }
    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.bytes.read_at(offset, buf).await
    }
    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let step = Step::Write(offset, data.to_vec());
        self.steps.borrow_mut().push(step);
        self.bytes.write_at(offset, data).await
    }
    async fn set_len(&self, len: u64) -> io::Result<()> {
        if self.fixed {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.steps.borrow_mut().push(Step::Length(len));
        self.bytes.set_len(len).await
    }
    async fn flush(&self) -> io::Result<()> {
        self.steps.borrow_mut().push(Step::Flush);
        Ok(())
    }
}

fn preallocated() -> CreateOptions {
    CreateOptions {
        size: 1 << 20,
        cluster_size: 4096,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    }
}

/// Between two flushes anything may be lost. So: nothing before the first flush may make the file an image,
/// and after it only the header, one sector, is written.
#[test]
fn a_cut_leaves_no_image_or_a_whole_one() {
    let with_names = CreateOptions {
        cluster_size: 65536,
        extended_l2: true,
        backing_file: Some("b".repeat(1023)),
        backing_format: Some("raw".into()),
        ..preallocated()
    };
    for options in [CreateOptions::default(), preallocated(), with_names] {
        let storage = Recorder::default();
        now(create(&storage, None, &options)).unwrap();
        let steps = storage.steps.into_inner();
        let flushes: Vec<usize> = (0..steps.len())
            .filter(|&index| steps[index] == Step::Flush)
            .collect();
        assert_eq!(flushes, [steps.len() - 3, steps.len() - 1]);
        for step in &steps[..flushes[0]] {
            assert!(!matches!(step, Step::Write(..512, _)), "{step:?}");
        }
        let Step::Write(0, header) = &steps[flushes[0] + 1] else {
            panic!("the header comes last");
        };
        assert_eq!(header.len(), 512);
        assert_eq!(header[..4], MAGIC.to_be_bytes());
    }
}

#[test]
fn an_older_image_is_gone_before_anything_of_the_new_one_is_written() {
    let old = created(&preallocated());
    let storage = Recorder {
        bytes: MemoryStorage::new(old),
        ..Recorder::default()
    };
    let options = CreateOptions {
        size: 3 << 20,
        ..CreateOptions::default()
    };
    now(create(&storage, None, &options)).unwrap();
    let steps = storage.steps.into_inner();
    assert_eq!(steps[..2], [Step::Length(0), Step::Flush]);
    assert_eq!(steps.iter().filter(|&step| *step == Step::Flush).count(), 3);
    assert_eq!(storage.bytes.into_bytes(), created(&options));
}

#[test]
fn a_device_full_of_garbage_becomes_a_clean_image() {
    let storage = Recorder {
        bytes: MemoryStorage::new(vec![0xa5; 4 << 20]),
        fixed: true,
        ..Recorder::default()
    };
    now(create(&storage, None, &preallocated())).unwrap();
    assert_eq!(
        storage.steps.borrow()[..2],
        [Step::Write(0, vec![0; 512]), Step::Flush]
    );
    let image = open(storage.bytes.into_bytes()).unwrap();
    let qcow2 = image.top().as_qcow2().unwrap();
    assert!(now(check(qcow2, &mut ())).unwrap().is_clean());
    // What was there before does not show.
    let mut disk = vec![1; 1 << 20];
    now(image.read_at(GuestOffset(0), &mut disk)).unwrap();
    assert!(disk.iter().all(|&byte| byte == 0));

    // And it is an error where the device is too small.
    let storage = Recorder {
        bytes: MemoryStorage::new(vec![0xa5; 1 << 20]),
        fixed: true,
        ..Recorder::default()
    };
    let error = now(create(&storage, None, &preallocated())).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

#[test]
fn the_data_file_is_durable_before_the_image_names_it() {
    let options = CreateOptions {
        size: 100_000,
        data_file: Some("data.raw".into()),
        data_file_raw: true,
        ..CreateOptions::default()
    };
    let (storage, data) = (Recorder::default(), Recorder::default());
    now(create(&storage, Some(&data), &options)).unwrap();
    // Allocated as a whole: its content is the disk's.
    assert_eq!(
        data.steps.into_inner(),
        [Step::Length(131_072), Step::Flush]
    );
    let image = open(storage.bytes.into_bytes()).unwrap();
    let extent = now(image.extent_at(GuestOffset(0), 1 << 20)).unwrap();
    assert_eq!(
        (extent.kind, extent.host.map(|host| host.0)),
        (crate::ExtentKind::Data, Some(0))
    );

    let missing = now(create(&Recorder::default(), None, &options)).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "'data-file' is required for this image"
    );
    let (one, two) = (Recorder::default(), Recorder::default());
    assert!(now(create(&one, Some(&two), &CreateOptions::default())).is_err());
}

#[test]
fn full_and_falloc_write_every_byte_of_data() {
    for preallocation in [Preallocation::Falloc, Preallocation::Full] {
        let options = CreateOptions {
            preallocation,
            ..preallocated()
        };
        let storage = Recorder::default();
        now(create(&storage, None, &options)).unwrap();
        let image = open(created(&options)).unwrap();
        let extent = now(image.extent_at(GuestOffset(0), 1 << 20)).unwrap();
        let host = extent.host.unwrap().0;
        let steps = storage.steps.into_inner();
        let zeros: u64 = steps
            .iter()
            .filter_map(|step| match step {
                Step::Write(at, data) if *at >= host && data.iter().all(|&byte| byte == 0) => {
                    Some(data.len() as u64)
                }
                _ => None,
            })
            .sum();
        assert_eq!(zeros, 1 << 20);
    }
}

/// Takes everything and keeps nothing but its length.
#[derive(Default)]
struct Sink {
    length: RefCell<u64>,
    largest: RefCell<usize>,
}

impl Storage for Sink {
    async fn len(&self) -> io::Result<u64> {
        Ok(*self.length.borrow())
    }
    async fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("nothing is read")
    }
    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(offset + data.len() as u64 <= *self.length.borrow());
        let mut largest = self.largest.borrow_mut();
        *largest = data.len().max(*largest);
        Ok(())
    }
    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.length.replace(len);
        Ok(())
    }
    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_tables_of_a_very_large_disk_are_written_piece_by_piece() {
    for bits in [16, 21] {
        let options = CreateOptions {
            size: 64 << 40,
            cluster_size: 1 << bits,
            preallocation: Preallocation::Metadata,
            ..CreateOptions::default()
        };
        let sink = Sink::default();
        now(create(&sink, None, &options)).unwrap();
        assert!(sink.length.into_inner() > 64 << 40);
        assert!(sink.largest.into_inner() <= 2 << 20);
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    let refused = |options: CreateOptions, words: &str| {
        let storage = Recorder {
            bytes: MemoryStorage::new(b"precious".to_vec()),
            ..Recorder::default()
        };
        let error = now(create(&storage, Some(&Recorder::default()), &options)).unwrap_err();
        assert!(
            error.to_string().starts_with(words),
            "{error} is not {words}"
        );
        assert!(storage.steps.into_inner().is_empty());
        assert_eq!(storage.bytes.into_bytes(), b"precious");
    };
    let plain = CreateOptions::default;
    let old = || CreateOptions {
        version: Version::V2,
        ..plain()
    };
    let backed = || CreateOptions {
        backing_file: Some("base".into()),
        backing_format: Some("raw".into()),
        ..plain()
    };
    for cluster_size in [0, 1, 256, 1000, 4 << 20, u64::MAX] {
        let options = CreateOptions {
            cluster_size,
            ..plain()
        };
        refused(options, "Cluster size must be a power of two");
    }
    for refcount_bits in [0, 3, 128, u64::MAX] {
        let options = CreateOptions {
            refcount_bits,
            ..plain()
        };
        refused(options, "Refcount width must be a power of two");
    }
    for size in [(64 << 50) + 1, i64::MAX as u64, u64::MAX] {
        let options = CreateOptions { size, ..plain() };
        refused(options, "The image size is too large");
    }
    refused(
        CreateOptions {
            refcount_bits: 8,
            ..old()
        },
        "Different refcount widths",
    );
    refused(
        CreateOptions {
            lazy_refcounts: true,
            ..old()
        },
        "Lazy refcounts only supported",
    );
    refused(
        CreateOptions {
            extended_l2: true,
            ..old()
        },
        "Extended L2 entries are only supported with compatibility",
    );
    refused(
        CreateOptions {
            compression: Compression::Zstd,
            ..old()
        },
        "Non-zlib compression type",
    );
    refused(
        CreateOptions {
            data_file: Some("data".into()),
            ..old()
        },
        "External data files are only supported",
    );
    refused(
        CreateOptions {
            extended_l2: true,
            cluster_size: 8192,
            ..plain()
        },
        "Extended L2 entries are only supported with cluster sizes",
    );
    refused(
        CreateOptions {
            data_file_raw: true,
            ..plain()
        },
        "data-file-raw requires data-file",
    );
    refused(
        CreateOptions {
            data_file: Some("data".into()),
            data_file_raw: true,
            ..backed()
        },
        "Backing file and data-file-raw",
    );
    refused(
        CreateOptions {
            preallocation: Preallocation::Metadata,
            ..backed()
        },
        "Backing file and preallocation",
    );
    refused(
        CreateOptions {
            backing_format: None,
            ..backed()
        },
        "Backing file specified without backing format",
    );
    refused(
        CreateOptions {
            backing_file: None,
            ..backed()
        },
        "Backing format cannot be used without backing file",
    );
    refused(
        CreateOptions {
            backing_file: Some("b".repeat(1024)),
            ..backed()
        },
        "Could not assign backing file",
    );
    refused(
        CreateOptions {
            backing_file: Some("b".repeat(377)),
            cluster_size: 512,
            ..backed()
        },
        "Could not assign backing file",
    );
    refused(
        CreateOptions {
            data_file: Some("d".repeat(400)),
            cluster_size: 512,
            ..plain()
        },
        "Could not update qcow2 header",
    );
    // More clusters than the largest refcount table can count.
    refused(
        CreateOptions {
            size: 64 << 30,
            cluster_size: 512,
            refcount_bits: 64,
            preallocation: Preallocation::Metadata,
            ..plain()
        },
        "The image size is too large",
    );
}

#[test]
fn everything_asked_for_stands_in_the_header() {
    let options = CreateOptions {
        size: 1001,
        cluster_size: 32 << 10,
        refcount_bits: 4,
        extended_l2: true,
        lazy_refcounts: true,
        compression: Compression::Zstd,
        backing_file: Some("../base.qcow2".into()),
        backing_format: Some("qcow2".into()),
        data_file: Some("data.raw".into()),
        ..CreateOptions::default()
    };
    let bytes = created(&options);
    let mut start = [0; 4096];
    now(read_padded(
        &MemoryStorage::new(bytes.clone()),
        0,
        &mut start,
    ))
    .unwrap();
    // Within reach of a change of the first sector.
    let stands_in_front = |text: &[u8]| start[..512].windows(text.len()).any(|at| at == text);
    assert!(stands_in_front(b"qcow2") && stands_in_front(b"data.raw"));

    let image = open(bytes).unwrap();
    let qcow2 = image.top().as_qcow2().unwrap();
    let header = qcow2.header();
    assert_eq!(header.size, 1024);
    assert_eq!(header.cluster_size.bytes(), 32 << 10);
    assert_eq!(header.refcount_width.bits(), 4);
    assert!(header.extended_l2() && header.has_data_file());
    assert!(header.compatible.has(Compatible::LAZY_REFCOUNTS));
    assert_eq!(header.compression, Compression::Zstd);
    let backing = qcow2.backing().expect("there is one");
    assert_eq!(
        (backing.name.as_str(), backing.format.as_deref()),
        ("../base.qcow2", Some("qcow2"))
    );
    let extensions = qcow2.extensions();
    assert_eq!(extensions.data_file.as_deref(), Some("data.raw"));
    assert_eq!(extensions.feature_names.len(), 8);
}

#[test]
fn version_2_has_what_version_2_has() {
    let options = CreateOptions {
        size: 100 << 20,
        version: Version::V2,
        backing_file: Some("base.raw".into()),
        backing_format: Some("raw".into()),
        ..CreateOptions::default()
    };
    let image = open(created(&options)).unwrap();
    let qcow2 = image.top().as_qcow2().unwrap();
    assert_eq!(
        (qcow2.header().version, qcow2.header().length),
        (Version::V2, 72)
    );
    assert!(qcow2.extensions().feature_names.is_empty());
    assert_eq!(qcow2.backing().unwrap().format.as_deref(), Some("raw"));
}
