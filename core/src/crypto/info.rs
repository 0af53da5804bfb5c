//! What a LUKS header tells without a key.

use crate::crypto::LuksHeader;
use crate::units::SECTOR;

/// What a LUKS header says. Field names are those of `qemu-img info --output=json`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct LuksInfo {
    /// How initialization vectors are made: "plain64", "essiv".
    pub ivgen_alg: String,
    /// The hash of "essiv".
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub ivgen_hash_alg: Option<String>,
    /// Whether the header lies in another file.
    pub detached_header: bool,
    /// The hash that keys are derived by.
    pub hash_alg: String,
    /// The cipher and its key length, as in "aes-256".
    pub cipher_alg: String,
    /// The volume's identifier.
    pub uuid: String,
    /// The cipher's mode, as in "xts".
    pub cipher_mode: String,
    /// The key slots.
    pub slots: Vec<LuksSlot>,
    /// Where the data begins, in bytes from the header's start.
    pub payload_offset: u64,
    /// Rounds of deriving the master key's digest.
    pub master_key_iters: u32,
}

/// A key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct LuksSlot {
    /// Whether it holds a key.
    pub active: bool,
    /// Rounds of deriving a key from the passphrase; only where it holds one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub iters: Option<u32>,
    /// Where its key material begins, in bytes from the header's start.
    pub key_offset: u64,
    /// How far the key is spread; only where it holds one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub stripes: Option<u32>,
}

impl LuksInfo {
    pub(crate) fn of(header: &LuksHeader) -> Self {
        // "xts-plain64", "cbc-essiv:sha256"
        let (cipher_mode, ivgen) = header.mode.split_once('-').unwrap_or((&header.mode, ""));
        let (ivgen_alg, ivgen_hash) = match ivgen.split_once(':') {
            Some((alg, hash)) => (alg, Some(hash.to_owned())),
            None => (ivgen, None),
        };
        // XTS splits its key in two halves, of which the name counts one.
        let halves = if cipher_mode == "xts" { 2 } else { 1 };
        let key_bits = u64::from(header.key_bytes) * 8 / halves;
        let slots = header.slots.iter().map(|slot| LuksSlot {
            active: slot.active,
            iters: slot.active.then_some(slot.rounds),
            key_offset: u64::from(slot.sector) * SECTOR,
            stripes: slot.active.then_some(slot.stripes),
        });
        Self {
            ivgen_alg: ivgen_alg.to_owned(),
            ivgen_hash_alg: ivgen_hash,
            detached_header: false,
            hash_alg: header.hash.clone(),
            cipher_alg: format!("{}-{key_bits}", header.cipher),
            uuid: header.uuid.clone(),
            cipher_mode: cipher_mode.to_owned(),
            slots: slots.collect(),
            payload_offset: header.payload_offset(),
            master_key_iters: header.rounds,
        }
    }
}
