//! The header of LUKS version 1, as far as it can be told without a key.

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be16, be32};
use crate::units::SECTOR;

/// The bytes of a header with its eight key slots.
pub(crate) const HEADER_BYTES: usize = 592;
const MAGIC: &[u8] = b"LUKS\xba\xbe";
const FIRST_SLOT: usize = 208;
const SLOT_BYTES: usize = 48;
const SLOT_ACTIVE: u32 = 0x00ac_71f3;

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
    /// Decodes the header in `bytes`, which stands at byte `at` of the file.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let place = Place::at(Structure::CryptoHeader, at);
        if bytes.len() < HEADER_BYTES || !bytes.starts_with(MAGIC) {
            return Err(Error::corrupt("Volume is not in LUKS format", place));
        }
        let version = be16(bytes, 6);
        if version != 1 {
            return Err(Error::Unsupported(
                format!("LUKS version {version} is not supported").into(),
            ));
        }
        let text = |from: usize, length: usize| {
            let field = &bytes[from..from + length];
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        // "xts-plain64", "cbc-essiv:sha256"
        let mode = text(40, 32);
        let (cipher_mode, ivgen) = mode.split_once('-').unwrap_or((&mode, ""));
        let (ivgen_alg, ivgen_hash) = match ivgen.split_once(':') {
            Some((alg, hash)) => (alg, Some(hash.to_owned())),
            None => (ivgen, None),
        };
        // XTS splits its key in two halves, of which the name counts one.
        let halves = if cipher_mode == "xts" { 2 } else { 1 };
        let key_bits = u64::from(be32(bytes, 108)) * 8 / halves;
        let slot = |index: usize| {
            let slot = &bytes[FIRST_SLOT + index * SLOT_BYTES..][..SLOT_BYTES];
            let active = be32(slot, 0) == SLOT_ACTIVE;
            LuksSlot {
                active,
                iters: active.then(|| be32(slot, 4)),
                key_offset: u64::from(be32(slot, 40)) * SECTOR,
                stripes: active.then(|| be32(slot, 44)),
            }
        };
        Ok(Self {
            ivgen_alg: ivgen_alg.to_owned(),
            ivgen_hash_alg: ivgen_hash,
            detached_header: false,
            hash_alg: text(72, 32),
            cipher_alg: format!("{}-{key_bits}", text(8, 32)),
            uuid: text(168, 40),
            cipher_mode: cipher_mode.to_owned(),
            slots: (0..8).map(slot).collect(),
            payload_offset: u64::from(be32(bytes, 104)) * SECTOR,
            master_key_iters: be32(bytes, 164),
        })
    }
}
