//! Runs a script on both sides and compares them with the model, step by step.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::oracle::{self, Tool};
use crate::ours::Build;
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::scripts::differences::{
    Difference, Plan, Steps, may_not_grow, plan, refused, too_narrow,
};
use crate::scripts::engine::{self, Engine};
use crate::scripts::judge::{self, Judge, expect};
use crate::scripts::model::{Model, Saved};
use crate::scripts::operation::Op;
use crate::scripts::program::Program;
use crate::scripts::script::Script;
use crate::scripts::setup::Data;
use crate::scripts::stock::Stock;
use crate::scripts::storage::{Pace, block_on};
use crate::scripts::{BITMAP, DATA_FILE, IMAGE, place, view};

/// How our side is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The library, in this process.
    Library,
    /// The program, a process for each step; the native tools check the image after each.
    Program(Build),
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Steps that both sides did.
    pub steps: u64,
    /// Steps that both sides refused.
    pub refusals: u64,
    /// Checks of our image by qemu-img.
    pub native_checks: u64,
    /// How often the two sides went on with each other's image.
    pub swaps: u64,
    /// Snapshots whose content was compared at the end.
    pub snapshots: u64,
    /// Differences that are meant to be there.
    pub differences: BTreeMap<Difference, u64>,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.refusals += other.refusals;
        self.native_checks += other.native_checks;
        self.swaps += other.swaps;
        self.snapshots += other.snapshots;
        for (&difference, count) in &other.differences {
            *self.differences.entry(difference).or_default() += count;
        }
    }

    fn note(&mut self, difference: Difference) {
        *self.differences.entry(difference).or_default() += 1;
    }
}

/// Runs the script.
///
/// # Errors
/// What went wrong at which step, in words.
pub fn run(script: &Script, stock: &Stock, side: Side) -> Result<Tally, String> {
    let mut pair = Pair::new(script, stock, side)?;
    for (index, op) in script.steps.iter().enumerate() {
        pair.step(op)
            .and_then(|()| pair.maybe_swap())
            .map_err(|what| format!("step {index} ({op}): {what}"))?;
    }
    pair.end().map_err(|what| format!("at the end: {what}"))?;
    Ok(pair.tally)
}

enum Ours {
    Library(Box<Engine>),
    Program(Program),
}

impl Ours {
    fn apply(&mut self, op: &Op) -> Result<(), String> {
        match self {
            Self::Library(engine) => engine.apply(op).map_err(|error| format!("{error:#}")),
            Self::Program(program) => program.apply(op),
        }
    }

    /// The same where it can be done. The program refuses what the native tools refuse, in their words: it is
    /// asked in another way then, as they are.
    fn apply_over(&mut self, op: &Op, before: &Model) -> Result<(), String> {
        let Self::Program(program) = self else {
            return self.apply(op);
        };
        match op {
            Op::Delete(which) => {
                let index = before.find(which);
                let name = index.map_or(which, |index| &before.snapshots[index].name);
                program.apply(&Op::Delete(name.clone()))
            }
            Op::Apply(_) => match program.apply(op) {
                Err(words) if words.contains(judge::HAS_BITMAP) => {
                    judge::remove_bitmap(program.dir())?;
                    program.apply(op)
                }
                other => other,
            },
            Op::Compressed(range, pattern) if !before.untouched(range.clone()) => {
                match program.apply(op) {
                    Err(words) if words.contains(judge::REFUSED) => {
                        program.apply(&Op::Write(range.clone(), *pattern))
                    }
                    other => other,
                }
            }
            _ => program.apply(op),
        }
    }

    fn let_go(&mut self) -> Result<(), String> {
        match self {
            Self::Library(engine) => engine.let_go().map_err(|error| format!("{error:#}")),
            Self::Program(_) => Ok(()),
        }
    }
}

/// Both sides at work.
struct Pair<'a> {
    script: &'a Script,
    stock: &'a Stock,
    /// Chooses what is looked at when; the script itself does not depend on it.
    rng: Rng,
    /// Whether our side closes the image after every step, so that every step must leave it clean.
    careful: bool,
    _scratch: Scratch,
    mine: PathBuf,
    theirs: PathBuf,
    ours: Ours,
    judge: Judge,
    model: Model,
    tally: Tally,
}

