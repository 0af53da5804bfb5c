//! Snapshots of an image that is open for writing, and images that read one of them meanwhile.

use std::cell::RefCell;
use std::rc::Rc;

use oxcow::{Error, NewSnapshot, OpenOptions, Result};
use wasm_bindgen::prelude::*;

use crate::error::to_record;
use crate::image::{EngineImage, JsResult, View, clone};

/// The ids of the snapshots that other images read.
pub(crate) type Pins = Rc<RefCell<Vec<String>>>;

/// One of them.
pub(crate) struct Pin {
    pins: Pins,
    id: String,
}

impl Pin {
    fn new(pins: &Pins, id: String) -> Self {
        pins.borrow_mut().push(id.clone());
        Self {
            pins: Rc::clone(pins),
            id,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.borrow_mut();
        if let Some(at) = pins.iter().position(|id| *id == self.id) {
            pins.swap_remove(at);
        }
    }
}

impl EngineImage {
    /// The id of the snapshot with this id, or else this name.
    fn snapshot_id(&self, id_or_name: &str) -> Result<String> {
        let view = self.view();
        let found = view
            .image
            .top()
            .as_qcow2()
            .and_then(|top| top.find_snapshot(id_or_name));
        match found {
            Some(found) => Ok(found.id),
            None => Err(Error::OutOfRange(
                format!("Can't find the snapshot '{id_or_name}'").into(),
            )),
        }
    }

    async fn read_snapshot(&self, id_or_name: &str) -> Result<Self> {
        let id = self.snapshot_id(id_or_name)?;
        // From now on: opening takes time.
        let pin = Pin::new(&self.pins, id.clone());
        let view = self.view();
        let options = OpenOptions {
            writable: false,
            ..self.options.clone()
        };
        let file = clone(&self.file);
        let opening = view
            .image
            .open_snapshot(clone(&file), &options, &*self.resolver, &id);
        let at_snapshot = View {
            image: opening.await?,
            snapshot: Some(id),
        };
        let resolver = Rc::clone(&self.resolver);
        let pins = Pins::default();
        Ok(Self::new(
            file,
            options,
            resolver,
            pins,
            at_snapshot,
            Some(pin),
        ))
    }

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

    /// A snapshot as an image of its own, to be read while this one is changed.
    #[wasm_bindgen(js_name = openSnapshot)]
    pub async fn open_snapshot(&self, id_or_name: String) -> JsResult<EngineImage> {
        let opened = self.read_snapshot(&id_or_name).await;
        opened.map_err(|error| to_record(&error))
    }
}
