//! oxcow for JavaScript: what the npm package `oxcow` calls, by wasm-bindgen.
//!
//! Everything here is for that package's own TypeScript, which gives programs their interface; see
//! `src-ts/` beside this crate. An image is read through objects of JavaScript's (module `storage`), files that
//! it names are opened only when JavaScript supplies them (module `resolve`), results become plain objects
//! (module `to_js`).
//!
//! The package has two modules of this crate: one that only reads, and one with everything (feature `write`).
#![forbid(unsafe_code)]

mod ahead;
#[cfg(feature = "write")]
mod change;
mod check;
#[cfg(feature = "write")]
mod clock;
mod control;
#[cfg(feature = "write")]
mod convert;
#[cfg(feature = "write")]
mod create;
mod error;
#[cfg(feature = "write")]
mod export;
#[cfg(feature = "write")]
mod fill;
#[cfg(feature = "write")]
mod fleece;
mod image;
pub mod overview;
#[cfg(feature = "write")]
mod repair;
mod resolve;
mod snapshots;
#[cfg(feature = "write")]
mod snapshots_change;
mod storage;
mod to_js;

pub use image::{EngineImage, inspect};
