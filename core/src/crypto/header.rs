//! The header of LUKS version 1 with its eight key slots: parsed and checked, and written.

use std::ops::Range;

use crate::crypto::HeaderArea;
use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be16, be32};
use crate::storage::{Storage, read_padded};
use crate::units::SECTOR;

/// The bytes of a header with its eight key slots.
pub(crate) const HEADER_BYTES: usize = 592;
/// How many key slots there are.
pub(crate) const SLOTS: usize = 8;
/// How far a key is spread: the only number that QEMU accepts.
pub(crate) const STRIPES: u32 = 4000;
/// The longest key: two of 256 bits.
const MAX_KEY_BYTES: u32 = 64;
const MAGIC: &[u8] = b"LUKS\xba\xbe";
const FIRST_SLOT: usize = 208;
const SLOT_BYTES: usize = 48;
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
const SLOT_EMPTY: u32 = 0x0000_dead;

/// A header whose numbers make sense together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LuksHeader {
    /// The cipher, as in "aes".
    pub cipher: String,
    /// Its mode and how sectors are told apart, as in "xts-plain64".
    pub mode: String,
    /// The hash that keys are derived by.
    pub hash: String,
    /// Where the data begins, in sectors.
    pub payload_sector: u32,
    /// The length of the master key.
    pub key_bytes: u32,
    /// The digest by which the master key is known.
    pub digest: [u8; 20],
    /// Its salt.
    pub salt: [u8; 32],
    /// Its rounds.
    pub rounds: u32,
    /// The volume's identifier.
    pub uuid: String,
    /// The key slots.
    pub slots: [KeySlot; SLOTS],
}

/// A key slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeySlot {
    /// Whether it holds a key.
    pub active: bool,
    /// Rounds of deriving a key from the passphrase.
    pub rounds: u32,
    /// The salt of that.
    pub salt: [u8; 32],
    /// Where the key material begins, in sectors from the header's start.
    pub sector: u32,
    /// How far the key is spread.
    pub stripes: u32,
}

impl LuksHeader {
    /// Reads and checks the header in `area`.
    pub async fn read<S: Storage>(storage: &S, area: HeaderArea) -> Result<Self> {
        let mut bytes = vec![0; HEADER_BYTES];
        read_padded(storage, area.offset, &mut bytes)
            .await
            .map_err(|error| Error::io("Could not read encryption header", area.offset, error))?;
        Self::parse(&bytes, area)
    }

    /// Decodes the header in `bytes`, which stands at the beginning of `area`.
    pub fn parse(bytes: &[u8], area: HeaderArea) -> Result<Self> {
        let wrong = |what: String| {
            Err(Error::corrupt(
                what,
                Place::at(Structure::CryptoHeader, area.offset),
            ))
        };
        if bytes.len() < HEADER_BYTES || !bytes.starts_with(MAGIC) {
            return wrong("Volume is not in LUKS format".into());
        }
        let version = be16(bytes, 6);
        if version != 1 {
            return Err(Error::Unsupported(
                format!("LUKS version {version} is not supported").into(),
            ));
        }
        let text = |from: usize, length: usize, what: &str| {
            let field = &bytes[from..from + length];
            match field.iter().position(|byte| *byte == 0) {
                Some(end) => Ok(String::from_utf8_lossy(&field[..end]).into_owned()),
                None => Err(Error::corrupt(
                    format!("LUKS header {what} is not NUL terminated"),
                    Place::at(Structure::CryptoHeader, area.offset),
                )),
            }
        };
        let mut slots = [KeySlot::default(); SLOTS];
        for (index, slot) in slots.iter_mut().enumerate() {
            let bytes = &bytes[FIRST_SLOT + index * SLOT_BYTES..][..SLOT_BYTES];
            slot.active = match be32(bytes, 0) {
                SLOT_ACTIVE => true,
                SLOT_EMPTY => false,
                _ => {
                    return wrong(format!(
                        "Keyslot {index} state (active/disable) is corrupted"
                    ));
                }
            };
            slot.rounds = be32(bytes, 4);
            slot.salt.copy_from_slice(&bytes[8..40]);
            slot.sector = be32(bytes, 40);
            slot.stripes = be32(bytes, 44);
        }
        let mut header = Self {
            cipher: text(8, 32, "cipher name")?,
            mode: text(40, 32, "cipher mode")?,
            hash: text(72, 32, "hash spec")?,
            payload_sector: be32(bytes, 104),
            key_bytes: be32(bytes, 108),
            digest: [0; 20],
            salt: [0; 32],
            rounds: be32(bytes, 164),
            uuid: text(168, 40, "UUID")?,
            slots,
        };
        header.digest.copy_from_slice(&bytes[112..132]);
        header.salt.copy_from_slice(&bytes[132..164]);
        match header.mistake(area.length) {
            Some(what) => wrong(what),
            None => Ok(header),
        }
    }

