//! What is proven: an engine that a script can be run on. There are two, oxcow and a model of QEMU's order
//! ([`super::qemu_order`]).

use std::future::pending;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use oxcow::commit::{CommitError, CommitOptions, commit};
use oxcow::create::CreateOptions;
use oxcow::hydrate::{Clock, Hydration, HydrationOptions};
use oxcow::image::{NewSnapshot, Preallocation, ResizeOptions};
use oxcow::qcow2::{Bitmap, Compatible, Version};
use oxcow::rebase::{RebaseOptions, keep_differences};
use oxcow::repair::{RepairMode, repair};
use oxcow::storage::give_way;
use oxcow::{
    AmendOptions, Backing, BackingName, DenyAll, Error, File, Format, GuestOffset, HostOffset,
    Image, MemoryStorage, OpenOptions, Resolver, Role, Storage, VmStateOffset, Wanted, ZeroMode,
};

use oxcow::storage::AnyStorage;

use super::disk::{Queue, SimDisk};
use super::machine::{FileId, Machine};
use super::script::{BitmapRequest, COPIED_BITMAP, NEW_BITMAP, Request};
use super::starts::OTHER_BACKING;

/// Why an engine did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It does not do such things: nothing was changed.
    Refused(String),
    /// The storage failed.
    Io(String),
    /// Something failed before, and it does nothing more.
    Stopped(String),
    /// It finds the image damaged.
    Corrupt(String),
}

/// An engine with an image open for writing.
#[allow(async_fn_in_trait)] // Single-threaded.
pub trait Engine: Sized {
    /// The name in messages.
    const NAME: &'static str;

    /// Opens the image of a machine.
    async fn open(machine: &Rc<Machine>, queue: Option<&Rc<Queue>>) -> Result<Self, Failure>;

    /// Does what is asked for.
    async fn ask(&self, request: &Request) -> Result<(), Failure>;

    /// Fills the image from its backing file, where the engine can do that in the background of anything else.
    async fn hydrate(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Reads guest bytes.
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure>;

    /// Reads the beginning of the state of a virtual machine, where the engine knows of one.
    async fn read_vm_state(&self, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(0);
        Ok(())
    }

    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// The image's version and whether it has a backing file, where the engine can change that.
    fn version(&self) -> Option<(u32, bool)> {
        None
    }
}

/// The engine that this project is about.
pub struct Oxcow {
    image: Image<AnyStorage>,
    disk: SimDisk,
}

/// Opens the machine's own files, whatever the image calls them.
struct Siblings(SimDisk);

impl Resolver for Siblings {
    type Storage = AnyStorage;

