//! Opening images for the sub-commands: the files that they name are opened as qemu-img would, and the
//! sandbox decides what can be reached at all.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use oxcow::check::Problem;
use oxcow::crypto::Passphrase;
use oxcow::probe::{PROBE_BYTES, Probed, probe};
use oxcow::qcow2::{Encryption, Version};
use oxcow::{
    Backing, Error, File, Format, Image, Layer, OnRepair, OpenOptions, Place, Preallocation, Qcow2,
    Resolver, Role, Storage, Structure, Wanted,
};

use crate::console;
use crate::failure::{self, Failure};
use crate::file::{Disk, FileStorage, Identity, Kind, Lock, Window, Writes, block_on};
use crate::name::{self, FileKind, Guise, MOST_INSIDE, Name, Under};
use crate::node;
use crate::secret::{self, KeySecret};

/// The options about one image that most sub-commands share.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The value of `-f`.
    pub format: Option<String>,
    /// Whether names are lists of options.
    pub image_opts: bool,
    /// The value of `-T`.
    pub cache: Option<String>,
    /// Whether others may have the image open, whatever they do with it (`-U`).
    pub force_share: bool,
}

impl Source {
    /// Takes an option that a sub-command does not take itself. What is none of these has no effect here and
    /// is there for the sake of scripts.
    pub fn option(&mut self, name: &str, value: String) -> Result<(), Failure> {
        match name {
            "format" => self.format = Some(value),
            "image-opts" => self.image_opts = true,
            "cache" => self.cache = Some(value),
            "force-share" => self.force_share = true,
            "object" => check_object(&value)?,
            _ => {}
        }
        Ok(())
    }

    /// The one operand that most sub-commands take: the image.
    pub fn operand(&self, mut operands: Vec<String>) -> Result<String, Failure> {
        match operands.pop() {
            Some(operand) if operands.is_empty() => self.check().map(|()| operand),
            _ => Err(Failure::usage("Expecting one image file name")),
        }
    }

    /// Whether the options make sense together.
    pub fn check(&self) -> Result<(), Failure> {
        check_exclusive(self.image_opts, self.format.as_deref())?;
        match &self.cache {
            Some(mode) => check_cache_mode(mode, "source "),
            None => Ok(()),
        }
    }

    /// Understands `given`, a file name or, with `--image-opts`, options.
    pub fn name(&self, given: &str) -> Result<Name, Failure> {
        let parsed = if self.image_opts {
            Name::parse_options(given)
        } else {
            // What the command line says counts more than what the name says.
            Name::parse_as(given, self.format.as_deref())
        };
        let mut name = parsed.map_err(|error| could_not_open(given, error))?;
        name.force_share |= self.force_share;
        Ok(name)
    }

    /// Opens the image with its chain, to read what the guest sees.
    pub fn open(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        self.open_readable(given, &OpenOptions::default())
    }

    /// Opens the image with its chain, to change it.
    pub fn open_writable(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        let writable = OpenOptions {
            writable: true,
            ..OpenOptions::default()
        };
        self.open_readable(given, &writable)
    }

    /// Opens the image with its chain, to check it with whatever is wrong with it.
    pub fn open_to_check(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        let options = OpenOptions {
            repair: true,
            ..OpenOptions::default()
        };
        self.open_readable(given, &options)
    }

    /// The same to change it.
    pub fn open_to_repair(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        let options = OpenOptions {
            writable: true,
            repair: true,
            ..OpenOptions::default()
        };
        self.open_readable(given, &options)
    }

    fn open_readable(
        &self,
        given: &str,
        options: &OpenOptions,
    ) -> Result<Image<FileStorage>, Failure> {
        let image = open(&self.name(given)?, options)?;
        check_readable(&image).map_err(|error| could_not_open(given, error))?;
        Ok(image)
    }

    /// Opens the image alone: neither backing nor data file is touched.
    pub fn open_alone(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        open(&self.name(given)?, &alone())
    }

    /// The same to change its tables.
    pub fn open_alone_writable(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        let writable = OpenOptions {
            writable: true,
            ..alone()
        };
        open(&self.name(given)?, &writable)
    }
}

/// For what needs no guest data.
pub fn alone() -> OpenOptions {
    OpenOptions {
        backing: Backing::Ignore,
        data_file: false,
        ..OpenOptions::default()
    }
}

/// "Could not open 'name': why".
pub fn could_not_open(given: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("Could not open '{given}': {why}"))
}

