//! Snapshots made, applied and deleted.

use oxcow::{Error, NewSnapshot, Result};
use wasm_bindgen::prelude::*;

use crate::error::to_record;
use crate::image::{EngineImage, JsResult};

#[wasm_bindgen]
impl EngineImage {
    /// Keeps the disk as it is now; gives the snapshot's id.
    #[wasm_bindgen(js_name = createSnapshot)]
    pub async fn create_snapshot(
        &self,
        name: String,
        date_sec: u32,
        date_nsec: u32,
        vm_clock_nsec: u64,
    ) -> JsResult<String> {
        let view = self.view();
        let snapshot = NewSnapshot {
            name,
            date_sec,
            date_nsec,
            vm_clock_nsec,
            ..NewSnapshot::default()
        };
        let created = view.image.create_snapshot(&snapshot).await;
        created.map_err(|error| to_record(&error))
    }

    /// Makes the disk what it was at a snapshot.
    #[wasm_bindgen(js_name = applySnapshot)]
    pub async fn apply_snapshot(&self, id_or_name: String) -> JsResult<()> {
        let view = self.view();
        let applied = view.image.apply_snapshot(&id_or_name).await;
        applied.map_err(|error| to_record(&error))
    }

    /// Deletes a snapshot that nobody reads.
    #[wasm_bindgen(js_name = deleteSnapshot)]
    pub async fn delete_snapshot(&self, id_or_name: String) -> JsResult<()> {
        let deleted = self.delete(&id_or_name).await;
        deleted.map_err(|error| to_record(&error))
    }
}

impl EngineImage {
    async fn delete(&self, id_or_name: &str) -> Result<()> {
        let id = self.snapshot_id(id_or_name)?;
        if self.pins.borrow().contains(&id) {
            return Err(Error::Refused(
                format!("The snapshot '{id_or_name}' is being read").into(),
            ));
        }
        self.view().image.delete_snapshot(&id).await
    }
}
