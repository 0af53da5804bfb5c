//! The tables of a qcow2 file: whether they lie where tables can, and what their entries point to.

use crate::error::{Place, Result, Structure};
use crate::inspect::Reader;
use crate::inspect::report::{Draft, Severity, size};
use crate::qcow2::bytes::be64_table;
use crate::qcow2::l2::L2Entry;
use crate::qcow2::{COPIED, L2Format, OFFSET_MASK, RunKind};
use crate::storage::Storage;
use crate::units::{ClusterSize, HostOffset};

/// How many bytes are read at a time.
const PIECE: usize = 256 << 10;
/// How many different L2 tables of one L1 table are remembered: 8 MiB of offsets.
const MAX_REMEMBERED: usize = 1 << 20;
/// How many parts of L2 tables are looked into, and how large a part is.
const SAMPLES: usize = 512;
const SAMPLE_BYTES: u64 = 32 << 10;
/// Content this much larger than its file is no longer what compression does to ordinary data.
const BOMB_RATIO: u64 = 100;
/// Below this, what comes out does no harm.
const BOMB_BYTES: u64 = 16 << 30;

/// What an image says of a table.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub structure: Structure,
    pub index: Option<u64>,
    /// Where this is said: the byte of the field that has the offset.
    pub said_at: Place,
    pub offset: u64,
    pub bytes: u64,
    pub limit_bytes: u64,
}

/// The geometry that tables are judged by.
#[derive(Clone)]
pub(super) struct Layout {
    pub cluster_size: ClusterSize,
    pub file_len: u64,
    pub format: L2Format,
    /// Every table that was found to lie inside the file, with the header.
    pub tables: Vec<Range>,
    /// Those of them that the header leads to itself: few, and looked through for every entry.
    roots: Vec<Range>,
}

/// Bytes of the file that a structure takes.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub start: u64,
    pub end: u64,
    pub structure: Structure,
    pub index: Option<u64>,
}

impl Layout {
    /// A file of `file_len` bytes in which only the header is known.
    pub fn new(format: L2Format, file_len: u64) -> Self {
        let cluster_size = format.cluster_size;
        let header = Range {
            start: 0,
            end: cluster_size.bytes(),
            structure: Structure::Header,
            index: None,
        };
        Self {
            cluster_size,
            file_len,
            format,
            tables: vec![header],
            roots: vec![header],
        }
    }

    /// Whether a table can be where it is said to be. If so it is remembered as lying there.
    pub fn claim(&mut self, draft: &mut Draft, claim: Claim) -> bool {
        let Claim {
            structure,
            said_at,
            offset,
            bytes,
            limit_bytes,
            ..
        } = claim;
        let mut sound = true;
        let mut wrong = |code, number, message: String| {
            draft.entry(Severity::Danger, code, said_at, number, || message);
            sound = false;
        };
        let name = match claim.index {
            Some(index) => format!("{structure} {index}"),
            None => structure.to_string(),
        };
        if bytes > limit_bytes {
            wrong(
                "table-too-large",
                bytes,
                format!(
                    "The {name} claims {}; the format allows {}.",
                    size(bytes),
                    size(limit_bytes)
                ),
            );
        }
        if !HostOffset(offset).is_aligned(self.cluster_size.bytes()) {
            wrong(
                "table-unaligned",
                offset,
                format!("The {name} is said to start at byte {offset}, where no table can start."),
            );
        }
        if bytes > 0 && offset == 0 {
            wrong(
                "table-in-header",
                offset,
                format!("The {name} is said to lie where the image's header is."),
            );
        }
        let file_end = self
            .cluster_size
            .count_for(self.file_len)
            .saturating_mul(self.cluster_size.bytes());
        let end = offset
            .checked_add(bytes)
            .filter(|&end| end <= i64::MAX as u64);
        if end.is_none_or(|end| bytes > 0 && end > file_end) {
            wrong(
                "table-out-of-bounds",
                offset,
                format!(
                    "The {name} is said to lie at byte {offset} with {}, past the end of the file of {}. The file was \
                     cut off or made to mislead.",
                    size(bytes),
                    size(self.file_len)
                ),
            );
        }
        if sound && bytes > 0 {
            let range = Range {
                start: offset,
                end: offset + bytes,
                structure,
                index: claim.index,
            };
            self.tables.push(range);
            let is_root = matches!(
                structure,
                Structure::RefcountTable | Structure::L1Table | Structure::SnapshotTable
            );
            if is_root && claim.index.is_none() {
                self.roots.push(range);
            }
        }
        sound
    }

