//! The power fails while the command line works: states rebuilt from its system calls (writes that no flush
//! covered lost, reordered, torn; any length), each judged by native qemu-img check and by what it must hold.
//!
//! The same harness over the native tools is the control: it must find what they get wrong.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::time::Instant;

use oxcow_tests::cut::judge::{self, Verdict};
use oxcow_tests::cut::state::State;
use oxcow_tests::ours::Build;
use oxcow_tests::power::cut::{Found, Program, run_scenario};
use oxcow_tests::power::scenario::{self, Scenario};
use oxcow_tests::power::states::Moment;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::rng::Rng;
use oxcow_tests::scripts::stock::Stock;
use oxcow_tests::scripts::{IMAGE, place};
use oxcow_tests::{oracle, parallel, strace};

/// States of each scenario that are judged.
const STATES: usize = 150;
/// The same for the control.
const CONTROL_STATES: usize = 25;
/// The same while an image is created.
const CREATE_STATES: usize = 100;

/// All scenarios, those of `OXCOW_POWER` (a part of their names) if it is set.
fn scenarios(stock: &Stock) -> Vec<Scenario> {
    let mut scenarios = scenario::all(stock);
    if let Ok(part) = std::env::var("OXCOW_POWER") {
        scenarios.retain(|scenario| scenario.name.contains(&part));
    }
    scenarios
}

/// What was found with one command.
#[derive(Default)]
struct Row {
    states: usize,
    wrong: usize,
    /// Those of them that are wrong only because clusters are leaked.
    leaks: usize,
}

/// What was found, by the command.
fn by_command(scenarios: &[Scenario], found: &[Found]) -> BTreeMap<String, Row> {
    let mut table = BTreeMap::new();
    for (scenario, found) in scenarios.iter().zip(found) {
        let command = scenario.name.split(' ').next().unwrap_or_default();
        let row: &mut Row = table.entry(command.to_owned()).or_default();
        row.states += found.states;
        row.wrong += found.violations.len();
        let leaks = found.violations.iter();
        row.leaks += leaks
            .filter(|what| what.contains("qemu-img check gives 3"))
            .count();
    }
    table
}

/// Prints it.
fn show(table: &BTreeMap<String, Row>) {
    for (command, row) in table {
        let Row {
            states,
            wrong,
            leaks,
        } = row;
        println!(
            "  {command}: {wrong} of {states} states are wrong, {leaks} of them only by leaks"
        );
    }
}

#[test]
fn ours_leaves_nothing_that_is_not_old_or_new() {
    if !oracle::available() || !strace::available() {
        return;
    }
    let start = Instant::now();
    let stock = Stock::new();
    let scenarios = scenarios(&stock);
    let program = Program::Ours(Build::Wasm);
    let found = parallel::map(&scenarios, |scenario| {
        run_scenario(scenario, program, &stock, STATES)
    });
    let states = found.iter().map(|found| found.states).sum();
    println!(
        "power cuts of the WASI build in {:.0} s; {} states were used further",
        start.elapsed().as_secs_f64(),
        found.iter().map(|found| found.lived_on).sum::<usize>()
    );
    show(&by_command(&scenarios, &found));
    let failures: Vec<Failure> = scenarios
        .iter()
        .zip(&found)
        .flat_map(|(scenario, found)| {
            found.violations.iter().map(|what| Failure {
                case: scenario.name.clone(),
                doing: format!(
                    "OXCOW_POWER='{}' cargo test -p oxcow-tests --test crossing powercut::ours",
                    scenario.name
                ),
                what: what.clone(),
            })
        })
        .collect();
    finish("powercut", states, &failures);
}

/// What a cut may leave while `args` create an image where no file was: none that could be taken for an image, or
/// all of it. Returns how many states were judged, and what is wrong with some.
fn while_created(args: &str) -> (usize, Vec<String>) {
    let scratch = place::scratch("created");
    let dir = scratch.path();
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    let command = Build::Wasm.command("oxcow", dir, None, &args);
    let (outcome, trace) = strace::trace(&command, dir);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let new = State::read(&dir.join(IMAGE)).expect("it can be read");
    let mut rng = Rng::new(args.len() as u64);
    let mut seen = HashSet::new();
    let mut wrong = Vec::new();
    let attempts = (0..=trace.len()).cycle().take(CREATE_STATES * 4);
    for calls in attempts {
        let moment = Moment::after(&[], IMAGE, &trace, calls);
        let state = moment.state(&mut rng);
        let at_end = calls == trace.len();
        if seen.len() == CREATE_STATES || !seen.insert((state.clone(), at_end)) {
            continue;
        }
        fs::write(dir.join(IMAGE), &state).expect("it can be written");
        let is_image = state.starts_with(b"QFI\xfb");
        let judged = match judge::check(dir, IMAGE) {
            Ok(Verdict::CLEAN) => State::read(&dir.join(IMAGE))
                .and_then(|found| found.difference(&new).map_or(Ok(()), Err)),
            Ok(found) => Err(format!("{found:?}")),
            Err(_) if !is_image && !at_end => Ok(()),
            Err(what) => Err(what),
        };
        if let Err(what) = judged {
            wrong.push(format!("after {calls} of {} calls: {what}", trace.len()));
        }
    }
    (seen.len(), wrong)
}

#[test]
fn ours_creates_all_of_an_image_or_none() {
    if !oracle::available() || !strace::available() {
        return;
    }
    let cases = [
        format!("create -q -f qcow2 -o cluster_size=512 {IMAGE} 256k"),
        format!("create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on {IMAGE} 1M"),
        format!("create -q -f qcow2 -o cluster_size=4k,preallocation=metadata {IMAGE} 256k"),
        format!(
            "create -q -f qcow2 -o cluster_size=512,preallocation=full,refcount_bits=64 {IMAGE} 64k"
        ),
    ];
    let found = parallel::map(&cases, |args| while_created(args));
    let states = found.iter().map(|(states, _)| states).sum();
    let failures: Vec<Failure> = cases
        .iter()
        .zip(found)
        .flat_map(|(args, (states, wrong))| {
            println!("{args}: {} of {states} states are wrong", wrong.len());
            wrong.into_iter().map(|what| Failure {
                case: "create".to_owned(),
                doing: args.clone(),
                what,
            })
        })
        .collect();
    finish("powercut-create", states, &failures);
}

#[test]
fn the_same_harness_finds_what_the_native_tools_get_wrong() {
    if !oracle::available() || !strace::available() {
        return;
    }
    let start = Instant::now();
    let stock = Stock::new();
    let scenarios = scenarios(&stock);
    let found = parallel::map(&scenarios, |scenario| {
        run_scenario(scenario, Program::Native, &stock, CONTROL_STATES)
    });
    println!(
        "power cuts of the native tools in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    let table = by_command(&scenarios, &found);
    show(&table);
    if std::env::var("OXCOW_POWER").is_err() {
        let apply = &table["apply"];
        assert!(
            apply.wrong > apply.leaks,
            "the harness finds nothing at all"
        );
    }
}
