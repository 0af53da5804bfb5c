//! The positive control: a small engine that orders its writes as QEMU 10.0.2 was seen to do.
//!
//! It exists to show that the harness finds what is known to be there (ORDERING, "What QEMU 10.0.2 does
//! today"), and is written from observed behaviour: two write-back caches, of L2 tables and of refcount
//! blocks, of which either may wait for the other; clusters that are free for use as soon as the cache says
//! so; snapshots and shrinking in place. It knows only what the rows need: no subclusters, no data files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::contents::SECTOR;
use super::disk::Queue;
use super::engine::{Engine, Failure};
use super::format::{
    COMPRESSED, COPIED, Header, LAZY_REFCOUNTS, OFFSET, SnapshotEntry, ZERO, be64, compressed_at,
    compressed_entry, incompatible, refcount, set_refcount,
};
use super::judge::inflate;
use super::machine::{FileId, Machine, Refusal};
use super::script::Request;

/// The engine.
pub struct QemuOrder(RefCell<Image>);

/// Tables in memory, some of them newer than those on the disk.
#[derive(Default)]
struct Cache {
    tables: BTreeMap<u64, Vec<u8>>,
    dirty: BTreeSet<u64>,
    /// Must not be written before the other cache was written and flushed.
    after_the_other: bool,
}

struct Image {
    machine: Rc<Machine>,
    header: Header,
    has_backing: bool,
    l1: Vec<u64>,
    blocks: Vec<u64>,
    snapshots: Vec<SnapshotEntry>,
    l2s: Cache,
    refcounts: Cache,
    /// L2 tables must not be written before a flush: they point to copied data.
    data_first: bool,
    /// Where the next cluster is searched.
    hint: u64,
    /// Where the next compressed cluster may go on.
    packed_to: u64,
}

type Done<T = ()> = Result<T, Failure>;

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Killed => Self::Io("killed".into()),
            Refusal::Error(error) => Self::Io(error.to_string()),
        }
    }
}

fn refused<T>(what: &str) -> Done<T> {
    Err(Failure::Refused(what.into()))
}

impl Engine for QemuOrder {
    const NAME: &'static str = "model of QEMU's order";

    async fn open(machine: &Rc<Machine>, _: Option<&Rc<Queue>>) -> Result<Self, Failure> {
        let mut sector = [0; SECTOR];
        machine.read(FileId::Image, 0, &mut sector)?;
        let header = Header::parse(&sector).map_err(Failure::Corrupt)?;
        let mut image = Image {
            machine: machine.clone(),
            header,
            has_backing: be64(&sector, 8) != 0,
            l1: Vec::new(),
            blocks: Vec::new(),
            snapshots: Vec::new(),
            l2s: Cache::default(),
            refcounts: Cache::default(),
            data_first: false,
            hint: 0,
            packed_to: 0,
        };
        image.l1 = image.read_table(header.l1_offset, header.l1_entries as usize)?;
        let entries = header.refcount_table_clusters as usize * image.cluster() / 8;
        image.blocks = image.read_table(header.refcount_table_offset, entries)?;
        let mut bytes = vec![0; header.snapshots as usize * 200];
        machine.read(FileId::Image, header.snapshots_offset, &mut bytes)?;
        let mut at = 0;
        for _ in 0..header.snapshots {
            let entry = SnapshotEntry::parse(&bytes[at..]);
            let (entry, length) = entry.ok_or(Failure::Corrupt("snapshot table".into()))?;
            image.snapshots.push(entry);
            at += length;
        }
        Ok(Self(RefCell::new(image)))
    }

