//! Everything at once on one image, in every order: views, guest writes, hydration, snapshots.
//!
//! `OXCOW_SCHEDULES=long` goes on to about 10^8 schedules that are run, instead of what takes minutes, and tells every minute how far it is;
//! `OXCOW_SCHEDULE='<case> [<deviations>]'`, which every failure prints, runs one again.

mod cuts;
mod explore;
mod mutants;
mod states;
