//! The refcounts that the image stores.

use std::ops::Range;
use std::rc::Rc;

use super::tables::REQUEST_BYTES;
use crate::error::{Error, Result};
use crate::image::Qcow2;
use crate::qcow2::RefcountWidth;
use crate::qcow2::bytes::be64_table;
use crate::storage::{Storage, read_padded};
use crate::units::{ClusterSize, HostOffset, MAX_END};

/// The refcount table, and how its blocks are read.
#[derive(Debug)]
pub(crate) struct Stored {
    table: Vec<u64>,
    cluster_size: ClusterSize,
    width: RefcountWidth,
}

/// A refcount block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// There is none: all its refcounts are 0.
    Absent,
    /// It cannot be where the table says.
    Unreadable(Unreadable),
    /// It stands at this byte; past the end of the file it has zeros.
    At(u64),
}

/// Why a block cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// Its index in the refcount table.
    pub index: u64,
    /// Where the table says it is.
    pub offset: u64,
    /// Whether that is not the start of a cluster, or else too far away.
    pub unaligned: bool,
}

impl Stored {
    /// Reads the refcount table.
    pub async fn read<S: Storage>(image: &Qcow2<S>) -> Result<Self> {
        let header = image.header();
        let mut table = Vec::with_capacity(header.refcount_table.entries as usize);
        let mut at = header.refcount_table.offset.0;
        let end = at + u64::from(header.refcount_table.entries) * 8;
        let mut bytes = Vec::new();
        while at < end {
            bytes.resize((end - at).min(REQUEST_BYTES) as usize, 0);
            read_padded(&image.file().storage, at, &mut bytes)
                .await
                .map_err(|error| Error::io("Could not read refcount table", at, error))?;
            table.extend(be64_table(&bytes));
            at += bytes.len() as u64;
        }
        Ok(Self {
            table,
            cluster_size: header.cluster_size,
            width: header.refcount_width,
        })
    }

    /// The refcount table's entries.
    pub fn table(&self) -> &[u64] {
        &self.table
    }

    /// Where the block of a refcount table entry stands.
    pub fn block_offset(entry: u64) -> u64 {
        entry & !0x1ff
    }

    /// log2 of the clusters that a block counts.
    fn block_bits(&self) -> u32 {
        self.cluster_size.bits() + 3 - self.width.order()
    }

    /// How many blocks count `clusters` clusters.
    pub fn blocks_for(&self, clusters: u64) -> u64 {
        clusters.div_ceil(1 << self.block_bits())
    }

    /// Whether some block could count `cluster`.
    pub fn is_inside(&self, cluster: u64) -> bool {
        cluster >> self.block_bits() < self.table.len() as u64
    }

