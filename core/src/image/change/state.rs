//! What an image that is open for writing has in memory beyond what a reader has.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::image::activity::Activity;
use crate::image::change::IoCounts;
use crate::image::change::before::BeforeChange;
use crate::image::change::bitmaps::Tracking;
use crate::image::change::commit::NewBlock;
use crate::image::change::home::{Aside, Home};
use crate::image::change::mend::OnRepair;
use crate::image::change::refcounts::Refcounts;
use crate::image::lock::{Access, RangeGuard, RangeLock};
use crate::image::ordering::{OrderingPoint, upheld};
use crate::units::HostOffset;

/// The state of writing to one image.
///
/// Locks are taken in the order of these fields, and never the other way round. Nothing that is borrowed
/// from a cell is held over an await.
pub(crate) struct Changing {
    /// Ranges of the guest's disk: readers share, writers do not, transactions take all of it.
    pub ranges: RangeLock,
    /// One commit or transaction at a time.
    pub commits: RangeLock,
    /// The tables and refcounts in memory: one task at a time looks up and changes. Not held while data
    /// moves.
    pub tables: RangeLock,
    pub counts: Cell<IoCounts>,
    /// Why nothing more is written, once something failed.
    pub stopped: RefCell<Option<String>>,
    /// Whether the header says that the image is corrupt because of what was found since it was opened.
    pub marked: Cell<bool>,
    /// Whether the header was made ready for writing: unknown autoclear bits and the like are dealt with.
    pub prepared: Cell<bool>,
    pub refcounts: RefCell<Refcounts>,
    pub epoch: RefCell<Epoch>,
    pub bitmaps: RefCell<Tracking>,
    /// Whether this epoch has looked if another program wrote to the file.
    pub alone: Cell<bool>,
    /// Sector 0 as it was last read or written: who else writes to the file shows there.
    pub sector_0: RefCell<Vec<u8>>,
    /// The length of the file as far as writes to it went, in bytes.
    pub physical_len: Cell<u64>,
    /// Writes to the file; where these differ, some are under way or were given up, and the length is not
    /// known.
    pub writes_begun: Cell<u64>,
    pub writes_ended: Cell<u64>,
    /// How many writes were given up half way, and how many of those surely come no more.
    pub given_up: Cell<u64>,
    pub waited_for: Cell<u64>,
    /// No byte from here on was ever written: what is allocated there reads as zeros.
    pub virgin_from: Cell<u64>,
    /// Whether anything was written to the image's file that no flush has covered.
    pub unflushed: Cell<bool>,
    /// The same of the external data file.
    pub data_unflushed: Cell<bool>,
    /// Where the next compressed cluster may go: the unused end of a host cluster that has some.
    pub packing: Cell<Option<HostOffset>>,
    /// Who is asked before the guest's disk changes.
    pub watchers: RefCell<Vec<Rc<dyn BeforeChange>>>,
    /// The ids of snapshots that views read: they are not deleted meanwhile.
    pub pinned: RefCell<Vec<String>>,
    /// Whether the backing file has been dropped since the image was opened.
    pub detached: Cell<bool>,
    /// Who is told of what is repaired in a dirty image.
    pub on_repair: RefCell<Option<OnRepair>>,
    /// Whether commits may leave the file's refcounts behind, under the dirty bit (M8).
    pub lazy: Cell<bool>,
    /// Where the refcounts stood before the first change, and how long the file was.
    pub home: Cell<Option<(Home, u64)>>,
    /// What transactions since then have put elsewhere.
    pub aside: RefCell<Aside>,
    /// The guest's operations that are under way.
    pub activity: Activity,
}

impl std::fmt::Debug for Changing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changing")
            .field("counts", &self.counts.get())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

/// What happened since the last commit.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    /// L2 tables that no durable L1 entry points to.
    pub new_tables: BTreeSet<u64>,
    /// Sectors of the active L1 table that changed.
    pub l1_sectors: BTreeSet<usize>,
    /// A refcount block whose commit was given up half way. The file may lead to it already: until a commit has come to
    /// its end with it, nobody else may have its place.
    pub new_block: Option<NewBlock>,
    /// Quarantine: host clusters that lost a reference, which they keep in the refcounts until the loss is
    /// durable (M4).
    pub unlinked: Vec<u64>,
}

