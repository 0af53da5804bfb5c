//! Opening images for the sub-commands: the files that they name are opened as qemu-img would, and the
//! sandbox decides what can be reached at all.

use std::cell::RefCell;

use oxcow::qcow2::{Encryption, Version};
use oxcow::{
    Backing, Error, File, Format, Image, OpenOptions, Place, Resolver, Role, Structure, Wanted,
};

use crate::console;
use crate::failure::Failure;
use crate::file::{FileStorage, Identity, block_on};
use crate::name::{self, Name};

/// The options that most sub-commands share about one image.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The value of `-f`.
    pub format: Option<String>,
    /// Whether names are lists of options.
    pub image_opts: bool,
}

impl Source {
    /// Understands `given`, a file name or, with `--image-opts`, options.
    pub fn name(&self, given: &str) -> Result<Name, Failure> {
        let parsed = if self.image_opts {
            Name::parse_options(given)
        } else {
            Name::parse(given)
        };
        let mut name = parsed.map_err(|error| could_not_open(given, error))?;
        // What the command line says counts more than what the name says.
        name.format = self.format.clone().or(name.format);
        Ok(name)
    }

    /// Opens the image with its chain, to read what the guest sees.
    pub fn open(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        let image = self.open_chain(given)?;
        check_readable(&image).map_err(|error| could_not_open(given, error))?;
        Ok(image)
    }

    /// Opens the image with its chain, whether or not its content can be read.
    pub fn open_chain(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        open(&self.name(given)?, &OpenOptions::default())
    }

    /// Opens the image alone: neither backing nor data file is touched.
    pub fn open_alone(&self, given: &str) -> Result<Image<FileStorage>, Failure> {
        open(&self.name(given)?, &alone())
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
    open_quietly(name, options).map_err(|error| could_not_open(&name.given, with_hint(&error)))
}

/// The error's words, and what can be done about it where qemu-img says so.
fn with_hint(error: &Error) -> String {
    let text = error.to_string();
    match text.starts_with("Too much extra metadata in snapshot table entry") {
        true => {
            format!("{text}\nYou can force-remove this extra metadata with qemu-img check -r all")
        }
        false => text,
    }
}

/// As [`open`], with the bare reason.
pub fn open_quietly(name: &Name, options: &OpenOptions) -> Result<Image<FileStorage>, Error> {
    let format = name.format.as_deref().map(parse_format).transpose()?;
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
        ..options.clone()
    };
    let file = open_file(&name.path, false)?;
    let resolver = SandboxResolver {
        chain: RefCell::new(file.storage.identity().into_iter().collect()),
    };
    let image = block_on(Image::open(file, &options, &resolver))?;
    warn_of_stale_bitmaps(&image);
    Ok(image)
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

/// Refuses a chain with encrypted content: there is no key to read it with.
pub fn check_readable(image: &Image<FileStorage>) -> Result<(), String> {
    for (depth, layer) in image.layers().iter().enumerate() {
        let encryption = layer.as_qcow2().map(|qcow2| qcow2.header().encryption);
        if !matches!(encryption, None | Some(Encryption::None)) {
            let behind = "Could not open backing file: ".repeat(depth);
            return Err(format!(
                "{behind}Parameter 'encrypt.key-secret' is required for cipher"
            ));
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

fn open_file(path: &str, writable: bool) -> Result<File<FileStorage>, Error> {
    let failed = |source| Error::Io {
        what: format!("Could not open '{path}'").into(),
        offset: None,
        source,
    };
    let storage = FileStorage::open(path, writable).map_err(failed)?;
    if !storage.is_regular() {
        return Err(Error::Unsupported(
            format!("'file' driver requires '{path}' to be a regular file").into(),
        ));
    }
    Ok(File {
        storage,
        name: path.to_owned(),
    })
}

/// Opens an existing file to be written into.
pub fn open_target(path: &str) -> Result<File<FileStorage>, Error> {
    open_file(path, true)
}

/// Opens whatever an image names, as far as the sandbox reaches.
struct SandboxResolver {
    /// The images of the chain so far. Names do not tell: a file can have many.
    chain: RefCell<Vec<Identity>>,
}

impl SandboxResolver {
    fn open(&self, full: &str, role: Role) -> Result<File<FileStorage>, Error> {
        let name = Name::parse(full).map_err(|error| Error::Unsupported(error.into()))?;
        let file = open_file(&name.path, false)?;
        if let (Role::Backing, Some(identity)) = (role, file.storage.identity()) {
            if self.chain.borrow().contains(&identity) {
                let what = format!("Backing file '{full}' creates an infinite loop.");
                return Err(Error::corrupt(what, Place::of(Structure::BackingName)));
            }
            self.chain.borrow_mut().push(identity);
        }
        Ok(file)
    }
}

impl Resolver for SandboxResolver {
    type Storage = FileStorage;

    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<FileStorage>, Error> {
        let full = name::resolve(wanted.base, wanted.name);
        self.open(&full, wanted.role).map_err(|source| {
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
                name: full,
                source: Box::new(source),
            }
        })
    }
}

/// Every file that `image` reads from, to keep a command from writing over its own source.
pub fn identities(image: &Image<FileStorage>) -> Vec<Identity> {
    let mut all = Vec::new();
    for layer in image.layers() {
        match layer {
            oxcow::Layer::Raw(raw) => all.extend(raw.file().storage.identity()),
            oxcow::Layer::Qcow2(qcow2) => {
                all.extend(qcow2.file().storage.identity());
                all.extend(qcow2.data_file().and_then(|file| file.storage.identity()));
            }
        }
    }
    all
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
