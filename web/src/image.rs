//! An open image, as the package's TypeScript drives it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use js_sys::{Function, Uint8Array};
use oxcow::info::{FormatSpecific, SnapshotInfo, info};
use oxcow::map::{MapEntry, Mapper};
use oxcow::{Backing, Error, File, Format, GuestOffset, Image, OpenOptions, Result, Storage};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::ahead::Ahead;
use crate::control::Control;
use crate::error::to_record;
#[cfg(feature = "write")]
use crate::fill::Filling;
use crate::overview::overview;
use crate::resolve::JsResolver;
use crate::snapshots::{Pin, Pins};
use crate::storage::{JsSource, WebStorage};
use crate::to_js::to_js;

#[wasm_bindgen]
extern "C" {
    /// `EngineOptions` of the package.
    pub type JsOpenOptions;

    #[wasm_bindgen(method, getter)]
    fn format(this: &JsOpenOptions) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = ignoreBacking)]
    fn ignore_backing(this: &JsOpenOptions) -> bool;
    #[wasm_bindgen(method, getter, js_name = ignoreDataFile)]
    fn ignore_data_file(this: &JsOpenOptions) -> bool;
    #[wasm_bindgen(method, getter, js_name = cacheBytes)]
    fn cache_bytes(this: &JsOpenOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter)]
    fn writable(this: &JsOpenOptions) -> bool;
    #[wasm_bindgen(method, getter)]
    fn repair(this: &JsOpenOptions) -> bool;
}

impl JsOpenOptions {
    pub fn options(&self) -> Result<OpenOptions> {
        let defaults = OpenOptions::default();
        let format = self.format().map(|name| name.parse::<Format>());
        Ok(OpenOptions {
            format: format.transpose()?,
            backing: if self.ignore_backing() {
                Backing::Ignore
            } else {
                Backing::Open
            },
            // The caller has supplied the file by then, and what its content may name is asked for again.
            probe_backing: true,
            data_file: !self.ignore_data_file(),
            writable: cfg!(feature = "write") && self.writable(),
            repair: self.repair(),
            cache_bytes: self
                .cache_bytes()
                .map_or(defaults.cache_bytes, |bytes| bytes as usize),
            ..defaults
        })
    }
}

/// What a call gives to JavaScript: a failure is a plain object, see [`to_record`].
pub(crate) type JsResult<T> = std::result::Result<T, JsValue>;

/// A part of the map.
#[derive(Serialize)]
struct MapPage {
    extents: Vec<MapEntry>,
    /// Where the next page starts.
    next: Option<u64>,
}

/// A snapshot with its disk's size, which qemu-img does not tell.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SnapshotWithSize {
    #[serde(flatten)]
    snapshot: SnapshotInfo,
    disk_size: Option<u64>,
}

/// An image with its chain. All calls take `&self`: several may be under way at once. None of them keeps a
/// cell borrowed while it waits.
#[wasm_bindgen]
pub struct EngineImage {
    /// What is read; replaced as a whole by [`Self::use_snapshot`], so that reads under way finish on the
    /// one they began with.
    view: RefCell<Rc<View>>,
    pub(crate) file: File<WebStorage>,
    pub(crate) options: OpenOptions,
    pub(crate) resolver: Rc<JsResolver>,
    pub(crate) pins: Pins,
    /// Of an image that is a snapshot of another: keeps that from being deleted.
    _pin: Option<Pin>,
    /// The hydration that is under way.
    #[cfg(feature = "write")]
    pub(crate) filling: RefCell<Option<Rc<Filling>>>,
}

pub(crate) struct View {
    pub image: Image<WebStorage>,
    pub snapshot: Option<String>,
}

impl EngineImage {
    /// Opens `file`.
    pub(crate) async fn open_file(
        file: File<WebStorage>,
        options: OpenOptions,
        resolver: JsResolver,
    ) -> Result<Self> {
        let image = Image::open(clone(&file), &options, &resolver).await?;
        let view = View {
            image,
            snapshot: None,
        };
        let resolver = Rc::new(resolver);
        Ok(Self::new(
            file,
            options,
            resolver,
            Pins::default(),
            view,
            None,
        ))
    }

    pub(crate) fn new(
        file: File<WebStorage>,
        options: OpenOptions,
        resolver: Rc<JsResolver>,
        pins: Pins,
        view: View,
        pin: Option<Pin>,
    ) -> Self {
        Self {
            view: RefCell::new(Rc::new(view)),
            file,
            options,
            resolver,
            pins,
            _pin: pin,
            #[cfg(feature = "write")]
            filling: RefCell::default(),
        }
    }

