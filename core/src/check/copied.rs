//! Which COPIED flags contradict the stored refcounts (invariant M2).

use std::pin::pin;

use futures_util::StreamExt;

use super::coverage::Segment;
use super::findings::Findings;
use super::report::{Problem, ProblemKind};
use super::stored::{Lookup, Stored};
use super::tables::{Buffers, Slots, Visit, fetch, fetches, visits};
use crate::error::{Place, Result, Structure};
use crate::image::Qcow2;
use crate::qcow2::bytes::be64_table;
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{COPIED, OFFSET_MASK};
use crate::storage::Storage;

/// Bit 0 of a standard descriptor.
const ZERO: u64 = 1;

/// Looks at every entry of the active tables.
pub(super) async fn check<S: Storage>(
    image: &Qcow2<S>,
    stored: &Stored,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let storage = &image.file().storage;
    let header = image.header();
    let cluster_size = header.cluster_size;
    let table = header.l1.offset.0;
    let segments = [Segment {
        range: table..table + u64::from(header.l1.entries) * 8,
        weight: 1,
    }];
    findings.expect(header.l1.entries.into());

    let buffers = Buffers::default();
    let mut lookup = Lookup::new(stored, storage);
    let mut slots = Slots::new(storage, &segments);
    let mut batch = Vec::new();
    loop {
        let mut passed = slots.next(&mut batch).await?;
        if passed == 0 {
            return Ok(());
        }
        let visits = visits(&batch, |slot| {
            slot.table_inside(image.file_len())
                .filter(|offset| *offset != 0)
        });
        let fetches = fetches(&visits, cluster_size);
        let mut fetched = pin!(fetch(storage, fetches, cluster_size, &buffers));
        let mut slots_done = 0;
        while let Some(result) = fetched.next().await {
            let (fetch, bytes) = result?;
            for (visit, table_bytes) in visits[fetch.visits.clone()]
                .iter()
                .zip(bytes.chunks(cluster_size.len()))
            {
                let mut readable = true;
                for slot in &batch[slots_done..=visit.slot] {
                    let l1_index = (slot.at - table) / 8;
                    readable =
                        check_l1_entry(slot.entry, l1_index, slot.at, &mut lookup, image, findings)
                            .await?;
                }
                slots_done = visit.slot + 1;
                // QEMU goes no further where the table's own refcount cannot be read.
                if readable {
                    check_l2_table(visit, table_bytes, &mut lookup, image, findings).await?;
                }
            }
            buffers.give(bytes);
            let tables = (fetch.visits.len() as u64).min(passed);
            passed -= tables;
            findings.advance(tables)?;
        }
        for slot in &batch[slots_done..] {
            check_l1_entry(
                slot.entry,
                (slot.at - table) / 8,
                slot.at,
                &mut lookup,
                image,
                findings,
            )
            .await?;
        }
        findings.advance(passed)?;
    }
}

/// Returns whether the refcount could be read.
async fn check_l1_entry<S: Storage>(
    l1_entry: u64,
    l1_index: u64,
    at: u64,
    lookup: &mut Lookup<'_, S>,
    image: &Qcow2<S>,
    findings: &mut Findings<'_>,
) -> Result<bool> {
    let offset = l1_entry & OFFSET_MASK;
    if offset == 0 {
        return Ok(true);
    }
    let Some(stored) = lookup
        .get(image.header().cluster_size.index_of(offset))
        .await?
    else {
        return Ok(false);
    };
    if (stored == 1) != (l1_entry & COPIED != 0) {
        let place = Place::at(Structure::L1Table, at).entry(l1_index);
        let kind = ProblemKind::CopiedL2Table {
            l1_index,
            l1_entry,
            stored,
        };
        findings.of_cluster(Problem::new(kind, place));
    }
    Ok(true)
}

async fn check_l2_table<S: Storage>(
    visit: &Visit,
    table: &[u8],
    lookup: &mut Lookup<'_, S>,
    image: &Qcow2<S>,
    findings: &mut Findings<'_>,
) -> Result<()> {
    let format = image.l2_format();
    let words = format.entry_bytes() as usize / 8;
    for (index, descriptor) in (0u64..).zip(be64_table(table).step_by(words)) {
        let entry = L2Entry {
            descriptor,
            subclusters: 0,
        };
        let offset = entry.host_offset().0;
        let zero = !format.extended && descriptor & ZERO != 0;
        let in_data_file = format.data_file && entry.copied() && !zero;
        if entry.is_compressed() || offset == 0 && !in_data_file {
            continue;
        }
        let stored = if format.data_file {
            Some(1)
        } else {
            let cluster = format.cluster_size.index_of(offset);
            match lookup.at_hand(cluster) {
                Some(stored) => stored,
                None => lookup.get(cluster).await?,
            }
        };
        if let Some(stored) = stored.filter(|stored| (*stored == 1) != entry.copied()) {
            let place = Place::at(
                Structure::L2Table,
                visit.offset + index * format.entry_bytes(),
            )
            .entry(index);
            let kind = ProblemKind::CopiedDataCluster {
                l2_entry: descriptor,
                stored,
            };
            findings.of_cluster(Problem::new(kind, place).times(visit.weight));
        }
    }
    Ok(())
}