/// Opens `name`; `options` say how far, apart from the format.
pub fn open(name: &Name, options: &OpenOptions) -> Result<Image<FileStorage>, Failure> {
    open_quietly(name, options)
        .map_err(|error| could_not_open(&name.given, with_hint(name, options, &error)))
}

/// The error's words, and what can be done about it where qemu-img says so.
fn with_hint(name: &Name, options: &OpenOptions, error: &Error) -> String {
    let text = error.to_string();
    let is_table = |place: Place| place.structure == Structure::SnapshotTable;
    if options.repair || !error.place().is_some_and(is_table) {
        return text;
    }
    if text.starts_with("Too much extra metadata in snapshot table entry") {
        return format!("{text}\n{REMOVE_EXTRA}");
    }
    if text != "Snapshot table is too big" {
        return text;
    }
    // How many are too many is found out by who leaves them out.
    let to_check = OpenOptions {
        repair: true,
        ..alone()
    };
    match open_quietly(name, &to_check).ok().and_then(|image| {
        let qcow2 = image.top().as_qcow2()?;
        Some(remove_overhanging(qcow2))
    }) {
        Some(hint) => format!("{text}\n{hint}"),
        None => text,
    }
}

/// What helps where snapshots have too much extra data.
pub const REMOVE_EXTRA: &str =
    "You can force-remove this extra metadata with qemu-img check -r all";

/// What helps where there are too many snapshots, or too long ones; the image is open for a check.
pub fn remove_overhanging(qcow2: &Qcow2<FileStorage>) -> String {
    let all = u64::from(qcow2.raw_header().nb_snapshots);
    let count = all - qcow2.snapshots().len() as u64;
    format!("You can force-remove all {count} overhanging snapshots with qemu-img check -r all")
}

/// As [`open`], with the bare reason.
pub fn open_quietly(name: &Name, options: &OpenOptions) -> Result<Image<FileStorage>, Error> {
    open_with(name, options, Handling::default())
}

/// What is done with the files of an image, beyond what the engine asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handling {
    /// Whether writes are kept in memory, to be forgotten at the end.
    pub scratch: bool,
    /// Whether flushes need not reach the disk.
    pub without_barrier: bool,
}

/// As [`open_quietly`], with files that are treated as `handling` says.
pub fn open_with(
    name: &Name,
    options: &OpenOptions,
    handling: Handling,
) -> Result<Image<FileStorage>, Error> {
    open_within(name, options, handling, &Cell::new(MOST_INSIDE))
}

/// As [`open_with`], as one of the images that another one needs: so many more may be inside of others. What an image
/// names can be a description too, of itself even.
fn open_within(
    name: &Name,
    options: &OpenOptions,
    handling: Handling,
    left: &Cell<usize>,
) -> Result<Image<FileStorage>, Error> {
    let format = name.format.as_deref().map(parse_format).transpose()?;
    let refused = |what: &'static str| Err(Error::Refused(what.into()));
    if options.writable && name.read_only == Some(true) {
        return refused("Block node is read-only");
    }
    if options.writable && name.force_share {
        return refused("force-share=on can only be used with read-only images");
    }
    if options.backing == Backing::Ignore
        && let Some((key, _)) = name
            .options
            .iter()
            .find(|(key, _)| key.starts_with("backing."))
    {
        // What opens no backing file takes no options about it.
        let format = name.format.as_deref().unwrap_or("qcow2");
        let what = format!("Block format '{format}' does not support the option '{key}'");
        return Err(Error::Refused(what.into()));
    }
    let backing = if name.no_backing {
        Backing::Ignore
    } else {
        options.backing
    };
    // A missing backing format is probed for as qemu-img does it: what a forged header could name is
    // still only what the sandbox contains.
    let options = OpenOptions {
        format,
        backing,
        probe_backing: true,
        // What needs no guest data asks for no keys.
        passphrases: match options.data_file {
            true => {
                secret::passphrases(&name.keys).map_err(|error| Error::Refused(error.into()))?
            }
            false => Vec::new(),
        },
        instead: name.node.instead(),
        ..options.clone()
    };
    let opener = Opener {
        writable: options.writable,
        handling,
        force_share: name.force_share,
        left,
    };
    let file = opener.open(name)?;
    if format == Some(Format::Luks) && options.data_file && name.keys.is_empty() {
        return refused("Parameter 'key-secret' is required for cipher");
    }
    let resolver = SandboxResolver {
        opener,
        chain: RefCell::new(file.storage.identity().into_iter().collect()),
    };
    let image = block_on(Image::open(file, &options, &resolver)).map_err(failure::of_opening)?;
    image.on_corruption(&failure::on_corruption());
    if !options.repair {
        let tell: OnRepair = Rc::new(tell);
        image.on_repair(&tell);
    }
    check_keys(&image, &name.keys)?;
    if let Some(qcow2) = image.top().as_qcow2() {
        node::check_settings(&name.node.settings, &image)
            .map_err(|error| Error::Refused(error.into()))?;
        let lazy = name.option("lazy-refcounts").unwrap_or("off");
        if qcow2.header().version == Version::V2 && name::read_switch("", lazy) == Ok(true) {
            return Err(Error::Refused(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level"
                    .into(),
            ));
        }
    } else if let Some((key, _)) = name.node.settings.first() {
        let format = image.top().format();
        let what = format!("Block format '{format}' does not support the option '{key}'");
        return Err(Error::Refused(what.into()));
    }
    if options.writable && is_guessed_raw(name, &image) {
        warn_of_guess(name);
    }
    warn_of_stale_bitmaps(&image);
    Ok(image)
}

