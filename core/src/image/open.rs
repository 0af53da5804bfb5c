//! Opening: probe, parse, check, and follow the names that the resolver allows.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::chain::{File, MAX_CHAIN, Resolver, Wanted};
use crate::codec::{Compressor, Decompressor};
use crate::crypto::Passphrase;
use crate::error::{Error, Place, Result, Role, Structure};
use crate::image::change::state::Changing;
use crate::image::clock::Clock;
use crate::image::corruption::Alarm;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::qcow2::{BackingName, Meta, Qcow2, Root, read_table, root_tables};
use crate::image::snapshot_table::{self, Excess};
use crate::image::tables::TableCache;
use crate::image::{Image, Layer};
use crate::probe::{Format, PROBE_BYTES, Probed, probe};
use crate::qcow2::bytes::text;
use crate::qcow2::extension::{self, Area, Surroundings};
use crate::qcow2::header::check_basics;
use crate::qcow2::{Extensions, Header, L2Format, MAX_BACKING_NAME, RawHeader, Version};
use crate::raw::Raw;
use crate::storage::{Storage, read_padded};
use crate::units::ClusterSize;

/// Decompressed clusters kept for the next read, in bytes.
const CLUSTER_CACHE_BYTES: u64 = 2 << 20;

/// As many rounds of hashing as the fastest machine does in some ten seconds. What makes a header asks for two
/// seconds of its own machine's unless it is told otherwise.
const MAX_KEY_ROUNDS: u64 = 100_000_000;

/// Whether backing files are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Open the chain: what the guest sees.
    #[default]
    Open,
    /// Only the image itself; what it has not allocated reads as zeros.
    Ignore,
    /// So many files from the image itself on; what none of them has allocated reads as zeros.
    First(usize),
}

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The image's format; `None` looks at its first bytes, which an untrusted guest may have written.
    pub format: Option<Format>,
    /// Whether backing files are opened.
    pub backing: Backing,
    /// Whether an external data file is opened; without it, guest data cannot be read.
    pub data_file: bool,
    /// Whether a backing file for which the image names no format may be probed. A raw backing file could
    /// carry any header its guest wrote, so the default is to refuse.
    pub probe_backing: bool,
    /// Whether the image itself is opened for writing; files below it never are.
    pub writable: bool,
    /// Whether the image is to be [checked](crate::check) or, with `writable`, [repaired](crate::repair), which also
    /// one can be that is marked as corrupt, has a snapshot table beyond the limits, or no refcount table where its
    /// header says. Until it is repaired it takes no other change.
    pub repair: bool,
    /// A bound for cached metadata per file, in bytes.
    pub cache_bytes: usize,
    /// The passphrases of encrypted images: of the image itself, its backing file and so on. Without its
    /// passphrase an image can be opened, and its content neither read nor written.
    pub passphrases: Vec<Option<Passphrase>>,
    /// How many rounds of hashing an encryption header may ask for before its key is given up: it is the
    /// image that says how many it takes.
    pub max_key_rounds: u64,
    /// What is opened in place of the files that images name: those of the image itself, of its backing file
    /// and so on. The resolver is asked for these names too. Nothing of it is ever written to an image.
    pub instead: Vec<Instead>,
}

/// Files in place of those that an image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instead {
    /// The backing file.
    pub backing: Option<String>,
    /// The backing file's format. With a backing file in place of the image's, `None` looks at its first bytes.
    pub backing_format: Option<String>,
    /// The external data file.
    pub data_file: Option<String>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            format: None,
            backing: Backing::Open,
            data_file: true,
            probe_backing: false,
            writable: false,
            repair: false,
            cache_bytes: 32 << 20,
            passphrases: Vec::new(),
            max_key_rounds: MAX_KEY_ROUNDS,
            instead: Vec::new(),
        }
    }
}

