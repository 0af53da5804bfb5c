//! Writes that are only tried out: kept in memory above a file that stays as it is.

use std::collections::BTreeMap;
use std::io;

/// How much is kept together, in bytes.
const BLOCK: usize = 4096;

/// What was written above a file, in blocks. Where there is none, the file shows through, as far as it goes
/// and as far as it was never cut off.
#[derive(Debug)]
pub struct Scratch {
    len: u64,
    /// Where the file ends for good: what is cut off reads as zeros when the length grows again.
    below: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl Scratch {
    /// Nothing yet, above a file of `len` bytes.
    pub fn new(len: u64) -> Self {
        Self {
            len,
            below: len,
            blocks: BTreeMap::new(),
        }
    }

    /// The length of both together.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` as far as there is something; `below` reads the file.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        below: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let count = (buf.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        let buf = &mut buf[..count];
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let within = (at % BLOCK as u64) as usize;
            let part = &mut buf[done..];
            let length = part.len().min(BLOCK - within);
            match self.blocks.get(&(at / BLOCK as u64)) {
                Some(block) => {
                    part[..length].copy_from_slice(&block[within..within + length]);
                    done += length;
                }
                None => {
                    // Up to the next block that was written, in one go.
                    let next = self.blocks.range(at / BLOCK as u64..).next();
                    let end = next.map_or(u64::MAX, |(index, _)| index * BLOCK as u64);
                    let length = (part.len() as u64).min(end - at) as usize;
                    self.read_below(at, &mut part[..length], &below)?;
                    done += length;
                }
            }
        }
        Ok(count)
    }

    fn read_below(
        &self,
        at: u64,
        buf: &mut [u8],
        below: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let there = (buf.len() as u64).min(self.below.saturating_sub(at)) as usize;
        let filled = below(at, &mut buf[..there])?;
        buf[filled..].fill(0);
        Ok(())
    }

    /// Keeps `data`.
    pub fn write_at(
        &mut self,
        offset: u64,
        data: &[u8],
        below: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (index, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let length = (data.len() - done).min(BLOCK - within);
            if !self.blocks.contains_key(&index) {
                let mut block = Box::new([0; BLOCK]);
                self.read_below(index * BLOCK as u64, &mut block[..], &below)?;
                self.blocks.insert(index, block);
            }
            if let Some(block) = self.blocks.get_mut(&index) {
                block[within..within + length].copy_from_slice(&data[done..done + length]);
            }
            done += length;
        }
        self.len = self.len.max(offset + data.len() as u64);
        Ok(())
    }

    /// Cuts or grows: new bytes read as zeros.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.below = self.below.min(len);
            self.blocks.split_off(&len.div_ceil(BLOCK as u64));
            let cut = (len % BLOCK as u64) as usize;
            if let (true, Some(block)) = (cut > 0, self.blocks.get_mut(&(len / BLOCK as u64))) {
                block[cut..].fill(0);
            }
        }
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of ones.
    fn ones(length: u64) -> impl Fn(u64, &mut [u8]) -> io::Result<usize> {
        move |offset, buf: &mut [u8]| {
            let count = (buf.len() as u64).min(length.saturating_sub(offset)) as usize;
            buf[..count].fill(1);
            Ok(count)
        }
    }

    #[test]
    fn what_was_written_covers_the_file_and_the_rest_shows_through() {
        let (mut scratch, file) = (Scratch::new(10_000), ones(10_000));
        scratch.write_at(4090, &[2; 10], &file).unwrap();
        let mut expected = vec![1; 10_000];
        expected[4090..4100].fill(2);
        let mut buf = vec![9; 20_000];
        assert_eq!(scratch.read_at(0, &mut buf, &file).unwrap(), 10_000);
        assert_eq!(buf[..10_000], expected);
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let (mut scratch, file) = (Scratch::new(10_000), ones(10_000));
        scratch.write_at(5000, &[2; 10], &file).unwrap();
        scratch.set_len(5005);
        scratch.set_len(9000);
        scratch.write_at(8999, &[3; 2], &file).unwrap();
        assert_eq!(scratch.len(), 9001);
        let mut expected = vec![0; 9001];
        expected[..5000].fill(1);
        expected[5000..5005].fill(2);
        expected[8999..].fill(3);
        let mut buf = vec![9; 9001];
        assert_eq!(scratch.read_at(0, &mut buf, &file).unwrap(), 9001);
        assert_eq!(buf, expected);
    }
}
