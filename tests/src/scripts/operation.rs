//! What a script does, step by step.

use std::fmt;
use std::ops::Range;

use crate::scripts::content::Pattern;
use crate::scripts::setup::Preallocation;
use crate::scripts::stock::NOISE;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes the pattern into the range.
    Write(Range<u64>, Pattern),
    /// Several writes of a byte each into ranges of their own, all under way at the same time.
    Burst(Vec<(Range<u64>, u8)>),
    /// Writes it compressed: whole clusters, or up to the end of the disk.
    Compressed(Range<u64>, Pattern),
    /// Writes zeros; with true, what they replace may be given up.
    Zeroes(Range<u64>, bool),
    /// Gives up the whole clusters of the range.
    Discard(Range<u64>),
    /// The guest's flush.
    Flush,
    /// Takes a snapshot of this name.
    Create(String),
    /// Goes back to the snapshot of this id or name.
    Apply(String),
    /// Deletes the snapshot of this id or name.
    Delete(String),
    /// Changes the disk's size.
    Resize(u64, Preallocation),
}

impl Op {
    /// The stretch of the disk that it changes, where that is one.
    #[must_use]
    pub fn range(&self) -> Option<Range<u64>> {
        match self {
            Self::Write(range, _)
            | Self::Compressed(range, _)
            | Self::Zeroes(range, _)
            | Self::Discard(range) => Some(range.clone()),
            Self::Burst(writes) => {
                let start = writes.iter().map(|(range, _)| range.start).min()?;
                let end = writes.iter().map(|(range, _)| range.end).max()?;
                Some(start..end)
            }
            _ => None,
        }
    }

    /// The commands of `io` that do it; none where `snapshot` or `resize` does it.
    #[must_use]
    pub fn io(&self) -> Vec<String> {
        let place = |range: &Range<u64>| format!("{} {}", range.start, range.end - range.start);
        let write = |command: &str, range: &Range<u64>, pattern: Pattern| match pattern {
            Pattern::Fill(byte) => format!("{command} -q -P {byte} {}", place(range)),
            Pattern::Noise => format!("{command} -q -s {NOISE} {}", place(range)),
        };
        match self {
            Self::Write(range, pattern) => vec![write("write", range, *pattern)],
            Self::Burst(writes) => {
                let writes = writes
                    .iter()
                    .map(|(range, byte)| write("aio_write", range, Pattern::Fill(*byte)));
                writes.chain(["aio_flush".to_owned()]).collect()
            }
            Self::Compressed(range, pattern) => vec![write("write -c", range, *pattern)],
            Self::Zeroes(range, false) => vec![format!("write -q -z {}", place(range))],
            Self::Zeroes(range, true) => vec![format!("write -q -z -u {}", place(range))],
            Self::Discard(range) => vec![format!("discard -q {}", place(range))],
            Self::Flush => vec!["flush".to_owned()],
            Self::Resize(size, Preallocation::Off) => vec![format!("truncate {size}")],
            Self::Resize(size, preallocation) => {
                vec![format!("truncate -m {} {size}", preallocation.name())]
            }
            Self::Create(_) | Self::Apply(_) | Self::Delete(_) => Vec::new(),
        }
    }

    /// The arguments of the sub-command that does it to `image`, where `io` cannot.
    #[must_use]
    pub fn img(&self, image: &str) -> Vec<String> {
        let (letter, snapshot) = match self {
            Self::Create(name) => ("-c", name),
            Self::Apply(name) => ("-a", name),
            Self::Delete(name) => ("-d", name),
            _ => return Vec::new(),
        };
        ["snapshot", "-q", letter, snapshot, image]
            .map(str::to_owned)
            .into()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.io() {
            io if io.is_empty() => self.img("").join(" "),
            io => io.join("; "),
        };
        f.write_str(words.replace(" -q", "").trim_end())
    }
}
