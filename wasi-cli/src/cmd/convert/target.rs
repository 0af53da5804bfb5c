//! The image that is written to: a new one, or one that is there.

use oxcow::{Image, OpenOptions, Storage};

use super::Request;
use crate::cmd::create::{self, Users};
use crate::cmd::create_options::CreateOptions;
use crate::failure::Failure;
use crate::file::{FileStorage, Identity, block_on};
use crate::name::Name;
use crate::open::{self, Handling, Source, could_not_open};
use crate::secret::KeySecret;

/// Creates the target that `options` describe, all zeros; an error is its words without the name.
pub fn create(
    request: &Request,
    options: &CreateOptions,
    sources: &[Identity],
) -> Result<(), String> {
    let name = create::file_name(&request.target)?;
    match request.format() {
        "qcow2" => create::create_qcow2(name.path(), options, Users::Sources(sources)),
        "luks" => create::create_luks(name.path(), options, sources),
        format => {
            let size = options.size("size").unwrap_or(0);
            let preallocation = options.get("preallocation");
            create::create_raw(name.path(), format, size, preallocation, sources)
        }
    }
}

/// Opens the target, to be written to.
pub fn open_for(
    request: &Request,
    options: &CreateOptions,
    sources: &[Identity],
    handling: Handling,
) -> Result<Image<FileStorage>, Failure> {
    let source = Source {
        format: match request.target_image_opts {
            true => request.target_format.clone(),
            false => Some(request.format().to_owned()),
        },
        image_opts: request.target_image_opts,
        ..Source::default()
    };
    open::check_exclusive(source.image_opts, source.format.as_deref())?;
    let mut name = source.name(&request.target)?;
    // What it was made with is what opens it.
    let inside = options.get("encrypt.key-secret");
    if let Some(id) = inside.or(options.get("key-secret")) {
        name.keys.push(KeySecret {
            depth: 0,
            format: None,
            id: Some(id.to_owned()),
            inside: inside.is_some(),
        });
    }
    let options = OpenOptions {
        writable: true,
        ..OpenOptions::default()
    };
    let failed = |error: &dyn std::fmt::Display| could_not_open(&name.given, error);
    let image = open::open_with(&name, &options, handling).map_err(|error| failed(&error))?;
    // Without locks, this is what keeps a disk from being overwritten while it is read.
    if open::own_identities(&image)
        .iter()
        .any(|own| sources.contains(own))
    {
        return Err(failed(&in_use(name.path())));
    }
    open::check_readable(&image).map_err(|error| failed(&error))?;
    Ok(image)
}

fn in_use(path: &str) -> String {
    format!("Failed to get \"write\" lock\nIs another process using the image [{path}]?")
}

/// Creates a raw file of so many bytes, all zeros; the words of an error are without the file's name.
pub fn new_target(
    given: &str,
    image: &Image<FileStorage>,
    size: u64,
) -> Result<FileStorage, String> {
    let name = Name::parse(given)?;
    let path = name.file_path()?;
    let could_not = |error: std::io::Error| {
        let error = oxcow::Error::Io {
            what: format!("Could not create '{path}'").into(),
            offset: None,
            source: error,
        };
        error.to_string()
    };
    let target = FileStorage::create(path).map_err(could_not)?;
    let identity = target.identity();
    if identity.is_some_and(|identity| open::identities(image).contains(&identity)) {
        return Err(in_use(path));
    }
    let emptied = block_on(async {
        target.set_len(0).await?;
        target.set_len(size).await
    });
    emptied.map_err(could_not)?;
    Ok(target)
}
