//! What a guest does to an image besides reading it.

use js_sys::Uint8Array;
use oxcow::{GuestOffset, Preallocation, ResizeOptions, ZeroMode};
use wasm_bindgen::prelude::*;

use crate::control::Control;
use crate::create::preallocation;
use crate::error::to_record;
use crate::image::{EngineImage, JsResult, part_of, whole_offset};
use crate::storage::turn_is_due;

#[wasm_bindgen]
impl EngineImage {
    /// Writes `bytes` at `offset`. Given up half way, the range reads old or new, sector by sector.
    pub async fn write(&self, offset: u64, bytes: Vec<u8>, control: Control) -> JsResult<()> {
        let view = self.view();
        let write = view.image.write_at(GuestOffset(offset), &bytes);
        control.run(write).await.map_err(|error| to_record(&error))
    }

    /// As [`write`](Self::write), from the caller's bytes straight into the storage and before it returns. 0 where that
    /// cannot be, for whatever reason: then a part may have been written, and `write` does it or tells why not; 1 where
    /// it is done; 2 where it is done and the event loop is due ([`turn_if_due`](Self::turn_if_due)).
    #[wasm_bindgen(js_name = writeNow)]
    pub fn write_now(&self, offset: f64, bytes: &Uint8Array) -> u32 {
        let at_once = self.file.storage.writes_at_once();
        let Some(offset) = whole_offset(offset).filter(|_| at_once) else {
            return 0;
        };
        let length = bytes.length() as usize;
        let image = &self.view().image;
        let written = image.overwrite_now(offset, length, |storage, host, part| {
            storage.write_now(host.0, &part_of(bytes, part))
        });
        match written {
            true => 1 + u32::from(turn_is_due()),
            false => 0,
        }
    }

    /// Writes whole clusters compressed.
    #[wasm_bindgen(js_name = writeCompressed)]
    pub async fn write_compressed(
        &self,
        offset: u64,
        bytes: Vec<u8>,
        control: Control,
    ) -> JsResult<()> {
        let view = self.view();
        let write = view.image.write_compressed(GuestOffset(offset), &bytes);
        control.run(write).await.map_err(|error| to_record(&error))
    }

    /// Makes a range read as zeros.
    #[wasm_bindgen(js_name = writeZeroes)]
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        unmap: bool,
        control: Control,
    ) -> JsResult<()> {
        let view = self.view();
        let mode = match unmap {
            true => ZeroMode::Unmap,
            false => ZeroMode::Keep,
        };
        let write = view.image.write_zeroes(GuestOffset(offset), length, mode);
        control.run(write).await.map_err(|error| to_record(&error))
    }

    /// Gives back the whole clusters of a range.
    pub async fn discard(&self, offset: u64, length: u64, control: Control) -> JsResult<()> {
        let view = self.view();
        let discard = view.image.discard(GuestOffset(offset), length);
        control
            .run(discard)
            .await
            .map_err(|error| to_record(&error))
    }

    /// Makes durable what was completed before.
    pub async fn flush(&self) -> JsResult<()> {
        let view = self.view();
        view.image.flush().await.map_err(|error| to_record(&error))
    }

    /// Gives the disk another size.
    pub async fn resize(
        &self,
        size: u64,
        shrink: bool,
        preallocated: Option<String>,
    ) -> JsResult<()> {
        let view = self.view();
        let resized = async {
            let options = ResizeOptions {
                shrink,
                preallocation: match preallocated {
                    Some(name) => preallocation(&name)?,
                    None => Preallocation::Off,
                },
            };
            view.image.resize(size, &options).await
        };
        resized.await.map_err(|error| to_record(&error))
    }

    /// Writes what only tidies up, durably: the last thing before the storage is closed.
    pub async fn finish(&self) -> JsResult<()> {
        if !self.options.writable {
            return Ok(());
        }
        let view = self.view();
        view.image.close().await.map_err(|error| to_record(&error))
    }
}
