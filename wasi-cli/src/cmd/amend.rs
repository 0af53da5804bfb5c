//! `amend`: what an image says of itself, changed in place.

use oxcow::qcow2::{Compatible, Version};
use oxcow::{AmendOptions, Error, Image, ResizeOptions};

use super::create_options::{self, CreateOptions};
use super::{Command, Context};
use crate::args::Spec;
use crate::encrypt::KeyOptions;
use crate::failure::{Failure, Outcome, told_of_snapshot_table};
use crate::file::{FileStorage, block_on};
use crate::name;
use crate::open::{self, Source};
use crate::progress::Progress;
use crate::{outln, size};

pub const COMMAND: Command = Command {
    name: "amend",
    about: "Update format-specific options of the image",
    usage: "
[-f FMT | --image-opts] [-t CACHE] [--force] [-p] [-q]
        [--object OBJDEF] -o OPTIONS FILENAME

  -q, --quiet
     print only errors
  -p, --progress
     show how far it is
  -f, --format FMT
     the image's format; without it, its first bytes decide
  --image-opts
     FILENAME is a list of options such as driver=qcow2,file.filename=disk.img
  -o, --options OPTIONS
     what is to be changed, as in compat=1.1,lazy_refcounts=on ('-o help' lists it)
  --force
     key slots may be replaced, and the last of them erased
  --object OBJDEF
     a passphrase for encrypted images, as in secret,id=key,file=passphrase
  -t, --cache CACHE
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
    "force",
    "object=",
    "o/options=",
];

/// What can be changed, in the order of the help: name, kind and what the help says.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("backing_file", "str", "File name of a base image"),
    ("backing_fmt", "str", "Image format of the base image"),
    (
        "compat",
        "str",
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    ("data_file", "str", "File name of an external data file"),
    (
        "data_file_raw",
        "bool (on/off)",
        "The external data file must stay valid as a raw image",
    ),
    (
        "encrypt.iter-time",
        "num",
        "Time to spend in PBKDF in milliseconds",
    ),
    (
        "encrypt.keyslot",
        "num",
        "Select a single keyslot to modify explicitly",
    ),
    (
        "encrypt.new-secret",
        "str",
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    (
        "encrypt.old-secret",
        "str",
        "Select all keyslots that match this password",
    ),
    (
        "encrypt.state",
        "str",
        "Select new state of affected keyslots (active/inactive)",
    ),
    (
        "lazy_refcounts",
        "bool (on/off)",
        "Postpone refcount updates",
    ),
    (
        "refcount_bits",
        "num",
        "Width of a reference count entry in bits",
    ),
    ("size", "size", "Virtual disk size"),
];

/// Version 2 has no zero clusters.
const NOT_EXPANDED: &str = "Failed to turn zero into data clusters";

/// Everything that the command line says.
#[derive(Default)]
struct Request {
    source: Source,
    list: Option<String>,
    cache: Option<String>,
    quiet: bool,
    progress: bool,
    force: bool,
}

/// What is to be changed.
#[derive(Default)]
struct Changes {
    version: Option<Version>,
    header: AmendOptions,
    backing_file: Option<String>,
    backing_format: Option<String>,
    refcount_bits: Option<u64>,
    size: Option<u64>,
    keys: Option<KeyOptions>,
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut request = Request::default();
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => request.quiet = true,
            "progress" => request.progress = true,
            "force" => request.force = true,
            "cache" => request.cache = Some(value),
            "options" => create_options::append(&mut request.list, &value)?,
            _ => request.source.option(name, value)?,
        }
        Ok(())
    })?;
    let Some(list) = &request.list else {
        return Err(Failure::usage("Must specify options (-o)"));
    };
    let asks_for_help = create_options::asks_for_help(list);
    if let (true, Some(format)) = (asks_for_help, &request.source.format) {
        return help(format);
    }
    let [given] = &operands[..] else {
        return Err(Failure::new("Expecting one image file name"));
    };
    request.source.check()?;
    let mut progress = Progress::new(request.progress && !request.quiet, 1.0);
    progress.at(0, 1);
    let done = amend(&request, given, list, &mut progress);
    progress.end();
    done
}

