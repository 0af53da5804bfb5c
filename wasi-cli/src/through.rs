//! Raw images that show the disk of another one as it is: what is asked of their disks is asked of that, which can
//! say more about it and do more with it than a file could.

use oxcow::{Image, Layer};

use crate::file::{Disk, FileStorage, Writes};

/// Where a disk really is.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The image that has it.
    pub image: &'a Image<FileStorage>,
    /// At which byte of that image's disk it begins.
    pub offset: u64,
}

impl<'a> Shown<'a> {
    /// Where the disk of `image` is.
    pub fn by(image: &'a Image<FileStorage>) -> Self {
        let mut shown = Self { image, offset: 0 };
        while let Some((offset, Some(disk))) = origin(shown.image.top()) {
            shown.image = disk.image();
            shown.offset += offset;
        }
        shown
    }
}

/// The image whose disk is all that `image` shows, and how what is written to that gets there.
pub fn target(image: &Image<FileStorage>) -> (&Image<FileStorage>, Writes) {
    match origin(image.top()) {
        Some((0, Some(disk))) if disk.image().virtual_size() == image.virtual_size() => {
            match disk.writes() {
                Writes::Compressed => (disk.image(), Writes::Compressed),
                Writes::Plain | Writes::Never => target(disk.image()),
            }
        }
        _ => (image, Writes::Plain),
    }
}

/// At which byte of its file an image of the chain begins, which may be a part of it.
pub fn host(layer: &Layer<FileStorage>) -> u64 {
    match origin(layer) {
        Some((offset, None)) => offset,
        _ => 0,
    }
}

/// What a raw image shows; `None` of one that shows something else than what it is stored in.
fn origin(layer: &Layer<FileStorage>) -> Option<(u64, Option<&Disk>)> {
    match layer {
        Layer::Raw(raw) if !layer.is_encrypted() => Some(raw.file().storage.origin()),
        _ => None,
    }
}
