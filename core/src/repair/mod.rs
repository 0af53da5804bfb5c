//! Repairing an image: refcounts are made what the references say, COPIED flags what the refcounts say.
//!
//! As `qemu-img check -r` does it, with its counts, but never in place. The repaired tables are built in
//! clusters that nothing uses, neither by what the tables refer to nor, as far as they can be read, by the
//! stored refcounts. Then **flush**, one write of sector 0, **flush**: a cut at any moment leaves the image
//! as it was or repaired, and repairing it again comes to the same (invariant M7).
//!
//! Nothing is guessed (QEMU-COMPAT rule 46):
//!
//! - An entry that points past the end of the file, or to where nothing can be, stays as it is and is told
//!   of. What it once pointed to may look like a leak, so nothing is given back while there is one, but for L2
//!   entries past the end of the file: as with QEMU, leaks go although there are some.
//! - The file is not grown over a cluster that such an entry points to: what is missing would read as zeros
//!   from then on, and nobody would be told.
//! - A refcount that would not fit its width is told of.
//!
//! Memory: the counted references within [`CheckOptions::counter_bytes`], the active L1 table and the
//! refcount table twice (at most 32 and 8 MiB each), 16 MiB of refcount blocks, and a few MiB of notes: less
//! than 256 MiB for 64 TiB. Nor does more work come of a hostile image than its check is: what is wrong with a
//! table that many entries lead to is made right once, in one copy, and refcounts of what is past the end of
//! the file go by the block.
//!
//! ```
//! # use oxcow::{repair, DenyAll, File, Image, MemoryStorage, OpenOptions};
//! # async fn example(file: File<MemoryStorage>) -> oxcow::Result<()> {
//! let options = OpenOptions { writable: true, repair: true, ..OpenOptions::default() };
//! let image = Image::open(file, &options, &DenyAll::default()).await?;
//! let report = repair::repair(&image, repair::RepairMode::All, &mut ()).await?;
//! assert!(report.found.is_clean(), "{} problems are left", report.found.corruptions);
//! # Ok(())
//! # }
//! ```

mod copied;
mod rebuild;
mod recount;
mod refcounts;
mod room;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;

use crate::check::findings::Findings;
use crate::check::noted::Noted;
use crate::check::stored::Stored;
use crate::check::{self, CheckOptions, CheckReport, Counted, Problem, ProblemKind, Watcher};
use crate::error::{Error, Place, Result, Structure};
use crate::image::Image;
use crate::image::change::Engine;
use crate::qcow2::bytes::be64_bytes;
use crate::qcow2::snapshot::check_table_length;
use crate::qcow2::{Autoclear, Incompatible, RawHeader, Snapshot};
use crate::storage::Storage;
use copied::{ActiveTables, Flags};
use recount::Recount;
use refcounts::NewRefcounts;
use room::Room;

/// How often the active tables are walked at most. More than twice only helps where clusters are used as
/// several things at once.
const MAX_WALKS: usize = 8;

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairMode {
    /// Leaked clusters are given back, and COPIED flags made right where nothing else is wrong.
    Leaks,
    /// Refcounts that are too low are raised too, broken refcount structures built anew, and tables made
    /// what they must be where that is certain.
    All,
}

/// What a repair came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What was found and is left as it was. A check that follows finds this too.
    pub found: CheckReport,
    /// How many leaked clusters were given back.
    pub leaks_fixed: u64,
    /// How many contradictions were resolved.
    pub corruptions_fixed: u64,
}

impl RepairReport {
    /// Whether anything was repaired.
    #[must_use]
    pub fn has_repaired(&self) -> bool {
        self.leaks_fixed + self.corruptions_fixed > 0
    }
}

/// Repairs `image`, which was opened with [`writable`](crate::OpenOptions::writable) and, so that this is
/// possible whatever is wrong, [`repair`](crate::OpenOptions::repair). Waits until nobody else uses the
/// image. `watcher` is told of every problem; those that are repaired say so.
///
/// When nothing of importance is left, the marks that the image is dirty or corrupt go too. Where there is
/// nothing to repair, nothing is written.
///
/// # Errors
///
/// Those of [`check`](crate::check::check), [`Error::Refused`] for an image that was not opened for writing,
/// [`Error::Unsupported`] where there is no room for the repair, [`Error::Stopped`] after an earlier
/// failure. With [`RepairMode::Leaks`], also where refcounts are so wrong that they must be built anew.
/// The image is as it was, then.
pub async fn repair<S: Storage>(
    image: &Image<S>,
    mode: RepairMode,
    watcher: &mut impl Watcher,
) -> Result<RepairReport> {
    repair_with(image, mode, &CheckOptions::default(), watcher).await
}

/// As [`repair`], within the bounds of `options`.
///
/// # Errors
///
/// Those of [`repair`].
pub async fn repair_with<S: Storage>(
    image: &Image<S>,
    mode: RepairMode,
    options: &CheckOptions,
    watcher: &mut impl Watcher,
) -> Result<RepairReport> {
    let engine = image.repair_engine()?;
    let _held = engine.hold_for_repair().await?;
    let repair = Repair {
        engine: &engine,
        mode,
        options,
    };
    Ok(repair.run(watcher).await?.0)
}

