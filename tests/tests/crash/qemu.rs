//! Samples of what crashes leave, judged by the native tools: `qemu-img check` finds nothing worse than leaks,
//! and reads what the independent checker reads.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use oxcow_tests::crash::bench::Bench;
use oxcow_tests::crash::contents::{Contents, SECTOR};
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::machine::{SimFile, to_bytes};
use oxcow_tests::crash::model::World;
use oxcow_tests::crash::run::{names, run};
use oxcow_tests::crash::script::Op;
use oxcow_tests::crash::starts::StartKind;
use oxcow_tests::crash::states::Choice;
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::parallel;
use oxcow_tests::rng::Rng;
use oxcow_tests::scratch::Scratch;

/// Scripts drawn for each start state; each gives one image.
const SCRIPTS: u64 = 16;

/// An image out of a crash.
struct Sample {
    name: String,
    files: [Vec<u8>; 3],
    /// The active state, by the independent checker.
    disk: Vec<u8>,
}

fn bytes(contents: &Contents, file: &SimFile) -> Vec<u8> {
    let sectors: Vec<_> = (0..file.sectors()).map(|s| file.durable(s)).collect();
    to_bytes(contents, &sectors, file.len())
}

fn disk(contents: &Contents, world: &World) -> Vec<u8> {
    to_bytes(contents, world.values.only(), world.size)
}

/// One image from somewhere in a script.
fn sample(start: StartKind, rng: &mut Rng) -> Option<Sample> {
    let script = [*rng.pick(&Op::ALL), *rng.pick(&Op::ALL)];
    let bench = Bench::new(start);
    let kept: Rc<RefCell<Option<[SimFile; 3]>>> = Rc::default();
    let keep = kept.clone();
    let mut lot = Rng::new(rng.next_u64());
    let mut seen = 0;
    bench.on_new_point(move |bench, _| {
        // Each point with the same chance.
        seen += 1;
        if lot.one_in(seen) {
            let files = bench.machine.files();
            *keep.borrow_mut() = Some(Choice::random(&files, &mut lot).make(&files));
        }
    });
    run::<Oxcow>(&bench, &script, 0).unwrap_or_else(|found| panic!("{found}"));
    let files = kept.borrow_mut().take()?;
    let world = bench.extract(&files).expect("it was judged");
    Some(Sample {
        name: format!("{start:?} {}", names(&script)),
        disk: disk(&bench.contents, &world),
        files: files.each_ref().map(|file| bytes(&bench.contents, file)),
    })
}

/// Whether the header has the dirty bit, the lowest of the eight bytes at 72.
fn is_dirty(image: &[u8]) -> bool {
    let version = image.get(4..8);
    version == Some(&[0, 0, 0, 3]) && image.get(79).is_some_and(|bits| bits & 1 != 0)
}

/// What the native tools say against a sample.
fn judge(sample: &Sample, folder: &Path) -> Option<String> {
    for (name, bytes) in ["a.qcow2", "guest.data", "below.raw"]
        .iter()
        .zip(&sample.files)
    {
        std::fs::write(folder.join(name), bytes).expect("a file can be written");
    }
    let img = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        oracle::run(Tool::Img, folder, &words)
    };
    // Under the dirty bit refcounts may be behind: there is nothing worse than that.
    if is_dirty(&sample.files[0]) {
        let repair = img("check -r all a.qcow2");
        if repair.code != 0 {
            return Some(format!("{}: check -r all gives {repair:?}", sample.name));
        }
    }
    let check = img("check a.qcow2");
    // 0: nothing wrong; 3: only leaks.
    if ![0, 3].contains(&check.code) {
        return Some(format!("{}: check gives {check:?}", sample.name));
    }
    let convert = img("convert -O raw a.qcow2 a.raw");
    if convert.code != 0 {
        return Some(format!("{}: {convert:?}", sample.name));
    }
    let read = std::fs::read(folder.join("a.raw")).expect("it was converted");
    let differs =
        (0..read.len().max(sample.disk.len())).find(|at| read.get(*at) != sample.disk.get(*at));
    differs.map(|at| format!("{}: sector {} differs", sample.name, at / SECTOR))
}

#[test]
fn the_native_tools_agree_with_the_checker() {
    if !oracle::available() {
        return;
    }
    let results = parallel::map(&StartKind::ALL, |start| {
        let scratch = Scratch::new("crash-samples");
        let mut rng = Rng::new(*start as u64 + 77);
        // Refcounts that are wrong in both directions from the start are what the other tests look at.
        let samples: Vec<Sample> = (0..SCRIPTS)
            .filter(|_| *start != StartKind::Dirty)
            .filter_map(|_| sample(*start, &mut rng))
            .collect();
        let wrong: Vec<String> = samples
            .iter()
            .filter_map(|sample| judge(sample, scratch.path()))
            .collect();
        (samples.len(), wrong)
    });
    let judged: usize = results.iter().map(|(count, _)| count).sum();
    let wrong: Vec<String> = results.into_iter().flat_map(|(_, wrong)| wrong).collect();
    println!("{judged} images judged by qemu-img check and read by qemu-img convert");
    assert!(judged > 300, "only {judged} samples");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
