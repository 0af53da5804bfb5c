//! Bitmaps as they stand in a file, read without any code of the engine.

use std::collections::BTreeSet;

/// What the parser knows of the format.
const BITMAPS_EXTENSION: u32 = 0x2385_2875;
const IN_USE: u32 = 1;
const AUTO: u32 = 2;

/// A bitmap.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    pub name: String,
    pub flags: u32,
    pub granularity_bits: u8,
    pub table_entries: u32,
    pub bits: BTreeSet<u64>,
}

impl Stored {
    pub fn in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    pub fn enabled(&self) -> bool {
        self.flags & AUTO != 0
    }

    pub fn covers(&self, byte: u64) -> bool {
        self.bits.contains(&(byte >> self.granularity_bits))
    }
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = (self.in_use(), self.enabled());
        write!(
            f,
            "{} 2^{} (in use, auto) = {flags:?}:",
            self.name, self.granularity_bits
        )?;
        let mut bits = self.bits.iter().copied().peekable();
        while let Some(start) = bits.next() {
            let mut end = start;
            while bits.next_if_eq(&(end + 1)).is_some() {
                end += 1;
            }
            write!(f, " {start}..={end}")?;
        }
        Ok(())
    }
}

fn number(file: &[u8], at: usize, length: usize) -> u64 {
    let bytes = file.get(at..at + length).unwrap_or_default();
    bytes
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// Where the data of the bitmaps extension stand, if there is one.
pub fn extension_at(file: &[u8]) -> Option<usize> {
    let end = match number(file, 8, 8) {
        0 => 1 << number(file, 20, 4),
        backing => backing as usize,
    };
    let mut at = number(file, 100, 4) as usize;
    while at + 8 <= end {
        let (kind, length) = (number(file, at, 4) as u32, number(file, at + 4, 4) as usize);
        match kind {
            0 => return None,
            BITMAPS_EXTENSION => return Some(at + 8),
            _ => at += 8 + length.next_multiple_of(8),
        }
    }
    None
}

/// The extensions' types, in their order.
pub fn extension_types(file: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    let mut at = number(file, 100, 4) as usize;
    loop {
        let kind = number(file, at, 4) as u32;
        if kind == 0 {
            return found;
        }
        found.push(kind);
        at += 8 + (number(file, at + 4, 4) as usize).next_multiple_of(8);
    }
}

/// Where the directory starts.
pub fn directory_at(file: &[u8]) -> usize {
    let at = extension_at(file).expect("an image with bitmaps");
    number(file, at + 16, 8) as usize
}

/// The bitmaps; none where they are stale. Bits past the end of the bitmap must be zero.
pub fn bitmaps(file: &[u8]) -> Result<Vec<Stored>, String> {
    let cluster = 1_usize << number(file, 20, 4);
    let disk = number(file, 24, 8) / 512 * 512;
    let (Some(at), 1) = (extension_at(file), number(file, 88, 8) & 1) else {
        return Ok(Vec::new());
    };
    let count = number(file, at, 4);
    let directory_bytes = number(file, at + 8, 8) as usize;
    let start = number(file, at + 16, 8) as usize;
    let mut entry = start;
    let mut found = Vec::new();
    for _ in 0..count {
        let table = number(file, entry, 8) as usize;
        let table_entries = number(file, entry + 8, 4) as u32;
        let flags = number(file, entry + 12, 4) as u32;
        let granularity_bits = file[entry + 17];
        let name_bytes = number(file, entry + 18, 2) as usize;
        let name = String::from_utf8_lossy(&file[entry + 24..entry + 24 + name_bytes]).into_owned();
        let mut bits = BTreeSet::new();
        for index in 0..table_entries as usize {
            let item = number(file, table + index * 8, 8);
            let first = (index * cluster * 8) as u64;
            match item {
                0 => {}
                1 => bits.extend(first..first + cluster as u64 * 8),
                _ => {
                    let data = file
                        .get(item as usize..item as usize + cluster)
                        .ok_or_else(|| format!("{name}: no bits at {item:#x}"))?;
                    for (at, byte) in data.iter().enumerate() {
                        let set = (0..8).filter(|bit| byte >> bit & 1 != 0);
                        bits.extend(set.map(|bit| first + (at * 8 + bit) as u64));
                    }
                }
            }
        }
        let in_use = flags & IN_USE != 0;
        let length = disk.div_ceil(1 << granularity_bits);
        let needed = length.div_ceil(cluster as u64 * 8);
        if !in_use && u64::from(table_entries) != needed {
            return Err(format!(
                "{name} has {table_entries} clusters of bits, not {needed}"
            ));
        }
        if let Some(bit) = bits.last().filter(|&&bit| !in_use && bit >= length) {
            return Err(format!("{name} has {length} bits, and bit {bit} is set"));
        }
        found.push(Stored {
            name,
            flags,
            granularity_bits,
            table_entries,
            bits,
        });
        entry += (24 + name_bytes).next_multiple_of(8);
    }
    if entry != start + directory_bytes {
        return Err(format!(
            "the directory has {directory_bytes} bytes, not {}",
            entry - start
        ));
    }
    Ok(found)
}
