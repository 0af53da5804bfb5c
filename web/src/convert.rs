//! The disk of one image written into a new one.

use oxcow::convert::{self, ConvertOptions};
use oxcow::{File, Format, Image, OpenOptions, Result, Storage};
use wasm_bindgen::prelude::*;

use crate::control::Control;
use crate::create::{JsCreateOptions, create};
use crate::error::to_record;
use crate::image::{EngineImage, JsResult};
use crate::resolve::JsResolver;
use crate::storage::{JsSource, WebStorage};

/// How much is read and written at once, in bytes: between threads every call is dear.
const BUFFER: usize = 1 << 20;

#[wasm_bindgen]
impl EngineImage {
    /// Writes the disk into `target`: as a new qcow2 image where it is told what that is to be like, otherwise
    /// as a raw one.
    pub async fn convert(
        &self,
        target: JsSource,
        wanted: Option<JsCreateOptions>,
        compress: bool,
        control: Control,
    ) -> JsResult<()> {
        let copied = self.copy_to(target, wanted, compress, &control);
        control.run(copied).await.map_err(|error| to_record(&error))
    }
}

impl EngineImage {
    async fn copy_to(
        &self,
        target: JsSource,
        wanted: Option<JsCreateOptions>,
        compress: bool,
        control: &Control,
    ) -> Result<()> {
        let view = self.view();
        let file = File {
            name: target.name(),
            storage: WebStorage::new(target),
        };
        let resolver = JsResolver::new(None);
        let format = match &wanted {
            Some(wanted) => {
                create(&file, wanted, &resolver).await?;
                Format::Qcow2
            }
            None => {
                // In two steps: what was there is gone, and all that is not written reads as zeros.
                let io = |error| oxcow::Error::io("", 0, error);
                file.storage.set_len(0).await.map_err(io)?;
                let size = view.image.virtual_size();
                file.storage.set_len(size).await.map_err(io)?;
                Format::Raw
            }
        };
        let options = OpenOptions {
            format: Some(format),
            writable: true,
            ..OpenOptions::default()
        };
        let target = Image::open(file, &options, &resolver).await?;
        let options = ConvertOptions {
            compress,
            buffer: BUFFER,
            ..ConvertOptions::default()
        };
        let progress = |done: u64, total: u64| {
            control.progress(done as f64, total as f64);
            true
        };
        let copied = convert::to_image(&[&view.image], &target, &options, progress).await;
        copied.map_err(|failed| failed.source)?;
        target.close().await
    }
}
