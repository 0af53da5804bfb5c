//! Images in memory: repaired, checked and read, without the files that they name.

use std::rc::Rc;

use oxcow::check::{CheckOptions, Problem, ProblemKind, Watcher, check_with};
use oxcow::storage::AnyStorage;
use oxcow::{
    Backing, DenyAll, File, Format, GuestOffset, Image, IoCounts, MemoryStorage, OpenOptions,
    RepairMode, RepairReport, Storage, repair,
};
use oxcow_tests::scripts::storage::block_on;

const NAME: &str = "disk.qcow2";

/// What a repair or a check said.
#[derive(Default)]
struct Said {
    lines: Vec<String>,
    /// The clusters whose refcount cannot be read.
    unreadable: Vec<u64>,
}

impl Watcher for Said {
    fn problem(&mut self, problem: &Problem) {
        (0..problem.times).for_each(|_| self.lines.push(problem.to_string()));
        if let ProblemKind::RefcountUnreadable { cluster } = problem.kind {
            self.unreadable.push(cluster);
        }
    }
}

/// What came of a repair.
pub struct Repaired {
    pub bytes: Vec<u8>,
    pub report: RepairReport,
    pub said: Vec<String>,
    pub counts: IoCounts,
}

/// A storage that outlives its image.
#[derive(Clone)]
struct Shared(Rc<MemoryStorage>);

impl Storage for Shared {
    async fn len(&self) -> std::io::Result<u64> {
        self.0.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset, data).await
    }

    async fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len).await
    }

    async fn flush(&self) -> std::io::Result<()> {
        self.0.flush().await
    }
}

fn open(storage: impl Storage + 'static, repair: bool) -> oxcow::Result<Image<AnyStorage>> {
    let file = File {
        storage: AnyStorage::new(storage),
        name: NAME.into(),
    };
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        backing: Backing::Ignore,
        data_file: false,
        writable: repair,
        repair,
        ..OpenOptions::default()
    };
    block_on(Image::open(file, &options, &DenyAll::default()))
}

/// Repairs the image in `storage`. The bytes are left out.
pub fn repair(
    storage: impl Storage + 'static,
    mode: RepairMode,
    counter_bytes: usize,
) -> oxcow::Result<Repaired> {
    let image = open(storage, true)?;
    let mut said = Said::default();
    let options = CheckOptions { counter_bytes };
    let report = block_on(repair::repair_with(&image, mode, &options, &mut said))?;
    Ok(Repaired {
        bytes: Vec::new(),
        report,
        said: said.lines,
        counts: image.io_counts(),
    })
}

/// Repairs the image that these bytes are.
pub fn repair_bytes(
    bytes: Vec<u8>,
    mode: RepairMode,
    counter_bytes: usize,
) -> oxcow::Result<Repaired> {
    let storage = Shared(Rc::new(MemoryStorage::new(bytes)));
    let done = repair(storage.clone(), mode, counter_bytes)?;
    let storage = Rc::into_inner(storage.0).expect("the image is closed");
    Ok(Repaired {
        bytes: storage.into_bytes(),
        ..done
    })
}

/// What a check said.
pub struct Checked {
    pub said: Vec<String>,
    /// How many corruptions there are, and refcounts that cannot be read.
    pub wrong: u64,
    /// The clusters whose refcount that is.
    pub unreadable: Vec<u64>,
}

/// Checks the image that these bytes are.
pub fn check(bytes: &[u8]) -> Result<Checked, String> {
    let storage = MemoryStorage::new(bytes.to_vec());
    let image = open(storage, false).map_err(|error| format!("{error:#}"))?;
    let qcow2 = image.top().as_qcow2().ok_or("not qcow2")?;
    let mut said = Said::default();
    let report = block_on(check_with(qcow2, &CheckOptions::default(), &mut said))
        .map_err(|error| format!("{error:#}"))?;
    Ok(Checked {
        said: said.lines,
        wrong: report.corruptions + report.check_errors,
        unreadable: said.unreadable,
    })
}

/// The active disk and every snapshot's, as far as the image itself holds them.
pub fn content(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let in_words = |error: oxcow::Error| format!("{error:#}");
    let mut image = open(MemoryStorage::new(bytes.to_vec()), false).map_err(in_words)?;
    if image
        .top()
        .as_qcow2()
        .is_some_and(|q| q.header().has_data_file())
    {
        return Ok(Vec::new()); // In another file, which nobody touches.
    }
    let snapshots = image.top().as_qcow2().map(|qcow2| qcow2.snapshots());
    let mut disks = Vec::new();
    for snapshot in std::iter::once(None).chain(snapshots.iter().flat_map(|s| s.iter()).map(Some)) {
        if let Some(snapshot) = snapshot {
            block_on(image.use_snapshot(&snapshot.id)).map_err(in_words)?;
        }
        let mut disk = vec![0; image.virtual_size() as usize];
        block_on(image.read_at(GuestOffset(0), &mut disk)).map_err(in_words)?;
        disks.push(disk);
    }
    Ok(disks)
}

/// The pieces of a disk, as far as they can be read.
type Pieces = Vec<Option<Vec<u8>>>;

/// What can be read of an image: the disk, and every snapshot's by its ID.
pub fn readable(bytes: &[u8]) -> Option<Vec<(String, Pieces)>> {
    const PIECE: u64 = 4096;
    let mut image = open(MemoryStorage::new(bytes.to_vec()), false).ok()?;
    let snapshots = image.top().as_qcow2()?.snapshots();
    let mut disks = Vec::new();
    for snapshot in std::iter::once(None).chain(snapshots.iter().map(Some)) {
        if let Some(snapshot) = snapshot
            && block_on(image.use_snapshot(&snapshot.id)).is_err()
        {
            disks.push((snapshot.id.clone(), Vec::new()));
            continue;
        }
        // Claims of petabytes are not followed.
        let mut size = image.virtual_size().min(2 << 20);
        if let Some(snapshot) = snapshot
            && snapshot.disk_size.is_none()
        {
            // Nobody says how large its disk is; what its table does not reach is none of it.
            let header = image.top().as_qcow2()?.header();
            size = size.min(u64::from(snapshot.l1_entries) * header.l1_coverage());
        }
        let pieces = (0..size).step_by(PIECE as usize).map(|at| {
            let mut piece = vec![0; PIECE.min(size - at) as usize];
            let read = block_on(image.read_at(GuestOffset(at), &mut piece));
            read.is_ok().then_some(piece)
        });
        let id = snapshot.map_or(String::new(), |snapshot| snapshot.id.clone());
        disks.push((id, pieces.collect()));
    }
    Some(disks)
}
