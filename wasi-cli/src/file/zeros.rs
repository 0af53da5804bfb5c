//! Zeros from nowhere, whatever is written: QEMU's driver null-co.

use std::cell::Cell;
use std::io;

use oxcow::storage::Stretch;

use super::content::Content;

#[derive(Debug)]
pub struct Zeros {
    length: Cell<u64>,
}

impl Zeros {
    pub fn new(length: u64) -> Self {
        Self {
            length: Cell::new(length),
        }
    }
}

impl Content for Zeros {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length.get())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.length.get().saturating_sub(offset);
        let count = left.min(buf.len() as u64) as usize;
        buf[..count].fill(0);
        Ok(count)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.length
            .set(self.length.get().max(offset + data.len() as u64));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.length.set(len);
        Ok(())
    }

    fn stretch_at(&self, _offset: u64, max: u64) -> io::Result<Stretch> {
        Ok(Stretch {
            length: max,
            zero: true,
        })
    }

    fn fixed(&self) -> Option<&'static str> {
        Some("Image format driver does not support resize")
    }

    fn allocated(&self) -> Option<u64> {
        Some(0)
    }
}
