//! What users see when the system fails: a full disk, a disk that does not take or keep what is written, a
//! read-only file, a second writer. Always a message that says so and exit code 1, never a damaged image.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use oxcow_tests::cut::command::Command;
use oxcow_tests::cut::judge;
use oxcow_tests::cut::legal::Legal;
use oxcow_tests::cut::state::State;
use oxcow_tests::oracle::{self, Tool};
use oxcow_tests::ours::Build;
use oxcow_tests::report::{Failure, finish};
use oxcow_tests::run::{self, Outcome};
use oxcow_tests::scratch::Scratch;
use oxcow_tests::{parallel, strace};

const IMAGE: &str = "disk.qcow2";
const CLUSTER: u64 = 4096;
const SIZE: u64 = 256 << 10;

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// A used disk with two snapshots.
fn make(dir: &Path) {
    let mut steps = vec![(
        Tool::Img,
        format!("create -q -f qcow2 -o cluster_size={CLUSTER} {IMAGE} {SIZE}"),
    )];
    for (byte, name) in [(2, "one"), (20, "two")] {
        steps.push((
            Tool::Io,
            format!(
                "-c|write -P {byte} 0 40k|-c|write -c -P {} {} 8k|{IMAGE}",
                byte + 1,
                65536 + 2048 * byte / 4096 * 4096
            ),
        ));
        steps.push((Tool::Img, format!("snapshot -c {name} {IMAGE}")));
    }
    steps.push((Tool::Io, format!("-c|write -P 30 8k 4k|{IMAGE}")));
    for (tool, line) in steps {
        let separator = if tool == Tool::Io { '|' } else { ' ' };
        let args: Vec<String> = line.split(separator).map(str::to_owned).collect();
        let outcome = oracle::run(tool, dir, &args);
        assert_eq!(
            outcome.code, 0,
            "{line}: {}{}",
            outcome.stdout, outcome.stderr
        );
    }
}

/// Something that changes the image.
struct Change {
    name: &'static str,
    args: Vec<String>,
    /// What a guest does, where it is one.
    guest: Vec<Command>,
}

fn changes() -> Vec<Change> {
    let guest = vec![
        Command::Write(0..4096, 40),
        Command::Write(10_240..10_752, 41),
        Command::Write(200 << 10..208 << 10, 42),
        Command::Flush,
        Command::Zeroes(4096..16384, true),
        Command::Discard(20480..28672),
        Command::Compressed(131_072..135_168, 43),
        Command::Write(16384..20480, 44),
        Command::Flush,
        Command::Write(28672..32768, 45),
    ];
    let mut args = words("io -t writeback");
    for command in &guest {
        args.extend(["-c".to_owned(), command.line()]);
    }
    args.push(IMAGE.to_owned());
    let mut changes = vec![Change {
        name: "io",
        args,
        guest,
    }];
    let whole = [
        ("create a snapshot", format!("snapshot -c three {IMAGE}")),
        ("apply a snapshot", format!("snapshot -a one {IMAGE}")),
        ("delete a snapshot", format!("snapshot -d one {IMAGE}")),
        ("grow", format!("resize {IMAGE} 4M")),
        ("shrink", format!("resize --shrink {IMAGE} 100k")),
    ];
    changes.extend(whole.map(|(name, line)| Change {
        name,
        args: words(&line),
        guest: Vec::new(),
    }));
    changes
}

/// What is wrong with how a change ended, or with what is there now.
fn judge_failure(
    change: &Change,
    outcome: &Outcome,
    told: &str,
    dir: &Path,
    states: &[State; 2],
) -> Result<(), String> {
    let [old, new] = states;
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    if outcome.code != 1 {
        return Err(format!("exit code {}\n{said}", outcome.code));
    }
    if !said.contains(told) || said.contains("panicked") {
        return Err(format!("does not say \"{told}\":\n{said}"));
    }
    let verdict = judge::check(dir, IMAGE)?;
    if verdict.corruptions != 0 {
        return Err(format!("{verdict:?}\n{said}"));
    }
    let found = State::read(&dir.join(IMAGE))?;
    if !change.guest.is_empty() {
        let same = State {
            disk: found.disk.clone(),
            snapshots: old.snapshots.clone(),
        };
        if let Some(difference) = found.difference(&same) {
            return Err(difference);
        }
        // Nothing but what was there or was written: none of it in a place of its own that was lost.
        let commands: Vec<Command> = change
            .guest
            .iter()
            .filter(|one| **one != Command::Flush)
            .cloned()
            .collect();
        return Legal::new(&old.disk, CLUSTER)?
            .after(&commands, commands.len())
            .judge(&found.disk);
    }
    match (found.difference(old), found.difference(new)) {
        (Some(old), Some(new)) => Err(format!("neither old ({old}) nor new ({new})\n{said}")),
        _ => Ok(()),
    }
}

