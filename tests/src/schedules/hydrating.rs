//! A clone that fills itself, killed and cut at every moment, and filled to its end afterwards.

use std::rc::Rc;

use oxcow::hydrate::{End, Hydration};
use oxcow::{GuestOffset, Image, ZeroMode};

use crate::crash::bench::{Bench, Origin};
use crate::crash::disk::SimDisk;
use crate::crash::engine::{SimClock, open_image, small_hydration};
use crate::crash::exec::now;
use crate::crash::fault::{Fault, Plan};
use crate::crash::machine::{FileId, SimFile};
use crate::crash::model::World;
use crate::crash::script::{Meaning, Request, Step, Steps};
use crate::crash::states::{Choice, as_seen};
use crate::rng::Rng;
use oxcow::storage::AnyStorage;

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Moments at which it was killed.
    pub kills: u64,
    /// Images that were filled to their end after that.
    pub resumed: u64,
    /// Crash states that were judged on the way.
    pub states: u64,
    /// The most bytes that were fetched again.
    pub again: u64,
}

/// Bytes that may have to be fetched again: what was to be committed next, and what was under way.
#[must_use]
pub fn window() -> u64 {
    let options = small_hydration();
    options.commit_bytes + options.threshold as u64 * options.batch_bytes
}

/// The guest's writes in between, from inside clusters to whole ones, in what is fetched early and late.
fn guest(steps: &mut Steps<'_>, bench: &Bench) -> Vec<Step> {
    let world = bench.model.borrow().world().clone();
    let cluster = bench.start.geometry.cluster_bytes;
    let mut all = steps.write(&world, 30 * cluster, cluster);
    all.extend(steps.write(&world, 100 * cluster, 3 * cluster));
    all.extend(steps.zeroes(&world, 70 * cluster, 2 * cluster, true));
    all.extend(steps.discard(&world, 110 * cluster, cluster));
    all.extend(steps.write(&world, 5 * cluster, cluster));
    all
}

async fn ask(image: &Image<AnyStorage>, step: &Step) -> oxcow::Result<()> {
    match &step.request {
        Request::Write(at, bytes) => image.write_at(GuestOffset(*at), bytes).await,
        Request::Zeroes(at, length, _) => {
            let mode = ZeroMode::Unmap;
            image.write_zeroes(GuestOffset(*at), *length, mode).await
        }
        Request::Discard(at, length) => image.discard(GuestOffset(*at), *length).await,
        other => unreachable!("{other:?} is not among them"),
    }
}

/// Fills the clone, while the guest writes as well where `writes`. `None` where it was killed.
fn fill(bench: &Bench, writes: bool) -> Option<Result<(), String>> {
    let word = |error: oxcow::Error| format!("{error:#}");
    let disk = SimDisk::new(bench.machine.clone(), FileId::Image);
    let image = match now(open_image(&disk))? {
        Ok(image) => image,
        Err(error) => return Some(Err(word(error))),
    };
    let hydration = now(Hydration::new(&image, SimClock, small_hydration()))?;
    let hydration = match hydration {
        Ok(hydration) => hydration,
        Err(error) => return Some(Err(word(error))),
    };
    let mut steps = Steps::new(&bench.start, &bench.contents);
    let steps = if writes {
        guest(&mut steps, bench)
    } else {
        Vec::new()
    };
    let guest = async {
        for step in &steps {
            // Some batches later.
            for _ in 0..3 {
                oxcow::hydrate::Clock::sleep(&SimClock, std::time::Duration::ZERO).await;
            }
            let Meaning::Changes(changes) = &step.meaning else {
                continue;
            };
            let ticket = bench.model.borrow_mut().issue(changes);
            ask(&image, step).await?;
            bench.model.borrow_mut().complete(ticket);
            bench.look();
        }
        Ok(())
    };
    let both = futures_util::future::try_join(hydration.run(), guest);
    Some(match now(both)? {
        Ok((End::Complete, ())) => Ok(()),
        Ok((end, ())) => Err(format!("it ends with {end:?}")),
        Err(error) => Err(word(error)),
    })
}

/// Whether the image of the bench is whole without its source, and reads as `world`.
fn check_whole(bench: &Bench, world: &World) -> Result<(), String> {
    let bytes = bench.machine.image_bytes(FileId::Image);
    if bytes[8..16] != [0; 8] {
        return Err("the header still names the source".into());
    }
    let files = as_seen(&bench.machine.files());
    let found = bench.extract(&files).map_err(|wrong| wrong.to_string())?;
    let (found, expected) = (found.values.only(), world.values.latest_all());
    match (0..expected.len()).find(|sector| found[*sector] != expected[*sector]) {
        None => Ok(()),
        Some(sector) => Err(format!("sector {sector} is not what it was")),
    }
}

/// Kills the filling at its change number `at`; what is left of the files, by a kill and by power cuts.
fn killed(bench: &Bench, at: u64, writes: bool, rng: &mut Rng) -> Option<Vec<[SimFile; 3]>> {
    bench.begin();
    bench.watch(false);
    bench.machine.set_plan(Plan::new(Fault::Kill, at));
    if fill(bench, writes).is_some() {
        return None;
    }
    let files = bench.machine.files();
    let mut left = vec![as_seen(&files), Choice::durable(&files).make(&files)];
    left.extend((0..4).map(|_| Choice::random(&files, rng).make(&files)));
    Some(left)
}

/// Fills a clone with and without a guest that writes: judges what every power cut leaves, kills it at every
/// change, and fills what is left to its end.
///
/// # Errors
///
/// What is wrong.
pub fn at_every_moment(bench: &Rc<Bench>, writes: bool) -> Result<Figures, String> {
    let mut figures = Figures::default();
    bench.begin();
    bench.set_moment("hydrating");
    let filled = fill(bench, writes).unwrap_or_else(|| Err("it hangs".into()));
    bench.look();
    bench
        .result("oxcow", "hydrating")
        .map_err(|found| found.to_string())?;
    filled?;
    let world = bench.model.borrow().world().clone();
    check_whole(bench, &world)?;
    let needed = bench.machine.counts().fetched;
    figures.states = bench.take_figures().states;

    let mut rng = Rng::new(5);
    for at in 0.. {
        let Some(left) = killed(bench, at, writes, &mut rng) else {
            break;
        };
        figures.kills += 1;
        let first = bench.machine.counts().fetched;
        for (index, files) in left.into_iter().enumerate() {
            let state = |what: String| format!("killed at change {at}, state {index}: {what}");
            let legal = bench.judge_these(&files, &bench.model.borrow(), None);
            legal.map_err(|violation| state(violation.to_string()))?;
            let world = bench
                .extract(&files)
                .map_err(|wrong| state(wrong.to_string()))?;
            let resumed = bench.sibling();
            resumed.set_origin(Origin {
                files,
                world: world.clone(),
                leaked: 0,
                kept: usize::MAX,
            });
            resumed.begin();
            resumed.watch(false);
            let image = resumed.machine.image_bytes(FileId::Image);
            if image[8..16] != [0; 8] {
                let filled = fill(&resumed, false).unwrap_or_else(|| Err("it hangs".into()));
                filled.map_err(&state)?;
            }
            figures.resumed += 1;
            check_whole(&resumed, &world).map_err(&state)?;
            if !writes {
                let again = (first + resumed.machine.counts().fetched).saturating_sub(needed);
                figures.again = figures.again.max(again);
            }
        }
    }
    Ok(figures)
}
