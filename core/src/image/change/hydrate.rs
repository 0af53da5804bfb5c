//! What comes from the backing file: found, fetched, and linked into the image as its own.

use std::ops::Range;

use futures_util::FutureExt;

use crate::error::{Error, Result};
use crate::image::change::{Engine, ZeroMode};
use crate::image::lock::Access;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::{Image, KeepReads, Layer};
use crate::qcow2::{RunKind, Version};
use crate::storage::Storage;
use crate::units::GuestOffset;

impl<S: Storage> Image<S> {
    /// How much of the disk the backing file can answer for, in bytes from its start.
    pub(crate) fn backed_size(&self) -> u64 {
        let below = self.layers().get(1);
        below.map_or(0, |below| below.virtual_size().min(self.virtual_size()))
    }

    /// The first run of bytes in `range` that the image leaves to its backing file.
    pub(crate) async fn unhydrated(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        // No transaction replaces the tables meanwhile.
        let _held = self.hold_for_reading(range.clone()).await?;
        self.unhydrated_held(range).await
    }

    /// The same, of a range that is held.
    pub(super) async fn unhydrated_held(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        let end = range.end.min(self.backed_size());
        let mut at = range.start;
        let mut found: Option<Range<u64>> = None;
        while at < end {
            let run = self.layers[0].run_at(GuestOffset(at), end - at).await?;
            let next = at + run.length;
            match (&mut found, run.kind) {
                (Some(found), RunKind::Unallocated(_)) => found.end = next,
                (None, RunKind::Unallocated(_)) => found = Some(at..next),
                (Some(_), _) => break,
                (None, _) => {}
            }
            at = next;
        }
        Ok(found)
    }

    /// The bytes of one cluster of the image.
    pub(crate) fn cluster_bytes(&self) -> u64 {
        match self.top() {
            Layer::Raw(_) => 1,
            Layer::Qcow2(qcow2) => qcow2.header().cluster_size.bytes(),
        }
    }

    /// The bytes of what is allocated on its own: a subcluster of the image, where it has them, else a cluster.
    pub(crate) fn granule_bytes(&self) -> u64 {
        match self.top() {
            Layer::Raw(_) => 1,
            Layer::Qcow2(qcow2) => qcow2.l2_format.granule_bytes(),
        }
    }

    /// Whether clusters (subclusters, with extended L2 entries) that are read from the backing file are kept in the
    /// image from now on. Nothing happens where it was not opened for writing.
    /// [`Hydration`](crate::hydrate::Hydration) does it too.
    pub fn set_copy_on_read(&self, on: bool) {
        let keep: KeepReads<S> = |image, range| image.hydrate_for_reading(range).boxed_local();
        let possible = self.changing.is_some();
        self.keeps_reads.set((on && possible).then_some(keep));
    }

    /// Fetches what a read of `range` needs of the backing file and keeps it. Where it cannot be kept the
    /// read is none the worse: it asks the backing file itself.
    pub(crate) async fn hydrate_for_reading(&self, range: Range<u64>) -> Result<()> {
        let granule = self.granule_bytes();
        let mut at = range.start;
        while at < range.end {
            let Some(wanted) = self.unhydrated(at..range.end).await? else {
                return Ok(());
            };
            /// The most that is fetched at once, in bytes.
            const PIECE: u64 = 4 << 20;
            let start = wanted.start / granule * granule;
            let end = wanted.end.min(start + PIECE).next_multiple_of(granule);
            let whole = start..end.min(self.virtual_size());
            let data = self.fetch(whole.clone()).await?;
            let end = whole.end;
            match self.link_fetched(whole.start, &data).await {
                Ok(_) => at = end,
                Err(error @ Error::Stopped(_)) => return Err(error),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// What the backing file says of `range`, zeros past its end. Nothing is held: what lies below the
    /// image does not change.
    pub(crate) async fn fetch(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut data = vec![0; (range.end - range.start) as usize];
        let backed = self.backed_size().saturating_sub(range.start);
        let count = (data.len() as u64).min(backed) as usize;
        self.read_from(1, GuestOffset(range.start), &mut data[..count])
            .await?;
        for layer in &self.layers[1..] {
            layer.check_unchanged().await?;
        }
        Ok(data)
    }

    /// Makes fetched bytes the image's own, wherever it still leaves them to the backing file: what the
    /// guest has written or discarded since they were asked for stays. Returns how many bytes that was.
    pub(crate) async fn link_fetched(&self, start: u64, data: &[u8]) -> Result<u64> {
        let Some(engine) = self.engine()? else {
            return Ok(0);
        };
        engine.check_guest_data()?;
        engine.prepare().await?;
        let end = start + data.len() as u64;
        let size = engine.cluster_bytes();
        let clusters = start / size * size..end.next_multiple_of(size);
        let _held = engine.state.ranges.lock(clusters, Access::Exclusive).await;
        engine.look_for_others().await?;
        // The disk may have become shorter, or its backing file may be gone.
        let backed = self.backed_size().next_multiple_of(size);
        let end = end.min(self.virtual_size()).min(backed);
        let mut linked = 0;
        let mut at = start;
        while at < end {
            let run = self.layers[0].run_at(GuestOffset(at), end - at).await?;
            let length = run.length;
            // Looked up again: this is what keeps a guest's newer bytes.
            let unallocated = matches!(run.kind, RunKind::Unallocated(_));
            if unallocated || !upheld(OrderingPoint::RecheckAtLink) {
                let from = (at - start) as usize;
                engine.keep(at, &data[from..from + length as usize]).await?;
                linked += length;
            }
            at += length;
        }
        Ok(linked)
    }
}

impl<S: Storage> Layer<S> {
    /// A source that has another length than when it was opened is another source.
    async fn check_unchanged(&self) -> Result<()> {
        let file = self.file();
        let known = match self {
            Self::Raw(raw) => raw.file_len(),
            Self::Qcow2(qcow2) => qcow2.file_len(),
        };
        let length = file.storage.len().await;
        let length = length.map_err(|error| Error::io("Could not get image size", 0, error))?;
        if length == known {
            return Ok(());
        }
        Err(Error::Refused(
            format!(
                "'{}' had {known} bytes when it was opened and has {length} now: another file, of which nothing is kept",
                file.name
            )
            .into(),
        ))
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Stores bytes that read like this already.
    async fn keep(&self, at: u64, data: &[u8]) -> Result<()> {
        let size = self.cluster_bytes();
        let flags = self.qcow2.header().version >= Version::V3;
        let is_zero = |piece: &[u8]| flags && piece.iter().all(|&byte| byte == 0);
        // Runs of clusters that are zeros, and of clusters that are not.
        let mut done = 0;
        while done < data.len() {
            let cut = |from: usize| {
                let to = (at + from as u64 + 1).next_multiple_of(size) - at;
                (to as usize).min(data.len())
            };
            let mut until = cut(done);
            let zero = is_zero(&data[done..until]);
            while until < data.len() && is_zero(&data[until..cut(until)]) == zero {
                until = cut(until);
            }
            let from = at + done as u64;
            if zero {
                self.zero_guest(from, at + until as u64, ZeroMode::Unmap)
                    .await?;
            } else {
                self.write_guest(GuestOffset(from), &data[done..until])
                    .await?;
            }
            done = until;
        }
        Ok(())
    }
}
