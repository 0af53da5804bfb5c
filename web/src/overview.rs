//! How much of each part of a disk is of which kind: what a picture of its map needs, however large it is.

use oxcow::{Error, Extent, ExtentKind, GuestOffset, Image, Result, Storage};

use crate::ahead::Ahead;

/// The kinds that are told apart. The package's `OVERVIEW_KINDS` lists them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not stored anywhere in the chain; reads as zeros.
    Unallocated,
    /// Stored as the mark that it reads as zeros.
    Zero,
    /// Stored in the image itself.
    Data,
    /// Stored compressed in the image itself.
    Compressed,
    /// Stored in a backing file.
    Backing,
    /// The image's tables say something impossible about it.
    Damaged,
}

/// How many kinds there are.
pub const KINDS: usize = 6;

impl Kind {
    /// The kind of an extent.
    #[must_use]
    pub fn of(extent: &Extent) -> Self {
        match extent.kind {
            ExtentKind::Unallocated => Self::Unallocated,
            ExtentKind::Zero => Self::Zero,
            ExtentKind::Data | ExtentKind::Compressed if extent.depth > 0 => Self::Backing,
            ExtentKind::Data => Self::Data,
            ExtentKind::Compressed => Self::Compressed,
        }
    }
}

/// Equal parts of a range of the disk, and how many bytes of each are of which kind.
#[derive(Debug)]
pub struct Overview {
    start: u64,
    length: u64,
    cells: Vec<[u64; KINDS]>,
}

impl Overview {
    /// Divides the `length` bytes from `start` on into `cells` parts (at least 1).
    #[must_use]
    pub fn new(start: u64, length: u64, cells: u32) -> Self {
        Self {
            start,
            length,
            cells: vec![[0; KINDS]; cells.max(1) as usize],
        }
    }

    /// Where cell `index` starts, in bytes from the start of the range.
    fn boundary(&self, index: usize) -> u64 {
        // At most `length`, so it fits again.
        (u128::from(self.length) * index as u128 / self.cells.len() as u128) as u64
    }

    /// Counts `length` bytes from `start` on, all of them inside the range.
    pub fn add(&mut self, start: u64, length: u64, kind: Kind) {
        let mut at = start.saturating_sub(self.start);
        let end = at.saturating_add(length).min(self.length);
        if at >= end {
            return;
        }
        let guess = u128::from(at) * self.cells.len() as u128 / u128::from(self.length);
        let mut cell = guess as usize;
        while at < end {
            // Rounding may have put the guess a cell early.
            while self.boundary(cell + 1) <= at {
                cell += 1;
            }
            let until = self.boundary(cell + 1).min(end);
            self.cells[cell][kind as usize] += until - at;
            at = until;
        }
    }

    /// How many bytes of the range are of each kind.
    #[must_use]
    pub fn totals(&self) -> [u64; KINDS] {
        let mut totals = [0; KINDS];
        for cell in &self.cells {
            for (total, bytes) in totals.iter_mut().zip(cell) {
                *total += bytes;
            }
        }
        totals
    }

    /// For each cell and each kind the share of it, 0 to 255; never 0 where there is anything of the kind.
    #[must_use]
    pub fn shares(&self) -> Vec<u8> {
        let mut shares = Vec::with_capacity(self.cells.len() * KINDS);
        for (index, cell) in self.cells.iter().enumerate() {
            let whole = u128::from((self.boundary(index + 1) - self.boundary(index)).max(1));
            for bytes in cell {
                let share = (u128::from(*bytes) * 255 / whole).min(255) as u8;
                shares.push(if *bytes > 0 { share.max(1) } else { 0 });
            }
        }
        shares
    }
}

/// Walks the map of `image`, fetching its tables by `at_once`. What they get wrong is counted as damaged, a
/// cluster at a time.
///
/// # Errors
///
/// Whatever keeps the walk from going on: a storage that fails, a range outside the disk.
pub async fn overview<S: Storage>(
    image: &Image<S>,
    start: u64,
    length: u64,
    cells: u32,
    at_once: usize,
    mut progress: impl FnMut(u64, u64),
) -> Result<Overview> {
    let mut overview = Overview::new(start, length, cells);
    let mut ahead = Ahead::new(image, at_once);
    let step = image
        .top()
        .as_qcow2()
        .map_or(1 << 16, |top| top.header().cluster_size.bytes());
    let end = start + length;
    let mut at = start;
    let mut told = start;
    while at < end {
        ahead.reach(image, at, end).await;
        let (run, kind) = match image.extent_at(GuestOffset(at), end - at).await {
            Ok(extent) => (extent.length.max(1), Kind::of(&extent)),
            Err(Error::Corrupt { .. }) => ((step - at % step).min(end - at), Kind::Damaged),
            Err(error) => return Err(error),
        };
        overview.add(at, run, kind);
        at += run;
        if (at - told) > length / 256 {
            progress(at - start, length);
            told = at;
        }
    }
    Ok(overview)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(shares: &[u8], cell: usize) -> &[u8] {
        &shares[cell * KINDS..(cell + 1) * KINDS]
    }

    #[test]
    fn bytes_are_counted_in_the_cells_they_lie_in() {
        let mut overview = Overview::new(1000, 400, 4);
        overview.add(1000, 150, Kind::Data);
        overview.add(1150, 250, Kind::Unallocated);
        let shares = overview.shares();
        assert_eq!(row(&shares, 0), [0, 0, 255, 0, 0, 0]);
        assert_eq!(row(&shares, 1), [127, 0, 127, 0, 0, 0]);
        assert_eq!(row(&shares, 3), [255, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_single_byte_of_a_large_cell_is_not_lost() {
        let mut overview = Overview::new(0, u64::MAX, 3);
        overview.add(u64::MAX / 2, 1, Kind::Compressed);
        let shares = overview.shares();
        assert_eq!(shares.iter().filter(|share| **share == 1).count(), 1);
        assert_eq!(row(&shares, 1)[Kind::Compressed as usize], 1);
    }

    #[test]
    fn every_byte_is_counted_once_in_uneven_cells() {
        for (length, cells) in [(10, 3), (7, 7), (5, 9), (1_000_003, 97)] {
            let mut overview = Overview::new(0, length, cells);
            for at in (0..length).step_by(3) {
                overview.add(at, 3.min(length - at), Kind::Zero);
            }
            let sum: u64 = overview
                .cells
                .iter()
                .map(|cell| cell[Kind::Zero as usize])
                .sum();
            assert_eq!(sum, length);
            for (index, cell) in overview.cells.iter().enumerate() {
                assert_eq!(
                    cell[Kind::Zero as usize],
                    overview.boundary(index + 1) - overview.boundary(index)
                );
            }
        }
    }
}
