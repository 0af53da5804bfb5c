//! Disks copied into new images and over old ones: random options, and random mistakes among them, given to
//! qemu-img and to ours. Both must say the same, and the judge must find the same in what was made.

use std::convert::identity;
use std::fs;
use std::path::Path;

use oxcow_tests::compare::difference;
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::rng::Rng;
use oxcow_tests::scratch::Scratch;
use serde_json::Value;

use super::sides::{self, Sides, features};

/// How many command lines of each kind; every fourth is asked of the sandboxed build too.
const LINES: usize = 240;
/// What is written, unless there is a target already.
const NEW: &str = "new";

/// Sources of every kind, in which data, zeros, compressed clusters and nothing meet in places that are
/// aligned to something and in places that are not; and targets that hold something else.
const PREPARE: &str = "
set -e
yes base | head -c 1048576 > base.raw
head -c 1000 base.raw > odd.raw
{
  yes 'copy on write' | head -c 700000
  head -c 30000 /dev/zero
  yes 'write on copy' | head -c 9000
  head -c 300000 /dev/zero
  printf x
  head -c 500000 /dev/zero
  yes disk | head -c 800000
  head -c 200k /dev/zero
} > mixed.raw
create() { qemu-img create -q -f qcow2 \"$@\"; }
create plain.qcow2 4M
qemu-io -c 'write -q -P 1 0 256k' -c 'write -q -c -P 2 1M 128k' -c 'write -q -z 2M 128k' \
  -c 'write -q -P 3 3000k 5k' -c 'write -q -P 0 3100k 200k' plain.qcow2
create small.qcow2 -o cluster_size=512 3000000
qemu-io -c 'write -q -P 5 1000 3k' -c 'write -q -P 6 1M 100k' -c 'write -q -P 7 2900k 20k' small.qcow2
create large.qcow2 -o cluster_size=2M,extended_l2=on,compression_type=zstd 5000k
qemu-io -c 'write -q -P 5 100k 3k' -c 'write -q -c -P 6 2M 2M' large.qcow2
create over.qcow2 -b base.raw -F raw 2M
qemu-io -c 'write -q -P 9 100k 100k' -c 'write -q -z 300k 200k' -c 'write -q -P 8 1500k 64k' over.qcow2
create over2.qcow2 -b over.qcow2 -F qcow2 3M
qemu-io -c 'write -q -P 10 150k 100k' -c 'write -q -z 1M 100k' -c 'write -q -P 11 2500k 64k' over2.qcow2
create data.qcow2 -o data_file=data.raw 2M
qemu-io -c 'write -q -P 10 150k 100k' data.qcow2
create snap.qcow2 2M
qemu-io -c 'write -q -P 10 150k 100k' snap.qcow2
qemu-img snapshot -c s1 snap.qcow2
qemu-io -c 'write -q -P 11 100k 100k' snap.qcow2
create v2.qcow2 -o compat=0.10 1M
qemu-io -c 'write -q -P 11 100k 100k' v2.qcow2
create empty.qcow2 0
yes old | head -c 8388608 > there.raw
create there.qcow2 8M
create sub.qcow2 -o extended_l2=on 8M
for image in there sub; do
  qemu-io -c 'write -q -P 33 0 1M' -c 'write -q -P 34 2M 3M' $image.qcow2
done
";

/// What is copied.
const SOURCES: &[&str] = &[
    "plain.qcow2",
    "small.qcow2",
    "large.qcow2",
    "over.qcow2",
    "over2.qcow2",
    "data.qcow2",
    "snap.qcow2",
    "v2.qcow2",
    "empty.qcow2",
    "-f raw mixed.raw",
    "-f raw base.raw",
    "-f raw odd.raw",
    "-l s1 snap.qcow2",
    "-l snapshot.id=1 snap.qcow2",
    "--image-opts driver=qcow2,file.filename=plain.qcow2",
    "plain.qcow2 over.qcow2",
    "-f raw odd.raw mixed.raw",
    "small.qcow2 v2.qcow2 small.qcow2",
];

/// A command line, as far as it is put together.
#[derive(Default)]
struct Line {
    args: Vec<String>,
    options: Vec<String>,
}

impl Line {
    fn add(&mut self, words: &str) {
        self.args.extend(words.split(' ').map(str::to_owned));
    }

    fn option(&mut self, name: &str, value: impl std::fmt::Display) {
        self.options.push(format!("{name}={value}"));
    }

    fn finish(mut self, sources: &str, target: &str) -> Vec<String> {
        if !self.options.is_empty() {
            let list = self.options.join(",");
            self.args.extend(["-o".to_owned(), list]);
        }
        self.add(sources);
        self.args.push(target.to_owned());
        self.args.insert(0, "convert".to_owned());
        self.args
    }
}

/// A line that is right, its target and the target's format.
fn right(rng: &mut Rng) -> (Vec<String>, &'static str, &'static str) {
    let mut line = Line::default();
    let source = *rng.pick(SOURCES);
    how_to_copy(&mut line, rng);
    if rng.one_in(5) {
        let (target, format) = *rng.pick(&[
            ("there.qcow2", "qcow2"),
            ("sub.qcow2", "qcow2"),
            ("there.raw", "raw"),
        ]);
        line.add("-n -O");
        line.add(format);
        return (line.finish(source, target), target, format);
    }
    if rng.one_in(6) {
        if rng.one_in(2) {
            line.option("preallocation", rng.pick(&["off", "falloc", "full"]));
        }
        return (line.finish(source, NEW), NEW, "raw");
    }
    line.add("-O qcow2");
    new_qcow2(&mut line, source, rng);
    (line.finish(source, NEW), NEW, "qcow2")
}

fn how_to_copy(line: &mut Line, rng: &mut Rng) {
    if rng.one_in(6) {
        line.add("-W");
    }
    if rng.one_in(5) {
        line.add("-m");
        line.args.push((1 + rng.below(16)).to_string());
    }
    if rng.one_in(4) {
        line.add("-S");
        line.add(rng.pick::<&str>(&["0", "512", "4k", "12k", "64k", "128k", "1M", "1536"]));
    }
    if rng.one_in(8) {
        line.add("-t");
        line.add(rng.pick::<&str>(&["none", "unsafe", "writeback", "directsync"]));
    }
    if rng.one_in(8) {
        line.add(rng.pick::<&str>(&["--salvage", "-q", "-r 10G", "-U"]));
    }
}

/// All the options of a new image.
fn new_qcow2(line: &mut Line, source: &str, rng: &mut Rng) {
    let compress = rng.one_in(3);
    if compress {
        line.add("-c");
    }
    let bits = *rng.pick(&[9, 10, 12, 14, 16, 16, 16, 18, 21]);
    if bits != 16 {
        line.option("cluster_size", 1u64 << bits);
    }
    let old = rng.one_in(8);
    if old {
        line.option("compat", "0.10");
    } else {
        if bits >= 14 && rng.one_in(3) {
            line.option("extended_l2", "on");
        }
        if rng.one_in(4) {
            line.option("compression_type", "zstd");
        }
        if rng.one_in(4) {
            line.option("lazy_refcounts", "on");
        }
        if rng.one_in(4) {
            line.option("refcount_bits", 1u64 << rng.below(7));
        }
    }
    let alone = source.split(' ').count() == 1;
    let on_base = if source == "over2.qcow2" {
        ("over.qcow2", "qcow2")
    } else {
        ("base.raw", "raw")
    };
    if alone && (source.starts_with("over") && !rng.one_in(3) || rng.one_in(20)) {
        let (name, format) = on_base;
        if rng.one_in(2) {
            line.add(&format!("-B {name} -F {format}"));
        } else {
            line.option("backing_file", name);
            line.option("backing_fmt", format);
        }
    } else if !compress && !old && rng.one_in(8) {
        line.option("data_file", "new.data");
        if rng.one_in(2) {
            line.option("data_file_raw", "on");
        }
    } else if !compress && rng.one_in(4) {
        let modes = ["off", "metadata", "falloc", "full"];
        line.option("preallocation", rng.pick(&modes));
    }
}

/// A line in which something is wrong, mostly.
fn wrong(rng: &mut Rng) -> Vec<String> {
    const OPTIONS: &[&str] = &[
        "compat=0.10",
        "compat=1.0",
        "cluster_size=1000",
        "cluster_size=8k",
        "refcount_bits=3",
        "refcount_bits=8",
        "extended_l2=on",
        "extended_l2=maybe",
        "lazy_refcounts=on",
        "compression_type=zstd",
        "compression_type=lz4",
        "preallocation=metadata",
        "preallocation=everything",
        "data_file_raw=on",
        "backing_fmt=raw",
        "backing_fmt=nosuch",
        "backing_file=base.raw",
        "backing_file=gone",
        "encryption=on",
        "encrypt.format=luks",
        "size=1G",
        "size=-1",
        "nosuch=1",
        "nosuch",
        "nocow=on",
    ];
    const OTHERS: &[&str] = &[
        "-B base.raw",
        "-B base.raw -F raw",
        "-B base.raw -F nosuch",
        "-B gone -F raw",
        "-B foo:bar -F raw",
        "-F raw",
        "-O nosuch",
        "-O raw",
        "-O file",
        "-c",
        "-C",
        "-S 4k",
        "-S 0",
        "-S 13",
        "-n",
        "-n",
        "--target-is-zero",
        "--target-image-opts",
        "--skip-broken-bitmaps",
        "--salvage",
        "-l s1",
        "-l gone",
        "-l snapshot.name=s1",
        "-l snapshot.x=1",
        "-W",
        "-m 17",
        "-m 3",
        "-r x",
        "-t foo",
        "-T foo",
        "-t none",
        "--object nosuch,id=a",
        "--nosuch",
        "-Z",
        "--back x",
        "-p -q",
        "-f qcow2",
        "-f nosuch",
        "--image-opts",
        "-f raw",
    ];
    const FILES: &[&str] = &[
        "snap.qcow2",
        "v2.qcow2",
        "base.raw",
        "over.qcow2",
        "gone.qcow2",
        "data.qcow2",
    ];
    const TARGETS: &[&str] = &[
        "there.qcow2",
        "there.qcow2",
        "nodir/new",
        "foo:new",
        "v2.qcow2",
        "over.qcow2",
        "",
        "driver=qcow2,file.filename=there.qcow2",
    ];
    let mut line = Line::default();
    if !rng.one_in(10) {
        line.add("-O qcow2");
    }
    for _ in 0..1 + rng.below(4) {
        if rng.one_in(3) {
            line.options.push((*rng.pick(OPTIONS)).to_owned());
        } else {
            line.add(rng.pick::<&str>(OTHERS));
        }
    }
    let mut sources = *rng.pick(FILES);
    if rng.one_in(8) {
        sources = "over.qcow2 v2.qcow2";
    }
    let target = match rng.one_in(2) {
        true => NEW,
        false => *rng.pick(TARGETS),
    };
    let mut args = line.finish(sources, target);
    if rng.one_in(20) {
        args.truncate(args.len() - 1 - rng.below(2) as usize);
    }
    args
}

/// Everything about two targets that `args` have written.
fn compare_targets(sides: &mut Sides, args: &[String], target: &str, format: &str) {
    let content = |scratch: &Scratch| {
        let args = ["convert", "-f", format, target, "content"].map(str::to_owned);
        let read = oracle::run(Tool::Img, scratch.path(), &args);
        assert_eq!(read.code, 0, "{}", read.stderr);
        fs::read(scratch.path().join("content")).expect("the content can be read")
    };
    let [expected, found] = sides.folders().map(content);
    if expected != found {
        let at = expected.iter().zip(&found).position(|(a, b)| a != b);
        let lengths = (expected.len(), found.len());
        sides.note("content", Some(format!("differs at {at:?} of {lengths:?}")));
    }
    if format == "raw" {
        return;
    }
    let check = ["check", target].map(str::to_owned);
    let checked = oracle::run(Tool::Img, sides.ours.path(), &check);
    sides.note_if_different("check", "0", &checked.code.to_string());
    sides.judge(
        &["info", "-U", "-f", format, "--output=json", target],
        |json| format!("{:#}\n", features(json)),
    );
    // Over old content it is where qemu-img's requests begin and end that decides what becomes of parts of
    // clusters; and in an old overlay it writes zeros where there are zeros.
    let has = |option: &str| {
        let mut args = args.iter();
        args.any(|arg| arg.split([',', '=']).any(|word| word == option))
    };
    let old_overlay = has("0.10") && (has("-B") || has("backing_file"));
    if target == NEW && !old_overlay {
        sides.judge(&["map", "-f", format, "--output=json", target], extents);
    }
    for line in ["data_file_raw=on", "new.data"] {
        if args.iter().any(|arg| arg.contains(line)) {
            let read = |scratch: &Scratch| fs::read(scratch.path().join("new.data")).ok();
            let [theirs, ours] = sides.folders().map(read);
            sides.note("data file", (theirs != ours).then(|| "differs".to_owned()));
        }
    }
}

/// What `map` says, without places in the file, of which nobody says where they have to be, and without the
/// holes in what was written, which depend on how much was written at once.
fn extents(json: &str) -> String {
    let map: Value = serde_json::from_str(json).unwrap_or_default();
    let mut extents: Vec<(String, u64, u64)> = Vec::new();
    for extent in map.as_array().into_iter().flatten() {
        let zero = extent["zero"] == true && extent["data"] == false;
        let kind = format!(
            "depth {} present {} zero {zero} data {} compressed {}",
            extent["depth"], extent["present"], extent["data"], extent["compressed"]
        );
        let number = |name: &str| extent[name].as_u64().unwrap_or(u64::MAX);
        match extents.last_mut() {
            Some((last, _, length)) if *last == kind => *length += number("length"),
            _ => extents.push((kind, number("start"), number("length"))),
        }
    }
    let lines = extents
        .iter()
        .map(|(kind, start, length)| format!("{start} {length} {kind}\n"));
    lines.collect()
}

/// As many lines as are tried, each with its title.
fn lines<L>(
    seed: u64,
    line: impl Fn(&mut Rng) -> L,
    args: impl Fn(&L) -> &[String],
) -> Vec<(String, L)> {
    let mut rng = Rng::new(seed);
    let lines = (0..LINES).map(|_| line(&mut rng));
    lines.map(|line| (args(&line).join(" "), line)).collect()
}

#[test]
fn copies_are_the_same() {
    let lines = lines(1, right, |(args, ..)| args);
    sides::over(
        "convert",
        PREPARE,
        &lines,
        4,
        |sides, (args, target, format)| {
            let outcome = sides.run(args, identity);
            if outcome.code != 0 {
                sides.note("the judge", Some(outcome.stderr));
                return;
            }
            compare_targets(sides, args, target, format);
        },
    );
}

#[test]
fn mistakes_are_answered_in_the_same_words() {
    let lines = lines(2, wrong, |args| args);
    sides::over("convert-mistakes", PREPARE, &lines, 4, |sides, args| {
        sides.run(args, identity);
    });
}

/// What is lost of a damaged image is told sector by sector, and the rest is there.
#[test]
fn salvaging_keeps_what_can_be_read() {
    const SIZE: usize = 1 << 20;
    if !oracle::available() {
        return;
    }
    for build in [Build::Native, Build::Wasm] {
        let folder = Scratch::new("convert-salvage");
        let ours = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            build.stand_in(Tool::Img, folder.path(), None, &args)
        };
        let disk: Vec<u8> = b"salvage ".repeat(SIZE / 8);
        fs::write(folder.path().join("disk.raw"), &disk).expect("the folder can be written");
        let make = ["convert", "-c", "-O", "qcow2", "disk.raw", "bad.qcow2"].map(str::to_owned);
        let made = oracle::run(Tool::Img, folder.path(), &make);
        assert_eq!(made.code, 0, "{}", made.stderr);
        spoil(&folder.path().join("bad.qcow2"));
        let refused = ours(&["convert", "bad.qcow2", "lost.raw"]);
        assert_eq!(refused.code, 1);
        assert!(
            refused
                .stderr
                .starts_with("qemu-img: error while reading at byte "),
            "{}",
            refused.stderr
        );
        let kept = ours(&["convert", "--salvage", "bad.qcow2", "kept.raw"]);
        assert_eq!(kept.code, 0, "{}", kept.stderr);
        let kept_disk = fs::read(folder.path().join("kept.raw")).expect("the copy can be read");
        let told: Vec<usize> = kept
            .stderr
            .lines()
            .map(|line| {
                let rest = line
                    .strip_prefix("qemu-img: warning: error while reading offset ")
                    .expect("nothing else is told");
                let number = rest.split(':').next().unwrap_or_default();
                number.parse().expect("an offset")
            })
            .collect();
        assert_eq!(told.len(), 128, "one cluster is spoiled");
        let mut expected = disk;
        for at in told {
            expected[at..at + 512].fill(0);
        }
        assert!(kept_disk == expected);
        let quiet = ours(&["convert", "-q", "--salvage", "bad.qcow2", "kept.raw"]);
        assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    }
}

