//! The machine under the engine: its files, what of them is durable, and what a crash may leave.
//!
//! Every write makes a new *version* of the sectors it touches. A completed flush makes the newest version
//! that completed before the flush was called the durable one. After a power cut a sector holds its durable
//! version or any later one, each sector for itself, and a file has its durable length or any it had since
//! (the contract of [`oxcow::Storage`]).

use std::cell::{Cell, Ref, RefCell};
use std::io;
use std::rc::{Rc, Weak};

use super::contents::{Bytes, Content, Contents, SECTOR, mix};
use super::fault::{Change, Damage, Plan};

/// A file of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileId {
    /// The image.
    Image,
    /// Its external data file.
    Data,
    /// Its backing file, which only a commit writes.
    Backing,
}

impl FileId {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Image, Self::Data, Self::Backing];
}

/// When a write that a machine was asked for took place.
type Moment = u32;

/// A write that has not completed.
pub const IN_FLIGHT: Moment = Moment::MAX;

/// One file.
#[derive(Clone, Debug)]
pub struct SimFile {
    /// What the last flush made sure of, by sector.
    durable: Vec<Content>,
    /// What a read sees, by sector.
    current: Vec<Content>,
    /// For each sector the number of its slot in `slots`, plus 1; 0 where it is durable as it stands.
    slot_of: Vec<u16>,
    /// Sectors with un-flushed versions. Those from `used` on are spare.
    slots: Vec<Slot>,
    used: usize,
    len: u64,
    /// The lengths since the last flush, the durable one first.
    lengths: Vec<(u64, Moment)>,
}

/// A sector with un-flushed versions.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    sector: usize,
    /// The versions in the order in which they completed.
    versions: Vec<(Content, Moment)>,
    /// What a crash may leave, each once: the durable content first.
    options: Vec<Content>,
}

impl Slot {
    /// Which sector.
    #[must_use]
    pub fn sector(&self) -> usize {
        self.sector
    }

    /// What a crash may leave of it, each content once: the durable one first.
    #[must_use]
    pub fn options(&self) -> &[Content] {
        &self.options
    }
}

impl Default for SimFile {
    fn default() -> Self {
        Self::from_sectors(Vec::new(), 0)
    }
}

impl SimFile {
    /// A file with these bytes, all durable.
    #[must_use]
    pub fn new(contents: &Contents, bytes: &[u8]) -> Self {
        let sectors = bytes.chunks(SECTOR).map(|chunk| {
            let mut sector = [0; SECTOR];
            sector[..chunk.len()].copy_from_slice(chunk);
            contents.intern(&sector)
        });
        Self::from_sectors(sectors.collect(), bytes.len() as u64)
    }

    /// A file with these sectors, all durable.
    #[must_use]
    pub fn from_sectors(sectors: Vec<Content>, len: u64) -> Self {
        Self {
            slot_of: vec![0; sectors.len()],
            durable: sectors.clone(),
            current: sectors,
            slots: Vec::new(),
            used: 0,
            len,
            lengths: vec![(len, 0)],
        }
    }

    /// Becomes what `other` is; both without un-flushed versions. Keeps its memory.
    pub fn reset_to(&mut self, other: &Self) {
        debug_assert_eq!(other.used, 0, "only a settled file is a start");
        self.durable.clone_from(&other.durable);
        self.current.clone_from(&other.current);
        self.slot_of.clone_from(&other.slot_of);
        self.lengths.clone_from(&other.lengths);
        self.len = other.len;
        self.used = 0;
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The durable length, then every one it had since.
    pub fn lengths(&self) -> impl Iterator<Item = u64> + Clone + '_ {
        self.lengths.iter().map(|(len, _)| *len)
    }