    async fn ask(&self, request: &Request) -> Result<(), Failure> {
        let image = &mut *self.0.borrow_mut();
        match request {
            Request::Write(at, bytes) | Request::Overwrite(at, bytes) => image.write(*at, bytes),
            Request::WriteCompressed(at, bytes) => image.write_compressed(*at, bytes),
            Request::Zeroes(at, length, unmap) => image.zeroes(*at, *length, *unmap),
            Request::Discard(at, length) => image.discard(*at, *length),
            Request::Flush => image.flush(),
            Request::Create(name, state) if state.is_empty() => image.create(name),
            Request::Create(..) => refused("no states of virtual machines"),
            Request::Apply(id) => image.apply(id),
            Request::Delete(id) => image.delete(id),
            Request::Resize(size, _) if *size < image.header.size => image.shrink(*size),
            Request::Resize(size, _) => image.grow(*size),
            Request::Repair => Ok(()),
            Request::Close => image.close(),
            Request::WriteState(..)
            | Request::Commit
            | Request::Rebase(_)
            | Request::Bitmap(_)
            | Request::Version(_)
            | Request::Settle
            | Request::RefcountBits(_) => refused("none of that"),
        }
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let image = &mut *self.0.borrow_mut();
        let cluster = image.cluster();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = at as usize % cluster;
            let length = (cluster - within).min(buf.len() - done);
            let whole = image.read_cluster(at - within as u64)?;
            buf[done..done + length].copy_from_slice(&whole[within..within + length]);
            done += length;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.0.borrow().header.size
    }
}

/// The caches.
impl Image {
    fn cluster(&self) -> usize {
        1 << self.header.cluster_bits
    }

    fn lazy(&self) -> bool {
        self.header.compatible & LAZY_REFCOUNTS != 0
    }

    fn read_bytes(&self, at: u64, length: usize) -> Done<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.machine.read(FileId::Image, at, &mut bytes)?;
        Ok(bytes)
    }

    fn read_table(&self, at: u64, entries: usize) -> Done<Vec<u64>> {
        let bytes = self.read_bytes(at, entries * 8)?;
        Ok((0..entries).map(|index| be64(&bytes, index * 8)).collect())
    }

    fn write_bytes(&self, at: u64, bytes: &[u8]) -> Done {
        Ok(self.machine.write(FileId::Image, at, bytes)?)
    }

    fn barrier(&self) -> Done {
        Ok(self.machine.flush(FileId::Image, self.machine.now())?)
    }

    fn l2(&mut self, at: u64) -> Done<&mut Vec<u8>> {
        if !self.l2s.tables.contains_key(&at) {
            let table = self.read_bytes(at, self.cluster())?;
            self.l2s.tables.insert(at, table);
        }
        Ok(self.l2s.tables.get_mut(&at).expect("just read"))
    }

    fn write_l2s(&mut self) -> Done {
        if std::mem::take(&mut self.l2s.after_the_other) {
            self.write_refcounts()?;
            self.barrier()?;
            self.data_first = false;
        }
        if std::mem::take(&mut self.data_first) {
            self.barrier()?;
        }
        for at in std::mem::take(&mut self.l2s.dirty) {
            self.write_bytes(at, &self.l2s.tables[&at])?;
        }
        Ok(())
    }

    fn write_refcounts(&mut self) -> Done {
        if std::mem::take(&mut self.refcounts.after_the_other) {
            self.write_l2s()?;
            self.barrier()?;
        }
        for at in std::mem::take(&mut self.refcounts.dirty) {
            self.write_bytes(at, &self.refcounts.tables[&at])?;
        }
        Ok(())
    }

    /// L2 tables will point to what the refcount blocks count from now on.
    fn l2s_after_refcounts(&mut self) -> Done {
        if self.lazy() || self.l2s.after_the_other {
            return Ok(());
        }
        if self.refcounts.after_the_other {
            self.write_refcounts()?;
        }
        self.l2s.after_the_other = true;
        Ok(())
    }

    /// Refcount blocks will no longer count what the L2 tables pointed to until now.
    fn refcounts_after_l2s(&mut self) -> Done {
        if self.refcounts.after_the_other {
            return Ok(());
        }
        if self.l2s.after_the_other {
            self.write_l2s()?;
        }
        self.refcounts.after_the_other = true;
        Ok(())
    }

    fn flush(&mut self) -> Done {
        self.write_l2s()?;
        if !self.lazy() {
            self.write_refcounts()?;
        }
        self.barrier()
    }

    fn close(&mut self) -> Done {
        self.write_l2s()?;
        self.write_refcounts()?;
        self.barrier()?;
        if self.header.has(incompatible::DIRTY) {
            self.header.incompatible &= !incompatible::DIRTY;
            self.write_header()?;
        }
        Ok(())
    }

    /// Rewrites what changes in the header, and flushes.
    fn write_header(&self) -> Done {
        let header = &self.header;
        let mut bytes = self.read_bytes(0, SECTOR)?;
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(24, &header.size.to_be_bytes());
        put(36, &header.l1_entries.to_be_bytes());
        put(40, &header.l1_offset.to_be_bytes());
        put(48, &header.refcount_table_offset.to_be_bytes());
        put(56, &header.refcount_table_clusters.to_be_bytes());
        put(60, &header.snapshots.to_be_bytes());
        put(64, &header.snapshots_offset.to_be_bytes());
        if header.version > 2 {
            put(72, &header.incompatible.to_be_bytes());
        }
        self.write_bytes(0, &bytes)?;
        self.barrier()
    }

    /// With lazy refcounts: says that they will be wrong.
    fn mark_dirty(&mut self) -> Done {
        if self.lazy() && !self.header.has(incompatible::DIRTY) {
            self.header.incompatible |= incompatible::DIRTY;
            self.write_header()?;
        }
        Ok(())
    }
}

