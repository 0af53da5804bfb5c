//! The power fails at any moment: the image has no damage but leaks, no bitmap is lost, and one that anybody
//! would trust shows everything that has changed.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::rc::Rc;

use oxcow::image::ordering::{OrderingPoint, knockout};
use oxcow::storage::AnyStorage;
use oxcow::{DenyAll, File, GuestOffset, Image, MemoryStorage, OpenOptions, Storage, check::check};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::parallel;
use oxcow_tests::rng::Rng;
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::storage::block_on;

use super::image::{self, IMAGE, Op, ask, bytes_of, made, native, qemu_io, writable};
use super::layouts::fill_sector_0;
use super::stored::{self, Stored};

const SECTOR: usize = 512;
/// States of each epoch besides those that end with one of its writes.
const SAMPLES: usize = 36;
/// One of so many states is also judged by qemu-img, and gone on with.
const NATIVE: u64 = 24;

/// So many different states there are at least.
const LEAST: usize = 2000;

/// What was asked of a storage.
enum Event {
    Write(u64, Vec<u8>),
    Length(u64),
    Flush,
}

/// Bytes in memory, and how they came about.
#[derive(Clone)]
struct Recorder {
    bytes: Rc<RefCell<Vec<u8>>>,
    events: Rc<RefCell<Vec<Event>>>,
}

impl Storage for Recorder {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.borrow().len() as u64)
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.bytes.borrow();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        put(&mut self.bytes.borrow_mut(), offset as usize, data);
        self.events
            .borrow_mut()
            .push(Event::Write(offset, data.to_vec()));
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.borrow_mut().resize(len as usize, 0);
        self.events.borrow_mut().push(Event::Length(len));
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        self.events.borrow_mut().push(Event::Flush);
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

fn apply(bytes: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write(at, data) => put(bytes, *at as usize, data),
        Event::Length(len) => bytes.resize(*len as usize, 0),
        Event::Flush => {}
    }
}

/// What an epoch may leave: every prefix of it, and for each sector any of its versions.
fn states_of(durable: &[u8], epoch: &[Event], rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut states = Vec::new();
    let mut prefix = durable.to_vec();
    let mut versions: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
    let mut lengths = vec![durable.len()];
    states.push(prefix.clone());
    for event in epoch {
        apply(&mut prefix, event);
        lengths.push(prefix.len());
        if let Event::Write(at, data) = event {
            let first = *at as usize / SECTOR;
            let last = (*at as usize + data.len() - 1) / SECTOR;
            for sector in first..=last {
                let start = sector * SECTOR;
                let end = (start + SECTOR).min(prefix.len());
                versions
                    .entry(sector)
                    .or_default()
                    .push(prefix[start..end].to_vec());
            }
        }
        states.push(prefix.clone());
    }
    for _ in 0..if epoch.is_empty() { 0 } else { SAMPLES } {
        let mut state = durable.to_vec();
        // Half of the time nearly everything is there, or nearly nothing.
        let bias = *rng.pick(&[2, 2, 8, 9]);
        for (sector, versions) in &versions {
            let old = match bias {
                8 => !rng.one_in(8),
                9 => rng.one_in(8),
                _ => rng.one_in(versions.len() as u64 + 1),
            };
            if !old {
                put(
                    &mut state,
                    sector * SECTOR,
                    rng.pick(versions.as_slice()).as_slice(),
                );
            }
        }
        let length = *rng.pick(&lengths);
        if length > state.len() || rng.one_in(4) {
            state.resize(length, 0);
        }
        states.push(state);
    }
    states
}

/// The image before anything happened.
struct Start {
    file: Vec<u8>,
    content: Vec<u8>,
    bitmaps: Vec<Stored>,
}

fn read_only(file: Vec<u8>) -> Result<Image<AnyStorage>, String> {
    let file = File {
        storage: AnyStorage::new(MemoryStorage::new(file)),
        name: IMAGE.into(),
    };
    block_on(Image::open(
        file,
        &OpenOptions::default(),
        &DenyAll::default(),
    ))
    .map_err(|error| format!("it does not open: {error:#}"))
}

fn content_of(image: &Image<AnyStorage>) -> Result<Vec<u8>, String> {
    let mut content = vec![0; image.virtual_size() as usize];
    block_on(image.read_at(GuestOffset(0), &mut content))
        .map_err(|error| format!("reading: {error:#}"))?;
    Ok(content)
}

