//! What is known about one file of a chain: the report of `qemu-img info`.

use crate::crypto::{LuksHeader, LuksInfo};
use crate::error::Result;
use crate::image::{Layer, Qcow2};
use crate::probe::Format;
use crate::qcow2::{Autoclear, Compatible, Encryption, Incompatible, Version};
use crate::raw::Raw;
use crate::storage::Storage;
use crate::units::SECTOR;

/// One image file. Field names are those of `qemu-img info --output=json`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct ImageInfo {
    /// The files that it consists of.
    pub children: Vec<ChildInfo>,
    /// The format that the image says its backing file has.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub backing_filename_format: Option<String>,
    /// Its internal snapshots, if it has any.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub snapshots: Vec<SnapshotInfo>,
    /// The disk's size in bytes, a multiple of 512.
    pub virtual_size: u64,
    /// The name by which it was opened.
    pub filename: String,
    /// The cluster size in bytes.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub cluster_size: Option<u64>,
    /// QEMU's name of the format; "file" for the file beneath one.
    pub format: String,
    /// The bytes that the file occupies; for the caller to supply, the engine does not know.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub actual_size: Option<u64>,
    /// What only this format has.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub format_specific: Option<FormatSpecific>,
    /// The backing file's name as the caller resolves it; for the caller to supply.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub full_backing_filename: Option<String>,
    /// Whether the guest's data is encrypted; absent where it is not.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "std::ops::Not::not"))]
    pub encrypted: bool,
    /// The backing file's name as it stands in the image. Untrusted.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub backing_filename: Option<String>,
    /// Whether the image was not closed after its last change.
    pub dirty_flag: bool,
}

/// A file beneath an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct ChildInfo {
    /// Its part: "file".
    pub name: String,
    /// The file itself.
    pub info: Box<ImageInfo>,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct SnapshotInfo {
    /// Instructions executed, where recorded.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub icount: Option<i64>,
    /// The nanoseconds of [`vm_clock_sec`](Self::vm_clock_sec).
    pub vm_clock_nsec: u64,
    /// Its name.
    pub name: String,
    /// When it was taken: seconds since 1970.
    pub date_sec: u32,
    /// When it was taken: nanoseconds of the second.
    pub date_nsec: u32,
    /// How long the guest had been running, in seconds.
    pub vm_clock_sec: u64,
    /// Its identifier.
    pub id: String,
    /// The bytes of the virtual machine's state.
    pub vm_state_size: u64,
}

/// What only one format has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(tag = "type", content = "data", rename_all = "kebab-case")
)]
pub enum FormatSpecific {
    /// qcow2.
    Qcow2(Box<Qcow2Info>),
    /// LUKS, version 1.
    Luks(Box<LuksInfo>),
    /// A plain file, about which there is nothing more to say.
    File {},
}

/// What only qcow2 has. What version 2 lacks is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct Qcow2Info {
    /// "0.10" for version 2, "1.1" for version 3.
    pub compat: &'static str,
    /// How clusters are compressed.
    pub compression_type: &'static str,
    /// Whether refcounts may be written late.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub lazy_refcounts: Option<bool>,
    /// The persistent bitmaps, if there are any.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub bitmaps: Vec<BitmapInfo>,
    /// The width of refcounts.
    pub refcount_bits: u32,
    /// The encryption, if there is one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub encrypt: Option<EncryptInfo>,
    /// The external data file's name. Untrusted.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub data_file: Option<String>,
    /// Whether the data file is a raw image of the disk; only with a data file.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub data_file_raw: Option<bool>,
    /// Whether the image was found corrupt when it was last used.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub corrupt: Option<bool>,
    /// Whether L2 entries have subclusters.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub extended_l2: Option<bool>,
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct BitmapInfo {
    /// Of "in-use" and "auto" those that are set.
    pub flags: Vec<&'static str>,
    /// Its name.
    pub name: String,
    /// The guest bytes that one bit stands for.
    pub granularity: u64,
}

/// How an image is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(tag = "format", rename_all = "kebab-case")
)]
pub enum EncryptInfo {
    /// The old AES-CBC method.
    Aes {},
    /// LUKS, version 1.
    Luks(LuksInfo),
}

/// The report about one file of a chain, all that the file itself says.
///
/// # Errors
///
/// As for reading the image: a bitmap directory or an encryption header that cannot be.
pub async fn info<S: Storage>(layer: &Layer<S>) -> Result<ImageInfo> {
    match layer {
        Layer::Raw(raw) => Ok(raw_info(raw)),
        Layer::Qcow2(qcow2) => qcow2_info(qcow2).await,
    }
}