impl<S: Storage> Image<S> {
    /// Opens the image in `file`, with the files it names as far as `resolver` allows.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`], [`Error::Unsupported`] or [`Error::NotThisFormat`] for an image that cannot be
    /// opened; [`Error::Dependency`] for a file that it needs.
    pub async fn open<R>(file: File<S>, options: &OpenOptions, resolver: &R) -> Result<Self>
    where
        R: Resolver<Storage = S>,
    {
        if options.writable && upheld(OrderingPoint::FlushAtOpen) {
            // What is read now may be what a killed process left in a cache: it becomes durable before
            // anything builds on it.
            flush(&file).await?;
        }
        let mut names = vec![file.name.clone()];
        let passphrase = given_passphrase(options, 0);
        let layer = open_layer(file, options.format, passphrase, options, resolver, 0).await?;
        let mut layers = vec![layer];
        let changing = match (&layers[0], options.writable) {
            (_, false) => None,
            (Layer::Raw(raw), true) => Some(Changing::open_raw(raw.file_len())),
            (Layer::Qcow2(qcow2), true) => {
                if let Some(data_file) = &qcow2.data_file
                    && upheld(OrderingPoint::FlushAtOpen)
                {
                    flush(data_file).await?;
                }
                Some(Changing::open(
                    &qcow2.header(),
                    qcow2.file_len(),
                    options.repair,
                )?)
            }
        };
        if options.backing == Backing::Ignore {
            return Ok(Self::new(layers, changing));
        }
        let most = match options.backing {
            Backing::First(most) => most,
            _ => usize::MAX,
        };
        while layers.len() < most {
            let depth = layers.len();
            let Some(Layer::Qcow2(above)) = layers.last() else {
                break;
            };
            let Some(backing) = above.backing() else {
                break;
            };
            let wanted = Wanted {
                role: Role::Backing,
                name: &backing.name,
                base: &above.file().name,
                format: backing.format.as_deref(),
                depth,
            };
            // A file deep in the chain fails every image above it.
            let failed = |name: String, error| {
                let above = names[1..].iter().rev().cloned();
                std::iter::once(name)
                    .chain(above)
                    .fold(error, |error, name| Error::Dependency {
                        role: Role::Backing,
                        name,
                        source: Box::new(error),
                    })
            };
            let format = match wanted.format.map(backing_format).transpose() {
                Ok(format) => format,
                Err(error) => return Err(failed(backing.name.clone(), error)),
            };
            if format.is_none() && !options.probe_backing {
                let what = format!(
                    "The image does not say which format its backing file '{}' has, and probing it was not allowed",
                    backing.name
                );
                return Err(failed(backing.name.clone(), Error::Refused(what.into())));
            }
            let file = match resolver.resolve(&wanted).await {
                Ok(file) => file,
                Err(Error::Dependency { name, source, .. }) => return Err(failed(name, *source)),
                Err(error) => return Err(failed(backing.name.clone(), error)),
            };
            let name = file.name.clone();
            let passphrase = match given_passphrase(options, depth) {
                None => resolver.passphrase(&wanted),
                given => Ok(given),
            };
            let passphrase = match passphrase {
                Ok(passphrase) => passphrase,
                Err(error) => return Err(failed(name, error)),
            };
            if names.contains(&name) {
                let what = format!("Backing file '{name}' creates an infinite loop.");
                return Err(failed(
                    name,
                    Error::corrupt(what, Place::of(Structure::BackingName)),
                ));
            }
            if depth >= MAX_CHAIN {
                let what = format!("More than {MAX_CHAIN} images in the backing chain");
                return Err(failed(
                    name,
                    Error::corrupt(what, Place::of(Structure::BackingName)),
                ));
            }
            let opened = open_layer(file, format, passphrase, options, resolver, depth);
            let layer = match opened.await {
                Ok(layer) => layer,
                Err(error) => return Err(failed(name, error)),
            };
            names.push(name);
            layers.push(layer);
        }
        Ok(Self::new(layers, changing))
    }

    fn new(layers: Vec<Layer<S>>, changing: Option<Changing>) -> Self {
        if let (Some(Layer::Qcow2(qcow2)), Some(_)) = (layers.first(), &changing) {
            qcow2.alarm.set_writable();
        }
        Self {
            layers,
            changing,
            keeps_reads: Cell::new(None),
            marks: Cell::new(None),
        }
    }
}

fn given_passphrase(options: &OpenOptions, depth: usize) -> Option<Passphrase> {
    options.passphrases.get(depth).cloned().flatten()
}

async fn flush<S: Storage>(file: &File<S>) -> Result<()> {
    file.storage.flush().await.map_err(|source| Error::Io {
        what: format!("Could not flush '{}'", file.name).into(),
        offset: None,
        source,
    })
}

/// The format that an image calls its backing file's.
fn backing_format(name: &str) -> Result<Format> {
    match name {
        // QEMU's protocol beneath every format shows the file's bytes, which is what raw does too.
        "file" => Ok(Format::Raw),
        name => name.parse(),
    }
}

