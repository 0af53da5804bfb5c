//! Where the guest's disk has changed, in memory.

use std::collections::BTreeMap;
use std::ops::Range;

/// As many ranges as are kept: some 10 MiB of memory.
const MAX_RANGES: usize = 1 << 18;

/// Ranges of the disk that have changed, in whole granules of the finest bitmap; so what a coarser bitmap
/// must show follows from them exactly. Where there would be too many, granules are taken together: a bitmap
/// may say of a range that it changed although it did not, and never the other way round.
#[derive(Debug)]
pub(crate) struct Dirty {
    /// log2 of the bytes of a granule.
    granularity_bits: u32,
    /// Ends by starts. They neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
    max_ranges: usize,
}

impl Dirty {
    /// Nothing, in granules of 2^`granularity_bits` bytes.
    pub fn new(granularity_bits: u8) -> Self {
        Self {
            granularity_bits: u32::from(granularity_bits),
            ranges: BTreeMap::new(),
            max_ranges: MAX_RANGES,
        }
    }

    /// `range` has changed.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let last = (1 << self.granularity_bits) - 1;
        let mut start = range.start & !last;
        let mut end = range.end.saturating_add(last) & !last;
        if let Some((&before, &its_end)) = self.ranges.range(..=start).next_back()
            && its_end >= start
        {
            if its_end >= end {
                return;
            }
            start = before;
        }
        while let Some((&next, &its_end)) = self.ranges.range(start..=end).next() {
            self.ranges.remove(&next);
            end = end.max(its_end);
        }
        self.ranges.insert(start, end);
        while self.ranges.len() > self.max_ranges {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.granularity_bits += 1;
        for (start, end) in std::mem::take(&mut self.ranges) {
            self.insert(start..end);
        }
    }

    /// What has changed of `part`, in order.
    pub fn within(&self, part: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.ranges.range(..part.start).next_back();
        let first = before.map_or(part.start, |(&start, _)| start);
        self.ranges
            .range(first..part.end)
            .map(move |(&start, &end)| start.max(part.start)..end.min(part.end))
            .filter(|range| !range.is_empty())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // One range is what is expected.
mod tests {
    use super::*;

    fn of(dirty: &Dirty) -> Vec<Range<u64>> {
        dirty.within(0..u64::MAX).collect()
    }

    #[test]
    fn ranges_are_whole_granules_and_grow_together() {
        let mut dirty = Dirty::new(9);
        dirty.insert(1000..1001);
        dirty.insert(5000..5000);
        assert_eq!(of(&dirty), [512..1024]);
        dirty.insert(2048..4096);
        dirty.insert(1024..1025);
        assert_eq!(of(&dirty), [512..1536, 2048..4096]);
        dirty.insert(100..3000);
        assert_eq!(of(&dirty), [0..4096]);
        dirty.insert(512..600);
        assert_eq!(of(&dirty), [0..4096]);
        dirty.insert(8191..8193);
        let within: Vec<_> = dirty.within(1000..8192).collect();
        assert_eq!(within, [1000..4096, 7680..8192]);
        assert_eq!(dirty.within(4096..7680).count(), 0);
    }

    #[test]
    fn any_order_gives_the_same_as_marking_one_by_one() {
        let mut state = 1_u64;
        let mut next = |end: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % end
        };
        let mut dirty = Dirty::new(10);
        let mut marked = vec![false; 64];
        for _ in 0..200 {
            let start = next(64 << 10);
            let end = (start + next(3 << 10)).min(64 << 10);
            dirty.insert(start..end);
            if start < end {
                marked[(start >> 10) as usize..=((end - 1) >> 10) as usize].fill(true);
            }
            let mut found = vec![false; 64];
            for range in dirty.within(0..u64::MAX) {
                found[(range.start >> 10) as usize..(range.end >> 10) as usize].fill(true);
            }
            assert_eq!(found, marked);
            if next(20) == 0 {
                dirty = Dirty::new(10);
                marked.fill(false);
            }
        }
    }

    #[test]
    fn too_many_ranges_become_fewer_and_larger() {
        let mut dirty = Dirty {
            max_ranges: 100,
            ..Dirty::new(9)
        };
        for index in 0..1000 {
            dirty.insert(index * 2048..index * 2048 + 1);
            assert!(dirty.ranges.len() <= 100);
        }
        for index in 0..1000 {
            assert_eq!(dirty.within(index * 2048..index * 2048 + 512).count(), 1);
        }
    }
}
