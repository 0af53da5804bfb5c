//! A deterministic executor: which task runs next and which request of the storage completes next are choices,
//! and a run is its choices.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use super::disk::Queue;
use super::exec::Woken;
use super::machine::Machine;
use crate::rng::Rng;

/// The choices of a run: some given, the rest drawn by lot.
#[derive(Clone, Debug)]
pub struct Choices {
    given: Vec<u8>,
    lot: Option<Rng>,
    made: Vec<(u8, u8)>,
}

impl Choices {
    /// All by lot.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            given: Vec::new(),
            lot: Some(Rng::new(seed)),
            made: Vec::new(),
        }
    }

    /// These, then always the first one.
    #[must_use]
    pub fn given(given: Vec<u8>) -> Self {
        Self {
            given,
            lot: None,
            made: Vec::new(),
        }
    }

    /// One of `count` possibilities.
    pub fn choose(&mut self, count: usize) -> usize {
        let chosen = match (self.given.get(self.made.len()), &mut self.lot) {
            (Some(given), _) => usize::from(*given).min(count - 1),
            (None, Some(rng)) => rng.below(count as u64) as usize,
            (None, None) => 0,
        };
        self.made.push((chosen as u8, count as u8));
        chosen
    }

    /// What was chosen, so that the run can be repeated.
    #[must_use]
    pub fn made(&self) -> Vec<u8> {
        self.made.iter().map(|(chosen, _)| *chosen).collect()
    }

    /// The choices of the next run of all there are, in order; `None` after the last.
    #[must_use]
    pub fn next(&self) -> Option<Self> {
        let last = self
            .made
            .iter()
            .rposition(|(chosen, count)| chosen + 1 < *count)?;
        let mut given: Vec<u8> = self.made()[..=last].to_vec();
        given[last] += 1;
        Some(Self::given(given))
    }
}

/// A task.
type Task<'t> = Pin<Box<dyn Future<Output = ()> + 't>>;

/// The executor.
pub struct SimExec<'t> {
    machine: Rc<Machine>,
    queue: Rc<Queue>,
    tasks: Vec<(Option<Task<'t>>, Arc<Woken>, Waker)>,
    /// Whether a task may still be dropped before its end.
    may_cancel: bool,
}

/// What happened in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A task ran.
    Ran(usize),
    /// A request completed.
    Completed,
    /// A task was dropped.
    Cancelled(usize),
    /// All tasks are done.
    Done,
    /// Tasks wait, and nothing will ever wake them.
    Stuck,
}

impl<'t> SimExec<'t> {
    /// An executor for tasks on a machine whose requests wait in `queue`.
    #[must_use]
    pub fn new(machine: Rc<Machine>, queue: Rc<Queue>) -> Self {
        Self {
            machine,
            queue,
            tasks: Vec::new(),
            may_cancel: false,
        }
    }

    /// Lets one task be dropped at any moment.
    pub fn allow_cancel(&mut self) {
        self.may_cancel = true;
    }

    /// Adds a task.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 't) {
        let (woken, waker) = Woken::new();
        self.tasks.push((Some(Box::pin(task)), woken, waker));
    }

    /// Takes one step.
    pub fn step(&mut self, choices: &mut Choices) -> Step {
        let alive = |(task, ..): &&(Option<Task<'t>>, Arc<Woken>, Waker)| task.is_some();
        let unfinished = self.tasks.iter().filter(alive).count();
        if unfinished == 0 {
            return Step::Done;
        }
        let ready = self
            .tasks
            .iter()
            .filter(|(task, woken, _)| task.is_some() && woken.is_set());
        let ready = ready.count();
        let in_flight = self.queue.in_flight();
        // A task that has not begun is not worth dropping.
        let droppable = if self.may_cancel { unfinished } else { 0 };
        if ready + in_flight == 0 {
            return Step::Stuck;
        }
        let chosen = choices.choose(ready + in_flight + droppable);
        if chosen < ready {
            return self.run(chosen);
        }
        if let Some(index) = (chosen - ready < in_flight).then_some(chosen - ready) {
            self.queue.complete(&self.machine, index);
            return Step::Completed;
        }
        self.may_cancel = false;
        let mut left = chosen - ready - in_flight;
        for (index, (task, ..)) in self.tasks.iter_mut().enumerate() {
            if task.is_some() {
                if left == 0 {
                    *task = None;
                    return Step::Cancelled(index);
                }
                left -= 1;
            }
        }
        unreachable!("an unfinished task was chosen");
    }

    fn run(&mut self, chosen: usize) -> Step {
        let ready = self.tasks.iter_mut().enumerate();
        let mut ready = ready.filter(|(_, (task, woken, _))| task.is_some() && woken.is_set());
        let (index, (task, woken, waker)) = ready.nth(chosen).expect("a task that is ready");
        woken.take();
        let mut context = Context::from_waker(waker);
        let future = task.as_mut().expect("it is not done");
        if future.as_mut().poll(&mut context).is_ready() {
            *task = None;
        }
        Step::Ran(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_runs_of_a_tree_of_choices() {
        let mut runs = Vec::new();
        let mut choices = Some(Choices::given(Vec::new()));
        while let Some(mut run) = choices {
            let first = run.choose(3);
            let second = if first == 1 { run.choose(2) } else { 0 };
            runs.push((first, second));
            choices = run.next();
        }
        assert_eq!(runs, [(0, 0), (1, 0), (1, 1), (2, 0)]);
    }

    #[test]
    fn a_run_can_be_repeated() {
        let mut run = Choices::seeded(7);
        let first: Vec<usize> = (2..20).map(|count| run.choose(count)).collect();
        let mut again = Choices::given(run.made());
        let second: Vec<usize> = (2..20).map(|count| again.choose(count)).collect();
        assert_eq!(first, second);
    }
}
