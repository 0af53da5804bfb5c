//! `create`: a new, empty image.

use std::io;
use std::ops::Range;

use oxcow::create as engine;
use oxcow::qcow2::{Compression, Version};
use oxcow::{OpenOptions, Preallocation, Storage};

use super::create_options::{self, CreateOptions};
use super::{Command, Context};
use crate::args::Spec;
use crate::failure::{Failure, Outcome};
use crate::file::{self, FileStorage, Identity, Lock, block_on};
use crate::name::{self, Name, Under};
use crate::open::{self, check_object};
use crate::{console, encrypt, outln, size};

pub const COMMAND: Command = Command {
    name: "create",
    about: "Create and format new image file",
    usage: "
[-f FMT] [-o FMT_OPTS] [-b BACKING_FILENAME [-F BACKING_FMT]]
        [--object OBJDEF] [-u] [-q] FILENAME [SIZE[bkKMGTPE]]

  -q, --quiet
     print only errors
  -f, --format FMT
     the format of the new image: raw (default) or qcow2
  -o, --options FMT_OPTS
     its options, as in cluster_size=4k,extended_l2=on ('-o help' lists them)
  -b, --backing BACKING_FILENAME
     the new image shows BACKING_FILENAME until it is written to
  -F, --backing-format BACKING_FMT
     the format of BACKING_FILENAME
  -u, --backing-unsafe
     do not look whether BACKING_FILENAME can be opened
  FILENAME
     the file; if it is there already, it is overwritten
  SIZE
     the size of the disk; that of BACKING_FILENAME where it is not given",
    run,
};

const SPEC: Spec = &[
    "h/help",
    "q/quiet",
    "f/format=",
    "o/options=",
    "b/backing=",
    "F/backing-format=",
    "u/backing-unsafe",
    "object=",
];

const SAME_AS_BACKING: &str =
    "Error: Trying to create an image with the same filename as the backing file";

/// How much is written at a time.
const PIECE: usize = 1 << 20;

/// What an image can say its backing file is: QEMU's names, apart from those that are too long to be read again.
pub const BACKING_FORMATS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// Formats of QEMU's that it does not create either.
const READ_ONLY_FORMATS: &[&str] = &["bochs", "cloop", "dmg"];

/// Everything that the command line says.
#[derive(Default)]
struct Request {
    quiet: bool,
    format: Option<String>,
    options: Option<String>,
    backing: Option<String>,
    backing_format: Option<String>,
    unsafe_backing: bool,
}

fn run(context: &Context<'_>, args: Vec<String>) -> Outcome {
    let mut request = Request::default();
    let operands = context.options(SPEC, args, |name, value| {
        match name {
            "quiet" => request.quiet = true,
            "format" => request.format = Some(value),
            "options" => create_options::append(&mut request.options, &value)?,
            "backing" => request.backing = Some(value),
            "backing-format" => request.backing_format = Some(value),
            "backing-unsafe" => request.unsafe_backing = true,
            _ => check_object(&value)?,
        }
        Ok(())
    })?;
    let mut operands = operands.into_iter();
    let given = operands.next();
    let format = request.format.as_deref().unwrap_or("raw");
    let list = request.options.as_deref().unwrap_or("");
    if create_options::asks_for_help(list) {
        check_format(format).map_err(Failure::new)?;
        if let Some(given) = &given {
            file_name(given).map_err(Failure::new)?;
        }
        create_options::print_help(format, given.is_some());
        return Ok(0);
    }
    let given = given.ok_or_else(|| Failure::usage("Expecting image file name"))?;
    let size = operands
        .next()
        .map(|text| size::option("image size", &text, 0, size::MAX));
    let size = size.transpose()?;
    if let Some(extra) = operands.next() {
        return Err(Failure::usage(format!("Unexpected argument: {extra}")));
    }
    create(&request, format, &given, size)
        .map_err(|text| Failure::new(format!("{given}: {text}")))?;
    Ok(0)
}

/// Creates the image called `given`; an error is its words without the name.
fn create(request: &Request, format: &str, given: &str, size: Option<u64>) -> Result<(), String> {
    check_format(format)?;
    let name = file_name(given)?;
    let list = request.options.as_deref().unwrap_or("");
    let mut options = CreateOptions::parse_list(format, list)?;
    if let Some(size) = size {
        if options.get("size").is_some() {
            return Err("The image size must be specified only once".to_owned());
        }
        options.set("size", &size.to_string());
    }
    for (option, value, what) in [
        ("backing_file", &request.backing, "Backing file"),
        (
            "backing_fmt",
            &request.backing_format,
            "Backing file format",
        ),
    ] {
        if let Some(value) = value {
            if format != "qcow2" {
                return Err(format!("{what} not supported for file format '{format}'"));
            }
            options.set(option, value);
        }
    }
    let sources = backing(request, &mut options, given)?;
    // All ones stands for no size at all.
    let Some(size) = options.size("size").filter(|&size| size != u64::MAX) else {
        return Err("Image creation needs a size parameter".to_owned());
    };
    if !request.quiet {
        outln!(
            "Formatting '{given}', fmt={format}{}",
            options.summary(format)
        );
        // Before what may go wrong.
        console::flush();
    }
    match format {
        "qcow2" => create_qcow2(name.path(), &options, Users::Overlay(&sources)),
        "luks" => create_luks(name.path(), &options, &[]),
        _ => create_raw(name.path(), format, size, options.get("preallocation"), &[]),
    }
}

