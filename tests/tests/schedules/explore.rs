//! Schedules of pairs, triples and more operations.

use std::sync::Mutex;
use std::time::{Duration, Instant};

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

/// How often the long run tells how far it is.
const TELL: Duration = Duration::from_secs(60);

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
    let so_far = Mutex::new((Figures::default(), 0, began));
    let results = parallel::map(items, |item| {
        let mut search = Search::default();
        let found = work(&mut search, item).err();
        let mut so_far = so_far.lock().expect("nobody panics while telling");
        so_far.0.add(&search.figures);
        so_far.1 += 1;
        if long() && so_far.2.elapsed() > TELL {
            so_far.2 = Instant::now();
            print!("{} of ", so_far.1);
            tell(name, items.len(), &so_far.0, began);
        }
        found
    });
    let (total, ..) = so_far.into_inner().expect("nobody panics while telling");
    tell(name, items.len(), &total, began);
    let wrong: Vec<String> = results
        .into_iter()
        .flatten()
        .map(|found| found.to_string())
        .collect();
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

/// Prints what was run since `began`.
fn tell(name: &str, cases: usize, figures: &Figures, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let Figures {
        schedules: run,
        joined,
        equivalent,
        steps,
        dropped,
        judged,
        complete,
        exhausted,
    } = figures;
    println!(
        "{cases} cases, {name}: {run} schedules run, of {} steps on average, in {seconds:.1} s: {:.0} a second; \
         {equivalent} more are equivalent",
        steps / run.max(&1),
        *run as f64 / seconds
    );
    println!(
        "  {joined} ended in what another came to, a task dropped in {dropped}, files judged {judged}; \
         cases whose schedules are all covered: {exhausted}, up to 0, 1, 2, ... preemptions: {complete:?}"
    );
}

fn all_cases(count: usize) -> Vec<Case> {
    let starts = StartKind::ALL.into_iter();
    starts.flat_map(|start| cases(start, count)).collect()
}

/// All pairs: with up to two preemptions, and with more while they take not too many steps.
#[test]
fn pairs() {
    let bounds = Bounds {
        preemptions: 2,
        drops: false,
        steps: if long() { 5_000_000 } else { 300_000 },
        judge_one_in: 64,
    };
    let figures = conduct("pairs", &all_cases(2), |search, case| {
        search.all(case, &bounds)
    });
    assert!(figures.schedules + figures.equivalent > 9_000_000);
}

/// All triples: with one preemption, and with more while they take not too many steps.
#[test]
fn triples() {
    let bounds = Bounds {
        preemptions: 1,
        drops: false,
        steps: if long() { 400_000 } else { 4_000 },
        judge_one_in: 64,
    };
    let figures = conduct("triples", &all_cases(3), |search, case| {
        search.all(case, &bounds)
    });
    assert!(figures.schedules > 600_000);
}

/// In all pairs a task is dropped at every step.
#[test]
fn dropped() {
    let bounds = Bounds {
        preemptions: 0,
        drops: true,
        steps: if long() { 3_000_000 } else { 6_000 },
        judge_one_in: 16,
    };
    let figures = conduct("pairs, one dropped", &all_cases(2), |search, case| {
        search.all(case, &bounds)
    });
    assert!(figures.dropped > 100_000);
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
