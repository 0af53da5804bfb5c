//! The crash simulator: proof by enumeration that every power cut is harmless.
//!
//! How it fits together, bottom up:
//!
//! - [`contents`] numbers the contents of sectors; [`machine`] keeps the files of a simulated machine, what of
//!   them is durable and every version of a sector that is not; [`fault`] lets it go wrong; [`disk`] is the
//!   storage that an engine gets of it.
//! - [`format`](mod@format) and [`judge`] read qcow2 a second time, without the engine's code, and judge all
//!   images that a crash may leave at once. [`model`] says what a guest may see in them.
//! - [`builder`] writes the [`starts`], from which every script begins; [`script`] has the operations, and what
//!   they mean for the guest.
//! - [`engine`] is what a script needs of an engine: there is oxcow, and in [`qemu_order`] a model of QEMU's
//!   order of writes, in which the harness must find what is known to be wrong.
//! - [`mod@bench`] puts machine, model and judge together, [`run`](mod@run) runs scripts on it one operation after
//!   the other, [`overlap`](mod@overlap) several at once with the deterministic executor [`sim_exec`].
//! - [`aftermath`] uses images on after a crash, [`faults`] kills processes and lets storages fail everywhere.
//! - [`campaign`] does all that for every script up to a length; [`count`](mod@count) counts the violating
//!   images of one script, and [`states`] makes single images.
//!
//! `docs/crash.md` tells what is proven, with the figures.

pub mod aftermath;
pub mod bench;
pub mod builder;
pub mod campaign;
pub mod contents;
pub mod count;
pub mod disk;
pub mod engine;
pub mod exec;
pub mod fault;
pub mod faults;
pub mod format;
pub mod judge;
pub mod machine;
pub mod model;
pub mod overlap;
pub mod qemu_order;
pub mod run;
pub mod script;
pub mod sim_exec;
pub mod starts;
pub mod states;
