//! Reading the snapshot table: as long as its entries say, and no longer than QEMU takes it.

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::snapshot::{self, FIXED_BYTES};
use crate::qcow2::{
    Header, MAX_SNAPSHOT_EXTRA, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, RawHeader, Snapshot,
};
use crate::storage::{Storage, read_padded};
use crate::units::{MAX_END, SECTOR};

/// How much is read at a time; larger than any entry.
const PIECE: u64 = 256 << 10;

/// The snapshots that a table has, and what it takes up.
pub(super) struct SnapshotTable {
    pub snapshots: Vec<Snapshot>,
    /// How long the table is in the file, in bytes.
    pub bytes: u64,
    pub excess: Excess,
}

/// What a snapshot table has beyond the limits, and loses with its repair. To everybody else such an image does
/// not open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Excess {
    /// Entries past the most that there may be.
    pub past_count: u32,
    /// Entries with too much extra data, by index, with the length of it.
    pub extra: Vec<(u32, u32)>,
    /// Entries past the longest table that there may be.
    pub past_bytes: u32,
}

impl Excess {
    /// The header as if there were no more entries than there may be; what is beyond is noted.
    pub fn cut(raw: &RawHeader) -> (RawHeader, Self) {
        let mut cut = raw.clone();
        cut.nb_snapshots = raw.nb_snapshots.min(MAX_SNAPSHOTS);
        let excess = Self {
            past_count: raw.nb_snapshots - cut.nb_snapshots,
            ..Self::default()
        };
        (cut, excess)
    }

    /// Why the table cannot be read without its repair, if it cannot; it stands at byte `table_at`.
    pub fn error(&self, table_at: u64) -> Option<Error> {
        let place = Place::at(Structure::SnapshotTable, table_at);
        let what = match (self.past_count, self.extra.first(), self.past_bytes) {
            (0, None, 0) => return None,
            (0, None, _) => "failed to read the snapshot table: Snapshot table is too big".into(),
            (0, Some((index, _)), _) => {
                format!("failed to read the snapshot table: {}", too_much(*index))
            }
            _ => "snapshot table too large".into(),
        };
        Some(Error::corrupt(what, place))
    }
}

fn too_much(index: u32) -> String {
    format!("Too much extra metadata in snapshot table entry {index}")
}

/// Reads the snapshot table. With `excess`, what is beyond the limits is left out and noted there.
pub(super) async fn read<S: Storage>(
    storage: &S,
    header: &Header,
    file_len: u64,
    excess: Option<Excess>,
) -> Result<SnapshotTable> {
    let start = header.snapshots.offset.0;
    let repairs = excess.is_some();
    let mut window = Window {
        storage,
        file_len,
        start,
        bytes: Vec::new(),
    };
    let mut table = SnapshotTable {
        snapshots: Vec::new(),
        bytes: 0,
        excess: excess.unwrap_or_default(),
    };
    // How long the table is without the extra data that is left out.
    let mut length = 0;
    for index in 0..header.snapshots.entries {
        let at = start + table.bytes;
        let place = Place::at(Structure::SnapshotTable, at).entry(index.into());
        let parts = snapshot::parts(window.get(at, FIXED_BYTES as u64).await?);
        let extra = parts.extra.min(MAX_SNAPSHOT_EXTRA);
        if extra < parts.extra && !repairs {
            return Err(Error::corrupt(too_much(index), place));
        }
        // The entry as it would be with no more extra data than there may be.
        let head = window
            .get(at, FIXED_BYTES as u64 + u64::from(extra))
            .await?;
        let mut entry = head.to_vec();
        entry[36..40].copy_from_slice(&extra.to_be_bytes());
        let names_at = at + FIXED_BYTES as u64 + u64::from(parts.extra);
        let names = window.get(names_at, parts.names).await?;
        entry.extend_from_slice(names);
        let Some((snapshot, padded)) = snapshot::parse(&entry, at, index)? else {
            let what = format!("Snapshot table entry {index} is not all there");
            return Err(Error::corrupt(what, place));
        };
        if length + entry.len() as u64 > MAX_SNAPSHOT_TABLE_BYTES {
            if !repairs {
                return Err(Error::corrupt("Snapshot table is too big", place));
            }
            table.excess.past_bytes = header.snapshots.entries - index;
            break;
        }
        if extra < parts.extra {
            table.excess.extra.push((index, parts.extra));
        }
        length += padded as u64;
        table.bytes = (names_at + parts.names - start).next_multiple_of(8);
        table.snapshots.push(snapshot);
    }
    Ok(table)
}

/// A stretch of the file in memory.
struct Window<'a, S> {
    storage: &'a S,
    file_len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<S: Storage> Window<'_, S> {
    /// The `length` bytes at `at`, at most [`PIECE`]; zeros past the end of the file, as in QEMU.
    async fn get(&mut self, at: u64, length: u64) -> Result<&[u8]> {
        let end = at.saturating_add(length);
        if end > MAX_END {
            let what = "Failed to read snapshot table: Input/output error";
            return Err(Error::corrupt(
                what,
                Place::at(Structure::SnapshotTable, at),
            ));
        }
        let inside = at >= self.start && end <= self.start + self.bytes.len() as u64;
        if !inside {
            let more = (self.file_len - at.min(self.file_len)).next_multiple_of(SECTOR);
            self.bytes.resize(more.clamp(length, PIECE) as usize, 0);
            self.start = at;
            read_padded(self.storage, at, &mut self.bytes)
                .await
                .map_err(|error| Error::io("Failed to read snapshot table", at, error))?;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + length as usize])
    }
}
