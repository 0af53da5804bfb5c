//! What the crossing tests share: images made by the native tools, the judge, the program under test, and
//! the comparison of the two.
//!
//! `tests/crossing/differential.rs` reads every image of the [`gallery`] with both programs, `damaged.rs` beside it breaks
//! images field by field, `real_disk.rs` builds a disk with partitions and file systems, and `safety.rs` looks at the
//! safety report.

pub mod compare;
pub mod crash;
pub mod cut;
pub mod damage;
pub mod disk;
pub mod gallery;
pub mod mutants;
pub mod normalise;
pub mod oracle;
pub mod oslo;
pub mod ours;
pub mod parallel;
pub mod power;
pub mod recipe;
pub mod recipes;
pub mod report;
pub mod rng;
pub mod run;
pub mod schedules;
pub mod scratch;
pub mod scripts;
pub mod strace;
mod watchdog;
