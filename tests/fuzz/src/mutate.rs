//! Mutations that know where an image keeps its numbers: without them most inputs die at the first check.

use libfuzzer_sys::fuzzer_mutate;

/// Bytes and widths of the header's fields, the magic left out.
const FIELDS: &[(usize, usize)] = &[
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
];

/// Half of the time what libFuzzer does; else a number of the header or of some table becomes another
/// number that could stand there.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random((u64::from(seed) << 1) | 1);
    if random.below(2) == 0 || size < 512 {
        return fuzzer_mutate(data, size, max_size);
    }
    for _ in 0..=random.below(3) {
        one(&mut data[..size], &mut random);
    }
    size
}

fn one(data: &mut [u8], random: &mut Random) {
    let bits = u32::from_be_bytes([data[20], data[21], data[22], data[23]]);
    let cluster = 1usize << bits.clamp(9, 21);
    let clusters = data.len().div_ceil(cluster) as u64;
    let (at, width) = if random.below(3) == 0 {
        FIELDS[random.below(FIELDS.len() as u64) as usize]
    } else {
        // Tables begin at clusters and have most of their entries first.
        let start = random.below(clusters) as usize * cluster;
        let entries = [4, 64, (cluster / 8) as u64][random.below(3) as usize];
        (
            start + random.below(entries) as usize * 8,
            [8, 8, 8, 4, 2][random.below(5) as usize],
        )
    };
    let number = number(random, cluster as u64, clusters);
    let bytes = &number.to_be_bytes()[8 - width..];
    if let Some(field) = data.get_mut(at..at + width) {
        field.copy_from_slice(bytes);
    }
}

fn number(random: &mut Random, cluster: u64, clusters: u64) -> u64 {
    let offset = random.below(clusters + 2) * cluster;
    let bit = 1u64 << random.below(64);
    match random.below(12) {
        0..3 => offset,
        3..5 => (1 << 63) | offset,
        5 => (1 << 62) | (offset + random.below(cluster)) | (random.below(4) << 54),
        6 => (1 << 62) | (offset + random.below(cluster)) | (random.below(4) << 61),
        7 => offset | 1,
        8 => bit,
        9 => bit.wrapping_sub(random.below(3)),
        10 => random.below(20),
        _ => random.below(u64::MAX),
    }
}

/// A small generator of numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 20) ^ (self.0 >> 41)) % end.max(1)
    }
}