/// Repairs an image that is held already. Returns also whether its refcounts are right now, or too high at
/// worst.
pub(crate) async fn repair_held<S: Storage>(
    engine: &Engine<'_, S>,
    mode: RepairMode,
    watcher: &mut dyn Watcher,
) -> Result<(RepairReport, bool)> {
    let options = &CheckOptions::default();
    let repair = Repair {
        engine,
        mode,
        options,
    };
    repair.run(watcher).await
}

struct Repair<'e, 'a, S> {
    engine: &'e Engine<'a, S>,
    mode: RepairMode,
    options: &'e CheckOptions,
}

impl<S: Storage> Repair<'_, '_, S> {
    async fn run(&self, watcher: &mut dyn Watcher) -> Result<(RepairReport, bool)> {
        let image = self.engine.qcow2;
        let mut findings = Findings::new(watcher);
        findings.noted = Some(Noted::new(self.mode, image.header().cluster_size));
        let counted = check::count(image, self.options, &mut findings).await?;
        let Some(mut noted) = findings.noted.take() else {
            unreachable!("notes were asked for");
        };
        if self.mode == RepairMode::All {
            rebuild::look_past_the_end(image, &counted, &mut noted, &mut findings).await?;
        }
        if noted.rebuild {
            self.tell_of_rebuilding(&mut findings)?;
        }

        if image.header().refcount_table.entries == 0 {
            self.engine.withdraw_refcount_table().await?;
        }
        let room = self.room(&counted, &mut noted);
        let understated = std::mem::take(&mut noted.understated);
        let uncounted = understated.uncounted();
        let leaks_only = self.mode == RepairMode::Leaks;
        let mut new = NewRefcounts::new(
            self.engine,
            &counted.stored,
            &noted,
            understated,
            room,
            leaks_only,
        );
        let wrong = findings.report.leaks + noted.too_low + noted.wrong_blocks;
        // Lazy refcounts may be wrong where nobody looks for it, past the end of the file.
        let dirty = image.header().incompatible.has(Incompatible::DIRTY);
        let lazy = dirty && self.mode == RepairMode::All;
        if wrong > 0 || findings.report.check_errors > 0 || noted.rebuild || lazy {
            let recount = Recount {
                image,
                mode: self.mode,
                options: self.options,
                counted: &counted,
                noted: &noted,
                nothing_known: image.header().refcount_table.entries == 0,
            };
            recount.repair(&mut new, &mut findings).await?;
            if noted.rebuild {
                rebuild::tell_of_tables(image, self.options, &counted, &mut findings).await?;
                rebuild::tell_of_old(image, &counted, &mut new, &mut findings).await?;
            }
            self.count_fixed(&noted, &mut findings);
        }
        new.settle().await?;
        if !leaks_only {
            // References that were too many for their refcounts went with the blocks that made them.
            let fixed = uncounted - new.understated().uncounted();
            findings.fixed.corruptions += fixed;
            let left = findings.report.corruptions;
            findings.report.corruptions = left.saturating_sub(fixed);
        }

        let mut header = (*image.raw_header()).clone();
        let snapshots = self.write_snapshots(&noted, &mut new, &mut header).await?;
        let l1 = self
            .walk_active_tables(&noted, &mut new, &mut findings, &mut header)
            .await?;
        new.settle().await?;
        self.clear_marks(&findings, &mut header);
        let refcounts_hold = new.understated().is_empty();
        if new.is_changed() || header != *image.raw_header() {
            // Who does not know a bit of these clears it with the first change.
            header.autoclear_features &= Autoclear::KNOWN.0;
            new.finish(&mut header).await?;
            self.engine
                .switch_to_repaired(header, l1, snapshots)
                .await?;
        }

        let report = RepairReport {
            leaks_fixed: findings.fixed.leaks,
            corruptions_fixed: findings.fixed.corruptions,
            found: findings.finish()?,
        };
        Ok((report, refcounts_hold))
    }

    /// Says that the refcounts are built anew, or refuses where that was not asked for.
    fn tell_of_rebuilding(&self, findings: &mut Findings<'_>) -> Result<()> {
        let say = |kind| Problem::new(kind, Place::of(Structure::RefcountTable));
        match self.mode {
            RepairMode::All => {
                findings.tell(&say(ProblemKind::Rebuilding));
                Ok(())
            }
            RepairMode::Leaks => {
                findings.tell(&say(ProblemKind::RebuildNeeded));
                // QEMU's words; the problem above says what they mean.
                Err(Error::Io {
                    what: "".into(),
                    offset: None,
                    source: io::Error::other("Input/output error"),
                })
            }
        }
    }