/// How often one problem is printed at most.
const MOST_REPEATED: u64 = 1000;

/// Prints a problem of an image.
pub fn tell(problem: &Problem) {
    // One for each table that shares it, as qemu-img does; an image can make that billions.
    for _ in 0..problem.times.min(MOST_REPEATED) {
        console::error_line(&problem.to_string());
    }
}

/// Whether the image is raw for no other reason than that nothing was recognised in it.
pub fn is_guessed_raw(name: &Name, image: &Image<FileStorage>) -> bool {
    name.format.is_none() && image.top().format() == Format::Raw
}

/// Says that a guest could turn the image into one of another format by writing to its first sector.
pub fn warn_of_guess(name: &Name) {
    console::error_line(&format!(
        "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.",
        name.path()
    ));
}

/// Says which images of the chain have bitmaps that cannot be trusted any more.
fn warn_of_stale_bitmaps(image: &Image<FileStorage>) {
    let layers = image.layers().iter().filter_map(|layer| layer.as_qcow2());
    for qcow2 in layers.filter(|qcow2| qcow2.extensions().stale_bitmaps) {
        let what = match qcow2.header().version {
            Version::V2 => {
                "A program lacking bitmap support may have modified this version 2 file, so all bitmaps are now \
                 considered inconsistent"
            }
            Version::V3 => {
                "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"
            }
        };
        console::warning(what);
        // Scripts that compare standard error find no line end here.
        console::error_text(
            "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.",
        );
    }
}

/// Refuses a chain with encrypted content that no key was given for.
pub fn check_readable(image: &Image<FileStorage>) -> Result<(), String> {
    let mut layers = image.layers().iter().enumerate();
    let Some((depth, layer)) = layers.find(|(_, layer)| layer.is_locked()) else {
        return Ok(());
    };
    let behind = "Could not open backing file: ".repeat(depth);
    let option = match layer.as_qcow2() {
        Some(_) => "encrypt.key-secret",
        None => "key-secret",
    };
    Err(format!(
        "{behind}Parameter '{option}' is required for cipher"
    ))
}

