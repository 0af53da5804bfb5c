//! Where tables stand. A transaction leaves what it changes elsewhere, behind everything that there was; a second one
//! can bring it back to where everybody has it: refcounts to the beginning of the file, which need not be longer
//! then, and the active tables to where they were before the first.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Result;
use crate::image::Image;
use crate::image::change::Engine;
use crate::image::change::shadow::Shadow;
use crate::image::change::snapshots::Exclusive;
use crate::qcow2::bytes::be64_bytes;
use crate::qcow2::{COPIED, OFFSET_MASK, RawHeader, Snapshot};
use crate::storage::Storage;
use crate::units::HostOffset;

/// The places of a refcount table and its only block, and of the active L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    table: u64,
    table_clusters: u32,
    block: u64,
    l1: u64,
    l1_entries: u32,
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
            l1: header.l1_table_offset,
            l1_entries: header.l1_size,
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

    /// The clusters of the active L1 table; none where there is no table.
    fn l1_clusters(self, cluster_bytes: u64) -> Range<u64> {
        let start = self.l1 / cluster_bytes;
        start..start + (u64::from(self.l1_entries) * 8).div_ceil(cluster_bytes)
    }
}

/// Tables that were put elsewhere, and where they belong.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// Where L2 tables stood, by where they stand now.
    l2: BTreeMap<u64, u64>,
    /// The id of a new snapshot, and the clusters that were kept free for its L1 table.
    snapshot: Option<(String, Range<u64>)>,
    /// The clusters that were kept free for the snapshot table.
    snapshot_table: Option<Range<u64>>,
}

/// The most L2 tables that are brought back: it is for small images, in which people look for them.
const MOST_TABLES: usize = 64;

impl<S: Storage> Image<S> {
    /// Brings the refcounts, and the active tables that a transaction on snapshots has copied, back to where they
    /// stood before the first change since the image was opened, and cuts off what transactions have left behind the
    /// end that the file had, where it is free. Only for images of which one refcount block counts the whole file;
    /// others stay as they are, as a raw image does. A transaction like any other: a crash leaves the image as it was
    /// or is.
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
            engine.settle(true).await
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

    /// A transaction puts a copy of the L2 table at `place` to `copy`.
    pub(super) fn note_aside(&self, copy: u64, place: u64) {
        let mut aside = self.state.aside.borrow_mut();
        let first = aside.l2.remove(&place).unwrap_or(place);
        aside.l2.insert(copy, first);
    }

    /// Keeps a transaction from the places to which [`settle`](Image::settle) brings things back; `false` where it
    /// brings nothing back.
    pub(super) fn keep_home(&self, shadow: &mut Shadow<'_, '_, S>) -> bool {
        let Some((home, _)) = self.state.home.get() else {
            return false;
        };
        let size = self.cluster_bytes();
        let [table, block] = home.clusters(size);
        for run in [table, block, home.l1_clusters(size)] {
            shadow.keep(&run);
        }
        for &place in self.state.aside.borrow().l2.values() {
            let cluster = self.cluster_of(place);
            shadow.keep(&(cluster..cluster + 1));
        }
        true
    }

    /// Keeps the first clusters that are free from what a transaction puts elsewhere: the tables that it makes are to
    /// stand there in the end, the L1 table of `snapshot`, which has so many bytes, and that of all `snapshots`.
    pub(super) async fn reserve_places(
        &self,
        shadow: &mut Shadow<'_, '_, S>,
        snapshot: Option<(&str, u64)>,
        snapshots: &[Snapshot],
    ) -> Result<()> {
        if !self.keep_home(shadow) {
            return Ok(()); // They will not be brought there.
        }
        let snapshot = match snapshot {
            Some((id, bytes)) if bytes > 0 => {
                let clusters = shadow.reserve(shadow.clusters_for(bytes)).await?;
                Some((id.to_owned(), clusters))
            }
            _ => None,
        };
        let bytes = self.encode_snapshots(&mut snapshots.to_vec()).len() as u64;
        let snapshot_table = match bytes {
            0 => None,
            _ => Some(shadow.reserve(shadow.clusters_for(bytes)).await?),
        };
        let mut aside = self.state.aside.borrow_mut();
        (aside.snapshot, aside.snapshot_table) = (snapshot, snapshot_table);
        Ok(())
    }

    /// The commits are held. `with_tables` only where the active L1 table and the snapshots in memory are the file's.
    pub(super) async fn settle(&self, with_tables: bool) -> Result<()> {
        let Some((home, length)) = self.state.home.get() else {
            return Ok(());
        };
        let aside = self.state.aside.take();
        let now = {
            let refcounts = self.state.refcounts.borrow();
            Home::of(&self.qcow2.raw_header(), &refcounts.table)
        };
        let Some(now) = now else {
            return Ok(());
        };
        self.load_block(0).await?;
        let [table, block] = home.clusters(self.cluster_bytes());
        let free = self.is_free(&table) && self.is_free(&block);
        let mut shadow = Shadow::new(self);
        let kept = free && shadow.keep(&table) && shadow.keep(&block);
        if kept && now.table_clusters == home.table_clusters {
            let tables = match with_tables {
                true => self.bring_tables_home(&mut shadow, home, aside).await?,
                false => None,
            };
            shadow.wanted = Some((table, block));
            shadow.renew_refcounts().await?;
            shadow.finish().await?;
            if let Some((l1, snapshots)) = tables {
                self.qcow2.adopt_tables(l1, snapshots);
            }
            self.protect_metadata().await?;
        }
        self.cut_file_to(length).await
    }

