//! Scripts on a machine that goes wrong: killed processes, failing storages.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use super::aftermath::{after_kill, heal};
use super::bench::{Bench, Found};
use super::contents::mix;
use super::engine::{Engine, Failure};
use super::exec::now;
use super::fault::{Fault, Plan};
use super::run::{End, Run, names};
use super::script::{Op, Request};

/// Runs scripts and lets something go wrong at every operation of the storage in turn.
#[derive(Default)]
pub struct Faults {
    /// The states that were met before.
    seen: RefCell<HashSet<u64>>,
}

/// How many operations a storage was asked for, before the last operation of a script and at its end.
struct Extent {
    changes: std::ops::Range<u64>,
    reads: std::ops::Range<u64>,
}

/// Runs a script without faults and without judging.
fn measure<E: Engine>(bench: &Rc<Bench>, ops: &[Op]) -> Option<Extent> {
    bench.begin();
    bench.watch(false);
    let mut run = Run::<E>::new(bench);
    let mut before = bench.machine.counts();
    let mut end = run.open();
    for op in ops {
        if end != End::Done {
            return None;
        }
        before = bench.machine.counts();
        end = run.op(*op);
    }
    if end != End::Done || run.finish() != End::Done {
        return None;
    }
    let after = bench.machine.counts();
    Some(Extent {
        changes: before.changes()..after.changes(),
        reads: before.reads..after.reads,
    })
}

/// A script with a fault, as it is given on a command line.
fn with_fault(ops: &[Op], fault: Fault, at: u64) -> String {
    format!("{} --fault {fault:?} --at {at}", names(ops))
}

impl Faults {
    /// Runs a script with one fault.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn one<E: Engine>(
        &self,
        bench: &Rc<Bench>,
        ops: &[Op],
        fault: Fault,
        at: u64,
    ) -> Result<(), Box<Found>> {
        match fault {
            Fault::Kill | Fault::KillTorn => self.kill::<E>(bench, ops, fault, at),
            _ => self.error::<E>(bench, ops, fault, at),
        }
    }

    /// Kills the process at every change of the last operation, and uses the image afterwards while what was
    /// written is not durable.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn kills<E: Engine>(&self, bench: &Rc<Bench>, ops: &[Op]) -> Result<(), Box<Found>> {
        let Some(extent) = measure::<E>(bench, ops) else {
            // What fails without faults is found by others.
            return bench.result(E::NAME, &names(ops)).or(Ok(()));
        };
        for fault in [Fault::Kill, Fault::KillTorn] {
            for at in extent.changes.clone() {
                self.kill::<E>(bench, ops, fault, at)?;
            }
        }
        Ok(())
    }

    fn kill<E: Engine>(
        &self,
        bench: &Rc<Bench>,
        ops: &[Op],
        fault: Fault,
        at: u64,
    ) -> Result<(), Box<Found>> {
        bench.begin();
        bench.watch(false);
        bench.machine.set_plan(Plan::new(fault, at));
        let mut run = Run::<E>::new(bench);
        let mut end = run.open();
        for op in ops {
            if end == End::Done {
                end = run.op(*op);
            }
        }
        if end == End::Done {
            run.finish();
        }
        drop(run);
        heal(&bench.machine);
        if self.is_new(bench) {
            bench.figure(|figures| figures.continued += 1);
            after_kill::<E>(bench);
        }
        bench.result(E::NAME, &with_fault(ops, fault, at))
    }

    /// Whether the machine and what is legal were never like this.
    fn is_new(&self, bench: &Bench) -> bool {
        let current = bench.machine.files().iter().fold(0, |state, file| {
            (0..file.sectors()).fold(state, |state, sector| {
                mix(state, file.current(sector).index() as u64)
            })
        });
        let key = mix(
            mix(bench.machine.hash(), bench.model.borrow().hash()),
            current,
        );
        self.seen.borrow_mut().insert(key)
    }

    /// Lets every operation of the storage fail in turn, in every way there is: the engine must say so, must
    /// stop where it no longer knows what is durable, and must leave an image that is as good as after a crash.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn errors<E: Engine>(&self, bench: &Rc<Bench>, ops: &[Op]) -> Result<(), Box<Found>> {
        let Some(extent) = measure::<E>(bench, ops) else {
            return bench.result(E::NAME, &names(ops)).or(Ok(()));
        };
        for fault in Fault::ERRORS {
            let moments = if fault.strikes_reads() {
                extent.reads.clone()
            } else {
                extent.changes.clone()
            };
            for at in moments {
                self.error::<E>(bench, ops, fault, at)?;
            }
        }
        Ok(())
    }

    fn error<E: Engine>(
        &self,
        bench: &Rc<Bench>,
        ops: &[Op],
        fault: Fault,
        at: u64,
    ) -> Result<(), Box<Found>> {
        bench.begin();
        bench.watch(false);
        bench.machine.set_plan(Plan::new(fault, at));
        let script = with_fault(ops, fault, at);
        let mut run = Run::<E>::new(bench).forgiving();
        let mut end = run.open();
        for op in ops {
            if end == End::Done {
                end = run.op(*op);
            }
        }
        if end == End::Done {
            end = run.finish();
        }
        if !bench.machine.plan_struck() {
            // There was nothing for this fault at that place.
            return bench.result(E::NAME, &script);
        }
        match run.failure() {
            // A read that was only a look ahead is done again where it is needed.
            None if fault.strikes_reads() => {}
            // Bitmaps that could not be stored stay in use.
            None if bench.start.bitmaps_apart => {}
            None if end == End::Done => {
                bench.complain("stops", format!("{fault:?} was not reported"));
            }
            Some(Failure::Corrupt(words) | Failure::Refused(words)) => {
                bench.complain("stops", format!("{fault:?} was reported as: {words}"));
            }
            _ => {}
        }
        bench.watch(true);
        bench.set_moment("after the error");
        bench.look();
        if let Some(engine) = run.engine() {
            let stopped = matches!(
                now(engine.ask(&Request::Flush)),
                Some(Err(Failure::Stopped(_)))
            );
            if matches!(fault, Fault::FlushDrops) && !stopped {
                bench.complain("stops", "it goes on after a flush failed".into());
            }
        }
        drop(run);
        heal(&bench.machine);
        if !bench.has_failed() && self.is_new(bench) {
            bench.figure(|figures| figures.continued += 1);
            after_kill::<E>(bench);
        }
        bench.result(E::NAME, &script)
    }
}