    async fn resolve(&self, wanted: &Wanted<'_>) -> oxcow::Result<File<AnyStorage>> {
        let file = match wanted.role {
            Role::Backing if wanted.name == OTHER_BACKING => FileId::Data,
            Role::Backing => FileId::Backing,
            Role::DataFile => FileId::Data,
        };
        Ok(File {
            storage: AnyStorage::new(self.0.sibling(file)),
            name: wanted.name.to_owned(),
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let words = format!("{error:#}");
        match error {
            Error::Io { .. } => Self::Io(words),
            Error::Stopped(_) => Self::Stopped(words),
            Error::Corrupt { .. } | Error::NotThisFormat(_) => Self::Corrupt(words),
            _ => Self::Refused(words),
        }
    }
}

/// Opens the image of a machine for writing, with its data file and its backing file. `disk` is one of its files.
///
/// # Errors
///
/// Those of [`Image::open`].
pub async fn open_image(disk: &SimDisk) -> oxcow::Result<Image<AnyStorage>> {
    let resolver = Siblings(disk.clone());
    let file = File {
        storage: AnyStorage::new(disk.sibling(FileId::Image)),
        name: "image.qcow2".into(),
    };
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        writable: true,
        ..OpenOptions::default()
    };
    let image = Image::open(file, &options, &resolver).await?;
    // Where the image asks for it, as `io` does.
    let lazy = image.top().as_qcow2().is_some_and(|qcow2| {
        let compatible = qcow2.header().compatible;
        compatible.has(Compatible::LAZY_REFCOUNTS)
    });
    image.set_lazy_refcounts(lazy);
    Ok(image)
}

/// Commits everything to the backing file, as a program of its own does it. `image` must be opened again then.
async fn commit_image(Oxcow { image, disk }: &Oxcow) -> oxcow::Result<()> {
    image.close().await?;
    let resolver = Siblings(disk.clone());
    let open = |file, format, backing| {
        let file = File {
            storage: AnyStorage::new(disk.sibling(file)),
            name: "image.qcow2".into(),
        };
        let options = OpenOptions {
            format: Some(format),
            writable: true,
            backing,
            ..OpenOptions::default()
        };
        let resolver = &resolver;
        async move { Image::open(file, &options, resolver).await }
    };
    let overlay = open(FileId::Image, Format::Qcow2, Backing::First(1)).await?;
    let base = open(FileId::Backing, Format::Raw, Backing::Open).await?;
    let options = CommitOptions {
        // Several pieces.
        buffer: 16 << 10,
        ..CommitOptions::default()
    };
    let committed = commit(&overlay, &base, &options, |_, _| true).await;
    committed.map_err(|error| match error {
        CommitError::Growing(error) | CommitError::Emptying(error) => error,
        CommitError::Copying(failed) => failed.source,
    })?;
    overlay.close().await
}

/// Has the image stand on another file. It must be opened again then.
async fn rebase_image(Oxcow { image, disk }: &Oxcow, backing: Option<&str>) -> oxcow::Result<()> {
    let file = File {
        storage: AnyStorage::new(disk.sibling(FileId::Data)),
        name: OTHER_BACKING.into(),
    };
    let options = OpenOptions {
        format: Some(Format::Raw),
        ..OpenOptions::default()
    };
    let other = Image::open(file, &options, &Siblings(disk.clone())).await?;
    let options = RebaseOptions {
        // Several pieces.
        buffer: 16 << 10,
        ..RebaseOptions::default()
    };
    let new = backing.map(|_| &other);
    let kept = keep_differences(image, new, &options, |_, _| true).await;
    kept.map_err(|failed| failed.source)?;
    let name = backing.map(|name| BackingName {
        name: name.into(),
        format: Some("raw".into()),
    });
    image.set_backing(name.as_ref()).await
}

async fn change_bitmaps(image: &Image<AnyStorage>, request: BitmapRequest) -> oxcow::Result<()> {
    let qcow2 = image.top().as_qcow2();
    let bitmaps = match qcow2 {
        Some(qcow2) => qcow2.bitmaps().await?,
        None => Vec::new(),
    };
    let name = |at: Option<&Bitmap>| at.map_or(NEW_BITMAP.to_owned(), |it| it.name.clone());
    let (first, last) = (name(bitmaps.first()), name(bitmaps.last()));
    match request {
        BitmapRequest::Add => image.add_bitmap(NEW_BITMAP, Some(512), false).await,
        BitmapRequest::Merge => {
            let same: Option<&Image<AnyStorage>> = None;
            image.merge_bitmap(NEW_BITMAP, same, &first).await
        }
        BitmapRequest::Clear => image.clear_bitmap(NEW_BITMAP).await,
        BitmapRequest::Disable => image.enable_bitmap(&first, false).await,
        BitmapRequest::Remove => image.remove_bitmap(&last).await,
        BitmapRequest::Copy => {
            let source = with_a_bitmap(image.virtual_size()).await?;
            let qcow2 = source.top().as_qcow2();
            let bitmaps = match qcow2 {
                Some(qcow2) => qcow2.bitmaps().await?,
                None => Vec::new(),
            };
            image.copy_bitmaps(&source, &bitmaps).await
        }
    }
}

/// Another image of the same size, with a bitmap that says something and is switched off.
async fn with_a_bitmap(size: u64) -> oxcow::Result<Image<AnyStorage>> {
    let storage = AnyStorage::new(MemoryStorage::default());
    let options = CreateOptions {
        size,
        ..CreateOptions::default()
    };
    oxcow::create::create(&storage, None, &options).await?;
    let file = File {
        storage,
        name: "other.qcow2".into(),
    };
    let options = OpenOptions {
        writable: true,
        ..OpenOptions::default()
    };
    let image = Image::open(file, &options, &DenyAll::default()).await?;
    image.add_bitmap(COPIED_BITMAP, Some(1024), true).await?;
    image.write_at(GuestOffset(0), &[1; 512]).await?;
    image.close().await?;
    image.enable_bitmap(COPIED_BITMAP, false).await?;
    Ok(image)
}

/// A clock for simulated machines: time passes when others have run. A second never passes.
pub struct SimClock;

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, time: Duration) {
        if time >= Duration::from_secs(1) {
            return pending().await;
        }
        give_way().await;
    }
}

/// Two batches of 4 KiB at once, and a commit every 8 KiB.
#[must_use]
pub fn small_hydration() -> HydrationOptions {
    HydrationOptions {
        batch_bytes: 4 << 10,
        threshold: 2,
        commit_bytes: 8 << 10,
        commit_every: Duration::from_secs(1),
        quiet: Duration::from_millis(1),
        patience: Duration::from_millis(2),
        retries: 0,
        ..HydrationOptions::default()
    }
}

/// Writes by the short way where there is one, and else as everybody does. An error of the storage's is told: it is not
/// tried again.
async fn overwrite(oxcow: &Oxcow, at: GuestOffset, bytes: &[u8]) -> Result<(), Failure> {
    let mut failed = None;
    let write = |storage: &AnyStorage, host: HostOffset, part: Range<usize>| {
        match storage.write_at(host.0, &bytes[part]).now_or_never() {
            Some(Ok(())) => return true,
            Some(Err(error)) => failed = Some(Failure::Io(error.to_string())),
            None => {}
        }
        false
    };
    let image = &oxcow.image;
    let at_once = oxcow.disk.answers_at_once();
    if at_once && image.overwrite_now(at, bytes.len(), write) {
        return Ok(());
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(image.write_at(at, bytes).await?),
    }
}