    /// Tells of tables that lie in one another.
    pub fn overlaps(&self, draft: &mut Draft) {
        let mut tables = self.tables.clone();
        tables.sort_unstable_by_key(|range| (range.start, range.end));
        let mut last: Option<Range> = None;
        for range in tables {
            if let Some(before) = last.filter(|before| range.start < before.end) {
                let place = Place {
                    structure: range.structure,
                    offset: Some(range.start),
                    index: range.index,
                };
                draft.entry(Severity::Danger, "tables-overlap", place, range.start, || {
                    format!(
                        "The {} and the {} take the same bytes of the file: writing to one destroys the other.",
                        before.structure, range.structure
                    )
                });
            }
            if last.is_none_or(|before| range.end > before.end) {
                last = Some(range);
            }
        }
    }

    /// The table of the header's that the cluster at `start` would overwrite.
    fn root_at(&self, start: u64) -> Option<Structure> {
        let end = start.saturating_add(self.cluster_size.bytes());
        self.roots
            .iter()
            .find(|range| start < range.end && range.start < end)
            .map(|range| range.structure)
    }

    /// What is wrong with an entry that points to a whole cluster of metadata.
    fn judge_pointer(
        &self,
        draft: &mut Draft,
        entry: u64,
        allowed: u64,
        place: Place,
        what: &str,
    ) -> bool {
        let offset = entry & OFFSET_MASK;
        let (table, index) = (place.structure, place.index.unwrap_or(0));
        let mut sound = true;
        let mut wrong = |code, how: &str| {
            draft.entry(Severity::Danger, code, place, entry, || {
                format!("Entry {index} of the {table} says that {what} is at byte {offset}, {how}.")
            });
            sound = false;
        };
        if entry & !allowed != 0 {
            wrong(
                "entry-reserved-bits",
                "with marks that the format does not know",
            );
        }
        if offset == 0 {
            return sound;
        }
        if !HostOffset(offset).is_aligned(self.cluster_size.bytes()) {
            wrong("entry-unaligned", "where none can start");
        }
        if offset >= self.file_len {
            wrong("entry-out-of-bounds", "past the end of the file");
        } else if let Some(root) = self.root_at(offset) {
            wrong("entry-into-metadata", &format!("where the {root} is"));
        }
        sound
    }
}

/// How much more of the tables may be read: shared by everything that reads table after table.
pub(super) struct Budget {
    bytes: u64,
    spent: bool,
}

impl Budget {
    /// Room for the largest active L1 table, the largest refcount table and as much again of snapshots'.
    pub fn new() -> Self {
        Self {
            bytes: 80 << 20,
            spent: false,
        }
    }

    fn take(&mut self, bytes: u64) -> bool {
        if bytes > self.bytes {
            self.spent = true;
            return false;
        }
        self.bytes -= bytes;
        true
    }

    /// Says so where not everything was looked at.
    pub fn report(&self, draft: &mut Draft) {
        if self.spent {
            draft.warning(
                "not-all-examined",
                "The image has more tables than are looked at here; run a check for all of them.",
            );
        }
    }
}