impl<'a> Pair<'a> {
    fn new(script: &'a Script, stock: &'a Stock, side: Side) -> Result<Self, String> {
        let mut rng = Rng::new(0x9a17_0000_0000 + script.seed);
        let scratch = place::scratch("script");
        let (mine, theirs) = (scratch.path().join("a"), scratch.path().join("b"));
        for dir in [&mine, &theirs] {
            fs::create_dir(dir).expect("the scratch folder can be written");
            stock.supply(script.setup.base.as_deref(), dir);
        }
        create(script, side, &theirs, rng.one_in(2))?;
        copy_image(&theirs, &mine);
        let pace = if rng.one_in(2) {
            Pace::waiting(script.seed)
        } else {
            Pace::at_once()
        };
        Ok(Self {
            script,
            stock,
            careful: rng.below(5) < 3,
            ours: match side {
                Side::Library => Ours::Library(Box::new(Engine::new(&mine, pace))),
                Side::Program(build) => Ours::Program(Program::new(build, &mine)),
            },
            judge: Judge::new(&theirs),
            model: Model::new(&script.setup),
            tally: Tally::default(),
            rng,
            _scratch: scratch,
            mine,
            theirs,
        })
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        if refused(op, &self.script.setup, &self.model) {
            return self.both_refuse(op);
        }
        let before = self.model.clone();
        match self.ours.apply_over(op, &before) {
            Ok(()) => {}
            Err(words) if too_narrow(op, &self.script.setup, &words) => {
                self.tally.note(Difference::RefcountsTooNarrow);
                return self.look();
            }
            Err(words) => return Err(format!("ours: {words}")),
        }
        self.model.apply(op);
        self.look()?;
        self.judge_does(op, &before)?;
        self.tally.steps += 1;
        Ok(())
    }

    /// A step that cannot be done: both sides say so, and nothing is changed.
    fn both_refuse(&mut self, op: &Op) -> Result<(), String> {
        if self.ours.apply(op).is_ok() {
            return Err("ours does what cannot be done".to_owned());
        }
        self.look()?;
        self.judge.finish()?;
        if self.judge.attempt(op).is_ok() {
            return Err("QEMU does what cannot be done".to_owned());
        }
        self.tally.refusals += 1;
        Ok(())
    }

    /// Looks at what our side has done so far.
    fn look(&mut self) -> Result<(), String> {
        let Ours::Library(engine) = &mut self.ours else {
            return self.look_at_file(false, true);
        };
        engine
            .compare(&self.model)
            .map_err(|what| format!("ours, while it is open: {what}"))?;
        if self.careful || self.rng.one_in(6) {
            engine
                .close()
                .map_err(|error| format!("closing: {error:#}"))?;
            let natively = self.rng.one_in(12);
            self.look_at_file(false, natively)?;
            if self.rng.one_in(3) {
                self.ours.let_go()?;
            }
        } else if self.rng.one_in(4) {
            engine
                .apply(&Op::Flush)
                .map_err(|error| format!("flush: {error:#}"))?;
            self.look_at_file(true, false)?;
        }
        Ok(())
    }

    /// Looks at our file; `open` says that somebody still has it, so that space may not be given back yet.
    fn look_at_file(&mut self, open: bool, natively: bool) -> Result<(), String> {
        let path = self.mine.join(IMAGE);
        view::check(&path, open).map_err(|what| format!("our file: {what}"))?;
        view::compare_all(&path, &self.model).map_err(|what| format!("our file: {what}"))?;
        if self.script.setup.data == Data::Raw {
            let cluster = self.script.setup.cluster();
            compare_raw(&self.mine.join(DATA_FILE), &self.model, cluster)?;
        }
        if natively {
            self.tally.native_checks += 1;
            judge::check(&self.mine, false).map_err(|what| format!("our file: {what}"))?;
        }
        Ok(())
    }

    fn judge_does(&mut self, op: &Op, before: &Model) -> Result<(), String> {
        if let Op::Compressed(range, _) = op
            && !before.untouched(range.clone())
        {
            self.tally.note(Difference::CompressedOverData);
        }
        let setup = &self.script.setup;
        let plan = match plan(op, setup, before) {
            Plan::Do(plan) => plan,
            Plan::Leave(difference) => {
                self.tally.note(difference);
                self.judge.finish()?;
                return self.hand_over();
            }
        };
        for &difference in &plan.instead {
            self.tally.note(difference);
        }
        let outcome = self.judge_does_steps(&plan, before);
        let Err(words) = outcome else {
            return Ok(());
        };
        let refusal = plan
            .may_refuse
            .iter()
            .find(|(_, sign)| words.contains(sign))
            .map(|&(difference, _)| difference)
            .or_else(|| too_narrow(op, setup, &words).then_some(Difference::RefcountsTooNarrow));
        let Some(difference) = refusal else {
            return Err(words);
        };
        self.tally.note(difference);
        self.hand_over()
    }

