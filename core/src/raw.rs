//! Raw images: the guest's bytes as they are.

use crate::chain::File;
use crate::error::{Error, Result};
use crate::qcow2::{Run, RunKind};
use crate::storage::Storage;
use crate::units::{GuestOffset, HostOffset, SECTOR};

/// A raw image.
#[derive(Debug)]
pub struct Raw<S> {
    file: File<S>,
    file_len: std::cell::Cell<u64>,
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

    /// The disk's size in bytes: whole sectors, as QEMU counts. What the last sector lacks reads as zeros.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.file_len().next_multiple_of(SECTOR)
    }

    /// What the bytes from `offset` (inside the disk) on are, at most `max` of them: the file's, then zeros
    /// to the sector's end.
    pub(crate) async fn run_at(&self, offset: GuestOffset, max: u64) -> Result<Run> {
        let host = HostOffset(offset.0);
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

    /// Writes guest bytes, which grows the file where its last sector was incomplete.
    pub(crate) async fn write(&self, offset: GuestOffset, data: &[u8]) -> std::io::Result<()> {
        self.file.storage.write_at(offset.0, data).await?;
        let end = offset.0 + data.len() as u64;
        self.file_len.set(self.file_len().max(end));
        Ok(())
    }

    /// Cuts or grows the file.
    pub(crate) async fn set_len(&self, length: u64) -> std::io::Result<()> {
        self.file.storage.set_len(length).await?;
        self.file_len.set(length);
        Ok(())
    }
}
