//! How large a file must be to hold a disk: what `qemu-img measure` tells.

use crate::convert::is_zero;
use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::map::data_clusters;
use crate::qcow2::{MAX_L1_BYTES, RefcountWidth, Version};
use crate::storage::{Buffer, Storage};
use crate::units::{ClusterSize, GuestOffset, SECTOR};

/// Sizes of a file, in bytes. Field names are those of `qemu-img measure --output=json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct Measured {
    /// What copies of the persistent bitmaps need on top; only for a source and a target that can have any.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub bitmaps: Option<u64>,
    /// What converting now needs.
    pub required: u64,
    /// What the file can grow to.
    pub fully_allocated: u64,
}

/// The properties of a new qcow2 image that its size depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Target {
    /// The cluster size.
    pub cluster_size: ClusterSize,
    /// The width of refcounts.
    pub refcount_width: RefcountWidth,
    /// Whether L2 entries have subclusters.
    pub extended_l2: bool,
    /// Whether all data clusters are allocated at once.
    pub preallocated: bool,
    /// Whether it is to have a backing file: then zeros have to be written too.
    pub backing: bool,
    /// How long its encryption header is, in bytes; 0 for an image that has none.
    pub encryption_header: u64,
}

impl Default for Qcow2Target {
    fn default() -> Self {
        Self {
            cluster_size: ClusterSize::DEFAULT,
            refcount_width: RefcountWidth::BITS_16,
            extended_l2: false,
            preallocated: false,
            backing: false,
            encryption_header: 0,
        }
    }
}

/// Raw sources up to this size are read: of what is in them nothing but their content tells, where a storage does
/// not say which parts were never written.
const MOST_READ: u64 = 8 << 30;

/// A raw file for a disk of `size` bytes.
#[must_use]
pub fn raw(size: u64) -> Measured {
    let bytes = size.next_multiple_of(SECTOR);
    Measured {
        bitmaps: None,
        required: bytes,
        fully_allocated: bytes,
    }
}

/// A new, empty qcow2 file for a disk of `size` bytes.
///
/// # Errors
///
/// [`Error::OutOfRange`] for a disk that no L1 table of such clusters covers.
pub fn qcow2(size: u64, target: &Qcow2Target) -> Result<Measured> {
    let cluster = target.cluster_size;
    let l2_bytes = cluster.bytes() / l2_entry_bytes(target) * cluster.bytes();
    if size.div_ceil(l2_bytes) > MAX_L1_BYTES / 8 {
        return Err(too_large());
    }
    with_data(size, 0, target)
}

/// A qcow2 file that `image` is converted to.
///
/// # Errors
///
/// As for [`qcow2`] and for reading the block map.
pub async fn qcow2_from<S: Storage>(image: &Image<S>, target: &Qcow2Target) -> Result<Measured> {
    let size = image.virtual_size();
    // Which clusters a backing file would supply is not known here.
    let data = if target.backing {
        size
    } else if matches!(image.top(), Layer::Raw(_)) && size <= MOST_READ {
        content(image, target.cluster_size).await?
    } else {
        let mut clusters = 0;
        data_clusters(image, target.cluster_size, |run| {
            clusters += run.end - run.start;
        })
        .await?;
        clusters << target.cluster_size.bits()
    };
    let bitmaps = bitmaps(image, target.cluster_size).await?;
    Ok(Measured {
        bitmaps,
        ..with_data(size, data, target)?
    })
}

/// The clusters of a raw image that hold anything but zeros, in bytes. The first one counts in any case: QEMU writes
/// to the beginning of every raw file that it creates.
async fn content<S: Storage>(image: &Image<S>, cluster: ClusterSize) -> Result<u64> {
    let size = image.virtual_size();
    let piece = cluster.len().max(1 << 20);
    let mut buffer = Buffer::default();
    let mut clusters = u64::from(size > 0);
    let mut at = 0;
    while at < size {
        buffer.resize((size - at).min(piece as u64) as usize);
        image.read_at(GuestOffset(at), &mut buffer).await?;
        let used = |(index, bytes): (usize, &[u8])| at + index as u64 > 0 && !is_zero(bytes);
        let count = buffer.chunks(cluster.len()).enumerate();
        clusters += count.filter(|part| used(*part)).count() as u64;
        at += buffer.len() as u64;
    }
    Ok(clusters << cluster.bits())
}

fn too_large() -> Error {
    Error::OutOfRange("The image size is too large (try using a larger cluster size)".into())
}

fn l2_entry_bytes(target: &Qcow2Target) -> u64 {
    if target.extended_l2 { 16 } else { 8 }
}

/// For a source there is no limit to its size: it is there, if with larger clusters.
fn with_data(size: u64, data: u64, target: &Qcow2Target) -> Result<Measured> {
    let cluster = target.cluster_size;
    let disk = size
        .next_multiple_of(SECTOR)
        .checked_next_multiple_of(cluster.bytes())
        .ok_or_else(too_large)?;
    let l2_tables = (disk >> cluster.bits()).div_ceil(cluster.bytes() / l2_entry_bytes(target));
    let l1_clusters = (l2_tables * 8).div_ceil(cluster.bytes());
    let described = 1 + l1_clusters + l2_tables + (disk >> cluster.bits());
    let clusters = described + refcount_clusters(described, cluster, target.refcount_width);
    // As in qemu-img, the refcounts of the encryption header are not counted.
    let fully_allocated = (clusters + cluster.count_for(target.encryption_header))
        .checked_mul(cluster.bytes())
        .ok_or_else(too_large)?;
    let data = if target.preallocated {
        disk
    } else {
        data.next_multiple_of(cluster.bytes())
    };
    Ok(Measured {
        bitmaps: None,
        required: fully_allocated - disk + data,
        fully_allocated,
    })
}

