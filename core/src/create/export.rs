//! The qcow2 file that a disk would be, made as it is read: nothing is written anywhere.
//!
//! Header, refcount table, refcount blocks, L1 table, L2 tables and data follow one another in this order. No cluster is
//! left out and each has one owner, so that every refcount up to the end is one. Where all of it stands follows from
//! the disk's map alone: that is all that is kept.

use std::ops::Range;

use crate::create::{CreateOptions, layout};
use crate::error::{Error, Result};
use crate::image::{Image, Preallocation};
use crate::map::data_clusters;
use crate::measure::refcount_clusters;
use crate::qcow2::{COPIED, MAX_REFCOUNT_TABLE_BYTES, OFFSET_MASK, RawHeader, RefcountWidth};
use crate::storage::Storage;
use crate::units::{ClusterSize, GuestOffset};

/// A disk as the bytes of a qcow2 file, to be read from wherever one likes: a download, a request for a range.
///
/// It stores what the disk's map calls data; zeros that are stored in the source are stored here, too. The disk must
/// not be changed meanwhile: of one that is written to, export a [view](Image::view).
///
/// # Examples
///
/// ```
/// use oxcow::create::{CreateOptions, export::Export};
/// use oxcow::{DenyAll, File, Image, MemoryStorage, OpenOptions};
///
/// # async fn example() -> oxcow::Result<()> {
/// let file = File { storage: MemoryStorage::new(vec![7; 1 << 20]), name: "disk.raw".into() };
/// let disk = Image::open(file, &OpenOptions::default(), &DenyAll::default()).await?;
///
/// let export = Export::of(&disk, &CreateOptions::default()).await?;
/// let mut bytes = vec![0; export.file_size() as usize];
/// export.read_at(&disk, 0, &mut bytes).await?;
///
/// let file = File { storage: MemoryStorage::new(bytes), name: "disk.qcow2".into() };
/// let copy = Image::open(file, &OpenOptions::default(), &DenyAll::default()).await?;
/// assert_eq!(copy.virtual_size(), 1 << 20);
/// # Ok(())
/// # }
/// # assert!(futures_util::FutureExt::now_or_never(example()).unwrap().is_ok());
/// ```
#[derive(Debug)]
pub struct Export {
    cluster: ClusterSize,
    refcount_width: RefcountWidth,
    l2_entry_bytes: u64,
    /// The beginning of the first cluster; the rest of it is zeros.
    header: Vec<u8>,
    places: Places,
    /// The L1 entries that have a table, in their order.
    tables: Vec<u64>,
    runs: Vec<Run>,
}

/// The first cluster of each part of the file.
#[derive(Clone, Copy, Debug)]
struct Places {
    blocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
    end: u64,
}

/// Clusters that follow one another on the disk and in the file.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// The first on the disk.
    guest: u64,
    /// The first of the file's data.
    data: u64,
    count: u64,
}

/// The clusters of the file that hold something of their own.
#[derive(Debug, Default)]
struct Stored {
    runs: Vec<Run>,
    count: u64,
}

impl Stored {
    /// These clusters are data, too; those of earlier calls come before them.
    fn add(&mut self, clusters: Range<u64>) {
        let count = clusters.end - clusters.start;
        match self.runs.last_mut() {
            Some(run) if run.guest + run.count == clusters.start => run.count += count,
            _ => self.runs.push(Run {
                guest: clusters.start,
                data: self.count,
                count,
            }),
        }
        self.count += count;
    }

    /// The parts of the disk, `size` clusters each, of which there is anything.
    fn parts(&self, size: u64) -> Vec<u64> {
        let mut parts: Vec<u64> = Vec::new();
        for run in &self.runs {
            let last = (run.guest + run.count - 1) / size;
            let next = parts.last().map_or(0, |part| part + 1);
            parts.extend((run.guest / size).max(next)..=last);
        }
        parts
    }
}

