//! `convert`: a disk into another file. To raw only, for now.

use oxcow::convert::{self, RawOptions};
use oxcow::{Image, Storage};

use super::create_options::{self, CreateOptions};
use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{FileStorage, block_on};
use crate::name::{Name, split_options};
use crate::open::{self, Source, check_cache_mode, could_not_open};
use crate::progress::Progress;
use crate::{console, size};

pub const COMMAND: Command = Command {
    name: "convert",
    about: "Copy one image to another with optional format conversion",
    usage: "
[-f SRC_FMT | --image-opts] [-T SRC_CACHE] [-o TGT_OPTS | --target-image-opts]
        [-t TGT_CACHE] [-O TGT_FMT] [-l SNAPSHOT] [-S SPARSE_SIZE] [-n] [-p] [-q]
        SRC_FILENAME TGT_FILENAME

  -q, --quiet
     say less
  -p
     show how far it is
  -f, --source-format SRC_FMT
     the source's format; without it, its first bytes decide
  --image-opts, --source-image-opts
     SRC_FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -l, --snapshot SNAPSHOT
     the internal snapshot to copy: its name or id, snapshot.id=ID or snapshot.name=NAME
  -O, --output-format TGT_FMT
     the target's format (default raw; the only one so far)
  --target-image-opts
     TGT_FILENAME is a list of options; needs -n
  -o, --options TGT_OPTS
     options of the target's format ('-o help' lists them)
  -n
     write into a target that is there already
  --target-is-zero
     with -n: the target reads as zeros
  -S, --sparse-size SPARSE_SIZE
     do not write zeros that fill so many bytes (default 4k; 0 writes everything)
  -t, -T CACHE, -m, -W, -r, -U, --object, --salvage
     accepted for compatibility as far as they have no effect on the result",
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

/// Everything that the command line says.
#[derive(Default)]
struct Request {
    source: Source,
    snapshot: Option<Snapshot>,
    target: String,
    target_image_opts: bool,
    target_format: Option<String>,
    options: Option<String>,
    sparse: Option<u64>,
    no_create: bool,
    target_is_zero: bool,
    compress: bool,
    backing: bool,
    bitmaps: bool,
    copy_range: bool,
    progress: bool,
    quiet: bool,
    target_cache: Option<String>,
    operands: Vec<String>,
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let request = parse(context, args)?;
    let format = request.target_format.as_deref().unwrap_or("raw");
    let help = request
        .options
        .as_deref()
        .is_some_and(create_options::asks_for_help);
    if help && matches!(format, "raw" | "qcow2") {
        create_options::print_help(format, true);
        return Ok(0);
    }
    check(&request)?;
    let mut progress = Progress::new(request.progress && !request.quiet, 1.0);
    progress.at(0, 1);
    let result = copy(context, &request, &mut progress);
    if let Err(message) = result
        .as_ref()
        .map_err(|failure| failure.message(context.program, context.command.name))
    {
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
            "backing" => request.backing = true,
            "target-is-zero" => request.target_is_zero = true,
            "bitmaps" => request.bitmaps = true,
            "copy-range-offloading" => request.copy_range = true,
            "rate" => _ = size::option("rate limit", &value, 0, size::MAX)?,
            "parallel" => _ = size::option("number of coroutines", &value, 1, 16)?,
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

/// What contradicts itself, or is not there yet.
fn check(request: &Request) -> Result<(), Failure> {
    let wrong = |text: &str| Err(Failure::new(text));
    let format = request.target_format.as_deref().unwrap_or("raw");
    if request.no_create && request.options.is_some() {
        return wrong("-o has no effect when skipping image creation");
    }
    if request.target_image_opts && !request.no_create {
        return wrong("--target-image-opts requires use of -n flag");
    }
    if request.target_is_zero && !request.no_create {
        return wrong("--target-is-zero requires use of -n flag");
    }
    if request.copy_range && request.sparse.is_some() {
        return wrong("Cannot enable copy offloading when -S is used");
    }
    if request.operands.is_empty() {
        return wrong("Must specify image file name");
    }
    if request.snapshot.is_some() && request.operands.len() > 1 {
        return wrong("No support for concatenating multiple snapshot");
    }
    request.source.check()?;
    if let Some(mode) = &request.target_cache {
        check_cache_mode(mode, "")?;
    }
    match format {
        "raw" => {}
        "qcow2" => return wrong("Converting to 'qcow2' is not supported yet"),
        other => return Err(Failure::new(format!("Unknown file format '{other}'"))),
    }
    if request.operands.len() > 1 {
        return wrong("Converting several images into one is not supported yet");
    }
    Ok(())
}

fn copy(context: &Context<'_>, request: &Request, progress: &mut Progress) -> Result<(), Failure> {
    let mut image = request.source.open(&request.operands[0])?;
    if let Some(snapshot) = &request.snapshot {
        snapshot.apply(&mut image)?;
    }
    let list = request.options.as_deref().unwrap_or("");
    let options = match list {
        "" => CreateOptions::default(),
        list => CreateOptions::parse("raw", list, context.program, false)?,
    };
    if request.backing {
        return Err(Failure::new(
            "Backing file not supported for file format 'raw'",
        ));
    }
    if request.compress {
        return Err(Failure::new(
            "Compression not supported for this file format",
        ));
    }
    if request.bitmaps {
        return Err(Failure::new("Format driver 'raw' does not support bitmaps"));
    }
    let allocate = match options.get("preallocation") {
        None | Some("off") => false,
        Some("falloc" | "full") => true,
        Some(other) => {
            let target = &request.target;
            return Err(Failure::new(format!(
                "{target}: error while converting raw: invalid parameter value: {other}"
            )));
        }
    };
    let size = image.virtual_size();
    let target = if request.no_create {
        existing_target(request, &image)?
    } else {
        new_target(&request.target, &image, size).map_err(|error| {
            Failure::new(format!(
                "{}: error while converting raw: {error}",
                request.target
            ))
        })?
    };
    let sparse = if allocate {
        0
    } else {
        request.sparse.unwrap_or(4096) as usize
    };
    // What a file that was there before holds is not known.
    let target_is_zero = !request.no_create || request.target_is_zero;
    let mut reached = 0;
    let on_progress = |done, total| {
        reached = done;
        progress.at(done, total);
        true
    };
    let options = RawOptions {
        sparse,
        target_is_zero,
        buffer: buffer_for(&image),
    };
    let result = block_on(convert::to_raw(&image, &target, &options, on_progress));
    result.map_err(|error| match &error {
        oxcow::Error::Io { what, .. } if what.starts_with("error while writing") => {
            Failure::new(error)
        }
        _ => Failure::new(format!("error while reading at byte {reached}: {error}")),
    })?;
    progress.at(size, size);
    Ok(())
}

/// What stays in the processor's cache between being read, looked at and written; at least a cluster, so that
/// a compressed one is decompressed in place.
fn buffer_for(image: &Image<FileStorage>) -> usize {
    let cluster = image
        .top()
        .as_qcow2()
        .map_or(0, |qcow2| qcow2.header().cluster_size.len());
    cluster.max(512 << 10)
}

/// Creates the target with its size, all zeros; the words of an error are without the file's name.
pub fn new_target(
    given: &str,
    image: &Image<FileStorage>,
    size: u64,
) -> Result<FileStorage, String> {
    let name = Name::parse(given)?;
    let could_not = |error: std::io::Error| {
        let error = oxcow::Error::Io {
            what: format!("Could not create '{}'", name.path).into(),
            offset: None,
            source: error,
        };
        error.to_string()
    };
    let target = FileStorage::create(&name.path).map_err(could_not)?;
    check_not_a_source(&target, &name.path, image)?;
    let emptied = block_on(async {
        target.set_len(0).await?;
        target.set_len(size).await
    });
    emptied.map_err(could_not)?;
    Ok(target)
}

/// Without locks, this is what keeps a disk from being emptied before it is read.
fn check_not_a_source(
    target: &FileStorage,
    path: &str,
    image: &Image<FileStorage>,
) -> Result<(), String> {
    match target.identity() {
        Some(identity) if open::identities(image).contains(&identity) => Err(format!(
            "Failed to get \"write\" lock\nIs another process using the image [{path}]?"
        )),
        _ => Ok(()),
    }
}

fn existing_target(request: &Request, image: &Image<FileStorage>) -> Result<FileStorage, Failure> {
    let format = if request.target_image_opts {
        None
    } else {
        request.target_format.clone().or(Some("raw".into()))
    };
    let source = Source {
        format,
        image_opts: request.target_image_opts,
        ..Source::default()
    };
    let name = source.name(&request.target)?;
    if name.format.as_deref() != Some("raw") {
        return Err(Failure::new(
            "Writing into an image that is not raw is not supported yet",
        ));
    }
    let failed = |error: &dyn std::fmt::Display| could_not_open(&name.given, error);
    let target = open::open_target(&name.path)
        .map_err(|error| failed(&error))?
        .storage;
    check_not_a_source(&target, &name.path, image).map_err(|error| failed(&error))?;
    let length = block_on(target.len()).map_err(|error| failed(&error))?;
    if length < image.virtual_size() {
        return Err(Failure::new("output file is smaller than input file"));
    }
    Ok(target)
}

/// The value of `-l`: an id or a name, or both by name.
#[derive(Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// Whatever it names, ids first.
    Any(String),
    /// `snapshot.id=`, `snapshot.name=`.
    Exact {
        id: Option<String>,
        name: Option<String>,
    },
}

impl Snapshot {
    /// Reads the option's value.
    pub fn parse(value: &str, context: &Context<'_>) -> Result<Self, Failure> {
        if !value.starts_with("snapshot.") {
            return Ok(Self::Any(value.to_owned()));
        }
        let (mut id, mut name) = (None, None);
        for part in split_options(value) {
            match part.split_once('=') {
                Some(("snapshot.id", value)) => id = Some(value.to_owned()),
                Some(("snapshot.name", value)) => name = Some(value.to_owned()),
                _ => {
                    let key = part.split('=').next().unwrap_or_default();
                    console::error_line(&format!("{}: Invalid parameter '{key}'", context.program));
                    return Err(Failure::new(format!(
                        "Failed in parsing snapshot param '{value}'"
                    )));
                }
            }
        }
        Ok(Self::Exact { id, name })
    }

    /// Makes `image` read the snapshot.
    pub fn apply(&self, image: &mut Image<FileStorage>) -> Result<(), Failure> {
        let Some(qcow2) = image.top().as_qcow2() else {
            return Err(Failure::new(format!(
                "Failed to load snapshot: Block format '{}' used by device '' does not support temporarily loading \
                 internal snapshots",
                image.top().format()
            )));
        };
        let found = match self {
            Self::Any(text) => qcow2
                .find_snapshot(text)
                .map(|snapshot| snapshot.id.clone()),
            Self::Exact { id, name } => qcow2
                .snapshots()
                .iter()
                .find(|snapshot| {
                    id.as_ref().is_none_or(|id| *id == snapshot.id)
                        && name.as_ref().is_none_or(|name| *name == snapshot.name)
                })
                .map(|snapshot| snapshot.id.clone()),
        };
        let failed =
            |text: &dyn std::fmt::Display| Failure::new(format!("Failed to load snapshot: {text}"));
        let id = found.ok_or_else(|| failed(&"Can't find snapshot"))?;
        block_on(image.use_snapshot(&id)).map_err(|error| failed(&error))
    }
}