/// Whether a file of the format can be created.
pub fn check_format(format: &str) -> Result<(), String> {
    match format {
        // The protocol beneath every format makes the same file as raw.
        "raw" | "qcow2" | "luks" | "file" => Ok(()),
        other if READ_ONLY_FORMATS.contains(&other) => Err(format!(
            "Format driver '{other}' does not support image creation"
        )),
        other => Err(format!("Unknown file format '{other}'")),
    }
}

/// The name of a file that may not be there yet.
pub fn file_name(given: &str) -> Result<Name, String> {
    // A new file cannot be described, only named.
    if given.starts_with("json:") {
        return Err("Unknown protocol 'json'".to_owned());
    }
    if given.is_empty() {
        // The system has words for that.
        return Name::parse("file").map(|name| Name {
            under: Under::File {
                path: String::new(),
                kind: None,
            },
            ..name
        });
    }
    Name::parse(given)
}

/// Looks at the backing file, whose size the new disk has unless another one is given. Returns all files that
/// it consists of.
fn backing(
    request: &Request,
    options: &mut CreateOptions,
    given: &str,
) -> Result<Vec<Identity>, String> {
    let Some(backing) = options.get("backing_file") else {
        return Ok(Vec::new());
    };
    if backing.is_empty() {
        return Err("Expected backing file name, got empty string".to_owned());
    }
    if backing == given {
        return Err(SAME_AS_BACKING.to_owned());
    }
    const NO_FORMAT: &str = "Backing file specified without backing format";
    if request.unsafe_backing {
        return match options.get("backing_fmt") {
            Some(_) => Ok(Vec::new()),
            None => Err(NO_FORMAT.to_owned()),
        };
    }
    let could_not = |text: String| format!("{text}\nCould not open backing image.");
    let full = name::resolve(given, backing);
    let is_relative = name::resolve("folder/", backing) != backing;
    if given.is_empty() && is_relative {
        return Err(format!(
            "Cannot use relative backing file names for '{given}'"
        ));
    }
    let name = Name::parse_as(&full, options.get("backing_fmt")).map_err(could_not)?;
    let image = open::open_quietly(&name, &OpenOptions::default())
        .map_err(|error| could_not(error.to_string()))?;
    if options.get("backing_fmt").is_none() {
        let detected = image.top().format();
        return Err(format!("{NO_FORMAT}\nDetected format of {detected}."));
    }
    if options.get("size").is_none() {
        options.set("size", &image.virtual_size().to_string());
    }
    Ok(open::identities(&image))
}

/// Two names of one thing.
fn check_aliases(options: &CreateOptions) -> Result<(), String> {
    if options.is_on("encryption") && options.get("encrypt.format").is_some() {
        let what = "'encrypt.format' and its alias 'encryption' can't be used at the same time";
        return Err(what.to_owned());
    }
    Ok(())
}

/// What the options mean, in the order in which qemu-img complains.
fn qcow2_options(options: &CreateOptions) -> Result<engine::CreateOptions, String> {
    let unknown = |name: &str, value: &str| {
        Err(format!(
            "Parameter '{name}' does not accept value '{value}'"
        ))
    };
    let text = |name: &str| options.get(name).map(str::to_owned);
    let version = match options.get("compat") {
        None | Some("1.1" | "v3") => Version::V3,
        Some("0.10" | "v2") => Version::V2,
        Some(other) => return unknown("version", other),
    };
    match options.get("backing_fmt") {
        Some(other) if !BACKING_FORMATS.contains(&other) => return unknown("backing-fmt", other),
        _ => {}
    }
    check_encryption(options)?;
    let preallocation = match options.get("preallocation") {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return unknown("preallocation", other),
    };
    let compression = match options.get("compression_type") {
        None | Some("zlib") => Compression::Zlib,
        Some("zstd") => Compression::Zstd,
        Some(other) => return unknown("compression-type", other),
    };
    let default = engine::CreateOptions::default();
    let asked = engine::CreateOptions {
        size: options.size("size").unwrap_or(0),
        version,
        cluster_size: options.size("cluster_size").unwrap_or(default.cluster_size),
        refcount_bits: options
            .number("refcount_bits")
            .unwrap_or(default.refcount_bits),
        extended_l2: options.is_on("extended_l2"),
        lazy_refcounts: options.is_on("lazy_refcounts"),
        compression,
        preallocation,
        backing_file: text("backing_file"),
        backing_format: text("backing_fmt"),
        data_file: text("data_file"),
        data_file_raw: options.is_on("data_file_raw"),
        ..default
    };
    asked.check().map_err(|error| match asked.size {
        size if size > size::MAX && error.to_string().contains("size is too large") => {
            "Could not resize image: Image size cannot be negative".to_owned()
        }
        _ => error.to_string(),
    })?;
    let encryption = encrypt::of_qcow2(options)?;
    Ok(engine::CreateOptions {
        encryption,
        ..asked
    })
}