    /// The clusters in which the repaired tables are built.
    fn room(&self, counted: &Counted, noted: &mut Noted) -> Room {
        let image = self.engine.qcow2;
        let cluster_size = image.header().cluster_size;
        let mut limit = noted.dangling_from;
        // The table of the old state points there, whatever that is worth: until the switch it finds there
        // what it found before.
        let mut avoided = BTreeSet::new();
        for &index in &noted.misplaced_blocks {
            let offset = Stored::block_offset(counted.stored.table()[index as usize]);
            let first = cluster_size.index_of(offset);
            match self.mode {
                RepairMode::All => avoided.extend([
                    first,
                    cluster_size.index_of(offset.saturating_add(cluster_size.bytes() - 1)),
                ]),
                // The new one points there too.
                RepairMode::Leaks => limit = limit.min(first),
            }
        }
        let mut inside = std::mem::take(&mut noted.free).into_runs();
        if noted.rebuild && noted.incomplete {
            // What looks free may be what a damaged entry stood for, and the refcounts are no witness.
            inside.clear();
        }
        let end = counted
            .clusters
            .max(cluster_size.count_for(image.file_len()));
        Room::new(inside, end, limit, avoided)
    }

    /// Takes what [`Recount`] has made right out of what was found.
    fn count_fixed(&self, noted: &Noted, findings: &mut Findings<'_>) {
        let (report, fixed) = (&mut findings.report, &mut findings.fixed);
        if !noted.incomplete {
            fixed.leaks += std::mem::take(&mut report.leaks);
        }
        if self.mode == RepairMode::All {
            let corruptions = noted.too_low + noted.wrong_blocks;
            fixed.corruptions += corruptions;
            report.corruptions = report.corruptions.saturating_sub(corruptions);
            report.check_errors = 0;
        }
    }

    /// Writes the snapshot table anew where entries lack what they must have, or have more than they may. Entries that
    /// are too many are not counted any more.
    async fn write_snapshots(
        &self,
        noted: &Noted,
        new: &mut NewRefcounts<'_, '_, S>,
        header: &mut RawHeader,
    ) -> Result<Option<Vec<Snapshot>>> {
        let image = self.engine.qcow2;
        if self.mode == RepairMode::Leaks {
            return Ok(None);
        }
        if noted.drops_snapshots {
            header.nb_snapshots = image.snapshots().len() as u32;
        }
        if !noted.rewrites_snapshots {
            return Ok(None);
        }
        let mut snapshots = image.snapshots().to_vec();
        let mut bytes = Vec::new();
        for snapshot in &mut snapshots {
            // The disk may have been smaller then: more than its table covers cannot be read.
            let covered =
                u64::from(snapshot.l1_entries).saturating_mul(image.header().l1_coverage());
            let size = image.virtual_size().min(covered);
            bytes.extend(snapshot.encode(size));
            snapshot.disk_size.get_or_insert(size);
        }
        check_table_length(bytes.len() as u64, image.header().snapshots.offset.0)?;
        let old = header.snapshots_offset;
        header.snapshots_offset = new
            .write_table("Could not write snapshot table", &bytes)
            .await?;
        let bytes = image.meta.borrow().snapshot_table_bytes;
        new.release(old, bytes);
        Ok(Some(snapshots))
    }

    /// Makes the active tables right, as far as it is certain what that is. Returns the L1 table where it
    /// is another now.
    async fn walk_active_tables(
        &self,
        noted: &Noted,
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
        header: &mut RawHeader,
    ) -> Result<Option<Vec<u64>>> {
        let image = self.engine.qcow2;
        if !findings.suspect {
            return Ok(None);
        }
        findings.expect(header.l1_size.into());
        let mut tables = ActiveTables {
            engine: self.engine,
            flags: match self.mode {
                // Of what refcounts that are wrong say, nothing is made.
                RepairMode::Leaks if !findings.report.is_clean() => Flags::Tell,
                _ => Flags::Repair,
            },
            misplaced_zeros: noted.misplaced_zeros,
            tells: true,
        };
        let mut l1 = image.root.borrow().l1.clone();
        let mut home = None;
        for _ in 0..MAX_WALKS {
            let changed = tables.walk(&mut l1, new, findings).await?;
            tables.tells = false;
            let bytes = l1.len() as u64 * 8;
            if changed && home.is_none() {
                let clusters = bytes.div_ceil(image.header().cluster_size.bytes());
                home = Some(new.take(clusters).await?);
                new.release(header.l1_table_offset, bytes);
            }
            // Only where a replaced table's cluster is used as something else too, that is its only use now.
            if !new.settle().await? || !changed {
                break;
            }
        }
        let Some(home) = home else {
            return Ok(None);
        };
        header.l1_table_offset = home.start * image.header().cluster_size.bytes();
        self.engine
            .write_aside(
                "Could not write L1 table",
                header.l1_table_offset,
                &be64_bytes(&l1),
            )
            .await?;
        Ok(Some(l1))
    }

    /// Clears the marks of trouble where there is none left.
    fn clear_marks(&self, findings: &Findings<'_>, header: &mut RawHeader) {
        if findings.report.corruptions == 0 && findings.report.check_errors == 0 {
            let marks = Incompatible::DIRTY.0 | Incompatible::CORRUPT.0;
            header.incompatible_features &= !marks;
        }
    }
}
