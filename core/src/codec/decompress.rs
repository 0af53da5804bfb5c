//! Decompression of one cluster.

use crate::qcow2::Compression;

#[cfg(not(feature = "fast-zstd"))]
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
#[cfg(feature = "fast-zstd")]
use structured_zstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The largest zstd window accepted: what every decoder must support (RFC 8878, 3.1.1.1.2), and four
/// times the largest cluster. A frame may claim terabytes.
const MAX_ZSTD_WINDOW: u64 = 8 << 20;

/// Decompresses clusters one after another, keeping its working memory.
pub(crate) struct Decompressor {
    // Large, and hardly any image needs both: on the heap, so that opening does not move them around.
    inflate: Option<Box<zlib_rs::Inflate>>,
    zstd: Option<Box<FrameDecoder>>,
}

/// The data is not a stream that yields a whole cluster; why.
#[derive(Debug)]
pub(crate) struct NotACluster(pub &'static str);

impl Decompressor {
    pub fn new() -> Self {
        Self {
            inflate: None,
            zstd: None,
        }
    }

    /// Fills all of `cluster` from the stream at the start of `data`. What follows the stream in `data` is
    /// of no meaning (specification, "Compressed Clusters Descriptor"); a stream that yields less is an
    /// error, and so is one that is cut.
    pub fn decompress(
        &mut self,
        method: Compression,
        data: &[u8],
        cluster: &mut [u8],
    ) -> Result<(), NotACluster> {
        match method {
            Compression::Zlib => self.inflate(data, cluster),
            Compression::Zstd => self.zstd(data, cluster),
        }
    }

    fn inflate(&mut self, data: &[u8], cluster: &mut [u8]) -> Result<(), NotACluster> {
        let inflate = self
            .inflate
            .get_or_insert_with(|| Box::new(zlib_rs::Inflate::new(false, 15)));
        inflate.reset(false);
        match inflate.decompress(data, cluster, zlib_rs::InflateFlush::Finish) {
            Err(_) => Err(NotACluster("is not valid deflate data")),
            // Either the stream ended or the cluster is full: only the number of bytes tells.
            Ok(_) if inflate.total_out() == cluster.len() as u64 => Ok(()),
            Ok(_) => Err(NotACluster("ends before the cluster is full")),
        }
    }

    fn zstd(&mut self, data: &[u8], cluster: &mut [u8]) -> Result<(), NotACluster> {
        let decoder = self
            .zstd
            .get_or_insert_with(|| Box::new(new_zstd_decoder()));
        let mut rest = data;
        let mut filled = 0;
        decoder
            .reset(&mut rest)
            .map_err(|_| NotACluster("is not a valid zstd frame"))?;
        // QEMU demands that the frame ends where the cluster does.
        while filled < cluster.len() || !decoder.is_finished() || decoder.can_collect() > 0 {
            match (filled == cluster.len(), decoder.can_collect() > 0) {
                (true, true) => return Err(NotACluster("goes on after the cluster is full")),
                (false, false) if decoder.is_finished() => {
                    return Err(NotACluster("ends before the cluster is full"));
                }
                _ => {}
            }
            if !decoder.is_finished() {
                // One block at a time, so that a frame that expands without end is cut off early.
                decoder
                    .decode_blocks(&mut rest, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|_| NotACluster("is not a valid zstd frame"))?;
            }
            filled += std::io::Read::read(decoder, &mut cluster[filled..])
                .map_err(|_| NotACluster("is not a valid zstd frame"))?;
        }
        Ok(())
    }
}

fn new_zstd_decoder() -> FrameDecoder {
    let mut decoder = FrameDecoder::new();
    // One decoder returns nothing here, the other an error for a limit out of its range, which this is not.
    #[allow(clippy::let_unit_value)]
    let _ = decoder.set_max_window_size(MAX_ZSTD_WINDOW);
    decoder
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 512 bytes of "oxcow" over and over, by Python's zlib as raw deflate with a window of 2^12.
    const DEFLATE: &[u8] = &[203, 175, 72, 206, 47, 207, 31, 37, 70, 42, 1, 0];
    /// The same by the zstd command, level 3.
    const ZSTD: &[u8] = &[
        40, 181, 47, 253, 100, 0, 1, 101, 0, 0, 40, 111, 120, 99, 111, 119, 1, 0, 248, 80, 139, 22,
        8, 152, 187, 92,
    ];

    fn expected() -> Vec<u8> {
        b"oxcow".iter().copied().cycle().take(512).collect()
    }

    #[test]
    fn what_follows_the_stream_does_not_matter() {
        let mut decompressor = Decompressor::new();
        for (method, stream) in [(Compression::Zlib, DEFLATE), (Compression::Zstd, ZSTD)] {
            for tail in [&[][..], &[0; 100], &[0xff; 100]] {
                let mut cluster = vec![0; 512];
                decompressor
                    .decompress(method, &[stream, tail].concat(), &mut cluster)
                    .unwrap();
                assert_eq!(cluster, expected());
            }
        }
    }

    #[test]
    fn a_stream_of_another_length_is_refused() {
        let mut decompressor = Decompressor::new();
        for (method, stream) in [(Compression::Zlib, DEFLATE), (Compression::Zstd, ZSTD)] {
            assert!(
                decompressor
                    .decompress(method, stream, &mut [0; 513])
                    .is_err()
            );
        }
        // Deflate that goes on after the cluster is full is taken, as QEMU takes it; zstd is not.
        let mut half = [0; 256];
        decompressor
            .decompress(Compression::Zlib, DEFLATE, &mut half)
            .unwrap();
        assert_eq!(half, expected()[..256]);
        assert!(
            decompressor
                .decompress(Compression::Zstd, ZSTD, &mut half)
                .is_err()
        );
    }

    #[test]
    fn garbage_and_cut_streams_are_refused() {
        let mut decompressor = Decompressor::new();
        for (method, stream) in [(Compression::Zlib, DEFLATE), (Compression::Zstd, ZSTD)] {
            assert!(
                decompressor
                    .decompress(method, &[0xff; 64], &mut [0; 512])
                    .is_err()
            );
            for length in 0..stream.len() / 2 {
                assert!(
                    decompressor
                        .decompress(method, &stream[..length], &mut [0; 512])
                        .is_err()
                );
            }
        }
    }
}