/// Whether the options about encryption go together.
fn check_encryption(options: &CreateOptions) -> Result<(), String> {
    let others = [
        "encrypt.key-secret",
        "encrypt.cipher-alg",
        "encrypt.cipher-mode",
        "encrypt.ivgen-alg",
        "encrypt.ivgen-hash-alg",
        "encrypt.hash-alg",
        "encrypt.iter-time",
    ];
    match options.get("encrypt.format") {
        Some("aes" | "luks") => Ok(()),
        Some(other) => Err(format!(
            "Parameter 'format' does not accept value '{other}'"
        )),
        None if options.is_on("encryption") => Ok(()),
        None if others.iter().any(|name| options.get(name).is_some()) => {
            Err("Parameter 'encrypt.format' is missing".to_owned())
        }
        None => Ok(()),
    }
}

/// A file that is being made into something new.
struct NewFile {
    path: String,
    storage: FileStorage,
    /// Whether it was not there before.
    new: bool,
}

impl NewFile {
    /// Opens or creates the file, whose content is not touched yet.
    fn open(path: &str) -> Result<Self, String> {
        let could_not = |source| {
            let error = oxcow::Error::Io {
                what: format!("Could not create '{path}'").into(),
                offset: None,
                source,
            };
            error.to_string()
        };
        if path.is_empty() {
            // A sandbox takes that for its own folder.
            let words = "No such file or directory";
            return Err(could_not(io::Error::new(io::ErrorKind::NotFound, words)));
        }
        let (storage, new) = match FileStorage::open(path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (FileStorage::create(path).map_err(could_not)?, true)
            }
            other => (other.map_err(could_not)?, false),
        };
        let file = Self {
            path: path.to_owned(),
            storage,
            new,
        };
        match file.storage.lock(Lock::Exclusive) {
            true => Ok(file),
            false => Err(file.in_use()),
        }
    }

    fn in_use(&self) -> String {
        let path = &self.path;
        format!("Failed to get \"write\" lock\nIs another process using the image [{path}]?")
    }

    /// Whether it is one of `others`, whatever they are called.
    fn is_one_of(&self, others: &[Identity]) -> bool {
        let identity = self.storage.identity();
        identity.is_some_and(|identity| others.contains(&identity))
    }

    /// Leaves things as they were before it was opened.
    fn withdraw(self) {
        if self.new {
            self.remove();
        }
    }

    /// Removes what did not become an image.
    fn remove(self) {
        drop(self.storage);
        // What cannot be removed is at least no image, and why has been told.
        let _ = file::remove(&self.path);
    }
}