    /// The block that counts `cluster`.
    pub fn block_of(&self, cluster: u64) -> Block {
        let index = cluster >> self.block_bits();
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.table.get(index));
        let offset = entry.map_or(0, |entry| Self::block_offset(*entry));
        if offset == 0 {
            return Block::Absent;
        }
        let unaligned = !HostOffset(offset).is_aligned(self.cluster_size.bytes());
        if unaligned || offset > MAX_END - self.cluster_size.bytes() {
            return Block::Unreadable(Unreadable {
                index,
                offset,
                unaligned,
            });
        }
        Block::At(offset)
    }

    /// The clusters from `cluster` on to the end of its block.
    fn rest_of_block(&self, cluster: u64) -> Range<u64> {
        cluster..((cluster >> self.block_bits()) + 1) << self.block_bits()
    }

    /// The bytes that hold the refcounts of `clusters` in a block at `offset`; `clusters.start` is the
    /// block's first one or a multiple of 8.
    fn bytes_of(&self, clusters: &Range<u64>, offset: u64) -> Range<u64> {
        let in_block = clusters.start & ((1 << self.block_bits()) - 1);
        let start = offset + (in_block << self.width.order() >> 3);
        start..start + ((clusters.end - clusters.start) << self.width.order()).div_ceil(8)
    }

    /// Cuts `clusters` (from a multiple of 8 on) into pieces that one request reads, or none.
    pub fn pieces(&self, clusters: Range<u64>) -> impl Iterator<Item = Piece> {
        /// So that there is progress to be told.
        const MOST: u64 = 1 << 22;
        let most_read = (REQUEST_BYTES * 8) >> self.width.order();
        let mut at = clusters.start;
        std::iter::from_fn(move || {
            if at >= clusters.end {
                return None;
            }
            let block = self.block_of(at);
            let mut piece = self.rest_of_block(at);
            let most = if matches!(block, Block::At(_)) {
                most_read
            } else {
                MOST
            };
            let end = clusters.end.min(at + most);
            while piece.end < end {
                let continues = match (block, self.block_of(piece.end)) {
                    (Block::Absent, Block::Absent) => true,
                    (Block::At(offset), Block::At(next)) => {
                        self.bytes_of(&piece, offset).end == next
                    }
                    _ => false,
                };
                if !continues {
                    break;
                }
                piece.end = self.rest_of_block(piece.end).end;
            }
            piece.end = piece.end.min(end);
            at = piece.end;
            let block = match block {
                Block::At(offset) => Block::At(self.bytes_of(&piece, offset).start),
                other => other,
            };
            Some(Piece {
                clusters: piece,
                block,
            })
        })
    }

    /// The bytes that a piece takes up.
    pub fn piece_bytes(&self, piece: &Piece) -> usize {
        self.bytes_of(&(0..piece.clusters.end - piece.clusters.start), 0)
            .end as usize
    }

    /// The refcounts in `bytes` from entry `first` on.
    pub fn decode(&self, bytes: &[u8], first: usize, out: &mut [u64]) {
        fn numbers<const N: usize>(
            bytes: &[u8],
            first: usize,
            out: &mut [u64],
            number: impl Fn([u8; N]) -> u64,
        ) {
            let entries = bytes.get(first * N..).unwrap_or_default().chunks_exact(N);
            for (refcount, entry) in out.iter_mut().zip(entries) {
                *refcount = entry.try_into().map_or(0, &number);
            }
        }
        match self.width.order() {
            3 => numbers(bytes, first, out, |[byte]| byte.into()),
            4 => numbers(bytes, first, out, |entry| u16::from_be_bytes(entry).into()),
            5 => numbers(bytes, first, out, |entry| u32::from_be_bytes(entry).into()),
            6 => numbers(bytes, first, out, u64::from_be_bytes),
            _ => {
                for (refcount, index) in out.iter_mut().zip(first..) {
                    *refcount = self.width.get(bytes, index);
                }
            }
        }
    }
}

/// Clusters whose refcounts stand in one place.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub clusters: Range<u64>,
    /// Where, from the first cluster on.
    pub block: Block,
}

/// Refcounts one by one, through a few blocks that are kept.
pub(crate) struct Lookup<'a, S> {
    stored: &'a Stored,
    storage: &'a S,
    /// Blocks by the remainder of their index.
    kept: Vec<Option<Kept>>,
    last: Option<Kept>,
}

#[derive(Clone)]
struct Kept {
    index: u64,
    /// None where the block cannot be read.
    bytes: Option<Rc<[u8]>>,
}

impl<'a, S: Storage> Lookup<'a, S> {
    pub fn new(stored: &'a Stored, storage: &'a S) -> Self {
        const BYTES: u64 = 16 << 20;
        let blocks = (BYTES / stored.cluster_size.bytes()).min(1024) as usize;
        Self {
            stored,
            storage,
            kept: vec![None; blocks],
            last: None,
        }
    }

    /// The refcount of `cluster`, where its block was the one asked for last; `None` where it must be
    /// looked up.
    pub fn at_hand(&self, cluster: u64) -> Option<Option<u64>> {
        let index = cluster >> self.stored.block_bits();
        let kept = self.last.as_ref().filter(|kept| kept.index == index)?;
        let in_block = (cluster & ((1 << self.stored.block_bits()) - 1)) as usize;
        Some(
            kept.bytes
                .as_ref()
                .map(|bytes| self.stored.width.get(bytes, in_block)),
        )
    }

