//! Compression and decompression of one cluster, by well-kept crates.

mod compress;
mod decompress;

pub(crate) use compress::Compressor;
pub(crate) use decompress::Decompressor;
