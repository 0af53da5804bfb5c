//! What a file may look like after the power was cut: states made from a trace by the storage contract.
//!
//! Durable is what a flush covered that had completed. Of every sector written since, any version may be
//! there, whatever became of the others; the length is any that the file had since then.

use std::collections::BTreeMap;

use crate::rng::Rng;
use crate::strace::{Call, What};

/// What is written as a whole or not at all, in bytes.
const SECTOR: usize = 512;

/// The file at one moment: what is durable, and what is under way.
pub struct Moment {
    /// How many calls had been begun.
    pub calls: usize,
    /// What the program had said by then.
    pub said: String,
    /// Bytes that no cut takes away.
    durable: Vec<u8>,
    /// By sector: what may be there instead, and the write that put it there.
    versions: BTreeMap<usize, Vec<(usize, Vec<u8>)>>,
    /// The lengths that the file may have.
    lengths: Vec<usize>,
    /// How many writes are under way.
    writes: usize,
}

/// How the states of a moment are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// Nothing came through that need not have.
    Nothing,
    /// All of it did.
    Everything,
    /// Each sector by itself.
    Sectors,
    /// Each write as a whole.
    Writes,
    /// One write alone did.
    OneWrite,
    /// One write alone did not.
    AllButOne,
}

impl Moment {
    /// The moment after the first `calls` calls of the trace were begun, for the file of this name that was
    /// `start` before.
    #[must_use]
    pub fn after(start: &[u8], name: &str, trace: &[Call], calls: usize) -> Self {
        let begun = &trace[..calls];
        let said = begun.iter().filter_map(|call| match &call.what {
            What::Said(text) => Some(text.as_str()),
            _ => None,
        });
        let said = said.collect();
        let now = begun.last().map_or(0, |call| call.begun);
        let of_file = || begun.iter().filter(|call| call.file == name);
        // A call that is not over yet may have done its work or not; a flush must be over to count.
        let synced = of_file()
            .filter(|call| call.what == What::Sync && call.ended <= now)
            .map(|call| call.begun)
            .max();
        let is_durable = |call: &Call| synced.is_some_and(|synced| call.ended < synced);
        let mut live = start.to_vec();
        let mut durable = None;
        let mut versions = BTreeMap::<usize, Vec<(usize, Vec<u8>)>>::new();
        let mut lengths = Vec::new();
        let mut writes = 0;
        for (index, call) in of_file().enumerate() {
            if !is_durable(call) && durable.is_none() && call.what != What::Sync {
                durable = Some(live.clone());
                lengths.push(live.len());
            }
            let range = apply(&mut live, &call.what);
            if durable.is_some() {
                lengths.push(live.len());
                writes += 1;
                for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
                    let start = (sector * SECTOR).min(live.len());
                    let end = (start + SECTOR).min(live.len());
                    let mut bytes = live[start..end].to_vec();
                    bytes.resize(SECTOR, 0);
                    versions.entry(sector).or_default().push((index, bytes));
                }
            }
        }
        let durable = durable.unwrap_or(live);
        if lengths.is_empty() {
            lengths.push(durable.len());
        }
        Self {
            calls,
            said,
            durable,
            versions,
            lengths,
            writes,
        }
    }

    /// Whether more than one state is possible.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.writes > 0
    }

    /// One of the states.
    #[must_use]
    pub fn state(&self, rng: &mut Rng) -> Vec<u8> {
        let choice = *rng.pick(&[
            Choice::Nothing,
            Choice::Everything,
            Choice::Sectors,
            Choice::Sectors,
            Choice::Sectors,
            Choice::Writes,
            Choice::Writes,
            Choice::OneWrite,
            Choice::AllButOne,
        ]);
        let mut by_write = BTreeMap::<usize, bool>::new();
        let all: Vec<usize> = self
            .versions
            .values()
            .flatten()
            .map(|(index, _)| *index)
            .collect();
        let one = if all.is_empty() { 0 } else { *rng.pick(&all) };
        let mut file = self.durable.clone();
        let most = *self.lengths.iter().max().expect("there is a length");
        file.resize(most, 0);
        for (sector, versions) in &self.versions {
            // The newest version that came through; none where no write to the sector did.
            let came_through = match choice {
                Choice::Nothing => None,
                Choice::Everything => versions.last(),
                Choice::Sectors => {
                    let which = rng.below(versions.len() as u64 + 1) as usize;
                    which.checked_sub(1).map(|which| &versions[which])
                }
                Choice::Writes => versions
                    .iter()
                    .rev()
                    .find(|(index, _)| *by_write.entry(*index).or_insert_with(|| rng.one_in(2))),
                Choice::OneWrite => versions.iter().rev().find(|(index, _)| *index == one),
                Choice::AllButOne => versions.iter().rev().find(|(index, _)| *index != one),
            };
            if let Some((_, bytes)) = came_through {
                let start = sector * SECTOR;
                let end = (start + bytes.len()).min(file.len());
                if start < end {
                    file[start..end].copy_from_slice(&bytes[..end - start]);
                }
            }
        }
        let length = match choice {
            Choice::Everything => *self.lengths.last().expect("there is a length"),
            Choice::Nothing => self.lengths[0],
            _ => *rng.pick(&self.lengths),
        };
        file.truncate(length);
        file
    }
}