impl Export {
    /// The file that `image` would be, made like `options`; its size is the image's.
    ///
    /// # Errors
    ///
    /// Those of [`CreateOptions::check`]; [`Error::Unsupported`] for what has no place in such a file (another file,
    /// preallocation, encryption), and those of reading the map.
    pub async fn of<S: Storage>(image: &Image<S>, options: &CreateOptions) -> Result<Self> {
        let options = CreateOptions {
            size: image.virtual_size(),
            ..options.clone()
        };
        let alone = options.backing_file.is_none() && options.data_file.is_none();
        if !alone || options.preallocation != Preallocation::Off || options.encryption.is_some() {
            return Err(Error::Unsupported(
                "What is exported as it is read has no other file, no preallocation and no encryption".into(),
            ));
        }
        let plan = options.plan()?;
        let cluster = plan.geometry.cluster_size;
        let mut stored = Stored::default();
        data_clusters(image, cluster, |clusters| stored.add(clusters)).await?;
        let tables = stored.parts(plan.geometry.l2_entries());

        let l1 = cluster.count_for(u64::from(plan.layout.l1_entries) * 8);
        let l2 = tables.len() as u64;
        let others = 1 + l1 + l2 + stored.count;
        let width = plan.geometry.refcount_width;
        let refcounts = refcount_clusters(others, cluster, width);
        let end = others + refcounts;
        let blocks = end.div_ceil(width.entries_per_block(cluster));
        if blocks * 8 > MAX_REFCOUNT_TABLE_BYTES || end > OFFSET_MASK >> cluster.bits() {
            return Err(layout::too_large());
        }
        let places = Places {
            blocks: 1 + refcounts - blocks,
            l1: 1 + refcounts,
            l2: 1 + refcounts + l1,
            data: 1 + refcounts + l1 + l2,
            end,
        };

        let mut header = plan.header_area;
        RawHeader {
            refcount_table_offset: cluster.bytes(),
            refcount_table_clusters: (refcounts - blocks) as u32,
            l1_table_offset: match l1 {
                0 => 0,
                _ => places.l1 << cluster.bits(),
            },
            ..RawHeader::decode(&header)
        }
        .encode_into(&mut header);
        Ok(Self {
            cluster,
            refcount_width: width,
            l2_entry_bytes: plan.geometry.l2_entry_bytes(),
            header,
            places,
            tables,
            runs: stored.runs,
        })
    }

