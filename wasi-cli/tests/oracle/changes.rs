//! Lines that change images: what qemu-img and qemu-io say to them, and what the images are like afterwards.
//! Every line finds the same images anew, once for the oracle and once for ours.
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::answers::{Answer, Folder, answer, oracle_is_missing, shell, words};

/// Small images of every kind, with data, compressed clusters, zeros and nothing in the same places.
const PREPARE: &str = r#"
set -e
fill() {
  qemu-io -c 'write -q -P 1 0 256k' -c 'write -q -c -P 2 1M 128k' -c 'write -q -z 2M 128k' $1
}
create() { qemu-img create -q -f qcow2 "$@"; }
yes data | head -c 3145728 > base.raw
create a.qcow2 4M
create v2.qcow2 -o compat=0.10 4M
create small.qcow2 -o cluster_size=512 4M
create large.qcow2 -o cluster_size=128k,lazy_refcounts=on 4M
create two.qcow2 -o refcount_bits=2 4M
create sub.qcow2 -o extended_l2=on,cluster_size=16k 4M
create over.qcow2 -b base.raw -F raw 4M
create over2.qcow2 -b base.raw -F raw -o compat=0.10 4M
create zstd.qcow2 -o compression_type=zstd,refcount_bits=64 4100k
for image in a v2 small large two sub over over2 zstd; do fill $image.qcow2; done
create data.qcow2 -o data_file=data.raw 4M
create plain.qcow2 -o data_file=plain.raw,data_file_raw=on 4M
for image in data plain; do
  qemu-io -c 'write -q -P 1 0 256k' -c 'write -q -z 2M 128k' $image.qcow2
done
create snap.qcow2 4M
fill snap.qcow2
for name in s1 s1 2 '' old; do qemu-img snapshot -c "$name" snap.qcow2; done
qemu-io -c 'write -q -P 5 64k 100k' snap.qcow2
qemu-img resize -q snap.qcow2 5M
create v2snap.qcow2 -o compat=0.10 4M
qemu-img snapshot -c s1 v2snap.qcow2
qemu-io -c 'write -q -P 5 64k 100k' v2snap.qcow2
create map.qcow2 4M
qemu-img bitmap --add map.qcow2 b0
create big.qcow2 8G
create aes.qcow2 --object secret,id=s,data=abc -o encrypt.format=aes,encrypt.key-secret=s 1M
create lost.qcow2 -u -b gone.raw -F raw 1M
head -c 1048576 base.raw > r.raw
head -c 1000 base.raw > odd.raw
head -c 1048576 base.raw > guess.raw
printf abc > pattern
: > empty
printf 'KDMV' > vmdk
"#;

/// The images that take part in everything that is generated.
const IMAGES: &[&str] = &[
    "a.qcow2",
    "v2.qcow2",
    "small.qcow2",
    "large.qcow2",
    "two.qcow2",
    "sub.qcow2",
    "over.qcow2",
    "over2.qcow2",
    "zstd.qcow2",
    "data.qcow2",
    "plain.qcow2",
    "snap.qcow2",
    "map.qcow2",
    "-f raw r.raw",
];

/// Whole clusters, parts of them, across data and compressed and zero clusters, and the end of the disk.
const SPANS: &[&str] = &[
    "0 64k",
    "100 1000",
    "65535 2",
    "128k 1M",
    "1000k 200k",
    "1M 64k",
    "2047k 3k",
    "2M 128k",
    "3M 512",
    "4095k 1k",
    "1000k 0",
];

/// What is done with each of them.
const OPERATIONS: &[&str] = &[
    "write -P 7",
    "write -s pattern",
    "write -z",
    "write -z -u",
    "write -f -P 8",
    "write -z -f",
    "writev -P 9",
    "aio_write -P 10",
    "aio_write -z -u",
    "discard",
];

/// New sizes, and how they are asked for.
const SIZES: &[&str] = &[
    "4M",
    "+0",
    "5M",
    "+512",
    "6000k",
    "+1000",
    "3M",
    "-1M",
    "-k",
    "--shrink 3M",
    "--shrink -1k",
    "--shrink 1500k",
    "--shrink 512",
    "--shrink -100M",
    "--shrink --preallocation=off 2M",
    "--shrink --preallocation=full 2M",
    "--preallocation=metadata 6M",
    "--preallocation=falloc +1M",
    "--preallocation=full 5000k",
    "--preallocation=full 4M",
    "--preallocation=foo 6M",
    "-q 1E",
];

