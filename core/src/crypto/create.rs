//! New LUKS headers.

use crate::crypto::Passphrase;
use crate::crypto::cipher::CipherSpec;
use crate::crypto::hash::Hash;
use crate::crypto::header::{HEADER_BYTES, KeySlot, LuksHeader, SLOTS, STRIPES};
use crate::crypto::keys::{Algorithms, MasterKey};
use crate::error::{Error, Result};
use crate::units::SECTOR;

/// Where key material may begin: what is read at once lies in one piece.
const ALIGNMENT: u64 = 4096;
/// The fewest rounds that are ever used.
pub const MIN_ROUNDS: u32 = 1000;

/// What the material of one key slot takes, in bytes.
fn slot_room(key_bytes: u64) -> u64 {
    (key_bytes * u64::from(STRIPES)).next_multiple_of(ALIGNMENT)
}

/// Fills what it is given with bytes that nobody can guess. The engine has none of its own.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> std::io::Result<()>;

/// What a new LUKS header is to be like, by the names that headers have for it. The default is qemu-img's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksOptions {
    /// The length of one key of AES, in bits: 128, 192 or 256.
    pub key_bits: u32,
    /// The mode, as in "xts".
    pub cipher_mode: String,
    /// How initialization vectors are made, as in "plain64" or "essiv:sha256".
    pub ivgen: String,
    /// The hash that keys are derived by.
    pub hash: Hash,
    /// Rounds of deriving a key from the passphrase.
    pub slot_rounds: u32,
    /// Rounds of deriving the master key's digest.
    pub digest_rounds: u32,
}

impl Default for LuksOptions {
    fn default() -> Self {
        Self {
            key_bits: 256,
            cipher_mode: "xts".to_owned(),
            ivgen: "plain64".to_owned(),
            hash: Hash::Sha256,
            slot_rounds: MIN_ROUNDS,
            digest_rounds: MIN_ROUNDS,
        }
    }
}

impl LuksOptions {
    fn mode(&self) -> String {
        format!("{}-{}", self.cipher_mode, self.ivgen)
    }

    fn spec(&self) -> Result<CipherSpec> {
        let keys = if self.cipher_mode == "xts" { 2 } else { 1 };
        let key_bytes = (self.key_bits / 8 * keys) as usize;
        CipherSpec::from_names("aes", &self.mode(), key_bytes)
            .map_err(|what| Error::Unsupported(what.into()))
    }

    /// Whether there can be such a header.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for names that stand for nothing, or not together.
    pub fn check(&self) -> Result<()> {
        self.spec().map(drop)
    }

    /// How many bytes a key slot's key has.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check).
    pub fn key_bytes(&self) -> Result<usize> {
        Ok(self.spec()?.key_bytes)
    }

    /// How many bytes a header takes, up to where the encrypted data begins.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check).
    pub fn header_bytes(&self) -> Result<u64> {
        Ok(ALIGNMENT + SLOTS as u64 * slot_room(self.key_bytes()? as u64))
    }

    /// Makes a header whose first key slot `passphrase` opens.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check); [`Error::Io`] where there is nothing `random`.
    pub fn new_header(&self, passphrase: &Passphrase, random: Random<'_>) -> Result<NewLuksHeader> {
        let cipher = self.spec()?;
        let mut key = vec![0; cipher.key_bytes];
        fill(random, &mut key)?;
        let key = MasterKey(key);
        let mut header = LuksHeader {
            cipher: "aes".to_owned(),
            mode: self.mode(),
            hash: self.hash.name().to_owned(),
            payload_sector: 0,
            key_bytes: cipher.key_bytes as u32,
            digest: [0; 20],
            salt: [0; 32],
            rounds: self.digest_rounds.max(1),
            uuid: uuid(random)?,
            slots: [KeySlot::default(); SLOTS],
        };
        let room = slot_room(header.key_bytes.into());
        for (index, slot) in header.slots.iter_mut().enumerate() {
            slot.sector = ((ALIGNMENT + index as u64 * room) / SECTOR) as u32;
            slot.stripes = STRIPES;
        }
        header.payload_sector = ((ALIGNMENT + SLOTS as u64 * room) / SECTOR) as u32;
        fill(random, &mut header.salt)?;
        header.digest = key.digest(self.hash, &header.salt, header.rounds);
        let algorithms = Algorithms::of(&header)?;
        let (slot, material) = key.to_slot(
            algorithms,
            header.slots[0],
            passphrase,
            self.slot_rounds,
            random,
        )?;
        header.slots[0] = KeySlot {
            active: true,
            ..slot
        };
        let mut start = header.encode();
        start.resize(ALIGNMENT as usize, 0);
        start.extend_from_slice(&material);
        debug_assert!(HEADER_BYTES as u64 <= ALIGNMENT);
        Ok(NewLuksHeader {
            start,
            length: header.payload_offset(),
        })
    }
}

/// Fills `buf` with what nobody can guess.
pub fn fill(random: Random<'_>, buf: &mut [u8]) -> Result<()> {
    random(buf).map_err(|source| Error::Io {
        what: "Could not get random bytes".into(),
        offset: None,
        source,
    })
}

/// A random identifier (RFC 9562, version 4).
fn uuid(random: Random<'_>) -> Result<String> {
    let mut bytes = [0; 16];
    fill(random, &mut bytes)?;
    let number = u128::from_be_bytes(bytes);
    let number = number & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{number:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    Ok(parts.map(|part| &hex[part]).join("-"))
}

/// A LUKS header with its first key slot, to begin a new image.
#[derive(Clone, PartialEq, Eq)]
pub struct NewLuksHeader {
    start: Vec<u8>,
    length: u64,
}

impl NewLuksHeader {
    /// Header and key material.
    pub(crate) fn start(&self) -> &[u8] {
        &self.start
    }

    /// How many bytes the header and all key slots take.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }
}

impl std::fmt::Debug for NewLuksHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewLuksHeader")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_have_their_form() {
        let ones = &mut |buf: &mut [u8]| {
            buf.fill(0xff);
            Ok(())
        };
        assert_eq!(uuid(ones).unwrap(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        let zeros = &mut |buf: &mut [u8]| {
            buf.fill(0);
            Ok(())
        };
        assert_eq!(uuid(zeros).unwrap(), "00000000-0000-4000-8000-000000000000");
    }
}
