//! Refcount blocks: entries of 1 to 64 bits (specification, "Host cluster management").

use crate::error::{Error, Result};
use crate::qcow2::MAX_REFCOUNT_TABLE_BYTES;
use crate::units::ClusterSize;

/// Refuses a refcount table of so many entries that QEMU would not open the image.
pub(crate) fn check_table_entries(entries: u64) -> Result<()> {
    match entries * 8 > MAX_REFCOUNT_TABLE_BYTES {
        true => Err(Error::OutOfRange(
            "The image file would need a refcount table of more than 8 MiB".into(),
        )),
        false => Ok(()),
    }
}

/// The width of a refcount entry: 2^order bits, order 0 to 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountWidth {
    order: u8,
}

impl RefcountWidth {
    /// 16 bits: what version 2 always has, and the default of version 3.
    pub const BITS_16: Self = Self { order: 4 };

    /// 2^`order` bits; `None` past 64 bits.
    #[must_use]
    pub fn from_order(order: u32) -> Option<Self> {
        (order <= 6).then_some(Self { order: order as u8 })
    }

    /// log2 of the width.
    #[must_use]
    pub fn order(self) -> u32 {
        u32::from(self.order)
    }

    /// The width in bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        1 << self.order
    }

    /// The largest refcount that fits.
    #[must_use]
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// How many clusters one refcount block counts.
    #[must_use]
    pub fn entries_per_block(self, cluster: ClusterSize) -> u64 {
        (cluster.bytes() * 8) >> self.order
    }

    /// Entry `index` of the block (or slice of one) in `block`. Entries under 8 bits fill each byte from
    /// its least significant bit on.
    #[must_use]
    pub fn get(self, block: &[u8], index: usize) -> u64 {
        let bits = self.bits() as usize;
        if bits < 8 {
            let per_byte = 8 / bits;
            let byte = block.get(index / per_byte).copied().unwrap_or(0);
            return u64::from(byte >> (index % per_byte * bits)) & self.max();
        }
        let bytes = bits / 8;
        let Some(entry) = block.get(index * bytes..(index + 1) * bytes) else {
            return 0;
        };
        entry
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// Sets entry `index` of the block in `block` to `value`, which fits the width.
    pub fn set(self, block: &mut [u8], index: usize, value: u64) {
        let bits = self.bits() as usize;
        debug_assert!(value <= self.max());
        if bits < 8 {
            let per_byte = 8 / bits;
            let shift = index % per_byte * bits;
            if let Some(byte) = block.get_mut(index / per_byte) {
                *byte = *byte & !((self.max() as u8) << shift) | (value as u8) << shift;
            }
            return;
        }
        let bytes = bits / 8;
        if let Some(entry) = block.get_mut(index * bytes..(index + 1) * bytes) {
            entry.copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
        }
    }

    /// The bytes of a block that entry `index` is in.
    #[must_use]
    pub fn bytes_of(self, index: usize) -> std::ops::Range<usize> {
        let bits = self.bits() as usize;
        if bits < 8 {
            let byte = index / (8 / bits);
            byte..byte + 1
        } else {
            index * bits / 8..(index + 1) * bits / 8
        }
    }

    /// The first entry of `block` from `from` on that is 0.
    #[must_use]
    pub fn find_free(self, block: &[u8], from: usize) -> Option<usize> {
        let entries = block.len() * 8 / self.bits() as usize;
        match self.order {
            // The width that nearly every image has, without decoding.
            4 => block
                .chunks_exact(2)
                .skip(from)
                .position(|entry| entry == [0, 0])
                .map(|at| from + at),
            _ => (from..entries).find(|&index| self.get(block, index) == 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_every_width() {
        let block = [0b1110_0100, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07];
        let read = |order, index| RefcountWidth::from_order(order).unwrap().get(&block, index);
        assert_eq!([0, 1, 2, 5].map(|i| read(0, i)), [0, 0, 1, 1]);
        assert_eq!([0, 1, 2, 3, 4].map(|i| read(1, i)), [0, 1, 2, 3, 1]);
        assert_eq!([0, 1, 2].map(|i| read(2, i)), [0x4, 0xe, 0x1]);
        assert_eq!(read(3, 2), 0x02);
        assert_eq!(read(4, 1), 0x0203);
        assert_eq!(read(5, 1), 0x0405_0607);
        assert_eq!(read(6, 0), 0xe401_0203_0405_0607);
        assert_eq!(read(6, 1), 0, "past the block there are no references");
    }

    #[test]
    fn what_is_set_is_what_is_read_and_nothing_else_changes() {
        for order in 0..=6 {
            let width = RefcountWidth::from_order(order).unwrap();
            let entries = 64 * 8 / width.bits() as usize;
            let mut block = [0xff; 64];
            for index in 0..entries {
                width.set(&mut block, index, 0);
                assert_eq!(width.find_free(&block, 0), Some(index));
                assert_eq!(width.find_free(&block, index + 1), None);
                assert_eq!(
                    width.bytes_of(index).len(),
                    (width.bits() as usize).div_ceil(8)
                );
                assert!(block[width.bytes_of(index)] != [0xff; 8][..width.bytes_of(index).len()]);
                width.set(&mut block, index, width.max());
            }
            assert_eq!(block, [0xff; 64]);
            width.set(&mut block, 5 % entries, 1);
            assert_eq!(width.get(&block, 5 % entries), 1);
        }
    }

    #[test]
    fn the_largest_count_of_a_width() {
        assert_eq!(RefcountWidth::from_order(0).unwrap().max(), 1);
        assert_eq!(RefcountWidth::BITS_16.max(), 0xffff);
        assert_eq!(RefcountWidth::from_order(6).unwrap().max(), u64::MAX);
        assert!(RefcountWidth::from_order(7).is_none());
    }
}
