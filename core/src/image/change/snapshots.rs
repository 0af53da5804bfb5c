//! Internal snapshots: each a transaction (S2), none of which ever changes another's content (S1).

use crate::error::{Error, Result};
use crate::image::change::bitmaps::Follow;
use crate::image::change::shadow::Shadow;
use crate::image::change::state::Changing;
use crate::image::change::{Engine, NewSnapshot};
use crate::image::lock::RangeGuard;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::{Image, Layer};
use crate::qcow2::snapshot::{StoredNames, check_table_length};
use crate::qcow2::{COPIED, MAX_SNAPSHOTS, OFFSET_MASK, Snapshot};
use crate::storage::Storage;
use crate::units::HostOffset;

impl<S: Storage> Image<S> {
    /// Keeps the disk as it is now under a name. Returns the snapshot's id. Two flushes, where nothing else
    /// waits for one.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a raw image, for one with an external data file, and where a refcount
    /// would not fit its width; [`Error::OutOfRange`] for a name of more than 65535 bytes, and where there
    /// are too many snapshots; those of [`flush`](Image::flush). The image is as it was before, then.
    pub async fn create_snapshot(&self, snapshot: &NewSnapshot) -> Result<String> {
        let engine = self.snapshot_engine()?;
        let operation = async {
            let _held = Exclusive::new(&engine).await?;
            engine.create_snapshot(snapshot).await
        };
        self.heed(operation).await
    }

    /// Makes the disk what it was when the snapshot with this id, or else this name, was taken, its size
    /// included. What was written since is gone, unless another snapshot keeps it.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] where there is no such snapshot; those of
    /// [`create_snapshot`](Self::create_snapshot).
    pub async fn apply_snapshot(&self, id_or_name: &str) -> Result<()> {
        let engine = self.snapshot_engine()?;
        let operation = async {
            let _held = Exclusive::new(&engine).await?;
            engine.apply_snapshot(id_or_name).await
        };
        self.heed(operation).await
    }

    /// Deletes the snapshot with this id, or else this name. The disk stays as it is.
    ///
    /// # Errors
    ///
    /// Those of [`apply_snapshot`](Self::apply_snapshot).
    pub async fn delete_snapshot(&self, id_or_name: &str) -> Result<()> {
        let engine = self.snapshot_engine()?;
        let operation = async {
            let _held = Exclusive::new(&engine).await?;
            engine.delete_snapshot(id_or_name).await
        };
        self.heed(operation).await
    }

    fn snapshot_engine(&self) -> Result<Engine<'_, S>> {
        match (self.engine()?, self.top()) {
            (Some(_), Layer::Qcow2(qcow2)) if qcow2.header().has_data_file() => {
                Err(Error::Unsupported(
                    "Internal snapshots are not possible with an external data file".into(),
                ))
            }
            (Some(engine), _) => Ok(engine),
            (None, _) => Err(Error::Unsupported(
                "This image format has no internal snapshots".into(),
            )),
        }
    }
}

/// The whole image, with nothing uncommitted: what a transaction begins with.
pub(crate) struct Exclusive<'a> {
    _ranges: RangeGuard<'a>,
    _committing: RangeGuard<'a>,
}

impl<'a> Exclusive<'a> {
    pub async fn new<S: Storage>(engine: &Engine<'a, S>) -> Result<Self> {
        engine.prepare().await?;
        Self::hold(engine).await
    }

    /// The same, of an image that need not be ready for changes.
    pub async fn hold<S: Storage>(engine: &Engine<'a, S>) -> Result<Self> {
        let held = Self::uncommitted(engine).await?;
        let state: &'a Changing = engine.state;
        let waiting = {
            let epoch = state.epoch.borrow();
            !epoch.unlinked.is_empty()
                || !epoch.l1_sectors.is_empty()
                || epoch.new_block.is_some()
                || engine.qcow2.tables.has_changes()
        };
        if waiting {
            engine.commit_held(None).await?;
        }
        Ok(held)
    }

    /// The whole image, with whatever waits for a commit.
    pub async fn uncommitted<S: Storage>(engine: &Engine<'a, S>) -> Result<Self> {
        let state: &'a Changing = engine.state;
        let ranges = state.ranges.lock_all().await;
        let committing = state.commits.lock_all().await;
        state.check_running()?;
        Ok(Self {
            _ranges: ranges,
            _committing: committing,
        })
    }
}

