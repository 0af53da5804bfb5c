//! New images: random options, and random mistakes among them, given to qemu-img and to ours. Both must say
//! the same, make the same files, and the judge must find the same in them.

use std::collections::BTreeMap;
use std::convert::identity;
use std::fs;
use std::path::Path;

use oxcow_tests::compare::difference;
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::recipe::fill_holes;
use oxcow_tests::rng::Rng;
use oxcow_tests::run::Outcome;
use oxcow_tests::scratch::Scratch;

use super::sides::{self, Sides};

/// How many command lines of each kind; every third is asked of the sandboxed build too.
const LINES: usize = 240;
/// A size that most file systems have no files of.
const TOO_LONG: &str = "7E";
/// The largest file whose map is compared: its holes are filled first.
const MAPPED: u64 = 32 << 20;

/// Images to stand on, and files that are in the way.
const PREPARE: &str = "
set -e
yes base | head -c 1048576 > base.raw
head -c 1000 base.raw > odd.raw
qemu-img create -q -f qcow2 base.qcow2 3000000
qemu-io -c 'write -q -P 7 1M 100k' base.qcow2
echo 'not an image' > there
";

/// The folder for what is created elsewhere than beside them.
fn add_folder(scratch: &Scratch) {
    fs::create_dir(scratch.path().join("sub")).expect("the scratch folder can be written");
}

/// What a line of options is put together from.
#[derive(Default)]
struct Line {
    options: Vec<String>,
    other: Vec<String>,
    /// Neither allocated nor written.
    sparse: bool,
}

impl Line {
    fn option(&mut self, name: &str, value: impl std::fmt::Display) {
        self.options.push(format!("{name}={value}"));
    }

    fn args(self, file: &str, size: Option<String>) -> Vec<String> {
        let mut args = vec!["create".to_owned(), "-f".to_owned(), "qcow2".to_owned()];
        args.extend(self.other);
        if !self.options.is_empty() {
            args.extend(["-o".to_owned(), self.options.join(",")]);
        }
        args.push(file.to_owned());
        args.extend(size);
        args
    }
}

/// A line that is right.
fn right(rng: &mut Rng) -> Vec<String> {
    let mut line = Line::default();
    let mut bits = 9 + rng.below(13);
    if rng.one_in(5) {
        bits = 16;
    } else {
        line.option("cluster_size", 1u64 << bits);
    }
    let extended = bits >= 14 && rng.one_in(3);
    let old = !extended && rng.one_in(6);
    if extended {
        line.option("extended_l2", rng.pick(&["on", "yes", "true"]));
    }
    if old {
        line.option("compat", rng.pick(&["0.10", "v2"]));
    } else {
        if rng.one_in(4) {
            line.option("compat", rng.pick(&["1.1", "v3"]));
        }
        if rng.one_in(2) {
            line.option("refcount_bits", 1u64 << rng.below(7));
        }
        if rng.one_in(3) {
            line.option("lazy_refcounts", rng.pick(&["on", "off"]));
        }
        if rng.one_in(3) {
            line.option("compression_type", rng.pick(&["zstd", "zlib"]));
        }
    }
    let backing = rng.one_in(3);
    if backing {
        let (name, format) = *rng.pick(&[
            ("base.raw", "raw"),
            ("base.qcow2", "qcow2"),
            ("odd.raw", "raw"),
            ("base.qcow2", "raw"),
            ("./base.raw", "file"),
            ("file:base.qcow2", "qcow2"),
        ]);
        line.other
            .extend(["-b", name, "-F", format].map(str::to_owned));
    }
    if !old && rng.one_in(4) {
        line.option("data_file", "data");
        if !backing && rng.one_in(2) {
            line.option("data_file_raw", "on");
        }
    }
    let mode = match (backing && !extended, rng.below(6)) {
        (true, _) | (_, 0 | 1) => "off",
        (_, 2 | 3) => "metadata",
        (_, 4) => "falloc",
        _ => "full",
    };
    if mode != "off" || rng.one_in(3) {
        line.option("preallocation", mode);
    }
    if rng.one_in(12) {
        line.other.push("-q".to_owned());
    }
    line.sparse = mode == "off" && !line.options.iter().any(|o| o == "data_file_raw=on");
    let size = match rng.below(8) {
        0 => 0,
        1 => 1 + rng.below(2048),
        2 => 512 * rng.below(4096),
        3 => 1 << (9 + rng.below(14)),
        // Tables of several clusters, where nothing else is written.
        4 | 5 if line.sparse => rng.below(1 << (bits + 17)),
        _ => rng.below(5 << 20),
    };
    let size = (!backing || rng.one_in(2)).then(|| size.to_string());
    line.args("new", size)
}

