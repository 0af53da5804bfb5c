//! Everything that a file has the signature of, wherever programs look for one.
//!
//! A file that is several things at once is read differently by different programs: what one of them
//! checked is not what the other one opens.

use crate::error::{Place, Result, Structure};
use crate::inspect::Reader;
use crate::inspect::report::{Draft, Severity};
use crate::probe::{Format, Probed};
use crate::qcow2::bytes::{be32, le16, le32};
use crate::storage::Storage;
use crate::units::ClusterSize;

/// A family of formats: some of them belong together, others never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A disk image.
    Image,
    /// A partition table or a boot sector.
    Partitions,
    /// A CD, a DVD.
    Disc,
    /// A file system on the whole disk.
    FileSystem,
    /// An archive or a compressed file.
    Archive,
    /// A document.
    Document,
}

/// A signature that the file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// A short name, QEMU's where it has one.
    pub name: &'static str,
    /// The name for people.
    pub title: &'static str,
    pub kind: Kind,
    /// The byte at which it stands.
    pub offset: u64,
    /// Whether programs look for it at the end of the file.
    pub trailing: bool,
}

/// As much of the start as signatures stand in: Btrfs has its own behind 64 KiB.
const START_BYTES: usize = 68 << 10;
/// As much of the end as a zip archive's directory end can be away from it.
const END_BYTES: usize = 22 + 0xffff;

/// Signatures at fixed bytes: name, title, family, byte, signature. None is shorter than three bytes.
const FIXED: &[(&str, &str, Kind, usize, &[u8])] = &[
    ("qed", "QED disk image", Kind::Image, 0, b"QED\0"),
    ("vmdk", "VMDK disk image", Kind::Image, 0, b"KDMV"),
    ("vmdk", "VMDK disk image", Kind::Image, 0, b"COWD"),
    (
        "vmdk",
        "VMDK disk image",
        Kind::Image,
        0,
        b"# Disk DescriptorFile",
    ),
    (
        "vdi",
        "VDI disk image",
        Kind::Image,
        64,
        &[0x7f, 0x10, 0xda, 0xbe],
    ),
    ("vhdx", "VHDX disk image", Kind::Image, 0, b"vhdxfile"),
    ("vpc", "VHD disk image", Kind::Image, 0, b"conectix"),
    (
        "luks",
        "LUKS encrypted disk",
        Kind::Image,
        0,
        b"LUKS\xba\xbe",
    ),
    (
        "parallels",
        "Parallels disk image",
        Kind::Image,
        0,
        b"WithoutFreeSpace",
    ),
    (
        "parallels",
        "Parallels disk image",
        Kind::Image,
        0,
        b"WithouFreSpacExt",
    ),
    (
        "bochs",
        "Bochs disk image",
        Kind::Image,
        0,
        b"Bochs Virtual HD Image",
    ),
    (
        "cloop",
        "cloop image",
        Kind::Image,
        0,
        b"#!/bin/sh\n#V2.0 Format\n",
    ),
    (
        "gpt",
        "GPT partition table",
        Kind::Partitions,
        512,
        b"EFI PART",
    ),
    (
        "gpt",
        "GPT partition table",
        Kind::Partitions,
        4096,
        b"EFI PART",
    ),
    ("ntfs", "NTFS file system", Kind::FileSystem, 3, b"NTFS    "),
    (
        "exfat",
        "exFAT file system",
        Kind::FileSystem,
        3,
        b"EXFAT   ",
    ),
    ("xfs", "XFS file system", Kind::FileSystem, 0, b"XFSB"),
    (
        "btrfs",
        "Btrfs file system",
        Kind::FileSystem,
        0x1_0040,
        b"_BHRfS_M",
    ),
    (
        "squashfs",
        "SquashFS file system",
        Kind::FileSystem,
        0,
        b"hsqs",
    ),
    (
        "erofs",
        "EROFS file system",
        Kind::FileSystem,
        1024,
        &[0xe2, 0xe1, 0xf5, 0xe0],
    ),
    (
        "lvm",
        "LVM physical volume",
        Kind::FileSystem,
        512,
        b"LABELONE",
    ),
    ("zip", "zip archive", Kind::Archive, 0, b"PK\x03\x04"),
    ("gzip", "gzip file", Kind::Archive, 0, &[0x1f, 0x8b, 0x08]),
    ("xz", "xz file", Kind::Archive, 0, b"\xfd7zXZ\0"),
    (
        "zstd",
        "zstd file",
        Kind::Archive,
        0,
        &[0x28, 0xb5, 0x2f, 0xfd],
    ),
    ("bzip2", "bzip2 file", Kind::Archive, 0, b"BZh"),
    ("7z", "7z archive", Kind::Archive, 0, b"7z\xbc\xaf\x27\x1c"),
    ("rar", "RAR archive", Kind::Archive, 0, b"Rar!\x1a\x07"),
    ("tar", "tar archive", Kind::Archive, 257, b"ustar"),
    ("pdf", "PDF document", Kind::Document, 0, b"%PDF-"),
];

