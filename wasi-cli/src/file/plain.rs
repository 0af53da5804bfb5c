//! A file of the file system.

use std::fs::{self, TryLockError};
use std::io;

use oxcow::storage::Stretch;

use super::behind::Behind;
use super::content::{Content, Kind, Lock};
use super::holes::Holes;
use super::known_words;
use super::system::{self, Identity};

#[derive(Debug)]
pub struct Plain {
    file: fs::File,
    holes: Holes,
    behind: Behind,
}

impl Plain {
    pub fn new(file: fs::File) -> Self {
        Self {
            file,
            holes: Holes::default(),
            behind: Behind::default(),
        }
    }
}

impl Content for Plain {
    fn len(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device has a length only for those who look for its end.
        io::Seek::seek(&mut &self.file, io::SeekFrom::End(0))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match system::read_at(&self.file, &mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(known_words(error)),
            }
        }
        Ok(filled)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < data.len() {
            match system::write_at(&self.file, &data[written..], offset + written as u64) {
                // A system that takes nothing and says nothing has no room left.
                Ok(0) => return Err(no_space()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(known_words(error)),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len).map_err(known_words)
    }

    // Data, and of the metadata what it takes to find the data again, the length first of all: nothing else
    // of a file is part of an image.
    fn flush(&self) -> io::Result<()> {
        match self.file.sync_data() {
            // A device that keeps nothing has nothing to lose.
            Err(error)
                if error.kind() == io::ErrorKind::InvalidInput && self.kind() == Kind::Device =>
            {
                Ok(())
            }
            other => other.map_err(known_words),
        }
    }

    fn written(&self, offset: u64, length: u64) {
        if let Some(range) = self.behind.written(offset, length) {
            system::begin_to_write_down(&self.file, range);
        }
    }

    fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        Ok(self.holes.stretch_at(&self.file, offset, max))
    }

    fn lock(&self, lock: Lock) -> bool {
        let locked = match lock {
            Lock::Exclusive => self.file.try_lock(),
            Lock::Shared => self.file.try_lock_shared(),
        };
        !matches!(locked, Err(TryLockError::WouldBlock))
    }

    fn kind(&self) -> Kind {
        match self.file.metadata() {
            Ok(metadata) if metadata.is_file() => Kind::Regular,
            Ok(metadata) if !metadata.is_dir() => Kind::Device,
            _ => Kind::Folder,
        }
    }

    fn allocated(&self) -> Option<u64> {
        system::allocated(&self.file)
    }

    fn identity(&self) -> Option<Identity> {
        system::identity(&self.file)
    }
}

/// There is no room for what is to be written.
pub fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "No space left on device")
}
