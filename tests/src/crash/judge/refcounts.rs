//! Every version of every refcount block against what the mapping refers to (M1, M2), and what is leaked.

use super::walk::Walk;
use super::{Judged, wrong};
use crate::crash::contents::{Bytes, Content, SECTOR};
use crate::crash::format::{Header, refcount};
use crate::crash::machine::FileId;

/// The sums of the refcounts in sectors, by content: what tells leaks without looking at each cluster.
#[derive(Default)]
pub struct Sums {
    order: u32,
    sums: Vec<Option<u64>>,
}

impl Sums {
    pub fn clear(&mut self) {
        self.sums.clear();
    }

    fn of(&mut self, content: Content, bytes: &Bytes, order: u32) -> u64 {
        if self.order != order {
            self.order = order;
            self.sums.clear();
        }
        let index = content.index();
        if index >= self.sums.len() {
            self.sums.resize(index + 1, None);
        }
        *self.sums[index].get_or_insert_with(|| {
            let entries = (SECTOR as u64 * 8) >> order;
            (0..entries).map(|i| refcount(bytes, i, order)).sum()
        })
    }
}

impl Walk<'_, '_> {
    /// Checks the refcount of every cluster that something refers to; returns how many more references the
    /// refcounts count than there are, at most.
    pub fn check_refcounts(&mut self, header: &Header) -> Judged<u64> {
        let order = header.refcount_order;
        let per_block = header.clusters_per_block();
        let mut references = 0;
        for index in 0..self.marks.touched.len() {
            let cluster = u64::from(self.marks.touched[index]);
            let mark = self.marks.marks[cluster as usize];
            references += u64::from(mark.references);
            let block = self.blocks.get((cluster / per_block) as usize);
            let Some(block) = block.copied().filter(|block| *block != 0) else {
                return wrong(
                    "M1",
                    format!(
                        "cluster {cluster:#x} ({:?}) has no refcount block",
                        mark.kind
                    ),
                );
            };
            let in_block = cluster % per_block;
            let sector =
                block as usize / SECTOR + ((in_block << order) / (SECTOR as u64 * 8)) as usize;
            let (options, may_be_cut) = self.options(FileId::Image, sector);
            if may_be_cut {
                return wrong("M3", format!("refcount block at {block:#x} past the end"));
            }
            for option in options {
                let count = refcount(self.table.bytes(*option), in_block, order);
                if count < mark.references.into() {
                    let what = format!(
                        "cluster {cluster:#x} ({:?}) has refcount {count} and {} references",
                        mark.kind, mark.references
                    );
                    return wrong("M1", what);
                }
                if mark.copied && count != 1 {
                    let what = format!("cluster {cluster:#x} is COPIED with refcount {count}");
                    return wrong("M2", what);
                }
                if mark.shared && count == 1 {
                    let what = format!("cluster {cluster:#x} is not COPIED with refcount 1");
                    return wrong("M2", what);
                }
            }
        }
        let mut counted = 0;
        for index in 0..self.blocks.len() {
            let block = self.blocks[index] as usize / SECTOR;
            if block == 0 {
                continue;
            }
            for sector in block..block + header.cluster_sectors() {
                let (options, _) = self.options(FileId::Image, sector);
                let sums = options
                    .iter()
                    .map(|option| self.sums.of(*option, self.table.bytes(*option), order));
                counted += sums.max().unwrap_or(0);
            }
        }
        Ok(counted - references)
    }
}