fn help(format: &str) -> Outcome {
    let in_qcow2 = OPTIONS.iter().copied();
    let options: Vec<_> = match format {
        "qcow2" => in_qcow2.collect(),
        // The same, by names of its own.
        "luks" => in_qcow2
            .filter_map(|(name, kind, about)| Some((name.strip_prefix("encrypt.")?, kind, about)))
            .collect(),
        _ => return Err(not_for(format)),
    };
    outln!("Amend options for '{format}':");
    for (name, kind, about) in options {
        let option = format!("{name}=<{kind}>");
        outln!("  {option:<22} - {about}");
    }
    Ok(0)
}

fn not_for(format: &str) -> Failure {
    Failure::new(format!(
        "Format driver '{format}' does not support option amendment"
    ))
}

fn amend(request: &Request, given: &str, list: &str, progress: &mut Progress) -> Outcome {
    if let Some(mode) = &request.cache {
        open::check_cache_mode(mode, "")?;
    }
    let image = request.source.open_writable(given)?;
    let format = image.top().format();
    let asks_for_help = create_options::asks_for_help(list);
    let is_luks = format == oxcow::Format::Luks;
    if asks_for_help || image.top().as_qcow2().is_none() && !is_luks {
        return help(&format.to_string());
    }
    if is_luks {
        let keys = key_options(list, "")?.unwrap_or_default();
        keys.apply(&image, request.force).map_err(Failure::new)?;
        open::close(&image, given)?;
        progress.finish();
        return Ok(0);
    }
    let changes = changes(list)?;
    check(&image, &changes)?;
    apply(request, given, image, &changes, progress)?;
    progress.finish();
    Ok(0)
}

fn changes(list: &str) -> Result<Changes, Failure> {
    for part in name::split_options(list) {
        let name = part.split('=').next().unwrap_or_default();
        let name = name
            .strip_prefix("no")
            .filter(|_| !part.contains('='))
            .unwrap_or(name);
        let known = |known: &&(&str, &str, &str)| known.0 == name;
        if name.is_empty() || OPTIONS.iter().any(|option| known(&option)) {
            continue;
        }
        // What nobody knows is told of with the values.
        CreateOptions::parse_list("qcow2", &format!("{part},")).map_err(Failure::new)?;
        return Err(for_creation(name));
    }
    let keys = key_options(list, "encrypt.")?;
    let amended: Vec<String> = name::split_options(list)
        .into_iter()
        .filter(|part| !part.starts_with("encrypt."))
        .map(|part| part.replace(',', ",,"))
        .collect();
    let options = CreateOptions::parse_list("qcow2", &amended.join(",")).map_err(Failure::new)?;
    let flag = |name: &str| options.get(name).map(|_| options.is_on(name));
    let text = |name: &str| options.get(name).map(str::to_owned);
    Ok(Changes {
        keys,
        version: match options.get("compat") {
            None | Some("") => None,
            Some("0.10" | "v2") => Some(Version::V2),
            Some("1.1" | "v3") => Some(Version::V3),
            Some(other) => {
                return Err(Failure::new(format!("Unknown compatibility level {other}")));
            }
        },
        header: AmendOptions {
            version: None,
            lazy_refcounts: flag("lazy_refcounts"),
            data_file: text("data_file"),
            data_file_raw: flag("data_file_raw"),
        },
        backing_file: text("backing_file"),
        backing_format: text("backing_fmt"),
        refcount_bits: options.number("refcount_bits"),
        // As qemu-img has it, no size is not one of nothing.
        size: options.size("size").filter(|&size| size != 0),
    })
}

/// The options about key slots, where there are some.
fn key_options(list: &str, prefix: &str) -> Result<Option<KeyOptions>, Failure> {
    let mut found = None;
    for part in name::split_options(list) {
        let (name, value) = part.split_once('=').unwrap_or((&part, "on"));
        if let Some(name) = name.strip_prefix(prefix) {
            let keys = found.get_or_insert_with(KeyOptions::default);
            if !keys.set(name, value).map_err(Failure::new)? {
                return Err(for_creation(name));
            }
        }
    }
    Ok(found)
}

fn for_creation(name: &str) -> Failure {
    Failure::new(format!(
        "Invalid parameter '{name}'\nThis option is only supported for image creation"
    ))
}

