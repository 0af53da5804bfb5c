//! Repairing.

use oxcow::{RepairMode, repair};
use wasm_bindgen::prelude::*;

use crate::check::Watch;
use crate::control::Control;
use crate::error::to_record;
use crate::image::{EngineImage, JsResult};

#[wasm_bindgen]
impl EngineImage {
    /// Repairs leaks, or all that can be.
    pub async fn repair(&self, leaks_only: bool, control: Control) -> JsResult<JsValue> {
        let view = self.view();
        let mut watch = Watch::new(&control);
        let mode = match leaks_only {
            true => RepairMode::Leaks,
            false => RepairMode::All,
        };
        // Stopped between two tables only: given up in the middle of its switch, it would stop the image.
        let report = repair::repair(&view.image, mode, &mut watch).await;
        self.told(report.map_err(|error| to_record(&error))?, watch)
    }
}