const SNAPSHOTS: &[&str] = &[
    "-c new",
    "-c s1",
    "-c ''",
    "-a s1",
    "-a 1",
    "-a 2",
    "-a ''",
    "-a old",
    "-a nope",
    "-d s1",
    "-d 1",
    "-d 2",
    "-d ''",
    "-d nope",
    "-q -d old",
    "-l -c x",
    "-U -c x",
    "-U -a s1",
    "-c",
];

/// Compressed writes: to where nothing is, to where something is, past the end, and of no whole cluster.
const COMPRESSED: &[&[&str]] = &[
    &["512k 128k", "3M 64k", "4M 4k"],
    &["0 64k", "2M 128k", "9M 1M"],
    &["512k 64k", "3M 512", "3000k 64k"],
];

/// Every line that can be put together: the program, and its arguments.
fn generated() -> Vec<(&'static str, String)> {
    // One after the other, so that each finds what those before it did.
    let commands = |operation: &str, spans: &[&str]| -> String {
        let commands = spans
            .iter()
            .map(|span| format!("-c '{operation} {span}' -c aio_flush "));
        commands.collect()
    };
    let mut lines = Vec::new();
    for image in IMAGES {
        for operation in OPERATIONS {
            // A raw file keeps what is discarded: not every system can punch holes.
            if *operation != "discard" || !image.ends_with("raw") {
                lines.push(("qemu-io", format!("{} {image}", commands(operation, SPANS))));
            }
        }
        for spans in COMPRESSED {
            let commands = commands("write -c -P 7", spans);
            lines.push(("qemu-io", format!("{commands} {image}")));
        }
        for size in SIZES {
            let (options, size) = size.rsplit_once(' ').unwrap_or(("", size));
            lines.push(("qemu-img", format!("resize {options} {image} {size}")));
        }
        for snapshot in SNAPSHOTS {
            let line = format!("snapshot {snapshot} {image}");
            if !ON_PURPOSE.iter().any(|(_, other, _)| *other == line) {
                lines.push(("qemu-img", line));
            }
        }
    }
    lines
}

fn written_down() -> impl Iterator<Item = (&'static str, String)> {
    let lines = include_str!("change-lines.txt").lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| match line.split_once(' ') {
            Some(("img", line)) => ("qemu-img", line.to_owned()),
            Some(("io", line)) => ("qemu-io", line.to_owned()),
            _ => panic!("neither img nor io: {line}"),
        })
}

/// What is said and what is left: the answer, and how each image named in the line looks to the oracle.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    answer: Answer,
    images: Vec<String>,
}

/// What `info` and `check` tell, without what depends on where clusters were put and when.
fn state(folder: &Path, image: &str) -> String {
    let format = format_of(image);
    let script =
        format!("qemu-img info -U -f {format} {image}; qemu-img check -U -f {format} {image} 2>&1");
    let output = shell(folder, &script).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    // Where and how much is allocated is each program's own affair, unless something is wrong.
    let own = ["disk size", "file length", "Image end offset"];
    let told = told
        .lines()
        .filter(|line| {
            !own.iter().any(|own| line.trim_start().starts_with(own))
                && !line.contains("% allocated")
        })
        .map(without_date);
    told.collect::<Vec<_>>().join("\n")
}

fn format_of(image: &str) -> &'static str {
    if image.ends_with(".raw") {
        "raw"
    } else {
        "qcow2"
    }
}

/// Dates of snapshots differ by when the test ran.
fn without_date(line: &str) -> String {
    let is_date = |word: &&str| word.len() == 10 && word.matches('-').count() == 2;
    match line.split_whitespace().find(is_date) {
        Some(date) => {
            let at = line.find(date).unwrap_or(0);
            // "2026-11-21 13:47:28"
            format!("{}{}", &line[..at], line.get(at + 19..).unwrap_or(""))
        }
        None => line.to_owned(),
    }
}

/// The images that a line names.
fn images(line: &str) -> Vec<&str> {
    line.split([' ', ',', '=', '\'', '"'])
        .filter(|word| word.ends_with(".qcow2") || word.ends_with(".raw"))
        .collect()
}

