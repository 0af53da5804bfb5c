//! Persistent bitmaps: a bitmap that counts as consistent must know of every change.

use super::guest::Legal;
use super::walk::{Kind, Walk};
use super::{Expectation, Judged};
use crate::crash::contents::{Content, SECTOR};
use crate::crash::format::{BITMAPS, Header, OFFSET, be16, be32, be64};

/// A sector may differ from the first content where the bitmap says so.
struct Tracked<'a> {
    first: &'a [Content],
    written: &'a [bool],
}

impl Legal for Tracked<'_> {
    fn only(&self) -> &[Content] {
        self.first
    }

    fn any_open(&self, range: std::ops::Range<usize>) -> bool {
        self.written[range].contains(&true)
    }

    fn allows(&self, sector: usize, content: Content) -> bool {
        self.written[sector] || self.first[sector] == content
    }

    fn describe(&self, _: usize) -> (usize, &'static str) {
        (1, "bitmaps")
    }
}

impl Walk<'_, '_> {
    /// Counts the references of the bitmaps. Returns which sectors were written by all that track changes, but
    /// for those that say of themselves that they are in use.
    pub fn bitmaps(&mut self, header: &Header) -> Judged<Option<Vec<bool>>> {
        let Some(bitmaps) = header.bitmaps.filter(|_| header.autoclear & BITMAPS != 0) else {
            return Ok(None);
        };
        let at = bitmaps.directory_offset;
        let clusters = |bytes: u64| bytes.div_ceil(header.cluster_bytes());
        let directory = clusters(bitmaps.directory_bytes);
        self.refer(header, at, directory, Kind::Bitmaps, 0, None)?;
        let mut bytes = Vec::new();
        for sector in 0..bitmaps.directory_bytes.div_ceil(SECTOR as u64) {
            let at = at / SECTOR as u64 + sector;
            bytes.extend_from_slice(self.sector(at as usize, "the bitmap directory")?);
        }
        let mut tracked: Option<Vec<bool>> = None;
        let mut at = 0;
        for _ in 0..bitmaps.count {
            let (in_use, tracks) = (
                be32(&bytes, at + 12) & 1 != 0,
                be32(&bytes, at + 12) & 2 != 0,
            );
            let bits = self.bitmap(header, be64(&bytes, at), be32(&bytes, at + 8))?;
            if tracks && !in_use {
                let granularity = bytes[at + 17];
                let sectors = header.size as usize / SECTOR;
                let written = |sector: usize| {
                    let bit = (sector * SECTOR) >> granularity;
                    bits.get(bit / 8)
                        .is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
                };
                let before = tracked.take();
                let both = |sector| {
                    written(sector)
                        && before
                            .as_ref()
                            .is_none_or(|before: &Vec<bool>| before[sector])
                };
                tracked = Some((0..sectors).map(both).collect());
            }
            let length = 24 + be16(&bytes, at + 18) as usize + be32(&bytes, at + 20) as usize;
            at += length.next_multiple_of(8);
        }
        Ok(tracked)
    }

    /// The bits of one bitmap.
    fn bitmap(&mut self, header: &Header, table: u64, entries: u32) -> Judged<Vec<u8>> {
        let clusters = (u64::from(entries) * 8).div_ceil(header.cluster_bytes());
        self.refer(header, table, clusters, Kind::Bitmaps, 0, None)?;
        let cluster = header.cluster_bytes() as usize;
        let mut bits = Vec::new();
        for entry in 0..u64::from(entries) {
            let byte = (table + entry * 8) as usize;
            let entry = be64(self.sector(byte / SECTOR, "a bitmap table")?, byte % SECTOR);
            let data = entry & OFFSET;
            if data == 0 {
                let all = if entry & 1 == 1 { 0xff } else { 0 };
                bits.resize(bits.len() + cluster, all);
                continue;
            }
            self.refer(header, data, 1, Kind::Bitmaps, 0, None)?;
            for sector in 0..header.cluster_sectors() {
                let bytes = self.sector(data as usize / SECTOR + sector, "a bitmap")?;
                bits.extend_from_slice(bytes);
            }
        }
        Ok(bits)
    }

    /// What the bitmaps do not know of must be as it was at first.
    pub fn check_tracked(
        &mut self,
        header: &Header,
        written: &[bool],
        expectation: &Expectation<'_>,
    ) -> Judged {
        let first = expectation.pristine.values.only();
        let sectors = first.len().min(written.len()).min(expectation.kept);
        let tracked = Tracked {
            first: &first[..sectors],
            written: &written[..sectors],
        };
        let active = self.map.roots[0].clone();
        let below = self.below(header, expectation.backing)?;
        self.check_disk(header, &active, 0, &tracked, below)
    }
}
