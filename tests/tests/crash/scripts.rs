//! Every script of at most two operations from every start state, cut at every moment; and what comes after.

use std::time::Instant;

use oxcow_tests::crash::campaign::{Campaign, Outcome};
use oxcow_tests::crash::engine::Oxcow;
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
