//! Tallies of a stretch of host clusters, as small as their variety allows.
//!
//! Most stretches of most images hold one or two different tallies (unused; one reference that says
//! COPIED), however high the counts are: so a page keeps the few tallies that occur in it once, and for
//! each cluster a number of 1, 2, 4 or 8 bits that says which one it has.

/// log2 of the clusters of a page.
pub(crate) const PAGE_BITS: u32 = 14;
/// The clusters of a page.
pub(crate) const PAGE_LEN: usize = 1 << PAGE_BITS;

/// The references to one cluster: how many, and what they claim of its refcount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tally(u64);

/// What a reference says about the refcount of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nothing: metadata, compressed data, snapshots.
    None = 0,
    /// COPIED is set: the refcount is one.
    Exclusive = 1,
    /// COPIED is clear where it could be set: the refcount is not one.
    Shared = 2,
}

impl Claim {
    /// What an L1 or L2 entry of the active state claims.
    pub fn of(entry: u64) -> Self {
        if entry & crate::qcow2::COPIED != 0 {
            Self::Exclusive
        } else {
            Self::Shared
        }
    }
}

impl Tally {
    const CLAIMS: u64 = 3;

    /// How many references there are.
    pub fn references(self) -> u64 {
        self.0 >> 2
    }

    /// Whether some reference claims something else than a stored refcount of `stored`.
    pub fn is_contradicted_by(self, stored: u64) -> bool {
        let broken = if stored == 1 {
            Claim::Shared
        } else {
            Claim::Exclusive
        };
        self.0 & broken as u64 != 0
    }
}

/// References to be added to clusters: how many to each, with one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addend {
    /// As a tally has it: added to the count, or-ed to the claims.
    step: u64,
    /// The most references that a tally may count.
    limit: u64,
}

impl Addend {
    /// `weight` references that make `claim`, to tallies of at most `limit` references.
    pub fn new(weight: u64, claim: Claim, limit: u64) -> Self {
        // 2^60 references cannot be reached by counting: the bound only keeps the sums from overflowing.
        const MOST: u64 = 1 << 60;
        Self {
            step: weight.min(MOST) << 2 | claim as u64,
            limit: limit.min(MOST),
        }
    }

    /// The sum, and how many references did not fit.
    fn to(self, tally: Tally) -> (Tally, u64) {
        let count = tally.references() + (self.step >> 2);
        let fits = count.min(self.limit);
        (
            Tally(fits << 2 | (tally.0 | self.step) & Tally::CLAIMS),
            count - fits,
        )
    }
}

/// Tallies of [`PAGE_LEN`] clusters.
#[derive(Debug)]
pub(crate) enum Page {
    /// The same for all.
    Uniform(Tally),
    /// Few different ones.
    Palette(Box<Palette>),
    /// Any.
    Plain(Box<[Tally]>),
}

impl Default for Page {
    fn default() -> Self {
        Self::Uniform(Tally::default())
    }
}

