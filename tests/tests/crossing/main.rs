//! The command line and the library against the native tools: one program, so that the engine is compiled into it once
//! and not once for each file.
//!
//! `cargo test -p oxcow-tests --test crossing convert::` runs the tests of one file.
//!
//! Apart from it stand `convert_memory.rs`, which measures memory that a large process would hide, `killed.rs`, whose
//! processes need the machine to themselves, and the simulators `crash` and `schedules`, which need neither the native
//! tools nor the command.

mod alarms;
mod bitmaps;
mod compressing;
mod convert;
mod create;
mod damaged;
mod differential;
mod encryption;
mod faults_cli;
mod key_slots;
mod marks;
mod powercut;
mod real_disk;
mod repair;
mod safety;
mod sides;
mod whole;
mod writing;
