//! Which schedules are run.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::case::{Case, run};
use super::exec::{Alternatives, Chooser, Deviation, Exec, Trace};
use super::starts::{Base, StartKind};
use crate::rng::Rng;

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// All schedules with so many preemptions.
    pub preemptions: u32,
    /// In which a task is dropped besides.
    pub drops: bool,
    /// With one more preemption, at most so many, drawn evenly.
    pub sampled: u64,
    /// The file is looked at once in so many schedules.
    pub judge_one_in: u64,
}

/// What was run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Schedules.
    pub schedules: u64,
    /// Steps in them.
    pub steps: u64,
    /// Schedules in which a task was dropped.
    pub dropped: u64,
    /// Files looked at.
    pub judged: u64,
    /// Cases of which all schedules within the bounds were run, and one preemption more.
    pub exhausted: u64,
}

impl Figures {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.steps += other.steps;
        self.dropped += other.dropped;
        self.judged += other.judged;
        self.exhausted += other.exhausted;
    }
}

/// A schedule in which something is wrong.
#[derive(Clone, Debug)]
pub struct Found {
    /// What ran.
    pub case: Case,
    /// How.
    pub schedule: Vec<Deviation>,
    /// Whether tasks could be dropped.
    pub drops: bool,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            schedule,
            drops,
            what,
        } = self;
        let steps = schedule
            .iter()
            .map(|(step, chosen)| format!("{step}:{chosen}"));
        let steps: Vec<String> = steps.collect();
        let drops = if *drops { " drops" } else { "" };
        write!(
            f,
            "{case}: {what}\n    again: OXCOW_SCHEDULE='{case} [{}]{drops}'",
            steps.join(",")
        )
    }
}

/// The images to begin with, by kind.
pub struct Bases(Vec<Base>);

impl Default for Bases {
    fn default() -> Self {
        Self(StartKind::ALL.map(Base::new).into())
    }
}

impl Bases {
    fn of(&self, kind: StartKind) -> &Base {
        &self.0[kind as usize]
    }
}

/// A search, with the memory that it uses again.
#[derive(Default)]
pub struct Search {
    bases: Bases,
    trace: Trace,
    /// What was run so far.
    pub figures: Figures,
}

/// A schedule that was run, from which others deviate once more.
struct Node {
    schedule: Vec<Deviation>,
    steps: Vec<Alternatives>,
}

/// What deviations have cost.
#[derive(Clone, Copy)]
struct Cost {
    preemptions: u32,
    drops: u32,
}