/// A way in which the system can fail.
#[derive(Clone, Copy, Debug)]
struct Fault {
    calls: &'static str,
    error: &'static str,
    told: &'static str,
    /// Whether every later call fails too.
    ever: bool,
}

const FAULTS: [Fault; 5] = [
    Fault {
        calls: "pwrite64",
        error: "EIO",
        told: "Input/output error",
        ever: false,
    },
    Fault {
        calls: "pwrite64",
        error: "ENOSPC",
        told: "No space left on device",
        ever: true,
    },
    Fault {
        calls: "fsync",
        error: "EIO",
        told: "Input/output error",
        ever: false,
    },
    Fault {
        calls: "fdatasync",
        error: "EIO",
        told: "Input/output error",
        ever: true,
    },
    Fault {
        calls: "ftruncate",
        error: "EIO",
        told: "Input/output error",
        ever: false,
    },
];

/// Runs the change with the call of this number failing; `None` where it does not come to that.
fn with_fault(
    build: Build,
    dir: &Path,
    change: &Change,
    fault: Fault,
    number: usize,
) -> Option<Outcome> {
    let log = dir.join("strace.log");
    let ever = if fault.ever { "+" } else { "" };
    let mut command = run::command("strace", dir);
    command
        .args([
            "-f",
            "-e",
            "signal=none",
            "-e",
            &format!("trace={}", fault.calls),
            "-e",
        ])
        .arg(format!(
            "inject={}:error={}:when={number}{ever}",
            fault.calls, fault.error
        ))
        .arg("-o")
        .arg(&log)
        .args(build.words("oxcow", None))
        .args(&change.args);
    let outcome = run::run(&mut command);
    let log = fs::read_to_string(log).expect("strace writes what it saw");
    log.contains("(INJECTED)").then_some(outcome)
}

#[test]
fn every_call_that_fails_is_told_and_leaves_a_good_image() {
    if !oracle::available() || !strace::available() {
        return;
    }
    let start = Scratch::new("faults");
    make(start.path());
    let old = State::read(&start.path().join(IMAGE)).expect("the image is good");
    let changes = changes();
    let mut cases = Vec::new();
    for build in [Build::Native, Build::Wasm] {
        for change in &changes {
            cases.extend(FAULTS.map(|fault| (build, change, fault)));
        }
    }
    let results = parallel::map(&cases, |&(build, change, fault)| {
        let scratch = Scratch::new("faults");
        let dir = scratch.path();
        let again =
            || fs::copy(start.path().join(IMAGE), dir.join(IMAGE)).expect("it can be copied");
        again();
        let well = build.run("oxcow", dir, None, &change.args);
        assert_eq!(well.code, 0, "{}: {}", change.name, well.stderr);
        let new = State::read(&dir.join(IMAGE)).expect("the image is good");
        let states = [old.clone(), new];
        let mut failures = Vec::new();
        let mut injected = 0;
        // Each call natively; the first ones under wasmtime, whose start takes long.
        let most = if build == Build::Native { 60 } else { 4 };
        for number in 1..=most {
            again();
            let Some(outcome) = with_fault(build, dir, change, fault, number) else {
                break;
            };
            injected += 1;
            if let Err(what) = judge_failure(change, &outcome, fault.told, dir, &states) {
                failures.push(Failure {
                    case: format!("{build:?}: {}", change.name),
                    doing: format!("{fault:?}, call {number}"),
                    what,
                });
            }
        }
        (injected, failures)
    });
    for (build, call) in [
        (Build::Native, "pwrite64"),
        (Build::Native, "fdatasync"),
        (Build::Wasm, "pwrite64"),
    ] {
        let of_this = cases.iter().zip(&results);
        let count: usize = of_this
            .filter(|((other, _, fault), _)| *other == build && fault.calls == call)
            .map(|(_, (injected, _))| injected)
            .sum();
        println!("{build:?}: {count} times {call} failed");
        assert!(count > 0, "{call} never failed");
    }
    let injected = results.iter().map(|(injected, _)| injected).sum();
    let failures: Vec<Failure> = results
        .into_iter()
        .flat_map(|(_, failures)| failures)
        .collect();
    finish("faults", injected, &failures);
}

