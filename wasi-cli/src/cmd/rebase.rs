//! `rebase`: an image onto another backing file, or onto none.

use oxcow::convert::{Failed, Step};
use oxcow::rebase::{RebaseOptions, keep_differences};
use oxcow::{Backing, BackingName, Image, OpenOptions};

use super::commit::depth_of;
use super::create::BACKING_FORMATS;
use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome, in_short};
use crate::file::{FileStorage, block_on};
use crate::name::{self, Name};
use crate::open::{self, Handling, Source, could_not_open};
use crate::progress::Progress;

pub const COMMAND: Command = Command {
    name: "rebase",
    about: "Change backing file of the image",
    usage: "
[-f FMT | --image-opts] [-t CACHE] [-q] [-U] [-p]
        [-b BACKING_FILENAME [-F BACKING_FMT] [-T BACKING_CACHE]] [-u]
        [--object OBJDEF] [-c] FILENAME

  -q, --quiet
     print only errors
  -p, --progress
     show how far it is
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -b, --backing BACKING_FILENAME|\"\"
     the file that the image is to stand on; none for an empty name. What it has otherwise is
     written to the image, so that the disk stays what it is
  -F, --backing-format BACKING_FMT
     the format of BACKING_FILENAME
  -u, --backing-unsafe
     only write the new name down, as for a file that was renamed
  -c, --compress
     compress what is written
  -t, --cache CACHE, -T, --backing-cache CACHE
     accepted for compatibility; with -t unsafe nothing waits for the disk
  -U, --force-share, --object OBJDEF
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
    "b/backing=",
    "F/backing-format=",
    "T/backing-cache=",
    "u/backing-unsafe",
    "c/compress",
    "U/force-share",
    "object=",
];

/// Everything that the command line says.
#[derive(Default)]
struct Request {
    source: Source,
    cache: Option<String>,
    backing: Option<String>,
    backing_format: Option<String>,
    backing_cache: Option<String>,
    only_name: bool,
    compress: bool,
    progress: bool,
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut request = Request::default();
    let mut quiet = false;
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => quiet = true,
            "progress" => request.progress = true,
            "cache" => request.cache = Some(value),
            "backing" => request.backing = Some(value),
            "backing-format" => request.backing_format = Some(value),
            "backing-cache" => request.backing_cache = Some(value),
            "backing-unsafe" => request.only_name = true,
            "compress" => request.compress = true,
            "force-share" => {} // An image that is written to is nobody else's, whatever one asks for.
            _ => request.source.option(name, value)?,
        }
        Ok(())
    })?;
    let [given] = &operands[..] else {
        return Err(Failure::usage("Expecting one image file name"));
    };
    if request.backing.is_none() && !request.only_name {
        return Err(Failure::usage(
            "Must specify backing file (-b) or use unsafe mode (-u)",
        ));
    }
    request.source.check()?;
    let mut progress = Progress::new(request.progress && !quiet, 1.0);
    progress.at(0, 1);
    let done = rebase(&request, given, &mut progress);
    progress.end();
    done.map(|()| 0)
}

fn rebase(request: &Request, given: &str, progress: &mut Progress) -> Result<(), Failure> {
    if let Some(mode) = &request.cache {
        open::check_cache_mode(mode, "")?;
    }
    if let Some(mode) = &request.backing_cache {
        open::check_cache_mode(mode, "source ")?;
    }
    // The file that the image stands on may be gone: that is what the name alone is changed for.
    let options = OpenOptions {
        writable: true,
        backing: match request.only_name {
            true => Backing::Ignore,
            false => Backing::Open,
        },
        ..OpenOptions::default()
    };
    let handling = Handling {
        without_barrier: request.cache.as_deref() == Some("unsafe"),
        ..Handling::default()
    };
    let name = request.source.name(given)?;
    let image =
        open::open_with(&name, &options, handling).map_err(|error| could_not_open(given, error))?;
    open::check_readable(&image).map_err(|error| could_not_open(given, error))?;
    if request.compress && image.top().as_qcow2().is_none() {
        return Err(Failure::new(
            "Compression not supported for this file format",
        ));
    }
    if let Some(format) = &request.backing_format
        && !BACKING_FORMATS.contains(&format.as_str())
    {
        return Err(Failure::new(format!("Invalid format name: '{format}'")));
    }
    if !request.only_name {
        keep(request, &name, &image, progress)?;
    }
    let backing = match request.backing.as_deref() {
        None | Some("") => None,
        Some(name) => Some(BackingName {
            name: name.to_owned(),
            format: request.backing_format.clone(),
        }),
    };
    let named = request.backing.as_deref().unwrap_or("(null)");
    change_name(&image, backing.as_ref(), named)?;
    progress.finish();
    Ok(())
}

/// Has the image hold whatever the new backing file does not have.
fn keep(
    request: &Request,
    name: &Name,
    image: &Image<FileStorage>,
    progress: &mut Progress,
) -> Result<(), Failure> {
    if image.top().as_qcow2().is_none() {
        return Ok(());
    }
    let mut common = None;
    let mut new = None;
    if let Some(backing) = request.backing.as_deref().filter(|name| !name.is_empty()) {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::new(format!(
                "Could not open new backing file '{backing}': {why}"
            ))
        };
        let full = name::resolve(name.path(), backing);
        common = depth_of(image, backing);
        let mut new_name = Name::parse(&full).map_err(|error| failed(&error))?;
        // As qemu-img has it, one of the image's own chain is what it is there.
        let there = common.map(|depth| image.layers()[depth].format().to_string());
        let wanted = there.or_else(|| request.backing_format.clone());
        new_name.format = wanted.or(new_name.format);
        let opened = open::open_quietly(&new_name, &OpenOptions::default());
        let opened = opened.map_err(|error| failed(&error))?;
        open::check_readable(&opened).map_err(|error| failed(&error))?;
        new = Some(opened);
    }
    let options = RebaseOptions {
        compress: request.compress,
        common,
        ..RebaseOptions::default()
    };
    let kept = keep_differences(image, new.as_ref(), &options, |done, total| {
        // The end is told when the name is changed.
        if done < total {
            progress.at(done, total);
        }
        true
    });
    block_on(kept).map_err(|failed| {
        let Failed { step, source, .. } = failed;
        let source = in_short(source);
        Failure::new(match step {
            Step::Mapping => format!("error while reading image metadata: {source}"),
            Step::Reading => format!("error while reading from old backing file: {source}"),
            Step::Writing | Step::Flushing => {
                format!("Error while writing to COW image: {source}")
            }
        })
    })
}

fn change_name(
    image: &Image<FileStorage>,
    backing: Option<&BackingName>,
    named: &str,
) -> Result<(), Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!(
            "Could not change the backing file to '{named}': {why}"
        ))
    };
    let has_format = |backing: &BackingName| backing.format.is_some();
    if image.top().as_qcow2().is_some() && !backing.is_none_or(has_format) {
        return Err(failed(&"backing format must be specified"));
    }
    block_on(image.set_backing(backing)).map_err(|error| failed(&in_short(error)))
}
