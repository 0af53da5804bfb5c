//! Following and stopping what takes long.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use js_sys::Promise;
use oxcow::{Error, Result};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

#[wasm_bindgen]
extern "C" {
    /// `EngineControl` of the package.
    pub type Control;

    #[wasm_bindgen(method)]
    pub fn cancelled(this: &Control) -> bool;
    /// Resolves when `cancelled` changes.
    #[wasm_bindgen(method, getter)]
    pub fn stopped(this: &Control) -> Option<Promise>;
    #[wasm_bindgen(method)]
    pub fn progress(this: &Control, done: f64, total: f64);
}

impl Control {
    /// Runs `work` until it is done or the caller has asked it to stop: also while it waits for a source that
    /// does not answer.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        let mut stopped = self.stopped().map(JsFuture::from);
        poll_fn(|context| {
            let stop = stopped
                .as_mut()
                .is_some_and(|stopped| Pin::new(stopped).poll(context).is_ready());
            if stop || self.cancelled() {
                return Poll::Ready(Err(Error::Cancelled));
            }
            work.as_mut().poll(context)
        })
        .await
    }
}
