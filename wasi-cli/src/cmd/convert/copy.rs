//! The work: sources opened, target made ready, everything copied. Complaints come in qemu-img's order.

use std::time::Instant;

use oxcow::convert::{self, ConvertOptions, Failed, Step};
use oxcow::qcow2::Bitmap;
use oxcow::{Error, Image};

use super::pace::Pace;
use super::{Request, Snapshot, target};
use crate::cmd::Context;
use crate::cmd::create;
use crate::cmd::create_options::CreateOptions;
use crate::console;
use crate::failure::{Failure, in_short};
use crate::file::{FileStorage, Writes, block_on};
use crate::open::{self, Handling, check_cache_mode};
use crate::progress::Progress;
use crate::through;

/// Reads and writes of so many bytes stay in the processor's cache between being read, looked at and written.
const BUFFER: u64 = 512 << 10;
/// Zeros at the ends of what is read at once always count: where only long runs are wanted, as much is looked at
/// as qemu-img looks at.
const LONG: u64 = 2 << 20;

pub fn copy(
    context: &Context<'_>,
    request: &Request,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let wrong = |text: &str| Err(Failure::new(text));
    let mut sources = Vec::new();
    for given in &request.operands {
        request.source.check()?;
        sources.push(request.source.open(given)?);
    }
    match &request.snapshot {
        Some(Snapshot::Any(_)) if sources.len() > 1 => {
            return wrong("No support for concatenating multiple snapshot");
        }
        Some(snapshot) => snapshot.apply(&mut sources[0])?,
        None => {}
    }
    let size = sources.iter().map(Image::virtual_size).sum::<u64>();

    let mut options = CreateOptions::default();
    let mut over_backing = request.backing.is_some();
    if !request.no_create {
        options = target_options(context, request)?;
        options.set("size", &size.to_string());
        over_backing = options.get("backing_file").is_some();
    }
    if request.target_is_zero && over_backing {
        // An error to qemu-img too, and yet it ends well.
        console::error_line(&format!(
            "{}: Cannot use --target-is-zero when the destination image has a backing file",
            context.program
        ));
        return Ok(());
    }
    if sources.len() > 1 && over_backing {
        return wrong(
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        );
    }
    if over_backing && !request.no_create && options.get("backing_fmt").is_none() {
        return wrong("Use of backing file requires explicit backing format");
    }
    if request.compress && !request.no_create {
        check_compression(request, &options)?;
    }
    let bitmaps = match request.bitmaps {
        true => check_bitmaps(request, &sources)?,
        false => Bitmaps::default(),
    };
    let files: Vec<_> = sources.iter().flat_map(open::identities).collect();
    if !request.no_create {
        target::create(request, &options, &files).map_err(|error| {
            let (given, format) = (&request.target, request.format());
            Failure::new(format!("{given}: error while converting {format}: {error}"))
        })?;
    }
    if let Some(mode) = &request.target_cache {
        check_cache_mode(mode, "")?;
    }
    let handling = Handling {
        without_barrier: request.target_cache.as_deref() == Some("unsafe"),
        ..Handling::default()
    };
    let target = target::open_for(request, &options, &files, handling)?;
    if request.bitmaps && !can_have_bitmaps(&target) {
        let format = target.top().format();
        return wrong(&format!(
            "Format driver '{format}' does not support bitmaps"
        ));
    }
    if request.compress && target.top().as_qcow2().is_none() {
        return wrong("Compression not supported for this file format");
    }
    if target.virtual_size() < size {
        return wrong("output file is smaller than input file");
    }
    let (written, writes) = through::target(&target);
    copy_all(
        request,
        &sources,
        written,
        &ConvertOptions {
            compress: request.compress || writes == Writes::Compressed,
            sparse: request.sparse() as usize,
            target_is_new: reads_as_zeros(&target, &options)
                && (!request.no_create || request.target_is_zero),
            over_backing,
            ..engine_options(request, &sources)
        },
        progress,
    )?;
    if request.compress && has_data_file(&target) {
        // There are no compressed clusters in a data file, which qemu-img finds without a word where there is
        // nothing to be written.
        return Err(Failure::said(1));
    }
    open::close(&target, &request.target)?;
    bitmaps.copy(&sources[0], &target)?;
    open::close(&target, &request.target)?;
    progress.finish();
    Ok(())
}

fn engine_options(request: &Request, sources: &[Image<FileStorage>]) -> ConvertOptions {
    let default = ConvertOptions::default();
    // A compressed cluster is decompressed in place where there is room for all of it.
    let clusters = sources.iter().filter_map(|image| image.top().as_qcow2());
    let cluster = clusters.map(|qcow2| qcow2.header().cluster_size.bytes());
    let least = match request.sparse() > oxcow::ClusterSize::DEFAULT.bytes() {
        true => LONG,
        false => BUFFER,
    };
    let buffer = cluster.chain([least]).max();
    ConvertOptions {
        compress: request.compress,
        salvage: request.salvage,
        parallel: request
            .parallel
            .map_or(default.parallel, |parallel| parallel as usize),
        in_order: !request.any_order,
        buffer: buffer.unwrap_or(BUFFER) as usize,
        ..default
    }
}

