//! Every script up to a length from every start state, in pieces that can be done in any order and later.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::aftermath::Aftermath;
use super::bench::{Bench, Figures, Found};
use super::engine::Engine;
use super::faults::Faults;
use super::run::{names, run};
use super::script::Op;
use super::starts::StartKind;
use crate::rng::Rng;

/// What is done.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Where scripts begin.
    pub starts: Vec<StartKind>,
    /// The longest scripts.
    pub length: usize,
    /// Continues from one in so many images; 0 for none.
    pub continue_one_in: u64,
    /// Kills the process at every change of one in so many scripts; 0 for none.
    pub kill_one_in: u64,
    /// Lets the storage fail in every way at every operation of one in so many scripts; 0 for none.
    pub fail_one_in: u64,
    /// What is drawn by lot follows from this.
    pub seed: u64,
}

/// A piece of a campaign: the scripts from a start state that begin with an operation, or those shorter than
/// two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin.
    pub start: StartKind,
    /// The first operation.
    pub first: Option<Op>,
}

impl Piece {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        match self.first {
            None => format!("{:?}", self.start),
            Some(first) => format!("{:?}/{first:?}", self.start),
        }
    }
}

/// What a piece came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The scripts themselves, cut at every moment.
    pub scripts: Figures,
    /// What came after: kills and failing storages. Here `scripts` counts the images that were used on.
    pub faults: Figures,
    /// Images that were used on after a power cut.
    pub continued: u64,
    /// Processor time in microseconds, where the system tells.
    pub cpu_us: u64,
    /// The most sectors' contents that were kept at once.
    pub contents: usize,
    /// How many scripts violate something.
    pub violating: u64,
    /// The first of each kind of violation.
    pub found: BTreeMap<String, String>,
}

impl Outcome {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.scripts.add(&other.scripts);
        self.faults.add(&other.faults);
        self.continued += other.continued;
        self.cpu_us += other.cpu_us;
        self.contents = self.contents.max(other.contents);
        self.violating += other.violating;
        for (kind, example) in other.found {
            self.found.entry(kind).or_insert(example);
        }
    }

    fn violation(&mut self, found: &Found) {
        self.violating += 1;
        // Numbers tell apart what is the same.
        let what = found.violation.what.chars().filter(|c| !c.is_numeric());
        let kind: String = what.take(60).collect();
        let kind = format!("{} {kind}", found.violation.rule);
        self.found.entry(kind).or_insert_with(|| found.to_string());
    }
}

impl Campaign {
    /// All scripts of at most `length` operations.
    #[must_use]
    pub fn of_length(length: usize) -> Self {
        Self {
            starts: StartKind::ALL.to_vec(),
            length,
            continue_one_in: 0,
            kill_one_in: 0,
            fail_one_in: 0,
            seed: 1,
        }
    }

