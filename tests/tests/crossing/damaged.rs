//! Broken images do no harm: an error that says what is wrong, at once, in little memory, and nothing is
//! changed. Where qemu-img has words for it, they are ours too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use oxcow_tests::compare::difference;
use oxcow_tests::damage::{self, Damage};
use oxcow_tests::gallery::{Picture, make_all};
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::parallel;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::run::Outcome;
use oxcow_tests::scratch::{self, Scratch};

/// How much CPU time a command may take in user mode.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A command that is tried on every image.
struct Command {
    name: &'static str,
    tool: Option<Tool>,
    args: &'static [&'static str],
    codes: &'static [i32],
}

const COMMANDS: &[Command] = &[
    Command {
        name: "info",
        tool: Some(Tool::Img),
        args: &["info", "disk.qcow2"],
        codes: &[0, 1],
    },
    Command {
        name: "check",
        tool: Some(Tool::Img),
        args: &["check", "disk.qcow2"],
        codes: &[0, 1, 2, 3, 63],
    },
    Command {
        name: "map",
        tool: Some(Tool::Img),
        args: &["map", "--output=json", "disk.qcow2"],
        codes: &[0, 1],
    },
    Command {
        name: "convert",
        tool: Some(Tool::Img),
        args: &["convert", "-O", "raw", "disk.qcow2", "out.raw"],
        codes: &[0, 1],
    },
    Command {
        name: "io",
        tool: Some(Tool::Io),
        args: &[
            "-r",
            "-c",
            "read -v 32k 1k",
            "-c",
            "read 0 64k",
            "-c",
            "map",
            "disk.qcow2",
        ],
        codes: &[0, 1],
    },
    Command {
        name: "inspect",
        tool: None,
        args: &["inspect", "--output=json", "disk.qcow2"],
        codes: &[0, 1, 2, 3],
    },
];

/// What happened to one image.
struct Case {
    name: String,
    /// By command: ours and the judge's.
    outcomes: Vec<(&'static Command, Outcome, Option<Outcome>)>,
    changed: bool,
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// Runs everything in `dir`; the judge only where it comes to an end.
fn try_all(name: &str, dir: &Path, with_judge: bool) -> Case {
    let image = fs::read(dir.join("disk.qcow2")).expect("the image is there");
    let outcomes = COMMANDS
        .iter()
        .map(|command| {
            let args = words(command.args);
            let ours = match command.tool {
                Some(Tool::Io) => {
                    Build::Wasm.run("oxcow", dir, None, &[words(&["io"]), args.clone()].concat())
                }
                _ => Build::Wasm.run("oxcow", dir, None, &args),
            };
            let _ = fs::remove_file(dir.join("out.raw"));
            let judge = command
                .tool
                .filter(|_| with_judge)
                .map(|tool| oracle::run(tool, dir, &args));
            let _ = fs::remove_file(dir.join("out.raw"));
            (command, ours, judge)
        })
        .collect();
    Case {
        name: name.to_owned(),
        outcomes,
        changed: fs::read(dir.join("disk.qcow2")).ok().as_ref() != Some(&image),
    }
}

fn try_damage(damage: &Damage, bases: &BTreeMap<&str, &Picture>) -> Case {
    let scratch = Scratch::new("damaged");
    let base = bases[damage.base];
    for file in ["disk.qcow2", "base.raw", "disk.data"] {
        // Not every base has every file.
        let _ = fs::copy(base.dir.join(file), scratch.path().join(file));
    }
    let image = scratch.path().join("disk.qcow2");
    let mut bytes = fs::read(&image).expect("the base is there");
    (damage.change)(&mut bytes);
    fs::write(&image, bytes).expect("the target folder can be written");
    try_all(&damage.name, scratch.path(), true)
}

/// Everything, once for all tests.
fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| {
        let bases = make_all("damage-bases", damage::bases());
        let by_name: BTreeMap<&str, &Picture> = bases
            .iter()
            .map(|base| (base.recipe.name.as_str(), base))
            .collect();
        let mut cases = parallel::map(&damage::all(), |damage| try_damage(damage, &by_name));
        let chains = make_all("damage-chains", damage::chains());
        cases.extend(parallel::map(&chains, |chain| {
            try_all(&chain.recipe.name, &chain.dir, !endless(&chain.recipe.name))
        }));
        cases
    })
}

