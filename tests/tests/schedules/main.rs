//! Everything at once on one image, in every order: views, guest writes, hydration, snapshots.
//!
//! `OXCOW_SCHEDULES=long` runs more than 10^8 schedules instead of what takes minutes;
//! `OXCOW_SCHEDULE='<case> [<deviations>]'`, which every failure prints, runs one again.

mod cuts;
mod explore;
mod mutants;
