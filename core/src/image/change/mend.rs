//! What a repair needs of the engine: the image for itself, and the switch to what it has built. What it
//! builds stands in [`crate::repair`].

use std::rc::Rc;

use crate::check::{Problem, Watcher};
use crate::error::{Error, Place, Result, Structure};
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::refcounts::Refcounts;
use crate::image::change::snapshots::Exclusive;
use crate::qcow2::{Header, Incompatible, RawHeader, Snapshot};
use crate::repair::{RepairMode, repair_held};
use crate::storage::Storage;
use crate::units::SECTOR;

/// Refuses what only a repair may write to (QEMU-COMPAT rule 14).
pub(super) fn check_writable(header: &Header) -> Result<()> {
    if header.incompatible.has(Incompatible::CORRUPT) {
        return Err(Error::corrupt(
            "Image is corrupt; cannot be opened read/write",
            Place::of(Structure::Header),
        ));
    }
    if header.refcount_table.entries == 0 {
        // Opened for its repair, which has not been.
        return Err(Error::corrupt(
            "Image does not contain a reference count table",
            Place::of(Structure::Header),
        ));
    }
    Ok(())
}

/// Passes on what is repaired in a dirty image.
struct Told(Option<OnRepair>);

impl Watcher for Told {
    fn problem(&mut self, problem: &Problem) {
        if let Some(tell) = &self.0 {
            tell(problem);
        }
    }
}

/// Is told of every problem that is repaired before the first change of an image that is marked as dirty.
pub type OnRepair = Rc<dyn Fn(&Problem)>;

/// The image is nobody else's.
pub(crate) struct ForRepair<'a> {
    _held: Exclusive<'a>,
}

impl<S: Storage> Image<S> {
    /// Has `tell` called when the image turns out to be marked as dirty with the first change of it, with every
    /// problem that is repaired then.
    pub fn on_repair(&self, tell: &OnRepair) {
        if let Some(state) = &self.changing {
            state.on_repair.replace(Some(tell.clone()));
        }
    }

    /// The engine, for a repair.
    pub(crate) fn repair_engine(&self) -> Result<Engine<'_, S>> {
        self.engine()?
            .ok_or_else(|| Error::Unsupported("This image format does not support checks".into()))
    }
}

impl<'a, S: Storage> Engine<'a, S> {
    /// Waits until the image is nobody else's, with everything in the file that was changed.
    pub(crate) async fn hold_for_repair(&self) -> Result<ForRepair<'a>> {
        let held = Exclusive::hold(self).await?;
        if self.state.prepared.get() {
            self.committing(&held).tidy().await?;
        }
        self.check_no_other_writer().await?;
        let sector = self
            .read_metadata("Could not read qcow2 header", 0, SECTOR as usize)
            .await?;
        self.state.sector_0.replace(sector);
        Ok(ForRepair { _held: held })
    }

    /// Has the header say that there is no refcount table, where there is none: what it points to may be
    /// past the end of the file, and look like a table once the file has grown.
    pub(crate) async fn withdraw_refcount_table(&self) -> Result<()> {
        let mut header = (*self.qcow2.raw_header()).clone();
        if header.refcount_table_clusters == 0 {
            return Ok(());
        }
        (header.refcount_table_offset, header.refcount_table_clusters) = (0, 0);
        self.write_header(&header, None).await?;
        self.state.unflushed.set(false);
        self.flush_file(&self.qcow2.file).await
    }

    /// Writes something that nothing in the file points to yet.
    pub(crate) async fn write_aside(
        &self,
        what: &'static str,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.write_unlinked(what, offset, bytes).await
    }

    /// The file will be used up to byte `end`.
    pub(crate) fn use_up_to(&self, end: u64) {
        self.qcow2.reaches(end);
        self.no_longer_virgin(end);
    }

    /// Makes durable what was built aside, and switches to it. `l1` and `snapshots` are the active L1 table
    /// and the snapshots, where those are others now.
    pub(crate) async fn switch_to_repaired(
        &self,
        header: RawHeader,
        l1: Option<Vec<u64>>,
        snapshots: Option<Vec<Snapshot>>,
    ) -> Result<()> {
        let whole = self.state.stops_unless_finished();
        self.flush_and_switch(header).await?;
        if let Some(l1) = l1 {
            self.qcow2.adopt_l1(l1);
        }
        if let Some(snapshots) = snapshots {
            self.qcow2.adopt_snapshots(snapshots);
        }
        self.qcow2.meta.borrow_mut().excess = Default::default();
        self.state.packing.set(None);
        self.qcow2.tables.clear();
        self.qcow2.clusters.borrow_mut().clear();
        let refcounts = Refcounts::new(&self.qcow2.header());
        self.state.refcounts.replace(refcounts);
        if self.state.prepared.get() {
            self.read_refcount_table().await?;
            self.protect_metadata().await?;
        }
        whole.finished();
        Ok(())
    }

    /// Makes the refcounts of a dirty image right (M8). The image is held.
    pub(super) async fn rebuild_refcounts(&self) -> Result<()> {
        let mut told = Told(self.state.on_repair.borrow().clone());
        let (report, refcounts_hold) = repair_held(self, RepairMode::All, &mut told).await?;
        if report.found.check_errors > 0 || !refcounts_hold {
            return Err(Error::corrupt(
                "Could not repair dirty image",
                Place::of(Structure::RefcountTable),
            ));
        }
        Ok(())
    }
}
