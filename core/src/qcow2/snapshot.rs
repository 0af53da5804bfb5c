//! The snapshot table (specification, "Snapshots").

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be16, be32, be64, put32, put64, text};
use crate::qcow2::{MAX_SNAPSHOT_EXTRA, MAX_SNAPSHOT_TABLE_BYTES};
use crate::units::HostOffset;

/// The part of an entry before its extra data, in bytes.
pub(crate) const FIXED_BYTES: usize = 40;

/// The extra data that this version knows: the large size of the machine state, the disk size and the
/// instruction count, in bytes. QEMU writes all three too, in version 2 images as well.
const KNOWN_EXTRA: usize = 24;
/// The instruction count that says that none was recorded.
const NO_ICOUNT: u64 = u64::MAX;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identifier, unique in the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where its L1 table starts. Checked when the snapshot is used.
    pub l1_offset: HostOffset,
    /// How many entries its L1 table has. Checked when the snapshot is used.
    pub l1_entries: u32,
    /// When it was taken: seconds since 1970.
    pub date_sec: u32,
    /// When it was taken: nanoseconds of the second.
    pub date_nsec: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// The bytes of the virtual machine's state, stored behind the end of the disk.
    pub vm_state_size: u64,
    /// The guest's disk size in bytes at that time; absent in old version 2 images.
    pub disk_size: Option<u64>,
    /// Instructions executed, for record and replay; absent where not recorded.
    pub icount: Option<u64>,
    /// Extra data past what this version knows: kept whenever the table is rewritten.
    pub unknown_extra: Vec<u8>,
    /// `id` and `name` as they stand in the table: names of other programs need not be UTF-8, and are kept
    /// byte for byte whenever the table is rewritten.
    pub(crate) stored: StoredNames,
}

/// The names of a table entry, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredNames {
    pub id: Vec<u8>,
    pub name: Vec<u8>,
}

impl StoredNames {
    /// The names of a new snapshot.
    pub fn new(id: &str, name: &str) -> Self {
        Self {
            id: id.into(),
            name: name.into(),
        }
    }
}

/// How long the variable parts of an entry are, in bytes.
pub(crate) struct Parts {
    pub extra: u32,
    pub names: u64,
}

/// The lengths in the fixed part of an entry.
pub(crate) fn parts(fixed: &[u8]) -> Parts {
    Parts {
        extra: be32(fixed, 36),
        names: u64::from(be16(fixed, 12)) + u64::from(be16(fixed, 14)),
    }
}

/// Parses the entry at the start of `bytes`, which stands at byte `at` of the file; returns it with its
/// length. `Ok(None)` where `bytes` ends before the entry does.
pub(crate) fn parse(bytes: &[u8], at: u64, index: u32) -> Result<Option<(Snapshot, usize)>> {
    if bytes.len() < FIXED_BYTES {
        return Ok(None);
    }
    let id_bytes = usize::from(be16(bytes, 12));
    let name_bytes = usize::from(be16(bytes, 14));
    let extra_bytes = be32(bytes, 36);
    if extra_bytes > MAX_SNAPSHOT_EXTRA {
        return Err(Error::corrupt(
            format!("Too much extra metadata in snapshot table entry {index}"),
            Place::at(Structure::SnapshotTable, at).entry(index.into()),
        ));
    }
    let extra_end = FIXED_BYTES + extra_bytes as usize;
    let end = extra_end + id_bytes + name_bytes;
    if bytes.len() < end {
        return Ok(None);
    }
    let extra = &bytes[FIXED_BYTES..extra_end];
    let (id, name) = bytes[extra_end..end].split_at(id_bytes);
    let snapshot = Snapshot {
        id: text(id),
        name: text(name),
        l1_offset: HostOffset(be64(bytes, 0)),
        l1_entries: be32(bytes, 8),
        date_sec: be32(bytes, 16),
        date_nsec: be32(bytes, 20),
        vm_clock_nsec: be64(bytes, 24),
        vm_state_size: if extra.len() >= 8 {
            be64(extra, 0)
        } else {
            be32(bytes, 32).into()
        },
        disk_size: (extra.len() >= 16).then(|| be64(extra, 8)),
        icount: (extra.len() >= KNOWN_EXTRA)
            .then(|| be64(extra, 16))
            .filter(|&icount| icount != NO_ICOUNT),
        unknown_extra: extra.get(KNOWN_EXTRA..).unwrap_or_default().to_vec(),
        stored: StoredNames {
            id: id.into(),
            name: name.into(),
        },
    };
    // Entries start at multiples of 8 bytes.
    Ok(Some((snapshot, end.next_multiple_of(8))))
}

