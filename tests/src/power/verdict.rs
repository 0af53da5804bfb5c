//! Whether a state is one that a power cut may leave.

use std::path::Path;

use crate::oracle::{self, Tool};
use crate::power::scenario::{Action, Scenario};
use crate::scripts::IMAGE;
use crate::scripts::content::Pattern;
use crate::scripts::engine::Engine;
use crate::scripts::model::Model;
use crate::scripts::operation::Op;
use crate::scripts::storage::{Pace, block_on};
use crate::scripts::view;

/// The atom of a crash, in bytes.
const SECTOR: u64 = 512;

/// What may be there at one moment.
pub struct Legal<'a> {
    /// The disk after each step that may have been the last: the first of them is certain.
    pub disks: &'a [Model],
    /// What `check` said before anything was done.
    pub first_check: i32,
}

/// What is wrong with the image in `dir`.
///
/// # Errors
/// That, in words.
pub fn judge(scenario: &Scenario, legal: &Legal<'_>, dir: &Path) -> Result<(), String> {
    let checked = oracle::run(Tool::Img, dir, &["check", IMAGE].map(str::to_owned));
    let fine = match scenario.action {
        // Guest writes may leave clusters behind that nothing refers to.
        Action::Guest(_) => [0, 3].contains(&checked.code),
        Action::Whole(_) => checked.code == 0,
        Action::Repair(_) => [0, legal.first_check].contains(&checked.code),
    };
    if !fine {
        return Err(format!(
            "qemu-img check gives {}: {}{}",
            checked.code, checked.stdout, checked.stderr
        ));
    }
    match scenario.action {
        Action::Guest(_) => sector_by_sector(legal.disks, dir),
        Action::Whole(_) | Action::Repair(_) => old_or_new(legal.disks, dir),
    }
}

/// The whole image, snapshots and all, is one of those that may be there.
fn old_or_new(disks: &[Model], dir: &Path) -> Result<(), String> {
    let mut why = String::new();
    for model in disks {
        match view::compare_all(&dir.join(IMAGE), model) {
            Ok(()) => return Ok(()),
            Err(what) => why += &format!("\n  {what}"),
        }
    }
    Err(format!("neither old nor new:{why}"))
}

/// Every sector is one of those that may be there, and the snapshots are as they were.
fn sector_by_sector(disks: &[Model], dir: &Path) -> Result<(), String> {
    let mut image = view::open(&dir.join(IMAGE))?;
    let size = disks[0].size;
    let mut found = vec![0; size as usize];
    block_on(image.read_at(oxcow::GuestOffset(0), &mut found))
        .map_err(|error| format!("the disk cannot be read: {error:#}"))?;
    let allowed: Vec<Vec<u8>> = disks
        .iter()
        .map(|model| model.content.bytes(0..size))
        .collect();
    for at in (0..size).step_by(SECTOR as usize) {
        let sector = at as usize..(at + SECTOR).min(size) as usize;
        let is = &found[sector.clone()];
        if !allowed.iter().any(|disk| disk[sector.clone()] == *is) {
            let values: Vec<u8> = allowed.iter().map(|disk| disk[sector.start]).collect();
            return Err(format!(
                "the sector at {at} begins with {} and may begin with {values:?}",
                is[0]
            ));
        }
    }
    for saved in &disks[0].snapshots {
        block_on(image.use_snapshot(&saved.id)).map_err(|error| format!("{error:#}"))?;
        block_on(view::compare(&image, saved.size, &saved.content))
            .map_err(|what| format!("snapshot {}: {what}", saved.name))?;
    }
    Ok(())
}

/// The image is used further after the cut: a write to every other cluster, a snapshot, back and away again.
/// The snapshots stay what they were, and nothing is left behind.
///
/// # Errors
/// What is wrong, in words.
pub fn live_on(scenario: &Scenario, legal: &Legal<'_>, dir: &Path) -> Result<(), String> {
    let path = dir.join(IMAGE);
    let size = view::open(&path)?.virtual_size();
    let Some(like) = legal.disks.iter().find(|disk| disk.size == size) else {
        return Err(format!("the disk has {size} bytes"));
    };
    let snapshots = match old_or_new(legal.disks, dir) {
        // A transaction: its model is the one that fits.
        Ok(()) => {
            let fits = |disk: &&Model| view::compare_all(&path, disk).is_ok();
            let disk = legal.disks.iter().find(fits).unwrap_or(like);
            disk.snapshots.clone()
        }
        Err(_) => like.snapshots.clone(),
    };
    let mut engine = Engine::new(dir, Pace::at_once());
    let cluster = scenario.setup.cluster();
    let mut steps: Vec<Op> = (0..size / cluster)
        .step_by(2)
        .take(64)
        .map(|index| Op::Write(index * cluster..index * cluster + 512, Pattern::Fill(250)))
        .collect();
    let temporary = || "for a moment".to_owned();
    if !snapshots.is_empty() {
        steps.push(Op::Create(temporary()));
        steps.push(Op::Write(0..512, Pattern::Fill(251)));
        steps.push(Op::Apply(temporary()));
        steps.push(Op::Delete(temporary()));
    }
    if matches!(scenario.action, Action::Repair(_)) {
        // What is wrong must be made right first.
        let args = ["check", "-q", "-r", "all", IMAGE].map(str::to_owned);
        let outcome = oracle::run(Tool::Img, dir, &args);
        if outcome.code != 0 {
            return Err(format!("cannot be repaired any more: {}", outcome.stderr));
        }
    }
    for op in &steps {
        engine
            .apply(op)
            .map_err(|error| format!("afterwards, {op}: {error:#}"))?;
    }
    engine
        .let_go()
        .map_err(|error| format!("afterwards, closing: {error:#}"))?;
    // What was leaked in the cut may still be.
    view::check(&path, true).map_err(|what| format!("afterwards: {what}"))?;
    let mut image = view::open(&path)?;
    for saved in &snapshots {
        block_on(image.use_snapshot(&saved.id)).map_err(|error| format!("{error:#}"))?;
        block_on(view::compare(&image, saved.size, &saved.content))
            .map_err(|what| format!("afterwards, snapshot {}: {what}", saved.name))?;
    }
    Ok(())
}
