//! What comes after a crash: the image is opened, recovered, used, and judged again.
//!
//! That an image is sound is not enough: it must stay so when it is used further (S1, M2). So for every choice
//! of metadata that the judge met at a point, one image is made, with the rest drawn by lot, and the engine
//! works on it. Opening may write (repair after a dirty shutdown, autoclear features); it is cut at every
//! moment as well.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use super::bench::{Bench, Origin};
use super::engine::Engine;
use super::judge::Violation;
use super::machine::{FileId, Machine, SimFile};
use super::model::Model;
use super::run::{End, Run};
use super::script::Op;
use super::states::Choice;
use crate::rng::Rng;

/// Continues from images that crashes left.
pub struct Aftermath {
    /// Where it is done.
    bench: Rc<Bench>,
    rng: RefCell<Rng>,
    seen: RefCell<HashSet<u64>>,
    /// One image in so many is continued from.
    one_in: u64,
    continued: Cell<u64>,
}

impl Aftermath {
    /// Continues from one in `one_in` of the images that the judge of `bench` finds sound, each choice of
    /// metadata once.
    pub fn follow<E: Engine>(bench: &Rc<Bench>, one_in: u64, seed: u64) -> Rc<Self> {
        let aftermath = Rc::new(Self {
            bench: bench.sibling(),
            rng: RefCell::new(Rng::new(seed)),
            seen: RefCell::default(),
            one_in,
            continued: Cell::new(0),
        });
        bench.judge.borrow_mut().keep_choices();
        let follower = aftermath.clone();
        bench.on_new_point(move |bench, verdict| {
            if verdict.is_ok() {
                follower.point::<E>(bench);
            }
        });
        aftermath
    }

    /// How many images were continued from.
    #[must_use]
    pub fn continued(&self) -> u64 {
        self.continued.get()
    }

    /// Continues from the images of a point.
    fn point<E: Engine>(&self, bench: &Bench) {
        let files = bench.machine.files();
        let slots = files[FileId::Image as usize].slots().len();
        let judge = bench.judge.borrow();
        for picked in judge.choices_made(slots) {
            let rng = &mut *self.rng.borrow_mut();
            if !rng.one_in(self.one_in) {
                continue;
            }
            let mut choice = Choice::random(&files, rng);
            choice.fix(picked);
            if let Err(violation) = self.image::<E>(choice.make(&files), bench.kept()) {
                let what = format!("after a crash, {}", violation.what);
                bench.report(Violation { what, ..*violation });
                return;
            }
        }
    }

    /// Continues from one image.
    fn image<E: Engine>(&self, files: [SimFile; 3], kept: usize) -> Result<(), Box<Violation>> {
        let hash = files.iter().map(SimFile::hash);
        if !self
            .seen
            .borrow_mut()
            .insert(hash.fold(0, super::contents::mix))
        {
            return Ok(());
        }
        self.continued.set(self.continued.get() + 1);
        let bench = &self.bench;
        let world = bench.extract(&files)?;
        let judged = bench.judge_these(&files, &Model::new(world.clone()), None)?;
        bench.set_origin(Origin {
            files,
            world,
            leaked: judged.leaked,
            kept,
        });
        bench.begin();
        use_image::<E>(bench);
        match bench.result(E::NAME, "") {
            Ok(()) => Ok(()),
            Err(found) => {
                let what = format!("{}: {}", found.moment, found.violation.what);
                Err(Box::new(Violation {
                    what,
                    ..found.violation
                }))
            }
        }
    }
}

/// Opens the image of a bench, which is cut at every moment of it; then changes all of it, takes a snapshot,
/// reverts to it, and compares everything at the end.
fn use_image<E: Engine>(bench: &Rc<Bench>) {
    bench.set_moment("recovering");
    let mut run = Run::<E>::afterwards(bench);
    if run.open() != End::Done {
        return;
    }
    run.read_back();
    // The first change repairs a dirty image.
    let mut end = run.op(Op::Flush);
    bench.watch(false);
    if end == End::Done {
        end = run.write_everywhere();
    }
    for op in [
        Op::Flush,
        Op::Create,
        Op::WriteAcross,
        Op::CompressMany,
        Op::Flush,
        Op::Apply,
        Op::WriteZeroed,
        Op::DeleteLast,
    ] {
        if end == End::Done {
            end = run.op(op);
        }
    }
    bench.watch(true);
    if end == End::Done && run.finish() == End::Done && run.open() == End::Done {
        run.read_back();
    }
}

/// What is done to an image after a kill: enough to use again everything that seems to be free.
pub const AFTER_KILL: [Op; 7] = [
    Op::WriteHole,
    Op::WriteFar,
    Op::CompressMany,
    Op::Flush,
    Op::Create,
    Op::WriteAcross,
    Op::Flush,
];

/// Opens the image that a killed process left, while what that process wrote is not durable yet, and uses it:
/// every moment of that is judged.
pub fn after_kill<E: Engine>(bench: &Rc<Bench>) {
    let seen = super::states::as_seen(&bench.machine.files());
    match bench.extract(&seen) {
        Ok(world) => bench.model.borrow_mut().after_kill(world),
        Err(violation) => return bench.report(*violation),
    }
    bench.watch(true);
    bench.limit_leaks(None);
    bench.set_moment("opening after a kill");
    let mut run = Run::<E>::afterwards(bench);
    let mut end = run.open();
    if end == End::Done {
        run.read_back();
    }
    for op in AFTER_KILL {
        if end == End::Done {
            end = run.op(op);
        }
    }
    if end == End::Done {
        run.read_back();
    }
}

/// Forgets what is going to go wrong with a machine.
pub fn heal(machine: &Machine) {
    machine.set_plan(super::fault::Plan::default());
}
