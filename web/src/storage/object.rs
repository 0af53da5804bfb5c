//! A storage that is an object of JavaScript's.

#[cfg(feature = "write")]
use std::cell::Cell;
use std::io;

use js_sys::{Promise, Uint8Array};
use oxcow::Storage;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use super::js::JsSource;
use crate::error::SourceFailure;

/// The object itself. It keeps the length, and the account of writes that nobody waits for any more: see
/// `source.ts` of the package.
#[derive(Debug)]
pub struct JsStorage {
    pub source: JsSource,
    pub direct: bool,
    /// Whether writes are answered at once too, as far as is known.
    #[cfg(feature = "write")]
    pub writes_at_once: Cell<bool>,
}

/// An answer that is waited for: when the one who waits goes away, the source is told, so that a request of
/// its own can end there and then.
struct Pending<'a> {
    source: &'a JsSource,
    /// `None` once it has settled.
    promise: Option<Promise>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(promise) = &self.promise {
            self.source.cancel(promise);
        }
    }
}

impl JsStorage {
    pub fn size(&self) -> u64 {
        self.source.length() as u64
    }

    /// As many bytes as it has, of those from `offset` on that `buf` has room for.
    fn read_directly(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = (offset + done as u64) as f64;
            let rest = &mut buf[done..];
            let count = self.source.read_into(at, rest).map_err(to_io)?;
            if count > rest.len() as f64 {
                return Err(io::Error::other(
                    "the source's readInto() gave more bytes than it was asked for",
                ));
            }
            // Less than one, or no number at all: nothing.
            if count.is_nan() || count < 1.0 {
                return Err(ended_early());
            }
            done += count as usize;
        }
        Ok(done)
    }

    /// Fills JavaScript's own bytes from `offset` on; `false` where it did not.
    pub fn read_now(&self, offset: u64, into: &Uint8Array) -> bool {
        let length = into.length();
        offset + u64::from(length) <= self.size()
            && self
                .source
                .read_to(offset as f64, into)
                .is_ok_and(|count| count == f64::from(length))
    }

    /// Writes JavaScript's own bytes at `offset`; `false` where that failed, or goes on after it returned.
    #[cfg(feature = "write")]
    pub fn write_now(&self, offset: u64, bytes: &Uint8Array) -> bool {
        let answer = self.source.write_from(offset as f64, bytes);
        let at_once = !matches!(&answer, Ok(answer) if answer.is_instance_of::<Promise>());
        self.writes_at_once.set(at_once);
        at_once && answer.is_ok()
    }

    /// Puts one answer of `read` to the beginning of `buf`.
    async fn read_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut answer = self
            .source
            .read(offset as f64, buf.len() as f64)
            .map_err(to_io)?;
        if let Some(promise) = answer.dyn_ref::<Promise>() {
            let mut pending = Pending {
                source: &self.source,
                promise: Some(promise.clone()),
            };
            let settled = JsFuture::from(promise.clone()).await;
            pending.promise = None;
            answer = settled.map_err(to_io)?;
        }
        let Some(bytes) = answer.dyn_ref::<Uint8Array>() else {
            return Err(io::Error::other(
                "the source's read() did not give a Uint8Array",
            ));
        };
        let count = bytes.length() as usize;
        let Some(target) = buf.get_mut(..count) else {
            return Err(io::Error::other(
                "the source's read() gave more bytes than it was asked for",
            ));
        };
        if count == 0 {
            return Err(ended_early());
        }
        bytes.copy_to(target);
        Ok(count)
    }
}

impl Storage for JsStorage {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = (buf.len() as u64).min(self.size().saturating_sub(offset)) as usize;
        let buf = &mut buf[..wanted];
        if self.direct {
            return self.read_directly(offset, buf);
        }
        let mut done = 0;
        while done < wanted {
            done += self
                .read_once(offset + done as u64, &mut buf[done..])
                .await?;
        }
        Ok(done)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        settled(self.source.write(offset as f64, data)).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        settled(self.source.truncate(len as f64)).await
    }

    async fn flush(&self) -> io::Result<()> {
        settled(self.source.flush()).await
    }
}

/// Waits for an answer of which only the failure matters. Given up, it goes on in JavaScript: a write is
/// never taken back.
async fn settled(answer: Result<JsValue, JsValue>) -> io::Result<()> {
    let answer = answer.map_err(to_io)?;
    match answer.dyn_ref::<Promise>() {
        Some(promise) => JsFuture::from(promise.clone())
            .await
            .map(drop)
            .map_err(to_io),
        None => Ok(()),
    }
}

fn ended_early() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the source ends before its size",
    )
}

/// The error of whatever JavaScript threw; a full storage is told apart, as the engine does.
fn to_io(thrown: JsValue) -> io::Error {
    let failure = SourceFailure::of(&thrown);
    match failure.code() {
        Some("no-space") => io::Error::new(io::ErrorKind::StorageFull, failure),
        Some("read-only") => io::Error::new(io::ErrorKind::ReadOnlyFilesystem, failure),
        _ => io::Error::other(failure),
    }
}
