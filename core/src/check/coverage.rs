//! How many of many overlapping ranges cover each byte.
//!
//! Tables of snapshots and bitmaps may lie over one another, in damaged images by the thousand. Swept by
//! their place in the file each byte is visited once, whatever number of tables it belongs to.

use std::ops::Range;

/// Bytes that the same number of ranges cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub range: Range<u64>,
    /// How many: at least 1.
    pub weight: u64,
}

/// The covered bytes in ascending order, as at most two segments for each of `ranges`.
pub(crate) fn coverage(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Segment> {
    let mut edges: Vec<(u64, i64)> = ranges
        .into_iter()
        .filter(|range| !range.is_empty())
        .flat_map(|range| [(range.start, 1), (range.end, -1)])
        .collect();
    edges.sort_unstable();
    let mut segments: Vec<Segment> = Vec::new();
    let mut weight = 0i64;
    let mut start = 0;
    for (at, change) in edges {
        if at > start {
            if weight > 0 {
                segments.push(Segment {
                    range: start..at,
                    weight: weight as u64,
                });
            }
            start = at;
        }
        weight += change;
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_add_up() {
        let found = coverage([10..20, 15..30, 15..16, 40..50, 50..60, 7..7]);
        let expected = [
            (10..15, 1),
            (15..16, 3),
            (16..20, 2),
            (20..30, 1),
            (40..50, 1),
            (50..60, 1),
        ];
        assert_eq!(
            found,
            expected.map(|(range, weight)| Segment { range, weight })
        );
    }
}