    /// The number of sectors that it ever had since the last flush.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.current.len()
    }

    /// What a read of `sector` sees.
    #[must_use]
    pub fn current(&self, sector: usize) -> Content {
        self.current.get(sector).copied().unwrap_or(Content::ZERO)
    }

    /// What the last flush made sure of.
    #[inline]
    #[must_use]
    pub fn durable(&self, sector: usize) -> Content {
        self.durable.get(sector).copied().unwrap_or(Content::ZERO)
    }

    /// The same of all sectors.
    #[must_use]
    pub fn durable_all(&self) -> &[Content] {
        &self.durable
    }

    /// The same, as a slice of one.
    #[must_use]
    pub fn durable_slice(&self, sector: usize) -> &[Content] {
        self.durable
            .get(sector..sector + 1)
            .unwrap_or(&[Content::ZERO])
    }

    /// The number of the slot of `sector`, if it has un-flushed versions.
    #[inline]
    #[must_use]
    pub fn slot_of(&self, sector: usize) -> Option<usize> {
        (*self.slot_of.get(sector)? as usize).checked_sub(1)
    }

    /// The slots in use.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots[..self.used]
    }

    /// Whether all of it is durable.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.used == 0 && self.lengths.len() == 1
    }

    /// A number that differs where what a crash may leave differs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let durable = self.durable.iter();
        let state = durable.fold(1, |state, content| mix(state, content.index() as u64));
        // Neither the order of the slots nor that of the options in them says anything.
        let slots = self.slots().iter().map(|slot| {
            let options = slot.options.iter().map(|o| mix(2, o.index() as u64));
            mix(slot.sector as u64, options.fold(0, u64::wrapping_add))
        });
        let lengths = self.lengths().map(|len| mix(3, len));
        let state = mix(state, slots.fold(0, u64::wrapping_add));
        mix(state, lengths.fold(0, u64::wrapping_add))
    }

    fn read(&self, contents: &Contents, offset: u64, buf: &mut [u8]) -> usize {
        let count = buf
            .len()
            .min(self.len.saturating_sub(offset).try_into().unwrap_or(0));
        let table = contents.table();
        for (range, sector, within) in pieces(offset, count) {
            let bytes = table.bytes(self.current(sector));
            let length = range.len();
            buf[range].copy_from_slice(&bytes[within..within + length]);
        }
        count
    }

    /// Puts `data` at `offset`: adds a version to each sector, seen by reads unless it is still in flight.
    fn write(&mut self, contents: &Contents, offset: u64, data: &[u8], at: Moment) {
        for (range, sector, within) in pieces(offset, data.len()) {
            let data = &data[range];
            let content = match data.try_into() {
                Ok(whole) => contents.intern(whole),
                Err(_) => {
                    let mut bytes = contents.bytes(self.current(sector));
                    bytes[within..within + data.len()].copy_from_slice(data);
                    contents.intern(&bytes)
                }
            };
            self.put(sector, content, at);
        }
        self.lengthen(offset + data.len() as u64, at);
    }

    fn lengthen(&mut self, end: u64, at: Moment) {
        if end > self.len {
            self.lengths.push((end, at));
            if at != IN_FLIGHT {
                self.len = end;
            }
        }
    }

    fn put(&mut self, sector: usize, content: Content, at: Moment) {
        if sector >= self.current.len() {
            self.current.resize(sector + 1, Content::ZERO);
            self.durable.resize(sector + 1, Content::ZERO);
            self.slot_of.resize(sector + 1, 0);
        }
        let slot = match self.slot_of(sector) {
            Some(slot) => slot,
            None if self.current[sector] == content => return,
            None => self.take_slot(sector),
        };
        let slot = &mut self.slots[slot];
        slot.versions.push((content, at));
        if !slot.options.contains(&content) {
            slot.options.push(content);
        }
        if at != IN_FLIGHT {
            self.current[sector] = content;
        }
    }

    /// Forgets one announcement of a write that completes now.
    fn settle_announced(&mut self, contents: &Contents, offset: u64, data: &[u8]) {
        for (range, sector, _) in pieces(offset, data.len()) {
            let Some(slot) = self.slot_of(sector) else {
                continue;
            };
            let whole = data[range].try_into().ok();
            let content = whole.map(|bytes| contents.intern(bytes));
            let versions = &mut self.slots[slot].versions;
            let in_flight = |(_, at): &(Content, Moment)| *at == IN_FLIGHT;
            let mine = versions
                .iter()
                .position(|v| in_flight(v) && Some(v.0) == content)
                .or_else(|| versions.iter().position(in_flight));
            if let Some(mine) = mine {
                versions.remove(mine);
            }
        }
        let announced = (offset + data.len() as u64, IN_FLIGHT);
        if let Some(mine) = self.lengths.iter().position(|l| *l == announced) {
            self.lengths.remove(mine);
        }
    }

    fn take_slot(&mut self, sector: usize) -> usize {
        if self.used == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[self.used];
        slot.sector = sector;
        slot.versions.clear();
        slot.options.clear();
        slot.options.push(self.durable[sector]);
        self.used += 1;
        self.slot_of[sector] = u16::try_from(self.used).expect("few sectors are un-flushed");
        self.used - 1
    }

    fn set_len(&mut self, contents: &Contents, len: u64, at: Moment) {
        // What is cut off is zeros if the file grows again, and may come back after a crash.
        let first_cut = len.div_ceil(SECTOR as u64) as usize;
        for sector in first_cut..self.current.len() {
            if self.current[sector] != Content::ZERO {
                self.put(sector, Content::ZERO, at);
            }
        }
        let within = len as usize % SECTOR;
        if len < self.len && within != 0 {
            let mut bytes = contents.bytes(self.current(first_cut - 1));
            bytes[within..].fill(0);
            self.put(first_cut - 1, contents.intern(&bytes), at);
        }
        if len != self.len {
            self.lengths.push((len, at));
            self.len = len;
        }
    }

    /// Makes durable what completed before `called`.
    fn flush(&mut self, called: Moment) {
        let newest = |moments: &mut dyn Iterator<Item = Moment>| {
            moments
                .enumerate()
                .filter(|(_, at)| *at < called)
                .max_by_key(|(index, at)| (*at, *index))
                .map(|(index, _)| index)
        };
        if let Some(newest) = newest(&mut self.lengths.iter().map(|(_, at)| *at)) {
            self.lengths.swap(0, newest);
            let durable = self.lengths[0];
            let mut first = true;
            // What is still in flight makes a file longer than it is, or leaves its length alone.
            let shorter = |len, at| at == IN_FLIGHT && len <= durable.0;
            self.lengths.retain(|(len, at)| {
                std::mem::take(&mut first) || (*at >= called && !shorter(*len, *at))
            });
            self.lengths[0] = (durable.0, 0);
        }
        let mut index = 0;
        while index < self.used {
            let slot = &mut self.slots[index];
            if let Some(newest) = newest(&mut slot.versions.iter().map(|(_, at)| *at)) {
                self.durable[slot.sector] = slot.versions[newest].0;
            }
            slot.versions.retain(|(_, at)| *at >= called);
            if slot.versions.is_empty() {
                self.release_slot(index);
            } else {
                let durable = self.durable[slot.sector];
                slot.options.clear();
                slot.options.push(durable);
                for (content, _) in &slot.versions {
                    if !slot.options.contains(content) {
                        slot.options.push(*content);
                    }
                }
                index += 1;
            }
        }
    }

    fn release_slot(&mut self, index: usize) {
        self.slot_of[self.slots[index].sector] = 0;
        self.used -= 1;
        self.slots.swap(index, self.used);
        if index < self.used {
            self.slot_of[self.slots[index].sector] = index as u16 + 1;
        }
    }

    /// Forgets everything that is not durable, as a failed flush may.
    fn drop_unflushed(&mut self) {
        for slot in &self.slots[..self.used] {
            self.current[slot.sector] = self.durable[slot.sector];
            self.slot_of[slot.sector] = 0;
        }
        self.used = 0;
        self.lengths.truncate(1);
        self.len = self.lengths[0].0;
    }
}

