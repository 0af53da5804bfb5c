//! The disk of an image: what an image inside of another one is stored in.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use oxcow::storage::Stretch;
use oxcow::{Error, GuestOffset, Image, ZeroMode};

use super::content::Content;
use super::plain::no_space;
use super::system::Identity;
use super::{FileStorage, block_on};
use crate::compressed;
use crate::failure::in_short;
use crate::kept::keep_zeros;

/// What is said to who would resize the disk through the image above.
const FIXED: &str = "The disk of an image inside of another one cannot be resized";

/// How what is written to the disk gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// As the image has it.
    Plain,
    /// As compressed clusters: QEMU's driver compress.
    Compressed,
    /// Not at all: the image is open for reading.
    Never,
}

/// An open image whose disk is a storage. It never gets longer than the image says that its disk is.
#[derive(Debug)]
pub struct Disk {
    image: Image<FileStorage>,
    writes: Writes,
    /// Whether what is read becomes the image's own: QEMU's driver copy-on-read.
    keeps_reads: bool,
    /// How much of the disk is left, after who stands above cut some of it off. It is there again, as zeros, when it is
    /// opened the next time.
    length: Cell<u64>,
}

impl Disk {
    /// The disk of `image`.
    pub fn new(image: Image<FileStorage>, writes: Writes) -> Self {
        Self {
            length: image.virtual_size().into(),
            image,
            writes,
            keeps_reads: false,
        }
    }

    /// The same disk, of which all that is read becomes the image's own.
    pub fn keeping_reads(self) -> Self {
        self.image.set_copy_on_read(true);
        Self {
            keeps_reads: true,
            ..self
        }
    }

    /// The image.
    pub fn image(&self) -> &Image<FileStorage> {
        &self.image
    }

    /// How it is written to.
    pub fn writes(&self) -> Writes {
        self.writes
    }

    /// So many bytes from `offset` on, as far as there is a disk.
    fn inside(&self, offset: u64, length: u64) -> Range<u64> {
        let end = self.length.get();
        let start = offset.min(end);
        start..start + length.min(end - start)
    }
}

impl Content for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length.get())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let range = self.inside(offset, buf.len() as u64);
        let count = (range.end - range.start) as usize;
        if count > 0 {
            if self.keeps_reads {
                keep_zeros(&self.image, range.start, count as u64).map_err(of_the_disk)?;
            }
            let read = self
                .image
                .read_at(GuestOffset(range.start), &mut buf[..count]);
            block_on(read).map_err(of_the_disk)?;
        }
        Ok(count)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64);
        let Some(end) = end.filter(|end| *end <= self.image.virtual_size()) else {
            return Err(no_space());
        };
        let written = match self.writes {
            Writes::Plain => block_on(self.image.write_at(GuestOffset(offset), data)),
            Writes::Compressed => compressed::write_padded(&self.image, offset, data),
            Writes::Never => return Err(io::ErrorKind::PermissionDenied.into()),
        };
        written.map_err(of_the_disk)?;
        self.length.set(self.length.get().max(end));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.image.virtual_size() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, FIXED));
        }
        if let Some(cut @ 1..) = self.length.get().checked_sub(len) {
            let zeroes = self
                .image
                .write_zeroes(GuestOffset(len), cut, ZeroMode::Unmap);
            block_on(zeroes).map_err(of_the_disk)?;
        }
        self.length.set(len);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        block_on(self.image.flush()).map_err(of_the_disk)
    }

    fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        let range = self.inside(offset, max);
        // Only what is read is kept.
        if range.is_empty() || self.keeps_reads {
            return Ok(super::content::unknown(max));
        }
        let extent = self
            .image
            .extent_at(GuestOffset(range.start), range.end - range.start);
        let extent = block_on(extent).map_err(of_the_disk)?;
        Ok(Stretch {
            length: extent.length,
            zero: extent.zero(),
        })
    }

    fn allocated(&self) -> Option<u64> {
        self.image.top().file().storage.allocated()
    }

    fn identity(&self) -> Option<Identity> {
        self.image.top().file().storage.identity()
    }

    fn fixed(&self) -> Option<&'static str> {
        Some(FIXED)
    }

    fn origin(&self) -> (u64, Option<&Disk>) {
        (0, Some(self))
    }
}

/// An image's error as that of a storage: the system's, where it was one.
fn of_the_disk(error: Error) -> io::Error {
    match in_short(error) {
        Error::Io { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}