/// Files that a new image must not take the place of, and what for.
#[derive(Clone, Copy, Debug)]
pub enum Users<'a> {
    /// It is to stand on them.
    Overlay(&'a [Identity]),
    /// It is to become a copy of them.
    Sources(&'a [Identity]),
}

/// Creates a qcow2 image, with its data file where it has one; an error is its words without the name.
pub fn create_qcow2(path: &str, options: &CreateOptions, users: Users<'_>) -> Result<(), String> {
    let (Users::Overlay(sources) | Users::Sources(sources)) = users;
    check_aliases(options)?;
    // What is wrong with the files is told first, as qemu-img does; but neither of them loses anything before
    // everything else is known to be right.
    let image = NewFile::open(path)?;
    if image.is_one_of(sources) {
        let text = match users {
            Users::Overlay(_) => SAME_AS_BACKING.to_owned(),
            Users::Sources(_) => image.in_use(),
        };
        image.withdraw();
        return Err(text);
    }
    // Not relative to the image's folder, though that is how it is looked for later: as qemu-img has it.
    let data = options.get("data_file").map(|name| {
        let name = file_name(name)?;
        open_data_file(name.path(), &image, sources)
    });
    let data = match data.transpose() {
        Ok(data) => data,
        Err(text) => {
            image.withdraw();
            return Err(text);
        }
    };
    let asked = match qcow2_options(options) {
        Ok(asked) => asked,
        Err(text) => {
            image.withdraw();
            if let Some(data) = data {
                data.withdraw();
            }
            return Err(text);
        }
    };
    let storages = (&image.storage, data.as_ref().map(|data| &data.storage));
    block_on(engine::create(storages.0, storages.1, &asked)).map_err(|error| {
        image.remove();
        if let Some(data) = data {
            data.remove();
        }
        match &error {
            oxcow::Error::Io { source, .. } if is_too_large(source) => {
                format!("{} (try using a larger cluster size)", too_large("qcow2"))
            }
            _ => error.to_string(),
        }
    })
}

fn open_data_file(path: &str, image: &NewFile, sources: &[Identity]) -> Result<NewFile, String> {
    let data = NewFile::open(path)?;
    let image = image.storage.identity();
    if data.is_one_of(sources) || data.is_one_of(image.as_slice()) {
        let text = data.in_use();
        data.withdraw();
        return Err(text);
    }
    Ok(data)
}

fn too_large(format: &str) -> String {
    format!("The image size is too large for file format '{format}'")
}

/// Whether the file system has no files of such a length.
fn is_too_large(error: &io::Error) -> bool {
    let wasi_has_no_kind = cfg!(target_os = "wasi") && error.raw_os_error() == Some(22);
    error.kind() == io::ErrorKind::FileTooLarge || wasi_has_no_kind
}

/// Creates a raw file, which must be none of `sources`; an error is its words without the name.
pub fn create_raw(
    path: &str,
    format: &str,
    size: u64,
    preallocation: Option<&str>,
    sources: &[Identity],
) -> Result<(), String> {
    // Falloc is more than a file system without it can do in any other way than full.
    let allocating = match preallocation {
        None | Some("off") => None,
        Some("falloc") => Some("Could not preallocate data for the new file"),
        Some("full") => Some("Could not write zeros for preallocation"),
        Some(mode @ "metadata") => return Err(format!("Unsupported preallocation mode: {mode}")),
        Some(other) => return Err(format!("invalid parameter value: {other}")),
    };
    let could_not = |what: &str, source: io::Error| match is_too_large(&source) {
        true => too_large(format),
        false => oxcow::Error::io(what.to_owned(), 0, source).to_string(),
    };
    let resizing = |source| could_not("Could not resize file", source);
    let size = size
        .checked_next_multiple_of(512)
        .filter(|&size| size <= size::MAX)
        .ok_or_else(|| "Could not resize file: Invalid argument".to_owned())?;
    let file = NewFile::open(path)?;
    if file.is_one_of(sources) {
        return Err(file.in_use());
    }
    let storage = file.storage;
    block_on(async {
        // Whether there can be such a file is known before the one that is there is emptied.
        let length = storage.len().await?;
        storage.set_len(length.max(size)).await?;
        storage.set_len(0).await?;
        storage.set_len(size).await
    })
    .map_err(resizing)?;
    let Some(what) = allocating else {
        return Ok(());
    };
    write_zeros(&storage, 0..size).map_err(|source| could_not(what, source))
}

fn write_zeros(storage: &FileStorage, range: Range<u64>) -> io::Result<()> {
    block_on(async {
        let zeros = vec![0; PIECE];
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(PIECE as u64);
            storage.write_at(at, &zeros[..step as usize]).await?;
            at += step;
        }
        storage.flush().await
    })
}

/// Creates a plain LUKS image, which must be none of `sources`; an error is its words without the name.
pub fn create_luks(
    path: &str,
    options: &CreateOptions,
    sources: &[Identity],
) -> Result<(), String> {
    let allocated = match options.get("preallocation") {
        None | Some("off" | "metadata") => false,
        Some("falloc" | "full") => true,
        Some(other) => return Err(format!("invalid parameter value: {other}")),
    };
    encrypt::check_luks_words(options)?;
    let size = options.size("size").unwrap_or(0);
    let size = size
        .checked_next_multiple_of(512)
        .filter(|&size| size <= size::MAX)
        .ok_or_else(|| "The requested file size is too large".to_owned())?;
    let file = NewFile::open(path)?;
    if file.is_one_of(sources) {
        return Err(file.in_use());
    }
    // As with qemu-img there is no file, of whatever kind, where there was to be one that keeps a secret.
    let created = encrypt::of_luks(options).and_then(|header| {
        block_on(engine::create_luks(&file.storage, &header, size))
            .map_err(|error| error.to_string())
    });
    let created = created.and_then(|()| {
        let start = block_on(file.storage.len()).map(|length| length - size);
        let written = start.and_then(|start| match allocated {
            true => write_zeros(&file.storage, start..start + size),
            false => Ok(()),
        });
        written.map_err(|source| {
            oxcow::Error::io("Could not write zeros for preallocation", 0, source).to_string()
        })
    });
    created.inspect_err(|_| file.remove())
}
