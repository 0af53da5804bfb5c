//! A qcow2 file: every number of its header, its features, the names in it, its tables.

use crate::chain::{DenyAll, File};
use crate::error::{Error, Place, Result, Role, Structure};
use crate::image::{Backing, Image, OpenOptions};
use crate::inspect::Reader;
use crate::inspect::expansion;
use crate::inspect::names::shown;
use crate::inspect::report::{Draft, Severity, size};
use crate::inspect::tables::{self, Budget, Claim, Layout, Range};
use crate::probe::{Format, Probed, probe};
use crate::qcow2::extension::{self, Area, Surroundings};
use crate::qcow2::header::{TableRules, V2_LENGTH, V3_LENGTH};
use crate::qcow2::{
    Autoclear, Compatible, Encryption, Extensions, FeatureName, FeatureType, Incompatible,
    L2Format, MAX_BACKING_NAME, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOT_TABLE_BYTES,
    MAX_SNAPSHOTS, RawHeader, Snapshot, bitmap, snapshot,
};
use crate::storage::Storage;
use crate::units::{ClusterSize, GuestOffset, SECTOR};

/// The length of all header fields that have a meaning, in bytes.
const HEADER_BYTES: usize = 112;
/// How much of an image with an impossible cluster size is taken for its first cluster.
const FALLBACK_CLUSTER: usize = 64 << 10;
/// How many unknown features of a kind are told one by one.
const MAX_FEATURES: usize = 8;
/// The largest snapshot table and bitmap directory that are read.
const MAX_LIST_BYTES: u64 = 16 << 20;

/// Everything about the qcow2 file in `reader`.
pub(super) async fn inspect<S: Storage>(draft: &mut Draft, reader: &Reader<'_, S>) -> Result<()> {
    let start = reader.read(0, HEADER_BYTES).await?;
    let raw = RawHeader::decode(&start);
    if start.len() < least_length(&raw) as usize {
        draft
            .danger(
                "header-cut-off",
                format!(
                    "The file ends after {}, inside its own header.",
                    size(start.len() as u64)
                ),
            )
            .at(Place::of(Structure::Header))
            .with(start.len() as u64);
    }
    let cluster_size = ClusterSize::from_bits(raw.cluster_bits);
    let mut first = vec![0; cluster_size.map_or(FALLBACK_CLUSTER, ClusterSize::len)];
    reader.fill(0, &mut first).await?;
    let area = extension_area(&raw, &first);

    draft.set_virtual_size(raw.size);
    numbers(draft, &raw, cluster_size);
    let extensions = extensions(draft, &raw, cluster_size, area);
    features(draft, &raw, &extensions.feature_names);
    other_files(draft, &raw, &extensions, &first);
    describe(draft, &raw, cluster_size, &extensions);
    let mut snapshot_sizes = Vec::new();
    if let Some(cluster_size) = cluster_size {
        snapshot_sizes = all_tables(draft, reader, &raw, cluster_size, &extensions).await?;
    }
    expansion::judge(draft, raw.size, &snapshot_sizes);
    open(draft, reader).await
}

fn least_length(raw: &RawHeader) -> u32 {
    if raw.version >= 3 {
        V3_LENGTH
    } else {
        V2_LENGTH
    }
}

fn header_at(byte: u64) -> Place {
    Place::at(Structure::Header, byte)
}

fn extension_area<'a>(raw: &RawHeader, first: &'a [u8]) -> Area<'a> {
    let end = match usize::try_from(raw.backing_file_offset) {
        Ok(at) if at != 0 && at <= first.len() => at,
        _ => first.len(),
    };
    // An impossible header length does not hide what stands where the extensions usually do.
    let usual = least_length(raw).max(V2_LENGTH);
    let length = if raw.header_length < usual || raw.header_length as usize > first.len() {
        usual
    } else {
        raw.header_length
    };
    Area {
        bytes: first.get(length as usize..end).unwrap_or_default(),
        at: length.into(),
    }
}

