//! New qcow2 images.

pub mod export;
mod layout;
#[cfg(test)]
mod tests;
mod write;

use crate::crypto::NewLuksHeader;
use crate::error::{Error, Result};
use crate::image::Preallocation;
use crate::qcow2::extension::{self, CryptoHeader, Extensions};
use crate::qcow2::header::{FULL_LENGTH, MAGIC, V2_LENGTH};
use crate::qcow2::{
    Autoclear, Compatible, Compression, Incompatible, MAX_BACKING_NAME, RawHeader, RefcountWidth,
    Version,
};
use crate::storage::Storage;
use crate::units::{ClusterSize, HostOffset, SECTOR};
use layout::{Geometry, Layout};

/// Smaller clusters have no room to spare for the names of features: a limit of QEMU's.
const LEAST_CLUSTER_WITH_NAMES: u64 = 8192;
/// The longest name of a backing file's format, in bytes.
const MAX_FORMAT_NAME: usize = 15;
/// How much of the first cluster anything is written into.
const MAX_HEADER_AREA: u64 = 64 << 10;

/// What a new image is to be like. The default is qemu-img's, with a disk of no size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// The guest's disk size in bytes, which is rounded up to whole sectors of 512.
    pub size: u64,
    /// The version.
    pub version: Version,
    /// The cluster size in bytes: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// The width of refcounts in bits: a power of two up to 64.
    pub refcount_bits: u64,
    /// Whether L2 entries have subclusters.
    pub extended_l2: bool,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// How clusters will be compressed.
    pub compression: Compression,
    /// What is allocated beforehand.
    pub preallocation: Preallocation,
    /// The name of the backing file, as the image is to say it.
    pub backing_file: Option<String>,
    /// The backing file's format: never left to be guessed from content that a guest may have written.
    pub backing_format: Option<String>,
    /// The name of the external data file, as the image is to say it.
    pub data_file: Option<String>,
    /// Whether the data file alone is to be a raw image with the same content.
    pub data_file_raw: bool,
    /// How guest data is to be encrypted. What is preallocated then does not read as zeros.
    pub encryption: Option<NewEncryption>,
}

/// How a new image is to be encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewEncryption {
    /// The old AES-CBC method, which protects content badly: for programs that know nothing else.
    Aes,
    /// LUKS, with this header.
    Luks(NewLuksHeader),
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: 0,
            version: Version::V3,
            cluster_size: ClusterSize::DEFAULT.bytes(),
            refcount_bits: u64::from(RefcountWidth::BITS_16.bits()),
            extended_l2: false,
            lazy_refcounts: false,
            compression: Compression::Zlib,
            preallocation: Preallocation::Off,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            encryption: None,
        }
    }
}

/// Writes a new image into `storage` in place of everything that is there, and the data file's length and
/// preallocated content into `data_file`, which is given exactly where the options name one.
///
/// The header is written last, as one sector, between two flushes: a crash before the end leaves a file that
/// is no qcow2 image, and whatever begins with a header is whole. A storage that is not empty is emptied
/// first, at the cost of one more flush. After an error the storage holds nothing of use.
///
/// # Errors
///
/// Those of [`CreateOptions::check`], before anything is touched; [`Error::Io`] where a storage fails.
///
/// # Examples
///
/// ```
/// use oxcow::create::{self, CreateOptions};
/// use oxcow::{DenyAll, File, Image, MemoryStorage, OpenOptions};
///
/// # async fn example() -> oxcow::Result<()> {
/// let storage = MemoryStorage::default();
/// let options = CreateOptions { size: 10 << 30, extended_l2: true, ..CreateOptions::default() };
/// create::create(&storage, None, &options).await?;
///
/// let file = File { storage, name: "disk.qcow2".into() };
/// let image = Image::open(file, &OpenOptions::default(), &DenyAll::default()).await?;
/// assert_eq!(image.virtual_size(), 10 << 30);
/// # Ok(())
/// # }
/// # assert!(futures_util::FutureExt::now_or_never(example()).unwrap().is_ok());
/// ```
pub async fn create<S: Storage>(
    storage: &S,
    data_file: Option<&S>,
    options: &CreateOptions,
) -> Result<()> {
    let plan = options.plan()?;
    match (data_file, plan.data_file) {
        (Some(_), true) | (None, false) => {}
        (None, true) => {
            return Err(Error::Unsupported(
                "'data-file' is required for this image".into(),
            ));
        }
        (Some(_), false) => {
            return Err(Error::Unsupported(
                "A data file was given that the image does not name".into(),
            ));
        }
    }
    write::write(storage, data_file, &plan).await
}

