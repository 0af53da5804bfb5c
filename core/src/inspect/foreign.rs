//! Disk images of other formats: what they are, and which other files they would want.

use crate::error::{Place, Result, Role, Structure};
use crate::inspect::Reader;
use crate::inspect::expansion;
use crate::inspect::report::Draft;
use crate::inspect::signatures::Found;
use crate::inspect::vmdk;
use crate::qcow2::bytes::{be16, be32, be64, le16, le32, le64};
use crate::storage::Storage;

/// The longest name of a backing file that is read.
const MAX_NAME: u64 = 1023;
/// Bytes of a foreign header that are looked at.
const HEADER_BYTES: usize = 1024;

/// Everything about a file of the foreign format `name`.
pub(super) async fn inspect<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    name: &'static str,
    found: &[Found],
) -> Result<()> {
    let title = found
        .iter()
        .find(|found| found.name == name)
        .map_or(name, |found| found.title);
    draft.report.opens = false;
    draft.fact("format-name", "Kind", title);
    let header = reader.read(0, HEADER_BYTES).await?;
    if name == "luks" {
        // Encrypted content is no danger, and all that there is to see.
        luks(draft, &header);
        return Ok(());
    }
    draft
        .warning(
            "foreign-format",
            format!("The file is a {title}. It is recognised here but not opened: its content was not examined."),
        )
        .at(Place::at(Structure::ForeignHeader, 0));
    match name {
        "qcow" => qcow(draft, reader, &header).await?,
        "qed" => qed(draft, reader, &header).await?,
        "vmdk" => vmdk::inspect(draft, reader, &header).await?,
        "vdi" => vdi(draft, &header),
        "vpc" => vpc(draft, reader, &header).await?,
        "vhdx" => vhdx(draft, reader).await?,
        _ => {}
    }
    if let Some(size) = draft.report.virtual_size {
        expansion::judge(draft, size, &[]);
    }
    Ok(())
}

fn at(byte: u64) -> Place {
    Place::at(Structure::ForeignHeader, byte)
}

fn luks(draft: &mut Draft, header: &[u8]) {
    let version = be16(header, 6);
    draft.number_fact("version", "Version", version.to_string(), version.into());
    draft
        .note("encrypted", "The disk is encrypted with LUKS: without its key only the encrypted bytes can be read.")
        .at(at(0));
}

async fn backing<S: Storage>(
    draft: &mut Draft,
    reader: &Reader<'_, S>,
    (offset, length): (u64, u64),
    said_at: u64,
) -> Result<()> {
    if length > MAX_NAME || offset.saturating_add(length) > reader.len {
        draft
            .danger(
                "backing-name-out-of-bounds",
                "The name of the backing file is said to be where it cannot be.",
            )
            .at(at(said_at))
            .with(offset);
        return Ok(());
    }
    let name = reader.read(offset, length as usize).await?;
    if name.is_empty() {
        draft
            .warning(
                "backing-name-empty",
                "The image is marked as having a backing file, but does not name it.",
            )
            .at(at(said_at))
            .with(offset);
    } else {
        draft.want(
            Role::Backing,
            &name,
            None,
            Place::at(Structure::BackingName, offset),
        );
    }
    Ok(())
}

async fn qcow<S: Storage>(draft: &mut Draft, reader: &Reader<'_, S>, header: &[u8]) -> Result<()> {
    draft.set_virtual_size(be64(header, 24));
    match be64(header, 8) {
        0 => Ok(()),
        offset => backing(draft, reader, (offset, be32(header, 16).into()), 8).await,
    }
}

async fn qed<S: Storage>(draft: &mut Draft, reader: &Reader<'_, S>, header: &[u8]) -> Result<()> {
    /// The feature bit that says "there is a backing file".
    const BACKING: u64 = 1;
    draft.set_virtual_size(le64(header, 48));
    if le64(header, 16) & BACKING == 0 {
        return Ok(());
    }
    backing(
        draft,
        reader,
        (le32(header, 56).into(), le32(header, 60).into()),
        56,
    )
    .await
}