/// Does what the call does, and returns the bytes that it changed.
fn apply(file: &mut Vec<u8>, what: &What) -> std::ops::Range<usize> {
    match what {
        What::Write(at, data) => {
            let (start, end) = (*at as usize, *at as usize + data.len());
            if file.len() < end {
                file.resize(end, 0);
            }
            file[start..end].copy_from_slice(data);
            start..end
        }
        What::Punch(at, length) => {
            let start = (*at as usize).min(file.len());
            let end = ((*at + *length) as usize).min(file.len());
            file[start..end].fill(0);
            start..end
        }
        What::Length(length) => {
            let (old, new) = (file.len(), *length as usize);
            file.resize(new, 0);
            // Should the file grow again, zeros are there instead of what was cut off.
            new.min(old)..old
        }
        What::AtLeast(length) => {
            let new = (*length as usize).max(file.len());
            file.resize(new, 0);
            0..0
        }
        What::Sync | What::Said(_) => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(at: usize, what: What) -> Call {
        Call {
            begun: at,
            ended: at,
            file: "f".into(),
            what,
        }
    }

    fn states(start: &[u8], trace: &[Call], calls: usize) -> std::collections::BTreeSet<Vec<u8>> {
        let moment = Moment::after(start, "f", trace, calls);
        let mut rng = Rng::new(1);
        (0..2000).map(|_| moment.state(&mut rng)).collect()
    }

    #[test]
    fn a_flush_makes_durable_what_was_over_before_it_began() {
        let write = |at, byte| What::Write(at, vec![byte; 512]);
        let trace = [
            call(0, write(0, 1)),
            call(1, What::Sync),
            call(2, write(0, 2)),
            call(3, write(512, 3)),
        ];
        let start = vec![0; 1024];
        let file = |a, b| [[a; 512], [b; 512]].concat();
        let all: Vec<Vec<u8>> = states(&start, &trace, 4).into_iter().collect();
        assert_eq!(all, [file(1, 0), file(1, 3), file(2, 0), file(2, 3)]);
        assert_eq!(states(&start, &trace, 2).len(), 1);
        assert_eq!(states(&start, &trace, 1).len(), 2);
        assert!(!Moment::after(&start, "f", &trace, 2).is_open());
    }

    #[test]
    fn a_sector_is_never_older_and_newer_at_once() {
        // Two writes into one sector: the second cannot come through without the first.
        let trace = [
            call(0, What::Write(0, vec![1])),
            call(1, What::Write(1, vec![2])),
        ];
        let start = vec![0; 512];
        let found: Vec<[u8; 2]> = states(&start, &trace, 2)
            .into_iter()
            .map(|state| [state[0], state[1]])
            .collect();
        assert_eq!(found, [[0, 0], [1, 0], [1, 2]]);
    }

    #[test]
    fn lengths_are_those_since_the_flush() {
        let trace = [
            call(0, What::Length(2048)),
            call(1, What::Sync),
            call(2, What::Length(4096)),
            call(3, What::Write(4096, vec![9; 512])),
        ];
        let lengths: std::collections::BTreeSet<usize> = states(&[0; 512], &trace, 4)
            .into_iter()
            .map(|state| state.len())
            .collect();
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [2048, 4096, 4608]);
    }
}
