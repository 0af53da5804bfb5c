//! Memory that systems copy into fast.

use std::ops::{Deref, DerefMut};

/// Where a buffer begins, in multiples of bytes: a line of the processor's cache. What an allocator gives begins 16
/// bytes behind one, and a system that reads a file into that may take five times as long.
const ALIGN: usize = 64;

/// Bytes to be read into, over and over, at an address that systems copy to fast.
///
/// # Examples
///
/// ```
/// let mut buffer = oxcow::storage::Buffer::default();
/// for length in [65_536, 512] {
///     buffer.resize(length);
///     assert_eq!(buffer.len(), length);
/// }
/// ```
#[derive(Debug, Default)]
pub struct Buffer {
    /// The buffer, with what stands before it and behind it.
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Makes it so many bytes long. Its content is whatever it was, or zeros.
    pub fn resize(&mut self, length: usize) {
        if self.bytes.len() - self.start < length {
            // Lengths vary: with powers of two there are few allocations.
            self.bytes = Vec::new();
            self.bytes = vec![0; length.next_power_of_two() + ALIGN - 1];
            let start = self.bytes.as_ptr().align_offset(ALIGN);
            self.start = start.min(ALIGN - 1);
        }
        self.length = length;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_line_of_the_cache_however_long_it_is() {
        let mut buffer = Buffer::default();
        assert!(buffer.is_empty());
        for length in [1, 512, 100, 0, 65_536, 65_537, 3] {
            buffer.resize(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr().addr() % ALIGN, 0, "{length}");
            buffer.fill(7);
        }
    }

    #[test]
    fn is_used_again_as_long_as_it_is_large_enough() {
        let mut buffer = Buffer::default();
        buffer.resize(5000);
        let place = buffer.as_ptr();
        for length in [4096, 1, 8192] {
            buffer.resize(length);
            assert_eq!(buffer.as_ptr(), place, "{length}");
        }
    }
}
