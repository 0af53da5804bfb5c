//! What a guest may read: every write is an interval of time, and a read sees one that no later one hides.

use std::cell::{Cell, RefCell};

/// Bytes that are written as a whole: half a cluster.
pub const ATOM: usize = 256;
/// How many of them the disk has.
pub const ATOMS: usize = 32;
/// Bytes of the disk.
pub const DISK: usize = ATOM * ATOMS;

/// Who wrote the content of an atom: 0 for zeros.
pub type Tag = u8;

/// A moment.
pub type Time = u32;

/// Not yet.
const NEVER: Time = Time::MAX;

/// The bytes of an atom.
#[must_use]
pub fn content(tag: Tag, atom: usize) -> [u8; ATOM] {
    let mut bytes = [tag; ATOM];
    if tag != 0 {
        for pair in bytes.as_chunks_mut::<2>().0 {
            pair[1] = atom as u8 + 100;
        }
    }
    bytes
}

/// A disk by its tags.
pub type Tags = [Tag; ATOMS];

/// The bytes of the atoms `range` of a disk.
#[must_use]
pub fn bytes_of(tags: &[Tag], from: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(tags.len() * ATOM);
    for (index, tag) in tags.iter().enumerate() {
        bytes.extend_from_slice(&content(*tag, from + index));
    }
    bytes
}

/// The tag of what an atom reads, if it is one.
#[must_use]
pub fn tag_of(bytes: &[u8], atom: usize) -> Option<Tag> {
    let tag = bytes[0];
    let second = if tag == 0 { 0 } else { atom as u8 + 100 };
    // The first pair is right, and each is as the one before.
    let same = bytes.len() == ATOM && bytes[1] == second && bytes[2..] == bytes[..ATOM - 2];
    same.then_some(tag)
}

struct Write {
    atoms: std::ops::Range<usize>,
    tag: Tag,
    begun: Time,
    ended: Time,
}

/// All writes of a run.
pub struct History {
    initial: Tags,
    writes: RefCell<Vec<Write>>,
    clock: Cell<Time>,
}

impl History {
    /// Of a disk that reads like this at first.
    #[must_use]
    pub fn new(initial: Tags) -> Self {
        Self {
            initial,
            writes: RefCell::default(),
            clock: Cell::new(1),
        }
    }

    /// Now. Every moment is another one.
    pub fn now(&self) -> Time {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// A write begins; its number.
    pub fn begin(&self, atoms: std::ops::Range<usize>, tag: Tag) -> usize {
        let begun = self.now();
        let mut writes = self.writes.borrow_mut();
        writes.push(Write {
            atoms,
            tag,
            begun,
            ended: NEVER,
        });
        writes.len() - 1
    }

    /// It was acknowledged.
    pub fn end(&self, number: usize) {
        let now = self.now();
        self.writes.borrow_mut()[number].ended = now;
    }

    /// Whether `atom` may read `tag` for one who began to read at `from` and got it at `to`.
    fn allows(&self, atom: usize, tag: Tag, from: Time, to: Time) -> bool {
        let writes = self.writes.borrow();
        let hidden = |ended: Time| {
            let mut later = writes.iter().filter(|write| write.atoms.contains(&atom));
            later.any(|write| write.begun > ended && write.ended < from)
        };
        if self.initial[atom] == tag && !hidden(0) {
            return true;
        }
        let mut seen = writes.iter().filter(|write| write.atoms.contains(&atom));
        seen.any(|write| {
            write.tag == tag && write.begun < to && (write.ended == NEVER || !hidden(write.ended))
        })
    }

    /// What is wrong with bytes that were read from atom `first` on, between two moments.
    pub fn wrong(&self, first: usize, bytes: &[u8], from: Time, to: Time) -> Option<String> {
        for (index, piece) in bytes.chunks(ATOM).enumerate() {
            let atom = first + index;
            match tag_of(piece, atom) {
                None => {
                    let words = format!("half cluster {atom} reads {:x?}...", &piece[..8]);
                    return Some(words);
                }
                Some(tag) if !self.allows(atom, tag, from, to) => {
                    return Some(format!("half cluster {atom} reads what {tag} wrote"));
                }
                Some(_) => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_write_hides_is_not_read() {
        let history = History::new([1; ATOMS]);
        let first = history.begin(0..2, 5);
        history.end(first);
        let second = history.begin(1..3, 6);
        let now = history.now();
        let read =
            |tags: &[Tag], from, to| history.wrong(0, &bytes_of(tags, 0), from, to).is_none();
        assert!(read(&[5, 5, 1], now, now + 1));
        assert!(read(&[5, 6, 6], now, now + 1), "it is under way");
        assert!(!read(&[1, 5, 1], now, now + 1));
        history.end(second);
        let now = history.now();
        assert!(!read(&[5, 5, 6], now, now + 1));
        assert!(read(&[5, 6, 6], now, now + 1));
        assert!(read(&[1, 1, 1], 0, 1), "before all of it");
        assert!(!read(&[9, 6, 6], now, now + 1));
        assert!(history.wrong(0, &[5; ATOM], now, now).is_some(), "torn");
    }
}
