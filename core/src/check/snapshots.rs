//! The snapshot table as a table: its entries were parsed when the image was opened.

use super::findings::Findings;
use super::report::{Problem, ProblemKind};
use crate::error::{Place, Result, Structure};
use crate::image::Qcow2;
use crate::qcow2::Version;
use crate::repair::RepairMode;
use crate::storage::Storage;

/// Checks that there are no more entries, and no more extra data in them, than there may be, and that none lacks
/// what its version must have: version 3 needs the sizes of the VM state and of the disk.
///
/// # Errors
///
/// [`Error::Corrupt`](crate::Error::Corrupt) where something is beyond the limits and this is not a repair that takes
/// it out.
pub(super) fn check_table<S: Storage>(image: &Qcow2<S>, findings: &mut Findings<'_>) -> Result<()> {
    look_beyond(image, findings)?;
    if image.header().version < Version::V3 {
        return Ok(());
    }
    for (index, snapshot) in (0..).zip(image.snapshots().iter()) {
        if snapshot.disk_size.is_none() {
            let start = image.header().snapshots.offset.0;
            let place = Place::at(Structure::SnapshotTable, start).entry(index);
            findings.in_table(Problem::new(
                ProblemKind::SnapshotIncomplete { index },
                place,
            ));
        }
    }
    Ok(())
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