/// What is wrong with an image that a crash has left, without its leaks.
fn judge(start: &Start, state: &[u8]) -> Result<Vec<Stored>, String> {
    let image = read_only(state.to_vec())?;
    let qcow2 = image.layers()[0].as_qcow2().expect("a qcow2 image");
    let report = block_on(check(qcow2, &mut ())).map_err(|error| format!("check: {error:#}"))?;
    if report.corruptions + report.check_errors > 0 {
        return Err(format!("{report:?}"));
    }
    let bitmaps = stored::bitmaps(state)?;
    if bitmaps.len() != start.bitmaps.len() {
        return Err(format!("{} bitmaps", bitmaps.len()));
    }
    let content = content_of(&image)?;
    let disk = content.len().div_ceil(SECTOR);
    let changed: Vec<usize> = (0..disk.min(start.content.len() / SECTOR))
        .filter(|sector| {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            content[range.clone()] != start.content[range]
        })
        .collect();
    for (old, new) in start.bitmaps.iter().zip(&bitmaps) {
        let same = |bitmap: &Stored| {
            (
                bitmap.name.clone(),
                bitmap.granularity_bits,
                bitmap.enabled(),
            )
        };
        if same(old) != same(new) {
            return Err(format!("{old:?} has become {new:?}"));
        }
        if new.in_use() {
            continue;
        }
        let shown = |sector: &&usize| new.covers((**sector * SECTOR) as u64);
        if new.enabled()
            && let Some(sector) = changed.iter().find(|sector| !shown(sector))
        {
            return Err(format!(
                "sector {sector} has changed, and {new:?} does not show it"
            ));
        }
        let length = (content.len() as u64).div_ceil(1 << new.granularity_bits);
        let lost = old.bits.range(..length).find(|bit| !new.bits.contains(bit));
        if let Some(bit) = lost {
            return Err(format!("{} has lost bit {bit}", new.name));
        }
        if !new.enabled() && new.bits.iter().any(|bit| !old.bits.contains(bit)) {
            return Err(format!("{new:?} is disabled, and was {old:?}"));
        }
    }
    Ok(bitmaps)
}

/// As qemu-img sees it; and the library goes on with it.
fn judge_further(start: &Start, dir: &Path, state: &[u8]) -> Result<(), String> {
    std::fs::write(dir.join(IMAGE), state).map_err(|error| error.to_string())?;
    let outcome = ask(Tool::Img, dir, &format!("check -q -f qcow2 {IMAGE}"));
    if outcome.code != 0 && outcome.code != 3 {
        return Err(format!(
            "qemu-img check: {}{}",
            outcome.stdout, outcome.stderr
        ));
    }
    let image = image::open_bytes(state.to_vec()).map_err(|error| format!("opening: {error:#}"))?;
    for op in [
        Op::Write(3 * 512, 1024),
        Op::Zeroes(40 << 10, 9000, true),
        Op::Close,
    ] {
        block_on(image::apply(&image, &op))
            .map_err(|error| format!("going on, {op:?}: {error:#}"))?;
    }
    judge(start, &image::contents_of(&image))
        .map(drop)
        .map_err(|what| format!("going on: {what}"))
}

/// Does the steps, cuts the power at all moments, and judges. The number of different states, or what is wrong.
fn enumerate(start: &Start, ops: &[Op], seed: u64) -> Result<usize, String> {
    let recorder = Recorder {
        bytes: Rc::new(start.file.clone().into()),
        events: Rc::default(),
    };
    let file = File {
        storage: AnyStorage::new(recorder.clone()),
        name: IMAGE.into(),
    };
    let image = block_on(Image::open(file, &writable(), &DenyAll::default()))
        .map_err(|error| format!("opening: {error:#}"))?;
    for op in ops.iter().chain([&Op::Close]) {
        block_on(image::apply(&image, op)).map_err(|error| format!("{op:?}: {error:#}"))?;
    }
    let events = recorder.events.take();

    let mut rng = Rng::new(seed);
    let scratch = Scratch::new("bitmap-crash");
    let mut durable = start.file.clone();
    let mut seen = HashSet::new();
    for epoch in events.split_inclusive(|event| matches!(event, Event::Flush)) {
        for state in states_of(&durable, epoch, &mut rng) {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            if !seen.insert(hasher.finish()) {
                continue;
            }
            judge(start, &state)?;
            if rng.one_in(NATIVE) {
                judge_further(start, scratch.path(), &state)?;
            }
        }
        for event in epoch {
            apply(&mut durable, event);
        }
    }
    let last = judge(start, &durable)?;
    if let Some(bitmap) = last.iter().find(|bitmap| bitmap.in_use()) {
        return Err(format!("{} is still in use at the end", bitmap.name));
    }
    Ok(seen.len())
}

fn start(scratch: &Scratch) -> Start {
    let file = bytes_of(scratch.path());
    let image = read_only(file.clone()).expect("the image opens");
    Start {
        content: content_of(&image).expect("it can be read"),
        bitmaps: stored::bitmaps(&file).expect("bitmaps"),
        file,
    }
}

