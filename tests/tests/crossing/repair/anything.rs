//! Images broken field by field: whatever a repair makes of them, what could be read can be read, and what
//! the native tool can repair is repaired.

use std::collections::BTreeMap;
use std::fs;

use oxcow::RepairMode;
use oxcow_tests::damage::{self, Damage};
use oxcow_tests::gallery::{Picture, make_all};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::parallel;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::scratch::Scratch;

use super::memory::{readable, repair_bytes};

/// Where the native tool ends with a clean image and ours does not: how the name begins, and why.
const LEFT: &[(&str, &str)] = &[
    (
        "header-snapshot",
        "the judge drops snapshots that it cannot read",
    ),
    ("snapshot-", "the judge drops snapshots that it cannot read"),
];

/// After how many repairs there is nothing left to do.
fn goes(name: &str) -> Option<usize> {
    match name {
        // An L1 entry takes the header for a table. The place of the refcount table is an entry of that, and
        // another one after each repair.
        "header-l1-size-plus-512" | "table-v3-l1-header" => None,
        // The refcount table is also data. Once that is for itself, its flag can be made right.
        "table-v3-l2-data-refcount-table" => Some(2),
        _ => Some(1),
    }
}

/// What is wrong with a repair of `bytes`; whether it left a clean image. Nothing is left to do after so many
/// `goes`.
fn try_repair(bytes: &[u8], mode: RepairMode, goes: Option<usize>) -> Result<bool, String> {
    let Ok(done) = repair_bytes(bytes.to_vec(), mode, 64 << 20) else {
        return Ok(false);
    };
    if let Some(before) = readable(bytes) {
        let after = readable(&done.bytes).ok_or("it cannot be opened any more")?;
        for ((id, before), (_, after)) in before.iter().zip(&after) {
            for (index, piece) in before.iter().enumerate() {
                if piece.is_some() && after.get(index) != Some(piece) {
                    return Err(format!("disk '{id}' differs at {:#x}", index * 4096));
                }
            }
        }
        if before.len() != after.len() {
            return Err("there are other snapshots".into());
        }
    }
    let mut last = done.bytes;
    for go in 2..=goes.map_or(0, |goes| goes + 1) {
        let again = repair_bytes(last, mode, 64 << 20)
            .map_err(|error| format!("another repair fails: {error:#}"))?;
        if Some(go) > goes && (again.report.has_repaired() || again.counts.writes > 0) {
            return Err(format!(
                "another repair finds more: {:?}, {:?}",
                again.report, again.said
            ));
        }
        last = again.bytes;
    }
    Ok(done.report.found.is_clean())
}

/// Whether a repair leaves a clean image; where ours does not, whether the judge's does.
fn run(damage: &Damage, bases: &BTreeMap<&str, &Picture>) -> Result<(bool, bool), String> {
    let base = bases[damage.base];
    let mut bytes = fs::read(base.dir.join("disk.qcow2")).expect("the base is there");
    (damage.change)(&mut bytes);
    let goes = goes(&damage.name);
    try_repair(&bytes, RepairMode::Leaks, goes).map_err(|what| format!("leaks: {what}"))?;
    if try_repair(&bytes, RepairMode::All, goes).map_err(|what| format!("all: {what}"))? {
        return Ok((true, false));
    }
    let scratch = Scratch::new("repair-anything");
    for file in ["base.raw", "disk.data"] {
        // Not every base has every file.
        let _ = fs::copy(base.dir.join(file), scratch.path().join(file));
    }
    fs::write(scratch.path().join("disk.qcow2"), &bytes).expect("the target folder can be written");
    let args = ["check", "-T", "unsafe", "-r", "all", "disk.qcow2"].map(str::to_owned);
    let theirs = oracle::run(Tool::Img, scratch.path(), &args);
    if theirs.code == 0 && !LEFT.iter().any(|(start, _)| damage.name.starts_with(start)) {
        return Err(format!(
            "not repaired, but by the judge:\n{}{}",
            theirs.stdout, theirs.stderr
        ));
    }
    Ok((false, theirs.code == 0))
}

#[test]
fn whatever_is_broken_nothing_is_lost() {
    if !oracle::available() {
        return;
    }
    let bases = make_all("damage-bases", damage::bases());
    let by_name: BTreeMap<&str, &Picture> = bases
        .iter()
        .map(|base| (base.recipe.name.as_str(), base))
        .collect();
    let all = damage::all();
    let results = parallel::map(&all, |damage| {
        run(damage, &by_name).map_err(|what| Failure {
            case: damage.name.clone(),
            doing: "repair".into(),
            what,
        })
    });
    let clean = |by: fn(&(bool, bool)) -> bool| results.iter().flatten().filter(|r| by(r)).count();
    println!(
        "{} damaged images: {} repaired or sound by ours, {} others by the judge",
        results.len(),
        clean(|r| r.0),
        clean(|r| r.1)
    );
    let failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
    finish("repair-anything", all.len(), &failures);
}