/// The image has a parent whose name is not in it, or not where it is looked for here.
fn unnamed_parent(draft: &mut Draft, place: Place) {
    draft
        .warning(
            "backing-file-unnamed",
            "The image holds only the differences to another image, which it needs.",
        )
        .at(place);
}

fn vdi(draft: &mut Draft, header: &[u8]) {
    /// The image type that only has what differs from a parent.
    const DIFFERENCING: u32 = 4;
    draft.set_virtual_size(le64(header, 0x170));
    if le32(header, 0x4c) == DIFFERENCING {
        unnamed_parent(draft, at(0x4c));
    }
}

async fn vpc<S: Storage>(draft: &mut Draft, reader: &Reader<'_, S>, header: &[u8]) -> Result<()> {
    /// The disk type that only has what differs from a parent.
    const DIFFERENCING: u32 = 4;
    /// Where the dynamic header has the parent's name, and how many UTF-16 units of it.
    const NAME_AT: u64 = 64;
    const NAME_UNITS: usize = 256;
    draft.set_virtual_size(be64(header, 48));
    if be32(header, 60) != DIFFERENCING {
        return Ok(());
    }
    let name_at = be64(header, 16).saturating_add(NAME_AT);
    let bytes = reader.read(name_at, NAME_UNITS * 2).await?;
    let units = bytes
        .chunks_exact(2)
        .map(|unit| be16(unit, 0))
        .take_while(|&unit| unit != 0);
    let name: String = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    if name.is_empty() {
        unnamed_parent(draft, at(60));
    } else {
        draft.want(
            Role::Backing,
            name.as_bytes(),
            Some("vpc"),
            Place::at(Structure::BackingName, name_at),
        );
    }
    Ok(())
}

/// VHDX keeps everything in items of a metadata region, found by 16-byte identifiers.
async fn vhdx<S: Storage>(draft: &mut Draft, reader: &Reader<'_, S>) -> Result<()> {
    const REGIONS_AT: u64 = 192 << 10;
    const ENTRY: usize = 32;
    /// The most entries that either table may have.
    const MAX_ENTRIES: usize = 2047;
    const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
    const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
    const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
    /// The bit of the file parameters that says "there is a parent".
    const HAS_PARENT: u32 = 2;

    let regions = reader.read(REGIONS_AT, 16 + MAX_ENTRIES * ENTRY).await?;
    let count = (le32(&regions, 8) as usize).min(MAX_ENTRIES);
    let entries = regions.get(16..).unwrap_or_default().chunks_exact(ENTRY);
    let Some(region) = entries
        .take(count)
        .find(|entry| entry[..16] == METADATA)
        .map(|entry| le64(entry, 16))
    else {
        draft
            .warning(
                "foreign-header-impossible",
                "The image does not say where its own description is.",
            )
            .at(at(REGIONS_AT));
        return Ok(());
    };
    let table = reader.read(region, 32 + MAX_ENTRIES * ENTRY).await?;
    let count = usize::from(le16(&table, 10)).min(MAX_ENTRIES);
    let entries = table.get(32..).unwrap_or_default().chunks_exact(ENTRY);
    for entry in entries.take(count) {
        let item_at = region.saturating_add(le32(entry, 16).into());
        if entry[..16] == DISK_SIZE {
            let item = reader.read(item_at, 8).await?;
            draft.set_virtual_size(le64(&item, 0));
        } else if entry[..16] == FILE_PARAMETERS {
            let item = reader.read(item_at, 8).await?;
            if le32(&item, 4) & HAS_PARENT != 0 {
                unnamed_parent(draft, at(item_at));
            }
        }
    }
    Ok(())
}

/// An identifier as it stands in a file: its first three numbers little-endian.
const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let (first, second) = (first.to_le_bytes(), second.to_le_bytes());
    let (third, rest) = (third.to_le_bytes(), rest.to_be_bytes());
    [
        first[0], first[1], first[2], first[3], second[0], second[1], third[0], third[1], rest[0],
        rest[1], rest[2], rest[3], rest[4], rest[5], rest[6], rest[7],
    ]
}
