//! The snapshot table (specification, "Snapshots").

use crate::error::{Error, Place, Result, Structure};
use crate::qcow2::bytes::{be16, be32, be64, text};
use crate::qcow2::{MAX_SNAPSHOT_EXTRA, MAX_SNAPSHOT_TABLE_BYTES};
use crate::units::HostOffset;

/// The part of an entry before its extra data, in bytes.
pub(crate) const FIXED_BYTES: usize = 40;

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
    let name = |from: usize, length: usize| text(&bytes[from..from + length]);
    let snapshot = Snapshot {
        id: name(extra_end, id_bytes),
        name: name(extra_end + id_bytes, name_bytes),
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
        icount: (extra.len() >= 24).then(|| be64(extra, 16)),
        unknown_extra: extra.get(24..).unwrap_or_default().to_vec(),
    };
    // Entries start at multiples of 8 bytes.
    Ok(Some((snapshot, end.next_multiple_of(8))))
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
