//! The judge asks one question per sector instead of looking at every image. Here it is compared with looking
//! at every image, at points where all is well and at points where it is not.

use std::cell::Cell;
use std::rc::Rc;

use oxcow::image::ordering::{OrderingPoint, knockout};
use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::run::run;
use oxcow_tests::crash::script::Op;
use oxcow_tests::crash::starts::StartKind;
use oxcow_tests::crash::states::Choice;
use oxcow_tests::rng::Rng;

/// Points with more images are left to the factored judge.
const MOST_IMAGES: u128 = 2_000;

#[derive(Default)]
struct Compared {
    good: Cell<u64>,
    bad: Cell<u64>,
    images: Cell<u64>,
}

/// Compares the verdict of every small point with the verdicts on its images, one by one.
fn compare(bench: &Bench, compared: &Rc<Compared>) {
    let compared = compared.clone();
    let alone = bench.sibling();
    bench.on_new_point(move |bench, verdict| {
        let files = bench.machine.files();
        let slots = files.iter().flat_map(|file| file.slots());
        let images = slots.fold(1_u128, |n, slot| {
            n.saturating_mul(slot.options().len() as u128)
        });
        if images > MOST_IMAGES {
            return;
        }
        *alone.model.borrow_mut() = bench.model.borrow().clone();
        let mut choice = Choice::first(&files);
        let (mut bad, mut count) = (None, 0);
        loop {
            count += 1;
            let judged = alone.judge_these(
                &choice.make(&files),
                &bench.model.borrow(),
                bench.most_leaked(),
            );
            if let Err(violation) = judged {
                bad = Some(violation);
                break;
            }
            if !choice.advance(&files) {
                break;
            }
        }
        match (verdict, &bad) {
            (Ok(tally), None) => {
                assert!(tally.images <= count, "{tally:?} counts more than {count}");
                compared.good.set(compared.good.get() + 1);
            }
            (Err(_), Some(_)) => compared.bad.set(compared.bad.get() + 1),
            (verdict, bad) => panic!("all at once: {verdict:?}\none by one: {bad:?} of {count}"),
        }
        compared.images.set(compared.images.get() + count as u64);
    });
}

fn all_scripts(kind: StartKind, compared: &Rc<Compared>, rng: &mut Rng, one_in: u64) {
    let bench = Bench::new(kind);
    compare(&bench, compared);
    for first in Op::ALL {
        for second in Op::ALL {
            if rng.one_in(one_in) {
                // What is found wrong is as good as what is not: only the two verdicts count.
                let _ = run::<Oxcow>(&bench, &[first, second], 0);
            }
        }
    }
}

#[test]
fn judging_all_images_at_once_is_judging_them_one_by_one() {
    let compared = Rc::new(Compared::default());
    let mut rng = Rng::new(3);
    for kind in StartKind::ALL {
        all_scripts(kind, &compared, &mut rng, 12);
    }
    assert!(compared.good.get() > 3_000, "{}", compared.good.get());
    for point in OrderingPoint::ALL {
        knockout::without(*point, || {
            for kind in [
                StartKind::Mixed,
                StartKind::TwoSnapshots,
                StartKind::Compressed,
            ] {
                all_scripts(kind, &compared, &mut rng, 24);
            }
        });
    }
    assert!(compared.bad.get() > 200, "{}", compared.bad.get());
    println!(
        "{} good and {} bad points, {} images judged one by one: the same verdicts",
        compared.good.get(),
        compared.bad.get(),
        compared.images.get()
    );
}
