//! What the engine stands on: a resizable array of bytes, and the one barrier there is.

use std::io;
use std::rc::Rc;

mod any;
mod buffer;
mod sparse;
mod turn;
mod windowed;
mod zeros;

pub use any::AnyStorage;
pub use buffer::Buffer;
pub use sparse::SparseMemory;
pub use turn::give_way;
pub use windowed::{WindowOptions, WindowedStorage};
pub(crate) use zeros::in_zeros;

/// A resizable array of bytes that holds an image: a file, a browser's file handle, an HTTP resource.
///
/// # The contract
///
/// Every ordering guarantee of this crate rests on these sentences, and on nothing else:
///
/// - A read sees every write that completed before it began.
/// - Writes that no completed [`flush`](Self::flush) covers may, after a crash, be there in any subset,
///   in any order, torn at 512-byte boundaries; the length may be any it had since the last flush.
/// - One aligned 512-byte sector is written as a whole or not at all.
/// - `flush` returns once every write and every change of length that *completed before it was called*
///   is durable. It is the only barrier.
/// - A failed flush proves nothing about later ones: the engine stops writing to the image.
/// - What is read at open need not be durable yet (the page cache survives a killed process), so a
///   writable open begins with a flush.
///
/// # Concurrency
///
/// Methods take `&self` and may be called again before an earlier call has finished; a storage that
/// gains by that says so in [`queue_depth`](Self::queue_depth). Futures need not be `Send`. Dropping a
/// future may leave a write done, not done, or done in part; what of it is still to come has come when a
/// flush that is called later returns.
#[allow(async_fn_in_trait)] // Single-threaded by design: no `Send` bound is wanted on these futures.
#[allow(clippy::len_without_is_empty)] // Nobody asks whether a disk is empty.
pub trait Storage {
    /// The length in bytes.
    async fn len(&self) -> io::Result<u64>;

    /// Fills `buf` from byte `offset` on and returns how many bytes there were: fewer than `buf` holds
    /// only where the storage ends.
    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data` at byte `offset`, growing the storage where needed.
    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts or grows the storage to `len` bytes; new bytes read as zeros.
    async fn set_len(&self, len: u64) -> io::Result<()>;

    /// The barrier: see the contract above.
    async fn flush(&self) -> io::Result<()>;

    /// How many reads are worth having in flight at once; 1 where each one completes at once.
    fn queue_depth(&self) -> usize {
        1
    }

    /// What is known of the bytes from `offset` on without reading them, for at least 1 and at most `max`
    /// bytes. A storage that knows of no holes need not say anything.
    async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        let _ = offset;
        Ok(Stretch {
            length: max,
            zero: false,
        })
    }
}

/// A run of bytes of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// How many bytes.
    pub length: u64,
    /// Whether they are known to be zeros.
    pub zero: bool,
}

/// What leads to a storage is one.
macro_rules! storage_behind {
    ($(#[$doc:meta] $pointer:ty),+ $(,)?) => {$(
        #[$doc]
        impl<S: Storage + ?Sized> Storage for $pointer {
            async fn len(&self) -> io::Result<u64> {
                (**self).len().await
            }

            async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
                (**self).read_at(offset, buf).await
            }

            async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
                (**self).write_at(offset, data).await
            }

            async fn set_len(&self, len: u64) -> io::Result<()> {
                (**self).set_len(len).await
            }

            async fn flush(&self) -> io::Result<()> {
                (**self).flush().await
            }

            fn queue_depth(&self) -> usize {
                (**self).queue_depth()
            }

            async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
                (**self).stretch_at(offset, max).await
            }
        }
    )+};
}

storage_behind! {
    /// A storage that somebody else owns.
    &S,
    /// A storage that several own.
    Rc<S>,
}

/// Fills all of `buf`; an error where the storage ends before.
pub async fn read_exact<S: Storage>(storage: &S, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    if storage.read_at(offset, buf).await? == buf.len() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the file ends too early",
        ))
    }
}

/// Fills all of `buf`, with zeros past the end of the storage.
pub async fn read_padded<S: Storage>(storage: &S, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let filled = storage.read_at(offset, buf).await?;
    buf[filled..].fill(0);
    Ok(())
}

/// A storage in memory: for bytes that are already there, and for tests.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    bytes: std::cell::RefCell<Vec<u8>>,
}

impl MemoryStorage {
    /// A storage that holds `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: bytes.into(),
        }
    }

    /// The bytes, out of the storage again.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner()
    }
}

fn memory_index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

impl Storage for MemoryStorage {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.borrow().len() as u64)
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.bytes.borrow();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let count = buf.len().min(bytes.len() - start);
        buf[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = memory_index(offset)?;
        let end = start
            .checked_add(data.len())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut bytes = self.bytes.borrow_mut();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(data);
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.borrow_mut().resize(memory_index(len)?, 0);
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
