//! What has been copied, and what nobody needs any more.

use std::cell::RefCell;
use std::ops::Range;

use crate::fleece::FleeceProgress;

/// Where the bytes of a view are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Unchanged on the disk itself.
    Disk,
    /// In the target.
    Copy,
    /// Nowhere: released.
    Gone,
}

/// The disk in pieces of one size, each of which is copied as a whole.
pub(super) struct Granules {
    size: u64,
    granule: u64,
    places: RefCell<Places>,
}

#[derive(Default)]
struct Places {
    copied: Bits,
    released: Bits,
}

/// A set of granules: a bit each, in memory only as far as one was ever set.
#[derive(Default)]
struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    fn get(&self, index: u64) -> bool {
        let word = self.words.get((index / 64) as usize);
        word.is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    fn set(&mut self, index: u64) {
        let word = (index / 64) as usize;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (index % 64);
        self.count += u64::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }
}

impl Granules {
    pub fn new(size: u64, granule: u64) -> Self {
        Self {
            size,
            granule,
            places: RefCell::default(),
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Those that `range` touches.
    pub fn touching(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.min(self.size);
        range.start.min(end) / self.granule..end.div_ceil(self.granule)
    }

    /// Those that lie in `range`; the end of the disk ends the last one.
    pub fn inside(&self, range: &Range<u64>) -> Range<u64> {
        let end = match range.end >= self.size {
            true => self.size.div_ceil(self.granule),
            false => range.end / self.granule,
        };
        range.start.div_ceil(self.granule).min(end)..end
    }

    /// Their bytes on the disk.
    pub fn bytes(&self, granules: &Range<u64>) -> Range<u64> {
        let end = (granules.end * self.granule).min(self.size);
        (granules.start * self.granule).min(end)..end
    }

    fn place(&self, granule: u64) -> Place {
        let places = self.places.borrow();
        if places.released.get(granule) {
            Place::Gone
        } else if places.copied.get(granule) {
            Place::Copy
        } else {
            Place::Disk
        }
    }

    /// Where the bytes from `at` on are, and how many of at most `max`.
    pub fn run_at(&self, at: u64, max: u64) -> (Place, u64) {
        let first = at / self.granule;
        let place = self.place(first);
        let mut next = first + 1;
        while next * self.granule < at + max && self.place(next) == place {
            next += 1;
        }
        (place, (next * self.granule - at).min(max))
    }

    pub fn is_copied(&self, at: u64) -> bool {
        self.place(at / self.granule) == Place::Copy
    }

    pub fn copied(&self, granules: Range<u64>) {
        let mut places = self.places.borrow_mut();
        granules.for_each(|granule| places.copied.set(granule));
    }

    pub fn release(&self, granules: Range<u64>) {
        let mut places = self.places.borrow_mut();
        granules.for_each(|granule| places.released.set(granule));
    }

    pub fn progress(&self) -> FleeceProgress {
        let places = self.places.borrow();
        let bytes = |bits: &Bits| {
            let all = bits.count * self.granule;
            // The last one ends where the disk does.
            let last = self.size / self.granule;
            match !self.size.is_multiple_of(self.granule) && bits.get(last) {
                true => all - self.granule + self.size % self.granule,
                false => all,
            }
        };
        FleeceProgress {
            size: self.size,
            copied: bytes(&places.copied),
            released: bytes(&places.released),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_places() {
        let granules = Granules::new(10_000, 4096);
        assert_eq!(granules.touching(&(4000..4097)), 0..2);
        assert_eq!(granules.touching(&(9000..20_000)), 2..3);
        assert_eq!(granules.inside(&(1..10_000)), 1..3);
        assert_eq!(granules.inside(&(1..9000)), 1..2);
        assert_eq!(granules.inside(&(5000..6000)), 1..1);
        assert_eq!(granules.bytes(&(1..3)), 4096..10_000);

        granules.copied(1..3);
        assert_eq!(granules.run_at(100, 9900), (Place::Disk, 3996));
        assert_eq!(granules.run_at(4100, 5000), (Place::Copy, 5000));
        granules.release(2..3);
        assert_eq!(granules.run_at(4096, 5904), (Place::Copy, 4096));
        assert_eq!(granules.run_at(8192, 1), (Place::Gone, 1));
        let progress = granules.progress();
        assert_eq!(progress.copied, 4096 + 1808);
        assert_eq!(progress.released, 1808);
    }
}
