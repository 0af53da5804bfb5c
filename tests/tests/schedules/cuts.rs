//! Hydration and persistent views, cut at every moment.

use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::overlap::{GuestOp, overlap};
use oxcow_tests::crash::sim_exec::Choices;
use oxcow_tests::crash::starts::StartKind;
use oxcow_tests::parallel;
use oxcow_tests::schedules::copies::{Change, Figures, cut};
use oxcow_tests::schedules::hydrating::{at_every_moment, window};

#[test]
fn a_clone_that_is_killed_goes_on_where_it_was() {
    for writes in [false, true] {
        let figures = at_every_moment(&Bench::new(StartKind::Backing), writes);
        let figures = figures.unwrap_or_else(|wrong| panic!("{wrong}"));
        println!(
            "a clone{}: killed at {} changes, {} images filled to the end, {} crash states, {} bytes fetched \
             again at most (a window is {})",
            if writes { " that is written" } else { "" },
            figures.kills,
            figures.resumed,
            figures.states,
            figures.again,
            window()
        );
        assert!(figures.kills > 40 && figures.states > 100_000);
        assert!(figures.again <= window());
    }
}

/// Filling in the background of guest writes and flushes, which the judge of crashes watches.
#[test]
fn a_clone_is_sound_after_every_power_cut() {
    let found = parallel::map(&GuestOp::ALL, |op| hydrating_beside(*op, 40));
    let found: Vec<String> = found.into_iter().flatten().collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What is wrong where a guest does `op` and flushes while the clone fills.
pub fn hydrating_beside(op: GuestOp, seeds: u64) -> Option<String> {
    let bench = Bench::new(StartKind::Backing);
    let ops = [GuestOp::Hydrate, op, GuestOp::Flush];
    (0..seeds).find_map(|seed| {
        let mut choices = Choices::seeded(seed);
        let found = overlap::<Oxcow>(&bench, &ops, false, &mut choices);
        found.err().map(|found| found.to_string())
    })
}

/// The start states whose views are cut.
pub const VIEWED: [StartKind; 5] = [
    StartKind::Mixed,
    StartKind::Snapshot,
    StartKind::Backing,
    StartKind::LargerClusters,
    StartKind::ExtendedL2,
];

#[test]
fn a_persistent_view_survives_every_power_cut() {
    let scripts: Vec<(StartKind, [Change; 2])> = VIEWED
        .into_iter()
        .flat_map(|kind| Change::ALL.map(|first| (kind, first)))
        .flat_map(|(kind, first)| Change::ALL.map(|second| (kind, [first, second])))
        .collect();
    let results = parallel::map(&scripts, |(kind, changes)| cut(*kind, changes));
    let mut total = Figures::default();
    let mut wrong = Vec::new();
    for result in results {
        match result {
            Ok(figures) => {
                total.scripts += figures.scripts;
                total.moments += figures.moments;
                total.states += figures.states;
            }
            Err(what) => wrong.push(what),
        }
    }
    println!(
        "persistent views: {} scripts, {} moments, {} states",
        total.scripts, total.moments, total.states
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
