//! What runs at the same time on one image, and what it must come to.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use oxcow::fleece::{Fleece, FleeceOptions};
use oxcow::hydrate::{Clock, Hydration, HydrationOptions};
use oxcow::view::View;
use oxcow::{
    Error, File, Format, GuestOffset, Image, NewSnapshot, OpenOptions, Resolver, Wanted, ZeroMode,
};

use super::exec::{Chooser, Exec, Outcome, Trace};
use super::files::{Disk, Files};
use super::history::{ATOM, ATOMS, DISK, History, Tag, Tags, Time, bytes_of};
use super::starts::{Base, StartKind};
use super::states::States;
use super::structure;
use crate::crash::exec::now;
use oxcow::storage::AnyStorage;

/// What a task does. The clusters are half on the image itself (0, 1, 2, 8, 9, 10, 11), half left to its backing
/// file (4 to 7, 12, 13), one is zeros (3) and two are nowhere (14, 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Reads the view that was there from the beginning.
    ReadView,
    /// Reads the copying view that was there from the beginning.
    ReadFleece,
    /// Reads.
    Read,
    /// Reads while what the backing file says is kept.
    CopyOnRead,
    /// Writes half of a cluster that the image has.
    WritePart,
    /// Writes half of a cluster that the image leaves to its backing file.
    WriteFirstPart,
    /// Writes a whole cluster that the image leaves to its backing file.
    WriteWhole,
    /// Writes from inside a cluster to inside the next but one.
    WriteAcross,
    /// Makes clusters zeros.
    Zeroes,
    /// Discards clusters.
    Discard,
    /// Hydrates everything and drops the backing file.
    Hydrate,
    /// Hydrates everything with one fetch.
    HydrateAtOnce,
    /// Takes a snapshot.
    SnapshotCreate,
    /// Deletes the snapshot that was there from the beginning.
    SnapshotDelete,
    /// Makes a view, reads it twice, and ends it.
    TakeView,
    /// Makes a copying view, reads it twice, and ends it.
    TakeFleece,
    /// Flushes.
    Flush,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::ReadView,
        Self::ReadFleece,
        Self::Read,
        Self::CopyOnRead,
        Self::WritePart,
        Self::WriteFirstPart,
        Self::WriteWhole,
        Self::WriteAcross,
        Self::Zeroes,
        Self::Discard,
        Self::Hydrate,
        Self::HydrateAtOnce,
        Self::SnapshotCreate,
        Self::SnapshotDelete,
        Self::TakeView,
        Self::TakeFleece,
        Self::Flush,
    ];

    /// The operation with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| format!("{op:?}") == name)
    }

    /// Whether it can be done on an image of this kind.
    #[must_use]
    pub fn fits(self, start: StartKind) -> bool {
        match self {
            Self::SnapshotDelete => start == StartKind::Shared,
            Self::ReadView
            | Self::TakeView
            | Self::SnapshotCreate
            | Self::CopyOnRead
            | Self::Hydrate
            | Self::HydrateAtOnce => start != StartKind::Raw,
            _ => true,
        }
    }

    /// The halves of clusters that it writes.
    fn atoms(self) -> std::ops::Range<usize> {
        match self {
            Self::WritePart => 3..4,
            Self::WriteFirstPart => 9..10,
            Self::WriteWhole => 8..10,
            Self::WriteAcross => 5..9,
            Self::Zeroes => 2..10,
            Self::Discard => 0..10,
            _ => 0..0,
        }
    }
}

/// The halves of clusters that are read by a task.
const READ: std::ops::Range<usize> = 1..12;

/// What runs at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// On which image.
    pub start: StartKind,
    /// The tasks.
    pub ops: Vec<Op>,
    /// Whether the copying views copy into qcow2 images rather than raw ones.
    pub into_qcow2: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<String> = self.ops.iter().map(|op| format!("{op:?}")).collect();
        let target = if self.into_qcow2 { "/qcow2" } else { "" };
        write!(f, "{:?}{target} {}", self.start, ops.join(","))
    }
}

