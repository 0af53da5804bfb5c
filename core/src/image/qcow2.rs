//! One open qcow2 file: its tables, without its backing files.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::chain::File;
use crate::codec::{Compressor, Decompressor};
use crate::crypto::{HeaderArea, LuksHeader, Passphrase, Volume};
use crate::error::{Error, Place, Result, Structure};
use crate::image::clock::Clock;
use crate::image::corruption::{Alarm, unaligned_table};
use crate::image::snapshot_table::Excess;
use crate::image::tables::TableCache;
use crate::qcow2::header::{Table, TableClaim, TableRules};
use crate::qcow2::{
    Autoclear, Bitmap, COPIED, Encryption, Extensions, Header, L2Format, MAX_L1_BYTES, OFFSET_MASK,
    RawHeader, Snapshot, bitmap::Directory, snapshot,
};
use crate::raw::locked;
use crate::storage::{Storage, read_padded};
use crate::units::{GuestOffset, HostOffset, SECTOR};

/// A backing file as the header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// The name as it stands there. Untrusted.
    pub name: String,
    /// The format the image gives, if it does.
    pub format: Option<String>,
}

/// What the guest sees of an image: the active state, or one of its snapshots.
#[derive(Debug)]
pub(crate) struct Root {
    /// L1 entries.
    pub l1: Vec<u64>,
    /// Where the L1 table stands, for messages.
    pub l1_offset: HostOffset,
    /// The disk's size in bytes.
    pub size: u64,
    /// How much state of a virtual machine a snapshot says that it has, in bytes; the active state says nothing.
    pub vm_state_size: Option<u64>,
}

/// What the header says, and the tables it points to that are read whole. A transaction replaces all of it
/// at once, as its switch replaces sector 0.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub raw_header: Rc<RawHeader>,
    pub header: Rc<Header>,
    pub extensions: Rc<Extensions>,
    pub backing: Option<Rc<BackingName>>,
    pub snapshots: Rc<[Snapshot]>,
    /// Tables that no data cluster may lie in (invariant M3), as byte ranges of the file.
    pub root_tables: Rc<[(u64, u64, Structure)]>,
    /// How long the snapshot table is.
    pub snapshot_table_bytes: u64,
    /// What of it was left out.
    pub excess: Rc<Excess>,
}

/// An open qcow2 file.
pub struct Qcow2<S> {
    pub(crate) file: File<S>,
    pub(crate) file_len: Cell<u64>,
    pub(crate) data_file: Option<File<S>>,
    pub(crate) meta: RefCell<Meta>,
    pub(crate) root: RefCell<Root>,
    pub(crate) l2_format: L2Format,
    pub(crate) tables: TableCache,
    /// Decompressed clusters, by the place of their compressed data.
    pub(crate) clusters: RefCell<Clock<crate::qcow2::Compressed, Rc<[u8]>>>,
    pub(crate) decompressor: RefCell<Decompressor>,
    pub(crate) compressor: RefCell<Compressor>,
    /// What was found wrong while the image was in use.
    pub(crate) alarm: Alarm,
    /// What encrypts guest data; missing where it is not encrypted, or was opened without a passphrase.
    pub(crate) volume: Option<Volume>,
}

impl<S> std::fmt::Debug for Qcow2<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2")
            .field("name", &self.file.name)
            .field("header", &self.meta.borrow().header)
            .finish_non_exhaustive()
    }
}

impl<S: Storage> Qcow2<S> {
    /// The file that holds the metadata.
    #[must_use]
    pub fn file(&self) -> &File<S> {
        &self.file
    }

