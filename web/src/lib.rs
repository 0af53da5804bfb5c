//! oxcow for JavaScript: what the npm package `oxcow` calls, by wasm-bindgen.
//!
//! Everything here is for that package's own TypeScript, which gives programs their interface; see
//! `src-ts/` beside this crate. An image is read through objects of JavaScript's (module `storage`), files that
//! it names are opened only when JavaScript supplies them (module `resolve`), results become plain objects
//! (module `to_js`).
#![forbid(unsafe_code)]

mod ahead;
mod change;
mod check;
mod clock;
mod control;
mod convert;
mod create;
mod error;
mod fill;
mod image;
pub mod overview;
mod resolve;
mod snapshots;
mod storage;
mod to_js;

pub use image::{EngineImage, inspect};
