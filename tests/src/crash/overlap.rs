//! Guest operations that overlap, under every schedule that is asked for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::bench::{Bench, Found};
use super::contents::{Content, SECTOR};
use super::disk::Queue;
use super::engine::{Engine, Failure};
use super::script::{Meaning, Request, Step, Steps};
use super::sim_exec::{Choices, SimExec, Step as ExecStep};

/// What a task does. Everything is whole sectors, so that what is written does not depend on what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestOp {
    /// One sector in the middle of cluster 1.
    WriteSector,
    /// All of cluster 1.
    WriteCluster,
    /// From inside cluster 1 to inside cluster 2.
    WriteAcross,
    /// A cluster in a hole.
    WriteHole,
    /// Cluster 1, compressed.
    Compress,
    /// Clusters 1 and 2 become zeros and are given back.
    Zeroes,
    /// Clusters 0 to 2 are discarded.
    Discard,
    /// Flush.
    Flush,
    /// Reads clusters 0 to 3.
    Read,
    /// Fills the image from its backing file.
    Hydrate,
}

impl GuestOp {
    /// The operation with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::Hydrate]);
        all.find(|op| format!("{op:?}") == name)
    }

    /// All of them that a guest does.
    pub const ALL: [Self; 9] = [
        Self::WriteSector,
        Self::WriteCluster,
        Self::WriteAcross,
        Self::WriteHole,
        Self::Compress,
        Self::Zeroes,
        Self::Discard,
        Self::Flush,
        Self::Read,
    ];

    fn steps(self, steps: &mut Steps<'_>, bench: &Bench) -> Vec<Step> {
        let world = bench.model.borrow().world().clone();
        let cluster = bench.start.geometry.cluster_bytes;
        let sector = SECTOR as u64;
        match self {
            Self::WriteSector => {
                steps.write(&world, cluster + cluster / 2 / sector * sector, sector)
            }
            Self::WriteCluster => steps.write(&world, cluster, cluster),
            Self::WriteAcross => {
                let inside = (cluster / 2).max(sector);
                steps.write(&world, 2 * cluster - inside, 2 * inside)
            }
            Self::WriteHole => steps.write(&world, 7 * cluster, cluster),
            Self::Compress => steps.compress(&world, cluster, 1),
            Self::Zeroes => steps.zeroes(&world, cluster, 2 * cluster, true),
            Self::Discard => steps.discard(&world, 0, 3 * cluster),
            Self::Flush => vec![Step {
                request: Request::Flush,
                meaning: Meaning::Flush,
                success: super::script::Success::Must,
            }],
            Self::Read | Self::Hydrate => Vec::new(),
        }
    }
}

/// A run of tasks that overlap.
pub struct Overlap<'b, E> {
    bench: &'b Rc<Bench>,
    engine: E,
    steps: RefCell<Steps<'b>>,
    /// Every value written: (sector, value, number of the write).
    written: RefCell<Vec<(usize, Content, u32)>>,
    writes: Cell<u32>,
}