impl Page {
    /// The memory it has allocated, in bytes.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Uniform(_) => 0,
            Self::Palette(palette) => palette.heap_bytes(),
            Self::Plain(tallies) => size_of_val(&**tallies),
        }
    }

    /// The tally of cluster `at`.
    pub fn get(&self, at: usize) -> Tally {
        match self {
            Self::Uniform(tally) => *tally,
            Self::Palette(palette) => palette.tallies[palette.index(at)],
            Self::Plain(tallies) => tallies[at],
        }
    }

    /// The tallies of the clusters from `at` on.
    pub fn fill(&self, at: usize, out: &mut [Tally]) {
        match self {
            Self::Uniform(tally) => out.fill(*tally),
            Self::Palette(palette) => palette.fill(at, out),
            Self::Plain(tallies) => out.copy_from_slice(&tallies[at..at + out.len()]),
        }
    }

    /// Adds to cluster `at`, where the page has the room and has done the sum before.
    pub fn add_one_again(&mut self, at: usize, addend: Addend) -> bool {
        match self {
            Self::Palette(palette) => palette.add_one_again(at, addend),
            _ => false,
        }
    }

    /// Adds to `count` clusters from `at` on. `overflow` learns the clusters, and how many references,
    /// that did not fit.
    pub fn add(
        &mut self,
        at: usize,
        count: usize,
        addend: Addend,
        overflow: &mut dyn FnMut(usize, u64),
    ) {
        if let Self::Uniform(tally) = self {
            if count == PAGE_LEN {
                let (sum, lost) = addend.to(*tally);
                if lost > 0 {
                    (0..PAGE_LEN).for_each(|at| overflow(at, lost));
                }
                *tally = sum;
                return;
            }
            *self = Self::Palette(Palette::new(1, *tally));
        }
        let end = at + count;
        let mut at = at;
        while at < end {
            match self {
                Self::Palette(palette) => {
                    at = palette.add(at, end, addend, overflow);
                    if let Some(tally) = palette.only() {
                        *self = Self::Uniform(tally);
                        return;
                    }
                    if at < end {
                        // No room for one more different tally.
                        *self = palette.widened();
                    }
                }
                Self::Plain(tallies) => {
                    for (tally, at) in tallies[at..end].iter_mut().zip(at..) {
                        let (sum, lost) = addend.to(*tally);
                        *tally = sum;
                        if lost > 0 {
                            overflow(at, lost);
                        }
                    }
                    return;
                }
                Self::Uniform(_) => unreachable!("became a palette above"),
            }
        }
    }
}

/// No index: the sum is not known, or overflowed.
const UNKNOWN: u8 = u8::MAX;
/// The widest index: 8 bits, of which one value is [`UNKNOWN`].
const WIDEST: u32 = 3;

/// Different tallies, and for each cluster the index of its own.
#[derive(Debug)]
pub(crate) struct Palette {
    /// log2 of the bits of an index.
    order: u32,
    /// Indices, packed from the least significant bit on.
    words: Box<[u64]>,
    /// The tallies; those that no cluster has are free.
    tallies: Box<[Tally]>,
    /// How many clusters have each tally.
    clusters: Box<[u32]>,
    /// The addend that `sums` is for.
    addend: Option<Addend>,
    /// Where adding `addend` leads from each index.
    sums: Box<[u8]>,
}

impl Palette {
    /// All clusters with `tally`; indices of `1 << order` bits.
    fn new(order: u32, tally: Tally) -> Box<Self> {
        let capacity = (1usize << (1u32 << order)).min(UNKNOWN.into());
        let mut clusters = vec![0; capacity];
        clusters[0] = PAGE_LEN as u32;
        Box::new(Self {
            order,
            words: vec![0; PAGE_LEN << order >> 6].into(),
            tallies: vec![tally; capacity].into(),
            clusters: clusters.into(),
            addend: None,
            sums: vec![UNKNOWN; capacity].into(),
        })
    }

