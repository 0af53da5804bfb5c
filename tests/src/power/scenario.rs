//! What is cut off: a start image and the command that changes it.

use std::fs;
use std::path::Path;

use crate::oracle::{self, Tool};
use crate::recipe::Patch;
use crate::rng::Rng;
use crate::scripts::IMAGE;
use crate::scripts::content::Pattern;
use crate::scripts::judge::{Judge, expect};
use crate::scripts::model::Model;
use crate::scripts::operation::Op;
use crate::scripts::setup::{Data, Preallocation, Setup};
use crate::scripts::stock::Stock;

/// What is done while the power fails.
#[derive(Clone, Debug)]
pub enum Action {
    /// Guest I/O, each step after the other, by one `io`.
    Guest(Vec<Op>),
    /// One transaction: `snapshot` or `resize`.
    Whole(Op),
    /// `check -r`, with `leaks` or `all`.
    Repair(&'static str),
}

/// A start image and what is done to it.
#[derive(Clone)]
pub struct Scenario {
    /// Unique.
    pub name: String,
    /// The start image's options.
    pub setup: Setup,
    /// What has been done to it before.
    pub before: Vec<Op>,
    /// What is wrong with it.
    pub damage: Vec<Patch>,
    /// What is done while the power fails.
    pub action: Action,
}

impl Scenario {
    /// Makes the start image in `dir`, which is empty, by the native tools, and says what is on it.
    ///
    /// # Panics
    /// Where that fails: the scenario is wrong then.
    #[must_use]
    pub fn make(&self, stock: &Stock, dir: &Path) -> Model {
        stock.supply(self.setup.base.as_deref(), dir);
        let args = self.setup.create(IMAGE);
        let made = expect(&args, &oracle::run(Tool::Img, dir, &args));
        made.unwrap_or_else(|what| panic!("{}: {what}", self.name));
        let mut model = Model::new(&self.setup);
        let mut judge = Judge::new(dir);
        for op in &self.before {
            let before = model.clone();
            model.apply(op);
            let done = judge.apply(op, &before, &model);
            done.unwrap_or_else(|what| panic!("{}: {op}: {what}", self.name));
        }
        judge
            .finish()
            .unwrap_or_else(|what| panic!("{}: {what}", self.name));
        for patch in &self.damage {
            patch
                .apply(&dir.join(IMAGE))
                .expect("the image can be patched");
        }
        model
    }

    /// What the disk holds after each step, the start first.
    #[must_use]
    pub fn history(&self, start: &Model) -> Vec<Model> {
        let mut history = vec![start.clone()];
        let steps: &[Op] = match &self.action {
            Action::Guest(steps) => steps,
            Action::Whole(op) => std::slice::from_ref(op),
            Action::Repair(_) => &[],
        };
        for op in steps {
            let mut next = history.last().expect("there is a start").clone();
            next.apply(op);
            history.push(next);
        }
        history
    }

    /// The files that the image consists of.
    #[must_use]
    pub fn files(&self) -> &'static [&'static str] {
        if self.setup.data == Data::Inside {
            &[IMAGE]
        } else {
            &[IMAGE, "disk.data"]
        }
    }
}

/// Which kinds of start images there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// 512-byte clusters: every table entry is in a sector of its own, nearly.
    Smallest,
    /// 4 KiB clusters with two snapshots.
    Snapshots,
    /// Over a backing file.
    Backed,
    /// Extended L2 entries.
    Extended,
    /// Lazy refcounts.
    Lazy,
    /// A data file.
    DataFile,
    /// Version 2.
    Old,
    /// Wide refcounts: their blocks and their table are full soon.
    Wide,
}

const STARTS: [Start; 8] = [
    Start::Smallest,
    Start::Snapshots,
    Start::Backed,
    Start::Extended,
    Start::Lazy,
    Start::DataFile,
    Start::Old,
    Start::Wide,
];

impl Start {
    fn setup(self, stock: &Stock) -> Setup {
        let plain = Setup {
            version: 3,
            cluster_bits: 12,
            refcount_bits: 16,
            extended: false,
            lazy: false,
            zstd: false,
            data: Data::Inside,
            preallocation: Preallocation::Off,
            size: 256 << 10,
            base: None,
            bitmap: false,
        };
        match self {
            Self::Smallest => Setup {
                cluster_bits: 9,
                size: 96 << 10,
                ..plain
            },
            Self::Snapshots => plain,
            Self::Backed => Setup {
                cluster_bits: 10,
                size: 128 << 10,
                base: stock
                    .bases
                    .iter()
                    .find(|base| base.format == "qcow2")
                    .cloned(),
                ..plain
            },
            Self::Extended => Setup {
                cluster_bits: 14,
                extended: true,
                size: 512 << 10,
                ..plain
            },
            Self::Lazy => Setup {
                lazy: true,
                ..plain
            },
            Self::DataFile => Setup {
                data: Data::File,
                ..plain
            },
            Self::Old => Setup {
                version: 2,
                cluster_bits: 11,
                ..plain
            },
            Self::Wide => Setup {
                cluster_bits: 9,
                refcount_bits: 64,
                size: 128 << 10,
                ..plain
            },
        }
    }