    pub(crate) fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    /// How many reads of the image's file are worth having in flight.
    fn at_once(&self) -> usize {
        self.file.storage.queue_depth()
    }
}

#[wasm_bindgen]
impl EngineImage {
    /// Opens the image in `source`; `resolve` is asked for what it names.
    pub async fn open(
        source: JsSource,
        options: JsOpenOptions,
        resolve: Function,
        control: Control,
    ) -> JsResult<EngineImage> {
        let opened = async {
            let options = options.options()?;
            let file = File {
                name: source.name(),
                storage: WebStorage::new(source),
            };
            Self::open_file(file, options, JsResolver::new(Some(resolve))).await
        };
        control.run(opened).await.map_err(|error| to_record(&error))
    }

    /// Whether it was opened for writing.
    #[wasm_bindgen(getter)]
    pub fn writable(&self) -> bool {
        self.options.writable
    }

    /// The size of the disk in bytes.
    #[wasm_bindgen(js_name = virtualSize)]
    pub fn virtual_size(&self) -> u64 {
        self.view().image.virtual_size()
    }

    /// The id of the snapshot in use.
    #[wasm_bindgen(js_name = usedSnapshot)]
    pub fn used_snapshot(&self) -> Option<String> {
        self.view().snapshot.clone()
    }

    /// What each file of the chain says of itself, from the top down.
    pub async fn info(&self) -> JsResult<JsValue> {
        let view = self.view();
        let mut files = Vec::new();
        for layer in view.image.layers() {
            files.push(info(layer).await.map_err(|error| to_record(&error))?);
        }
        Ok(to_js(&files)?)
    }

    /// The snapshots of the image itself.
    pub async fn snapshots(&self) -> JsResult<JsValue> {
        let view = self.view();
        let top = view.image.top();
        let told = info(top)
            .await
            .map_err(|error| to_record(&error))?
            .snapshots;
        let snapshots = top.as_qcow2().map(|top| top.snapshots());
        let sizes = snapshots
            .iter()
            .flat_map(|snapshots| snapshots.iter())
            .map(|snapshot| snapshot.disk_size);
        let sized: Vec<SnapshotWithSize> = told
            .into_iter()
            .zip(sizes)
            .map(|(snapshot, disk_size)| SnapshotWithSize {
                snapshot,
                disk_size,
            })
            .collect();
        Ok(to_js(&sized)?)
    }

    /// The bitmaps of the image itself.
    pub async fn bitmaps(&self) -> JsResult<JsValue> {
        let view = self.view();
        let told = info(view.image.top())
            .await
            .map_err(|error| to_record(&error))?;
        let bitmaps = match told.format_specific {
            Some(FormatSpecific::Qcow2(qcow2)) => qcow2.bitmaps,
            _ => Vec::new(),
        };
        Ok(to_js(&bitmaps)?)
    }

    /// At most `limit` extents of the map.
    pub async fn map(
        &self,
        start: u64,
        length: u64,
        limit: u32,
        control: Control,
    ) -> JsResult<JsValue> {
        let view = self.view();
        let page = control
            .run(map_page(
                &view.image,
                start,
                length,
                limit as usize,
                self.at_once(),
            ))
            .await;
        Ok(to_js(&page.map_err(|error| to_record(&error))?)?)
    }

    /// How much of each of `cells` equal parts is of which kind: `shares`, a byte for each cell and kind, and
    /// `totals`, the bytes of each kind.
    pub async fn overview(
        &self,
        start: u64,
        length: u64,
        cells: u32,
        control: Control,
    ) -> JsResult<JsValue> {
        let view = self.view();
        let progress = |done, total| control.progress(done as f64, total as f64);
        let walk = overview(&view.image, start, length, cells, self.at_once(), progress);
        let overview = control.run(walk).await.map_err(|error| to_record(&error))?;
        let found = js_sys::Object::new();
        let shares = Uint8Array::from(overview.shares().as_slice());
        js_sys::Reflect::set(&found, &"shares".into(), &shares)?;
        js_sys::Reflect::set(&found, &"totals".into(), &to_js(&overview.totals())?)?;
        Ok(found.into())
    }

    /// The `length` bytes of the disk from `offset` on.
    pub async fn read(&self, offset: u64, length: u32, control: Control) -> JsResult<Uint8Array> {
        let view = self.view();
        let mut bytes = vec![0; length as usize];
        control
            .run(view.image.read_at(GuestOffset(offset), &mut bytes))
            .await
            .map_err(|error| to_record(&error))?;
        Ok(Uint8Array::from(bytes.as_slice()))
    }