    fn heap_bytes(&self) -> usize {
        /// What the allocator adds, about.
        const OVERHEAD: usize = 5 * 16;
        size_of::<Self>()
            + size_of_val(&*self.words)
            + self.tallies.len() * (size_of::<Tally>() + size_of::<u32>() + 1)
            + OVERHEAD
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    /// A word with index 1 in every place.
    fn everywhere(&self) -> u64 {
        u64::MAX / self.mask()
    }

    /// The word and the shift of cluster `at`.
    fn position(&self, at: usize) -> (usize, u32) {
        let bit = at << self.order;
        (bit >> 6, bit as u32 & 63)
    }

    fn index(&self, at: usize) -> usize {
        let (word, shift) = self.position(at);
        (self.words[word] >> shift & self.mask()) as usize
    }

    fn fill(&self, at: usize, out: &mut [Tally]) {
        let mask = self.mask();
        for (tally, at) in out.iter_mut().zip(at..) {
            let (word, shift) = self.position(at);
            *tally = self.tallies[(self.words[word] >> shift & mask) as usize];
        }
    }

    /// The tally of all clusters, if they have the same.
    fn only(&self) -> Option<Tally> {
        let index = self.index(0);
        (self.clusters[index] == PAGE_LEN as u32).then(|| self.tallies[index])
    }

    /// Adds to the clusters from `at` to `end`; returns where it stopped for want of a free index.
    fn add(
        &mut self,
        at: usize,
        end: usize,
        addend: Addend,
        overflow: &mut dyn FnMut(usize, u64),
    ) -> usize {
        if self.addend != Some(addend) {
            self.addend = Some(addend);
            self.sums.fill(UNKNOWN);
        }
        let mask = self.mask();
        let per_word = 64 >> self.order;
        let mut at = at;
        while at < end {
            let (word, shift) = self.position(at);
            let bits = self.words[word];
            let index = (bits >> shift & mask) as usize;
            let next = match self.sums[index] {
                UNKNOWN => match self.sum_of(index, addend) {
                    Sum::Known(next) => next,
                    Sum::Overflowed(next, lost) => {
                        overflow(at, lost);
                        next
                    }
                    Sum::NoRoom => return at,
                },
                next => next,
            };
            let whole =
                shift == 0 && end - at >= per_word && bits == index as u64 * self.everywhere();
            if whole && self.sums[index] == next {
                self.words[word] = u64::from(next) * self.everywhere();
                self.moved(index, next, per_word as u32);
                at += per_word;
            } else {
                self.words[word] = bits & !(mask << shift) | u64::from(next) << shift;
                self.moved(index, next, 1);
                at += 1;
            }
        }
        at
    }

    /// The same for cluster `at` alone, unless there is anything to it; returns whether it was done.
    fn add_one_again(&mut self, at: usize, addend: Addend) -> bool {
        let (word, shift) = self.position(at);
        let mask = self.mask();
        let index = (self.words[word] >> shift & mask) as usize;
        let next = self.sums[index];
        if self.addend != Some(addend)
            || next == UNKNOWN
            || self.clusters[usize::from(next)] + 1 == PAGE_LEN as u32
        {
            return false;
        }
        self.words[word] = self.words[word] & !(mask << shift) | u64::from(next) << shift;
        self.moved(index, next, 1);
        true
    }

    fn moved(&mut self, from: usize, to: u8, clusters: u32) {
        self.clusters[from] -= clusters;
        self.clusters[usize::from(to)] += clusters;
    }

    /// The index of the sum of `addend` and tally `index`, which is kept for the next time unless it overflowed.
    #[cold]
    fn sum_of(&mut self, index: usize, addend: Addend) -> Sum {
        let (sum, lost) = addend.to(self.tallies[index]);
        let in_use = |at: &usize| self.clusters[*at] > 0;
        let places = 0..self.tallies.len();
        let known = places
            .clone()
            .filter(in_use)
            .find(|at| self.tallies[*at] == sum);
        let next = match known.or_else(|| places.clone().find(|at| !in_use(at))) {
            Some(next) => next,
            // The last cluster to leave its index hands it on.
            None if self.clusters[index] == 1 => index,
            None => return Sum::NoRoom,
        };
        if known.is_none() {
            self.tallies[next] = sum;
            // Sums that led to what was in this place before, or from it, no longer do.
            self.sums[next] = UNKNOWN;
            self.sums
                .iter_mut()
                .filter(|to| usize::from(**to) == next)
                .for_each(|to| *to = UNKNOWN);
        }
        if lost > 0 {
            return Sum::Overflowed(next as u8, lost);
        }
        if next != index {
            self.sums[index] = next as u8;
        }
        Sum::Known(next as u8)
    }

    /// The same tallies with wider indices.
    fn widened(&self) -> Page {
        if self.order == WIDEST {
            return Page::Plain(
                (0..PAGE_LEN)
                    .map(|at| self.tallies[self.index(at)])
                    .collect(),
            );
        }
        let mut wider = Self::new(self.order + 1, Tally::default());
        for (index, tally) in self.tallies.iter().enumerate() {
            wider.tallies[index] = *tally;
            wider.clusters[index] = self.clusters[index];
        }
        for at in 0..PAGE_LEN {
            let (word, shift) = wider.position(at);
            wider.words[word] |= (self.index(at) as u64) << shift;
        }
        Page::Palette(wider)
    }
}

enum Sum {
    Known(u8),
    Overflowed(u8, u64),
    NoRoom,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(references: u64) -> Tally {
        Tally(references << 2)
    }

