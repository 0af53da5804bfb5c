//! References per host cluster, within a bound of memory.
//!
//! Counts a window of the clusters: at first all of them. When the bound is reached the window gives up
//! its upper end; what it could not keep is counted by another pass, in a window that starts there.

use std::ops::Range;

use super::page::{Addend, PAGE_BITS, PAGE_LEN, Page, Tally};

/// Tallies of the clusters of a window.
#[derive(Debug)]
pub(crate) struct Counter {
    window: Range<u64>,
    /// The pages of the window from its start on; those past the end of the vector are empty.
    pages: Vec<Page>,
    heap_bytes: usize,
    budget: usize,
}

impl Counter {
    /// A counter of the clusters from `start` (the start of a page) on, which allocates about `budget`
    /// bytes, but at least one page.
    pub fn new(start: u64, budget: usize) -> Self {
        debug_assert!(start.is_multiple_of(PAGE_LEN as u64));
        Self {
            window: start..u64::MAX,
            pages: Vec::new(),
            heap_bytes: 0,
            budget,
        }
    }

    /// The clusters that are counted.
    pub fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    /// Adds to `count` clusters from `first` on, as far as they are in the window. `overflow` learns the
    /// clusters, and how many references, that did not fit.
    pub fn add(
        &mut self,
        first: u64,
        count: u64,
        addend: Addend,
        overflow: &mut dyn FnMut(u64, u64),
    ) {
        let mut at = first.max(self.window.start);
        let end = first.saturating_add(count);
        while at < end.min(self.window.end) {
            let index = ((at - self.window.start) >> PAGE_BITS) as usize;
            if index >= self.pages.len() {
                // Not by one: a full vector would be copied for each page.
                let room = (index + 1).next_power_of_two();
                self.pages.resize_with(room, Page::default);
            }
            let page_start = self.window.start + ((index as u64) << PAGE_BITS);
            let page_end = page_start + PAGE_LEN as u64;
            let end = end.min(page_end);
            let page = &mut self.pages[index];
            if end - at == 1 && page.add_one_again((at - page_start) as usize, addend) {
                at = end;
                continue;
            }
            let before = page.heap_bytes();
            page.add(
                (at - page_start) as usize,
                (end - at) as usize,
                addend,
                &mut |at, lost| {
                    overflow(page_start + at as u64, lost);
                },
            );
            let after = page.heap_bytes();
            if after != before {
                self.heap_bytes = self.heap_bytes - before + after;
                if self.heap_bytes > self.budget {
                    self.give_up_the_end();
                }
            }
            at = end;
        }
    }

    /// Cuts the window so that an eighth of the budget is free again.
    fn give_up_the_end(&mut self) {
        let target = self.budget - self.budget / 8;
        while self.heap_bytes > target && self.pages.len() > 1 {
            self.heap_bytes -= self.pages.pop().map_or(0, |page| page.heap_bytes());
            self.window.end = self.window.start + ((self.pages.len() as u64) << PAGE_BITS);
        }
    }

    /// The tally of `cluster`, which is in the window.
    pub fn get(&self, cluster: u64) -> Tally {
        let at = cluster - self.window.start;
        let page = self.pages.get((at >> PAGE_BITS) as usize);
        page.map_or(Tally::default(), |page| {
            page.get(at as usize & (PAGE_LEN - 1))
        })
    }

    /// The tallies of the clusters from `first` on, all in the window.
    pub fn fill(&self, first: u64, out: &mut [Tally]) {
        let mut at = first - self.window.start;
        let mut rest = out;
        while !rest.is_empty() {
            let in_page = at as usize & (PAGE_LEN - 1);
            let (part, behind) = rest.split_at_mut(rest.len().min(PAGE_LEN - in_page));
            match self.pages.get((at >> PAGE_BITS) as usize) {
                Some(page) => page.fill(in_page, part),
                None => part.fill(Tally::default()),
            }
            at += part.len() as u64;
            rest = behind;
        }
    }

