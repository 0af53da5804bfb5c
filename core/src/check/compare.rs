//! Comparing what was counted with what is stored.

use std::ops::Range;
use std::pin::pin;

use futures_util::{StreamExt, stream};

use super::counter::Counter;
use super::findings::Findings;
use super::page::Tally;
use super::report::{Problem, ProblemKind};
use super::stored::{Block, Piece, Stored, Unreadable};
use super::tables::Buffers;
use crate::error::{Error, Place, Result, Structure};
use crate::image::Qcow2;
use crate::storage::{Storage, read_padded};

/// Clusters that are decoded together: what the fast path compares without a branch for each.
const CHUNK: usize = 512;

/// Compares the refcounts of `clusters`, which `counter` counted. Returns the last of them that is
/// referred to or has a refcount.
pub(super) async fn compare<S: Storage>(
    image: &Qcow2<S>,
    stored: &Stored,
    counter: &Counter,
    clusters: Range<u64>,
    findings: &mut Findings<'_>,
) -> Result<Option<u64>> {
    let storage = &image.file().storage;
    let buffers = Buffers::default();
    let read = |piece: Piece| async {
        let Block::At(offset) = piece.block else {
            return Ok((piece, Vec::new()));
        };
        let mut bytes = buffers.take(stored.piece_bytes(&piece));
        read_padded(storage, offset, &mut bytes)
            .await
            .map_err(|error| Error::io("Could not read refcount block", offset, error))?;
        Ok((piece, bytes))
    };
    let pieces = stream::iter(stored.pieces(clusters.clone()))
        .map(read)
        .buffered(storage.queue_depth().max(1));
    let mut pieces = pin!(pieces);
    let mut comparison = Comparison {
        stored,
        counter,
        findings,
        cluster_bytes: image.header().cluster_size.bytes(),
        last_used: None,
        told_of_unaligned_block: clusters.start > 0,
    };
    while let Some(result) = pieces.next().await {
        let (piece, bytes) = result?;
        match piece.block {
            Block::Absent => comparison.unstored(piece.clusters.clone()),
            Block::Unreadable(why) => comparison.unreadable(piece.clusters.clone(), why),
            Block::At(_) => comparison.stored(piece.clusters.clone(), &bytes),
        }
        buffers.give(bytes);
        let blocks =
            stored.blocks_for(piece.clusters.end) - stored.blocks_for(piece.clusters.start);
        comparison.findings.advance(blocks)?;
    }
    Ok(comparison.last_used)
}

struct Comparison<'a, 'w> {
    stored: &'a Stored,
    counter: &'a Counter,
    findings: &'a mut Findings<'w>,
    cluster_bytes: u64,
    last_used: Option<u64>,
    told_of_unaligned_block: bool,
}

impl Comparison<'_, '_> {
    /// Clusters that no block counts.
    fn unstored(&mut self, clusters: Range<u64>) {
        let mut at = clusters.start;
        loop {
            let used = self.counter.skip_empty(at).min(clusters.end);
            if let Some(noted) = &mut self.findings.noted {
                noted.free.push(at..used);
            }
            at = used;
            if at >= clusters.end {
                return;
            }
            let end = clusters.end.min(at + CHUNK as u64);
            let zeros = [0; CHUNK];
            self.chunk(at, &zeros[..(end - at) as usize]);
            at = end;
        }
    }

    fn unreadable(&mut self, clusters: Range<u64>, why: Unreadable) {
        let Unreadable {
            index,
            offset,
            unaligned,
        } = why;
        let place = Place::at(Structure::RefcountBlock, offset);
        if unaligned && !self.told_of_unaligned_block {
            self.told_of_unaligned_block = true;
            let kind = ProblemKind::RefcountBlockUnreadable { offset, index };
            self.findings
                .of_cluster(Problem::new(kind, place.entry(index)));
        }
        for cluster in clusters {
            let kind = ProblemKind::RefcountUnreadable { cluster };
            self.findings.of_cluster(Problem::new(kind, place));
        }
    }

    /// Clusters whose refcounts are in `bytes`.
    fn stored(&mut self, clusters: Range<u64>, bytes: &[u8]) {
        let mut refcounts = [0; CHUNK];
        for start in clusters.clone().step_by(CHUNK) {
            let count = (clusters.end - start).min(CHUNK as u64) as usize;
            let refcounts = &mut refcounts[..count];
            self.stored
                .decode(bytes, (start - clusters.start) as usize, refcounts);
            self.chunk(start, refcounts);
        }
    }

    fn chunk(&mut self, start: u64, refcounts: &[u64]) {
        let mut tallies = [Tally::default(); CHUNK];
        let tallies = &mut tallies[..refcounts.len()];
        self.counter.fill(start, tallies);
        let pairs = || refcounts.iter().zip(tallies.iter());
        let agree = pairs().fold(true, |agree, (stored, tally)| {
            agree & (*stored == tally.references())
        });
        let contradicted = pairs().fold(false, |so_far, (stored, tally)| {
            so_far | tally.is_contradicted_by(*stored)
        });
        self.findings.suspect |= contradicted;
        let used = |(stored, tally): (&u64, &Tally)| *stored != 0 || tally.references() != 0;
        if let Some(last) = pairs().rposition(used) {
            self.last_used = Some(start + last as u64);
        }
        if let Some(noted) = &mut self.findings.noted {
            let free = (start..).zip(pairs()).filter(|(_, pair)| !used(*pair));
            free.for_each(|(cluster, _)| noted.free.push(cluster..cluster + 1));
        }
        if !agree {
            for (cluster, (stored, tally)) in (start..).zip(pairs()) {
                self.one(cluster, *stored, tally.references());
            }
        }
    }

    fn one(&mut self, cluster: u64, stored: u64, references: u64) {
        let kind = match stored.cmp(&references) {
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Less => ProblemKind::RefcountTooLow {
                cluster,
                stored,
                references,
            },
            std::cmp::Ordering::Greater => ProblemKind::Leaked {
                cluster,
                stored,
                references,
            },
        };
        let place = Place::at(Structure::DataCluster, cluster * self.cluster_bytes);
        self.findings.of_cluster(Problem::new(kind, place));
    }
}
