//! Raw images: the guest's bytes as they are, or behind a LUKS header, encrypted as a whole.

use crate::chain::File;
use crate::crypto::{HeaderArea, LuksHeader, Volume};
use crate::error::{Error, Result};
use crate::qcow2::{Run, RunKind};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, SECTOR};

/// A raw image.
#[derive(Debug)]
pub struct Raw<S> {
    file: File<S>,
    file_len: std::cell::Cell<u64>,
    luks: Option<Box<Luks>>,
}

/// What an encrypted image has besides.
#[derive(Debug)]
struct Luks {
    header: LuksHeader,
    /// Missing where it was opened without a passphrase.
    volume: Option<Volume>,
}

impl<S: Storage> Raw<S> {
    /// Any file is a raw image.
    pub async fn open(file: File<S>) -> Result<Self> {
        let file_len = file.storage.len().await.map_err(|error| Error::Io {
            what: "Could not get image size".into(),
            offset: None,
            source: error,
        })?;
        if file_len > i64::MAX as u64 - SECTOR {
            return Err(Error::OutOfRange("Image is too big".into()));
        }
        Ok(Self {
            file,
            file_len: file_len.into(),
            luks: None,
        })
    }

    /// The file as one that begins with a LUKS header.
    pub(crate) async fn open_luks(file: File<S>) -> Result<Self> {
        let raw = Self::open(file).await?;
        let header = LuksHeader::read(&raw.file.storage, raw.header_area()).await?;
        if header.payload_offset() > raw.file_len() {
            return Err(Error::OutOfRange(
                "The file ends before the encrypted payload begins".into(),
            ));
        }
        Ok(Self {
            luks: Some(Box::new(Luks {
                header,
                volume: None,
            })),
            ..raw
        })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File<S> {
        &self.file
    }

    /// The length of the file in bytes.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len.get()
    }

    /// Where the disk begins in the file.
    pub(crate) fn start(&self) -> u64 {
        let luks = self.luks.as_ref();
        luks.map_or(0, |luks| luks.header.payload_offset())
    }

    /// The disk's size in bytes: whole sectors, as QEMU counts. What the last sector lacks reads as zeros.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        (self.file_len() - self.start()).next_multiple_of(SECTOR)
    }

    /// The LUKS header, where there is one.
    pub(crate) fn luks_header(&self) -> Option<&LuksHeader> {
        self.luks.as_ref().map(|luks| &luks.header)
    }

    /// What a LUKS header and its key slots may take.
    pub(crate) fn header_area(&self) -> HeaderArea {
        HeaderArea {
            offset: 0,
            length: self.file_len(),
        }
    }

    /// The key has been found.
    pub(crate) fn unlock(&mut self, unlocked: Volume) {
        if let Some(luks) = &mut self.luks {
            luks.volume = Some(unlocked);
        }
    }

    /// What encrypts the content, where it is encrypted.
    pub(crate) fn volume(&self) -> Result<Option<&Volume>> {
        match &self.luks {
            None => Ok(None),
            Some(luks) => luks.volume.as_ref().map(Some).ok_or_else(locked),
        }
    }

    /// What the bytes from `offset` (inside the disk) on are, at most `max` of them: the file's, then zeros
    /// to the sector's end.
    pub(crate) async fn run_at(&self, offset: GuestOffset, max: u64) -> Result<Run> {
        let host = HostOffset(self.start() + offset.0);
        if self.luks.is_some() {
            // A hole does not read as zeros.
            return Ok(Run {
                length: (self.virtual_size() - offset.0).min(max),
                kind: RunKind::Data(host),
            });
        }
        let left = match self.file_len().checked_sub(offset.0) {
            Some(left) if left > 0 => left.min(max),
            _ => {
                return Ok(Run {
                    length: (self.virtual_size() - offset.0).min(max),
                    kind: RunKind::Zero(Some(host)),
                });
            }
        };
        let stretch = self.file.storage.stretch_at(offset.0, left).await;
        let stretch = stretch
            .map_err(|error| Error::io("Could not tell data from holes", offset.0, error))?;
        Ok(Run {
            length: stretch.length.clamp(1, left),
            kind: match stretch.zero {
                true => RunKind::Zero(Some(host)),
                false => RunKind::Data(host),
            },
        })
    }

    /// Writes the bytes of the file that stand for the guest's from `offset` on, which grows the file where
    /// its last sector was incomplete.
    pub(crate) async fn write(&self, offset: GuestOffset, data: &[u8]) -> std::io::Result<()> {
        let at = self.start() + offset.0;
        self.file.storage.write_at(at, data).await?;
        let end = at + data.len() as u64;
        self.file_len.set(self.file_len().max(end));
        Ok(())
    }

    /// Cuts or grows the file to a disk of `length` bytes.
    pub(crate) async fn set_len(&self, length: u64) -> std::io::Result<()> {
        let length = length
            .checked_add(self.start())
            .ok_or(std::io::ErrorKind::FileTooLarge)?;
        self.file.storage.set_len(length).await?;
        self.file_len.set(length);
        Ok(())
    }
}

/// Ciphertext is never handed out as data (QEMU-COMPAT rule 44).
pub(crate) fn locked() -> Error {
    Error::Refused("The image is encrypted and was opened without its passphrase".into())
}
