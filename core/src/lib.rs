//! Disk images (qcow2, raw) opened, checked, and read over any storage, without trusting them.
//!
//! The crate does no I/O of its own: a [`Storage`] supplies bytes, a [`Resolver`] decides which of the
//! files that an image names may be opened. It has no threads, no clock and no executor; its futures run
//! on any.
//!
//! ```
//! use oxcow::{DenyAll, File, GuestOffset, Image, MemoryStorage, OpenOptions};
//!
//! # async fn example() -> oxcow::Result<()> {
//! let file = File { storage: MemoryStorage::new(vec![7; 4096]), name: "disk.raw".into() };
//! let image = Image::open(file, &OpenOptions::default(), &DenyAll::default()).await?;
//! assert_eq!(image.virtual_size(), 4096);
//!
//! let mut sector = [0; 512];
//! image.read_at(GuestOffset(1024), &mut sector).await?;
//! assert_eq!(sector, [7; 512]);
//! # Ok(())
//! # }
//! # assert!(futures_util::FutureExt::now_or_never(example()).unwrap().is_ok());
//! ```
#![forbid(unsafe_code)]

pub mod chain;
pub mod check;
mod codec;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod create;
pub mod crypto;
pub mod error;
pub mod fleece;
pub mod hydrate;
pub mod image;
pub mod info;
pub mod inspect;
pub mod map;
pub mod measure;
pub mod probe;
pub mod qcow2;
pub mod raw;
pub mod rebase;
pub mod repair;
pub mod storage;
pub mod units;
pub mod view;

pub use chain::{DenyAll, File, Resolver, Wanted};
pub use check::{CheckOptions, CheckReport};
pub use error::{Error, Place, Result, Role, Structure};
pub use image::{
    AmendOptions, Backing, BackingName, Corruption, Extent, ExtentKind, Image, Instead, IoCounts,
    Layer, NewSnapshot, OnCorruption, OnRepair, OpenOptions, Piece, Placed, Preallocation, Qcow2,
    ResizeOptions, VmStateOffset, ZeroMode,
};
pub use probe::Format;
pub use raw::Raw;
pub use repair::{RepairMode, RepairReport};
pub use storage::{MemoryStorage, Storage};
pub use units::{ClusterSize, GuestOffset, HostOffset};

/// The examples of the README are compiled with the documentation's own.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
