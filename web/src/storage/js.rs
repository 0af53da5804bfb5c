//! What JavaScript gives: the package's `EngineSource`, as wasm-bindgen calls it.

use js_sys::{Promise, Uint8Array};
use oxcow::storage::WindowOptions;
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// `EngineSource` of the package.
    #[derive(Clone, Debug)]
    pub type JsSource;

    #[wasm_bindgen(method, getter)]
    pub fn name(this: &JsSource) -> String;
    /// The length as far as completed writes go, in bytes.
    #[wasm_bindgen(method)]
    pub fn length(this: &JsSource) -> f64;
    #[wasm_bindgen(method, getter)]
    pub fn windows(this: &JsSource) -> Option<JsWindows>;
    /// Whether [`read_into`](Self::read_into) is there.
    #[wasm_bindgen(method, getter)]
    pub fn direct(this: &JsSource) -> bool;
    #[wasm_bindgen(method, catch)]
    pub fn read(this: &JsSource, offset: f64, length: f64) -> Result<JsValue, JsValue>;
    /// Reads at once, into the module's own memory; gives how many bytes there were.
    #[wasm_bindgen(method, catch, js_name = readInto)]
    pub fn read_into(this: &JsSource, offset: f64, into: &mut [u8]) -> Result<f64, JsValue>;
    /// The same, into JavaScript's own bytes.
    #[wasm_bindgen(method, catch, js_name = readInto)]
    pub fn read_to(this: &JsSource, offset: f64, into: &Uint8Array) -> Result<f64, JsValue>;
    /// Nobody waits for this answer of `read` any more.
    #[wasm_bindgen(method)]
    pub fn cancel(this: &JsSource, answer: &Promise);
    /// Writes `bytes`, which are the module's own memory and only there during the call.
    #[wasm_bindgen(method, catch)]
    pub fn write(this: &JsSource, offset: f64, bytes: &[u8]) -> Result<JsValue, JsValue>;
    /// The same of JavaScript's own bytes.
    #[wasm_bindgen(method, catch, js_name = write)]
    pub fn write_from(this: &JsSource, offset: f64, bytes: &Uint8Array)
    -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    pub fn truncate(this: &JsSource, length: f64) -> Result<JsValue, JsValue>;
    /// The barrier; it also waits for what is left of writes that nobody waits for.
    #[wasm_bindgen(method, catch)]
    pub fn flush(this: &JsSource) -> Result<JsValue, JsValue>;
    /// Resolves after the event loop has turned once.
    #[wasm_bindgen(method)]
    pub fn turn(this: &JsSource) -> Promise;

    /// `EngineWindows` of the package.
    pub type JsWindows;

    #[wasm_bindgen(method, getter, js_name = windowBytes)]
    fn window_bytes(this: &JsWindows) -> f64;
    #[wasm_bindgen(method, getter, js_name = longestBytes)]
    fn longest_bytes(this: &JsWindows) -> f64;
    #[wasm_bindgen(method, getter, js_name = cacheBytes)]
    fn cache_bytes(this: &JsWindows) -> f64;
    #[wasm_bindgen(method, getter)]
    fn parallel(this: &JsWindows) -> f64;
}

impl JsWindows {
    /// As the core takes them; whatever numbers JavaScript gave, a float becomes the nearest that there is.
    pub fn options(&self) -> WindowOptions {
        WindowOptions {
            window: self.window_bytes() as usize,
            longest_fetch: self.longest_bytes() as usize,
            capacity: self.cache_bytes() as usize,
            queue_depth: self.parallel() as usize,
        }
    }
}