/// One to three pieces, each of which is wrong alone or together with others.
fn wrong(rng: &mut Rng) -> Vec<String> {
    const OPTIONS: &[&str] = &[
        "compat=0.10",
        "compat=0.10",
        "compat=1.0",
        "compat",
        "cluster_size=1000",
        "cluster_size=256",
        "cluster_size=4M",
        "cluster_size=0",
        "cluster_size=foo",
        "cluster_size=-1",
        "cluster_size=8k",
        "cluster_size=512",
        "refcount_bits=3",
        "refcount_bits=8",
        "refcount_bits=128",
        "refcount_bits=0",
        "refcount_bits=-1",
        "refcount_bits=foo",
        "refcount_bits=99999999999999999999",
        "extended_l2",
        "extended_l2=on",
        "extended_l2=maybe",
        "lazy_refcounts=on",
        "nolazy_refcounts",
        "compression_type=zstd",
        "compression_type=lz4",
        "preallocation=metadata",
        "preallocation=everything",
        "data_file=data",
        "data_file=foo:data",
        "data_file=nodir/data",
        "data_file_raw=on",
        "backing_fmt=raw",
        "backing_fmt=nosuch",
        "backing_file=base.raw",
        "backing_file=",
        "backing_file=new",
        "encryption=on",
        "encrypt.format=luks",
        "encrypt.format=rot13",
        "encrypt.cipher-alg=aes-256",
        "size=64P",
        "size=1G",
        "size=-1",
        "size=8E",
        "nosuch=1",
        "nosuch",
        "nonsense",
        "nocow",
        "nocow=on",
    ];
    const OTHERS: &[&[&str]] = &[
        &["-b", "base.raw"],
        &["-b", "base.raw", "-F", "raw"],
        &["-b", "base.raw", "-F", "qcow2"],
        &["-b", "base.raw", "-F", "nosuch"],
        &["-b", "base.raw", "-F", "nosuch", "-u"],
        &["-b", "gone", "-F", "raw"],
        &["-b", "gone", "-F", "raw", "-u"],
        &["-b", "gone"],
        &["-b", "", "-F", "raw"],
        &["-b", "sub", "-F", "raw"],
        &["-b", "new", "-F", "raw"],
        &["-b", "foo:bar", "-F", "raw"],
        &["-F", "raw"],
        &["-F", ""],
        &["-u"],
        &["-f", "nosuch"],
        &["-f", "raw"],
        &["-o", ""],
        &["-o", ",,"],
        &["--object", "nosuch,id=a"],
        &["--nosuch"],
        &["-Z"],
        &["--back", "x"],
    ];
    let mut line = Line::default();
    for _ in 0..1 + rng.below(3) {
        if rng.one_in(3) {
            let other = *rng.pick(OTHERS);
            line.other.extend(other.iter().map(|&word| word.to_owned()));
        } else {
            line.options.push((*rng.pick(OPTIONS)).to_owned());
        }
    }
    // qemu-img creates the data file before it looks at the options that need no file, ours after.
    if line
        .options
        .iter()
        .any(|option| option.starts_with("data_file=") && option.len() > 14)
    {
        line.options
            .retain(|option| option.starts_with("data_file="));
        line.other.clear();
    }
    let file = match rng.below(12) {
        0 => "foo:new",
        1 => "nodir/new",
        2 => "sub",
        3 => "",
        _ => "new",
    };
    let size = match rng.below(8) {
        0 => None,
        1 => Some("foo"),
        2 => Some("1Mx"),
        3 => Some("8E"),
        _ => Some("1M"),
    };
    let mut args = line.args(file, size.map(str::to_owned));
    if rng.one_in(20) {
        args.push("more".to_owned());
    }
    args
}

/// The lengths of all files in the folder.
fn lengths(folder: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(folder).expect("the folder is there").flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    let named = files.map(|entry| {
        let length = entry.metadata().map_or(0, |metadata| metadata.len());
        (entry.file_name().to_string_lossy().into_owned(), length)
    });
    named.collect()
}