fn copy_all(
    request: &Request,
    sources: &[Image<FileStorage>],
    target: &Image<FileStorage>,
    options: &ConvertOptions,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let sources: Vec<_> = sources.iter().collect();
    let pace = Pace {
        line: progress,
        rate: request.rate,
        written: || target.io_counts().written_bytes,
        began: Instant::now(),
        quiet: request.quiet,
    };
    block_on(convert::to_image(&sources, target, options, pace)).map_err(|failed| match failed {
        Failed {
            step: Step::Writing,
            offset,
            source: Error::Unsupported(_),
        } => Failure::new(format!(
            "error while writing at byte {offset}: Operation not supported"
        )),
        other => Failure::new(Failed {
            source: in_short(other.source),
            ..other
        }),
    })
}

/// The options of the target to be created.
fn target_options(context: &Context<'_>, request: &Request) -> Result<CreateOptions, Failure> {
    let format = request.format();
    create::check_format(format).map_err(Failure::new)?;
    // A name that can be none of a new file is told before the options are read.
    create::file_name(&request.target).map_err(Failure::new)?;
    let mut options = match request.options.as_deref().unwrap_or("") {
        "" => CreateOptions::default(),
        list => CreateOptions::parse(format, list, context.program, false)?,
    };
    for (option, value, what) in [
        ("backing_file", &request.backing, "Backing file"),
        (
            "backing_fmt",
            &request.backing_format,
            "Backing file format",
        ),
    ] {
        let Some(value) = value else { continue };
        if format != "qcow2" {
            return Err(Failure::new(format!(
                "{what} not supported for file format '{format}'"
            )));
        }
        options.set(option, value);
    }
    Ok(options)
}

fn check_compression(request: &Request, options: &CreateOptions) -> Result<(), Failure> {
    let wrong = |text: &str| Err(Failure::new(text));
    if request.format() != "qcow2" {
        return wrong("Compression not supported for this file format");
    }
    if options.is_on("encryption") || options.get("encrypt.format").is_some() {
        return wrong("Compression and encryption not supported at the same time");
    }
    if !matches!(options.get("preallocation"), None | Some("off")) {
        return wrong("Compression and preallocation not supported at the same time");
    }
    Ok(())
}

/// The bitmaps of the source, those that are to be copied and those that nobody can trust.
fn check_bitmaps(request: &Request, sources: &[Image<FileStorage>]) -> Result<Bitmaps, Failure> {
    let [source] = sources else {
        return Err(Failure::new(
            "Copying bitmaps only possible with single source",
        ));
    };
    if !can_have_bitmaps(source) {
        return Err(Failure::new("Source lacks bitmap support"));
    }
    let all = match source.top().as_qcow2() {
        Some(qcow2) => block_on(qcow2.bitmaps())?,
        None => Vec::new(),
    };
    let (broken, good): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| it.flags.in_use());
    match broken.first() {
        Some(bitmap) if !request.skip_broken_bitmaps => Err(Failure::new(format!(
            "Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use \
             'qemu-img bitmap --remove' to delete it",
            bitmap.name
        ))),
        _ => Ok(Bitmaps { good, broken }),
    }
}

/// The persistent bitmaps of a source.
#[derive(Default)]
struct Bitmaps {
    good: Vec<Bitmap>,
    broken: Vec<Bitmap>,
}

impl Bitmaps {
    fn copy(
        &self,
        source: &Image<FileStorage>,
        target: &Image<FileStorage>,
    ) -> Result<(), Failure> {
        for bitmap in &self.broken {
            console::warning(&format!("Skipping inconsistent bitmap '{}'", bitmap.name));
        }
        let Some(first) = self.good.first() else {
            return Ok(());
        };
        block_on(target.copy_bitmaps(source, &self.good)).map_err(|error| {
            let text = error.to_string();
            match text.strip_prefix("Bitmap already exists: ") {
                Some(name) => Failure::new(format!("Failed to create bitmap {name}: {text}")),
                None => Failure::new(format!("Failed to populate bitmap {}: {text}", first.name)),
            }
        })
    }
}

/// Whether what was never written to a new target reads as zeros: not where it would be decrypted.
fn reads_as_zeros(target: &Image<FileStorage>, options: &CreateOptions) -> bool {
    let unallocated = matches!(options.get("preallocation"), None | Some("off"));
    let data_file_raw = options.is_on("data_file_raw");
    let qcow2 = target.top().as_qcow2().is_some();
    !target.top().is_encrypted() || qcow2 && unallocated && !data_file_raw
}

fn can_have_bitmaps(image: &Image<FileStorage>) -> bool {
    let version = image.top().as_qcow2().map(|qcow2| qcow2.header().version);
    version.is_some_and(|version| version >= oxcow::qcow2::Version::V3)
}

fn has_data_file(image: &Image<FileStorage>) -> bool {
    let qcow2 = image.top().as_qcow2();
    qcow2.is_some_and(|qcow2| qcow2.header().has_data_file())
}
