//! Damage that a repair can mend: refcounts, COPIED flags, refcount blocks and the table of them. What the
//! guest's data is, the tables still say.

use oxcow_tests::rng::Rng;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// A qcow2 file in memory, with just enough of the format to break it in a place that matters.
pub struct Victim {
    pub bytes: Vec<u8>,
    /// Whether a refcount block lies on what the guest needs, so that writing to it would change that.
    shared: bool,
}

/// Where an entry of an active table stands.
struct Entry {
    at: usize,
    value: u64,
}

impl Victim {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            shared: false,
        }
    }

    pub fn number(&self, at: usize, width: usize) -> u64 {
        let bytes = self.bytes.get(at..at + width).unwrap_or_default();
        bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte))
    }

    pub fn set(&mut self, at: usize, width: usize, value: u64) {
        self.bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }

    pub fn cluster(&self) -> usize {
        1 << self.number(20, 4)
    }

    pub fn clusters(&self) -> u64 {
        self.bytes.len().div_ceil(self.cluster()) as u64
    }

    pub fn is_v3(&self) -> bool {
        self.number(4, 4) == 3
    }

    fn has_data_file(&self) -> bool {
        self.is_v3() && self.number(72, 8) & 4 != 0
    }

    /// log2 of the bits of a refcount.
    fn order(&self) -> u32 {
        match self.is_v3() {
            true => self.number(96, 4) as u32,
            false => 4,
        }
    }

    pub fn most(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.order()))
    }

    fn table(&self) -> usize {
        self.number(48, 8) as usize
    }

    fn table_entries(&self) -> usize {
        self.number(56, 4) as usize * self.cluster() / 8
    }

    fn per_block(&self) -> u64 {
        (self.cluster() as u64 * 8) >> self.order()
    }

    /// Where the refcount of a cluster stands: the byte, and the bit in it for narrow ones.
    fn place(&self, cluster: u64) -> Option<(usize, u32)> {
        let index = (cluster / self.per_block()) as usize;
        if index >= self.table_entries() {
            return None;
        }
        let block = self.number(self.table() + index * 8, 8) as usize;
        let bit = (cluster % self.per_block()) << self.order();
        let at = block + (bit / 8) as usize;
        let sound = block != 0 && block.is_multiple_of(self.cluster());
        (sound && at + 8 <= self.bytes.len()).then_some((at, (bit % 8) as u32))
    }

    pub fn refcount(&self, cluster: u64) -> Option<u64> {
        let (at, bit) = self.place(cluster)?;
        Some(match self.order() {
            order @ 0..3 => self.number(at, 1) >> bit & ((1 << (1 << order)) - 1),
            order => self.number(at, 1 << (order - 3)),
        })
    }

    pub fn set_refcount(&mut self, cluster: u64, count: u64) -> bool {
        let place = self.place(cluster).filter(|_| !self.shared);
        let Some((at, bit)) = place else {
            return false;
        };
        match self.order() {
            order @ 0..3 => {
                let mask = ((1u64 << (1 << order)) - 1) << bit;
                let byte = self.number(at, 1) & !mask | (count << bit) & mask;
                self.set(at, 1, byte);
            }
            order => self.set(at, 1 << (order - 3), count),
        }
        true
    }

    fn entries(&self, table: usize, count: usize, step: usize) -> Vec<Entry> {
        (0..count)
            .map(|index| table + index * step)
            .filter(|at| at + 8 <= self.bytes.len())
            .map(|at| Entry {
                at,
                value: self.number(at, 8),
            })
            .filter(|entry| entry.value & OFFSET != 0)
            .collect()
    }

    fn l1(&self) -> Vec<Entry> {
        let (table, count) = (self.number(40, 8) as usize, self.number(36, 4) as usize);
        self.entries(table, count, 8)
    }

    /// Entries of active L2 tables that are not compressed.
    fn l2(&self) -> Vec<Entry> {
        let step = match self.is_v3() && self.number(72, 8) & 16 != 0 {
            true => 16,
            false => 8,
        };
        let count = self.cluster() / step;
        self.l1()
            .into_iter()
            .flat_map(|entry| self.entries((entry.value & OFFSET) as usize, count, step))
            .filter(|entry| entry.value & COMPRESSED == 0)
            .collect()
    }

    /// Indices of refcount blocks that there are.
    fn blocks(&self) -> Vec<usize> {
        (0..self.table_entries())
            .filter(|index| self.number(self.table() + index * 8, 8) != 0)
            .collect()
    }
}

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    Leak,
    Leaks,
    LeakAtTheEnd,
    TooLow,
    Zero,
    Noise,
    CopiedL1,
    CopiedL2,
    ManyCopied,
    BlockLost,
    BlockUnaligned,
    BlockReserved,
    BlockPastEnd,
    BlockTwice,
    BlockOnData,
    BlockOnL2,
    UnusedEntry,
    TableCleared,
    Dirty,
    Corrupt,
}

