//! A machine, a model of what its guest may see, and a judge that looks whenever something stops being
//! possible.
//!
//! What a crash may leave grows with every write and shrinks only when a flush completes; what is legal grows
//! when a guest begins something and shrinks when it is told that it is done. So it is enough to look just
//! before a flush completes, before something begins, and after something was done: every crash in between
//! leaves an image that is judged at the next look, by the same rules.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::rc::Rc;

use super::contents::{AlreadyHashed, Contents, mix};
use super::judge::{Expectation, Judge, Tally, Violation};
use super::machine::{FileId, Machine, Observer, SimFile};
use super::model::{Model, World};
use super::starts::{Start, StartKind};

/// The most states of one point that count. A point at which a few large clusters are being copied has 2^64 of
/// them; all are judged, but they would make every other number invisible.
pub const CAP: u128 = 1 << 16;

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Scripts run.
    pub scripts: u64,
    /// Points at which it was looked: a set of images that a crash may leave, and what is legal.
    pub points: u64,
    /// Points that were exactly like an earlier one, and not judged again.
    pub known: u64,
    /// Points at which the choices of metadata were sampled.
    pub sampled: u64,
    /// Choices of metadata that were walked from the header to the last cluster.
    pub choices: u64,
    /// Crash states judged, those of one point counted up to [`CAP`].
    pub states: u64,
    /// Those that differ in metadata: without the combinations of versions of guest data. Capped as well.
    pub metadata: u64,
    /// Images that were used on after a kill or an error.
    pub continued: u64,
}

impl Figures {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.scripts += other.scripts;
        self.points += other.points;
        self.known += other.known;
        self.sampled += other.sampled;
        self.choices += other.choices;
        self.states += other.states;
        self.metadata += other.metadata;
        self.continued += other.continued;
    }

    fn judged(&mut self, tally: &Tally) {
        self.choices += tally.choices;
        self.sampled += u64::from(tally.sampled);
        self.states += tally.images.min(CAP) as u64;
        self.metadata += tally.metadata_images.min(CAP) as u64;
    }
}

/// A violation, and how to see it again.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which engine.
    pub engine: &'static str,
    /// Where it began.
    pub start: StartKind,
    /// What was done, as it is told to `cargo xtask crash`.
    pub script: String,
    /// When.
    pub moment: String,
    /// What is wrong.
    pub violation: Violation,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: start {:?}, {}, {}: {}",
            self.engine, self.start, self.script, self.moment, self.violation
        )?;
        if self.engine == "oxcow" {
            write!(
                f,
                "\n    again: cargo xtask crash --start {:?} {}",
                self.start, self.script
            )?;
        }
        Ok(())
    }
}

/// Where runs begin: a start state, or what a crash left.
pub struct Origin {
    /// The files.
    pub files: [SimFile; 3],
    /// What they hold.
    pub world: World,
    /// How many clusters are leaked.
    pub leaked: u64,
    /// How many sectors at the beginning of the disk were always there.
    pub kept: usize,
}

/// What a judge says of the images of a point.
pub type Judgement = Result<Tally, Box<Violation>>;

/// Called with every point that is judged for the first time, and the verdict.
type OnNewPoint = Box<dyn FnMut(&Bench, Result<&Tally, &Violation>)>;

/// The bench. It is used for many scripts from one start state, one after the other.
pub struct Bench {
    /// The start state.
    pub start: Rc<Start>,
    /// Where runs begin.
    pub origin: RefCell<Rc<Origin>>,
    /// The machine.
    pub machine: Rc<Machine>,
    /// The contents of its sectors.
    pub contents: Rc<Contents>,
    /// What the guest may see.
    pub model: RefCell<Model>,
    /// The judge.
    pub judge: RefCell<Judge>,
    /// What was looked at.
    pub figures: Cell<Figures>,
    on_new_point: RefCell<Option<OnNewPoint>>,
    kept: Cell<usize>,
    watching: Cell<bool>,
    tolerant: Cell<bool>,
    most_leaked: Cell<Option<u64>>,
    seen: RefCell<HashSet<u64, BuildHasherDefault<AlreadyHashed>>>,
    violation: RefCell<Option<(String, Violation)>>,
    moment: RefCell<String>,
}

