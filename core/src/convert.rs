//! Copying a disk into another file.

use crate::error::{Error, Result};
use crate::image::{Extent, Image};
use crate::storage::Storage;
use crate::units::{GuestOffset, SECTOR};

/// How a disk is written to a raw file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawOptions {
    /// Zeros that fill a whole aligned block of so many bytes are not written: a multiple of 512, or 0 to
    /// write everything.
    pub sparse: usize,
    /// Whether the target already reads as zeros wherever nothing is written. Without it, zeros are written.
    pub target_is_zero: bool,
    /// How much is read and written at once, in bytes: large where every call is dear, small enough for the
    /// processor's cache where calls are cheap.
    pub buffer: usize,
}

impl Default for RawOptions {
    fn default() -> Self {
        Self {
            sparse: 4096,
            target_is_zero: true,
            buffer: 2 << 20,
        }
    }
}

/// Writes the content of `image` to `target`, which must already have its size. `progress` is told how many
/// of how many bytes are done, and says whether to go on.
///
/// # Errors
///
/// Whatever reading the image or writing the target ran into; [`Error::Cancelled`] where `progress` said no.
pub async fn to_raw<S: Storage, T: Storage>(
    image: &Image<S>,
    target: &T,
    options: &RawOptions,
    mut progress: impl FnMut(u64, u64) -> bool,
) -> Result<()> {
    let size = image.virtual_size();
    // Compared as 64 bits: as a `usize` of 32 bits a disk of 4 GiB would be one of 0 bytes.
    let buffer = options.buffer.max(SECTOR as usize) as u64;
    let mut buf = vec![0; size.min(buffer) as usize];
    let skip_zeros = options.target_is_zero && options.sparse > 0;
    let mut at = 0;
    while at < size {
        let extent = image.extent_at(GuestOffset(at), size - at).await?;
        if extent.zero() && skip_zeros {
            at += extent.length;
        } else {
            // Chunks end at multiples of the buffer, so that sparse blocks are aligned in the file.
            let to_boundary = (buffer - at % buffer).min(size - at);
            let length = if extent.zero() {
                extent.length.min(to_boundary)
            } else {
                data_from(image, at, &extent, to_boundary).await
            };
            let chunk = &mut buf[..length as usize];
            image.read_at(GuestOffset(at), chunk).await?;
            let sparse = if skip_zeros { options.sparse } else { 0 };
            write_sparse(target, at, chunk, sparse).await?;
            at += length;
        }
        if !progress(at, size) {
            return Err(Error::Cancelled);
        }
    }
    Ok(())
}

/// How many of the `max` bytes from `at` on are data, of which `first` is the beginning: small clusters and
/// compressed ones are read and written many at once.
async fn data_from<S: Storage>(image: &Image<S>, at: u64, first: &Extent, max: u64) -> u64 {
    let mut length = first.length.min(max);
    while length < max {
        // What is wrong with the next extent is told when its turn comes.
        match image
            .extent_at(GuestOffset(at + length), max - length)
            .await
        {
            Ok(next) if next.data() => length += next.length,
            _ => break,
        }
    }
    length
}

/// Writes `data` at `offset`, without the blocks of `sparse` bytes that are all zeros.
async fn write_sparse<T: Storage>(
    target: &T,
    offset: u64,
    data: &[u8],
    sparse: usize,
) -> Result<()> {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        let zeros = if sparse == 0 {
            0
        } else {
            run(rest, offset + done as u64, sparse, true)
        };
        done += zeros;
        let rest = &data[done..];
        let content = if sparse == 0 {
            rest.len()
        } else {
            run(rest, offset + done as u64, sparse, false)
        };
        if content > 0 {
            let at = offset + done as u64;
            let write = target.write_at(at, &rest[..content]).await;
            write.map_err(|error| {
                Error::io(format!("error while writing at byte {at}"), at, error)
            })?;
            done += content;
        }
    }
    Ok(())
}

