//! Checking an image: every reference is counted and compared with the stored refcounts.
//!
//! Nothing is changed ([`crate::repair`] does that). What is found, and every count, is what `qemu-img check` finds; how it is found is
//! not the same:
//!
//! - References are counted in a sparse counter within a bound of memory. Where that is not enough
//!   for all clusters at once, the tables are walked again for the rest.
//! - A table that many entries point to is visited once, with a weight: an image with a thousand
//!   snapshots costs what its different tables cost.
//! - COPIED flags are noted in the counter as claims about the refcount. Only when a claim turns out to be
//!   wrong, or when anything else was odd, the active tables are read again to say which entry it was.
//!
//! ```
//! # use oxcow::{check, CheckReport, DenyAll, File, Image, Layer, MemoryStorage, OpenOptions};
//! # async fn example(file: File<MemoryStorage>) -> oxcow::Result<()> {
//! struct Print;
//!
//! impl check::Watcher for Print {
//!     fn problem(&mut self, problem: &check::Problem) {
//!         println!("{problem}");
//!     }
//! }
//!
//! let image = Image::open(file, &OpenOptions::default(), &DenyAll::default()).await?;
//! if let Some(qcow2) = image.top().as_qcow2() {
//!     let report: CheckReport = check::check(qcow2, &mut Print).await?;
//!     assert!(report.is_clean());
//! }
//! # Ok(())
//! # }
//! ```

mod bitmaps;
mod compare;
mod copied;
pub(crate) mod counter;
mod coverage;
pub(crate) mod entries;
pub(crate) mod findings;
pub(crate) mod noted;
pub(crate) mod page;
mod references;
mod report;
mod snapshots;
pub(crate) mod stored;
mod tables;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tiny;

pub use report::{CheckReport, Problem, ProblemKind, Severity, Watcher};

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::Qcow2;
use crate::storage::Storage;
use crate::units::SECTOR;
use counter::Counter;
use findings::Findings;
use references::References;
use stored::Stored;

/// The most host clusters that are checked, as in QEMU.
const MAX_CLUSTERS: u64 = i32::MAX as u64;

/// How a check goes about its work; its result does not depend on it.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// A bound for counted references, in bytes. When it is reached the tables are read once more for the
    /// clusters that were not counted.
    pub counter_bytes: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            counter_bytes: 64 << 20,
        }
    }
}

/// Checks `image` without changing it.
///
/// # Errors
///
/// [`Error::Cancelled`] where `watcher` says so, [`Error::Io`] for a table that cannot be read, and an
/// error for what cannot be checked at all: a bitmap directory that contradicts itself, a file of more
/// than 2^31 clusters. What is wrong with the image otherwise is in the report.
pub async fn check<S: Storage>(
    image: &Qcow2<S>,
    watcher: &mut impl Watcher,
) -> Result<CheckReport> {
    check_with(image, &CheckOptions::default(), watcher).await
}

/// As [`check`], within the bounds of `options`.
///
/// # Errors
///
/// Those of [`check`].
pub async fn check_with<S: Storage>(
    image: &Qcow2<S>,
    options: &CheckOptions,
    watcher: &mut impl Watcher,
) -> Result<CheckReport> {
    let mut findings = Findings::new(watcher);
    let counted = count(image, options, &mut findings).await?;
    if findings.suspect {
        copied::check(image, &counted.stored, &mut findings).await?;
    }
    findings.finish()
}

/// What counting all references came to.
pub(crate) struct Counted {
    pub stored: Stored,
    /// How many host clusters there are.
    pub clusters: u64,
    /// The references to all clusters, where one window held them.
    pub counter: Option<Counter>,
}

/// Counts every reference, and compares the counts with the stored refcounts.
pub(crate) async fn count<S: Storage>(
    image: &Qcow2<S>,
    options: &CheckOptions,
    findings: &mut Findings<'_>,
) -> Result<Counted> {
    let cluster_size = image.header().cluster_size;
    let mut clusters = cluster_size.count_for(image.file_len());
    if clusters > MAX_CLUSTERS {
        return Err(Error::Unsupported("File too large".into()));
    }
    let stored = Stored::read(image).await?;
    let disk_bytes = image.header().size / SECTOR * SECTOR;
    findings.report.total_clusters = cluster_size.count_for(disk_bytes);
    snapshots::check_table(image, findings)?;

    let mut last_used = 0;
    let mut from = 0;
    let counter = loop {
        findings.first_pass = from == 0;
        findings.expect(references::work(image) + stored.blocks_for(clusters));
        let counter;
        (counter, clusters) = count_from(image, options, findings, &stored, from..clusters).await?;
        let window = from..counter.window().end.min(clusters);
        let last = compare::compare(image, &stored, &counter, window.clone(), findings).await?;
        last_used = last.unwrap_or(last_used);
        if window.end == clusters {
            break counter;
        }
        from = window.end;
    };
    findings.report.image_end_offset = (last_used + 1) * cluster_size.bytes();
    Ok(Counted {
        stored,
        clusters,
        counter: (from == 0).then_some(counter),
    })
}

/// Counts the references to `clusters`, or to as many of them from the first on as the bound of memory
/// allows. Returns also how many clusters there turned out to be.
pub(crate) async fn count_from<S: Storage>(
    image: &Qcow2<S>,
    options: &CheckOptions,
    findings: &mut Findings<'_>,
    stored: &Stored,
    clusters: Range<u64>,
) -> Result<(Counter, u64)> {
    let mut references = References::new(
        image,
        findings,
        clusters.start,
        clusters.end,
        options.counter_bytes,
    );
    references.count(stored).await?;
    Ok(references.into_counted())
}
