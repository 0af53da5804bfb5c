//! An image's bytes, in an object of JavaScript's.

mod js;
mod object;

use std::cell::Cell;
use std::io;
use std::rc::Rc;

#[cfg(feature = "write")]
use futures_util::future::LocalBoxFuture;
use js_sys::Uint8Array;
use oxcow::Storage;
#[cfg(feature = "write")]
use oxcow::storage::Stretch;
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
    /// An image as it was at one moment.
    #[cfg(feature = "write")]
    Past(Rc<dyn Past>),
}

/// What was at one moment, and is only read. By pointer: it contains images whose storage is this one.
#[cfg(feature = "write")]
pub trait Past: std::fmt::Debug {
    fn size(&self) -> u64;
    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<usize>>;
    fn stretch(&self, offset: u64, max: u64) -> LocalBoxFuture<'_, io::Result<Stretch>>;
    fn queue_depth(&self) -> usize;
}

impl WebStorage {
    pub fn new(source: JsSource) -> Self {
        let windows = source.windows();
        let direct = source.direct();
        let storage = JsStorage {
            source,
            direct,
            #[cfg(feature = "write")]
            writes_at_once: Cell::new(direct),
        };
        Self(match windows {
            Some(windows) => {
                Kind::Windowed(Rc::new(WindowedStorage::new(storage, windows.options())))
            }
            None => Kind::Direct(Rc::new(storage)),
        })
    }

    #[cfg(feature = "write")]
    pub fn past(past: Rc<dyn Past>) -> Self {
        Self(Kind::Past(past))
    }

    /// The object that answers; none where an image does.
    fn object(&self) -> Option<&JsStorage> {
        match &self.0 {
            Kind::Direct(storage) => Some(storage),
            Kind::Windowed(storage) => Some(storage.inner()),
            #[cfg(feature = "write")]
            Kind::Past(_) => None,
        }
    }

    fn writable(&self) -> io::Result<&JsStorage> {
        let read_only = io::ErrorKind::ReadOnlyFilesystem;
        self.object().ok_or_else(|| read_only.into())
    }

    /// The object, if it answers at once.
    fn direct(&self) -> Option<&JsStorage> {
        match &self.0 {
            Kind::Direct(storage) if storage.direct => Some(storage),
            _ => None,
        }
    }

    /// Whether it answers at once.
    pub fn is_direct(&self) -> bool {
        self.direct().is_some()
    }

    /// Fills `into` from byte `offset` on, if it has all of that and can do so at once, and the event loop is not
    /// due.
    pub fn read_now(&self, offset: u64, into: &Uint8Array) -> bool {
        self.direct()
            .is_some_and(|storage| !turn_is_due() && storage.read_now(offset, into))
    }

    /// Whether a write may be tried with [`write_now`](Self::write_now).
    #[cfg(feature = "write")]
    pub fn writes_at_once(&self) -> bool {
        self.direct()
            .is_some_and(|storage| storage.writes_at_once.get())
    }

    /// Writes `bytes` at byte `offset`, and tells whether that was done when it returned.
    #[cfg(feature = "write")]
    pub fn write_now(&self, offset: u64, bytes: &Uint8Array) -> bool {
        self.direct()
            .is_some_and(|storage| storage.write_now(offset, bytes))
    }

    /// Lets the event loop turn if that is due, and tells whether it was: reads that are answered at once, or from the
    /// cache, would otherwise keep a long operation from ever being stopped.
    pub async fn breathe(&self) -> bool {
        let Some(object) = self.object().filter(|_| turn_is_due()) else {
            return false;
        };
        // The promise is of this package's own and never rejects.
        let _ = JsFuture::from(object.source.turn()).await;
        LAST_TURN.set(js_sys::Date::now());
        true
    }
}

/// Whether the event loop is to turn before long, so that nothing else has to wait.
pub fn turn_is_due() -> bool {
    js_sys::Date::now() - LAST_TURN.get() > WORK_MS
}

impl Storage for WebStorage {
    async fn len(&self) -> io::Result<u64> {
        match &self.0 {
            Kind::Direct(storage) => Ok(storage.size()),
            Kind::Windowed(storage) => Ok(storage.inner().size()),
            #[cfg(feature = "write")]
            Kind::Past(past) => Ok(past.size()),
        }
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.breathe().await;
        match &self.0 {
            Kind::Direct(storage) => storage.read_at(offset, buf).await,
            Kind::Windowed(storage) => storage.read_at(offset, buf).await,
            #[cfg(feature = "write")]
            Kind::Past(past) => past.read(offset, buf).await,
        }
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.breathe().await;
        self.writable()?.write_at(offset, data).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?.set_len(len).await
    }

    async fn flush(&self) -> io::Result<()> {
        match self.object() {
            Some(object) => object.flush().await,
            None => Ok(()),
        }
    }

    fn queue_depth(&self) -> usize {
        match &self.0 {
            Kind::Direct(storage) => storage.queue_depth(),
            Kind::Windowed(storage) => storage.queue_depth(),
            #[cfg(feature = "write")]
            Kind::Past(past) => past.queue_depth(),
        }
    }

    #[cfg(feature = "write")]
    async fn stretch_at(&self, offset: u64, max: u64) -> io::Result<Stretch> {
        match &self.0 {
            Kind::Past(past) => past.stretch(offset, max).await,
            Kind::Direct(_) | Kind::Windowed(_) => Ok(Stretch {
                length: max,
                zero: false,
            }),
        }
    }
}