/// Numbers of the header that cannot be, whatever the tables look like.
fn numbers(draft: &mut Draft, raw: &RawHeader, cluster_size: Option<ClusterSize>) {
    if raw.version > 3 {
        draft
            .warning(
                "version-unknown",
                format!(
                    "The image is of version {} of its format; versions 2 and 3 are known here.",
                    raw.version
                ),
            )
            .at(header_at(4))
            .with(raw.version.into());
    }
    if cluster_size.is_none() {
        draft
            .danger(
                "cluster-size-impossible",
                format!(
                    "The image claims clusters of 2^{} bytes; the format has 2^9 to 2^21.",
                    raw.cluster_bits
                ),
            )
            .at(header_at(20))
            .with(raw.cluster_bits.into());
    }
    let longest = cluster_size.map_or(u64::from(u32::MAX), ClusterSize::bytes);
    if raw.version >= 3 && (raw.header_length < V3_LENGTH || u64::from(raw.header_length) > longest)
    {
        draft
            .danger(
                "header-length-impossible",
                format!("The header claims a length of {} bytes.", raw.header_length),
            )
            .at(header_at(100))
            .with(raw.header_length.into());
    }
    if raw.refcount_order > 6 {
        draft
            .danger(
                "refcount-width-impossible",
                format!(
                    "The image claims reference counts of 2^{} bits; the format has up to 64.",
                    raw.refcount_order
                ),
            )
            .at(header_at(96))
            .with(raw.refcount_order.into());
    }
    if raw.refcount_table_clusters == 0 {
        draft
            .danger(
                "refcount-table-missing",
                "The image has no refcount table: nobody can tell which parts of the file are in use.",
            )
            .at(header_at(56))
            .with(0);
    }
    compression(draft, raw);
    if raw.crypt_method > 2 {
        draft
            .warning(
                "encryption-unknown",
                "The image is encrypted in a way that is not known here.",
            )
            .at(header_at(32))
            .with(raw.crypt_method.into());
    }
    let extended = Incompatible(raw.incompatible_features).has(Incompatible::EXTENDED_L2);
    if let Some(cluster) = cluster_size.filter(|cluster| extended && cluster.bytes() / 32 < SECTOR)
    {
        draft
            .danger(
                "subclusters-impossible",
                format!(
                    "Clusters of {} are too small to be divided as the image claims.",
                    size(cluster.bytes())
                ),
            )
            .at(header_at(20))
            .with(cluster.bytes());
    }
    let has_data_file = Incompatible(raw.incompatible_features).has(Incompatible::DATA_FILE);
    if Autoclear(raw.autoclear_features).has(Autoclear::DATA_FILE_RAW) && !has_data_file {
        draft
            .warning(
                "data-file-raw-alone",
                "The image says how its data file is used, but has none.",
            )
            .at(header_at(88).entry(1))
            .with(raw.autoclear_features);
    }
    virtual_size(draft, raw, cluster_size, extended);
}

fn compression(draft: &mut Draft, raw: &RawHeader) {
    let bit = Incompatible(raw.incompatible_features).has(Incompatible::COMPRESSION_TYPE);
    let kind = raw.compression_type;
    if kind > 1 {
        draft
            .warning(
                "compression-unknown",
                "The image is compressed in a way that is not known here.",
            )
            .at(header_at(104))
            .with(kind.into());
    } else if bit != (kind != 0) {
        draft
            .danger(
                "compression-contradiction",
                "Two places of the header contradict each other about the compression: programs may read the content \
                 differently.",
            )
            .at(header_at(104))
            .with(kind.into());
    }
}

