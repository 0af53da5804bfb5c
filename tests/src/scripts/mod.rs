//! Random scripts of everything that changes an image, done by ours and by the native tools.

pub mod content;
pub mod differences;
pub mod engine;
pub mod judge;
pub mod model;
pub mod operation;
pub mod place;
pub mod program;
pub mod run;
pub mod script;
pub mod setup;
pub mod stock;
pub mod storage;
pub mod view;

/// The name of every image: each has a folder of its own, with the files it depends on.
pub const IMAGE: &str = "disk.qcow2";
/// The name of the data file of those that have one.
pub const DATA_FILE: &str = "disk.data";
/// The name of the bitmap of those that have one.
pub const BITMAP: &str = "changes";