/// Refcounts.
impl Image {
    fn per_block(&self) -> u64 {
        self.header.clusters_per_block()
    }

    fn block(&mut self, index: u64) -> Done<Option<&mut Vec<u8>>> {
        let Some(&at) = self.blocks.get(index as usize).filter(|at| **at != 0) else {
            return Ok(None);
        };
        if !self.refcounts.tables.contains_key(&at) {
            let block = self.read_bytes(at, self.cluster())?;
            self.refcounts.tables.insert(at, block);
        }
        Ok(self.refcounts.tables.get_mut(&at))
    }

    fn count(&mut self, cluster: u64) -> Done<u64> {
        let (per_block, order) = (self.per_block(), self.header.refcount_order);
        let in_block = cluster % per_block;
        Ok(match self.block(cluster / per_block)? {
            None => 0,
            Some(block) => {
                let sector = ((in_block << order) / (SECTOR as u64 * 8)) as usize;
                let bytes = &block[sector * SECTOR..][..SECTOR];
                refcount(bytes.try_into().expect("a sector"), in_block, order)
            }
        })
    }

    fn change_count(&mut self, cluster: u64, add: i64) -> Done<u64> {
        let (per_block, order) = (self.per_block(), self.header.refcount_order);
        if add < 0 {
            self.refcounts_after_l2s()?;
        }
        let count = self.count(cluster)?.wrapping_add_signed(add);
        let at = self.blocks[(cluster / per_block) as usize];
        let block = self.block(cluster / per_block)?.expect("it was counted");
        set_refcount(block, cluster % per_block, order, count);
        self.refcounts.dirty.insert(at);
        if add < 0 && count == 0 {
            // Free for use at once: this is what the epoch's quarantine is for.
            self.hint = self.hint.min(cluster);
        }
        Ok(count)
    }