/// Where the judge runs until it has no file descriptors or no stack left.
fn endless(chain: &str) -> bool {
    chain.starts_with("chain-of-") || chain == "chain-long"
}

/// What is wrong with how ours ended.
fn harm(command: &Command, outcome: &Outcome) -> Option<String> {
    let Outcome {
        code,
        stdout,
        stderr,
        user,
        ..
    } = outcome;
    let said = [stdout.as_str(), stderr.as_str()];
    if said.iter().any(|text| {
        ["panicked", "wasm trap", "wasm backtrace"]
            .iter()
            .any(|sign| text.contains(sign))
    }) {
        return Some(format!("trapped (exit code {code}): {stderr}"));
    }
    if !command.codes.contains(code) {
        return Some(format!("exit code {code}, {stdout}{stderr}"));
    }
    if *user > AT_ONCE {
        return Some(format!("took {user:?} of CPU time"));
    }
    if *code != 0 && said.iter().all(|text| text.trim().is_empty()) {
        return Some(format!("exit code {code} without a word"));
    }
    // `check` first says what it found, `io` answers on standard output.
    let ends_with_message = *code == 1 && !matches!(command.name, "io" | "check");
    // What is corrupt is told first, in QEMU's words and under the name of the format.
    let mut lines = stderr.lines();
    let message = lines.find(|line| !line.starts_with("qcow2: Image is corrupt: "));
    (ends_with_message && !message.is_some_and(|line| line.starts_with("oxcow: ")))
        .then(|| format!("the message does not begin with the program's name: {stderr}"))
}

#[test]
fn no_damage_does_harm() {
    if !oracle::available() {
        return;
    }
    let mut failures = Vec::new();
    for case in cases() {
        if case.changed {
            failures.push(Failure {
                case: case.name.clone(),
                doing: "any command".into(),
                what: "the image was changed".into(),
            });
        }
        for (command, ours, _) in &case.outcomes {
            failures.extend(harm(command, ours).map(|what| Failure {
                case: case.name.clone(),
                doing: command.name.into(),
                what,
            }));
        }
    }
    assert!(cases().len() >= 200, "{}", cases().len());
    finish("damaged", cases().len() * COMMANDS.len(), &failures);
}

/// Ours refuses at once what the judge reads as zeros, or meets later or never. The words of the message, and
/// why.
const STRICTER: &[(&str, &str)] = &[
    (
        "reaches past the end of the file",
        "a table that is not all there; the judge reads zeros",
    ),
    (
        "past the end of the file",
        "a cluster that is not there; the judge reads zeros",
    ),
    (
        "overlaps with",
        "a table or cluster in the middle of other metadata; the judge reads it as it is",
    ),
    ("is not supported", "qcow version 1, which the judge reads"),
    (
        "infinite loop",
        "the judge opens files until it has none left, or does not need the backing file",
    ),
    (
        "has reserved bits set",
        "a bit that must be 0: the entry is not what it seems; the judge ignores the bit",
    ),
    (
        "data-file-raw requires a data file",
        "the same words as the judge's, which only `info` does not look at",
    ),
    (
        "is not a multiple of 8",
        "the judge meets extensions at odd places, and says that they are too large",
    ),
    ("/etc/passwd", "the sandbox was not given that folder"),
];

/// Ours goes on where the judge gives up: how the case's name begins, the command (or `*`), and why.
const LAXER: &[(&str, &str, &str)] = &[
    (
        "bitmap-",
        "*",
        "content can be read whatever the bitmaps are like; `check` and `inspect` tell",
    ),
    ("extension-v3-bitmaps", "*", "the same"),
    (
        "truncated-half-a-cluster",
        "*",
        "the same: the bitmap directory is cut",
    ),
    (
        "file-tables-zero",
        "*",
        "the same: the bitmap directory is empty",
    ),
    (
        "header-size-zero",
        "*",
        "the same: the bitmap is too large for the disk",
    ),
    ("header-size-one", "*", "the same"),
    (
        "header-backing-file-offset-minus-one",
        "*",
        "one byte of the marker that ends the extensions is cut, and nothing else",
    ),
    (
        "extension-luks-crypto-length-zero",
        "info",
        "the rest of the header can still be told",
    ),
    (
        "compressed-zstd-fifth-byte",
        "*",
        "the frame holds the whole cluster, its header gives another size",
    ),
];

