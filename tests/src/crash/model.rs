//! What a guest may see: for every sector the values that are legal now, and for the whole image the states
//! that are (ORDERING: I1 to I4, S1, S2).
//!
//! A write is an interval from its issue to its completion. After a crash a sector may hold any value that
//! was written, unless a later write (issued after this one completed) was made durable by a flush: one that
//! completed, and was called after the later write had completed. Values before the first flush are those
//! of the start state. While a transaction runs there are two worlds, the old and the new one; a crash may
//! leave either, but no mixture.

use std::rc::Rc;

use super::contents::{Content, SECTOR, mix};
use super::format::SnapshotEntry;

/// How much of the state of a virtual machine is looked at, in sectors: with the smallest clusters one L2 table maps
/// two thirds of it.
pub const STATE_SECTORS: usize = 96;

/// A moment in the model's own time.
pub type Time = u32;

/// Not yet.
const NEVER: Time = Time::MAX;

/// A value of a sector, and when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Write {
    content: Content,
    issued: Time,
    done: Time,
}

/// A sector that may have more than one value.
#[derive(Clone, Debug)]
struct Open {
    sector: usize,
    writes: Vec<Write>,
}

/// The sectors of a disk with their legal values.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// The only legal value, by sector; of no meaning where the sector is open.
    only: Vec<Content>,
    /// The number of the sector's entry in `open`, plus 1; or 0.
    open_of: Vec<u16>,
    open: Vec<Open>,
}

impl Values {
    /// A disk with exactly these contents.
    #[must_use]
    pub fn exactly(contents: Vec<Content>) -> Self {
        Self {
            open_of: vec![0; contents.len()],
            only: contents,
            open: Vec::new(),
        }
    }

