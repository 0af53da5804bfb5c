//! Random scripts, by the library and by the native tools on a copy: the same bitmaps.
//!
//! `OXCOW_BITMAP_SCRIPTS=17..18 cargo test -p oxcow-tests --test crossing bitmaps::script -- --nocapture` runs
//! script 17 alone.

use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::parallel;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::rng::Rng;
use oxcow_tests::scratch::Scratch;
use oxcow_tests::scripts::storage::block_on;

use super::image::{self, IMAGE, Op, bitmaps_of, native, qemu_io};

/// An image with bitmaps.
#[derive(Debug)]
struct Setup {
    options: String,
    cluster: u64,
    size: u64,
    backing: Option<u64>,
    data_file: bool,
    /// Granularity, and whether it is enabled.
    bitmaps: Vec<(u64, bool)>,
    before: Vec<Op>,
}

impl Setup {
    fn random(rng: &mut Rng) -> Self {
        let cluster = *rng.pick(&[512, 1024, 4096, 16 << 10, 64 << 10, 256 << 10]);
        let mut options = format!("cluster_size={cluster}");
        if cluster >= 16 << 10 && rng.one_in(3) {
            options.push_str(",extended_l2=on");
        }
        let _ = write!(options, ",refcount_bits={}", rng.pick(&[16, 32, 64]));
        let data_file = rng.one_in(6);
        if data_file {
            options.push_str(",data_file=data.raw");
        }
        let size = random_size(rng);
        let backing = (!data_file && rng.one_in(4)).then(|| random_size(rng));
        let bitmaps = (0..=rng.below(4))
            .map(|_| {
                let granularity = *rng.pick(&[512, 1024, 4096, 64 << 10, 1 << 20, 1 << 31]);
                (granularity, !rng.one_in(3))
            })
            .collect();
        let mut setup = Self {
            options,
            cluster,
            size,
            backing,
            data_file,
            bitmaps,
            before: Vec::new(),
        };
        setup.before = (0..rng.below(4))
            .map(|_| guest_op(rng, &setup, size))
            .collect();
        setup
    }

    fn make(&self, dir: &Path) -> Result<(), String> {
        fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        let backing = match self.backing {
            None => String::new(),
            Some(size) => {
                let bytes = Rng::new(size).bytes(size as usize);
                fs::write(dir.join("base.raw"), bytes).map_err(|error| error.to_string())?;
                " -b base.raw -F raw".to_owned()
            }
        };
        let img = |line: String| native(Tool::Img, dir, &line);
        img(format!(
            "create -q -f qcow2 -o {}{backing} {IMAGE} {}",
            self.options, self.size
        ))?;
        for (index, (granularity, enabled)) in self.bitmaps.iter().enumerate() {
            let name = bitmap_name(index);
            img(format!("bitmap --add -g {granularity} {IMAGE} {name}"))?;
            if !enabled && index % 2 == 0 {
                // Some have bits already when they are disabled.
                img(format!("bitmap --disable {IMAGE} {name}"))?;
            }
        }
        let commands: Vec<String> = self.before.iter().filter_map(Op::io_command).collect();
        qemu_io(dir, &commands)?;
        for (index, (_, enabled)) in self.bitmaps.iter().enumerate() {
            if !enabled && index % 2 == 1 {
                img(format!("bitmap --disable {IMAGE} {}", bitmap_name(index)))?;
            }
        }
        Ok(())
    }
}

fn bitmap_name(index: usize) -> String {
    format!("{}{index}", "bitmap-".repeat(index * 5))
}

/// Some, with bits in several clusters where clusters are small.
fn random_size(rng: &mut Rng) -> u64 {
    let most = *rng.pick(&[1 << 20, 4 << 20, 12 << 20]);
    (1 + rng.below(most / 512)) * 512
}

fn random_range(rng: &mut Rng, size: u64) -> Range<u64> {
    let start = rng.below(size);
    let most = *rng.pick(&[512, 8 << 10, 256 << 10, 4 << 20]);
    let end = (start + 1 + rng.below(most)).min(size);
    match rng.below(4) {
        0 => start..end,
        1 => start / 512 * 512..end,
        _ => start / 512 * 512..end.next_multiple_of(512).min(size),
    }
}

fn guest_op(rng: &mut Rng, setup: &Setup, size: u64) -> Op {
    let range = random_range(rng, size);
    let length = range.end - range.start;
    match rng.below(8) {
        0..=3 => Op::Write(range.start, length),
        4 => Op::Zeroes(range.start, length, rng.one_in(2)),
        5 if !setup.data_file => {
            let start = range.start / setup.cluster * setup.cluster;
            let end = range.end.next_multiple_of(setup.cluster).min(size);
            Op::Compressed(start, end - start)
        }
        6 => Op::Discard(range.start, length),
        // All of it: bitmaps with clusters that are all ones.
        7 if rng.one_in(3) => Op::Zeroes(0, size, true),
        _ => Op::Write(range.start, length.min(512)),
    }
}

/// Steps of one round; `snapshots` are those that there are.
fn round(rng: &mut Rng, setup: &Setup, size: &mut u64, snapshots: &mut Vec<String>) -> Vec<Op> {
    (0..=rng.below(7))
        .map(|_| match rng.below(12) {
            0 | 1 => {
                *size = random_size(rng);
                Op::Resize(*size)
            }
            2 if !setup.data_file && snapshots.len() < 4 => {
                let name = format!("s{}", rng.next_u64());
                snapshots.push(name.clone());
                Op::Create(name)
            }
            3 if !snapshots.is_empty() => {
                let index = rng.below(snapshots.len() as u64) as usize;
                Op::Delete(snapshots.remove(index))
            }
            4 => Op::Flush,
            5 => Op::Close,
            _ => guest_op(rng, setup, *size),
        })
        .collect()
}