/// The files that a line may ask for: those that it names, and whatever is no image.
fn needed(template: &Path, line: &str) -> Vec<OsString> {
    let all = std::fs::read_dir(template).unwrap();
    let all = all.map(|file| file.unwrap().file_name());
    let is_needed = |file: &OsString| {
        let file = file.to_str().unwrap();
        let (stem, _) = file.split_once('.').unwrap_or((file, ""));
        // What an image stands on goes with it.
        !file.ends_with(".qcow2") && file != "base.raw"
            || line.contains(stem)
            || file == "base.raw" && line.contains("over")
    };
    all.filter(is_needed).collect()
}

/// Copies the images, runs the line on both sides, and says what is different.
fn compare(template: &Path, place: &Path, name: &str, line: &str) -> Option<String> {
    let (words, images) = (words(line), images(line));
    let (theirs, ours) = (place.join("theirs"), place.join("ours"));
    let mut outcomes = Vec::new();
    for (folder, program) in [(&theirs, name), (&ours, env!("CARGO_BIN_EXE_oxcow"))] {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir(folder).unwrap();
        for file in needed(template, line) {
            std::fs::copy(template.join(&file), folder.join(&file)).unwrap();
        }
        outcomes.push(Outcome {
            answer: answer(folder, Path::new(program), name, &words),
            images: images.iter().map(|image| state(folder, image)).collect(),
        });
    }
    let mut different = String::new();
    if outcomes[0] != outcomes[1] {
        different = format!("expected {:#?}\ngot {:#?}", outcomes[0], outcomes[1]);
    }
    for image in images {
        let format = if image.ends_with(".raw") {
            "raw"
        } else {
            "qcow2"
        };
        // What cannot be opened cannot be compared either.
        let compared = Command::new("qemu-img")
            .args(["compare", "-U", "-f", format, "-F", format])
            .args([theirs.join(image), ours.join(image)])
            .output()
            .unwrap();
        if compared.status.code() == Some(1) {
            different += &format!("\n{image}: {}", String::from_utf8_lossy(&compared.stdout));
        }
    }
    (!different.is_empty()).then(|| format!("{name} {line}\n{different}"))
}

#[test]
fn changes_are_answered_and_made_as_qemu_makes_them() {
    if oracle_is_missing() {
        return;
    }
    let template = Folder::prepared("changes", PREPARE);
    let only = std::env::var("OXCOW_LINES").unwrap_or_default();
    let mut lines = generated();
    lines.extend(written_down());
    lines.retain(|(name, line)| format!("{name} {line}").contains(&only));
    assert!(!lines.is_empty());
    let next = AtomicUsize::new(0);
    let different = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (template, lines, next, different) = (&template.0, &lines, &next, &different);
            scope.spawn(move || {
                let place = Folder::prepared(&format!("changes-{worker}"), "");
                while let Some((name, line)) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = compare(template, &place.0, name, line);
                    different.lock().unwrap().extend(found);
                }
            });
        }
    });
    let different = different.into_inner().unwrap();
    assert!(
        different.is_empty(),
        "{} of {} lines:\n{}",
        different.len(),
        lines.len(),
        different.join("\n\n")
    );
}

/// What qemu-img cannot do, or not without harm; each with what is said instead.
const ON_PURPOSE: &[(&str, &str, &str)] = &[
    // Its long options take no argument, though its help says so.
    ("qemu-img", "snapshot --create new a.qcow2", ""),
    ("qemu-img", "snapshot --apply s1 snap.qcow2", ""),
    ("qemu-img", "snapshot --delete s1 snap.qcow2", ""),
    // It says "Invalid argument" and leaves leaked clusters.
    (
        "qemu-img",
        "snapshot -c new two.qcow2",
        "2 bits cannot count 4 references",
    ),
    (
        "qemu-img",
        "snapshot -c s1 two.qcow2",
        "2 bits cannot count 4 references",
    ),
    (
        "qemu-img",
        "snapshot -c '' two.qcow2",
        "2 bits cannot count 4 references",
    ),
    // It looks for a temporary file that is gone.
    (
        "qemu-io",
        "-s -c 'write -q -P 3 0 1k' -c 'reopen -r' -c 'read -q -P 3 0 1k' -c 'reopen -w' -c 'write -q 0 1' a.qcow2",
        "",
    ),
    (
        "qemu-io",
        "-s -c 'write -q -P 3 0 1k' -c 'reopen -r' -c 'write -q 0 1' a.qcow2",
        "Block node is read-only",
    ),
];