/// How many bytes from the start of `data` belong to blocks that are all zeros, or are not. Blocks are
/// aligned in the file, in which `data` starts at `offset`.
fn run(data: &[u8], offset: u64, block: usize, zero: bool) -> usize {
    let mut length = 0;
    while length < data.len() {
        let to_boundary = block - ((offset + length as u64) % block as u64) as usize;
        let end = (length + to_boundary).min(data.len());
        if is_zero(&data[length..end]) != zero {
            break;
        }
        length = end;
    }
    length
}

/// Whether all bytes are zero; fast on both kinds.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Data mostly shows itself at once; the rest is folded in pieces that compile to wide operations.
    const PIECE: usize = SECTOR as usize;
    bytes.first().is_none_or(|byte| *byte == 0)
        && bytes
            .chunks(PIECE)
            .all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use super::*;
    use crate::chain::{DenyAll, File};
    use crate::image::OpenOptions;
    use crate::storage::MemoryStorage;
    use futures_util::FutureExt;

    #[test]
    fn runs_of_blocks_are_aligned_in_the_file() {
        let mut data = vec![0; 4096];
        data[1500] = 1;
        // Blocks 0..512 | 512..1536 | 1536..2560 | ... as the data starts at 512 of the file.
        assert_eq!(run(&data, 512, 1024, true), 512);
        assert_eq!(run(&data[512..], 1024, 1024, false), 1024);
        assert_eq!(run(&data[1536..], 2048, 1024, true), 2560);
    }

    #[test]
    fn zeros() {
        assert!(is_zero(&[]));
        assert!(is_zero(&[0; 1025]));
        let mut bytes = [0; 1025];
        bytes[1024] = 1;
        assert!(!is_zero(&bytes));
    }

    /// A target that remembers what was written to it.
    #[derive(Default)]
    struct Recorder {
        memory: MemoryStorage,
        writes: RefCell<Vec<(u64, usize)>>,
    }

    impl Storage for Recorder {
        async fn len(&self) -> io::Result<u64> {
            self.memory.len().await
        }

        async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            self.memory.read_at(offset, buf).await
        }

        async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.writes.borrow_mut().push((offset, data.len()));
            self.memory.write_at(offset, data).await
        }

        async fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len).await
        }

        async fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn converted(bytes: &[u8], old: Vec<u8>, options: &RawOptions) -> (Vec<u8>, Vec<(u64, usize)>) {
        let file = File {
            storage: MemoryStorage::new(bytes.to_vec()),
            name: "disk".into(),
        };
        let (open, deny) = (OpenOptions::default(), DenyAll::default());
        let image = Image::open(file, &open, &deny);
        let image = image.now_or_never().unwrap().unwrap();
        let target = Recorder {
            memory: MemoryStorage::new(old),
            ..Recorder::default()
        };
        to_raw(&image, &target, options, |_, _| true)
            .now_or_never()
            .unwrap()
            .unwrap();
        (target.memory.into_bytes(), target.writes.into_inner())
    }

    #[test]
    fn blocks_of_zeros_are_left_out_unless_they_have_to_be_written() {
        let mut disk = vec![0; 3 << 20];
        disk[4096..12288].fill(1);
        disk[(2 << 20) + 100] = 2;
        let sparse = RawOptions::default();
        let (copy, writes) = converted(&disk, vec![0; disk.len()], &sparse);
        assert_eq!(
            (copy, writes),
            (disk.clone(), vec![(4096, 8192), (2 << 20, 4096)])
        );

        let over_old_content = RawOptions {
            target_is_zero: false,
            ..sparse
        };
        let (copy, _) = converted(&disk, vec![9; disk.len()], &over_old_content);
        assert_eq!(copy, disk);

        let everything = RawOptions {
            sparse: 0,
            ..sparse
        };
        let (_, writes) = converted(&disk, vec![0; disk.len()], &everything);
        assert_eq!(writes, [(0, 2 << 20), (2 << 20, 1 << 20)]);
    }
}
