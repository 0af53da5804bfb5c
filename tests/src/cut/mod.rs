//! Real programs on real files, cut off: killed at a random moment, or traced at their system calls so that
//! the images are put together that a power cut would have left.
//!
//! The simulator of [`crate::crash`] enumerates what the engine does; this here shows that the programs do the
//! same by way of the system, with the native tools as judges. `tests/killed.rs` and `tests/crossing/powercut.rs` use
//! it.

pub mod command;
pub mod judge;
pub mod legal;
pub mod state;