    /// Its pieces. Long ones come first, so that the workers end together.
    #[must_use]
    pub fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for start in &self.starts {
            let start = *start;
            if self.length >= 2 {
                let first = Op::ALL.iter().chain(&Op::WHOLE).map(|op| Piece {
                    start,
                    first: Some(*op),
                });
                pieces.extend(first);
            }
            pieces.push(Piece { start, first: None });
        }
        pieces
    }

    /// The scripts of a piece.
    fn scripts(&self, piece: Piece) -> Vec<Vec<Op>> {
        let mut scripts = Vec::new();
        match piece.first {
            None => {
                scripts.push(Vec::new());
                if self.length >= 1 {
                    let all = Op::ALL.iter().chain(&Op::WHOLE);
                    scripts.extend(all.map(|op| vec![*op]));
                }
            }
            Some(first) => {
                let mut level = vec![vec![first]];
                for _ in 1..self.length {
                    let longer = level.iter().flat_map(|script| {
                        let has_whole = script.iter().any(|op| Op::WHOLE.contains(op));
                        let whole = Op::WHOLE.iter().filter(move |_| !has_whole);
                        Op::ALL.iter().chain(whole).map(|op| {
                            let mut longer = script.clone();
                            longer.push(*op);
                            longer
                        })
                    });
                    level = longer.collect();
                    scripts.extend(level.iter().cloned());
                }
            }
        }
        scripts
    }

    /// Does a piece.
    #[must_use]
    pub fn run<E: Engine + 'static>(&self, piece: Piece) -> Outcome {
        let mut outcome = Outcome::default();
        let began = thread_cpu_us();
        let lot = self.pieces().iter().position(|other| *other == piece);
        let mut rng = Rng::new(self.seed << 32 | lot.unwrap_or(0) as u64);
        let mut tools = Tools::new::<E>(self, piece, rng.next_u64());
        for script in self.scripts(piece) {
            if tools.bench.contents.count() > MOST_CONTENTS {
                tools.close(&mut outcome);
                tools = Tools::new::<E>(self, piece, rng.next_u64());
            }
            let kill = self.kill_one_in > 0 && rng.one_in(self.kill_one_in);
            let fail = self.fail_one_in > 0 && rng.one_in(self.fail_one_in);
            let ran = catch_unwind(AssertUnwindSafe(|| tools.run::<E>(&script, kill, fail)));
            let result = ran.unwrap_or_else(|panic| {
                let words = panic.downcast_ref::<String>().map_or("", String::as_str);
                let words = panic.downcast_ref::<&str>().copied().unwrap_or(words);
                let found = panicked::<E>(piece.start, &script, words);
                // What was borrowed stays so.
                tools.close(&mut outcome);
                tools = Tools::new::<E>(self, piece, rng.next_u64());
                Err(found)
            });
            if let Err(found) = result {
                outcome.violation(&found);
            }
        }
        tools.close(&mut outcome);
        outcome.cpu_us = thread_cpu_us().saturating_sub(began);
        outcome
    }
}

/// What this thread has used of the processor, in microseconds; 0 where the system does not tell.
fn thread_cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds: Option<u64> = stat.split(' ').next().and_then(|field| field.parse().ok());
    nanoseconds.unwrap_or(0) / 1000
}

/// About 100 MB of sectors are kept at once.
const MOST_CONTENTS: usize = 200_000;

fn panicked<E: Engine>(start: StartKind, script: &[Op], words: &str) -> Box<Found> {
    Box::new(Found {
        engine: E::NAME,
        start,
        script: names(script),
        moment: "somewhere".into(),
        violation: super::judge::Violation {
            rule: "panics",
            what: words.into(),
            chosen: Vec::new(),
        },
    })
}

/// What the scripts of a piece share.
struct Tools {
    bench: Rc<Bench>,
    /// Another bench, because what is known there is not known here.
    failing: Rc<Bench>,
    aftermath: Option<Rc<Aftermath>>,
    faults: Faults,
}

impl Tools {
    fn new<E: Engine + 'static>(campaign: &Campaign, piece: Piece, seed: u64) -> Self {
        let bench = Bench::new(piece.start);
        let aftermath = (campaign.continue_one_in > 0)
            .then(|| Aftermath::follow::<E>(&bench, campaign.continue_one_in, seed));
        Self {
            failing: bench.sibling(),
            bench,
            aftermath,
            faults: Faults::default(),
        }
    }

    fn run<E: Engine>(&self, script: &[Op], kill: bool, fail: bool) -> Result<(), Box<Found>> {
        run::<E>(&self.bench, script, script.len().saturating_sub(1))?;
        if kill {
            self.faults.kills::<E>(&self.failing, script)?;
        }
        if fail {
            self.faults.errors::<E>(&self.failing, script)?;
        }
        Ok(())
    }

    fn close(&self, outcome: &mut Outcome) {
        outcome.scripts.add(&self.bench.take_figures());
        outcome.faults.add(&self.failing.take_figures());
        let continued = self.aftermath.as_ref().map_or(0, |after| after.continued());
        outcome.continued += continued;
        outcome.contents = outcome.contents.max(self.bench.contents.count());
    }
}
