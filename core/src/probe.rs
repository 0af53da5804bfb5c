//! Which formats a file's first bytes could be.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::qcow2::bytes::{be32, le32};
use crate::qcow2::header;

/// A format that this crate opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum Format {
    /// The guest's bytes as they are.
    Raw,
    /// qcow2 version 2 or 3.
    Qcow2,
    /// A disk that is encrypted as a whole: LUKS version 1.
    Luks,
}

impl Format {
    /// QEMU's name of the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Luks => "luks",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "luks" => Ok(Self::Luks),
            other => Err(Error::Unsupported(
                format!("Unknown driver '{other}'").into(),
            )),
        }
    }
}

/// How many of a file's first bytes probing looks at; as many as QEMU, whose answer they must give.
pub const PROBE_BYTES: usize = 512;

/// What the first bytes of a file look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// A format that this crate opens. Raw is what everything else is.
    Known(Format),
    /// A disk image format that this crate does not open, by QEMU's name.
    Foreign(&'static str),
}

impl Probed {
    /// QEMU's name of the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Known(format) => format.name(),
            Self::Foreign(name) => name,
        }
    }
}

/// What `cloop` images begin with, all of it.
const CLOOP: &[u8] =
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";

/// The format of the file whose first [`PROBE_BYTES`] (or all, if it is shorter) are `start`.
///
/// The answer is QEMU's: what it would take the file for when nobody says the format. That makes it a
/// guess which anyone who wrote those bytes could have steered.
#[must_use]
pub fn probe(start: &[u8]) -> Probed {
    let start = &start[..start.len().min(PROBE_BYTES)];
    let is = |signature: &[u8]| start.starts_with(signature);
    if be32(start, 0) == header::MAGIC {
        // A later version than 3 is qcow2 too: opening it tells what is wrong.
        return match be32(start, 4) {
            0 => Probed::Known(Format::Raw),
            1 => Probed::Foreign("qcow"),
            _ => Probed::Known(Format::Qcow2),
        };
    }
    if is(b"LUKS\xba\xbe\0\x01") {
        return Probed::Known(Format::Luks);
    }
    let foreign = if is(b"QED\0") {
        Some("qed")
    } else if is(b"KDMV") || is(b"COWD") || is_vmdk_text(start) {
        Some("vmdk")
    } else if le32(start, 64) == 0xbeda_107f {
        Some("vdi")
    } else if is(b"vhdxfile") {
        Some("vhdx")
    } else if is(b"conectix") {
        Some("vpc")
    } else if (is(b"WithoutFreeSpace") || is(b"WithouFreSpacExt")) && le32(start, 16) == 2 {
        Some("parallels")
    } else if is_bochs(start) {
        Some("bochs")
    } else if is(CLOOP) {
        Some("cloop")
    } else {
        None
    };
    foreign.map_or(Probed::Known(Format::Raw), Probed::Foreign)
}

/// A VMDK descriptor is a text whose first line that is neither blank nor a comment is a version.
fn is_vmdk_text(start: &[u8]) -> bool {
    let mut rest = start;
    loop {
        match rest.first() {
            Some(b'#') => match rest.iter().position(|&byte| byte == b'\n') {
                Some(end) => rest = &rest[end + 1..],
                None => return false,
            },
            Some(b' ') => {
                let text = skip_spaces(rest);
                let text = text.strip_prefix(b"\r").unwrap_or(text);
                match text.strip_prefix(b"\n") {
                    Some(next) => rest = next,
                    None => return false,
                }
            }
            _ => break,
        }
    }
    let Some(version) = rest.strip_prefix(b"version=") else {
        return false;
    };
    matches!(version.first(), Some(b'1'..=b'3'))
        && (version[1..].starts_with(b"\n") || version[1..].starts_with(b"\r\n"))
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|&&byte| byte == b' ').count();
    &text[spaces..]
}

fn is_bochs(start: &[u8]) -> bool {
    let text =
        |at: usize, words: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(words));
    text(0, b"Bochs Virtual HD Image\0")
        && text(32, b"Redolog\0")
        && text(48, b"Growing\0")
        && matches!(le32(start, 64), 0x1_0000 | 0x2_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(start: &[u8]) -> &'static str {
        probe(start).name()
    }

    // Every expectation was seen from `qemu-img info` on a file of these bytes.
    #[test]
    fn qcow2_by_magic_and_version() {
        assert_eq!(name_of(b""), "raw");
        assert_eq!(name_of(b"QFI\xfb"), "raw");
        assert_eq!(name_of(b"QFI\xfb\0\0\0\0"), "raw");
        assert_eq!(name_of(b"QFI\xfb\0\0\0\x01"), "qcow");
        assert_eq!(name_of(b"QFI\xfb\0\0\0\x02"), "qcow2");
        assert_eq!(name_of(b"QFI\xfb\0\0\0\x09"), "qcow2");
    }

    #[test]
    fn foreign_formats_by_their_first_bytes() {
        assert_eq!(name_of(b"KDMV"), "vmdk");
        assert_eq!(name_of(b"COWD"), "vmdk");
        assert_eq!(name_of(b"conectix"), "vpc");
        assert_eq!(name_of(b"vhdxfile"), "vhdx");
        assert_eq!(name_of(b"LUKS\xba\xbe\0\x01"), "luks");
        assert_eq!(name_of(b"LUKS\xba\xbe\0\x02"), "raw");
        assert_eq!(name_of(b"WithoutFreeSpace"), "raw");
        assert_eq!(name_of(b"WithoutFreeSpace\x02\0\0\0"), "parallels");
        assert_eq!(name_of(b"#!/bin/sh\n#V2.0 Format\n"), "raw");
        assert_eq!(name_of(CLOOP), "cloop");
        assert_eq!(name_of(b"Bochs Virtual HD Image"), "raw");
        let mut vdi = [0; 512];
        vdi[64..68].copy_from_slice(&0xbeda_107fu32.to_le_bytes());
        assert_eq!(name_of(&vdi), "vdi");
    }

    #[test]
    fn a_text_may_be_a_vmdk() {
        assert_eq!(name_of(b"version=1\n"), "vmdk");
        assert_eq!(name_of(b"#x\n  \nversion=2\r\n"), "vmdk");
        assert_eq!(name_of(b"version=1"), "raw");
        assert_eq!(name_of(b"version=4\n"), "raw");
        assert_eq!(name_of(b"# Disk DescriptorFile\n"), "raw");
        assert_eq!(name_of(b"# Disk DescriptorFile\nversion=1\n"), "vmdk");
        assert_eq!(name_of(&[b'#'; 600]), "raw");
    }
}