    /// The length of that file in bytes, when it was opened or as it was written since.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len.get()
    }

    /// The external data file, where the image has one and it was opened.
    #[must_use]
    pub fn data_file(&self) -> Option<&File<S>> {
        self.data_file.as_ref()
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> Rc<Header> {
        self.meta.borrow().header.clone()
    }

    /// The header's fields as they stand.
    #[must_use]
    pub fn raw_header(&self) -> Rc<RawHeader> {
        self.meta.borrow().raw_header.clone()
    }

    /// The header extensions.
    #[must_use]
    pub fn extensions(&self) -> Rc<Extensions> {
        self.meta.borrow().extensions.clone()
    }

    /// The backing file's name, whether or not it was opened.
    #[must_use]
    pub fn backing(&self) -> Option<Rc<BackingName>> {
        self.meta.borrow().backing.clone()
    }

    /// The internal snapshots, in the order of the snapshot table.
    #[must_use]
    pub fn snapshots(&self) -> Rc<[Snapshot]> {
        self.meta.borrow().snapshots.clone()
    }

    /// How L2 entries are read.
    #[must_use]
    pub fn l2_format(&self) -> L2Format {
        self.l2_format
    }

    /// The disk's size in bytes, in whole sectors as QEMU counts: of the active state, or of the snapshot
    /// in use.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.root.borrow().size / SECTOR * SECTOR
    }

    /// The persistent bitmaps; none where the image says that they are stale.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a directory that contradicts itself or lies outside the file.
    pub async fn bitmaps(&self) -> Result<Vec<Bitmap>> {
        let directory = self.bitmap_directory().await?;
        Ok(directory.map_or_else(Vec::new, Directory::into_bitmaps))
    }

    /// The directory of the persistent bitmaps, where the image has some.
    pub(crate) async fn bitmap_directory(&self) -> Result<Option<Directory>> {
        let Some(extension) = self.extensions().bitmaps else {
            return Ok(None);
        };
        let rules = self.table_rules();
        let directory = rules.check(&TableClaim {
            name: "Bitmap directory",
            structure: Structure::BitmapDirectory,
            offset: extension.directory.0,
            entries: extension.directory_bytes,
            entry_bytes: 1,
            limit_bytes: u64::from(u32::MAX),
        })?;
        let mut bytes = vec![0; directory.entries as usize];
        read_padded(&self.file.storage, directory.offset.0, &mut bytes)
            .await
            .map_err(|error| {
                Error::io("Could not read bitmap directory", directory.offset.0, error)
            })?;
        Directory::parse(bytes, extension, rules).map(Some)
    }

    /// The snapshot whose id, or else whose name, is `id_or_name`.
    #[must_use]
    pub fn find_snapshot(&self, id_or_name: &str) -> Option<Snapshot> {
        let snapshots = self.snapshots();
        let by = |key: fn(&Snapshot) -> &str| {
            snapshots
                .iter()
                .find(|snapshot| key(snapshot) == id_or_name)
        };
        by(|snapshot| &snapshot.id)
            .or_else(|| by(|snapshot| &snapshot.name))
            .cloned()
    }

    /// Makes `snapshot` what [`crate::Image`] reads, at the snapshot's own size.
    pub(crate) async fn use_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        let table = self.snapshot_l1_table(snapshot)?;
        let size = snapshot.disk_size.unwrap_or(self.header().size);
        if self.header().l1_entries_for(size) > u64::from(table.entries)
            && snapshot.disk_size.is_some()
        {
            return Err(Error::corrupt(
                format!(
                    "The L1 table of snapshot '{}' is too small for its size of {size} bytes",
                    snapshot.name
                ),
                Place::at(Structure::L1Table, snapshot.l1_offset.0),
            ));
        }
        let l1 = self.read_l1(table).await?;
        self.root.replace(Root {
            l1,
            l1_offset: table.offset,
            size,
            vm_state_size: Some(snapshot.vm_state_size),
        });
        Ok(())
    }

    /// An error where the L1 table of a snapshot cannot be where the snapshot table says.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    pub fn check_snapshot_tables(&self) -> Result<()> {
        let snapshots = self.snapshots();
        snapshots
            .iter()
            .try_for_each(|snapshot| self.snapshot_l1_table(snapshot).map(drop))
    }

    /// Where the L1 table of `snapshot` stands, checked.
    fn snapshot_l1_table(&self, snapshot: &Snapshot) -> Result<Table> {
        self.table_rules().check(&TableClaim {
            name: "Snapshot L1 table",
            structure: Structure::L1Table,
            offset: snapshot.l1_offset.0,
            entries: snapshot.l1_entries.into(),
            entry_bytes: 8,
            limit_bytes: MAX_L1_BYTES,
        })
    }

    async fn read_l1(&self, table: Table) -> Result<Vec<u64>> {
        let what = "Could not read L1 table";
        read_table(&self.file.storage, table.offset, table.entries, what).await
    }

    /// The L1 table of `snapshot`.
    pub(crate) async fn read_snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        let table = self.snapshot_l1_table(snapshot)?;
        self.read_l1(table).await
    }

    /// The file that holds guest data.
    pub(crate) fn content_file(&self) -> Result<&File<S>> {
        match (&self.data_file, self.l2_format.data_file) {
            (Some(data_file), true) => Ok(data_file),
            (None, true) => Err(Error::Refused(
                "The image's data file was not opened".into(),
            )),
            (_, false) => Ok(&self.file),
        }
    }

    /// What encrypts guest data, where it is encrypted.
    pub(crate) fn volume(&self) -> Result<Option<&Volume>> {
        match (&self.volume, self.header().encryption) {
            (_, Encryption::None) => Ok(None),
            (Some(volume), _) => Ok(Some(volume)),
            (None, _) => Err(locked()),
        }
    }

    /// Finds the key of encrypted data.
    pub(crate) async fn unlock(&mut self, passphrase: &Passphrase, max_rounds: u64) -> Result<()> {
        self.volume = match self.header().encryption {
            Encryption::None => None,
            Encryption::Aes => Some(Volume::aes(passphrase)?),
            Encryption::Luks => {
                let storage = &self.file.storage;
                let area = self.encryption_area()?;
                let header = LuksHeader::read(storage, area).await?;
                Some(Volume::luks(storage, area, &header, passphrase, max_rounds).await?)
            }
        };
        Ok(())
    }

    /// Where the LUKS header is.
    pub(crate) fn encryption_area(&self) -> Result<HeaderArea> {
        let crypto = self
            .extensions()
            .crypto
            .ok_or_else(|| Error::Unsupported("The encryption header pointer is missing".into()))?;
        Ok(HeaderArea {
            offset: crypto.offset.0,
            length: crypto.length,
        })
    }

    /// The number by which the sector at `host` is encrypted, which holds the guest's bytes from `guest` on.
    pub(crate) fn cipher_sector(volume: &Volume, guest: GuestOffset, host: HostOffset) -> u64 {
        let at = if volume.by_host() { host.0 } else { guest.0 };
        at / SECTOR
    }

    /// Something will lie in the file up to byte `end`.
    pub(crate) fn reaches(&self, end: u64) {
        self.file_len.set(self.file_len.get().max(end));
    }

    /// The header is this from now on. The tables that are kept whole follow by [`Self::adopt_tables`].
    pub(crate) fn adopt(&self, raw: RawHeader) -> Result<()> {
        let file_len = self.file_len.get();
        let header = Header::check(&raw, file_len, |bits| format!("{bits:#x}"))?;
        let mut meta = self.meta.borrow_mut();
        if !header.autoclear.has(Autoclear::BITMAPS) && meta.extensions.bitmaps.is_some() {
            let mut extensions = (*meta.extensions).clone();
            extensions.bitmaps = None;
            extensions.stale_bitmaps = true;
            meta.extensions = extensions.into();
        }
        meta.root_tables = root_tables(&header, file_len)?.into();
        meta.header = header.into();
        meta.raw_header = raw.into();
        Ok(())
    }

    /// The active L1 table and the snapshots are these from now on.
    pub(crate) fn adopt_tables(&self, l1: Vec<u64>, snapshots: Vec<Snapshot>) {
        self.adopt_l1(l1);
        self.adopt_snapshots(snapshots);
    }

    /// The snapshot table has just been written with these.
    pub(crate) fn adopt_snapshots(&self, snapshots: Vec<Snapshot>) {
        let mut meta = self.meta.borrow_mut();
        let size = meta.header.size;
        let lengths = snapshots
            .iter()
            .map(|snapshot| snapshot.encode(size).len() as u64);
        meta.snapshot_table_bytes = lengths.sum();
        meta.snapshots = snapshots.into();
    }

    /// The active L1 table is this from now on.
    pub(crate) fn adopt_l1(&self, l1: Vec<u64>) {
        let header = self.header();
        self.root.replace(Root {
            l1,
            l1_offset: header.l1.offset,
            size: header.size,
            vm_state_size: None,
        });
    }

    pub(crate) fn table_rules(&self) -> TableRules {
        TableRules {
            cluster_size: self.header().cluster_size,
            file_len: self.file_len(),
        }
    }

    /// Where the L2 table of L1 entry `index` starts, checked; `None` where there is none.
    pub(crate) fn l2_table(&self, guest: GuestOffset) -> Result<Option<HostOffset>> {
        let index = guest.0 / self.header().l1_coverage();
        // Past the table's end nothing is allocated: a snapshot's L1 may be shorter than the disk.
        let root = self.root.borrow();
        let entry = usize::try_from(index)
            .ok()
            .and_then(|at| root.l1.get(at))
            .copied()
            .unwrap_or(0);
        let offset = HostOffset(entry & OFFSET_MASK);
        if offset.0 == 0 {
            return Ok(None);
        }
        let place = Place::at(Structure::L1Table, root.l1_offset.0 + index * 8).entry(index);
        let wrong = |how: String| {
            Err(Error::corrupt(
                format!("L2 table offset {offset:#x} {how}"),
                place,
            ))
        };
        if entry & !(OFFSET_MASK | COPIED) != 0 {
            return wrong(format!(
                "has reserved bits set (L1 index: {index:#x}, entry {entry:#x})"
            ));
        }
        let cluster = self.header().cluster_size;
        if !offset.is_aligned(cluster.bytes()) {
            let what = unaligned_table(offset, index);
            return Err(self.alarm.raise(Error::corrupt(what, place)));
        }
        if offset.0 >= self.file_len() {
            return wrong(format!("past the end of the file (L1 index: {index:#x})"));
        }
        if let Some(structure) = self.overlaps_root_table(offset.0, cluster.bytes()) {
            return wrong(format!(
                "overlaps with the {structure} (L1 index: {index:#x})"
            ));
        }
        Ok(Some(offset))
    }

    /// The root table that the bytes from `start` on lie in, if they do.
    pub(crate) fn overlaps_root_table(&self, start: u64, length: u64) -> Option<Structure> {
        let end = start.saturating_add(length);
        self.meta
            .borrow()
            .root_tables
            .iter()
            .find(|(from, to, _)| start < *to && *from < end)
            .map(|(.., structure)| *structure)
    }
}