    /// How many sectors there are.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.only.len()
    }

    /// The single legal values; one of an open sector is never in use as such.
    #[must_use]
    pub fn only(&self) -> &[Content] {
        &self.only
    }

    /// Whether any sector of a range has more than one legal value.
    #[must_use]
    pub fn any_open(&self, range: std::ops::Range<usize>) -> bool {
        !self.open.is_empty() && self.open_of[range].iter().any(|open| *open != 0)
    }

    /// Whether `sector` may hold `content`.
    #[inline]
    #[must_use]
    pub fn allows(&self, sector: usize, content: Content) -> bool {
        match self.open_of[sector] {
            0 => self.only[sector] == content,
            open => {
                let writes = &self.open[open as usize - 1].writes;
                writes.iter().any(|write| write.content == content)
            }
        }
    }

    /// Everything that `sector` may hold.
    #[must_use]
    pub fn legal(&self, sector: usize) -> Vec<Content> {
        match self.open_of[sector] {
            0 => vec![self.only[sector]],
            open => {
                let writes = &self.open[open as usize - 1].writes;
                writes.iter().map(|write| write.content).collect()
            }
        }
    }

    /// What a read of `sector` sees when nothing else is going on: the last value that was written.
    #[must_use]
    pub fn latest(&self, sector: usize) -> Content {
        match self.open_of[sector] {
            0 => self.only[sector],
            open => {
                let writes = &self.open[open as usize - 1].writes;
                let latest = writes.iter().filter(|write| write.done != NEVER);
                latest
                    .max_by_key(|write| (write.done, write.issued))
                    .expect("the value before all others was written")
                    .content
            }
        }
    }

    /// The last values of all sectors.
    #[must_use]
    pub fn latest_all(&self) -> Vec<Content> {
        (0..self.sectors()).map(|s| self.latest(s)).collect()
    }

    /// Whether every sector has one legal value.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    fn issue(&mut self, sector: usize, content: Content, now: Time) {
        let open = match self.open_of[sector] {
            0 => {
                let before = Write {
                    content: self.only[sector],
                    issued: 0,
                    done: 0,
                };
                self.open.push(Open {
                    sector,
                    writes: vec![before],
                });
                self.open_of[sector] = u16::try_from(self.open.len()).expect("few are open");
                self.open.last_mut().expect("just pushed")
            }
            open => &mut self.open[open as usize - 1],
        };
        open.writes.push(Write {
            content,
            issued: now,
            done: NEVER,
        });
    }

    fn complete(&mut self, issued: Time, now: Time) {
        for open in &mut self.open {
            for write in &mut open.writes {
                if write.issued == issued && issued != 0 {
                    write.done = now;
                }
            }
        }
    }

    /// A flush that was called at `called` has completed.
    fn flushed(&mut self, called: Time) {
        for open in &mut self.open {
            let durable: Vec<Write> = open.writes.clone();
            open.writes
                .retain(|write| !durable.iter().any(|later| later.supersedes(write, called)));
        }
        let mut index = 0;
        while index < self.open.len() {
            let open = &self.open[index];
            if let [Write { content, done, .. }] = open.writes[..]
                && done != NEVER
            {
                self.only[open.sector] = content;
                self.open_of[open.sector] = 0;
                self.open.swap_remove(index);
                if let Some(moved) = self.open.get(index) {
                    self.open_of[moved.sector] = index as u16 + 1;
                }
            } else {
                index += 1;
            }
        }
    }

    /// What a read that begins now may see; values that are issued while it runs come on top.
    #[must_use]
    pub fn readable(&self, sector: usize) -> Vec<Content> {
        match self.open_of[sector] {
            0 => vec![self.only[sector]],
            open => {
                let writes = &self.open[open as usize - 1].writes;
                let seen = writes.iter().filter(|write| {
                    !writes
                        .iter()
                        .any(|later| later.supersedes(write, NEVER - 1))
                });
                seen.map(|write| write.content).collect()
            }
        }
    }

    fn hash(&self) -> u64 {
        let only = self.only.iter().zip(&self.open_of);
        let mut state = 1;
        for (content, open) in only {
            let value = match open {
                0 => content.index() as u64,
                _ => 1 << 40,
            };
            state = mix(state, value);
        }
        // The order in which sectors were opened is no part of what is legal.
        let opens = self.open.iter().map(|open| {
            let mut legal: Vec<_> = open.writes.iter().map(|write| write.content).collect();
            legal.sort_unstable();
            legal.dedup();
            legal
                .iter()
                .fold(mix(2, open.sector as u64), |state, content| {
                    mix(state, content.index() as u64)
                })
        });
        mix(state, opens.fold(0, u64::wrapping_add))
    }
}

impl Write {
    /// Whether a durable flush called at `called` leaves nothing of `earlier` because of this write.
    fn supersedes(&self, earlier: &Self, called: Time) -> bool {
        earlier.done < self.issued && self.done <= called
    }
}

/// An internal snapshot, whose content never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The disk's size in bytes.
    pub size: u64,
    /// The disk's content.
    pub sectors: Vec<Content>,
    /// How long it says that the virtual machine's state is, in bytes.
    pub vm_state_bytes: u64,
    /// The beginning of what lies behind the disk: [`STATE_SECTORS`], or none where all of them are zeros.
    pub vm_state: Vec<Content>,
}

/// So many sectors of the state of a virtual machine as a [`Frozen`] keeps them.
#[must_use]
pub fn vm_state_of(mut sectors: Vec<Content>) -> Vec<Content> {
    let used = sectors
        .iter()
        .rposition(|content| *content != Content::ZERO);
    let length = used.map_or(0, |_| STATE_SECTORS);
    sectors.resize(length, Content::ZERO);
    sectors
}

/// One consistent state of a whole image.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The disk's size in bytes.
    pub size: u64,
    /// The disk's values.
    pub values: Values,
    /// The values of the virtual machine's state, as many sectors as a [`Frozen`] keeps.
    pub vm_state: Values,
    /// The snapshots, in the order of the table.
    pub snapshots: Vec<Rc<Frozen>>,
}