async fn ask(oxcow: &Oxcow, request: &Request) -> Result<(), Failure> {
    let image = &oxcow.image;
    match request {
        Request::Write(at, bytes) => image.write_at(GuestOffset(*at), bytes).await?,
        Request::Overwrite(at, bytes) => overwrite(oxcow, GuestOffset(*at), bytes).await?,
        Request::WriteCompressed(at, bytes) => {
            image.write_compressed(GuestOffset(*at), bytes).await?;
        }
        Request::WriteState(at, bytes) => image.write_vm_state(VmStateOffset(*at), bytes).await?,
        Request::Zeroes(at, length, unmap) => {
            let mode = if *unmap {
                ZeroMode::Unmap
            } else {
                ZeroMode::Keep
            };
            image.write_zeroes(GuestOffset(*at), *length, mode).await?;
        }
        Request::Discard(at, length) => image.discard(GuestOffset(*at), *length).await?,
        Request::Flush => image.flush().await?,
        Request::Create(name, vm_state) => {
            let snapshot = NewSnapshot {
                name: name.clone(),
                vm_state: vm_state.clone(),
                ..NewSnapshot::default()
            };
            image.create_snapshot(&snapshot).await?;
        }
        Request::Apply(id) => image.apply_snapshot(id).await?,
        Request::Delete(id) => image.delete_snapshot(id).await?,
        Request::Resize(size, allocate) => {
            let preallocation = if *allocate {
                Preallocation::Metadata
            } else {
                Preallocation::Off
            };
            let options = ResizeOptions {
                shrink: true,
                preallocation,
            };
            image.resize(*size, &options).await?;
        }
        Request::Repair => {
            let report = repair(image, RepairMode::All, &mut ()).await?;
            if !report.found.is_clean() {
                return Err(Failure::Corrupt(format!("not repaired: {report:?}")));
            }
        }
        Request::Close => image.close().await?,
        Request::Commit => commit_image(oxcow).await?,
        Request::Rebase(backing) => rebase_image(oxcow, *backing).await?,
        Request::Bitmap(request) => change_bitmaps(image, *request).await?,
        Request::Version(version) => {
            let new = *version > 2;
            let options = AmendOptions {
                version: Some(if new { Version::V3 } else { Version::V2 }),
                lazy_refcounts: new.then_some(true),
                ..AmendOptions::default()
            };
            image.amend(&options).await?;
        }
        Request::Settle => image.settle().await?,
        Request::RefcountBits(bits) => image.set_refcount_bits(*bits).await?,
    }
    Ok(())
}

/// All of the engine behind futures whose types name none of it: so it is compiled here, once, and not again into
/// every program that polls them.
impl Oxcow {
    fn opened<'a>(
        machine: &'a Rc<Machine>,
        queue: Option<&'a Rc<Queue>>,
    ) -> LocalBoxFuture<'a, Result<Self, Failure>> {
        async move {
            let disk = match queue {
                None => SimDisk::new(machine.clone(), FileId::Image),
                Some(queue) => SimDisk::queued(machine.clone(), FileId::Image, queue.clone()),
            };
            let image = open_image(&disk).await?;
            Ok(Self { image, disk })
        }
        .boxed_local()
    }

    fn answer<'a>(&'a self, request: &'a Request) -> LocalBoxFuture<'a, Result<(), Failure>> {
        ask(self, request).boxed_local()
    }

    fn filled(&self) -> LocalBoxFuture<'_, Result<(), Failure>> {
        async {
            let hydration = Hydration::new(&self.image, SimClock, small_hydration()).await?;
            Ok(hydration.run().await.map(drop)?)
        }
        .boxed_local()
    }

    fn read_at<'a>(
        &'a self,
        offset: u64,
        buf: &'a mut [u8],
    ) -> LocalBoxFuture<'a, Result<(), Failure>> {
        async move { Ok(self.image.read_at(GuestOffset(offset), buf).await?) }.boxed_local()
    }

    fn read_state<'a>(&'a self, buf: &'a mut [u8]) -> LocalBoxFuture<'a, Result<(), Failure>> {
        async move { Ok(self.image.read_vm_state(VmStateOffset(0), buf).await?) }.boxed_local()
    }
}

impl Engine for Oxcow {
    const NAME: &'static str = "oxcow";

    async fn open(machine: &Rc<Machine>, queue: Option<&Rc<Queue>>) -> Result<Self, Failure> {
        Self::opened(machine, queue).await
    }

    async fn ask(&self, request: &Request) -> Result<(), Failure> {
        self.answer(request).await
    }

    async fn hydrate(&self) -> Result<(), Failure> {
        self.filled().await
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.read_at(offset, buf).await
    }

    async fn read_vm_state(&self, buf: &mut [u8]) -> Result<(), Failure> {
        self.read_state(buf).await
    }

    fn size(&self) -> u64 {
        self.image.virtual_size()
    }

    fn version(&self) -> Option<(u32, bool)> {
        let qcow2 = self.image.top().as_qcow2()?;
        let version = match qcow2.header().version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        Some((version, qcow2.backing().is_some()))
    }
}
