//! Sectors by number: every distinct 512 bytes is kept once, so that two sectors are equal where their
//! numbers are, and a version of a sector costs four bytes.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Bytes in a sector, the atom of a crash.
pub const SECTOR: usize = 512;

/// The bytes of a sector.
pub type Bytes = [u8; SECTOR];

/// A sector's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content(u32);

impl Content {
    /// All zeros.
    pub const ZERO: Self = Self(0);

    /// Its number, for tables by content.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The contents met so far. One per worker: nothing here is shared between threads.
pub struct Contents(RefCell<Table>);

/// What [`Contents`] holds, borrowed for reading.
pub struct Table {
    bytes: Vec<Bytes>,
    /// Whether a guest wrote it: what tells data from metadata in the counts.
    guest: Vec<bool>,
    by_hash: HashMap<u64, Content, BuildHasherDefault<AlreadyHashed>>,
}

impl Default for Contents {
    fn default() -> Self {
        let table = Table {
            bytes: Vec::new(),
            guest: Vec::new(),
            by_hash: HashMap::default(),
        };
        let contents = Self(RefCell::new(table));
        assert_eq!(contents.intern(&[0; SECTOR]), Content::ZERO);
        contents
    }
}

impl Contents {
    /// The number of `bytes`.
    pub fn intern(&self, bytes: &Bytes) -> Content {
        self.0.borrow_mut().intern(bytes)
    }

    /// The number of `bytes`, which are a guest's.
    pub fn intern_guest(&self, bytes: &Bytes) -> Content {
        let mut table = self.0.borrow_mut();
        let content = table.intern(bytes);
        table.guest[content.index()] = true;
        content
    }

    /// The bytes of a content, copied.
    #[must_use]
    pub fn bytes(&self, content: Content) -> Bytes {
        *self.0.borrow().bytes(content)
    }

    /// All of them, for reading.
    #[must_use]
    pub fn table(&self) -> Ref<'_, Table> {
        self.0.borrow()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.borrow().bytes.len()
    }
}

impl Table {
    /// The bytes of a content.
    #[inline]
    #[must_use]
    pub fn bytes(&self, content: Content) -> &Bytes {
        &self.bytes[content.index()]
    }

    /// Whether a guest wrote it.
    #[must_use]
    pub fn is_guest(&self, content: Content) -> bool {
        self.guest[content.index()]
    }

    /// The number of `bytes`, if it has one; shorter ones are padded with zeros.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<Content> {
        let mut whole = [0; SECTOR];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.look_up(&whole).ok()
    }

    /// The number of `bytes`, or the key under which it will be kept.
    fn look_up(&self, bytes: &Bytes) -> Result<Content, u64> {
        let mut hash = hash(bytes);
        // Another content with the same hash only moves this one on.
        while let Some(&content) = self.by_hash.get(&hash) {
            if self.bytes(content) == bytes {
                return Ok(content);
            }
            hash = hash.wrapping_add(1);
        }
        Err(hash)
    }

    fn intern(&mut self, bytes: &Bytes) -> Content {
        let hash = match self.look_up(bytes) {
            Ok(content) => return content,
            Err(hash) => hash,
        };
        let content = Content(u32::try_from(self.bytes.len()).expect("fewer than 2^32 contents"));
        self.bytes.push(*bytes);
        self.guest.push(false);
        self.by_hash.insert(hash, content);
        content
    }
}

/// A hash of the bytes: four lanes of multiply and rotate.
fn hash(bytes: &Bytes) -> u64 {
    let mut lanes = [1_u64, 2, 3, 4];
    for block in bytes.as_chunks::<32>().0 {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    lanes.into_iter().fold(0, mix)
}

/// Folds `word` into `state`; good for tables, not against adversaries.
#[inline]
#[must_use]
pub fn mix(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product.rotate_right(29)
}

/// A hasher for keys that are hashes.
#[derive(Default)]
pub struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0, u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_have_one_number() {
        let contents = Contents::default();
        let mut bytes = [7; SECTOR];
        let first = contents.intern(&bytes);
        bytes[511] = 8;
        let second = contents.intern_guest(&bytes);
        assert_ne!(first, second);
        bytes[511] = 7;
        assert_eq!(contents.intern(&bytes), first);
        assert_eq!(contents.bytes(second)[511], 8);
        assert!(contents.table().is_guest(second) && !contents.table().is_guest(first));
        assert_eq!(contents.count(), 3, "zeros, and these two");
    }
}
