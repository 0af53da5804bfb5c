//! Runs a script on an engine, one operation after the other.

use std::rc::Rc;

use super::bench::{Bench, Found};
use super::contents::{Content, SECTOR};
use super::engine::{Engine, Failure};
use super::exec::now;
use super::model::STATE_SECTORS;
use super::script::{Meaning, Op, Request, Step, Steps, Success};

/// A script as it is given on a command line.
#[must_use]
pub fn names(ops: &[Op]) -> String {
    let names: Vec<String> = ops.iter().map(|op| format!("{op:?}")).collect();
    format!("--script '{}'", names.join(","))
}

/// The number of the first write after a crash: unlike any before it.
const AFTERWARDS: u32 = 1000;

/// Where a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At its end.
    Done,
    /// The process was killed.
    Killed,
    /// An operation failed that had to succeed.
    Failed,
}

/// A script on its way.
pub struct Run<'b, E> {
    bench: &'b Rc<Bench>,
    steps: Steps<'b>,
    engine: Option<E>,
    /// Whether failures are expected: something is going to go wrong with the storage.
    forgiving: bool,
    /// What failed first.
    failure: Option<Failure>,
    /// How many clusters may be leaked when the image is closed.
    most_leaked_at_end: u64,
}

impl<'b, E: Engine> Run<'b, E> {
    /// A run from the bench's start state.
    pub fn new(bench: &'b Rc<Bench>) -> Self {
        Self {
            bench,
            steps: Steps::new(&bench.start, &bench.contents),
            engine: None,
            forgiving: false,
            failure: None,
            most_leaked_at_end: bench.origin.borrow().leaked,
        }
    }

    /// A run on the image as it is, after a crash.
    pub fn afterwards(bench: &'b Rc<Bench>) -> Self {
        let steps = Steps::new(&bench.start, &bench.contents).numbered_from(AFTERWARDS);
        Self {
            steps,
            ..Self::new(bench)
        }
    }

    /// A run in which the storage may fail.
    #[must_use]
    pub fn forgiving(self) -> Self {
        Self {
            forgiving: true,
            ..self
        }
    }

    /// What failed first, where failures are forgiven.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The engine, where it is open.
    pub fn engine(&self) -> Option<&E> {
        self.engine.as_ref()
    }

    /// Opens the image.
    pub fn open(&mut self) -> End {
        self.engine = None;
        let end = match now(E::open(&self.bench.machine, None)) {
            Some(Ok(engine)) => {
                if let Some((version, has_backing)) = engine.version() {
                    self.steps.is_of_version(version, has_backing);
                }
                self.engine = Some(engine);
                End::Done
            }
            Some(Err(failure)) => self.failed("opening", failure),
            None => self.stuck("opening"),
        };
        self.bench.look();
        end
    }

    /// Does one operation.
    pub fn op(&mut self, op: Op) -> End {
        self.bench.set_moment(&format!("{op:?}"));
        let steps = self.steps.of(op, self.bench.model.borrow().world());
        for step in steps {
            let end = self.step(&step);
            if end != End::Done {
                if op == Op::Commit {
                    // A program of its own, which has ended: the image was closed before, and what failed may be
                    // another file.
                    self.engine = None;
                }
                return end;
            }
        }
        if op.reopens() { self.open() } else { End::Done }
    }

    /// Writes something to every part of the disk, in pieces of three sectors.
    pub fn write_everywhere(&mut self) -> End {
        self.bench.set_moment("writing everywhere");
        let size = self.bench.model.borrow().world().size;
        // A long disk is mostly holes.
        let stride = (size / 60).max(3 * SECTOR as u64 + 200);
        let mut at = 100;
        while at < size {
            let length = 3 * SECTOR as u64;
            let steps = self
                .steps
                .write(self.bench.model.borrow().world(), at, length);
            for step in steps {
                let end = self.step(&step);
                if end != End::Done {
                    return end;
                }
            }
            at += stride;
        }
        End::Done
    }

    /// Flushes and closes the image.
    pub fn finish(&mut self) -> End {
        let end = self.op(Op::Flush);
        if end != End::Done {
            return end;
        }
        self.bench.set_moment("closing");
        let end = self.step(&Steps::close());
        if end == End::Done {
            // Nothing may be left behind, but what was leaked at first.
            self.bench.limit_leaks(Some(self.most_leaked_at_end));
            self.bench.look();
            self.bench.limit_leaks(None);
        }
        end
    }

