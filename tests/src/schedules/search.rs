//! Which schedules are run.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::case::{Case, run};
use super::exec::{Chooser, Deviation, Exec, Trace};
use super::starts::{Base, StartKind};
use super::states::{END, StateId, States};
use crate::rng::Rng;

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// All schedules with so many preemptions.
    pub preemptions: u32,
    /// In which a task is dropped besides.
    pub drops: bool,
    /// All with one more, and one more again, while they take no more than so many steps; then of those with one
    /// more than that by lot.
    pub steps: u64,
    /// The file is looked at once in so many schedules that come to their end.
    pub judge_one_in: u64,
}

/// What was run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Schedules that were run, each for itself.
    pub schedules: u64,
    /// Of these, such as came to a state that another one had gone on from, and ended there.
    pub joined: u64,
    /// Schedules that were not run: each goes on, from a state that one which was run came to, as one does that was
    /// run from there.
    pub equivalent: u64,
    /// Steps of what was run.
    pub steps: u64,
    /// Schedules in which a task was dropped.
    pub dropped: u64,
    /// Files looked at.
    pub judged: u64,
    /// Cases by the number of preemptions with which there is no schedule that was not run or is not equivalent to
    /// one.
    pub complete: [u64; DEPTHS],
    /// Cases all of whose schedules were run, or are equivalent to one.
    pub exhausted: u64,
}

/// Numbers of preemptions that are told apart, with the last one standing for all that are more.
pub const DEPTHS: usize = 8;

impl Figures {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.joined += other.joined;
        self.equivalent = self.equivalent.saturating_add(other.equivalent);
        self.steps += other.steps;
        self.dropped += other.dropped;
        self.judged += other.judged;
        for (mine, other) in self.complete.iter_mut().zip(other.complete) {
            *mine += other;
        }
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
    /// The last run.
    pub trace: Trace,
    states: States,
    /// Whether every schedule is run to its end, also where it comes to what another one came to.
    pub apart: bool,
    /// What was run so far.
    pub figures: Figures,
}

/// A schedule: another one, and one more deviation.
struct Node {
    before: u32,
    /// The state that it deviates from.
    from: StateId,
    last: Deviation,
    /// Preemptions of the last deviation.
    cost: u8,
    /// Whether a task was dropped.
    dropped: bool,
}

/// No other schedule.
const NONE: u32 = u32::MAX;