fn virtual_size(
    draft: &mut Draft,
    raw: &RawHeader,
    cluster_size: Option<ClusterSize>,
    extended: bool,
) {
    if raw.size > i64::MAX as u64 {
        draft
            .danger(
                "size-impossible",
                "The image claims a disk larger than the largest file there can be.",
            )
            .at(header_at(24))
            .with(raw.size);
    }
    let Some(cluster) = cluster_size else { return };
    let per_table = cluster.bytes() / if extended { 16 } else { 8 };
    let needed = cluster.count_for(raw.size).div_ceil(per_table);
    if needed > u64::from(raw.l1_size) {
        draft
            .danger(
                "l1-table-too-small",
                format!(
                    "The L1 table has {} entries; a disk of {} needs {needed}.",
                    raw.l1_size,
                    size(raw.size)
                ),
            )
            .at(header_at(36))
            .with(raw.l1_size.into());
    }
}

fn extensions(
    draft: &mut Draft,
    raw: &RawHeader,
    cluster_size: Option<ClusterSize>,
    area: Area<'_>,
) -> Extensions {
    let surroundings = Surroundings {
        // With an impossible size nothing more is told about offsets than any size would.
        cluster_size: cluster_size.unwrap_or(ClusterSize::SMALLEST),
        encryption: encryption(raw),
        autoclear: Autoclear(raw.autoclear_features),
    };
    let (extensions, errors) = Extensions::parse_all(area, surroundings);
    for error in errors {
        let place = error
            .place()
            .unwrap_or(Place::of(Structure::HeaderExtension));
        draft.entry(
            Severity::Danger,
            "extension-impossible",
            place,
            place.offset.unwrap_or(0),
            || format!("A part of the header contradicts the format: {error}."),
        );
    }
    for (kind, at) in extension::repeated(area) {
        let place = Place::at(Structure::HeaderExtension, at);
        draft.entry(
            Severity::Warning,
            "extension-repeated",
            place,
            kind.into(),
            || {
                "The header says the same thing twice: programs may not agree on which one counts."
                    .into()
            },
        );
    }
    for (kind, _) in &extensions.unknown {
        let place = Place::of(Structure::HeaderExtension);
        draft.entry(
            Severity::Note,
            "extension-unknown",
            place,
            (*kind).into(),
            || "The header has a part that is not known here. It can be ignored.".into(),
        );
    }
    extensions
}

fn encryption(raw: &RawHeader) -> Encryption {
    match raw.crypt_method {
        1 => Encryption::Aes,
        2 => Encryption::Luks,
        _ => Encryption::None,
    }
}

/// Feature bits: unknown ones by the names that the image itself gives them, and those that are marks.
fn features(draft: &mut Draft, raw: &RawHeader, names: &[FeatureName]) {
    let incompatible = Incompatible(raw.incompatible_features);
    let kinds = [
        (FeatureType::Incompatible, incompatible.unknown(), 72),
        (
            FeatureType::Compatible,
            Compatible(raw.compatible_features).unknown(),
            80,
        ),
        (
            FeatureType::Autoclear,
            Autoclear(raw.autoclear_features).unknown(),
            88,
        ),
    ];
    for (kind, unknown, byte) in kinds {
        let bits = (0..64u8).filter(|bit| unknown >> bit & 1 != 0);
        for (told, bit) in bits.enumerate() {
            let name = names
                .iter()
                .find(|name| name.kind == kind && name.bit == bit);
            let name = name.map_or_else(String::new, |name| {
                format!(", which the image calls {}", shown(&name.name))
            });
            let (severity, code, words) = match kind {
                FeatureType::Incompatible => (
                    Severity::Warning,
                    "unknown-incompatible-feature",
                    "that must be understood to read it and is not known here",
                ),
                FeatureType::Compatible => (
                    Severity::Note,
                    "unknown-compatible-feature",
                    "that is not known here and can be ignored",
                ),
                FeatureType::Autoclear => (
                    Severity::Note,
                    "unknown-autoclear-feature",
                    "that is not known here and is switched off when the image is written",
                ),
            };
            let place = header_at(byte).entry(bit.into());
            if told < MAX_FEATURES {
                draft
                    .find(
                        severity,
                        code,
                        format!("The image uses feature {bit}{name}, {words}."),
                    )
                    .at(place)
                    .with(bit.into());
            } else {
                draft.entry(severity, code, place, bit.into(), || {
                    "The image uses more features that are not known here.".into()
                });
            }
        }
    }
    if incompatible.has(Incompatible::DIRTY) {
        draft
            .warning(
                "dirty",
                "The image was not closed properly: its bookkeeping may be out of date. Check it before writing to it.",
            )
            .at(header_at(72).entry(0));
    }
    if incompatible.has(Incompatible::CORRUPT) {
        draft
            .warning(
                "corrupt",
                "A program that used the image found it damaged and marked it so. Check it before relying on it.",
            )
            .at(header_at(72).entry(1));
    }
    match encryption(raw) {
        Encryption::None => {}
        Encryption::Luks => {
            draft
                .note(
                    "encrypted",
                    "The content is encrypted (LUKS): it cannot be read without its key.",
                )
                .at(header_at(32))
                .with(2);
        }
        Encryption::Aes => {
            draft
                .warning(
                    "encrypted-weakly",
                    "The content is encrypted with an old method that protects it badly (AES-CBC).",
                )
                .at(header_at(32))
                .with(1);
        }
    }
}