/// What a line left in both folders.
struct Case<'a> {
    args: &'a [String],
    sides: &'a mut Sides,
}

impl Case<'_> {
    fn has(&self, option: &str) -> bool {
        self.args
            .iter()
            .any(|arg| arg.split(',').any(|part| part == option))
    }

    fn compare_lengths(&mut self) {
        let list = |lengths: BTreeMap<String, u64>| -> String {
            let lines = lengths
                .iter()
                .map(|(name, length)| format!("{name} {length}\n"));
            lines.collect()
        };
        let [expected, found] = self
            .sides
            .folders()
            .map(|folder| list(lengths(folder.path())));
        self.sides.note_if_different("files", &expected, &found);
    }

    /// Everything about two images that were made.
    fn compare_images(&mut self) {
        // Where the disk has no size qemu-img still moves the refcount table, and leaves a hole in its place.
        let nothing_to_allocate = self.args.last().is_some_and(|size| size == "0");
        let written = self.has("preallocation=falloc") || self.has("preallocation=full");
        let data_here = !self.has("data_file=data");
        if !(nothing_to_allocate && written && data_here) {
            self.compare_lengths();
            self.sides
                .judge(&["info", "--output=json", "new"], str::to_owned);
            self.sides
                .judge(&["check", "--output=json", "new"], str::to_owned);
        }
        let longest = lengths(self.sides.theirs.path()).into_values().max();
        if longest.is_some_and(|length| length <= MAPPED) {
            for scratch in self.sides.folders() {
                for name in ["new", "data"] {
                    let path = scratch.path().join(name);
                    if path.exists() {
                        fill_holes(&path).expect("the file can be written");
                    }
                }
            }
            // Data that is written stands in one piece in both, with more tables before it in ours.
            let elsewhere = written && data_here;
            self.sides
                .judge(&["map", "--output=json", "new"], |text| match elsewhere {
                    true => without_offsets(text),
                    false => text.to_owned(),
                });
        }
        let other = self.sides.theirs.file("new");
        let same = oracle::run(
            Tool::Img,
            self.sides.ours.path(),
            &["compare", "-f", "qcow2", "-F", "qcow2", "new", &other].map(str::to_owned),
        );
        self.sides
            .note_if_different("compare", "0 ", &format!("{} {}", same.code, same.stderr));
    }

    /// The judge writes to our image, and both checkers find nothing wrong with it.
    fn write(&mut self, rng: &mut Rng) {
        let info = ["info", "--output=json", "-U", "new"].map(str::to_owned);
        let info = oracle::run(Tool::Img, self.sides.ours.path(), &info).stdout;
        let info: serde_json::Value = serde_json::from_str(&info).unwrap_or_default();
        let size = info["virtual-size"].as_u64().unwrap_or(0);
        let mut args = Vec::new();
        for pattern in 1..=4 {
            let start = rng.below(size.max(1)) / 512 * 512;
            let length = (512 + rng.below(300_000) / 512 * 512).min(size.saturating_sub(start));
            if length > 0 {
                let write = format!("write -q -P {pattern} {start} {length}");
                args.extend(["-c".to_owned(), write]);
            }
        }
        args.push("new".to_owned());
        let wrote = oracle::run(Tool::Io, self.sides.ours.path(), &args);
        self.sides
            .note_if_different("qemu-io", "0 ", &format!("{} {}", wrote.code, wrote.stderr));
        let check = ["check", "new"].map(str::to_owned);
        let judged = oracle::run(Tool::Img, self.sides.ours.path(), &check);
        self.sides
            .note_if_different("check", "0 ", &format!("{} {}", judged.code, judged.stderr));
        let own = self
            .sides
            .build
            .stand_in(Tool::Img, self.sides.ours.path(), None, &check);
        self.sides.note("check", difference(&judged, &own));
    }
}

