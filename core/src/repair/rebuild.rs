//! What is told of refcounts that are built anew.

use std::collections::BTreeSet;

use super::RepairMode;
use super::refcounts::NewRefcounts;
use crate::check::findings::Findings;
use crate::check::noted::Noted;
use crate::check::stored::{Lookup, Stored};
use crate::check::{CheckOptions, Counted, Problem, ProblemKind, count_from};
use crate::error::{Place, Result, Structure};
use crate::image::Qcow2;
use crate::storage::Storage;

/// A refcount block past the end of the file makes the refcounts be built anew unless it is counted itself, as
/// in QEMU, which makes the file reach there before it looks.
pub(super) async fn look_past_the_end<S: Storage>(
    image: &Qcow2<S>,
    counted: &Counted,
    noted: &mut Noted,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let size = image.header().cluster_size;
    let mut lookup = Lookup::new(&counted.stored, &image.file.storage);
    for &index in &noted.misplaced_blocks {
        let entry = counted.stored.table()[index as usize];
        let offset = Stored::block_offset(entry);
        // What has reserved bits is no block to anybody.
        if entry != offset || !offset.is_multiple_of(size.bytes()) || offset < image.file_len() {
            continue;
        }
        if offset > i64::MAX as u64 - size.bytes() {
            let kind = ProblemKind::RefcountBlockTooFarOut;
            findings.tell(&Problem::new(kind, Place::of(Structure::RefcountTable)));
            noted.rebuild = true;
            continue;
        }
        let cluster = size.index_of(offset);
        let stored = match counted.stored.is_inside(cluster) {
            true => lookup.get(cluster).await?.unwrap_or(0),
            false => 0,
        };
        if stored == 0 {
            let kind = ProblemKind::RefcountTooLow {
                cluster,
                stored,
                references: 1,
            };
            findings.tell(&Problem::new(
                kind,
                Place::at(Structure::DataCluster, offset),
            ));
            findings.fixed.corruptions += 1;
            noted.rebuild = true;
        }
    }
    Ok(())
}

/// Tells again what is wrong with the tables and is not repaired: QEMU counts all references anew for the new refcounts.
pub(super) async fn tell_of_tables<S: Storage>(
    image: &Qcow2<S>,
    options: &CheckOptions,
    counted: &Counted,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let mut still = findings.still();
    let mut walk = Findings::new(&mut still);
    walk.noted = Some(Noted::new(RepairMode::All, image.header().cluster_size));
    let clusters = 0..counted.clusters;
    count_from(image, options, &mut walk, &counted.stored, clusters).await?;
    Ok(())
}

/// Tells of what held the old refcounts, which the new ones do not count any more; nothing is settled yet.
pub(super) async fn tell_of_old<S: Storage>(
    image: &Qcow2<S>,
    counted: &Counted,
    new: &mut NewRefcounts<'_, '_, S>,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let header = image.header();
    let size = header.cluster_size;
    let table = header.refcount_table;
    let first = size.index_of(table.offset.0);
    let clusters = size.count_for(u64::from(table.entries) * 8);
    // What has reserved bits, or is not at the start of a cluster, was no block to anybody.
    let blocks = counted.stored.table().iter().copied();
    let blocks = blocks.filter(|&offset| {
        offset != 0
            && offset.is_multiple_of(size.bytes())
            && offset <= i64::MAX as u64 - size.bytes()
    });
    let old: BTreeSet<u64> = (first..first + clusters)
        .chain(blocks.map(|offset| size.index_of(offset)))
        .collect();
    let end = size.count_for(image.file_len());
    for cluster in old {
        let stored = match cluster < end {
            true => new.get(cluster).await?.max(1),
            false => 1,
        };
        let kind = ProblemKind::OldRefcounts { cluster, stored };
        let place = Place::at(Structure::RefcountTable, cluster * size.bytes());
        findings.tell(&Problem::new(kind, place));
    }
    Ok(())
}
