//! The beginning of the file behind the header's fields: extensions and the backing file's name, when they change.
//!
//! What decides must stand in sector 0, because one write of that is the switch (M6). What goes behind it, a part
//! of the feature name table or a long name, is written before, to bytes that the old state does not use.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::change::bitmaps::Patch;
use crate::image::open::{extension_area, read_first_cluster};
use crate::qcow2::{Extensions, RawHeader};
use crate::storage::Storage;
use crate::units::SECTOR;

/// What of the file's beginning the image as it is uses behind sector 0.
struct Used(Vec<Range<usize>>);

impl Used {
    fn by<S: Storage>(engine: &Engine<'_, S>, first: &[u8], raw: &RawHeader) -> Self {
        let cluster_size = engine.qcow2.l2_format.cluster_size;
        let area = extension_area(first, raw, cluster_size);
        let name = raw.backing_file_offset as usize;
        let start = raw.header_length as usize;
        Self(vec![
            start..start + area.used(),
            name..name + raw.backing_file_size as usize,
        ])
    }

    fn touches(&self, range: &Range<usize>) -> bool {
        let touches = |used: &Range<usize>| used.start < range.end && range.start < used.end;
        self.0.iter().any(touches)
    }

    fn end(&self) -> usize {
        self.0.iter().map(|used| used.end).max().unwrap_or(0)
    }
}

impl<S: Storage> Engine<'_, S> {
    /// Prepares the switch to a header with these extensions and this name of a backing file, or the name that there
    /// is: what goes behind sector 0 is written, `header` told where the name is. The commits are held; the flush that
    /// comes before every switch makes it durable.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] where it does not fit, or only over what the image uses as it is.
    pub(super) async fn new_area(
        &self,
        header: &mut RawHeader,
        extensions: &Extensions,
        name: Option<&[u8]>,
    ) -> Result<Patch> {
        let sector = SECTOR as usize;
        for without_names in [false, true] {
            let raw = self.qcow2.raw_header();
            let cluster_size = self.qcow2.l2_format.cluster_size;
            let mut first =
                read_first_cluster(&self.qcow2.file.storage, &raw, cluster_size).await?;
            let used = Used::by(self, &first, &raw);
            let old = used.0[1].clone();
            let kept = first.get(old).unwrap_or_default().to_vec();
            let name = name.unwrap_or(&kept);
            let start = header.header_length as usize;
            // With the table, if what it would be written over can be taken out first.
            let placed = place(start, extensions, without_names, name, &first, &used);
            if let Some((area, name_at)) = placed {
                let end = area.len();
                first[start..end].copy_from_slice(&area[start..]);
                if end > sector {
                    let end = end.next_multiple_of(sector).min(first.len());
                    self.write_unlinked(
                        "Could not write qcow2 header",
                        SECTOR,
                        &first[sector..end],
                    )
                    .await?;
                }
                header.backing_file_offset = name_at as u64;
                header.backing_file_size = name.len() as u32;
                let bytes = first[start..sector].to_vec();
                return Ok(Patch {
                    at: start,
                    bytes,
                    bitmaps: None,
                });
            }
            if !without_names {
                self.drop_feature_names(&first, &used).await?;
            }
        }
        Err(Error::OutOfRange("No space left in the file header".into()))
    }

    /// Takes the feature name table out, where it reaches behind sector 0: it is advice, and comes back if there
    /// is room. One sector: a cut leaves the extensions with it or without.
    async fn drop_feature_names(&self, first: &[u8], used: &Used) -> Result<()> {
        let raw = self.qcow2.raw_header();
        let (start, sector) = (raw.header_length as usize, SECTOR as usize);
        if used.0[0].end <= sector {
            return Ok(());
        }
        let without_names = Extensions {
            feature_names: Vec::new(),
            ..(*self.qcow2.extensions()).clone()
        };
        let room = match raw.backing_file_offset as usize {
            0 => sector,
            name => name.min(sector),
        };
        let Some(mut bytes) = without_names.encode(room.saturating_sub(start)) else {
            return Ok(());
        };
        bytes.extend_from_slice(&first[start + bytes.len()..sector]);
        let patch = Patch {
            at: start,
            bytes,
            bitmaps: None,
        };
        self.switch_with((*raw).clone(), Some(patch)).await
    }
}

/// The file's beginning with these extensions from `start` on and the name behind them, and the name's place, 0
/// where there is none. Behind sector 0 nothing is changed that is used. Where there is no place for the feature
/// name table, it is left out if `may_drop_names`.
fn place(
    start: usize,
    extensions: &Extensions,
    may_drop_names: bool,
    name: &[u8],
    first: &[u8],
    used: &Used,
) -> Option<(Vec<u8>, usize)> {
    let sector = SECTOR as usize;
    let without_names = Extensions {
        feature_names: Vec::new(),
        ..extensions.clone()
    };
    for extensions in [extensions]
        .into_iter()
        .chain(may_drop_names.then_some(&without_names))
    {
        let Some(bytes) = extensions.encode(first.len().saturating_sub(start)) else {
            continue;
        };
        let end = start + bytes.len();
        let changes = |range: Range<usize>, new: &[u8]| {
            let behind = range.start.max(sector)..range.end;
            let skipped = behind.start - range.start.min(behind.start);
            !behind.is_empty() && used.touches(&behind) && first.get(behind) != new.get(skipped..)
        };
        if changes(start..end, &bytes) {
            continue;
        }
        let mut area = first[..start].to_vec();
        area.extend_from_slice(&bytes);
        if name.is_empty() {
            return Some((area, 0));
        }
        // Right behind, or where it is, or behind everything.
        for at in [end, end.max(used.0[1].start), end.max(used.end())] {
            let name_end = at + name.len();
            if name_end <= first.len() && !changes(at..name_end, name) {
                area.extend_from_slice(&first[end..at]);
                area.extend_from_slice(name);
                return Some((area, at));
            }
        }
    }
    None
}
