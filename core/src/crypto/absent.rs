//! What stands in for ciphers in a build without them.

use crate::crypto::{HeaderArea, LuksHeader, Passphrase};
use crate::error::{Error, Result};
use crate::storage::Storage;

/// An unlocked image, of which there is none.
#[derive(Debug)]
pub(crate) enum Volume {}

/// A LUKS header for a new image, of which there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewLuksHeader {}

fn absent() -> Error {
    Error::Unsupported("The image is encrypted, and this build has no ciphers".into())
}

impl Volume {
    pub fn aes(_: &Passphrase) -> Result<Self> {
        Err(absent())
    }

    pub async fn luks<S: Storage>(
        _: &S,
        _: HeaderArea,
        _: &LuksHeader,
        _: &Passphrase,
        _: u64,
    ) -> Result<Self> {
        Err(absent())
    }

    pub fn by_host(&self) -> bool {
        match *self {}
    }

    pub fn decrypt(&self, _: u64, _: &mut [u8]) {
        match *self {}
    }

    pub fn encrypt(&self, _: u64, _: &mut [u8]) {
        match *self {}
    }
}

impl NewLuksHeader {
    pub(crate) fn start(&self) -> &[u8] {
        match *self {}
    }

    pub(crate) fn length(&self) -> u64 {
        match *self {}
    }
}