/// What the descriptors of discs begin with, behind a byte for the kind.
const DESCRIPTORS: [&[u8; 5]; 5] = [b"CD001", b"BEA01", b"NSR02", b"NSR03", b"TEA01"];

/// Finds them all; reads the file's first and last 70 KiB or so.
pub(super) async fn find<S: Storage>(reader: &Reader<'_, S>) -> Result<Vec<Found>> {
    let start = reader.read(0, START_BYTES).await?;
    let end_at = reader.len.saturating_sub(END_BYTES as u64);
    let end = reader.read(end_at, END_BYTES).await?;
    let mut found = at_start(&start);
    let mut add = |name, title, kind, at: usize| {
        let offset = end_at + at as u64;
        // A signature at the start of a short file is no second one.
        if !found.iter().any(|other| other.name == name) {
            found.push(Found {
                name,
                title,
                kind,
                offset,
                trailing: true,
            });
        }
    };
    if let Some(footer) = end.len().checked_sub(512) {
        if end[footer..].starts_with(b"conectix") {
            add("vpc", "VHD disk image", Kind::Image, footer);
        }
        if end[footer..].starts_with(b"koly") {
            add("dmg", "DMG disk image", Kind::Image, footer);
        }
    }
    if let Some(at) = zip_end(&end, end_at) {
        add("zip", "zip archive", Kind::Archive, at);
    }
    Ok(found)
}

fn at_start(start: &[u8]) -> Vec<Found> {
    let is = |at: usize, signature: &[u8]| {
        start
            .get(at..)
            .is_some_and(|rest| rest.starts_with(signature))
    };
    let mut found: Vec<Found> = Vec::new();
    let mut add = |name, title, kind, at: usize| {
        if !found.iter().any(|other| other.name == name) {
            found.push(Found {
                name,
                title,
                kind,
                offset: at as u64,
                trailing: false,
            });
        }
    };
    if is(0, b"QFI\xfb") {
        match be32(start, 4) {
            0 => {}
            1 => add("qcow", "qcow version 1 disk image", Kind::Image, 0),
            _ => add("qcow2", "qcow2 disk image", Kind::Image, 0),
        }
    }
    for &(name, title, kind, at, signature) in FIXED {
        if is(at, signature) {
            add(name, title, kind, at);
        }
    }
    // The number alone is short: two fields beside it must be possible too.
    if le16(start, 1080) == 0xef53 && le32(start, 1048) <= 6 && le32(start, 1100) <= 1 {
        add(
            "ext",
            "ext2, ext3 or ext4 file system",
            Kind::FileSystem,
            1080,
        );
    }
    // Volume descriptors of discs stand in 2 KiB sectors, from sector 16 on without a gap.
    let descriptor = |sector: usize| sector * 2048 + 1;
    let has_descriptor = |sector| {
        DESCRIPTORS
            .iter()
            .any(|signature| is(descriptor(sector), *signature))
    };
    for at in (16..32)
        .take_while(|sector| has_descriptor(*sector))
        .map(descriptor)
    {
        if is(at, b"CD001") {
            add("iso9660", "ISO 9660 disc", Kind::Disc, at);
        } else if is(at, b"NSR02") || is(at, b"NSR03") {
            add("udf", "UDF disc", Kind::Disc, at);
        }
    }
    if has_boot_signature(start) {
        let is_fat = is(54, b"FAT1") || is(82, b"FAT32") || (start[16] == 2 && start[21] == 0xf8);
        let is_volume = found
            .iter()
            .any(|found| matches!(found.name, "ntfs" | "exfat"));
        let mut add = |name, title, kind, at| {
            found.push(Found {
                name,
                title,
                kind,
                offset: at,
                trailing: false,
            })
        };
        if is_fat {
            add("fat", "FAT file system", Kind::FileSystem, 54);
        } else if has_partitions(start) && !is_volume {
            add("mbr", "MBR partition table", Kind::Partitions, 446);
        } else if !is_volume {
            add("boot-sector", "boot sector", Kind::Partitions, 510);
        }
    }
    found
}

/// Whether the first sector ends as a boot sector does.
pub(super) fn has_boot_signature(start: &[u8]) -> bool {
    start.get(510..512) == Some(&[0x55, 0xaa])
}

/// Whether the four entries could be partitions, and one of them is.
fn has_partitions(sector: &[u8]) -> bool {
    let entries = || sector[446..510].chunks_exact(16);
    entries().all(|entry| entry[0] & 0x7f == 0)
        && entries().any(|entry| entry[4] != 0 && le32(entry, 12) != 0)
}

/// Where the end of a zip archive's directory stands in `end`, the last bytes of the file from byte
/// `end_at` on: its comment must reach to the very end, and its directory lie before it.
fn zip_end(end: &[u8], end_at: u64) -> Option<usize> {
    (0..end.len().saturating_sub(21)).rev().find(|&at| {
        let record = &end[at..];
        record.starts_with(b"PK\x05\x06")
            && usize::from(le16(record, 20)) == record.len() - 22
            && u64::from(le32(record, 12)) <= end_at + at as u64
    })
}