/// Writes a new plain LUKS image with a disk of `size` bytes into `storage`, in place of everything that is
/// there. The disk does not read as zeros: nothing was encrypted yet.
///
/// # Errors
///
/// [`Error::OutOfRange`] for a size that no file can have; [`Error::Io`] where the storage fails.
pub async fn create_luks<S: Storage>(storage: &S, header: &NewLuksHeader, size: u64) -> Result<()> {
    write::write_luks(storage, header, size).await
}

/// Everything about a new image that does not depend on where it is written.
struct Plan {
    geometry: Geometry,
    layout: Layout,
    preallocation: Preallocation,
    data_file: bool,
    /// The beginning of the file, in whole sectors: header, extensions and backing name.
    header_area: Vec<u8>,
    encryption: Option<NewEncryption>,
}

fn wrong(what: &'static str) -> Error {
    Error::Unsupported(what.into())
}

impl CreateOptions {
    /// Whether such an image can be.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for a number that no image can have, [`Error::Unsupported`] for a combination
    /// that the format (or QEMU) does not know. Of several mistakes the first is told, in the order in which
    /// qemu-img looks for them and with its words.
    pub fn check(&self) -> Result<()> {
        self.plan().map(|_| ())
    }

    fn plan(&self) -> Result<Plan> {
        let (cluster_size, refcount_width) = self.check_combination()?;
        let data_file = self.data_file.is_some();
        let preallocation = match self.preallocation {
            // The content of a raw data file is the disk's: nothing in it may be unallocated.
            Preallocation::Off if self.data_file_raw => Preallocation::Metadata,
            other => other,
        };
        let geometry = Geometry {
            cluster_size,
            refcount_width,
            extended_l2: self.extended_l2,
            size: self
                .size
                .checked_next_multiple_of(SECTOR)
                .filter(|&size| size <= i64::MAX as u64)
                .ok_or_else(layout::too_large)?,
            preallocated: preallocation != Preallocation::Off,
            data_file,
            encryption_header: match &self.encryption {
                Some(NewEncryption::Luks(header)) => header.length(),
                _ => 0,
            },
            contiguous: !data_file
                && matches!(preallocation, Preallocation::Falloc | Preallocation::Full),
        };
        let layout = Layout::of(&geometry)?;
        let header_area = self.header_area(&geometry, &layout)?;
        Ok(Plan {
            geometry,
            layout,
            preallocation,
            data_file,
            header_area,
            encryption: self.encryption.clone(),
        })
    }

