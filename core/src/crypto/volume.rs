//! Content that a key has been found for.

use crate::crypto::cipher::{CipherSpec, IvGenerator, Mode, SectorCipher};
use crate::crypto::create::Random;
use crate::crypto::header::{KeySlot, LuksHeader};
use crate::crypto::keys::{Algorithms, Budget, MasterKey};
use crate::crypto::{HeaderArea, Passphrase};
use crate::error::{Error, Result};
use crate::storage::Storage;

/// An unlocked image: encrypts and decrypts its sectors.
#[derive(Debug)]
pub(crate) struct Volume {
    cipher: SectorCipher,
    by_host: bool,
    key: MasterKey,
}

impl Volume {
    /// qcow2's older encryption: the key is the passphrase itself, cut or filled up to 16 bytes. Any will do:
    /// nothing tells a wrong one.
    pub fn aes(passphrase: &Passphrase) -> Result<Self> {
        const SPEC: CipherSpec = CipherSpec {
            mode: Mode::Cbc,
            iv: IvGenerator::Plain64,
            key_bytes: 16,
        };
        let mut key = [0; SPEC.key_bytes];
        for (to, from) in key.iter_mut().zip(passphrase.bytes()) {
            *to = *from;
        }
        Self::new(SPEC, MasterKey(key.to_vec()), false)
    }

    /// LUKS, with its header in `area`.
    pub async fn luks<S: Storage>(
        storage: &S,
        area: HeaderArea,
        header: &LuksHeader,
        passphrase: &Passphrase,
        max_rounds: u64,
    ) -> Result<Self> {
        let spec = Algorithms::of(header)?.cipher;
        let mut budget = Budget(max_rounds);
        let (_, key) = MasterKey::unlock(storage, area, header, passphrase, &mut budget).await?;
        Self::new(spec, key, true)
    }

    fn new(spec: CipherSpec, key: MasterKey, by_host: bool) -> Result<Self> {
        let cipher = SectorCipher::new(spec, &key.0)
            .ok_or_else(|| Error::Unsupported("The key does not fit the cipher".into()))?;
        Ok(Self {
            cipher,
            by_host,
            key,
        })
    }

    /// A key slot for `slot` of `header` that `passphrase` will open, not active yet, and its key material.
    pub fn key_slot(
        &self,
        header: &LuksHeader,
        slot: usize,
        passphrase: &Passphrase,
        rounds: u32,
        random: Random<'_>,
    ) -> Result<(KeySlot, Vec<u8>)> {
        let algorithms = Algorithms::of(header)?;
        let slot = header.slots[slot];
        self.key
            .to_slot(algorithms, slot, passphrase, rounds, random)
    }

    /// Whether `passphrase` opens `slot`, at the cost of some of the rounds that are `left`.
    pub async fn opens<S: Storage>(
        storage: &S,
        area: HeaderArea,
        header: &LuksHeader,
        slot: usize,
        passphrase: &Passphrase,
        left: &mut u64,
    ) -> Result<bool> {
        let mut budget = Budget(*left);
        let key =
            MasterKey::out_of_slot(storage, area, header, slot, passphrase, &mut budget).await?;
        *left = budget.0;
        Ok(key.is_some())
    }

    /// Whether a sector of a qcow2 image is encrypted by its number in the file: with LUKS it is. The older
    /// encryption counts the sectors of the disk (the specification has this in one place only).
    pub fn by_host(&self) -> bool {
        self.by_host
    }

    /// Decrypts whole sectors, of which the first has the number `first`.
    pub fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.cipher.decrypt(first, data);
    }

    /// Encrypts whole sectors, of which the first has the number `first`.
    pub fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.cipher.encrypt(first, data);
    }
}
