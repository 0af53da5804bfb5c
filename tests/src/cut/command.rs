//! What a guest does, as commands for `io` on its standard input.

use std::ops::Range;

use crate::rng::Rng;

/// The unit that no crash tears, in bytes: what content is tracked by.
pub const SECTOR: u64 = 512;

/// One command. Ranges are in bytes, and of whole sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fills the range with the byte.
    Write(Range<u64>, u8),
    /// The same by compressed clusters: the range is of whole clusters.
    Compressed(Range<u64>, u8),
    /// Makes the range read as zeros; `true` gives clusters back.
    Zeroes(Range<u64>, bool),
    /// Gives the whole clusters inside the range back.
    Discard(Range<u64>),
    /// Makes all of it durable.
    Flush,
}

impl Command {
    /// Any command within a disk of `size` bytes.
    pub fn random(rng: &mut Rng, size: u64, cluster: u64) -> Self {
        let sectors = size / SECTOR;
        let first = rng.below(sectors);
        let most = (sectors - first).min(4 * cluster / SECTOR);
        let some = match rng.below(3) {
            0 => 1,
            _ => 1 + rng.below(most),
        };
        let range = first * SECTOR..(first + some) * SECTOR;
        // Never zero: that would be the same as zeroes.
        let byte = 1 + rng.below(255) as u8;
        match rng.below(16) {
            0..=5 => Self::Write(range, byte),
            6..=8 => {
                let start = rng.below(size / cluster) * cluster;
                Self::Write(start..start + cluster, byte)
            }
            9 | 10 => {
                let start = rng.below(size / cluster) * cluster;
                Self::Compressed(start..start + cluster, byte)
            }
            11 | 12 => Self::Zeroes(range, rng.one_in(2)),
            13 | 14 => Self::Discard(range),
            _ => Self::Flush,
        }
    }

    /// What `io` is told.
    #[must_use]
    pub fn line(&self) -> String {
        let at = |range: &Range<u64>| format!("{} {}", range.start, range.end - range.start);
        match self {
            Self::Write(range, byte) => format!("write -P {byte} {}", at(range)),
            Self::Compressed(range, byte) => format!("write -c -P {byte} {}", at(range)),
            Self::Zeroes(range, false) => format!("write -z {}", at(range)),
            Self::Zeroes(range, true) => format!("write -z -u {}", at(range)),
            Self::Discard(range) => format!("discard {}", at(range)),
            Self::Flush => "flush".to_owned(),
        }
    }

    /// The sectors that it gives a new value, and that value.
    #[must_use]
    pub fn effect(&self, cluster: u64) -> Option<(Range<usize>, u8)> {
        let (range, byte) = match self {
            Self::Write(range, byte) | Self::Compressed(range, byte) => (range.clone(), *byte),
            Self::Zeroes(range, _) => (range.clone(), 0),
            Self::Discard(range) => {
                let start = range.start.next_multiple_of(cluster);
                (start..(range.end / cluster * cluster).max(start), 0)
            }
            Self::Flush => return None,
        };
        let sectors = (range.start / SECTOR) as usize..(range.end / SECTOR) as usize;
        Some((sectors, byte))
    }
}

/// What standard input is given: one command on each line.
#[must_use]
pub fn script(commands: &[Command]) -> String {
    commands
        .iter()
        .map(|command| command.line() + "\n")
        .collect()
}
