//! Changing an image: what a guest writes, and the transactions on the whole of it.
//!
//! Two mechanisms order every write, as docs/design.md states them: guest writes are published in epochs
//! (`commit`), everything else builds the new state beside the old one and switches by one sector
//! (`shadow`, `header`).

mod allocate;
mod amend;
mod area;
mod backing;
pub(crate) mod before;
pub(crate) mod bitmaps;
mod commit;
mod compressed;
mod detach;
mod empty;
mod guest;
mod header;
mod home;
mod hydrate;
mod io;
#[cfg(feature = "encryption")]
mod keys;
mod lazy;
mod link;
mod mark;
#[cfg(test)]
mod mark_tests;
mod mend;
mod overwrite;
mod refcounts;
mod resize;
mod shadow;
mod snapshots;
pub(crate) mod state;
#[cfg(test)]
mod tests;
mod tree;
mod uncounted;
mod vm_state;
mod width;
mod zero;

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use crate::crypto::Volume;
use crate::error::{Error, Result};
use crate::image::activity::{Activity, UnderWay};
use crate::image::lock::{Access, RangeGuard};
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::{Image, Layer, Qcow2};
use crate::qcow2::Header;
use crate::storage::{Storage, in_zeros};
use crate::units::{GuestOffset, SECTOR};
pub use amend::AmendOptions;
use before::BeforeChange;
pub(crate) use detach::NeededBy;
#[cfg(feature = "encryption")]
pub use keys::KeyChange;
pub use mend::OnRepair;
use refcounts::Refcounts;
use state::Changing;

/// What becomes of the clusters that are made to read as zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroMode {
    /// They stay allocated, so that a later write finds its place.
    #[default]
    Keep,
    /// They are given back.
    Unmap,
}

/// A snapshot to be created.
#[derive(Clone, Debug, Default)]
pub struct NewSnapshot {
    /// Its name; need not be unique.
    pub name: String,
    /// The date: seconds since 1970.
    pub date_sec: u32,
    /// The date: nanoseconds of the second.
    pub date_nsec: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions executed, for record and replay.
    pub icount: Option<u64>,
    /// The virtual machine's state, to be stored with the snapshot.
    pub vm_state: Vec<u8>,
}

/// How much of new space is allocated beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Tables, and clusters for all data without writing them.
    Metadata,
    /// As `Metadata`, with room for every data cluster: a storage has no other way to make sure of that than to
    /// write zeros.
    Falloc,
    /// As `Metadata`, with zeros written to every data cluster.
    Full,
}

impl Preallocation {
    /// Whether there is to be room in the storage for all data.
    pub(crate) fn reserves(self) -> bool {
        matches!(self, Self::Falloc | Self::Full)
    }
}

/// How a disk is resized.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResizeOptions {
    /// Whether the end of the disk may be cut off.
    pub shrink: bool,
    /// What is allocated of the space that is added.
    pub preallocation: Preallocation,
}

/// A range of the disk that an operation of the guest's changes.
pub(crate) struct Held<'a> {
    _range: RangeGuard<'a>,
    _under_way: UnderWay<'a>,
}

/// What the engine asked of the storages of an image since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

/// One qcow2 image that is being changed, with what its chain says below it.
pub(crate) struct Engine<'a, S> {
    image: &'a Image<S>,
    pub(crate) qcow2: &'a Qcow2<S>,
    state: &'a Changing,
    /// Whether this is part of a transaction, which holds the commits.
    commits_held: bool,
}

impl<S> Clone for Engine<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Engine<'_, S> {}

impl Changing {
    /// The state for an image of this header, in a file of `file_len` bytes, that is opened for writing, or
    /// to be repaired before that.
    pub(crate) fn open(header: &Header, file_len: u64, repair: bool) -> Result<Self> {
        if !repair {
            mend::check_writable(header)?;
        }
        Ok(Self::new(file_len, Refcounts::new(header)))
    }

    /// The state for a raw image, which has no tables.
    pub(crate) fn open_raw(file_len: u64) -> Self {
        Self::new(file_len, Refcounts::none())
    }
}

