//! Compressed clusters as QEMU writes them: only where there is no cluster yet.

use std::io;

use oxcow::{Error, ExtentKind, GuestOffset, Image};

use crate::file::{FileStorage, block_on};

/// Whether the image itself has a cluster for any part of so many bytes from `offset` on, be it one that reads as
/// zeros.
pub fn is_any_in_place(
    image: &Image<FileStorage>,
    offset: u64,
    length: u64,
) -> Result<bool, Error> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let extent = block_on(image.extent_at(GuestOffset(at), end - at))?;
        let in_place = match extent.kind {
            ExtentKind::Data | ExtentKind::Compressed => true,
            ExtentKind::Zero => extent.host.is_some(),
            ExtentKind::Unallocated => false,
        };
        if in_place && extent.depth == 0 {
            return Ok(true);
        }
        at += extent.length;
    }
    Ok(false)
}

/// Writes `data`, which lies inside the disk, as compressed clusters; what it leaves of them is what was there.
pub fn write_padded(image: &Image<FileStorage>, offset: u64, data: &[u8]) -> Result<(), Error> {
    let failed = |kind: io::ErrorKind, words: &'static str| {
        Error::io("", offset, io::Error::new(kind, words))
    };
    let qcow2 = image.top().as_qcow2();
    let header = qcow2.map(|qcow2| qcow2.header());
    let Some(header) = header.filter(|header| !header.has_data_file()) else {
        return Err(failed(
            io::ErrorKind::Unsupported,
            "Operation not supported",
        ));
    };
    let cluster = header.cluster_size.bytes();
    let size = image.virtual_size();
    let (mut at, end) = (offset, offset + data.len() as u64);
    let mut whole = Vec::new();
    while at < end {
        let start = at / cluster * cluster;
        let stop = (start + cluster).min(size);
        if is_any_in_place(image, start, stop - start)? {
            return Err(failed(io::ErrorKind::Other, "Input/output error"));
        }
        let covered = end.min(stop);
        let piece = &data[(at - offset) as usize..(covered - offset) as usize];
        if piece.len() as u64 == stop - start {
            block_on(image.write_compressed(GuestOffset(start), piece))?;
        } else {
            whole.resize((stop - start) as usize, 0);
            block_on(image.read_at(GuestOffset(start), &mut whole))?;
            let within = (at - start) as usize;
            whole[within..within + piece.len()].copy_from_slice(piece);
            block_on(image.write_compressed(GuestOffset(start), &whole))?;
        }
        at = covered;
    }
    Ok(())
}