impl World {
    /// A world with these contents, no virtual machine's state, and nothing in flight.
    #[must_use]
    pub fn settled(size: u64, contents: Vec<Content>, snapshots: Vec<Rc<Frozen>>) -> Self {
        assert_eq!(contents.len() as u64, size / SECTOR as u64);
        Self {
            size,
            values: Values::exactly(contents),
            vm_state: Values::default(),
            snapshots,
        }
    }

    /// The same with a virtual machine's state, of which this is the beginning.
    #[must_use]
    pub fn with_vm_state(self, sectors: Vec<Content>) -> Self {
        Self {
            vm_state: Values::exactly(vm_state_of(sectors)),
            ..self
        }
    }

    /// The virtual machine's state where it is not all zeros: values to write to.
    fn vm_state_mut(&mut self) -> &mut Values {
        if self.vm_state.sectors() == 0 {
            self.vm_state = Values::exactly(vec![Content::ZERO; STATE_SECTORS]);
        }
        &mut self.vm_state
    }

    /// Whether an image of this size with these snapshots may be this world.
    #[must_use]
    pub fn looks_like(&self, size: u64, snapshots: &[SnapshotEntry]) -> bool {
        let same = |(mine, entry): (&Rc<Frozen>, &SnapshotEntry)| {
            mine.id == entry.id && mine.name == entry.name
        };
        self.size == size
            && self.snapshots.len() == snapshots.len()
            && self.snapshots.iter().zip(snapshots).all(same)
    }

    fn hash(&self) -> u64 {
        let snapshots = self.snapshots.iter().map(|frozen| {
            // Ids are unique, and the contents of one id are fixed by the worlds before.
            let name = frozen.id.bytes().chain(frozen.name.bytes());
            let state = name.fold(frozen.size, |state, byte| mix(state, byte.into()));
            let sectors = frozen.sectors.iter().chain(&frozen.vm_state);
            sectors.fold(state, |state, content| mix(state, content.index() as u64))
        });
        let active = mix(self.size, self.values.hash());
        let active = match self.vm_state.sectors() {
            0 => active,
            _ => mix(active, self.vm_state.hash()),
        };
        snapshots.fold(active, mix)
    }
}

/// What a guest may see now.
#[derive(Clone, Debug, Default)]
pub struct Model {
    world: World,
    /// What a crash may still bring back: the worlds of a process that was killed before it could flush.
    before: Vec<World>,
    /// The world that a transaction is about to make.
    next: Option<World>,
    clock: Time,
}

/// A write or flush that was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket(Time);

