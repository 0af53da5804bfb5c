//! Tables that contradict themselves, met by commands that may write: both say the same, both mark the image as
//! corrupt or leave it as it was, and neither goes on.

use std::fs;
use std::path::Path;

use oxcow_tests::normalise::normalise;
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::parallel;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::run::Outcome;
use oxcow_tests::scratch::Scratch;

/// Where a new image of qemu-img's has its tables.
const REFCOUNT_TABLE: usize = 0x10000;
const REFCOUNTS: usize = 0x20000;
const L1: usize = 0x30000;
const L2: usize = 0x40000;
const COPIED: u64 = 1 << 63;

/// Name, options of create, the bytes that are changed.
type Damage = (&'static str, &'static str, usize, &'static [u8]);

const fn entry(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

const DAMAGES: &[Damage] = &[
    ("none", "", 0, b"QFI"),
    ("l2-unaligned", "", L1, &entry(COPIED | 0x42a00)),
    ("l2-in-l1", "", L1, &entry(COPIED | 0x30000)),
    ("l2-in-refcounts", "", L1, &entry(COPIED | 0x20000)),
    ("data-unaligned", "", L2, &entry(COPIED | 0x52a00)),
    ("zero-unaligned", "", L2, &entry(COPIED | 0x52a01)),
    ("data-in-table", "", L2 + 8, &entry(COPIED | 0x10000)),
    ("data-in-l1", "", L2, &entry(COPIED | 0x30000)),
    ("data-in-refcounts", "", L2, &entry(COPIED | 0x20000)),
    ("data-in-l2", "", L2, &entry(COPIED | 0x40000)),
    ("refblock-unaligned", "", REFCOUNT_TABLE, &entry(0x2a00)),
    ("no-refblock", "", REFCOUNT_TABLE, &entry(0)),
    ("free-header", "", REFCOUNTS, &[0, 0]),
    ("free-refcount-table", "", REFCOUNTS + 2, &[0, 0]),
    ("free-refcount-block", "", REFCOUNTS + 4, &[0, 0]),
    ("free-l1", "", REFCOUNTS + 6, &[0, 0]),
    ("free-l2", "", REFCOUNTS + 8, &[0, 0]),
    ("v2-zero", "compat=0.10", L2, &entry(COPIED | 0x50001)),
    ("v2-unaligned", "compat=0.10", L2, &entry(COPIED | 0x52a00)),
    ("both-bits", "extended_l2=on", L2 + 8, &entry(0x1_0000_0001)),
];

/// Name, tool, arguments.
type Attempt = (&'static str, Tool, &'static [&'static str]);

const ATTEMPTS: &[Attempt] = &[
    ("write", Tool::Io, &["-c", "write 0 512", "disk.qcow2"]),
    ("write-new", Tool::Io, &["-c", "write 1M 64k", "disk.qcow2"]),
    (
        "write-far",
        Tool::Io,
        &["-c", "write 600M 64k", "disk.qcow2"],
    ),
    (
        "write-compressed",
        Tool::Io,
        &["-c", "write -c 1M 64k", "disk.qcow2"],
    ),
    ("read", Tool::Io, &["-c", "read 0 512", "disk.qcow2"]),
    (
        "read-only",
        Tool::Io,
        &["-r", "-c", "read 0 512", "-c", "read 0 512", "disk.qcow2"],
    ),
    (
        "after",
        Tool::Io,
        &[
            "-c",
            "read 0 512",
            "-c",
            "write 0 512",
            "-c",
            "write 1M 64k",
            "-c",
            "read 0 512",
            "disk.qcow2",
        ],
    ),
    ("discard", Tool::Io, &["-c", "discard 0 64k", "disk.qcow2"]),
    ("zero", Tool::Io, &["-c", "write -z -u 0 64k", "disk.qcow2"]),
    (
        "convert",
        Tool::Img,
        &["convert", "-O", "raw", "disk.qcow2", "out.raw"],
    ),
    (
        "compare",
        Tool::Img,
        &["compare", "disk.qcow2", "zeros.raw"],
    ),
];

/// Where ours differ on purpose.
fn excused(damage: &str, attempt: &str) -> bool {
    let writes_data = matches!(attempt, "write" | "write-new");
    let gives_up = matches!(attempt, "discard" | "zero");
    match damage {
        // Ours follows no table that is another table, and the judge names what it notices first: of two tables
        // in one place any. It aborts where it is to discard.
        "l2-in-l1" => !writes_data,
        "l2-in-refcounts" => !matches!(attempt, "read" | "read-only"),
        // Ours reads no metadata as if it were the guest's.
        "data-in-table" => attempt == "convert",
        "data-in-l1" => !attempt.starts_with("write"),
        "data-in-refcounts" => attempt == "zero",
        // Here the judge aborts.
        "data-in-l2" => gives_up,
        // The judge looks at refcounts when it reads, too.
        "refblock-unaligned" => matches!(attempt, "discard" | "zero" | "convert" | "compare"),
        // The judge needs a place for a refcount block before it notices, ours notices that there is none.
        "no-refblock" => gives_up || attempt == "write-compressed",
        // The new table would take the old one's place; the judge compares neither with its own kind.
        "free-l2" => attempt == "write-far",
        // The judge lets go of entries without a look at them.
        "v2-zero" => gives_up,
        "v2-unaligned" => attempt == "zero",
        // A space more or less.
        "both-bits" => gives_up || attempt == "write",
        _ => false,
    }
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// What a command said and did.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: i32,
    stdout: String,
    stderr: String,
    marked: bool,
}

fn told(outcome: &Outcome, dir: &Path) -> Told {
    let image = fs::read(dir.join("disk.qcow2")).expect("the image is there");
    Told {
        code: outcome.code,
        stdout: normalise(&outcome.stdout),
        stderr: outcome.stderr.clone(),
        marked: image[7] == 3 && image[79] & 2 != 0,
    }
}

/// A small disk with its first two clusters written, then damaged.
fn prepare(dir: &Path, (_, options, at, bytes): &Damage) {
    let mut create = words(&["create", "-q", "-f", "qcow2"]);
    if !options.is_empty() {
        create.extend(words(&["-o", options]));
    }
    create.extend(words(&["disk.qcow2", "1G"]));
    let created = oracle::run(Tool::Img, dir, &create);
    assert_eq!(created.code, 0, "{created:?}");
    let write = words(&["-c", "write -P 7 0 128k", "disk.qcow2"]);
    let written = oracle::run(Tool::Io, dir, &write);
    assert_eq!(written.code, 0, "{written:?}");
    let zeros = fs::File::create(dir.join("zeros.raw")).expect("the folder can be written");
    zeros.set_len(1 << 20).expect("the folder can be written");
    let image = dir.join("disk.qcow2");
    let mut disk = fs::read(&image).expect("it has just been made");
    disk[*at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(&image, disk).expect("the folder can be written");
}

fn try_one(damage: &Damage, (name, tool, args): &Attempt) -> Option<Failure> {
    let [mine, theirs] = ["marks-ours", "marks-judge"].map(Scratch::new);
    prepare(theirs.path(), damage);
    for file in ["disk.qcow2", "zeros.raw"] {
        fs::copy(theirs.path().join(file), mine.path().join(file)).expect("both are there");
    }
    let args = words(args);
    let judge = oracle::run(*tool, theirs.path(), &args);
    let ours = Build::Wasm.stand_in(*tool, mine.path(), None, &args);
    let judge = told(&judge, theirs.path());
    let ours = told(&ours, mine.path());
    if ours == judge || excused(damage.0, name) {
        return None;
    }
    Some(Failure {
        case: damage.0.to_owned(),
        doing: (*name).to_owned(),
        what: format!("\n  ours  {ours:?}\n  judge {judge:?}"),
    })
}

#[test]
fn damage_is_told_and_marked_as_the_judge_does() {
    if !oracle::available() {
        return;
    }
    let cases: Vec<(&Damage, &Attempt)> = DAMAGES
        .iter()
        .flat_map(|damage| ATTEMPTS.iter().map(move |attempt| (damage, attempt)))
        .collect();
    let failures = parallel::map(&cases, |(damage, attempt)| try_one(damage, attempt));
    let failures: Vec<Failure> = failures.into_iter().flatten().collect();
    finish("marks", cases.len(), &failures);
}
