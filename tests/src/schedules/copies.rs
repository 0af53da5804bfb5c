//! Persistent views by copying, cut at every moment: an overlay of the copies over the disk reads as the disk did
//! when the view was made.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use oxcow::fleece::FleeceOptions;
use oxcow::image::Backing;
use oxcow::{DenyAll, File, Format, GuestOffset, Image, NewSnapshot, OpenOptions, ZeroMode};

use crate::crash::builder::{Builder, Layout};
use crate::crash::contents::{Bytes, Content, Contents, SECTOR};
use crate::crash::disk::SimDisk;
use crate::crash::engine::open_image;
use crate::crash::exec::now;
use crate::crash::judge::Judge;
use crate::crash::machine::{FileId, Machine, Observer, SimFile};
use crate::crash::starts::{Start, StartKind};
use crate::crash::states::{Choice, as_seen};
use crate::rng::Rng;
use oxcow::storage::AnyStorage;

/// What the guest does while the view is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // As the methods of an image.
pub enum Change {
    WritePart,
    WriteWhole,
    WriteAcross,
    WriteHole,
    Compress,
    ZeroesUnmap,
    ZeroesKeep,
    Discard,
    Snapshot,
    Flush,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::WritePart,
        Self::WriteWhole,
        Self::WriteAcross,
        Self::WriteHole,
        Self::Compress,
        Self::ZeroesUnmap,
        Self::ZeroesKeep,
        Self::Discard,
        Self::Snapshot,
        Self::Flush,
    ];

    async fn make(self, image: &Image<AnyStorage>, cluster: u64, byte: u8) -> oxcow::Result<()> {
        let data = |length: u64| vec![byte; length as usize];
        match self {
            Self::WritePart => image.write_at(GuestOffset(cluster + 100), &data(300)).await,
            Self::WriteWhole => image.write_at(GuestOffset(cluster), &data(cluster)).await,
            Self::WriteAcross => {
                let at = GuestOffset(3 * cluster - 256);
                image.write_at(at, &data(cluster + 512)).await
            }
            Self::WriteHole => {
                image
                    .write_at(GuestOffset(5 * cluster + 8), &data(200))
                    .await
            }
            Self::Compress => {
                let at = GuestOffset(cluster);
                image.write_compressed(at, &data(cluster)).await
            }
            Self::ZeroesUnmap | Self::ZeroesKeep => {
                let mode = match self {
                    Self::ZeroesKeep => ZeroMode::Keep,
                    _ => ZeroMode::Unmap,
                };
                let at = GuestOffset(cluster);
                image.write_zeroes(at, 2 * cluster, mode).await
            }
            Self::Discard => image.discard(GuestOffset(0), 3 * cluster).await,
            Self::Snapshot => image
                .create_snapshot(&NewSnapshot::default())
                .await
                .map(drop),
            Self::Flush => image.flush().await,
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Scripts.
    pub scripts: u64,
    /// Moments that were unlike all others.
    pub moments: u64,
    /// Pairs of files that a power cut may leave.
    pub states: u64,
}

/// How many states of a moment are looked at: all of them, or so many by lot.
const MOST_STATES: u64 = 48;

/// Looks at what a cut leaves whenever something becomes durable.
struct Watch {
    contents: Rc<Contents>,
    backing: Vec<Content>,
    /// The disk at the moment of the view.
    before: Vec<Content>,
    judge: RefCell<Judge>,
    rng: RefCell<Rng>,
    seen: RefCell<HashSet<u64>>,
    figures: Cell<Figures>,
    wrong: RefCell<Option<String>>,
}

impl Observer for Watch {
    fn before_flush(&self, machine: &Machine) {
        self.look(machine);
    }
}

impl Watch {
    fn look(&self, machine: &Machine) {
        if self.wrong.borrow().is_some() || !self.seen.borrow_mut().insert(machine.hash()) {
            return;
        }
        self.count(|figures| figures.moments += 1);
        let files = machine.files();
        let slots = files.iter().flat_map(SimFile::slots);
        let all = slots.fold(1_u64, |all, slot| {
            all.saturating_mul(slot.options().len() as u64)
        });
        let lengths = files.iter().map(|file| file.lengths().count() as u64);
        let all = lengths.fold(all, u64::saturating_mul);
        if all <= MOST_STATES {
            let mut choice = Choice::first(&files);
            loop {
                self.state(&choice.make(&files));
                if !choice.advance(&files) {
                    return;
                }
            }
        }
        self.state(&Choice::durable(&files).make(&files));
        self.state(&as_seen(&files));
        for _ in 0..MOST_STATES {
            let choice = Choice::random(&files, &mut self.rng.borrow_mut());
            self.state(&choice.make(&files));
        }
    }

    /// One state: the overlay is read over the disk.
    fn state(&self, files: &[SimFile; 3]) {
        self.count(|figures| figures.states += 1);
        let judge = &mut *self.judge.borrow_mut();
        let [disk, copies, below] = files.clone();
        let disk = [disk, SimFile::default(), below];
        let read = judge.extract(&self.contents, &disk, &self.backing);
        let view = read.and_then(|disk| {
            let copies = [copies, SimFile::default(), SimFile::default()];
            judge.extract(&self.contents, &copies, disk.values.only())
        });
        let wrong = match view {
            Err(violation) => violation.to_string(),
            Ok(view) => {
                let sectors = view.values.only().iter().zip(&self.before);
                match sectors.clone().position(|(now, before)| now != before) {
                    None => return,
                    Some(sector) => {
                        format!("sector {sector} of the view is not what it was")
                    }
                }
            }
        };
        self.wrong.borrow_mut().get_or_insert(wrong);
    }

    fn count(&self, add: impl FnOnce(&mut Figures)) {
        let mut figures = self.figures.get();
        add(&mut figures);
        self.figures.set(figures);
    }
}

/// Makes a persistent view of an image of this kind, makes the changes, and looks at what every cut leaves.
///
/// # Errors
///
/// What is wrong.
pub fn cut(kind: StartKind, changes: &[Change]) -> Result<Figures, String> {
    let contents = Rc::new(Contents::default());
    let start = Start::new(kind, &contents);
    let layout = Layout {
        backing: Some("disk.qcow2"),
        ..Layout::default()
    };
    let sectors = start.world.values.sectors();
    let below: Vec<Bytes> = Vec::new();
    let target = Builder::new(layout, sectors, &below).finish(None).image;
    let [image, _, backing] = start.files.clone();
    let files = [image, SimFile::new(&contents, &target), backing];
    let machine = Rc::new(Machine::new(contents.clone(), files));
    let watch = Rc::new(Watch {
        contents,
        backing: start.backing.clone(),
        before: start.world.values.only().to_vec(),
        judge: RefCell::default(),
        rng: RefCell::new(Rng::new(7)),
        seen: RefCell::default(),
        figures: Cell::default(),
        wrong: RefCell::default(),
    });
    let observer: Rc<dyn Observer> = watch.clone();
    machine.observe(Rc::downgrade(&observer));
    let cluster = start.geometry.cluster_bytes;
    let ran = now(run(&machine, &watch, cluster, changes));
    watch.look(&machine);
    watch.count(|figures| figures.scripts += 1);
    let wrong = match (watch.wrong.take(), ran) {
        (Some(wrong), _) => wrong,
        (None, Some(Ok(()))) => return Ok(watch.figures.get()),
        (None, Some(Err(error))) => format!("{error:#}"),
        (None, None) => "it hangs".into(),
    };
    Err(format!("{kind:?} {changes:?}: {wrong}"))
}

async fn run(
    machine: &Rc<Machine>,
    watch: &Watch,
    cluster: u64,
    changes: &[Change],
) -> oxcow::Result<()> {
    let image = open_image(&SimDisk::new(machine.clone(), FileId::Image)).await?;
    let target = File {
        storage: AnyStorage::new(SimDisk::new(machine.clone(), FileId::Data)),
        name: "copies.qcow2".into(),
    };
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        writable: true,
        backing: Backing::Ignore,
        ..OpenOptions::default()
    };
    let target = Image::open(target, &options, &DenyAll::default()).await?;
    let options = FleeceOptions {
        persistent: true,
        ..FleeceOptions::default()
    };
    let view = image.fleece(target, options).await?;
    for (number, change) in changes.iter().enumerate() {
        watch.look(machine);
        change.make(&image, cluster, 0xa0 + number as u8).await?;
        watch.look(machine);
    }
    image.flush().await?;
    let read = view.image().await?;
    let mut bytes = vec![0; read.virtual_size() as usize];
    read.read_at(GuestOffset(0), &mut bytes).await?;
    let table = watch.contents.table();
    let pieces = bytes.chunks_exact(SECTOR).zip(&watch.before);
    for (sector, (bytes, before)) in pieces.enumerate() {
        if table.bytes(*before) != bytes {
            let wrong = format!("sector {sector} of the view reads something else");
            watch.wrong.borrow_mut().get_or_insert(wrong);
        }
    }
    Ok(())
}