/// Calls `look` with every entry of a table and its index.
async fn each_entry<S: Storage>(
    reader: &Reader<'_, S>,
    offset: u64,
    entries: u64,
    mut look: impl FnMut(u64, u64),
) -> Result<()> {
    let total = entries * 8;
    let mut done = 0;
    let mut piece = vec![0; total.min(PIECE as u64) as usize];
    while done < total {
        let bytes = &mut piece[..(total - done).min(PIECE as u64) as usize];
        reader.fill(offset + done, bytes).await?;
        for (index, entry) in be64_table(bytes).enumerate() {
            look(done / 8 + index as u64, entry);
        }
        done += bytes.len() as u64;
    }
    Ok(())
}

/// Looks at every entry of the refcount table.
pub(super) async fn scan_refcount_table<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    layout: &Layout,
    budget: &mut Budget,
    offset: u64,
    entries: u64,
) -> Result<()> {
    if !budget.take(entries * 8) {
        return Ok(());
    }
    each_entry(reader, offset, entries, |index, entry| {
        let place = Place::at(Structure::RefcountTable, offset + index * 8).entry(index);
        layout.judge_pointer(draft, entry, OFFSET_MASK, place, "a refcount block");
    })
    .await
}

/// Looks at every entry of an L1 table; returns where its sound L2 tables are, each once, in order.
pub(super) async fn scan_l1<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    layout: &Layout,
    budget: &mut Budget,
    offset: u64,
    entries: u64,
) -> Result<Vec<u64>> {
    if !budget.take(entries * 8) {
        return Ok(Vec::new());
    }
    let mut tables = Vec::new();
    let mut count = 0u64;
    each_entry(reader, offset, entries, |index, entry| {
        let place = Place::at(Structure::L1Table, offset + index * 8).entry(index);
        let sound = layout.judge_pointer(draft, entry, OFFSET_MASK | COPIED, place, "an L2 table");
        if sound && entry & OFFSET_MASK != 0 {
            count += 1;
            if tables.len() < MAX_REMEMBERED {
                tables.push(entry & OFFSET_MASK);
            }
        }
    })
    .await?;
    tables.sort_unstable();
    let remembered = tables.len();
    let twice = tables
        .windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0]);
    tables.dedup();
    let room = layout.cluster_size.count_for(layout.file_len);
    if twice.is_some() || count > room {
        let place = Place::at(Structure::L1Table, offset);
        let number = twice.unwrap_or(count);
        draft.entry(Severity::Danger, "l2-table-shared", place, number, || {
            format!(
                "{} parts of the disk are described by the same tables: a small file pretends to hold a large disk, \
                 and writing to one part changes another.",
                (remembered - tables.len()).max(1)
            )
        });
    }
    Ok(tables)
}

/// Looks into some of the L2 tables (all of them where they are few): entries that cannot be, and how
/// much content they promise.
pub(super) async fn sample_l2<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    layout: &Layout,
    tables: &[u64],
) -> Result<()> {
    let cluster = layout.cluster_size.bytes();
    let part = SAMPLE_BYTES.min(cluster);
    let parts_per_table = (cluster / part) as usize;
    let all = tables.len() * parts_per_table;
    let taken = all.min(SAMPLES);
    let mut bytes = vec![0; part as usize];
    let mut seen = Content::default();
    for sample in 0..taken {
        // Evenly spread; every part where there are no more than samples.
        let at = (sample as u64 * all as u64 / taken as u64) as usize;
        let in_table = (at % parts_per_table) as u64 * part;
        let start = tables[at / parts_per_table] + in_table;
        reader.fill(start, &mut bytes).await?;
        let numbers: Vec<u64> = be64_table(&bytes).collect();
        for index in 0.. {
            let Some(entry) = layout.format.entry(&numbers, index) else {
                break;
            };
            let in_part = index as u64 * layout.format.entry_bytes();
            let place = Place::at(Structure::L2Table, start + in_part)
                .entry((in_table + in_part) / layout.format.entry_bytes());
            seen.add(layout, entry);
            judge_l2_entry(draft, layout, entry, place);
        }
    }
    judge_content(draft, layout, seen, all as u64, taken as u64);
    Ok(())
}