/// The sectors that `count` bytes at `offset` touch: the range of the bytes, the sector, and where in it.
fn pieces(
    offset: u64,
    count: usize,
) -> impl Iterator<Item = (std::ops::Range<usize>, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == count {
            return None;
        }
        let at = offset as usize + done;
        let within = at % SECTOR;
        let length = (SECTOR - within).min(count - done);
        done += length;
        Some((done - length..done, at / SECTOR, within))
    })
}

/// Told when something is about to stop being possible.
pub trait Observer {
    /// A flush is about to complete: what could be lost until now can be lost no longer.
    fn before_flush(&self, machine: &Machine);
}

/// The files of a machine, and what was done to them.
pub struct Machine {
    contents: Rc<Contents>,
    files: RefCell<[SimFile; 3]>,
    clock: Cell<Moment>,
    plan: RefCell<Plan>,
    counts: Cell<Counts>,
    observer: RefCell<Option<Weak<dyn Observer>>>,
}

/// What a machine was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Changes of length.
    pub lengths: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes read of the backing file.
    pub fetched: u64,
}

impl Counts {
    /// Everything that may change what a crash leaves.
    #[must_use]
    pub fn changes(self) -> u64 {
        self.writes + self.lengths + self.flushes
    }
}

/// Why a machine does not do what it was asked for.
#[derive(Debug)]
pub enum Refusal {
    /// The process was killed here: nothing ever completes again.
    Killed,
    /// An error.
    Error(io::Error),
}