    fn judge_does_steps(&mut self, plan: &Steps, before: &Model) -> Result<(), String> {
        if !plan.may_refuse.is_empty() {
            // So that it is this step that is refused.
            self.judge
                .finish()
                .map_err(|words| format!("before this step: {words}"))?;
        }
        for (index, step) in plan.steps.iter().enumerate() {
            // What the disk holds in between is nothing to compare with.
            let read = index + 1 == plan.steps.len();
            let mut done = self.judge.apply_and(step, before, &self.model, read);
            if self.script.setup.bitmap
                && done
                    .as_ref()
                    .is_err_and(|words| words.contains(judge::HAS_BITMAP))
            {
                self.tally.note(Difference::ActiveBitmap);
                judge::remove_bitmap(&self.theirs)?;
                done = self.judge.apply_and(step, before, &self.model, read);
            }
            done?;
        }
        if !plan.may_refuse.is_empty() {
            self.judge.finish()?;
        }
        Ok(())
    }

    /// The native tools go on with a copy of our image.
    fn hand_over(&mut self) -> Result<(), String> {
        self.ours.let_go()?;
        copy_image(&self.mine, &self.theirs);
        Ok(())
    }

    /// Now and then both sides go on with the other's image.
    fn maybe_swap(&mut self) -> Result<(), String> {
        if !self.rng.one_in(8) {
            return Ok(());
        }
        self.judge.finish()?;
        self.ours.let_go()?;
        self.look_at_theirs()?;
        std::mem::swap(&mut self.mine, &mut self.theirs);
        self.judge.go_to(&self.theirs)?;
        match &mut self.ours {
            Ours::Library(engine) => engine
                .go_to(&self.mine)
                .map_err(|error| error.to_string())?,
            Ours::Program(program) => program.go_to(&self.mine),
        }
        self.tally.swaps += 1;
        Ok(())
    }