/// Breaks the first compressed stream of the image, which is where the first L2 entry says.
fn spoil(path: &Path) {
    let mut bytes = fs::read(path).expect("the image can be read");
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
        u64::from_be_bytes(bytes)
    };
    let l1 = number(&bytes, 40) as usize;
    let l2 = (number(&bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let entry = number(&bytes, l2);
    assert_ne!(entry & 1 << 62, 0, "it is compressed");
    let stream = (entry & ((1 << 54) - 1)) as usize;
    bytes[stream..stream + 16].fill(0xff);
    fs::write(path, bytes).expect("the image can be written");
}

/// Bitmaps are copied with every bit, whatever the clusters that they are cut into, and those that nobody can
/// trust are named.
#[test]
fn bitmaps_are_copied_bit_by_bit() {
    if !oracle::available() {
        return;
    }
    let script = "
set -e
for size in 4k 64k; do
  qemu-img create -q -f qcow2 -o cluster_size=$size $size.qcow2 300M
  qemu-img bitmap --add -g 64k $size.qcow2 wide
  qemu-img bitmap --add -g 512 $size.qcow2 fine
  qemu-img bitmap --add -g 1M --disable $size.qcow2 off
  qemu-io -c 'write -q 0 1M' -c 'write -q 100M 3000' -c 'write -q -z 200M 66M' $size.qcow2
  qemu-img bitmap --add -g 128k $size.qcow2 empty
done
";
    let prepared = sides::prepare("convert-bitmaps", script);
    for (source, clusters) in [
        ("4k.qcow2", "64k"),
        ("4k.qcow2", "512"),
        ("64k.qcow2", "64k"),
        ("64k.qcow2", "2M"),
    ] {
        let args: Vec<String> =
            format!("convert --bitmaps -O qcow2 -o cluster_size={clusters} {source} {NEW}")
                .split(' ')
                .map(str::to_owned)
                .collect();
        for build in [Build::Native, Build::Wasm] {
            let found = build.stand_in(Tool::Img, prepared.path(), None, &args);
            assert_eq!((found.code, found.stderr.as_str()), (0, ""), "{args:?}");
            let copy = bitmaps(&prepared.path().join(NEW));
            assert_eq!(copy.len(), 4);
            assert!(copy == bitmaps(&prepared.path().join(source)), "{args:?}");
            let check = ["check", NEW].map(str::to_owned);
            let checked = oracle::run(Tool::Img, prepared.path(), &check);
            assert_eq!(checked.code, 0, "{}", checked.stdout);
        }
    }
    distrust(&prepared.path().join("4k.qcow2"));
    for how in ["--bitmaps", "--bitmaps --skip-broken-bitmaps"] {
        let args: Vec<String> = format!("convert {how} -O qcow2 4k.qcow2 {NEW}")
            .split(' ')
            .map(str::to_owned)
            .collect();
        let expected = oracle::run(Tool::Img, prepared.path(), &args);
        let named = bitmaps(&prepared.path().join(NEW));
        let found = Build::Native.stand_in(Tool::Img, prepared.path(), None, &args);
        assert_eq!(difference(&expected, &found), None, "{how}");
        assert!(named == bitmaps(&prepared.path().join(NEW)), "{how}");
    }
}

fn be(bytes: &[u8], at: usize, length: usize) -> u64 {
    let digits = bytes[at..at + length].iter();
    digits.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Where the bitmap directory of the image stands, and how many entries it has.
fn directory(image: &[u8]) -> (usize, u64) {
    let mut at = be(image, 100, 4) as usize;
    loop {
        let (kind, length) = (be(image, at, 4), be(image, at + 4, 4) as usize);
        match kind {
            0x2385_2875 => return (be(image, at + 24, 8) as usize, be(image, at + 8, 4)),
            0 => return (0, 0),
            _ => at += 8 + length.next_multiple_of(8),
        }
    }
}

/// Name, flags, granularity and bits of every bitmap, as the specification has them; without the zeros at the
/// end, of which there are more in larger clusters.
fn bitmaps(path: &Path) -> Vec<(String, u64, u64, Vec<u8>)> {
    let image = fs::read(path).expect("the image can be read");
    let cluster = 1 << be(&image, 20, 4);
    let (mut at, count) = directory(&image);
    let mut bitmaps = Vec::new();
    for _ in 0..count {
        let (table, entries) = (be(&image, at, 8) as usize, be(&image, at + 8, 4) as usize);
        let (extra, name) = (
            be(&image, at + 20, 4) as usize,
            be(&image, at + 18, 2) as usize,
        );
        let start = at + 24 + extra;
        let text = String::from_utf8_lossy(&image[start..start + name]).into_owned();
        let mut bits = Vec::new();
        for index in 0..entries {
            match be(&image, table + index * 8, 8) as usize {
                0 => bits.extend(vec![0; cluster]),
                1 => bits.extend(vec![0xff; cluster]),
                data => bits.extend_from_slice(&image[data..(data + cluster).min(image.len())]),
            }
        }
        bits.truncate(
            bits.iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |last| last + 1),
        );
        bitmaps.push((text, be(&image, at + 12, 4), be(&image, at + 17, 1), bits));
        at += (24 + extra + name).next_multiple_of(8);
    }
    bitmaps
}

/// Says of the first bitmap that it was in use when somebody's machine stopped.
fn distrust(path: &Path) {
    let mut image = fs::read(path).expect("the image can be read");
    let (at, _) = directory(&image);
    image[at + 15] |= 1;
    fs::write(path, image).expect("the image can be written");
}