impl<S: Storage> Image<S> {
    /// Writes `data` at `offset`. It is durable once a [`flush`](Self::flush) that began later has returned.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] where the range is not inside the disk; [`Error::Refused`] where the image was
    /// not opened for writing; [`Error::Stopped`] after an earlier failure; [`Error::Io`] where the storage
    /// fails. Where guest data cannot be written (no space left), the image stays good and the range reads
    /// old or new, sector by sector.
    pub async fn write_at(&self, offset: GuestOffset, data: &[u8]) -> Result<()> {
        let length = data.len() as u64;
        let operation = async {
            let Some((engine, _held)) = self.change(offset, length).await? else {
                return self.raw_write(offset, data).await;
            };
            engine.write_guest(offset, data).await
        };
        self.heed(operation).await
    }

    /// Writes whole clusters compressed, as far as that makes them smaller.
    ///
    /// # Errors
    ///
    /// Those of [`write_at`](Self::write_at); [`Error::OutOfRange`] where `offset` is not the start of a
    /// cluster or `data` does not end where a cluster or the disk does; [`Error::Unsupported`] for a raw
    /// image and for one with an external data file.
    pub async fn write_compressed(&self, offset: GuestOffset, data: &[u8]) -> Result<()> {
        let length = data.len() as u64;
        let operation = async {
            let Some((engine, _held)) = self.change(offset, length).await? else {
                return Err(Error::Unsupported(
                    "A raw image has no compressed clusters".into(),
                ));
            };
            let size = engine.cluster_bytes();
            let end = offset.0 + length;
            if !offset.is_aligned(size) || (!end.is_multiple_of(size) && end != self.virtual_size())
            {
                return Err(Error::OutOfRange(
                    "Only whole clusters can be compressed".into(),
                ));
            }
            engine.write_compressed_guest(offset, data).await
        };
        self.heed(operation).await
    }

    /// Makes `length` bytes at `offset` read as zeros, by the tables as far as the format allows it.
    ///
    /// # Errors
    ///
    /// Those of [`write_at`](Self::write_at).
    pub async fn write_zeroes(
        &self,
        offset: GuestOffset,
        length: u64,
        mode: ZeroMode,
    ) -> Result<()> {
        let operation = async {
            let Some((engine, _held)) = self.change(offset, length).await? else {
                return self.raw_zeroes(offset, length).await;
            };
            engine.zero_guest(offset.0, offset.0 + length, mode).await
        };
        self.heed(operation).await
    }

    /// Gives back the whole clusters inside the `length` bytes at `offset`, which read as zeros then. A
    /// hint: where the format could not tell zeros from the backing file (version 2), and on raw images,
    /// nothing happens.
    ///
    /// # Errors
    ///
    /// Those of [`write_at`](Self::write_at).
    pub async fn discard(&self, offset: GuestOffset, length: u64) -> Result<()> {
        let operation = async {
            let Some((engine, _held)) = self.change(offset, length).await? else {
                return Ok(());
            };
            engine.discard_guest(offset.0, offset.0 + length).await
        };
        self.heed(operation).await
    }

    /// The guest's flush: when it returns, everything that was completed before it began is durable. Asks
    /// the storage for two flushes, for one where no table changed.
    ///
    /// # Errors
    ///
    /// Where anything fails the image is stopped: what was flushed before is safe, what was not may be
    /// there or not, and every later change is refused with [`Error::Stopped`].
    pub async fn flush(&self) -> Result<()> {
        match self.engine()? {
            None => self.raw_flush().await,
            Some(engine) => {
                let operation = async {
                    engine.prepare().await?;
                    engine.commit(None).await
                };
                self.heed(operation).await
            }
        }
    }

    /// Flushes, and writes what only tidies up: afterwards the file has no leaked cluster. The image can be
    /// used on.
    ///
    /// # Errors
    ///
    /// Those of [`flush`](Self::flush).
    pub async fn close(&self) -> Result<()> {
        match self.engine()? {
            None => self.raw_flush().await,
            Some(engine) if !engine.state.prepared.get() => Ok(()),
            Some(engine) => {
                let operation = async {
                    engine.store_bitmaps().await?;
                    engine.tidy().await
                };
                self.heed(operation).await
            }
        }
    }

    /// What was asked of the image's own storages since it was opened.
    #[must_use]
    pub fn io_counts(&self) -> IoCounts {
        self.changing
            .as_ref()
            .map_or(IoCounts::default(), |state| state.counts.get())
    }

