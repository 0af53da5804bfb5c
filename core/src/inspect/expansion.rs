//! How much room an image can take: what it claims against what it is.

use crate::error::{Place, Structure};
use crate::inspect::report::{Draft, Severity, size};

/// The largest file that ext4 holds with its usual 4 KiB blocks: a larger disk cannot even be unpacked as
/// raw on most machines, and no single drive has this size.
pub(super) const HUGE: u64 = 16 << 40;
/// An eighth of the largest file offset there is. Sums and roundings of sizes near it overflow.
pub(super) const EXTREME: u64 = 1 << 60;

/// A disk size that the image claims, and where.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub bytes: u64,
    pub place: Place,
}

/// The findings and facts about the sizes of the active disk and of the snapshots' disks.
pub(super) fn judge(draft: &mut Draft, active: u64, snapshots: &[Claim]) {
    let file = draft.report.file_size;
    let header = Place::at(Structure::Header, 24);
    judge_one(draft, "The disk", active, header, true);
    for claim in snapshots {
        judge_one(draft, "A snapshot's disk", claim.bytes, claim.place, false);
    }
    let largest = snapshots
        .iter()
        .map(|claim| claim.bytes)
        .max()
        .unwrap_or(0)
        .max(active);
    if file > 0 && largest > file {
        let times = largest / file;
        draft.number_fact(
            "expansion",
            "Can grow to",
            format!("{} ({times} times its file)", size(largest)),
            largest,
        );
    }
    if !snapshots.is_empty() {
        let all = snapshots
            .iter()
            .fold(active, |sum, claim| sum.saturating_add(claim.bytes));
        draft.number_fact(
            "expansion-with-snapshots",
            "With all snapshots",
            size(all),
            all,
        );
    }
}

fn judge_one(draft: &mut Draft, what: &str, bytes: u64, place: Place, is_active: bool) {
    let file = draft.report.file_size;
    if bytes >= EXTREME {
        draft.entry(Severity::Danger, "size-extreme", place, bytes, || {
            format!(
                "{what} claims {}, which no computer has: programs that count on it can overflow or never end.",
                size(bytes)
            )
        });
    } else if bytes >= HUGE {
        draft.entry(Severity::Warning, "size-huge", place, bytes, || {
            format!(
                "{what} claims {} in a file of {}: written out in full it would not fit on most machines.",
                size(bytes),
                size(file)
            )
        });
    } else if is_active && bytes > file {
        draft
            .note(
                "grows",
                format!(
                    "The file of {} holds a disk of {}: it can grow to that size in use.",
                    size(file),
                    size(bytes)
                ),
            )
            .at(place)
            .with(bytes);
    }
}