    /// Whether [`read_now`](Self::read_now) may be of use: the image's own file answers at once.
    #[wasm_bindgen(getter)]
    pub fn direct(&self) -> bool {
        self.file.storage.is_direct()
    }

    /// As [`read`](Self::read), from the storage straight into the caller's bytes and before it returns. `false` where
    /// that cannot be, for whatever reason: then `into` has nothing of use, and `read` does it or tells why not.
    #[wasm_bindgen(js_name = readNow)]
    pub fn read_now(&self, offset: f64, into: &Uint8Array) -> bool {
        let Some(offset) = whole_offset(offset) else {
            return false;
        };
        let view = self.view();
        let Some(placed) = view.image.placed_now(offset, into.length() as usize) else {
            return false;
        };
        let mut at = 0;
        placed.pieces().iter().all(|piece| {
            let part = at..at + piece.length;
            at = part.end;
            match piece.stored {
                Some((storage, host)) => storage.read_now(host.0, &part_of(into, part)),
                None => {
                    into.fill(0, part.start as u32, part.end as u32);
                    true
                }
            }
        })
    }

    /// Lets the event loop turn if that is due, and tells whether it was: one reason for which
    /// [`read_now`](Self::read_now) does nothing.
    #[wasm_bindgen(js_name = turnIfDue)]
    pub async fn turn_if_due(&self) -> bool {
        self.file.storage.breathe().await
    }

    /// Reads a snapshot from now on, or the active state again.
    #[wasm_bindgen(js_name = useSnapshot)]
    pub async fn use_snapshot(&self, id_or_name: Option<String>) -> JsResult<()> {
        let opened = async {
            if self.options.writable {
                return Err(Error::Refused(
                    "An image that is open for writing stays at its active state; read a snapshot by itself"
                        .into(),
                ));
            }
            let mut image = Image::open(clone(&self.file), &self.options, &*self.resolver).await?;
            let mut snapshot = None;
            if let Some(wanted) = id_or_name {
                image.use_snapshot(&wanted).await?;
                let found = image
                    .top()
                    .as_qcow2()
                    .and_then(|top| top.find_snapshot(&wanted));
                snapshot = found.map(|found| found.id.clone());
            }
            Ok::<_, Error>(View { image, snapshot })
        };
        let view = opened.await.map_err(|error| to_record(&error))?;
        self.view.replace(Rc::new(view));
        Ok(())
    }
}

/// Extents until there are `limit`, the range ends, or the map cannot be read: the page after tells why.
async fn map_page(
    image: &Image<WebStorage>,
    start: u64,
    length: u64,
    limit: usize,
    at_once: usize,
) -> Result<MapPage> {
    let mut ahead = Ahead::new(image, at_once);
    let mut mapper = Mapper::new(image, start, length);
    let mut extents: Vec<MapEntry> = Vec::new();
    let end = start + length;
    let mut at = start;
    while at < end && extents.len() < limit.max(1) {
        ahead.reach(image, at, end).await;
        match mapper.next().await {
            Ok(Some(extent)) => {
                at = extent.start + extent.length;
                extents.push(extent);
            }
            Ok(None) => break,
            Err(error) if extents.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(MapPage {
        extents,
        next: (at < end).then_some(at),
    })
}

/// The safety report on a file: nothing it names is followed.
#[wasm_bindgen]
pub async fn inspect(source: JsSource, control: Control) -> JsResult<JsValue> {
    let storage = WebStorage::new(source);
    let report = control
        .run(oxcow::inspect::inspect(&storage))
        .await
        .map_err(|error| to_record(&error))?;
    Ok(to_js(&report)?)
}

/// The offset that a number of JavaScript's is, if it is one.
pub(crate) fn whole_offset(offset: f64) -> Option<GuestOffset> {
    (offset.fract() == 0.0 && offset >= 0.0).then_some(GuestOffset(offset as u64))
}

/// A part of JavaScript's bytes; most often that is all of them, and then no view of them is made.
pub(crate) fn part_of(bytes: &Uint8Array, part: Range<usize>) -> Cow<'_, Uint8Array> {
    if part == (0..bytes.length() as usize) {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned(bytes.subarray(part.start as u32, part.end as u32))
}

/// The same file: its storage is shared.
pub(crate) fn clone(file: &File<WebStorage>) -> File<WebStorage> {
    File {
        storage: file.storage.clone(),
        name: file.name.clone(),
    }
}
