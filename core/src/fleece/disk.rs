//! The view as a storage.

use std::io;
use std::ops::{Deref, Range};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::fleece::copies::Copies;
use crate::fleece::granules::Place;
use crate::image::Image;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::storage::{Storage, Stretch};
use crate::units::GuestOffset;

/// The bytes of a disk as they were at one moment: a storage that takes no writes.
pub struct FleecedDisk<A, T> {
    active: A,
    copies: Rc<Copies<T>>,
}

impl<A, T> std::fmt::Debug for FleecedDisk<A, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleecedDisk")
            .field("size", &self.copies.granules.size())
            .finish_non_exhaustive()
    }
}

impl<A, S, T> FleecedDisk<A, T>
where
    A: Deref<Target = Image<S>>,
    S: Storage,
    T: Storage,
{
    pub(super) fn new(active: A, copies: Rc<Copies<T>>) -> Self {
        Self { active, copies }
    }

    /// The whole granules around the bytes, which a change holds as a whole.
    fn around(&self, bytes: &Range<u64>) -> Range<u64> {
        let granule = self.copies.granules.granule();
        bytes.start / granule * granule..bytes.end.next_multiple_of(granule)
    }

    /// A view that is broken shows nothing any more: it would be a mix of two moments.
    fn check_whole(&self) -> Result<()> {
        match self.copies.broken() {
            None => Ok(()),
            Some(why) => Err(Error::Stopped(
                format!("The point-in-time view is broken ({why})").into(),
            )),
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at + buf.len() as u64;
        // Held from the lookup to the last byte: in between nobody moves what was looked up.
        let mut held = Some(
            self.active
                .hold_for_reading(self.around(&(at..end)))
                .await?,
        );
        let mut rest = buf;
        let mut at = at;
        while at < end {
            self.check_whole()?;
            let (place, length) = self.copies.granules.run_at(at, end - at);
            if !upheld(OrderingPoint::LookupAndReadHeld) {
                held = None;
            }
            let (part, behind) = rest.split_at_mut(length as usize);
            match place {
                Place::Disk => self.active.read_held(GuestOffset(at), part).await?,
                Place::Copy => self.copies.target.read_at(GuestOffset(at), part).await?,
                Place::Gone => {
                    return Err(Error::OutOfRange(
                        format!("Byte {at:#x} of the point-in-time view has been released").into(),
                    ));
                }
            }
            at += length;
            rest = behind;
        }
        drop(held);
        Ok(())
    }

    async fn stretch(&self, at: u64, max: u64) -> Result<Stretch> {
        let end = at + max;
        let _held = self
            .active
            .hold_for_reading(self.around(&(at..end)))
            .await?;
        self.check_whole()?;
        let (place, max) = self.copies.granules.run_at(at, max);
        let (zero, length) = match place {
            Place::Disk => self.active.zeros_at(at, max).await?,
            Place::Copy => {
                let extent = self.copies.target.extent_at(GuestOffset(at), max).await?;
                (extent.zero(), extent.length)
            }
            Place::Gone => (false, max),
        };
        Ok(Stretch { length, zero })
    }
}

impl<A, S, T> Storage for FleecedDisk<A, T>
where
    A: Deref<Target = Image<S>>,
    S: Storage,
    T: Storage,
{
    async fn len(&self) -> io::Result<u64> {
        Ok(self.copies.granules.size())
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.copies.granules.size().saturating_sub(offset);
        let count = left.min(buf.len() as u64) as usize;
        self.read(offset, &mut buf[..count])
            .await
            .map_err(io::Error::other)?;
        Ok(count)
    }

    async fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn queue_depth(&self) -> usize {
        self.active.queue_depth()
    }

    async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        self.stretch(offset, max).await.map_err(io::Error::other)
    }
}

fn read_only() -> io::Error {
    io::Error::new(
        io::ErrorKind::ReadOnlyFilesystem,
        "A point-in-time view takes no writes",
    )
}
