//! Every ordering point of the engine is knocked out in turn, and every one is missed: within scripts of at
//! most two operations, kills of them, or overlapping guest operations, something is violated. Those of views
//! and hydration are knocked out in `tests/tests/schedules/mutants.rs`.

use std::fmt::Write as _;

use oxcow::image::ordering::{OrderingPoint, knockout};
use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::campaign::Campaign;
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::overlap::{GuestOp, overlap};
use oxcow_tests::crash::run::run;
use oxcow_tests::crash::script::Op;
use oxcow_tests::crash::sim_exec::Choices;
use oxcow_tests::crash::starts::StartKind;
use oxcow_tests::mutants::{Suite, suite};
use oxcow_tests::parallel;

/// What notices that a point is missing, and how: short scripts first.
fn caught(point: OrderingPoint) -> Option<(u64, String)> {
    knockout::without(point, || {
        for (length, kill_one_in) in [(1, 1), (2, 8)] {
            let campaign = Campaign {
                kill_one_in,
                ..Campaign::of_length(length)
            };
            for piece in campaign.pieces() {
                let outcome = campaign.run::<Oxcow>(piece);
                if let Some(example) = outcome.found.into_values().next() {
                    return Some((outcome.violating, example));
                }
            }
        }
        let longer = longer().or_else(overlapping);
        longer.map(|example| (1, example))
    })
}

/// Scripts of three operations that show what no shorter one does.
fn longer() -> Option<String> {
    let scripts = [[Op::WriteBytes, Op::GrowLittle, Op::WriteCluster]];
    let bench = Bench::new(StartKind::Empty);
    let found = scripts
        .iter()
        .find_map(|script| run::<Oxcow>(&bench, script, 0).err());
    found.map(|found| found.to_string())
}

/// Pairs of guest operations at once.
fn overlapping() -> Option<String> {
    for start in [
        StartKind::Mixed,
        StartKind::CompressedAlone,
        StartKind::DataFile,
    ] {
        let bench = Bench::new(start);
        for first in GuestOp::ALL {
            for second in GuestOp::ALL {
                for seed in 0..50 {
                    let mut choices = Choices::seeded(seed);
                    let ops = [first, second, GuestOp::Flush];
                    if let Err(found) = overlap::<Oxcow>(&bench, &ops, false, &mut choices) {
                        return Some(found.to_string());
                    }
                }
            }
        }
    }
    None
}

#[test]
fn every_mutant_is_caught() {
    let mine = |point: &OrderingPoint| suite(*point) == Suite::Crash;
    let points: Vec<OrderingPoint> = OrderingPoint::ALL.iter().copied().filter(mine).collect();
    let caught = parallel::map(&points, |point| caught(*point));
    let mut survivors = String::new();
    for (point, caught) in points.iter().zip(&caught) {
        match caught {
            Some((count, example)) => {
                let line = example.lines().next().unwrap_or_default();
                println!("{point:?}: caught by {count} scripts of a piece, e.g. {line}");
            }
            None => writeln!(survivors, "{point:?}").unwrap(),
        }
    }
    let count = caught.iter().flatten().count();
    println!("{count} of {} mutants caught", points.len());
    assert!(survivors.is_empty(), "not caught:\n{survivors}");
}
