//! Telling zeros from data.

use crate::units::SECTOR;

/// Which zeros inside of data are worth leaving out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// The shortest run between two pieces of data that is left out, in bytes.
    min: u64,
    /// Runs begin and end at multiples of so many bytes of the disk.
    align: u64,
}

impl Sparse {
    /// Runs of at least `min` bytes; `None` where it is 0, so that none are looked for.
    pub fn new(min: u64) -> Option<Self> {
        let align = 1 << min.checked_ilog2()?;
        Some(Self {
            min,
            align: align.max(SECTOR),
        })
    }

    /// The same for a target in which only whole granules of so many bytes, a power of two, can become zeros
    /// without being read and written.
    #[must_use]
    pub fn in_granules(self, granule: u64) -> Self {
        Self {
            min: self.min.max(granule),
            align: self.align.max(granule),
        }
    }

    /// Whether `data`, which is not empty and starts at byte `at` of the disk, begins with zeros to be left
    /// out, and how many bytes of it are the same.
    pub fn first_run(self, at: u64, data: &[u8]) -> (bool, usize) {
        let blocks = Blocks {
            data,
            at,
            size: self.align,
        };
        let zeros = blocks.run(0, true);
        if zeros > 0 {
            return (true, zeros);
        }
        let mut end = blocks.run(0, false);
        loop {
            let zeros = blocks.run(end, true);
            // What ends the data is left out however short it is: who knows how it goes on.
            if zeros as u64 >= self.min || end + zeros == data.len() {
                return (false, end);
            }
            end += zeros;
            end += blocks.run(end, false);
        }
    }
}

/// Data cut where the disk's blocks are.
struct Blocks<'a> {
    data: &'a [u8],
    at: u64,
    size: u64,
}

impl Blocks<'_> {
    /// How many bytes from `start` on belong to blocks that are all zeros, or are not.
    fn run(&self, start: usize, zero: bool) -> usize {
        let mut end = start;
        while end < self.data.len() {
            let to_boundary = self.size - (self.at + end as u64) % self.size;
            let next = (end as u64 + to_boundary).min(self.data.len() as u64) as usize;
            if is_zero(&self.data[end..next]) != zero {
                break;
            }
            end = next;
        }
        end - start
    }
}

/// Whether all bytes are zero; fast on both kinds.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Data mostly shows itself at once. The rest is folded in pieces that fill a few registers, word by word: that
    // compiles to wide operations, natively and in WebAssembly.
    const PIECE: usize = 256;
    let (pieces, rest) = bytes.as_chunks::<PIECE>();
    let is_zero = |piece: &[u8; PIECE]| {
        let (words, _) = piece.as_chunks();
        words
            .iter()
            .fold(0, |all, word| all | u64::from_ne_bytes(*word))
            == 0
    };
    bytes.first().is_none_or(|byte| *byte == 0)
        && pieces.iter().all(is_zero)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs of `data` at `at`, each with its end.
    fn runs(min: u64, at: u64, data: &[u8]) -> Vec<(bool, usize)> {
        let sparse = Sparse::new(min).unwrap();
        let mut runs = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let (zero, length) = sparse.first_run(at + done as u64, &data[done..]);
            done += length;
            runs.push((zero, done));
        }
        runs
    }

    /// So many bytes, of which these are not zeros.
    fn disk(length: usize, set: &[usize]) -> Vec<u8> {
        let mut data = vec![0; length];
        set.iter().for_each(|&at| data[at] = 1);
        data
    }

    #[test]
    fn blocks_are_aligned_on_the_disk() {
        let data = disk(4096, &[1500]);
        // Blocks 0..512 | 512..1536 | 1536..2560 | ... as the data starts at 512 of the disk.
        assert_eq!(
            runs(1024, 512, &data),
            [(true, 512), (false, 1536), (true, 4096)]
        );
    }

    #[test]
    fn short_zeros_between_data_are_data() {
        let data = disk(64 << 10, &[0, 12 << 10, 40 << 10]);
        // -S 12k: blocks of 8k, of which two make a run that is long enough, and one does not.
        let kib = |n: usize| n << 10;
        assert_eq!(
            runs(12 << 10, 0, &data),
            [
                (false, kib(16)),
                (true, kib(40)),
                (false, kib(48)),
                (true, kib(64))
            ]
        );
        assert_eq!(runs(64 << 10, 0, &data), [(false, kib(64))]);
        // At the end of what is looked at, and at its beginning, any block counts.
        let data = disk(kib(24), &[kib(9)]);
        assert_eq!(
            runs(12 << 10, 0, &data),
            [(true, kib(8)), (false, kib(16)), (true, kib(24))]
        );
    }

    #[test]
    fn zeros_that_cannot_become_granules_are_data() {
        let data = disk(32 << 10, &[20 << 10]);
        let sparse = Sparse::new(4096).unwrap().in_granules(16 << 10);
        assert_eq!(sparse.first_run(0, &data), (true, 16 << 10));
        assert_eq!(
            sparse.first_run(16 << 10, &data[16 << 10..]),
            (false, 16 << 10)
        );
    }

    #[test]
    fn no_size_is_no_search() {
        assert_eq!(Sparse::new(0), None);
    }

    #[test]
    fn zeros() {
        assert!(is_zero(&[]));
        for length in [1, 7, 255, 256, 257, 4096, 5000] {
            assert!(is_zero(&vec![0; length]), "{length}");
            for at in 0..length {
                assert!(!is_zero(&disk(length, &[at])), "{at} of {length}");
            }
        }
    }
}