impl<S: Storage> Engine<'_, S> {
    fn find_snapshot(&self, id_or_name: &str) -> Result<(usize, Snapshot)> {
        let snapshots = self.qcow2.snapshots();
        let found = self.qcow2.find_snapshot(id_or_name);
        let index = found
            .as_ref()
            .and_then(|found| snapshots.iter().position(|snapshot| snapshot == found));
        match (index, found) {
            (Some(index), Some(found)) => Ok((index, found)),
            _ => Err(Error::OutOfRange(
                format!("Can't find the snapshot '{id_or_name}'").into(),
            )),
        }
    }

    async fn create_snapshot(&self, new: &NewSnapshot) -> Result<String> {
        let mut snapshots = self.qcow2.snapshots().to_vec();
        if new.name.len() > usize::from(u16::MAX) {
            return Err(Error::OutOfRange(
                "A snapshot's name has at most 65535 bytes".into(),
            ));
        }
        if snapshots.len() >= MAX_SNAPSHOTS as usize {
            return Err(Error::OutOfRange(
                format!("An image has at most {MAX_SNAPSHOTS} snapshots").into(),
            ));
        }
        let id = next_id(&snapshots);
        snapshots.push(Snapshot {
            stored: StoredNames::new(&id, &new.name),
            id: id.clone(),
            name: new.name.clone(),
            l1_offset: HostOffset(0),
            l1_entries: 0,
            date_sec: new.date_sec,
            date_nsec: new.date_nsec,
            vm_clock_nsec: new.vm_clock_nsec,
            vm_state_size: new.vm_state.len() as u64,
            disk_size: Some(self.qcow2.header().size),
            icount: new.icount,
            unknown_extra: Vec::new(),
        });
        let mut shadow = Shadow::new(self);
        let mut l1 = self.qcow2.root.borrow().l1.clone();
        if new.vm_state.is_empty() {
            let l1_bytes = l1.len() as u64 * 8;
            self.reserve_places(&mut shadow, Some((&id, l1_bytes)), &snapshots)
                .await?;
        }
        // Behind the disk's end stands the machine state of a snapshot that was gone back to. The new one does not
        // refer to it where it has a machine state of its own.
        let shared = match new.vm_state.is_empty() {
            true => l1.len(),
            false => self.qcow2.header().l1_entries_for(self.qcow2.header().size) as usize,
        };
        for entry in l1.iter_mut().take(shared) {
            *entry = share_table(&mut shadow, *entry).await?;
        }
        // The active state has a table of its own; COPIED is clear in both (M2).
        let state = store_vm_state(&mut shadow, &l1, &new.vm_state).await?;
        let snapshot_l1 = crate::qcow2::bytes::be64_bytes(&state);
        let l1_offset = match state.is_empty() {
            true => 0,
            false => {
                shadow
                    .write_new_table("Could not write L1 table", &snapshot_l1)
                    .await?
            }
        };
        if l1 != self.qcow2.root.borrow().l1 {
            shadow.replace_l1(&l1).await?;
        }
        if let Some(snapshot) = snapshots.last_mut() {
            snapshot.l1_offset = HostOffset(l1_offset);
            snapshot.l1_entries = state.len() as u32;
        }
        self.write_snapshots(&mut shadow, &mut snapshots).await?;
        self.finish(shadow, l1, snapshots).await?;
        Ok(id)
    }

    async fn apply_snapshot(&self, id_or_name: &str) -> Result<()> {
        self.state.check_unwatched()?;
        let (_, snapshot) = self.find_snapshot(id_or_name)?;
        let mut shadow = Shadow::new(self);
        let mut l1 = self.qcow2.read_snapshot_l1(&snapshot).await?;
        let size = snapshot.disk_size.unwrap_or(self.qcow2.header().size);
        let needed = self.qcow2.header().l1_entries_for(size) as usize;
        if l1.len() < needed {
            l1.resize(needed, 0);
        }
        // Before anything is added: a refcount at its maximum may lose one reference and gain one.
        let active = self.qcow2.root.borrow().l1.clone();
        shadow.add_tree(&active, -1).await?;
        for entry in &mut l1 {
            *entry = share_with_snapshot(&mut shadow, *entry).await?;
        }
        shadow.replace_l1(&l1).await?;
        shadow.header.size = size;
        shadow.bitmaps = Follow::AllChanged;
        let snapshots = self.qcow2.snapshots().to_vec();
        self.finish(shadow, l1, snapshots).await
    }

    async fn delete_snapshot(&self, id_or_name: &str) -> Result<()> {
        let (index, snapshot) = self.find_snapshot(id_or_name)?;
        if self.state.pinned.borrow().contains(&snapshot.id) {
            return Err(Error::Refused(
                format!("The snapshot '{}' is being read by a view", snapshot.name).into(),
            ));
        }
        let mut snapshots = self.qcow2.snapshots().to_vec();
        snapshots.remove(index);
        let mut shadow = Shadow::new(self);
        self.reserve_places(&mut shadow, None, &snapshots).await?;
        let snapshot_l1 = self.qcow2.read_snapshot_l1(&snapshot).await?;
        shadow.add_tree(&snapshot_l1, -1).await?;
        let bytes = u64::from(snapshot.l1_entries) * 8;
        shadow.free_table(snapshot.l1_offset.0, bytes).await?;
        let mut l1 = self.qcow2.root.borrow().l1.clone();
        if upheld(OrderingPoint::RestoreCopied) {
            for entry in &mut l1 {
                *entry = own_table(&mut shadow, *entry).await?;
            }
            if l1 != self.qcow2.root.borrow().l1 {
                shadow.replace_l1(&l1).await?;
            }
        }
        self.write_snapshots(&mut shadow, &mut snapshots).await?;
        self.finish(shadow, l1, snapshots).await
    }

    /// Writes the snapshot table anew and gives up the old one.
    pub(super) async fn write_snapshots(
        &self,
        shadow: &mut Shadow<'_, '_, S>,
        snapshots: &mut [Snapshot],
    ) -> Result<()> {
        let bytes = self.encode_snapshots(snapshots);
        check_table_length(bytes.len() as u64, 0)?;
        let (old, old_bytes) = {
            let meta = self.qcow2.meta.borrow();
            (meta.header.snapshots, meta.snapshot_table_bytes)
        };
        shadow.header.snapshots_offset = match bytes.is_empty() {
            true => 0,
            false => {
                shadow
                    .write_new_table("Could not write snapshot table", &bytes)
                    .await?
            }
        };
        shadow.header.nb_snapshots = snapshots.len() as u32;
        shadow.free_table(old.offset.0, old_bytes).await
    }

    /// The snapshot table in bytes. Every snapshot has a size then.
    pub(super) fn encode_snapshots(&self, snapshots: &mut [Snapshot]) -> Vec<u8> {
        let size_now = self.qcow2.header().size;
        let mut bytes = Vec::new();
        let coverage = self.qcow2.header().l1_coverage();
        for snapshot in snapshots.iter_mut() {
            // The disk may have been smaller then: more than its table covers cannot be read.
            let covered = u64::from(snapshot.l1_entries).saturating_mul(coverage);
            let size = size_now.min(covered);
            bytes.extend(snapshot.encode(size));
            snapshot.disk_size.get_or_insert(size);
        }
        bytes
    }

    /// Switches, and makes what is in memory the new state too.
    pub(super) async fn finish(
        &self,
        mut shadow: Shadow<'_, '_, S>,
        l1: Vec<u64>,
        snapshots: Vec<Snapshot>,
    ) -> Result<()> {
        let bitmaps_after_it = self.bitmaps_follow(&mut shadow).await?;
        shadow.finish().await?;
        self.qcow2.adopt_tables(l1, snapshots);
        self.protect_metadata().await?;
        match bitmaps_after_it {
            Some(sizes) => self.store_in_place(sizes).await,
            None => Ok(()),
        }
    }
}