#[test]
fn where_ours_differs_it_is_on_purpose() {
    if oracle_is_missing() {
        return;
    }
    for (name, line, complaint) in ON_PURPOSE {
        let folder = Folder::prepared("on-purpose", PREPARE);
        let ours = Path::new(env!("CARGO_BIN_EXE_oxcow"));
        let said = answer(&folder.0, ours, name, &words(line));
        assert_eq!(
            said.code,
            Some(i32::from(!complaint.is_empty())),
            "{line}: {said:?}"
        );
        assert!(
            said.stderr.trim_end().ends_with(complaint),
            "{line}: {said:?}"
        );
        assert_eq!(
            complaint.is_empty(),
            said.stderr.is_empty(),
            "{line}: {said:?}"
        );
        for image in images(line) {
            let check = shell(&folder.0, &format!("qemu-img check -q {image}"))
                .output()
                .unwrap();
            assert!(check.status.success(), "{line}: {check:?}");
        }
    }
}

/// Files that cannot be written to, or not as far as that: the same words, and an image that is still good.
const LIMITED: &[(&str, &str)] = &[
    (
        "read-only file",
        "qemu-img resize -f raw /sys/kernel/notes 1M",
    ),
    (
        "read-only file for io",
        "qemu-io -f raw -c 'write 0 1' /sys/kernel/notes",
    ),
    ("folder", "qemu-img resize . 1M"),
    (
        "full",
        "limit; qemu-io -t writeback -c 'write -P 3 0 256k' -c 'write -P 4 1M 2M' -c 'read 0 1' a.qcow2",
    ),
    (
        "full by compressed clusters",
        "limit; qemu-io -c 'write -P 3 0 256k' -c 'write -c -s noise 2M 1M' a.qcow2",
    ),
    (
        "written by another",
        "hold a.qcow2; qemu-img resize a.qcow2 +1M; release",
    ),
    (
        "written by another, for io",
        "hold a.qcow2; qemu-io -c 'write 0 1' a.qcow2; release",
    ),
    (
        "written by another, for reading",
        "hold a.qcow2; qemu-img info a.qcow2; release",
    ),
    (
        "backing file written by another",
        "hold a.qcow2; qemu-img create -q -f qcow2 -u -b a.qcow2 -F qcow2 o.qcow2 1M; \
         qemu-img map o.qcow2; release",
    ),
    (
        "read by another",
        "hold -r a.qcow2; qemu-img snapshot -c x a.qcow2; release",
    ),
];

/// What the lines above use. `limit`: a file may grow to 1 MiB and no further, which is an error in the
/// middle of the work. `hold`, `release`: another program has the image open; the exit code is that of the
/// line between them.
const HELP: &str = "
head -c 1048576 /dev/urandom > noise
limit() { trap '' XFSZ; ulimit -f 2048; }
hold() {
  mkfifo commands
  qemu-io \"$@\" < commands > prompt &
  exec 3> commands
  until grep -qs io prompt; do sleep 0.02; done
}
release() { code=$?; exec 3>&-; wait; return $code; }
";

#[test]
fn what_cannot_be_written_is_told_of_and_the_image_stays_good() {
    if oracle_is_missing() {
        return;
    }
    let oracle_and_ours = ["qemu-", env!("CARGO_BIN_EXE_oxcow")];
    for (what, line) in LIMITED {
        let mut answers = Vec::new();
        for program in oracle_and_ours {
            let folder = Folder::prepared("limited", PREPARE);
            let link = folder.0.join("bin");
            std::fs::create_dir(&link).unwrap();
            let path = if program == "qemu-" {
                std::env::var("PATH").unwrap()
            } else {
                for name in ["qemu-img", "qemu-io"] {
                    std::os::unix::fs::symlink(program, link.join(name)).unwrap();
                }
                format!("{}:{}", link.display(), std::env::var("PATH").unwrap())
            };
            let script = format!("{HELP}{line}");
            let output = shell(&folder.0, &script)
                .env("PATH", path)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let failed: Vec<_> = said
                .lines()
                .filter(|line| line.contains("failed"))
                .map(str::to_owned)
                .collect();
            let mut complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            if what.starts_with("full") {
                // Ours says on standard error what it was doing.
                complaint.clear();
                let check = shell(&folder.0, "qemu-img check -q a.qcow2")
                    .output()
                    .unwrap();
                let left = check.status.code();
                assert!(matches!(left, Some(0 | 3)), "{line}: {left:?} {check:?}");
            }
            answers.push((output.status.code(), failed, complaint));
        }
        assert_eq!(answers[1], answers[0], "{what}: {line}");
        assert_ne!(answers[0].0, Some(0), "{what}: {line}");
    }
}