impl Harm {
    /// Those after which nothing but refcounts one by one and flags is wrong.
    pub const SMALL: &[Self] = &[
        Self::Leak,
        Self::Leaks,
        Self::LeakAtTheEnd,
        Self::TooLow,
        Self::CopiedL1,
        Self::CopiedL2,
        Self::ManyCopied,
        Self::Dirty,
        Self::Corrupt,
    ];
    /// Those that have the refcounts built anew.
    pub const LARGE: &[Self] = &[
        Self::Zero,
        Self::Noise,
        Self::BlockLost,
        Self::BlockUnaligned,
        Self::BlockReserved,
        Self::BlockPastEnd,
        Self::BlockTwice,
        Self::BlockOnData,
        Self::BlockOnL2,
        Self::UnusedEntry,
        Self::TableCleared,
    ];

    /// Does it, where that is possible; says what was done.
    pub fn apply(self, victim: &mut Victim, rng: &mut Rng) -> Option<String> {
        let done = self.find_and_do(victim, rng)?;
        Some(format!("{self:?} {done}"))
    }

    fn find_and_do(self, victim: &mut Victim, rng: &mut Rng) -> Option<String> {
        let flip = |victim: &mut Victim, entries: Vec<Entry>, rng: &mut Rng, many: bool| {
            let before = entries.len();
            for entry in &entries {
                if many && rng.one_in(2) {
                    victim.set(entry.at, 8, entry.value ^ COPIED);
                }
            }
            if many {
                return (before > 0).then(|| format!("among {before}"));
            }
            let entry = (before > 0).then(|| rng.pick(&entries))?;
            victim.set(entry.at, 8, entry.value ^ COPIED);
            Some(format!("{:#x} at {:#x}", entry.value, entry.at))
        };
        match self {
            Self::Leak => {
                let cluster = rng.below(victim.clusters());
                let old = victim.refcount(cluster)?;
                let room = victim.most() - old;
                let by = (room > 0).then(|| 1 + rng.below(room.min(3)))?;
                victim.set_refcount(cluster, old + by).then_some(())?;
                Some(format!("of cluster {cluster}: {old} + {by}"))
            }
            Self::Leaks => {
                let mut count = 0;
                for cluster in 0..victim.clusters() {
                    let old = victim.refcount(cluster);
                    if let Some(old) = old.filter(|&old| old < victim.most() && rng.one_in(8)) {
                        count += u64::from(victim.set_refcount(cluster, old + 1));
                    }
                }
                (count > 0).then(|| format!("of {count} clusters"))
            }
            Self::LeakAtTheEnd => {
                let first = victim.clusters();
                let count = 1 + rng.below(5);
                let length = (first + count) as usize * victim.cluster();
                victim.bytes.resize(length, 0x5a);
                let counted = (first..first + count)
                    .filter(|&cluster| victim.set_refcount(cluster, 1))
                    .count();
                Some(format!("of {counted} clusters from {first} on"))
            }
            Self::TooLow | Self::Zero => {
                let low = self == Self::TooLow;
                let used: Vec<(u64, u64)> = (0..victim.clusters())
                    .filter_map(|cluster| Some((cluster, victim.refcount(cluster)?)))
                    .filter(|(_, count)| *count > u64::from(low))
                    .collect();
                let (cluster, old) = *(!used.is_empty()).then(|| rng.pick(&used))?;
                let new = if low { 1 + rng.below(old - 1) } else { 0 };
                victim.set_refcount(cluster, new).then_some(())?;
                Some(format!("of cluster {cluster}: {old} to {new}"))
            }
            Self::Noise => {
                let blocks = if victim.shared {
                    Vec::new()
                } else {
                    victim.blocks()
                };
                let index = *(!blocks.is_empty()).then(|| rng.pick(&blocks))?;
                let at = victim.number(victim.table() + index * 8, 8) as usize;
                let length = victim.cluster().min(512);
                let noise: Vec<u8> = rng.bytes(length).iter().map(|byte| byte & 3).collect();
                victim
                    .bytes
                    .get_mut(at..at + length)?
                    .copy_from_slice(&noise);
                Some(format!("in block {index}"))
            }
            Self::CopiedL1 => flip(victim, victim.l1(), rng, false),
            Self::CopiedL2 => flip(victim, victim.l2(), rng, false),
            Self::ManyCopied => flip(victim, victim.l2(), rng, true),
            Self::TableCleared => {
                let (at, length) = (victim.table(), victim.table_entries() * 8);
                victim.bytes.get_mut(at..at + length)?.fill(0);
                Some(String::new())
            }
            Self::UnusedEntry => {
                let index = victim.table_entries() - 1;
                let at = victim.table() + index * 8;
                let value = (1 + rng.below(victim.clusters() * 2)) * 512 + rng.below(2);
                (victim.number(at, 8) == 0).then(|| victim.set(at, 8, value))?;
                Some(format!("{index} is {value:#x}"))
            }
            Self::Dirty | Self::Corrupt => {
                let bit = if self == Self::Dirty { 1 } else { 2 };
                let features = victim.is_v3().then(|| victim.number(72, 8))?;
                victim.set(72, 8, features | bit);
                Some(String::new())
            }
            _ => {
                let blocks = victim.blocks();
                let index = *(!blocks.is_empty()).then(|| rng.pick(&blocks))?;
                let at = victim.table() + index * 8;
                let old = victim.number(at, 8);
                let new = match self {
                    Self::BlockLost => 0,
                    Self::BlockUnaligned => (victim.cluster() > 512).then(|| old + 512)?,
                    Self::BlockReserved => old | (1 + rng.below(511)),
                    // Not far: the judge makes the file that long.
                    Self::BlockPastEnd => {
                        (victim.clusters() + 1 + rng.below(30)) * victim.cluster() as u64
                    }
                    Self::BlockTwice => {
                        let others: Vec<usize> =
                            blocks.iter().copied().filter(|&at| at != index).collect();
                        let other = *(!others.is_empty()).then(|| rng.pick(&others))?;
                        victim.number(victim.table() + other * 8, 8)
                    }
                    Self::BlockOnData | Self::BlockOnL2 => {
                        let entries = match self {
                            // Those of a data file are in another file.
                            Self::BlockOnData if victim.has_data_file() => return None,
                            // More references than a bit can count: told, and good when that is repeated.
                            _ if victim.most() == 1 => return None,
                            Self::BlockOnData => victim.l2(),
                            _ => victim.l1(),
                        };
                        let entry = (!entries.is_empty()).then(|| rng.pick(&entries))?;
                        victim.shared = true;
                        entry.value & OFFSET
                    }
                    _ => return None,
                };
                victim.set(at, 8, new);
                Some(format!("{index}: {old:#x} to {new:#x}"))
            }
        }
    }
}