/// One more than the largest number among the ids.
fn next_id(snapshots: &[Snapshot]) -> String {
    let largest = snapshots
        .iter()
        .filter_map(|snapshot| snapshot.id.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    largest.saturating_add(1).to_string()
}

/// The active state and a new snapshot refer to the L2 table of `entry` together; the entry for both. Where
/// COPIED is set in the table it must go, in a copy: the old table is the old state's.
async fn share_table<S: Storage>(shadow: &mut Shadow<'_, '_, S>, entry: u64) -> Result<u64> {
    let engine = shadow.engine;
    let Some((offset, mut table)) = engine.read_l2(entry).await? else {
        return Ok(0);
    };
    shadow.add_references(&table, 0, 1).await?;
    let old = engine.cluster_of(offset);
    if upheld(OrderingPoint::ClearCopied) && table.clear_copied() {
        let copy = shadow.write_l2(&table).await?;
        engine.note_aside(copy, offset);
        let new = engine.cluster_of(copy);
        shadow.add(new..new + 1, 1).await?;
        shadow.add(old..old + 1, -1).await?;
        Ok(copy)
    } else {
        shadow.add(old..old + 1, 1).await?;
        Ok(match upheld(OrderingPoint::ClearCopied) {
            true => offset,
            false => entry,
        })
    }
}

/// The active state takes over the L2 table of a snapshot's `entry`; the entry for the active state. A
/// snapshot's table may have COPIED set, which means nothing there: the active state then gets a copy.
async fn share_with_snapshot<S: Storage>(
    shadow: &mut Shadow<'_, '_, S>,
    entry: u64,
) -> Result<u64> {
    let engine = shadow.engine;
    let Some((offset, mut table)) = engine.read_l2(entry).await? else {
        return Ok(0);
    };
    shadow.add_references(&table, 0, 1).await?;
    if upheld(OrderingPoint::ClearCopied) && table.clear_copied() {
        let copy = shadow.write_l2(&table).await?;
        return Ok(copy | COPIED);
    }
    let cluster = engine.cluster_of(offset);
    shadow.add(cluster..cluster + 1, 1).await?;
    Ok(offset)
}

/// The entry of an active L2 table after others have let go of things: COPIED wherever the active state is
/// the only one left (M2).
async fn own_table<S: Storage>(shadow: &mut Shadow<'_, '_, S>, entry: u64) -> Result<u64> {
    let engine = shadow.engine;
    let Some((offset, mut table)) = engine.read_l2(entry).await? else {
        return Ok(entry);
    };
    let cluster = engine.cluster_of(offset);
    if shadow.get(cluster).await? != 1 {
        return Ok(entry & OFFSET_MASK); // Shared, and so is everything in it.
    }
    let mut changed = false;
    for index in 0..table.len() {
        if let Some(host) = table.host_cluster(index) {
            let owned = shadow.get(host).await? == 1;
            changed |= table.set_copied(index, owned);
        }
    }
    if !changed {
        return Ok(offset | COPIED);
    }
    let copy = shadow.write_l2(&table).await?;
    engine.note_aside(copy, offset);
    shadow.add(cluster..cluster + 1, -1).await?;
    Ok(copy | COPIED)
}

/// Stores a machine state behind the end of the disk, where only the snapshot has it; the snapshot's L1.
async fn store_vm_state<S: Storage>(
    shadow: &mut Shadow<'_, '_, S>,
    l1: &[u64],
    state: &[u8],
) -> Result<Vec<u64>> {
    let mut l1 = l1.to_vec();
    if state.is_empty() {
        return Ok(l1);
    }
    let engine = shadow.engine;
    let format = engine.qcow2.l2_format;
    let header = engine.qcow2.header();
    l1.truncate(header.l1_entries_for(header.size) as usize);
    let mut guest = engine.qcow2.vm_state_start();
    let size = format.cluster_size.len();
    let all = format.granules(0, size as u64);
    for chunk in state.chunks(size * format.entries() as usize) {
        let mut table = vec![0; size / 8];
        for (index, data) in chunk.chunks(size).enumerate() {
            let clusters = shadow.allocate(1).await?;
            let host = HostOffset(clusters.start * size as u64);
            let mut cluster = data.to_vec();
            cluster.resize(size, 0);
            engine.write_content(guest, host, &cluster).await?;
            guest += size as u64;
            let mut entry = format.data_entry(host, all, 0);
            entry.descriptor &= !COPIED;
            format.set_entry(&mut table, index, entry);
        }
        let bytes = crate::qcow2::bytes::be64_bytes(&table);
        l1.push(
            shadow
                .write_new_table("Could not write L2 table", &bytes)
                .await?,
        );
    }
    Ok(l1)
}