    /// Our reader reads QEMU's image, which then has no leaks.
    fn look_at_theirs(&mut self) -> Result<(), String> {
        let path = self.theirs.join(IMAGE);
        view::compare_all(&path, &self.model).map_err(|what| format!("QEMU's file: {what}"))?;
        if view::check(&path, false).is_err() {
            view::check(&path, true).map_err(|what| format!("QEMU's file: {what}"))?;
            self.tally.note(Difference::JudgeLeaked);
            let args = ["check", "-q", "-r", "leaks", IMAGE].map(str::to_owned);
            expect(&args, &oracle::run(Tool::Img, &self.theirs, &args))?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        self.judge.finish()?;
        if self.judge.opened_anew > 0 {
            let count = self
                .tally
                .differences
                .entry(Difference::CompressedIntoOthers);
            *count.or_default() += self.judge.opened_anew;
        }
        self.ours.let_go()?;
        self.look_at_file(false, true)?;
        self.look_at_theirs()?;
        // QEMU reads our disk, and its own.
        let mine = self.as_judge_reads(&self.mine)?;
        let theirs = self.as_judge_reads(&self.theirs)?;
        let args = ["compare", &mine, &theirs].map(str::to_owned);
        expect(&args, &oracle::run(Tool::Img, &self.mine, &args))?;
        for saved in self.model.snapshots.clone() {
            self.judge_reads_snapshot(&saved)?;
            self.tally.snapshots += 1;
        }
        Ok(())
    }

    /// An image with the disk of the one in `dir` that depends on no working folder.
    fn as_judge_reads(&self, dir: &Path) -> Result<String, String> {
        if self.script.setup.data == Data::Inside {
            return Ok(dir.join(IMAGE).display().to_string());
        }
        // The name of a data file is taken relative to the working folder, of which there is but one.
        let args = ["convert", "-O", "qcow2", IMAGE, "whole.qcow2"].map(str::to_owned);
        expect(&args, &oracle::run(Tool::Img, dir, &args))?;
        Ok(dir.join("whole.qcow2").display().to_string())
    }

    /// QEMU reads a snapshot of our image.
    fn judge_reads_snapshot(&mut self, saved: &Saved) -> Result<(), String> {
        let told = |what| format!("snapshot {} as QEMU reads it: {what}", saved.name);
        let read = self.mine.with_file_name("snapshot");
        let _ = fs::remove_dir_all(&read);
        fs::create_dir(&read).expect("the scratch folder can be written");
        let args: Vec<String>;
        if saved.size == self.model.size {
            let name = format!("snapshot.name={}", saved.name);
            let output = read.join(IMAGE).display().to_string();
            args = ["convert", "-l", &name, "-O", "qcow2", IMAGE, &output]
                .map(str::to_owned)
                .into();
            expect(&args, &oracle::run(Tool::Img, &self.mine, &args))?;
        } else {
            // `convert` would give it the size of today.
            let base = self.script.setup.base.as_deref();
            self.stock.supply(base, &read);
            copy_image(&self.mine, &read);
            let apply = Op::Apply(saved.name.clone());
            args = apply.img(IMAGE);
            let attempt = || expect(&args, &oracle::run(Tool::Img, &read, &args));
            let mut applied = attempt();
            if self.script.setup.bitmap
                && applied
                    .as_ref()
                    .is_err_and(|words| words.contains(judge::HAS_BITMAP))
            {
                judge::remove_bitmap(&read)?;
                applied = attempt();
            }
            if let Err(words) = applied {
                let setup = &self.script.setup;
                let grows = saved.size > self.model.size;
                let sign = may_not_grow(setup, &self.model).filter(|_| grows);
                self.tally.note(match sign {
                    Some(sign) if words.contains(sign) => Difference::GrowsOverBacking,
                    _ if too_narrow(&apply, setup, &words) => Difference::RefcountsTooNarrow,
                    _ => return Err(words),
                });
                return Ok(());
            }
            judge::check(&read, true).map_err(told)?;
        }
        let image = view::open(&read.join(IMAGE))?;
        block_on(view::compare(&image, saved.size, &saved.content)).map_err(told)
    }
}

/// Creates the start image in `dir`: by the native tools, or as our side does it.
fn create(script: &Script, side: Side, dir: &Path, natively: bool) -> Result<(), String> {
    let setup = &script.setup;
    let args = setup.create(IMAGE);
    match side {
        _ if natively => expect(&args, &oracle::run(Tool::Img, dir, &args))?,
        Side::Library => {
            engine::create(setup, dir).map_err(|error| format!("creating: {error:#}"))?;
        }
        Side::Program(build) => expect(&args, &build.run("oxcow", dir, None, &args))?,
    }
    if setup.bitmap {
        let args = ["bitmap", "--add", IMAGE, BITMAP].map(str::to_owned);
        expect(&args, &oracle::run(Tool::Img, dir, &args))?;
    }
    Ok(())
}

/// Copies an image, with its data file where it has one, and leaves holes holes.
fn copy_image(from: &Path, to: &Path) {
    for name in [IMAGE, DATA_FILE] {
        if from.join(name).exists() {
            copy_sparse(&from.join(name), &to.join(name))
                .expect("the scratch folder can be written");
        }
    }
}

fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (fs::File::open(from)?, fs::File::create(to)?);
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buf = vec![0; 256 << 10];
    let mut at = 0;
    while at < length {
        let count = from.read_at(&mut buf, at)?;
        if buf[..count].iter().any(|&byte| byte != 0) {
            to.write_all_at(&buf[..count], at)?;
        }
        at += count as u64;
    }
    Ok(())
}

/// Whether a raw data file is a raw image of the disk. As with QEMU, its last cluster may be there as a whole.
fn compare_raw(path: &Path, model: &Model, cluster: u64) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let length = bytes.len() as u64;
    let whole = model.size.next_multiple_of(cluster);
    let expected = model.content.bytes(0..length);
    if (model.size..=whole).contains(&length) && bytes == expected {
        return Ok(());
    }
    let wrong = bytes.iter().zip(&expected).position(|(a, b)| a != b);
    Err(format!(
        "the raw data file of {length} bytes is not the disk of {}: byte {wrong:?}",
        model.size
    ))
}