    /// The state of writing, and the engine where the image is qcow2.
    pub(crate) fn engine(&self) -> Result<Option<Engine<'_, S>>> {
        let Some(state) = &self.changing else {
            return Err(Error::Refused("Image is read-only".into()));
        };
        state.check_running()?;
        self.can_be_marked();
        Ok(self.top().as_qcow2().map(|qcow2| Engine {
            image: self,
            qcow2,
            state,
            commits_held: false,
        }))
    }

    /// The engine, ready, with the clusters of the range held; `None` for a raw image.
    async fn change(
        &self,
        offset: GuestOffset,
        length: u64,
    ) -> Result<Option<(Engine<'_, S>, Held<'_>)>> {
        let Some(engine) = self.engine()? else {
            self.check_range(offset, length)?;
            return Ok(None);
        };
        engine.check_change(offset, length)?;
        let under_way = engine.state.activity.begin();
        engine.prepare().await?;
        let range = engine.hold(offset, length).await;
        // Only now: the disk may have been resized while this waited.
        self.check_range(offset, length)?;
        engine.look_for_others().await?;
        let bytes = offset.0..offset.0 + length;
        self.before_change(engine.state, bytes.clone()).await?;
        engine.state.check_running()?;
        engine.track(bytes).await?;
        let held = Held {
            _range: range,
            _under_way: under_way,
        };
        Ok(Some((engine, held)))
    }

    /// An operation of the guest's begins.
    pub(crate) fn begin_operation(&self) -> Option<UnderWay<'_>> {
        Some(self.changing.as_ref()?.activity.begin())
    }

    /// What the guest is doing.
    pub(crate) fn activity(&self) -> Option<&Activity> {
        self.changing.as_ref().map(|state| &state.activity)
    }

    /// An error where the image is not open for writing, or takes no more writes.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.engine().map(drop)
    }

    /// Holds the whole disk, with nothing under way, not even what is left of changes that were given up;
    /// `None` where it cannot change.
    pub(crate) async fn hold_all(&self) -> Result<Option<RangeGuard<'_>>> {
        let Some(state) = &self.changing else {
            return Ok(None);
        };
        let held = state.ranges.lock_all().await;
        match self.engine()? {
            Some(engine) => engine
                .wait_for_given_up()
                .await
                .map_err(|error| Error::io("", 0, error))?,
            None if state.given_up.get() > 0 => self.raw_flush().await?,
            None => {}
        }
        state.check_running()?;
        Ok(Some(held))
    }

    /// Holds guest bytes as one who changes them does.
    pub(crate) async fn hold_to_change(&self, range: Range<u64>) -> Result<Option<RangeGuard<'_>>> {
        let Some(state) = &self.changing else {
            return Ok(None);
        };
        let held = state.hold(range, 1).await;
        state.check_running()?;
        Ok(Some(held))
    }

    pub(crate) fn add_watcher(&self, watcher: Rc<dyn BeforeChange>) {
        if let Some(state) = &self.changing {
            state.watchers.borrow_mut().push(watcher);
        }
    }

    pub(crate) fn remove_watcher(&self, watcher: &Rc<dyn BeforeChange>) {
        if let Some(state) = &self.changing {
            let mut watchers = state.watchers.borrow_mut();
            watchers.retain(|other| !Rc::ptr_eq(other, watcher));
        }
    }

    /// The ids of snapshots that are not deleted.
    pub(crate) fn pinned(&self) -> Option<&RefCell<Vec<String>>> {
        self.changing.as_ref().map(|state| &state.pinned)
    }

    /// Holds guest bytes for reading, where the image may be changed meanwhile.
    pub(crate) async fn hold_for_reading(
        &self,
        range: Range<u64>,
    ) -> Result<Option<RangeGuard<'_>>> {
        let Some(state) = &self.changing else {
            return Ok(None);
        };
        state.check_running()?;
        Ok(Some(state.ranges.lock(range, Access::Shared).await))
    }
}