async fn open_layer<S, R>(
    file: File<S>,
    format: Option<Format>,
    passphrase: Option<Passphrase>,
    options: &OpenOptions,
    resolver: &R,
    depth: usize,
) -> Result<Layer<S>>
where
    S: Storage,
    R: Resolver<Storage = S>,
{
    let format = match format {
        Some(format) => format,
        None => {
            let mut start = vec![0; PROBE_BYTES];
            let length = file.storage.read_at(0, &mut start).await.map_err(|error| {
                Error::io("Could not read image for determining its format", 0, error)
            })?;
            match probe(&start[..length]) {
                Probed::Known(format) => format,
                Probed::Foreign(name) => {
                    return Err(Error::Unsupported(
                        format!("The image is of format '{name}', which is not supported").into(),
                    ));
                }
            }
        }
    };
    let mut layer = match format {
        Format::Raw => Layer::Raw(Raw::open(file).await?),
        Format::Luks => Layer::Raw(Raw::open_luks(file).await?),
        Format::Qcow2 => Layer::Qcow2(Box::new(open_qcow2(file, options, resolver, depth).await?)),
    };
    if let Some(passphrase) = passphrase {
        layer.unlock(&passphrase, options.max_key_rounds).await?;
    }
    Ok(layer)
}

async fn open_qcow2<S, R>(
    file: File<S>,
    options: &OpenOptions,
    resolver: &R,
    depth: usize,
) -> Result<Qcow2<S>>
where
    S: Storage,
    R: Resolver<Storage = S>,
{
    let storage = &file.storage;
    let file_len = storage
        .len()
        .await
        .map_err(|error| Error::io("Could not read qcow2 header", 0, error))?;
    let mut start = vec![0; 112];
    let got = storage
        .read_at(0, &mut start)
        .await
        .map_err(|error| Error::io("Could not read qcow2 header", 0, error))?;
    let raw_header = RawHeader::decode(&start[..got]);
    let cluster_size = check_basics(&raw_header)?;

    let first = read_first_cluster(storage, &raw_header, cluster_size).await?;
    let area = extension_area(&first, &raw_header, cluster_size);
    let describe = |bits| extension::describe_unknown(bits, &extension::feature_names(area));
    let repair = options.repair && depth == 0;
    let (checked, excess) = match repair {
        true => Excess::cut(&raw_header),
        false => (raw_header.clone(), Excess::default()),
    };
    let tolerant = repair && options.writable;
    let (header, root_tables) = check_header(&checked, file_len, describe, tolerant)?;
    let surroundings = Surroundings {
        cluster_size,
        encryption: header.encryption,
        autoclear: header.autoclear,
    };
    let extensions = Extensions::parse(area, surroundings)?;
    if !repair {
        check_bitmap_directory(&extensions, file_len)?;
    }
    let backing = match header.backing_name {
        None => None,
        Some((at, length)) => {
            let end = at + u64::from(length);
            let place = Place::at(Structure::BackingName, at);
            if length > MAX_BACKING_NAME || end > cluster_size.bytes() {
                return Err(Error::corrupt("Backing file name too long", place));
            }
            let name = text(&first[at as usize..end as usize]);
            Some(BackingName {
                name,
                format: extensions.backing_format.clone(),
            })
            .filter(|b| !b.name.is_empty())
        }
    };

    let none = Instead::default();
    let instead = options.instead.get(depth).unwrap_or(&none);
    let backing = match (&instead.backing, options.backing) {
        (_, Backing::Ignore) => backing,
        (Some(name), _) => Some(BackingName {
            name: name.clone(),
            format: instead.backing_format.clone(),
        }),
        (None, _) => backing.map(|named| BackingName {
            format: instead.backing_format.clone().or(named.format),
            ..named
        }),
    };

    let table = snapshot_table::read(storage, &header, file_len, repair.then_some(excess)).await?;
    let l1 = read_table(
        storage,
        header.l1.offset,
        header.l1.entries,
        "Could not read L1 table",
    )
    .await?;

    let wants_data_file = header.has_data_file() || instead.data_file.is_some();
    let data_file = match (
        instead.data_file.as_ref().or(extensions.data_file.as_ref()),
        wants_data_file && options.data_file,
    ) {
        (_, false) => None,
        (None, true) => {
            return Err(Error::Unsupported(
                "'data-file' is required for this image".into(),
            ));
        }
        (Some(name), true) => {
            let wanted = Wanted {
                role: Role::DataFile,
                name,
                base: &file.name,
                format: Some("raw"),
                depth,
            };
            let data_file = resolver
                .resolve(&wanted)
                .await
                .map_err(|error| match error {
                    error @ Error::Dependency { .. } => error,
                    error => Error::Dependency {
                        role: Role::DataFile,
                        name: name.clone(),
                        source: Box::new(error),
                    },
                })?;
            Some(data_file)
        }
    };

    if data_file.is_some() && !header.has_data_file() {
        return Err(Error::Unsupported(
            "'data-file' can only be set for images with an external data file".into(),
        ));
    }

    let cached_clusters = CLUSTER_CACHE_BYTES / cluster_size.bytes();
    Ok(Qcow2 {
        file_len: Cell::new(file_len),
        data_file,
        l2_format: L2Format {
            cluster_size,
            extended: header.extended_l2(),
            zero_flag: header.version >= Version::V3 && !header.extended_l2(),
            data_file: header.has_data_file(),
        },
        tables: TableCache::new(options.cache_bytes, cluster_size),
        clusters: RefCell::new(Clock::new(cached_clusters.clamp(1, 64) as usize)),
        decompressor: RefCell::new(Decompressor::new()),
        compressor: RefCell::new(Compressor::new()),
        alarm: Alarm::default(),
        volume: None,
        root: RefCell::new(Root {
            l1,
            l1_offset: header.l1.offset,
            size: header.size,
            vm_state_size: None,
        }),
        meta: RefCell::new(Meta {
            raw_header: raw_header.into(),
            header: header.into(),
            extensions: extensions.into(),
            backing: backing.map(Rc::new),
            snapshots: table.snapshots.into(),
            root_tables: root_tables.into(),
            snapshot_table_bytes: table.bytes,
            excess: table.excess.into(),
        }),
        file,
    })
}

