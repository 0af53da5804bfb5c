//! `convert`: a disk, or several one behind the other, into another file.

mod copy;
mod pace;
mod snapshot;
mod target;

pub use pace::Pace;
pub use snapshot::Snapshot;
pub use target::new_target;

use super::create;
use super::create_options;
use super::{Command, Context};
use crate::args::Spec;
use crate::console;
use crate::failure::{Failure, Outcome};
use crate::open::Source;
use crate::progress::Progress;
use crate::size;

pub const COMMAND: Command = Command {
    name: "convert",
    about: "Copy one image to another with optional format conversion",
    usage: "
[-f SRC_FMT | --image-opts] [-T SRC_CACHE] [-l SNAPSHOT] [--bitmaps
        [--skip-broken-bitmaps]] [-o TGT_OPTS | --target-image-opts] [-t TGT_CACHE]
        [-O TGT_FMT] [-B BACKING_FILENAME [-F BACKING_FMT]] [-c] [-n [--target-is-zero]]
        [-S SPARSE_SIZE] [-r RATE] [-m NUM_PARALLEL] [-W] [--salvage] [-p] [-q] [-U]
        SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME

  -q, --quiet
     say less
  -p
     show how far it is
  -f, --source-format SRC_FMT
     the sources' format; without it, their first bytes decide
  --image-opts, --source-image-opts
     SRC_FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -l, --snapshot SNAPSHOT
     the internal snapshot to copy: its name or id, snapshot.id=ID or snapshot.name=NAME
  --bitmaps
     copy the persistent bitmaps too
  --skip-broken-bitmaps
     leave out those that cannot be trusted
  -O, --output-format TGT_FMT
     the target's format: raw (default) or qcow2
  --target-image-opts
     TGT_FILENAME is a list of options; needs -n
  -o, --options TGT_OPTS
     options of the target's format ('-o help' lists them)
  -c
     compress every cluster (qcow2)
  -B, --backing BACKING_FILENAME
     the target is to be an overlay of BACKING_FILENAME: only what the source itself holds is
     copied, so its own backing file must have the same content
  -F, --backing-format BACKING_FMT
     the format of BACKING_FILENAME
  -n
     write into a target that is there already
  --target-is-zero
     with -n: the target reads as zeros
  -S, --sparse-size SPARSE_SIZE
     do not write zeros that fill so many bytes (default 4k; 0 writes everything)
  -m, --parallel NUM_PARALLEL
     how many reads there may be at once, where a storage gains by that (1 to 16, default 8)
  -W, --oob-writes
     write in whatever order the reads come back
  -r, --rate RATE
     write at most so many bytes a second
  --salvage
     go on after read errors, with zeros in place of what cannot be read
  -t, --output-cache CACHE, -T, --source-cache CACHE
     accepted for compatibility; with -t unsafe nothing waits for the disk
  -C, --copy-range-offloading, -U, --force-share, --object OBJDEF
     accepted for compatibility",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "p",
    "c",
    "n",
    "source-image-opts",
    "image-opts",
    "f/source-format=",
    "T/source-cache=",
    "l/snapshot=",
    "S/sparse-size=",
    "salvage",
    "target-image-opts",
    "O/output-format=",
    "o/options=",
    "t/output-cache=",
    "B/backing=",
    "F/backing-format=",
    "target-is-zero",
    "bitmaps",
    "skip-broken-bitmaps",
    "U/force-share",
    "r/rate=",
    "m/parallel=",
    "C/copy-range-offloading",
    "W/oob-writes",
    "object=",
];

/// The largest `-S`: 16 MiB.
const MAX_SPARSE: u64 = 16 << 20;
/// What `-S` is where nobody says.
const DEFAULT_SPARSE: u64 = 4096;
/// The most reads at once.
const MAX_PARALLEL: u64 = 16;

/// Everything that the command line says.
#[derive(Default)]
struct Request {
    source: Source,
    snapshot: Option<Snapshot>,
    target: String,
    target_image_opts: bool,
    target_format: Option<String>,
    options: Option<String>,
    backing: Option<String>,
    backing_format: Option<String>,
    sparse: Option<u64>,
    no_create: bool,
    target_is_zero: bool,
    compress: bool,
    bitmaps: bool,
    skip_broken_bitmaps: bool,
    salvage: bool,
    copy_range: bool,
    any_order: bool,
    parallel: Option<u64>,
    rate: u64,
    progress: bool,
    quiet: bool,
    target_cache: Option<String>,
    operands: Vec<String>,
}

impl Request {
    fn format(&self) -> &str {
        self.target_format.as_deref().unwrap_or("raw")
    }