/// The deviations of a schedule.
fn deviations(nodes: &[Node], mut node: u32, into: &mut Vec<Deviation>) {
    into.clear();
    while node != NONE {
        let at = &nodes[node as usize];
        into.push(at.last);
        node = at.before;
    }
    into.reverse();
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
        self.run(case, chooser, drops, judged, false)
    }

    fn run(
        &mut self,
        case: &Case,
        chooser: Chooser<'_>,
        drops: bool,
        judged: bool,
        joins: bool,
    ) -> Result<(), Box<Found>> {
        let base = self.bases.of(case.start);
        self.trace.may_drop = drops;
        let trace = &mut self.trace;
        let states = joins.then_some(&mut self.states);
        let result = catch_unwind(AssertUnwindSafe(|| {
            run(case, base, chooser, trace, judged, states)
        }));
        let joined = self.trace.has_joined();
        self.figures.schedules += 1;
        self.figures.joined += u64::from(joined);
        self.figures.steps += self.trace.steps.len() as u64;
        self.figures.judged += u64::from(judged && !joined);
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

    /// Runs all schedules of a case within bounds. Calls `seen` after each.
    ///
    /// # Errors
    ///
    /// The first in which something is wrong.
    pub fn all_seen(
        &mut self,
        case: &Case,
        bounds: &Bounds,
        mut seen: impl FnMut(&Trace),
    ) -> Result<(), Box<Found>> {
        self.states.clear();
        let before = self.figures;
        let mut nodes: Vec<Node> = Vec::new();
        // By preemptions, so that every state is met first where fewest are made.
        let mut open: Vec<Vec<u32>> = vec![vec![NONE]];
        let mut start = END;
        let mut preemptions = 0;
        let mut schedule = Vec::new();
        loop {
            while let Some(number) = open[preemptions].pop() {
                deviations(&nodes, number, &mut schedule);
                self.explore(case, &schedule, bounds)?;
                seen(&self.trace);
                let first = self.link();
                let node = nodes.get(number as usize);
                match node {
                    None => start = first,
                    Some(node) if !self.apart => self.states.deviate(node.from, node.cost, first),
                    Some(_) => {}
                }
                let dropped = node.is_some_and(|node| node.dropped);
                self.figures.dropped += u64::from(dropped);
                self.open_up(number, dropped, preemptions, &mut nodes, &mut open);
            }
            let deeper = open.get(preemptions + 1).map_or(0, Vec::len) as u64;
            let wanted = preemptions < bounds.preemptions as usize;
            if deeper == 0 || !(wanted || deeper <= self.affords(&before, bounds)) {
                break;
            }
            preemptions += 1;
        }
        let run = self.figures.schedules - before.schedules;
        if !self.apart {
            let all = self.states.count(start, preemptions as u32);
            self.figures.equivalent = self.figures.equivalent.saturating_add(all - run);
        }
        let mut rest = open.into_iter().nth(preemptions + 1).unwrap_or_default();
        if rest.is_empty() {
            self.figures.exhausted += 1;
            return Ok(());
        }
        self.figures.complete[preemptions.min(DEPTHS - 1)] += 1;
        rest.retain(|number| !bounds.drops || nodes[*number as usize].dropped);
        let mut lot = Rng::new(rest.len() as u64);
        let affords = self.affords(&before, bounds);
        for number in &rest {
            if lot.below(rest.len() as u64) < affords {
                deviations(&nodes, *number, &mut schedule);
                self.explore(case, &schedule, bounds)?;
                self.figures.dropped += u64::from(bounds.drops);
            }
        }
        Ok(())
    }

    /// How many more schedules of this case can be run within the bounds.
    fn affords(&self, before: &Figures, bounds: &Bounds) -> u64 {
        let run = self.figures.schedules - before.schedules;
        let steps = self.figures.steps - before.steps;
        bounds.steps.saturating_sub(steps) * run / steps.max(1)
    }

    /// Adds all schedules that deviate from the last run once more, after its last deviation.
    fn open_up(
        &self,
        number: u32,
        dropped: bool,
        preemptions: usize,
        nodes: &mut Vec<Node>,
        open: &mut Vec<Vec<u32>>,
    ) {
        open.resize_with(open.len().max(preemptions + 2), Vec::new);
        let last = nodes.get(number as usize).map(|node| node.last);
        let from = last.map_or(0, |(step, _)| usize::from(step) + 1);
        let steps = self.trace.steps.iter().enumerate().skip(from);
        for (index, (step, alternatives)) in steps.enumerate() {
            let from = self.trace.path.get(index).copied().unwrap_or(END);
            let mut push = |range: std::ops::Range<u8>, cost: u8, dropped: bool| {
                for chosen in range {
                    open[preemptions + usize::from(cost)].push(nodes.len() as u32);
                    nodes.push(Node {
                        before: number,
                        from,
                        last: (step as u16, chosen),
                        cost,
                        dropped,
                    });
                }
            };
            let preempting = alternatives.free..alternatives.free + alternatives.preempting;
            let dropping = preempting.end..preempting.end + alternatives.dropping;
            push(1..alternatives.free, 0, dropped);
            push(preempting, 1, dropped);
            push(dropping, 0, true);
        }
    }

    /// Runs all schedules of a case within bounds.
    ///
    /// # Errors
    ///
    /// The first in which something is wrong.
    pub fn all(&mut self, case: &Case, bounds: &Bounds) -> Result<(), Box<Found>> {
        self.all_seen(case, bounds, |_| {})
    }

    /// Links the new states of the last run; the first state after its last deviation.
    fn link(&mut self) -> StateId {
        let Trace { path, joins, .. } = &self.trace;
        for (at, state) in path.iter().enumerate() {
            let next = path.get(at + 1).unwrap_or(joins);
            self.states.follow(*state, *next);
        }
        *path.first().unwrap_or(joins)
    }

    fn explore(
        &mut self,
        case: &Case,
        schedule: &[Deviation],
        bounds: &Bounds,
    ) -> Result<(), Box<Found>> {
        let ended = self.figures.schedules - self.figures.joined;
        let judged = ended.is_multiple_of(bounds.judge_one_in);
        let chooser = Chooser::Given(schedule);
        let result = self.run(case, chooser, bounds.drops, judged, !self.apart);
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