    /// The length of the file in bytes.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.places.end << self.cluster.bits()
    }

    /// Fills `buf` with the bytes of the file from `offset` on; `image` is the one that this was made of.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] past the end of the file, and those of [`Image::read_at`].
    pub async fn read_at<S: Storage>(
        &self,
        image: &Image<S>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.file_size() {
            let what = format!(
                "Byte {end} lies past the end of the file of {} bytes",
                self.file_size()
            );
            return Err(Error::OutOfRange(what.into()));
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (place, until) = self.place_of(at);
            let length = (until - at).min(rest.len() as u64) as usize;
            let (part, behind) = rest.split_at_mut(length);
            match place {
                Place::Header => fill(part, &self.header, at),
                Place::RefcountTable => entries(part, at - self.cluster.bytes(), |index| {
                    let block = self.places.blocks + index;
                    self.entry(block, block < self.places.l1)
                }),
                Place::RefcountBlock(index) => {
                    fill(part, &self.refcounts(index), self.cluster.offset_in(at));
                }
                Place::L1 => entries(part, at - self.start(self.places.l1), |index| {
                    match self.tables.binary_search(&index) {
                        Ok(table) => self.entry(self.places.l2 + table as u64, true) | COPIED,
                        Err(_) => 0,
                    }
                }),
                Place::L2(guest) => entries(part, self.cluster.offset_in(at), |word| {
                    self.l2_word(guest, word)
                }),
                Place::Data(guest) => {
                    let there = image.virtual_size().saturating_sub(guest);
                    let (disk, past) = part.split_at_mut(there.min(length as u64) as usize);
                    if !disk.is_empty() {
                        image.read_at(GuestOffset(guest), disk).await?;
                    }
                    past.fill(0);
                }
            }
            at += length as u64;
            rest = behind;
        }
        Ok(())
    }

    fn start(&self, cluster: u64) -> u64 {
        cluster << self.cluster.bits()
    }

    /// A table's entry for a cluster that is there, or not.
    fn entry(&self, cluster: u64, there: bool) -> u64 {
        if there { self.start(cluster) } else { 0 }
    }

    /// What stands at byte `at`, and up to where.
    fn place_of(&self, at: u64) -> (Place, u64) {
        let places = &self.places;
        let index = self.cluster.index_of(at);
        // In whole clusters, where each is another.
        let next = self.start(index + 1);
        match index {
            0 => (Place::Header, next),
            _ if index < places.blocks => (Place::RefcountTable, self.start(places.blocks)),
            _ if index < places.l1 => (Place::RefcountBlock(index - places.blocks), next),
            _ if index < places.l2 => (Place::L1, self.start(places.l2)),
            _ if index < places.data => {
                let table = self.tables[(index - places.l2) as usize];
                (Place::L2(table * self.l2_entries()), next)
            }
            _ => {
                let data = index - places.data;
                // The first run begins with the first cluster of data.
                let run = self.runs[self.runs.partition_point(|run| run.data <= data) - 1];
                let guest = self.start(run.guest + data - run.data) + self.cluster.offset_in(at);
                let until = self.start(places.data + run.data + run.count);
                (Place::Data(guest), until)
            }
        }
    }

    fn l2_entries(&self) -> u64 {
        self.cluster.bytes() / self.l2_entry_bytes
    }

    /// The eight bytes at `word` of the L2 table whose first cluster of the disk is `first`.
    fn l2_word(&self, first: u64, word: u64) -> u64 {
        let words = self.l2_entry_bytes / 8;
        let guest = first + word / words;
        let behind = self.runs.partition_point(|run| run.guest <= guest);
        let Some(run) = self.runs[..behind].last() else {
            return 0;
        };
        if guest >= run.guest + run.count {
            return 0;
        }
        match word % words {
            0 => self.start(self.places.data + run.data + guest - run.guest) | COPIED,
            // Every subcluster is there.
            _ => u64::from(u32::MAX),
        }
    }

    /// A refcount block: every cluster up to the end of the file is in use, once.
    fn refcounts(&self, index: u64) -> Vec<u8> {
        let per_block = self.refcount_width.entries_per_block(self.cluster);
        let count = (self.places.end - index * per_block).min(per_block);
        let mut block = vec![0; self.cluster.len()];
        for index in 0..count as usize {
            self.refcount_width.set(&mut block, index, 1);
        }
        block
    }
}

/// The parts of the file.
enum Place {
    Header,
    RefcountTable,
    /// Which of them.
    RefcountBlock(u64),
    L1,
    /// The first of the disk's clusters that it is for.
    L2(u64),
    /// The byte of the disk.
    Data(u64),
}

/// Fills `part` with `bytes` from `at` on, and zeros behind them.
fn fill(part: &mut [u8], bytes: &[u8], at: u64) {
    let bytes = bytes.get(at as usize..).unwrap_or_default();
    let count = bytes.len().min(part.len());
    part[..count].copy_from_slice(&bytes[..count]);
    part[count..].fill(0);
}

