//! Our reader's view of an image, whoever wrote it, against the model.

use std::path::Path;

use oxcow::check::{Problem, Watcher};
use oxcow::{File, GuestOffset, Image, OpenOptions, Storage};

use crate::scripts::content::Content;
use crate::scripts::model::Model;
use crate::scripts::storage::{Beside, HostFile, Pace, block_on};
use oxcow::storage::AnyStorage;

/// How much is compared at once, in bytes.
const CHUNK: u64 = 256 << 10;

/// Opens the image for reading.
///
/// # Errors
/// In words.
pub fn open(path: &Path) -> Result<Image<AnyStorage>, String> {
    let pace = Pace::at_once();
    let storage = HostFile::open(path, false, &pace).map_err(|error| error.to_string())?;
    let file = File {
        storage: AnyStorage::new(storage),
        name: path.display().to_string(),
    };
    let resolver = Beside {
        writable: false,
        pace,
    };
    block_on(Image::open(file, &OpenOptions::default(), &resolver))
        .map_err(|error| format!("cannot be opened: {error:#}"))
}

/// How the disk differs from what it should be, if it does.
///
/// # Errors
/// That, in words.
pub async fn compare<S: Storage>(
    image: &Image<S>,
    size: u64,
    content: &Content,
) -> Result<(), String> {
    if image.virtual_size() != size {
        return Err(format!(
            "the disk has {} bytes instead of {size}",
            image.virtual_size()
        ));
    }
    let mut buf = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < size {
        let extent = image
            .extent_at(GuestOffset(at), size - at)
            .await
            .map_err(|error| format!("the map at {at} cannot be read: {error:#}"))?;
        if extent.zero() && content.is_zero(at..at + extent.length) {
            at += extent.length;
            continue;
        }
        let end = (at + CHUNK).min(size);
        let part = &mut buf[..(end - at) as usize];
        image
            .read_at(GuestOffset(at), part)
            .await
            .map_err(|error| format!("bytes at {at} cannot be read: {error:#}"))?;
        let expected = content.bytes(at..end);
        if expected != part {
            let wrong = expected.iter().zip(&*part).position(|(a, b)| a != b);
            let index = wrong.unwrap_or(0);
            return Err(format!(
                "byte {} is {} instead of {}",
                at + index as u64,
                part[index],
                expected[index]
            ));
        }
        at = end;
    }
    Ok(())
}

/// How the image in the file differs from the model: its disk, its snapshots' names and disks.
///
/// # Errors
/// That, in words.
pub fn compare_all(path: &Path, model: &Model) -> Result<(), String> {
    let mut image = open(path)?;
    block_on(compare(&image, model.size, &model.content))?;
    if let Some(qcow2) = image.top().as_qcow2() {
        let found: Vec<(String, String)> = qcow2
            .snapshots()
            .iter()
            .map(|snapshot| (snapshot.id.clone(), snapshot.name.clone()))
            .collect();
        let expected: Vec<(String, String)> = model
            .snapshots
            .iter()
            .map(|saved| (saved.id.clone(), saved.name.clone()))
            .collect();
        if found != expected {
            return Err(format!("snapshots {found:?} instead of {expected:?}"));
        }
    }
    for saved in &model.snapshots {
        block_on(image.use_snapshot(&saved.id)).map_err(|error| format!("{error:#}"))?;
        block_on(compare(&image, saved.size, &saved.content))
            .map_err(|what| format!("snapshot {}: {what}", saved.name))?;
    }
    Ok(())
}

/// The findings of our own check.
#[derive(Default)]
struct Findings(Vec<String>);

impl Watcher for Findings {
    fn problem(&mut self, problem: &Problem) {
        if self.0.len() < 8 {
            self.0.push(problem.to_string());
        }
    }
}

/// What is wrong with the image's structure by our own check: any corruption, and leaks unless they may be there.
///
/// # Errors
/// That, in words.
pub fn check(path: &Path, leaks_allowed: bool) -> Result<(), String> {
    let image = open(path)?;
    let Some(qcow2) = image.top().as_qcow2() else {
        return Err("is not a qcow2 file".into());
    };
    let mut findings = Findings::default();
    let report = block_on(oxcow::check::check(qcow2, &mut findings))
        .map_err(|error| format!("cannot be checked: {error:#}"))?;
    let harmless = report.corruptions == 0 && report.check_errors == 0;
    if report.is_clean() || (harmless && leaks_allowed) {
        return Ok(());
    }
    Err(format!(
        "our check: {} corruptions, {} leaks, {} check errors\n{}",
        report.corruptions,
        report.leaks,
        report.check_errors,
        findings.0.join("\n")
    ))
}
