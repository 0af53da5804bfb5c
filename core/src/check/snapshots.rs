//! The snapshot table as a table: its entries were parsed when the image was opened.

use super::findings::Findings;
use super::report::{Problem, ProblemKind};
use crate::error::{Error, Place, Result, Structure};
use crate::image::Qcow2;
use crate::qcow2::Version;
use crate::qcow2::snapshot::{self, FIXED_BYTES};
use crate::repair::RepairMode;
use crate::storage::{Storage, read_padded};

/// What version 3 needs of the extra data: the sizes of the VM state and of the disk.
const LEAST_EXTRA: u64 = 16;

/// Checks that there are no more entries, and no more extra data in them, than there may be, and that none lacks
/// what its version must have; returns the table's length in bytes.
///
/// # Errors
///
/// [`Error::Corrupt`] where something is beyond the limits and this is not a repair that takes it out.
pub(super) async fn check_table<S: Storage>(
    image: &Qcow2<S>,
    findings: &mut Findings<'_>,
) -> Result<u64> {
    const PIECE: u64 = 64 << 10;
    let start = image.header().snapshots.offset.0;
    look_beyond(image, findings)?;
    let mut piece = Vec::new();
    let mut piece_at = start;
    let mut end = start;
    for index in 0..image.snapshots().len() as u64 {
        let at = end.next_multiple_of(8);
        if at + FIXED_BYTES as u64 > piece_at + piece.len() as u64 {
            piece.resize(PIECE as usize, 0);
            piece_at = at;
            read_padded(&image.file().storage, at, &mut piece)
                .await
                .map_err(|error| Error::io("Failed to read snapshot table", at, error))?;
        }
        let fixed = &piece[(at - piece_at) as usize..];
        let parts = snapshot::parts(fixed);
        let extra_bytes = u64::from(parts.extra);
        end = at + FIXED_BYTES as u64 + extra_bytes + parts.names;
        if image.header().version >= Version::V3 && extra_bytes < LEAST_EXTRA {
            let place = Place::at(Structure::SnapshotTable, at).entry(index);
            findings.in_table(Problem::new(
                ProblemKind::SnapshotIncomplete { index },
                place,
            ));
        }
    }
    Ok(end - start)
}

/// What was left out when the table was read, which a repair takes out of it.
fn look_beyond<S: Storage>(image: &Qcow2<S>, findings: &mut Findings<'_>) -> Result<()> {
    let start = image.header().snapshots.offset.0;
    let excess = image.meta.borrow().excess.clone();
    let repairs_all = findings
        .noted
        .as_ref()
        .is_some_and(|noted| noted.mode() == RepairMode::All);
    if let Some(error) = excess.error(start).filter(|_| !repairs_all) {
        return Err(error);
    }
    let mut discard = |kind, count: u32| {
        if count > 0 {
            let place = Place::at(Structure::SnapshotTable, start);
            findings.in_table(Problem::new(kind, place));
            // Told of once, however many they are.
            findings.same_again(u64::from(count) - 1, 0);
        }
    };
    let too_many = |count, table_is_too_big| ProblemKind::SnapshotsOverhanging {
        count,
        table_is_too_big,
    };
    discard(too_many(excess.past_count, false), excess.past_count);
    for &(index, bytes) in &excess.extra {
        discard(ProblemKind::SnapshotExtraTooLong { index, bytes }, 1);
    }
    discard(too_many(excess.past_bytes, true), excess.past_bytes);
    Ok(())
}
