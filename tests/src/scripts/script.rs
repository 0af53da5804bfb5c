//! Random scripts.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::rng::Rng;
use crate::scripts::content::Pattern;
use crate::scripts::differences::refused;
use crate::scripts::model::Model;
use crate::scripts::operation::Op;
use crate::scripts::setup::{Data, MOST_DATA, Preallocation, Setup};
use crate::scripts::stock::Base;

/// How many steps each has.
pub const STEPS: usize = 20;

/// A start image and steps.
#[derive(Clone)]
pub struct Script {
    /// What it was made of.
    pub seed: u64,
    /// The start image.
    pub setup: Setup,
    /// The steps.
    pub steps: Vec<Op>,
}

impl Script {
    /// The script that belongs to `seed`.
    #[must_use]
    pub fn random(seed: u64, bases: &[Arc<Base>]) -> Self {
        let mut rng = Rng::new(0x5c21_7000_0000 + seed);
        let setup = Setup::random(&mut rng, bases);
        let mut writer = Writer::new(&setup, rng);
        let steps = (0..STEPS).map(|_| writer.step()).collect();
        Self { seed, setup, steps }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "script {}: {}", self.seed, self.setup)?;
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(f, "{index:3}  {step}")?;
        }
        Ok(())
    }
}

/// Kinds of steps, which every script mixes in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write,
    Burst,
    Compressed,
    Zeroes,
    Discard,
    Flush,
    Create,
    Apply,
    Delete,
    Resize,
    Refused,
}

const KINDS: [(Kind, u64); 11] = [
    (Kind::Write, 10),
    (Kind::Burst, 2),
    (Kind::Compressed, 3),
    (Kind::Zeroes, 3),
    (Kind::Discard, 3),
    (Kind::Flush, 1),
    (Kind::Create, 2),
    (Kind::Apply, 1),
    (Kind::Delete, 1),
    (Kind::Resize, 2),
    (Kind::Refused, 1),
];

struct Writer<'a> {
    rng: Rng,
    setup: &'a Setup,
    model: Model,
    weights: Vec<(Kind, u64)>,
    /// Where something was done before: later steps come back there.
    visited: Vec<u64>,
    named: u64,
    written: u8,
}

impl<'a> Writer<'a> {
    fn new(setup: &'a Setup, mut rng: Rng) -> Self {
        let weights = KINDS
            .iter()
            .map(|&(kind, weight)| (kind, weight * *rng.pick(&[1, 1, 1, 2, 4])))
            .collect();
        Self {
            rng,
            setup,
            model: Model::new(setup),
            weights,
            visited: Vec::new(),
            named: 0,
            written: 0,
        }
    }

    fn step(&mut self) -> Op {
        let op = loop {
            let kind = self.kind();
            if let Some(op) = self.op(kind) {
                break op;
            }
        };
        if let Some(range) = op.range() {
            self.visited.push(range.start);
        }
        if !refused(&op, self.setup, &self.model) {
            self.model.apply(&op);
        }
        op
    }

