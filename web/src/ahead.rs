//! Tables fetched together: a walk over the map meets one L2 table after the other, and where each is a
//! round trip away it would do little but wait.

use futures_util::{StreamExt, stream};
use oxcow::{GuestOffset, Image, Storage};

/// How far ahead a long walk looks, in tables for each read that the storage takes at once: most of a
/// sparse disk has no table, so several present ones are seldom side by side.
const FARTHEST: u64 = 16;

/// Brings the next tables of a walk into the caches, as many at once as the storage gains by.
pub struct Ahead {
    /// How much of the disk one table describes, in bytes; all of it where there are no tables.
    span: u64,
    at_once: usize,
    /// Up to here it is done.
    until: u64,
    /// How many tables are looked at next: twice as many each time, for a walk may end soon.
    tables: u64,
}

impl Ahead {
    /// For a walk over `image`, whose storage takes `at_once` reads at the same time.
    pub fn new<S: Storage>(image: &Image<S>, at_once: usize) -> Self {
        let span = image.top().as_qcow2().map_or(u64::MAX, |top| {
            let header = top.header();
            let cluster = header.cluster_size.bytes();
            cluster.saturating_mul(cluster / header.l2_entry_bytes())
        });
        Self {
            span,
            at_once,
            until: 0,
            tables: at_once as u64,
        }
    }

    /// To be called before the walk, which ends at `end`, looks at `at`.
    pub async fn reach<S: Storage>(&mut self, image: &Image<S>, at: u64, end: u64) {
        if self.at_once < 2 || at < self.until {
            return;
        }
        let first = at - at % self.span;
        let behind = |tables: u64| first.saturating_add(self.span.saturating_mul(tables));
        let starts = (0..self.tables)
            .map(behind)
            .take_while(|start| *start < end);
        // What cannot be read is told when the walk gets there.
        stream::iter(starts)
            .map(|start| image.extent_at(GuestOffset(start.max(at)), 1))
            .buffer_unordered(self.at_once)
            .for_each(async |_| ())
            .await;
        self.until = behind(self.tables);
        self.tables = (self.tables * 2).min(self.at_once as u64 * FARTHEST);
    }
}
