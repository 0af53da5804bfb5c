//! What is done to whole images in place: commit, rebase, amend and bitmap, several of them one after the other,
//! and dd and bench; random options, and random mistakes among them, given to qemu-img and to ours. Both must say
//! the same, and afterwards every image must have the same content and features, and be sound.

use std::fs;

use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::rng::Rng;
use oxcow_tests::scratch::Scratch;

use super::sides::{self, Sides, features};

/// How many folders things are done in, right ones and wrong ones; every fourth is the sandboxed build's too.
const RIGHT: usize = 16;
const WRONG: usize = 60;

/// Chains of images of every kind, whose layers are longer and shorter than one another and hide one another in
/// parts of clusters.
const PREPARE: &str = "
set -e
create() { qemu-img create -q -f qcow2 \"$@\"; }
yes base | head -c 1048576 > base.raw
head -c 1000 base.raw > odd.raw
create mid.qcow2 -b base.raw -F raw
qemu-io -c 'write -q -P 9 100k 100k' -c 'write -q -z 300k 200k' mid.qcow2
create top.qcow2 -b mid.qcow2 -F qcow2 2M
qemu-io -c 'write -q -P 10 150k 100k' -c 'write -q -z 900k 100k' -c 'write -q -c -P 11 1536k 64k' \
  -c 'write -q -P 12 1999k 3k' top.qcow2
create small.qcow2 -o cluster_size=512 -b mid.qcow2 -F qcow2 512k
qemu-io -c 'write -q -P 10 150k 100k' -c 'write -q -z 10k 100k' small.qcow2
create sub.qcow2 -o extended_l2=on -b small.qcow2 -F qcow2 900k
qemu-io -c 'write -q -P 13 10k 100k' -c 'discard -q 100k 200k' sub.qcow2
create v2.qcow2 -o compat=0.10 -b odd.raw -F raw 40k
qemu-io -c 'write -q -P 13 10k 100' v2.qcow2
create data.qcow2 -o data_file=d.raw -b base.raw -F raw 2M
qemu-io -c 'write -q -P 14 10k 100k' data.qcow2
qemu-img snapshot -c s1 small.qcow2
create new.qcow2 3M
qemu-io -c 'write -q -P 9 100k 100k' -c 'write -q -P 30 700k 2M' new.qcow2
create zeros.qcow2 -o cluster_size=4k -b base.raw -F raw 3M
qemu-io -c 'write -q -P 9 100k 100k' -c 'write -q -z 300k 200k' -c 'write -q -z 2050k 20k' zeros.qcow2
qemu-img snapshot -c s1 zeros.qcow2
qemu-io -c 'write -q -P 10 110k 50k' -c 'write -q -z 150k 20k' zeros.qcow2
create wide.qcow2 -o refcount_bits=64 1M
qemu-io -c 'write -q -P 9 100k 100k' wide.qcow2
qemu-img snapshot -c s1 wide.qcow2
qemu-img bitmap --add new.qcow2 b0
qemu-img bitmap --add -g 512 --disable top.qcow2 b0
";

/// The images that take part.
const IMAGES: &[&str] = &[
    "mid.qcow2",
    "top.qcow2",
    "small.qcow2",
    "sub.qcow2",
    "v2.qcow2",
    "data.qcow2",
    "new.qcow2",
    "zeros.qcow2",
    "wide.qcow2",
];

/// What can be below an image.
const BASES: &[(&str, &str)] = &[
    ("base.raw", "raw"),
    ("odd.raw", "raw"),
    ("mid.qcow2", "qcow2"),
    ("new.qcow2", "qcow2"),
    ("''", "raw"),
];

fn commit(rng: &mut Rng) -> String {
    let options = [
        "",
        "",
        "-d",
        "-q",
        "-t none",
        "-r 1G",
        "-b base.raw",
        "-b ./mid.qcow2",
    ];
    format!("commit {} {}", rng.pick(&options), rng.pick(IMAGES))
}

fn rebase(rng: &mut Rng) -> String {
    let (base, format) = *rng.pick(BASES);
    let image = *rng.pick(IMAGES);
    let how = ["", "", "", "-u", "-q -t none"];
    // qemu-img gives up an assertion where subclusters are to be compressed.
    let how = match image != "sub.qcow2" && image != "data.qcow2" && rng.one_in(6) {
        true => "-c",
        false => *rng.pick(&how),
    };
    // An image that stands on itself keeps qemu-img busy for ever.
    let (base, format) = match how {
        "-u" => ("base.raw", "raw"),
        _ => (base, format),
    };
    format!("rebase {how} -b {base} -F {format} {image}")
}

fn amend(rng: &mut Rng) -> String {
    let all = [
        "compat=0.10",
        "compat=1.1",
        "lazy_refcounts=on",
        "lazy_refcounts=off",
        "refcount_bits=16",
        "refcount_bits=8",
        "refcount_bits=1",
        "refcount_bits=64",
        "size=4M",
        "size=600k",
        "data_file=d.raw",
        "data_file_raw=off",
        "data_file_raw=on",
        "backing_file=base.raw,backing_fmt=raw",
    ];
    let options: Vec<&str> = (0..1 + rng.below(2)).map(|_| *rng.pick(&all)).collect();
    format!("amend -o {} {}", options.join(","), rng.pick(IMAGES))
}

fn bitmap(rng: &mut Rng) -> String {
    let actions = [
        "--add",
        "--add -g 512",
        "--add --disable",
        "--add -g 1M --merge b0",
        "--remove",
        "--remove --add",
        "--clear",
        "--enable",
        "--disable",
        "--clear --enable --merge b0",
        "--merge b0 -b new.qcow2",
    ];
    let name = rng.pick(&["b0", "b0", "b1"]);
    format!("bitmap {} {} {name}", rng.pick(&actions), rng.pick(IMAGES))
}

fn dd(rng: &mut Rng) -> String {
    let mut line = "dd".to_owned();
    for word in [
        "-O qcow2",
        "bs=1k",
        "bs=100k",
        "bs=1000",
        "count=3",
        "count=900",
        "skip=2",
        "skip=3000",
    ] {
        if rng.one_in(3) {
            line = format!("{line} {word}");
        }
    }
    let source = ["top.qcow2", "sub.qcow2", "base.raw", "odd.raw"];
    let target = match line.contains("qcow2") {
        true => "copy.qcow2",
        false => "copy.raw",
    };
    format!("{line} if={} of={target}", rng.pick(&source))
}

fn right(rng: &mut Rng) -> Vec<String> {
    let kinds = [commit, commit, rebase, rebase, amend, amend, bitmap, dd];
    (0..1 + rng.below(3))
        .map(|_| rng.pick(&kinds)(rng))
        .collect()
}

/// A line in which something is wrong, mostly.
fn wrong(rng: &mut Rng) -> Vec<String> {
    const WORDS: &[&str] = &[
        "-b gone",
        "-b gone -F raw",
        "-b base.raw",
        "-b ''",
        "-F raw",
        "-F nosuch",
        "-f raw",
        "-f nosuch",
        "-f qcow2",
        "-t foo",
        "-T foo",
        "-t none",
        "-r x",
        "-d",
        "-u",
        "-c",
        "-q",
        "--image-opts",
        "--nosuch",
        "-Z",
        "--object nosuch,id=a",
        "-o compat=1.0",
        "-o nosuch=1",
        "-o size=1000",
        "-o cluster_size=4k",
        "-o lazy_refcounts=maybe",
        "-o refcount_bits=3",
        "-o data_file=x",
        "-o backing_file=x",
        "-o help",
        "-o ,",
        "--add",
        "--remove",
        "--merge gone",
        "--clear",
        "-g 511",
        "-g x",
        "-g 64k",
        "--enable",
        "--force",
        "bs=0",
        "bs=x",
        "count=x",
        "skip=-1",
        "if=gone",
        "of=nodir/x",
        "if=base.raw",
        "of=copy.raw",
        "foo=1",
        "-O nosuch",
        "-O qcow2",
        "-c 0",
        "-c 1",
        "-w",
        "-d 0",
        "-s x",
        "--flush-interval 1",
        "--pattern 300",
        "-i nosuch",
        "-S x",
        "-o -1",
    ];
    const FILES: &[&str] = &[
        "top.qcow2",
        "v2.qcow2",
        "base.raw",
        "gone.qcow2",
        "new.qcow2 b0",
        "top.qcow2 x",
    ];
    let command = *rng.pick(&["commit", "rebase", "amend", "bitmap", "dd", "bench"]);
    let words: Vec<&str> = (0..1 + rng.below(3)).map(|_| *rng.pick(WORDS)).collect();
    let mut line = format!("{command} {}", words.join(" "));
    // Nobody measures how long a right line takes, or what becomes of a file that is its own copy.
    if command == "bench" {
        line.push_str(" -c 1 -o 4G");
    }
    if !rng.one_in(10) && command != "dd" {
        line = format!("{line} {}", rng.pick(FILES));
    }
    vec![line]
}

/// Runs the lines one after the other, in which `''` is an empty word.
fn run(sides: &mut Sides, lines: &[String]) {
    for line in lines {
        let words = line.split(' ').filter(|word| !word.is_empty());
        let args: Vec<String> = words.map(|word| word.replace("''", "")).collect();
        sides.run(&args, |mut outcome| {
            outcome.stderr = without_node_names(&outcome.stderr);
            outcome
        });
    }
}

/// Every image in both folders.
fn compare(sides: &mut Sides) {
    let copy = ["copy.qcow2"];
    for image in IMAGES.iter().chain(&copy) {
        let read = |scratch: &Scratch| fs::read(scratch.path().join(image)).ok();
        let (theirs, ours) = (read(&sides.theirs), read(&sides.ours));
        if theirs == ours {
            continue; // Nobody touched it, or both in the same way.
        }
        let expected = look(&sides.theirs, image);
        let found = look(&sides.ours, image);
        for (what, expected, found) in [
            ("info", &expected.features, &found.features),
            ("content", &expected.content, &found.content),
        ] {
            let pairs = expected.lines().zip(found.lines());
            let first = pairs.filter(|(a, b)| a != b).take(1);
            let told: String = first.map(|(a, b)| format!("{a}, found {b}")).collect();
            let differs = (expected != found).then_some(told);
            sides.note(&format!("{what} {image}"), differs);
        }
        let worse = found.check != 0 && expected.check == 0;
        sides.note(
            &format!("check {image}"),
            worse.then(|| format!("exit code {}", found.check)),
        );
    }
    for raw in ["base.raw", "odd.raw", "copy.raw"] {
        let read = |scratch: &Scratch| fs::read(scratch.path().join(raw)).ok();
        let differs = read(&sides.theirs) != read(&sides.ours);
        sides.note(raw, differs.then(|| "differs".to_owned()));
    }
}

/// What the judge finds in an image.
struct Found {
    features: String,
    content: String,
    check: i32,
}

fn look(scratch: &Scratch, image: &str) -> Found {
    let ask = |line: &str| {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        oracle::run(Tool::Img, scratch.path(), &args)
    };
    let info = ask(&format!("info -U -f qcow2 --output=json {image}"));
    let read = ask(&format!("convert -U -f qcow2 -O raw {image} content"));
    let content = match fs::read(scratch.path().join("content")) {
        Ok(bytes) if read.code == 0 => runs(&bytes),
        _ => String::new(),
    };
    let mut features = features(&info.stdout);
    // A program that knows no bitmaps may have written to an image of version 2: there they go.
    if features["format-specific"]["data"]["compat"] == "0.10" {
        features["format-specific"]["data"]["bitmaps"].take();
    }
    Found {
        features: format!("{features:#}\n"),
        content: format!("{}{content}", read.stderr),
        check: ask(&format!("check -f qcow2 {image}")).code,
    }
}

/// Where what stands, a line a run of equal sectors.
fn runs(bytes: &[u8]) -> String {
    let mut lines = String::new();
    let mut start = 0;
    let sectors: Vec<&[u8]> = bytes.chunks(512).collect();
    for at in 1..=sectors.len() {
        if sectors.get(at) != sectors.get(start) {
            lines.push_str(&format!(
                "{start} {at} {:x?}\n",
                &sectors[start][..8.min(sectors[start].len())]
            ));
            start = at;
        }
    }
    lines
}

/// qemu-img numbers what it opens, and no two times alike.
fn without_node_names(text: &str) -> String {
    let mut parts = text.split("#block");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str("#block");
        plain.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    plain
}

fn over_folders(name: &str, seed: u64, count: usize, lines: fn(&mut Rng) -> Vec<String>) {
    let mut rng = Rng::new(seed);
    let all = (0..count).map(|_| lines(&mut rng));
    let folders: Vec<_> = all.map(|lines| (lines.join("; "), lines)).collect();
    sides::over(name, PREPARE, &folders, 4, |sides, lines| {
        run(sides, lines);
        compare(sides);
    });
}

#[test]
fn whole_images_become_the_same() {
    over_folders("whole", 1, RIGHT, right);
}

#[test]
fn mistakes_are_answered_in_the_same_words() {
    over_folders("whole-mistakes", 2, WRONG, wrong);
}