    /// Finds clusters that the cache says are free, and counts them.
    fn allocate(&mut self, count: u64) -> Done<u64> {
        self.mark_dirty()?;
        let mut first = self.hint;
        'search: loop {
            let wanted = first..first + count;
            for cluster in wanted {
                let block = cluster / self.per_block();
                if self.block(block)?.is_none() {
                    self.new_block(block)?;
                    first = self.hint;
                    continue 'search;
                }
                if self.count(cluster)? != 0 {
                    first = cluster + 1;
                    continue 'search;
                }
            }
            break;
        }
        for cluster in first..first + count {
            self.change_count(cluster, 1)?;
        }
        self.hint = first + count;
        Ok(first << self.header.cluster_bits)
    }

    /// Makes a refcount block at the start of the range that it counts, after everything else was written.
    fn new_block(&mut self, index: u64) -> Done {
        if index as usize >= self.blocks.len() {
            return self.grow_refcount_table(index);
        }
        self.write_l2s()?;
        self.write_refcounts()?;
        let at = (index * self.per_block()) << self.header.cluster_bits;
        let mut block = vec![0; self.cluster()];
        set_refcount(&mut block, 0, self.header.refcount_order, 1);
        self.write_bytes(at, &block)?;
        self.barrier()?;
        self.refcounts.tables.insert(at, block);
        self.blocks[index as usize] = at;
        let entry = self.header.refcount_table_offset + index * 8;
        self.write_bytes(entry, &at.to_be_bytes())?;
        self.barrier()
    }

    /// Makes a larger table, and blocks that count it and themselves, behind everything else.
    fn grow_refcount_table(&mut self, index: u64) -> Done {
        self.write_l2s()?;
        self.write_refcounts()?;
        let (per_block, order) = (self.per_block(), self.header.refcount_order);
        let first = index * per_block;
        let clusters = u64::from(self.header.refcount_table_clusters) * 2;
        let blocks = (clusters + 4).div_ceil(per_block - 1) + 1;
        let at = |cluster: u64| cluster << self.header.cluster_bits;
        let mut table = self.blocks.clone();
        table.resize(clusters as usize * self.cluster() / 8, 0);
        for number in 0..blocks {
            let mut block = vec![0; self.cluster()];
            for cluster in 0..per_block {
                if number * per_block + cluster < clusters + blocks {
                    set_refcount(&mut block, cluster, order, 1);
                }
            }
            self.write_bytes(at(first + number), &block)?;
            self.refcounts.tables.insert(at(first + number), block);
            table[(index + number) as usize] = at(first + number);
        }
        let table_at = at(first + blocks);
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write_bytes(table_at, &bytes)?;
        self.barrier()?;
        let old = (
            self.header.refcount_table_offset,
            self.header.refcount_table_clusters,
        );
        self.blocks = table;
        self.header.refcount_table_offset = table_at;
        self.header.refcount_table_clusters = clusters as u32;
        self.write_header()?;
        self.free(old.0, old.1.into())
    }

    fn free(&mut self, at: u64, clusters: u64) -> Done {
        let first = at >> self.header.cluster_bits;
        for cluster in first..first + clusters {
            self.change_count(cluster, -1)?;
        }
        Ok(())
    }

    /// The clusters that an L2 entry refers to.
    fn clusters_of(&self, entry: u64) -> std::ops::Range<u64> {
        let bits = self.header.cluster_bits;
        if entry & COMPRESSED != 0 {
            let (at, length) = compressed_at(entry, bits);
            let end = (at + length).min(self.machine.file(FileId::Image).len());
            return at >> bits..((end - 1) >> bits) + 1;
        }
        let at = (entry & OFFSET) >> bits;
        at..at + u64::from(at != 0)
    }

    fn free_entry(&mut self, entry: u64) -> Done {
        for cluster in self.clusters_of(entry) {
            if self.change_count(cluster, -1)? == 0 && entry & COMPRESSED != 0 {
                self.packed_to = 0;
            }
        }
        Ok(())
    }
}

/// What a guest asks for.
impl Image {
    fn place(&self, guest: u64) -> (usize, usize) {
        let cluster = guest >> self.header.cluster_bits;
        let entries = self.header.l2_entries();
        (
            (cluster / entries) as usize,
            (cluster % entries) as usize * 8,
        )
    }

    fn entry(&mut self, guest: u64) -> Done<u64> {
        let (table, at) = self.place(guest);
        match self.l1.get(table).copied().unwrap_or(0) & OFFSET {
            0 => Ok(0),
            table => Ok(be64(self.l2(table)?, at)),
        }
    }

    /// The L2 table of a guest offset, for writing: a new one where there is none, or where it is shared.
    fn own_l2(&mut self, guest: u64) -> Done<u64> {
        let (index, _) = self.place(guest);
        let old = self.l1[index];
        if old & COPIED != 0 {
            return Ok(old & OFFSET);
        }
        let bytes = match old & OFFSET {
            0 => vec![0; self.cluster()],
            old => self.l2(old)?.clone(),
        };
        let at = self.allocate(1)?;
        self.write_refcounts()?;
        self.barrier()?;
        self.write_bytes(at, &bytes)?;
        self.barrier()?;
        self.l2s.tables.insert(at, bytes);
        self.l1[index] = at | COPIED;
        self.write_l1_entry(index)?;
        if old & OFFSET != 0 {
            self.free(old & OFFSET, 1)?;
        }
        Ok(at)
    }

