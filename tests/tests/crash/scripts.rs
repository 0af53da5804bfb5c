//! Every script of at most two operations from every start state, cut at every moment; and what comes after.

use std::rc::Rc;
use std::time::Instant;

use oxcow::image::ordering::{OrderingPoint, knockout};
use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::campaign::{Campaign, Outcome};
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::fault::Fault;
use oxcow_tests::crash::faults::Faults;
use oxcow_tests::crash::run::run;
use oxcow_tests::crash::script::Op;
use oxcow_tests::crash::starts::StartKind;
use oxcow_tests::parallel;

/// Does a campaign on all cores and prints its figures.
fn conduct(name: &str, campaign: &Campaign) -> Outcome {
    let began = Instant::now();
    let pieces = campaign.pieces();
    let outcomes = parallel::map(&pieces, |piece| campaign.run::<Oxcow>(*piece));
    let mut total = Outcome::default();
    outcomes.into_iter().for_each(|outcome| total.add(outcome));
    let seconds = began.elapsed().as_secs_f64();
    let (scripts, faults) = (total.scripts, total.faults);
    println!("{name}: {} scripts, {seconds:.1} s", scripts.scripts);
    println!(
        "  {} points, {} of them known",
        scripts.points, scripts.known
    );
    println!(
        "  crash states: {} (at most 65,536 counted a point), {} of them differ in metadata",
        scripts.states, scripts.metadata
    );
    println!(
        "  mappings walked: {}, points sampled: {}",
        scripts.choices, scripts.sampled
    );
    println!("  used on after a power cut: {}", total.continued);
    println!(
        "  used on after a kill or a failing storage: {}, judged at {} points",
        faults.continued, faults.points
    );
    for example in total.found.values() {
        println!("{example}");
    }
    assert_eq!(total.violating, 0, "scripts violate an invariant");
    total
}

#[test]
fn scripts_of_length_two() {
    let campaign = Campaign {
        continue_one_in: 4,
        ..Campaign::of_length(2)
    };
    let outcome = conduct("scripts of length <= 2", &campaign);
    assert!(outcome.scripts.states >= 10_000_000);
}

#[test]
fn kills() {
    let campaign = Campaign {
        kill_one_in: 3,
        ..Campaign::of_length(2)
    };
    conduct("kills", &campaign);
}

#[test]
fn failing_storages() {
    let campaign = Campaign {
        fail_one_in: 12,
        ..Campaign::of_length(2)
    };
    conduct("failing storages", &campaign);
}

/// Found by the long run: a file that ended within a sector, which a later write goes over: the sector is there, the
/// file's new length is not.
#[test]
fn no_file_ends_within_a_sector_of_the_guests() {
    let bench: Rc<Bench> = Bench::new(StartKind::Empty);
    let script = [Op::WriteBytes, Op::GrowLittle, Op::WriteCluster];
    let result = run::<Oxcow>(&bench, &script, 0);
    assert!(result.is_ok(), "{}", result.unwrap_err());
    let bench: Rc<Bench> = Bench::new(StartKind::Empty);
    let without = knockout::without(OrderingPoint::WholeLastSector, || {
        run::<Oxcow>(&bench, &script, 0)
    });
    let found = without.unwrap_err().to_string();
    assert!(found.contains("cut off after 150 bytes"), "{found}");
}

/// Found by the long run: the write that comes last goes over a cluster in which the file ends within a sector,
/// fails after a part of it has landed, and what is cut off then was half a sector of the guest's.
#[test]
fn a_write_that_failed_half_way_leaves_whole_sectors() {
    let bench: Rc<Bench> = Bench::new(StartKind::ExtendedL2Snapshot);
    let script = [Op::ZeroesUnmap, Op::WriteBytes, Op::WriteHole];
    for at in 0..6 {
        let result = Faults::default().one::<Oxcow>(&bench, &script, Fault::ShortWrite, at);
        assert!(result.is_ok(), "{}", result.unwrap_err());
    }
}

/// The bitmaps of an image need not know what a process that was killed had cut off the disk before.
#[test]
fn what_a_killed_process_has_cut_off_is_not_looked_for() {
    let bench: Rc<Bench> = Bench::new(StartKind::Autoclear);
    let script = [Op::Shrink, Op::WriteBytes, Op::GrowTable];
    let result = Faults::default().one::<Oxcow>(&bench, &script, Fault::Kill, 20);
    assert!(result.is_ok(), "{}", result.unwrap_err());
}

/// Found by the long run: the second snapshot's tables were to stand where the refcounts came from.
#[test]
fn what_is_brought_home_has_places_of_its_own() {
    for first in [Op::Create, Op::CreateWithState] {
        for second in [Op::Create, Op::DeleteFirst, Op::Apply] {
            for start in [StartKind::Empty, StartKind::Mixed, StartKind::Snapshot] {
                let bench: Rc<Bench> = Bench::new(start);
                let result = run::<Oxcow>(&bench, &[first, second, Op::Settle, Op::Rewrite], 0);
                assert!(result.is_ok(), "{}", result.unwrap_err());
            }
        }
    }
}

/// What lies behind the disk is a part of every snapshot.
#[test]
fn the_state_of_a_virtual_machine_is_judged_as_the_disk_is() {
    let script = [Op::WriteState, Op::Create, Op::WriteState, Op::Apply];
    for start in [StartKind::Empty, StartKind::LargerClusters] {
        let bench: Rc<Bench> = Bench::new(start);
        let result = run::<Oxcow>(&bench, &script, 0);
        assert!(result.is_ok(), "{}", result.unwrap_err());
    }
    let bench: Rc<Bench> = Bench::new(StartKind::Empty);
    let without = knockout::without(OrderingPoint::CopyShared, || {
        run::<Oxcow>(&bench, &script, 0)
    });
    let found = without.unwrap_err().to_string();
    assert!(
        found.contains("WriteState") && found.contains("S1"),
        "{found}"
    );
}
