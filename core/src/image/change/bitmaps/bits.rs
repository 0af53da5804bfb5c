//! The bits of one cluster of a bitmap: bit 0 is the least significant one of the first byte.

use std::ops::Range;

/// Sets the bits of `range`.
pub(super) fn set(bytes: &mut [u8], range: Range<u64>) {
    fill(bytes, range, u8::MAX);
}

/// Clears the bits from `from` on.
pub(super) fn clear_from(bytes: &mut [u8], from: u64) {
    let end = bytes.len() as u64 * 8;
    fill(bytes, from.min(end)..end, 0);
}

/// The first bit of `range` that is `set`; the end of the range where none is.
pub(super) fn next_with(bytes: &[u8], range: Range<u64>, set: bool) -> u64 {
    let other = if set { 0 } else { u8::MAX };
    let mut at = range.start;
    while at < range.end {
        let byte = bytes[(at / 8) as usize];
        if at.is_multiple_of(8) && byte == other {
            at += 8;
        } else if ((byte >> (at % 8)) & 1 == 1) == set {
            return at;
        } else {
            at += 1;
        }
    }
    range.end
}

fn fill(bytes: &mut [u8], range: Range<u64>, value: u8) {
    if range.is_empty() {
        return;
    }
    let (first, last) = ((range.start / 8) as usize, ((range.end - 1) / 8) as usize);
    // The bits of the first and of the last byte that are in the range.
    let head = u8::MAX << (range.start % 8);
    let tail = u8::MAX >> (7 - (range.end - 1) % 8);
    let mut blend = |at: usize, mask: u8| bytes[at] = bytes[at] & !mask | value & mask;
    if first == last {
        blend(first, head & tail);
    } else {
        blend(first, head);
        blend(last, tail);
        bytes[first + 1..last].fill(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_bit_by_bit() {
        let bytes = [0b0001_1000, 0, u8::MAX, u8::MAX, 0b1000_0001];
        for start in 0..40_u64 {
            for end in start..=40 {
                for set in [false, true] {
                    let is = |at: &u64| ((bytes[(at / 8) as usize] >> (at % 8)) & 1 == 1) == set;
                    let expected = (start..end).find(is).unwrap_or(end);
                    assert_eq!(next_with(&bytes, start..end, set), expected);
                }
            }
        }
    }

    #[test]
    fn every_range_of_a_few_bytes() {
        for start in 0..32_u64 {
            for end in start..=32 {
                let mut bytes = [0; 4];
                set(&mut bytes, start..end);
                let expected = (1_u64 << end) - (1_u64 << start);
                assert_eq!(u64::from(u32::from_le_bytes(bytes)), expected);
            }
            let mut bytes = [0xff; 4];
            clear_from(&mut bytes, start);
            assert_eq!(u64::from(u32::from_le_bytes(bytes)), (1_u64 << start) - 1);
        }
        let mut bytes = [0xff; 2];
        clear_from(&mut bytes, 99);
        assert_eq!(bytes, [0xff; 2]);
    }
}
