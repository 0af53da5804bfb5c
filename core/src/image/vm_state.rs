//! The state of a virtual machine. It lies behind the end of the disk in the disk's own tables (specification, "VM
//! state"): from the first L1 entry on that the disk does not need. So its place changes with the size of the disk,
//! snapshots keep it, and no guest sees it.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::{Image, Layer, Qcow2};
use crate::storage::Storage;
use crate::units::{GuestOffset, MAX_END};

/// A byte of the state of a virtual machine, counted from its first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmStateOffset(pub u64);

impl<S: Storage> Qcow2<S> {
    /// Where the state of a virtual machine begins, as if it were a part of the disk.
    pub(crate) fn vm_state_start(&self) -> u64 {
        let header = self.header();
        header.l1_entries_for(self.root.borrow().size) * header.l1_coverage()
    }
}

impl<S: Storage> Image<S> {
    /// Fills `buf` from byte `offset` of the state of a virtual machine that the image holds: that of the snapshot
    /// in use, or the active one. What was never written there reads as what the backing file has at this place,
    /// and as zeros where that ends before.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where the image is not qcow2; [`Error::OutOfRange`] where the range is not inside the
    /// [`vm_state_size`](crate::qcow2::Snapshot::vm_state_size) of the snapshot in use, or further out than any image
    /// reaches; those of [`read_at`](Self::read_at).
    pub async fn read_vm_state(&self, offset: VmStateOffset, buf: &mut [u8]) -> Result<()> {
        let _under_way = self.begin_operation();
        self.heed(self.read_vm_state_range(offset, buf)).await
    }

    async fn read_vm_state_range(&self, offset: VmStateOffset, buf: &mut [u8]) -> Result<()> {
        let length = buf.len() as u64;
        loop {
            let place = self.vm_state_place(offset, length)?;
            let _held = self.hold_for_reading(place.clone()).await?;
            // The disk may have been resized while this waited.
            if self.vm_state_place(offset, length)? == place {
                return self.read_held(GuestOffset(place.start), buf).await;
            }
        }
    }

    /// Where `length` bytes of the state from `offset` on lie, as if they were a part of the disk.
    pub(super) fn vm_state_place(&self, offset: VmStateOffset, length: u64) -> Result<Range<u64>> {
        let Layer::Qcow2(qcow2) = self.top() else {
            return Err(Error::Unsupported(
                "This image format keeps no state of a virtual machine".into(),
            ));
        };
        let start = qcow2.vm_state_start().saturating_add(offset.0);
        let end = start.saturating_add(length);
        let inside = match qcow2.root.borrow().vm_state_size {
            None => end <= MAX_END,
            Some(size) => offset.0.saturating_add(length) <= size,
        };
        match inside {
            true => Ok(start..end),
            false => Err(Error::OutOfRange(
                format!(
                    "{length} bytes at {:#x} lie outside of the state of the virtual machine",
                    offset.0
                )
                .into(),
            )),
        }
    }
}