impl Case {
    /// The case that [`Display`](fmt::Display) writes as these two words.
    #[must_use]
    pub fn parse(start: &str, ops: &str) -> Option<Self> {
        let (start, into_qcow2) = match start.strip_suffix("/qcow2") {
            Some(start) => (start, true),
            None => (start, false),
        };
        let ops: Option<Vec<Op>> = ops.split(',').map(Op::named).collect();
        Some(Self {
            start: StartKind::named(start)?,
            ops: ops?,
            into_qcow2,
        })
    }
}

/// A snapshot that was taken during a run: its name, and when.
struct Taken {
    name: String,
    from: Time,
    to: Time,
}

/// A run in progress.
struct Run<'r> {
    image: &'r Image<AnyStorage>,
    files: &'r Rc<Files>,
    base: &'r Base,
    into_qcow2: bool,
    history: History,
    taken: RefCell<Vec<Taken>>,
    wrong: RefCell<Option<String>>,
    /// Whether the image takes no more changes.
    stopped: Cell<bool>,
}

/// The files of a run: the image, its backing file, the target of the view that is there from the beginning.
/// Further targets follow.
pub const IMAGE: usize = 0;
const BACKING: usize = 1;

struct BackingFile<'f>(&'f Rc<Files>);

impl Resolver for BackingFile<'_> {
    type Storage = AnyStorage;

    async fn resolve(&self, wanted: &Wanted<'_>) -> oxcow::Result<File<AnyStorage>> {
        Ok(File {
            storage: AnyStorage::new(Disk::new(self.0, BACKING)),
            name: wanted.name.to_owned(),
        })
    }
}

/// Opens file number `file` for writing.
async fn open(files: &Rc<Files>, file: usize, format: Format) -> oxcow::Result<Image<AnyStorage>> {
    let options = OpenOptions {
        format: Some(format),
        writable: true,
        ..OpenOptions::default()
    };
    let name = String::from("disk");
    let storage = AnyStorage::new(Disk::new(files, file));
    Image::open(File { storage, name }, &options, &BackingFile(files)).await
}

/// Time passes when the executor says so.
struct SimClock(Rc<Files>);

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_millis(u64::from(self.0.time()))
    }

    async fn sleep(&self, _: Duration) {
        self.0.sleep().await;
    }
}

fn hydration(batch_bytes: u64, threshold: usize, detach: bool) -> HydrationOptions {
    HydrationOptions {
        batch_bytes,
        threshold,
        commit_bytes: 1024,
        quiet: Duration::from_millis(1),
        patience: Duration::from_millis(1),
        retries: 0,
        detach,
        ..HydrationOptions::default()
    }
}

/// What an image says that stopped because a transaction was given up between its switch on the disk and the one
/// in memory. It must be opened again then.
const STOPPED: &str = "The image takes no more writes after an error (Operation cancelled)";

type Worked<T = ()> = Result<T, String>;

fn word(error: Error) -> String {
    format!("{error:#}")
}

impl<'r> Run<'r> {
    fn fail(&self, what: String) {
        self.wrong.borrow_mut().get_or_insert(what);
    }

    /// Opens an image for the copies of a view.
    async fn target(&self) -> oxcow::Result<Image<AnyStorage>> {
        match self.into_qcow2 {
            true => {
                let file = self.files.add(self.base.target.clone());
                open(self.files, file, Format::Qcow2).await
            }
            false => {
                let file = self.files.add(vec![0; DISK]);
                open(self.files, file, Format::Raw).await
            }
        }
    }

    /// Reads atoms of the disk and judges them.
    async fn read(&self, atoms: std::ops::Range<usize>) -> Worked {
        let from = self.history.now();
        let mut bytes = vec![0; atoms.len() * ATOM];
        let at = GuestOffset((atoms.start * ATOM) as u64);
        self.image.read_at(at, &mut bytes).await.map_err(word)?;
        let to = self.history.now();
        match self.history.wrong(atoms.start, &bytes, from, to) {
            None => Ok(()),
            Some(wrong) => Err(wrong),
        }
    }

