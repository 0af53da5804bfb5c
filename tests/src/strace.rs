//! What a program did to the files of a folder, as the system saw it: the writes with their bytes, the barriers, and when
//! it said what.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::oracle::on_path;
use crate::run::{self, Outcome};

/// The calls that change a file, wait for it, or say something.
const CALLS: &str = "trace=write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,\
    sync_file_range,copy_file_range,sendfile";

/// Whether strace is there and may trace. Says so where it is not: `return` then.
///
/// # Panics
/// In continuous integration (`CI=true`), where a test that is skipped would hide.
#[must_use]
pub fn available() -> bool {
    let works = on_path("strace").is_some()
        && run::run(run::command("strace", Path::new("/")).args(["-o", "/dev/null", "true"])).code
            == 0;
    if !works {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "strace is not installed, or may not trace");
        println!("SKIPPED: strace is not installed, or may not trace");
    }
    works
}

/// Runs `command` in `dir` under strace and returns what it did to the files in there.
///
/// # Panics
/// Where it cannot be traced, or does something to a file that this does not know: leaving it out would prove
/// nothing.
#[must_use]
pub fn trace(command: &Command, dir: &Path) -> (Outcome, Vec<Call>) {
    let output = dir.join("strace.log");
    let mut traced = run::command("strace", dir);
    traced
        .args([
            "-f",
            "-y",
            "-xx",
            "-s",
            "10000000",
            "-e",
            "signal=none",
            "-e",
            CALLS,
            "-o",
        ])
        .arg(&output)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    let outcome = run::run(&mut traced);
    let text = fs::read_to_string(&output).expect("strace writes what it saw");
    let _ = fs::remove_file(output);
    // The system tells names without links in them.
    let dir = dir.canonicalize().expect("the folder is there");
    (outcome, parse(&text, &dir))
}

/// A call that matters, and its time: the numbers of the lines in which it began and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it began.
    pub begun: usize,
    /// When it was over.
    pub ended: usize,
    /// The name of the file inside the folder; empty for standard output.
    pub file: String,
    /// What it did.
    pub what: What,
}

/// What a call did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Put bytes at an offset.
    Write(u64, Vec<u8>),
    /// Put so many zeros at an offset, without making the file longer.
    Punch(u64, u64),
    /// Made the file this long.
    Length(u64),
    /// Made the file at least this long.
    AtLeast(u64),
    /// Waited until everything before was durable.
    Sync,
    /// Said something.
    Said(String),
}

/// The calls of a trace that concern files in `dir` or standard output, in the order in which they began.
fn parse(trace: &str, dir: &Path) -> Vec<Call> {
    let mut calls = Vec::new();
    // Calls that those of other threads interrupt: thread, when they began, and the beginning of their line.
    let mut open: Vec<(&str, usize, &str)> = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if let Some(start) = rest.strip_suffix("<unfinished ...>") {
            open.push((thread, number, start));
            continue;
        }
        let (begun, text) = match rest.strip_prefix("<... ") {
            Some(end) => {
                let found = open.iter().position(|(other, ..)| *other == thread);
                let found =
                    found.unwrap_or_else(|| panic!("the end of no call: {}", start_of(rest)));
                let (_, begun, start) = open.swap_remove(found);
                let (_, end) = end.split_once("resumed>").unwrap_or(("", end));
                (begun, format!("{start}{end}"))
            }
            None => (number, rest.to_owned()),
        };
        if let Some((file, what)) = understand(&text, dir) {
            calls.push(Call {
                begun,
                ended: number,
                file,
                what,
            });
        }
    }
    calls.sort_by_key(|call| call.begun);
    calls
}

/// One call: `name(fd<path>, …) = result`.
fn understand(text: &str, dir: &Path) -> Option<(String, What)> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(')')?;
    let result = result.trim_start().strip_prefix("= ")?;
    let result: i64 = result.split([' ', '<']).next()?.parse().ok()?;
    let (descriptor, rest) = arguments.split_once('<')?;
    let (path, arguments) = rest.split_once('>')?;
    let path = PathBuf::from(String::from_utf8(unescape(path)).ok()?);
    let file = path
        .strip_prefix(dir)
        .ok()
        .map(|file| file.display().to_string());
    let number = |back: usize| -> u64 {
        let word = arguments.rsplit(", ").nth(back);
        word.and_then(|word| word.trim().parse().ok())
            .unwrap_or_else(|| panic!("a number is missing: {}", start_of(text)))
    };
    let bytes = || -> Vec<u8> {
        let quoted = arguments.split('"').skip(1).step_by(2);
        let mut bytes: Vec<u8> = quoted.flat_map(unescape).collect();
        bytes.truncate(result as usize);
        bytes
    };
    let Some(file) = file else {
        let says = descriptor == "1" && matches!(name, "write" | "writev");
        let said = || String::from_utf8_lossy(&bytes()).into_owned();
        return says.then(|| (String::new(), What::Said(said())));
    };
    // What fails changes nothing; but a flush that fails would have to be looked at more closely.
    assert!(
        result >= 0 || name == "fallocate",
        "a call failed: {}",
        start_of(text)
    );
    if result < 0 {
        return None;
    }
    let what = match name {
        "pwrite64" | "pwritev" => What::Write(number(0), bytes()),
        "pwritev2" => What::Write(number(1), bytes()),
        "ftruncate" => What::Length(number(0)),
        "fsync" | "fdatasync" => What::Sync,
        "fallocate" if arguments.contains("KEEP_SIZE") => What::Punch(number(1), number(0)),
        "fallocate" if arguments.starts_with(", 0,") => What::AtLeast(number(1) + number(0)),
        _ => panic!(
            "a call of another kind changes the file: {}",
            start_of(text)
        ),
    };
    Some((file, what))
}

/// As much of a line as a person can read.
fn start_of(line: &str) -> String {
    line.chars().take(300).collect()
}

/// What strace writes as `\x00\x01`.
fn unescape(text: &str) -> Vec<u8> {
    let codes = text.split("\\x").skip(1);
    codes
        .map(|code| u8::from_str_radix(code, 16).unwrap_or_else(|_| panic!("no byte: {code:.20}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_strace_writes() {
        let trace = r#"7  write(1<\x70>, "\x6f\x6b", 2) = 2
7  pwrite64(4<\x2f\x64\x2f\x61>, "\x01\x02", 2, 512 <unfinished ...>
8  fdatasync(4<\x2f\x64\x2f\x61> <unfinished ...>
7  <... pwrite64 resumed>)              = 1
8  <... fdatasync resumed>)             = 0
7  pwritev(4<\x2f\x64\x2f\x61>, [{iov_base="\x03", iov_len=1}, {iov_base="\x04", iov_len=1}], 2, 1024) = 2
7  pwrite64(5<\x2f\x62>, "\x09", 1, 0)  = 1
7  ftruncate(4<\x2f\x64\x2f\x61>, 4096)         = 0
7  +++ exited with 0 +++
"#;
        let calls = parse(trace, Path::new("/d"));
        let expected = [
            (0, 0, "", What::Said("ok".into())),
            (1, 3, "a", What::Write(512, vec![1])),
            (2, 4, "a", What::Sync),
            (5, 5, "a", What::Write(1024, vec![3, 4])),
            (7, 7, "a", What::Length(4096)),
        ];
        let expected = expected.map(|(begun, ended, file, what)| Call {
            begun,
            ended,
            file: file.into(),
            what,
        });
        assert_eq!(calls, expected);
    }
}