/// The files that the image names.
fn other_files(draft: &mut Draft, raw: &RawHeader, extensions: &Extensions, first: &[u8]) {
    backing_file(draft, raw, extensions, first);
    let place = Place::of(Structure::HeaderExtension);
    let has_data_file = Incompatible(raw.incompatible_features).has(Incompatible::DATA_FILE);
    match (&extensions.data_file, has_data_file) {
        (Some(name), true) => draft.want(Role::DataFile, name.as_bytes(), Some("raw"), place),
        (None, true) => {
            draft
                .warning(
                    "data-file-unnamed",
                    "The content is in another file, and the image does not say in which one.",
                )
                .at(header_at(72).entry(2));
        }
        (Some(name), false) => {
            draft
                .note(
                    "data-file-unused",
                    format!(
                        "The image names the data file {}, but is not marked as having one.",
                        shown(name)
                    ),
                )
                .at(place);
        }
        (None, false) => {}
    }
}

fn backing_file(draft: &mut Draft, raw: &RawHeader, extensions: &Extensions, first: &[u8]) {
    let (at, length) = (raw.backing_file_offset, raw.backing_file_size);
    if at == 0 {
        return;
    }
    let end = at.saturating_add(length.into());
    if length > MAX_BACKING_NAME || end > first.len() as u64 || at < least_length(raw).into() {
        draft
            .danger(
                "backing-name-out-of-bounds",
                format!("The name of the backing file is said to be at byte {at} with {length} bytes, where it cannot be."),
            )
            .at(header_at(8))
            .with(at);
    }
    // What is there is shown even where it should not be, as far as it is a name.
    let end = end
        .min(at.saturating_add(MAX_BACKING_NAME.into()))
        .min(first.len() as u64);
    let name = usize::try_from(at)
        .ok()
        .and_then(|at| first.get(at..end as usize))
        .unwrap_or_default();
    if name.is_empty() {
        draft
            .warning(
                "backing-name-empty",
                "The image is marked as having a backing file, but does not name it.",
            )
            .at(header_at(16))
            .with(length.into());
        return;
    }
    let format = extensions.backing_format.as_deref();
    draft.want(
        Role::Backing,
        name,
        format,
        Place::at(Structure::BackingName, at),
    );
    if format.is_none() {
        draft
            .warning(
                "backing-format-missing",
                "The image does not say which format its backing file has. A program that guesses can be misled by \
                 that file's content: always say the format.",
            )
            .at(Place::at(Structure::BackingName, at));
    }
}