    /// Reads atoms of a view that must read as `tags`.
    async fn read_view<S: oxcow::Storage>(
        &self,
        view: &Image<S>,
        tags: &Tags,
        atoms: std::ops::Range<usize>,
    ) -> Worked {
        let bytes = read_image(view, atoms.clone()).await?;
        let expected = bytes_of(&tags[atoms.clone()], atoms.start);
        if bytes == expected {
            return Ok(());
        }
        let differs = (0..bytes.len()).find(|at| bytes[*at] != expected[*at]);
        match differs {
            None => Ok(()),
            Some(at) => Err(format!(
                "half cluster {} of a view reads {:x?}, not {:x?}",
                atoms.start + at / ATOM,
                &bytes[at..at + 2],
                &expected[at..at + 2]
            )),
        }
    }

    /// Reads a view that was made in between `from` and `to` twice.
    async fn read_new_view<S: oxcow::Storage>(
        &self,
        view: &Image<S>,
        (from, to): (Time, Time),
    ) -> Worked {
        let first = read_image(view, READ).await?;
        if let Some(wrong) = self.history.wrong(READ.start, &first, from, to) {
            return Err(format!("a new view: {wrong}"));
        }
        let second = read_image(view, READ).await?;
        match first == second {
            true => Ok(()),
            false => Err("a view reads first one thing and then another".into()),
        }
    }

    async fn write(&self, op: Op, tag: Tag) -> Worked {
        let atoms = op.atoms();
        let at = GuestOffset((atoms.start * ATOM) as u64);
        let length = (atoms.len() * ATOM) as u64;
        let (image, base) = (self.image, self.base);
        let number = self.history.begin(atoms.clone(), tag);
        match op {
            Op::Zeroes => image.write_zeroes(at, length, ZeroMode::Unmap).await,
            Op::Discard => image.discard(at, length).await,
            _ => image.write_at(at, base.content(tag, &atoms)).await,
        }
        .map_err(word)?;
        self.history.end(number);
        Ok(())
    }

    async fn hydrate(&self, options: HydrationOptions) -> Worked {
        let clock = SimClock(self.files.clone());
        let hydration = Hydration::new(self.image, clock, options).await;
        hydration.map_err(word)?.run().await.map_err(word)?;
        Ok(())
    }

    async fn take_view(&self, tag: Tag) -> Worked {
        let image = self.image;
        let from = self.history.now();
        let name = format!("view {tag}");
        self.taken.borrow_mut().push(Taken {
            name: name.clone(),
            from,
            to: Time::MAX,
        });
        let snapshot = NewSnapshot {
            name,
            ..NewSnapshot::default()
        };
        let view = image.view(&snapshot).await.map_err(word)?;
        let to = self.history.now();
        self.read_new_view(&view, (from, to)).await?;
        view.close().await.map_err(word)
    }

    async fn take_fleece(&self) -> Worked {
        let image = self.image;
        let target = self.target().await.map_err(word)?;
        let from = self.history.now();
        let options = FleeceOptions::default();
        let fleece = image.fleece(target, options).await.map_err(word)?;
        let to = self.history.now();
        let view = fleece.image().await.map_err(word)?;
        self.read_new_view(&view, (from, to)).await
    }

