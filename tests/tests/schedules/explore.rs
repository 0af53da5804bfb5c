//! Schedules of pairs, triples and more operations.

use std::sync::Mutex;
use std::time::Instant;

use oxcow_tests::parallel;
use oxcow_tests::rng::Rng;
use oxcow_tests::schedules::case::{Case, Op};
use oxcow_tests::schedules::exec::Chooser;
use oxcow_tests::schedules::search::{Bounds, Figures, Found, Search, cases, parse};
use oxcow_tests::schedules::starts::StartKind;

/// Whether the long run is asked for.
fn long() -> bool {
    std::env::var("OXCOW_SCHEDULES").is_ok_and(|how| how == "long")
}

/// One run at a time: each uses all cores.
static ALONE: Mutex<()> = Mutex::new(());

/// Does `work` to every item on all cores and prints the figures.
fn conduct<T: Sync>(
    name: &str,
    items: &[T],
    work: impl Fn(&mut Search, &T) -> Result<(), Box<Found>> + Sync,
) -> Figures {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let began = Instant::now();
    let results = parallel::map(items, |item| {
        let mut search = Search::default();
        let found = work(&mut search, item).err();
        (search.figures, found)
    });
    let mut total = Figures::default();
    let mut wrong = Vec::new();
    for (figures, found) in results {
        total.add(&figures);
        wrong.extend(found.map(|found| found.to_string()));
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{name}: {} cases, {} schedules of {} steps on average in {seconds:.1} s: {:.0} a second",
        items.len(),
        total.schedules,
        total.steps / total.schedules.max(1),
        total.schedules as f64 / seconds
    );
    println!(
        "  a task dropped in {}, files judged {}, cases without a sample {}",
        total.dropped, total.judged, total.exhausted
    );
    for wrong in &wrong {
        println!("{wrong}");
    }
    assert!(
        wrong.is_empty(),
        "in {} cases something is wrong",
        wrong.len()
    );
    total
}

fn all_cases(count: usize) -> Vec<Case> {
    let starts = StartKind::ALL.into_iter();
    starts.flat_map(|start| cases(start, count)).collect()
}

/// All pairs, with up to two preemptions, and with a third by lot (all of them in the long run).
#[test]
fn pairs() {
    let bounds = Bounds {
        preemptions: 2,
        drops: false,
        sampled: if long() { u64::MAX } else { 1000 },
        judge_one_in: 64,
    };
    let figures = conduct("pairs", &all_cases(2), |search, case| {
        search.all(case, &bounds)
    });
    assert!(figures.schedules > 500_000);
}

/// All triples, with one preemption, and more by lot.
#[test]
fn triples() {
    let bounds = Bounds {
        preemptions: if long() { 2 } else { 1 },
        drops: false,
        sampled: if long() { 20_000 } else { 200 },
        judge_one_in: 64,
    };
    let figures = conduct("triples", &all_cases(3), |search, case| {
        search.all(case, &bounds)
    });
    assert!(figures.schedules > 200_000);
}

/// In all pairs a task is dropped at every step.
#[test]
fn dropped() {
    let bounds = Bounds {
        preemptions: u32::from(long()),
        drops: true,
        sampled: if long() { 20_000 } else { 300 },
        judge_one_in: 16,
    };
    let figures = conduct("pairs, one dropped", &all_cases(2), |search, case| {
        search.all(case, &bounds)
    });
    assert!(figures.dropped > 50_000);
}

/// Four to eight tasks at once.
#[test]
fn many_at_once() {
    let rounds = if long() { 200_000 } else { 400 };
    let seeds: Vec<u64> = (0..rounds).collect();
    conduct("four to eight by lot", &seeds, |search, seed| {
        let mut lot = Rng::new(*seed ^ 0x6f78_636f_7700);
        let start = *lot.pick(&StartKind::ALL);
        let fitting: Vec<Op> = Op::ALL.into_iter().filter(|op| op.fits(start)).collect();
        let count = 4 + lot.below(5);
        let case = Case {
            start,
            ops: (0..count).map(|_| *lot.pick(&fitting)).collect(),
            into_qcow2: lot.one_in(2),
        };
        for schedule in 0..25 {
            let one_in = 1 + lot.below(6);
            search.by_lot(&case, lot.next_u64(), one_in, schedule % 4 == 0)?;
        }
        Ok(())
    });
}

/// What `OXCOW_SCHEDULE` says, or a schedule that once went wrong: each was an error of the engine.
#[test]
fn again() {
    let known = [
        "Overlay TakeView,TakeView [18:1]",
        "Overlay CopyOnRead,SnapshotCreate [9:3] drops",
        "Overlay WriteFirstPart,SnapshotCreate [0:1,6:4] drops",
        "Overlay WriteFirstPart,Hydrate [0:1,28:4] drops",
        "Overlay WriteAcross,TakeFleece [6:1,8:1,12:1] drops",
        "Overlay WritePart,Hydrate,SnapshotCreate [0:1,1:4]",
        "Overlay CopyOnRead,CopyOnRead,TakeView [0:2,25:3,26:3]",
    ];
    let asked = std::env::var("OXCOW_SCHEDULE").ok();
    let all = match &asked {
        Some(one) => vec![one.as_str()],
        None => known.to_vec(),
    };
    for text in all {
        let (case, schedule, drops) = parse(text).expect("a case and a schedule");
        let result = Search::default().one(&case, Chooser::Given(&schedule), drops, true);
        assert!(result.is_ok(), "{}", result.unwrap_err());
    }
}
