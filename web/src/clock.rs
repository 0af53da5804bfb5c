//! The time, by JavaScript's timers.

use std::time::Duration;

use js_sys::{Function, Promise};
use oxcow::hydrate::Clock;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &Function, milliseconds: f64) -> JsValue;
    #[wasm_bindgen(js_name = clearTimeout)]
    fn clear_timeout(timer: &JsValue);
}

/// `Date.now` and `setTimeout`, which are everywhere.
#[derive(Clone, Copy, Debug)]
pub struct JsClock;

/// A timer, which ends with the one who waits for it.
struct Timer(JsValue);

impl Drop for Timer {
    fn drop(&mut self) {
        clear_timeout(&self.0);
    }
}

impl Clock for JsClock {
    fn now(&self) -> Duration {
        Duration::from_secs_f64(js_sys::Date::now() / 1000.0)
    }

    async fn sleep(&self, time: Duration) {
        let mut timer = None;
        let over = Promise::new(&mut |resolve, _| {
            timer = Some(Timer(set_timeout(&resolve, time.as_secs_f64() * 1000.0)));
        });
        // It never rejects.
        let _ = JsFuture::from(over).await;
        drop(timer);
    }
}