/// Fills `part` with a table of eight-byte entries, from its byte `at` on.
fn entries(part: &mut [u8], at: u64, entry: impl Fn(u64) -> u64) {
    let mut at = at;
    let mut rest = part;
    while !rest.is_empty() {
        let bytes = entry(at / 8).to_be_bytes();
        let bytes = &bytes[(at % 8) as usize..];
        let count = bytes.len().min(rest.len());
        let (now, behind) = rest.split_at_mut(count);
        now.copy_from_slice(&bytes[..count]);
        at += count as u64;
        rest = behind;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::chain::{DenyAll, File};
    use crate::check;
    use crate::image::OpenOptions;
    use crate::qcow2::Version;
    use crate::storage::{AnyStorage, MemoryStorage};

    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("memory is always ready")
    }

    fn opened(bytes: Vec<u8>, writable: bool) -> Image<AnyStorage> {
        let file = File {
            storage: AnyStorage::new(MemoryStorage::new(bytes)),
            name: "disk".into(),
        };
        let options = OpenOptions {
            writable,
            ..OpenOptions::default()
        };
        now(Image::open(file, &options, &DenyAll::default())).unwrap()
    }

    /// A sparse disk of an odd size, with data at its beginning, its end and in between.
    fn disk() -> Image<AnyStorage> {
        let storage = MemoryStorage::default();
        let options = CreateOptions {
            size: (5 << 20) + 512,
            cluster_size: 512,
            ..CreateOptions::default()
        };
        now(crate::create::create(&storage, None, &options)).unwrap();
        let file = File {
            storage: AnyStorage::new(storage),
            name: "disk".into(),
        };
        let options = OpenOptions {
            writable: true,
            ..OpenOptions::default()
        };
        let image = now(Image::open(file, &options, &DenyAll::default())).unwrap();
        for (at, length) in [(0, 700), (70_000, 130_000), (3 << 20, 512), (5 << 20, 512)] {
            let bytes: Vec<u8> = (0..length).map(|byte| (byte % 251 + 1) as u8).collect();
            now(image.write_at(GuestOffset(at), &bytes)).unwrap();
        }
        image
    }

    #[test]
    fn the_file_is_the_disk_whatever_it_is_made_like() {
        let disk = disk();
        let mut expected = vec![0; disk.virtual_size() as usize];
        now(disk.read_at(GuestOffset(0), &mut expected)).unwrap();
        for (cluster_size, refcount_bits, extended_l2, version) in [
            (512, 16, false, Version::V2),
            (512, 64, false, Version::V3),
            (4096, 1, false, Version::V3),
            (64 << 10, 16, false, Version::V3),
            (64 << 10, 8, true, Version::V3),
            (2 << 20, 16, true, Version::V3),
        ] {
            let options = CreateOptions {
                cluster_size,
                refcount_bits,
                extended_l2,
                version,
                ..CreateOptions::default()
            };
            let export = now(Export::of(&disk, &options)).unwrap();
            let mut bytes = vec![0; export.file_size() as usize];
            // In pieces that agree with nothing.
            for (index, piece) in bytes.chunks_mut(12_345).enumerate() {
                now(export.read_at(&disk, index as u64 * 12_345, piece)).unwrap();
            }
            let copy = opened(bytes, false);
            assert_eq!(copy.virtual_size(), disk.virtual_size());
            let mut read = vec![0; expected.len()];
            now(copy.read_at(GuestOffset(0), &mut read)).unwrap();
            assert!(read == expected, "{options:?}");
            let found = now(check::check(copy.top().as_qcow2().unwrap(), &mut ())).unwrap();
            assert_eq!(
                (found.corruptions, found.leaks, found.check_errors),
                (0, 0, 0)
            );
            assert_eq!(copy.top().as_qcow2().unwrap().header().version, version);
        }
    }

    #[test]
    fn what_is_not_stored_takes_no_room() {
        let disk = disk();
        let options = CreateOptions {
            cluster_size: 4096,
            ..CreateOptions::default()
        };
        let export = now(Export::of(&disk, &options)).unwrap();
        // Of data the clusters 0, 17 to 48, 768 and 1280; header, refcount table and block, L1 table; three L2 tables.
        assert_eq!(export.file_size(), (35 + 4 + 3) * 4096);
        let past = now(export.read_at(&disk, export.file_size() - 1, &mut [0; 2]));
        assert!(matches!(past, Err(Error::OutOfRange(_))));
    }

    #[test]
    fn an_empty_disk_is_a_header_and_tables() {
        let disk = opened(Vec::new(), false);
        let export = now(Export::of(&disk, &CreateOptions::default())).unwrap();
        let mut bytes = vec![0; export.file_size() as usize];
        now(export.read_at(&disk, 0, &mut bytes)).unwrap();
        assert_eq!(opened(bytes, false).virtual_size(), 0);
    }

    #[test]
    fn other_files_have_no_place_in_it() {
        let options = CreateOptions {
            backing_file: Some("base".into()),
            backing_format: Some("raw".into()),
            ..CreateOptions::default()
        };
        let refused = now(Export::of(&disk(), &options));
        assert!(matches!(refused, Err(Error::Unsupported(_))));
    }
}