impl<'a, S: Storage> Engine<'a, S> {
    /// Holds the clusters that `length` bytes at `offset` touch.
    async fn hold(&self, offset: GuestOffset, length: u64) -> RangeGuard<'a> {
        let range = offset.0..offset.0.saturating_add(length);
        self.state.hold(range, self.cluster_bytes()).await
    }

    /// Looks once an epoch if another program has written to the file, before anything is allocated: what
    /// it has put there would be lost.
    async fn look_for_others(&self) -> Result<()> {
        self.state.check_running()?;
        if !self.state.alone.replace(true) {
            self.check_no_other_writer().await?;
        }
        Ok(())
    }

    /// Refuses what would store bytes that the guest could not read again.
    fn check_guest_data(&self) -> Result<()> {
        self.qcow2.volume()?;
        if self.qcow2.backing().is_some() && self.image.layers().len() == 1 {
            return Err(Error::Refused(
                "The image's backing file was not opened, so that parts of clusters cannot be written".into(),
            ));
        }
        self.qcow2.content_file().map(drop)
    }

    /// The same, for a change of this range: whole clusters need nothing of a backing file.
    fn check_change(&self, offset: GuestOffset, length: u64) -> Result<()> {
        let size = self.cluster_bytes();
        let end = offset.0.saturating_add(length);
        let whole = offset.is_aligned(size)
            && (end.is_multiple_of(size) || end == self.image.virtual_size());
        self.qcow2.volume()?;
        if whole {
            return self.qcow2.content_file().map(drop);
        }
        self.check_guest_data()
    }

    /// The same engine as part of a transaction.
    fn committing(&self, _held: &snapshots::Exclusive<'_>) -> Self {
        Self {
            commits_held: true,
            ..*self
        }
    }

    /// Commits until nothing is left to be given back, and the refcounts are right in the file too.
    async fn tidy(&self) -> Result<()> {
        let lazy = self.state.lazy.replace(false); // Whatever happens: refcounts in order are never wrong.
        if !upheld(OrderingPoint::RefcountsBeforeClean) {
            self.clear_dirty(lazy).await?;
        }
        self.commit(None).await?;
        let untidy = || {
            !self.state.epoch.borrow().unlinked.is_empty()
                || !self.state.refcounts.borrow().dirty_blocks().is_empty()
        };
        // The first commit gives back what the epoch unlinked; a second one writes the refcounts.
        for _ in 0..2 {
            if untidy() {
                self.commit(None).await?;
            }
        }
        self.clear_dirty(lazy).await
    }
}

/// Raw images have no tables: what the guest asks is what the storage is asked.
impl<S: Storage> Image<S> {
    async fn raw_write(&self, offset: GuestOffset, data: &[u8]) -> Result<()> {
        let (Layer::Raw(raw), Some(state)) = (self.top(), &self.changing) else {
            return Ok(());
        };
        let volume = raw.volume()?;
        let _under_way = state.activity.begin();
        let range = offset.0..offset.0.saturating_add(data.len() as u64);
        // Encrypted sectors are read and written as a whole.
        let unit = if volume.is_some() { SECTOR } else { 1 };
        let _held = state.hold(range.clone(), unit).await;
        self.before_change(state, range).await?;
        let encrypted;
        let (offset, data) = match volume {
            None => (offset, data),
            Some(volume) => {
                let start = GuestOffset(offset.0 / SECTOR * SECTOR);
                encrypted = self.encrypted_sectors(volume, start, offset, data).await?;
                (start, &encrypted[..])
            }
        };
        state.count_write(data.len());
        let given_up = io::GivenUp(&state.given_up);
        let result = raw.write(offset, data).await;
        std::mem::forget(given_up);
        result.map_err(|error| Error::io("", offset.0, error))
    }

    /// The sectors from `start` on that hold `data` at `offset`, encrypted.
    async fn encrypted_sectors(
        &self,
        volume: &Volume,
        start: GuestOffset,
        offset: GuestOffset,
        data: &[u8],
    ) -> Result<Vec<u8>> {
        let within = (offset.0 - start.0) as usize;
        let behind = within + data.len();
        let mut sectors = vec![0; behind.next_multiple_of(SECTOR as usize)];
        if within > 0 {
            self.read_held(start, &mut sectors[..within]).await?;
        }
        if behind < sectors.len() {
            let at = GuestOffset(start.0 + behind as u64);
            self.read_held(at, &mut sectors[behind..]).await?;
        }
        sectors[within..behind].copy_from_slice(data);
        volume.encrypt(start.0 / SECTOR, &mut sectors);
        Ok(sectors)
    }

    async fn raw_zeroes(&self, offset: GuestOffset, length: u64) -> Result<()> {
        in_zeros(offset.0..offset.0 + length, async |at, zeros: &[u8]| {
            self.raw_write(GuestOffset(at), zeros).await
        })
        .await
    }

    pub(crate) async fn raw_flush(&self) -> Result<()> {
        let (Layer::Raw(raw), Some(state)) = (self.top(), &self.changing) else {
            return Ok(());
        };
        state.count(|counts| counts.flushes += 1);
        raw.file().storage.flush().await.map_err(|source| {
            state.stop(Error::Io {
                what: "".into(),
                offset: None,
                source,
            })
        })
    }
}