/// Every `"offset": …` in the answer of `map` taken away.
fn without_offsets(text: &str) -> String {
    let lines = text.lines().map(|line| match line.find(", \"offset\": ") {
        Some(at) => {
            let digits = line[at + 12..].trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{}{digits}\n", &line[..at])
        }
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// Runs random lines, every third of them with the sandboxed build too, and looks at what they did.
fn over_lines(
    name: &str,
    seed: u64,
    line: impl Fn(&mut Rng) -> Vec<String>,
    look: impl Fn(&mut Case<'_>, &Outcome, &mut Rng) + Sync,
) {
    let mut rng = Rng::new(seed);
    let numbered = (0..LINES as u64).map(|index| (index, line(&mut rng)));
    let lines: Vec<_> = numbered
        .map(|(index, args)| (args.join(" "), (index, args)))
        .collect();
    sides::over(name, PREPARE, &lines, 3, |sides, (index, args)| {
        sides.folders().into_iter().for_each(add_folder);
        let outcome = sides.run(args, identity);
        look(
            &mut Case { args, sides },
            &outcome,
            &mut Rng::new(seed ^ index),
        );
    });
}

#[test]
fn new_images_are_the_same() {
    over_lines("create", 1, right, |case, outcome, rng| {
        if outcome.code != 0 {
            let why = outcome.stderr.clone();
            case.sides.note("the judge", Some(why));
            return;
        }
        case.compare_images();
        case.write(rng);
    });
}

#[test]
fn mistakes_are_answered_in_the_same_words() {
    over_lines("create-mistakes", 2, wrong, |case, outcome, _| {
        let raw = case.args.windows(2).any(|pair| pair == ["-f", "raw"]);
        // A raw file that could not be made is left behind empty by qemu-img, and not made at all by ours.
        if outcome.code == 0 || !raw {
            case.compare_lengths();
        }
    });
}

/// The one thing that ours does otherwise on purpose: qemu-img empties a file before it finds out that it
/// cannot make the image, and then removes it.
#[test]
fn what_is_there_stays_where_no_image_can_be_made() {
    let refused: &[&[&str]] = &[
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "compat=nosuch",
            "there",
            "1M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "refcount_bits=3",
            "there",
            "1M",
        ],
        &["create", "-f", "qcow2", "there", "64P"],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=there,compat=0.10",
            "new",
            "1M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=nodir/data",
            "there",
            "1M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=./there",
            "there",
            "1M",
        ],
        &[
            "create",
            "-f",
            "raw",
            "-o",
            "preallocation=metadata",
            "there",
            "1M",
        ],
        &["create", "-f", "raw", "there", TOO_LONG],
        // Its own backing file by another name.
        &[
            "create", "-f", "qcow2", "-b", "there", "-F", "raw", "./there", "1M",
        ],
    ];
    if !oracle::available() {
        return;
    }
    let prepared = sides::prepare("create-prepared", PREPARE);
    // A file system without a limit would make it.
    let trial = Scratch::new("create-refused");
    let endless = fs::File::create(trial.path().join("there"))
        .and_then(|file| file.set_len(7 << 60))
        .is_ok();
    for build in [Build::Native, Build::Wasm] {
        let possible = |args: &&&[&str]| !(endless && args.contains(&TOO_LONG));
        for args in refused.iter().filter(possible) {
            let folder = sides::copied(&prepared, Scratch::new("create-refused"));
            add_folder(&folder);
            let before = lengths(folder.path());
            let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
            let outcome = build.stand_in(Tool::Img, folder.path(), None, &args);
            assert_eq!(outcome.code, 1, "{args:?}: {}", outcome.stderr);
            assert_eq!(lengths(folder.path()), before, "{args:?}");
            let there = fs::read(folder.path().join("there")).expect("it is still there");
            assert_eq!(there, b"not an image\n", "{args:?}");
        }
    }
}

#[test]
fn relative_names_are_those_of_the_working_folder_whatever_else_is_given() {
    let scratch = Scratch::new("create-relative");
    let dir = scratch.path();
    let also = Some(Path::new("/"));
    let run = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let outcome = Build::Wasm.run("oxcow", dir, also, &words);
        assert_eq!(outcome.code, 0, "{line}: {}", outcome.stderr);
        outcome.stdout
    };
    run("create -q -f qcow2 relative-name.qcow2 1M");
    assert!(dir.join("relative-name.qcow2").is_file());
    assert!(run("info relative-name.qcow2").starts_with("image: relative-name.qcow2\n"));
    let whole = dir.join("relative-name.qcow2").display().to_string();
    run(&format!("info {whole}"));
}