impl Snapshot {
    /// The table entry, padded to the next one's start. `size_now` is the size of the guest's disk, which an
    /// old entry without a size of its own stands for as long as nobody resizes the disk: from now on it
    /// says so itself.
    ///
    /// # Panics
    ///
    /// When a name is longer than 65535 bytes: the caller refuses such names.
    pub(crate) fn encode(&self, size_now: u64) -> Vec<u8> {
        let length =
            |name: &[u8]| u16::try_from(name.len()).expect("the length of a name is 16 bits");
        let extra = KNOWN_EXTRA + self.unknown_extra.len();
        let mut bytes = vec![0; FIXED_BYTES + KNOWN_EXTRA];
        put64(&mut bytes, 0, self.l1_offset.0);
        put32(&mut bytes, 8, self.l1_entries);
        bytes[12..14].copy_from_slice(&length(&self.stored.id).to_be_bytes());
        bytes[14..16].copy_from_slice(&length(&self.stored.name).to_be_bytes());
        put32(&mut bytes, 16, self.date_sec);
        put32(&mut bytes, 20, self.date_nsec);
        put64(&mut bytes, 24, self.vm_clock_nsec);
        // What does not fit stands in the extra data only: to a reader that knows none, the snapshot has no
        // machine state, which is better than a part of it.
        put32(&mut bytes, 32, self.vm_state_size.try_into().unwrap_or(0));
        put32(&mut bytes, 36, extra as u32);
        put64(&mut bytes, 40, self.vm_state_size);
        put64(&mut bytes, 48, self.disk_size.unwrap_or(size_now));
        put64(&mut bytes, 56, self.icount.unwrap_or(NO_ICOUNT));
        bytes.extend_from_slice(&self.unknown_extra);
        bytes.extend_from_slice(&self.stored.id);
        bytes.extend_from_slice(&self.stored.name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

/// A snapshot table may not be longer than this many bytes from its start.
pub(crate) fn check_table_length(bytes: u64, table_at: u64) -> Result<()> {
    if bytes > MAX_SNAPSHOT_TABLE_BYTES {
        return Err(Error::corrupt(
            "Snapshot table is too big",
            Place::at(Structure::SnapshotTable, table_at),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(extra: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&0x5_0000u64.to_be_bytes());
        bytes.extend_from_slice(&7u32.to_be_bytes());
        bytes.extend_from_slice(&[0, 1, 0, 4]);
        bytes.extend_from_slice(&1_700_000_000u32.to_be_bytes());
        bytes.extend_from_slice(&5u32.to_be_bytes());
        bytes.extend_from_slice(&9u64.to_be_bytes());
        bytes.extend_from_slice(&11u32.to_be_bytes());
        bytes.extend_from_slice(&(extra.len() as u32).to_be_bytes());
        bytes.extend_from_slice(extra);
        bytes.extend_from_slice(b"1name");
        bytes
    }

    #[test]
    fn entries_with_and_without_extra_data() {
        let (old, length) = parse(&entry(&[]), 0, 0).unwrap().unwrap();
        assert_eq!(
            (old.id.as_str(), old.name.as_str(), length),
            ("1", "name", 48)
        );
        assert_eq!(
            (old.vm_state_size, old.disk_size, old.icount),
            (11, None, None)
        );

        let extra: Vec<u8> = [1u64 << 40, 1 << 30, 77, 0xabcd]
            .iter()
            .flat_map(|n| n.to_be_bytes())
            .collect();
        let (new, _) = parse(&entry(&extra), 0, 0).unwrap().unwrap();
        assert_eq!(
            (new.vm_state_size, new.disk_size, new.icount),
            (1 << 40, Some(1 << 30), Some(77))
        );
        assert_eq!(new.unknown_extra, 0xabcdu64.to_be_bytes());
    }

    #[test]
    fn an_entry_keeps_what_nobody_here_knows() {
        let extra: Vec<u8> = [5u64 << 32, 1 << 30, u64::MAX, 0xabcd]
            .iter()
            .flat_map(|n| n.to_be_bytes())
            .collect();
        let mut bytes = entry(&extra);
        // A name that is not UTF-8 and has a NUL byte in it, and a machine state of more than 32 bits.
        let name = bytes.len() - 4;
        bytes[name..].copy_from_slice(&[0xff, 0, 0xfe, b'x']);
        bytes[32..36].fill(0);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let (snapshot, length) = parse(&bytes, 0, 0).unwrap().unwrap();
        assert_eq!((snapshot.icount, length), (None, bytes.len()));
        assert_eq!(snapshot.encode(77), bytes);
    }

    #[test]
    fn an_old_entry_is_given_its_size() {
        let (old, _) = parse(&entry(&[]), 0, 0).unwrap().unwrap();
        let bytes = old.encode(1 << 20);
        let (new, length) = parse(&bytes, 0, 0).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!(
            new,
            Snapshot {
                disk_size: Some(1 << 20),
                ..old
            }
        );
    }

    #[test]
    fn a_cut_entry_is_incomplete_and_too_much_extra_is_wrong() {
        let bytes = entry(&[]);
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length], 0, 0).unwrap().is_none());
        }
        let mut bytes = entry(&[]);
        bytes[36..40].copy_from_slice(&1025u32.to_be_bytes());
        assert!(
            parse(&bytes, 0, 3)
                .unwrap_err()
                .to_string()
                .contains("snapshot table entry 3")
        );
    }
}
