//! Single images out of the many that a crash may leave.

use super::contents::Content;
use super::machine::SimFile;
use crate::rng::Rng;

/// One image: for each file the chosen version of each slot, and the chosen length.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    versions: [Vec<usize>; 3],
    lengths: [usize; 3],
}

/// The lengths that a file may have, each once.
fn lengths(file: &SimFile) -> Vec<u64> {
    let mut lengths: Vec<u64> = file.lengths().collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

impl Choice {
    /// Nothing that was not flushed survives.
    #[must_use]
    pub fn durable(files: &[SimFile; 3]) -> Self {
        let mut choice = Self {
            versions: files.each_ref().map(|file| vec![0; file.slots().len()]),
            lengths: [0; 3],
        };
        for (chosen, file) in choice.lengths.iter_mut().zip(files) {
            let durable = file.lengths().next().unwrap_or(0);
            let lengths = lengths(file);
            *chosen = lengths.iter().position(|len| *len == durable).unwrap_or(0);
        }
        choice
    }

    /// Any image.
    #[must_use]
    pub fn random(files: &[SimFile; 3], rng: &mut Rng) -> Self {
        let versions = files.each_ref().map(|file| {
            let slots = file.slots().iter();
            slots
                .map(|slot| rng.below(slot.options().len() as u64) as usize)
                .collect()
        });
        let lengths = files
            .each_ref()
            .map(|file| rng.below(lengths(file).len() as u64) as usize);
        Self { versions, lengths }
    }

    /// Fixes versions of the image file: by slot, 0 for none, or the number of the version plus 1.
    pub fn fix(&mut self, picked: &[u8]) {
        for (version, picked) in self.versions[0].iter_mut().zip(picked) {
            if let Some(fixed) = picked.checked_sub(1) {
                *version = fixed.into();
            }
        }
    }

    /// Goes on to the next image; false after the last. Begins after [`Self::first`].
    pub fn advance(&mut self, files: &[SimFile; 3]) -> bool {
        for (file, versions) in files.iter().zip(&mut self.versions) {
            for (version, slot) in versions.iter_mut().zip(file.slots()) {
                *version += 1;
                if *version < slot.options().len() {
                    return true;
                }
                *version = 0;
            }
        }
        for (file, chosen) in files.iter().zip(&mut self.lengths) {
            *chosen += 1;
            if *chosen < lengths(file).len() {
                return true;
            }
            *chosen = 0;
        }
        false
    }

    /// The first image, from which [`Self::advance`] reaches all.
    #[must_use]
    pub fn first(files: &[SimFile; 3]) -> Self {
        Self {
            versions: files.each_ref().map(|file| vec![0; file.slots().len()]),
            lengths: [0; 3],
        }
    }

    /// The files with this choice made, all durable.
    #[must_use]
    pub fn make(&self, files: &[SimFile; 3]) -> [SimFile; 3] {
        let mut index = 0;
        files.each_ref().map(|file| {
            let (versions, length) = (&self.versions[index], self.lengths[index]);
            index += 1;
            let len = lengths(file)[length];
            let mut sectors: Vec<Content> = (0..file.sectors()).map(|s| file.durable(s)).collect();
            for (slot, version) in file.slots().iter().zip(versions) {
                sectors[slot.sector()] = slot.options()[*version];
            }
            // What lies past the end is gone; so is what of the last sector does. Files here are as good as
            // always whole sectors, and what a partial one holds past the end is zeros already.
            sectors.truncate(len.div_ceil(512) as usize);
            SimFile::from_sectors(sectors, len)
        })
    }
}

/// The files as a reader sees them now, all durable: what a killed process leaves to the next one.
#[must_use]
pub fn as_seen(files: &[SimFile; 3]) -> [SimFile; 3] {
    files.each_ref().map(|file| {
        let sectors = file.len().div_ceil(512) as usize;
        let seen = (0..sectors).map(|sector| file.current(sector)).collect();
        SimFile::from_sectors(seen, file.len())
    })
}