    fn write_l1_entry(&self, index: usize) -> Done {
        let at = self.header.l1_offset + index as u64 * 8;
        self.write_bytes(at, &self.l1[index].to_be_bytes())?;
        self.barrier()
    }

    /// Replaces an L2 entry, and lets go of what the old one referred to.
    fn link(&mut self, guest: u64, entry: u64) -> Done {
        let table = self.own_l2(guest)?;
        let (_, at) = self.place(guest);
        if entry & (OFFSET | COMPRESSED) != 0 {
            self.l2s_after_refcounts()?;
        }
        let bytes = self.l2(table)?;
        let old = be64(bytes, at);
        bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        self.l2s.dirty.insert(table);
        if old & OFFSET != entry & OFFSET || (old ^ entry) & COMPRESSED != 0 {
            self.free_entry(old)?;
        }
        Ok(())
    }

    fn read_cluster(&mut self, guest: u64) -> Done<Vec<u8>> {
        let entry = self.entry(guest)?;
        let cluster = self.cluster();
        if entry & COMPRESSED != 0 {
            let (at, length) = compressed_at(entry, self.header.cluster_bits);
            let stream = self.read_bytes(at, length as usize)?;
            let plain = inflate(&stream, cluster);
            return Ok(plain.ok_or(Failure::Corrupt("no stream".into()))?.to_vec());
        }
        if entry & ZERO != 0 {
            return Ok(vec![0; cluster]);
        }
        if entry & OFFSET != 0 {
            return self.read_bytes(entry & OFFSET, cluster);
        }
        let mut bytes = vec![0; cluster];
        if self.has_backing {
            self.machine.read(FileId::Backing, guest, &mut bytes)?;
        }
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Done {
        let cluster = self.cluster();
        let mut done = 0;
        while done < bytes.len() {
            let guest = at + done as u64;
            let within = guest as usize % cluster;
            let length = (cluster - within).min(bytes.len() - done);
            let piece = &bytes[done..done + length];
            done += length;
            let start = guest - within as u64;
            let entry = self.entry(start)?;
            if entry & COPIED != 0 && entry & ZERO == 0 {
                self.write_bytes((entry & OFFSET) + within as u64, piece)?;
                continue;
            }
            let mut whole = self.read_cluster(start)?;
            let copied = length < cluster;
            whole[within..within + length].copy_from_slice(piece);
            let host = match entry & OFFSET {
                host if entry & COPIED != 0 => host,
                _ => self.allocate(1)?,
            };
            self.write_bytes(host, &whole)?;
            self.data_first |= copied;
            self.link(start, host | COPIED)?;
        }
        Ok(())
    }

    fn write_compressed(&mut self, at: u64, bytes: &[u8]) -> Done {
        let cluster = self.cluster();
        for (index, piece) in bytes.chunks(cluster).enumerate() {
            let guest = at + (index * cluster) as u64;
            if self.entry(guest)? & COPIED != 0 {
                return refused("compression cannot overwrite");
            }
            let mut whole = piece.to_vec();
            whole.resize(cluster, 0);
            let stream = miniz_oxide::deflate::compress_to_vec(&whole, 6);
            let place = self.pack(stream.len())?;
            self.write_bytes(place, &stream)?;
            let entry = compressed_entry(place, stream.len() as u64, self.header.cluster_bits);
            self.link(guest, entry)?;
        }
        Ok(())
    }

    /// Room for compressed bytes, behind the last ones where there is some.
    fn pack(&mut self, length: usize) -> Done<u64> {
        let cluster = self.cluster() as u64;
        let within = self.packed_to % cluster;
        let at = if self.packed_to != 0 && within != 0 && within + length as u64 <= cluster {
            self.mark_dirty()?;
            self.change_count(self.packed_to >> self.header.cluster_bits, 1)?;
            self.packed_to
        } else {
            self.allocate(1)?
        };
        self.packed_to = at + length as u64;
        Ok(at)
    }

    fn zeroes(&mut self, at: u64, length: u64, unmap: bool) -> Done {
        let cluster = self.cluster() as u64;
        let end = at + length;
        let mut guest = at;
        while guest < end {
            let start = guest & !(cluster - 1);
            let stop = (start + cluster).min(end);
            let whole = guest == start && (stop - start == cluster || stop == self.header.size);
            if !whole || self.header.version == 2 {
                self.write(guest, &vec![0; (stop - guest) as usize])?;
            } else {
                let entry = self.entry(start)?;
                let keep = !unmap && entry & COPIED != 0;
                self.link(start, if keep { entry | ZERO } else { ZERO })?;
            }
            guest = stop;
        }
        Ok(())
    }

    fn discard(&mut self, at: u64, length: u64) -> Done {
        let cluster = self.cluster() as u64;
        let end = at + length;
        if self.header.version == 2 && self.has_backing {
            return Ok(());
        }
        for guest in (at.next_multiple_of(cluster)..end).step_by(cluster as usize) {
            if guest + cluster > end && end != self.header.size {
                break;
            }
            let entry = self.entry(guest)?;
            if entry != 0 || self.has_backing {
                self.link(guest, if self.header.version == 2 { 0 } else { ZERO })?;
            }
        }
        Ok(())
    }

    fn grow(&mut self, size: u64) -> Done {
        let needed = size.div_ceil(self.header.cluster_bytes() * self.header.l2_entries());
        if needed > self.l1.len() as u64 {
            self.l1.resize(needed as usize, 0);
            let clusters = (needed * 8).div_ceil(self.header.cluster_bytes());
            let at = self.allocate(clusters)?;
            self.write_refcounts()?;
            self.barrier()?;
            let bytes: Vec<u8> = self.l1.iter().flat_map(|e| e.to_be_bytes()).collect();
            self.write_bytes(at, &bytes)?;
            self.barrier()?;
            let old = (self.header.l1_offset, u64::from(self.header.l1_entries) * 8);
            self.header.l1_offset = at;
            self.header.l1_entries = needed as u32;
            self.write_header()?;
            self.free(old.0, old.1.div_ceil(self.header.cluster_bytes()))?;
        }
        self.flush()?;
        let old = self.header.size;
        self.header.size = size;
        if self.has_backing {
            self.zeroes(old, size - old, true)?;
        }
        self.write_header()
    }

    /// Gives the end of the disk back, in place, and only then says that the disk is smaller.
    fn shrink(&mut self, size: u64) -> Done {
        let end = self.header.size;
        self.discard(size, end - size)?;
        self.write_l2s()?;
        self.write_refcounts()?;
        self.barrier()?;
        let keep = size.div_ceil(self.header.cluster_bytes() * self.header.l2_entries());
        for index in keep as usize..self.l1.len() {
            let table = std::mem::take(&mut self.l1[index]) & OFFSET;
            self.write_l1_entry(index)?;
            if table != 0 {
                self.free(table, 1)?;
            }
        }
        self.flush()?;
        self.header.size = size;
        self.write_header()
    }
}

/// Snapshots.
impl Image {
    /// Adds to the refcounts of everything that an L1 table refers to, and sets COPIED by what they are then.
    fn update(&mut self, l1: &mut [u64], add: i64) -> Done {
        let bits = self.header.cluster_bits;
        for l1_entry in l1.iter_mut() {
            let table = *l1_entry & OFFSET;
            if table == 0 {
                continue;
            }
            for at in (0..self.cluster()).step_by(8) {
                let entry = be64(self.l2(table)?, at);
                let mut alone = entry & COPIED != 0;
                for cluster in self.clusters_of(entry) {
                    if add != 0 {
                        self.change_count(cluster, add)?;
                    }
                    alone = entry & COMPRESSED == 0 && self.count(cluster)? == 1;
                }
                let flagged = entry & !COPIED | if alone { COPIED } else { 0 };
                if flagged != entry {
                    if add > 0 {
                        self.l2s_after_refcounts()?;
                    }
                    self.l2(table)?[at..at + 8].copy_from_slice(&flagged.to_be_bytes());
                    self.l2s.dirty.insert(table);
                }
            }
            if add != 0 {
                self.change_count(table >> bits, add)?;
            }
            let alone = self.count(table >> bits)? == 1;
            *l1_entry = table | if alone { COPIED } else { 0 };
        }
        self.flush()
    }