impl<E: Engine> Overlap<'_, E> {
    /// Runs one task.
    async fn task(&self, op: GuestOp) {
        if op == GuestOp::Read {
            return self
                .read(0, 4 * self.bench.start.geometry.cluster_bytes)
                .await;
        }
        if op == GuestOp::Hydrate {
            if let Err(failure) = self.engine.hydrate().await {
                self.bench
                    .complain("does", format!("hydrating: {failure:?}"));
            }
            return;
        }
        let steps = op.steps(&mut self.steps.borrow_mut(), self.bench);
        for step in steps {
            self.step(&step).await;
        }
    }

    async fn step(&self, step: &Step) {
        let bench = self.bench;
        bench.look();
        let ticket = match &step.meaning {
            Meaning::Changes(changes) => {
                self.writes.set(self.writes.get() + 1);
                let number = self.writes.get();
                let values = changes
                    .iter()
                    .map(|(sector, value)| (*sector, *value, number));
                self.written.borrow_mut().extend(values);
                bench.model.borrow_mut().issue(changes)
            }
            _ => bench.model.borrow_mut().call_flush(),
        };
        match self.engine.ask(&step.request).await {
            Ok(()) => {
                let mut model = bench.model.borrow_mut();
                match step.meaning {
                    Meaning::Flush => model.flushed(ticket),
                    _ => model.complete(ticket),
                }
            }
            // Not done, and never will be.
            Err(Failure::Refused(_)) if step.success != super::script::Success::Must => {}
            Err(failure) => bench.complain("does", format!("{failure:?}")),
        }
        bench.look();
    }

    /// Reads, and compares with what was there when it began and what was written since.
    async fn read(&self, from: u64, length: u64) {
        let bench = self.bench;
        let length = length.min(self.engine.size() - from);
        let sectors = from as usize / SECTOR..(from + length) as usize / SECTOR;
        let at_first: Vec<Vec<Content>> = {
            let model = bench.model.borrow();
            let values = &model.world().values;
            sectors
                .clone()
                .map(|sector| values.readable(sector))
                .collect()
        };
        let before = self.writes.get();
        let mut bytes = vec![0; length as usize];
        if let Err(failure) = self.engine.read(from, &mut bytes).await {
            bench.complain("reads", format!("{failure:?}"));
            return;
        }
        let table = bench.contents.table();
        let written = self.written.borrow();
        for (index, (sector, bytes)) in sectors.zip(bytes.chunks_exact(SECTOR)).enumerate() {
            let since = written
                .iter()
                .filter(|(at, _, number)| *at == sector && *number > before)
                .map(|(_, value, _)| value);
            let mut legal = at_first[index].iter().chain(since);
            if !legal.any(|value| table.bytes(*value) == bytes) {
                let what = format!("sector {sector} reads {:x?}...", &bytes[..16]);
                bench.complain("reads", what);
                return;
            }
        }
    }
}

/// Runs the tasks of `ops` at once, then flushes, reads everything and closes. `cancel` lets one of them be
/// dropped at any moment.
///
/// # Errors
///
/// The first violation, with the choices that led to it.
pub fn overlap<E: Engine>(
    bench: &Rc<Bench>,
    ops: &[GuestOp],
    cancel: bool,
    choices: &mut Choices,
) -> Result<(), Box<Found>> {
    bench.begin();
    bench.set_moment("overlapping");
    let queue = Rc::new(Queue::default());
    // Opening is no part of it: its requests complete in order.
    let engine = {
        let mut opened = None;
        let mut exec = SimExec::new(bench.machine.clone(), queue.clone());
        exec.spawn(async { opened = Some(E::open(&bench.machine, Some(&queue)).await) });
        while matches!(
            exec.step(&mut Choices::given(Vec::new())),
            ExecStep::Ran(_) | ExecStep::Completed
        ) {}
        drop(exec);
        opened
    };
    let script = |choices: &Choices| {
        let ops: Vec<String> = ops.iter().map(|op| format!("{op:?}")).collect();
        let made: Vec<String> = choices.made().iter().map(u8::to_string).collect();
        let cancel = if cancel { " --cancel" } else { "" };
        format!(
            "--overlap '{}'{cancel} --choices {}",
            ops.join(","),
            made.join(",")
        )
    };
    let engine = match engine {
        Some(Ok(engine)) => engine,
        other => {
            bench.complain("does", format!("opening: {:?}", other.map(|r| r.err())));
            return bench.result(E::NAME, &script(choices));
        }
    };
    let run = Overlap {
        bench,
        engine,
        steps: RefCell::new(Steps::new(&bench.start, &bench.contents)),
        written: RefCell::default(),
        writes: Cell::new(0),
    };
    bench.figure(|figures| figures.scripts += 1);
    let mut exec = SimExec::new(bench.machine.clone(), queue.clone());
    if cancel {
        exec.allow_cancel();
    }
    for op in ops {
        exec.spawn(run.task(*op));
    }
    finish(bench, &mut exec, choices);
    // Then one after the other, with late requests of a dropped task still in flight.
    exec.spawn(async {
        run.read(0, run.engine.size()).await;
        run.task(GuestOp::Flush).await;
        run.read(0, run.engine.size()).await;
        run.step(&Steps::close()).await;
    });
    finish(bench, &mut exec, choices);
    drop(exec);
    while queue.in_flight() > 0 {
        queue.complete(&bench.machine, 0);
    }
    bench.look();
    bench.result(E::NAME, &script(choices))
}

fn finish(bench: &Bench, exec: &mut SimExec<'_>, choices: &mut Choices) {
    while !bench.has_failed() {
        match exec.step(choices) {
            ExecStep::Done => return,
            ExecStep::Stuck => bench.complain("does", "all tasks wait for one another".into()),
            _ => {}
        }
    }
}
