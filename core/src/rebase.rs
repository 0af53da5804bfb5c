//! Rebasing: an image gets another backing file, or none, and its disk keeps its content, as `qemu-img rebase`
//! does.
//!
//! [`keep_differences`] first: whatever the disk would read otherwise on the new file is written to the image
//! itself, as its guest would write it, which changes nothing that anybody sees (I2). Then
//! [`Image::set_backing`], one switch of the header (S2). A crash in between leaves an image that holds a little
//! more than it has to.

use crate::convert::{Failed, Step, Watch, is_zero};
use crate::error::Error;
use crate::image::{Image, Layer, ZeroMode};
use crate::storage::{Buffer, Storage};
use crate::units::GuestOffset;

/// How the differences are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebaseOptions {
    /// Whether what is written is compressed. It must be a qcow2 image without a data file.
    pub compress: bool,
    /// Which file of the image's own chain the new backing file is, if it is one: what comes from there, or from
    /// below, needs no comparing.
    pub common: Option<usize>,
    /// How much is read and compared at once, in bytes.
    pub buffer: usize,
}

impl Default for RebaseOptions {
    fn default() -> Self {
        Self {
            compress: false,
            common: None,
            buffer: 512 << 10,
        }
    }
}

/// Writes to `image`, which is open for writing with its backing files, whatever its disk would not read the same
/// with `new` below it, and flushes it.
///
/// # Errors
///
/// Where one of the disks cannot be read or the image not be written; [`Error::Cancelled`] where `watch` said no.
///
/// # Examples
///
/// ```
/// use oxcow::rebase::{RebaseOptions, keep_differences};
/// use oxcow::{BackingName, Image, MemoryStorage};
///
/// # async fn example(image: &Image<MemoryStorage>, base: &Image<MemoryStorage>) -> oxcow::Result<()> {
/// let kept = keep_differences(image, Some(base), &RebaseOptions::default(), |_, _| true).await;
/// kept.map_err(|failed| failed.source)?;
/// let name = BackingName { name: "base.qcow2".into(), format: Some("qcow2".into()) };
/// image.set_backing(Some(&name)).await
/// # }
/// ```
pub async fn keep_differences<S: Storage, T: Storage>(
    image: &Image<S>,
    new: Option<&Image<T>>,
    options: &RebaseOptions,
    mut watch: impl Watch,
) -> Result<(), Failed> {
    let (cluster, granule) = match image.top() {
        Layer::Raw(_) => return Ok(()), // It needs no backing file.
        Layer::Qcow2(qcow2) => {
            let format = qcow2.l2_format();
            (format.cluster_size.bytes(), format.granule_bytes())
        }
    };
    let comparison = Comparison {
        image,
        new,
        options,
        granule: match options.compress {
            true => cluster,
            false => granule,
        },
        old_end: image.layers().get(1).map_or(0, Layer::virtual_size),
    };
    let size = image.virtual_size();
    let mut contents = Contents::default();
    let mut at = 0;
    while at < size {
        at = comparison.step(at, &mut contents).await?;
        if !watch.progress(at.min(size), size) {
            return Err(Failed::at(Step::Reading, at)(Error::Cancelled));
        }
    }
    let flushed = image.flush().await;
    flushed.map_err(Failed::at(Step::Flushing, size))
}

/// What is compared.
#[derive(Default)]
struct Contents {
    old: Buffer,
    new: Buffer,
}

struct Comparison<'a, S, T> {
    image: &'a Image<S>,
    new: Option<&'a Image<T>>,
    options: &'a RebaseOptions,
    /// What is compared and written as one, in bytes.
    granule: u64,
    /// Where the backing file that the image has ends.
    old_end: u64,
}