/// A disk full of data, then bitmaps, of which the disabled one has bits.
fn image_with(options: &str, size: u64, names: &[&str]) -> Scratch {
    let scratch = made(&format!("-o {options} {IMAGE} {size}"), &[]);
    let dir = scratch.path();
    qemu_io(dir, &[format!("write -q -P 17 0 {}", size / 2)]).expect("qemu-io writes");
    for (index, name) in names.iter().enumerate() {
        let granularity = 512 << (index % 3 * 2);
        native(
            Tool::Img,
            dir,
            &format!("bitmap --add -g {granularity} {IMAGE} {name}"),
        )
        .expect("a bitmap");
        if index == 1 {
            qemu_io(dir, &["write -q -P 17 0 4k".into()]).expect("qemu-io writes");
            native(Tool::Img, dir, &format!("bitmap --disable {IMAGE} {name}"))
                .expect("it is disabled");
            native(
                Tool::Img,
                dir,
                &format!("bitmap --clear {IMAGE} {}", names[0]),
            )
            .expect("it is cleared");
        }
    }
    scratch
}

/// The three ways in which the extension can stand.
fn starts() -> Vec<(&'static str, Start)> {
    let long = ["a", "b", "c", "d"].map(|name| name.repeat(300));
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    let plain = ["one", "two", "three"];
    // The last entry begins 8 bytes before the end of a sector: the next one has its flags.
    let split = ["one", &"two".repeat(148), "three"];
    let full = image_with("cluster_size=64k", 192 << 10, &split);
    fill_sector_0(full.path());
    vec![
        // The directory takes several clusters and sectors; the bits of the first bitmap two clusters.
        (
            "small clusters",
            start(&image_with(
                "cluster_size=512",
                (2 << 20) + (100 << 10),
                &long,
            )),
        ),
        (
            "behind sector 0",
            start(&image_with("cluster_size=64k", 192 << 10, &plain)),
        ),
        ("in place", start(&full)),
    ]
}

fn scripts() -> Vec<Vec<Op>> {
    let name = || "s".to_owned();
    vec![
        // In place, to new clusters, and again after a close.
        vec![Op::Write(1000, 700)],
        vec![
            Op::Write(0, 600),
            Op::Flush,
            Op::Write(100 << 10, 3000),
            Op::Close,
            Op::Write(600, 1),
        ],
        vec![
            Op::Discard(0, 64 << 10),
            Op::Close,
            Op::Zeroes(8192, 512, false),
            Op::Compressed(64 << 10, 64 << 10),
        ],
        vec![Op::Resize(130 << 10)],
        vec![Op::Write(0, 512), Op::Resize(6 << 20), Op::Write(0, 1024)],
        vec![
            Op::Create(name()),
            Op::Write(0, 512),
            Op::Close,
            Op::Apply(name()),
        ],
        vec![
            Op::Create(name()),
            Op::Resize(70 << 10),
            Op::Write(0, 512),
            Op::Apply(name()),
            Op::Delete(name()),
        ],
    ]
}

#[test]
fn a_cut_at_any_moment_leaves_no_wrong_bitmap() {
    if !oracle::available() {
        return;
    }
    let (starts, scripts) = (starts(), scripts());
    let cases: Vec<_> = starts
        .iter()
        .flat_map(|start| {
            scripts
                .iter()
                .zip(0..)
                .map(move |(ops, seed)| (start, ops, seed))
        })
        .collect();
    let counts = parallel::map(&cases, |((name, start), ops, seed)| {
        enumerate(start, ops, *seed).unwrap_or_else(|what| panic!("{name}, {ops:?}: {what}"))
    });
    let count: usize = counts.iter().sum();
    println!("{count} different states");
    assert!(count > LEAST);
}

/// The judge sees what it is there for: each of these taken out of the engine is noticed.
#[test]
fn every_point_about_bitmaps_is_missed() {
    if !oracle::available() {
        return;
    }
    let starts = starts();
    let points = [
        OrderingPoint::MarkBitmapsInUse,
        OrderingPoint::BitmapsInPlace,
        OrderingPoint::FlushBeforeSwitch,
        OrderingPoint::FlushAfterSwitch,
    ];
    let noticed = parallel::map(&points, |&point| {
        // Each start's turn comes soon: most points matter for one of them only.
        let scripts = scripts().into_iter().cycle().take(21).zip(0..);
        let cases = scripts.flat_map(|(ops, seed)| {
            let case = move |start| (start, ops.clone(), seed);
            starts.iter().map(case).collect::<Vec<_>>()
        });
        cases
            .enumerate()
            .find_map(|(tried, ((name, start), ops, seed))| {
                let missed = knockout::without(point, || enumerate(start, &ops, seed)).is_err();
                missed.then(|| format!("{point:?} is missed by case {tried}: {name}, {ops:?}"))
            })
    });
    for (point, noticed) in points.iter().zip(noticed) {
        match noticed {
            Some(case) => println!("{case}"),
            None => panic!("{point:?} can be left out, and nobody notices"),
        }
    }
}