    /// Whether nothing is in these clusters, in the state that is durable: the switch away from what was there has been
    /// flushed (M4). The block that counts them is loaded.
    fn is_free(&self, clusters: &Range<u64>) -> bool {
        let refcounts = self.state.refcounts.borrow();
        clusters.clone().all(|cluster| refcounts.get(cluster) == 0)
            && refcounts.check_unprotected(clusters).is_ok()
    }

    /// Puts into the new state what stands aside, where it belongs; the active L1 table and the snapshots then, where
    /// those changed. What cannot be there stays where it is.
    async fn bring_tables_home(
        &self,
        shadow: &mut Shadow<'_, '_, S>,
        home: Home,
        aside: Aside,
    ) -> Result<Option<(Vec<u64>, Vec<Snapshot>)>> {
        if !self.state.pinned.borrow().is_empty() {
            return Ok(None); // Somebody reads a snapshot by where its tables are.
        }
        let mut l1 = self.qcow2.root.borrow().l1.clone();
        let mut snapshots = self.qcow2.snapshots().to_vec();
        // Whatever leads to a table must be written anew with it: if there is no place for that, nothing is moved.
        let new = aside.snapshot.and_then(|(id, place)| {
            let index = snapshots.iter().position(|snapshot| snapshot.id == id)?;
            (self.is_free(&place) && shadow.keep(&place)).then_some((index, place))
        });
        let table_bytes = self.qcow2.meta.borrow().snapshot_table_bytes;
        let fits = shadow.clusters_for(table_bytes);
        let table_place = aside
            .snapshot_table
            .filter(|place| place.end - place.start == fits)
            .filter(|place| self.is_free(place) && shadow.keep(place));
        let mut new_l1 = match (&new, &table_place) {
            (Some((index, _)), Some(_)) => self.qcow2.read_snapshot_l1(&snapshots[*index]).await?,
            _ => Vec::new(),
        };
        let active_before = l1.clone();
        for (&copy, &place) in aside.l2.iter().take(MOST_TABLES) {
            let lists = [&mut l1, &mut new_l1];
            self.bring_l2_home(shadow, copy, place, lists).await?;
        }
        if let Some(place) = table_place {
            if let Some((index, place)) = new
                && !new_l1.is_empty()
            {
                let snapshot = &mut snapshots[index];
                let bytes = be64_bytes(&new_l1);
                shadow
                    .free_table(snapshot.l1_offset.0, bytes.len() as u64)
                    .await?;
                let clusters = shadow.claim(place).await?;
                let what = "Could not write L1 table";
                let at = shadow.write_table_to(what, clusters, &bytes).await?;
                snapshot.l1_offset = HostOffset(at);
            }
            let bytes = self.encode_snapshots(&mut snapshots);
            let old = shadow.header.snapshots_offset;
            shadow.free_table(old, table_bytes).await?;
            let clusters = shadow.claim(place).await?;
            let what = "Could not write snapshot table";
            shadow.header.snapshots_offset = shadow.write_table_to(what, clusters, &bytes).await?;
        }
        let bytes = l1.len() as u64 * 8;
        let place = home.l1_clusters(self.cluster_bytes());
        let fits = !l1.is_empty() && shadow.clusters_for(bytes) == place.end - place.start;
        if fits && self.is_free(&place) && shadow.keep(&place) {
            let old = shadow.header.l1_table_offset;
            shadow.free_table(old, bytes).await?;
            let clusters = shadow.claim(place).await?;
            let what = "Could not write L1 table";
            shadow.header.l1_table_offset = shadow
                .write_table_to(what, clusters, &be64_bytes(&l1))
                .await?;
        } else if l1 != active_before {
            shadow.replace_l1(&l1).await?;
        }
        Ok(Some((l1, snapshots)))
    }

    /// Puts the L2 table at `copy` to `place` in the new state, where `lists` are all that lead to it.
    async fn bring_l2_home(
        &self,
        shadow: &mut Shadow<'_, '_, S>,
        copy: u64,
        place: u64,
        lists: [&mut Vec<u64>; 2],
    ) -> Result<()> {
        let (from, to) = (self.cluster_of(copy), self.cluster_of(place));
        let is_it = |entry: &&mut u64| **entry & OFFSET_MASK == copy;
        let mut entries: Vec<&mut u64> = lists
            .into_iter()
            .flat_map(|list| list.iter_mut().filter(is_it))
            .collect();
        let references = entries.len() as i64;
        if references == 0
            || !self.is_free(&(to..to + 1))
            || shadow.get(from).await? != references as u64
            || !shadow.keep(&(to..to + 1))
        {
            return Ok(());
        }
        let what = "Could not read L2 table";
        let size = self.cluster_bytes() as usize;
        let bytes = self.read_metadata(what, copy, size).await?;
        let clusters = shadow.claim(to..to + 1).await?;
        shadow.add(to..to + 1, references - 1).await?;
        shadow.add(from..from + 1, -references).await?;
        let what = "Could not write L2 table";
        shadow.write_table_to(what, clusters, &bytes).await?;
        for entry in &mut entries {
            **entry = place | **entry & COPIED;
        }
        Ok(())
    }
}