    fn write_l1(&mut self, l1: Vec<u64>) -> Done {
        let bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write_bytes(self.header.l1_offset, &bytes)?;
        self.l1 = l1;
        self.barrier()
    }

    fn write_snapshots(&mut self, snapshots: Vec<SnapshotEntry>) -> Done {
        let bytes: Vec<u8> = snapshots.iter().flat_map(SnapshotEntry::encode).collect();
        let old: usize = self
            .snapshots
            .iter()
            .map(|entry| entry.encode().len())
            .sum();
        let clusters = |bytes: usize| bytes.div_ceil(self.cluster()) as u64;
        let old = (self.header.snapshots_offset, clusters(old));
        let at = match clusters(bytes.len()) {
            0 => 0,
            clusters => self.allocate(clusters)?,
        };
        self.write_bytes(at, if at == 0 { &[] } else { &bytes })?;
        self.flush()?;
        self.header.snapshots = snapshots.len() as u32;
        self.header.snapshots_offset = at;
        self.write_header()?;
        self.snapshots = snapshots;
        self.free(old.0, old.1)
    }

    fn create(&mut self, name: &str) -> Done {
        let ids = self
            .snapshots
            .iter()
            .filter_map(|s| s.id.parse::<u64>().ok());
        let id = ids.max().unwrap_or(0) + 1;
        let clusters = (self.l1.len() * 8).div_ceil(self.cluster()) as u64;
        let at = self.allocate(clusters)?;
        // With the COPIED flags as they are: they mean nothing there, until the table is applied.
        let copy: Vec<u8> = self.l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        self.write_bytes(at, &copy)?;
        let mut l1 = self.l1.clone();
        self.update(&mut l1, 1)?;
        self.write_l1(l1)?;
        let mut snapshots = self.snapshots.clone();
        snapshots.push(SnapshotEntry {
            l1_offset: at,
            l1_entries: self.header.l1_entries,
            id: id.to_string(),
            name: name.into(),
            vm_state_bytes: 0,
            disk_bytes: (self.header.version > 2).then_some(self.header.size),
        });
        self.write_snapshots(snapshots)
    }

