//! VMDK: a text inside says which files have the content, so that it can name any.

use crate::error::{Place, Result, Role, Structure};
use crate::inspect::Reader;
use crate::inspect::names::shown;
use crate::inspect::report::Draft;
use crate::qcow2::bytes::{le16, le32, le64};
use crate::storage::Storage;
use crate::units::SECTOR;

/// The longest descriptor.
const MAX_DESCRIPTOR: u64 = (1 << 20) - 1;
/// Where a sparse file's descriptor stands.
const DESCRIPTOR_AT: u64 = SECTOR;
/// The value of the grain directory's offset that says "look at the end of the file".
const AT_END: u64 = u64::MAX;
/// Kinds that have all their content in the file itself.
const SELF_CONTAINED: [&str; 2] = ["monolithicsparse", "streamoptimized"];

/// Everything about the VMDK file in `reader` that begins with `header`.
pub(super) async fn inspect<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    header: &[u8],
) -> Result<()> {
    let (at, length) = if header.starts_with(b"KDMV") {
        draft.set_virtual_size(le64(header, 12).saturating_mul(SECTOR));
        footer(draft, reader, header).await?;
        let at = le64(header, 28).saturating_mul(SECTOR);
        if at != DESCRIPTOR_AT {
            draft
                .warning(
                    "vmdk-descriptor-misplaced",
                    "The image's description is not where it has to be.",
                )
                .at(Place::at(Structure::ForeignHeader, 28))
                .with(at);
        }
        (
            at,
            le64(header, 36).saturating_mul(SECTOR).min(MAX_DESCRIPTOR),
        )
    } else if header.starts_with(b"COWD") {
        draft.set_virtual_size(u64::from(le32(header, 12)) * SECTOR);
        return Ok(());
    } else {
        (0, MAX_DESCRIPTOR)
    };
    let bytes = reader.read(at, length as usize).await?;
    let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    descriptor(
        draft,
        &String::from_utf8_lossy(bytes),
        Place::at(Structure::Descriptor, at),
    );
    Ok(())
}

fn descriptor(draft: &mut Draft, text: &str, place: Place) {
    let mut kind = None;
    let mut extents = 0u64;
    for (index, line) in text.lines().map(str::trim).enumerate() {
        let place = place.entry(index as u64);
        let word = line.split(' ').next().unwrap_or_default();
        let key = line
            .split_once('=')
            .map(|(key, value)| (key.trim().to_ascii_lowercase(), unquoted(value)));
        if line.is_empty() || line.starts_with('#') || line.starts_with("ddb") {
            continue;
        } else if ["rw", "rdonly", "noaccess"].contains(&word.to_ascii_lowercase().as_str()) {
            extents += 1;
            extent(draft, line, kind.as_deref(), place);
        } else if let Some((key, value)) = key.filter(|(key, _)| !key.contains(' ')) {
            match key.as_str() {
                "createtype" => kind = Some(value.to_ascii_lowercase()),
                "parentfilenamehint" => {
                    draft.want(Role::Backing, value.as_bytes(), Some("vmdk"), place);
                }
                _ => {}
            }
        } else {
            draft.entry(
                crate::inspect::Severity::Warning,
                "vmdk-descriptor-impossible",
                place,
                index as u64,
                || {
                    format!(
                        "The image's description has a line that is none: {}.",
                        shown(line)
                    )
                },
            );
        }
    }
    let shown_kind = kind.as_deref().map_or_else(|| "nothing".into(), shown);
    if !kind
        .as_deref()
        .is_some_and(|kind| SELF_CONTAINED.contains(&kind))
    {
        draft
            .warning(
                "vmdk-kind",
                format!("The image is of a kind that keeps its content in other files, or says no kind ({shown_kind})."),
            )
            .at(place);
    }
    if extents == 0 {
        draft
            .warning(
                "vmdk-no-extents",
                "The image's description does not say where its content is.",
            )
            .at(place);
    }
}

/// A line such as `RW 2048 SPARSE "disk.vmdk"`.
fn extent(draft: &mut Draft, line: &str, kind: Option<&str>, place: Place) {
    let name = line.split('"').nth(1).unwrap_or_default();
    let own = kind.is_some_and(|kind| SELF_CONTAINED.contains(&kind));
    let leaves = name.contains(['/', '\\', ':']) || name == "..";
    // The content is in the file itself, whatever it is called there.
    if !name.is_empty() && (!own || leaves) {
        draft.want(Role::DataFile, name.as_bytes(), None, place);
    }
}

fn unquoted(value: &str) -> String {
    value.trim().trim_matches('"').to_owned()
}

/// A streamed image has its true header at the end; the two must agree.
async fn footer<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    header: &[u8],
) -> Result<()> {
    /// A marker, the footer, and the end marker, a sector each.
    const LENGTH: u64 = 3 * SECTOR;
    if le64(header, 56) != AT_END {
        return Ok(());
    }
    let start = reader.len.saturating_sub(LENGTH);
    let end = reader.read(start, LENGTH as usize).await?;
    let footer = end.get(SECTOR as usize..).unwrap_or_default();
    let same = |from: usize, to: usize| header.get(from..to) == footer.get(from..to);
    let is_marker = le32(&end, 8) == 0 && le16(&end, 12) == 3;
    // Signature and version, and where the descriptor is.
    if end.len() as u64 != LENGTH
        || !is_marker
        || !same(0, 8)
        || !same(28, 44)
        || le64(footer, 56) == AT_END
    {
        draft
            .danger(
                "vmdk-footer-contradiction",
                "The image's beginning and end contradict each other: programs may read different content from it.",
            )
            .at(Place::at(Structure::ForeignHeader, start));
    }
    Ok(())
}
