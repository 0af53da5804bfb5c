//! The disk as it was at one moment, by copying what is about to change.

use std::io;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use oxcow::fleece::{FleeceOf, FleeceOptions, FleecedDisk, OnError, Timeout};
use oxcow::hydrate::Clock;
use oxcow::storage::Stretch;
use oxcow::{Error, File, Format, Image, OpenOptions, Result, Storage};
use wasm_bindgen::prelude::*;

use crate::clock::JsClock;
use crate::control::Control;
use crate::error::to_record;
use crate::image::{EngineImage, JsResult, View};
use crate::resolve::JsResolver;
use crate::storage::{JsSource, Past, WebStorage};

/// The image that is changed.
#[derive(Clone)]
struct Active(Rc<View>);

impl Deref for Active {
    type Target = Image<WebStorage>;

    fn deref(&self) -> &Self::Target {
        &self.0.image
    }
}

/// The view, which ends with the last one who reads it.
#[derive(Debug)]
struct Moment {
    disk: FleecedDisk<Active, WebStorage>,
    size: u64,
    _copying: FleeceOf<Active, WebStorage, WebStorage>,
}

impl Past for Moment {
    fn size(&self) -> u64 {
        self.size
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<usize>> {
        Box::pin(self.disk.read_at(offset, buf))
    }

    fn stretch(&self, offset: u64, max: u64) -> LocalBoxFuture<'_, io::Result<Stretch>> {
        Box::pin(self.disk.stretch_at(offset, max))
    }

    fn queue_depth(&self) -> usize {
        self.disk.queue_depth()
    }
}

#[wasm_bindgen]
impl EngineImage {
    /// The disk as it is now, as an image of its own; what changes from now on is copied into `copies` first, which
    /// is written over. After `timeout` milliseconds without end a copy has failed; then the change fails, or the
    /// view.
    pub async fn fleece(
        &self,
        copies: JsSource,
        break_view: bool,
        timeout: Option<f64>,
        control: Control,
    ) -> JsResult<EngineImage> {
        let options = FleeceOptions {
            on_error: match break_view {
                true => OnError::BreakView,
                false => OnError::BreakGuestWrite,
            },
            timeout: timeout.map(|milliseconds| {
                let time = Duration::from_millis(milliseconds as u64);
                Rc::new(move || -> LocalBoxFuture<'static, ()> {
                    Box::pin(async move { JsClock.sleep(time).await })
                }) as Timeout
            }),
            persistent: false,
        };
        let begun = self.begin_fleece(copies, options);
        control.run(begun).await.map_err(|error| to_record(&error))
    }
}

impl EngineImage {
    async fn begin_fleece(&self, copies: JsSource, options: FleeceOptions) -> Result<EngineImage> {
        let active = Active(self.view());
        let size = active.virtual_size();
        let raw = OpenOptions {
            format: Some(Format::Raw),
            ..OpenOptions::default()
        };
        let nothing = || JsResolver::new(None);

        let file = File {
            name: copies.name(),
            storage: WebStorage::new(copies),
        };
        let failed = |error| Error::io("", 0, error);
        file.storage.set_len(0).await.map_err(failed)?;
        file.storage.set_len(size).await.map_err(failed)?;
        let writable = OpenOptions {
            writable: true,
            ..raw.clone()
        };
        let target = Image::open(file, &writable, &nothing()).await?;

        let name = format!("view of {}", active.top().name());
        let copying = FleeceOf::begin(active, target, options).await?;
        let moment = Moment {
            disk: copying.disk(),
            size,
            _copying: copying,
        };
        let file = File {
            name,
            storage: WebStorage::past(Rc::new(moment)),
        };
        Self::open_file(file, raw, nothing()).await
    }
}