    fn has_snapshots(self) -> bool {
        self != Self::DataFile
    }

    /// A disk that was used: data all over it, compressed too, and two snapshots with other data between them.
    fn before(self, setup: &Setup, rng: &mut Rng) -> Vec<Op> {
        let mut ops = Vec::new();
        let cluster = setup.cluster();
        if self.has_snapshots() {
            let start = 24 * cluster;
            ops.push(Op::Compressed(
                start..start + 6 * cluster,
                Pattern::Fill(101),
            ));
        }
        ops.extend(writes(rng, 0..16 * cluster, 5, 102));
        for name in ["one", "two"] {
            if self.has_snapshots() {
                ops.push(Op::Create(name.to_owned()));
            }
            ops.extend(writes(rng, 0..setup.size, 4, 110));
        }
        ops
    }
}

/// Writes at random places of the range, of sectors and more, with bytes from `byte` on.
fn writes(rng: &mut Rng, range: std::ops::Range<u64>, count: u8, byte: u8) -> Vec<Op> {
    let length = range.end - range.start;
    (0..count)
        .map(|index| {
            let start = range.start + rng.below(length) / 512 * 512;
            let most = (range.end - start).min(12 << 10);
            let end = start + (1 + rng.below(most)).next_multiple_of(512);
            Op::Write(start..end, Pattern::Fill(byte + index))
        })
        .collect()
}

/// Guest I/O of all kinds, with flushes between.
fn guest(start: Start, setup: &Setup, rng: &mut Rng) -> Vec<Op> {
    let cluster = setup.cluster();
    let mut ops = Vec::new();
    for round in 0..5 {
        let byte = 1 + 10 * round;
        ops.extend(writes(rng, 0..setup.size, 3, byte));
        let hot = rng.below(20) * cluster;
        // Into what was compressed, and over data that a snapshot shares.
        let packed = (24 + rng.below(6)) * cluster;
        ops.push(Op::Write(packed..packed + 512, Pattern::Fill(byte + 3)));
        ops.push(Op::Write(hot..hot + 512, Pattern::Fill(byte + 4)));
        if round % 2 == 0 {
            ops.push(Op::Flush);
        }
        ops.push(match rng.below(3) {
            0 => Op::Zeroes(hot..hot + 3 * cluster, true),
            1 => Op::Discard(hot..hot + 3 * cluster),
            _ => Op::Zeroes(hot + 512..hot + 512 + cluster, false),
        });
        ops.extend(writes(rng, hot..hot + 4 * cluster, 1, byte + 5));
        if start.has_snapshots() {
            let place = 40 * cluster + u64::from(round) * 4 * cluster;
            if place + 2 * cluster <= setup.size {
                // Nothing is compressed over what is there.
                ops.push(Op::Discard(place..place + 2 * cluster));
                ops.push(Op::Compressed(
                    place..place + 2 * cluster,
                    Pattern::Fill(byte + 6),
                ));
            }
        }
        ops.push(Op::Flush);
    }
    ops
}

/// All of them.
#[must_use]
pub fn all(stock: &Stock) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for start in STARTS {
        let mut rng = Rng::new(start as u64 + 77);
        let setup = start.setup(stock);
        let before = start.before(&setup, &mut rng);
        let mut actions = vec![("io", Action::Guest(guest(start, &setup, &mut rng)))];
        let cluster = setup.cluster();
        if start.has_snapshots() {
            let whole = |op| Action::Whole(op);
            actions.push(("create", whole(Op::Create("three".into()))));
            actions.push(("apply", whole(Op::Apply("one".into()))));
            actions.push(("delete", whole(Op::Delete("one".into()))));
        }
        // Version 2 cannot be resized while there are snapshots.
        if start != Start::Old {
            let resize = |size| Action::Whole(Op::Resize(size, Preallocation::Off));
            actions.push(("grow", resize(setup.size + 40 * cluster * cluster / 8)));
            actions.push(("shrink", resize(setup.size / 2 / cluster * cluster + 512)));
        }
        for (name, action) in actions {
            scenarios.push(Scenario {
                name: format!("{name} {start:?}"),
                setup: setup.clone(),
                before: before.clone(),
                damage: Vec::new(),
                action,
            });
        }
        // The patches know 16-bit refcounts only.
        if setup.refcount_bits == 16 {
            let leaks = vec![Patch::Leak { count: 5 }];
            let wrong = vec![
                Patch::Refcount { cluster: 5, by: 1 },
                Patch::Refcount { cluster: 6, by: -1 },
                Patch::Leak { count: 2 },
            ];
            for (mode, damage) in [("leaks", leaks), ("all", wrong)] {
                scenarios.push(Scenario {
                    name: format!("repair-{mode} {start:?}"),
                    setup: setup.clone(),
                    before: before.clone(),
                    damage,
                    action: Action::Repair(mode),
                });
            }
        }
    }
    scenarios
}

/// Copies the files of a scenario.
///
/// # Panics
/// Where a folder cannot be read or written.
pub fn read_files(scenario: &Scenario, dir: &Path) -> Vec<Vec<u8>> {
    let read = |name: &&str| fs::read(dir.join(name)).expect("the image is there");
    scenario.files().iter().map(read).collect()
}