    fn find(&self, id: &str) -> Done<SnapshotEntry> {
        match self.snapshots.iter().find(|snapshot| snapshot.id == id) {
            Some(snapshot) => Ok(snapshot.clone()),
            None => refused("no such snapshot"),
        }
    }

    /// Puts the snapshot's L1 table over the active one.
    fn apply(&mut self, id: &str) -> Done {
        let snapshot = self.find(id)?;
        let size = snapshot.disk_bytes.unwrap_or(self.header.size);
        if size != self.header.size {
            self.header.size = size;
            self.write_header()?;
        }
        let mut theirs = self.read_table(snapshot.l1_offset, snapshot.l1_entries as usize)?;
        self.update(&mut theirs.clone(), 1)?;
        let mut old = self.l1.clone();
        theirs.resize(old.len(), 0);
        self.write_l1(theirs.clone())?;
        self.update(&mut old, -1)?;
        self.update(&mut theirs, 0)?;
        self.write_l1(theirs)
    }

    fn delete(&mut self, id: &str) -> Done {
        let snapshot = self.find(id)?;
        let mut rest = self.snapshots.clone();
        rest.retain(|other| other.id != id);
        self.write_snapshots(rest)?;
        let entries = snapshot.l1_entries as usize;
        let mut theirs = self.read_table(snapshot.l1_offset, entries)?;
        self.update(&mut theirs, -1)?;
        let clusters = (entries * 8).div_ceil(self.cluster()) as u64;
        self.free(snapshot.l1_offset, clusters)?;
        let mut l1 = self.l1.clone();
        self.update(&mut l1, 0)?;
        self.write_l1(l1)
    }
}
