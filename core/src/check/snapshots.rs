//! The snapshot table as a table: its entries were parsed when the image was opened.

use super::findings::Findings;
use super::report::{Problem, ProblemKind};
use crate::error::{Error, Place, Result, Structure};
use crate::image::Qcow2;
use crate::qcow2::Version;
use crate::qcow2::bytes::{be16, be32};
use crate::storage::{Storage, read_padded};

/// An entry before its variable parts, in bytes.
const FIXED_BYTES: u64 = 40;
/// What version 3 needs of the extra data: the sizes of the VM state and of the disk.
const LEAST_EXTRA: u64 = 16;

/// Checks that no entry lacks what its version must have; returns the table's length in bytes.
pub(super) async fn check_table<S: Storage>(
    image: &Qcow2<S>,
    findings: &mut Findings<'_>,
) -> Result<u64> {
    const PIECE: u64 = 64 << 10;
    let start = image.header().snapshots.offset.0;
    let mut piece = Vec::new();
    let mut piece_at = start;
    let mut end = start;
    for index in 0..image.snapshots().len() as u64 {
        let at = end.next_multiple_of(8);
        if at + FIXED_BYTES > piece_at + piece.len() as u64 {
            piece.resize(PIECE as usize, 0);
            piece_at = at;
            read_padded(&image.file().storage, at, &mut piece)
                .await
                .map_err(|error| Error::io("Failed to read snapshot table", at, error))?;
        }
        let fixed = &piece[(at - piece_at) as usize..];
        let extra_bytes = u64::from(be32(fixed, 36));
        end = at
            + FIXED_BYTES
            + extra_bytes
            + u64::from(be16(fixed, 12))
            + u64::from(be16(fixed, 14));
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
