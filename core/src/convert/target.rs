//! What is written to.

use crate::error::{Error, Result};
use crate::image::{Image, Layer, ZeroMode};
use crate::storage::{Storage, in_zeros};
use crate::units::{GuestOffset, SECTOR};

/// What takes a disk.
pub(super) trait Target {
    /// How many bytes go together: the smallest number of which zeros need no writing.
    fn granule(&self) -> u64;

    /// How many bytes are compressed together.
    fn cluster(&self) -> u64;

    async fn write(&self, at: u64, data: &[u8]) -> Result<()>;

    /// Whole clusters, but for the end of the disk.
    async fn write_compressed(&self, at: u64, data: &[u8]) -> Result<()>;

    async fn write_zeroes(&self, at: u64, length: u64) -> Result<()>;
}

/// An image that is open for writing.
impl<S: Storage> Target for Image<S> {
    fn granule(&self) -> u64 {
        match self.top() {
            Layer::Raw(_) => SECTOR,
            Layer::Qcow2(qcow2) => qcow2.l2_format.granule_bytes(),
        }
    }

    fn cluster(&self) -> u64 {
        match self.top() {
            Layer::Raw(_) => SECTOR,
            Layer::Qcow2(qcow2) => qcow2.header().cluster_size.bytes(),
        }
    }

    async fn write(&self, at: u64, data: &[u8]) -> Result<()> {
        self.write_at(GuestOffset(at), data).await
    }

    async fn write_compressed(&self, at: u64, data: &[u8]) -> Result<()> {
        Self::write_compressed(self, GuestOffset(at), data).await
    }

    async fn write_zeroes(&self, at: u64, length: u64) -> Result<()> {
        Self::write_zeroes(self, GuestOffset(at), length, ZeroMode::Unmap).await
    }
}

/// A file that is to hold the disk as it is.
pub(super) struct RawFile<'a, S>(pub &'a S);

impl<S: Storage> Target for RawFile<'_, S> {
    fn granule(&self) -> u64 {
        SECTOR
    }

    fn cluster(&self) -> u64 {
        SECTOR
    }

    async fn write(&self, at: u64, data: &[u8]) -> Result<()> {
        let write = self.0.write_at(at, data).await;
        write.map_err(|error| Error::io("", at, error))
    }

    async fn write_compressed(&self, _at: u64, _data: &[u8]) -> Result<()> {
        Err(Error::Unsupported(
            "A raw image has no compressed clusters".into(),
        ))
    }

    async fn write_zeroes(&self, at: u64, length: u64) -> Result<()> {
        in_zeros(at..at + length, async |at, zeros: &[u8]| {
            self.write(at, zeros).await
        })
        .await
    }
}
