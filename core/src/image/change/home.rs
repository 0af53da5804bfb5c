//! Where the refcounts stand. A transaction leaves them elsewhere, behind everything that there was; a second one
//! can bring them back to where everybody has them, at the beginning of the file, which need not be longer then.

use std::ops::Range;

use crate::error::Result;
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::qcow2::{OFFSET_MASK, RawHeader};
use crate::storage::Storage;

/// The places of a refcount table and its only block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    table: u64,
    table_clusters: u32,
    block: u64,
}

impl Home {
    /// The places, where one block counts the whole file.
    fn of(header: &RawHeader, table: &[u64]) -> Option<Self> {
        let (&block, rest) = table.split_first()?;
        let only = block != 0 && rest.iter().all(|&entry| entry == 0);
        only.then_some(Self {
            table: header.refcount_table_offset,
            table_clusters: header.refcount_table_clusters,
            block: block & OFFSET_MASK,
        })
    }

    /// The clusters of the table and of the block.
    fn clusters(self, cluster_bytes: u64) -> [Range<u64>; 2] {
        let table = self.table / cluster_bytes;
        let block = self.block / cluster_bytes;
        [
            table..table + u64::from(self.table_clusters),
            block..block + 1,
        ]
    }
}

impl<S: Storage> Image<S> {
    /// Brings the refcounts back to where they stood before the first change since the image was opened, and cuts
    /// off what transactions have left behind the end that the file had, where it is free. Only for images of
    /// which one refcount block counts the whole file; others stay as they are, as a raw image does. A transaction
    /// like any other: a crash leaves the image as it was or is.
    ///
    /// # Errors
    ///
    /// Those of [`flush`](Image::flush).
    pub async fn settle(&self) -> Result<()> {
        let Some(engine) = self.engine()? else {
            return Ok(());
        };
        if !engine.state.prepared.get() {
            return Ok(()); // Nothing was changed.
        }
        let operation = async {
            let _held = Exclusive::new(&engine).await?;
            engine.settle().await
        };
        self.heed(operation).await
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Notes where the refcounts stand before the first change.
    pub(super) fn note_home(&self) {
        let refcounts = self.state.refcounts.borrow();
        let home = Home::of(&self.qcow2.raw_header(), &refcounts.table);
        self.state
            .home
            .set(home.map(|home| (home, self.state.physical_len.get())));
    }

    /// The commits are held.
    pub(super) async fn settle(&self) -> Result<()> {
        let Some((home, length)) = self.state.home.get() else {
            return Ok(());
        };
        let now = {
            let refcounts = self.state.refcounts.borrow();
            Home::of(&self.qcow2.raw_header(), &refcounts.table)
        };
        let Some(now) = now else {
            return Ok(());
        };
        self.load_block(0).await?;
        let [table, block] = home.clusters(self.cluster_bytes());
        // Free in the state that is durable: the switch away from there was flushed (M4).
        let free = {
            let refcounts = self.state.refcounts.borrow();
            let unused = |run: &Range<u64>| {
                run.clone().all(|cluster| refcounts.get(cluster) == 0)
                    && refcounts.check_unprotected(run).is_ok()
            };
            unused(&table) && unused(&block)
        };
        if free && now.table_clusters == home.table_clusters {
            let mut shadow = Shadow::new(self);
            shadow.wanted = Some((table, block));
            shadow.renew_refcounts().await?;
            shadow.finish().await?;
            self.protect_metadata().await?;
        }
        self.cut_file_to(length).await
    }
}