fn raw_info<S: Storage>(raw: &Raw<S>) -> ImageInfo {
    let name = &raw.file().name;
    let Some(header) = raw.luks_header() else {
        return plain(Format::Raw.name(), name, raw.file_len(), true);
    };
    ImageInfo {
        virtual_size: raw.virtual_size(),
        format_specific: Some(FormatSpecific::Luks(Box::new(LuksInfo::of(header)))),
        encrypted: true,
        ..plain(Format::Luks.name(), name, raw.file_len(), true)
    }
}

/// The report about a file without a format: with `child`, as the image that consists of it.
fn plain(format: &str, name: &str, file_len: u64, child: bool) -> ImageInfo {
    let children = match child {
        true => vec![file_child(name, file_len)],
        false => Vec::new(),
    };
    ImageInfo {
        children,
        backing_filename_format: None,
        snapshots: Vec::new(),
        virtual_size: file_len.next_multiple_of(SECTOR),
        filename: name.to_owned(),
        cluster_size: None,
        format: format.to_owned(),
        actual_size: None,
        format_specific: (!child).then_some(FormatSpecific::File {}),
        full_backing_filename: None,
        encrypted: false,
        backing_filename: None,
        dirty_flag: false,
    }
}

fn file_child(name: &str, file_len: u64) -> ChildInfo {
    ChildInfo {
        name: "file".to_owned(),
        info: Box::new(plain("file", name, file_len, false)),
    }
}

async fn qcow2_info<S: Storage>(image: &Qcow2<S>) -> Result<ImageInfo> {
    let header = image.header();
    let v3 = header.version >= Version::V3;
    let data_file = header
        .has_data_file()
        .then(|| image.extensions().data_file.clone())
        .flatten();
    let specific = Qcow2Info {
        compat: if v3 { "1.1" } else { "0.10" },
        compression_type: header.compression.name(),
        lazy_refcounts: v3.then(|| header.compatible.has(Compatible::LAZY_REFCOUNTS)),
        bitmaps: image.bitmaps().await?.iter().map(bitmap_info).collect(),
        refcount_bits: header.refcount_width.bits(),
        encrypt: encrypt_info(image).await?,
        data_file_raw: header
            .has_data_file()
            .then(|| header.autoclear.has(Autoclear::DATA_FILE_RAW)),
        data_file,
        corrupt: v3.then(|| header.incompatible.has(Incompatible::CORRUPT)),
        extended_l2: v3.then(|| header.extended_l2()),
    };
    let backing = image.backing();
    Ok(ImageInfo {
        children: vec![file_child(&image.file().name, image.file_len())],
        backing_filename_format: backing
            .as_ref()
            .and_then(|backing| backing.format.clone())
            .filter(|format| !format.is_empty()),
        snapshots: image.snapshots().iter().map(snapshot_info).collect(),
        virtual_size: image.virtual_size(),
        filename: image.file().name.clone(),
        cluster_size: Some(header.cluster_size.bytes()),
        format: Format::Qcow2.name().to_owned(),
        actual_size: None,
        format_specific: Some(FormatSpecific::Qcow2(Box::new(specific))),
        full_backing_filename: None,
        encrypted: header.encryption != Encryption::None,
        backing_filename: backing.map(|backing| backing.name.clone()),
        dirty_flag: header.incompatible.has(Incompatible::DIRTY),
    })
}

fn snapshot_info(snapshot: &crate::qcow2::Snapshot) -> SnapshotInfo {
    const NANOSECONDS: u64 = 1_000_000_000;
    SnapshotInfo {
        // All ones is how a snapshot says that nothing was recorded.
        icount: snapshot
            .icount
            .filter(|&icount| icount != u64::MAX)
            .map(u64::cast_signed),
        vm_clock_nsec: snapshot.vm_clock_nsec % NANOSECONDS,
        name: snapshot.name.clone(),
        date_sec: snapshot.date_sec,
        date_nsec: snapshot.date_nsec,
        vm_clock_sec: snapshot.vm_clock_nsec / NANOSECONDS,
        id: snapshot.id.clone(),
        vm_state_size: snapshot.vm_state_size,
    }
}

fn bitmap_info(bitmap: &crate::qcow2::Bitmap) -> BitmapInfo {
    let flags = [
        (bitmap.flags.in_use(), "in-use"),
        (bitmap.flags.auto(), "auto"),
    ];
    BitmapInfo {
        flags: flags
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect(),
        name: bitmap.name.clone(),
        granularity: bitmap.granularity(),
    }
}

async fn encrypt_info<S: Storage>(image: &Qcow2<S>) -> Result<Option<EncryptInfo>> {
    match image.header().encryption {
        Encryption::None => Ok(None),
        Encryption::Aes => Ok(Some(EncryptInfo::Aes {})),
        Encryption::Luks => {
            let area = image.encryption_area()?;
            let header = LuksHeader::read(&image.file().storage, area).await?;
            Ok(Some(EncryptInfo::Luks(LuksInfo::of(&header))))
        }
    }
}