    /// What a task does.
    async fn task(
        &self,
        op: Op,
        tag: Tag,
        view: Option<&View<'_, AnyStorage>>,
        fleece: Option<&Fleece<'_, AnyStorage, AnyStorage>>,
    ) -> Worked {
        let image = self.image;
        // What they await is on the heap: a task would be as large as the largest of them.
        match op {
            Op::ReadView => {
                let view = view.ok_or("no view")?;
                Box::pin(self.read_view(view, &self.base.tags, READ)).await
            }
            Op::ReadFleece => {
                let view = Box::pin(fleece.ok_or("no view")?.image()).await;
                let view = view.map_err(word)?;
                Box::pin(self.read_view(&view, &self.base.tags, READ)).await
            }
            Op::Read => Box::pin(self.read(READ)).await,
            Op::CopyOnRead => {
                let options = hydration(2048, 1, false);
                let clock = SimClock(self.files.clone());
                let hydration = Box::pin(Hydration::new(image, clock, options)).await;
                let hydration = hydration.map_err(word)?;
                Box::pin(self.read(READ)).await?;
                drop(hydration);
                Ok(())
            }
            Op::Discard if self.base.kind == StartKind::Raw => {
                // Nothing happens there, and nothing may.
                Box::pin(image.discard(GuestOffset(0), 2048))
                    .await
                    .map_err(word)
            }
            Op::WritePart | Op::WriteFirstPart | Op::WriteWhole | Op::WriteAcross => {
                Box::pin(self.write(op, tag)).await
            }
            Op::Zeroes | Op::Discard => Box::pin(self.write(op, 0)).await,
            Op::SnapshotCreate => {
                let from = self.history.now();
                let name = format!("taken {tag}");
                let taken = |to| Taken {
                    name: name.clone(),
                    from,
                    to,
                };
                // Known before it begins: a snapshot that is given up half way may be there or not.
                self.taken.borrow_mut().push(taken(Time::MAX));
                let snapshot = NewSnapshot {
                    name: name.clone(),
                    ..NewSnapshot::default()
                };
                let created = Box::pin(image.create_snapshot(&snapshot)).await;
                created.map_err(word)?;
                let to = self.history.now();
                let mut all = self.taken.borrow_mut();
                all.retain(|taken| taken.name != name);
                all.push(taken(to));
                Ok(())
            }
            Op::SnapshotDelete => match Box::pin(image.delete_snapshot("first")).await {
                // Somebody else was faster.
                Ok(()) | Err(Error::OutOfRange(_)) => Ok(()),
                Err(error) => Err(word(error)),
            },
            Op::TakeView => Box::pin(self.take_view(tag)).await,
            Op::TakeFleece => Box::pin(self.take_fleece()).await,
            Op::Hydrate => Box::pin(self.hydrate(hydration(2048, 2, true))).await,
            Op::HydrateAtOnce => Box::pin(self.hydrate(hydration(DISK as u64, 1, false))).await,
            Op::Flush => Box::pin(image.flush()).await.map_err(word),
        }
    }

    /// A task that keeps what went wrong.
    async fn spawned(
        &self,
        op: Op,
        tag: Tag,
        view: Option<&View<'_, AnyStorage>>,
        fleece: Option<&Fleece<'_, AnyStorage, AnyStorage>>,
    ) {
        if let Err(wrong) = self.task(op, tag, view, fleece).await {
            match wrong.contains(STOPPED) {
                true => self.stopped.set(true),
                false => self.fail(format!("{op:?}: {wrong}")),
            }
        }
    }
}

async fn read_image<S: oxcow::Storage>(
    image: &Image<S>,
    atoms: std::ops::Range<usize>,
) -> Worked<Vec<u8>> {
    let mut bytes = vec![0; atoms.len() * ATOM];
    let at = GuestOffset((atoms.start * ATOM) as u64);
    image.read_at(at, &mut bytes).await.map_err(word)?;
    Ok(bytes)
}

/// Does what completes at once.
fn at_once<T>(future: impl Future<Output = Worked<T>>) -> Worked<T> {
    now(future).unwrap_or_else(|| Err("waits for something that never comes".into()))
}

/// The name of the snapshot behind the view that is there from the beginning.
pub const VIEW: &str = "view";