/// What is missing of the directory reads as zeros, which are no bitmaps: QEMU opens no such image. Who checks one is
/// told in other words.
fn check_bitmap_directory(extensions: &Extensions, file_len: u64) -> Result<()> {
    let Some(bitmaps) = &extensions.bitmaps else {
        return Ok(());
    };
    let start = bitmaps.directory.0;
    if start.saturating_add(bitmaps.directory_bytes) <= file_len {
        return Ok(());
    }
    Err(Error::corrupt(
        "Bitmap directory reaches past the end of the file",
        Place::at(Structure::BitmapDirectory, start),
    ))
}

/// The part of the first cluster that says something: header, extensions and backing name. Clusters are
/// up to 2 MiB, and all that hardly ever takes more than a few hundred bytes.
pub(super) async fn read_first_cluster<S: Storage>(
    storage: &S,
    raw: &RawHeader,
    cluster_size: ClusterSize,
) -> Result<Vec<u8>> {
    const USUALLY_ENOUGH: usize = 64 << 10;
    let mut first = vec![0; cluster_size.len().min(USUALLY_ENOUGH)];
    let failed = |error| Error::io("Could not read qcow2 header", 0, error);
    read_padded(storage, 0, &mut first).await.map_err(failed)?;
    let name_end = raw
        .backing_file_offset
        .saturating_add(raw.backing_file_size.into());
    if first.len() < cluster_size.len()
        && (name_end > first.len() as u64
            || !extension_area(&first, raw, cluster_size).has_end_marker())
    {
        first.resize(cluster_size.len(), 0);
        read_padded(storage, 0, &mut first).await.map_err(failed)?;
    }
    Ok(first)
}

/// The header, and the tables that it points to. For a repair, a refcount table that cannot be where the
/// header says is none at all.
#[allow(clippy::type_complexity)] // As `Meta` has it.
fn check_header(
    raw: &RawHeader,
    file_len: u64,
    describe: impl FnOnce(u64) -> String,
    repair: bool,
) -> Result<(Header, Vec<(u64, u64, Structure)>)> {
    let with_tables = |header: Header| {
        let tables = root_tables(&header, file_len)?;
        Ok((header, tables))
    };
    match Header::check(raw, file_len, describe).and_then(with_tables) {
        Err(error) if repair => Header::check_without_refcounts(raw, file_len)
            .and_then(with_tables)
            .map_err(|_| error),
        result => result,
    }
}

/// Where header extensions stand in the first cluster, of which `first` is the beginning.
pub(super) fn extension_area<'a>(
    first: &'a [u8],
    raw: &RawHeader,
    cluster_size: ClusterSize,
) -> Area<'a> {
    let end = match raw.backing_file_offset {
        0 => cluster_size.len(),
        at => at as usize,
    };
    let start = raw.header_length as usize;
    Area {
        bytes: first.get(start..end.min(first.len())).unwrap_or_default(),
        at: start as u64,
    }
}
