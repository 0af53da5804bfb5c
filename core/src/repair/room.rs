//! Clusters in which the repaired tables are built: those that nothing uses, whatever one believes, the
//! references or the refcounts.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use crate::error::{Error, Result};

/// Free clusters.
#[derive(Debug)]
pub(super) struct Room {
    /// Inside the file, in ascending order.
    inside: VecDeque<Range<u64>>,
    /// From here on there is nothing.
    end: u64,
    /// Up to here the file may grow.
    limit: u64,
    /// What is not used, though it is free.
    avoided: BTreeSet<u64>,
}

impl Room {
    /// The clusters `inside` of the file, in ascending order, and those from `end` on up to `limit`, which
    /// something refers to; but not those that are `avoided`.
    pub fn new(inside: Vec<Range<u64>>, end: u64, limit: u64, avoided: BTreeSet<u64>) -> Self {
        let mut runs = VecDeque::with_capacity(inside.len());
        for run in inside {
            let end = run.end.min(limit);
            let mut start = run.start;
            for &cluster in avoided.range(run.start.min(end)..end) {
                runs.push_back(start..cluster);
                start = cluster + 1;
            }
            runs.push_back(start..end);
        }
        runs.retain(|run| !run.is_empty());
        Self {
            inside: runs,
            end,
            limit,
            avoided,
        }
    }

    /// `count` clusters in a row inside the file, if there are any.
    pub fn inside(&mut self, count: u64) -> Option<Range<u64>> {
        let enough = |run: &Range<u64>| run.end - run.start >= count;
        let at = self.inside.iter().position(enough)?;
        let run = &mut self.inside[at];
        let taken = run.start..run.start + count;
        run.start = taken.end;
        if run.is_empty() {
            self.inside.remove(at);
        }
        Some(taken)
    }

    /// The next cluster past the end of the file, and whether it may be used; an error where the file must
    /// not grow over it.
    pub fn next_past_the_end(&mut self) -> Result<(u64, bool)> {
        let cluster = self.end;
        if cluster >= self.limit {
            return Err(Error::Unsupported(
                "There is no room for the repair: the file is shorter than what its tables refer to, and \
                 growing it would make what is missing look like zeros"
                    .into(),
            ));
        }
        self.end += 1;
        Ok((cluster, !self.avoided.contains(&cluster)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_that_is_long_enough() {
        let mut room = Room::new(vec![3..4, 6..9, 12..20, 30..40], 50, 35, BTreeSet::new());
        assert_eq!(room.inside(3), Some(6..9));
        assert_eq!(room.inside(2), Some(12..14));
        assert_eq!(room.inside(1), Some(3..4));
        assert_eq!(room.inside(6), Some(14..20));
        assert_eq!(room.inside(6), None);
        assert_eq!(room.inside(5), Some(30..35));
        assert_eq!(room.inside(1), None);
    }

    #[test]
    fn what_is_avoided_splits_runs() {
        let avoided = BTreeSet::from([1, 4, 7, 9, 20]);
        let mut room = Room::new(vec![1..3, 4..5, 6..10], 20, 22, avoided);
        assert_eq!(room.inside(1), Some(2..3));
        assert_eq!(room.inside(1), Some(6..7));
        assert_eq!(room.inside(1), Some(8..9));
        assert_eq!(room.inside(1), None);
        assert_eq!(room.next_past_the_end().unwrap(), (20, false));
        assert_eq!(room.next_past_the_end().unwrap(), (21, true));
        assert!(
            room.next_past_the_end().is_err(),
            "something refers to what comes next"
        );
    }
}