/// Runs a case by one schedule. `judged` has the structure of the file looked at as well. With `states` it ends
/// where another one went on: what would come of it is known.
///
/// # Errors
///
/// What is wrong.
pub fn run(
    case: &Case,
    base: &Base,
    chooser: Chooser<'_>,
    trace: &mut Trace,
    judged: bool,
    states: Option<&mut States>,
) -> Result<(), String> {
    let files = Files::new(vec![base.image.clone(), base.backing.clone()]);
    let format = match case.start {
        StartKind::Raw => Format::Raw,
        _ => Format::Qcow2,
    };
    let image = at_once(async { open(&files, IMAGE, format).await.map_err(word) })?;
    let run = Run {
        image: &image,
        files: &files,
        base,
        into_qcow2: case.into_qcow2,
        history: History::new(base.tags),
        taken: RefCell::default(),
        wrong: RefCell::default(),
        stopped: Cell::default(),
    };
    let mut view = None;
    if case.ops.contains(&Op::ReadView) {
        let snapshot = NewSnapshot {
            name: VIEW.into(),
            ..NewSnapshot::default()
        };
        view = Some(at_once(async {
            image.view(&snapshot).await.map_err(word)
        })?);
    }
    let mut fleece = None;
    if case.ops.contains(&Op::ReadFleece) {
        fleece = Some(at_once(async {
            let target = run.target().await.map_err(word)?;
            let options = FleeceOptions::default();
            image.fleece(target, options).await.map_err(word)
        })?);
    }

    files.set_queued(true);
    let mut exec = Exec::new(&files);
    for (index, op) in case.ops.iter().enumerate() {
        let tag = 10 + index as Tag;
        exec.spawn(run.spawned(*op, tag, view.as_ref(), fleece.as_ref()));
    }
    let outcome = exec.run(chooser, trace, states);
    let dropped = Exec::has_dropped(trace);
    drop(exec);
    files.set_queued(false);
    if let Some(wrong) = run.wrong.take() {
        return Err(wrong);
    }
    match outcome {
        Outcome::Done => {}
        Outcome::Joined => return Ok(()),
        Outcome::Stuck => return Err("all tasks wait for one another".into()),
        Outcome::Endless => return Err("it does not end".into()),
    }

    // Then alone.
    let alone = at_once(async {
        run.read(0..ATOMS).await?;
        if let Some(fleece) = &fleece {
            let image = fleece.image().await.map_err(word)?;
            run.read_view(&image, &base.tags, 0..ATOMS).await?;
        }
        if let Some(view) = &view {
            run.read_view(view, &base.tags, 0..ATOMS).await?;
        }
        match judged {
            true => image.flush().await.map_err(word),
            false => Ok(()),
        }
    });
    let stopped = match alone {
        Err(wrong) if dropped && wrong.contains(STOPPED) => true,
        Err(wrong) => return Err(wrong),
        Ok(()) if run.stopped.get() => return Err("it stopped, and goes on".into()),
        Ok(()) => false,
    };
    if !judged && !stopped {
        return Ok(());
    }
    drop(fleece);
    if let Some(view) = view {
        let _ = view.keep();
    }
    let disk = match stopped {
        false => at_once(async {
            run.read(0..ATOMS).await?;
            image.close().await.map_err(word)?;
            read_image(&image, 0..ATOMS).await
        })?,
        // What no flush covered may be lost.
        true => {
            let disk = at_once(async {
                let image = open(&files, IMAGE, format).await.map_err(word)?;
                read_image(&image, 0..ATOMS).await
            })?;
            if let Some(wrong) = run.history.wrong(0, &disk, 0, run.history.now()) {
                return Err(format!("opened again: {wrong}"));
            }
            disk
        }
    };
    let file = files.copy_of(IMAGE);
    if case.start == StartKind::Raw {
        return match file == disk {
            true => Ok(()),
            false => Err("the file is not what it reads".into()),
        };
    }
    let snapshots = structure::check(base, &file, &disk, !dropped)?;
    for (name, bytes) in snapshots {
        let wrong = match &*name {
            VIEW => (bytes != bytes_of(&base.tags, 0)).then(|| "has changed".to_owned()),
            "first" => (bytes != bytes_of(&base.first, 0)).then(|| "has changed".to_owned()),
            _ => {
                let taken = run.taken.borrow();
                match taken.iter().find(|taken| taken.name == name) {
                    None => Some("nobody took it".into()),
                    Some(taken) => run.history.wrong(0, &bytes, taken.from, taken.to),
                }
            }
        };
        if let Some(wrong) = wrong {
            return Err(format!("snapshot '{name}': {wrong}"));
        }
    }
    Ok(())
}