/// Runs `script` by the shell where `mount` is allowed and nobody else sees what it does.
///
/// # Panics
/// In continuous integration (`CI=true`), where that is not possible.
fn where_mounts_are_private(dir: &Path, script: &str) -> Option<Outcome> {
    for map_root in [&[][..], &["-r"][..]] {
        let mut command = run::command("unshare", dir);
        command.args(map_root).args(["-m", "sh", "-c"]);
        command.arg(format!(
            "mount -t tmpfs none /mnt && umount /mnt && echo private\n{script}"
        ));
        let outcome = run::run(&mut command);
        if outcome.stdout.starts_with("private\n") {
            return Some(outcome);
        }
    }
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "unshare may not mount anything");
    println!("SKIPPED: unshare may not mount anything");
    None
}

/// The words as the shell wants them.
fn quoted(build: Build, args: &[String]) -> String {
    let words = build.words("oxcow", None);
    let words = words.iter().map(|word| word.to_string_lossy().into_owned());
    let words = words.chain(args.iter().cloned());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect();
    words.join(" ")
}

#[test]
fn a_full_disk_is_told_and_takes_nothing_away() {
    if !oracle::available() {
        return;
    }
    let mut failures = Vec::new();
    for build in [Build::Native, Build::Wasm] {
        let scratch = Scratch::new("full");
        let dir = scratch.path();
        make(dir);
        let old = State::read(&dir.join(IMAGE)).expect("the image is good");
        for change in changes() {
            // Less and less room beside the image; with none at all, nothing can be done.
            for room in [4, 8, 16, 28] {
                let script = format!(
                    "mkdir -p full && mount -t tmpfs -o size=1m none full && cp {IMAGE} full/ && cd full || exit 9\n\
                     export PWD=$(pwd)\n\
                     mount -o remount,size=$(( ($(du -k {IMAGE} | cut -f1) + {room}) * 1024 )) . || exit 8\n\
                     {}\ncode=$?\ncp {IMAGE} ../after.qcow2 || exit 7\nexit $code",
                    quoted(build, &change.args)
                );
                let Some(outcome) = where_mounts_are_private(dir, &script) else {
                    return;
                };
                let after = Scratch::new("full-after");
                let copied = fs::rename(dir.join("after.qcow2"), after.path().join(IMAGE));
                copied.unwrap_or_else(|error| panic!("{error}: {}", outcome.stderr));
                let new = || -> Result<State, String> {
                    // Without any fault.
                    let scratch = Scratch::new("full-new");
                    fs::copy(dir.join(IMAGE), scratch.path().join(IMAGE))
                        .map_err(|error| error.to_string())?;
                    let _ = build.run("oxcow", scratch.path(), None, &change.args);
                    State::read(&scratch.path().join(IMAGE))
                };
                let found = new().and_then(|new| match outcome.code {
                    // There was room enough.
                    0 => State::read(&after.path().join(IMAGE))?
                        .difference(&new)
                        .map_or(Ok(()), Err),
                    _ => {
                        let states = [old.clone(), new];
                        judge_failure(
                            &change,
                            &outcome,
                            "No space left on device",
                            after.path(),
                            &states,
                        )
                    }
                });
                println!(
                    "{build:?}: {} with {room} KiB: exit code {}",
                    change.name, outcome.code
                );
                if room == 4 && change.name == "io" {
                    assert_eq!(outcome.code, 1, "there was room: {}", outcome.stdout);
                }
                if let Err(what) = found {
                    failures.push(Failure {
                        case: format!("{build:?}: {}", change.name),
                        doing: format!("{room} KiB are left"),
                        what,
                    });
                }
            }
        }
    }
    finish("full", 2 * 6 * 4, &failures);
}

