//! The mark that an image is corrupt: what is found while it is open for writing stops it at once, and keeps
//! everybody from writing to it until it is repaired (QEMU-COMPAT rules 14 and 43).

use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::{Image, Layer, OnCorruption};
use crate::qcow2::{Incompatible, Version};
use crate::storage::Storage;
use crate::units::SECTOR;

impl<S: Storage> Image<S> {
    /// Has `listener` told when tables are found to contradict themselves, of this image or of a backing
    /// file: once each, and once more when the image is marked for it.
    pub fn on_corruption(&self, listener: &OnCorruption) {
        for qcow2 in self.layers.iter().filter_map(Layer::as_qcow2) {
            qcow2.alarm.listen(listener.clone());
        }
        self.can_be_marked();
    }

    pub(super) fn can_be_marked(&self) {
        self.marks.set(Some(|image| Box::pin(image.mark())));
    }

    async fn mark(&self) {
        if let (Some(why), Some(state)) = (self.marked_corrupt(), &self.changing) {
            state.stop(Error::Stopped(why.into()));
            // Nobody can be told that the mark could not be written either: the error at hand says more.
            let _ = self.mark_corrupt().await;
        }
    }

    async fn mark_corrupt(&self) -> Result<()> {
        let (Layer::Qcow2(qcow2), Some(state)) = (self.top(), &self.changing) else {
            return Ok(());
        };
        // A commit or transaction under way was sound when it began, and ends as a whole.
        let _committing = state.commits.lock_all().await;
        let mut header = (*qcow2.raw_header()).clone();
        let corrupt = Incompatible::CORRUPT.0;
        if qcow2.header().version < Version::V3
            || header.incompatible_features & corrupt != 0
            || state.marked.get()
        {
            return Ok(()); // Version 2 has no place for it.
        }
        let engine = Engine {
            image: self,
            qcow2,
            state,
            commits_held: true,
        };
        let what = "Could not write qcow2 header";
        let mut sector = engine.read_metadata(what, 0, SECTOR as usize).await?;
        let known = state.sector_0.borrow().clone();
        if !known.is_empty() && known != sector {
            return Ok(()); // Another program's by now.
        }
        header.incompatible_features |= corrupt;
        header.encode_into(&mut sector);
        // One sector: the image is marked or not (M6), and nothing else has changed.
        engine.write_metadata(what, 0, &sector).await?;
        engine.flush_file(&qcow2.file).await?;
        state.marked.set(true);
        Ok(())
    }
}
