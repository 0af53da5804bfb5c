//! Numbers out of byte slices and into them.

/// The `u16` at byte `at`; 0 past the end, as an absent field reads (specification, "Additional fields").
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    field(bytes, at).map_or(0, u16::from_be_bytes)
}

/// The `u32` at byte `at`; 0 past the end.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    field(bytes, at).map_or(0, u32::from_be_bytes)
}

/// The `u64` at byte `at`; 0 past the end.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    field(bytes, at).map_or(0, u64::from_be_bytes)
}

/// Writes `value` at byte `at`, which the caller made room for.
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Writes `value` at byte `at`, which the caller made room for.
pub(crate) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// The little-endian `u16` at byte `at`, as foreign formats have them; 0 past the end.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    field(bytes, at).map_or(0, u16::from_le_bytes)
}

/// The little-endian `u32` at byte `at`; 0 past the end.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    field(bytes, at).map_or(0, u32::from_le_bytes)
}

/// The little-endian `u64` at byte `at`; 0 past the end.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    field(bytes, at).map_or(0, u64::from_le_bytes)
}

/// A name, which ends at the first NUL byte as QEMU reads it.
pub(crate) fn text(bytes: &[u8]) -> String {
    let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A table of big-endian entries, as numbers.
pub(crate) fn be64_table(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default()))
}

/// Numbers, as a table of big-endian entries.
pub(crate) fn be64_bytes(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect()
}
