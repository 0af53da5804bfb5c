//! Counts violating images, looking at each one by itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::bench::Bench;
use super::engine::Engine;
use super::run::run;
use super::script::Op;
use super::starts::StartKind;
use super::states::Choice;
use crate::rng::Rng;

/// The most images of one point that are looked at; of more, so many are drawn by lot.
const MOST_IMAGES: u64 = 1 << 12;

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Images looked at.
    pub images: u64,
    /// Images that violate something.
    pub violating: u64,
    /// The rules that are violated, and by how many images.
    pub rules: BTreeMap<&'static str, u64>,
    /// One of the violations.
    pub example: Option<String>,
}

/// Counts over a script, every image that a crash may leave at every point. Leaked clusters count where `leaks`
/// is set and the engine's mechanism should leave none.
///
/// # Errors
///
/// Where the engine does not do what it is asked for.
pub fn count<E: Engine>(kind: StartKind, ops: &[Op], leaks: bool) -> Result<Count, String> {
    let bench = Bench::new(kind);
    bench.tolerate();
    let counted = Rc::new(RefCell::new(Count::default()));
    let counts = counted.clone();
    bench.on_new_point(move |bench, _| {
        let counts = &mut *counts.borrow_mut();
        let files = bench.machine.files();
        let slots = files.iter().flat_map(|file| file.slots());
        let versions = slots.map(|slot| slot.options().len() as u64);
        let all = versions.fold(1_u64, u64::saturating_mul);
        let mut rng = Rng::new(all);
        let mut choice = Choice::first(&files);
        for _ in 0..MOST_IMAGES {
            if all > MOST_IMAGES {
                choice = Choice::random(&files, &mut rng);
            }
            counts.images += 1;
            let most_leaked = bench.most_leaked().filter(|_| leaks);
            let model = bench.model.borrow();
            let judged = bench.judge_these(&choice.make(&files), &model, most_leaked);
            if let Err(violation) = judged {
                counts.violating += 1;
                *counts.rules.entry(violation.rule).or_default() += 1;
                counts.example.get_or_insert_with(|| violation.to_string());
            }
            if all <= MOST_IMAGES && !choice.advance(&files) {
                break;
            }
        }
    });
    run::<E>(&bench, ops, 0).map_err(|found| found.to_string())?;
    let counted = counted.borrow().clone();
    Ok(counted)
}
