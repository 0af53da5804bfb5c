//! Making the refcounts what the references say.

use super::RepairMode;
use super::refcounts::NewRefcounts;
use crate::check::counter::Counter;
use crate::check::findings::Findings;
use crate::check::noted::Noted;
use crate::check::page::Tally;
use crate::check::{CheckOptions, Counted, Problem, ProblemKind, count_from};
use crate::error::{Place, Result, Structure};
use crate::image::Qcow2;
use crate::storage::Storage;

/// Clusters that are looked at together.
const CHUNK: usize = 512;

/// The refcounts of all clusters, right in `new` as far as `mode` goes.
pub(super) struct Recount<'a, S> {
    pub image: &'a Qcow2<S>,
    pub mode: RepairMode,
    pub options: &'a CheckOptions,
    pub counted: &'a Counted,
    pub noted: &'a Noted,
    /// Whether all refcounts may be gone, with the table.
    pub nothing_known: bool,
}

impl<S: Storage> Recount<'_, S> {
    /// Counts again, window by window, unless one window held all counts; tells what is repaired.
    pub async fn repair(
        &self,
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
    ) -> Result<()> {
        if let Some(counter) = &self.counted.counter {
            self.window(counter, 0, new, findings).await?;
            return self.past_the_end(new, findings).await;
        }
        let mut from = 0;
        while from < self.counted.clusters {
            let counter = {
                let mut again = findings.again();
                let mut silent = Findings::new(&mut again);
                let clusters = from..self.counted.clusters;
                let stored = &self.counted.stored;
                silent.first_pass = false;
                silent.noted = Some(Noted::new(self.mode, self.image.header().cluster_size));
                count_from(self.image, self.options, &mut silent, stored, clusters)
                    .await?
                    .0
            };
            self.window(&counter, from, new, findings).await?;
            from = counter.window().end;
        }
        self.past_the_end(new, findings).await
    }

    /// Refcounts past the end of the file are for nothing, and would show as leaks once it has grown. QEMU
    /// does not look at them; nobody is told. A file may have blocks for far more than there is: those go as
    /// they are.
    async fn past_the_end(
        &self,
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
    ) -> Result<()> {
        if self.noted.incomplete {
            return Ok(());
        }
        let (end, per_block) = (self.counted.clusters, self.per_block());
        for index in end / per_block..new.blocks() {
            findings.advance(0)?;
            if index * per_block >= end {
                new.let_go(index).await?;
                continue;
            }
            let mut at = end;
            while new.is_counted(at) && at < (index + 1) * per_block {
                let count = ((index + 1) * per_block - at).min(CHUNK as u64);
                new.assign(at, &[0; CHUNK][..count as usize]).await?;
                at += count;
            }
        }
        Ok(())
    }

    /// Compares the clusters of one window with what was counted.
    async fn window(
        &self,
        counter: &Counter,
        from: u64,
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
    ) -> Result<()> {
        let end = counter.window().end.min(self.counted.clusters);
        let mut at = from;
        while at < end {
            let block_end = (at / self.per_block() + 1) * self.per_block();
            if !new.is_counted(at) && !self.is_unknown(at) {
                at = counter.skip_empty(at).min(block_end);
            }
            let count = block_end.min(end).saturating_sub(at).min(CHUNK as u64);
            self.chunk(counter, at, count as usize, new, findings)
                .await?;
            findings.advance(0)?;
            at += count;
        }
        Ok(())
    }

    /// Clusters of one block.
    async fn chunk(
        &self,
        counter: &Counter,
        start: u64,
        count: usize,
        new: &mut NewRefcounts<'_, '_, S>,
        findings: &mut Findings<'_>,
    ) -> Result<()> {
        let (mut counts, mut tallies) = ([0; CHUNK], [Tally::default(); CHUNK]);
        let (counts, tallies) = (&mut counts[..count], &mut tallies[..count]);
        new.read(start, counts).await?;
        counter.fill(start, tallies);
        let unknown = self.is_unknown(start);
        let agrees = |(count, tally): (&u64, &Tally)| *count == tally.references();
        if !unknown && counts.iter().zip(tallies.iter()).all(agrees) {
            return Ok(());
        }
        for ((cluster, count), tally) in (start..).zip(counts.iter_mut()).zip(tallies.iter()) {
            let references = tally.references();
            let right = self.right(*count, references, unknown);
            if *count != references && !self.noted.rebuild {
                self.tell(cluster, *count, references, right != *count, findings);
            }
            *count = right;
        }
        new.assign(start, counts).await
    }

    /// What the refcount is to be.
    fn right(&self, stored: u64, references: u64, unknown: bool) -> u64 {
        match (self.mode, self.noted.incomplete) {
            (RepairMode::Leaks, true) => stored,
            (RepairMode::Leaks, false) => stored.min(references),
            (RepairMode::All, false) => references,
            // Nothing is given back.
            (RepairMode::All, true) => references.max(stored).max(unknown.into()),
        }
    }

    /// Whether nobody can say what the refcount of `cluster` was, and that matters.
    fn is_unknown(&self, cluster: u64) -> bool {
        let index = cluster / self.per_block();
        self.noted.incomplete && (self.nothing_known || self.noted.is_broken(index))
    }

    fn per_block(&self) -> u64 {
        let header = self.image.header();
        header.refcount_width.entries_per_block(header.cluster_size)
    }

    fn tell(
        &self,
        cluster: u64,
        stored: u64,
        references: u64,
        repaired: bool,
        findings: &mut Findings<'_>,
    ) {
        let kind = if stored < references {
            ProblemKind::RefcountTooLow {
                cluster,
                stored,
                references,
            }
        } else {
            ProblemKind::Leaked {
                cluster,
                stored,
                references,
            }
        };
        let offset = cluster * self.image.header().cluster_size.bytes();
        let problem = Problem::new(kind, Place::at(Structure::DataCluster, offset));
        findings.tell(&problem.repaired(repaired));
    }
}
