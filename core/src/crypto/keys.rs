//! The master key, and the key slots that hold it.

use crate::crypto::cipher::{CipherSpec, SectorCipher};
use crate::crypto::create::{Random, fill};
use crate::crypto::hash::Hash;
use crate::crypto::header::{KeySlot, LuksHeader, SLOTS, STRIPES};
use crate::crypto::{HeaderArea, Passphrase, stripes};
use crate::error::{Error, Result};
use crate::storage::{Storage, read_padded};
use crate::units::SECTOR;

/// The key that content is encrypted with.
pub struct MasterKey(pub Vec<u8>);

/// Never shown.
impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

/// What a header's names stand for.
#[derive(Clone, Copy)]
pub struct Algorithms {
    pub cipher: CipherSpec,
    pub hash: Hash,
}

impl Algorithms {
    /// Those of `header`, where they are known here.
    pub fn of(header: &LuksHeader) -> Result<Self> {
        let unsupported = |what: String| Error::Unsupported(what.into());
        let key_bytes = header.key_bytes as usize;
        let cipher = CipherSpec::from_names(&header.cipher, &header.mode, key_bytes);
        let hash = Hash::from_name(&header.hash)
            .ok_or_else(|| unsupported(format!("Hash '{}' is not supported", header.hash)))?;
        Ok(Self {
            cipher: cipher.map_err(unsupported)?,
            hash,
        })
    }
}

/// Rounds of a hash that a header may cost; it is the header that says how many it takes.
pub struct Budget(pub u64);

impl Budget {
    fn take(&mut self, rounds: u64) -> Result<()> {
        self.0 = self.0.checked_sub(rounds).ok_or_else(|| {
            Error::Refused(
                "The encryption header asks for more rounds of hashing than are allowed".into(),
            )
        })?;
        Ok(())
    }
}

impl MasterKey {
    /// The digest by which the key is known.
    pub fn digest(&self, hash: Hash, salt: &[u8], rounds: u32) -> [u8; 20] {
        let mut digest = [0; 20];
        hash.derive(&self.0, salt, rounds, &mut digest);
        digest
    }

    /// The key out of the first slot that `passphrase` opens, and which slot that is.
    pub async fn unlock<S: Storage>(
        storage: &S,
        area: HeaderArea,
        header: &LuksHeader,
        passphrase: &Passphrase,
        budget: &mut Budget,
    ) -> Result<(usize, Self)> {
        for slot in 0..SLOTS {
            let key = Self::out_of_slot(storage, area, header, slot, passphrase, budget).await?;
            if let Some(key) = key {
                return Ok((slot, key));
            }
        }
        Err(Error::Refused(
            "Invalid password, cannot unlock any keyslot".into(),
        ))
    }

    /// A key slot at the place of `slot` that `passphrase` will open, not active yet, and its key material:
    /// whole sectors.
    pub fn to_slot(
        &self,
        Algorithms { cipher, hash }: Algorithms,
        slot: KeySlot,
        passphrase: &Passphrase,
        rounds: u32,
        random: Random<'_>,
    ) -> Result<(KeySlot, Vec<u8>)> {
        let mut salt = [0; 32];
        fill(random, &mut salt)?;
        let rounds = rounds.max(1);
        let bytes = cipher.key_bytes * STRIPES as usize;
        let mut material = vec![0; bytes];
        fill(random, &mut material[..bytes - cipher.key_bytes])?;
        stripes::split(hash, &self.0, &mut material);
        material.resize(bytes.next_multiple_of(SECTOR as usize), 0);
        derived(cipher, hash, passphrase, &salt, rounds)?.encrypt(0, &mut material);
        let slot = KeySlot {
            active: false,
            rounds,
            salt,
            sector: slot.sector,
            stripes: STRIPES,
        };
        Ok((slot, material))
    }

    /// The key out of `slot`, where `passphrase` opens it.
    pub async fn out_of_slot<S: Storage>(
        storage: &S,
        area: HeaderArea,
        header: &LuksHeader,
        slot: usize,
        passphrase: &Passphrase,
        budget: &mut Budget,
    ) -> Result<Option<Self>> {
        let Algorithms { cipher, hash } = Algorithms::of(header)?;
        let KeySlot {
            active,
            rounds,
            salt,
            ..
        } = header.slots[slot];
        if !active {
            return Ok(None);
        }
        budget.take(hash.cost(rounds, cipher.key_bytes) + hash.cost(header.rounds, 20))?;
        let range = header.material(slot);
        let mut material = vec![0; (range.end - range.start) as usize];
        let at = area.offset + range.start;
        read_padded(storage, at, &mut material)
            .await
            .map_err(|error| Error::io("Could not read key material", at, error))?;
        let slot_cipher = derived(cipher, hash, passphrase, &salt, rounds)?;
        slot_cipher.decrypt(0, &mut material);
        material.truncate(cipher.key_bytes * header.slots[slot].stripes as usize);
        let key = Self(stripes::merge(hash, &material, cipher.key_bytes));
        let digest = key.digest(hash, &header.salt, header.rounds);
        Ok((digest == header.digest).then_some(key))
    }
}

/// The cipher of key material: that of the content, by a key that comes from the passphrase.
fn derived(
    cipher: CipherSpec,
    hash: Hash,
    passphrase: &Passphrase,
    salt: &[u8],
    rounds: u32,
) -> Result<SectorCipher> {
    let mut key = vec![0; cipher.key_bytes];
    hash.derive(passphrase.bytes(), salt, rounds, &mut key);
    SectorCipher::new(cipher, &key)
        .ok_or_else(|| Error::Unsupported("The key does not fit the cipher".into()))
}
