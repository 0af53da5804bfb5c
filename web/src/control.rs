//! Following and stopping what takes long.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use oxcow::{Error, Result};
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// `EngineControl` of the package.
    pub type Control;

    #[wasm_bindgen(method)]
    fn cancelled(this: &Control) -> bool;
    #[wasm_bindgen(method)]
    pub fn progress(this: &Control, done: f64, total: f64);
}

impl Control {
    /// Runs `work` until it is done or the caller has asked it to stop, which is seen whenever `work` goes
    /// on after a pause.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.cancelled() {
                return Poll::Ready(Err(Error::Cancelled));
            }
            work.as_mut().poll(context)
        })
        .await
    }
}