    /// The order is qemu-img's.
    fn check_combination(&self) -> Result<(ClusterSize, RefcountWidth)> {
        let old = self.version < Version::V3;
        if self.extended_l2 && old {
            return Err(wrong(
                "Extended L2 entries are only supported with compatibility level 1.1 and above \
                 (use version=v3 or greater)",
            ));
        }
        let cluster_size = self.cluster_size.checked_ilog2();
        let cluster_size = cluster_size
            .filter(|_| self.cluster_size.is_power_of_two())
            .and_then(ClusterSize::from_bits)
            .ok_or_else(|| {
                Error::OutOfRange(
                    "Cluster size must be a power of two between 512 and 2048k".into(),
                )
            })?;
        if self.extended_l2 && cluster_size.bytes() < crate::qcow2::l2::SUBCLUSTERS * SECTOR {
            return Err(wrong(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ));
        }
        let backed = self.backing_file.is_some();
        if backed && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return Err(wrong(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        if self.backing_format.is_some() && !backed {
            return Err(wrong("Backing format cannot be used without backing file"));
        }
        if self.lazy_refcounts && old {
            return Err(wrong(
                "Lazy refcounts only supported with compatibility level 1.1 and above \
                 (use version=v3 or greater)",
            ));
        }
        let refcount_width = self.refcount_bits.checked_ilog2();
        let refcount_width = refcount_width
            .filter(|_| self.refcount_bits.is_power_of_two())
            .and_then(RefcountWidth::from_order)
            .ok_or_else(|| {
                Error::OutOfRange(
                    "Refcount width must be a power of two and may not exceed 64 bits".into(),
                )
            })?;
        if old && refcount_width != RefcountWidth::BITS_16 {
            return Err(wrong(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above \
                 (use version=v3 or greater)",
            ));
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(wrong("data-file-raw requires data-file"));
        }
        if self.data_file_raw && backed {
            return Err(wrong(
                "Backing file and data-file-raw cannot be used at the same time",
            ));
        }
        if self.data_file.is_some() && old {
            return Err(wrong(
                "External data files are only supported with compatibility level 1.1 and above \
                 (use version=v3 or greater)",
            ));
        }
        if self.compression != Compression::Zlib && old {
            return Err(wrong(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above \
                 (use version=v3 or greater)",
            ));
        }
        if backed && self.backing_format.is_none() {
            return Err(wrong("Backing file specified without backing format"));
        }
        Ok((cluster_size, refcount_width))
    }

    /// Header, extensions and backing name. What a later change of the header may have to change, the
    /// extensions first of all, stands as far in front as it can: a change is one write of the first sector
    /// (invariant M6).
    fn header_area(&self, geometry: &Geometry, layout: &Layout) -> Result<Vec<u8>> {
        let new = self.version >= Version::V3;
        let length = if new { FULL_LENGTH } else { V2_LENGTH };
        let extensions = Extensions {
            backing_format: self.backing_format.clone(),
            data_file: self.data_file.clone(),
            feature_names: if new && geometry.cluster_size.bytes() >= LEAST_CLUSTER_WITH_NAMES {
                extension::specified_names()
            } else {
                Vec::new()
            },
            crypto: (geometry.encryption_header > 0).then_some(CryptoHeader {
                offset: HostOffset(layout.encryption_header_offset),
                length: geometry.encryption_header,
            }),
            ..Extensions::default()
        };
        let mut area = vec![0; geometry.cluster_size.bytes().min(MAX_HEADER_AREA) as usize];
        let after_header = length as usize;
        let no_space =
            |what: &str| Error::Unsupported(format!("{what}: No space left on device").into());
        let extensions = extensions
            .encode(area.len() - after_header)
            .ok_or_else(|| no_space("Could not update qcow2 header"))?;
        let name_at = after_header + extensions.len();
        area[after_header..name_at].copy_from_slice(&extensions);

        let mut used = name_at;
        let mut backing = (0, 0);
        if let Some(name) = &self.backing_file {
            let format = self.backing_format.as_deref().unwrap_or_default();
            let failed = format!("Could not assign backing file '{name}' with format '{format}'");
            if name.len() > MAX_BACKING_NAME as usize || format.len() > MAX_FORMAT_NAME {
                return Err(Error::OutOfRange(
                    format!("{failed}: Invalid argument").into(),
                ));
            }
            used = name_at + name.len();
            area.get_mut(name_at..used)
                .ok_or_else(|| no_space(&failed))?
                .copy_from_slice(name.as_bytes());
            backing = (name_at as u64, name.len() as u32);
        }

        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let header = RawHeader {
            magic: MAGIC,
            version: if new { 3 } else { 2 },
            backing_file_offset: backing.0,
            backing_file_size: backing.1,
            cluster_bits: geometry.cluster_size.bits(),
            size: geometry.size,
            crypt_method: match &self.encryption {
                None => 0,
                Some(NewEncryption::Aes) => 1,
                Some(NewEncryption::Luks(_)) => 2,
            },
            l1_size: layout.l1_entries,
            l1_table_offset: layout.l1_offset,
            refcount_table_offset: layout.refcount_table_offset,
            refcount_table_clusters: layout.refcount_table_clusters,
            nb_snapshots: 0,
            snapshots_offset: 0,
            incompatible_features: bit(self.data_file.is_some(), Incompatible::DATA_FILE.0)
                | bit(
                    self.compression != Compression::Zlib,
                    Incompatible::COMPRESSION_TYPE.0,
                )
                | bit(self.extended_l2, Incompatible::EXTENDED_L2.0),
            compatible_features: bit(self.lazy_refcounts, Compatible::LAZY_REFCOUNTS.0),
            autoclear_features: bit(self.data_file_raw, Autoclear::DATA_FILE_RAW.0),
            refcount_order: geometry.refcount_width.order(),
            header_length: length,
            compression_type: match self.compression {
                Compression::Zlib => 0,
                Compression::Zstd => 1,
            },
        };
        header.encode_into(&mut area);
        area.truncate((used as u64).next_multiple_of(SECTOR) as usize);
        Ok(area)
    }
}