impl<S: Storage, T: Storage> Comparison<'_, S, T> {
    /// Looks at the disk from byte `at` on, which begins a granule, and returns how far.
    async fn step(&self, at: u64, contents: &mut Contents) -> Result<u64, Failed> {
        let size = self.image.virtual_size();
        let buffer = (self.options.buffer as u64).max(self.granule) / self.granule * self.granule;
        let mut end = at;
        // As much as needs comparing, in one piece.
        while end < size && end - at < buffer {
            let (same, length) = self.is_same_at(end, size - end).await?;
            let whole = match same {
                true => length / self.granule * self.granule,
                false => length.min(buffer).next_multiple_of(self.granule),
            };
            // At the end of the disk a part of a granule is all of it.
            let whole = match end + length >= size {
                true => whole.max(size - end),
                false => whole,
            };
            if same && whole > 0 {
                if end == at {
                    return Ok(at + whole);
                }
                break;
            }
            end += whole.max(self.granule);
        }
        let end = end.min(at + buffer).min(size);
        self.compare(at, end, contents).await?;
        Ok(end)
    }

    /// Whether the disk surely reads the same at `at` afterwards, and for how many bytes that is known.
    async fn is_same_at(&self, at: u64, max: u64) -> Result<(bool, u64), Failed> {
        let mapping = || Failed::at(Step::Mapping, at);
        let old = self
            .image
            .extent_at(GuestOffset(at), max)
            .await
            .map_err(mapping())?;
        let own = old.depth == 0 && old.present();
        let common = self.options.common.is_some_and(|depth| old.depth >= depth);
        if own || common {
            return Ok((true, old.length));
        }
        if !old.zero() {
            return Ok((false, old.length));
        }
        let new_size = self.new.map_or(0, Image::virtual_size);
        match self.new {
            Some(new) if at < new_size => {
                let max = old.length.min(new_size - at);
                let new = new
                    .extent_at(GuestOffset(at), max)
                    .await
                    .map_err(mapping())?;
                Ok((new.zero(), new.length))
            }
            _ => Ok((true, old.length)),
        }
    }

    /// Compares granule by granule, and writes those that differ.
    async fn compare(&self, start: u64, end: u64, contents: &mut Contents) -> Result<(), Failed> {
        let reading = || Failed::at(Step::Reading, start);
        let length = (end - start) as usize;
        let Contents { old, new } = contents;
        old.resize(length);
        let read = self.image.read_at(GuestOffset(start), old).await;
        read.map_err(reading())?;
        new.resize(length);
        let behind = match self.new.filter(|new| new.virtual_size() > start) {
            Some(image) => {
                let there = (image.virtual_size() - start).min(end - start);
                let (there, behind) = new.split_at_mut(there as usize);
                let read = image.read_at(GuestOffset(start), there).await;
                read.map_err(reading())?;
                behind
            }
            None => &mut new[..],
        };
        behind.fill(0);
        let granule = self.granule as usize;
        let mut done = 0;
        while done < length {
            let from = done;
            let next = |at: usize| (at + granule).min(length);
            let differs = |at: usize| old[at..next(at)] != new[at..next(at)];
            if !differs(done) || self.is_own(start + done as u64).await? {
                done = next(done);
                continue;
            }
            while done < length
                && differs(done)
                && (done == from || !self.is_own(start + done as u64).await?)
            {
                done = next(done);
            }
            self.write(start + from as u64, &old[from..done]).await?;
        }
        Ok(())
    }

    /// Whether the image holds the granule at `at` itself.
    async fn is_own(&self, at: u64) -> Result<bool, Failed> {
        let max = self.granule.min(self.image.virtual_size() - at);
        let extent = self.image.extent_at(GuestOffset(at), max).await;
        let extent = extent.map_err(Failed::at(Step::Mapping, at))?;
        Ok(extent.depth == 0 && extent.present() && extent.length >= max)
    }

    async fn write(&self, at: u64, data: &[u8]) -> Result<(), Failed> {
        let (offset, length) = (GuestOffset(at), data.len() as u64);
        let written = if at >= self.old_end && is_zero(data) {
            let mode = ZeroMode::Keep;
            self.image.write_zeroes(offset, length, mode).await
        } else if self.options.compress {
            self.image.write_compressed(offset, data).await
        } else {
            self.image.write_at(offset, data).await
        };
        written.map_err(Failed::at(Step::Writing, at))
    }
}
