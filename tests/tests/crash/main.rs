//! The proof: the crash simulator over the engine. One program, so that the engine is compiled into it once.

mod control;
mod flushes;
mod judge;
mod mutants;
mod overlap;
mod qemu;
mod scripts;
mod starts;
