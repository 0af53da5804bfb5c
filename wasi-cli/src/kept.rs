//! Copy on read as QEMU has it: all that is read becomes the image's own, zeros that no file has too.

use oxcow::{Error, ExtentKind, GuestOffset, Image, ZeroMode};

use crate::file::{FileStorage, block_on};

/// Makes zeros that no file of the chain holds, in so many bytes from `offset` on, the image's own. What a backing file
/// holds is kept when it is read.
pub fn keep_zeros(image: &Image<FileStorage>, offset: u64, length: u64) -> Result<(), Error> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let extent = block_on(image.extent_at(GuestOffset(at), end - at))?;
        if extent.kind == ExtentKind::Unallocated {
            block_on(image.write_zeroes(GuestOffset(at), extent.length, ZeroMode::Keep))?;
        }
        at += extent.length;
    }
    Ok(())
}