/// Refuses options about keys that do not fit the images of the chain.
fn check_keys(image: &Image<FileStorage>, keys: &[KeySecret]) -> Result<(), Error> {
    let refused = |what: String| Err(Error::Refused(what.into()));
    for key in keys {
        let Some(layer) = image.layers().get(key.depth) else {
            continue;
        };
        let found = match layer.as_qcow2().map(|qcow2| qcow2.header().encryption) {
            Some(Encryption::None) => None,
            Some(Encryption::Aes) => Some("aes"),
            Some(Encryption::Luks) => Some("luks"),
            None if layer.is_encrypted() && !key.inside => continue,
            None => {
                let option = if key.inside {
                    "encrypt.key-secret"
                } else {
                    "key-secret"
                };
                return refused(format!(
                    "Block format '{}' does not support the option '{option}'",
                    layer.format()
                ));
            }
        };
        match (found, key.format.as_deref()) {
            (Some(found), Some(said)) if found != said => {
                return refused(format!(
                    "Header reported '{found}' encryption format but options specify '{said}'"
                ));
            }
            (None, Some(said)) => {
                return refused(format!(
                    "No encryption in image header, but options specified format '{said}'"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// QEMU's name of a format that can be opened.
pub fn parse_format(name: &str) -> Result<Format, Error> {
    match name {
        // The protocol beneath every format shows the file's bytes, which is what raw does too.
        "file" => Ok(Format::Raw),
        name => name.parse(),
    }
}

/// Refuses to show a part of what would be taken for another format than raw.
fn check_is_raw(whole: &FileStorage, window: Window) -> Result<(), Error> {
    let mut start = [0; PROBE_BYTES];
    let length = block_on(whole.read_at(0, &mut start))
        .map_err(|error| Error::io("Could not read image for determining its format", 0, error))?;
    match probe(&start[..length]) {
        Probed::Known(Format::Raw) => Ok(()),
        other => {
            let option = if window.offset > 0 { "offset" } else { "size" };
            let format = other.name();
            let what = format!("Block format '{format}' does not support the option '{option}'");
            Err(Error::Refused(what.into()))
        }
    }
}

/// Refuses to write compressed clusters only to a disk that ends within one, as QEMU does.
fn check_whole_clusters(image: &Image<FileStorage>) -> Result<(), Error> {
    let header = image.top().as_qcow2().map(|qcow2| qcow2.header());
    match header {
        Some(header) if !header.size.is_multiple_of(header.cluster_size.bytes()) => Err(Error::Refused(
            "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment"
                .into(),
        )),
        _ => Ok(()),
    }
}

/// Refuses to resize a raw image that is not as long as it is by itself.
pub fn check_resizable(image: &Image<FileStorage>) -> Result<(), Failure> {
    match image.top() {
        Layer::Raw(raw) => raw
            .file()
            .storage
            .fixed()
            .map_or(Ok(()), |why| Err(Failure::new(why))),
        Layer::Qcow2(_) => Ok(()),
    }
}

/// How the files of one image are opened.
#[derive(Clone, Copy, Debug)]
struct Opener<'a> {
    writable: bool,
    handling: Handling,
    force_share: bool,
    /// How many more images may be opened inside of others.
    left: &'a Cell<usize>,
}

impl Opener<'_> {
    /// The same for a file that is only read.
    fn for_reading(self) -> Self {
        Self {
            writable: false,
            ..self
        }
    }

    /// Opens what `name` says that its image is stored in.
    fn open(self, name: &Name) -> Result<File<FileStorage>, Error> {
        let read_only = || Err(Error::Refused("Block node is read-only".into()));
        if name.guise == Some(Guise::CopyOnRead) && !self.on_disk() {
            return read_only();
        }
        let file = match &name.under {
            Under::File { path, kind } => File {
                storage: self.open_file(path, *kind)?,
                name: path.clone(),
            },
            Under::Zeros(size) => File {
                storage: FileStorage::zeros(*size),
                name: name.path().to_owned(),
            },
            // What raw shows is what it is stored in, which may grow.
            Under::Image(inner) if inner.is_plain_raw() && name.guise.is_none() => {
                if self.on_disk() && inner.read_only == Some(true) {
                    return read_only();
                }
                File {
                    name: inner.described("raw"),
                    ..self.enter()?.open(inner)?
                }
            }
            Under::Image(inner) => self.open_disk(inner, name.guise)?,
        };
        let part = |storage: FileStorage| match name.window {
            Some(window) => {
                if name.format.is_none() {
                    check_is_raw(&storage, window)?;
                }
                storage
                    .part(window)
                    .map_err(|error| Error::Refused(error.into()))
            }
            None => Ok(storage),
        };
        let handled = |mut storage: FileStorage| {
            if self.handling.scratch {
                storage = storage.with_scratch()?;
            }
            if self.handling.without_barrier {
                storage = storage.without_barrier();
            }
            Ok(storage)
        };
        Ok(File {
            storage: handled(part(file.storage)?).map_err(|error| failed(name.path(), error))?,
            ..file
        })
    }

    /// Opens what a data file's bytes are: not those of a format, but those of its disk.
    fn open_content(self, name: &Name) -> Result<File<FileStorage>, Error> {
        match name.format.as_deref() {
            None | Some("raw") => Ok(match name.window {
                None => self.open(name)?,
                Some(_) => File {
                    name: name.described("raw"),
                    ..self.open(name)?
                },
            }),
            Some(_) => self.open_disk(name, None),
        }
    }

    fn open_file(self, path: &str, kind: Option<FileKind>) -> Result<FileStorage, Error> {
        let refused = |what: String| Err(Error::Unsupported(what.into()));
        let on_disk = self.on_disk();
        let storage = FileStorage::open(path, on_disk).map_err(|error| failed(path, error))?;
        let driver = kind.unwrap_or(FileKind::File);
        let wanted = match (kind, storage.kind()) {
            (None | Some(FileKind::File), Kind::Regular) | (None, Kind::Device) => None,
            (Some(FileKind::HostDevice | FileKind::HostCdrom), Kind::Device) => None,
            (None | Some(FileKind::File), _) => Some("a regular file"),
            _ => Some("either a character or block device"),
        };
        if let Some(wanted) = wanted {
            return refused(format!(
                "'{}' driver requires '{path}' to be {wanted}",
                driver.name()
            ));
        }
        let (lock, kind) = if on_disk {
            (Lock::Exclusive, "\"write\"")
        } else {
            (Lock::Shared, "shared \"write\"")
        };
        if !self.force_share && !storage.lock(lock) {
            return refused(format!(
                "Failed to get {kind} lock\nIs another process using the image [{path}]?"
            ));
        }
        Ok(storage)
    }

    /// Opens the image `name`, whose disk another one is stored in.
    fn open_disk(self, name: &Name, guise: Option<Guise>) -> Result<File<FileStorage>, Error> {
        let inside = self.enter()?;
        let refused = |what: String| Error::Refused(what.into());
        let options = OpenOptions {
            writable: inside.writable,
            ..OpenOptions::default()
        };
        let mut name = name.clone();
        name.force_share |= inside.force_share;
        let image = open_within(&name, &options, inside.handling, inside.left)?;
        check_readable(&image).map_err(refused)?;
        let writes = match guise {
            _ if !options.writable => Writes::Never,
            Some(Guise::Compress) => {
                check_whole_clusters(&image)?;
                Writes::Compressed
            }
            _ => Writes::Plain,
        };
        let described = name.described(image.top().format().name());
        let disk = Disk::new(image, writes);
        Ok(File {
            name: described,
            storage: FileStorage::disk(match guise {
                Some(Guise::CopyOnRead) => disk.keeping_reads(),
                _ => disk,
            }),
        })
    }

    /// The same one level further in, if there may be one more.
    fn enter(self) -> Result<Self, Error> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or_else(|| Error::Refused(name::too_many_inside().into()))?);
        Ok(Self {
            // What is above does that already.
            handling: Handling {
                scratch: false,
                ..self.handling
            },
            writable: self.on_disk(),
            ..self
        })
    }

    /// Whether files are written to.
    fn on_disk(self) -> bool {
        self.writable && !self.handling.scratch
    }
}

fn failed(path: &str, source: std::io::Error) -> Error {
    Error::Io {
        what: format!("Could not open '{path}'").into(),
        offset: None,
        source,
    }
}

/// Opens whatever an image names, as far as the sandbox reaches.
struct SandboxResolver<'a> {
    opener: Opener<'a>,
    /// The images of the chain so far. Names do not tell: a file can have many.
    chain: RefCell<Vec<Identity>>,
}

impl SandboxResolver<'_> {
    fn open(&self, full: &str, wanted: &Wanted<'_>) -> Result<File<FileStorage>, Error> {
        let name = Name::parse(full).map_err(|error| Error::Unsupported(error.into()))?;
        // Of all that an image names, only its own data file is ever written to.
        let file = match (wanted.role, wanted.depth) {
            (Role::DataFile, 0) => self.opener.open_content(&name)?,
            (Role::DataFile, _) => self.opener.for_reading().open_content(&name)?,
            (Role::Backing, _) => self.opener.for_reading().open(&name)?,
        };
        if let (Role::Backing, Some(identity)) = (wanted.role, file.storage.identity()) {
            if self.chain.borrow().contains(&identity) {
                let what = format!("Backing file '{full}' creates an infinite loop.");
                return Err(Error::corrupt(what, Place::of(Structure::BackingName)));
            }
            self.chain.borrow_mut().push(identity);
        }
        Ok(file)
    }
}

