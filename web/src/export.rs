//! A disk as the bytes of a qcow2 file, made as they are asked for.

use std::rc::Rc;

use js_sys::Uint8Array;
use oxcow::create::export::Export;
use wasm_bindgen::prelude::*;

use crate::control::Control;
use crate::create::JsCreateOptions;
use crate::error::to_record;
use crate::image::{EngineImage, JsResult, View};

/// The file that a disk would be. It keeps what it reads open by itself.
#[wasm_bindgen]
pub struct EngineExport {
    export: Export,
    view: Rc<View>,
}

#[wasm_bindgen]
impl EngineImage {
    /// The disk as such a file as is wanted.
    pub async fn export(
        &self,
        wanted: JsCreateOptions,
        control: Control,
    ) -> JsResult<EngineExport> {
        let view = self.view();
        let planned = async { Export::of(&view.image, &wanted.options()?).await };
        match control.run(planned).await {
            Ok(export) => Ok(EngineExport {
                export,
                view: Rc::clone(&view),
            }),
            Err(error) => Err(to_record(&error)),
        }
    }
}

#[wasm_bindgen]
impl EngineExport {
    /// The length of the file in bytes.
    #[wasm_bindgen(js_name = fileSize)]
    pub fn file_size(&self) -> u64 {
        self.export.file_size()
    }

    /// The `length` bytes of the file from `offset` on.
    pub async fn read(&self, offset: u64, length: u32, control: Control) -> JsResult<Uint8Array> {
        let mut bytes = vec![0; length as usize];
        let read = self.export.read_at(&self.view.image, offset, &mut bytes);
        control.run(read).await.map_err(|error| to_record(&error))?;
        Ok(Uint8Array::from(bytes.as_slice()))
    }
}
