//! `commit`: what an overlay holds, down into the image that it stands on.

use std::time::Instant;

use oxcow::commit::{CommitError, CommitOptions, commit};
use oxcow::convert::Failed;
use oxcow::{Backing, Image, OpenOptions};

use super::convert::Pace;
use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome, in_short};
use crate::file::{FileStorage, block_on};
use crate::name::{self, Name};
use crate::open::{self, Handling, Source, could_not_open};
use crate::progress::Progress;
use crate::secret;
use crate::{outln, size};

pub const COMMAND: Command = Command {
    name: "commit",
    about: "Commit image to its backing file",
    usage: "
[-f FMT | --image-opts] [-t CACHE_MODE] [-b BASE_IMG] [-d]
        [-r RATE] [--object OBJDEF] [-q] [-p] FILENAME

  -q, --quiet
     print only errors
  -p, --progress
     show how far it is
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -t, --cache CACHE_MODE
     accepted for compatibility; with unsafe nothing waits for the disk
  -d, --drop
     leave FILENAME as it is; without it, it is empty afterwards
  -b, --base BASE_IMG
     the image of the backing chain that gets everything above it, instead of the next one
     (implies -d; the images in between no longer make sense)
  -r, --rate RATE
     write at most so many bytes a second
  --object OBJDEF
     accepted for compatibility",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "p/progress",
    "f/format=",
    "image-opts",
    "t/cache=",
    "d/drop",
    "b/base=",
    "r/rate=",
    "object=",
];

/// Reads and writes of so many bytes stay in the processor's cache.
const BUFFER: usize = 512 << 10;

/// Everything that the command line says.
#[derive(Default)]
struct Request {
    source: Source,
    cache: Option<String>,
    base: Option<String>,
    drop: bool,
    rate: u64,
    quiet: bool,
    progress: bool,
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut request = Request::default();
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => request.quiet = true,
            "progress" => request.progress = true,
            "cache" => request.cache = Some(value),
            "drop" => request.drop = true,
            "base" => {
                request.base = Some(value);
                request.drop = true;
            }
            "rate" => request.rate = size::option("rate limit", &value, 0, size::MAX)?,
            _ => request.source.option(name, value)?,
        }
        Ok(())
    })?;
    let given = request.source.operand(operands)?;
    if let Some(mode) = &request.cache {
        open::check_cache_mode(mode, "")?;
    }
    let mut progress = Progress::new(request.progress && !request.quiet, 1.0);
    progress.at(0, 1);
    let done = commit_to_base(&request, &given, &mut progress);
    progress.end();
    done?;
    if !request.quiet {
        outln!("Image committed.");
    }
    Ok(0)
}

fn commit_to_base(request: &Request, given: &str, progress: &mut Progress) -> Result<(), Failure> {
    let (base_name, depth) = find_base(request, given)?;
    let handling = Handling {
        without_barrier: request.cache.as_deref() == Some("unsafe"),
        ..Handling::default()
    };
    let open = |name: &Name, backing| {
        let options = OpenOptions {
            writable: true,
            backing,
            ..OpenOptions::default()
        };
        open::open_with(name, &options, handling)
            .map_err(|error| could_not_open(&name.given, error))
    };
    let overlay = open(&request.source.name(given)?, Backing::First(depth))?;
    let base = open(&base_name, Backing::Open)?;
    let options = CommitOptions {
        empty: !request.drop,
        buffer: BUFFER,
    };
    let pace = Pace {
        line: progress,
        rate: request.rate,
        written: || base.io_counts().written_bytes,
        began: Instant::now(),
        quiet: request.quiet,
    };
    block_on(commit(&overlay, &base, &options, pace)).map_err(|error| {
        Failure::new(match error {
            CommitError::Copying(failed) => CommitError::Copying(Failed {
                source: in_short(failed.source),
                ..failed
            }),
            CommitError::Growing(error) => CommitError::Growing(in_short(error)),
            CommitError::Emptying(error) => CommitError::Emptying(in_short(error)),
        })
    })?;
    open::close(&base, &base_name.given)?;
    open::close(&overlay, given)?;
    progress.finish();
    Ok(())
}

/// The image that is committed to, and how many stand above it. Nothing is open afterwards: the base is to be
/// written to.
fn find_base(request: &Request, given: &str) -> Result<(Name, usize), Failure> {
    let image = request.source.open_writable(given)?;
    let depth = match &request.base {
        None => 1,
        Some(base) => depth_of(&image, base).ok_or_else(|| {
            Failure::new(format!(
                "Did not find '{base}' in the backing chain of '{given}'"
            ))
        })?,
    };
    let Some(layer) = image.layers().get(depth) else {
        return Err(Failure::new("Image does not have a backing file"));
    };
    if !layer.file().storage.is_by_itself() {
        // Its name alone does not say which part of that it is.
        return Err(Failure::new(format!(
            "Committing to an image inside of '{}' is not supported",
            layer.name()
        )));
    }
    let mut name = Name::parse(layer.name()).map_err(Failure::new)?;
    name.format = Some(layer.format().to_string());
    let keys = request.source.name(given)?.keys;
    name.keys = secret::below(keys, depth);
    Ok((name, depth))
}

/// Which file of the chain `base` is, as one that stands above it may call it.
pub fn depth_of(image: &Image<FileStorage>, base: &str) -> Option<usize> {
    let layers = image.layers();
    (1..layers.len()).find(|&depth| {
        let full = name::resolve(layers[depth - 1].name(), base);
        let Ok(wanted) = Name::parse(&full) else {
            return false;
        };
        let layer = &layers[depth];
        let Some(path) = wanted
            .file_path()
            .ok()
            .filter(|_| layer.file().storage.is_by_itself())
        else {
            return false;
        };
        let identity = || FileStorage::open(path, false).ok()?.identity();
        path == layer.name()
            || (!base.is_empty()
                && identity().is_some_and(|it| Some(it) == layer.file().storage.identity()))
    })
}
