//! Slices of L2 tables: read once and kept within a bound; changed ones kept until they are durable.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::image::clock::Clock;
use crate::qcow2::bytes::be64_table;
use crate::storage::{Storage, read_padded};
use crate::units::{ClusterSize, HostOffset};

/// The largest slice: what one request brings in, and what one entry needed costs in memory.
const SLICE_BYTES: u64 = 4096;

/// Slices of tables of 64-bit entries, by their host offset.
pub(crate) struct TableCache {
    clean: RefCell<Clock<u64, Rc<[u64]>>>,
    /// Slices that differ from what the file is known to hold.
    changed: RefCell<BTreeMap<u64, Rc<[u64]>>>,
    /// Counts the changes, so that who waited for the storage notices what happened meanwhile.
    generation: Cell<u64>,
    slice_bytes: u64,
    capacity: usize,
}

impl TableCache {
    /// A cache of about `bytes` bytes.
    pub fn new(bytes: usize, cluster_size: ClusterSize) -> Self {
        let slice_bytes = SLICE_BYTES.min(cluster_size.bytes());
        let capacity = bytes / slice_bytes as usize;
        Self {
            clean: RefCell::new(Clock::new(capacity)),
            changed: RefCell::default(),
            generation: Cell::new(0),
            slice_bytes,
            capacity,
        }
    }

    /// The bytes of a slice.
    pub fn slice_bytes(&self) -> u64 {
        self.slice_bytes
    }

    /// The slice that starts at `offset` (a multiple of its size). Never borrowed over an await: readers
    /// that miss together read twice, and both get what the file has.
    pub async fn slice<S: Storage>(
        &self,
        storage: &S,
        offset: HostOffset,
        what: &'static str,
    ) -> Result<Rc<[u64]>> {
        loop {
            if let Some(slice) = self.changed.borrow().get(&offset.0) {
                return Ok(slice.clone());
            }
            if let Some(slice) = self.clean.borrow_mut().get(offset.0) {
                return Ok(slice);
            }
            let generation = self.generation.get();
            let mut bytes = vec![0; self.slice_bytes as usize];
            read_padded(storage, offset.0, &mut bytes)
                .await
                .map_err(|error| Error::io(what, offset.0, error))?;
            // After every wait, look up again.
            if self.generation.get() == generation {
                let slice: Rc<[u64]> = be64_table(&bytes).collect();
                self.clean.borrow_mut().insert(offset.0, slice.clone());
                return Ok(slice);
            }
        }
    }

    /// From now on `slice` is what stands at `offset`.
    pub fn change(&self, offset: HostOffset, slice: Rc<[u64]>) {
        self.changed.borrow_mut().insert(offset.0, slice);
        self.generation.set(self.generation.get() + 1);
    }

    /// Every changed slice as it is now. What is changed later does not show in them.
    pub fn freeze(&self) -> BTreeMap<u64, Rc<[u64]>> {
        self.changed.borrow().clone()
    }

    /// `frozen` is durable: forgets that it was changed, but for what has changed again since.
    pub fn settle(&self, frozen: &BTreeMap<u64, Rc<[u64]>>) {
        let mut changed = self.changed.borrow_mut();
        let mut clean = self.clean.borrow_mut();
        for (offset, slice) in frozen {
            clean.insert(*offset, slice.clone());
            if changed
                .get(offset)
                .is_some_and(|now| Rc::ptr_eq(now, slice))
            {
                changed.remove(offset);
            }
        }
    }

    /// Whether anything is changed.
    pub fn has_changes(&self) -> bool {
        !self.changed.borrow().is_empty()
    }

    /// Whether so much is changed that it had better be committed.
    pub fn is_full(&self) -> bool {
        self.changed.borrow().len() >= self.capacity.max(64) / 2
    }

    /// Forgets every slice: the tables are others now.
    pub fn clear(&self) {
        self.generation.set(self.generation.get() + 1);
        self.changed.borrow_mut().clear();
        self.clean.borrow_mut().clear();
    }
}