/// What an image asks for, as seen from the working folder: a backing file's name is relative to the image's folder,
/// that of a data file to the working folder, as QEMU has it.
fn full_name(wanted: &Wanted<'_>) -> String {
    match wanted.role {
        // An image inside of another one lies where that does.
        Role::Backing => match Name::parse(wanted.base) {
            Ok(base) => name::resolve(base.path(), wanted.name),
            Err(_) => name::resolve(wanted.base, wanted.name),
        },
        Role::DataFile => wanted.name.to_owned(),
    }
}

impl Resolver for SandboxResolver<'_> {
    type Storage = FileStorage;

    fn passphrase(&self, wanted: &Wanted<'_>) -> Result<Option<Passphrase>, Error> {
        let full = full_name(wanted);
        let refused = |what: String| Error::Refused(what.into());
        let keys = Name::parse(&full).map_err(refused)?.keys;
        let own = keys.iter().find(|key| key.depth == 0);
        let id = own.and_then(|key| key.id.as_deref());
        id.map(secret::get).transpose().map_err(refused)
    }

    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<FileStorage>, Error> {
        let full = full_name(wanted);
        self.open(&full, wanted).map_err(|source| {
            let source = match source {
                // Its name stands before it already.
                Error::Io { offset, source, .. } => Error::Io {
                    what: "".into(),
                    offset,
                    source,
                },
                other => other,
            };
            Error::Dependency {
                role: wanted.role,
                name: Name::parse(&full).map_or(full, |name| name.path().to_owned()),
                source: Box::new(source),
            }
        })
    }
}

