//! Slices of L2 tables, read once and kept within a bound.

use std::cell::RefCell;
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
    slices: RefCell<Clock<u64, Rc<[u64]>>>,
    slice_bytes: u64,
}

impl TableCache {
    /// A cache of about `bytes` bytes.
    pub fn new(bytes: usize, cluster_size: ClusterSize) -> Self {
        let slice_bytes = SLICE_BYTES.min(cluster_size.bytes());
        let capacity = bytes / slice_bytes as usize;
        Self {
            slices: RefCell::new(Clock::new(capacity)),
            slice_bytes,
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
        if let Some(slice) = self.slices.borrow_mut().get(offset.0) {
            return Ok(slice);
        }
        let mut bytes = vec![0; self.slice_bytes as usize];
        read_padded(storage, offset.0, &mut bytes)
            .await
            .map_err(|error| Error::io(what, offset.0, error))?;
        let slice: Rc<[u64]> = be64_table(&bytes).collect();
        self.slices.borrow_mut().insert(offset.0, slice.clone());
        Ok(slice)
    }
}
