//! One walk from the header through every table: who refers to which cluster, and where the guest's data is.

use super::choices::Choices;
use super::guest::Decoded;
use super::refcounts::Sums;
use super::{Expectation, Judge, Judged, wrong};
use crate::crash::contents::{Bytes, Content, SECTOR, Table};
use crate::crash::format::{
    BITMAPS, COMPRESSED, COPIED, Header, LAZY_REFCOUNTS, OFFSET, SnapshotEntry, ZERO, be64,
    compressed_at, incompatible,
};
use crate::crash::machine::{FileId, SimFile};
use crate::crash::starts::{BACKING, OTHER_BACKING};

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    #[default]
    Free,
    Header,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    Bitmaps,
    L1,
    L2,
    Data,
    Compressed,
}

/// What is known about a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    /// References to it.
    pub references: u32,
    /// What they use it for.
    pub kind: Kind,
    /// The last root that referred to it.
    root: u8,
    /// Whether an active entry refers to it with COPIED set.
    pub copied: bool,
    /// Whether an active entry refers to it with COPIED clear.
    pub shared: bool,
}

/// The marks of all clusters.
#[derive(Default)]
pub struct Marks {
    pub marks: Vec<Mark>,
    /// The clusters with references.
    pub touched: Vec<u32>,
}

impl Marks {
    fn begin(&mut self, clusters: usize) {
        for cluster in self.touched.drain(..) {
            self.marks[cluster as usize] = Mark::default();
        }
        if self.marks.len() < clusters {
            self.marks.resize(clusters, Mark::default());
        }
    }
}

/// Where the guest's data of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In the backing file.
    Hole,
    /// Nowhere: zeros.
    Zero,
    /// At this sector of the image or the data file.
    Host(u32),
    /// Compressed, from this byte on, in at most so many.
    Compressed(u64, u32),
    /// By subcluster: the cluster's first sector, and the bitmap.
    Parts(u32, u64),
}

/// Where the data of all roots is.
#[derive(Default)]
pub struct Map {
    /// The entries of the L2 tables that were walked, one table after the other.
    pub targets: Vec<Target>,
    /// For each L1 entry the index of its table's first entry in `targets` plus 1, or 0.
    pub tables: Vec<u32>,
    /// The roots: the active one, then the snapshots.
    pub roots: Vec<Root>,
}

/// An L1 table: a range of [`Map::tables`].
#[derive(Clone, Debug)]
pub struct Root {
    pub first: usize,
    pub entries: usize,
    /// The disk's size in bytes.
    pub size: u64,
}

impl Root {
    /// The entry at which the virtual machine's state begins: where the disk's last table ends.
    pub fn vm_state_at(&self, header: &Header) -> usize {
        let table_bytes = header.cluster_bytes() * header.l2_entries();
        self.size.div_ceil(table_bytes) as usize
    }
}

/// What the image does not hold itself.
#[derive(Clone, Copy, Debug)]
pub struct Below<'a> {
    /// By sector; zeros past the end.
    pub sectors: &'a [Content],
    /// The file, where that has un-flushed versions.
    pub open: Option<FileId>,
}

impl Below<'_> {
    /// Zeros.
    pub const NOTHING: Self = Below {
        sectors: &[],
        open: None,
    };
}

/// What was found on the way.
pub struct Structure {
    pub header: Header,
    pub snapshots: Vec<SnapshotEntry>,
    /// The sectors that the bitmaps say were written, where they count as consistent.
    pub tracked: Option<Vec<bool>>,
}

/// A walk in progress.
pub struct Walk<'a, 'j> {
    pub files: &'a [SimFile; 3],
    pub table: &'a Table,
    pub choices: &'j mut Choices,
    pub marks: &'j mut Marks,
    pub map: &'j mut Map,
    pub sums: &'j mut Sums,
    pub decoded: &'j mut Decoded,
    /// What is in the file whatever its length after the crash, in bytes.
    sure_bytes: u64,
    /// The offsets of the refcount blocks.
    pub blocks: Vec<u64>,
}

