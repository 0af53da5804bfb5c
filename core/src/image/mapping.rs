//! From guest offsets to runs of host bytes, through the L2 tables.

use crate::error::{Error, Place, Result, Structure};
use crate::image::Qcow2;
use crate::image::corruption::{Hex, unaligned_cluster};
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{Run, RunKind, Version};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset};

/// What can be wrong with an entry.
enum Wrong {
    /// No image has such an entry: the image is corrupt.
    Contradiction(Error),
    /// What it points to cannot be read as what it says, at least not now.
    Elsewhere(Error),
}

impl<S: Storage> Qcow2<S> {
    /// What the bytes from `guest` on are in this file: a run of at most `max` bytes (at least 1 of them).
    ///
    /// A run ends where the kind changes, where the host offsets stop following one another, or where
    /// the cached part of the L2 table ends.
    pub(crate) async fn run_at(&self, guest: GuestOffset, max: u64) -> Result<Run> {
        let coverage = self.header().l1_coverage();
        let Some(table) = self.l2_table(guest)? else {
            let length = coverage - guest.0 % coverage;
            return Ok(Run {
                length: length.min(max),
                kind: RunKind::Unallocated(None),
            });
        };
        let cluster = self.header().cluster_size;
        let entry_bytes = self.l2_format.entry_bytes();
        let in_table = cluster.index_of(guest.0 % coverage) * entry_bytes;
        let slice_start = in_table / self.tables.slice_bytes() * self.tables.slice_bytes();
        let slice_at = HostOffset(table.0 + slice_start);
        let slice = self
            .tables
            .slice(&self.file.storage, slice_at, "Could not read L2 table")
            .await?;

        let first = ((in_table - slice_start) / entry_bytes) as usize;
        let entry_place = |index: usize| {
            let in_slice = index as u64 * entry_bytes;
            Place::at(Structure::L2Table, slice_at.0 + in_slice)
                .entry((slice_start + in_slice) / entry_bytes)
        };
        let mut run: Option<Run> = None;
        let mut within = cluster.offset_in(guest.0);
        for index in first.. {
            let Some(entry) = self.l2_format.entry(&slice, index) else {
                break;
            };
            let guest_cluster = cluster.floor(guest.0) + ((index - first) as u64) * cluster.bytes();
            let place = entry_place(index);
            // The two spaces are what QEMU says where it reads.
            let checked = self.checked_run(entry, guest_cluster, within, place, "found ");
            let part = match (checked, run) {
                (Ok(part), _) => part,
                (Err(error), None) => return Err(self.heard(error)),
                // What stands before the wrong entry can be read.
                (Err(_), Some(_)) => break,
            };
            run = match run {
                None => Some(part),
                Some(so_far) if so_far.continues_with(&part) => Some(Run {
                    length: so_far.length + part.length,
                    kind: so_far.kind,
                }),
                Some(_) => break,
            };
            within += part.length;
            if run.is_some_and(|run| run.length >= max) || within < cluster.bytes() {
                break;
            }
            within = 0;
        }
        let run = run.unwrap_or(Run {
            length: max,
            kind: RunKind::Unallocated(None),
        });
        Ok(Run {
            length: run.length.min(max),
            ..run
        })
    }

    /// The entry of the guest cluster that starts at `guest` as it stands, and where; `None` where there is no table
    /// for it.
    pub(crate) async fn stored_entry(
        &self,
        guest: GuestOffset,
    ) -> Result<Option<(L2Entry, Place)>> {
        let Some(table) = self.l2_table(guest)? else {
            return Ok(None);
        };
        let cluster = self.l2_format.cluster_size;
        let in_table =
            cluster.index_of(guest.0 % self.header().l1_coverage()) * self.l2_format.entry_bytes();
        let in_slice = in_table % self.tables.slice_bytes();
        let slice_at = HostOffset(table.0 + in_table - in_slice);
        let slice = self
            .tables
            .slice(&self.file.storage, slice_at, "Could not read L2 table")
            .await?;
        let index = (in_slice / self.l2_format.entry_bytes()) as usize;
        let entry = self
            .l2_format
            .entry(&slice, index)
            .unwrap_or(L2Entry::UNALLOCATED);
        let place = Place::at(Structure::L2Table, table.0 + in_table)
            .entry(in_table / self.l2_format.entry_bytes());
        Ok(Some((entry, place)))
    }