/// The facts that the header tells.
fn describe(
    draft: &mut Draft,
    raw: &RawHeader,
    cluster_size: Option<ClusterSize>,
    extensions: &Extensions,
) {
    let compat = match raw.version {
        2 => "2 (compat 0.10)".into(),
        3 => "3 (compat 1.1)".into(),
        other => other.to_string(),
    };
    draft.number_fact("version", "Version", compat, raw.version.into());
    if let Some(cluster) = cluster_size {
        draft.number_fact(
            "cluster-size",
            "Cluster size",
            size(cluster.bytes()),
            cluster.bytes(),
        );
    }
    if raw.refcount_order <= 6 {
        let bits = 1 << raw.refcount_order;
        draft.number_fact(
            "refcount-bits",
            "Refcount width",
            format!("{bits} bits"),
            bits,
        );
    }
    let compression = match raw.compression_type {
        0 => "zlib",
        1 => "zstd",
        _ => "unknown",
    };
    draft.fact("compression-type", "Compression", compression);
    let known = [
        (FeatureType::Incompatible, raw.incompatible_features),
        (FeatureType::Compatible, raw.compatible_features),
        (FeatureType::Autoclear, raw.autoclear_features),
    ];
    let features: Vec<&str> = known
        .iter()
        .flat_map(|&(kind, bits)| {
            (0..64u8)
                .filter(move |bit| bits >> bit & 1 != 0)
                .filter_map(move |bit| extension::specified_name(kind, bit))
        })
        .collect();
    if !features.is_empty() {
        draft.fact("features", "Features", features.join(", "));
    }
    match encryption(raw) {
        Encryption::None => {}
        Encryption::Aes => draft.fact("encryption", "Encryption", "AES"),
        Encryption::Luks => draft.fact("encryption", "Encryption", "LUKS"),
    }
    if raw.nb_snapshots > 0 {
        draft.number_fact(
            "snapshots",
            "Snapshots",
            raw.nb_snapshots.to_string(),
            raw.nb_snapshots.into(),
        );
    }
    if let Some(bitmaps) = extensions.bitmaps {
        draft.number_fact(
            "bitmaps",
            "Bitmaps",
            bitmaps.count.to_string(),
            bitmaps.count.into(),
        );
    }
}

/// Every table that the header leads to. Returns the snapshots' disk sizes.
async fn all_tables<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    raw: &RawHeader,
    cluster_size: ClusterSize,
    extensions: &Extensions,
) -> Result<Vec<expansion::Claim>> {
    let incompatible = Incompatible(raw.incompatible_features);
    let extended = incompatible.has(Incompatible::EXTENDED_L2);
    let format = L2Format {
        cluster_size,
        extended,
        zero_flag: raw.version >= 3 && !extended,
        data_file: incompatible.has(Incompatible::DATA_FILE),
    };
    let mut layout = Layout::new(format, reader.len);
    let root = |structure, said_at, offset, bytes, limit_bytes| Claim {
        structure,
        index: None,
        said_at: header_at(said_at),
        offset,
        bytes,
        limit_bytes,
    };
    let refcount_bytes = u64::from(raw.refcount_table_clusters) * cluster_size.bytes();
    let refcounts = layout.claim(
        draft,
        root(
            Structure::RefcountTable,
            48,
            raw.refcount_table_offset,
            refcount_bytes,
            MAX_REFCOUNT_TABLE_BYTES,
        ),
    );
    let l1_bytes = u64::from(raw.l1_size) * 8;
    let l1 = layout.claim(
        draft,
        root(
            Structure::L1Table,
            40,
            raw.l1_table_offset,
            l1_bytes,
            MAX_L1_BYTES,
        ),
    );
    let least = u64::from(raw.nb_snapshots) * snapshot::FIXED_BYTES as u64;
    let most = u64::from(MAX_SNAPSHOTS) * snapshot::FIXED_BYTES as u64;
    let snapshots = layout.claim(
        draft,
        root(
            Structure::SnapshotTable,
            64,
            raw.snapshots_offset,
            least,
            most,
        ),
    );

    let mut budget = Budget::new();
    if refcounts {
        let entries = refcount_bytes / 8;
        tables::scan_refcount_table(
            draft,
            reader,
            &layout,
            &mut budget,
            raw.refcount_table_offset,
            entries,
        )
        .await?;
    }
    if l1 {
        let l2_tables = tables::scan_l1(
            draft,
            reader,
            &layout,
            &mut budget,
            raw.l1_table_offset,
            raw.l1_size.into(),
        )
        .await?;
        tables::sample_l2(draft, reader, &layout, &l2_tables).await?;
    }
    let mut sizes = Vec::new();
    if snapshots {
        sizes = all_snapshots(draft, reader, raw, &mut layout, &mut budget).await?;
    }
    bitmaps(draft, reader, &mut layout, extensions, raw).await?;
    if let Some(crypto) = extensions.crypto {
        layout.claim(
            draft,
            Claim {
                structure: Structure::CryptoHeader,
                index: None,
                said_at: Place::of(Structure::CryptoHeader),
                offset: crypto.offset.0,
                bytes: crypto.length,
                limit_bytes: u64::MAX,
            },
        );
    }
    layout.overlaps(draft);
    budget.report(draft);
    Ok(sizes)
}

