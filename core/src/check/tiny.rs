//! A small image made by hand, for tests.

use super::{Problem, Watcher};

pub(crate) const CLUSTER: usize = 512;
pub(crate) const COPIED: u64 = 1 << 63;

/// Where host cluster `index` starts.
pub(crate) const fn cluster(index: u64) -> u64 {
    index * CLUSTER as u64
}

/// A version 3 image of 512-byte clusters: the header, the refcount table (cluster 1), a refcount block
/// (2), the L1 table (3), an L2 table (4) and data from cluster 5 on.
pub(crate) struct Tiny {
    pub bytes: Vec<u8>,
}

impl Tiny {
    pub const BLOCK: usize = 2 * CLUSTER;
    pub const L1: usize = 3 * CLUSTER;
    pub const L2: usize = 4 * CLUSTER;

    /// With `data` clusters of guest data, in order, all of them well.
    pub fn new(data: usize) -> Self {
        let mut tiny = Self {
            bytes: vec![0; (5 + data) * CLUSTER],
        };
        tiny.put32(0, 0x5146_49fb);
        tiny.put32(4, 3);
        tiny.put32(20, 9);
        tiny.put64(24, 128 * CLUSTER as u64);
        tiny.put32(36, 2);
        tiny.put64(40, Self::L1 as u64);
        tiny.put64(48, CLUSTER as u64);
        tiny.put32(56, 1);
        tiny.put32(96, 4);
        tiny.put32(100, 104);
        tiny.put64(CLUSTER, Self::BLOCK as u64);
        tiny.put64(Self::L1, COPIED | Self::L2 as u64);
        for cluster in 0..5 + data {
            tiny.refcount(cluster, 1);
        }
        for index in 0..data {
            tiny.entry(index, COPIED | ((5 + index) * CLUSTER) as u64);
        }
        tiny
    }

    pub fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub fn put64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    pub fn refcount(&mut self, cluster: usize, count: u16) {
        let at = Self::BLOCK + cluster * 2;
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    pub fn entry(&mut self, index: usize, value: u64) {
        self.put64(Self::L2 + index * 8, value);
    }

    /// Adds a snapshot table of `count` snapshots whose L1 tables are the `entries` slots at byte `l1`.
    pub fn snapshots(&mut self, count: u32, l1: usize, entries: u32) {
        let table = self.bytes.len();
        let mut entry = [0; 64];
        entry[..8].copy_from_slice(&(l1 as u64).to_be_bytes());
        entry[8..12].copy_from_slice(&entries.to_be_bytes());
        entry[39] = 16;
        for _ in 0..count {
            self.bytes.extend_from_slice(&entry[..56]);
        }
        self.bytes
            .resize(self.bytes.len().next_multiple_of(CLUSTER), 0);
        self.put32(60, count);
        self.put64(64, table as u64);
    }
}

/// The sentences of what a watcher is told.
#[derive(Default)]
pub(crate) struct Said(pub Vec<String>);

impl Watcher for Said {
    fn problem(&mut self, problem: &Problem) {
        (0..problem.times).for_each(|_| self.0.push(problem.to_string()));
    }
}
