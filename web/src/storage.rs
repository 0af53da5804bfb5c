//! An image's bytes, read from an object of JavaScript's.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use js_sys::{Promise, Uint8Array};
use oxcow::Storage;
use oxcow::storage::{WindowOptions, WindowedStorage};
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

use crate::error::SourceFailure;

#[wasm_bindgen]
extern "C" {
    /// `EngineSource` of the package.
    #[derive(Clone, Debug)]
    pub type JsSource;

    #[wasm_bindgen(method, getter)]
    pub fn name(this: &JsSource) -> String;
    #[wasm_bindgen(method, getter)]
    fn size(this: &JsSource) -> f64;
    #[wasm_bindgen(method, getter)]
    fn windows(this: &JsSource) -> Option<JsWindows>;
    #[wasm_bindgen(method, catch)]
    fn read(this: &JsSource, offset: f64, length: f64) -> Result<JsValue, JsValue>;
    /// Nobody waits for this answer of `read` any more.
    #[wasm_bindgen(method)]
    fn cancel(this: &JsSource, answer: &Promise);
    /// Resolves after the event loop has turned once.
    #[wasm_bindgen(method)]
    fn turn(this: &JsSource) -> Promise;

    /// `EngineWindows` of the package.
    pub type JsWindows;

    #[wasm_bindgen(method, getter, js_name = windowBytes)]
    fn window_bytes(this: &JsWindows) -> f64;
    #[wasm_bindgen(method, getter, js_name = longestBytes)]
    fn longest_bytes(this: &JsWindows) -> f64;
    #[wasm_bindgen(method, getter, js_name = cacheBytes)]
    fn cache_bytes(this: &JsWindows) -> f64;
    #[wasm_bindgen(method, getter)]
    fn parallel(this: &JsWindows) -> f64;
}

impl JsWindows {
    /// As the core takes them; whatever numbers JavaScript gave, a float becomes the nearest that there is.
    fn options(&self) -> WindowOptions {
        WindowOptions {
            window: self.window_bytes() as usize,
            longest_fetch: self.longest_bytes() as usize,
            capacity: self.cache_bytes() as usize,
            queue_depth: self.parallel() as usize,
        }
    }
}

/// How long the engine works before it lets the thread see to its messages, in milliseconds: a request to
/// stop is one of them.
const WORK_MS: f64 = 20.0;

thread_local! {
    /// When the thread last went through its event loop, by `Date.now()`.
    static LAST_TURN: Cell<f64> = const { Cell::new(0.0) };
}

/// An image file; clones are the same file with the same cache.
#[derive(Clone, Debug)]
pub struct WebStorage(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Direct(Rc<JsStorage>),
    Windowed(Rc<WindowedStorage<JsStorage>>),
}

impl WebStorage {
    pub fn new(source: JsSource) -> Self {
        let windows = source.windows();
        let storage = JsStorage {
            size: source.size() as u64,
            source,
        };
        Self(match windows {
            Some(windows) => {
                Kind::Windowed(Rc::new(WindowedStorage::new(storage, windows.options())))
            }
            None => Kind::Direct(Rc::new(storage)),
        })
    }

    fn source(&self) -> &JsSource {
        match &self.0 {
            Kind::Direct(storage) => &storage.source,
            Kind::Windowed(storage) => &storage.inner().source,
        }
    }

    /// Lets the event loop turn if that is due: reads that are answered at once, or from the cache, would
    /// otherwise keep a long operation from ever being stopped.
    async fn breathe(&self) {
        let now = js_sys::Date::now();
        if now - LAST_TURN.get() > WORK_MS {
            // The promise is of this package's own and never rejects.
            let _ = JsFuture::from(self.source().turn()).await;
            LAST_TURN.set(js_sys::Date::now());
        }
    }
}

impl Storage for WebStorage {
    async fn len(&self) -> io::Result<u64> {
        match &self.0 {
            Kind::Direct(storage) => storage.len().await,
            Kind::Windowed(storage) => storage.len().await,
        }
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.breathe().await;
        match &self.0 {
            Kind::Direct(storage) => storage.read_at(offset, buf).await,
            Kind::Windowed(storage) => storage.read_at(offset, buf).await,
        }
    }

    async fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        read_only()
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        read_only()
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn queue_depth(&self) -> usize {
        match &self.0 {
            Kind::Direct(storage) => storage.queue_depth(),
            Kind::Windowed(storage) => storage.queue_depth(),
        }
    }
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

/// The object itself.
#[derive(Debug)]
struct JsStorage {
    source: JsSource,
    /// In bytes; a source's size does not change.
    size: u64,
}

impl Storage for JsStorage {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = (buf.len() as u64).min(self.size.saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < wanted {
            let (at, left) = ((offset + done as u64) as f64, (wanted - done) as f64);
            let mut answer = self.source.read(at, left).map_err(to_io)?;
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
            let Some(target) = buf
                .get_mut(done..done + count)
                .filter(|_| done + count <= wanted)
            else {
                return Err(io::Error::other(
                    "the source's read() gave more bytes than it was asked for",
                ));
            };
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the source ends before its size",
                ));
            }
            bytes.copy_to(target);
            done += count;
        }
        Ok(done)
    }

    async fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        read_only()
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        read_only()
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn read_only() -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::ReadOnlyFilesystem,
        "the source is read-only",
    ))
}

fn to_io(thrown: JsValue) -> io::Error {
    io::Error::other(SourceFailure::of(&thrown))
}
