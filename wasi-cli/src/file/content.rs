//! Where bytes come from.

use std::fmt::Debug;
use std::io;

use oxcow::storage::Stretch;

use super::FileStorage;
use super::disk::Disk;
use super::system::Identity;

/// Who else may have a file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    Exclusive,
    /// Those who read.
    Shared,
}

/// What something is to its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes.
    Regular,
    /// Names.
    Folder,
    /// What stands for a device.
    Device,
}

/// What a storage shows. What most of them have nothing special to do for has a default.
pub trait Content: Debug {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buf` as far as there are bytes, and says how far that is.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts or grows it.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes all that was written durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Bytes were written that a flush will have to wait for: it may be begun with.
    fn written(&self, offset: u64, length: u64) {
        let _ = (offset, length);
    }

    /// What is known of the bytes from `offset` on without reading them.
    fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        let _ = offset;
        Ok(unknown(max))
    }

    /// Keeps others out; `false` where one of them is there already.
    fn lock(&self, lock: Lock) -> bool {
        let _ = lock;
        true
    }

    /// What kind of thing it is.
    fn kind(&self) -> Kind {
        Kind::Regular
    }

    /// The bytes that it occupies, where that is known.
    fn allocated(&self) -> Option<u64> {
        None
    }

    /// What file it is, where that is known.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// What it is a part of.
    fn whole(&self) -> Option<&FileStorage> {
        None
    }

    /// Why its length is not for those to change who have it as their disk.
    fn fixed(&self) -> Option<&'static str> {
        None
    }

    /// The disk of an image that it shows, and at which byte it begins of that, or of a file.
    fn origin(&self) -> (u64, Option<&Disk>) {
        (0, None)
    }
}

/// Bytes that have to be read to know what they are.
pub fn unknown(length: u64) -> Stretch {
    Stretch {
        length,
        zero: false,
    }
}
