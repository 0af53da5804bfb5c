//! Free clusters: asked for, taken, and given back when nothing points to them any more.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::change::refcounts::{Found, Searched};
use crate::image::change::state::{Changing, Reservation};
use crate::image::lock::RangeGuard;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::Encryption;
use crate::storage::Storage;
use crate::units::HostOffset;

/// Refcount blocks that are kept in memory: 64 of them count 128 GiB at the default cluster size.
const KEPT_BLOCKS: usize = 64;

/// A step could not be done because nothing counts the clusters that it is to have. The tables must be let go, and
/// the refcount block be made by a commit.
#[derive(Debug)]
pub(crate) struct NeedsBlock {
    /// Its index in the refcount table.
    pub index: u64,
    /// The clusters that the step is to have: the block stands behind them, as in QEMU.
    pub run: Range<u64>,
}

/// What clusters are taken for.
#[derive(Clone, Copy)]
pub(crate) enum For {
    /// The guest's data.
    Data,
    /// What messages call so.
    Table(&'static str),
}

/// Clusters that are given back. Those that are left when that is broken off are not lost: they are tried again at the
/// next commit.
struct GivenBack<'a> {
    state: &'a Changing,
    clusters: Vec<u64>,
}

impl Drop for GivenBack<'_> {
    fn drop(&mut self) {
        let mut epoch = self.state.epoch.borrow_mut();
        epoch.unlinked.append(&mut self.clusters);
    }
}

impl<'a, S: Storage> Engine<'a, S> {
    /// `wanted` free clusters that follow one another, at least one, for what begins at `guest`. Fewer if they go on at
    /// cluster `behind`, where what stands before them in the same write ended: that is as good.
    ///
    /// The L2 table that will name them gets its place first, as in QEMU: what is written one after the other
    /// then lies behind its table in one piece.
    pub async fn allocate(
        &self,
        guest: u64,
        wanted: u64,
        behind: Option<u64>,
    ) -> Result<(Range<u64>, Reservation<'a>)> {
        loop {
            let tables = self.state.tables.lock_all().await;
            if let Err(needs) = self.writable_table(guest, &tables).await? {
                drop(tables);
                self.count_more(needs).await?;
                continue;
            }
            if !upheld(OrderingPoint::Quarantine) {
                let early = std::mem::take(&mut self.state.epoch.borrow_mut().unlinked);
                self.give_back(early).await?;
            }
            match self.take(For::Data, wanted, behind, &tables).await? {
                Ok(clusters) => {
                    return Ok((clusters.clone(), Reservation::new(self.state, clusters)));
                }
                Err(needs) => {
                    drop(tables);
                    self.count_more(needs).await?;
                }
            }
        }
    }

    /// As [`Self::allocate`], with the tables already held.
    pub async fn take(
        &self,
        purpose: For,
        wanted: u64,
        behind: Option<u64>,
        _tables: &RangeGuard<'_>,
    ) -> Result<Result<Range<u64>, NeedsBlock>> {
        loop {
            let found = self.state.refcounts.borrow_mut().take(wanted, behind);
            match found.map_err(|error| self.refcounts_wrong(error, purpose))? {
                Found::Clusters(clusters) => {
                    self.qcow2.reaches(clusters.end * self.cluster_bytes());
                    return Ok(Ok(clusters));
                }
                Found::Unloaded(index) => self.load_block(index).await?,
                Found::Uncounted(index, run) => return Ok(Err(NeedsBlock { index, run })),
            }
        }
    }

    /// The refcounts call metadata free, or are not where the table says.
    fn refcounts_wrong(&self, error: Error, purpose: For) -> Error {
        let at_the_start = error.place().is_some_and(|place| place.offset == Some(0));
        let error = match (purpose, error.place()) {
            // In the words of QEMU, for which this is not an overlap.
            (For::Table(what), Some(place)) if at_the_start => {
                let what = format!("Preventing invalid allocation of {what} at offset 0");
                Error::corrupt(what, place)
            }
            _ => error,
        };
        self.qcow2.alarm.raise(error)
    }

    /// Refuses clusters that hold metadata, whatever their refcounts say (QEMU-COMPAT rule 43).
    pub fn check_unprotected(&self, clusters: Range<u64>) -> Result<()> {
        let refcounts = self.state.refcounts.borrow();
        let alarm = &self.qcow2.alarm;
        alarm.hear(refcounts.check_unprotected(&clusters))
    }

    /// Where refcount block `index` lies in the file; `None` where there is none.
    pub fn block_offset(&self, index: u64) -> Result<Option<u64>> {
        let offset = self.state.refcounts.borrow().block_offset(index);
        self.qcow2.alarm.hear(offset)
    }

    /// Has the refcount block made that a step needs.
    pub async fn count_more(&self, needs: NeedsBlock) -> Result<()> {
        self.commit(Some(needs)).await
    }

    /// The first cluster from `from` on that is free; those that no block counts are.
    pub async fn first_free(&self, mut from: u64) -> Result<u64> {
        loop {
            let searched = self.state.refcounts.borrow().find(from, 1);
            match self.qcow2.alarm.hear(searched)? {
                Searched::Free(clusters) => return Ok(clusters.start),
                Searched::Unloaded { index, from: at } => {
                    self.load_block(index).await?;
                    from = at;
                }
            }
        }
    }

    /// Brings refcount block `index` into memory, if there is one.
    pub async fn load_block(&self, index: u64) -> Result<()> {
        if self.state.refcounts.borrow().is_loaded(index) {
            return Ok(());
        }
        let Some(offset) = self.block_offset(index)? else {
            return Ok(());
        };
        let length = self.cluster_bytes() as usize;
        let bytes = self
            .read_metadata("Could not read refcount block", offset, length)
            .await?;
        let mut refcounts = self.state.refcounts.borrow_mut();
        refcounts.load(index, bytes);
        refcounts.shrink_to(KEPT_BLOCKS, index);
        Ok(())
    }

    /// Takes one reference from each of `clusters`; those that have none left are free from now on.
    /// Their last use must be durable (M4). The tables are held.
    pub async fn give_back(&self, clusters: Vec<u64>) -> Result<()> {
        let state = self.state;
        let mut left = GivenBack { state, clusters };
        while let Some(&cluster) = left.clusters.last() {
            let (index, _) = state.refcounts.borrow().place_of(cluster);
            self.load_block(index).await?;
            left.clusters.pop();
            let count = state.refcounts.borrow_mut().decrement(cluster);
            let count = count.map_err(|error| state.stop(error))?;
            let packing = state.packing.get();
            if count == 0 && packing.is_some_and(|at| self.holds(cluster, at)) {
                state.packing.set(None);
            }
        }
        Ok(())
    }

    fn holds(&self, cluster: u64, byte: HostOffset) -> bool {
        self.qcow2.l2_format.cluster_size.index_of(byte.0) == cluster
    }

    /// Whether nothing was ever written to the clusters from byte `offset` on, so that they read as zeros:
    /// never where they would be decrypted.
    pub fn is_virgin(&self, offset: u64) -> bool {
        let virgin = offset >= self.state.virgin_from.get()
            && !self.qcow2.l2_format.data_file
            && self.qcow2.header().encryption == Encryption::None;
        virgin || !upheld(OrderingPoint::FillNewCluster)
    }

    /// The clusters up to byte `end` are being written.
    pub fn no_longer_virgin(&self, end: u64) {
        let from = self.state.virgin_from.get().max(end);
        self.state.virgin_from.set(from);
    }

    pub fn cluster_bytes(&self) -> u64 {
        self.qcow2.l2_format.cluster_size.bytes()
    }
}
