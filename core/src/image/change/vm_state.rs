//! Writing the state of a virtual machine: as the guest's data is written, once the L1 table reaches that far.

use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::image::{Image, VmStateOffset};
use crate::qcow2::MAX_L1_BYTES;
use crate::storage::Storage;
use crate::units::GuestOffset;

impl<S: Storage> Image<S> {
    /// Writes `data` at byte `offset` of the state of a virtual machine, behind the end of the disk. It is durable
    /// once a [`flush`](Self::flush) that began later has returned. A snapshot that is created then keeps it, and
    /// going back to that brings it back; a resize may cut it off or move it.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where the image is not qcow2, and where it has an external data file;
    /// [`Error::OutOfRange`] further out than any image reaches; [`Error::Io`] of the kind
    /// [`FileTooLarge`](std::io::ErrorKind::FileTooLarge) where the L1 table would become too long; those of
    /// [`write_at`](Self::write_at).
    pub async fn write_vm_state(&self, offset: VmStateOffset, data: &[u8]) -> Result<()> {
        self.vm_state_place(offset, data.len() as u64)?;
        let Some(engine) = self.engine()? else {
            return Ok(()); // No raw image has a place for it.
        };
        self.heed(engine.write_vm_state(offset, data)).await
    }
}

impl<S: Storage> Engine<'_, S> {
    async fn write_vm_state(&self, offset: VmStateOffset, data: &[u8]) -> Result<()> {
        if self.qcow2.header().has_data_file() {
            // No snapshot could keep it, and it would lie where the data file ends with the disk.
            return Err(Error::Unsupported(
                "An external data file has no room for the state of a virtual machine".into(),
            ));
        }
        self.check_guest_data()?;
        let _under_way = self.state.activity.begin();
        self.prepare().await?;
        let length = data.len() as u64;
        if length == 0 {
            return Ok(());
        }
        loop {
            let place = self.image.vm_state_place(offset, length)?;
            let held = self.hold(GuestOffset(place.start), length).await;
            // The disk may have been resized while this waited.
            if self.image.vm_state_place(offset, length)? != place {
                continue;
            }
            let entries = place.end.div_ceil(self.qcow2.header().l1_coverage());
            if (self.qcow2.root.borrow().l1.len() as u64) < entries {
                drop(held);
                self.grow_l1(entries).await?;
                continue;
            }
            self.look_for_others().await?;
            return self.write_guest(GuestOffset(place.start), data).await;
        }
    }

    /// Makes the active L1 table at least `entries` long: one transaction (S2), by which nothing else changes.
    async fn grow_l1(&self, entries: u64) -> Result<()> {
        let _held = Exclusive::new(self).await?;
        let mut l1 = self.qcow2.root.borrow().l1.clone();
        if l1.len() as u64 >= entries {
            return Ok(());
        }
        l1.resize(grown(l1.len() as u64, entries)? as usize, 0);
        let mut shadow = Shadow::new(self);
        shadow.replace_l1(&l1).await?;
        let snapshots = self.qcow2.snapshots().to_vec();
        self.finish(shadow, l1, snapshots).await
    }
}

/// How long an L1 table of `now` entries becomes that has to have `needed`: by halves, as in QEMU, so that a state
/// which is written from its beginning to its end does not have the table written anew for each entry.
fn grown(now: u64, needed: u64) -> Result<u64> {
    let mut entries = now.max(1);
    while entries < needed {
        entries = (entries * 3).div_ceil(2);
    }
    if entries > MAX_L1_BYTES / 8 {
        let too_large = std::io::Error::from(std::io::ErrorKind::FileTooLarge);
        return Err(Error::Io {
            what: "Could not grow the L1 table".into(),
            offset: None,
            source: too_large,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_l1_table_grows_by_halves_up_to_its_limit() {
        assert_eq!(grown(0, 1).unwrap(), 1);
        assert_eq!(grown(1, 2).unwrap(), 2);
        assert_eq!(grown(2, 3).unwrap(), 3);
        assert_eq!(grown(3, 4).unwrap(), 5);
        assert_eq!(grown(7, 9).unwrap(), 11);
        let most = MAX_L1_BYTES / 8;
        assert!(grown(most, most).unwrap() == most);
        assert!(grown(most - 1, most).is_err());
        assert!(
            matches!(grown(1, u64::MAX / 4), Err(Error::Io { source, .. })
            if source.kind() == std::io::ErrorKind::FileTooLarge)
        );
    }
}
