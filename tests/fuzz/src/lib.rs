//! What the fuzz targets need: images in memory, a resolver that always finds something, and the
//! guarantee that futures over memory are ready at once.
//!
//! ```sh
//! cargo install cargo-fuzz
//! mkdir -p tests/fuzz/corpus/check
//! cargo +nightly fuzz run --fuzz-dir tests/fuzz check tests/fuzz/corpus/check tests/fuzz/corpus-seed
//! ```
//!
//! New inputs go to the first folder. `open_map_read` starts from the same seeds, `compressed` (the decoders;
//! with `--features fast-zstd` the other zstd decoder) from `corpus-seed-compressed`. After `--` the bounds
//! that hold for every input: `-max_len=100000 -malloc_limit_mb=100 -timeout=20`. `-s none` before the
//! target's name is about five times as fast; the core has no unsafe code. `make-seeds.sh` makes the seeds
//! again. What a run finds becomes a test of the module that was wrong.

mod mutate;

pub use mutate::mutate;

use futures_util::FutureExt;
use oxcow::{File, Format, Image, MemoryStorage, OpenOptions, Resolver, Result, Role, Wanted};

/// Larger inputs only repeat what small ones can say, slowly.
pub const LARGEST_INPUT: usize = 256 << 10;

/// A future over memory is always ready.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory does not wait")
}

/// `bytes` as a file.
pub fn file(bytes: &[u8]) -> File<MemoryStorage> {
    File {
        storage: MemoryStorage::new(bytes.to_vec()),
        name: "fuzz".into(),
    }
}

/// Gives a small raw file for every name, or the image itself for every backing file that is said to be qcow2.
pub struct Generous<'a>(pub &'a [u8]);

impl Resolver for Generous<'_> {
    type Storage = MemoryStorage;

    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<MemoryStorage>> {
        let itself =
            wanted.role == Role::Backing && wanted.format == Some("qcow2") && wanted.depth < 3;
        let bytes = if itself {
            self.0.to_vec()
        } else {
            (0..9000u32).map(|at| (at / 512 + 1) as u8).collect()
        };
        // Another name each time, so that a chain is not taken for a loop.
        Ok(File {
            storage: MemoryStorage::new(bytes),
            name: format!("{}-{}", wanted.depth, wanted.name),
        })
    }
}

/// Opens `bytes` with everything that can be allowed.
pub fn open(bytes: &[u8], format: Option<Format>) -> Result<Image<MemoryStorage>> {
    let options = OpenOptions {
        format,
        probe_backing: true,
        cache_bytes: 64 << 10,
        ..OpenOptions::default()
    };
    now(Image::open(file(bytes), &options, &Generous(bytes)))
}