    /// `entry` of the guest cluster that starts at `guest`, checked as [`Self::run_at`] checks it.
    pub(crate) fn check_entry(
        &self,
        entry: L2Entry,
        guest: GuestOffset,
        place: Place,
    ) -> Result<L2Entry> {
        let mut within = 0;
        while within < self.l2_format.cluster_size.bytes() {
            let run = self.checked_run(entry, guest.0, within, place, "found");
            within += run.map_err(|error| self.heard(error))?.length;
        }
        Ok(entry)
    }

    /// Raises the alarm where `wrong` is a contradiction, and not merely something that cannot be followed.
    fn heard(&self, wrong: Wrong) -> Error {
        match wrong {
            Wrong::Contradiction(error) => self.alarm.raise(error),
            Wrong::Elsewhere(error) => error,
        }
    }

    /// What `entry` says of the bytes from `within` on; refuses what the file cannot hold (rule 17 of
    /// QEMU-COMPAT: alignment, bounds, reserved bits).
    fn checked_run(
        &self,
        entry: L2Entry,
        guest_cluster: u64,
        within: u64,
        place: Place,
        found: &str,
    ) -> Result<Run, Wrong> {
        let run = self.l2_format.run_in(entry, within);
        let index = place.index.unwrap_or(0);
        let table = place.offset.unwrap_or(0) - index * self.l2_format.entry_bytes();
        let contradiction = |what: &str| {
            let (table, index) = (Hex(table), Hex(index));
            let what = format!("{what} (L2 offset: {table}, L2 index: {index})");
            Err(Wrong::Contradiction(Error::corrupt(what, place)))
        };
        if entry.has_reserved_bits() {
            let what = format!(
                "L2 entry {:#x} has reserved bits set (L2 index: {index:#x})",
                entry.descriptor
            );
            return Err(Wrong::Elsewhere(Error::corrupt(what, place)));
        }
        if entry.has_zero_flag() && self.header().version == Version::V2 {
            return contradiction("Zero cluster entry found in pre-v3 image");
        }
        match run.kind {
            RunKind::Invalid => contradiction(&format!("Invalid cluster entry {found}")),
            RunKind::Data(host) | RunKind::Zero(Some(host)) | RunKind::Unallocated(Some(host)) => {
                let start = host.0 - within;
                let wrong = |how: &str| {
                    Err(Wrong::Elsewhere(Error::corrupt(
                        format!(
                            "Cluster allocation offset {start:#x} {how} (L2 index: {index:#x})"
                        ),
                        place,
                    )))
                };
                if !HostOffset(start).is_aligned(self.header().cluster_size.bytes()) {
                    let what = unaligned_cluster(HostOffset(start), HostOffset(table), index);
                    return Err(Wrong::Contradiction(Error::corrupt(what, place)));
                }
                if self.header().has_data_file() {
                    // Where guest data lies in a data file is not the image's to choose.
                    if start != guest_cluster {
                        let what = format!(
                            "External data file host cluster offset {} does not match guest cluster \
                             offset: {}, L2 index: {})",
                            Hex(start),
                            Hex(guest_cluster),
                            Hex(index)
                        );
                        return Err(Wrong::Contradiction(Error::corrupt(what, place)));
                    }
                    return Ok(run);
                }
                if matches!(run.kind, RunKind::Data(_)) && start >= self.file_len() {
                    return wrong("past the end of the file");
                }
                if let Some(structure) =
                    self.overlaps_root_table(start, self.header().cluster_size.bytes())
                {
                    return wrong(&format!("overlaps with the {structure}"));
                }
                Ok(run)
            }
            RunKind::Compressed(compressed) => {
                let start = compressed.offset;
                if self.header().has_data_file() {
                    return contradiction(
                        "Compressed cluster entry found in image with external data file",
                    );
                }
                if start.0 >= self.file_len() {
                    let what = format!(
                        "Compressed cluster offset {start:#x} past the end of the file (L2 index: {index:#x})"
                    );
                    let place = Place::at(Structure::CompressedCluster, start.0);
                    return Err(Wrong::Elsewhere(Error::corrupt(what, place)));
                }
                Ok(run)
            }
            RunKind::Zero(None) | RunKind::Unallocated(None) => Ok(run),
        }
    }
}