/// As much quarantine as may gather before it is committed, in clusters: 8 MiB of memory.
const MAX_QUARANTINE: usize = 1 << 20;

impl Epoch {
    pub fn is_full(&self) -> bool {
        self.unlinked.len() >= MAX_QUARANTINE
    }
}

impl Changing {
    pub fn new(physical_len: u64, refcounts: Refcounts) -> Self {
        Self {
            ranges: RangeLock::default(),
            commits: RangeLock::default(),
            tables: RangeLock::default(),
            counts: Cell::default(),
            stopped: RefCell::default(),
            marked: Cell::new(false),
            prepared: Cell::new(false),
            refcounts: RefCell::new(refcounts),
            epoch: RefCell::default(),
            bitmaps: RefCell::default(),
            alone: Cell::new(false),
            sector_0: RefCell::default(),
            physical_len: Cell::new(physical_len),
            writes_begun: Cell::new(0),
            writes_ended: Cell::new(0),
            given_up: Cell::new(0),
            waited_for: Cell::new(0),
            virgin_from: Cell::new(physical_len),
            unflushed: Cell::new(false),
            data_unflushed: Cell::new(false),
            packing: Cell::new(None),
            watchers: RefCell::default(),
            pinned: RefCell::default(),
            detached: Cell::new(false),
            on_repair: RefCell::default(),
            lazy: Cell::new(false),
            home: Cell::new(None),
            aside: RefCell::default(),
            activity: Activity::default(),
        }
    }

    /// An error once something has failed: fail-stop.
    pub fn check_running(&self) -> Result<()> {
        match &*self.stopped.borrow() {
            None => Ok(()),
            Some(why) => Err(Error::Stopped(
                format!("The image takes no more writes after an error ({why}); open it again")
                    .into(),
            )),
        }
    }

    /// Stops all writing because of `error`, which is handed back.
    pub fn stop(&self, error: Error) -> Error {
        self.stopped
            .borrow_mut()
            .get_or_insert_with(|| error.to_string());
        error
    }

    /// Holds `range` to change it, and as much around it as the multiples of `own` bytes and those of whoever
    /// is asked before.
    pub async fn hold(&self, range: Range<u64>, own: u64) -> RangeGuard<'_> {
        loop {
            let granule = self.granule(own);
            let start = range.start / granule * granule;
            let end = range.end.div_ceil(granule).saturating_mul(granule);
            let access = match upheld(OrderingPoint::DrainBeforeOverwrite) {
                true => Access::Exclusive,
                false => Access::Shared,
            };
            let held = self.ranges.lock(start..end, access).await;
            // Somebody who asks for more may have come while this waited.
            if self.granule(own) == granule {
                return held;
            }
        }
    }

    /// Notes that host cluster `cluster` lost a reference.
    pub fn unlink(&self, cluster: u64) {
        self.epoch.borrow_mut().unlinked.push(cluster);
    }

    pub fn count_write(&self, bytes: usize) {
        self.count(|counts| {
            counts.writes += 1;
            counts.written_bytes += bytes as u64;
        });
    }

    pub fn count(&self, add: impl FnOnce(&mut IoCounts)) {
        let mut counts = self.counts.get();
        add(&mut counts);
        self.counts.set(counts);
    }
}

/// Clusters that were allocated and that nothing points to yet. Those that are still unlinked when it is
/// dropped (an error, a future given up) go into quarantine, as a write to them may still be under way.
pub(crate) struct Reservation<'a> {
    state: &'a Changing,
    clusters: Range<u64>,
}

impl<'a> Reservation<'a> {
    pub fn new(state: &'a Changing, clusters: Range<u64>) -> Self {
        Self { state, clusters }
    }

    /// The first of them is linked: what becomes of it is the table's matter now.
    pub fn linked_one(&mut self) {
        self.clusters.start += 1;
    }

    /// They become part of something else's.
    pub fn keep(mut self) {
        self.linked_all();
    }

    /// All of them are linked.
    pub fn linked_all(&mut self) {
        self.clusters.start = self.clusters.end;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.state
            .epoch
            .borrow_mut()
            .unlinked
            .extend(self.clusters.clone());
    }
}
