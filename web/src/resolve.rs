//! Files that an image names: JavaScript is asked, and nothing is ever opened otherwise.

use std::cell::RefCell;
use std::io;

use js_sys::{Function, Object, Promise, Reflect};
use oxcow::{Error, File, Resolver, Result, Role, Wanted};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use crate::error::SourceFailure;
use crate::storage::{JsSource, WebStorage};

/// Asks a function of the caller's, once for each file; without one, refuses all but the files that it knows.
pub struct JsResolver {
    ask: Option<Function>,
    known: RefCell<Vec<Known>>,
}

/// An answer, kept so that opening the image again (at a snapshot) asks nothing.
struct Known {
    role: Role,
    depth: usize,
    path: String,
    storage: WebStorage,
}

impl JsResolver {
    pub fn new(ask: Option<Function>) -> Self {
        Self {
            ask,
            known: RefCell::default(),
        }
    }

    /// The file of this role is known: `name` as the image called `base` gives it.
    #[cfg(feature = "write")]
    pub fn knows(&self, role: Role, depth: usize, (base, name): (&str, &str), storage: WebStorage) {
        self.known.borrow_mut().push(Known {
            role,
            depth,
            path: join(base, name),
            storage,
        });
    }

    async fn ask(&self, wanted: &Wanted<'_>) -> Result<Option<JsSource>> {
        let Some(ask) = &self.ask else {
            return Ok(None);
        };
        let question = Object::new();
        let set = |key: &str, value: JsValue| {
            // A new plain object takes every property.
            let _ = Reflect::set(&question, &key.into(), &value);
        };
        let role = match wanted.role {
            Role::Backing => "backing",
            Role::DataFile => "data-file",
        };
        set("role", role.into());
        set("name", wanted.name.into());
        set("base", wanted.base.into());
        set(
            "format",
            wanted.format.map_or(JsValue::UNDEFINED, JsValue::from),
        );
        set("depth", (wanted.depth as f64).into());

        let mut answer = ask
            .call1(&JsValue::UNDEFINED, &question)
            .map_err(not_supplied)?;
        if let Some(promise) = answer.dyn_ref::<Promise>() {
            answer = JsFuture::from(promise.clone())
                .await
                .map_err(not_supplied)?;
        }
        Ok((!answer.is_undefined()).then(|| answer.unchecked_into()))
    }
}

impl Resolver for JsResolver {
    type Storage = WebStorage;

    async fn resolve(&self, wanted: &Wanted<'_>) -> Result<File<WebStorage>> {
        let path = join(wanted.base, wanted.name);
        let same = |known: &&Known| {
            (known.role, known.depth) == (wanted.role, wanted.depth) && known.path == path
        };
        if let Some(known) = self.known.borrow().iter().find(same) {
            return Ok(File {
                storage: known.storage.clone(),
                name: path,
            });
        }
        let Some(source) = self.ask(wanted).await? else {
            let what = format!("The {} '{}' was not supplied", wanted.role, wanted.name);
            return Err(Error::Refused(what.into()));
        };
        let storage = WebStorage::new(source);
        let known = Known {
            role: wanted.role,
            depth: wanted.depth,
            path: path.clone(),
            storage: storage.clone(),
        };
        self.known.borrow_mut().push(known);
        Ok(File {
            storage,
            name: path,
        })
    }
}

/// Why there is no file: a source that could not be opened, or a refusal in whatever words.
fn not_supplied(thrown: JsValue) -> Error {
    let failure = SourceFailure::of(&thrown);
    match failure.code() {
        Some("cancelled") => Error::Cancelled,
        // The package's own words: something was supplied, and could not be read.
        Some(_) => Error::Io {
            what: "".into(),
            offset: None,
            source: io::Error::other(failure),
        },
        None => Error::Refused(failure.to_string().into()),
    }
}

/// A name inside an image, seen from where that image is: only words, to tell files of one chain apart.
fn join(base: &str, name: &str) -> String {
    match base.rfind('/') {
        Some(slash) if !name.starts_with('/') => format!("{}/{name}", &base[..slash]),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen_from_the_image_that_gives_them() {
        assert_eq!(join("disk.qcow2", "base.qcow2"), "base.qcow2");
        assert_eq!(join("../images/a.qcow2", "b.qcow2"), "../images/b.qcow2");
        assert_eq!(join("../images/a.qcow2", "/b.qcow2"), "/b.qcow2");
    }
}