    /// What of the numbers cannot be, where header and key slots have `length` bytes.
    fn mistake(&self, length: u64) -> Option<String> {
        let header = 0..HEADER_BYTES as u64;
        if self.payload_offset() < header.end {
            return Some("LUKS payload is overlapping with the header".into());
        }
        if self.rounds == 0 {
            return Some("LUKS key iteration count is zero".into());
        }
        if self.key_bytes == 0 || self.key_bytes > MAX_KEY_BYTES {
            return Some(format!(
                "LUKS master key of {} bytes is not supported",
                self.key_bytes
            ));
        }
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.active && slot.rounds == 0 {
                return Some(format!("Keyslot {index} iteration count is zero"));
            }
            if slot.stripes != STRIPES {
                return Some(format!(
                    "Keyslot {index} is corrupted (stripes {} != {STRIPES})",
                    slot.stripes
                ));
            }
            let material = self.material(index);
            if overlap(
                &material,
                &(0..(HEADER_BYTES as u64).next_multiple_of(SECTOR)),
            ) {
                return Some(format!(
                    "Keyslot {index} is overlapping with the LUKS header"
                ));
            }
            if material.end > self.payload_offset() {
                return Some(format!(
                    "Keyslot {index} is overlapping with the encrypted payload"
                ));
            }
            if slot.active && material.end > length {
                return Some(format!(
                    "Keyslot {index} reaches past the end of the LUKS header of {length} bytes"
                ));
            }
            let other = (0..index).find(|&other| overlap(&self.material(other), &material));
            if let Some(other) = other {
                return Some(format!(
                    "Keyslots {other} and {index} are overlapping in the header"
                ));
            }
        }
        None
    }

    /// Where the data begins, in bytes from the header's start.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.payload_sector) * SECTOR
    }

    /// Where the key material of a slot is, in bytes from the header's start: whole sectors.
    pub fn material(&self, slot: usize) -> Range<u64> {
        let slot = &self.slots[slot];
        let start = u64::from(slot.sector) * SECTOR;
        let bytes = u64::from(self.key_bytes) * u64::from(slot.stripes);
        start..start + bytes.next_multiple_of(SECTOR)
    }

    /// The header as it is written, in whole sectors.
    #[cfg(feature = "encryption")]
    pub fn encode(&self) -> Vec<u8> {
        use crate::qcow2::bytes::put32;
        let mut bytes = vec![0; HEADER_BYTES.next_multiple_of(SECTOR as usize)];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(6, &1_u16.to_be_bytes());
        put(8, self.cipher.as_bytes());
        put(40, self.mode.as_bytes());
        put(72, self.hash.as_bytes());
        put(112, &self.digest);
        put(132, &self.salt);
        put(168, self.uuid.as_bytes());
        put32(&mut bytes, 104, self.payload_sector);
        put32(&mut bytes, 108, self.key_bytes);
        put32(&mut bytes, 164, self.rounds);
        for (index, slot) in self.slots.iter().enumerate() {
            let bytes = &mut bytes[FIRST_SLOT + index * SLOT_BYTES..][..SLOT_BYTES];
            put32(bytes, 0, if slot.active { SLOT_ACTIVE } else { SLOT_EMPTY });
            put32(bytes, 4, slot.rounds);
            bytes[8..40].copy_from_slice(&slot.salt);
            put32(bytes, 40, slot.sector);
            put32(bytes, 44, slot.stripes);
        }
        bytes
    }

    /// The sector, counted from the header's start, that says whether a slot is active.
    #[cfg(feature = "encryption")]
    pub fn sector_of_state(slot: usize) -> usize {
        (FIRST_SLOT + slot * SLOT_BYTES) / SECTOR as usize
    }
}