/// Does steps with the native tools.
fn natively(dir: &Path, ops: &[Op]) -> Result<(), String> {
    let mut commands = Vec::new();
    for op in ops {
        if let Some(command) = op.io_command() {
            commands.push(command);
            continue;
        }
        if !commands.is_empty() {
            qemu_io(dir, &commands)?;
            commands.clear();
        }
        if let Some(command) = op.img_command() {
            native(Tool::Img, dir, &command)?;
        }
    }
    if commands.is_empty() {
        Ok(())
    } else {
        qemu_io(dir, &commands)
    }
}

fn with_library(dir: &Path, ops: &[Op]) -> Result<(), String> {
    let image = image::open(dir).map_err(|error| format!("opening: {error:#}"))?;
    for op in ops {
        block_on(image::apply(&image, op)).map_err(|error| format!("{op:?}: {error:#}"))?;
    }
    block_on(image.close()).map_err(|error| format!("closing: {error:#}"))
}

fn info(dir: &Path) -> Result<serde_json::Value, String> {
    let text = native(Tool::Img, dir, &format!("info --output=json {IMAGE}"))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| error.to_string())?;
    Ok(value["format-specific"]["data"]["bitmaps"].clone())
}

fn compare(ours: &Path, theirs: &Path) -> Result<(), String> {
    image::clean(ours)?;
    let (found, expected) = (bitmaps_of(ours)?, bitmaps_of(theirs)?);
    if found != expected {
        return Err(format!("expected {expected:#?}\nfound {found:#?}"));
    }
    let (found, expected) = (info(ours)?, info(theirs)?);
    if found != expected {
        return Err(format!("qemu-img info says {found}, not {expected}"));
    }
    Ok(())
}

/// QEMU's own reading of our bitmaps: each one merged into a new one, in a copy.
fn merge(ours: &Path, setup: &Setup) -> Result<(), String> {
    let copy = ours.join("copy");
    fs::create_dir_all(&copy).map_err(|error| error.to_string())?;
    let bytes = image::bytes_of(ours);
    fs::write(copy.join(IMAGE), &bytes).map_err(|error| error.to_string())?;
    for name in ["data.raw", "base.raw"] {
        if ours.join(name).exists() {
            fs::copy(ours.join(name), copy.join(name)).map_err(|error| error.to_string())?;
        }
    }
    let mut expected = bitmaps_of(ours)?;
    for index in 0..setup.bitmaps.len() {
        let (name, granularity) = (bitmap_name(index), setup.bitmaps[index].0);
        native(
            Tool::Img,
            &copy,
            &format!(
                "bitmap --add --disable --merge {name} -g {granularity} {IMAGE} merged{index}"
            ),
        )?;
    }
    let merged = bitmaps_of(&copy)?.split_off(expected.len());
    for bitmap in &mut expected {
        let found = merged.iter().find(|merged| {
            let number = bitmap.name.rsplit('-').next().unwrap_or_default();
            merged.name == format!("merged{number}")
        });
        if found.is_none_or(|found| found.bits != bitmap.bits) {
            return Err(format!("QEMU reads {bitmap:?} as {found:?}"));
        }
    }
    fs::remove_dir_all(&copy).map_err(|error| error.to_string())
}

fn run(seed: u64) -> Result<(), Failure> {
    let mut rng = Rng::new(seed);
    let setup = Setup::random(&mut rng);
    let mut log = format!("{setup:?}");
    let scratch = Scratch::new("bitmap-script");
    let result = steps(&mut rng, &setup, &scratch, &mut log);
    result.map_err(|what| Failure {
        case: format!("script {seed}"),
        doing: format!("OXCOW_BITMAP_SCRIPTS={seed}..{}\n{log}", seed + 1),
        what,
    })
}

fn steps(rng: &mut Rng, setup: &Setup, scratch: &Scratch, log: &mut String) -> Result<(), String> {
    let sides: [PathBuf; 2] = ["ours", "theirs"].map(|side| scratch.path().join(side));
    let [ours, theirs] = &sides;
    setup.make(ours)?;
    setup.make(theirs)?;
    compare(ours, theirs)?;
    let mut size = setup.size;
    let mut snapshots = Vec::new();
    for number in 0..4 {
        let ops = round(rng, setup, &mut size, &mut snapshots);
        // QEMU goes on with what the library left, too.
        let by_qemu = number > 0 && rng.one_in(4);
        let _ = write!(
            log,
            "\n{} {ops:?}",
            if by_qemu { "QEMU:" } else { "library:" }
        );
        if by_qemu {
            natively(ours, &ops)?;
        } else {
            with_library(ours, &ops)?;
        }
        natively(theirs, &ops).map_err(|what| format!("the native side: {what}"))?;
        compare(ours, theirs)?;
    }
    merge(ours, setup)
}

#[test]
fn scripts() {
    if !oracle::available() {
        return;
    }
    let seeds: Vec<u64> = match std::env::var("OXCOW_BITMAP_SCRIPTS") {
        Err(_) => (0..60).collect(),
        Ok(given) => {
            let range = given.split_once("..").and_then(|(start, end)| {
                let range: Range<u64> = start.parse().ok()?..end.parse().ok()?;
                Some(range)
            });
            range
                .expect("OXCOW_BITMAP_SCRIPTS is like 17..18")
                .collect()
        }
    };
    let results = parallel::map(&seeds, |&seed| run(seed));
    let failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
    finish("bitmap-scripts", seeds.len(), &failures);
}