impl Model {
    /// A model of an image at rest.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world,
            before: Vec::new(),
            next: None,
            clock: 1,
        }
    }

    /// The world as it is, or was before the transaction that runs.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The worlds that a crash may leave.
    pub fn worlds(&self) -> impl Iterator<Item = &World> + Clone {
        std::iter::once(&self.world)
            .chain(&self.next)
            .chain(&self.before)
    }

    /// Whether a guest has been promised everything that it did.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let world = &self.world;
        let settled = world.values.is_settled() && world.vm_state.is_settled();
        settled && self.before.is_empty() && self.next.is_none()
    }

    fn tick(&mut self) -> Time {
        self.clock += 1;
        self.clock
    }

    /// The guest issues a write (or zeroes, or a discard) of these values.
    pub fn issue(&mut self, changes: &[(usize, Content)]) -> Ticket {
        let now = self.tick();
        for world in std::iter::once(&mut self.world).chain(&mut self.before) {
            for (sector, content) in changes {
                if *sector < world.values.sectors() {
                    world.values.issue(*sector, *content, now);
                }
            }
        }
        Ticket(now)
    }

    /// A write of these values to the virtual machine's state is issued.
    pub fn issue_vm_state(&mut self, changes: &[(usize, Content)]) -> Ticket {
        let now = self.tick();
        for world in std::iter::once(&mut self.world).chain(&mut self.before) {
            for (sector, content) in changes {
                world.vm_state_mut().issue(*sector, *content, now);
            }
        }
        Ticket(now)
    }

    /// The write has completed.
    pub fn complete(&mut self, ticket: Ticket) {
        let now = self.tick();
        self.world.values.complete(ticket.0, now);
        self.world.vm_state.complete(ticket.0, now);
    }

    /// The guest calls a flush.
    pub fn call_flush(&mut self) -> Ticket {
        Ticket(self.tick())
    }

    /// The flush has completed.
    pub fn flushed(&mut self, ticket: Ticket) {
        self.world.values.flushed(ticket.0);
        self.world.vm_state.flushed(ticket.0);
        self.before.clear();
    }

    /// A transaction begins that will end in `next`.
    pub fn begin_switch(&mut self, next: World) {
        self.next = Some(next);
    }

    /// The transaction was refused: nothing of it may ever be seen.
    pub fn refuse_switch(&mut self) {
        self.next = None;
    }

    /// The transaction has completed: what it made is durable, with all that came before it.
    pub fn complete_switch(&mut self) {
        self.world = self.next.take().expect("a transaction was begun");
        self.before.clear();
    }

    /// The machine was started again after a power cut, and this is what was found: all there is.
    pub fn after_power_cut(&mut self, found: World) {
        *self = Self::new(found);
    }

    /// The process was started again after it was killed, and this is what it sees; not all of it is
    /// durable yet.
    pub fn after_kill(&mut self, found: World) {
        self.before.extend(self.next.take());
        self.before.push(std::mem::replace(&mut self.world, found));
    }

    /// A number that differs where what is legal differs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.worlds().map(World::hash).fold(0, mix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::contents::Contents;

    fn values(count: u8) -> Vec<Content> {
        let contents = Contents::default();
        (1..=count)
            .map(|value| contents.intern(&[value; SECTOR]))
            .collect()
    }

    fn model(first: Content) -> Model {
        Model::new(World::settled(512, vec![first], Vec::new()))
    }

    #[test]
    fn the_flushed_value_or_any_issued_since() {
        let v = values(3);
        let mut model = model(v[0]);
        let one = model.issue(&[(0, v[1])]);
        assert_eq!(model.world().values.legal(0), v[..2]);
        model.complete(one);
        let two = model.issue(&[(0, v[2])]);
        model.complete(two);
        assert_eq!(model.world().values.legal(0), v);
        assert_eq!(model.world().values.readable(0), v[2..]);
        let flush = model.call_flush();
        model.flushed(flush);
        assert_eq!(model.world().values.legal(0), v[2..]);
        assert!(model.world().values.is_settled());
    }

    #[test]
    fn a_flush_covers_only_what_had_completed_before_it_was_called() {
        let v = values(3);
        let mut model = model(v[0]);
        let early = model.issue(&[(0, v[1])]);
        let flush = model.call_flush();
        model.complete(early);
        model.flushed(flush);
        assert_eq!(model.world().values.legal(0), v[..2], "not promised yet");
        let late = model.issue(&[(0, v[2])]);
        let flush = model.call_flush();
        model.flushed(flush);
        assert_eq!(model.world().values.legal(0), v[1..]);
        model.complete(late);
        assert_eq!(model.world().values.latest(0), v[2]);
    }

    #[test]
    fn overlapping_writes_end_in_either_order() {
        let v = values(3);
        let mut model = model(v[0]);
        let one = model.issue(&[(0, v[1])]);
        let two = model.issue(&[(0, v[2])]);
        model.complete(two);
        model.complete(one);
        let flush = model.call_flush();
        model.flushed(flush);
        assert_eq!(model.world().values.legal(0), v[1..]);
        assert_eq!(model.world().values.readable(0), v[1..]);
    }

    #[test]
    fn a_transaction_is_the_old_world_or_the_new_one() {
        let v = values(2);
        let mut model = model(v[0]);
        let before = model.hash();
        model.begin_switch(World::settled(1024, v.clone(), Vec::new()));
        assert_eq!(model.worlds().count(), 2);
        assert_ne!(model.hash(), before);
        model.complete_switch();
        assert_eq!(model.worlds().count(), 1);
        assert!(model.world().looks_like(1024, &[]));
        assert!(!model.world().looks_like(512, &[]));
    }
}
