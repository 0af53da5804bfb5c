//! Errors as the plain objects that the package makes its `OxcowError` of.

use js_sys::{Object, Reflect};
use oxcow::Error;
use wasm_bindgen::{JsCast, JsValue};

use crate::to_js::to_js;

/// What a caller gets instead of a result.
pub fn to_record(error: &Error) -> JsValue {
    let record = Object::new();
    let set = |key: &str, value: &JsValue| {
        // A new plain object takes every property.
        let _ = Reflect::set(&record, &key.into(), value);
    };
    set("code", &code(error).into());
    set("message", &error.to_string().into());
    if let Some(place) = error.place() {
        set("place", &to_js(&place).unwrap_or(JsValue::UNDEFINED));
    }
    if let Error::Dependency { name, source, .. } = error {
        if !name.is_empty() {
            set("file", &name.as_str().into());
        }
        set("cause", &to_record(source));
    }
    record.into()
}

fn code(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "io",
        Error::NotThisFormat(_) => "not-this-format",
        Error::Unsupported(_) => "unsupported",
        Error::Corrupt { .. } => "corrupt",
        Error::Refused(_) => "refused",
        Error::OutOfRange(_) => "out-of-range",
        Error::Dependency { .. } => "dependency",
        Error::Cancelled => "cancelled",
        _ => "internal",
    }
}

/// The words of whatever JavaScript threw.
pub fn message_of(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => thrown
            .as_string()
            .unwrap_or_else(|| "the source failed".into()),
    }
}