impl Search {
    /// Runs one schedule.
    ///
    /// # Errors
    ///
    /// What is wrong in it.
    pub fn one(
        &mut self,
        case: &Case,
        chooser: Chooser<'_>,
        drops: bool,
        judged: bool,
    ) -> Result<(), Box<Found>> {
        let base = self.bases.of(case.start);
        self.trace.may_drop = drops;
        let trace = &mut self.trace;
        let result = catch_unwind(AssertUnwindSafe(|| run(case, base, chooser, trace, judged)));
        self.figures.schedules += 1;
        self.figures.steps += self.trace.steps.len() as u64;
        self.figures.judged += u64::from(judged);
        let what = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(what)) => what,
            Err(_) => "it panics".into(),
        };
        Err(Box::new(Found {
            case: case.clone(),
            schedule: self.trace.made.clone(),
            drops,
            what,
        }))
    }

    /// Runs one schedule by lot, deviating once in `one_in` steps.
    ///
    /// # Errors
    ///
    /// What is wrong in it.
    pub fn by_lot(
        &mut self,
        case: &Case,
        seed: u64,
        one_in: u64,
        drops: bool,
    ) -> Result<(), Box<Found>> {
        let chooser = Chooser::Lot(Rng::new(seed), one_in);
        let result = self.one(case, chooser, drops, true);
        self.figures.dropped += u64::from(Exec::has_dropped(&self.trace));
        result
    }

    /// Runs all schedules of a case within bounds.
    ///
    /// # Errors
    ///
    /// The first in which something is wrong.
    pub fn all(&mut self, case: &Case, bounds: &Bounds) -> Result<(), Box<Found>> {
        let mut frontier: Vec<Node> = Vec::new();
        let mut beyond = 0_u64;
        // Depth first over the deviations; the last one made is the latest in time.
        let mut open: Vec<(Vec<Deviation>, Cost)> = vec![(
            Vec::new(),
            Cost {
                preemptions: 0,
                drops: 0,
            },
        )];
        while let Some((schedule, cost)) = open.pop() {
            self.explore(case, &schedule, bounds)?;
            self.figures.dropped += u64::from(cost.drops);
            let from = schedule
                .last()
                .map_or(0, |(step, _)| usize::from(*step) + 1);
            let wanted = !bounds.drops || cost.drops > 0;
            for (step, alternatives) in self.trace.steps.iter().enumerate().skip(from) {
                let free = 1..alternatives.free;
                let preempting = alternatives.free..alternatives.free + alternatives.preempting;
                let dropping = preempting.end..preempting.end + alternatives.dropping;
                let mut push = |range: std::ops::Range<u8>, cost: Cost| {
                    for chosen in range {
                        let mut schedule = schedule.clone();
                        schedule.push((step as u16, chosen));
                        open.push((schedule, cost));
                    }
                };
                push(free, cost);
                if cost.preemptions < bounds.preemptions {
                    let preemptions = cost.preemptions + 1;
                    push(
                        preempting,
                        Cost {
                            preemptions,
                            ..cost
                        },
                    );
                } else if wanted {
                    beyond += u64::from(alternatives.preempting);
                }
                if cost.drops == 0 {
                    push(dropping, Cost { drops: 1, ..cost });
                }
            }
            if cost.preemptions == bounds.preemptions && wanted && bounds.sampled > 0 {
                frontier.push(Node {
                    schedule,
                    steps: self.trace.steps.clone(),
                });
            }
        }
        if bounds.sampled == 0 {
            return Ok(());
        }
        self.figures.exhausted += u64::from(beyond <= bounds.sampled);
        let mut lot = Rng::new(beyond);
        for node in frontier {
            let from = node
                .schedule
                .last()
                .map_or(0, |(step, _)| usize::from(*step) + 1);
            for (step, alternatives) in node.steps.iter().enumerate().skip(from) {
                for chosen in alternatives.free..alternatives.free + alternatives.preempting {
                    if beyond > bounds.sampled && lot.below(beyond) >= bounds.sampled {
                        continue;
                    }
                    let mut schedule = node.schedule.clone();
                    schedule.push((step as u16, chosen));
                    self.explore(case, &schedule, bounds)?;
                    self.figures.dropped += u64::from(bounds.drops);
                }
            }
        }
        Ok(())
    }

    fn explore(
        &mut self,
        case: &Case,
        schedule: &[Deviation],
        bounds: &Bounds,
    ) -> Result<(), Box<Found>> {
        let judged = self.figures.schedules.is_multiple_of(bounds.judge_one_in);
        let result = self.one(case, Chooser::Given(schedule), bounds.drops, judged);
        debug_assert!(
            result.is_err() || self.trace.made == schedule,
            "a run that is not the same twice"
        );
        result
    }
}

/// All sets of `count` operations for an image of kind `start`.
#[must_use]
pub fn cases(start: StartKind, count: usize) -> Vec<Case> {
    let ops: Vec<_> = super::case::Op::ALL
        .into_iter()
        .filter(|op| op.fits(start))
        .collect();
    let mut sets: Vec<Vec<super::case::Op>> = vec![Vec::new()];
    for _ in 0..count {
        let longer = sets.iter().flat_map(|set| {
            let ops = ops.iter();
            let fits = ops.filter(|op| set.last().is_none_or(|last| last <= *op));
            fits.map(|op| [&set[..], &[*op]].concat())
        });
        sets = longer.collect();
    }
    let case = |ops| Case {
        start,
        ops,
        into_qcow2: false,
    };
    sets.into_iter().map(case).collect()
}

/// Reads what [`Found`] prints: the case, the schedule, and whether tasks may be dropped.
#[must_use]
pub fn parse(text: &str) -> Option<(Case, Vec<Deviation>, bool)> {
    let mut words = text.split_whitespace();
    let case = Case::parse(words.next()?, words.next()?)?;
    let steps = words.next()?.strip_prefix('[')?.strip_suffix(']')?;
    let step = |text: &str| {
        let (step, chosen) = text.split_once(':')?;
        Some((step.parse().ok()?, chosen.parse().ok()?))
    };
    let steps: Option<Vec<Deviation>> = steps
        .split(',')
        .filter(|s| !s.is_empty())
        .map(step)
        .collect();
    Some((case, steps?, words.next() == Some("drops")))
}
