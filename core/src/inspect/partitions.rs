//! The partition table of a raw disk: only what makes programs disagree about it.

use crate::error::{Place, Structure};
use crate::inspect::report::{Draft, Severity};
use crate::inspect::signatures::{Found, Kind, has_boot_signature};
use crate::qcow2::bytes::le32;

/// The partition type that says "the partition table is a GPT".
const PROTECTIVE: u8 = 0xee;

/// Checks the table in the first sector of a raw disk.
pub(super) fn check(draft: &mut Draft, start: &[u8], found: &[Found]) {
    // A file system's boot sector has code where a table has partitions.
    if !has_boot_signature(start) || found.iter().any(|found| found.kind == Kind::FileSystem) {
        return;
    }
    let entries: Vec<&[u8]> = start[446..510].chunks_exact(16).collect();
    let at = |index: usize| {
        Place::at(Structure::PartitionTable, 446 + 16 * index as u64).entry(index as u64)
    };
    // Installation discs carry tables that suit every kind of firmware.
    let is_disc = found.iter().any(|found| found.kind == Kind::Disc);
    let severity = if is_disc {
        Severity::Note
    } else {
        Severity::Warning
    };

    if let Some(index) = entries.iter().position(|entry| entry[0] & 0x7f != 0) {
        draft
            .find(
                severity,
                "mbr-impossible",
                "The first sector is marked as a boot sector, but its partition table cannot be one.",
            )
            .at(at(index))
            .with(entries[index][0].into());
        return;
    }
    let used: Vec<usize> = (0..4).filter(|&index| entries[index][4] != 0).collect();
    let Some(protective) = used
        .iter()
        .copied()
        .find(|&index| entries[index][4] == PROTECTIVE)
    else {
        if used.is_empty() {
            draft
                .note(
                    "mbr-empty",
                    "The disk has a partition table without a partition.",
                )
                .at(at(0));
        }
        return;
    };
    let entry = entries[protective];
    let start_lba = le32(entry, 8);
    if entry[1..4] != [0, 2, 0] || start_lba != 1 {
        draft
            .find(
                severity,
                "gpt-mbr-impossible",
                "The disk says that it has a GPT partition table, but not in the way the standard demands: programs \
                 may not agree on its partitions.",
            )
            .at(at(protective))
            .with(start_lba.into());
    }
    if used != [0] {
        draft
            .find(
                severity,
                "gpt-mbr-extra-partitions",
                "The disk has two partition tables with different partitions: programs may not agree on which ones \
                 there are.",
            )
            .at(at(protective))
            .with(used.len() as u64);
    }
    if !found.iter().any(|found| found.name == "gpt") {
        draft
            .find(
                severity,
                "gpt-missing",
                "The disk says that it has a GPT partition table, but there is none. It may have been cut off.",
            )
            .at(at(protective));
    }
}
