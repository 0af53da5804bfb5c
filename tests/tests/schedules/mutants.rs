//! The ordering points that matter when things happen at once are knocked out one after the other, and each is
//! missed. The others are the crash simulator's.

use oxcow::image::ordering::{OrderingPoint, knockout};
use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::overlap::GuestOp;
use oxcow_tests::crash::starts::StartKind;
use oxcow_tests::mutants::{Suite, suite};
use oxcow_tests::parallel;
use oxcow_tests::schedules::case::{Case, Op};
use oxcow_tests::schedules::copies::{Change, cut};
use oxcow_tests::schedules::hydrating::at_every_moment;
use oxcow_tests::schedules::search::{Bounds, Search};
use oxcow_tests::schedules::starts as schedules;

use crate::cuts::hydrating_beside;

/// A schedule in which something goes wrong without `point`.
fn explored(point: OrderingPoint) -> Option<String> {
    let views = [Op::ReadView, Op::ReadFleece, Op::TakeFleece, Op::Read];
    let fills = [Op::Hydrate, Op::HydrateAtOnce, Op::CopyOnRead];
    let changes = [
        Op::WritePart,
        Op::WriteFirstPart,
        Op::WriteAcross,
        Op::Zeroes,
    ];
    let bounds = Bounds {
        preemptions: 2,
        drops: false,
        steps: 0,
        judge_one_in: 8,
    };
    let others = views.into_iter().chain(fills);
    let mut pairs = others.flat_map(|other| changes.map(|change| vec![other, change]));
    knockout::without(point, || {
        pairs.find_map(|ops| {
            let case = Case {
                start: schedules::StartKind::Overlay,
                ops,
                into_qcow2: false,
            };
            let found = Search::default().all(&case, &bounds);
            found.err().map(|found| found.to_string())
        })
    })
}

/// A power cut after which something is wrong without `point`.
fn cut_off(point: OrderingPoint) -> Option<String> {
    knockout::without(point, || {
        let mut views = Change::ALL.into_iter();
        let view = views.find_map(|change| cut(StartKind::Mixed, &[change, Change::Flush]).err());
        view.or_else(|| at_every_moment(&Bench::new(StartKind::Backing), true).err())
    })
}

#[test]
fn every_mutant_of_what_overlaps_is_caught() {
    let mine = |point: &OrderingPoint| suite(*point) == Suite::Schedules;
    let points: Vec<OrderingPoint> = OrderingPoint::ALL.iter().copied().filter(mine).collect();
    let caught = parallel::map(&points, |point| {
        explored(*point).or_else(|| cut_off(*point))
    });
    for (point, caught) in points.iter().zip(&caught) {
        match caught {
            Some(example) => println!("{point:?}: {}", example.replace('\n', " ")),
            None => println!("{point:?}: not caught"),
        }
    }
    assert!(caught.iter().all(Option::is_some), "a mutant survives");
}

/// The error of 2019: what is linked while the first flush runs is published without being covered by it.
#[test]
fn hydration_misses_the_freeze() {
    let caught = parallel::map(&GuestOp::ALL, |op| {
        knockout::without(OrderingPoint::FreezeBeforeFlush, || {
            hydrating_beside(*op, 60)
        })
    });
    let caught = caught.into_iter().flatten().next();
    println!(
        "FreezeBeforeFlush: {}",
        caught.as_deref().unwrap_or("not caught")
    );
    assert!(caught.is_some());
}