/// The snapshots and their L1 tables. Returns their disk sizes.
async fn all_snapshots<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    raw: &RawHeader,
    layout: &mut Layout,
    budget: &mut Budget,
) -> Result<Vec<expansion::Claim>> {
    /// More than the longest entry.
    const PIECE: usize = 256 << 10;
    let table = raw.snapshots_offset;
    let mut sizes = Vec::new();
    let mut ids = std::collections::HashSet::new();
    let mut at = table;
    let (mut piece, mut piece_at) = (Vec::new(), table);
    for index in 0..raw.nb_snapshots {
        let place = Place::at(Structure::SnapshotTable, at).entry(index.into());
        let broken = |draft: &mut Draft, how: &str| {
            draft.entry(
                Severity::Danger,
                "snapshot-table-impossible",
                place,
                index.into(),
                || {
                    format!(
                        "The list of snapshots breaks off at snapshot {}: {how}.",
                        u64::from(index) + 1
                    )
                },
            );
        };
        if at - table > MAX_LIST_BYTES {
            if at - table > MAX_SNAPSHOT_TABLE_BYTES {
                broken(draft, "it is longer than the format allows");
            }
            draft
                .warning(
                    "not-all-examined",
                    "The image has more snapshots than are looked at here.",
                )
                .at(place)
                .with(raw.nb_snapshots.into());
            break;
        }
        let used = (at - piece_at) as usize;
        let mut parsed = snapshot::parse(piece.get(used..).unwrap_or_default(), at, index);
        if matches!(parsed, Ok(None)) {
            piece = reader.read(at, PIECE).await?;
            piece_at = at;
            parsed = snapshot::parse(&piece, at, index);
        }
        let (snapshot, length) = match parsed {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                broken(draft, "the file ends before it does");
                break;
            }
            Err(error) => {
                broken(draft, &error.to_string());
                break;
            }
        };
        if !ids.insert(snapshot.id.clone()) {
            draft.entry(Severity::Warning, "snapshot-id-twice", place, index.into(), || {
                format!("Two snapshots have the number {}: programs may not agree on which one is meant.", shown(&snapshot.id))
            });
        }
        one_snapshot(draft, reader, raw, layout, budget, &snapshot, index, place).await?;
        sizes.push(expansion::Claim {
            bytes: snapshot.disk_size.unwrap_or(raw.size),
            place,
        });
        at += length as u64;
    }
    if at > table {
        // The header's claim was for the least that so many snapshots take.
        if let Some(range) = layout
            .tables
            .iter_mut()
            .find(|range| range.structure == Structure::SnapshotTable)
        {
            range.end = range.end.max(at);
        }
    }
    Ok(sizes)
}

