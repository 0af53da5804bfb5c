//! What every step should have done: the third opinion.

use std::ops::Range;

use crate::scripts::content::{Content, Pattern};
use crate::scripts::operation::Op;
use crate::scripts::setup::{Data, Preallocation, Setup};

/// How long the state of a machine is that is saved with a snapshot, in bytes.
pub const MACHINE: u64 = 5000;

/// Whether a machine is running when a snapshot of this name is taken: the library then stores its state too.
#[must_use]
pub fn is_running(name: &str) -> bool {
    name.starts_with("before")
}

/// A snapshot.
#[derive(Clone)]
pub struct Saved {
    /// Its id: a number that was never used before while a higher one is there.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The disk's size then.
    pub size: u64,
    /// What was on it then.
    pub content: Content,
}

/// A disk with its snapshots.
#[derive(Clone)]
pub struct Model {
    cluster: u64,
    /// How much of the disk one L2 table maps, in bytes.
    table: u64,
    version: u32,
    backed: bool,
    /// The end of the backing file's disk; 0 without one.
    pub backing_size: u64,
    /// The disk's size.
    pub size: u64,
    /// What is on it.
    pub content: Content,
    /// Its snapshots, in the table's order.
    pub snapshots: Vec<Saved>,
    /// Whether the disk was ever made shorter.
    pub was_cut: bool,
    /// Where the active state may have the state of a machine, behind what was the disk's end then.
    machines: Vec<u64>,
    /// Where clusters may be compressed: runs of 1.
    compressed: Content,
    /// Where the image may have clusters of its own: runs of 1.
    touched: Content,
}

impl Model {
    /// The disk of a new image.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let mut content = Content::default();
        if let Some(base) = &setup.base {
            content = base.content.clone();
            content.truncate(setup.size);
        }
        let mut touched = Content::default();
        if setup.preallocation != Preallocation::Off || setup.data == Data::Raw {
            touched.write(0..u64::MAX, Pattern::Fill(1));
        }
        Self {
            cluster: setup.cluster(),
            table: setup.cluster() * setup.cluster() / if setup.extended { 16 } else { 8 },
            version: setup.version,
            backed: setup.base.is_some(),
            backing_size: setup.base.as_ref().map_or(0, |base| base.size),
            size: setup.size,
            content,
            snapshots: Vec::new(),
            was_cut: false,
            machines: Vec::new(),
            compressed: Content::default(),
            touched,
        }
    }

    /// The snapshot with this id or name.
    #[must_use]
    pub fn find(&self, id_or_name: &str) -> Option<usize> {
        let by = |key: fn(&Saved) -> &str| {
            self.snapshots
                .iter()
                .position(|saved| key(saved) == id_or_name)
        };
        by(|saved| &saved.id).or_else(|| by(|saved| &saved.name))
    }

    /// Whether all of `range` certainly has no cluster of the image's own yet.
    #[must_use]
    pub fn untouched(&self, range: Range<u64>) -> bool {
        self.touched.is_zero(range)
    }

    /// Whether the disk ends within a cluster that may be compressed.
    #[must_use]
    pub fn ends_in_compressed(&self) -> bool {
        let start = self.size / self.cluster * self.cluster;
        !self.compressed.is_zero(start..self.size)
    }

    /// Where behind the disk's end the active state may have the state of a machine.
    #[must_use]
    pub fn machines_behind(&self) -> Vec<Range<u64>> {
        let behind = self.machines.iter().filter(|&&start| start >= self.size);
        let length = MACHINE.next_multiple_of(self.cluster);
        behind.map(|&start| start..start + length).collect()
    }

    /// The size that the disk grows to, if it does so.
    #[must_use]
    pub fn grows_to(&self, op: &Op) -> Option<u64> {
        let new = match op {
            Op::Resize(size, _) => *size,
            Op::Apply(which) => self.snapshots[self.find(which)?].size,
            _ => return None,
        };
        (new > self.size).then_some(new)
    }

    /// The whole clusters inside `range`: what a discard gives up. The disk's last one is whole where the disk
    /// ends.
    #[must_use]
    pub fn whole_clusters(&self, range: Range<u64>) -> Range<u64> {
        let start = range.start.next_multiple_of(self.cluster);
        let end = if range.end == self.size {
            range.end
        } else {
            range.end / self.cluster * self.cluster
        };
        start..end.max(start)
    }

    /// Does the step.
    ///
    /// # Panics
    /// Where it names a snapshot that is not there.
    pub fn apply(&mut self, op: &Op) {
        if let Some(range) = op.range() {
            let clusters =
                range.start / self.cluster * self.cluster..range.end.next_multiple_of(self.cluster);
            self.touched.write(clusters, Pattern::Fill(1));
        }
        match op {
            Op::Write(range, pattern) => self.content.write(range.clone(), *pattern),
            Op::Compressed(range, pattern) => {
                self.content.write(range.clone(), *pattern);
                self.compressed.write(range.clone(), Pattern::Fill(1));
            }
            Op::Burst(writes) => {
                for (range, byte) in writes {
                    self.content.write(range.clone(), Pattern::Fill(*byte));
                }
            }
            Op::Zeroes(range, _) => self.content.clear(range.clone()),
            // Version 2 cannot say "zeros" where there is a backing file: nothing happens then.
            Op::Discard(_) if self.version == 2 && self.backed => {}
            Op::Discard(range) => self.content.clear(self.whole_clusters(range.clone())),
            Op::Flush => {}
            Op::Create(name) => {
                let ids = self.snapshots.iter().map(|saved| saved.id.parse::<u64>());
                let highest = ids.map(|id| id.unwrap_or(0)).max().unwrap_or(0);
                self.snapshots.push(Saved {
                    id: (highest + 1).to_string(),
                    name: name.clone(),
                    size: self.size,
                    content: self.content.clone(),
                });
            }
            Op::Apply(which) => {
                let saved = &self.snapshots[self.find(which).expect("the snapshot is there")];
                self.was_cut |= saved.size < self.size;
                if is_running(&saved.name) {
                    self.machines.push(saved.size.next_multiple_of(self.table));
                }
                self.size = saved.size;
                self.content = saved.content.clone();
            }
            Op::Delete(which) => {
                let index = self.find(which).expect("the snapshot is there");
                self.snapshots.remove(index);
            }
            Op::Resize(size, _) => {
                // What was cut off is gone, whatever a backing file holds there.
                self.content.truncate(*size);
                self.touched
                    .write(self.size.min(*size)..u64::MAX, Pattern::Fill(1));
                self.was_cut |= *size < self.size;
                self.size = *size;
            }
        }
    }
}