/// Writes out what an image that was changed still owes its file. Only then the work is done.
pub fn close(image: &Image<FileStorage>, given: &str) -> Result<(), Failure> {
    finish(image, given, async |image| image.close().await)
}

/// Leaves the refcounts where qemu-img does.
pub fn settle(image: &Image<FileStorage>, given: &str) -> Result<(), Failure> {
    finish(image, given, async |image| image.settle().await)
}

/// Does the last of an image, unless it is marked as corrupt: nothing more is written to it then, and that was told.
/// Then that of the images that it is stored in, whatever became of it; the first that fails is told.
fn finish(
    image: &Image<FileStorage>,
    given: &str,
    last: impl AsyncFn(&Image<FileStorage>) -> oxcow::Result<()> + Copy,
) -> Result<(), Failure> {
    let own = match image.marked_corrupt() {
        Some(_) => Ok(()),
        None => block_on(last(image)).map_err(|error| {
            Failure::new(format!(
                "Could not close '{given}': {}",
                failure::in_short(error)
            ))
        }),
    };
    let inside = storages(image.top()).filter_map(|file| file.storage.image_inside());
    inside
        .filter(|disk| disk.writes() != Writes::Never)
        .map(|disk| finish(disk.image(), given, last))
        .fold(own, Result::and)
}

/// How much of new space is allocated, by the name that qemu-img has for it.
pub fn parse_preallocation(name: &str) -> Result<Preallocation, Failure> {
    match name {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        other => Err(Failure::new(format!(
            "Invalid preallocation mode '{other}'"
        ))),
    }
}

/// Every file that `image` reads from, to keep a command from writing over its own source.
pub fn identities(image: &Image<FileStorage>) -> Vec<Identity> {
    image.layers().iter().flat_map(files_of).collect()
}

/// The files that `image` is stored in, without those that it stands on.
pub fn own_identities(image: &Image<FileStorage>) -> Vec<Identity> {
    files_of(image.top())
}

fn files_of(layer: &Layer<FileStorage>) -> Vec<Identity> {
    storages(layer)
        .filter_map(|file| file.storage.identity())
        .collect()
}

/// What an image is stored in.
fn storages(layer: &Layer<FileStorage>) -> impl Iterator<Item = &File<FileStorage>> {
    let data_file = layer.as_qcow2().and_then(|qcow2| qcow2.data_file());
    std::iter::once(layer.file()).chain(data_file)
}

/// The cache modes of `-t` and `-T`: checked, though a sandbox has only one.
pub fn check_cache_mode(mode: &str, which: &str) -> Result<(), Failure> {
    match mode {
        "none" | "off" | "writeback" | "writethrough" | "directsync" | "unsafe" => Ok(()),
        other => Err(Failure::new(format!(
            "Invalid {which}cache option: {other}"
        ))),
    }
}

/// `--object`: only secrets are known.
pub fn check_object(definition: &str) -> Result<(), Failure> {
    secret::define(definition)
}

/// `--image-opts` and `-f` say the same thing.
pub fn check_exclusive(image_opts: bool, format: Option<&str>) -> Result<(), Failure> {
    match (image_opts, format) {
        (true, Some(_)) => Err(Failure::new(
            "--image-opts and --format are mutually exclusive",
        )),
        _ => Ok(()),
    }
}