    /// The refcount of `cluster`, or `None` where it cannot be read.
    pub async fn get(&mut self, cluster: u64) -> Result<Option<u64>> {
        if let Some(refcount) = self.at_hand(cluster) {
            return Ok(refcount);
        }
        let index = cluster >> self.stored.block_bits();
        let slot = (index % self.kept.len() as u64) as usize;
        let kept = match self.kept[slot].clone().filter(|kept| kept.index == index) {
            Some(kept) => kept,
            None => Kept {
                index,
                bytes: self.read(cluster).await?,
            },
        };
        self.kept[slot] = Some(kept.clone());
        self.last = Some(kept);
        Ok(self.at_hand(cluster).flatten())
    }

    async fn read(&self, cluster: u64) -> Result<Option<Rc<[u8]>>> {
        let offset = match self.stored.block_of(cluster) {
            // `RefcountWidth::get` finds zeros past the end of the slice.
            Block::Absent => return Ok(Some(Rc::new([]))),
            Block::Unreadable(_) => return Ok(None),
            Block::At(offset) => offset,
        };
        let mut bytes = vec![0; self.stored.cluster_size.len()];
        read_padded(self.storage, offset, &mut bytes)
            .await
            .map_err(|error| Error::io("Could not read refcount block", offset, error))?;
        Ok(Some(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(table: &[u64], cluster_bits: u32, order: u32) -> Stored {
        Stored {
            table: table.to_vec(),
            cluster_size: ClusterSize::from_bits(cluster_bits).unwrap(),
            width: RefcountWidth::from_order(order).unwrap(),
        }
    }

    #[test]
    fn blocks_in_a_row_are_read_together() {
        // 512-byte blocks of 256 refcounts.
        let stored = stored(&[0x1000, 0x1200, 0, 0, 0x2000, 0x3001, 0x3100], 9, 4);
        assert_eq!(
            stored.block_of(5 * 256),
            Block::At(0x3000),
            "reserved bits are not part of the offset"
        );
        let pieces: Vec<_> = stored
            .pieces(0..7 * 256 + 10)
            .map(|p| (p.clusters, p.block))
            .collect();
        let expected = [
            (0..512, Block::At(0x1000)),
            (512..1024, Block::Absent),
            (1024..1280, Block::At(0x2000)),
            (1280..1536, Block::At(0x3000)),
            (1536..1792, Block::At(0x3000)),
            (1792..1802, Block::Absent),
        ];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn blocks_that_cannot_be_are_unreadable() {
        let stored = stored(&[0x1_0200, 1 << 63], 16, 4);
        let unaligned = Unreadable {
            index: 0,
            offset: 0x1_0200,
            unaligned: true,
        };
        assert_eq!(stored.block_of(0), Block::Unreadable(unaligned));
        let far = Unreadable {
            index: 1,
            offset: 1 << 63,
            unaligned: false,
        };
        assert_eq!(stored.block_of(40_000), Block::Unreadable(far));
        assert_eq!(stored.block_of(u64::MAX), Block::Absent);
    }

    #[test]
    fn large_blocks_are_read_in_parts() {
        // One block of 2 MiB counts 16 Mi clusters with one bit each.
        let stored = stored(&[1 << 21], 21, 0);
        let pieces: Vec<_> = stored
            .pieces(16384..1 << 24)
            .map(|p| (p.clusters, p.block))
            .collect();
        let middle = 16384 + (8 << 20);
        assert_eq!(pieces[0], (16384..middle, Block::At((1 << 21) + 2048)));
        assert_eq!(
            pieces[1],
            (middle..1 << 24, Block::At((1 << 21) + 2048 + (1 << 20)))
        );
    }

    #[test]
    fn refcounts_of_every_width_decode_alike() {
        let bytes: Vec<u8> = (0..=255).map(|n: u8| n.wrapping_mul(37) ^ 0x5a).collect();
        for order in 0..=6 {
            let stored = stored(&[], 16, order);
            let mut out = [0; 16];
            stored.decode(&bytes, 8, &mut out);
            let expected: Vec<u64> = (8..24).map(|at| stored.width.get(&bytes, at)).collect();
            assert_eq!(out, *expected, "order {order}");
        }
    }
}
