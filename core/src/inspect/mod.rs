//! The safety report: what an image would make a program do, told before any of it is done.
//!
//! [`inspect`] reads the one file it is given and no other. It works on images that do not open, says
//! everything that is wrong and not only the first thing, and its work and memory are bounded whatever
//! the image claims.

mod expansion;
mod foreign;
mod names;
mod partitions;
mod qcow2;
mod report;
mod signatures;
mod tables;
mod vmdk;

pub use names::Reach;
pub use report::{Fact, Finding, SafetyReport, Severity, Verdict, WantedFile};

use crate::error::{Error, Place, Result, Structure};
use crate::probe::{Format, PROBE_BYTES, Probed, probe};
use crate::storage::{Storage, read_padded};
use report::Draft;
use signatures::Found;

/// What [`inspect_with`] is told beside the image.
#[derive(Clone, Copy, Debug, Default)]
pub struct InspectOptions {
    /// The format that the image is said to have. Without it the first bytes decide, as they do for a
    /// program that guesses; with it the report also says where such a program would go wrong.
    pub format: Option<Format>,
}

/// The safety report on the image in `storage`. See [`inspect_with`].
///
/// # Errors
///
/// [`Error::Io`] where the storage cannot be read. What is wrong with the image is in the report.
pub async fn inspect<S: Storage>(storage: &S) -> Result<SafetyReport> {
    inspect_with(storage, InspectOptions::default()).await
}

/// The safety report on the image in `storage`.
///
/// No file that the image names is opened. Beside what opening the image takes, at most about 120 MiB
/// are read and 20 MiB of memory used; of an ordinary image a few hundred kilobytes.
///
/// # Errors
///
/// [`Error::Io`] where the storage cannot be read. What is wrong with the image is in the report.
pub async fn inspect_with<S: Storage>(
    storage: &S,
    options: InspectOptions,
) -> Result<SafetyReport> {
    let reader = Reader::new(storage).await?;
    let start = reader.read(0, PROBE_BYTES).await?;
    let probed = probe(&start);
    let mut found = signatures::find(&reader).await?;
    let mut draft = Draft::new(reader.len);
    let format = options.format.map_or(probed, Probed::Known);
    draft.report.format = format.name().into();
    signatures::keep_what_counts(&mut found, format, &start);
    draft.report.formats = signatures::names(format, &found);

    if reader.len == 0 {
        draft
            .warning("empty-file", "The file is empty: there is no image in it.")
            .at(Place::of(Structure::Header));
    }
    if format != probed {
        other_than_probed(&mut draft, format, probed);
    }
    match format {
        Probed::Known(Format::Qcow2) => qcow2::inspect(&mut draft, &reader).await?,
        Probed::Known(Format::Raw) => raw(&mut draft, &start, &found),
        // Without a key there is nothing to see in it.
        Probed::Known(Format::Luks) => {
            foreign::inspect(&mut draft, &reader, format.name(), &found).await?;
        }
        Probed::Foreign(name) => foreign::inspect(&mut draft, &reader, name, &found).await?,
    }
    signatures::judge(&mut draft, format, &found, &start);
    Ok(draft.finish())
}

/// The caller says one format, the first bytes say another.
fn other_than_probed(draft: &mut Draft, format: Probed, probed: Probed) {
    let (said, seen) = (format.name(), probed.name());
    if format == Probed::Known(Format::Raw) {
        draft.danger(
            "raw-probes-as-image",
            format!(
                "The disk's content begins like a {seen} image. Always say that the format is raw: a program \
                 that guesses would take it for {seen} and could follow file names that were planted in it."
            ),
        )
    } else {
        draft.warning(
            "not-this-format",
            format!("The file is said to be {said}, but its first bytes are those of {seen}."),
        )
    }
    .at(Place::at(Structure::Header, 0));
}

fn raw(draft: &mut Draft, start: &[u8], found: &[Found]) {
    draft.set_virtual_size(draft.report.file_size);
    if start.starts_with(b"QFI\xfb\0\0\0\0") {
        draft
            .warning(
                "magic-without-version",
                "The disk's content begins with the mark of a qcow2 image, but of version 0: programs differ on \
                 whether that is an image. Always say that the format is raw.",
            )
            .at(Place::at(Structure::Header, 0));
    }
    let content: Vec<&str> = found.iter().map(|found| found.title).collect();
    if !content.is_empty() {
        draft.fact("content", "Content", content.join(", "));
    }
    partitions::check(draft, start, found);
}

/// Bytes of one file, read without trust: every answer is as long as what was asked for.
struct Reader<'a, S> {
    storage: &'a S,
    /// The length of the file in bytes.
    len: u64,
}

impl<'a, S: Storage> Reader<'a, S> {
    async fn new(storage: &'a S) -> Result<Self> {
        let len = storage.len().await.map_err(|source| Error::Io {
            what: "Could not get image size".into(),
            offset: None,
            source,
        })?;
        Ok(Self { storage, len })
    }

    /// `length` bytes at `offset`, less where the file ends before.
    async fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(left)];
        self.fill(offset, &mut bytes).await?;
        Ok(bytes)
    }

    /// Fills `buf` from byte `offset` on, with zeros where the file ends before.
    async fn fill(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        read_padded(self.storage, offset, buf)
            .await
            .map_err(|error| Error::io("Could not read image", offset, error))
    }
}

#[cfg(test)]
mod tests;