    /// Asks the engine for one thing.
    pub fn step(&mut self, step: &Step) -> End {
        let bench = self.bench;
        let Some(engine) = &self.engine else {
            return End::Failed;
        };
        let certain = step.success != Success::MustNot;
        bench.look();
        let mut ticket = None;
        match &step.meaning {
            _ if !certain => {}
            Meaning::Changes(changes) => ticket = Some(bench.model.borrow_mut().issue(changes)),
            Meaning::StateChanges(changes) => {
                ticket = Some(bench.model.borrow_mut().issue_vm_state(changes));
            }
            Meaning::Flush => ticket = Some(bench.model.borrow_mut().call_flush()),
            Meaning::Switch(world) => {
                // A transaction from a settled image leaks nothing, whenever it is cut.
                // What is written before it, as a guest writes, may be leaked.
                let writes = matches!(step.request, Request::Rebase(_) | Request::Version(2));
                let limited = !bench.start.bitmaps_apart && !writes;
                bench.limit_leaks(bench.count_leaks().filter(|_| limited));
                bench.model.borrow_mut().begin_switch(world.clone());
            }
            Meaning::Nothing => bench.limit_leaks(bench.count_leaks()),
        }
        let Some(answer) = now(engine.ask(&step.request)) else {
            return self.stuck("an operation");
        };
        match (answer, step.success) {
            (Ok(()), Success::MustNot) => {
                bench.complain("does", format!("{:?} was not refused", step.request));
                return End::Failed;
            }
            (Ok(()), _) => {
                let mut model = bench.model.borrow_mut();
                match (&step.meaning, ticket) {
                    (Meaning::Changes(_) | Meaning::StateChanges(_), Some(ticket)) => {
                        model.complete(ticket);
                    }
                    (Meaning::Flush, Some(ticket)) => model.flushed(ticket),
                    (Meaning::Switch(_), _) => model.complete_switch(),
                    _ => {}
                }
            }
            (Err(Failure::Refused(_)), Success::May | Success::MustNot) => {
                if matches!(step.meaning, Meaning::Switch(_)) {
                    bench.model.borrow_mut().refuse_switch();
                }
            }
            (Err(failure), _) => {
                let name = format!("{:?}", step.request);
                return self.failed(name.get(..name.len().min(60)).unwrap_or("?"), failure);
            }
        }
        if step.request == Request::Repair {
            self.most_leaked_at_end = 0;
        }
        bench.look();
        bench.limit_leaks(None);
        if bench.has_failed() {
            End::Failed
        } else {
            End::Done
        }
    }

    /// Reads all of the disk and what is known of the state of a virtual machine, and compares.
    pub fn read_back(&self) {
        let (bench, Some(engine)) = (self.bench, &self.engine) else {
            return;
        };
        let model = bench.model.borrow();
        let world = model.world();
        if engine.size() != world.size {
            let sizes = format!("{} bytes, not {}", engine.size(), world.size);
            bench.complain("reads", format!("the disk has {sizes}"));
            return;
        }
        let mut bytes = vec![0; world.size as usize];
        match now(engine.read(0, &mut bytes)) {
            Some(Ok(())) => {}
            other => {
                bench.complain("reads", format!("reading the disk gives {other:?}"));
                return;
            }
        }
        let table = bench.contents.table();
        for (sector, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
            if table.bytes(world.values.latest(sector)) != bytes {
                let what = format!("sector {sector} reads {:x?}...", &bytes[..16]);
                bench.complain("reads", what);
                return;
            }
        }
        // Elsewhere the backing file shows in it.
        let geometry = &bench.start.geometry;
        if world.size.next_multiple_of(geometry.table_bytes) < geometry.backing_bytes {
            return;
        }
        let mut bytes = vec![0; STATE_SECTORS * SECTOR];
        if let Some(Ok(())) = now(engine.read_vm_state(&mut bytes)) {
            let known = world.vm_state.latest_all();
            let expected = known.into_iter().chain(std::iter::repeat(Content::ZERO));
            for ((sector, bytes), expected) in bytes.chunks_exact(SECTOR).enumerate().zip(expected)
            {
                if table.bytes(expected) != bytes {
                    let what = format!(
                        "sector {sector} of the virtual machine's state reads {:x?}...",
                        &bytes[..16]
                    );
                    bench.complain("reads", what);
                    return;
                }
            }
        } else {
            bench.complain("reads", "the virtual machine's state cannot be read".into());
        }
    }

    fn failed(&mut self, what: &str, failure: Failure) -> End {
        if !self.forgiving {
            self.bench
                .complain("does", format!("{what} failed: {failure:?}"));
        }
        self.failure.get_or_insert(failure);
        End::Failed
    }

    fn stuck(&mut self, what: &str) -> End {
        // Whatever it waits for never comes; its requests die with it.
        self.engine = None;
        if self.bench.machine.plan_struck() {
            return End::Killed;
        }
        self.bench.complain("does", format!("{what} hangs"));
        End::Failed
    }
}

/// Runs `ops`, judging all that a crash may leave from operation number `watch_from` on to the end, at which
/// the image is flushed and closed.
///
/// # Errors
///
/// The first violation.
pub fn run<E: Engine>(bench: &Rc<Bench>, ops: &[Op], watch_from: usize) -> Result<(), Box<Found>> {
    bench.begin();
    let mut run = Run::<E>::new(bench);
    bench.set_moment("opening");
    bench.watch(ops.is_empty());
    let mut end = run.open();
    for (index, op) in ops.iter().enumerate() {
        if end != End::Done {
            break;
        }
        bench.watch(index >= watch_from);
        end = run.op(*op);
    }
    if end == End::Done {
        bench.watch(true);
        run.read_back();
        run.finish();
    }
    bench.figure(|figures| figures.scripts += 1);
    bench.result(E::NAME, &names(ops))
}