    fn kind(&mut self) -> Kind {
        let total = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.below(total);
        for &(kind, weight) in &self.weights {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        Kind::Write
    }

    /// A step of this kind, where one is possible now.
    fn op(&mut self, kind: Kind) -> Option<Op> {
        match kind {
            Kind::Write => {
                let range = self.range();
                Some(Op::Write(range, self.pattern()))
            }
            Kind::Burst => self.burst(),
            Kind::Compressed => {
                if self.setup.data != Data::Inside {
                    return None;
                }
                let range = self.clusters();
                Some(Op::Compressed(range, self.pattern()))
            }
            Kind::Zeroes => Some(Op::Zeroes(self.range(), self.rng.one_in(2))),
            Kind::Discard => Some(Op::Discard(self.range())),
            Kind::Flush => Some(Op::Flush),
            Kind::Create => self.create(),
            Kind::Apply => Some(Op::Apply(self.snapshot()?)),
            Kind::Delete => Some(Op::Delete(self.snapshot()?)),
            Kind::Resize => self.resize(),
            Kind::Refused => self.refused(),
        }
    }

    fn pattern(&mut self) -> Pattern {
        if self.rng.one_in(6) {
            return Pattern::Noise;
        }
        Pattern::Fill(self.byte())
    }

    /// A byte that is on the disk hardly anywhere else.
    fn byte(&mut self) -> u8 {
        // Backing files use those from 150 on.
        self.written = self.written % 140 + 1;
        self.written
    }

    /// Somewhere on the disk: often where something was done before, or at its end.
    fn offset(&mut self) -> u64 {
        let size = self.model.size;
        let cluster = self.setup.cluster();
        let base = match self.rng.below(8) {
            0..4 if !self.visited.is_empty() => *self.rng.pick(&self.visited),
            4 => size.saturating_sub(self.rng.below(4 * cluster)),
            // Around the end of the backing file.
            5 if self.model.backing_size > 0 => self.model.backing_size.saturating_sub(cluster),
            _ => self.rng.below(size),
        };
        let near = self.rng.below(3) * cluster + self.rng.below(cluster);
        let offset = if self.rng.one_in(3) {
            base + near
        } else {
            base
        };
        offset.min(size - 1)
    }

    /// A stretch of the disk: of whole sectors, clusters, subclusters or any bytes; mostly short.
    fn range(&mut self) -> Range<u64> {
        let (size, cluster) = (self.model.size, self.setup.cluster());
        let align = *self
            .rng
            .pick(&[512, 512, 512, 1, cluster, cluster, self.setup.subcluster()]);
        let start = self.offset() / align * align;
        let most = match self.rng.below(12) {
            0 => 1 << 20,
            1..4 => 8 * cluster,
            4..8 => 2 * cluster,
            _ => 2048,
        };
        let longest = (size - start).min(most.min(2 << 20).max(align));
        let len = (1 + self.rng.below(longest)).next_multiple_of(align);
        start..start + len.min(size - start)
    }

    /// A stretch of whole clusters; the disk's last one may be shorter.
    fn clusters(&mut self) -> Range<u64> {
        let (size, cluster) = (self.model.size, self.setup.cluster());
        let start = self.offset() / cluster * cluster;
        let most = (256 << 10) / cluster;
        let count = 1 + self.rng.below(4.min(most + 1));
        start..(start + count * cluster).min(size)
    }

    /// Neighbouring writes, with gaps at times, that share clusters.
    fn burst(&mut self) -> Option<Op> {
        let Range { start, end } = self.range();
        let count = 2 + self.rng.below(4);
        let part = (end - start) / count;
        if part == 0 {
            return None;
        }
        let mut writes = Vec::new();
        for index in 0..count {
            let from = start + index * part;
            let gap = if self.rng.one_in(3) {
                self.rng.below(part)
            } else {
                0
            };
            writes.push((from + gap..from + part, self.byte()));
        }
        Some(Op::Burst(writes))
    }

    /// What nobody can do.
    fn refused(&mut self) -> Option<Op> {
        let op = match self.rng.below(16) {
            0 => Op::Apply("nothing".to_owned()),
            1 => Op::Delete("nothing".to_owned()),
            2..6 => Op::Create("of a data file".to_owned()),
            6..10 => Op::Compressed(self.clusters(), Pattern::Fill(1)),
            _ => Op::Resize(self.model.size + 512, Preallocation::Off),
        };
        refused(&op, self.setup, &self.model).then_some(op)
    }

    fn create(&mut self) -> Option<Op> {
        // Each snapshot is one more reference to every cluster.
        let room = (self.setup.most_references() - 1).min(4);
        if self.setup.data != Data::Inside || self.model.snapshots.len() as u64 >= room {
            return None;
        }
        self.named += 1;
        let name = match self.rng.below(8) {
            0 => format!("before the update {}", self.named),
            1 => format!("\u{fc}ber-{}", self.named),
            2 => format!("{}{}", "long".repeat(20), self.named),
            _ => format!("s{}", self.named),
        };
        Some(Op::Create(name))
    }

    /// The id or the name of a snapshot.
    fn snapshot(&mut self) -> Option<String> {
        if self.model.snapshots.is_empty() {
            return None;
        }
        let index = self.rng.below(self.model.snapshots.len() as u64) as usize;
        let saved = &self.model.snapshots[index];
        Some(if self.rng.one_in(3) {
            saved.id.clone()
        } else {
            saved.name.clone()
        })
    }

    fn resize(&mut self) -> Option<Op> {
        // Version 2 has no room for the size of a snapshot's disk.
        if self.setup.version == 2 && !self.model.snapshots.is_empty() {
            return None;
        }
        let (size, cluster) = (self.model.size, self.setup.cluster());
        let by = match self.rng.below(4) {
            0 => 512 * self.rng.below(64),
            1 => cluster * self.rng.below(8),
            2 => size / 512 * self.rng.below(400),
            _ => cluster * cluster / 8,
        };
        let by = by / 512 * 512;
        let new = if self.rng.one_in(2) {
            size.saturating_sub(by).max(512)
        } else {
            let most = if self.setup.data == Data::Inside {
                64 << 30
            } else {
                MOST_DATA
            };
            (size + by).min(most).max(size)
        };
        let mut preallocation = Preallocation::Off;
        let grown = new.saturating_sub(size);
        if (1..=2 << 20).contains(&grown) && self.setup.base.is_none() && self.rng.one_in(4) {
            preallocation = *self.rng.pick(&Preallocation::ALL);
        }
        // Clusters of 512 bytes have tables of 32 KiB: a disk of 64 GiB would have an L1 table of 16 MiB.
        (new <= size.max(cluster * cluster / 8 * 8192)).then_some(Op::Resize(new, preallocation))
    }
}