    fn sparse(&self) -> u64 {
        self.sparse.unwrap_or(DEFAULT_SPARSE)
    }
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let request = parse(context, args)?;
    check_options(&request)?;
    let list = request.options.as_deref().unwrap_or("");
    if create_options::asks_for_help(list) {
        let format = request.format();
        create::check_format(format).map_err(Failure::new)?;
        create_options::print_help(format, !request.target.is_empty());
        return Ok(0);
    }
    if request.operands.is_empty() {
        return Err(Failure::new("Must specify image file name"));
    }
    if let Some(mode) = &request.source.cache {
        crate::open::check_cache_mode(mode, "source ")?;
    }
    let mut progress = Progress::new(request.progress && !request.quiet, 1.0);
    progress.at(0, 1);
    let result = copy::copy(context, &request, &mut progress);
    if let Err(failure) = &result {
        let message = failure.message(context.program, context.command.name);
        message
            .iter()
            .for_each(|message| console::error_line(message));
    }
    progress.end();
    result
        .map(|()| 0)
        .map_err(|failure| Failure::said(failure.code()))
}

fn parse(context: &Context<'_>, args: Vec<String>) -> Result<Request, Failure> {
    let mut request = Request::default();
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => request.quiet = true,
            "p" => request.progress = true,
            "c" => request.compress = true,
            "n" => request.no_create = true,
            "source-image-opts" => request.source.image_opts = true,
            "source-format" => request.source.format = Some(value),
            "source-cache" => request.source.cache = Some(value),
            "snapshot" => request.snapshot = Some(Snapshot::parse(&value, context)?),
            "sparse-size" => request.sparse = Some(sparse_size(&value)?),
            "target-image-opts" => request.target_image_opts = true,
            "output-format" => request.target_format = Some(value),
            "options" => create_options::append(&mut request.options, &value)?,
            "output-cache" => request.target_cache = Some(value),
            "backing" => request.backing = Some(value),
            "backing-format" => request.backing_format = Some(value),
            "target-is-zero" => request.target_is_zero = true,
            "bitmaps" => request.bitmaps = true,
            "skip-broken-bitmaps" => request.skip_broken_bitmaps = true,
            "salvage" => request.salvage = true,
            "copy-range-offloading" => request.copy_range = true,
            "oob-writes" => request.any_order = true,
            "rate" => request.rate = size::option("rate limit", &value, 0, size::MAX)?,
            "parallel" => {
                let what = "number of coroutines";
                request.parallel = Some(size::option(what, &value, 1, MAX_PARALLEL)?);
            }
            _ => request.source.option(name, value)?,
        }
        Ok(())
    })?;
    request.operands = operands;
    request.target = request.operands.pop().unwrap_or_default();
    Ok(request)
}

fn sparse_size(value: &str) -> Result<u64, Failure> {
    const WHAT: &str = "buffer size for sparse output";
    match size::parse(value, 1) {
        Ok(bytes) if bytes <= MAX_SPARSE && bytes.is_multiple_of(512) => Ok(bytes),
        Ok(_) | Err(size::Wrong::Range) => Err(Failure::new(format!(
            "Invalid {WHAT} specified. Valid sizes are multiples of 512 up to {MAX_SPARSE}. \
             Select 0 to disable sparse detection (fully allocates output)."
        ))),
        Err(size::Wrong::Syntax) => Err(Failure::new(format!(
            "Invalid {WHAT} specified: '{value}'."
        ))),
    }
}

/// Options that contradict one another, in the order in which qemu-img complains.
fn check_options(request: &Request) -> Result<(), Failure> {
    let contradictions = [
        (
            request.skip_broken_bitmaps && !request.bitmaps,
            "Use of --skip-broken-bitmaps requires --bitmaps",
        ),
        (
            request.copy_range && request.compress,
            "Cannot enable copy offloading when -c is used",
        ),
        (
            request.copy_range && request.sparse.is_some(),
            "Cannot enable copy offloading when -S is used",
        ),
        (
            request.copy_range && request.salvage,
            "Cannot use copy offloading in salvaging mode",
        ),
        (
            request.no_create && request.options.is_some(),
            "-o has no effect when skipping image creation",
        ),
        (
            request.target_image_opts && !request.no_create,
            "--target-image-opts requires use of -n flag",
        ),
        (
            request.target_is_zero && !request.no_create,
            "--target-is-zero requires use of -n flag",
        ),
    ];
    match contradictions.iter().find(|(wrong, _)| *wrong) {
        Some((_, text)) => Err(Failure::new(text)),
        None => Ok(()),
    }
}