impl Observer for Bench {
    fn before_flush(&self, _: &Machine) {
        self.look();
    }
}

impl Bench {
    /// A bench for scripts from `kind`.
    #[must_use]
    pub fn new(kind: StartKind) -> Rc<Self> {
        let contents = Rc::new(Contents::default());
        let start = Rc::new(Start::new(kind, &contents));
        let origin = Origin {
            files: start.files.clone(),
            world: start.world.clone(),
            leaked: start.leaked,
            kept: usize::MAX,
        };
        Self::at(start, contents, Rc::new(origin))
    }

    /// A bench for runs from another origin that this bench's start state led to. It shares the contents.
    #[must_use]
    pub fn sibling(&self) -> Rc<Self> {
        let origin = self.origin.borrow().clone();
        Self::at(self.start.clone(), self.contents.clone(), origin)
    }

    fn at(start: Rc<Start>, contents: Rc<Contents>, origin: Rc<Origin>) -> Rc<Self> {
        let machine = Rc::new(Machine::new(contents.clone(), origin.files.clone()));
        let bench = Rc::new(Self {
            model: RefCell::new(Model::new(origin.world.clone())),
            start,
            origin: RefCell::new(origin),
            machine,
            contents,
            judge: RefCell::default(),
            figures: Cell::default(),
            on_new_point: RefCell::default(),
            kept: Cell::new(usize::MAX),
            watching: Cell::new(true),
            tolerant: Cell::new(false),
            most_leaked: Cell::new(None),
            seen: RefCell::default(),
            violation: RefCell::default(),
            moment: RefCell::default(),
        });
        let observer: Rc<dyn Observer> = bench.clone();
        bench.machine.observe(Rc::downgrade(&observer));
        bench
    }

    /// Lets runs begin somewhere else.
    pub fn set_origin(&self, origin: Origin) {
        *self.origin.borrow_mut() = Rc::new(origin);
        self.seen.borrow_mut().clear();
    }

    /// Calls `call` with every point that is judged for the first time, and the verdict.
    pub fn on_new_point(&self, call: impl FnMut(&Self, Result<&Tally, &Violation>) + 'static) {
        *self.on_new_point.borrow_mut() = Some(Box::new(call));
    }

    /// Begins again at the origin.
    pub fn begin(&self) {
        let origin = self.origin.borrow().clone();
        self.machine.reset_to(&origin.files);
        *self.model.borrow_mut() = Model::new(origin.world.clone());
        self.kept.set(origin.kept);
        self.most_leaked.set(None);
        *self.violation.borrow_mut() = None;
        self.watching.set(true);
    }

    /// Whether it looks, or is only on its way.
    pub fn watch(&self, watching: bool) {
        self.watching.set(watching);
    }

    /// Goes on after a violation: somebody else counts them.
    pub fn tolerate(&self) {
        self.tolerant.set(true);
    }

    /// What is going on, for messages.
    pub fn set_moment(&self, moment: &str) {
        let mut text = self.moment.borrow_mut();
        text.clear();
        text.push_str(moment);
    }

    /// Allows so many leaked clusters from now on; `None` for any number.
    pub fn limit_leaks(&self, most: Option<u64>) {
        self.most_leaked.set(most);
    }

