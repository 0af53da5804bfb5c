//! A clone that has everything drops its backing file: a switch of the header.

use crate::error::Result;
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::snapshots::Exclusive;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::qcow2::RunKind;
use crate::storage::Storage;

/// What still needs a backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NeededBy {
    /// The disk itself.
    Disk,
    /// The snapshot of this id.
    Snapshot(String),
}

impl<S: Storage> Image<S> {
    /// Drops the backing file where neither the disk nor a snapshot leaves anything to it; what does, where
    /// one does. The header is switched after everything else is durable: a cut leaves a clone that names
    /// its source, or one that is whole without it.
    pub(crate) async fn detach(&self) -> Result<Option<NeededBy>> {
        let Some(engine) = self.engine()? else {
            return Ok(None);
        };
        let _held = match upheld(OrderingPoint::CommitBeforeDetach) {
            true => Exclusive::new(&engine).await?,
            false => Exclusive::uncommitted(&engine).await?,
        };
        if engine.qcow2.backing().is_none() {
            return Ok(None);
        }
        let needed = engine.needs_backing().await?;
        if needed.is_none() {
            let mut header = (*engine.qcow2.raw_header()).clone();
            header.backing_file_offset = 0;
            header.backing_file_size = 0;
            let whole = engine.state.stops_unless_finished();
            engine.switch(header).await?;
            engine.qcow2.meta.borrow_mut().backing = None;
            engine.state.detached.set(true);
            whole.finished();
        }
        Ok(needed)
    }
}

impl<S: Storage> Engine<'_, S> {
    async fn needs_backing(&self) -> Result<Option<NeededBy>> {
        let image = self.image;
        if image.unhydrated_held(0..u64::MAX).await?.is_some() {
            return Ok(Some(NeededBy::Disk));
        }
        for snapshot in self.qcow2.snapshots().iter() {
            let size = snapshot.disk_size.unwrap_or(self.qcow2.header().size);
            let below = image.layers().get(1);
            let backed = below.map_or(0, |below| below.virtual_size().min(size));
            if self.leaves_open(snapshot, backed).await? {
                return Ok(Some(NeededBy::Snapshot(snapshot.id.clone())));
            }
        }
        Ok(None)
    }

    /// Whether a snapshot leaves anything in the first `backed` bytes to the backing file.
    async fn leaves_open(&self, snapshot: &crate::qcow2::Snapshot, backed: u64) -> Result<bool> {
        let l1 = self.qcow2.read_snapshot_l1(snapshot).await?;
        let format = self.qcow2.l2_format;
        let size = self.cluster_bytes();
        let coverage = self.qcow2.header().l1_coverage();
        for index in 0..backed.div_ceil(coverage) {
            let entry = l1.get(index as usize).copied().unwrap_or(0);
            let Some((_, table)) = self.read_l2(entry).await? else {
                return Ok(true);
            };
            for cluster in 0..table.len() {
                let start = index * coverage + cluster as u64 * size;
                let end = (start + size).min(backed);
                let mut at = start;
                while at < end {
                    let run = format.run_in(table.entry(cluster), at - start);
                    if matches!(run.kind, RunKind::Unallocated(_)) {
                        return Ok(true);
                    }
                    at += run.length.max(1);
                }
            }
        }
        Ok(false)
    }
}
