//! What a disk should hold: the model that both programs are compared with.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use crate::rng::Rng;

/// Bytes that no compressor makes smaller: the content of the file that `write -s` takes them from. No
/// single write is longer.
pub fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| Rng::new(0x6e_6f69_7365).bytes(4 << 20))
}

/// What is written: a byte again and again, or the noise file from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This byte.
    Fill(u8),
    /// Noise.
    Noise,
}

impl Pattern {
    /// `len` bytes of it.
    #[must_use]
    pub fn bytes(self, len: u64) -> Vec<u8> {
        match self {
            Self::Fill(byte) => vec![byte; len as usize],
            Self::Noise => noise()[..len as usize].to_vec(),
        }
    }
}

/// What a run holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// This byte.
    Fill(u8),
    /// Noise whose first byte was written at this byte of the disk.
    Noise(u64),
}

/// Runs of bytes. What is in no run is zero, whatever the disk's size is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content(BTreeMap<u64, (u64, Value)>);

impl Content {
    /// Puts `pattern` into `range`.
    pub fn write(&mut self, range: Range<u64>, pattern: Pattern) {
        self.clear(range.clone());
        let value = match pattern {
            Pattern::Fill(byte) => Value::Fill(byte),
            Pattern::Noise => Value::Noise(range.start),
        };
        if !range.is_empty() && value != Value::Fill(0) {
            self.0.insert(range.start, (range.end, value));
        }
    }

    /// Makes `range` zero.
    pub fn clear(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let touched: Vec<(u64, u64, Value)> = self
            .runs(range.clone())
            .map(|(start, &(end, value))| (*start, end, value))
            .collect();
        for (start, end, value) in touched {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, (range.start, value));
            }
            if end > range.end {
                self.0.insert(range.end, (end, value));
            }
        }
    }

    /// Forgets what lies at `size` and beyond.
    pub fn truncate(&mut self, size: u64) {
        self.clear(size..u64::MAX);
    }

    /// The runs that touch `range`.
    fn runs(&self, range: Range<u64>) -> impl Iterator<Item = (&u64, &(u64, Value))> {
        let before = self.0.range(..range.start).next_back();
        let start = match before {
            Some((&start, &(end, _))) if end > range.start && !range.is_empty() => start,
            _ => range.start,
        };
        self.0.range(start..range.end.max(start))
    }

    /// Whether `range` is all zeros.
    #[must_use]
    pub fn is_zero(&self, range: Range<u64>) -> bool {
        self.pieces(range)
            .into_iter()
            .all(|(piece, value)| match value {
                Value::Fill(byte) => byte == 0,
                Value::Noise(origin) => {
                    let bytes = (piece.start - origin) as usize..(piece.end - origin) as usize;
                    noise()[bytes].iter().all(|&byte| byte == 0)
                }
            })
    }

    /// `range` without a gap: pieces that hold one value each, zeros too.
    #[must_use]
    pub fn pieces(&self, range: Range<u64>) -> Vec<(Range<u64>, Value)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        for (&start, &(end, value)) in self.runs(range.clone()) {
            let (start, end) = (start.max(range.start), end.min(range.end));
            if start > at {
                pieces.push((at..start, Value::Fill(0)));
            }
            pieces.push((start..end, value));
            at = end;
        }
        if at < range.end {
            pieces.push((at..range.end, Value::Fill(0)));
        }
        pieces
    }

    /// The bytes of `range`.
    #[must_use]
    pub fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        for (&start, &(end, value)) in self.runs(range.clone()) {
            let (from, to) = (start.max(range.start), end.min(range.end));
            let part = &mut bytes[(from - range.start) as usize..(to - range.start) as usize];
            match value {
                Value::Fill(byte) => part.fill(byte),
                Value::Noise(origin) => {
                    let start = (from - origin) as usize;
                    part.copy_from_slice(&noise()[start..start + part.len()]);
                }
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_say_what_an_array_of_bytes_says() {
        let mut rng = Rng::new(5);
        let mut content = Content::default();
        let mut bytes = vec![0_u8; 5000];
        for step in 0..2000 {
            let start = rng.below(5000);
            let range = start..start + rng.below(5001 - start);
            let part = &mut bytes[range.start as usize..range.end as usize];
            match rng.below(4) {
                0 => {
                    content.clear(range.clone());
                    part.fill(0);
                }
                1 => {
                    content.write(range.clone(), Pattern::Noise);
                    part.copy_from_slice(&noise()[..part.len()]);
                }
                _ => {
                    content.write(range.clone(), Pattern::Fill(step as u8));
                    part.fill(step as u8);
                }
            }
            if rng.one_in(50) {
                content.truncate(range.start);
                bytes[range.start as usize..].fill(0);
            }
            assert_eq!(content.bytes(0..5000), bytes);
            let pieces = content.pieces(range.clone());
            assert_eq!(
                pieces
                    .iter()
                    .map(|(piece, _)| piece.end - piece.start)
                    .sum::<u64>(),
                range.end - range.start
            );
            assert_eq!(
                content.is_zero(range.clone()),
                bytes[range.start as usize..range.end as usize]
                    .iter()
                    .all(|&byte| byte == 0),
            );
        }
    }
}
