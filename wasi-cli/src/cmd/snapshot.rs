//! `snapshot`: the snapshots inside an image.

use std::time::{SystemTime, UNIX_EPOCH};

use oxcow::error::Structure;
use oxcow::{Error, Image, NewSnapshot, info};

use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome, in_short, told_of_snapshot_table};
use crate::file::{FileStorage, block_on};
use crate::open::{self, Source, could_not_open};
use crate::through::Shown;

pub const COMMAND: Command = Command {
    name: "snapshot",
    about: "List or manipulate snapshots within image",
    usage: "
[-f FMT | --image-opts] [-l | -a|-c|-d SNAPSHOT]
        [-U] [--object OBJDEF] FILENAME

  -q, --quiet
     accepted for compatibility: nothing is said anyway
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -U, --force-share
     others may have the image open (with -l only)
  -l, --list
     list the snapshots (what is done without any of these)
  -c, --create SNAPSHOT
     keep the disk as it is now under this name, which need not be unique
  -a, --apply SNAPSHOT
     make the disk what it was: the snapshot with this id or, where there is none, with this name
  -d, --delete SNAPSHOT
     forget the first snapshot with this name",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "f/format=",
    "image-opts",
    "U/force-share",
    "l/list",
    "a/apply=",
    "c/create=",
    "d/delete=",
    "object=",
];

/// The longest name, in bytes: what QEMU has room for.
const MAX_NAME: usize = 255;

/// What is done.
enum Action {
    List,
    Create(String),
    Apply(String),
    Delete(String),
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut action = None;
    let operands = context.options(SPEC, args, |name, value| {
        let this = match name {
            "list" => Action::List,
            "create" => Action::Create(value),
            "apply" => Action::Apply(value),
            "delete" => Action::Delete(value),
            _ => return source.option(name, value),
        };
        match action.replace(this) {
            Some(_) => Err(Failure::usage("Cannot mix '-l', '-a', '-c', '-d'")),
            None => Ok(()),
        }
    })?;
    let given = source.operand(operands)?;
    match action.unwrap_or(Action::List) {
        Action::List => list(&source, &given),
        change => {
            let image = source.open_writable(&given)?;
            let outcome = match change {
                Action::Create(name) => create(&image, &name),
                Action::Apply(wanted) => {
                    // qemu-img opens the image once more for this, and says it once more.
                    let name = source.name(&given)?;
                    if open::is_guessed_raw(&name, &image) {
                        open::warn_of_guess(&name);
                    }
                    apply(&image, &wanted)
                }
                Action::Delete(wanted) => delete(&image, &wanted),
                Action::List => Ok(()),
            };
            let settled = outcome.and_then(|()| open::settle(&image, &given));
            let closed = open::close(&image, &given);
            settled.and(closed).map(|()| 0)
        }
    }
}

fn list(source: &Source, given: &str) -> Outcome {
    let image = source.open(given)?;
    let shown = Shown::by(&image);
    let info =
        block_on(info::info(shown.image.top())).map_err(|error| could_not_open(given, error))?;
    if !info.snapshots.is_empty() {
        super::info::print_snapshots(&info.snapshots);
    }
    Ok(0)
}

fn create(image: &Image<FileStorage>, name: &str) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("Could not create snapshot '{name}': {why}"))
    };
    // Nor could one keep what an external data file holds.
    let qcow2 = image.top().as_qcow2();
    if qcow2.is_none_or(|qcow2| qcow2.header().has_data_file()) {
        return Err(failed(&"Operation not supported"));
    }
    // A clock before 1970 is one that was never set.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let snapshot = NewSnapshot {
        name: name[..name.floor_char_boundary(MAX_NAME)].to_owned(),
        date_sec: now.as_secs() as u32,
        date_nsec: now.subsec_nanos(),
        icount: Some(0),
        ..NewSnapshot::default()
    };
    block_on(image.create_snapshot(&snapshot))
        .map(drop)
        .map_err(|error| {
            let error = in_short(error);
            match &error {
                // One too many, or one cluster too far.
                Error::OutOfRange(_) => failed(&"File too large"),
                Error::Corrupt { place, .. } if place.structure == Structure::L2Table => {
                    failed(&"Resource temporarily unavailable")
                }
                _ => failed(&error),
            }
        })
}

fn apply(image: &Image<FileStorage>, wanted: &str) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("Could not apply snapshot '{wanted}': {why}"))
    };
    let Some(qcow2) = image.top().as_qcow2() else {
        return Err(failed(&"Block driver does not support snapshots"));
    };
    // A bitmap tells of changes to a disk that would not be this one any more.
    if !block_on(qcow2.bitmaps())
        .map_err(|error| failed(&error))?
        .is_empty()
    {
        return Err(failed(&"Device has active dirty bitmaps"));
    }
    if qcow2.header().has_data_file() {
        return Err(failed(&"Failed to load snapshot: Operation not supported"));
    }
    let Some(snapshot) = qcow2.find_snapshot(wanted) else {
        return Err(failed(
            &"Failed to load snapshot: No such file or directory",
        ));
    };
    block_on(image.apply_snapshot(&snapshot.id)).map_err(|error| {
        let why = match told_of_snapshot_table(&error) {
            Some(word) => word.to_owned(),
            None => in_short(error).to_string(),
        };
        failed(&format!("Failed to load snapshot: {why}"))
    })
}

fn delete(image: &Image<FileStorage>, wanted: &str) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("Could not delete snapshot '{wanted}': {why}"))
    };
    let snapshots = image.top().as_qcow2().map(|qcow2| qcow2.snapshots());
    // Unlike -a, qemu-img looks at nothing but names here.
    let found = snapshots.as_deref().and_then(|snapshots| {
        snapshots
            .iter()
            .find(|snapshot| snapshot.name == wanted)
            .map(|snapshot| snapshot.id.clone())
    });
    let Some(id) = found else {
        return Err(failed(&"snapshot not found"));
    };
    block_on(image.delete_snapshot(&id)).map_err(|error| failed(&in_short(error)))
}
