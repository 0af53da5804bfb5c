//! Files that an image depends on: opened only through a [`Resolver`] that the caller supplies.

use std::marker::PhantomData;

use crate::crypto::Passphrase;
use crate::error::{Error, Result, Role};
use crate::storage::Storage;

/// The longest backing chain that is opened, in images.
pub const MAX_CHAIN: usize = 200;

/// An open file and what it is called.
#[derive(Debug)]
pub struct File<S> {
    /// Its bytes.
    pub storage: S,
    /// Its name: shown in messages, and what relative names inside the image are relative to.
    pub name: String,
}

/// A file that an image asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What for.
    pub role: Role,
    /// The name inside the image, as it stands there. Untrusted.
    pub name: &'a str,
    /// The name of the image that asks.
    pub base: &'a str,
    /// The format that the image says the file has.
    pub format: Option<&'a str>,
    /// How many images stand above the file: 1 for the backing file of the image that was opened.
    pub depth: usize,
}

/// Decides which of the files named inside images may be opened, and opens them.
#[allow(async_fn_in_trait)] // Single-threaded by design, as Storage is.
pub trait Resolver {
    /// What opened files are.
    type Storage: Storage;

    /// Opens the file, or says why not ([`Error::Refused`] for a matter of policy). The returned name must
    /// be the same for the same file, so that a chain that bites its tail is noticed.
    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<Self::Storage>>;

    /// The passphrase of that file's content, where the name in the image says which one it is.
    /// [`OpenOptions::passphrases`](crate::OpenOptions::passphrases) come before it.
    ///
    /// # Errors
    ///
    /// Where it cannot be had: the file is not opened then.
    fn passphrase(&self, wanted: &Wanted<'_>) -> Result<Option<Passphrase>> {
        let _ = wanted;
        Ok(None)
    }
}

/// Opens nothing: what an untrusted image deserves until someone decided otherwise.
#[derive(Debug)]
pub struct DenyAll<S>(PhantomData<S>);

impl<S> Default for DenyAll<S> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<S: Storage> Resolver for DenyAll<S> {
    type Storage = S;

    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<S>> {
        Err(Error::Refused(
            format!(
                "The image asks for the {} '{}', and opening it was not allowed",
                wanted.role, wanted.name
            )
            .into(),
        ))
    }
}
