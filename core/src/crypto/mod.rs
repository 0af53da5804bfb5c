//! Encrypted content: LUKS version 1, by itself or inside qcow2, and qcow2's older AES-CBC.
//!
//! The format is LUKS's "On-Disk Format Specification", as far as QEMU reads and writes it. What the header
//! says is known to every build; keys and ciphers only to one with the feature `encryption`.

#[cfg(not(feature = "encryption"))]
mod absent;
#[cfg(feature = "encryption")]
mod cipher;
#[cfg(feature = "encryption")]
mod create;
#[cfg(feature = "encryption")]
mod hash;
mod header;
mod info;
#[cfg(feature = "encryption")]
mod keys;
#[cfg(feature = "encryption")]
mod stripes;
#[cfg(feature = "encryption")]
mod volume;

#[cfg(not(feature = "encryption"))]
pub use absent::NewLuksHeader;
#[cfg(not(feature = "encryption"))]
pub(crate) use absent::Volume;
#[cfg(feature = "encryption")]
pub(crate) use create::fill;
#[cfg(feature = "encryption")]
pub use create::{LuksOptions, MIN_ROUNDS, NewLuksHeader, Random};
#[cfg(feature = "encryption")]
pub use hash::Hash;
pub(crate) use header::LuksHeader;
#[cfg(feature = "encryption")]
pub(crate) use header::SLOTS;
pub use info::{LuksInfo, LuksSlot};
#[cfg(feature = "encryption")]
pub(crate) use volume::Volume;

use std::fmt;

/// What unlocks an encrypted image: any bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Vec<u8>);

impl Passphrase {
    /// The passphrase of these bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    #[cfg(feature = "encryption")]
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Never shown.
impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Where a LUKS header may lie in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderArea {
    /// Its first byte.
    pub offset: u64,
    /// How many bytes header and key slots may take.
    pub length: u64,
}
