//! Errors as the plain objects that the package makes its `OxcowError` of.

use std::{fmt, io};

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
        Error::Io { source, .. } => {
            let inner = source.get_ref();
            // What reads an image as a file has the image's own error.
            if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<Error>()) {
                return code(error);
            }
            inner
                .and_then(|inner| inner.downcast_ref::<SourceFailure>())
                .and_then(SourceFailure::code)
                .unwrap_or(match source.kind() {
                    io::ErrorKind::StorageFull => "no-space",
                    _ => "io",
                })
        }
        Error::NotThisFormat(_) => "not-this-format",
        Error::Unsupported(_) => "unsupported",
        Error::Corrupt { .. } => "corrupt",
        Error::Refused(_) => "refused",
        Error::OutOfRange(_) => "out-of-range",
        Error::Dependency { .. } => "dependency",
        Error::Stopped(_) => "stopped",
        Error::Cancelled => "cancelled",
        _ => "internal",
    }
}

/// The codes of the package's own errors that a storage may have.
const CODES: [&str; 8] = [
    "io",
    "changed",
    "cancelled",
    "closed",
    "busy",
    "no-space",
    "read-only",
    "unsupported",
];

/// What a source threw.
#[derive(Debug)]
pub struct SourceFailure {
    code: Option<&'static str>,
    message: String,
}

impl SourceFailure {
    pub fn of(thrown: &JsValue) -> Self {
        let get = |key: &str| Reflect::get(thrown, &key.into()).unwrap_or_default();
        let code = get("code");
        let is = |given: &JsValue, names: &[&str]| names.iter().any(|name| *given == **name);
        // What browsers and what Node call a full storage.
        let full = is(&get("name"), &["QuotaExceededError"]) || is(&code, &["ENOSPC", "EDQUOT"]);
        Self {
            code: match full {
                true => Some("no-space"),
                false => CODES.into_iter().find(|own| code == **own),
            },
            message: message_of(thrown),
        }
    }

    /// The code of an error of the package's own.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }
}

impl fmt::Display for SourceFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SourceFailure {}

/// The words of whatever JavaScript threw.
fn message_of(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => thrown
            .as_string()
            .unwrap_or_else(|| "the source failed".into()),
    }
}
