//! The reduction by states against running everything: it may leave out nothing that matters.

use std::collections::{BTreeSet, HashMap};

use oxcow_tests::parallel;
use oxcow_tests::schedules::case::Case;
use oxcow_tests::schedules::exec::Alternatives;
use oxcow_tests::schedules::search::{Bounds, Search, cases};
use oxcow_tests::schedules::starts::StartKind;

fn bounds(preemptions: u32, drops: bool) -> Bounds {
    Bounds {
        preemptions,
        drops,
        steps: 0,
        judge_one_in: 64,
    }
}

/// Some of all cases, spread evenly.
fn some(count: usize, one_in: usize) -> Vec<Case> {
    let starts = StartKind::ALL.into_iter();
    let all = starts.flat_map(|start| cases(start, count));
    all.step_by(one_in).collect()
}

/// Runs a case both ways: as many schedules, and the same ends. How many schedules there are, and how many were run.
fn compare(case: &Case, bounds: &Bounds) -> (u64, u64) {
    let mut apart = Search::default();
    apart.apart = true;
    let mut ends = BTreeSet::new();
    let everything = apart.all_seen(case, bounds, |trace| {
        ends.insert(trace.end);
    });
    assert!(everything.is_ok(), "{}", everything.unwrap_err());
    let mut merged = Search::default();
    let mut seen = BTreeSet::new();
    let reduced = merged.all_seen(case, bounds, |trace| {
        if !trace.has_joined() {
            seen.insert(trace.end);
        }
    });
    assert!(reduced.is_ok(), "{}", reduced.unwrap_err());
    assert_eq!(ends, seen, "{case}: other ends");
    let (all, run) = (apart.figures.schedules, merged.figures.schedules);
    assert_eq!(all, run + merged.figures.equivalent, "{case}: not as many");
    (all, run)
}

#[test]
fn reduced_and_not_there_are_the_same_ends_and_as_many_schedules() {
    let work = [
        (some(2, 19), bounds(2, false)),
        (some(2, 31), bounds(1, true)),
        (some(3, 130), bounds(1, false)),
    ];
    for (cases, bounds) in work {
        let figures = parallel::map(&cases, |case| compare(case, &bounds));
        let (mut all, mut run) = (0, 0);
        for (more, ran) in figures {
            all += more;
            run += ran;
        }
        println!(
            "{} cases with {} preemptions{}: {all} schedules, {run} of them run",
            cases.len(),
            bounds.preemptions,
            if bounds.drops {
                ", one task dropped"
            } else {
                ""
            }
        );
        assert!(run < all);
    }
}

/// Every schedule of a case is run to its end: what has the same key goes on in the same way.
fn equal_keys(case: &Case, bounds: &Bounds) -> u64 {
    let mut search = Search::default();
    search.apart = true;
    search.trace.keys = Some(Vec::new());
    let mut known: HashMap<u64, (Alternatives, u64)> = HashMap::new();
    let mut met_again = 0;
    let everything = search.all_seen(case, bounds, |trace| {
        // From after its last deviation on it went on without one.
        let from = trace
            .made
            .last()
            .map_or(0, |(step, _)| usize::from(*step) + 1);
        let keys = trace.keys.iter().flatten().zip(&trace.steps).skip(from);
        for (key, alternatives) in keys {
            let goes_on = (*alternatives, trace.end);
            let before = known.insert(*key, goes_on);
            met_again += u64::from(before.is_some());
            assert!(
                before.is_none_or(|b| b == goes_on),
                "{case}: {:?}",
                trace.made
            );
        }
    });
    assert!(everything.is_ok(), "{}", everything.unwrap_err());
    met_again
}

#[test]
fn states_with_one_key_go_on_alike() {
    let work = [
        (some(2, 23), bounds(1, true)),
        (some(2, 29), bounds(2, false)),
        (some(3, 170), bounds(1, false)),
    ];
    let mut met_again = 0;
    for (cases, bounds) in work {
        let again = parallel::map(&cases, |case| equal_keys(case, &bounds));
        met_again += again.into_iter().sum::<u64>();
    }
    println!("{met_again} states were met again, and went on alike");
    assert!(met_again > 100_000);
}
