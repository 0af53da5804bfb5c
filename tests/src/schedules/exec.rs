//! The executor: a run goes on in one way unless it is told to deviate, and a schedule is its deviations.
//!
//! Left alone, the task that ran last goes on as far as it can, its requests completing one after the other in
//! the order in which they were made; then comes the next task. Everything else is a deviation, at a cost of one
//! *preemption*: another task goes on, a request completes earlier or later than its turn. Which task comes
//! first, and which comes when one has ended, costs nothing.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::files::{Files, NOBODY, UnderWay};
use super::states::{END, Met, StateId, States, stir};
use crate::crash::exec::Woken;
use crate::rng::Rng;

/// A deviation: at which step, and which of its alternatives. Number 0 is to go on.
pub type Deviation = (u16, u8);

/// How many alternatives a step had, by what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    /// To go on, and those that cost nothing.
    pub free: u8,
    /// Those that cost a preemption.
    pub preempting: u8,
    /// Those that drop a task.
    pub dropping: u8,
}

impl Alternatives {
    fn count(self) -> usize {
        usize::from(self.free) + usize::from(self.preempting) + usize::from(self.dropping)
    }
}

/// Where deviations come from.
pub enum Chooser<'c> {
    /// These and no others.
    Given(&'c [Deviation]),
    /// By lot: at one step in so many.
    Lot(Rng, u64),
}

/// What a run was: filled while it runs.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The alternatives of each step.
    pub steps: Vec<Alternatives>,
    /// The deviations that were made.
    pub made: Vec<Deviation>,
    /// Whether a task may be dropped, once.
    pub may_drop: bool,
    /// The states that were met for the first time, after the last deviation: the last steps'.
    pub path: Vec<StateId>,
    /// The state that another schedule went on from, or [`END`].
    pub joins: StateId,
    /// A hash of what tasks were told and of what the files held in the end.
    pub end: u64,
    /// The keys of all steps' states, where they are asked for.
    pub keys: Option<Vec<u64>>,
}

impl Trace {
    /// Whether it ended where another schedule went on.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.joins != END
    }
}

/// What can be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A task goes on; its oldest request completes first where it waits for one.
    Advance(usize),
    /// A request completes, and its task is not run at once.
    Complete(u32),
    /// A request completes, and another task goes on.
    CompleteAndAdvance(u32, usize),
    /// A task is dropped.
    Drop(usize),
}

/// How a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// It can run.
    Ready,
    /// Its oldest request is this.
    Asks(u32),
    /// It waits for time to pass, in this request.
    Sleeps(u32),
    /// It waits for others.
    Waits,
    /// It is no more.
    Over,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All tasks are done.
    Done,
    /// Tasks wait, and nothing will ever wake them.
    Stuck,
    /// It does not end.
    Endless,
    /// Another schedule went on from where it is.
    Joined,
}

/// The most steps of a run.
const MOST_STEPS: usize = 4000;

type Task<'t> = Pin<Box<dyn Future<Output = ()> + 't>>;

/// The executor.
pub struct Exec<'t> {
    files: Rc<Files>,
    tasks: Vec<(Option<Task<'t>>, Arc<Woken>, Waker)>,
    current: Option<usize>,
    actions: Vec<Action>,
    under_way: Vec<UnderWay>,
    stands: Vec<Stand>,
}

impl<'t> Exec<'t> {
    /// An executor for tasks that work on `files`.
    #[must_use]
    pub fn new(files: &Rc<Files>) -> Self {
        Self {
            files: files.clone(),
            tasks: Vec::new(),
            current: None,
            actions: Vec::new(),
            under_way: Vec::new(),
            stands: Vec::new(),
        }
    }