/// Leaves out of `found` what is no second signature of an image of `format` but something in its content:
/// guests may write what they like, and small clusters bring it near the file's start.
pub(super) fn keep_what_counts(found: &mut Vec<Found>, format: Probed, start: &[u8]) {
    if format == Probed::Known(Format::Raw) {
        return;
    }
    let is_qcow2 = format == Probed::Known(Format::Qcow2);
    let header_end = header_end(format, start);
    found.retain(|found| {
        // Two bytes that the header of a foreign format may have by chance.
        let by_chance = found.name == "boot-sector" && !is_qcow2;
        // The first sector that a disc is known by is where no content comes to lie: metadata stands before
        // it, and what a guest has before its own sector 16 is no descriptor.
        let counts = found.offset < header_end || found.trailing || found.kind == Kind::Disc;
        found.name == format.name() || counts && !by_chance
    });
}

/// Up to which byte an image of `format` holds nothing but its own header.
fn header_end(format: Probed, start: &[u8]) -> u64 {
    let usual = 4096;
    match format {
        Probed::Known(Format::Raw | Format::Qcow2) => {
            ClusterSize::from_bits(be32(start, 20)).map_or(usual, ClusterSize::bytes)
        }
        Probed::Known(Format::Luks) | Probed::Foreign(_) => usual,
    }
}

/// What the file is taken for, then everything else it has the signature of.
pub(super) fn names(format: Probed, found: &[Found]) -> Vec<String> {
    let mut names = vec![format.name().to_owned()];
    for each in found {
        if names.iter().all(|name| name != each.name) {
            names.push(each.name.into());
        }
    }
    names
}

/// The findings about signatures that do not belong together.
pub(super) fn judge(draft: &mut Draft, format: Probed, found: &[Found], start: &[u8]) {
    match format {
        Probed::Known(Format::Raw) => judge_raw(draft, found),
        _ => judge_image(draft, format, found, start),
    }
}

fn judge_raw(draft: &mut Draft, found: &[Found]) {
    let first = |kinds: &[Kind]| found.iter().find(|found| kinds.contains(&found.kind));
    let disk = first(&[Kind::Partitions, Kind::Disc, Kind::FileSystem]);
    let other = first(&[Kind::Archive, Kind::Document]);
    match (disk, other) {
        (Some(disk), Some(other)) => {
            draft
                .warning(
                    "several-formats",
                    format!(
                        "The file is two things at once ({}, {}): programs will not agree on what is in it.",
                        disk.title, other.title
                    ),
                )
                .at(Place::at(Structure::ForeignHeader, other.offset));
        }
        (None, Some(other)) => {
            draft
                .note(
                    "not-a-disk",
                    format!(
                        "The file is no disk image ({}). Unpack it first if a disk is inside.",
                        other.title
                    ),
                )
                .at(Place::at(Structure::ForeignHeader, other.offset));
        }
        _ => {}
    }
    if let (Some(disc), Some(table)) = (first(&[Kind::Disc]), first(&[Kind::Partitions])) {
        draft
            .note(
                "hybrid-disc",
                "The disc can also be started from a USB stick: it has a partition table too, as installation media do.",
            )
            .at(Place::at(Structure::PartitionTable, table.offset))
            .with(disc.offset);
    }
    let told = draft
        .report
        .findings
        .iter()
        .any(|finding| finding.code == "raw-probes-as-image");
    let image = found
        .iter()
        .find(|found| found.kind == Kind::Image && !found.trailing && found.name != "luks");
    if let Some(image) = image.filter(|_| !told) {
        draft
            .warning(
                "several-formats",
                format!(
                    "The file begins much like another format ({}), and is taken for a raw disk here: programs will not agree on what \
                     it is.",
                    image.title
                ),
            )
            .at(Place::at(Structure::ForeignHeader, image.offset));
    }
    for trailer in found
        .iter()
        .filter(|found| found.trailing && found.kind == Kind::Image)
    {
        draft
            .note(
                "trailing-format",
                format!(
                    "The file ends like another format ({}). It is opened as raw here, with that end as its last bytes.",
                    trailer.title
                ),
            )
            .at(Place::at(Structure::ForeignHeader, trailer.offset));
    }
    if found
        .iter()
        .any(|found| found.name == "luks" && !found.trailing)
    {
        draft.note("encrypted", "The disk is encrypted with LUKS: without its key only the encrypted bytes can be read.");
    }
}

fn judge_image(draft: &mut Draft, format: Probed, found: &[Found], start: &[u8]) {
    let header_end = header_end(format, start);
    for other in found.iter().filter(|other| other.name != format.name()) {
        let severity = if other.trailing || other.offset >= header_end {
            Severity::Warning
        } else {
            Severity::Danger
        };
        draft
            .find(
                severity,
                "several-formats",
                format!(
                    "The file is a {} image, and also has the signature of something else ({}): programs will not \
                     agree on what it is, and what one of them checks is not what another one opens.",
                    format.name(),
                    other.title
                ),
            )
            .at(Place::at(Structure::ForeignHeader, other.offset));
    }
}