impl Machine {
    /// A machine with these files: image, data file, backing file.
    #[must_use]
    pub fn new(contents: Rc<Contents>, files: [SimFile; 3]) -> Self {
        Self {
            contents,
            files: RefCell::new(files),
            clock: Cell::new(1),
            plan: RefCell::default(),
            counts: Cell::default(),
            observer: RefCell::default(),
        }
    }

    /// The contents its sectors are numbers of.
    #[must_use]
    pub fn contents(&self) -> &Rc<Contents> {
        &self.contents
    }

    /// A file, as it is.
    #[must_use]
    pub fn file(&self, file: FileId) -> Ref<'_, SimFile> {
        Ref::map(self.files.borrow(), |files| &files[file as usize])
    }

    /// All files, in the order of [`FileId::ALL`].
    #[must_use]
    pub fn files(&self) -> Ref<'_, [SimFile; 3]> {
        self.files.borrow()
    }

    /// Begins again with the files of a start state.
    pub fn reset_to(&self, files: &[SimFile; 3]) {
        for (mine, start) in self.files.borrow_mut().iter_mut().zip(files) {
            mine.reset_to(start);
        }
        self.clock.set(1);
        self.counts.set(Counts::default());
        *self.plan.borrow_mut() = Plan::default();
    }

    /// Tells `observer` from now on.
    pub fn observe(&self, observer: Weak<dyn Observer>) {
        *self.observer.borrow_mut() = Some(observer);
    }

    /// Goes wrong as `plan` says.
    pub fn set_plan(&self, plan: Plan) {
        *self.plan.borrow_mut() = plan;
    }

    /// Whether the plan's moment has come.
    #[must_use]
    pub fn plan_struck(&self) -> bool {
        self.plan.borrow().struck()
    }

    /// What it was asked for so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// Whether nothing could be lost in a power cut now.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.files.borrow().iter().all(SimFile::is_settled)
    }

    /// A number that differs where what a crash may leave differs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let files = self.files.borrow();
        files.iter().map(SimFile::hash).fold(0, mix)
    }

    /// The time: what completed so far lies before it.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.clock.get()
    }

    fn tick(&self) -> Moment {
        let now = self.clock.get();
        self.clock.set(now + 1);
        now
    }

    fn count(&self, add: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        add(&mut counts);
        self.counts.set(counts);
    }

    /// Reads, as [`oxcow::Storage::read_at`].
    pub fn read(&self, file: FileId, offset: u64, buf: &mut [u8]) -> Result<usize, Refusal> {
        self.count(|counts| counts.reads += 1);
        self.plan.borrow_mut().before_read()?;
        let read = self.file(file).read(&self.contents, offset, buf);
        if file == FileId::Backing {
            self.count(|counts| counts.fetched += read as u64);
        }
        Ok(read)
    }

    /// Writes, as [`oxcow::Storage::write_at`].
    pub fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        self.count(|counts| counts.writes += 1);
        let grows = offset + data.len() as u64 > self.file(file).len;
        let damage = self.plan.borrow_mut().before(Change::Write { grows });
        let lands = match &damage {
            None => data.len(),
            // At least a byte is missing; a sector is there as a whole or not at all.
            Some(Damage { part: true, .. }) => {
                let cut = (offset as usize + data.len() / 2) / SECTOR * SECTOR;
                cut.saturating_sub(offset as usize)
            }
            Some(_) => 0,
        };
        if lands > 0 {
            let at = self.tick();
            self.files.borrow_mut()[file as usize].write(
                &self.contents,
                offset,
                &data[..lands],
                at,
            );
        }
        damage.map_or(Ok(()), |damage| Err(damage.refusal))
    }

    /// Announces a write that will complete later, or never: it may survive a crash from now on.
    pub fn begin_write(&self, file: FileId, offset: u64, data: &[u8]) {
        self.files.borrow_mut()[file as usize].write(&self.contents, offset, data, IN_FLIGHT);
    }

    /// Completes a write that was announced.
    pub fn end_write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        self.files.borrow_mut()[file as usize].settle_announced(&self.contents, offset, data);
        self.write(file, offset, data)
    }

    /// Cuts or grows, as [`oxcow::Storage::set_len`].
    pub fn set_len(&self, file: FileId, len: u64) -> Result<(), Refusal> {
        self.count(|counts| counts.lengths += 1);
        let grows = len > self.file(file).len;
        if let Some(damage) = self.plan.borrow_mut().before(Change::Length { grows }) {
            return Err(damage.refusal);
        }
        let at = self.tick();
        self.files.borrow_mut()[file as usize].set_len(&self.contents, len, at);
        Ok(())
    }

    /// Flushes what completed before `called`, as [`oxcow::Storage::flush`].
    pub fn flush(&self, file: FileId, called: Moment) -> Result<(), Refusal> {
        self.count(|counts| counts.flushes += 1);
        let damage = self.plan.borrow_mut().before(Change::Flush);
        if let Some(damage) = damage {
            if damage.drops {
                self.files.borrow_mut()[file as usize].drop_unflushed();
            }
            return Err(damage.refusal);
        }
        let observer = self.observer.borrow().as_ref().and_then(Weak::upgrade);
        if let Some(observer) = observer {
            observer.before_flush(self);
        }
        self.tick();
        self.files.borrow_mut()[file as usize].flush(called);
        Ok(())
    }

    /// The image as a read would see all of it, for tools that want bytes.
    #[must_use]
    pub fn image_bytes(&self, file: FileId) -> Vec<u8> {
        let file = self.file(file);
        let mut bytes = vec![0; file.len as usize];
        file.read(&self.contents, 0, &mut bytes);
        bytes
    }
}