    fn add(page: &mut Page, at: usize, count: usize, weight: u64) {
        let addend = Addend::new(weight, Claim::None, u64::MAX);
        page.add(at, count, addend, &mut |_, _| panic!("no overflow"));
    }

    #[test]
    fn a_page_filled_in_any_order_becomes_uniform_again() {
        let mut page = Page::default();
        for at in (0..PAGE_LEN).rev() {
            add(&mut page, at, 1, 1);
            assert_eq!(matches!(page, Page::Uniform(_)), at == 0);
        }
        add(&mut page, 0, PAGE_LEN, 1);
        assert!(matches!(page, Page::Uniform(t) if t == tally(2)));
        add(&mut page, 100, 1000, 3);
        assert_eq!(
            [99, 100, 1099, 1100].map(|at| page.get(at).references()),
            [2, 5, 5, 2]
        );
        add(&mut page, 0, 100, 3);
        add(&mut page, 1100, PAGE_LEN - 1100, 3);
        assert!(matches!(page, Page::Uniform(t) if t == tally(5)));
    }

    #[test]
    fn variety_widens_and_only_variety() {
        let mut page = Page::default();
        let heap = |page: &Page| page.heap_bytes();
        add(&mut page, 7, 1, 1 << 40);
        let smallest = heap(&page);
        for _ in 0..1000 {
            add(&mut page, 7, 1, 1);
        }
        assert_eq!(
            heap(&page),
            smallest,
            "a cluster that leaves its tally alone hands the place on"
        );
        for at in 0..300 {
            add(&mut page, at * 3, 1, at as u64 + 1);
        }
        assert!(matches!(page, Page::Plain(_)));
        assert_eq!(page.get(7).references(), (1 << 40) + 1000);
        assert_eq!(page.get(299 * 3).references(), 300);
        assert_eq!(page.get(299 * 3 + 1).references(), 0);
    }

    #[test]
    fn claims_are_kept_beside_the_counts() {
        let mut page = Page::default();
        let mut claim =
            |at, claim| page.add(at, 1, Addend::new(1, claim, u64::MAX), &mut |_, _| panic!());
        claim(0, Claim::Exclusive);
        claim(1, Claim::Shared);
        claim(2, Claim::None);
        claim(3, Claim::Exclusive);
        claim(3, Claim::None);
        let contradicted = |at, stored| page.get(at).is_contradicted_by(stored);
        assert!(!contradicted(0, 1) && contradicted(0, 2) && contradicted(0, 0));
        assert!(contradicted(1, 1) && !contradicted(1, 2));
        assert!(!contradicted(2, 0) && !contradicted(2, 1) && !contradicted(2, 2));
        assert!(!contradicted(3, 1) && contradicted(3, 2));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let mut lost = Vec::new();
        let mut page = Page::default();
        let once = Addend::new(1, Claim::None, 1);
        page.add(0, PAGE_LEN, once, &mut |_, _| panic!());
        page.add(10, 70, once, &mut |at, count| lost.push((at, count)));
        page.add(10, 1, Addend::new(5, Claim::None, 3), &mut |at, count| {
            lost.push((at, count))
        });
        let mut expected: Vec<_> = (10..80).map(|at| (at, 1)).collect();
        expected.push((10, 3));
        assert_eq!(lost, expected);
        assert_eq!(
            [9, 10, 79, 80].map(|at| page.get(at).references()),
            [1, 3, 1, 1]
        );
    }
}