#[test]
fn a_read_only_file_is_told_and_stays_as_it_is() {
    if !oracle::available() {
        return;
    }
    let mut failures = Vec::new();
    let mut looked_at = 0;
    for build in [Build::Native, Build::Wasm] {
        for change in changes() {
            let scratch = Scratch::new("read-only");
            let dir = scratch.path();
            make(dir);
            let before = fs::read(dir.join(IMAGE)).expect("it can be read");
            let script = format!(
                "mount --bind . . && mount -o remount,bind,ro . || exit 9\ncd ..; cd \"$OLDPWD\"\n{}",
                quoted(build, &change.args)
            );
            let Some(outcome) = where_mounts_are_private(dir, &script) else {
                return;
            };
            looked_at += 1;
            let after = fs::read(dir.join(IMAGE)).expect("it can be read");
            // wasmtime knows no other word for it than this.
            let told = outcome.stderr.contains("Read-only file system")
                || build == Build::Wasm && outcome.stderr.contains("I/O error");
            if outcome.code != 1 || !told || outcome.stderr.lines().count() != 1 || before != after
            {
                failures.push(Failure {
                    case: format!("{build:?}: {}", change.name),
                    doing: change.args.join(" "),
                    what: format!(
                        "exit code {}, changed: {}\n{}",
                        outcome.code,
                        before != after,
                        outcome.stderr
                    ),
                });
            }
        }
    }
    finish("read-only", looked_at, &failures);
}

/// Opens the image with `io`, writes and flushes; then `other` changes it; then it writes and flushes again.
fn with_another_writer(build: Build, dir: &Path, other: impl FnOnce()) -> Outcome {
    let words = build.words("oxcow", None);
    let mut child = Process::new(&words[0])
        .args(&words[1..])
        .args(["io", "-t", "writeback", IMAGE])
        .current_dir(dir)
        .env("PWD", dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    stdin
        .write_all(b"write -P 50 0 8k\nflush\nlength\n")
        .expect("it listens");
    let mut line = String::new();
    while !line.contains("256 KiB") {
        line.clear();
        let count = stdout.read_line(&mut line).expect("it can be read");
        assert!(count > 0, "it ended early");
    }
    other();
    stdin
        .write_all(b"write -P 51 64k 8k\nflush\nwrite -P 52 80k 4k\nflush\n")
        .expect("it listens");
    drop(stdin);
    let mut said = String::new();
    stdout.read_to_string(&mut said).expect("it can be read");
    let rest = child.wait_with_output().expect("it ends");
    Outcome {
        code: rest.status.code().unwrap_or(-1),
        stdout: said,
        stderr: String::from_utf8_lossy(&rest.stderr).into_owned(),
        user: std::time::Duration::ZERO,
        peak_rss: 0,
    }
}

#[test]
fn a_second_writer_is_noticed_and_keeps_what_it_wrote() {
    if !oracle::available() {
        return;
    }
    let others: [(&str, Tool, &[&str]); 3] = [
        ("writes", Tool::Io, &["-c", "write -P 60 128k 64k", IMAGE]),
        (
            "keeps a snapshot",
            Tool::Img,
            &["snapshot", "-c", "theirs", IMAGE],
        ),
        ("resizes", Tool::Img, &["resize", "-q", IMAGE, "8M"]),
    ];
    let mut failures = Vec::new();
    for build in [Build::Native, Build::Wasm] {
        for (name, tool, args) in &others {
            let scratch = Scratch::new("second");
            let dir = scratch.path();
            make(dir);
            let mut theirs = None;
            let outcome = with_another_writer(build, dir, || {
                let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
                let outcome = oracle::run(*tool, dir, &args);
                assert_eq!(outcome.code, 0, "{}", outcome.stderr);
                theirs = Some(State::read(&dir.join(IMAGE)));
            });
            let judged = || -> Result<(), String> {
                let theirs = theirs.ok_or("it was not done")??;
                if outcome.code != 1 || !outcome.stderr.contains("changed by another program") {
                    return Err(format!(
                        "exit code {}: {}{}",
                        outcome.code, outcome.stdout, outcome.stderr
                    ));
                }
                let verdict = judge::check(dir, IMAGE)?;
                if verdict.corruptions != 0 {
                    return Err(format!("{verdict:?}"));
                }
                let found = State::read(&dir.join(IMAGE))?;
                found.difference(&theirs).map_or(Ok(()), Err)
            };
            if let Err(what) = judged() {
                failures.push(Failure {
                    case: format!("{build:?}: the other {name}"),
                    doing: args.join(" "),
                    what,
                });
            }
        }
    }
    finish("second-writer", 2 * others.len(), &failures);
}