#[allow(clippy::too_many_arguments)] // One call, from the loop above.
async fn one_snapshot<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    raw: &RawHeader,
    layout: &mut Layout,
    budget: &mut Budget,
    snapshot: &Snapshot,
    index: u32,
    place: Place,
) -> Result<()> {
    let name = shown(&snapshot.name);
    if raw.version >= 3 && snapshot.disk_size.is_none() {
        draft.entry(
            Severity::Warning,
            "snapshot-incomplete",
            place,
            index.into(),
            || format!("Snapshot {name} does not say how large its disk was."),
        );
    }
    if let Some(disk) = snapshot.disk_size {
        let coverage = (layout.cluster_size.bytes() / layout.format.entry_bytes())
            << layout.cluster_size.bits();
        let for_disk = disk.div_ceil(coverage);
        // The machine's state lies behind the disk, from the next L1 entry on.
        let for_both = for_disk.saturating_add(snapshot.vm_state_size.div_ceil(coverage));
        let entries = u64::from(snapshot.l1_entries);
        if for_disk > entries {
            draft.entry(
                Severity::Danger,
                "snapshot-size-impossible",
                place,
                disk,
                || {
                    format!(
                        "Snapshot {name} claims a disk of {}, more than its tables can describe.",
                        size(disk)
                    )
                },
            );
        } else if for_both > entries {
            let state = snapshot.vm_state_size;
            draft.entry(Severity::Warning, "snapshot-state-impossible", place, state, || {
                format!(
                    "Snapshot {name} claims {} of machine state, more than its tables can describe.",
                    size(state)
                )
            });
        }
    }
    let claim = Claim {
        structure: Structure::L1Table,
        index: Some(index.into()),
        said_at: place,
        offset: snapshot.l1_offset.0,
        bytes: u64::from(snapshot.l1_entries) * 8,
        limit_bytes: MAX_L1_BYTES,
    };
    if layout.claim(draft, claim) {
        let (offset, entries) = (snapshot.l1_offset.0, snapshot.l1_entries.into());
        tables::scan_l1(draft, reader, layout, budget, offset, entries).await?;
    }
    Ok(())
}

async fn bitmaps<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    layout: &mut Layout,
    extensions: &Extensions,
    raw: &RawHeader,
) -> Result<()> {
    let Some(extension) = extensions.bitmaps else {
        return Ok(());
    };
    let place = Place::at(Structure::BitmapDirectory, extension.directory.0);
    let claim = Claim {
        structure: Structure::BitmapDirectory,
        index: None,
        said_at: Place::of(Structure::HeaderExtension),
        offset: extension.directory.0,
        bytes: extension.directory_bytes,
        limit_bytes: u64::MAX,
    };
    if !layout.claim(draft, claim) {
        return Ok(());
    }
    if extension.directory_bytes > MAX_LIST_BYTES {
        draft
            .warning(
                "not-all-examined",
                "The image has more bitmaps than are looked at here.",
            )
            .at(place)
            .with(extension.directory_bytes);
        return Ok(());
    }
    let mut directory = vec![0; extension.directory_bytes as usize];
    reader.fill(extension.directory.0, &mut directory).await?;
    let rules = TableRules {
        cluster_size: layout.cluster_size,
        file_len: layout.file_len,
    };
    match bitmap::parse_directory(&directory, extension, rules) {
        Ok(bitmaps) => {
            for (index, bitmap) in bitmaps.iter().enumerate() {
                layout.tables.push(Range {
                    start: bitmap.table.0,
                    end: bitmap.table.0 + u64::from(bitmap.table_entries) * 8,
                    structure: Structure::BitmapTable,
                    index: Some(index as u64),
                });
                bitmap_fits(
                    draft,
                    bitmap,
                    raw.size,
                    layout.cluster_size,
                    place.entry(index as u64),
                );
            }
        }
        Err(Error::Unsupported(what)) => {
            draft
                .warning(
                    "bitmap-unknown",
                    format!("A bitmap is of a kind that is not known here: {what}."),
                )
                .at(place);
        }
        Err(error) => {
            let place = error.place().unwrap_or(place);
            draft
                .danger(
                    "bitmap-directory-impossible",
                    format!("The list of bitmaps cannot be: {error}."),
                )
                .at(place);
        }
    }
    Ok(())
}

