//! Compression of one cluster.

use crate::codec::Decompressor;
use crate::qcow2::Compression;

#[cfg(feature = "fast-zstd")]
use structured_zstd::encoding::{CompressionLevel, FrameCompressor};

/// QEMU inflates with a window of 2^12 bytes and no header: what reaches further back it cannot read.
const DEFLATE_WINDOW_BITS: u8 = 12;
/// zlib's own default, which QEMU uses.
const DEFLATE_LEVEL: i32 = 6;

/// Compresses clusters one after another, keeping its working memory.
pub(crate) struct Compressor {
    // Large, and hardly any image needs them: on the heap, so that opening does not move them around.
    deflate: Option<Box<zlib_rs::Deflate>>,
    zstd: Option<Box<ZstdEncoder>>,
    /// Reads every zstd frame back before it is trusted.
    proof: Decompressor,
    stream: Vec<u8>,
    readback: Vec<u8>,
}

impl Compressor {
    pub fn new() -> Self {
        Self {
            deflate: None,
            zstd: None,
            proof: Decompressor::new(),
            stream: Vec::new(),
            readback: Vec::new(),
        }
    }

    /// The stream that decompresses to exactly `cluster`; `None` where it would not be shorter, so that the
    /// cluster is better stored as it is.
    pub fn compress(&mut self, method: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
        match method {
            Compression::Zlib => self.deflate(cluster),
            Compression::Zstd => self.zstd(cluster),
        }
    }

    fn deflate(&mut self, cluster: &[u8]) -> Option<Vec<u8>> {
        let deflate = self.deflate.get_or_insert_with(|| {
            let deflate = zlib_rs::Deflate::new(DEFLATE_LEVEL, false, DEFLATE_WINDOW_BITS);
            Box::new(deflate)
        });
        deflate.reset();
        // Room for any stream, so that none is left unfinished: a reset does not take back what nobody
        // fetched, and clusters later the encoder panics for want of room (zlib-rs 0.6.8).
        let room = most_deflated(cluster.len());
        self.stream.resize(room.max(self.stream.len()), 0);
        let ended = deflate.compress(cluster, &mut self.stream, zlib_rs::DeflateFlush::Finish);
        let length = deflate.total_out() as usize;
        if !matches!(ended, Ok(zlib_rs::Status::StreamEnd)) {
            self.deflate = None;
            return None;
        }
        (length < cluster.len()).then(|| self.stream[..length].to_vec())
    }

    fn zstd(&mut self, cluster: &[u8]) -> Option<Vec<u8>> {
        let encoder = self
            .zstd
            .get_or_insert_with(|| Box::new(ZstdEncoder::new()));
        encoder.compress(cluster, &mut self.stream);
        if self.stream.len() >= cluster.len() {
            return None;
        }
        // The pure Rust encoders are young, and the plain cluster is gone once its stream is written: a
        // frame that does not read back as the cluster is not used. A fifth to a third of the time.
        self.readback.clear();
        self.readback.resize(cluster.len(), 0);
        self.proof
            .decompress(Compression::Zstd, &self.stream, &mut self.readback)
            .ok()?;
        (self.readback == cluster).then(|| self.stream.clone())
    }
}

/// What `bytes` of any content deflate to at most, by zlib's own most careful estimate.
fn most_deflated(bytes: usize) -> usize {
    bytes + bytes / 8 + bytes / 64 + 64
}

/// The small encoder: one level only.
#[cfg(not(feature = "fast-zstd"))]
struct ZstdEncoder(
    ruzstd::encoding::FrameCompressor<
        std::io::Cursor<Vec<u8>>,
        Vec<u8>,
        ruzstd::encoding::MatchGeneratorDriver,
    >,
);

#[cfg(not(feature = "fast-zstd"))]
impl ZstdEncoder {
    fn new() -> Self {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        Self(ruzstd::encoding::FrameCompressor::new(level))
    }

    /// Makes `stream` the frame of `data`.
    fn compress(&mut self, data: &[u8], stream: &mut Vec<u8>) {
        stream.clear();
        // The encoder owns its ends; both buffers come back for the next cluster.
        let mut source = self.0.take_source().unwrap_or_default().into_inner();
        source.clear();
        source.extend_from_slice(data);
        self.0.set_source(std::io::Cursor::new(source));
        self.0.set_drain(std::mem::take(stream));
        self.0.compress();
        *stream = self.0.take_drain().unwrap_or_default();
    }
}

/// The fast encoder, at the level that zstd and QEMU use by default.
#[cfg(feature = "fast-zstd")]
struct ZstdEncoder(FrameCompressor);

#[cfg(feature = "fast-zstd")]
impl ZstdEncoder {
    fn new() -> Self {
        Self(FrameCompressor::new(CompressionLevel::Default))
    }

