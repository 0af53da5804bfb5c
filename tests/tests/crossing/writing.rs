//! Random scripts of everything that changes an image, by ours and by the native tools: the same disk after
//! every step, no damage and no leak in ours, either reads and goes on with what the other wrote, and every
//! snapshot keeps what it had.
//!
//! `OXCOW_SCRIPTS=17..18 cargo test -p oxcow-tests --test crossing writing::library -- --nocapture` runs script 17 alone;
//! `0..2000` runs many more than are run without it.

use std::ops::Range;
use std::time::Instant;

use oxcow_tests::ours::Build;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::scripts::run::{Side, Tally, run};
use oxcow_tests::scripts::script::{STEPS, Script};
use oxcow_tests::scripts::stock::Stock;
use oxcow_tests::{oracle, parallel};

/// The seeds to run: `default`, unless the variable OXCOW_SCRIPTS says otherwise.
fn seeds(default: Range<u64>) -> Vec<u64> {
    let Ok(given) = std::env::var("OXCOW_SCRIPTS") else {
        return default.collect();
    };
    let range = given.split_once("..").and_then(|(start, end)| {
        let range: Range<u64> = start.parse().ok()?..end.parse().ok()?;
        Some(range)
    });
    range.expect("OXCOW_SCRIPTS is like 17..18").collect()
}

fn run_all(test: &str, side: Side, default: Range<u64>) {
    if !oracle::available() {
        return;
    }
    let stock = Stock::new();
    let seeds = seeds(default);
    let start = Instant::now();
    let results = parallel::map(&seeds, |&seed| {
        let script = Script::random(seed, &stock.bases);
        run(&script, &stock, side).map_err(|what| Failure {
            case: format!("script {seed}"),
            doing: format!(
                "OXCOW_SCRIPTS={seed}..{} cargo test -p oxcow-tests --test crossing writing::{test}\n{script}",
                seed + 1
            ),
            what,
        })
    });
    let mut tally = Tally::default();
    results.iter().flatten().for_each(|one| tally.add(one));
    let failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
    println!(
        "{test}: {} scripts of {STEPS} steps in {:.0} s: {} steps done by both, {} refused by both; {} checks by \
         qemu-img, {} times both went on with the other's image, {} snapshots at the end",
        seeds.len(),
        start.elapsed().as_secs_f64(),
        tally.steps,
        tally.refusals,
        tally.native_checks,
        tally.swaps,
        tally.snapshots,
    );
    for (difference, count) in &tally.differences {
        println!("  {count} times: {difference}");
    }
    finish(test, seeds.len(), &failures);
}

#[test]
fn library() {
    run_all("library", Side::Library, 0..500);
}

#[test]
fn program() {
    run_all("program", Side::Program(Build::Wasm), 10_000..10_030);
}