/// The clusters of refcount blocks and table that describe `described` clusters and themselves.
pub(crate) fn refcount_clusters(described: u64, cluster: ClusterSize, width: RefcountWidth) -> u64 {
    let per_block = width.entries_per_block(cluster);
    let mut own = 0;
    loop {
        let blocks = (described + own).div_ceil(per_block);
        let table = (blocks * 8).div_ceil(cluster.bytes());
        if blocks + table == own {
            return own;
        }
        own = blocks + table;
    }
}

/// What the bitmaps of `image` need in a qcow2 file with clusters of `cluster`.
async fn bitmaps<S: Storage>(image: &Image<S>, cluster: ClusterSize) -> Result<Option<u64>> {
    let Some(source) = image
        .top()
        .as_qcow2()
        .filter(|source| source.header().version >= Version::V3)
    else {
        return Ok(None);
    };
    let size = image.virtual_size();
    let clusters_for = |bytes: u64| cluster.count_for(bytes) << cluster.bits();
    let mut total = 0;
    let mut directory = 0;
    for bitmap in source.bitmaps().await? {
        let bytes = size.div_ceil(bitmap.granularity()).div_ceil(8);
        let more = clusters_for(bytes) + clusters_for(cluster.count_for(bytes) * 8);
        // 65535 bitmaps may each claim 2^49 bytes.
        total = u64::saturating_add(total, more);
        directory += (DIRECTORY_ENTRY + bitmap.name.len() as u64).next_multiple_of(8);
    }
    Ok(Some(total.saturating_add(clusters_for(directory))))
}

/// A bitmap directory entry without its name, in bytes.
const DIRECTORY_ENTRY: u64 = 24;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::storage::AnyStorage;
    use crate::{DenyAll, File, Format, MemoryStorage, OpenOptions};

    fn cluster(bytes: u64) -> ClusterSize {
        ClusterSize::from_bits(bytes.ilog2()).unwrap()
    }

    // Numbers given by qemu-img 10.0.2.
    #[test]
    fn sizes_of_new_images() {
        let sizes = |size, target: Qcow2Target| {
            let measured = qcow2(size, &target).unwrap();
            (measured.required, measured.fully_allocated)
        };
        let plain = Qcow2Target::default();
        assert_eq!(sizes(0, plain), (196_608, 196_608));
        assert_eq!(sizes(1001, plain), (327_680, 393_216));
        assert_eq!(sizes(10 << 20, plain), (327_680, 10_813_440));
        assert_eq!(sizes(1 << 30, plain), (393_216, 1_074_135_040));
        assert_eq!(
            sizes(
                1 << 30,
                Qcow2Target {
                    extended_l2: true,
                    ..plain
                }
            ),
            (524_288, 1_074_266_112)
        );
        let encrypted = Qcow2Target {
            encryption_header: 2_068_480,
            ..plain
        };
        assert_eq!(sizes(1 << 30, encrypted), (2_490_368, 1_076_232_192));
        let full = Qcow2Target {
            cluster_size: cluster(512),
            preallocated: true,
            ..plain
        };
        assert_eq!(sizes(1 << 30, full), (1_095_127_040, 1_095_127_040));
        assert_eq!(
            raw(1000),
            Measured {
                bitmaps: None,
                required: 1024,
                fully_allocated: 1024
            }
        );
    }

    // Numbers given by qemu-img 10.0.2 for a file with holes beside what was written.
    #[test]
    fn raw_sources_count_by_what_is_in_them() {
        let mut bytes = vec![0; 4 << 20];
        let required = |bytes: &[u8]| {
            let file = File {
                storage: AnyStorage::new(MemoryStorage::new(bytes.to_vec())),
                name: "raw".into(),
            };
            let options = OpenOptions {
                format: Some(Format::Raw),
                ..OpenOptions::default()
            };
            let measured = async {
                let image = Image::open(file, &options, &DenyAll::default()).await?;
                qcow2_from(&image, &Qcow2Target::default()).await
            };
            measured.now_or_never().unwrap().unwrap().required
        };
        assert_eq!(required(&bytes), 393_216);
        bytes[0x2_0000] = 1;
        bytes[0x3_ffff] = 1;
        assert_eq!(required(&bytes), 524_288);
        assert_eq!(required(&[]), 196_608);
    }

    #[test]
    fn disks_that_do_not_fit() {
        let small = Qcow2Target {
            cluster_size: cluster(512),
            ..Qcow2Target::default()
        };
        for size in [1 << 50, i64::MAX as u64] {
            let error = qcow2(size, &small).unwrap_err();
            assert_eq!(
                error.to_string(),
                "The image size is too large (try using a larger cluster size)"
            );
        }
    }
}