    /// Makes `stream` the frame of `data`.
    fn compress(&mut self, data: &[u8], stream: &mut Vec<u8>) {
        self.0.compress_independent_frame_into(data, stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters of every kind that compresses: nothing, one byte, words, tables, half noise.
    fn clusters(length: usize) -> Vec<Vec<u8>> {
        let mut noise = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            (noise >> 32) as u8
        };
        let words: [&[u8]; 5] = [b"the ", b"cow ", b"copies ", b"itself ", b"on write\n"];
        let mut text = Vec::new();
        while text.len() < length {
            text.extend_from_slice(words[usize::from(random()) % words.len()]);
        }
        text.truncate(length);
        let table: Vec<u8> = (0..length / 8 + 1)
            .flat_map(|i| (i as u64 * 0x1_0000).to_be_bytes())
            .take(length)
            .collect();
        let half: Vec<u8> = (0..length)
            .map(|i| if i % 4096 < 2048 { random() } else { 0 })
            .collect();
        // Equal pieces further apart than the window of 2^12.
        let piece: Vec<u8> = (0..6000).map(|_| random() & 15).collect();
        let far: Vec<u8> = piece.iter().copied().cycle().take(length).collect();
        vec![vec![0; length], vec![0xe5; length], text, table, half, far]
    }

    #[test]
    fn every_stream_reads_back_as_its_cluster() {
        let (mut compressor, mut decompressor) = (Compressor::new(), Decompressor::new());
        for bits in 9..=21 {
            for (kind, cluster) in clusters(1 << bits).into_iter().enumerate() {
                for method in [Compression::Zlib, Compression::Zstd] {
                    let Some(mut stream) = compressor.compress(method, &cluster) else {
                        assert!(kind >= 4, "2^{bits} bytes of kind {kind} with {method:?}");
                        continue;
                    };
                    assert!(stream.len() < cluster.len());
                    // In an image garbage follows.
                    stream.extend_from_slice(&[0xa5; 100]);
                    let mut back = vec![0; cluster.len()];
                    decompressor.decompress(method, &stream, &mut back).unwrap();
                    assert!(back == cluster, "2^{bits} bytes of kind {kind}, {method:?}");
                }
            }
        }
    }

    #[test]
    fn deflate_reaches_back_no_further_than_qemu_can() {
        let mut compressor = Compressor::new();
        for cluster in clusters(1 << 16) {
            let Some(stream) = compressor.compress(Compression::Zlib, &cluster) else {
                continue;
            };
            let mut inflate = zlib_rs::Inflate::new(false, DEFLATE_WINDOW_BITS);
            let mut back = Vec::new();
            // Through a small buffer: with the whole cluster in front of it, inflate needs no window.
            let mut piece = [0; 64];
            let mut at = 0;
            loop {
                let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
                let status = inflate
                    .decompress(&stream[at..], &mut piece, zlib_rs::InflateFlush::NoFlush)
                    .unwrap();
                at += (inflate.total_in() - before_in) as usize;
                back.extend_from_slice(&piece[..(inflate.total_out() - before_out) as usize]);
                if matches!(status, zlib_rs::Status::StreamEnd) {
                    break;
                }
            }
            assert!(back == cluster);
        }
    }

    #[test]
    fn clusters_on_the_edge_of_being_worth_it_follow_one_another() {
        let mut compressor = Compressor::new();
        let mut decompressor = Decompressor::new();
        let mut state = 7u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005) | 1;
            (state >> 40) as u8
        };
        for length in [512usize, 4096, 65536] {
            let rounds = (8 << 20) / length.max(4096);
            for round in 0..rounds {
                // Noise for a long time, then a little less of it in every cluster.
                let zeros = match round % 80 {
                    0..40 => 0,
                    more => length * (more - 40) / 400,
                };
                let cluster: Vec<u8> = (0..length)
                    .map(|at| if at < zeros { 0 } else { random() })
                    .collect();
                for method in [Compression::Zlib, Compression::Zstd] {
                    let Some(stream) = compressor.compress(method, &cluster) else {
                        assert!(zeros < length / 10);
                        continue;
                    };
                    let mut back = vec![1; length];
                    decompressor.decompress(method, &stream, &mut back).unwrap();
                    assert!(back == cluster);
                }
            }
        }
    }

    #[test]
    fn noise_is_not_compressed() {
        let mut compressor = Compressor::new();
        let mut state = 1u32;
        let noise: Vec<u8> = (0..65536)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        for method in [Compression::Zlib, Compression::Zstd] {
            assert!(compressor.compress(method, &noise).is_none());
            // And the next cluster is not the worse for it.
            assert!(compressor.compress(method, &[7; 65536]).is_some());
        }
    }
}