/// Both fail, or both tell, but `info` in other words: how the case's name begins, and why.
const OTHER_WORDS: &[(&str, &str)] = &[
    ("header-size-max", "the judge meets the bitmap's size first"),
    (
        "header-v2-size-max",
        "the judge lets the size pass and fails in a general place",
    ),
    (
        "header-data-file-incompatible-none",
        "a data file's name without the feature bit: the judge shows it though it is not used",
    ),
    (
        "extension-data-file-data-file-unknown-type",
        "a data file without a name",
    ),
    (
        "feature-incompatible-2",
        "the same with snapshots, which the judge leaves out where there is a data file",
    ),
];

fn stricter(ours: &Outcome) -> bool {
    STRICTER
        .iter()
        .any(|(words, _)| ours.stderr.contains(words) || ours.stdout.contains(words))
}

/// What ours said, under the judge's name.
fn renamed(ours: &Outcome, name: &str) -> Outcome {
    let rename = |line: &str| match line.strip_prefix("oxcow: ") {
        Some(rest) => format!("{name}: {rest}"),
        None => line.to_owned(),
    };
    Outcome {
        stderr: ours.stderr.split_inclusive('\n').map(rename).collect(),
        ..ours.clone()
    }
}

fn asked_of_both()
-> impl Iterator<Item = (&'static str, &'static Command, Outcome, &'static Outcome)> {
    cases().iter().flat_map(|case| {
        case.outcomes.iter().filter_map(|(command, ours, judge)| {
            let name = command.tool.map_or("oxcow", Tool::name);
            Some((
                case.name.as_str(),
                *command,
                renamed(ours, name),
                judge.as_ref()?,
            ))
        })
    })
}

#[test]
fn damage_that_qemu_img_refuses_is_refused() {
    if !oracle::available() {
        return;
    }
    let lax = |case: &str, command: &Command| {
        LAXER.iter().any(|&(start, which, _)| {
            case.starts_with(start) && (which == "*" || which == command.name)
        })
    };
    let mut looked_at = 0;
    let mut failures = Vec::new();
    for (case, command, ours, judge) in
        asked_of_both().filter(|(case, command, ..)| !lax(case, command))
    {
        looked_at += 1;
        let what = match (judge.code, ours.code) {
            // More findings are as good; fewer are not.
            (0, 1) if !stricter(&ours) => "refused, though nothing is wrong with it",
            (1, 0 | 3) => "read, where the judge gives up",
            _ => continue,
        };
        let what = format!("{what}\njudge: {}\nours: {}", judge.stderr, ours.stderr);
        failures.push(Failure {
            case: case.to_owned(),
            doing: command.name.to_owned(),
            what,
        });
    }
    finish("damaged-refused", looked_at, &failures);
}

#[test]
fn damage_is_reported_in_the_words_of_qemu_img() {
    if !oracle::available() {
        return;
    }
    let mut looked_at = 0;
    let mut failures = Vec::new();
    let mut others = String::new();
    for (case, command, ours, judge) in asked_of_both() {
        looked_at += 1;
        let Some(what) = difference(judge, &ours).filter(|_| !stricter(&ours)) else {
            continue;
        };
        let elsewhere = OTHER_WORDS
            .iter()
            .any(|&(start, _)| case.starts_with(start))
            || LAXER.iter().any(|&(start, ..)| case.starts_with(start));
        if command.name == "info" && !elsewhere {
            failures.push(Failure {
                case: case.to_owned(),
                doing: command.name.to_owned(),
                what,
            });
        } else {
            others += &format!("--- {case}: {}\n{what}", command.name);
        }
    }
    // Where content is damaged, ours says where; the differences are kept for a person to look at.
    fs::write(scratch::cache().join("damaged-other-words.txt"), others)
        .expect("the target folder can be written");
    finish("damaged-words", looked_at, &failures);
}
