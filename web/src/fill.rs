//! Clones that fill themselves in the background.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use oxcow::hydrate::{End, Hydration, HydrationOptions, HydrationStatus};
use oxcow::{Error, Result};
use serde::Serialize;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

use crate::clock::JsClock;
use crate::control::Control;
use crate::error::to_record;
use crate::image::{EngineImage, JsResult};
use crate::to_js::to_js;

#[wasm_bindgen]
extern "C" {
    /// `EngineHydrateOptions` of the package.
    pub type JsHydrateOptions;

    #[wasm_bindgen(method, getter, js_name = batchBytes)]
    fn batch_bytes(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter)]
    fn parallel(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = limitRate)]
    fn limit_rate(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter)]
    fn quiet(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter)]
    fn patience(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = commitBytes)]
    fn commit_bytes(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = commitEvery)]
    fn commit_every(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter)]
    fn retries(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = retryDelay)]
    fn retry_delay(this: &JsHydrateOptions) -> Option<f64>;
    #[wasm_bindgen(method, getter, js_name = keepBacking)]
    fn keep_backing(this: &JsHydrateOptions) -> bool;
}

/// How much is fetched at once: as much as one request of an HTTP source asks for, which is a round trip away.
const BATCH_BYTES: u64 = 4 << 20;
/// How many fetches are under way at once: enough that some always bring bytes while others wait for their answer, and
/// less than an HTTP source has requests, for the guest's.
const FETCHES: usize = 6;

impl JsHydrateOptions {
    /// Whatever numbers JavaScript gave, a float becomes the nearest that there is.
    fn options(&self) -> HydrationOptions {
        let defaults = HydrationOptions::default();
        let time = |given: Option<f64>, otherwise| {
            given.map_or(otherwise, |milliseconds| {
                Duration::from_millis(milliseconds as u64)
            })
        };
        HydrationOptions {
            batch_bytes: self.batch_bytes().map_or(BATCH_BYTES, |bytes| bytes as u64),
            threshold: self.parallel().map_or(FETCHES, |fetches| fetches as usize),
            commit_bytes: self
                .commit_bytes()
                .map_or(defaults.commit_bytes, |bytes| bytes as u64),
            commit_every: time(self.commit_every(), defaults.commit_every),
            limit_rate: self.limit_rate().map(|rate| rate as u64),
            quiet: time(self.quiet(), defaults.quiet),
            patience: time(self.patience(), defaults.patience),
            retries: self
                .retries()
                .map_or(defaults.retries, |retries| retries as u32),
            backoff: time(self.retry_delay(), defaults.backoff),
            detach: !self.keep_backing(),
        }
    }
}

/// A hydration under way, as the other calls see it: what they want of it, and how far it is.
#[derive(Default)]
pub(crate) struct Filling {
    paused: Cell<bool>,
    cancelled: Cell<bool>,
    status: Cell<HydrationStatus>,
    waiting: RefCell<Option<Waker>>,
}

impl Filling {
    fn tell(&self, wish: &Cell<bool>, value: bool) {
        wish.set(value);
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// The hydration is no longer under way, however it ended.
struct UnderWay<'a>(&'a EngineImage);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.filling.replace(None);
    }
}

/// How far a clone is, in dm-clone's terms.
#[derive(Serialize)]
struct Status {
    region_bytes: u64,
    hydrated: u64,
    total: u64,
    hydrating: u64,
    fetched_bytes: u64,
    retries: u64,
    state: &'static str,
}

impl From<HydrationStatus> for Status {
    fn from(status: HydrationStatus) -> Self {
        Self {
            region_bytes: status.region_bytes,
            hydrated: status.hydrated,
            total: status.total,
            hydrating: status.hydrating,
            fetched_bytes: status.fetched_bytes,
            retries: status.retries,
            state: status.state.name(),
        }
    }
}

#[wasm_bindgen]
impl EngineImage {
    /// Fills the clone to its end, or until it is asked to stop: what is there then is durable. Gives the id
    /// of the snapshot that keeps the backing file from being dropped, where there is one.
    pub async fn hydrate(
        &self,
        options: JsHydrateOptions,
        control: Control,
    ) -> JsResult<Option<String>> {
        let end = self.fill(&options.options(), &control).await;
        match end.map_err(|error| to_record(&error))? {
            End::Complete => Ok(None),
            End::NeededBySnapshot(id) => Ok(Some(id)),
            End::Cancelled => Err(to_record(&Error::Cancelled)),
        }
    }

    /// How far it is: of the hydration that is under way, or by the tables.
    pub async fn hydration(&self) -> JsResult<JsValue> {
        let under_way = self.filling.borrow().as_ref().map(|it| it.status.get());
        let status = match under_way {
            Some(status) => status,
            None => {
                let view = self.view();
                let status = HydrationStatus::of(&view.image).await;
                status.map_err(|error| to_record(&error))?
            }
        };
        Ok(to_js(&Status::from(status))?)
    }

    /// Has a hydration that is under way start no further fetch, or go on.
    #[wasm_bindgen(js_name = pauseHydration)]
    pub fn pause_hydration(&self, paused: bool) -> bool {
        let filling = self.filling.borrow().clone();
        if let Some(filling) = &filling {
            filling.tell(&filling.paused, paused);
        }
        filling.is_some()
    }

    /// Ends it.
    #[wasm_bindgen(js_name = cancelHydration)]
    pub fn cancel_hydration(&self) {
        let filling = self.filling.borrow().clone();
        if let Some(filling) = filling {
            filling.tell(&filling.cancelled, true);
        }
    }

    /// Whether what is read from the backing file is kept.
    #[wasm_bindgen(js_name = setCopyOnRead)]
    pub fn set_copy_on_read(&self, on: bool) {
        self.view().image.set_copy_on_read(on);
    }
}

impl EngineImage {
    async fn fill(&self, options: &HydrationOptions, control: &Control) -> Result<End> {
        if self.filling.borrow().is_some() {
            return Err(Error::Refused("The clone is being filled already".into()));
        }
        let filling = Rc::new(Filling::default());
        self.filling.replace(Some(Rc::clone(&filling)));
        let _under_way = UnderWay(self);
        let view = self.view();
        let begun = Hydration::new(&view.image, JsClock, options.clone());
        let hydration = control.run(begun).await?;
        let mut run = pin!(hydration.run());
        let mut stopped = control.stopped().map(JsFuture::from);
        let mut told = u64::MAX;
        poll_fn(|context| {
            // First: it forgets what it was told before it began.
            let polled = run.as_mut().poll(context);
            let waiting = stopped.as_mut();
            if waiting.is_some_and(|stopped| Pin::new(stopped).poll(context).is_ready()) {
                stopped = None;
                filling.cancelled.set(true);
            }
            if filling.cancelled.take() {
                // Ends by itself, with everything durable that has arrived.
                hydration.cancel();
                context.waker().wake_by_ref();
            }
            match filling.paused.get() {
                true => hydration.pause(),
                false => hydration.resume(),
            }
            let status = hydration.status();
            filling.status.set(status);
            if status.hydrated != told {
                told = status.hydrated;
                let region = status.region_bytes as f64;
                control.progress(
                    status.hydrated as f64 * region,
                    status.total as f64 * region,
                );
            }
            filling.waiting.replace(Some(context.waker().clone()));
            polled
        })
        .await
    }
}
