//! Bitmaps made, merged, cleared, switched and dropped by the library, and by qemu-img: the same bits at the end.

use oxcow::storage::AnyStorage;
use oxcow::{GuestOffset, Image};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::parallel;
use oxcow_tests::rng::Rng;
use oxcow_tests::scripts::storage::block_on;

use super::image::{IMAGE, bytes_of, contents_of, made, native, open_bytes, qemu_io};
use super::stored::{self, Stored};

/// How many scripts are run.
const SCRIPTS: usize = 60;
/// The bitmaps that there are at first, with their granularities: finer and coarser than one another.
const AT_FIRST: &[(&str, &str)] = &[("fine", "512"), ("middle", "64k"), ("coarse", "1M")];
const NAMES: &[&str] = &["fine", "middle", "coarse", "new"];

/// One step.
#[derive(Clone, Copy, Debug)]
enum Action {
    Add(&'static str, u64),
    Remove(&'static str),
    Clear(&'static str),
    Enable(&'static str, bool),
    Merge(&'static str, &'static str),
    Write(u64, u64),
}

impl Action {
    fn random(rng: &mut Rng) -> Self {
        let (name, other) = (*rng.pick(NAMES), *rng.pick(NAMES));
        match rng.below(8) {
            0 => Self::Add(name, 512 << (rng.below(12))),
            1 => Self::Remove(name),
            2 => Self::Clear(name),
            3 => Self::Enable(name, rng.one_in(2)),
            4 | 5 => Self::Write(rng.below(2900) * 1024, 1 + rng.below(100_000)),
            _ => Self::Merge(name, other),
        }
    }
}

async fn act(image: &Image<AnyStorage>, action: Action) -> oxcow::Result<()> {
    let same: Option<&Image<AnyStorage>> = None;
    match action {
        Action::Add(name, granularity) => image.add_bitmap(name, Some(granularity), true).await,
        Action::Remove(name) => image.remove_bitmap(name).await,
        Action::Clear(name) => image.clear_bitmap(name).await,
        Action::Enable(name, enabled) => image.enable_bitmap(name, enabled).await,
        Action::Merge(name, other) => image.merge_bitmap(name, same, other).await,
        Action::Write(at, length) => {
            let data = vec![7; length as usize];
            image.write_at(GuestOffset(at), &data).await
        }
    }
}

/// The same by native tools; whether it could be done.
fn natively(dir: &std::path::Path, action: Action) -> bool {
    let bitmap = |options: &str, name: &str| {
        native(Tool::Img, dir, &format!("bitmap {options} {IMAGE} {name}")).is_ok()
    };
    match action {
        Action::Add(name, granularity) => bitmap(&format!("--add -g {granularity}"), name),
        Action::Remove(name) => bitmap("--remove", name),
        Action::Clear(name) => bitmap("--clear", name),
        Action::Enable(name, true) => bitmap("--enable", name),
        Action::Enable(name, false) => bitmap("--disable", name),
        Action::Merge(name, other) => bitmap(&format!("--merge {other}"), name),
        Action::Write(at, length) => {
            qemu_io(dir, &[format!("write -q -P 7 {at} {length}")]).is_ok()
        }
    }
}

/// By name: which one stands first is nobody's business.
fn sorted(mut bitmaps: Vec<Stored>) -> Vec<Stored> {
    bitmaps.sort_by(|a, b| a.name.cmp(&b.name));
    bitmaps
}

fn script(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let cluster = 512_u64 << rng.below(8);
    let scratch = made(&format!("-o cluster_size={cluster} {IMAGE} 3M"), &[]);
    let dir = scratch.path();
    for (name, granularity) in AT_FIRST {
        native(
            Tool::Img,
            dir,
            &format!("bitmap --add -g {granularity} {IMAGE} {name}"),
        )?;
        let at = rng.below(2000) * 1024;
        qemu_io(dir, &[format!("write -q -P 7 {at} 300000")])?;
    }
    let image = open_bytes(bytes_of(dir)).map_err(|error| error.to_string())?;
    for _ in 0..12 {
        let action = Action::random(&mut rng);
        let ours = block_on(act(&image, action));
        let theirs = natively(dir, action);
        if ours.is_ok() != theirs {
            return Err(format!("{action:?}: {ours:?}, and qemu-img: {theirs}"));
        }
        block_on(image.flush()).map_err(|error| error.to_string())?;
    }
    block_on(image.close()).map_err(|error| error.to_string())?;
    let bytes = contents_of(&image);
    let (found, expected) = (
        sorted(stored::bitmaps(&bytes)?),
        sorted(stored::bitmaps(&bytes_of(dir))?),
    );
    let same = |a: &Stored, b: &Stored| {
        (&a.name, a.flags, a.granularity_bits, &a.bits)
            == (&b.name, b.flags, b.granularity_bits, &b.bits)
    };
    if found.len() != expected.len() || !found.iter().zip(&expected).all(|(a, b)| same(a, b)) {
        return Err(format!("expected {expected:?}, found {found:?}"));
    }
    std::fs::write(dir.join(IMAGE), &bytes).map_err(|error| error.to_string())?;
    native(Tool::Img, dir, &format!("check -q -f qcow2 {IMAGE}")).map(drop)
}

#[test]
fn actions_leave_the_bits_that_qemu_img_leaves() {
    if !oracle::available() {
        return;
    }
    let seeds: Vec<u64> = (0..SCRIPTS as u64).collect();
    let wrong: Vec<String> = parallel::map(&seeds, |&seed| {
        script(seed)
            .err()
            .map(|what| format!("script {seed}: {what}"))
    })
    .into_iter()
    .flatten()
    .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A bitmap of another image, whose clusters have another size.
#[test]
fn a_bitmap_of_another_image_is_merged() {
    if !oracle::available() {
        return;
    }
    let make = |options: &str, at: u64| {
        let scratch = made(&format!("-o {options} {IMAGE} 3M"), &[]);
        native(
            Tool::Img,
            scratch.path(),
            &format!("bitmap --add -g 1k {IMAGE} b"),
        )
        .expect("added");
        qemu_io(scratch.path(), &[format!("write -q {at} 70000")]).expect("written");
        bytes_of(scratch.path())
    };
    let from = open_bytes(make("cluster_size=512", 1_000_000)).expect("it opens");
    let into = open_bytes(make("cluster_size=64k", 2_000_000)).expect("it opens");
    let before = stored::bitmaps(&contents_of(&into)).expect("bitmaps")[0]
        .bits
        .clone();
    block_on(into.merge_bitmap("b", Some(&from), "b")).expect("they merge");
    let merged = stored::bitmaps(&contents_of(&into)).expect("bitmaps")[0]
        .bits
        .clone();
    let added = stored::bitmaps(&contents_of(&from)).expect("bitmaps")[0]
        .bits
        .clone();
    assert!(!added.is_empty() && !before.is_empty());
    assert_eq!(merged, before.union(&added).copied().collect());
}
