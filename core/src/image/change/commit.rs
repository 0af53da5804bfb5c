//! Mechanism 1: what makes guest writes durable, in an order in which every cut is harmless.
//!
//! A commit publishes an epoch:
//!
//! 1. *freeze*: what will be published is settled now; what comes later waits for the next commit;
//! 2. refcounts, new L2 tables and new refcount blocks are written: nothing durable points to them yet;
//! 3. **flush**: those, and the guest's data, are durable;
//! 4. entries of linked L2 tables, of the L1 table and of the refcount table are written;
//! 5. **flush**: now the guest's flush is acknowledged;
//! 6. what the entries unlinked leaves quarantine: it may be used again (M4).
//!
//! A cut before 5 leaves old entries, or new ones whose targets were made durable in 3.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::error::Result;
use crate::image::change::Engine;
use crate::image::change::allocate::NeedsBlock;
use crate::image::change::refcounts::DirtyPart;
use crate::image::change::state::Changing;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::bytes::be64_bytes;
use crate::storage::Storage;
use crate::units::SECTOR;

/// L1 and refcount table entries in a sector.
const ENTRIES_IN_SECTOR: usize = SECTOR as usize / 8;
/// The most bytes that one write of tables moves.
const MAX_WRITE: usize = 1 << 20;

/// Slices of L2 tables by their host offset.
type Slices = BTreeMap<u64, Rc<[u64]>>;

/// What a commit publishes, as it was at the moment of the freeze.
#[derive(Default)]
struct Frozen {
    refcounts: Vec<DirtyPart>,
    slices: Slices,
    new_tables: Vec<u64>,
    l1_sectors: Vec<L1Sector>,
    new_block: Option<NewBlock>,
    unlinked: Vec<u64>,
    /// The refcounts stay behind what is published: the dirty bit must be durable first (M8).
    dirties: bool,
}

/// Gives back to the epoch what a commit had taken out of it, unless the commit came to its end: a commit
/// that is given up half way is done again by the next one.
struct Publishing<'a> {
    state: &'a Changing,
    frozen: Frozen,
}

impl Drop for Publishing<'_> {
    fn drop(&mut self) {
        let mut epoch = self.state.epoch.borrow_mut();
        if let Some(block) = self.frozen.new_block.take() {
            epoch.new_block = Some(block);
        }
        epoch.unlinked.append(&mut self.frozen.unlinked);
        epoch
            .l1_sectors
            .extend(self.frozen.l1_sectors.iter().map(|sector| sector.index));
        let mut refcounts = self.state.refcounts.borrow_mut();
        for part in &self.frozen.refcounts {
            refcounts.dirty_again(part);
        }
    }
}

/// A sector of the L1 table.
struct L1Sector {
    index: usize,
    offset: u64,
    bytes: Vec<u8>,
}

/// A refcount block that the refcount table does not point to yet.
#[derive(Debug)]
pub(crate) struct NewBlock {
    pub index: u64,
    pub offset: u64,
    pub bytes: Vec<u8>,
}

