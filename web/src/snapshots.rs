//! Images that read a snapshot, also while the image that has it is changed.

use std::cell::RefCell;
use std::rc::Rc;

use oxcow::{Error, OpenOptions, Result};
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
    pub(crate) fn snapshot_id(&self, id_or_name: &str) -> Result<String> {
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
}

#[wasm_bindgen]
impl EngineImage {
    /// A snapshot as an image of its own, to be read while this one is changed.
    #[wasm_bindgen(js_name = openSnapshot)]
    pub async fn open_snapshot(&self, id_or_name: String) -> JsResult<EngineImage> {
        let opened = self.read_snapshot(&id_or_name).await;
        opened.map_err(|error| to_record(&error))
    }
}
