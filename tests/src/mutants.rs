//! Which tests must miss an ordering point that is knocked out.

use oxcow::image::ordering::OrderingPoint;

/// Tests that knock ordering points out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `tests/tests/crash/mutants.rs`.
    Crash,
    /// `tests/tests/schedules/mutants.rs`.
    Schedules,
    /// `tests/tests/crossing/key_slots.rs`.
    Keys,
}

/// The one suite that must catch the engine without `point`.
#[must_use]
pub fn suite(point: OrderingPoint) -> Suite {
    match point {
        OrderingPoint::CopyBeforeWrite
        | OrderingPoint::CopyDurableBeforeOverwrite
        | OrderingPoint::LookupAndReadHeld
        | OrderingPoint::DrainBeforeOverwrite
        | OrderingPoint::RecheckAtLink
        | OrderingPoint::CommitBeforeDetach => Suite::Schedules,
        OrderingPoint::KeyBeforeSlot | OrderingPoint::SlotBeforeErase => Suite::Keys,
        // Whatever is added is the crash simulator's until it is named here.
        _ => Suite::Crash,
    }
}