/// What L2 entries promise, in clusters.
#[derive(Clone, Copy, Default)]
struct Content {
    /// With a cluster of the file each.
    stored: u64,
    compressed: u64,
}

impl Content {
    fn add(&mut self, layout: &Layout, entry: L2Entry) {
        if entry.is_compressed() {
            self.compressed += 1;
        } else if layout.format.host_cluster(entry).is_some() {
            self.stored += 1;
        }
    }
}

fn judge_content(draft: &mut Draft, layout: &Layout, seen: Content, all: u64, taken: u64) {
    let cluster = layout.cluster_size.bytes();
    let place = Place::of(Structure::L2Table);
    if !layout.format.data_file && seen.stored > layout.cluster_size.count_for(layout.file_len) {
        draft
            .danger(
                "clusters-shared",
                format!(
                    "The tables promise {} of stored content, more than the file of {} can hold: the same bytes are \
                     used many times over, and unpacking the disk would fill the machine.",
                    size(seen.stored.saturating_mul(cluster)),
                    size(layout.file_len)
                ),
            )
            .at(place)
            .with(seen.stored);
    }
    // What was not looked at is taken to be like what was.
    let clusters = u128::from(seen.compressed) * u128::from(all) / u128::from(taken.max(1));
    let unpacked = u64::try_from(clusters * u128::from(cluster)).unwrap_or(u64::MAX);
    if unpacked >= BOMB_BYTES && unpacked / BOMB_RATIO >= layout.file_len {
        draft
            .warning(
                "compression-bomb",
                format!(
                    "The file of {} unpacks to about {} of content: far more than compression gains on ordinary disks.",
                    size(layout.file_len),
                    size(unpacked)
                ),
            )
            .at(place)
            .with(unpacked);
    }
}

fn judge_l2_entry(draft: &mut Draft, layout: &Layout, entry: L2Entry, place: Place) {
    let index = place.index.unwrap_or(0);
    let mut wrong = |code, number, what: String| {
        draft.entry(Severity::Danger, code, place, number, || {
            format!("Entry {index} of an L2 table {what}.")
        });
    };
    if entry.has_reserved_bits() {
        wrong(
            "entry-reserved-bits",
            entry.descriptor,
            "has marks that the format does not know".into(),
        );
    }
    if let Some(compressed) = layout.format.compressed(entry) {
        let at = compressed.offset.0;
        if layout.format.data_file {
            wrong(
                "entry-impossible",
                entry.descriptor,
                "is compressed, in an image that cannot have such".into(),
            );
        } else if at >= layout.file_len {
            wrong(
                "entry-out-of-bounds",
                at,
                format!("says that content is at byte {at}, past the end of the file"),
            );
        }
        return;
    }
    if layout.format.extended && entry.subclusters as u32 & (entry.subclusters >> 32) as u32 != 0 {
        wrong(
            "entry-impossible",
            entry.subclusters,
            "marks the same content as stored and as zeros".into(),
        );
    }
    let Some(HostOffset(at)) = layout.format.host_cluster(entry) else {
        if layout.format.extended && entry.subclusters as u32 != 0 {
            wrong(
                "entry-impossible",
                entry.subclusters,
                "marks content as stored, but not where".into(),
            );
        }
        return;
    };
    if !HostOffset(at).is_aligned(layout.cluster_size.bytes()) {
        wrong(
            "entry-unaligned",
            at,
            format!("says that content is at byte {at}, where none can start"),
        );
    }
    if layout.format.data_file {
        return;
    }
    let is_data = matches!(layout.format.run_in(entry, 0).kind, RunKind::Data(_));
    if at >= layout.file_len && is_data {
        wrong(
            "entry-out-of-bounds",
            at,
            format!("says that content is at byte {at}, past the end of the file"),
        );
    } else if let Some(root) = layout.root_at(at) {
        wrong(
            "entry-into-metadata",
            at,
            format!("says that content is at byte {at}, where the {root} is"),
        );
    }
}
