//! The qcow2 format: what its bytes say, checked, and how to say it in bytes. No I/O happens here.
//!
//! One file per structure, named as in the specification (`docs/interop/qcow2` of QEMU).

pub mod bitmap;
pub(crate) mod bytes;
pub mod extension;
pub mod features;
pub mod header;
pub mod l2;
pub mod refcount;
pub mod snapshot;

pub use bitmap::{Bitmap, BitmapFlags};
pub use extension::{Extensions, FeatureName, FeatureType};
pub use features::{Autoclear, Compatible, Incompatible};
pub use header::{Compression, Encryption, Header, RawHeader, Table, Version};
pub use l2::{Compressed, L2Format, Run, RunKind};
pub use refcount::RefcountWidth;
pub(crate) use refcount::check_table_entries;
pub use snapshot::Snapshot;

/// The largest active or snapshot L1 table: 32 MiB.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// The largest refcount table: 8 MiB.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// The most internal snapshots.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// The largest snapshot table: 64 MiB.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// The most extra data that one snapshot table entry may carry, in bytes.
pub const MAX_SNAPSHOT_EXTRA: u32 = 1024;
/// The longest backing file name, in bytes.
pub const MAX_BACKING_NAME: u32 = 1023;
/// The most persistent bitmaps.
pub const MAX_BITMAPS: u32 = 65535;
/// The longest bitmap name, in bytes.
pub const MAX_BITMAP_NAME: u32 = 1023;

/// Bits 9 to 55 of an L1 or L2 entry: a host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63 of an active L1 or L2 entry: the refcount is exactly one (invariant M2).
pub const COPIED: u64 = 1 << 63;
