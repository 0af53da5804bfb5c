//! Everything that may go on at once on one image, in every order: views, guest writes, hydration, snapshots.
//!
//! [`files`] are storages whose requests complete when [`exec`] chooses, a run of which is its deviations from
//! going straight on. [`case`] has the operations and what must come of them, by the [`history`] of all writes;
//! [`structure`] has the file judged by the crash simulator's checker. [`search`] goes through the schedules:
//! all with a few preemptions, all in which a task is dropped, and long ones by lot.

pub mod case;
pub mod copies;
pub mod exec;
pub mod files;
pub mod history;
pub mod hydrating;
pub mod search;
pub mod starts;
pub mod states;
pub mod structure;
