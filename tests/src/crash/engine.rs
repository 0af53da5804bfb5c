//! What is proven: an engine that a script can be run on. There are two, oxcow and a model of QEMU's order
//! ([`super::qemu_order`]).

use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use oxcow::hydrate::{Clock, Hydration, HydrationOptions};
use oxcow::image::{NewSnapshot, Preallocation, ResizeOptions};
use oxcow::repair::{RepairMode, repair};
use oxcow::storage::give_way;
use oxcow::{
    Error, File, Format, GuestOffset, Image, OpenOptions, Resolver, Role, Wanted, ZeroMode,
};

use super::disk::{Queue, SimDisk};
use super::machine::{FileId, Machine};
use super::script::Request;

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

    /// The disk's size in bytes.
    fn size(&self) -> u64;
}

/// The engine that this project is about.
pub struct Oxcow(Image<SimDisk>);

/// Opens the machine's own files, whatever the image calls them.
struct Siblings(SimDisk);

impl Resolver for Siblings {
    type Storage = SimDisk;

    async fn resolve(&self, wanted: &Wanted<'_>) -> oxcow::Result<File<SimDisk>> {
        let file = match wanted.role {
            Role::Backing => FileId::Backing,
            Role::DataFile => FileId::Data,
        };
        Ok(File {
            storage: self.0.sibling(file),
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

/// Opens the image of a machine for writing, with its data file and its backing file.
///
/// # Errors
///
/// Those of [`Image::open`].
pub async fn open_image(
    machine: &Rc<Machine>,
    queue: Option<&Rc<Queue>>,
) -> oxcow::Result<Image<SimDisk>> {
    let storage = match queue {
        None => SimDisk::new(machine.clone(), FileId::Image),
        Some(queue) => SimDisk::queued(machine.clone(), FileId::Image, queue.clone()),
    };
    let resolver = Siblings(storage.clone());
    let file = File {
        storage,
        name: "image.qcow2".into(),
    };
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        writable: true,
        ..OpenOptions::default()
    };
    Image::open(file, &options, &resolver).await
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

impl Engine for Oxcow {
    const NAME: &'static str = "oxcow";

    async fn open(machine: &Rc<Machine>, queue: Option<&Rc<Queue>>) -> Result<Self, Failure> {
        Ok(Self(open_image(machine, queue).await?))
    }

    async fn ask(&self, request: &Request) -> Result<(), Failure> {
        let image = &self.0;
        match request {
            Request::Write(at, bytes) => image.write_at(GuestOffset(*at), bytes).await?,
            Request::WriteCompressed(at, bytes) => {
                image.write_compressed(GuestOffset(*at), bytes).await?;
            }
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
        }
        Ok(())
    }

    async fn hydrate(&self) -> Result<(), Failure> {
        let hydration = Hydration::new(&self.0, SimClock, small_hydration()).await?;
        hydration.run().await?;
        Ok(())
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        Ok(self.0.read_at(GuestOffset(offset), buf).await?)
    }

    fn size(&self) -> u64 {
        self.0.virtual_size()
    }
}
