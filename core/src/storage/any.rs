//! A storage of any kind behind one type.

use std::fmt;
use std::io;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use crate::storage::{Storage, Stretch};

/// Any storage; clones are the same one.
///
/// All files of an image are of one type: with this one they may differ, and the engine, which is generic over its
/// storage, is compiled once for all kinds. Each call is a future of its own in memory.
#[derive(Clone)]
pub struct AnyStorage(Rc<dyn Boxed>);

impl AnyStorage {
    /// `storage`, as one of any kind.
    #[must_use]
    pub fn new(storage: impl Storage + 'static) -> Self {
        Self(Rc::new(storage))
    }
}

impl fmt::Debug for AnyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyStorage").finish_non_exhaustive()
    }
}

/// [`Storage`] with futures of one type.
trait Boxed {
    fn len(&self) -> LocalBoxFuture<'_, io::Result<u64>>;
    fn read_at<'a>(
        &'a self,
        offset: u64,
        buf: &'a mut [u8],
    ) -> LocalBoxFuture<'a, io::Result<usize>>;
    fn write_at<'a>(&'a self, offset: u64, data: &'a [u8]) -> LocalBoxFuture<'a, io::Result<()>>;
    fn set_len(&self, len: u64) -> LocalBoxFuture<'_, io::Result<()>>;
    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>>;
    fn queue_depth(&self) -> usize;
    fn stretch_at(&self, offset: u64, max: u64) -> LocalBoxFuture<'_, io::Result<Stretch>>;
}

impl<S: Storage> Boxed for S {
    fn len(&self) -> LocalBoxFuture<'_, io::Result<u64>> {
        Storage::len(self).boxed_local()
    }

    fn read_at<'a>(
        &'a self,
        offset: u64,
        buf: &'a mut [u8],
    ) -> LocalBoxFuture<'a, io::Result<usize>> {
        Storage::read_at(self, offset, buf).boxed_local()
    }

    fn write_at<'a>(&'a self, offset: u64, data: &'a [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Storage::write_at(self, offset, data).boxed_local()
    }

    fn set_len(&self, len: u64) -> LocalBoxFuture<'_, io::Result<()>> {
        Storage::set_len(self, len).boxed_local()
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Storage::flush(self).boxed_local()
    }

    fn queue_depth(&self) -> usize {
        Storage::queue_depth(self)
    }

    fn stretch_at(&self, offset: u64, max: u64) -> LocalBoxFuture<'_, io::Result<Stretch>> {
        Storage::stretch_at(self, offset, max).boxed_local()
    }
}

impl Storage for AnyStorage {
    async fn len(&self) -> io::Result<u64> {
        Boxed::len(&*self.0).await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Boxed::read_at(&*self.0, offset, buf).await
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        Boxed::write_at(&*self.0, offset, data).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        Boxed::set_len(&*self.0, len).await
    }

    async fn flush(&self) -> io::Result<()> {
        Boxed::flush(&*self.0).await
    }

    fn queue_depth(&self) -> usize {
        Boxed::queue_depth(&*self.0)
    }

    async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        Boxed::stretch_at(&*self.0, offset, max).await
    }
}
