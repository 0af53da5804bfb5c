//! An image's bytes, in an object of JavaScript's.

mod js;
mod object;

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use oxcow::Storage;
use oxcow::storage::WindowedStorage;
use wasm_bindgen_futures::JsFuture;

pub use js::JsSource;
use object::JsStorage;

/// How long the engine works before it lets the thread see to its messages, in milliseconds: a request to
/// stop is one of them.
const WORK_MS: f64 = 20.0;

thread_local! {
    /// When the thread last went through its event loop, by `Date.now()`.
    static LAST_TURN: Cell<f64> = const { Cell::new(0.0) };
}

/// An image file; clones are the same file with the same cache. The one type of storage in the module:
/// another would be all of the engine once more.
#[derive(Clone, Debug)]
pub struct WebStorage(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Direct(Rc<JsStorage>),
    /// Only of what is not written to: a write that was given up may land later than a window is fetched,
    /// and nobody would tell the window.
    Windowed(Rc<WindowedStorage<JsStorage>>),
}

impl WebStorage {
    pub fn new(source: JsSource) -> Self {
        let windows = source.windows();
        let direct = source.direct();
        let storage = JsStorage { source, direct };
        Self(match windows {
            Some(windows) => {
                Kind::Windowed(Rc::new(WindowedStorage::new(storage, windows.options())))
            }
            None => Kind::Direct(Rc::new(storage)),
        })
    }

    fn object(&self) -> &JsStorage {
        match &self.0 {
            Kind::Direct(storage) => storage,
            Kind::Windowed(storage) => storage.inner(),
        }
    }

    /// Lets the event loop turn if that is due: reads that are answered at once, or from the cache, would
    /// otherwise keep a long operation from ever being stopped.
    async fn breathe(&self) {
        let now = js_sys::Date::now();
        if now - LAST_TURN.get() > WORK_MS {
            // The promise is of this package's own and never rejects.
            let _ = JsFuture::from(self.object().source.turn()).await;
            LAST_TURN.set(js_sys::Date::now());
        }
    }
}

impl Storage for WebStorage {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.object().size())
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.breathe().await;
        match &self.0 {
            Kind::Direct(storage) => storage.read_at(offset, buf).await,
            Kind::Windowed(storage) => storage.read_at(offset, buf).await,
        }
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.breathe().await;
        self.object().write_at(offset, data).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.object().set_len(len).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.object().flush().await
    }

    fn queue_depth(&self) -> usize {
        match &self.0 {
            Kind::Direct(storage) => storage.queue_depth(),
            Kind::Windowed(storage) => storage.queue_depth(),
        }
    }
}
