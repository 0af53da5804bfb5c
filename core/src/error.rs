//! One error type: what failed, where in the image, and why.
//!
//! [`Display`](fmt::Display) gives the sentence that qemu-img's users know; the alternate form
//! (`{:#}`) adds the place. Programs match on the variant, never on the words.

use std::borrow::Cow;
use std::{fmt, io};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Words for a person: fixed where they can be.
pub type Text = Cow<'static, str>;

/// Why an operation on an image failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The storage failed; the image itself may be fine.
    Io {
        /// What was being done, as in "Could not read L2 table".
        what: Text,
        /// The byte in the storage at which it was done, where one is known.
        offset: Option<u64>,
        /// The storage's own error.
        source: io::Error,
    },
    /// The bytes are not of the format they were opened as.
    NotThisFormat(Text),
    /// The image is valid and asks for something that this version does not do.
    Unsupported(Text),
    /// The image contradicts its specification.
    Corrupt {
        /// What is wrong.
        what: Text,
        /// Where.
        place: Place,
    },
    /// A file named inside the image was not opened because the caller did not allow it.
    Refused(Text),
    /// The caller asked for something outside the image: an offset, a snapshot that is not there.
    OutOfRange(Text),
    /// A file that the image depends on could not be opened.
    Dependency {
        /// Why the image wants it.
        role: Role,
        /// The file's name, in full where it could be resolved.
        name: String,
        /// What went wrong with it.
        source: Box<Error>,
    },
    /// An earlier write to the image or flush of it failed, so that nothing more is written to it. What
    /// was flushed before is safe: open the image again.
    Stopped(Text),
    /// The caller asked the operation to stop.
    Cancelled,
}

/// Why one file is opened for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub enum Role {
    /// It supplies what the image above it has not allocated.
    Backing,
    /// It holds the guest's data; the image holds only metadata.
    DataFile,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backing => "backing file",
            Self::DataFile => "data file",
        })
    }
}

/// The structures of an image, by the specification's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Structure {
    /// Bytes 0 to `header_length`.
    Header,
    /// What follows the header in the first cluster.
    HeaderExtension,
    /// The backing file's name in the first cluster.
    BackingName,
    /// An active or a snapshot's L1 table.
    L1Table,
    /// An L2 table.
    L2Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table.
    SnapshotTable,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of one bitmap.
    BitmapTable,
    /// A cluster of guest data.
    DataCluster,
    /// A compressed cluster.
    CompressedCluster,
    /// The header of an encryption format.
    CryptoHeader,
    /// The signature or header of a format other than qcow2.
    ForeignHeader,
    /// The text that describes a VMDK image.
    Descriptor,
    /// A partition table in the content.
    PartitionTable,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::HeaderExtension => "header extension",
            Self::BackingName => "backing file name",
            Self::L1Table => "L1 table",
            Self::L2Table => "L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::DataCluster => "data cluster",
            Self::CompressedCluster => "compressed cluster",
            Self::CryptoHeader => "encryption header",
            Self::ForeignHeader => "signature of another format",
            Self::Descriptor => "descriptor",
            Self::PartitionTable => "partition table",
        })
    }
}

/// A place in an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case")
)]
pub struct Place {
    /// The structure.
    pub structure: Structure,
    /// The byte of the file at which it (or the entry) stands, where known.
    pub offset: Option<u64>,
    /// The entry's index in the structure, where there is one.
    pub index: Option<u64>,
}

impl Place {
    /// The structure as a whole.
    #[must_use]
    pub fn of(structure: Structure) -> Self {
        Self {
            structure,
            offset: None,
            index: None,
        }
    }

    /// The structure at byte `offset` of the file.
    #[must_use]
    pub fn at(structure: Structure, offset: u64) -> Self {
        Self {
            structure,
            offset: Some(offset),
            index: None,
        }
    }

    /// The same place, narrowed to entry `index`.
    #[must_use]
    pub fn entry(self, index: u64) -> Self {
        Self {
            index: Some(index),
            ..self
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.structure)?;
        if let Some(index) = self.index {
            write!(f, " entry {index}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset:#x}")?;
        }
        Ok(())
    }
}

impl Error {
    /// A storage error while doing `what` at byte `offset`.
    pub fn io(what: impl Into<Text>, offset: u64, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            offset: Some(offset),
            source,
        }
    }

    /// A contradiction of the specification at `place`.
    pub fn corrupt(what: impl Into<Text>, place: Place) -> Self {
        Self::Corrupt {
            what: what.into(),
            place,
        }
    }

    /// The place in the image that the error is about, where there is one.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Corrupt { place, .. } => Some(*place),
            Self::Dependency { source, .. } => source.place(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io {
                what,
                offset,
                source,
            } => {
                if !what.is_empty() {
                    write!(f, "{what}: ")?;
                }
                f.write_str(strip_os_code(&source.to_string()))?;
                match offset {
                    Some(offset) if f.alternate() => write!(f, " (at byte {offset:#x})"),
                    _ => Ok(()),
                }
            }
            Self::NotThisFormat(what)
            | Self::Unsupported(what)
            | Self::Refused(what)
            | Self::Stopped(what)
            | Self::OutOfRange(what) => f.write_str(what),
            Self::Corrupt { what, place } => {
                f.write_str(what)?;
                if f.alternate() {
                    write!(f, " ({place})")
                } else {
                    Ok(())
                }
            }
            Self::Dependency { role, name, source } => {
                if *role == Role::Backing {
                    f.write_str("Could not open backing file: ")?;
                }
                // Only a file that could not be read at all is named: what is wrong inside it says so itself.
                if matches!(**source, Error::Io { .. }) {
                    write!(f, "Could not open '{name}': ")?;
                }
                if f.alternate() {
                    write!(f, "{source:#}")
                } else {
                    write!(f, "{source}")
                }
            }
            Self::Cancelled => f.write_str("Operation cancelled"),
        }
    }
}

/// `std` appends " (os error N)" to the system's words; qemu-img does not.
fn strip_os_code(message: &str) -> &str {
    match message.rfind(" (os error ") {
        Some(at) if message.ends_with(')') => &message[..at],
        _ => message,
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Dependency { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_is_the_sentence_and_the_long_form_adds_the_place() {
        let error = Error::corrupt(
            "L2 table offset unaligned",
            Place::at(Structure::L1Table, 0x3_0008).entry(1),
        );
        assert_eq!(error.to_string(), "L2 table offset unaligned");
        assert_eq!(
            format!("{error:#}"),
            "L2 table offset unaligned (L1 table entry 1 at byte 0x30008)"
        );
    }

    #[test]
    fn system_error_numbers_are_left_out() {
        let error = Error::io(
            "Could not read L1 table",
            512,
            io::Error::from_raw_os_error(5),
        );
        assert_eq!(
            error.to_string(),
            "Could not read L1 table: Input/output error"
        );
    }
}