    /// The first cluster from `cluster` (in the window) on that may have references, or the window's end.
    pub fn skip_empty(&self, cluster: u64) -> u64 {
        let empty = |page: &&Page| matches!(page, Page::Uniform(tally) if tally.references() == 0);
        let index = ((cluster - self.window.start) >> PAGE_BITS) as usize;
        let pages = self.pages.get(index..).unwrap_or_default();
        let skipped = pages.iter().take_while(empty).count();
        match skipped {
            0 if !pages.is_empty() => cluster,
            _ if skipped == pages.len() => self.window.end,
            _ => self.window.start + ((index + skipped) as u64) * PAGE_LEN as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::check::page::Claim;

    fn one(claim: Claim) -> Addend {
        Addend::new(1, claim, u64::MAX)
    }

    fn no_overflow(_: u64, _: u64) {
        panic!("no overflow");
    }

    /// Numbers that look random, the same in each run.
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    #[test]
    fn windows_under_a_small_budget_count_the_same() {
        let clusters = 40 * PAGE_LEN as u64;
        let mut random = numbers(7);
        let mut ranges: Vec<(u64, u64, u64)> = Vec::new();
        for _ in 0..3000 {
            let count = [1, 1, 3, 70, 20_000][random(5) as usize];
            ranges.push((random(clusters - count), count, 1 + random(3)));
        }
        let mut expected: HashMap<u64, u64> = HashMap::new();
        for (first, count, weight) in &ranges {
            (*first..first + count).for_each(|at| *expected.entry(at).or_default() += weight);
        }
        for (budget, least_passes) in [(usize::MAX / 2, 1), (100_000, 4), (0, 40)] {
            let (mut start, mut passes) = (0, 0);
            while start < clusters {
                let mut counter = Counter::new(start, budget);
                for (first, count, weight) in &ranges {
                    let addend = Addend::new(*weight, Claim::None, u64::MAX);
                    counter.add(*first, *count, addend, &mut no_overflow);
                }
                let window = counter.window();
                let end = window.end.min(clusters);
                let mut tallies = vec![Tally::default(); (end - start) as usize];
                counter.fill(start, &mut tallies);
                for (at, tally) in (start..end).zip(tallies) {
                    assert_eq!(
                        tally.references(),
                        expected.get(&at).copied().unwrap_or(0),
                        "cluster {at}"
                    );
                    assert_eq!(tally, counter.get(at));
                }
                assert!(window.end > start, "each pass gets on");
                start = window.end;
                passes += 1;
            }
            assert!(
                passes >= least_passes,
                "{passes} passes under {budget} bytes"
            );
        }
    }

    #[test]
    fn sequential_use_costs_next_to_nothing() {
        let mut counter = Counter::new(0, 1 << 20);
        for at in 0..100 {
            counter.add(at * 8193, 8193, one(Claim::Exclusive), &mut no_overflow);
        }
        assert!(counter.heap_bytes < 5000, "{} bytes", counter.heap_bytes);
        assert_eq!(counter.window(), 0..u64::MAX);
    }

    #[test]
    fn clusters_outside_the_window_are_left_alone() {
        let page = PAGE_LEN as u64;
        let mut counter = Counter::new(page, 1 << 20);
        counter.add(0, page, one(Claim::None), &mut no_overflow);
        counter.add(page - 1, 2, one(Claim::None), &mut no_overflow);
        assert_eq!(counter.get(page).references(), 1);
        assert_eq!(counter.get(page + 1).references(), 0);
    }

    #[test]
    fn empty_pages_are_skipped() {
        let page = PAGE_LEN as u64;
        let mut counter = Counter::new(0, 1 << 20);
        counter.add(5 * page + 3, 1, one(Claim::None), &mut no_overflow);
        assert_eq!(counter.skip_empty(7), 5 * page);
        assert_eq!(counter.skip_empty(5 * page + 1), 5 * page + 1);
        assert_eq!(counter.skip_empty(6 * page), u64::MAX);
    }

    #[test]
    fn lost_references_are_told_by_cluster() {
        let mut lost = Vec::new();
        let mut counter = Counter::new(0, 1 << 20);
        let addend = Addend::new(1, Claim::None, 1);
        let around = PAGE_LEN as u64 - 1..PAGE_LEN as u64 + 1;
        counter.add(0, 2 * PAGE_LEN as u64, addend, &mut no_overflow);
        counter.add(around.start, 2, addend, &mut |cluster, count| {
            lost.push((cluster, count))
        });
        assert_eq!(lost, around.map(|cluster| (cluster, 1)).collect::<Vec<_>>());
    }
}