impl<S: Storage> Engine<'_, S> {
    /// Makes everything that was completed before durable. With it the refcount block is made that a step `needs`, or one
    /// that is needed before that one; or the refcount table alone becomes longer. Who needs it looks and asks again.
    pub async fn commit(&self, needs: Option<NeedsBlock>) -> Result<()> {
        if self.commits_held {
            return self.commit_held(needs).await;
        }
        let _committing = self.state.commits.lock_all().await;
        self.commit_held(needs).await
    }

    /// As [`Self::commit`], with the commits already held.
    pub async fn commit_held(&self, needs: Option<NeedsBlock>) -> Result<()> {
        self.state.check_running()?;
        self.check_no_other_writer().await?;
        let tables = self.state.tables.lock_all().await;
        let unfinished = self.state.epoch.borrow().new_block.is_some();
        let new_block = match needs.filter(|_| !unfinished) {
            None => None,
            Some(needs) => match self.place_block(needs).await? {
                Some(placed) if self.is_behind_the_table(placed.index) => {
                    return self.grow_refcount_table(placed, &tables).await;
                }
                Some(placed) => Some(self.new_block(placed)?),
                None => None, // Somebody else's commit has made it.
            },
        };
        let frozen = self.freeze(new_block)?;
        self.state.alone.set(false);
        drop(tables);
        self.publish(frozen).await
    }

    /// Step 1. The set that is published is settled before the first flush begins: an entry that is made
    /// while it runs may point to data that it does not cover. The tables are held.
    fn freeze(&self, new_block: Option<NewBlock>) -> Result<Frozen> {
        let dirties = self.puts_off_refcounts();
        let refcounts = match dirties {
            true => Vec::new(),
            false => {
                let taken = self.state.refcounts.borrow_mut().take_dirty();
                self.qcow2.alarm.hear(taken)?
            }
        };
        let (slices, new_tables, l1_sectors) = self.freeze_tables();
        let mut epoch = self.state.epoch.borrow_mut();
        let new_block = epoch.new_block.take().or(new_block);
        let unlinked = std::mem::take(&mut epoch.unlinked);
        Ok(Frozen {
            refcounts,
            slices,
            new_tables,
            l1_sectors,
            new_block,
            unlinked,
            dirties,
        })
    }

    fn freeze_tables(&self) -> (Slices, Vec<u64>, Vec<L1Sector>) {
        let mut epoch = self.state.epoch.borrow_mut();
        let root = self.qcow2.root.borrow();
        let l1_sectors = std::mem::take(&mut epoch.l1_sectors)
            .into_iter()
            .map(|index| {
                let from = index * ENTRIES_IN_SECTOR;
                let to = (from + ENTRIES_IN_SECTOR).min(root.l1.len());
                L1Sector {
                    index,
                    offset: root.l1_offset.0 + from as u64 * 8,
                    bytes: be64_bytes(&root.l1[from..to]),
                }
            })
            .collect();
        let new_tables = epoch.new_tables.iter().copied().collect();
        (self.qcow2.tables.freeze(), new_tables, l1_sectors)
    }

    /// Steps 2 to 6.
    async fn publish(&self, frozen: Frozen) -> Result<()> {
        let mut publishing = Publishing {
            state: self.state,
            frozen,
        };
        let frozen = &mut publishing.frozen;
        let is_new = |offset: u64, tables: &[u64]| {
            let start = offset & !(self.cluster_bytes() - 1);
            tables.binary_search(&start).is_ok()
        };
        let linked = frozen
            .slices
            .keys()
            .any(|at| !is_new(*at, &frozen.new_tables));
        let publishes = linked || !frozen.l1_sectors.is_empty() || frozen.new_block.is_some();
        // Step 2.
        if frozen.dirties && publishes {
            self.mark_dirty(&frozen.new_tables).await?;
        }
        if upheld(OrderingPoint::RefcountsBeforePublish) {
            self.write_refcounts(frozen).await?;
        }
        if upheld(OrderingPoint::NewTablesBeforePublish) {
            let new = frozen
                .slices
                .iter()
                .filter(|(at, _)| is_new(**at, &frozen.new_tables));
            self.write_slices(new).await?;
        }
        if let Some(block) = &frozen.new_block
            && upheld(OrderingPoint::RefcountBlockBeforeLink)
        {
            self.write_block(block).await?;
        }

        // Step 3. Entries that only let go of something depend on nothing that is not durable.
        if publishes {
            self.barrier_if_unflushed(OrderingPoint::FlushBeforePublish)
                .await?;
        } else {
            self.data_barrier().await?;
            self.barrier(OrderingPoint::FlushBeforePublish).await?;
        }
        if !upheld(OrderingPoint::FreezeBeforeFlush) {
            (frozen.slices, frozen.new_tables, frozen.l1_sectors) = self.freeze_tables();
        }

        if publishes {
            // Step 4.
            if !upheld(OrderingPoint::NewTablesBeforePublish) {
                let new = frozen
                    .slices
                    .iter()
                    .filter(|(at, _)| is_new(**at, &frozen.new_tables));
                self.write_slices(new).await?;
            }
            let linked = frozen
                .slices
                .iter()
                .filter(|(at, _)| !is_new(**at, &frozen.new_tables));
            self.write_slices(linked).await?;
            for sector in &frozen.l1_sectors {
                self.write_metadata("Could not write L1 table", sector.offset, &sector.bytes)
                    .await?;
            }
            if let Some(block) = &frozen.new_block {
                self.link_block(block).await?;
                if !upheld(OrderingPoint::RefcountBlockBeforeLink) {
                    self.write_block(block).await?;
                }
            }
            if !upheld(OrderingPoint::RefcountsBeforePublish) {
                self.write_refcounts(frozen).await?;
            }
            // Step 5.
            self.barrier(OrderingPoint::FlushAfterPublish).await?;
        }

        // Step 6.
        let _tables = self.state.tables.lock_all().await;
        self.qcow2.tables.settle(&frozen.slices);
        {
            let mut epoch = self.state.epoch.borrow_mut();
            for table in &frozen.new_tables {
                epoch.new_tables.remove(table);
            }
        }
        if let Some(block) = frozen.new_block.take() {
            let mut refcounts = self.state.refcounts.borrow_mut();
            refcounts.table[block.index as usize] = block.offset;
            refcounts.replace(block.index, block.bytes);
        }
        frozen.refcounts.clear();
        frozen.l1_sectors.clear();
        let unlinked = std::mem::take(&mut frozen.unlinked);
        self.give_back(unlinked).await
    }

    async fn write_refcounts(&self, frozen: &Frozen) -> Result<()> {
        for part in &frozen.refcounts {
            self.write_metadata("Could not write refcount block", part.offset, &part.bytes)
                .await?;
        }
        Ok(())
    }

    async fn write_block(&self, block: &NewBlock) -> Result<()> {
        self.write_metadata("Could not write refcount block", block.offset, &block.bytes)
            .await
    }

    /// Writes slices, with one request where they follow one another.
    async fn write_slices(&self, slices: impl Iterator<Item = (&u64, &Rc<[u64]>)>) -> Result<()> {
        let mut start = 0;
        let mut bytes: Vec<u8> = Vec::new();
        for (&offset, slice) in slices {
            if offset != start + bytes.len() as u64 || bytes.len() >= MAX_WRITE {
                self.write_table(start, &bytes).await?;
                start = offset;
                bytes.clear();
            }
            bytes.extend(slice.iter().flat_map(|entry| entry.to_be_bytes()));
        }
        self.write_table(start, &bytes).await
    }

    async fn write_table(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.write_metadata("Could not write L2 table", offset, bytes)
            .await
    }

    /// Points the refcount table to a block that is durable. One sector: the entry is there or not.
    async fn link_block(&self, block: &NewBlock) -> Result<()> {
        let (offset, bytes) = {
            let refcounts = self.state.refcounts.borrow();
            let from = block.index as usize / ENTRIES_IN_SECTOR * ENTRIES_IN_SECTOR;
            let mut entries = refcounts.table[from..from + ENTRIES_IN_SECTOR].to_vec();
            entries[block.index as usize - from] = block.offset;
            let table = self.qcow2.header().refcount_table.offset.0;
            (table + from as u64 * 8, be64_bytes(&entries))
        };
        self.write_metadata("Could not write refcount table", offset, &bytes)
            .await
    }
}