/// What is wrong with the changes is told before the first of them.
fn check(image: &Image<FileStorage>, changes: &Changes) -> Result<(), Failure> {
    let Some(qcow2) = image.top().as_qcow2() else {
        return Ok(());
    };
    let wrong = |text: &str| Err(Failure::new(text));
    let header = qcow2.header();
    if changes.header.data_file.is_some() && !header.has_data_file() {
        return wrong("data-file can only be set for images that use an external data file");
    }
    if let Some(bits) = changes.refcount_bits {
        if !bits.is_power_of_two() || bits > 64 {
            return wrong("Refcount width must be a power of two and may not exceed 64 bits");
        }
        let version = changes.version.unwrap_or(header.version);
        if bits != u64::from(header.refcount_width.bits()) && version < Version::V3 && bits != 16 {
            return wrong(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            );
        }
    }
    if changes.backing_file.is_some() || changes.backing_format.is_some() {
        let backing = qcow2.backing();
        let name = backing.as_ref().map(|backing| backing.name.clone());
        let format = backing.and_then(|backing| backing.format.clone());
        if changes.backing_file != name || changes.backing_format != format {
            return wrong("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
        }
    }
    let lazy = header.compatible.has(Compatible::LAZY_REFCOUNTS);
    let version = changes.version.unwrap_or(header.version);
    if changes.header.lazy_refcounts == Some(true) && !lazy && version < Version::V3 {
        return wrong(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
        );
    }
    match changes.size {
        Some(size) if size > size::MAX => wrong("Image size cannot be negative"),
        _ => Ok(()),
    }
}

/// One transaction after the other, as qemu-img orders them: what version 3 can do comes after becoming that, and
/// before becoming version 2.
fn apply(
    request: &Request,
    given: &str,
    image: Image<FileStorage>,
    changes: &Changes,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let version = |image: &Image<FileStorage>| {
        let qcow2 = image.top().as_qcow2();
        qcow2.map_or(Version::V3, |qcow2| qcow2.header().version)
    };
    let downgrades = changes.version == Some(Version::V2) && version(&image) == Version::V3;
    let mut header = AmendOptions {
        version: changes.version.filter(|_| !downgrades),
        ..changes.header.clone()
    };
    let mut size = changes.size;
    // An image that was amended is opened again for what comes next, and only for that.
    let mut image = Some(image);
    if let (Some(keys), Some(unchanged)) = (&changes.keys, image.take()) {
        let image = match header.version.take() {
            None => unchanged,
            version => {
                block_on(unchanged.amend(&AmendOptions {
                    version,
                    ..AmendOptions::default()
                }))?;
                request.source.open_writable(given)?
            }
        };
        keys.apply(&image, request.force).map_err(Failure::new)?;
        // While it is open: the passphrase that opens it may be gone.
        if let Some(size) = size.take() {
            resize(&image, size)?;
        }
        open::close(&image, given)?;
    }
    let mut open = || match image.take() {
        Some(image) => Ok(image),
        None if changes.keys.is_some() => request.source.open_alone_writable(given),
        None => request.source.open_writable(given),
    };
    if header != AmendOptions::default() {
        block_on(open()?.amend(&header))?;
    }
    if let Some(bits) = changes.refcount_bits {
        block_on(open()?.set_refcount_bits(bits))?;
    }
    if let Some(size) = size {
        let image = open()?;
        resize(&image, size)?;
        open::close(&image, given)?;
    }
    if downgrades {
        let header = AmendOptions {
            version: Some(Version::V2),
            ..AmendOptions::default()
        };
        let done =
            block_on(open()?.amend_with(&header, &mut |done, total| progress.at(done, total)));
        done.map_err(|error| {
            let word = told_of_snapshot_table(&error);
            match (word, &error) {
                (Some(word), _) => Failure::new(format!("{NOT_EXPANDED}: {word}")),
                (None, Error::Corrupt { .. }) => {
                    Failure::new(format!("{NOT_EXPANDED}: Input/output error"))
                }
                _ => Failure::from(error),
            }
        })?;
    }
    Ok(())
}

fn resize(image: &Image<FileStorage>, size: u64) -> Result<(), Failure> {
    let options = ResizeOptions {
        shrink: true,
        ..ResizeOptions::default()
    };
    Ok(block_on(image.resize(size, &options))?)
}