/// The tables that the header points to, which must not overlap (invariant M3).
pub(crate) fn root_tables(header: &Header, file_len: u64) -> Result<Vec<(u64, u64, Structure)>> {
    let mut tables = vec![(0, header.cluster_size.bytes(), Structure::Header)];
    let claims = [
        (
            header.refcount_table.offset.0,
            u64::from(header.refcount_table.entries) * 8,
            Structure::RefcountTable,
        ),
        (
            header.l1.offset.0,
            u64::from(header.l1.entries) * 8,
            Structure::L1Table,
        ),
        (
            header.snapshots.offset.0,
            u64::from(header.snapshots.entries) * snapshot::FIXED_BYTES as u64,
            Structure::SnapshotTable,
        ),
    ];
    for (start, length, structure) in claims {
        let end = start + length;
        if length == 0 {
            continue;
        }
        if let Some((.., other)) = tables
            .iter()
            .find(|(from, to, _)| start < *to && *from < end)
        {
            return Err(Error::corrupt(
                format!(
                    "The {structure} at {start:#x} overlaps with the {other} (file of {file_len} bytes)"
                ),
                Place::at(structure, start),
            ));
        }
        tables.push((start, end, structure));
    }
    Ok(tables)
}

/// A whole table as numbers, read in pieces so that it is never in memory twice.
pub(crate) async fn read_table<S: Storage>(
    storage: &S,
    offset: HostOffset,
    entries: u32,
    what: &'static str,
) -> Result<Vec<u64>> {
    const PIECE: usize = 64 << 10;
    let total = entries as usize * 8;
    let mut table = Vec::with_capacity(entries as usize);
    let mut piece = vec![0; total.min(PIECE)];
    let mut done = 0;
    while done < total {
        let bytes = &mut piece[..(total - done).min(PIECE)];
        let at = offset.0 + done as u64;
        read_padded(storage, at, bytes)
            .await
            .map_err(|error| Error::io(what, at, error))?;
        table.extend(crate::qcow2::bytes::be64_table(bytes));
        done += bytes.len();
    }
    Ok(table)
}
