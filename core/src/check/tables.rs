//! Reading L1 and L2 tables in large requests.

use std::cell::RefCell;

use futures_util::{Stream, StreamExt, stream};

use super::coverage::Segment;
use crate::error::{Error, Result};
use crate::qcow2::OFFSET_MASK;
use crate::qcow2::bytes::be64_table;
use crate::storage::{Storage, read_padded};
use crate::units::ClusterSize;

/// The largest request, except for a table that is larger.
pub(crate) const REQUEST_BYTES: u64 = 1 << 20;
/// L1 slots that are looked at together: entries among them that point to the same table are visited once.
const BATCH: usize = 1 << 16;

/// An L1 slot that is not empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Its place in the file.
    pub at: u64,
    /// The L1 entry.
    pub entry: u64,
    /// How many L1 tables it belongs to.
    pub weight: u64,
}

impl Slot {
    /// Where its L2 table stands, if that is in a file of `file_len` bytes: past its end there is nothing to
    /// be visited.
    pub fn table_inside(&self, file_len: u64) -> Option<u64> {
        Some(self.entry & OFFSET_MASK).filter(|offset| *offset < file_len)
    }
}

/// The used slots of L1 tables, a batch at a time.
pub(crate) struct Slots<'a, S> {
    storage: &'a S,
    segments: std::slice::Iter<'a, Segment>,
    /// What is left of the segment that was begun.
    current: Segment,
    bytes: Vec<u8>,
}

impl<'a, S: Storage> Slots<'a, S> {
    /// The slots in `segments` of the file.
    pub fn new(storage: &'a S, segments: &'a [Segment]) -> Self {
        let current = Segment {
            range: 0..0,
            weight: 0,
        };
        Self {
            storage,
            segments: segments.iter(),
            current,
            bytes: Vec::new(),
        }
    }

    /// Replaces `batch` by the next used slots; returns how many slots, empty or not, were passed:
    /// 0 at the end.
    pub async fn next(&mut self, batch: &mut Vec<Slot>) -> Result<u64> {
        batch.clear();
        let mut passed = 0;
        while batch.len() < BATCH && passed < 16 * BATCH as u64 {
            if self.current.range.is_empty() {
                match self.segments.next() {
                    Some(segment) => self.current = segment.clone(),
                    None => break,
                }
            }
            let Segment { range, weight } = &mut self.current;
            let room = (BATCH - batch.len()) as u64 * 8;
            let length = (range.end - range.start).min(room);
            let start = range.start;
            range.start += length;
            self.bytes.resize(length as usize, 0);
            read_padded(self.storage, start, &mut self.bytes)
                .await
                .map_err(|error| Error::io("Could not read L1 table", start, error))?;
            let slots = (start..).step_by(8).zip(be64_table(&self.bytes));
            let used = slots.filter(|(_, entry)| *entry != 0);
            batch.extend(used.map(|(at, entry)| Slot {
                at,
                entry,
                weight: *weight,
            }));
            passed += length / 8;
        }
        Ok(passed)
    }
}

/// A table to be visited for a slot, and for all slots behind it that point there too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// The first of its slots in the batch.
    pub slot: usize,
    /// Where the table stands.
    pub offset: u64,
    /// How often it counts.
    pub weight: u64,
}

/// The tables that the slots of `batch` point to, each once, in the order of their first slots.
pub(crate) fn visits(batch: &[Slot], offset_of: impl Fn(&Slot) -> Option<u64>) -> Vec<Visit> {
    let mut visits: Vec<Visit> = batch
        .iter()
        .enumerate()
        .filter_map(|(slot, entry)| {
            Some(Visit {
                slot,
                offset: offset_of(entry)?,
                weight: entry.weight,
            })
        })
        .collect();
    visits.sort_unstable_by_key(|visit| (visit.offset, visit.slot));
    visits.dedup_by(|later, first| {
        let same = later.offset == first.offset;
        if same {
            first.weight = first.weight.saturating_add(later.weight);
        }
        same
    });
    visits.sort_unstable_by_key(|visit| visit.slot);
    visits
}

/// A request for tables that lie in a row.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    pub offset: u64,
    /// Which of the visits it is for.
    pub visits: std::ops::Range<usize>,
}

