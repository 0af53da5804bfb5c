//! `backup`: a disk as it is at one moment, copied out while commands go on writing to it.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use oxcow::convert::{self, RawOptions};
use oxcow::fleece::FleeceOptions;
use oxcow::storage::{SparseMemory, give_way};
use oxcow::{
    DenyAll, Error, File, Format, Image, NewSnapshot, OpenOptions, Result as Worked, Storage,
};

use super::convert::new_target;
use super::io::session::{Cache, Done, Opening, Session};
use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, block_on, block_on_between};
use crate::open::Source;
use crate::outln;
use crate::progress::Progress;

pub const COMMAND: Command = Command {
    name: "backup",
    about: "Copy a disk as it is now while it is being written to",
    usage: "
[-f FMT | --image-opts] [--mode snapshot|copy] [-c COMMAND]... [-t CACHE]
        [-p] [-q] FILENAME TARGET

  TARGET
     a raw image, which gets the disk as it was before the first command
  -c, --cmd COMMAND
     what goes on meanwhile: commands of 'io', run one by one between the parts of the copy
  --mode snapshot
     the moment is kept by an internal snapshot, which is deleted at the end (default for
     qcow2 images that hold their own data)
  --mode copy
     what a command is about to change is copied first, into memory (default for all others)
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -t, --cache CACHE
     when the commands' writes reach the disk, as for 'io'
  -p
     show how far it is
  -q, --quiet
     print only errors, and what the commands print",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "p",
    "f/format=",
    "image-opts",
    "mode=",
    "c/cmd=",
    "t/cache=",
    "object=",
];

/// How much is copied between two commands, in bytes.
const PART: usize = 256 << 10;

/// How the moment is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Snapshot,
    Copy,
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut source = Source::default();
    let mut opening = Opening::default();
    let mut commands = Vec::new();
    let mut mode = None;
    let (mut progress, mut quiet) = (false, false);
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => quiet = true,
            "p" => progress = true,
            "cmd" => commands.push(value),
            "cache" => opening.cache = Cache::parse(&value)?,
            "mode" => {
                mode = Some(match value.as_str() {
                    "snapshot" => Mode::Snapshot,
                    "copy" => Mode::Copy,
                    other => {
                        return Err(Failure::new(format!("Invalid mode: '{other}'")));
                    }
                });
            }
            _ => source.option(name, value)?,
        }
        Ok(())
    })?;
    let Ok([given, target]) = <[String; 2]>::try_from(operands) else {
        return Err(Failure::usage("Expecting two image file names"));
    };
    source.check()?;
    opening.source = source;
    opening.title = Some(given.clone());
    opening.given = given.clone();
    let mut session = Session::new(context.program);
    session.open(opening)?;
    let Some(image) = session.open.as_ref().map(|open| open.image.clone()) else {
        return Ok(1);
    };
    let mode = mode.unwrap_or_else(|| best_mode(&image));
    let mut line = Progress::new(progress && !quiet, 1.0);
    let target_file = new_target(&target, &image, image.virtual_size())
        .map_err(|error| Failure::new(format!("{target}: {error}")))?;
    let mut meanwhile = Meanwhile {
        session: &mut session,
        commands: commands.into_iter(),
        code: 0,
    };
    let copied = match mode {
        Mode::Snapshot => through_snapshot(&image, &target_file, &mut line, &mut meanwhile),
        Mode::Copy => through_copies(&image, &target_file, &mut line, &mut meanwhile),
    };
    let copied = copied.and_then(|()| {
        block_on(target_file.flush()).map_err(|source| Error::Io {
            what: format!("Could not flush '{target}'").into(),
            offset: None,
            source,
        })
    });
    line.end();
    let code = meanwhile.code;
    drop(image);
    let closed = session.close();
    copied.map_err(|error| Failure::new(format!("Could not back up '{given}': {error:#}")))?;
    closed?;
    if !quiet {
        outln!("Backup complete.");
    }
    Ok(code)
}

/// A snapshot costs no copies, where there can be one.
fn best_mode(image: &Image<FileStorage>) -> Mode {
    match image.top().as_qcow2() {
        Some(qcow2) if !qcow2.header().has_data_file() => Mode::Snapshot,
        _ => Mode::Copy,
    }
}

fn through_snapshot(
    image: &Image<FileStorage>,
    target: &FileStorage,
    line: &mut Progress,
    meanwhile: &mut Meanwhile<'_, '_>,
) -> Worked<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let snapshot = NewSnapshot {
        name: "backup".into(),
        date_sec: now.as_secs() as u32,
        date_nsec: now.subsec_nanos(),
        ..NewSnapshot::default()
    };
    let view = block_on(image.view(&snapshot))?;
    let copied = copy_while(&view, target, line, meanwhile);
    // It goes also where the copy failed.
    let closed = block_on(view.close());
    copied.and(closed)
}

fn through_copies(
    image: &Image<FileStorage>,
    target: &FileStorage,
    line: &mut Progress,
    meanwhile: &mut Meanwhile<'_, '_>,
) -> Worked<()> {
    let options = OpenOptions {
        format: Some(Format::Raw),
        writable: true,
        ..OpenOptions::default()
    };
    let copies = File {
        storage: SparseMemory::new(image.virtual_size()),
        name: "copies".into(),
    };
    let copies = block_on(Image::open(copies, &options, &DenyAll::default()))?;
    let fleece = block_on(image.fleece(copies, FleeceOptions::default()))?;
    let view = block_on(fleece.image())?;
    copy_while(&view, target, line, meanwhile)
}

/// The commands that are run meanwhile.
struct Meanwhile<'s, 'p> {
    session: &'s mut Session<'p>,
    commands: std::vec::IntoIter<String>,
    code: u8,
}

impl Meanwhile<'_, '_> {
    /// Runs the next one, if there is one left.
    fn step(&mut self) {
        let Some(command) = self.commands.next() else {
            return;
        };
        match self.session.command(&command) {
            Done::Well => {}
            Done::Badly => self.code = 1,
            Done::Quit => self.commands = Vec::new().into_iter(),
        }
    }
}

/// Copies the view; a command is run before the first part and after each one, the rest at the end.
fn copy_while<V: Storage>(
    view: &Image<V>,
    target: &FileStorage,
    line: &mut Progress,
    meanwhile: &mut Meanwhile<'_, '_>,
) -> Worked<()> {
    let options = RawOptions {
        buffer: PART,
        ..RawOptions::default()
    };
    let target = InParts(target);
    let copy = convert::to_raw(view, &target, &options, |done, total| {
        line.at(done, total);
        true
    });
    meanwhile.step();
    let result = block_on_between(copy, || meanwhile.step());
    while meanwhile.commands.len() > 0 {
        meanwhile.step();
    }
    result
}

/// A file that gives way to others before every write.
struct InParts<'a>(&'a FileStorage);

impl Storage for InParts<'_> {
    async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        give_way().await;
        self.0.write_at(offset, data).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.0.flush().await
    }
}
