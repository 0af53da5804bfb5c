//! A part of something else: what raw's options `offset` and `size` leave of it.

use std::io;

use oxcow::storage::Stretch;
use oxcow::units::SECTOR;

use super::FileStorage;
use super::content::{Content, Kind, Lock};
use super::disk::Disk;
use super::plain::no_space;
use super::system::Identity;

/// What is said where the length of a part was told.
const FIXED: &str = "Cannot resize fixed-size raw disks";

/// Where a part begins, and how long it is; without a size it goes on to the end, wherever that will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub offset: u64,
    pub size: Option<u64>,
}

#[derive(Debug)]
pub struct Part {
    whole: FileStorage,
    window: Window,
}

impl Part {
    /// What `window` shows of `whole`, if it lies inside of it.
    pub fn new(whole: FileStorage, window: Window) -> Result<Self, String> {
        let length = whole.content.len().map_err(|error| error.to_string())?;
        let Window { offset, size } = window;
        let Some(left) = length.checked_sub(offset) else {
            return Err(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({length})"
            ));
        };
        match size {
            Some(size) if size > left => Err(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of \
                 the containing file ({length})"
            )),
            Some(size) if !size.is_multiple_of(SECTOR) => {
                Err(format!("Specified size is not multiple of {SECTOR}"))
            }
            _ => Ok(Self { whole, window }),
        }
    }

    /// Where byte `offset` of the part lies in the whole.
    fn at(&self, offset: u64) -> io::Result<u64> {
        offset
            .checked_add(self.window.offset)
            .ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    }
}

impl Content for Part {
    fn len(&self) -> io::Result<u64> {
        let whole = self.whole.content.len()?;
        let left = whole.saturating_sub(self.window.offset);
        Ok(self.window.size.map_or(left, |size| size.min(left)))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.window.size.map(|size| size.saturating_sub(offset));
        let count = left.map_or(buf.len(), |left| left.min(buf.len() as u64) as usize);
        self.whole.content.read(self.at(offset)?, &mut buf[..count])
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64);
        if let Some(size) = self.window.size
            && end.is_none_or(|end| end > size)
        {
            return Err(no_space());
        }
        self.whole.content.write(self.at(offset)?, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.window.size {
            None => self.whole.content.set_len(self.at(len)?),
            Some(size) if size == len => Ok(()),
            Some(_) => Err(io::Error::new(io::ErrorKind::Unsupported, FIXED)),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.whole.content.flush()
    }

    fn written(&self, offset: u64, length: u64) {
        self.whole
            .content
            .written(offset + self.window.offset, length);
    }

    fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        self.whole.content.stretch_at(self.at(offset)?, max)
    }

    fn lock(&self, lock: Lock) -> bool {
        self.whole.lock(lock)
    }

    fn kind(&self) -> Kind {
        self.whole.kind()
    }

    fn allocated(&self) -> Option<u64> {
        self.whole.allocated()
    }

    fn identity(&self) -> Option<Identity> {
        self.whole.identity()
    }

    fn whole(&self) -> Option<&FileStorage> {
        Some(&self.whole)
    }

    fn fixed(&self) -> Option<&'static str> {
        match self.window.size {
            Some(_) => Some(FIXED),
            None => self.whole.fixed(),
        }
    }

    fn origin(&self) -> (u64, Option<&Disk>) {
        let (offset, disk) = self.whole.content.origin();
        (offset + self.window.offset, disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, size: Option<u64>) -> Result<Part, String> {
        Part::new(FileStorage::zeros(4096), Window { offset, size })
    }

    // Sentences taken from qemu-img 10.0.2.
    #[test]
    fn a_part_lies_inside_of_the_whole() {
        assert_eq!(part(4096, None).unwrap().len().unwrap(), 0);
        assert_eq!(part(1024, Some(3072)).unwrap().len().unwrap(), 3072);
        let wrong = |offset, size| part(offset, size).map(|_| ()).unwrap_err();
        assert_eq!(
            wrong(4097, Some(511)),
            "Offset (4097) cannot be greater than size of the containing file (4096)"
        );
        assert_eq!(
            wrong(1025, Some(3072)),
            "The sum of offset (1025) and size (3072) has to be smaller or equal to the  actual size of the \
             containing file (4096)"
        );
        assert_eq!(wrong(0, Some(511)), "Specified size is not multiple of 512");
    }

    #[test]
    fn only_a_part_to_the_end_grows() {
        let fixed = part(512, Some(1024)).unwrap();
        assert_eq!(fixed.read(1000, &mut [1; 100]).unwrap(), 24);
        let error = fixed.write(1000, &[1; 25]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(fixed.set_len(2048).is_err());
        let open = part(512, None).unwrap();
        open.write(4000, &[1; 1000]).unwrap();
        assert_eq!(open.len().unwrap(), 5000);
        open.set_len(100).unwrap();
        assert_eq!(open.whole.content.len().unwrap(), 612);
    }
}