    /// How many sectors at the beginning of the disk were always there.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.get()
    }

    /// How many leaked clusters are allowed now.
    #[must_use]
    pub fn most_leaked(&self) -> Option<u64> {
        self.most_leaked.get()
    }

    /// Changes the figures.
    pub fn figure(&self, change: impl FnOnce(&mut Figures)) {
        let mut figures = self.figures.get();
        change(&mut figures);
        self.figures.set(figures);
    }

    /// The figures so far; begins to count anew.
    pub fn take_figures(&self) -> Figures {
        self.figures.take()
    }

    /// Remembers the first thing that is wrong.
    pub fn report(&self, violation: Violation) {
        let mut first = self.violation.borrow_mut();
        if first.is_none() {
            let changes = self.machine.counts().changes();
            let moment = format!("{} (change {changes})", self.moment.borrow());
            *first = Some((moment, violation));
        }
    }

    /// Something is wrong that has no rule of its own.
    pub fn complain(&self, rule: &'static str, what: String) {
        self.report(Violation {
            rule,
            what,
            chosen: Vec::new(),
        });
    }

    /// What was found wrong, as found by `engine` in `script`.
    pub fn result(&self, engine: &'static str, script: &str) -> Result<(), Box<Found>> {
        match self.violation.borrow_mut().take() {
            None => Ok(()),
            Some((moment, violation)) => Err(Box::new(Found {
                engine,
                start: self.start.kind,
                script: script.to_owned(),
                moment,
                violation,
            })),
        }
    }

    /// Whether something was found wrong.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.violation.borrow().is_some()
    }

    /// Judges every image that a crash may leave now.
    pub fn look(&self) {
        // Also of a process that is only on its way to its end: the next one opens what that has cut off.
        self.notice_size(&self.model.borrow());
        if !self.watching.get() || self.has_failed() {
            return;
        }
        let model = self.model.borrow();
        self.figure(|figures| figures.points += 1);
        let limit = self.most_leaked.get().map_or(0, |most| most + 1);
        let key = mix(mix(self.machine.hash(), model.hash()), limit);
        if !self.seen.borrow_mut().insert(key) {
            self.figure(|figures| figures.known += 1);
            return;
        }
        let judged = self.judge_files(&model, self.most_leaked.get());
        drop(model);
        if let Some(call) = &mut *self.on_new_point.borrow_mut() {
            call(self, judged.as_ref().map_err(|violation| &**violation));
        }
        match judged {
            Ok(tally) => self.figure(|figures| figures.judged(&tally)),
            Err(_) if self.tolerant.get() => {}
            Err(violation) => self.report(*violation),
        }
    }

    /// How many clusters are leaked now, if the image is sound and nothing waits to be made durable.
    #[must_use]
    pub fn count_leaks(&self) -> Option<u64> {
        let model = self.model.borrow();
        if !self.machine.is_settled() || !model.is_settled() {
            return None;
        }
        let judged = self.judge_files(&model, None);
        judged.ok().map(|tally| tally.leaked)
    }

    fn judge_files(&self, model: &Model, most_leaked: Option<u64>) -> Judgement {
        let files = self.machine.files();
        self.judge_these(&files, model, most_leaked)
    }

    /// Remembers how small the disk ever was.
    fn notice_size(&self, model: &Model) {
        let smallest = model.worlds().map(|world| world.values.sectors()).min();
        self.kept.set(self.kept.get().min(smallest.unwrap_or(0)));
    }

    /// Judges other files by what is legal now.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn judge_these(
        &self,
        files: &[SimFile; 3],
        model: &Model,
        most_leaked: Option<u64>,
    ) -> Judgement {
        self.notice_size(model);
        let expectation = Expectation {
            worlds: model.worlds().collect(),
            pristine: &self.start.world,
            kept: self.kept.get(),
            backing: files[FileId::Backing as usize].durable_all(),
            most_leaked,
        };
        let mut judge = self.judge.borrow_mut();
        judge.judge(&self.contents, files, &expectation)
    }

    /// What files without un-flushed versions hold, read by the independent checker.
    ///
    /// # Errors
    ///
    /// Where their structure is unsound.
    pub fn extract(&self, files: &[SimFile; 3]) -> Result<World, Box<Violation>> {
        let mut judge = self.judge.borrow_mut();
        let backing = files[FileId::Backing as usize].durable_all();
        judge.extract(&self.contents, files, backing)
    }
}