/// The bytes of `sectors`, cut to `len`.
#[must_use]
pub fn to_bytes(contents: &Contents, sectors: &[Content], len: u64) -> Vec<u8> {
    let table = contents.table();
    let mut bytes: Vec<u8> = sectors
        .iter()
        .flat_map(|content| -> Bytes { *table.bytes(*content) })
        .collect();
    bytes.resize(len as usize, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(bytes: &[u8]) -> Machine {
        let contents = Rc::new(Contents::default());
        let image = SimFile::new(&contents, bytes);
        Machine::new(contents, [image, SimFile::default(), SimFile::default()])
    }

    fn options(machine: &Machine, sector: usize) -> Vec<u8> {
        let file = machine.file(FileId::Image);
        let first = |content| machine.contents.bytes(content)[0];
        match file.slot_of(sector) {
            None => vec![first(file.durable(sector))],
            Some(slot) => file.slots()[slot]
                .options()
                .iter()
                .map(|content| first(*content))
                .collect(),
        }
    }

    #[test]
    fn every_version_since_the_last_flush_may_survive() {
        let machine = machine(&[1; 1024]);
        machine.write(FileId::Image, 0, &[2; 512]).unwrap();
        machine.write(FileId::Image, 0, &[3; 1024]).unwrap();
        assert_eq!(options(&machine, 0), [1, 2, 3]);
        assert_eq!(options(&machine, 1), [1, 3]);
        machine.flush(FileId::Image, machine.now()).unwrap();
        assert_eq!(options(&machine, 0), [3]);
        assert!(machine.is_settled());
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_was_called() {
        let machine = machine(&[1; 1536]);
        machine.write(FileId::Image, 0, &[2; 512]).unwrap();
        machine.write(FileId::Image, 1024, &[2; 512]).unwrap();
        let called = machine.now();
        machine.write(FileId::Image, 0, &[3; 1024]).unwrap();
        machine.begin_write(FileId::Image, 1024, &[4; 512]);
        machine.flush(FileId::Image, called).unwrap();
        assert_eq!(options(&machine, 0), [2, 3]);
        assert_eq!(options(&machine, 1), [1, 3]);
        assert_eq!(
            options(&machine, 2),
            [2, 4],
            "in flight, not yet seen by reads"
        );
        assert_eq!(machine.image_bytes(FileId::Image)[1024], 2);
    }

    #[test]
    fn lengths_are_versions_too_and_a_cut_reads_as_zeros() {
        let machine = machine(&[1; 1000]);
        machine.set_len(FileId::Image, 400).unwrap();
        machine.write(FileId::Image, 700, &[5; 1000]).unwrap();
        let file = machine.file(FileId::Image);
        assert_eq!(file.lengths().collect::<Vec<_>>(), [1000, 400, 1700]);
        drop(file);
        let bytes = machine.image_bytes(FileId::Image);
        assert_eq!(
            (bytes[399], bytes[400], bytes[699], bytes[700]),
            (1, 0, 0, 5)
        );
        machine.flush(FileId::Image, machine.now()).unwrap();
        let file = machine.file(FileId::Image);
        assert_eq!(file.lengths().collect::<Vec<_>>(), [1700]);
    }

    #[test]
    fn what_is_in_flight_makes_no_durable_file_shorter() {
        let machine = machine(&[1; 512]);
        machine.begin_write(FileId::Image, 512, &[2; 512]);
        machine.write(FileId::Image, 1024, &[3; 512]).unwrap();
        let lengths = || machine.file(FileId::Image).lengths().collect::<Vec<_>>();
        assert_eq!(lengths(), [512, 1024, 1536]);
        machine.flush(FileId::Image, machine.now()).unwrap();
        assert_eq!(lengths(), [1536]);
        assert_eq!(options(&machine, 1), [0, 2]);
    }

    #[test]
    fn partial_writes_build_on_what_is_there() {
        let machine = machine(&[1; 512]);
        machine.write(FileId::Image, 10, &[2; 10]).unwrap();
        machine.write(FileId::Image, 15, &[3; 10]).unwrap();
        let bytes = machine.image_bytes(FileId::Image);
        assert_eq!(
            (bytes[9], bytes[10], bytes[15], bytes[24], bytes[25]),
            (1, 2, 3, 3, 1)
        );
        let mut two = [0; 4];
        assert_eq!(machine.read(FileId::Image, 510, &mut two).unwrap(), 2);
    }
}