/// A bitmap that was left in use is an ordinary thing; one that has fewer bits than the disk is none.
fn bitmap_fits(
    draft: &mut Draft,
    bitmap: &bitmap::Bitmap,
    disk: u64,
    cluster: ClusterSize,
    place: Place,
) {
    if bitmap.flags.in_use() {
        draft.entry(
            Severity::Note,
            "bitmap-in-use",
            place,
            place.index.unwrap_or(0),
            || {
                format!(
                    "Bitmap {} was not saved when the image was last used and says nothing.",
                    shown(&bitmap.name)
                )
            },
        );
    } else {
        let bits = disk.div_ceil(bitmap.granularity());
        let needed = bits.div_ceil(8).div_ceil(cluster.bytes());
        if needed != u64::from(bitmap.table_entries) {
            draft.entry(
                Severity::Warning,
                "bitmap-size-impossible",
                place,
                bitmap.table_entries.into(),
                || {
                    format!(
                        "Bitmap {} is not as large as the disk it is about.",
                        shown(&bitmap.name)
                    )
                },
            );
        }
    }
}

/// Opens the image itself (no other file) and looks at the disk's first sector.
async fn open<S: Storage>(draft: &mut Draft, reader: &Reader<'_, S>) -> Result<()> {
    let options = OpenOptions {
        format: Some(Format::Qcow2),
        backing: Backing::Ignore,
        data_file: false,
        cache_bytes: 0,
        ..OpenOptions::default()
    };
    let file = File {
        storage: Borrowed(reader.storage),
        name: String::new(),
    };
    let image = match Image::open(file, &options, &DenyAll::default()).await {
        Ok(image) => image,
        Err(error @ (Error::Io { .. } | Error::Cancelled)) => return Err(error),
        Err(error) => {
            draft.report.opens = false;
            let finding = draft.warning(
                "does-not-open",
                format!("The image cannot be opened: {error}."),
            );
            finding.place = error.place();
            return Ok(());
        }
    };
    let readable = image.top().as_qcow2().is_some_and(|qcow2| {
        qcow2.header().encryption == Encryption::None && !qcow2.header().has_data_file()
    });
    if !readable || image.virtual_size() < SECTOR {
        return Ok(());
    }
    let mut sector = [0; SECTOR as usize];
    match image.read_at(GuestOffset(0), &mut sector).await {
        Ok(()) => content(draft, probe(&sector)),
        Err(error @ (Error::Io { .. } | Error::Cancelled)) => return Err(error),
        Err(error) => {
            let finding = draft.danger(
                "content-unreadable",
                format!("The disk's first sector cannot be read: {error}."),
            );
            finding.place = error.place();
        }
    }
    Ok(())
}

/// What a program would guess of the content, once it is a raw file.
fn content(draft: &mut Draft, probed: Probed) {
    let place = Place::of(Structure::DataCluster);
    match probed {
        Probed::Known(Format::Raw) => {}
        Probed::Known(Format::Luks) => {
            draft
                .note(
                    "content-encrypted",
                    "The disk in the image is encrypted with LUKS as a whole.",
                )
                .at(place);
        }
        other => {
            draft
                .danger(
                    "content-probes-as-image",
                    format!(
                        "The disk's content begins like a {} image. Converted to raw, a program that guesses formats \
                         would take it for one and could follow file names that were planted in it.",
                        other.name()
                    ),
                )
                .at(place);
        }
    }
}

/// A storage that somebody else owns, for reading.
struct Borrowed<'a, S>(&'a S);

impl<S: Storage> Storage for Borrowed<'_, S> {
    async fn len(&self) -> std::io::Result<u64> {
        self.0.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(offset, buf).await
    }

    async fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::PermissionDenied.into())
    }

    async fn set_len(&self, _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::PermissionDenied.into())
    }

    async fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn queue_depth(&self) -> usize {
        self.0.queue_depth()
    }
}
