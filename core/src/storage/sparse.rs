//! A storage in memory that holds only what is not zero.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

use crate::storage::{Storage, Stretch};

/// The bytes that are kept or not kept together.
const PAGE: u64 = 4096;

/// A storage in memory whose zeros take no room, however long it is.
#[derive(Debug, Default)]
pub struct SparseMemory {
    pages: RefCell<BTreeMap<u64, Box<[u8]>>>,
    len: Cell<u64>,
}

impl SparseMemory {
    /// A storage of `len` zeros.
    #[must_use]
    pub fn new(len: u64) -> Self {
        Self {
            pages: RefCell::default(),
            len: Cell::new(len),
        }
    }

    /// How many bytes of memory its content takes.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.pages.borrow().len() as u64 * PAGE
    }

    /// Calls `part` with every page that bytes `start..end` touch: its number, the range in it, and the
    /// range of the bytes.
    fn parts(start: u64, end: u64, mut part: impl FnMut(u64, usize, usize, usize)) {
        let mut at = start;
        while at < end {
            let page = at / PAGE;
            let until = ((page + 1) * PAGE).min(end);
            let within = (at % PAGE) as usize;
            part(page, within, (until - at) as usize, (at - start) as usize);
            at = until;
        }
    }
}

impl Storage for SparseMemory {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.len.get())
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let count = (self.len.get().saturating_sub(offset)).min(buf.len() as u64) as usize;
        let pages = self.pages.borrow();
        Self::parts(offset, offset + count as u64, |page, within, length, at| {
            let target = &mut buf[at..at + length];
            match pages.get(&page) {
                Some(page) => target.copy_from_slice(&page[within..within + length]),
                None => target.fill(0),
            }
        });
        Ok(count)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut pages = self.pages.borrow_mut();
        Self::parts(offset, end, |page, within, length, at| {
            let source = &data[at..at + length];
            let zeros = source.iter().all(|&byte| byte == 0);
            if zeros && (length as u64 == PAGE || !pages.contains_key(&page)) {
                pages.remove(&page);
                return;
            }
            let page = pages
                .entry(page)
                .or_insert_with(|| vec![0; PAGE as usize].into());
            page[within..within + length].copy_from_slice(source);
        });
        self.len.set(self.len.get().max(end));
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let mut pages = self.pages.borrow_mut();
        pages.split_off(&len.div_ceil(PAGE));
        if let Some(last) = pages.get_mut(&(len / PAGE)) {
            last[(len % PAGE) as usize..].fill(0);
        }
        self.len.set(len);
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        let pages = self.pages.borrow();
        let first = offset / PAGE;
        let to = |page: u64| (page * PAGE - offset).min(max);
        Ok(match pages.range(first..).next() {
            Some((&page, _)) if page == first => Stretch {
                length: to(page + 1),
                zero: false,
            },
            next => Stretch {
                length: next.map_or(max, |(&page, _)| to(page)),
                zero: true,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn reads_what_was_written_and_keeps_no_zeros() {
        let run = async {
            let memory = SparseMemory::new(1 << 40);
            memory.write_at(PAGE - 2, &[1, 2, 3, 4]).await.unwrap();
            let mut bytes = [9; 6];
            assert_eq!(memory.read_at(PAGE - 3, &mut bytes).await.unwrap(), 6);
            assert_eq!(bytes, [0, 1, 2, 3, 4, 0]);
            assert_eq!(memory.kept_bytes(), 2 * PAGE);
            let after = memory
                .stretch_at(2 * PAGE + 5, u64::MAX >> 1)
                .await
                .unwrap();
            assert!(after.zero);
            let before = memory.stretch_at(5, 3 * PAGE).await.unwrap();
            assert_eq!((before.length, before.zero), (PAGE - 5, false));

            memory
                .write_at(0, &vec![0; 2 * PAGE as usize])
                .await
                .unwrap();
            assert_eq!(memory.kept_bytes(), 0);
            memory.write_at(7, &[5; 3]).await.unwrap();
            memory.set_len(8).await.unwrap();
            memory.set_len(20).await.unwrap();
            assert_eq!(memory.read_at(6, &mut bytes).await.unwrap(), 6);
            assert_eq!(bytes, [0, 5, 0, 0, 0, 0]);
            assert_eq!(memory.read_at(18, &mut bytes).await.unwrap(), 2);
        };
        assert!(run.now_or_never().is_some());
    }
}