impl<'a, 'j> Walk<'a, 'j> {
    pub fn new(files: &'a [SimFile; 3], table: &'a Table, judge: &'j mut Judge) -> Self {
        let sure_bytes = files[FileId::Image as usize].lengths().min();
        Self {
            files,
            table,
            choices: &mut judge.choices,
            marks: &mut judge.marks,
            map: &mut judge.map,
            sums: &mut judge.sums,
            decoded: &mut judge.decoded,
            sure_bytes: sure_bytes.unwrap_or(0),
            blocks: Vec::new(),
        }
    }

    /// The file that holds the metadata.
    pub fn image(&self) -> &'a SimFile {
        &self.files[FileId::Image as usize]
    }

    /// Follows all references from the header.
    pub fn structure(&mut self) -> Judged<Structure> {
        let header = self.header()?;
        if header.has(incompatible::DIRTY) && header.compatible & LAZY_REFCOUNTS == 0 {
            return wrong("M8", "dirty without lazy refcounts");
        }
        let clusters = self.sure_bytes.div_ceil(header.cluster_bytes()) as usize;
        self.marks.begin(clusters);
        self.map.targets.clear();
        self.map.tables.clear();
        self.map.roots.clear();
        self.refer(&header, 0, 1, Kind::Header, 0, None)?;

        let snapshots = self.snapshots(&header)?;
        let tracked = self.bitmaps(&header)?;
        self.refcount_structure(&header)?;
        self.root(&header, header.l1_offset, header.l1_entries, header.size)?;
        for snapshot in &snapshots {
            let size = snapshot.disk_bytes.unwrap_or(header.size);
            self.root(&header, snapshot.l1_offset, snapshot.l1_entries, size)?;
        }
        Ok(Structure {
            header,
            snapshots,
            tracked,
        })
    }

    /// What the image stands on, by the name in its header: the file that it stood on at first, which has the
    /// sectors `at_first`, or the one that it may be rebased to. What has dropped its backing file leaves nothing
    /// to it.
    pub fn below<'b>(&mut self, header: &Header, at_first: &'b [Content]) -> Judged<Below<'b>>
    where
        'a: 'b,
    {
        let Some((at, length)) = header.backing else {
            return Ok(Below::NOTHING);
        };
        let (file, sectors, name) = if length as usize == OTHER_BACKING.len() {
            let sectors = self.files[FileId::Data as usize].durable_all();
            (FileId::Data, sectors, OTHER_BACKING)
        } else {
            (FileId::Backing, at_first, BACKING)
        };
        // Other simulations have names of their own.
        if length as usize == name.len() {
            self.check_name(at as usize, name)?;
        }
        let settled = self.files[file as usize].is_settled();
        Ok(Below {
            sectors,
            open: (!settled).then_some(file),
        })
    }

    fn check_name(&mut self, at: usize, name: &str) -> Judged {
        let mut rest = name.as_bytes();
        let mut at = at;
        while !rest.is_empty() {
            let within = at % SECTOR;
            let (part, behind) = rest.split_at(rest.len().min(SECTOR - within));
            let sector = self.sector(at / SECTOR, "the backing file's name")?;
            if &sector[within..within + part.len()] != part {
                return wrong("M5", "the backing file's name is not there yet");
            }
            at += part.len();
            rest = behind;
        }
        Ok(())
    }

    /// Judges all images that agree with the choices made so far, making more where needed. Returns how many
    /// clusters they leak at most.
    pub fn judge(&mut self, expectation: &Expectation<'_>) -> Judged<u64> {
        let Structure {
            header,
            snapshots,
            tracked,
        } = self.structure()?;
        self.check_worlds(&header, &snapshots, expectation)?;
        if let Some(tracked) = tracked {
            self.check_tracked(&header, &tracked, expectation)?;
        }
        if header.has(incompatible::DIRTY) {
            return Ok(0);
        }
        let leaked = self.check_refcounts(&header)?;
        match expectation.most_leaked {
            Some(most) if leaked > most => {
                wrong("S2", format!("{leaked} clusters leaked, not {most}"))
            }
            _ => Ok(leaked),
        }
    }

    /// Reads the header and its extensions.
    fn header(&mut self) -> Judged<Header> {
        let sector = self.sector(0, "the header")?;
        let header = Header::parse(sector).and_then(|mut header| {
            let ended = header.read_extensions(sector)?;
            Ok((header, ended))
        });
        let (mut header, mut ended) = match header {
            Ok(read) => read,
            Err(what) => return wrong("M6", what),
        };
        let mut area = Vec::new();
        while !ended {
            if area.is_empty() {
                area.extend_from_slice(sector);
            }
            let next = self.sector(area.len() / SECTOR, "the header extensions")?;
            area.extend_from_slice(next);
            ended = match header.read_extensions(&area) {
                Ok(ended) => ended,
                Err(what) => return wrong("M6", what),
            };
        }
        Ok(header)
    }

    /// Compares what the image holds with the worlds that it may be: any of them will do, as long as it is one
    /// for the whole image.
    fn check_worlds(
        &mut self,
        header: &Header,
        snapshots: &[SnapshotEntry],
        expectation: &Expectation<'_>,
    ) -> Judged {
        // A feature that the engine does not know is true of the first content, and of nothing else.
        let unknown = header.autoclear & !BITMAPS != 0;
        let worlds = if unknown {
            std::slice::from_ref(&expectation.pristine)
        } else {
            &expectation.worlds[..]
        };
        let mut first = None;
        for world in worlds {
            if !world.looks_like(header.size, snapshots) {
                continue;
            }
            let below = self.below(header, expectation.backing)?;
            match self.check_guest(header, snapshots, world, below) {
                Ok(()) => return Ok(()),
                Err(violation) => first = first.or(Some(violation)),
            }
        }
        match first {
            Some(violation) => Err(violation),
            None => wrong(
                "S2",
                format!(
                    "{} bytes with the snapshots {:?} are neither the old state nor the new one",
                    header.size,
                    snapshots
                        .iter()
                        .map(|s| (&s.id, &s.name))
                        .collect::<Vec<_>>()
                ),
            ),
        }
    }

    /// The chosen bytes of a sector of metadata.
    pub fn sector(&mut self, sector: usize, what: &str) -> Judged<&'a Bytes> {
        if sector as u64 * SECTOR as u64 >= self.sure_bytes {
            return wrong("M3", format!("{what} lies past the end of the file"));
        }
        let image = self.image();
        let content = match image.slot_of(sector) {
            None => image.durable(sector),
            Some(slot) => self.choices.pick(image, slot),
        };
        Ok(self.table.bytes(content))
    }

    /// Counts a reference to each of `count` clusters from byte `offset` on.
    pub fn refer(
        &mut self,
        header: &Header,
        offset: u64,
        count: u64,
        kind: Kind,
        root: u8,
        copied: Option<bool>,
    ) -> Judged {
        let first = offset >> header.cluster_bits;
        for cluster in first..first + count {
            if cluster << header.cluster_bits >= self.sure_bytes {
                return wrong(
                    "M3",
                    format!("cluster {cluster:#x} ({kind:?}) lies past the end of the file"),
                );
            }
            let mark = &mut self.marks.marks[cluster as usize];
            if mark.references == 0 {
                self.marks.touched.push(cluster as u32);
                mark.kind = kind;
            } else {
                let may_share = match kind {
                    Kind::Compressed => true,
                    Kind::L2 | Kind::Data => mark.root != root,
                    _ => false,
                };
                if mark.kind != kind || !may_share {
                    let kinds = format!("as {:?} and as {kind:?}", mark.kind);
                    return wrong("M3", format!("cluster {cluster:#x} is used twice: {kinds}"));
                }
            }
            mark.references += 1;
            mark.root = root;
            match copied {
                Some(true) => mark.copied = true,
                Some(false) => mark.shared = true,
                None => {}
            }
        }
        Ok(())
    }

    /// Reads the snapshot table.
    fn snapshots(&mut self, header: &Header) -> Judged<Vec<SnapshotEntry>> {
        if header.snapshots == 0 {
            return Ok(Vec::new());
        }
        let first = (header.snapshots_offset / SECTOR as u64) as usize;
        let mut bytes = Vec::new();
        let mut at = 0;
        let mut snapshots = Vec::new();
        while snapshots.len() < header.snapshots as usize {
            if let Some((entry, length)) = SnapshotEntry::parse(bytes.get(at..).unwrap_or(&[])) {
                snapshots.push(entry);
                at += length;
                continue;
            }
            let next = first + bytes.len() / SECTOR;
            bytes.extend_from_slice(self.sector(next, "the snapshot table")?);
        }
        // The padding of the last entry needs no bytes.
        let length = at.min(bytes.len()) as u64;
        let clusters = length.div_ceil(header.cluster_bytes());
        self.refer(
            header,
            header.snapshots_offset,
            clusters,
            Kind::SnapshotTable,
            0,
            None,
        )?;
        Ok(snapshots)
    }

    /// Reads the refcount table, and counts the references of it and of its blocks.
    fn refcount_structure(&mut self, header: &Header) -> Judged {
        let at = header.refcount_table_offset;
        let clusters = u64::from(header.refcount_table_clusters);
        self.refer(header, at, clusters, Kind::RefcountTable, 0, None)?;
        for sector in 0..clusters * header.cluster_sectors() as u64 {
            let at = at / SECTOR as u64 + sector;
            let bytes = self.sector(at as usize, "the refcount table")?;
            for entry in bytes.as_chunks::<8>().0 {
                self.blocks.push(u64::from_be_bytes(*entry));
            }
        }
        while self.blocks.last() == Some(&0) {
            self.blocks.pop();
        }
        for index in 0..self.blocks.len() {
            let block = self.blocks[index];
            if block == 0 {
                continue;
            }
            if block & (header.cluster_bytes() - 1) != 0 {
                return wrong("M3", format!("refcount block at {block:#x}"));
            }
            self.refer(header, block, 1, Kind::RefcountBlock, 0, None)?;
        }
        Ok(())
    }

    /// Walks an L1 table and its L2 tables.
    fn root(&mut self, header: &Header, l1_offset: u64, entries: u32, size: u64) -> Judged {
        let root = self.map.roots.len() as u8;
        let active = root == 0;
        if l1_offset & (header.cluster_bytes() - 1) != 0 {
            return wrong("M6", format!("L1 table at {l1_offset:#x}"));
        }
        self.map.roots.push(Root {
            first: self.map.tables.len(),
            entries: entries as usize,
            size,
        });
        if entries == 0 {
            return Ok(());
        }
        let clusters = (u64::from(entries) * 8).div_ceil(header.cluster_bytes());
        self.refer(header, l1_offset, clusters, Kind::L1, root, None)?;
        let mut bytes = self.sector((l1_offset / SECTOR as u64) as usize, "an L1 table")?;
        for index in 0..entries as usize {
            let within = index * 8 % SECTOR;
            if within == 0 {
                let at = l1_offset as usize / SECTOR + index * 8 / SECTOR;
                bytes = self.sector(at, "an L1 table")?;
            }
            let entry = be64(bytes, within);
            let table = entry & OFFSET;
            if entry & !(OFFSET | COPIED) != 0 || table & (header.cluster_bytes() - 1) != 0 {
                return wrong("M3", format!("L1 entry {index} is {entry:#x}"));
            }
            if table == 0 {
                self.map.tables.push(0);
                continue;
            }
            let copied = active.then_some(entry & COPIED != 0);
            self.refer(header, table, 1, Kind::L2, root, copied)?;
            self.map.tables.push(self.map.targets.len() as u32 + 1);
            self.l2_table(header, root, table)?;
        }
        Ok(())
    }

    fn l2_table(&mut self, header: &Header, root: u8, table: u64) -> Judged {
        let wide = header.l2_entry_bytes() as usize;
        let sectors = header.cluster_sectors();
        for sector in 0..sectors {
            let bytes = self.sector(table as usize / SECTOR + sector, "an L2 table")?;
            for at in (0..SECTOR).step_by(wide) {
                let entry = be64(bytes, at);
                let parts = (wide == 16).then(|| be64(bytes, at + 8));
                let target = match (entry, parts) {
                    (0, None | Some(0)) => Target::Hole,
                    _ => self.l2_entry(header, root, entry, parts)?,
                };
                self.map.targets.push(target);
            }
        }
        Ok(())
    }

    fn l2_entry(
        &mut self,
        header: &Header,
        root: u8,
        entry: u64,
        parts: Option<u64>,
    ) -> Judged<Target> {
        let reserved = |what: &str| wrong("M3", format!("L2 entry {entry:#x} {what}"));
        if entry & COMPRESSED != 0 {
            let (offset, length) = compressed_at(entry, header.cluster_bits);
            if entry & COPIED != 0 || parts.unwrap_or(0) != 0 {
                return reserved("is compressed and copied");
            }
            let first = offset >> header.cluster_bits;
            // Its last sectors may lie past the end of the file, where they are of no meaning.
            let last = (offset + length - 1).min(self.sure_bytes - 1) >> header.cluster_bits;
            let count = (last + 1).saturating_sub(first).max(1);
            self.refer(header, offset, count, Kind::Compressed, root, None)?;
            return Ok(Target::Compressed(offset, length as u32));
        }
        let zero = entry & ZERO != 0;
        if entry & !(OFFSET | COPIED | ZERO) != 0
            || (zero && (header.version == 2 || parts.is_some()))
        {
            return reserved("has reserved bits");
        }
        let offset = entry & OFFSET;
        let in_data_file = header.has(incompatible::DATA_FILE);
        // Offset 0 is a place in a data file, and COPIED says that it is meant.
        let has_host = offset != 0 || (in_data_file && entry & COPIED != 0);
        if offset & (header.cluster_bytes() - 1) != 0 {
            return reserved("is unaligned");
        }
        if has_host && !in_data_file {
            let copied = (root == 0).then_some(entry & COPIED != 0);
            self.refer(header, offset, 1, Kind::Data, root, copied)?;
        } else if !has_host && entry & COPIED != 0 {
            return wrong(
                "M2",
                format!("L2 entry {entry:#x} has COPIED and no cluster"),
            );
        }
        let host = (offset / SECTOR as u64) as u32;
        Ok(match parts {
            Some(parts) => {
                let (allocated, zeros) = (parts as u32, (parts >> 32) as u32);
                if allocated & zeros != 0 || (allocated != 0 && !has_host) {
                    return reserved("has impossible subclusters");
                }
                Target::Parts(host, parts)
            }
            None if zero => Target::Zero,
            None if has_host => Target::Host(host),
            None => Target::Hole,
        })
    }

    /// The contents that a sector may have after a crash, with the choices made so far.
    pub fn options(&self, file: FileId, sector: usize) -> (&'a [Content], bool) {
        let simulated = &self.files[file as usize];
        let may_be_cut = simulated
            .lengths()
            .any(|len| sector as u64 * SECTOR as u64 >= len);
        let options = match simulated.slot_of(sector) {
            None => simulated.durable_slice(sector),
            Some(slot) if file == FileId::Image => self.choices.options(simulated, slot),
            Some(slot) => simulated.slots()[slot].options(),
        };
        (options, may_be_cut)
    }

    /// Where in a sector the file may end after a crash, in bytes from its start: not before its first byte, nor behind
    /// its last.
    pub fn lengths_within(
        &self,
        file: FileId,
        sector: usize,
    ) -> impl Iterator<Item = usize> + use<'a> {
        let lengths = self.files[file as usize].lengths();
        lengths.filter_map(move |length| {
            let within = length as usize % SECTOR;
            (within != 0 && length as usize / SECTOR == sector).then_some(within)
        })
    }
}