/// Groups `visits` into requests.
pub(crate) fn fetches(visits: &[Visit], cluster_size: ClusterSize) -> Vec<Fetch> {
    let most = (REQUEST_BYTES / cluster_size.bytes()).max(1) as usize;
    let mut fetches: Vec<Fetch> = Vec::new();
    for (index, visit) in visits.iter().enumerate() {
        match fetches.last_mut() {
            Some(fetch)
                if fetch.visits.len() < most
                    && fetch.offset + fetch.visits.len() as u64 * cluster_size.bytes()
                        == visit.offset =>
            {
                fetch.visits.end += 1;
            }
            _ => fetches.push(Fetch {
                offset: visit.offset,
                visits: index..index + 1,
            }),
        }
    }
    fetches
}

/// Buffers that are used again.
#[derive(Debug, Default)]
pub(crate) struct Buffers(RefCell<Vec<Vec<u8>>>);

impl Buffers {
    /// A buffer of `length` bytes with anything in it.
    pub fn take(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.0.borrow_mut().pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    /// Takes `buffer` back.
    pub fn give(&self, buffer: Vec<u8>) {
        self.0.borrow_mut().push(buffer);
    }
}

/// The bytes of each of `fetches`, in their order; as many are in flight as the storage gains by. Past the
/// end of the file there are zeros.
pub(crate) fn fetch<'a, S: Storage>(
    storage: &'a S,
    fetches: Vec<Fetch>,
    cluster_size: ClusterSize,
    buffers: &'a Buffers,
) -> impl Stream<Item = Result<(Fetch, Vec<u8>)>> + 'a {
    let read = move |fetch: Fetch| async move {
        let mut bytes = buffers.take(fetch.visits.len() * cluster_size.len());
        read_padded(storage, fetch.offset, &mut bytes)
            .await
            .map_err(|error| Error::io("Could not read L2 table", fetch.offset, error))?;
        Ok((fetch, bytes))
    };
    stream::iter(fetches)
        .map(read)
        .buffered(storage.queue_depth().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(entry: u64, weight: u64) -> Slot {
        Slot {
            at: 0,
            entry,
            weight,
        }
    }

    #[test]
    fn a_table_is_visited_once_for_all_its_slots() {
        let batch = [
            slot(30, 1),
            slot(10, 2),
            slot(30, 4),
            slot(7, 1),
            slot(10, 1),
        ];
        let found = visits(&batch, |slot| (slot.entry != 7).then_some(slot.entry));
        let expected = [
            Visit {
                slot: 0,
                offset: 30,
                weight: 5,
            },
            Visit {
                slot: 1,
                offset: 10,
                weight: 3,
            },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn tables_in_a_row_are_fetched_together() {
        let cluster_size = ClusterSize::from_bits(18).unwrap();
        let visit = |offset: u64| Visit {
            slot: 0,
            offset: offset << 18,
            weight: 1,
        };
        let visits: Vec<Visit> = [9, 1, 2, 3, 4, 5, 7].map(visit).into();
        let found: Vec<_> = fetches(&visits, cluster_size)
            .into_iter()
            .map(|f| (f.offset >> 18, f.visits))
            .collect();
        assert_eq!(found, [(9, 0..1), (1, 1..5), (5, 5..6), (7, 6..7)]);
    }

    #[test]
    fn slots_come_in_batches_with_their_weights() {
        let mut bytes = vec![0; 4096];
        bytes[15] = 5;
        bytes[1024..1032].copy_from_slice(&7u64.to_be_bytes());
        let storage = crate::MemoryStorage::new(bytes);
        let segments = [
            Segment {
                range: 0..512,
                weight: 2,
            },
            Segment {
                range: 1024..1032,
                weight: 3,
            },
        ];
        let mut slots = Slots::new(&storage, &segments);
        let mut batch = Vec::new();
        let mut next = || {
            futures_util::FutureExt::now_or_never(slots.next(&mut batch))
                .unwrap()
                .unwrap()
        };
        assert_eq!(next(), 65);
        assert_eq!(next(), 0);
        assert!(batch.is_empty());
        let mut slots = Slots::new(&storage, &segments);
        futures_util::FutureExt::now_or_never(slots.next(&mut batch))
            .unwrap()
            .unwrap();
        let found: Vec<_> = batch
            .iter()
            .map(|slot| (slot.at, slot.entry, slot.weight))
            .collect();
        assert_eq!(found, [(8, 5, 2), (1024, 7, 3)]);
    }
}