    /// Adds a task.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 't) {
        let (woken, waker) = Woken::new();
        self.files.add_waker(&waker);
        self.tasks.push((Some(Box::pin(task)), woken, waker));
    }

    /// Whether a task was dropped.
    #[must_use]
    pub fn has_dropped(trace: &Trace) -> bool {
        trace.made.iter().any(|(step, chosen)| {
            let step = trace.steps[usize::from(*step)];
            *chosen >= step.free + step.preempting
        })
    }

    /// Runs to the end, or with `states` to a state that another schedule went on from once all deviations are
    /// made. What was asked for and is not over in the end is completed.
    pub fn run(
        &mut self,
        mut chooser: Chooser<'_>,
        trace: &mut Trace,
        mut states: Option<&mut States>,
    ) -> Outcome {
        trace.steps.clear();
        trace.made.clear();
        trace.path.clear();
        if let Some(keys) = &mut trace.keys {
            keys.clear();
        }
        trace.joins = END;
        let mut given = 0;
        let mut may_drop = trace.may_drop;
        loop {
            if self.tasks.iter().all(|(task, ..)| task.is_none()) {
                self.settle();
                trace.end = self.files.past();
                return Outcome::Done;
            }
            let step = trace.steps.len();
            if step == MOST_STEPS {
                return Outcome::Endless;
            }
            let Some(alternatives) = self.look(may_drop) else {
                return Outcome::Stuck;
            };
            if trace.keys.is_some() {
                let key = self.key(may_drop);
                trace.keys.get_or_insert_default().push(key);
            }
            if let Some(states) = &mut states
                && let Chooser::Given(deviations) = &chooser
                && given == deviations.len()
            {
                match states.meet(self.key(may_drop)) {
                    Met::Now(state) => trace.path.push(state),
                    Met::Before(state) => {
                        trace.joins = state;
                        return Outcome::Joined;
                    }
                }
            }
            let chosen = match &mut chooser {
                Chooser::Given(deviations) => match deviations.get(given) {
                    Some((at, chosen)) if usize::from(*at) == step => {
                        given += 1;
                        *chosen
                    }
                    _ => 0,
                },
                Chooser::Lot(rng, one_in) => match rng.one_in(*one_in) {
                    // A task is dropped more seldom than others go on.
                    true if rng.one_in(8) => rng.below(alternatives.count() as u64) as u8,
                    true => rng.below(u64::from(alternatives.free + alternatives.preempting)) as u8,
                    false => 0,
                },
            };
            trace.steps.push(alternatives);
            if chosen != 0 {
                trace.made.push((step as u16, chosen));
            }
            let action = self.actions[usize::from(chosen).min(self.actions.len() - 1)];
            may_drop &= !matches!(action, Action::Drop(_));
            self.act(action);
        }
    }

    /// All that decides what can still happen.
    fn key(&self, may_drop: bool) -> u64 {
        let current = self.current.map_or(0, |task| task as u64 + 1);
        let stands = self.stands.iter().fold(current, |sum, stand| {
            let ready = u64::from(*stand == Stand::Ready);
            sum << 2 | u64::from(*stand == Stand::Over) << 1 | ready
        });
        self.files.key() ^ stir(stands << 1 | u64::from(may_drop))
    }

    /// Completes what dropped tasks left under way.
    fn settle(&mut self) {
        self.files.list(&mut self.under_way);
        for request in &self.under_way {
            self.files.complete(request.number);
        }
    }

    fn stand(&self, task: usize) -> Stand {
        let (future, woken, _) = &self.tasks[task];
        if future.is_none() {
            return Stand::Over;
        }
        if woken.is_set() {
            return Stand::Ready;
        }
        let mut asks = self.under_way.iter().filter(|r| r.task == task);
        let sleep = match asks.clone().find(|request| !request.sleeps) {
            Some(request) => return Stand::Asks(request.number),
            None => asks.next(),
        };
        sleep.map_or(Stand::Waits, |request| Stand::Sleeps(request.number))
    }

    /// Lists what can be done next, going on first; `None` where nothing can.
    fn look(&mut self, may_drop: bool) -> Option<Alternatives> {
        self.files.list(&mut self.under_way);
        self.stands.clear();
        for task in 0..self.tasks.len() {
            let stand = self.stand(task);
            self.stands.push(stand);
        }
        let moves = |stand: Stand| matches!(stand, Stand::Ready | Stand::Asks(_));
        let stands = &self.stands;
        let actions = &mut self.actions;
        actions.clear();
        let forced = self.current.is_none_or(|task| stands[task] == Stand::Over);
        let on = self
            .current
            .filter(|task| moves(stands[*task]))
            .or_else(|| stands.iter().position(|stand| moves(*stand)));
        let left = || self.under_way.iter().find(|r| r.task == NOBODY);
        let sleeper = || {
            let sleeps = |stand: &Stand| matches!(stand, Stand::Sleeps(_));
            stands.iter().position(sleeps)
        };
        // Time passes where nothing else is left to happen.
        let first = match (on, left(), sleeper()) {
            (Some(task), ..) => Action::Advance(task),
            (None, Some(request), _) => Action::Complete(request.number),
            (None, None, Some(task)) => Action::Advance(task),
            (None, None, None) => return None,
        };
        actions.push(first);
        let others = |task: &usize| first != Action::Advance(*task);
        let all = (0..stands.len()).filter(others);
        let mut alternatives = Alternatives::default();
        if forced {
            actions.extend(
                all.clone()
                    .filter(|t| moves(stands[*t]))
                    .map(Action::Advance),
            );
        }
        alternatives.free = actions.len() as u8;
        for task in all {
            match stands[task] {
                Stand::Ready if !forced => actions.push(Action::Advance(task)),
                Stand::Asks(_) if !forced => actions.push(Action::Advance(task)),
                Stand::Sleeps(_) => actions.push(Action::Advance(task)),
                _ => {}
            }
            if let Some(Stand::Asks(mine)) = on.map(|on| stands[on])
                && moves(stands[task])
            {
                actions.push(Action::CompleteAndAdvance(mine, task));
            }
        }
        for request in &self.under_way {
            let already = match first {
                Action::Complete(number) => number == request.number,
                Action::Advance(task) => {
                    stands[task] == Stand::Asks(request.number)
                        || stands[task] == Stand::Sleeps(request.number)
                }
                _ => false,
            };
            // Of a task with many requests the first few are enough, and time is not overtaken.
            if !already && !request.sleeps {
                actions.push(Action::Complete(request.number));
            }
            if request.sleeps && on == Some(request.task) {
                actions.push(Action::Complete(request.number));
            }
        }
        alternatives.preempting = actions.len() as u8 - alternatives.free;
        if may_drop {
            let alive = (0..stands.len()).filter(|task| stands[*task] != Stand::Over);
            actions.extend(alive.map(Action::Drop));
        }
        alternatives.dropping = actions.len() as u8 - alternatives.free - alternatives.preempting;
        Some(alternatives)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Advance(task) => self.advance(task),
            Action::Complete(number) => self.files.complete(number),
            Action::CompleteAndAdvance(number, task) => {
                self.files.complete(number);
                self.advance(task);
            }
            Action::Drop(task) => {
                self.files.note(stir(!(task as u64)));
                self.tasks[task].0 = None;
            }
        }
    }

    fn advance(&mut self, task: usize) {
        self.current = Some(task);
        if let Stand::Asks(number) | Stand::Sleeps(number) = self.stands[task] {
            self.files.complete(number);
        }
        let (future, woken, waker) = &mut self.tasks[task];
        let Some(running) = future else { return };
        if !woken.take() {
            return; // It waits for several.
        }
        self.files.set_task(task);
        let mut context = Context::from_waker(waker);
        if running.as_mut().poll(&mut context).is_ready() {
            *future = None;
        }
    }
}
