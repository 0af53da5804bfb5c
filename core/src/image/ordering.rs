//! Every point at which the order of writes matters, by name.
//!
//! The proof (tests/src/crash) knocks out one after the other and must see each one missed; so a point
//! stands in exactly one place of the engine, where `upheld` is asked.

/// A rule about the order of writes that some line of the engine upholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OrderingPoint {
    /// A writable open begins with a flush: what it read becomes durable before anything builds on it.
    FlushAtOpen,
    /// Commit: data, refcounts and new tables are durable before an entry points to them (M5).
    FlushBeforePublish,
    /// Commit: the refcounts are written before the entries (M1).
    RefcountsBeforePublish,
    /// Commit: new L2 tables are written before an L1 entry points to them (M5).
    NewTablesBeforePublish,
    /// Commit: the published entries are durable before it is acknowledged (I1), and before what they
    /// unlinked may be used again (M4).
    FlushAfterPublish,
    /// What a step unlinks is not used again before the unlinking is durable (M4).
    Quarantine,
    /// Only what was there before the first flush began is published after it (I3, M5).
    FreezeBeforeFlush,
    /// A cluster that others refer to is never written in place (S1).
    CopyShared,
    /// A new cluster that is only written in part has the rest filled (I2).
    FillNewCluster,
    /// A file never ends within a sector that a guest may write over (I4).
    WholeLastSector,
    /// A new refcount block is durable before the refcount table points to it (M1).
    RefcountBlockBeforeLink,
    /// Switch: all tables of the new state are durable before sector 0 points to them (M5, M6).
    FlushBeforeSwitch,
    /// Switch: sector 0 is durable before the tables of the old state are used again (M4).
    FlushAfterSwitch,
    /// Shadow: tables are built in clusters that the current state does not use (S2).
    ShadowInFreeClusters,
    /// COPIED is clear in the active tables where a snapshot shares the cluster (M2, S1).
    ClearCopied,
    /// COPIED is set again where a deleted snapshot leaves the active state as the only owner (M2).
    RestoreCopied,
    /// The refcounts of a transaction are switched with the tables that they count (M1).
    RefcountsInSwitch,
    /// A grown disk's new bytes are made zeros before its size says that they are there (S2).
    ZeroBeforeGrow,
    /// The file is cut only after the header no longer needs its end (M3).
    TruncateAfterSwitch,
    /// A dirty image's refcounts are rebuilt before anything is allocated (M8).
    RepairBeforeWriting,
    /// Lazy refcounts: the dirty bit is durable before anything is published that they do not count (M8).
    DirtyBeforePublish,
    /// Lazy refcounts: the dirty bit goes only after the refcounts are durable (M8).
    RefcountsBeforeClean,
    /// Unknown autoclear bits are cleared durably before the first change.
    ClearAutoclear,
    /// An external data file is durable before the entries that point into it.
    FlushDataFile,
    /// Bitmaps are durably marked in use before the guest data changes that they are about.
    MarkBitmapsInUse,
    /// Bitmaps that are stored in place are called right only when they are durable.
    BitmapsInPlace,
    /// What a point-in-time view still needs is copied before it is overwritten.
    CopyBeforeWrite,
    /// A persistent view's copy is durable before what it is a copy of is overwritten.
    CopyDurableBeforeOverwrite,
    /// Where a view's bytes are and reading them there is one step: no change comes in between.
    LookupAndReadHeld,
    /// A change waits for the readers of what it replaces.
    DrainBeforeOverwrite,
    /// Fetched bytes are linked only where the guest has not written meanwhile.
    RecheckAtLink,
    /// All of a clone's clusters are durable before the header drops the source.
    CommitBeforeDetach,
    /// An overlay's base has all of it durably before the overlay is emptied (I1).
    CommitBeforeEmpty,
    /// A key slot becomes active only when its key material is durable (M5).
    KeyBeforeSlot,
    /// A key slot is durably inactive before its key material is destroyed: what is active can be relied on.
    SlotBeforeErase,
}

impl OrderingPoint {
    /// Every point there is.
    pub const ALL: &'static [Self] = &[
        Self::FlushAtOpen,
        Self::FlushBeforePublish,
        Self::RefcountsBeforePublish,
        Self::NewTablesBeforePublish,
        Self::FlushAfterPublish,
        Self::Quarantine,
        Self::FreezeBeforeFlush,
        Self::CopyShared,
        Self::FillNewCluster,
        Self::WholeLastSector,
        Self::RefcountBlockBeforeLink,
        Self::FlushBeforeSwitch,
        Self::FlushAfterSwitch,
        Self::ShadowInFreeClusters,
        Self::ClearCopied,
        Self::RestoreCopied,
        Self::RefcountsInSwitch,
        Self::ZeroBeforeGrow,
        Self::TruncateAfterSwitch,
        Self::RepairBeforeWriting,
        Self::DirtyBeforePublish,
        Self::RefcountsBeforeClean,
        Self::ClearAutoclear,
        Self::FlushDataFile,
        Self::MarkBitmapsInUse,
        Self::BitmapsInPlace,
        Self::CopyBeforeWrite,
        Self::CopyDurableBeforeOverwrite,
        Self::LookupAndReadHeld,
        Self::DrainBeforeOverwrite,
        Self::RecheckAtLink,
        Self::CommitBeforeDetach,
        Self::CommitBeforeEmpty,
        Self::KeyBeforeSlot,
        Self::SlotBeforeErase,
    ];
}

/// Whether the engine upholds `point`: always, but where the proof has knocked it out.
#[inline]
#[must_use]
pub(crate) fn upheld(point: OrderingPoint) -> bool {
    #[cfg(feature = "knockout")]
    return !knockout::is_out(point);
    #[cfg(not(feature = "knockout"))]
    {
        let _ = point;
        true
    }
}

/// Takes single ordering points out of the engine, for the tests that must notice.
#[cfg(feature = "knockout")]
pub mod knockout {
    use std::cell::Cell;

    use super::OrderingPoint;

    thread_local! {
        static OUT: Cell<Option<OrderingPoint>> = const { Cell::new(None) };
    }

    /// Runs `body` on this thread with an engine that does not uphold `point`.
    pub fn without<T>(point: OrderingPoint, body: impl FnOnce() -> T) -> T {
        struct Restore(Option<OrderingPoint>);
        impl Drop for Restore {
            fn drop(&mut self) {
                OUT.set(self.0);
            }
        }
        let _restore = Restore(OUT.replace(Some(point)));
        body()
    }

    pub(super) fn is_out(point: OrderingPoint) -> bool {
        OUT.get() == Some(point)
    }
}
